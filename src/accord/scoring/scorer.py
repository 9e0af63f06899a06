"""What a scorer is, and the check that every score passes on its way in. Shapes: S completions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from accord.errors import DataError


class Scorer(Protocol):
    """A source of scores: (prompt, completion) texts in, one number each out, ``(S,)`` fp32."""

    def score(self, pairs: Sequence[tuple[str, str]]) -> Tensor: ...


def checked(name: str, scores: Any, pairs: Sequence[tuple[str, str]]) -> Tensor:
    """Return what a scorer gave as ``(S,)`` fp32, checked.

    Args:
        name: the scorer, for errors.
        scores: a tensor, an array, a list or any other iterable of numbers; true and false are 1 and 0.

    Raises:
        DataError: not one number for each completion, or one that fp32 does not hold; the text is named.
    """
    try:
        given = list(scores.tolist() if isinstance(scores, Tensor) else scores)
    except TypeError as error:
        kind = type(scores).__name__
        raise DataError(f"{name} gave a {kind}", why="a list of numbers is wanted, one a completion") from error
    if len(given) != len(pairs):
        raise DataError(
            f"{name} gave {len(given)} scores for {len(pairs)} completions",
            hint="give one number for each completion, in their order",
        )
    # Refused, not converted: texts like "1.0", None or a number too few mean that the scorer is wrong, which in silence
    # costs a whole run.
    score_S = torch.tensor([_number(one) for one in given], dtype=torch.float32)
    wrong = (~score_S.isfinite()).nonzero().flatten().tolist()
    if wrong:
        prompt, completion = pairs[wrong[0]]
        raise DataError(
            f"{name} gave {_short(given[wrong[0]])} for {_short(completion)}",
            where=f"prompt {_short(prompt)}",
            why="a score is one finite number",
        )
    return score_S


def _number(value: Any) -> float:
    """Return the number, or NaN for what is none; a text that spells one is none."""
    try:
        return float(value) if hasattr(value, "__float__") else math.nan
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _short(value: Any, most: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= most else text[:most] + "..."
