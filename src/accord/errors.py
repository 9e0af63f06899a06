"""Errors a person can act on: what is wrong, where, why, and a hint.

Exit codes are those of the command line: 2 usage, 3 data, 4 resources, 6 paused by an alarm.
"""

from __future__ import annotations


class AccordError(Exception):
    """Base of all errors that Accord raises on purpose. Printed without a traceback unless ``-v``.

    Args:
        what: What is wrong, with the offending value.
        where: File and line, key or table that holds it.
        why: The reason it cannot be accepted, when ``what`` does not say so.
        hint: What the reader can do about it.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", why: str = "", hint: str = "") -> None:
        self.what, self.where, self.why, self.hint = what, where, why, hint
        lines = [f"{where}: {what}" if where else what]
        if why:
            lines.append(f"  why:  {why}")
        if hint:
            lines.append(f"  hint: {hint}")
        super().__init__("\n".join(lines))


class UsageError(AccordError):
    """A command, option or configuration that cannot be understood."""

    exit_code = 2


class DataError(AccordError):
    """Input that is missing, malformed or not what it claims to be."""

    exit_code = 3


class ResourceError(AccordError):
    """The machine, the network or the disk does not give what is needed."""

    exit_code = 4


class Interrupted(KeyboardInterrupt):
    """Somebody asked to stop, and what was at work has come to a point where nothing is lost.

    ``signum`` is the signal that asked: by Ctrl-C, or by SIGTERM.
    """

    def __init__(self, signum: int) -> None:
        super().__init__()
        self.signum = signum


class PausedByAlarm(AccordError):
    """A training has left its bounds and waits for somebody's decision; a checkpoint holds all it has done."""

    exit_code = 6
