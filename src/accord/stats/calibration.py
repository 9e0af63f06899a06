"""Does a score's margin say how often it is right?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from accord.stats.intervals import (
    Estimate,
    FloatArray,
    IntArray,
    Labels,
    Unknown,
    cluster_draws,
    cluster_index,
    percentile_interval,
    sigmoid,
    vector,
)

TEMPERATURE_RESAMPLES = 500  # each one is a logistic fit


@dataclass(frozen=True)
class CalibrationBin:
    """Choices whose predicted confidence lies in one bin: mean confidence, share that was right, number."""

    confidence: float
    accuracy: float
    n: int


@dataclass(frozen=True)
class Calibration:
    """``error`` (ECE) = mean over choices of the distance between confidence and accuracy of the choice's bin."""

    error: float
    bins: tuple[CalibrationBin, ...]


def margin_calibration(margins: npt.ArrayLike, num_bins: int = 10) -> Calibration:
    """Compare sigmoid(|margin|) with how often a choice is right, in bins of equal width on confidence 0.5..1.

    Expected calibration error (Guo et al. 2017) of the preferred side. A margin of zero counts as half right.

    Args:
        margins: (N,) log-odds of the right choice, as the model sees them; positive = the model chose it.
    """
    margin_N = np.asarray(margins, dtype=np.float64)
    # sigmoid by tanh, which does not overflow.
    confidence_N = 0.5 * (1 + np.tanh(np.abs(margin_N) / 2))
    right_N = (np.sign(margin_N) + 1) / 2
    bin_N = np.minimum(((confidence_N - 0.5) * 2 * num_bins).astype(np.int64), num_bins - 1)
    bins = tuple(
        CalibrationBin(float(confidence_N[inside].mean()), float(right_N[inside].mean()), int(inside.sum()))
        for inside in (bin_N == b for b in range(num_bins))
        if inside.any()
    )
    error = sum(one.n * abs(one.confidence - one.accuracy) for one in bins) / max(1, len(margin_N))
    return Calibration(error, bins)


@dataclass(frozen=True)
class Mended:
    """The temperature that margins are divided by to mend their confidence, and the calibration error after it.

    ``error`` is measured on clusters that did not choose the temperature it is measured with. Where ``temperature`` is
    above 1 the model was too sure of itself.
    """

    temperature: Estimate
    error: float | None


def mending_temperature(
    margins: npt.ArrayLike, clusters: Labels | None = None, *, level: float = 0.95, seed: int = 0
) -> Mended:
    """Find the temperature T at which sigmoid(margin / T) makes what people chose most likely.

    Guo et al. 2017, section 4.2, of two classes: a logistic regression of one coefficient, 1 / T, without intercept.
    The interval resamples clusters; the error after mending comes from two halves of the clusters, each mended by the
    temperature of the other. `Unknown` where every margin has one sign, or T would be infinite or negative: then no
    temperature makes the model as right as it is sure.

    Args:
        margins: (N,) log-odds of the right choice, as the model sees them; positive = the model chose it.
        clusters: (N,) the unit of resampling; None makes each choice its own.
    """
    margin_N, cluster_N = vector(margins, "margins"), cluster_index(clusters, len(np.asarray(margins)))
    if not (margin_N > 0).any() or not (margin_N < 0).any():
        always = "right" if (margin_N > 0).any() else "wrong" if (margin_N < 0).any() else "undecided"
        return Mended(Unknown(f"the model is {always} every time: no temperature fits best"), None)
    count, unit_N = int(cluster_N.max()) + 1, margin_N / np.abs(margin_N).mean()
    inverse = float(_inverse_temperatures(unit_N, np.ones((1, len(unit_N))))[0])
    if inverse <= 0:
        return Mended(Unknown("the surer the model is, the more often it is wrong: no temperature mends that"), None)
    drawn = cluster_draws(count, TEMPERATURE_RESAMPLES, seed, len(unit_N))
    inverse_R = np.concatenate([_inverse_temperatures(unit_N, count_RC[:, cluster_N]) for count_RC in drawn])
    # A resample where it is no better than chance asks for an infinite temperature.
    drawn_R = np.where(inverse_R > 0, 1 / np.maximum(inverse_R, 1e-12), np.inf) * np.abs(margin_N).mean()
    found = percentile_interval(float(np.abs(margin_N).mean() / inverse), drawn_R, level, len(margin_N), count)
    return Mended(found, _error_across(margin_N, cluster_N, seed))


def _inverse_temperatures(margin_N: FloatArray, weight_RN: npt.NDArray[Any]) -> FloatArray:
    """Return (R,) coefficients of R weighted logistic regressions through 0, by Newton's method in a bounded range."""
    inverse_R = np.zeros(len(weight_RN))
    for _ in range(100):
        chance_RN = sigmoid(inverse_R[:, None] * margin_N)
        slope_R = (weight_RN * (1 - chance_RN)) @ margin_N
        curve_R = (weight_RN * chance_RN * (1 - chance_RN)) @ margin_N**2
        step_R = np.clip(slope_R / np.maximum(curve_R, 1e-12), -1.0, 1.0)
        # A resample that happens to be always right runs off: at 50 times the mean margin it is as sure as can be.
        inverse_R = np.clip(inverse_R + step_R, -50.0, 50.0)
        if np.abs(step_R).max() < 1e-9:
            break
    return inverse_R


def _error_across(margin_N: FloatArray, cluster_N: IntArray, seed: int) -> float | None:
    """Return the calibration error of margins that were mended by the other half's temperature; None of one cluster."""
    count = int(cluster_N.max()) + 1
    if count < 2:
        return None
    half_N = (np.random.default_rng(seed).permutation(count) < count // 2)[cluster_N]
    mended_N = np.empty_like(margin_N)
    for mine in (half_N, ~half_N):
        mean = np.abs(margin_N[~mine]).mean() or 1.0
        inverse = float(_inverse_temperatures(margin_N[~mine] / mean, np.ones((1, int((~mine).sum()))))[0])
        mended_N[mine] = margin_N[mine] * max(inverse, 0.0) / mean
    return margin_calibration(mended_N).error
