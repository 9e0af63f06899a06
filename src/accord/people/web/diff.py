"""The words that differ between two texts, as HTML: those of the first in <del>, those of the second in <ins>."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from accord.people.web.marks import marked

# Matching takes time that grows with these, at worst with the square, and the server's other threads wait meanwhile.
MAX_WORDS = 6_000  # both texts together
MAX_PAIRS = 500_000  # of equal words, one from each text

_SPACE = re.compile(r"\s*")
_PARTS = re.compile(r"(\w+|[^\w\s])(\s*)")


Words = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Diff:
    """Both texts with their own words marked, and how many words that are."""

    a: Markup
    b: Markup
    removed: int
    added: int


def word_diff(a: str, b: str) -> Diff | None:
    """Compare two texts word by word; None where they are too long for it."""
    left, right = _words(a), _words(b)
    if len(left) + len(right) > MAX_WORDS or _pairs(left, right) > MAX_PAIRS:
        return None
    shown: tuple[list[Markup], list[Markup]] = ([_space(a)], [_space(b)])
    counts = [0, 0]
    # Without "autojunk", which beyond 200 words leaves out common ones, and marks half of a text as changed.
    matching = difflib.SequenceMatcher(None, [word for word, _ in left], [word for word, _ in right], autojunk=False)
    for same, i, j, k, m in matching.get_opcodes():
        for side, words in enumerate((left[i:j], right[k:m])):
            counts[side] += 0 if same == "equal" else len(words)
            shown[side].append(_marked(words, "" if same == "equal" else ("del", "ins")[side]))
    return Diff(Markup("").join(shown[0]), Markup("").join(shown[1]), *counts)


def _words(text: str) -> list[tuple[str, str]]:
    """Split a text into words and signs, each with the space after it: how texts are spaced makes no difference."""
    return _PARTS.findall(text)


def _pairs(left: Words, right: Words) -> int:
    many = Counter(word for word, _ in right)
    return sum(many[word] for word, _ in left)


def _space(text: str) -> Markup:
    found = _SPACE.match(text)
    return marked(found[0] if found else "")


def _marked(words: Words, tag: str) -> Markup:
    if not words:
        return Markup("")
    text = "".join(word + space for word, space in words)
    space = words[-1][1]
    inner = marked(text[: len(text) - len(space)])
    return (Markup(f"<{tag}>{inner}</{tag}>") if tag else inner) + space
