"""What numbers mean: intervals by cluster, win rates, Bradley-Terry strengths, best-of-n.

Torch-free: labelling and reports read these on machines without an accelerator stack. Every estimate comes as an
``Interval`` so that no number travels without its uncertainty. Prompts about one film (or by one person) are not
independent, so resampling draws whole *clusters*, never single items.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

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

    ``low`` and ``high`` are NaN where no interval can be stated; ``to_json`` writes them as null.
    """

    value: float
    low: float
    high: float
    n: int
    clusters: int

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.value:.3f} [no interval from {self.clusters} cluster]"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def to_json(self) -> dict[str, float | int | None]:
        low, high = (None if math.isnan(bound) else bound for bound in (self.low, self.high))
        return {"value": self.value, "low": low, "high": high, "n": self.n, "clusters": self.clusters}


# ---- resampling ----------------------------------------------------------------------------------------------------


def bootstrap_by_cluster(
    values: npt.ArrayLike,
    clusters: Labels | None = None,
    *,
    weights: npt.ArrayLike | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """The (weighted) mean of items with a percentile bootstrap interval that resamples whole clusters.

    Args:
        values: (N,) one number per item.
        clusters: (N,) label of each item's cluster (the film); None makes each item its own cluster.
        weights: (N,) non-negative; None counts every item once.
        level: coverage of the interval.

    Cameron, Gelbach & Miller 2008 (pairs cluster bootstrap). With fewer than about 20 clusters it is too narrow.
    """
    value_N = _vector(values, "values")
    weight_N = np.ones(len(value_N)) if weights is None else _vector(weights, "weights", len(value_N))
    cluster_N = _cluster_index(clusters, len(value_N))
    counted = weight_N > 0
    if not counted.any() or (weight_N < 0).any():
        raise DataError("a mean needs weights that are not negative, and one above zero")
    cluster_N = np.unique(cluster_N[counted], return_inverse=True)[1]
    weight_C = np.bincount(cluster_N, weight_N[counted])
    sum_C = np.bincount(cluster_N, (weight_N * value_N)[counted])
    means = [
        (count_RC @ sum_C) / (count_RC @ weight_C)
        for count_RC in _cluster_draws(len(sum_C), resamples, seed, len(sum_C))
    ]
    value = float(sum_C.sum() / weight_C.sum())
    return _percentile_interval(value, np.concatenate(means), level, int(counted.sum()), len(sum_C))


def paired_difference(
    values_a: npt.ArrayLike,
    values_b: npt.ArrayLike,
    clusters: Labels | None = None,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Mean of a - b over the same items, interval by cluster: is predictor a better than b on these very pairs?"""
    a_N = _vector(values_a, "values_a")
    difference_N = a_N - _vector(values_b, "values_b", len(a_N))
    return bootstrap_by_cluster(difference_N, clusters, level=level, resamples=resamples, seed=seed)


def wilson(successes: float, n: int, level: float = 0.95) -> Interval:
    """A share of independent trials with Wilson's score interval (Wilson 1927); half successes (ties) may be given."""
    if n <= 0 or not 0 <= successes <= n:
        raise DataError(f"{successes} successes of {n} trials", why="a share needs 0 <= successes <= n and n > 0")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, scale = successes / n, 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half), n, n)


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
    """Does sigmoid(|margin|) say how often a choice is right? Bins of equal width on confidence 0.5..1.

    Expected calibration error (Guo et al. 2017) of the preferred side. A margin of zero counts as half right.

    Args:
        margins: (N,) log-odds of the right choice, as the model sees them; positive = the model chose it.
    """
    margin_N = np.asarray(margins, dtype=np.float64)
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


def _vector(values: npt.ArrayLike, name: str, length: int | None = None) -> FloatArray:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or len(vector) == 0 or (length is not None and len(vector) != length):
        raise DataError(
            f"{name} has shape {vector.shape}", why=f"expected ({'N' if length is None else length},), N > 0"
        )
    if not np.isfinite(vector).all():
        raise DataError(f"{name} holds NaN or infinity", mend="leave the item out, or mend what scored it")
    return vector


def _cluster_index(clusters: Labels | None, n: int) -> IntArray:
    """Labels as integers 0..C-1."""
    if clusters is None:
        return np.arange(n)
    if len(clusters) != n:
        raise DataError(f"{len(clusters)} cluster labels for {n} items", mend="give one label per item")
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(label, len(numbers)) for label in clusters], dtype=np.int64)


