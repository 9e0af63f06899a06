"""Alarms of policy optimisation and direct preference: each names the symptom and its likely cause."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

Stats = Mapping[str, float]
Earlier = Sequence[Stats]

#: At a KL of zero, two standard errors would be passed by chance in one iteration of 44.
KL_STANDARD_ERRORS = 3.0
LARGEST_GAIN = 30.0
FEWEST_OWN = 0.3  # of the samples: the share that stands for the policy as its own would
SPIKE_AFTER = 5  # steps, before their median means something
FOR_STEPS = 3  # one step of 44 is two errors off by chance, three in a row are not
SAME_SCORES = 1e-6  # standard deviation of the scores of a step
FALLEN_BY = 3.0  # standard errors of the difference, in each of `FOR_STEPS` steps


@dataclass(frozen=True)
class AlarmRule:
    """A symptom in one iteration's diagnostics, and what usually causes it.

    Of a ``grave`` one what is learnt from there on is worth nothing as a rule: ``on_alarm`` may end the training.
    """

    name: str
    rings: Callable[[Stats], bool]
    cause: str
    grave: bool = False


@dataclass(frozen=True)
class Trend:
    """A symptom that shows only beside earlier iterations."""

    name: str
    rings: Callable[[Stats, Earlier], bool]
    cause: str
    grave: bool = False


def _than_at_first(name: str, stats: Stats, earlier: Earlier) -> float:
    """Return a number over what it was at the first step, whose samples are the starting policy's."""
    first = earlier[0][name] if earlier else stats[name]
    return stats[name] / first if first > 0 else 1.0


def _spiked(name: str, stats: Stats, earlier: Earlier) -> bool:
    before = [row[name] for row in earlier if name in row]
    # The median, as spikes that came before must not hide the next one.
    return name in stats and len(before) >= SPIKE_AFTER and stats[name] > 10 * median(before)


def _score_fell(stats: Stats, earlier: Earlier) -> bool:
    """Whether the last steps' scores all lie beyond their error below what the starting policy had."""
    rows = [row for row in (*earlier, stats) if {"score", "score_std", "scored"} <= row.keys()]
    first, last = rows[:1], rows[1:][-FOR_STEPS:]
    if len(last) < FOR_STEPS:
        return False

    def error(row: Stats) -> float:
        return row["score_std"] / math.sqrt(max(1.0, row["scored"]))

    return all(first[0]["score"] - row["score"] > FALLEN_BY * math.hypot(error(first[0]), error(row)) for row in last)


ALARMS = (
    AlarmRule(
        "negative KL",
        lambda s: s["kl"] < -KL_STANDARD_ERRORS * s["kl_error"],
        "the distribution sampled from is not the one that is scored",
    ),
    AlarmRule(
        # trl#41: KL spikes and rewards crash together.
        "KL far above its target",
        lambda s: s["kl"] > 3 * s.get("kl_target", float("inf")),
        "the step is too large for the controller: lower the learning rate, or raise kl_coef",
        grave=True,
    ),
    AlarmRule(
        "first ratio", lambda s: abs(s["first_ratio_max"] - 1) > 0.05, "dropout, stale weights or unequal numerics"
    ),
    # In bf16 0.009 nats without an adapter and 0.014 with one are ordinary (random weights, 4 layers).
    AlarmRule("rollout drift", lambda s: s["behaviour_gap"] > 0.05, "engine and learner compute different log-probs"),
    # TRL gives up a batch whose average ratio passes 10.
    AlarmRule("ratio", lambda s: s["ratio_max"] > 10, "learning rate too high, or too many epochs on one rollout"),
    AlarmRule(
        # Healthy runs clip .01 to .1: N+ logs 0, .025, .050, .073 over four epochs.
        "clipped",
        lambda s: s.get("clip_low", 0.0) + s.get("clip_high", 0.0) > 0.3,
        "the last update went too far: lower the learning rate, or make fewer passes",
    ),
    AlarmRule(
        # The estimate then stands on three tokens of ten (verl's notes on rollout correction).
        "stale samples",
        lambda s: s.get("behaviour_ess", 1.0) < FEWEST_OWN,
        "the samples are not this policy's any more",
    ),
    # trl#6166: log-probabilities without a number came after an entropy of 4e-4 nats.
    AlarmRule("entropy", lambda s: s["entropy"] < 0.05, "the policy has collapsed to a single text", grave=True),
    AlarmRule(
        "no end", lambda s: s["eos_rate"] < 0.9, "completions are cut: raise max_new_tokens, or train SFT to end"
    ),
    AlarmRule(
        "reward cut",
        lambda s: s.get("reward_cut", 0.0) > 0.05,
        "the reward model does not read the end of completions: lower max_new_tokens, or train it with more max_tokens",
    ),
    AlarmRule(
        # Equal scores are advantages of 0: half the rollout was for nothing.
        "zero-variance groups",
        lambda s: s.get("zero_variance_groups", 0) > 0.5,
        "most prompts teach nothing: all their scores equal",
    ),
    AlarmRule("copies", lambda s: s["distinct"] < 0.5, "mode collapse: raise kl_coef, or stop earlier", grave=True),
    AlarmRule(
        "scores all alike",
        lambda s: s.get("score_std", 1.0) < SAME_SCORES,
        "the reward tells no sample from another: a saturated reward model, or a rule that nothing meets yet",
    ),
)

