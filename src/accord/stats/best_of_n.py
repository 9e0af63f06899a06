"""Best of n: how far it goes from its base, and what it gains."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from accord.errors import DataError
from accord.stats.intervals import FloatArray, Interval, Labels, bootstrap_by_cluster
from accord.stats.win_rates import same_prompts


def best_of_n_kl_bound(n: int) -> float:
    """Return log n - (n - 1) / n, which KL(best-of-n || base) in nats does not exceed (Beirami 2024).

    For continuous scores it is that KL.
    """
    if n < 1:
        raise DataError(f"best of {n}", why="n starts at 1")
    return math.log(n) - (n - 1) / n


def best_of_n_scores(gold: npt.ArrayLike, proxy: npt.ArrayLike, n: int) -> FloatArray:
    """Return the (P,) expected gold score of the sample that the proxy likes best of n, over all subsets of the N.

    Unbiased for any N >= n (Nakano et al. 2021, WebGPT appendix I): the sample of proxy rank i (1 = worst) is the best
    of a random subset with chance C(i - 1, n - 1) / C(N, n). Proxy ties are broken at random, in expectation.

    Args:
        gold, proxy: (P, N) scores of the same N samples of each prompt.
    """
    gold_PN, proxy_PN = same_prompts(gold, proxy)
    size = proxy_PN.shape[1]
    if gold_PN.shape != proxy_PN.shape or not 1 <= n <= size:
        raise DataError(
            f"best of {n} among samples {gold_PN.shape}, proxy {proxy_PN.shape}", hint="n must not exceed N"
        )
    chance_N = np.array([math.comb(i, n - 1) for i in range(size)], dtype=np.float64) / math.comb(size, n)
    below_N = np.concatenate([[0.0], np.cumsum(chance_N)])
    ordered_PN = np.sort(proxy_PN, axis=1)
    expected_P = np.empty(len(gold_PN))
    for p, (gold_N, row_N, sorted_N) in enumerate(zip(gold_PN, proxy_PN, ordered_PN, strict=True)):
        first, last = np.searchsorted(sorted_N, row_N, "left"), np.searchsorted(sorted_N, row_N, "right")
        # Of equal proxies each is as likely to be taken: the chances of their ranks, shared.
        expected_P[p] = ((below_N[last] - below_N[first]) / (last - first)) @ gold_N
    return expected_P


def best_of_n_curve(
    gold: npt.ArrayLike,
    proxy: npt.ArrayLike,
    ns: Sequence[int],
    clusters: Labels | None = None,
    *,
    level: float = 0.95,
    seed: int = 0,
) -> list[Interval]:
    """Return the expected gold score of best-of-n by the proxy for each n, meaned over prompts, intervals by cluster.

    Pass the proxy as gold too to see what the proxy itself claims.
    """
    return [bootstrap_by_cluster(best_of_n_scores(gold, proxy, n), clusters, level=level, seed=seed) for n in ns]
