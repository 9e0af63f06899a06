"""Which snapshot of a training is worth reporting: the judge chooses on validation prompts, floors first."""

from __future__ import annotations

from collections.abc import Sequence

from accord.config import EvalConfig
from accord.errors import DataError
from accord.evals.bench import Bench, ScoredSamples
from accord.evals.contestants import Contestant
from accord.evals.results import Selection, Snapshot, snapshot_floors
from accord.progress import Log, quiet


def measure_snapshots(
    config: EvalConfig, bench: Bench, one: Contestant, against: ScoredSamples, log: Log = quiet
) -> tuple[Snapshot, ...]:
    """Return a row and the floors of each snapshot of a contestant, in the order of their steps."""
    measured = []
    for done, (step, folder) in enumerate(sorted(one.snapshots.items())):
        log(done / len(one.snapshots), f"{bench.name} prompts: {one.name} at step {step}")
        row = bench.row(one, bench.sample(f"{one.random}-{step}", folder), against)
        measured.append(Snapshot(step, row, snapshot_floors(config, row)))
    return tuple(measured)


def select_snapshot(
    config: EvalConfig, bench: Bench, one: Contestant, against: ScoredSamples, log: Log = quiet
) -> Selection:
    """Return the snapshot the judge likes best on the bench's (validation) prompts of those that hold the floors there.

    Args:
        against: the reference's samples on the same prompts.
    """
    measured = measure_snapshots(config, bench, one, against, log)
    best, reason = choose(measured)
    return Selection(best.step, best.held, reason, measured)


def choose(snapshots: Sequence[Snapshot]) -> tuple[Snapshot, str]:
    """Return the snapshot the judge likes best among those that hold every floor, and the reason in words.

    Where none holds all of them it is the one that violates them least. Of equals the earlier wins.
    """
    if not snapshots:
        raise DataError("no snapshot to choose among", hint="lower rl.eval_every, so that training writes some")
    ordered = sorted(snapshots, key=lambda s: s.step)
    holding = [s for s in ordered if s.held]
    if holding:
        best = max(holding, key=lambda s: s.row.judge.value)
        return best, _praise(best, len(holding), len(ordered))
    best = min(ordered, key=lambda s: sum(floor.violation for floor in s.floors))
    broken = ", ".join(f"{f.name} {f.value:.3g} ({f.bound})" for f in best.floors if not f.held)
    return best, f"no snapshot holds every floor on validation prompts; step {best.step} violates them least: {broken}"


def _praise(best: Snapshot, holding: int, total: int) -> str:
    if total == 1:
        return f"step {best.step} is the only snapshot, and it holds every floor on validation prompts"
    if holding == 1:
        return f"step {best.step} is the only one of {total} that holds every floor on validation prompts"
    return (
        f"step {best.step} has the highest judge score on validation prompts ({best.row.judge.value:.3f}) "
        f"among the {holding} of {total} snapshots that hold every floor there"
    )
