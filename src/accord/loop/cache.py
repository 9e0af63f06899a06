"""Stages of a run as values: skipped where their inputs did not change, continued where they were interrupted."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import accord
from accord.config import without_device
from accord.errors import DataError
from accord.extend import code_in
from accord.files import read_json, sha256_tree, write_folder, write_json
from accord.progress import Log, Notice

Inputs = Mapping[str, Path]
#: What a runner keeps in a stage's folder. Neither counts where that folder is an input: the stamp names what the stage
#: read, so whatever came after it would be done again even where its result has stayed the same.
STAMP, RUNNING = "stage.json", "running.json"


@dataclass(frozen=True)
class Stage:
    """One piece of a run's work. ``settings`` and the contents of ``inputs`` decide its result, and nothing else.

    Where settings name ``module:name`` of a user's own, the file that holds it counts too, but not what that imports.
    ``work(inputs, folder, log)`` writes into ``folder`` and reads what ``inputs`` names: it is given no other path.
    """

    name: str
    settings: Mapping[str, Any]
    inputs: Inputs
    work: Callable[[Inputs, Path, Log], Any]

    def identity(self) -> str:
        """Hash of the settings and the input contents: equal ones give equal results, on whatever device."""
        content = {
            "version": accord.__version__,
            "settings": without_device(self.settings),
            "code": code_in(self.settings),
            "inputs": {name: sha256_tree(path, without=(STAMP, RUNNING)) for name, path in self.inputs.items()},
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()

    def also_reading(self, inputs: Inputs) -> Stage:
        """The same stage, done again where one of these changes too; its work is given what it was given before."""
        names, work = tuple(self.inputs), self.work

        def with_its_own(inputs: Inputs, folder: Path, log: Log) -> Any:
            return work({name: inputs[name] for name in names}, folder, log)

        return replace(self, inputs={**self.inputs, **inputs}, work=with_its_own)


def given_inputs(inputs: Mapping[str, Path | None]) -> dict[str, Path]:
    """The inputs that there are, of those that a stage may have."""
    return {name: path for name, path in inputs.items() if path is not None}


@dataclass
class Runner:
    """One run's folder. ``time_shares`` says how much of the run's time each stage takes, for the time left.

    ``reuse_from`` are folders of other runs: a finished stage of theirs with the same settings and inputs is taken
    over.
    """

    folder: Path
    time_shares: Mapping[str, float]
    resume: bool
    log: Log
    reuse_from: Sequence[Path] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    _done: float = 0.0

    def run(self, stage: Stage) -> dict[str, Any]:
        """Carry out a stage unless a finished one with the same settings and input contents stands there.

        Returns the stage's result as plain JSON. ``seconds`` counts the work of all starts that led to it.
        """
        identity = stage.identity()
        found = self._finished(stage.name, identity) if self.resume else None
        if found is not None:
            self._finish(stage.name, found["seconds"], "already done")
            result: dict[str, Any] = found["result"]
            return result
        return self._carry_out(stage, identity)

    def say(self, text: str) -> None:
        """Report something at the point where the run is; a `Notice` is left out by nobody."""
        self.log(min(1.0, self._done), text)

    def _carry_out(self, stage: Stage, identity: str) -> dict[str, Any]:
        name, folder, share = stage.name, self.folder / stage.name, self.time_shares.get(stage.name, 0.0)
        stamp = folder / STAMP
        stamp.unlink(missing_ok=True)  # from here on the folder holds neither the old result nor the new one
        _leave_shared(folder)
        self.log(self._done, f"{name}: starting")
        worked = self._said(folder / RUNNING)
        earlier = float(worked["seconds"]) if worked.get("identity") == identity else 0.0
        started = time.monotonic()

        def report(fraction: float, text: str) -> None:
            write_seconds(folder, identity, earlier + time.monotonic() - started)
            self.log(self._done + share * fraction, f"{name}: {text}")

        result = _plain(stage.work(stage.inputs, folder, _sparse(report)))
        seconds = round(earlier + time.monotonic() - started, 1)
        write_json(stamp, {"identity": identity, "seconds": seconds, "result": result})
        (folder / RUNNING).unlink(missing_ok=True)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # the result stands; they have done their work
        self._finish(name, seconds, f"done in {seconds:.0f} s")
        return result

    def find(self, name: str, identity: str) -> tuple[Path, dict[str, Any]] | None:
        """The run that holds a finished stage of this identity, this one or another, and the stage's stamp."""
        for home in (self.folder, *self.reuse_from):
            found = self._said(home / name / STAMP)
            if found.get("identity") == identity:
                return home, found
        return None

    def _finished(self, name: str, identity: str) -> dict[str, Any] | None:
        """What a finished stage of this identity left, taken over from another run where this one has none."""
        if (place := self.find(name, identity)) is None:
            return None
        home, found = place
        if home != self.folder:
            write_folder(self.folder / name, functools.partial(_take_over, home / name))
        return found

    def _finish(self, name: str, seconds: float, text: str) -> None:
        self._done += self.time_shares.get(name, 0.0)
        self.seconds[name] = seconds
        self.log(min(1.0, self._done), f"{name}: {text}")

    def _said(self, path: Path) -> dict[str, Any]:
        """What a file beside a stage says of it; where it is damaged nothing, and a notice: the stage is done again."""
        if not path.exists():
            return {}
        with contextlib.suppress(DataError):
            found = read_json(path)
            if isinstance(found, dict) and isinstance(found.get("seconds"), int | float):
                return found
        self.say(Notice(f"{path} is damaged: what it says does not count"))
        return {}


def _take_over(source: Path, folder: Path) -> None:
    """Give a folder the files of another, shared on disk where it can."""
    shutil.copytree(source, folder, copy_function=_link, dirs_exist_ok=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one that knows no links
        shutil.copy2(source, target)


def _leave_shared(folder: Path) -> None:
    """Remove what a folder shares with that of another run, before new work might write into it."""
    for path in [path for path in folder.rglob("*") if path.is_file() and path.stat().st_nlink > 1]:
        path.unlink()


def write_seconds(folder: Path, identity: str, seconds: float) -> None:
    """Note how long an unfinished stage has worked, so that a resumed run states the whole time."""
    write_json(folder / RUNNING, {"identity": identity, "seconds": round(seconds, 1)})


def _sparse(report: Log, every_s: float = 1.0) -> Log:
    """Pass on at most one report a second: stages report every step."""
    last = [0.0]

    def sparse(fraction: float, text: str) -> None:
        now = time.monotonic()
        if now - last[0] >= every_s or fraction >= 1.0:
            last[0] = now
            report(fraction, text)

    return sparse


def _plain(value: Any) -> dict[str, Any]:
    """A result (dataclass, mapping or None) as plain JSON."""
    if value is None:
        return {}
    raw = dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
    plain: dict[str, Any] = json.loads(json.dumps(raw, default=str))
    return plain