#: Of policy optimisation too.
TRENDS = (
    Trend(
        "stale samples twice",
        lambda s, earlier: (
            s.get("behaviour_ess", 1.0) < FEWEST_OWN
            and bool(earlier)
            and earlier[-1].get("behaviour_ess", 1.0) < FEWEST_OWN
        ),
        "whoever draws the samples is far from the policy that learns from them: rl.rollout.max_staleness=0, or "
        "scale.rollout=engine",
        grave=True,
    ),
    Trend(
        # Completions of one token made value losses of 1e10 in old TRL.
        "value loss spike",
        lambda s, earlier: _spiked("value_loss", s, earlier),
        "completions of a token or two, or scores that are not scaled",
    ),
    Trend(
        # Half longer, and it is length that is paid for: both must hold, as longer texts may simply be better.
        "length grows with the score",
        lambda s, earlier: _than_at_first("length", s, earlier) > 1.5 and s["length_correlation"] > 0.5,
        "the reward likes length, or a missing end costs too little: set length_coef or missing_eos_penalty",
        grave=True,
    ),
    Trend(
        # trl#986: ends that score high whatever stands before them, or whitened rewards.
        "length collapses",
        lambda s, earlier: _than_at_first("length", s, earlier) < 0.5,
        "ending is rewarded whatever stands before it, or each token costs: set length_coef, or lower kl_coef",
        grave=True,
    ),
    Trend(
        # Ziegler et al. 2019 turned a sign around, and trained the worst texts there are over a night.
        "score falls",
        _score_fell,
        "the policy moves away from what is rewarded: a sign is turned around, or a price outweighs the score",
    ),
    Trend(
        "entropy falls",
        lambda s, earlier: _than_at_first("entropy", s, earlier) < 0.2,
        "the policy narrows to few texts: raise kl_coef or entropy_coef, or stop earlier",
    ),
    Trend(
        # Without bound, in verl's reports, under an entropy bonus.
        "entropy rises",
        lambda s, earlier: _than_at_first("entropy", s, earlier) > 1.3,
        "the reward cannot tell texts apart, or an entropy bonus or clip-higher is too strong",
    ),
)

FEWER_BY = 2.0  # standard errors of the difference


def over_optimised(name: str, stats: Stats, earlier: Earlier) -> bool:
    """Whether a reward that is measured and not optimised has fallen from its best while the score kept rising.

    Gao, Schulman & Hilton 2022 (arXiv:2210.10760) call that over-optimisation: the proxy goes up, the gold goes down.
    """
    rows = [row for row in (*earlier, stats) if f"part_{name}" in row]
    before, last = rows[:-FOR_STEPS], rows[-FOR_STEPS:]
    if not before:
        return False
    mean, error = f"part_{name}", f"error_{name}"
    best = max(before, key=lambda row: row[mean])
    return all(
        best[mean] - row[mean] > FEWER_BY * math.hypot(best[error], row[error]) and row["score"] > best["score"]
        for row in last
    )


