"""How many comparisons a judge needs before its win rate can say anything."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from accord.errors import DataError
from accord.stats.intervals import Labels, cluster_index, vector

#: The least win rate that is worth asking for: 85 pairs show it with a chance of 80 %, as many as three colleagues
#: judge in half an hour. .6 would take 194.
WORTH_SEEING = 0.65


def pairs_needed(win_rate: float, *, ties: float = 0.0, power: float = 0.8, level: float = 0.95) -> int:
    """Return how many independent pairs show with chance ``power`` that a true win rate is not one half.

    n = ((z_a s_0 + z_b s_1) / (p - 1/2))^2, rounded up, for the two-sided test of ``level`` on the mean of outcomes 1,
    1/2 (a tie) and 0. With a share t of ties their variance is (1 - t) / 4 where p is one half, and p (1 - p) - t / 4
    at p (Fleiss, Levin & Paik 2003, section 4.1, where t = 0).

    Args:
        win_rate: the true one, ties counted half; not one half.
        ties: share of pairs that tie.

    Raises:
        DataError: no number of pairs shows it, or there can be no such win rate with so many ties.
    """
    if not 0 <= ties < 1 or not ties / 2 <= win_rate <= 1 - ties / 2 or win_rate == 0.5:
        raise DataError(
            f"a win rate of {win_rate:g} with a share of {ties:g} ties", why="ties count half, and one half is no win"
        )
    z_level, z_power = NormalDist().inv_cdf((1 + level) / 2), NormalDist().inv_cdf(power)
    even, true = math.sqrt((1 - ties) / 4), math.sqrt(max(0.0, win_rate * (1 - win_rate) - ties / 4))
    return math.ceil(((z_level * even + z_power * true) / (win_rate - 0.5)) ** 2)


def clusters_needed(
    shares: npt.ArrayLike,
    clusters: Labels | None = None,
    *,
    difference: float = 0.05,
    power: float = 0.8,
    level: float = 0.95,
) -> int | None:
    """Return how many clusters like these show a win rate so far from one half; None where nothing varies.

    n = ((z_a + z_b) s / difference)^2, rounded up, with s the standard deviation of the clusters' mean shares: what is
    alike within a cluster, and how many samples a prompt has, is in it already.

    Args:
        shares: (N,) how much of its comparisons each prompt won.
        clusters: (N,) the unit that is independent; None makes each prompt its own.
    """
    share_N = vector(shares, "shares")
    cluster_N = cluster_index(clusters, len(share_N))
    means = np.bincount(cluster_N, share_N) / np.bincount(cluster_N)
    if len(means) < 2 or not means.std(ddof=1):
        return None
    z = NormalDist().inv_cdf((1 + level) / 2) + NormalDist().inv_cdf(power)
    return math.ceil(float((z * means.std(ddof=1) / difference) ** 2))
