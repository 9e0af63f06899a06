"""What is dear to make of a large project, made apart: the quality report and exports.

Few answers are read while the manager waits. Of many it takes a process of its own, at a lower priority: the app keeps
its memory, and the annotators their speed. What was made is kept until something changes.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, ParamSpec, TypeVar

from accord.config import LabelConfig
from accord.people.desk import Desk
from accord.store import Store

if TYPE_CHECKING:
    from accord.people.quality.figures import Quality

# So many answers are reported on in about a second.
FEW_ANSWERS = 2_000
_NICE = 5
_KEPT_EXPORTS = 4
_P = ParamSpec("_P")
_R = TypeVar("_R")

State = tuple[object, ...]


def _apart(function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
    """Call a function in a process of its own, which ends with it."""
    # Not forked: the app has threads, whose locks a copy of it would hold for ever.
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh, initializer=os.nice, initargs=(_NICE,)) as alone:
        return alone.submit(function, *args, **kwargs).result()


def _report_at(address: str, settings: LabelConfig, now: float) -> Quality:
    with Store.open(address) as store:
        return _report(Desk(store, settings), now)


def _report(desk: Desk, now: float) -> Quality:
    from accord.people.quality import report_of  # numpy and scipy: not needed to start

    return report_of(desk, now=now)


def _export_at(address: str, folder: Path, format: str) -> Path:
    with Store.open(address) as store:
        return _export(store, folder, format)


def _export(store: Store, folder: Path, format: str) -> Path:
    from accord.people.exporting import zipped

    return zipped(store, folder, format)


class QueueCounts:
    """The desk's counts of its queue. Of a large project they may be ten times as old as they take to count."""

    def __init__(self, desk: Desk, *, ages: float = 10.0) -> None:
        self._desk, self._ages, self._lock = desk, ages, threading.Lock()
        self._known: dict[str, int] = {}
        self._until = 0.0

    def now(self) -> dict[str, int]:
        """Return them, counted anew where they are old enough."""
        with self._lock:
            start = time.monotonic()
            if start >= self._until:
                self._known = self._desk.reading.counts()
                took = time.monotonic() - start
                # What takes no time is always new, and so are few: that they took long says that the machine is busy.
                ages = 0.0 if self._known["submissions"] <= FEW_ANSWERS else self._ages
                self._until = start + took + ages * max(0.0, took - 0.05)
            return dict(self._known)


class Judged(NamedTuple):
    """A quality report, None where the first is still being made; whether it is of what the store holds now."""

    quality: Quality | None
    is_current: bool
    made_at: float = 0.0


class Reports:
    """The quality report of a desk: made when asked for and something has changed, one at a time.

    While people work it may be some times as old as it takes to make: the managers of a large project do not slow
    down its annotators.
    """

    def __init__(self, desk: Desk, counts: QueueCounts, *, few: int = FEW_ANSWERS, ages: float = 8.0) -> None:
        self._desk, self._counts, self._few, self._ages = desk, counts, few, ages
        self._making, self._lock = threading.Lock(), threading.Lock()  # held while one is made; while these are read
        self._made: Quality | None = None
        self._made_at = 0.0
        self._of: State = ()
        self._until = 0.0

    def now(self) -> Quality:
        """Return the report, made anew where something has changed and it is old enough; wait for it."""
        with self._making:
            known = self._known()
            return known.quality if known.quality is not None and known.is_current else self._make()

    def soon(self) -> Judged:
        """Return the report as it is, and have it made anew beside where that takes long and something has changed."""
        if self._counts.now()["submissions"] <= self._few:
            return Judged(self.now(), True, time.time())
        known = self._known()
        if not known.is_current and not self._making.locked():
            threading.Thread(target=self.now, daemon=True).start()
        return known

    def forget(self) -> None:
        """Make the report anew next time: something has changed that the counts do not show."""
        with self._lock:
            self._of, self._until = (), 0.0

    def _known(self) -> Judged:
        state = self._state()
        with self._lock:
            is_current = self._made is not None and (state == self._of or time.monotonic() < self._until)
            return Judged(self._made, is_current, self._made_at)

    def _state(self) -> State:
        return tuple(self._counts.now().items())

    def _make(self) -> Quality:
        state, start, now = self._state(), time.monotonic(), time.time()
        is_few = self._counts.now()["submissions"] <= self._few
        if is_few:
            made = _report(self._desk, now)
        else:
            made = _apart(_report_at, self._desk.store.address, self._desk.settings, now)
        took = time.monotonic() - start
        with self._lock:
            # A report that took a second to make may be four seconds old; of few answers it is always new.
            self._made, self._made_at, self._of = made, now, state
            self._until = start + took + (0.0 if is_few else self._ages) * max(0.0, took - 0.5)
        return made


class Exports:
    """Exports of a store as zips, each kept while what it was made of stays as it is."""

    def __init__(self, desk: Desk, counts: QueueCounts, *, few: int = FEW_ANSWERS) -> None:
        self._desk, self._counts, self._few, self._lock = desk, counts, few, threading.Lock()
        self._folder = Path(tempfile.mkdtemp(prefix="accord-export-"))
        self._gone = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._kept: dict[tuple[State, str], Path] = {}

    def file(self, format: str) -> Path:
        """Return the zip in a format. Raises DataError where there is nothing to write."""
        with self._lock:
            state = (*self._counts.now().items(), *self._desk.store.counts().items())
            if (state, format) not in self._kept:
                self._kept[state, format] = self._make(format)
                # The last ones stay: somebody may be reading them.
                for old in [*self._kept][:-_KEPT_EXPORTS]:
                    shutil.rmtree(self._kept.pop(old).parent, ignore_errors=True)
            return self._kept[state, format]

    def forget(self) -> None:
        """Make exports anew next time: something has changed that the counts do not show."""
        with self._lock:
            self._kept = {((), str(path)): path for path in self._kept.values()}

    def _make(self, format: str) -> Path:
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        try:
            if self._counts.now()["submissions"] <= self._few:
                return _export(self._desk.store, folder, format)
            return _apart(_export_at, self._desk.store.address, folder, format)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