def watched_alarms(names: Sequence[str], stats: Stats, earlier: Earlier) -> list[dict[str, Any]]:
    """Return an alarm for each of these rewards of weight 0 that says so, as rows for ``events.jsonl``."""
    cause = (
        "the score rises and {} falls: take an earlier snapshot, more judgements for the reward model, or an ensemble"
    )
    found = [name for name in names if over_optimised(name, stats, earlier)]
    return [{"alarm": f"over-optimised by {name}", "cause": cause.format(name), "grave": True} for name in found]


#: Of direct preference. Numbers that a step does not have ring nothing.
PREFERENCE_ALARMS = (
    AlarmRule(
        # Some fall is normal: only the gap is trained. 20 nats are a likelihood lost, not a margin won.
        "chosen falls",
        lambda s: s.get("chosen_drift", 0.0) < -20,
        "the better completions lose likelihood too: raise dpo_beta, lower the learning rate, or stop earlier",
        grave=True,
    ),
    AlarmRule(
        "too easy",
        lambda s: s.get("accuracy", 0.0) == 1 and s.get("margin", 0.0) > 5,
        "overfitting, a leak, or chosen and rejected differ in form: look at the rows",
    ),
    AlarmRule(
        # Ten points: of 400 comparisons each, the difference's standard error is 3.
        "overfit",
        lambda s: s.get("train_accuracy", 0.0) - s.get("valid_accuracy", 1.0) > 0.1,
        "held-out judgements are not learnt: fewer epochs, a larger dpo_beta, or more data",
    ),
    AlarmRule(
        "ties", lambda s: s.get("ties", 0.0) > 0.5, "most prompts teach nothing: all their completions score alike"
    ),
    AlarmRule(
        "no end",
        lambda s: s.get("eos_rate", 1.0) < 0.9,
        "completions are cut: raise max_new_tokens, or train SFT to end",
    ),
    AlarmRule(
        "copies",
        lambda s: s.get("distinct", 1.0) < 0.5,
        "mode collapse: raise dpo_beta, or stop earlier",
        grave=True,
    ),
)

#: Of a reward model, when it is done.
REWARD_ALARMS = (
    AlarmRule(
        "learnt nothing",
        lambda s: s.get("ahead", 1.0) <= 0,
        "on judgements that it has learnt from it is not shown to be better than chance, and its scores are noise with "
        "the spread of scores: give more judgements, more epochs, or a higher learning rate",
    ),
    AlarmRule(
        # A thirtieth of a log-odds apart is a preference of 51 to 49.
        "scores hardly differ",
        lambda s: s["gain"] > LARGEST_GAIN,
        "raw scores of judged texts spread by less than a thirtieth, and are stretched to 1: what one text gains over "
        "another stands for next to no preference",
    ),
)


def reward_alarms(stats: Stats) -> list[dict[str, str]]:
    """Return the alarms of a reward model that ring."""
    return raised_alarms(stats, REWARD_ALARMS)


#: Told once, where a run asks for it.
NAIVE: dict[str, Any] = {
    "grave": False,
    "alarm": "k3 in the loss",
    "cause": "its gradient is that of KL(reference || policy), the other direction; rl.kl_in=loss has the right one",
}


def raised_alarms(stats: Stats, table: Sequence[AlarmRule] = ALARMS) -> list[dict[str, Any]]:
    """Return the alarms that ring, as rows for ``events.jsonl``."""
    return [_event(rule) for rule in table if rule.rings(stats)]


def raised_trends(stats: Stats, earlier: Earlier) -> list[dict[str, Any]]:
    """Return the alarms that ring in view of the steps before this one, oldest first."""
    return [_event(trend) for trend in TRENDS if trend.rings(stats, earlier)]


def _event(rule: AlarmRule | Trend) -> dict[str, Any]:
    return {"alarm": rule.name, "cause": rule.cause, "grave": rule.grave}
