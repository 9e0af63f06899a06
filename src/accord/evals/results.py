"""What an evaluation found: records of numbers, each with its interval, and the floors they must keep. Torch-free.

``plain`` turns any of them into what JSON holds. Everything the report shows comes from here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from accord.config import EvalConfig
from accord.errors import DataError
from accord.evals.contestants import ContestantRole
from accord.evals.trust import JudgeSaid, deciding, told_in_order
from accord.stats import Interval, Unknown

RESULTS_FORMAT = 2  # of results.json: 1 had fixed names of policies


def plain(value: Any) -> Any:
    """Records, arrays and paths as dicts, lists, numbers and texts; a number that is not finite becomes null."""
    if isinstance(value, Interval | Unknown | Floor | JudgeSaid):
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
class JudgeVerdict:
    """What one judge says of a policy: its mean score, and its win rates against the reference (None for itself)."""

    score: Interval
    win_rate: Interval | None
    length_controlled: Interval | None


@dataclass(frozen=True)
class FirstVerdict:
    """A policy against where the first of several rounds started: KL in nats, and win rates by judge."""

    kl: Interval
    win_rates: Mapping[str, Interval]


@dataclass(frozen=True)
class PolicyRow:
    """One policy on the prompts of one split; every interval resamples topics.

    ``judge``, ``win_rate`` and ``length_controlled`` are by the leading judge, ``other_judges`` what the others say.
    ``kl`` is in nats per completion; with ``kl_is_bound`` it is an upper bound and not a measurement. ``nll`` is in
    nats per token under the reference, ``nll_excess`` that minus the reference's own. ``entropy`` is in nats per token,
    of the policy's own distributions; None for best of n, which has none of its own. ``first`` is for rounds after the
    first, whose reference is the policy promoted last.
    """

    name: str
    role: ContestantRole
    note: str
    best_of: int
    num_samples: int
    judge: Interval
    proxy: Interval
    win_rate: Interval | None
    length_controlled: Interval | None
    other_judges: Mapping[str, JudgeVerdict]
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
    first: FirstVerdict | None = None
    entropy: Interval | None = None


@dataclass(frozen=True)
class Snapshot:
    """A policy after ``step`` steps of training, on validation prompts."""

    step: int
    row: PolicyRow
    floors: tuple[Floor, ...]

    @property
    def held(self) -> bool:
        """Whether every floor holds."""
        return all(floor.held for floor in self.floors)


@dataclass(frozen=True)
class Selection:
    """Which snapshot the judge chose on validation prompts, and why; ``held`` = it holds every floor there."""

    step: int
    held: bool
    reason: str
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
    """Everything measured: ``policies`` on test prompts, the rest on validation prompts.

    Attributes:
        judges: Name -> content hash of each judge, empty where it has none. The first one chooses snapshots.
        judged: What the judges say of each candidate, in the order of trust; the one that decides says so.
        reference, candidate: Names of the policy that all are compared with, and of the first candidate.
        floors: Of each candidate, on test prompts.
        start: The reference on validation prompts; on test prompts where nothing was measured on validation prompts.
        folders: Where each policy's reported snapshot lies, seen from the run's folder; those outside are left out.
        selections: Of each candidate that has snapshots.
        controls: The snapshots of each control.
        left_out: Of each split, how many prompts were too long, by the model that has no room for them.
    """

    seed: int
    judges: Mapping[str, str]
    num_test_prompts: int
    num_valid_prompts: int
    samples_per_prompt: int
    max_new_tokens: int
    temperature: float
    reference: str
    candidate: str
    policies: tuple[PolicyRow, ...]
    floors: Mapping[str, tuple[Floor, ...]]
    folders: Mapping[str, str]
    start: PolicyRow
    selections: Mapping[str, Selection]
    controls: Mapping[str, tuple[Snapshot, ...]]
    best_of_n_curve: tuple[CurvePoint, ...]
    judged: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    left_out: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def policy(self, name: str) -> PolicyRow:
        """Return the row of one policy; raises DataError where it was not evaluated."""
        for row in self.policies:
            if row.name == name:
                return row
        raise DataError(f"no policy {name!r}", hint="one of " + ", ".join(row.name for row in self.policies))

    def to_json(self) -> dict[str, Any]:
        """Return what ``results.json`` holds."""
        return {"format": RESULTS_FORMAT} | cast("dict[str, Any]", plain(self))


def text_floors(config: EvalConfig, row: PolicyRow) -> tuple[Floor, ...]:
    """Floors of the texts themselves, whatever judge or reward model say: the signs of a policy that games them."""
    return (
        Floor("length_ratio", row.length_ratio, config.length_low, config.length_high),
        Floor("nll_excess", row.nll_excess, high=config.nll_excess),
        Floor("distinct_share", row.distinct_share, config.distinct_share),
    )


def snapshot_floors(config: EvalConfig, row: PolicyRow) -> tuple[Floor, ...]:
    """Return what a snapshot must hold on validation prompts before the judge's liking counts."""
    return (*text_floors(config, row), Floor("kl", row.kl.value, high=config.kl_ceiling))


