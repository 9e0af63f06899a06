"""Commands of Accord in processes that are forked from one that has loaded everything, so that hundreds may be killed.

Each starts in hundredths of a second instead of seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
# The last is what torch imports at an optimiser's first step: three seconds in each process that trains.
PRELOADED = [
    "accord.cli.main",
    "accord.cli.runs",
    "accord.loop.run",
    "accord.loop.turn",
    "accord.people.desk",
    "torch._dynamo",
]
FORKS.set_forkserver_preload(PRELOADED)
LOOKS_EVERY_S = 0.01  # each look walks the run's folder


def command(argv: Sequence[str], folder: Path, log: Path) -> None:
    """Be a command of Accord in a folder, and write what it says to a file."""
    from accord.cli.main import app

    os.chdir(folder)
    said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    app([*argv], prog_name="accord")


def carry_out(argv: Sequence[str], folder: Path, log: Path, steps: Callable[[], int] | None = None) -> tuple[int, int]:
    """Carry a command out; with ``steps`` kill -9 it whenever their number grows, and begin it again.

    Returns its exit code and how often it was killed.
    """
    kills = 0
    while True:
        seen = steps() if steps else 0
        child = FORKS.Process(target=command, args=(argv, folder, log))
        child.start()
        while steps and child.is_alive():
            if steps() > seen:
                child.kill()
            time.sleep(LOOKS_EVERY_S)
        child.join()
        if child.exitcode != -9:
            assert child.exitcode is not None
            return child.exitcode, kills
        kills += 1
