"""A training stage in several processes of this machine: torchrun starts them, and whoever asked hears how it goes.

``python -m accord.train.launch CALL`` is one of the processes; `carry_out_stage` writes the call and reads what the
first one says, a line of JSON at a time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from accord import errors
from accord.errors import AccordError, Interrupted, ResourceError, UsageError
from accord.files import InputFile, format_said, read_json, write_json
from accord.progress import Log, Notice
from accord.ranks import OTHERS_SPEAK_AFTER_S, launched_ranks

LAST_LINES = 15  # of what the processes wrote, where none of them said what is wrong


@dataclasses.dataclass(frozen=True)
class TrainingCall:
    """A call of one of `accord.train`: the function, its sections of the recipe in order, its files, and the rest."""

    train: Callable[..., Any]
    configs: Sequence[BaseModel]
    inputs: Mapping[str, Path]
    output_dir: Path
    seed: int
    resume: bool

    def here(self, log: Log, **more: Any) -> Any:
        """Carry it out in this process, whatever others do with theirs."""
        rest = {"output_dir": self.output_dir, "seed": self.seed, "resume": self.resume, "log": log, **more}
        return self.train(*self.configs, **self.inputs, **rest)

    def to_json(self) -> dict[str, Any]:
        configs = [{"class": _place(type(one)), "values": one.model_dump(mode="json")} for one in self.configs]
        inputs = {name: [str(path.absolute()), format_said(path)] for name, path in self.inputs.items()}
        rest = {"output_dir": str(self.output_dir.absolute()), "seed": self.seed, "resume": self.resume}
        return {"train": _place(self.train), "configs": configs, "inputs": inputs, **rest}

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> TrainingCall:
        """Return what `to_json` gave."""
        configs = [_found(one["class"]).model_validate(one["values"]) for one in raw["configs"]]
        inputs = {name: _input(*told) for name, told in raw["inputs"].items()}
        return cls(_found(raw["train"]), configs, inputs, Path(raw["output_dir"]), raw["seed"], raw["resume"])


def _place(thing: Any) -> str:
    return f"{thing.__module__}:{thing.__qualname__}"


def _found(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def _input(path: str, format: str | None) -> Path:
    if format is None:
        return Path(path)
    found = InputFile(path)
    found.format = format
    return found


# -- who asks ----------------------------------------------------------------------------------------------------------


def carry_out_stage(call: TrainingCall, ranks: int, log: Log) -> Any:
    """Carry a stage out in so many processes, and return its result: as JSON of several, of one as it is.

    Raises:
        AccordError: What the processes refused.
        ResourceError: One of them ended without a word; the stage goes on from its last checkpoint.
    """
    if ranks == 1:
        return call.here(log)
    with tempfile.TemporaryDirectory(prefix="accord-") as folder:
        path, said = Path(folder) / "call.json", Path(folder) / "said.txt"
        write_json(path, call.to_json())
        with said.open("w") as errors_file, _started(path, ranks, errors_file) as processes:
            told = _listen(processes, log)
        if not told:
            last = said.read_text(errors="replace").splitlines()[-LAST_LINES:]
            raise ResourceError(
                f"one of {ranks} processes ended before the stage was done",
                where=str(call.output_dir),
                why="the last it wrote: " + "\n        ".join(last),
                hint="the same command again goes on from the last checkpoint",
            )
        return result_of(told)


def result_of(told: Mapping[str, Any]) -> Any:
    """Return the result of what `carried_out` gave in another process. Raises the AccordError that it holds."""
    if "error" in told:
        kind, parts = told["error"]
        rest = {name: text for name, text in parts.items() if name != "what"}
        raise getattr(errors, kind)(parts["what"], **rest)
    return told["result"]


def heard_by(log: Log, line: Mapping[str, Any]) -> bool:
    """Report a line of progress from another process; whether it was one."""
    if "log" not in line:
        return False
    fraction, text, kept = line["log"]
    log(fraction, Notice(text) if kept else text)
    return True


@contextlib.contextmanager
def _started(call: Path, ranks: int, said: Any) -> Iterator[subprocess.Popen[str]]:
    """Start the processes by torchrun; they end with the block."""
    threads = max(1, (os.cpu_count() or 1) // ranks)
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    argv += ["-m", "accord.train.launch", str(call)]
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=said, text=True, env=environment) as processes:
        try:
            with _ended_by_sigterm():
                yield processes
        except BaseException:
            # torchrun passes it on, and the processes leave a checkpoint.
            processes.terminate()
            raise


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does: who died without a word would leave the processes behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise Interrupted(number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _listen(processes: subprocess.Popen[str], log: Log) -> dict[str, Any]:
    """Pass progress on, and return the last that was told: a result, an error, or nothing."""
    told: dict[str, Any] = {}
    assert processes.stdout is not None
    for line in processes.stdout:
        try:
            one = json.loads(line)
        except ValueError:  # what another library printed
            continue
        if not heard_by(log, one) and "error" not in told:
            told = one
    return told


# -- one of the processes ----------------------------------------------------------------------------------------------


def be_one(path: Path) -> int:
    """Be one of the processes of a call; returns the exit code."""
    rank, _ = launched_ranks()
    out = sys.stdout

    def say(what: Mapping[str, Any]) -> None:
        out.write(json.dumps(what, default=str) + "\n")
        out.flush()

    with contextlib.redirect_stdout(sys.stderr):
        try:
            told = carried_out(TrainingCall.of(read_json(path)), rank, say)
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
    if rank == 0 or "error" in told:
        say(told)
    return getattr(errors, told["error"][0]).exit_code if "error" in told else 0


def carried_out(
    call: TrainingCall, rank: int, say: Callable[[Mapping[str, Any]], object], **more: Any
) -> dict[str, Any]:
    """Carry a call out as one of several processes; its result, or what it refused, as JSON.

    Progress of the first one goes to ``say``, a line at a time.
    """

    def log(fraction: float, text: str) -> None:
        if rank == 0:
            say({"log": [fraction, text, isinstance(text, Notice)]})

    try:
        result = call.here(log, **more)
    except AccordError as error:
        time.sleep(OTHERS_SPEAK_AFTER_S if rank else 0)
        what = f"process {rank}: {error.what}" if rank else error.what
        return {"error": [_kind(error), {"what": what, "where": error.where, "why": error.why, "hint": error.hint}]}
    return {"result": json.loads(json.dumps(dataclasses.asdict(result), default=str))}


def _kind(error: AccordError) -> str:
    """Return the name of an error's class, or of the nearest that `accord.errors` has."""
    return next(one.__name__ for one in type(error).__mro__ if hasattr(errors, one.__name__))


def refuse_ranks(ranks: int) -> None:
    """Refuse more processes than there are GPUs, where there are any. Raises UsageError."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else ranks
    if ranks > count:
        raise UsageError(
            f"scale.ranks is {ranks}, and there are {count} GPUs",
            why="each process takes one of its own",
            hint=f"set scale.ranks={count}",
        )


if __name__ == "__main__":
    sys.exit(be_one(Path(sys.argv[1])))
