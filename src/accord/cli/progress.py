"""Progress with the time left: a bar on a terminal, a line every few seconds elsewhere.

Everything below `cli` knows only a plain callable, ``log(fraction, text)``: how much of the whole is done (0..1) and
a few words. A `Progress` is such a callable. Who runs several stages weighs their fractions himself.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from accord.progress import Notice, duration, for_terminal

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

LINE_EVERY_S = 5.0
WAITING_LINE_EVERY_S = 60.0  # people take hours: a log file of a day stays readable
# A gain that would finish the whole within a second is no work of this start: a resumed run skips what is done.
SKIPPED_PER_S = 1.0


class Progress:
    """Reports how much of a command's work is done and how long the rest will take: ``log(0.4, "loss 3.9")``."""

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream or sys.stderr
        self._clock = clock
        self._started = self._last_update = clock()
        self._last_line = self._last_waiting_line = float("-inf")
        self._fraction = self._worked = 0.0
        self._bar: Bar | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, fraction: float, text: str = "") -> None:
        """``fraction`` of the whole is done (0..1); ``text`` says what it is at."""
        now = self._clock()
        gain, took = max(0.0, fraction - self._fraction), now - self._last_update
        self._worked += gain if gain < SKIPPED_PER_S * took else 0.0
        self._fraction, self._last_update = min(1.0, max(0.0, fraction)), now
        if self._stream.isatty():
            self._show(text)
        elif isinstance(text, Notice):
            self.note(f"[{self._fraction:4.0%}] {text}")
        elif now - self._last_line >= LINE_EVERY_S or self._fraction == 1.0:
            self._last_line = now
            self._stream.write(f"[{self._fraction:4.0%}] {for_terminal(text)}{self._left()}\n")
            self._stream.flush()

    def note(self, text: str) -> None:
        """Write a whole line that stays, above the bar on a terminal."""
        text = for_terminal(text)
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            self._stream.write(f"{text}\n")
        self._stream.flush()

    def waiting(self, text: str) -> None:
        """Show what others are at: one line in place on a terminal, a whole line a minute elsewhere.

        The time that passes meanwhile is no work: it does not make the rest seem longer.
        """
        now = self._clock()
        self._started += now - self._last_update
        self._last_update = now
        if self._stream.isatty():
            self._draw(text)
        elif now - self._last_waiting_line >= WAITING_LINE_EVERY_S:
            self._last_waiting_line = now
            self.note(f"[{self._fraction:4.0%}] {text}")

    @property
    def seconds_left(self) -> float | None:
        """Time left at the speed of this start so far; None before there is any."""
        if self._worked <= 0:
            return None
        return (self._clock() - self._started) * (1.0 - self._fraction) / self._worked

    def _left(self) -> str:
        left = self.seconds_left
        return "" if left is None or self._fraction == 1.0 else f"  ({duration(left)} left)"

    def _show(self, text: str) -> None:
        if isinstance(text, Notice):
            self.note(text)
        else:
            self._draw(text + self._left())

    def _draw(self, text: str) -> None:
        if self._bar is None:
            self._bar = _bar(self._stream)
            self._bar.start()
            self._task = self._bar.add_task("", total=1.0)
        self._bar.update(self._task, completed=self._fraction, description=for_terminal(text))


def _bar(stream: TextIO) -> Bar:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
    from rich.table import Column

    # What does not fit beside the bar goes on below it: who is at it stands at the end of a long line.
    said = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=False))
    columns = (BarColumn(bar_width=16), TaskProgressColumn(table_column=Column(no_wrap=True, min_width=4)), said)
    return Progress(*columns, console=Console(file=stream), transient=True)
