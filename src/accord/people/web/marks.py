"""Characters that nobody sees, made visible: what turns writing around, has no width, or steers a terminal.

A text that people judge must be the text that is stored. A right-to-left override shows another order of letters, and
letters without width hide words in words; so each is shown as its code point. What turns writing around is taken out
of the page; joiners stay, as Persian and Hindi are written with them.
"""

from __future__ import annotations

import re
import unicodedata

from markupsafe import Markup, escape

# Cf (format) is nearly the set: bidi marks, embeddings, overrides, isolates, joiners, tags, U+FEFF, soft hyphen.
_FORMAT = "".join(
    chr(code) for code in (*range(0x3000), *range(0xFE00, 0x10000)) if unicodedata.category(chr(code)) == "Cf"
)
# Blank or without width though their category does not say so: fillers, the grapheme joiner, separators, selectors.
_BLANK = "\u034f\u115f\u1160\u17b4\u17b5\u2028\u2029\u2800\u3164\uffa0\ufe00-\ufe0f\U000e0000-\U000e0fff"
_CONTROL = "\x01-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"
#: A character that is marked, wherever it stands.
INVISIBLE = re.compile(f"[{_CONTROL}{re.escape(_FORMAT)}{_BLANK}]")
_JOINERS = "\u200c\u200d"
_SELECTORS = "\ufe0e\ufe0f"
# Code points below have no name of their own in the standard.
_CONTROL_NAME = "CONTROL"


def marked(text: str) -> Markup:
    """Return a text escaped for a page, each unseen character in it as a small mark with its code point and name."""
    return Markup("").join(_pieces(text))


def marked_html(html: str) -> Markup:
    """Return cleaned HTML with unseen characters in its texts marked; within tags they are left to the cleaner."""
    parts = re.split(r"(<[^>]*>)", html)
    return Markup("".join(part if place % 2 else INVISIBLE.sub(_mark_of, part) for place, part in enumerate(parts)))


def spelled(text: str) -> str:
    """Return a text for where no mark can stand, as in a tooltip: unseen characters as [U+202E]."""
    return INVISIBLE.sub(lambda found: f"[U+{ord(found[0]):04X}]", text)


def has_no_unseen(text: str) -> bool:
    """Whether a text has no unseen character."""
    return INVISIBLE.search(text) is None


def _pieces(text: str) -> list[Markup]:
    pieces, at = [], 0
    for found in INVISIBLE.finditer(text):
        pieces += [_escaped(text[at : found.start()]), Markup(_mark_of(found))]
        at = found.end()
    return [*pieces, _escaped(text[at:])]


def _escaped(text: str) -> Markup:
    # A browser would read a carriage return as the end of a line: the raw text must be what is stored.
    return Markup(escape(text).replace("\r", Markup("&#13;")))


def _mark_of(found: re.Match[str]) -> str:
    char, before, after = found[0], found.string[: found.start()][-1:], found.string[found.end() :][:1]
    if _belongs(char, before, after):
        return char
    code = f"U+{ord(char):04X}"
    name = f"{code} {unicodedata.name(char, _CONTROL_NAME)}"
    if char in _JOINERS and before.isalpha() and after.isalpha():
        return f'{char}<span class="mark joiner" title="{name}"></span>'
    return f'<span class="mark" title="{name}">{code}</span>'


def _belongs(char: str, before: str, after: str) -> bool:
    """Whether an emoji is made with it: a selector after a sign, a joiner between two."""
    if char in _SELECTORS:
        return bool(before) and (before in "#*" or unicodedata.category(before) in ("So", "Sm", "Po", "Nd", "Sk"))
    return char == "\u200d" and _is_sign(before) and _is_sign(after)


def _is_sign(char: str) -> bool:
    return bool(char) and (char == "\ufe0f" or unicodedata.category(char) in ("So", "Sk"))
