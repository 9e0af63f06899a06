"""What an evaluation found: records of numbers, each with its interval, and the floors they must keep. Torch-free.

``plain`` turns any of them into what JSON holds. Everything the report shows comes from here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from accord.config import EvalConfig
from accord.errors import DataError
from accord.evals.judge import ProbeScore
from accord.evals.reward_card import RewardCard
from accord.stats import Interval

FORMAT = 1


def plain(value: Any) -> Any:
    """Records, arrays and paths as dicts, lists, numbers and texts; a number that is not finite becomes null."""
    if isinstance(value, Interval | Floor):
        return value.to_json()
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


# ---- floors --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Floor:
    """A number and the bounds it must keep: ``low <= value <= high``, or ``low < value`` where ``strict``."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    strict: bool = False

    @property
    def held(self) -> bool:
        above = self.low is None or (self.value > self.low if self.strict else self.value >= self.low)
        return above and (self.high is None or self.value <= self.high)

    @property
    def bound(self) -> str:
        """The bounds in words."""
        if self.low is not None and self.high is not None:
            return f"{self.low:g} to {self.high:g}"
        if self.high is not None:
            return f"at most {self.high:g}"
        return f"{'above' if self.strict else 'at least'} {round(self.low or 0.0, 3):g}"

    @property
    def violation(self) -> float:
        """How far beyond its bound the value lies, as a share of the bound; 0 where it is held."""
        beyond = [
            (distance, bound)
            for distance, bound in (
                (self.low - self.value if self.low is not None else 0.0, self.low),
                (self.value - self.high if self.high is not None else 0.0, self.high),
            )
            if bound is not None and distance > 0
        ]
        return sum(distance / max(1e-9, abs(bound)) for distance, bound in beyond)

    def to_json(self) -> dict[str, Any]:
        values = {"name": self.name, "value": self.value, "low": self.low, "high": self.high}
        return values | {"bound": self.bound, "held": self.held}


# ---- policies ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PolicyRow:
    """One policy on the prompts of one split; every interval resamples films.

    ``win_rate`` and ``length_controlled`` are against the reference by the judge, None for the reference itself.
    ``kl`` is in nats per completion; with ``kl_is_bound`` it is an upper bound and not a measurement. ``nll`` is in
    nats per token under the reference, ``nll_excess`` that minus the reference's own.
    """

    name: str
    note: str
    best_of: int
    num_samples: int
    judge: Interval
    proxy: Interval
    win_rate: Interval | None
    length_controlled: Interval | None
    kl: Interval
    kl_is_bound: bool
    tokens: Interval
    words: float
    length_ratio: float
    nll: Interval
    nll_excess: float
    distinct_2: float
    self_bleu: float
    distinct_share: float
    repetition: float
    end_rate: float


@dataclass(frozen=True)
class Snapshot:
    """A policy after ``step`` iterations of training, on validation films."""

    step: int
    row: PolicyRow
    floors: tuple[Floor, ...]

    @property
    def held(self) -> bool:
        return all(floor.held for floor in self.floors)


@dataclass(frozen=True)
class Selection:
    """Which snapshot the judge chose on validation films, and why; ``held`` = it holds every floor there."""

    step: int
    held: bool
    reason: str
    reference: PolicyRow
    snapshots: tuple[Snapshot, ...]


@dataclass(frozen=True)
class CurvePoint:
    """Best of ``n`` samples of the reference by the proxy; ``kl_bound`` in nats, from above."""

    n: int
    kl_bound: float
    judge: Interval
    proxy: Interval


@dataclass(frozen=True)
class EvalResults:
    """Everything measured: ``policies`` on test films, the rest on validation films.

    ``uncured`` holds the snapshots of the same training without its cure, empty where that was not run.
    """

    seed: int
    judge_hash: str
    num_test_prompts: int
    num_valid_prompts: int
    samples_per_prompt: int
    max_new_tokens: int
    temperature: float
    policies: tuple[PolicyRow, ...]
    floors: tuple[Floor, ...]
    selection: Selection
    uncured: tuple[Snapshot, ...]
    best_of_n_curve: tuple[CurvePoint, ...]

    def policy(self, name: str) -> PolicyRow:
        """The row of one policy; raises DataError where it was not evaluated."""
        for row in self.policies:
            if row.name == name:
                return row
        raise DataError(f"no policy {name!r}", hint="one of " + ", ".join(row.name for row in self.policies))

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT} | cast("dict[str, Any]", plain(self))


