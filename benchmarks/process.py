"""Start a command, wait for it, and take its result, its time and its peak memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What would tune a side without our saying so.
UNWANTED = ("MALLOC_", "ACCELERATE_", "OMP_", "KMP_", "MKL_", "LD_PRELOAD", "PYTHONPATH", "PYTHONSTARTUP")


class Failed(Exception):
    """A command gave no result; the text says why."""


@dataclass(frozen=True)
class Ran:
    """What a command left: its ``RESULT`` line (empty if it has none), peak resident memory, and duration."""

    result: dict[str, Any]
    peak_mb: float
    seconds: float


def run(
    command: Sequence[str], *, env: Mapping[str, str], path: Sequence[Path], cwd: Path, log: Path, limit_s: int
) -> Ran:
    """Run a command to its end, its output kept in ``log``.

    The peak is the kernel's own (``ru_maxrss``), taken in the same way for every side. It is at least that of the
    caller, which the child is a copy of at first: the harness itself never imports torch.
    Raises Failed where it exits with an error or takes longer than the limit.
    """
    clean = {key: value for key, value in os.environ.items() if not key.startswith(UNWANTED)}
    clean |= {"PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **env}
    if path:
        clean["PYTHONPATH"] = os.pathsep.join(map(str, path))
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with log.open("w") as output:
        child = subprocess.Popen(command, env=clean, cwd=cwd, stdout=output, stderr=output, start_new_session=True)
        overtime = threading.Timer(limit_s, os.killpg, (child.pid, signal.SIGKILL))
        overtime.start()
        try:
            _, status, usage = os.wait4(child.pid, 0)
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)
            raise
        finally:
            overtime.cancel()
    child.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - start
    if child.returncode:
        raise Failed(f"longer than {limit_s} s" if seconds >= limit_s else _last_words(log))
    return Ran(result_in(log.read_text(errors="replace")), usage.ru_maxrss / 1024, seconds)


def result_in(text: str) -> dict[str, Any]:
    """The last ``RESULT {json}`` line of an output; empty where there is none."""
    found = [line for line in text.splitlines() if line.startswith("RESULT ")]
    result: dict[str, Any] = json.loads(found[-1].removeprefix("RESULT ")) if found else {}
    return result


def _last_words(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"{lines[-1].strip()[:160] if lines else 'no output'} (see {log.name})"
