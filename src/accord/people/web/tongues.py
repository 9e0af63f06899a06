"""The languages of the pages: one catalogue, in which each English text has its words in the others.

Texts of people and models, names and what a project's settings ask are shown as they are; what the usual settings ask
is in the catalogue too. The figures' reasons, which the manager reads, and errors of the JSON interface are English.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from markupsafe import Markup

# How a moment is written; the clock is UTC for everybody.
_MOMENTS = {"en": "%-d %b %Y, %H:%M UTC", "zh": "%Y-%m-%d %H:%M UTC"}
_WANTED = re.compile(r"([A-Za-z]{1,8}|\*)(?:-[A-Za-z0-9-]*)?\s*(?:;\s*q\s*=\s*([01](?:\.\d{0,3})?))?\s*(?:,|$)")


@dataclass(frozen=True)
class Tongue:
    """One language. English words are their own keys: what the catalogue does not know is said as it is."""

    code: str
    words: Mapping[str, str]
    scripts: frozenset[str]

    def word(self, text: str) -> str:
        """Return a text that may be ours or somebody's: never as HTML."""
        return self.words.get(text, text)

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
    """Return the Chinese words by their English ones: those of pages, those of scripts."""
    text = (files("accord.people.web") / "messages.json").read_text(encoding="utf-8")
    read: dict[str, dict[str, str]] = json.loads(text)
    return read


@cache
def _tongues() -> dict[str, Tongue]:
    pages, scripts = catalogue()["pages"], catalogue()["scripts"]
    return {"en": Tongue("en", {}, frozenset()), "zh": Tongue("zh", pages | scripts, frozenset(scripts))}


def tongue_of(accepted: str) -> Tongue:
    """Return the language that a browser wants most of those we speak (RFC 9110, 12.5.4); English where none is."""
    spoken, best, found = _tongues(), 0.0, "en"
    for wanted, quality in _WANTED.findall(accepted[:1000].lower()):
        worth = float(quality or 1)
        if wanted in spoken and worth > best:
            best, found = worth, wanted
    return spoken[found]
