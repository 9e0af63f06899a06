"""How long work reports its progress: a function of the share that is done and a line to show."""

from __future__ import annotations

import re
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


#: What steers a terminal: controls but line break and tab, the second set of controls, what turns the direction of
#: writing round; and halves of characters, which cannot be written at all.
_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_USER_IN_URL = re.compile(r"(?<=://)[^\s/@'\"]+@")


def for_terminal(text: str) -> str:
    """Return a text with nothing in it that steers a terminal, each such character spelt out, nor a URL's password."""
    return _STEERING.sub(lambda found: repr(found[0])[1:-1], without_passwords(text))


def for_json(text: str) -> str:
    """Return JSON that means the same and steers no terminal."""
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def without_passwords(text: str) -> str:
    """Return a text whose URLs name no user and no password."""
    return _USER_IN_URL.sub("...@", text)


def duration(seconds: float) -> str:
    """``8 s``, ``2 min 10 s``, ``1 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