def _cluster_draws(num_clusters: int, resamples: int, seed: int, width: int) -> Iterator[IntArray]:
    """How often each cluster is drawn, (r, C) at a time; the draws do not depend on how they are cut into chunks."""
    rng = np.random.default_rng(seed)
    share = np.full(num_clusters, 1 / num_clusters)
    step = max(1, MAX_CELLS // width)
    for done in range(0, resamples, step):
        yield rng.multinomial(num_clusters, share, size=min(step, resamples - done))


def _percentile_interval(value: float, draws_R: FloatArray, level: float, n: int, clusters: int) -> Interval:
    if clusters < 2:
        return Interval(value, math.nan, math.nan, n, clusters)
    low, high = np.quantile(draws_R, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), n, clusters)


# ---- win rates -----------------------------------------------------------------------------------------------------


def win_rate(
    scores_a: npt.ArrayLike,
    scores_b: npt.ArrayLike,
    clusters: Labels | None = None,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Mean over prompts of the share of cross pairs (a sample of A, a sample of B) that A wins; a tie is half a win.

    Args:
        scores_a, scores_b: (P, Ka) and (P, Kb), the judge's scores of the samples of the same P prompts.
        clusters: (P,) the unit of resampling (the film); None makes each prompt its own.
    """
    a_PK, b_PK = _same_prompts(scores_a, scores_b)
    share_P = _outcomes(a_PK, b_PK).mean(axis=(1, 2))
    return bootstrap_by_cluster(share_P, clusters, level=level, resamples=resamples, seed=seed)


def length_controlled_win_rate(
    scores_a: npt.ArrayLike,
    lengths_a: npt.ArrayLike,
    scores_b: npt.ArrayLike,
    lengths_b: npt.ArrayLike,
    clusters: Labels | None = None,
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """The win rate A would have over B at equal lengths: sigmoid(theta) of a logistic model of the judge's choices.

    P(x beats y) = sigmoid(theta * (A against B) + gamma * (log length of x - log length of y)), fitted to all cross
    pairs *and* to the pairs of two samples of one policy and prompt. The latter have no theta, so they show what length
    alone does to the judge and keep gamma apart from the policies' difference; where A and B share no lengths the
    result is still an extrapolation along log-length. Each prompt weighs 1 in its cross pairs, 1 in its pairs within A
    and 1 in those within B. Half a prompt's worth of drawn pseudo-pairs on theta and on gamma keeps the fit finite
    when one side wins every time. In the spirit of AlpacaEval-LC (Dubois et al. 2024, 2404.04475), whose
    length-controlled rate is likewise the prediction at a length difference of zero.

    Args:
        lengths_a, lengths_b: words or tokens, the shapes of the scores; lengths below 1 count as 1.
    """
    a_PK, b_PK = _same_prompts(scores_a, scores_b)
    long_a_PK, long_b_PK = _log_lengths(lengths_a, a_PK), _log_lengths(lengths_b, b_PK)
    cluster_P = _cluster_index(clusters, len(a_PK))
    blocks = [
        _cross_rows(a_PK, b_PK, long_a_PK, long_b_PK),
        _within_rows(a_PK, long_a_PK),
        _within_rows(b_PK, long_b_PK),
    ]
    prompt_N, against_N, longer_N, won_N, weight_N = (np.concatenate(column) for column in zip(*blocks, strict=True))
    spread = float(np.sqrt(np.mean(longer_N**2))) or 1.0
    design_N2 = np.stack([against_N, longer_N / spread], axis=1)
    cluster_N = cluster_P[prompt_N.astype(np.int64)]
    num_clusters = int(cluster_P.max()) + 1

    def rates(count_RC: npt.NDArray[Any]) -> FloatArray:
        theta_R = _fit_logistic(design_N2, won_N, count_RC[:, cluster_N] * weight_N)[:, 0]
        return _sigmoid(theta_R)

    value = float(rates(np.ones((1, num_clusters)))[0])
    draws = [rates(count_RC) for count_RC in _cluster_draws(num_clusters, resamples, seed, len(won_N))]
    return _percentile_interval(value, np.concatenate(draws), level, len(a_PK), num_clusters)


def _same_prompts(scores_a: npt.ArrayLike, scores_b: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    a_PK, b_PK = np.asarray(scores_a, dtype=np.float64), np.asarray(scores_b, dtype=np.float64)
    if a_PK.ndim != 2 or b_PK.ndim != 2 or len(a_PK) != len(b_PK) or 0 in a_PK.shape + b_PK.shape:
        raise DataError(
            f"scores of shapes {a_PK.shape} and {b_PK.shape}", why="expected (P, Ka) and (P, Kb), same prompts"
        )
    if not (np.isfinite(a_PK).all() and np.isfinite(b_PK).all()):
        raise DataError("scores hold NaN or infinity", why="such a score wins or loses by accident")
    return a_PK, b_PK


def _outcomes(a_PK: FloatArray, b_PK: FloatArray) -> FloatArray:
    """(P, Ka, Kb): 1 where a wins, 0 where b wins, a half for a tie."""
    a_PKK, b_PKK = a_PK[:, :, None], b_PK[:, None, :]
    return np.asarray((a_PKK > b_PKK) + 0.5 * (a_PKK == b_PKK), dtype=np.float64)


def _log_lengths(lengths: npt.ArrayLike, scores_PK: FloatArray) -> FloatArray:
    length_PK = np.asarray(lengths, dtype=np.float64)
    if length_PK.shape != scores_PK.shape or not np.isfinite(length_PK).all():
        raise DataError(f"lengths of shape {length_PK.shape} for scores of shape {scores_PK.shape}")
    return np.log(np.maximum(length_PK, 1.0))


def _cross_rows(
    a_PK: FloatArray, b_PK: FloatArray, long_a_PK: FloatArray, long_b_PK: FloatArray
) -> tuple[FloatArray, ...]:
    """Rows (prompt, A against B, log-length difference, outcome, weight) of all cross pairs."""
    won = _outcomes(a_PK, b_PK)
    longer = long_a_PK[:, :, None] - long_b_PK[:, None, :]
    prompt = np.broadcast_to(np.arange(len(a_PK))[:, None, None], won.shape)
    weight = np.full(won.size, 1 / (won.shape[1] * won.shape[2]))
    return prompt.ravel().astype(np.float64), np.ones(won.size), longer.ravel(), won.ravel(), weight


def _within_rows(scores_PK: FloatArray, long_PK: FloatArray) -> tuple[FloatArray, ...]:
    """The same columns for the pairs of two samples of one policy; the model's theta does not act on them."""
    first, second = np.triu_indices(scores_PK.shape[1], k=1)
    won = (scores_PK[:, first] > scores_PK[:, second]) + 0.5 * (scores_PK[:, first] == scores_PK[:, second])
    longer = long_PK[:, first] - long_PK[:, second]
    prompt = np.broadcast_to(np.arange(len(scores_PK))[:, None], won.shape)
    weight = np.full(won.size, 1 / max(1, len(first)))
    return prompt.ravel().astype(np.float64), np.zeros(won.size), longer.ravel(), won.ravel(), weight


def _fit_logistic(design_N2: FloatArray, won_N: FloatArray, weight_RN: FloatArray) -> FloatArray:
    """(R, 2) coefficients of R weighted logistic fits of one data set, each with half a drawn pseudo-row per column."""
    design = np.vstack([design_N2, np.eye(2)])
    won = np.append(won_N, [0.5, 0.5])
    weight = np.hstack([weight_RN, np.full((len(weight_RN), 2), 0.5)])
    coefficient_R2 = np.zeros((len(weight_RN), 2))
    outer = np.stack([design[:, 0] ** 2, design[:, 0] * design[:, 1], design[:, 1] ** 2], axis=1)
    for _ in range(100):
        chance = _sigmoid(coefficient_R2 @ design.T)
        gradient = (weight * (won - chance)) @ design
        h00, h01, h11 = ((weight * chance * (1 - chance)) @ outer).T
        determinant = h00 * h11 - h01 * h01
        step = np.stack([h11 * gradient[:, 0] - h01 * gradient[:, 1], h00 * gradient[:, 1] - h01 * gradient[:, 0]], 1)
        step = np.clip(step / determinant[:, None], -1.0, 1.0)  # far from the optimum Newton's step overshoots
        coefficient_R2 += step
        if np.abs(step).max() < 1e-9:
            break
    return coefficient_R2


def _sigmoid(x: FloatArray) -> FloatArray:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)), dtype=np.float64)


