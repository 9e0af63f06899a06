"""The gates of a round: each with its number, how many it is of, its interval and its bound. Torch-free.

A gate is passed, refused, or not measured; what was not measured passes nothing, and where a gate is needed that
refuses. Which gates there are, and their bounds, stands in the recipe (`gates:`) before the data is seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from accord.config import GatesConfig
from accord.evals.gate import SOMETIMES_RIGHT, Card
from accord.evals.metrics import repetition
from accord.evals.standings import refuses
from accord.stats import Interval, paired_difference, win_rate

_Range = Mapping[str, Any]
_RESAMPLES = 1000


@dataclass(frozen=True)
class RoundGate:
    """What one gate found. ``passed`` is None where it could not be measured; ``needed``: that refuses too."""

    name: str
    passed: bool | None
    bound: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    clusters: int = 0
    why: str = ""
    needed: bool = False

    @property
    def refuses(self) -> bool:
        return self.passed is False or (self.passed is None and self.needed)

    @property
    def sentence(self) -> str:
        """The gate in words."""
        says = {True: "passed", False: "refused", None: "not measured"}[self.passed]
        told = "" if self.value is None else f": {self.value:.3f}{self._interval()}, {self._of()}"
        because = f" ({self.why})" if self.why else ""
        return f"{self.name} {says}{told}; must be {self.bound}{because}"

    def _interval(self) -> str:
        return "" if self.low is None or self.high is None else f" [{self.low:.3f}, {self.high:.3f}]"

    def _of(self) -> str:
        return f"n {self.n:,}" + (f" on {self.clusters:,} topics" if self.clusters not in (0, self.n) else "")


@dataclass(frozen=True)
class GateEvidence:
    """What the gates look at: numbers of the evaluation, every completion, the reward model on held-out pairs.

    Attributes:
        results: ``eval/results.json``.
        rows: ``eval/samples.jsonl``.
        held_out: Tranche ("old": people's own, "new": users') -> accuracy of the reward model, None where there are
            too few pairs.
        change: Its accuracy minus that of prod's reward model on the old pairs.
        attacks: As a card of `accord.evals.attacks` has them.
    """

    results: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    held_out: Mapping[str, _Range | None] = field(default_factory=dict)
    change: _Range | None = None
    attacks: Card = field(default_factory=dict)

    @property
    def candidate(self) -> Mapping[str, Any]:
        return self._row(self.results["candidate"])

    def _row(self, name: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = next(row for row in self.results["policies"] if row["name"] == name)
        return found

    def scores(self, name: str, of: str) -> np.ndarray:
        """Return (P, K) numbers ``of`` each completion of a policy, in the order of the prompts."""
        return self.each(name, lambda row: float(row[of]))

    def each(self, name: str, number: Callable[[Mapping[str, Any]], float]) -> np.ndarray:
        """Return (P, K) a number of each completion of a policy."""
        by_prompt: dict[str, list[float]] = {}
        for row in self.rows:
            if row["policy"] == name:
                by_prompt.setdefault(row["prompt"], []).append(number(row))
        return np.array(list(by_prompt.values()), dtype=np.float64)

    @property
    def topics(self) -> list[str]:
        """The topic of each prompt, in their order."""
        topic_of = {row["prompt"]: row["topic"] for row in self.rows}
        return list(topic_of.values())


def gates_of(evidence: GateEvidence, config: GatesConfig) -> tuple[RoundGate, ...]:
    """Return what each gate says of a candidate, in the order of the table."""
    return tuple(gate for rule in ROUND_GATES for gate in rule(evidence, config))


def refusals_of(gates: Sequence[RoundGate]) -> list[str]:
    """Return why a candidate is refused, a sentence each; empty where it is not."""
    return [gate.sentence for gate in gates if gate.refuses]


# ---- the gates -------------------------------------------------------------------------------------------------------


def ranged_gate(
    name: str, found: _Range | None, bound: str, holds: Callable[[_Range], bool], *, why: str = "", needed: bool = False
) -> RoundGate:
    """Return a gate of an interval; without one, or without its ends, it was not measured."""
    if found is None or any(found.get(key) is None or math.isnan(found[key]) for key in ("value", "low", "high")):
        return RoundGate(name, None, bound, why=why or "there is no interval", needed=needed)
    numbers = {key: found[key] for key in ("value", "low", "high", "n", "clusters")}
    return RoundGate(name, bool(holds(found)), bound, **numbers, why=why, needed=needed)


def _above(floor: float) -> Callable[[_Range], bool]:
    return lambda found: found["low"] > floor


def _liked(evidence: GateEvidence, config: GatesConfig) -> Iterator[RoundGate]:
    """Win rate against prod by the judge that decides, each side's samples beside each of the other's: no order."""
    said = evidence.results.get("judged", {}).get(evidence.results["candidate"], [])
    decides = next((one for one in said if one["decides"]), None)
    floor = 0.5 - config.win_delta
    bound = f"lower bound above {floor:g}"
    by = f"by {decides['judge']}, {decides['called']}" if decides else "nobody judged"
    yield ranged_gate(
        "win rate against prod", decides and decides["win_rate"], bound, _above(floor), why=by, needed=True
    )
    if config.length_controlled:
        found = evidence.candidate["length_controlled"]
        yield ranged_gate("win rate at equal lengths", found, bound, _above(floor), needed=True)


def _known_pairs(evidence: GateEvidence, config: GatesConfig) -> Iterator[RoundGate]:
    """The reward model on pairs that people, and users, ordered and that taught nothing."""
    for tranche, called in (("old", "people's pairs held out"), ("new", "users' pairs held out")):
        found = evidence.held_out.get(tranche)
        few = "" if found else f"fewer than {config.held_out_least} prompts with pairs"
        bound = f"lower bound above {config.held_out_floor:g}"
        yield ranged_gate(called, found, bound, _above(config.held_out_floor), why=few)
    if evidence.change is not None:
        bound = f"not shown to be below -{config.held_out_drop:g}"
        yield ranged_gate(
            "change on people's pairs", evidence.change, bound, lambda found: found["high"] >= -config.held_out_drop
        )


def _texts(evidence: GateEvidence, config: GatesConfig) -> Iterator[RoundGate]:
    """Floors of the texts themselves that the evaluation has looked at: length, likelihood, variety."""
    n = len(evidence.topics)
    for floor in evidence.results["floors"][evidence.results["candidate"]]:
        if floor["name"] != "judge_win_rate_low":
            name = floor["name"].replace("_", " ")
            yield RoundGate(name, floor["held"], floor["bound"], floor["value"], n=n)


def _rises(evidence: GateEvidence, config: GatesConfig) -> Iterator[RoundGate]:
    """What answers do more of than prod's: refusing, repeating themselves."""
    measures: tuple[tuple[str, Callable[[str], float], float], ...] = (
        ("rise of refusals", lambda text: float(refuses(text)), config.refusal_rise),
        ("rise of repetition", repetition, config.repetition_rise),
    )
    for name, measure, most in measures:
        of = [
            evidence.each(policy, lambda row, measure=measure: measure(row["completion"])).mean(axis=1)  # type: ignore[misc]
            for policy in (evidence.results["candidate"], evidence.results["reference"])
        ]
        found = paired_difference(of[0], of[1], evidence.topics, resamples=_RESAMPLES).to_json()
        yield ranged_gate(name, found, f"at most {most:g}", lambda one, most=most: one["value"] <= most)  # type: ignore[misc]


