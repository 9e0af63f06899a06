"""Many policies on one scale: Bradley-Terry strengths from all their comparisons, with intervals by cluster.

Shapes: P prompts, N policies, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from accord.errors import DataError
from accord.stats.intervals import FloatArray, Interval, Labels, cluster_draws, cluster_index, percentile_interval
from accord.stats.strengths import bradley_terry

# Who won every comparison lies infinitely far away; half a comparison's worth of doubt keeps it finite.
PENALTY_IF_UNBEATEN = 0.1


@dataclass(frozen=True)
class Ranked:
    """A policy's place: ``strength`` is the log-odds that it beats the first policy, ``rank`` 1 the strongest.

    ``rank_low`` and ``rank_high`` hold its rank in 95 % of the resamples.
    """

    name: str
    strength: Interval
    rank: int
    rank_low: int
    rank_high: int


def ranked_policies(
    names: tuple[str, ...],
    wins: npt.ArrayLike,
    clusters: Labels | None = None,
    *,
    level: float = 0.95,
    resamples: int = 300,
    seed: int = 0,
) -> tuple[Ranked, ...]:
    """Return policies by their Bradley-Terry strengths, the strongest first; intervals resample clusters and refit.

    Args:
        names: the N policies; strengths are told against the first.
        wins: (P, N, N) how often policy i beat policy j on a prompt, a tie half; the diagonal is 0.
        clusters: (P,) the unit of resampling; None makes each prompt its own.
    """
    win_PNN = np.asarray(wins, dtype=np.float64)
    if win_PNN.shape[1:] != (len(names), len(names)) or len(names) < 2:
        raise DataError(f"wins of shape {win_PNN.shape} for {len(names)} policies", why="expected (P, N, N), N >= 2")
    cluster_P = cluster_index(clusters, len(win_PNN))
    count = int(cluster_P.max()) + 1
    theta_N = _strengths(win_PNN.sum(0))
    draws = cluster_draws(count, resamples, seed, win_PNN.size)
    totals = (np.tensordot(count_RC[:, cluster_P].astype(np.float64), win_PNN, axes=1) for count_RC in draws)
    theta_RN = np.array([_strengths(win_NN) for total_RNN in totals for win_NN in total_RNN])
    rank_RN = _ranks(theta_RN)
    ends = np.quantile(rank_RN, [(1 - level) / 2, (1 + level) / 2], axis=0, method="nearest").astype(int)
    found = [
        Ranked(
            name,
            percentile_interval(float(theta_N[i]), theta_RN[:, i], level, len(win_PNN), count),
            int(_ranks(theta_N[None])[0, i]),
            int(ends[0, i]),
            int(ends[1, i]),
        )
        for i, name in enumerate(names)
    ]
    return tuple(sorted(found, key=lambda one: one.rank))


def prompt_wins(scores: Sequence[Sequence[FloatArray]]) -> FloatArray:
    """Return (P, N, N): which share of the samples of policy i beat those of policy j on each prompt, a tie half.

    Args:
        scores: of each of N policies, of each of P prompts, a judge's scores of its samples; their number may differ.
    """
    num_prompts = len(scores[0])
    win_PNN = np.zeros((num_prompts, len(scores), len(scores)))
    for i, j in combinations(range(len(scores)), 2):
        for p in range(num_prompts):
            lead = np.sign(scores[i][p][:, None] - scores[j][p])
            win_PNN[p, i, j] = (1 + lead.mean()) / 2
            win_PNN[p, j, i] = 1 - win_PNN[p, i, j]
    return win_PNN


def _strengths(win_NN: FloatArray) -> FloatArray:
    """Return strengths against the first policy."""
    try:
        theta_N = bradley_terry(win_NN).theta
    except DataError:
        theta_N = bradley_terry(win_NN, l2=PENALTY_IF_UNBEATEN).theta
    return np.asarray(theta_N - theta_N[0])


def _ranks(theta_RN: FloatArray) -> npt.NDArray[np.int64]:
    """Return ranks, 1 the highest; equal ones share the better rank."""
    return np.asarray(1 + (theta_RN[:, None, :] > theta_RN[:, :, None]).sum(2))