def text_floors(config: EvalConfig, row: PolicyRow) -> tuple[Floor, ...]:
    """Floors of the texts themselves, whatever judge or reward model say: the signs of a policy that games them."""
    return (
        Floor("length_ratio", row.length_ratio, config.length_low, config.length_high),
        Floor("nll_excess", row.nll_excess, high=config.nll_excess),
        Floor("distinct_share", row.distinct_share, config.distinct_share),
    )


def snapshot_floors(config: EvalConfig, row: PolicyRow) -> tuple[Floor, ...]:
    """What a snapshot must hold on validation films before the judge's liking counts."""
    return (*text_floors(config, row), Floor("kl", row.kl.value, high=config.kl_ceiling))


def policy_floors(config: EvalConfig, row: PolicyRow) -> tuple[Floor, ...]:
    """What the chosen policy must hold on test films."""
    win = row.win_rate
    lower = math.nan if win is None else win.low
    better = Floor("judge_win_rate_low", 0.0 if math.isnan(lower) else lower, 0.5, strict=True)
    return (better, *text_floors(config, row))


def choose(snapshots: Sequence[Snapshot]) -> tuple[Snapshot, str]:
    """The snapshot the judge likes best among those that hold every floor, and the reason in words.

    Where none holds all of them it is the one that violates them least. Of equals the earlier wins.
    """
    if not snapshots:
        raise DataError("no snapshot to choose among", hint="lower rl.eval_every, so that training writes some")
    ordered = sorted(snapshots, key=lambda s: s.step)
    holding = [s for s in ordered if s.held]
    if holding:
        best = max(holding, key=lambda s: s.row.judge.value)
        if len(holding) == 1:
            return (
                best,
                f"step {best.step} is the only one of {len(ordered)} that holds every floor on validation films",
            )
        return best, (
            f"step {best.step} has the highest judge score on validation films ({best.row.judge.value:.3f}) "
            f"among the {len(holding)} of {len(ordered)} snapshots that hold every floor there"
        )
    best = min(ordered, key=lambda s: sum(floor.violation for floor in s.floors))
    broken = ", ".join(f"{f.name} {f.value:.3g} ({f.bound})" for f in best.floors if not f.held)
    return best, f"no snapshot holds every floor on validation films; step {best.step} violates them least: {broken}"


# ---- files ---------------------------------------------------------------------------------------------------------


def card_json(card: RewardCard, probes: Mapping[str, Sequence[ProbeScore]]) -> dict[str, Any]:
    """``reward/card.json``: the card, and the probes' scores by the name of what scored them."""
    return cast("dict[str, Any]", plain(card)) | {"probes": plain(probes)}


def summarise(
    results: Mapping[str, Any], card: Mapping[str, Any], *, baseline: str, seconds: float, counts: Mapping[str, int]
) -> dict[str, Any]:
    """``summary.json``: the few numbers that decide, and every floor with its bound.

    Args:
        results, card: what ``eval/results.json`` and ``reward/card.json`` hold.
        baseline: which of the card's baselines the reward model must not fall below.
    """
    ppo = next(row for row in results["policies"] if row["name"] == "ppo")
    same, win = card["model"]["same_verdict"], ppo["win_rate"]
    accuracy, least = card["model"]["all_pairs"]["value"], card["baselines"][baseline]["all_pairs"]["value"]
    floors = [Floor("reward_accuracy", accuracy, least).to_json(), *results["floors"]]
    return {
        "reward_accuracy": accuracy,
        "reward_accuracy_same_verdict": same and same["value"],
        "baseline_accuracy": least,
        "judge_win_rate": win["value"],
        "judge_win_rate_low": win["low"],
        "judge_win_rate_high": win["high"],
        "kl": ppo["kl"]["value"],
        "length_ratio": ppo["length_ratio"],
        "nll_excess": ppo["nll_excess"],
        "distinct_share": ppo["distinct_share"],
        "seconds": seconds,
        "seed": results["seed"],
        "counts": dict(counts),
        "floors": {floor["name"]: floor for floor in floors},
    }
