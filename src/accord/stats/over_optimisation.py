"""How gold, what is truly wanted, goes with the distance from the start while a proxy of it is optimised.

Gao, Schulman & Hilton 2022 (arXiv:2210.10760, eq. 1) found that with d = sqrt(KL) and gold measured from the start's

    best of n:  R(d) = d (alpha - beta d)        peak at d = alpha / (2 beta)
    RL:         R(d) = d (alpha - beta log d)    peak at d = exp(alpha / beta - 1)

Both are linear in alpha and beta: ordinary least squares finds them.

Shapes: D distances, P prompts, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from accord.errors import DataError
from accord.stats.intervals import (
    Estimate,
    FloatArray,
    Interval,
    Labels,
    Unknown,
    cluster_draws,
    cluster_index,
    percentile_interval,
)

GoldSays = Literal["peaks", "still rises", "not shown"]
LEAST_DISTANCES = 3  # two coefficients: of two distances every law fits


@dataclass(frozen=True)
class Law:
    """One of the two laws: what beta weighs, and where the law peaks, as a distance d."""

    formula: str
    weighed: Callable[[FloatArray], FloatArray]
    peak: Callable[[FloatArray, FloatArray], FloatArray]


def _parabola_peak(alpha: FloatArray, beta: FloatArray) -> FloatArray:
    return np.asarray(alpha / (2 * beta))


def _log_peak(alpha: FloatArray, beta: FloatArray) -> FloatArray:
    # Beyond e^50 nats nobody optimises, and larger exponents overflow.
    return np.exp(np.minimum(alpha / beta - 1, 50.0))


GOLD_LAWS: Mapping[str, Law] = {
    "best_of_n": Law("d (alpha - beta d)", lambda d: d, _parabola_peak),
    "rl": Law("d (alpha - beta log d)", np.log, _log_peak),
}


@dataclass(frozen=True)
class GoldLaw:
    """A law that was fitted, and what it says of the peak.

    ``peak_kl`` is the KL in nats at which gold is highest by the law, ``peak_gold`` its height there above the start.
    ``says`` is "peaks" where beta is shown to be positive and the whole interval of the peak lies at distances that
    were measured, "still rises" where the peak is shown to lie beyond them, or not to be; else it is "not shown".
    ``residual`` is the root mean square of what the law leaves unexplained.
    """

    law: str
    alpha: Interval
    beta: Interval
    peak_kl: Estimate
    peak_gold: Estimate
    largest_kl: float
    says: GoldSays
    residual: float

    def at(self, kl: float) -> float:
        """Return gold above the start's at a KL above 0, by the law."""
        d = np.sqrt(np.array([kl]))
        return float((d * (self.alpha.value - self.beta.value * GOLD_LAWS[self.law].weighed(d)))[0])


