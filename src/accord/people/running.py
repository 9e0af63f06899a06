"""Where the annotation app of a store runs: a file beside the store, true as long as somebody holds its lock."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

SUFFIX = ".app"  # accord.db.app, beside accord.db


@contextlib.contextmanager
def announced(store: str, url: str) -> Iterator[None]:
    """Let others find the app while the block runs; where another one is announced already, that one stays.

    A server that is killed leaves the file, but not the lock: the system ends that with the process.
    """
    with contextlib.ExitStack() as open_files:
        file = _place(store)
        opened = None if file is None else open_files.enter_context(file.open("a+", encoding="utf-8"))
        if file is None or opened is None or not _locked(opened):
            yield
            return
        opened.truncate(0)
        opened.write(json.dumps({"url": url, "pid": os.getpid()}) + "\n")
        opened.flush()
        try:
            yield
        finally:
            file.unlink(missing_ok=True)


def running_app(store: str) -> str:
    """Return the address of the app that serves a store now; "" where none is known to.

    Of a database server's store, which has no place for the file, and of an app on another machine nothing is known.
    """
    file = _place(store)
    try:
        with contextlib.ExitStack() as open_files:
            opened = None if file is None else open_files.enter_context(file.open("r+", encoding="utf-8"))
            return "" if opened is None or _locked(opened) else str(json.loads(opened.read())["url"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # no file, or one that is being written


def _place(store: str) -> Path | None:
    return None if "://" in store else Path(store + SUFFIX)


def _locked(file: TextIO) -> bool:
    """Take the lock of a file; False where somebody else has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
