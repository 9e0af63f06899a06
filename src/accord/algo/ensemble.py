"""Ways to make one score of those of several members (Coste 2023, arXiv:2310.02743).

Shapes: S completions, M members.
"""

from __future__ import annotations

from torch import Tensor

from accord.algo.shapes import shaped


@shaped
def mean(score_SM: Tensor, variance_coef: float) -> Tensor:
    """Return the mean of the members' scores."""
    return score_SM.mean(1)


@shaped
def worst_case(score_SM: Tensor, variance_coef: float) -> Tensor:
    """Return the lowest of the members' scores (WCO): a text must please all of them."""
    return score_SM.amin(1)


@shaped
def uncertainty_weighted(score_SM: Tensor, variance_coef: float) -> Tensor:
    """Return ``mean - variance_coef * variance`` (UWO): members disagree on texts unlike what they were taught.

    The variance is the biased one, over M: the members are all there are, and one alone has variance 0.
    """
    return score_SM.mean(1) - variance_coef * score_SM.var(1, correction=0)
