"""Is this machine fit for a run? Each check says what it found and, where something is amiss, how to mend it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

import typer

import accord
from accord.cli.options import Json, Verbose
from accord.cli.project import Project, ProjectDir, find_place, find_project
from accord.cli.talk import Talk, path_text, talking
from accord.errors import ResourceError, UsageError

GB = 1e9
MIN_PYTHON, MIN_TORCH, MIN_SQLITE = (3, 11), (2, 10), (3, 24)
MIN_RAM_GB, MIN_DISK_GB = 4, 3
MARKS = {"ok": "ok  ", "warn": "warn", "bad": "BAD "}


@dataclass(frozen=True)
class Check:
    """One finding. "warn" costs time or comfort; "bad" stops a run."""

    name: str
    state: Literal["ok", "warn", "bad"]
    found: str
    hint: str = ""

    def text(self) -> str:
        return f"[{MARKS[self.state]}] {self.name:<10} {self.found}" + (f"\n{'':18}hint: {self.hint}" * bool(self.hint))


def doctor(
    repair: Annotated[
        bool, typer.Option("--repair", help="Mend the store: what can be read of it is kept, the old file too.")
    ] = False,
    vllm: Annotated[
        bool, typer.Option("--vllm", help="Look at vLLM's own environment, which scale.rollout=vllm draws with.")
    ] = False,
    make: Annotated[
        bool, typer.Option("--make", help="With --vllm: make that environment, by pip; takes minutes and 3.5 GB.")
    ] = False,
    project: ProjectDir = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Check that this machine is fit for a run, and the store sound.

    Looks at Python, torch, processor, memory, disk and SQLite, in a project at every page of its store, and says what
    to mend. Exit code 4 if something would stop a run.

    \b
    Examples:
      accord doctor
      accord doctor --repair --project reviews
      accord doctor --vllm --make
    """
    with talking(json, verbose) as talk:
        home = find_project(project) if project is None else find_place(project)
        if repair:
            _repair(talk, home)
            return
        if vllm or make:
            _look_at_vllm(talk, make)
            return
        checks = examine(home.root if home else Path.cwd()) + ([check_store(home.store)] if home else [])
        _tell(talk, checks, "a run")


def _tell(talk: Talk, checks: list[Check], what_for: str) -> None:
    talk.result({"version": accord.__version__, "checks": checks}, text="\n".join(c.text() for c in checks))
    bad = [check.name for check in checks if check.state == "bad"]
    if bad:
        raise ResourceError(f"this machine is not fit for {what_for}: " + ", ".join(bad), hint="see the lines above")


def _look_at_vllm(talk: Talk, make: bool) -> None:
    from accord.rollout.vllm_env import vllm_environment

    environment = vllm_environment()
    if make:
        environment.make(talk.log)
    _tell(talk, [check_vllm()], "sampling with vLLM")


def check_vllm() -> Check:
    """Whether vLLM's environment is there, loads on this processor, and is of the version that was tried."""
    from accord.rollout.vllm_env import VERSION, vllm_environment

    environment = vllm_environment()
    if not environment.exists:
        return Check("vllm", "bad", f"no environment at {path_text(environment.folder)}", "accord doctor --vllm --make")
    try:
        version = environment.version()
    except ResourceError as error:
        return Check("vllm", "bad", f"{error.what}: {error.why[-200:]}", "accord doctor --vllm --make")
    found = f"{version} at {path_text(environment.folder)}"
    if version != VERSION:
        hint = f"reloads and their mends were tried with {VERSION}; the canary stops what does not fit"
        return Check("vllm", "warn", found, hint)
    return Check("vllm", "ok", found)


def examine(folder: Path) -> list[Check]:
    """All checks; ``folder`` is where runs would be written."""
    looks: list[Callable[[], Check]] = [
        check_python,
        check_torch,
        check_cores,
        check_bf16,
        check_memory,
        lambda: check_disk(folder),
        lambda: check_writeable(folder),
        check_sqlite,
    ]
    return [look() for look in looks]


