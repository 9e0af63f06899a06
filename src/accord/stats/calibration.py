"""Does a score's margin say how often it is right?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


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
