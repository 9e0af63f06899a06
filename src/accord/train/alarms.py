"""Alarms of policy optimisation: each names the symptom and its likely cause."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
    Alarm("entropy", lambda s: s["entropy"] < 0.05, "the policy has collapsed to a single text"),
    Alarm("no end", lambda s: s["eos_rate"] < 0.9, "completions are cut: raise max_new_tokens, or train SFT to end"),
    Alarm("flat groups", lambda s: s.get("flat_groups", 0) > 0.5, "most prompts teach nothing: all their scores equal"),
    Alarm("copies", lambda s: s["distinct"] < 0.5, "mode collapse: raise kl_coef, or stop earlier"),
)


#: Told once, where a run asks for it.
NAIVE = {
    "alarm": "k3 in the loss",
    "cause": "its gradient is that of KL(reference || policy), the other direction; rl.kl_in=loss has the right one",
}


def alarms(stats: Mapping[str, float]) -> list[dict[str, str]]:
    """The alarms that ring, as rows for ``events.jsonl``."""
    return [{"alarm": a.name, "cause": a.cause} for a in ALARMS if a.rings(stats)]
