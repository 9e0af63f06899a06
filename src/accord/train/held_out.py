"""Which rows of a file are kept from training, and which of very many are measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

_T = TypeVar("_T")

HELD_OUT_EVERY = 20  # 5 % of the data: enough to see overfitting, and little is lost to training


def hold_out(rows: Sequence[_T]) -> tuple[Sequence[_T], Sequence[_T]]:
    """Split off every twentieth row as held out; of fewer than twenty rows the first serves for both."""
    held_out = rows[::HELD_OUT_EVERY]
    if len(rows) < HELD_OUT_EVERY:
        return rows, held_out
    return [row for i, row in enumerate(rows) if i % HELD_OUT_EVERY], held_out


def was_held_out(train: Sequence[_T], valid: Sequence[_T]) -> bool:
    """Return whether held-out rows trained nothing: of too few rows `hold_out` lets the first serve for both."""
    return bool(valid) and not (train and valid[0] is train[0])


def every_nth(rows: Sequence[_T], most: int) -> Sequence[_T]:
    """Return all rows, or every n-th of more than ``most``: spread over the file, whose order may mean something."""
    return rows[:: max(1, -(-len(rows) // most))]
