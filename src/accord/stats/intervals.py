"""Estimates with their uncertainty: the interval, the bootstrap by cluster, Wilson's interval.

Prompts about one film (or by one person) are not independent, so resampling draws whole *clusters*, never single items.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from accord.errors import DataError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Labels = Sequence[Hashable] | npt.NDArray[Any]

MAX_CELLS = 4_000_000  # largest matrix a resampling step holds at once: 32 MB of float64


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval: ``n`` items in ``clusters`` groups. Fewer than two groups give no interval.

    ``low`` and ``high`` are NaN where no interval can be stated, and infinite where it has no end; ``to_json`` writes
    both as null.
    """

    value: float
    low: float
    high: float
    n: int
    clusters: int

    @property
    def has_no_width(self) -> bool:
        """Every resample said the same; False where no interval is stated."""
        return self.high - self.low < 1e-9

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.value:.3f} [no interval from {self.clusters} cluster]"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def to_json(self) -> dict[str, float | int | None]:
        low, high = (bound if math.isfinite(bound) else None for bound in (self.low, self.high))
        return {"value": self.value, "low": low, "high": high, "n": self.n, "clusters": self.clusters}


@dataclass(frozen=True)
class Unknown:
    """A number that cannot be stated, and why: shown in its place."""

    why: str

    def __str__(self) -> str:
        return f"unknown: {self.why}"

    def to_json(self) -> dict[str, str | None]:
        return {"value": None, "why": self.why}


Estimate = Interval | Unknown


