"""How pages call policies. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ABBREVIATIONS = {
    "sft", "ppo", "rloo", "grpo", "dapo", "raft", "dpo", "cdpo", "ipo", "kto", "orpo", "kl", "lm", "rl", "nll",
}  # fmt: skip
SPECIAL = {
    "tfidf_bradley_terry": "TF-IDF Bradley-Terry",
    "tfidf_all_human_rankings": "TF-IDF, all human rankings",
    "longer_wins": "Longer wins",
    "simpo": "SimPO",
}


def title_of(name: str) -> str:
    """A name as a person would write it: ``dr_grpo`` is "Dr GRPO", ``best_of_4`` "Best of 4"."""
    if name in SPECIAL:
        return SPECIAL[name]
    if name != name.lower():  # whoever wrote it has chosen its capitals
        return name
    words = [word.upper() if word in ABBREVIATIONS else word for word in name.replace("_", " ").split(" ")]
    text = " ".join(words)
    return text[:1].upper() + text[1:]


def policy_title(row: Mapping[str, Any]) -> str:
    """How pages call the policy of a row of measures."""
    return f"Best of {row['best_of']}" if row["name"] == "best_of_n" else title_of(str(row["name"]))


def style_of(row: Mapping[str, Any]) -> str:
    """The class of the style sheet that draws a policy: what it is, not how it is called."""
    return "best_of_n" if row["best_of"] > 1 and row["role"] != "candidate" else str(row["role"])


@dataclass(frozen=True)
class Names:
    """The two names that a page's sentences are about."""

    reference: str = "the start"
    candidate: str = "the policy"

    @classmethod
    def of(cls, results: Mapping[str, Any]) -> Names:
        """Those of ``eval/results.json``; plain words where it says none."""
        found = {key: results.get(key) for key in ("reference", "candidate")}
        return cls(**{key: title_of(name) for key, name in found.items() if isinstance(name, str) and name})

    def fill(self, text: str) -> str:
        """A text with its places for the two names filled."""
        return text.replace("{reference}", self.reference).replace("{candidate}", self.candidate)
