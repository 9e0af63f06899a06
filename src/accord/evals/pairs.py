"""Pairs of completions that people ordered and nothing was trained on, and how often scores order them alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from accord.errors import DataError
from accord.records import RankedGroup
from accord.stats import FloatArray, IntArray, Interval, paired_difference, share_by_cluster

_Item = TypeVar("_Item")

RATING_EDGES = (1.0, 2.0, 3.0, 4.0, 8.0)  # rating points, on a scale that is 8 points long
MAX_BASELINE_PAIRS = 40_000  # more are drawn down to this number: a baseline fits them within seconds


@dataclass(frozen=True)
class RatedCompletion:
    """A completion with people's mean rating. ``label`` is a coarse verdict on it, such as good or bad, if there is."""

    prompt: str
    completion: str
    topic: str
    rating: float
    label: str = ""


@dataclass(frozen=True, eq=False)
class OrderedPairs:
    """N pairs of completions that people ordered; ``better`` and ``worse`` (N,) index the texts.

    ``gap`` (N,) says how far apart people hold them, ``topics`` (N,) what is resampled. ``parts`` are pairs of special
    interest by name, as masks (N,). ``groups`` (N,) is the place of the ranked group that each pair is of; empty where
    pairs come from ratings.
    """

    better: IntArray
    worse: IntArray
    topics: npt.NDArray[np.str_]
    gap: FloatArray
    parts: Mapping[str, npt.NDArray[np.bool_]] = field(default_factory=dict)
    groups: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.better)

    def where(self, mask: npt.NDArray[np.bool_]) -> OrderedPairs:
        """Return the pairs for which ``mask`` (N,) is True."""
        parts = {name: part[mask] for name, part in self.parts.items()}
        groups = self.groups[mask] if len(self.groups) else self.groups
        return OrderedPairs(self.better[mask], self.worse[mask], self.topics[mask], self.gap[mask], parts, groups)

    def margins(self, scores: npt.ArrayLike) -> FloatArray:
        """(N,) score of the better text minus that of the worse; positive = ordered as people did."""
        score_M = np.asarray(scores, dtype=np.float64)
        if score_M.ndim != 1 or not np.isfinite(score_M).all():
            raise DataError(f"scores of shape {score_M.shape}", why="expected one finite score per text")
        if len(self) and len(score_M) <= max(self.better.max(), self.worse.max()):
            raise DataError(
                f"{len(score_M)} scores", why="the pairs index more texts", hint="score all texts, in order"
            )
        return np.asarray(score_M[self.better] - score_M[self.worse])


@dataclass(frozen=True, eq=False)
class HeldOutPairs:
    """M completions that nothing was trained on, and ordered pairs of them.

    ``gap_unit`` is what gaps are counted in, ``gap_edges`` where accuracy is told apart by them.
    """

    texts: tuple[tuple[str, str], ...]
    pairs: OrderedPairs
    gap_unit: str
    gap_edges: tuple[float, ...]

    @property
    def completions(self) -> list[str]:
        """The completions without their prompts."""
        return [completion for _, completion in self.texts]


def rated_pairs(rated: Sequence[RatedCompletion], min_gap: float = 1.0) -> HeldOutPairs:
    """Return all pairs of completions of one prompt whose mean ratings lie more than ``min_gap`` points apart.

    Where texts have labels, the part "same_verdict" holds the pairs of one label: the label alone cannot order them.
    """
    by_prompt: dict[str, list[int]] = {}
    for i, text in enumerate(rated):
        by_prompt.setdefault(text.prompt, []).append(i)
    found = [
        (a, b)
        for members in by_prompt.values()
        for a in members
        for b in members
        if rated[a].rating - rated[b].rating > min_gap
    ]
    if not found:
        raise DataError(f"no two texts of one prompt lie more than {min_gap} apart", hint="hold out more topics")
    same = np.array([rated[a].label == rated[b].label for a, b in found])
    pairs = OrderedPairs(
        better=np.array([a for a, _ in found], dtype=np.int64),
        worse=np.array([b for _, b in found], dtype=np.int64),
        topics=np.array([rated[a].topic for a, _ in found]),
        gap=np.array([rated[a].rating - rated[b].rating for a, b in found]),
        parts={"same_verdict": same} if any(text.label for text in rated) else {},
    )
    return HeldOutPairs(tuple((t.prompt, t.completion) for t in rated), pairs, "rating points", RATING_EDGES)


def ranked_pairs(groups: Sequence[RankedGroup], max_pairs: int = MAX_BASELINE_PAIRS, seed: int = 0) -> HeldOutPairs:
    """Return all strictly ordered pairs of ranked groups, or ``max_pairs`` of them drawn by ``seed``.

    A gap counts ranks.

    A group without a topic is a topic of its own prompt.
    """
    texts: dict[tuple[str, str], int] = {}
    found: list[tuple[int, int, str, float, int]] = []
    for place, group in enumerate(groups):
        number = [texts.setdefault((group.prompt, text), len(texts)) for text in group.completions]
        ranks = [sorted(set(group.ranks)).index(rank) for rank in group.ranks]
        found += [
            (number[a], number[b], group.topic or group.prompt, float(ranks[b] - ranks[a]), place)
            for a in range(len(ranks))
            for b in range(len(ranks))
            if ranks[a] < ranks[b]
        ]
    if not found:
        raise DataError("the ranked groups hold no ordered pair", why="every completion is tied with the others")
    better, worse, topics, gap, places = zip(*some_of(found, max_pairs, seed), strict=True)
    pairs = OrderedPairs(
        np.array(better), np.array(worse), np.array(topics), np.array(gap), groups=np.array(places, dtype=np.int64)
    )
    edges = (0.0, *(float(edge) for edge in range(1, 5)), math.inf)
    return HeldOutPairs(tuple(texts), pairs, "ranks", edges)


def some_of(items: Sequence[_Item], most: int, seed: int) -> Sequence[_Item]:
    """Return all of them, or so many drawn by the seed, in their order."""
    if len(items) <= most:
        return items
    kept = np.sort(np.random.default_rng(seed).choice(len(items), most, replace=False))
    return [items[i] for i in kept]


def pair_hits(scores: npt.ArrayLike, pairs: OrderedPairs) -> FloatArray:
    """(N,) 1 where the scores order the pair as people did, a half for a tie, 0 else."""
    return np.asarray((np.sign(pairs.margins(scores)) + 1) / 2)


def pair_accuracy(scores: npt.ArrayLike, pairs: OrderedPairs, *, seed: int = 0) -> Interval:
    """Share of pairs that the scores (one per text) order as people did; interval by topic."""
    return share_by_cluster(pair_hits(scores, pairs), pairs.topics, seed=seed)


def accuracy_difference(
    scores_a: npt.ArrayLike, scores_b: npt.ArrayLike, pairs: OrderedPairs, *, seed: int = 0
) -> Interval:
    """Accuracy of a minus that of b on the same pairs; interval by topic."""
    return paired_difference(pair_hits(scores_a, pairs), pair_hits(scores_b, pairs), pairs.topics, seed=seed)