def bootstrap_by_cluster(
    values: npt.ArrayLike,
    clusters: Labels | None = None,
    *,
    weights: npt.ArrayLike | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return the (weighted) mean of items with a percentile bootstrap interval that resamples whole clusters.

    Args:
        values: (N,) one number per item.
        clusters: (N,) label of each item's cluster (the film); None makes each item its own cluster.
        weights: (N,) non-negative; None counts every item once.
        level: coverage of the interval.

    Cameron, Gelbach & Miller 2008 (pairs cluster bootstrap). With fewer than about 20 clusters it is too narrow.
    """
    value_N = vector(values, "values")
    weight_N = np.ones(len(value_N)) if weights is None else vector(weights, "weights", len(value_N))
    cluster_N = cluster_index(clusters, len(value_N))
    counted = weight_N > 0
    if not counted.any() or (weight_N < 0).any():
        raise DataError("a mean needs weights that are not negative, and one above zero")
    cluster_N = np.unique(cluster_N[counted], return_inverse=True)[1]
    weight_C = np.bincount(cluster_N, weight_N[counted])
    sum_C = np.bincount(cluster_N, (weight_N * value_N)[counted])
    means = [
        (count_RC @ sum_C) / (count_RC @ weight_C)
        for count_RC in cluster_draws(len(sum_C), resamples, seed, len(sum_C))
    ]
    value = float(sum_C.sum() / weight_C.sum())
    return percentile_interval(value, np.concatenate(means), level, int(counted.sum()), len(sum_C))


def share_by_cluster(
    shares: npt.ArrayLike,
    clusters: Labels | None = None,
    *,
    weights: npt.ArrayLike | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return `bootstrap_by_cluster` of shares, 0 to 1.

    Where all clusters are alike, Wilson's interval of so many trials.

    A resample of six ones is six ones again: the bootstrap would be sure of what six cases cannot show. Of K clusters
    that are all 1 Wilson's interval is [K / (K + z^2), 1]; at 95 % its lower end is 1 - 3.84 / K for large K, near the
    rule of three (Hanley & Lippman-Hand 1983, JAMA 249:1743).
    """
    found = bootstrap_by_cluster(shares, clusters, weights=weights, level=level, resamples=resamples, seed=seed)
    if not found.has_no_width:
        return found
    bounds = wilson(found.value * found.clusters, found.clusters, level)
    return replace(found, low=bounds.low, high=bounds.high)


def paired_difference(
    values_a: npt.ArrayLike,
    values_b: npt.ArrayLike,
    clusters: Labels | None = None,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return the mean of a - b over the same items, interval by cluster: is a better than b on these very pairs?"""
    a_N = vector(values_a, "values_a")
    difference_N = a_N - vector(values_b, "values_b", len(a_N))
    return bootstrap_by_cluster(difference_N, clusters, level=level, resamples=resamples, seed=seed)


def share_of_pairs(
    right_NN: npt.ArrayLike, counted_NN: npt.ArrayLike, clusters: Labels | None = None, *, seed: int = 0
) -> Interval:
    """Return the share of pairs of items that are in order, with a 95 % interval that resamples whole clusters.

    Each item stands in many pairs, so pairs are no trials: a resample counts a pair as often as both its items are
    drawn, times each other.

    Args:
        right_NN: (N, N) 1 where items i and j are in order, 0.5 for a tie.
        counted_NN: (N, N) how much the pair counts.
        clusters: (N,) label of each item's cluster; None makes each item its own.
    """
    counted = np.asarray(counted_NN, dtype=np.float64)
    right = np.asarray(right_NN, dtype=np.float64) * counted
    cluster_N = cluster_index(clusters, len(counted))
    member_CN = np.eye(cluster_N.max() + 1)[:, cluster_N]
    right_CC, counted_CC = (member_CN @ pairs @ member_CN.T for pairs in (right, counted))
    draws = []
    for count_RC in cluster_draws(len(member_CN), 500, seed, len(member_CN)):
        total_R = ((count_RC @ counted_CC) * count_RC).sum(1)
        inside_R = total_R > 0
        draws.append(((count_RC @ right_CC) * count_RC).sum(1)[inside_R] / total_R[inside_R])
    value = float(right.sum() / counted.sum())
    return percentile_interval(value, np.concatenate(draws), 0.95, len(counted), len(member_CN))


def wilson(successes: float, n: float, level: float = 0.95) -> Interval:
    """Return a share of independent trials with Wilson's score interval (Wilson 1927).

    Half successes (ties) may be given, and a number of trials that is not whole (an effective one).
    """
    if n <= 0 or not 0 <= successes <= n:
        raise DataError(f"{successes} successes of {n} trials", why="a share needs 0 <= successes <= n and n > 0")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, scale = successes / n, 1 + z * z / n
    # Not share +- z * error: of 6 successes in 6 that would be sure of 1.
    centre = (share + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half), round(n), round(n))


def vector(values: npt.ArrayLike, name: str, length: int | None = None) -> FloatArray:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or len(vector) == 0 or (length is not None and len(vector) != length):
        raise DataError(
            f"{name} has shape {vector.shape}", why=f"expected ({'N' if length is None else length},), N > 0"
        )
    if not np.isfinite(vector).all():
        raise DataError(f"{name} holds NaN or infinity", hint="leave the item out, or mend what scored it")
    return vector


def cluster_index(clusters: Labels | None, n: int) -> IntArray:
    """Return labels as integers 0..C-1."""
    if clusters is None:
        return np.arange(n)
    if len(clusters) != n:
        raise DataError(f"{len(clusters)} cluster labels for {n} items", hint="give one label per item")
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(label, len(numbers)) for label in clusters], dtype=np.int64)


def cluster_draws(num_clusters: int, resamples: int, seed: int, width: int) -> Iterator[IntArray]:
    """Yield how often each cluster is drawn, (r, C) at a time.

    The draws do not depend on how they are cut into chunks.
    """
    # Counts of clusters by one multinomial a resample: means then are one matrix product, not a loop.
    rng = np.random.default_rng(seed)
    share = np.full(num_clusters, 1 / num_clusters)
    step = max(1, MAX_CELLS // width)
    for done in range(0, resamples, step):
        yield rng.multinomial(num_clusters, share, size=min(step, resamples - done))


def percentile_interval(value: float, draws_R: FloatArray, level: float, n: int, clusters: int) -> Interval:
    # One cluster is the same in every resample: its interval would have no width, and say that nothing is uncertain.
    if clusters < 2:
        return Interval(value, math.nan, math.nan, n, clusters)
    # Between infinite draws nothing can be interpolated: the outer one then.
    methods: tuple[Any, Any] = ("linear", "linear") if np.isfinite(draws_R).all() else ("lower", "higher")
    low, high = (
        np.quantile(draws_R, at, method=how)
        for at, how in zip(((1 - level) / 2, (1 + level) / 2), methods, strict=True)
    )
    return Interval(value, float(low), float(high), n, clusters)


def sigmoid(x: FloatArray) -> FloatArray:
    # 1 / (1 + e^-x), without overflow on either side.
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)), dtype=np.float64)