def _repair(talk: Talk, home: Project | None) -> None:
    if home is None:
        raise UsageError("there is no project here", hint="name the folder of one, or of a run: --project DIR")
    from accord.store import repair

    done = repair(home.store)
    kept = sum(done.kept.values())
    lines = [f"{path_text(done.place)}: " + (f"mended, {kept:,} rows kept" if done.damaged else "sound, nothing to do")]
    lines += [f"  was wrong: {problem}" for problem in done.problems]
    lines += [f"  lost of {table}: at most {count:,} rows" for table, count in done.unreadable.items()]
    lines += [
        f"  left out of {table}: {count:,} rows whose other halves are lost" for table, count in done.dangling.items()
    ]
    lines += [f"  {done.changed:,} facts are not what their names say; they are kept"] if done.changed else []
    lines += [f"  as it was: {path_text(done.damaged)}"] if done.damaged else []
    talk.result(done, text="\n".join(lines))


def check_store(place: str) -> Check:
    """Whether the store's file is whole, index by index, and closed to others."""
    from accord.store import problems_of

    if problems := problems_of(place, thorough=True):
        return Check("store", "bad", "; ".join(problems[:3]), "run `accord doctor --repair`, or restore a backup")
    path = Path(place)
    if "://" in place or not path.exists():
        return Check("store", "ok", "not looked into: no file" if "://" in place else "none yet")
    if path.stat().st_mode & 0o077:
        return Check("store", "warn", f"{path_text(path)} is sound, and others can open it", f"chmod 600 {path}")
    return Check("store", "ok", f"{path_text(path)} is sound")


def check_python() -> Check:
    found = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info < MIN_PYTHON:
        return Check("python", "bad", found, "install Python 3.11 or newer")
    return Check("python", "ok", found)


def check_torch() -> Check:
    """The version installed, without importing it first: a broken torch should not break the doctor."""
    hint = "run `make install`, or pip install torch"
    try:
        version = metadata.version("torch")
        import torch
    except metadata.PackageNotFoundError:
        return Check("torch", "bad", "not installed", hint)
    except Exception as error:
        return Check("torch", "bad", f"does not load: {error}", hint)
    device = f"CUDA {torch.version.cuda}, {torch.cuda.device_count()} GPU" if torch.cuda.is_available() else "CPU"
    if _numbers(version) < MIN_TORCH:
        return Check("torch", "bad", version, "pip install 'torch>=2.10'")
    return Check("torch", "ok", f"{version} ({device}, {torch.get_num_threads()} threads)")


def check_cores() -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores < 2:
        return Check("cores", "warn", f"{cores}", "the demo's minutes are for 2 cores; expect about twice that")
    return Check("cores", "ok", f"{cores}")


def check_bf16() -> Check:
    """Whether the processor multiplies bf16 natively; without it training runs in fp32 and takes longer."""
    from accord.models.precision import cpu_flags

    found = sorted(flag for flag in ("amx_bf16", "avx512_bf16") if flag in cpu_flags())
    if found:
        return Check("bf16", "ok", ", ".join(found))
    return Check("bf16", "warn", "not in this processor", "none needed: fp32 is used, about half as fast")


def check_memory() -> Check:
    total, free = memory_gb()
    if total is None or free is None:
        return Check("memory", "warn", "unknown on this system", f"the demo needs about {MIN_RAM_GB} GB")
    found = f"{total:.1f} GB, {free:.1f} GB free"
    if free < MIN_RAM_GB:
        return Check("memory", "warn", found, f"close something: the demo needs about {MIN_RAM_GB} GB")
    return Check("memory", "ok", found)


def memory_gb() -> tuple[float | None, float | None]:
    """Total and available memory from /proc/meminfo (kB there), in GB; None where it does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None, None
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines if ":" in line}
    total, free = kilobytes.get("MemTotal"), kilobytes.get("MemAvailable")
    return total and total * 1024 / GB, free and free * 1024 / GB


def check_disk(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free / GB
    if free < MIN_DISK_GB:
        return Check(
            "disk", "warn", f"{free:.1f} GB free", f"a demo run may need {MIN_DISK_GB} GB: free some, or -o DIR"
        )
    return Check("disk", "ok", f"{free:.1f} GB free")


def check_writeable(folder: Path) -> Check:
    try:
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        return Check("folder", "bad", f"{folder}: {error.strerror}", "go to a folder you may write to, or give -o DIR")
    return Check("folder", "ok", f"{folder} can be written to")


def check_sqlite() -> Check:
    if _numbers(sqlite3.sqlite_version) < MIN_SQLITE:
        return Check("sqlite", "bad", sqlite3.sqlite_version, "the store needs SQLite 3.24 or newer")
    return Check("sqlite", "ok", sqlite3.sqlite_version)


def _numbers(version: str) -> tuple[int, ...]:
    """``"2.13.0+cpu"`` -> (2, 13)."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])
