"""How far models that learnt from the same judgements disagree about a comparison that nobody has made.

Shapes: M models, N comparisons of two texts.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from accord.stats.intervals import FloatArray, sigmoid


def mutual_information(margins: npt.ArrayLike) -> FloatArray:
    """Return what the answer to each comparison would tell about which model is right, ``(N,)`` in nats.

    The entropy of the models' mean probability minus the mean of their entropies (Houlsby et al. 2011, arXiv:1112.5745,
    eq. 2): 0 where all say the same, however unsure, and log 2 where half of them are sure of each side.

    Args:
        margins: (M, N) each model's score of the first text minus that of the second; sigmoid of it is its
            probability that people prefer the first (Bradley-Terry).
    """
    probability_MN = sigmoid(np.asarray(margins, dtype=np.float64))
    return np.asarray(_entropy(probability_MN.mean(0)) - _entropy(probability_MN).mean(0))


def _entropy(probability: FloatArray) -> FloatArray:
    """The entropy of a choice of two, in nats; 0 for what is certain."""
    terms = [p * np.log(np.where(p > 0, p, 1.0)) for p in (probability, 1 - probability)]
    return np.asarray(-terms[0] - terms[1])