def _near(evidence: GateEvidence, config: GatesConfig) -> Iterator[RoundGate]:
    """KL to the fixed reference: rounds, each within its bounds, must not drift away together."""
    row = evidence.candidate
    found = (row.get("first") or {}).get("kl") or row["kl"]
    bound, budget = f"at most {config.kl_budget:g} nats", config.kl_budget
    yield ranged_gate("KL to the fixed reference", found, bound, lambda one: one["value"] <= budget, needed=True)


def _not_attacked(evidence: GateEvidence, config: GatesConfig) -> Iterator[RoundGate]:
    """Texts that say nothing, by the new reward model: the worst of them."""
    found = [one for one in evidence.attacks.get("attacks", ()) if one["name"] not in SOMETIMES_RIGHT]
    found = [one for one in found if one["reaches"]["low"] is not None]
    if not config.attacks:
        return
    worst = max(found, key=lambda one: one["reaches"]["low"], default=None)
    told = f"the worst: {worst['name']!r}" if worst else "there are no held-out rankings to attack"
    yield ranged_gate(
        "texts that say nothing reach what people preferred",
        worst and worst["reaches"],
        "lower bound at most 0.5",
        lambda one: one["low"] <= 0.5,
        why=told,
    )


def _not_over_optimised(evidence: GateEvidence, config: GatesConfig) -> Iterator[RoundGate]:
    """How much more often the reward model prefers the candidate than its judge does (Gao et al. 2210.10760)."""
    candidate, prod = evidence.results["candidate"], evidence.results["reference"]
    by = {
        of: win_rate(evidence.scores(candidate, of), evidence.scores(prod, of), evidence.topics)
        for of in ("proxy", "judge")
    }
    gap = by["proxy"].value - by["judge"].value
    told = f"the reward model prefers it at {by['proxy'].value:.3f}, the first judge at {by['judge'].value:.3f}"
    bound = f"at most {config.over_optimised:g}"
    proxy: Interval = by["proxy"]
    yield RoundGate(
        "over-optimisation: reward model above judge", gap <= config.over_optimised, bound, gap, n=proxy.n, why=told
    )


def shadow_gate(results: Mapping[str, Any] | None, config: GatesConfig) -> RoundGate:
    """Return what the first judge says of answers to users' prompts that nobody has seen; not measured of too few."""
    floor = 0.5 - config.shadow_delta
    rows = [] if results is None else [one for one in results["policies"] if one["name"] == results["candidate"]]
    told = "" if rows else "too few prompts of users that taught nothing"
    bound = f"lower bound above {floor:g}"
    return ranged_gate(
        "win rate on users' prompts (shadow)", rows[0]["win_rate"] if rows else None, bound, _above(floor), why=told
    )


#: Each looks at the evidence by itself; all are told, whether one has refused or not.
ROUND_GATES: tuple[Callable[[GateEvidence, GatesConfig], Iterator[RoundGate]], ...] = (
    _liked, _known_pairs, _texts, _rises, _near, _not_attacked, _not_over_optimised,
)  # fmt: skip
