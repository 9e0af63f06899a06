"""Work on a file of somebody else's in a process of its own, whose memory and time are bounded.

Libraries that read Parquet or tokenizers make of a few bytes what they say, or end the process they run in: nothing
within that process can hold them back.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from contextlib import suppress
from typing import Any, NoReturn

# Of Arrow's own: others set gigabytes of addresses aside at once, which a bound on addresses would refuse.
_QUIETLY = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "2"}
_QUIETLY |= {"TOKENIZERS_PARALLELISM": "false", "RUST_BACKTRACE": "0"}  # to write out a panic takes a third of a second
_WAITED = 20  # seconds of the clock for one of the processor: a machine may be busy, a file lie far away
_START = "import sys; from accord.isolated import _serve; _serve(*sys.argv[1:])"


class OutOfBounds(Exception):
    """Work in a process of its own took more than it may, or ended that process; the text says which."""


class OutOfTime(OutOfBounds):
    """Work in a process of its own took more time than it may."""


def work_apart(place: str, *arguments: str, library: str, megabytes: int, seconds: float) -> Any:
    """Call a function in a process of its own and return its value, which must be JSON.

    Args:
        place: ``module:name`` of the function.
        arguments: What it is called with.
        library: What it imports; like its own module, before the bounds hold.
        megabytes: The memory it may take beyond what its imports took (Linux; elsewhere memory is not bounded).
        seconds: The processor's time it may take.

    Raises:
        OutOfTime: It took more time.
        OutOfBounds: It took more memory, raised anything, or ended the process.
    """
    # Not the folder one happens to stand in: a file of it could bear a library's name.
    command = [sys.executable, "-P", "-c", _START, place, library, str(megabytes), str(round(seconds)), *arguments]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **_QUIETLY},
            timeout=_WAITED * seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise OutOfTime(f"it takes more than {_WAITED * seconds:.0f} s") from error
    if done.returncode in (-24, -9):  # SIGXCPU, and SIGKILL where that is not heard
        raise OutOfTime(f"it takes more than {seconds:.0f} s of the processor")
    with suppress(ValueError):
        told = json.loads(done.stdout)
        if "error" not in told:
            return told["value"]
        raise OutOfBounds(str(told["error"]).replace("MEMORY", f"it takes more than {megabytes:,} MB of memory"))
    raise OutOfBounds(f"its library ends the process (exit status {done.returncode})")


def _serve(place: str, library: str, megabytes: str, seconds: str, *arguments: str) -> NoReturn:
    """Call the function within the bounds, and print what it gave."""
    module, _, name = place.partition(":")
    work = getattr(importlib.import_module(module), name)
    importlib.import_module(library)
    _bound(int(megabytes), int(seconds))
    told: dict[str, Any]
    try:
        told = {"value": work(*arguments)}
    except MemoryError:  # Arrow's own is one too
        told = {"error": "MEMORY"}
    except BaseException as error:  # what a library in Rust panics at is no `Exception`
        told = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
    sys.stdout.write(json.dumps(told))
    sys.stdout.flush()
    os._exit(0)


def _bound(megabytes: int, seconds: int) -> None:
    try:
        import resource
    except ImportError:  # Windows has none
        return

    def bound(kind: int, most: int, hard: int) -> None:
        held = resource.getrlimit(kind)[1]  # what bounds this process already cannot be raised
        both = (value if held == resource.RLIM_INFINITY else min(value, held) for value in (most, hard))
        resource.setrlimit(kind, (next(both), next(both)))

    bound(resource.RLIMIT_CORE, 0, 0)
    bound(resource.RLIMIT_CPU, seconds, seconds + 5)
    if sys.platform == "linux":
        with open("/proc/self/statm") as file:
            taken = int(file.read().split()[0]) * resource.getpagesize()
        bound(resource.RLIMIT_AS, *(2 * (taken + megabytes * 2**20,)))