# ---- strengths from comparisons ------------------------------------------------------------------------------------


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
    """Maximum-likelihood strengths: P(i beats j) = e^ti / (e^ti + e^tj) (Bradley & Terry 1952).

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
            mend="collect comparisons across the parts, or give l2 > 0",
        )
    davidson = tie_model == "davidson"
    if davidson and not tie_nn.any():
        raise DataError(
            "Davidson's model needs a tie", why="its tie parameter would be minus infinity", mend="use 'half'"
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
    """Can every item reach every other along wins? Ford 1957: exactly then the estimate is finite."""
    reach = (beats_nn > 0) | np.eye(len(beats_nn), dtype=bool)
    for _ in range(max(1, math.ceil(math.log2(len(reach))))):
        reach = (reach.astype(np.float64) @ reach) > 0
    return bool(reach.all())


def _tie_likelihood(
    win_nn: FloatArray, tie_nn: FloatArray, theta: FloatArray, log_tie: float
) -> tuple[float, FloatArray, FloatArray]:
    """Log-likelihood, its gradient (n + 1,) and information (n + 1, n + 1) in (theta, log nu); log nu = -inf: no ties.

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
    """Newton's method on a concave function, halving the step while it does not ascend."""
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
        step[:free] = np.linalg.pinv(information, hermitian=True) @ gradient
        before = value
        value, gradient, information = evaluate(point + step)
        while value < before - 1e-9 * abs(before) and np.abs(step).max() > 1e-9:
            step = step / 2
            value, gradient, information = evaluate(point + step)
        point = point + step
    raise DataError(
        "the strengths did not converge in 100 steps", why="they lie nearly infinitely far apart", mend="give l2 > 0"
    )


