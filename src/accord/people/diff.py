"""Which words differ between two texts, as HTML: what only the first holds in <del>, what only the second in <ins>."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

MAX_WORDS = 6_000  # both texts together: matching takes time that grows with the product

_PARTS = re.compile(r"\s+|\w+|[^\w\s]")


@dataclass(frozen=True)
class Diff:
    """Both texts with their own words marked, and how many words that are."""

    a: Markup
    b: Markup
    removed: int
    added: int


def word_diff(a: str, b: str) -> Diff | None:
    """Compare two texts word by word; None where they are too long for it."""
    left, right = _PARTS.findall(a), _PARTS.findall(b)
    if len(left) + len(right) > 2 * MAX_WORDS:
        return None
    shown: tuple[list[Markup], list[Markup]] = ([], [])
    counts = [0, 0]
    for same, i, j, k, m in difflib.SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        for side, piece in enumerate((left[i:j], right[k:m])):
            counts[side] += 0 if same == "equal" else sum(not part.isspace() for part in piece)
            shown[side].append(_marked(piece, "" if same == "equal" else ("del", "ins")[side]))
    return Diff(Markup("").join(shown[0]), Markup("").join(shown[1]), *counts)


def _marked(parts: Sequence[str], tag: str) -> Markup:
    text = escape("".join(parts))
    return Markup(f"<{tag}>{text}</{tag}>") if tag and text else text