def fit_gold_law(
    law: str,
    gold: npt.ArrayLike,
    kl: npt.ArrayLike,
    clusters: Labels | None = None,
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> GoldLaw:
    """Fit a law of over-optimisation; intervals resample clusters of prompts, and refit.

    Args:
        law: a name of `GOLD_LAWS`.
        gold: (D, P) gold score at each distance on each prompt, minus the start's on the same prompt.
        kl: (D, P) KL from the start in nats as measured on each prompt, or (D,) where it is known. Distances that come
            out at 0 or below say nothing and are left out.
        clusters: (P,) the unit of resampling; None makes each prompt its own.

    Raises:
        DataError: fewer than three distances.
    """
    gold_DP = np.asarray(gold, dtype=np.float64)
    kl_DP = np.asarray(kl, dtype=np.float64)
    kl_DP = np.repeat(kl_DP[:, None], gold_DP.shape[1], axis=1) if kl_DP.ndim == 1 else kl_DP
    if gold_DP.ndim != 2 or gold_DP.shape != kl_DP.shape or not np.isfinite([gold_DP, kl_DP]).all():
        raise DataError(f"gold of shape {gold_DP.shape} for KL of shape {kl_DP.shape}", why="expected (D, P), finite")
    cluster_P = cluster_index(clusters, gold_DP.shape[1])
    count = int(cluster_P.max()) + 1
    far = kl_DP.mean(1) > 0
    if far.sum() < LEAST_DISTANCES:
        raise DataError(
            f"{far.sum()} distances from the start", why=f"a law needs {LEAST_DISTANCES}", hint="measure more"
        )
    gold_DP, kl_DP = gold_DP[far], kl_DP[far]
    (alpha,), (beta,) = _coefficients(GOLD_LAWS[law], gold_DP.mean(1)[None], kl_DP.mean(1)[None])
    drawn = [
        _coefficients(GOLD_LAWS[law], *(_means(values, count_RC[:, cluster_P]) for values in (gold_DP, kl_DP)))
        for count_RC in cluster_draws(count, resamples, seed, gold_DP.size)
    ]
    drawn_R2 = np.concatenate([np.stack(pair, axis=1) for pair in drawn])
    return _law_of(
        law, np.array([alpha, beta]), drawn_R2, (gold_DP.mean(1), kl_DP.mean(1)), (level, gold_DP.shape[1], count)
    )


def _means(values_DP: FloatArray, weight_RP: npt.NDArray[np.int64]) -> FloatArray:
    return np.asarray(weight_RP @ values_DP.T / weight_RP.sum(1, keepdims=True))


def _coefficients(law: Law, gold_RD: FloatArray, kl_RD: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return alpha and beta (R,) of R least-squares fits of gold to d alpha - d weighed(d) beta."""
    # A resample whose KL comes out at 0 or below stands at a distance that no longer matters, not at none.
    d_RD = np.sqrt(np.maximum(kl_RD, 1e-12))
    design_RD2 = np.stack([d_RD, -d_RD * law.weighed(d_RD)], axis=2)
    solved_R2 = np.einsum("rdk,rd->rk", np.linalg.pinv(design_RD2).transpose(0, 2, 1), gold_RD)
    return solved_R2[:, 0], solved_R2[:, 1]


def _law_of(
    name: str,
    fitted: FloatArray,
    drawn_R2: FloatArray,
    means: tuple[FloatArray, FloatArray],
    counted: tuple[float, int, int],
) -> GoldLaw:
    law, (gold_D, kl_D), (level, prompts, clusters) = GOLD_LAWS[name], means, counted

    def interval(value: float, values_R: FloatArray) -> Interval:
        return percentile_interval(value, values_R, level, prompts, clusters)

    alpha, beta = (interval(float(fitted[i]), drawn_R2[:, i]) for i in (0, 1))
    d_D = np.sqrt(kl_D)
    residual_D = gold_D - d_D * (fitted[0] - fitted[1] * law.weighed(d_D))
    peak = _peak(law, fitted[None])[0]
    kl_R = _peak(law, drawn_R2)
    known = np.isfinite(peak[0])
    why = Unknown("by the law gold rises without end: beta is not above 0")
    peak_kl = interval(float(peak[0]), kl_R[:, 0]) if known else why
    peak_gold = interval(float(peak[1]), kl_R[:, 1]) if known else why
    largest = float(kl_D.max())
    says = _says(beta, peak_kl, largest)
    return GoldLaw(name, alpha, beta, peak_kl, peak_gold, largest, says, float(np.sqrt(np.mean(residual_D**2))))


def _peak(law: Law, fitted_R2: FloatArray) -> FloatArray:
    """Return (R, 2) KL and gold at the peak: infinite where beta is not above 0, and 0 where gold falls at once."""
    alpha_R, beta_R = fitted_R2[:, 0], fitted_R2[:, 1]
    safe_R = np.where(beta_R > 0, beta_R, 1.0)
    d_R = np.maximum(law.peak(alpha_R, safe_R), 0.0)
    gold_R = d_R * (alpha_R - safe_R * law.weighed(np.maximum(d_R, 1e-12)))
    inside = (beta_R > 0)[:, None]
    return np.where(inside, np.stack([d_R**2, gold_R], axis=1), np.inf)


def _says(beta: Interval, peak_kl: Estimate, largest_kl: float) -> GoldSays:
    if np.isnan(beta.low):
        return "not shown"
    if isinstance(peak_kl, Unknown):
        return "still rises" if beta.high < 0 else "not shown"
    if beta.low > 0 and peak_kl.high <= largest_kl:
        return "peaks"
    return "still rises" if peak_kl.low > largest_kl else "not shown"
