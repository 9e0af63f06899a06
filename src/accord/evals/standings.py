"""What many policies and judges say together, out of the samples that an evaluation has scored. Torch-free.

All policies on one scale by each judge, how far judges agree, how many topics would show a difference of five points,
and how often a policy refuses.

Shapes: P prompts, K samples a prompt, N policies.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from accord.errors import DataError
from accord.stats import (
    FloatArray,
    Interval,
    Ranked,
    bootstrap_by_cluster,
    clusters_needed,
    prompt_wins,
    ranked_policies,
    share_by_cluster,
)

SEEN = 0.05  # the difference that advice is about
# How answers begin that refuse, in words of models of many makers. It counts words, not what is refused.
REFUSAL = re.compile(
    r"\b(i('m| am) (sorry|unable|not able)|i (can('|no)?t|cannot|won('|)t|will not|must decline)|i apologi[sz]e"
    r"|as an ai|not (appropriate|comfortable)|against my)\b",
    re.IGNORECASE,
)
_LOOKED_AT = 200  # characters: a refusal stands at the beginning

SampleRows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class JudgesAgree:
    """How often two judges prefer the same of a policy's and the reference's samples; one tie counts half."""

    judges: tuple[str, str]
    alike: Interval


@dataclass(frozen=True)
class Standings:
    """What all policies and judges say together.

    Attributes:
        rankings: Of each judge, all policies, the strongest first.
        agreement: Of every two judges.
        needed: Of each policy, how many topics like these show a win rate of 55 % by the first judge; None where
            nothing varies.
        have: How many topics there are.
        refusals: Of each policy, the share of completions that begin with a refusal.
    """

    rankings: Mapping[str, tuple[Ranked, ...]]
    agreement: tuple[JudgesAgree, ...]
    needed: Mapping[str, int | None]
    have: int
    refusals: Mapping[str, Interval]


def standings_of(rows: SampleRows, judges: Sequence[str], *, seed: int = 0) -> Standings:
    """Return the standings out of ``samples.jsonl``; the first policy there is the reference.

    Args:
        rows: every completion with its scores, as an evaluation writes them.
        judges: their names, the leading one first, whose score has no name in the rows.
    """
    names = tuple(dict.fromkeys(row["policy"] for row in rows))
    if len(names) < 2:
        raise DataError("there is one policy: it has no place among others")
    prompts = list(dict.fromkeys(row["prompt"] for row in rows))
    topic_of = {row["prompt"]: row["topic"] for row in rows}
    topics = [topic_of[prompt] for prompt in prompts]
    keys = {name: "judge" if i == 0 else f"judge:{name}" for i, name in enumerate(judges)}
    scores = {name: _scores(rows, names, prompts, key) for name, key in keys.items()}
    wins = {name: prompt_wins(of) for name, of in scores.items()}
    leading = wins[judges[0]]
    return Standings(
        rankings={name: ranked_policies(names, win_PNN, topics, seed=seed) for name, win_PNN in wins.items()},
        agreement=tuple(
            JudgesAgree((a, b), judges_alike(scores[a], scores[b], topics, seed=seed))
            for a, b in combinations(judges, 2)
        ),
        needed={name: clusters_needed(leading[:, i, 0], topics, difference=SEEN) for i, name in enumerate(names) if i},
        have=len(set(topics)),
        refusals={name: refusal_share([row for row in rows if row["policy"] == name], seed=seed) for name in names},
    )


def refusal_share(rows: SampleRows, *, seed: int = 0) -> Interval:
    """Return the share of completions that begin with a refusal; interval by topic."""
    return share_by_cluster(
        [float(refuses(row["completion"])) for row in rows], [row["topic"] for row in rows], seed=seed
    )


def refuses(completion: str) -> bool:
    """Return whether a completion begins with words of refusal; what it refuses, nobody has looked at."""
    return REFUSAL.search(completion[:_LOOKED_AT].replace("\u2019", "'")) is not None


def _scores(rows: SampleRows, names: Sequence[str], prompts: Sequence[str], key: str) -> list[list[FloatArray]]:
    """Return the scores of each policy's samples, by policy and prompt; best-of-n may have fewer a prompt."""
    place = {prompt: i for i, prompt in enumerate(prompts)}
    found: dict[str, list[list[float]]] = {name: [[] for _ in prompts] for name in names}
    for row in rows:
        found[row["policy"]][place[row["prompt"]]].append(float(row[key]))
    return [[np.array(one) for one in found[name]] for name in names]


def judges_alike(
    first: Sequence[Sequence[FloatArray]],
    second: Sequence[Sequence[FloatArray]],
    topics: Sequence[str],
    *,
    seed: int = 0,
) -> Interval:
    """Return how often two judges order a sample of a policy and one of the reference alike; interval by topic."""
    alike = [
        float(np.mean([(1 + _lead(first, i, p) * _lead(second, i, p)) / 2 for i in range(1, len(first))]))
        for p in range(len(topics))
    ]
    return bootstrap_by_cluster(alike, topics, seed=seed)


def _lead(scores: Sequence[Sequence[FloatArray]], policy: int, prompt: int) -> FloatArray:
    return np.asarray(np.sign(scores[policy][prompt][:, None] - scores[0][prompt]))