def policy_floors(config: EvalConfig, row: PolicyRow, win: Interval | None = None) -> tuple[Floor, ...]:
    """Return what the chosen policy must hold on test prompts, that it is liked better among it.

    ``win`` is its win rate by the judge that decides, where that is not the first.
    """
    return (better_floor(win or row.win_rate), *text_floors(config, row))


def better_floor(win: Interval | None) -> Floor:
    """Return the floor that a policy is liked better; without an interval it is not held."""
    lower = math.nan if win is None else win.low
    return Floor("judge_win_rate_low", 0.0 if math.isnan(lower) else lower, 0.5, strict=True)


def with_judge(results: Mapping[str, Any], said: JudgeSaid, candidate: str = "") -> dict[str, Any]:
    """Return ``results.json`` with what one more judge says of its first candidate, or of another."""
    name = candidate or results["candidate"]
    judged = [*map(JudgeSaid.of_json, results.get("judged", {}).get(name, [])), said]
    better = better_floor(deciding(judged).win_rate).to_json()
    floors = [better if floor["name"] == better["name"] else floor for floor in results["floors"][name]]
    return {
        **results,
        "judged": {**results.get("judged", {}), name: told_in_order(judged)},
        "floors": {**results["floors"], name: floors},
    }


# ---- files ---------------------------------------------------------------------------------------------------------


def summarise(
    results: Mapping[str, Any],
    card: Mapping[str, Any] | None = None,
    *,
    baseline: str = "",
    seconds: float = 0.0,
    counts: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """``summary.json``: the few numbers that decide, and every floor with its bound.

    Args:
        results: what ``eval/results.json`` holds; its candidate is told.
        card: what ``reward/card.json`` holds; None where no reward model was trained, or on nothing held out.
        baseline: which of the card's baselines the reward model must not fall below; empty = none.
    """
    name = results["candidate"]
    row = next(row for row in results["policies"] if row["name"] == name)
    judged, (told, floors) = results.get("judged", {}).get(name, []), _card_numbers(card, baseline)
    decides = next((one for one in judged if one["decides"]), None)
    win = decides["win_rate"] if decides else row["win_rate"]
    return {
        "candidate": name,
        **told,
        "judge_win_rate": win["value"],
        "judge_win_rate_low": win["low"],
        "judge_win_rate_high": win["high"],
        "decided_by": decides["judge"] if decides else next(iter(results["judges"]), ""),
        "judges": judged,
        "kl": row["kl"]["value"],
        "first": _against_first(row.get("first"), [decides, *judged] if decides else []),
        "length_ratio": row["length_ratio"],
        "nll_excess": row["nll_excess"],
        "distinct_share": row["distinct_share"],
        "seconds": seconds,
        "seed": results["seed"],
        "counts": dict(counts or {}),
        "floors": {floor["name"]: floor for floor in [*floors, *results["floors"][name]]},
    }


def _against_first(found: Mapping[str, Any] | None, judged: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return KL and win rate against the first start, by the judge that decides, or the most trusted that looked."""
    if not found:
        return None
    asked = (one["judge"] for one in judged if one["judge"] in found["win_rates"])
    judge = next(asked, next(iter(found["win_rates"])))
    return {"kl": found["kl"]["value"], "judge": judge, "win_rate": found["win_rates"][judge]}


def _card_numbers(card: Mapping[str, Any] | None, baseline: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the reward model's part of the summary, and its floor where there is a baseline."""
    if not card:
        return {"reward_accuracy": None, "reward_accuracy_same_verdict": None, "baseline_accuracy": None}, []
    accuracy, same = card["model"]["all_pairs"]["value"], card["model"]["parts"].get("same_verdict")
    found = card["baselines"].get(baseline)
    least = found and found["all_pairs"]["value"]
    told = {"reward_accuracy": accuracy, "reward_accuracy_same_verdict": same and same["value"]}
    floors = [] if least is None else [Floor("reward_accuracy", accuracy, least).to_json()]
    return told | {"baseline_accuracy": least}, floors
