"""What every training stage shares: one run in its folder, with steps, metrics, events, checkpoints and snapshots."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import BaseModel

from accord.config import OnAlarm
from accord.dist.mesh import joined_ranks
from accord.dist.shard import gathered
from accord.errors import Interrupted, PausedByAlarm
from accord.files import append_row, numbered, read_rows, write_json
from accord.mirror import Mirror, mirror_of
from accord.models.decoder import CausalLM
from accord.models.folder import save_policy
from accord.models.lora import save_adapter
from accord.models.precision import tune_allocator
from accord.progress import Log, Notice, quiet
from accord.ranks import Ranks, launched_ranks
from accord.seeds import stream_seed
from accord.text.tokenizer import Tokenizer
from accord.train.finished import MODEL, identity_of
from accord.train.learner import Checkpoints, Learner, Metrics

#: What a stage may leave beside its metrics, and what no fresh start may find there: it would be judged as its own.
LEFTOVERS = ("snapshots", "samples", "adapter")


class Carried(Protocol):
    """What a stage keeps from step to step besides the learner (controllers, running statistics), as plain JSON."""

    def state(self) -> dict[str, Any]: ...
    def restore(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Steps:
    """How many steps a stage takes, and how: a step may be several updates of the learner.

    ``headline`` is the metric that progress shows; ``on_alarm`` what a grave alarm does.
    """

    total: int
    checkpoint_every: int
    updates_each: int = 1
    headline: str = "loss"
    on_alarm: OnAlarm = "warn"


@dataclass(frozen=True)
class TrainingRun:
    """One training stage at work in its folder.

    Attributes:
        folder: where metrics, events, checkpoints, snapshots and the result go.
        seed: everything random is a function of it and of the step.
        resume: go on from the newest checkpoint of the same inputs; else start anew.
        log: where progress is reported.
        ranks: the processes that train together, of which the first writes and reports.
    """

    folder: Path
    seed: int
    resume: bool = True
    log: Log = quiet
    ranks: Ranks = field(default_factory=joined_ranks)

    @cached_property
    def mirror(self) -> Mirror | None:
        """What keeps checkpoints and the result a second time; only the first process has it."""
        return mirror_of(self.folder) if self.ranks.first else None

    @property
    def metrics(self) -> Metrics:
        """``metrics.jsonl``: one row a step."""
        return Metrics(self.folder / "metrics.jsonl", self.log)

    def identity(self, inputs: Mapping[str, Path], **settings: BaseModel) -> str:
        """Return the hash that makes two runs the same run: settings by name, seed and contents of the inputs."""
        return identity_of({name: one.model_dump() for name, one in settings.items()} | {"seed": self.seed}, inputs)

    def train(
        self,
        learner: Learner,
        step_fn: Callable[[int], dict[str, float]],
        steps: Steps,
        *,
        identity: str,
        carried: Carried | None = None,
    ) -> int:
        """Call ``step_fn(step)`` for every step not yet done, and write the metrics that it returns.

        Returns how many steps have been taken in all: fewer than there were to be where a grave alarm stopped it.

        Checkpoints of another identity are not continued. The global random stream (dropout) is reseeded from
        (seed, step), so that a resumed run equals an uninterrupted one.

        Raises:
            PausedByAlarm: A grave alarm rang for the first time, and ``steps.on_alarm`` is pause.
        """
        tune_allocator()
        checkpoints = Checkpoints(self.folder / "checkpoints", identity, self.log, self.mirror)
        started, total = time.monotonic(), steps.total
        first = self._first_step(checkpoints, learner, steps, carried)
        # For who looks on from another process: how many steps there will be, and who takes them.
        if self.ranks.first:
            write_json(self.folder / "steps.json", {"total": total, "pid": os.getpid()})
        # Interrupted in the very step that ended it. The first process knows what was written.
        if steps.on_alarm == "stop" and self.ranks.said(self.ranks.first and bool(self._grave(first))):
            return first
        with _saying_what_is_kept(checkpoints, steps), StopSignal() as stop:
            for step in range(first, total):
                # The one global stream that is left, of dropout: a resumed step draws what it would have drawn.
                # Several processes drop and hide in different places: each has rows of its own.
                rank = (self.ranks.rank,) if self.ranks.rank else ()
                torch.manual_seed(stream_seed(self.seed, "step", step, *rank))
                row = step_fn(step)
                if self.ranks.first:
                    self.metrics.write(step, {**row, "seconds": time.monotonic() - started})
                self.log((step + 1) / total, f"step {step + 1}/{total}, {steps.headline} {row[steps.headline]:.4f}")
                # Not after the last step: the result is about to be written.
                due = (step + 1) % steps.checkpoint_every == 0 and step + 1 < total
                # All stop after the step at which the first of them has heard: a checkpoint is written by all.
                heard = max(self.ranks.gather(stop.heard))
                asks = self.ranks.first and step + 1 < total
                alarm = self.ranks.said(self._ringing_first(step, steps) if asks else None)
                if due or heard or (alarm and steps.on_alarm == "pause"):
                    checkpoints.save(learner, carried.state() if carried else {})
                if heard:
                    raise Interrupted(heard)
                if alarm is not None:
                    self._end_by(alarm, step, steps)
                    return step + 1
        return total

    def _ringing_first(self, step: int, steps: Steps) -> Mapping[str, Any] | None:
        """Return a grave alarm of this step that has not rung before: who went on after it has decided to."""
        if steps.on_alarm == "warn":
            return None
        rows = self._grave(step + 1)
        known = {row["alarm"] for row in rows if row["step"] < step}
        return next((row for row in rows if row["alarm"] not in known), None)

    def _grave(self, before: int) -> list[dict[str, Any]]:
        """Return the grave alarms of the steps before one."""
        return [row for row in read_rows(self.folder / "events.jsonl") if row.get("grave") and row["step"] < before]

    def _end_by(self, alarm: Mapping[str, Any], step: int, steps: Steps) -> None:
        """Say that an alarm ends the training here; raise where it only pauses."""
        at = f"at step {step + 1} of {steps.total}: {alarm['alarm']}"
        if steps.on_alarm == "stop":
            self.log((step + 1) / steps.total, Notice(f"stopped by an alarm {at}; what has been learnt is kept"))
            return
        raise PausedByAlarm(
            f"paused by an alarm {at}",
            where=str(self.folder),
            why=str(alarm["cause"]),
            hint="the same command goes on from here, past this alarm; on_alarm=stop keeps what has been learnt",
        )

    def _first_step(self, checkpoints: Checkpoints, learner: Learner, steps: Steps, carried: Carried | None) -> int:
        """Restore what a checkpoint holds, and drop what stands of steps that are run again."""
        if not self.resume and self.ranks.first:
            checkpoints.clear()
        state = checkpoints.restore(learner)
        first = 0 if state is None else learner.step // steps.updates_each
        if state is not None and carried is not None:
            carried.restore(state)
        if not self.ranks.first:
            return first
        for rows in (self.metrics, Metrics(self.folder / "events.jsonl", self.log)):
            rows.rewind(first)
        for name in LEFTOVERS if first == 0 else ():
            shutil.rmtree(self.folder / name, ignore_errors=True)
        return first

    def event(self, step: int, event: Mapping[str, Any], *, done: float = 0.0) -> None:
        """Add an alarm to ``events.jsonl``, and tell who watches when it rings first.

        ``done`` is the share of the whole that is done.
        """
        if not self.ranks.first:
            return
        path = self.folder / "events.jsonl"
        if event["alarm"] not in {row.get("alarm") for row in read_rows(path)}:
            self.log(done, Notice(f"alarm at step {step + 1}: {event['alarm']}: {event['cause']}"))
        append_row(path, {"step": step, **event})

    def save_snapshot(self, step: int, policy: CausalLM, tokenizer: Tokenizer) -> None:
        """Leave the policy of a step, counted from 0, for a judge to choose from."""
        save_policy(self.folder / "snapshots" / f"step_{step + 1:06d}", policy, tokenizer)

    def snapshots(self) -> dict[int, Path]:
        """Return the policies that were left, by the number of steps they took; tell of what lies among them."""
        found = snapshots_of(self.folder / "snapshots")
        for path in {*(self.folder / "snapshots").glob("*")} - {*found.values()}:
            self.log(1.0, Notice(f"{path} is no snapshot, and is passed over"))
        return found

    def save_result(self, policy: CausalLM, tokenizer: Tokenizer, *, adapter_on: Path | None) -> Path:
        """Write the last policy to ``model`` and return where.

        Its adapter goes beside it, where one trained on the policy in ``adapter_on``.
        """
        save_policy(self.folder / MODEL, policy, tokenizer)
        if adapter_on is not None:
            with gathered(policy):
                if self.ranks.first:
                    save_adapter(self.folder / "adapter", policy, str(adapter_on))
        elif self.ranks.first:  # what an earlier run with other settings left
            shutil.rmtree(self.folder / "adapter", ignore_errors=True)
        if self.mirror is not None:
            self.mirror.put(self.folder / MODEL, MODEL)
        return self.folder / MODEL


class StopSignal:
    """Ctrl-C and SIGTERM while a stage takes its steps: the first lets the step end, the second acts at once.

    In a thread that is not the main one they act as ever: Python lets no other thread handle signals.
    """

    def __init__(self) -> None:
        self.heard = 0  # the signal's number, or 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                # A shell starts what runs in the background deaf to Ctrl-C; so it stays.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        self._let_go()

    def _hear(self, number: int, frame: object) -> None:
        self.heard = number
        self._let_go()  # what comes next acts at once
        if launched_ranks()[0]:  # the first of several processes speaks
            return
        # Not through the log: the signal may have come in the midst of what it writes.
        os.write(2, b"\naccord: stops after this step, with a checkpoint; asked again, it stops at once\n")

    def _let_go(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


@contextlib.contextmanager
def _saying_what_is_kept(checkpoints: Checkpoints, steps: Steps) -> Iterator[None]:
    """Let an interrupt say how many steps a checkpoint has kept, or that none was written yet."""
    try:
        yield
    except KeyboardInterrupt as stop:
        kept = (checkpoints.newest_step() or 0) // steps.updates_each
        none = f"nothing is kept: a checkpoint comes every {steps.checkpoint_every} steps, and there is none yet"
        again = f"the same command again goes on after step {kept} of {steps.total}, which a checkpoint holds"
        stop.add_note(again if kept else none)
        raise


def snapshots_of(folder: Path) -> dict[int, Path]:
    """Return the policies that a stage left in its folder of snapshots, by the number of steps they took."""
    return numbered(folder)
