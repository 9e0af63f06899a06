"""The languages of the pages: one catalogue, in which each English text has its words in the others.

Texts of people and models, names and what a project's settings ask are shown as they are; what the usual settings ask
is in the catalogue too. Errors, reasons and alarms are made where nobody knows a language, with their values in them:
they are found by the template they were made from, with ``{a}``, ``{b}`` for the values in their order.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from markupsafe import Markup

# How a moment is written; the clock is UTC for everybody.
_MOMENTS = {"en": "%-d %b %Y, %H:%M UTC", "zh": "%Y-%m-%d %H:%M UTC"}
_WANTED = re.compile(r"([A-Za-z]{1,8}|\*)(?:-[A-Za-z0-9-]*)?\s*(?:;\s*q\s*=\s*([01](?:\.\d{0,3})?))?\s*(?:,|$)")


# Characters of a text that is looked for among the templates: each tries to find its words in it.
_MOST_TOLD = 400


@dataclass(frozen=True)
class Tongue:
    """One language. English words are their own keys: what the catalogue does not know is said as it is."""

    code: str
    words: Mapping[str, str]
    scripts: frozenset[str]
    templates: tuple[tuple[re.Pattern[str], str], ...] = ()

    def word(self, text: str) -> str:
        """Return a text that may be ours or somebody's: never as HTML."""
        return self.words.get(text, text)

    def told(self, text: str) -> str:
        """Return an error, a reason or an alarm in this language, as it is where no template fits; never as HTML."""
        if text in self.words or len(text) > _MOST_TOLD:
            return self.word(text)
        for template, words in self.templates:
            if found := template.fullmatch(text):
                return words.format(**{name: self.told(value) for name, value in found.groupdict().items()})
        return text

    def sentences(self, parts: Iterable[str]) -> str:
        """Return parts of an error in this language, one after the other."""
        told = [self.told(part) for part in parts if part]
        return "。".join(told) if self.code == "zh" else ". ".join(part[:1].upper() + part[1:] for part in told)

    def plain(self, text: str, **values: object) -> str:
        """Return one of our texts with values in it, not as HTML."""
        return self.word(text).format(**values)

    def said(self, text: str, **values: Any) -> Markup:
        """Return one of our texts for a page, with values in it, which are escaped."""
        return Markup(self.word(text)).format(**values)

    def moment(self, seconds: float) -> str:
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime(_MOMENTS[self.code])

    def for_scripts(self) -> str:
        """Return the words of the pages' scripts as JSON; "" in English, which they speak by themselves."""
        chosen = {text: words for text, words in self.words.items() if text in self.scripts}
        return json.dumps(chosen, ensure_ascii=False) if chosen else ""


@cache
def catalogue() -> dict[str, dict[str, str]]:
    """Return the Chinese words by their English ones: those of pages, of scripts, of what is told (with templates)."""
    text = (files("accord.people.web") / "messages.json").read_text(encoding="utf-8")
    read: dict[str, dict[str, str]] = json.loads(text)
    return read


@cache
def _tongues() -> dict[str, Tongue]:
    known = catalogue()
    words = known["told"] | known["pages"] | known["scripts"]
    # The one with most words of its own first: "{a} completions" fits much that is said better elsewhere.
    patterns = sorted((text for text in known["told"] if "{a}" in text), key=lambda text: -len(text))
    templates = tuple((_pattern(text), known["told"][text]) for text in patterns)
    return {
        "en": Tongue("en", {}, frozenset()),
        "zh": Tongue("zh", words, frozenset(known["scripts"]), templates),
    }


def _pattern(template: str) -> re.Pattern[str]:
    parts = re.split(r"\{([a-z])\}", template)
    return re.compile("".join(f"(?P<{part}>.+?)" if i % 2 else re.escape(part) for i, part in enumerate(parts)), re.S)


def tongue_of(accepted: str) -> Tongue:
    """Return the language that a browser wants most of those we speak (RFC 9110, 12.5.4); English where none is."""
    spoken, best, found = _tongues(), 0.0, "en"
    for wanted, quality in _WANTED.findall(accepted[:1000].lower()):
        worth = float(quality or 1)
        if wanted in spoken and worth > best:
            best, found = worth, wanted
    return spoken[found]
