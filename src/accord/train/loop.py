"""What every training stage shares: steps, metrics, progress with time left, checkpoints and exact resume."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from accord.config import without_device
from accord.files import sha256_tree
from accord.models.precision import tune_allocator
from accord.seeds import stream_seed
from accord.train.learner import Checkpoints, Learner, Log, Metrics


def quiet(fraction: float, text: str) -> None:
    """A progress reporter that says nothing."""


def identity_of(settings: Mapping[str, Any], inputs: Mapping[str, Path]) -> str:
    """Hash of a stage's settings and of the contents of its input files: what makes two runs the same run.

    The device is none of it: a run may go on where there is a GPU.
    """
    files = {name: sha256_tree(path) for name, path in inputs.items()}
    content = {"settings": without_device(settings), "inputs": files}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def train_steps(
    learner: Learner,
    step_fn: Callable[[int], dict[str, float]],
    *,
    total: int,
    updates_per_step: int = 1,
    seed: int,
    output_dir: Path,
    identity: str,
    checkpoint_every: int,
    resume: bool = True,
    log: Log = quiet,
    state: Callable[[], dict[str, Any]] = dict,
    restore: Callable[[dict[str, Any]], None] | None = None,
    headline: str = "loss",
) -> None:
    """Call ``step_fn(step)`` for every step not yet done, writing a row of metrics for each.

    ``state`` and ``restore`` carry what a stage keeps besides the learner (controllers, running statistics).
    The global random stream (dropout) is reseeded from (seed, step), so a resumed run equals an uninterrupted one.
    """
    tune_allocator()
    checkpoints, metrics = Checkpoints(output_dir / "checkpoints", identity), Metrics(output_dir / "metrics.jsonl")
    if not resume:
        checkpoints.clear()
    found = checkpoints.restore(learner)
    first = learner.step // updates_per_step if found is not None else 0
    if found is not None and restore is not None:
        restore(found)
    metrics.rewind(first)
    Metrics(output_dir / "events.jsonl").rewind(first)
    started = time.monotonic()
    for step in range(first, total):
        torch.manual_seed(stream_seed(seed, "step", step))
        row = step_fn(step)
        metrics.write(step, {**row, "seconds": time.monotonic() - started})
        log((step + 1) / total, f"step {step + 1}/{total}, {headline} {row[headline]:.4f}")
        if (step + 1) % checkpoint_every == 0 and step + 1 < total:
            checkpoints.save(learner, state())


def snapshot_folder(output_dir: Path, step: int) -> Path:
    """Where a stage leaves the policy of a step, counted from 0, for a judge to choose from."""
    return output_dir / "snapshots" / f"step_{step + 1:06d}"


def snapshots_of(folder: Path) -> dict[int, Path]:
    """The policies that a stage left in its folder of snapshots, by the number of steps they took."""
    return {int(path.name.removeprefix("step_")): path for path in sorted(folder.glob("step_*"))}


def append_event(path: Path, step: int, event: Mapping[str, str]) -> None:
    """Add a row to ``events.jsonl``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps({"step": step, **event}) + "\n")
