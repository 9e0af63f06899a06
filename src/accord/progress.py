"""How long work reports its progress: a function of the share that is done and a line to show."""

from __future__ import annotations

from collections.abc import Callable

#: Called as ``log(fraction, text)``: the share of the work that is done, from 0 to 1, and what to say of it.
Log = Callable[[float, str], None]


class Notice(str):
    """A text that is said once: no reporter leaves it out, however close it comes to another one."""


def quiet(fraction: float, text: str) -> None:
    """Report nothing."""


def part_of(log: Log, start: float, end: float) -> Log:
    """Return the reporter of a part of the work: its own 0 to 1 is ``start`` to ``end`` of the whole."""
    return lambda fraction, text: log(start + fraction * (end - start), text)


def named_part(log: Log, index: int, count: int, name: str) -> Log:
    """Return the reporter of one of several equal parts, which puts the part's name before what it says."""
    part = part_of(log, index / count, (index + 1) / count)
    return lambda fraction, text: part(fraction, named_text(name, text))


def named_text(name: str, text: str) -> str:
    """Return a text with the name of its part before it; a notice stays one."""
    return type(text)(f"{name}: {text}")