def _penalised(information: FloatArray, l2: float) -> FloatArray:
    return np.asarray(information + np.diag(np.append(np.full(len(information) - 1, l2), 0.0)), dtype=np.float64)


def _standard_errors(information: FloatArray, davidson: bool, l2: float) -> FloatArray:
    """Of the centred strengths: the inverse information, projected on sum zero (its null direction)."""
    size = len(information) - 1
    matrix = _penalised(information, l2)
    if not davidson:
        matrix = matrix[:size, :size]
    covariance = np.linalg.pinv(matrix, hermitian=True)[:size, :size]
    centre = np.eye(size) - 1 / size
    return np.asarray(np.sqrt(np.maximum(np.diag(centre @ covariance @ centre), 0.0)), dtype=np.float64)


def pairwise_agreement(
    first: npt.ArrayLike, second: npt.ArrayLike, groups: Labels, *, level: float = 0.95, seed: int = 0
) -> Interval:
    """Of the pairs of items of one group that both score differently, the share they order alike; interval by group.

    Args:
        first, second: (N,) two annotators' (or predictors') scores or ranks of the same items, same direction.
        groups: (N,) which items were compared with one another (the prompt). Pairs tied by either do not count.
    """
    a_N = _vector(first, "first")
    b_N = _vector(second, "second", len(a_N))
    group_N = _cluster_index(groups, len(a_N))
    alike: list[FloatArray] = []
    owner: list[IntArray] = []
    for group in range(int(group_N.max()) + 1):
        members = np.flatnonzero(group_N == group)
        left, right = np.triu_indices(len(members), k=1)
        product = np.sign(a_N[members[left]] - a_N[members[right]]) * np.sign(b_N[members[left]] - b_N[members[right]])
        alike.append((product[product != 0] > 0).astype(np.float64))
        owner.append(np.full(len(alike[-1]), group))
    if not sum(map(len, alike)):
        raise DataError(
            "no pair of items is ordered by both", mend="agreement needs items that both scored differently"
        )
    return bootstrap_by_cluster(np.concatenate(alike), np.concatenate(owner), level=level, seed=seed)


# ---- best of n -----------------------------------------------------------------------------------------------------


def best_of_n_kl_bound(n: int) -> float:
    """KL(best-of-n || base) in nats is at most log n - (n - 1) / n; equality for continuous scores (Beirami 2024)."""
    if n < 1:
        raise DataError(f"best of {n}", why="n starts at 1")
    return math.log(n) - (n - 1) / n


def best_of_n_scores(gold: npt.ArrayLike, proxy: npt.ArrayLike, n: int) -> FloatArray:
    """(P,) expected gold score of the sample that the proxy likes best among n, over all subsets of the N given.

    Unbiased for any N >= n (Nakano et al. 2021, WebGPT appendix I): the sample of proxy rank i (1 = worst) is the best
    of a random subset with chance C(i - 1, n - 1) / C(N, n). Proxy ties are broken at random, in expectation.

    Args:
        gold, proxy: (P, N) scores of the same N samples of each prompt.
    """
    gold_PN, proxy_PN = _same_prompts(gold, proxy)
    size = proxy_PN.shape[1]
    if gold_PN.shape != proxy_PN.shape or not 1 <= n <= size:
        raise DataError(
            f"best of {n} among samples {gold_PN.shape}, proxy {proxy_PN.shape}", mend="n must not exceed N"
        )
    chance_N = np.array([math.comb(i, n - 1) for i in range(size)], dtype=np.float64) / math.comb(size, n)
    below_N = np.concatenate([[0.0], np.cumsum(chance_N)])
    ordered_PN = np.sort(proxy_PN, axis=1)
    expected_P = np.empty(len(gold_PN))
    for p, (gold_N, row_N, sorted_N) in enumerate(zip(gold_PN, proxy_PN, ordered_PN, strict=True)):
        first, last = np.searchsorted(sorted_N, row_N, "left"), np.searchsorted(sorted_N, row_N, "right")
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
    """The expected gold score of best-of-n by the proxy for each n, meaned over prompts, intervals by cluster.

    Pass the proxy as gold too to see what the proxy itself claims.
    """
    return [bootstrap_by_cluster(best_of_n_scores(gold, proxy, n), clusters, level=level, seed=seed) for n in ns]
