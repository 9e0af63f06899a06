"""Alarms of policy optimisation and direct preference: each names the symptom and its likely cause."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Alarm:
    """A symptom in one iteration's diagnostics, and what usually causes it."""

    name: str
    rings: Callable[[Mapping[str, float]], bool]
    cause: str


ALARMS = (
    Alarm("negative KL", lambda s: s["kl"] < -1.0, "the law sampled from is not the law that is scored"),
    Alarm("first ratio", lambda s: abs(s["first_ratio_max"] - 1) > 0.05, "dropout, stale weights or unequal numerics"),
    Alarm("rollout drift", lambda s: s["behaviour_gap"] > 0.05, "engine and learner compute different log-probs"),
    Alarm("ratio", lambda s: s["ratio_max"] > 10, "learning rate too high, or too many epochs on one rollout"),
    Alarm(
        "clipped",
        lambda s: s.get("clip_low", 0.0) + s.get("clip_high", 0.0) > 0.3,
        "the last update went too far: lower the learning rate, or make fewer passes",
    ),
    Alarm("stale samples", lambda s: s.get("behaviour_ess", 1.0) < 0.3, "the samples are not this policy's any more"),
    Alarm("entropy", lambda s: s["entropy"] < 0.05, "the policy has collapsed to a single text"),
    Alarm("no end", lambda s: s["eos_rate"] < 0.9, "completions are cut: raise max_new_tokens, or train SFT to end"),
    Alarm("flat groups", lambda s: s.get("flat_groups", 0) > 0.5, "most prompts teach nothing: all their scores equal"),
    Alarm("copies", lambda s: s["distinct"] < 0.5, "mode collapse: raise kl_coef, or stop earlier"),
)

#: Of direct preference. Numbers that a step does not have ring nothing.
PREFERENCE_ALARMS = (
    Alarm(
        "chosen falls",
        lambda s: s.get("chosen_drift", 0.0) < -20,
        "the better completions lose likelihood too: raise dpo_beta, lower the learning rate, or stop earlier",
    ),
    Alarm(
        "too easy",
        lambda s: s.get("accuracy", 0.0) == 1 and s.get("margin", 0.0) > 5,
        "overfitting, a leak, or chosen and rejected differ in form: look at the rows",
    ),
    Alarm(
        "overfit",
        lambda s: s.get("train_accuracy", 0.0) - s.get("valid_accuracy", 1.0) > 0.1,
        "held-out judgements are not learnt: fewer epochs, a larger dpo_beta, or more data",
    ),
    Alarm("ties", lambda s: s.get("ties", 0.0) > 0.5, "most prompts teach nothing: all their completions score alike"),
    Alarm(
        "no end",
        lambda s: s.get("eos_rate", 1.0) < 0.9,
        "completions are cut: raise max_new_tokens, or train SFT to end",
    ),
    Alarm("copies", lambda s: s.get("distinct", 1.0) < 0.5, "mode collapse: raise dpo_beta, or stop earlier"),
)

#: Told once, where a run asks for it.
NAIVE = {
    "alarm": "k3 in the loss",
    "cause": "its gradient is that of KL(reference || policy), the other direction; rl.kl_in=loss has the right one",
}


def alarms(stats: Mapping[str, float], table: Sequence[Alarm] = ALARMS) -> list[dict[str, str]]:
    """The alarms that ring, as rows for ``events.jsonl``."""
    return [{"alarm": a.name, "cause": a.cause} for a in table if a.rings(stats)]
