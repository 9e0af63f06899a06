"""One writer at a time in a folder: a lock of the operating system, which ends with its process however that ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ParamSpec, TypeVar

from accord.errors import ResourceError
from accord.files import writing
from accord.ranks import launched_ranks

LOCK = ".lock"  # in the folder, as long as somebody writes there
#: Some network drives know no locks.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
_HELD: dict[Path, tuple[int, int | None]] = {}  # by this process: which thread holds a folder, and by which handle

_P = ParamSpec("_P")
_R = TypeVar("_R")


def writes_alone(work: Callable[_P, _R]) -> Callable[_P, _R]:
    """Let nobody else write into ``output_dir`` while a function works (`only_writer`)."""

    @functools.wraps(work)
    def alone(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with only_writer(Path(str(kwargs["output_dir"]))):
            return work(*args, **kwargs)

    return alone


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold a folder, and make it where there is none: two runs would write into each other. Who holds it may again.

    Raises ResourceError with the other's process where somebody holds it, or where it cannot be made.
    """
    if launched_ranks()[0]:  # the first of several processes holds it for all
        yield
        return
    with writing(folder, "folder"):
        made = [one for one in (folder, *folder.parents) if not one.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        place = folder.resolve()
    me = threading.get_ident()
    if place in _HELD and _HELD[place][0] == me:
        yield
        return
    if place in _HELD:
        raise _taken(folder, f"{os.getpid()}, another thread of it,")
    handle = _lock(place / LOCK, folder)
    _HELD[place] = me, handle
    try:
        yield
    finally:
        del _HELD[place]
        _unlock(handle, place / LOCK)
        with contextlib.suppress(OSError):
            for one in made:
                one.rmdir()  # nothing was written: what was asked for could not be done


def _lock(path: Path, folder: Path) -> int | None:
    """Return the handle that holds a lock; None where the file system knows none."""
    while True:
        with writing(path):
            # No link of that name is followed: the process's number would go where it leads.
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _holder(handle)
            os.close(handle)
            if error.errno not in _NO_LOCKS:
                raise _taken(folder, holder) from error
            warnings.warn(f"{folder}: its file system knows no locks; let no second run write there", stacklevel=4)
            return None
        if _is_at(handle, path):
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()} on {socket.gethostname()}".encode(), 0)
            return handle
        os.close(handle)  # the holder before has removed it in between: what we hold has no name any more


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _holder(handle: int) -> str:
    """Return what the holder of a lock says of itself; it writes that down an instant after it has it."""
    for _ in range(20):
        if said := os.pread(handle, 200, 0):
            return said.decode("utf-8", "replace")
        time.sleep(0.01)
    return "of another start"


def _unlock(handle: int | None, path: Path) -> None:
    if handle is not None:
        with contextlib.suppress(OSError):
            path.unlink()  # before it is let go: the next one must not find it and lose it
        os.close(handle)


def _taken(folder: Path, holder: str) -> ResourceError:
    return ResourceError(
        f"process {holder} is writing here",
        where=str(folder),
        why="two would write into each other",
        hint="wait until it ends, or give another folder",
    )


def _let_go_in_child() -> None:
    """A forked child must not go on holding what its parent holds, after that one was killed."""
    for _, handle in _HELD.values():
        if handle is not None:
            os.close(handle)
    _HELD.clear()


os.register_at_fork(after_in_child=_let_go_in_child)
