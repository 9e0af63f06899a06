"""Which rows of a file are kept from training, and which of very many are measured."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

from accord.connected import Connected
from accord.records import JudgedGroup, RankedGroup

_T = TypeVar("_T")

HELD_OUT_EVERY = 20  # 5 % of the data: enough to see overfitting, and little is lost to training


def hold_out(
    rows: Sequence[_T], names: Sequence[Iterable[Hashable]] | None = None
) -> tuple[Sequence[_T], Sequence[_T]]:
    """Split off every twentieth unit of rows as held out; of fewer than twenty units the first serves for both.

    Rows that share a name (a topic, a prompt, a group), directly or through others, are one unit: what was learnt of
    one of them would be measured on the other. Units count in the order of their first rows.

    Args:
        rows: All rows, R of them.
        names: What each row shares with others; without it each is a unit of its own.
    """
    unit_R = list(range(len(rows))) if names is None else _units(names)
    order = {unit: place for place, unit in enumerate(dict.fromkeys(unit_R))}
    out_R = [order[unit] % HELD_OUT_EVERY == 0 for unit in unit_R]
    if len(order) < HELD_OUT_EVERY:
        return rows, [row for row, unit in zip(rows, unit_R, strict=True) if order[unit] == 0]
    train = [row for row, is_out in zip(rows, out_R, strict=True) if not is_out]
    return train, [row for row, is_out in zip(rows, out_R, strict=True) if is_out]


def _units(names: Sequence[Iterable[Hashable]]) -> list[int]:
    """Return the unit of each row, by the number of the first row that it hangs together with."""
    together, first = Connected[int](), dict[Hashable, int]()
    for row, shared_names in enumerate(names):
        together.join([row, *(first.setdefault(name, row) for name in shared_names)])
    return [together.find(row) for row in range(len(names))]


def shared(judged: RankedGroup | JudgedGroup) -> set[tuple[str, str]]:
    """Return the names that a judgement may share with others: its prompt, topic and group."""
    named = {"prompt": judged.prompt, "topic": judged.topic, "group": judged.group}
    return {(kind, name) for kind, name in named.items() if name}


def was_held_out(train: Sequence[_T], valid: Sequence[_T]) -> bool:
    """Return whether held-out rows trained nothing: of too few units `hold_out` lets the first serve for both."""
    return bool(valid) and not (train and valid[0] is train[0])


def every_nth(rows: Sequence[_T], most: int) -> Sequence[_T]:
    """Return all rows, or every n-th of more than ``most``: spread over the file, whose order may mean something."""
    return rows[:: max(1, -(-len(rows) // most))]
