"""Bradley-Terry strengths from counts of wins and ties."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from accord.errors import DataError
from accord.stats.intervals import FloatArray


@dataclass(frozen=True, eq=False)
class Strengths:
    """Bradley-Terry strengths: ``theta`` (n,) sums to zero, ``standard_errors`` (n,) of the centred values.

    ``log_likelihood`` is that of the comparisons, without the penalty; ``log_tie`` is Davidson's log nu, None without.
    """

    theta: FloatArray
    standard_errors: FloatArray
    log_likelihood: float
    log_tie: float | None


def bradley_terry(
    wins: npt.ArrayLike,
    ties: npt.ArrayLike | None = None,
    *,
    tie_model: Literal["half", "davidson"] = "half",
    l2: float = 0.0,
) -> Strengths:
    """Fit maximum-likelihood strengths: P(i beats j) = e^ti / (e^ti + e^tj) (Bradley & Terry 1952).

    Args:
        wins: (n, n), ``wins[i, j]`` = how often i beat j; the diagonal must be zero.
        ties: (n, n) symmetric, ``ties[i, j]`` = how often they tied.
        tie_model: "half" counts a tie as half a win each; "davidson" gives it a probability of its own, proportional
            to nu * sqrt(e^ti e^tj), and fits nu (Davidson 1970).
        l2: subtracts l2/2 * sum theta^2, needed where some items never won or never lost against the others.

    Raises:
        DataError: without a penalty the estimate is infinite when the items fall into two parts and no item of one
            ever won (or tied) against the other.
    """
    win_nn, tie_nn = _comparison_counts(wins, ties)
    if l2 == 0 and not _strongly_connected(win_nn + tie_nn):
        raise DataError(
            "the comparisons do not determine the strengths",
            why="some items never won or tied against the others, so their distance is infinite or unknown",
            hint="collect comparisons across the parts, or give l2 > 0",
        )
    davidson = tie_model == "davidson"
    if davidson and not tie_nn.any():
        raise DataError(
            "Davidson's model needs a tie", why="its tie parameter would be minus infinity", hint="use 'half'"
        )
    if not davidson:
        win_nn, tie_nn = win_nn + tie_nn / 2, np.zeros_like(tie_nn)
    theta, log_tie = _maximise(win_nn, tie_nn, davidson, l2)
    value, _, information = _tie_likelihood(win_nn, tie_nn, theta, log_tie)
    return Strengths(theta, _standard_errors(information, davidson, l2), value, log_tie if davidson else None)


def _comparison_counts(wins: npt.ArrayLike, ties: npt.ArrayLike | None) -> tuple[FloatArray, FloatArray]:
    win_nn = np.asarray(wins, dtype=np.float64)
    tie_nn = np.zeros_like(win_nn) if ties is None else np.asarray(ties, dtype=np.float64)
    square = win_nn.ndim == 2 and win_nn.shape[0] == win_nn.shape[1] >= 2 and tie_nn.shape == win_nn.shape
    if not square:
        raise DataError(
            f"wins {win_nn.shape}, ties {tie_nn.shape}", why="expected two square matrices of one size, n >= 2"
        )
    for name, matrix in (("wins", win_nn), ("ties", tie_nn)):
        if not np.isfinite(matrix).all() or (matrix < 0).any() or np.diag(matrix).any():
            raise DataError(f"{name} must be finite, not negative, and zero on the diagonal")
    if not np.array_equal(tie_nn, tie_nn.T):
        raise DataError("ties must be symmetric", why="a tie of i with j is one of j with i")
    return win_nn, tie_nn


def _strongly_connected(beats_nn: FloatArray) -> bool:
    """Return whether every item reaches every other along wins: exactly then the estimate is finite (Ford 1957)."""
    reach = (beats_nn > 0) | np.eye(len(beats_nn), dtype=bool)
    for _ in range(max(1, math.ceil(math.log2(len(reach))))):
        # Paths double in length each time.
        reach = (reach.astype(np.float64) @ reach) > 0
    return bool(reach.all())


def _tie_likelihood(
    win_nn: FloatArray, tie_nn: FloatArray, theta: FloatArray, log_tie: float
) -> tuple[float, FloatArray, FloatArray]:
    """Return log-likelihood, gradient (n + 1,) and information (n + 1, n + 1) in (theta, log nu); -inf: no ties.

    With u = (ti - tj) / 2 the chances of win, loss and tie are e^u, e^-u and nu, over their sum.
    """
    half_nn = (theta[:, None] - theta[None, :]) / 2
    log_sum_nn = np.logaddexp(np.logaddexp(half_nn, -half_nn), log_tie)
    won_nn, tied_nn = np.exp(half_nn - log_sum_nn), np.exp(log_tie - log_sum_nn)
    lead_nn = won_nn - won_nn.T  # expected (wins - losses) of a comparison
    games_nn = win_nn + win_nn.T + tie_nn
    tie_term = float((tie_nn * np.where(tie_nn > 0, log_tie - log_sum_nn, 0.0)).sum() / 2)
    value = float((win_nn * (half_nn - log_sum_nn)).sum()) + tie_term
    theta_gradient = (win_nn - win_nn.T - games_nn * lead_nn).sum(axis=1) / 2
    gradient = np.append(theta_gradient, (tie_nn - games_nn * tied_nn).sum() / 2)
    between = games_nn * (won_nn + won_nn.T - lead_nn**2) / 4
    cross = -(games_nn * lead_nn * tied_nn).sum(axis=1) / 2
    corner = (games_nn * tied_nn * (1 - tied_nn)).sum() / 2
    information = np.block([[np.diag(between.sum(axis=1)) - between, cross[:, None]], [cross[None, :], corner]])
    return value, gradient, information


def _maximise(win_nn: FloatArray, tie_nn: FloatArray, davidson: bool, l2: float) -> tuple[FloatArray, float]:
    """Climb a concave function by Newton's method, halving the step while it does not ascend."""
    size = len(win_nn)
    free = size + 1 if davidson else size
    point = np.zeros(size + 1)  # the strengths, then log nu
    if not davidson:
        point[size] = -math.inf

    def evaluate(at: FloatArray) -> tuple[float, FloatArray, FloatArray]:
        theta = at[:size]
        value, gradient, information = _tie_likelihood(win_nn, tie_nn, theta, float(at[size]))
        penalised = value - l2 / 2 * float(theta @ theta)
        return penalised, (gradient - l2 * np.append(theta, 0.0))[:free], _penalised(information, l2)[:free, :free]

    value, gradient, information = evaluate(point)
    for _ in range(100):
        if np.abs(gradient).max() <= 1e-10 * max(1.0, float(win_nn.sum())):
            return point[:size] - point[:size].mean(), float(point[size])
        step = np.zeros(size + 1)
        # Pseudo-inverse: adding a constant to all strengths changes nothing, so the information has a null direction.
        step[:free] = np.linalg.pinv(information, hermitian=True) @ gradient
        before = value
        value, gradient, information = evaluate(point + step)
        # Less than rounding is no descent.
        while value < before - 1e-9 * abs(before) and np.abs(step).max() > 1e-9:
            step = step / 2
            value, gradient, information = evaluate(point + step)
        point = point + step
    raise DataError(
        "the strengths did not converge in 100 steps", why="they lie nearly infinitely far apart", hint="give l2 > 0"
    )


def _penalised(information: FloatArray, l2: float) -> FloatArray:
    return np.asarray(information + np.diag(np.append(np.full(len(information) - 1, l2), 0.0)), dtype=np.float64)


def _standard_errors(information: FloatArray, davidson: bool, l2: float) -> FloatArray:
    """Return the standard errors of the centred strengths.

    By the inverse information, projected on sum zero (its null direction).
    """
    size = len(information) - 1
    matrix = _penalised(information, l2)
    if not davidson:
        matrix = matrix[:size, :size]
    covariance = np.linalg.pinv(matrix, hermitian=True)[:size, :size]
    centre = np.eye(size) - 1 / size
    return np.asarray(np.sqrt(np.maximum(np.diag(centre @ covariance @ centre), 0.0)), dtype=np.float64)
