"""How often one policy's samples beat another's, as they come and at equal lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from accord.errors import DataError
from accord.stats.intervals import (
    FloatArray,
    Interval,
    Labels,
    cluster_draws,
    cluster_index,
    percentile_interval,
    share_by_cluster,
    sigmoid,
)


def win_rate(
    scores_a: npt.ArrayLike,
    scores_b: npt.ArrayLike,
    clusters: Labels | None = None,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return the mean over prompts of the share of cross pairs that A wins; a tie is half a win.

    A cross pair is a sample of A and one of B.

    Args:
        scores_a, scores_b: (P, Ka) and (P, Kb), the judge's scores of the samples of the same P prompts.
        clusters: (P,) the unit of resampling (the film); None makes each prompt its own.
    """
    a_PK, b_PK = same_prompts(scores_a, scores_b)
    share_P = _outcomes(a_PK, b_PK).mean(axis=(1, 2))
    return share_by_cluster(share_P, clusters, level=level, resamples=resamples, seed=seed)


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
    """Return the win rate A would have over B at equal lengths.

    Sigmoid(theta) of a logistic model of the judge's choices.

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
    a_PK, b_PK = same_prompts(scores_a, scores_b)
    long_a_PK, long_b_PK = _log_lengths(lengths_a, a_PK), _log_lengths(lengths_b, b_PK)
    cluster_P = cluster_index(clusters, len(a_PK))
    blocks = [
        _cross_rows(a_PK, b_PK, long_a_PK, long_b_PK),
        _within_rows(a_PK, long_a_PK),
        _within_rows(b_PK, long_b_PK),
    ]
    prompt_N, against_N, longer_N, won_N, weight_N = (np.concatenate(column) for column in zip(*blocks, strict=True))
    # In units of its own spread, so that half a pseudo-pair weighs as much on gamma as on theta.
    spread = float(np.sqrt(np.mean(longer_N**2))) or 1.0
    design_N2 = np.stack([against_N, longer_N / spread], axis=1)
    cluster_N = cluster_P[prompt_N.astype(np.int64)]
    num_clusters = int(cluster_P.max()) + 1

    def rates(count_RC: npt.NDArray[Any]) -> FloatArray:
        theta_R = _fit_logistic(design_N2, won_N, count_RC[:, cluster_N] * weight_N)[:, 0]
        return sigmoid(theta_R)

    value = float(rates(np.ones((1, num_clusters)))[0])
    draws = [rates(count_RC) for count_RC in cluster_draws(num_clusters, resamples, seed, len(won_N))]
    return percentile_interval(value, np.concatenate(draws), level, len(a_PK), num_clusters)


def same_prompts(scores_a: npt.ArrayLike, scores_b: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    a_PK, b_PK = np.asarray(scores_a, dtype=np.float64), np.asarray(scores_b, dtype=np.float64)
    if a_PK.ndim != 2 or b_PK.ndim != 2 or len(a_PK) != len(b_PK) or 0 in a_PK.shape + b_PK.shape:
        raise DataError(
            f"scores of shapes {a_PK.shape} and {b_PK.shape}", why="expected (P, Ka) and (P, Kb), same prompts"
        )
    if not (np.isfinite(a_PK).all() and np.isfinite(b_PK).all()):
        raise DataError("scores hold NaN or infinity", why="such a score wins or loses by accident")
    return a_PK, b_PK


def _outcomes(a_PK: FloatArray, b_PK: FloatArray) -> FloatArray:
    """Return (P, Ka, Kb): 1 where a wins, 0 where b wins, a half for a tie."""
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
    """Return rows (prompt, A against B, log-length difference, outcome, weight) of all cross pairs."""
    won = _outcomes(a_PK, b_PK)
    longer = long_a_PK[:, :, None] - long_b_PK[:, None, :]
    prompt = np.broadcast_to(np.arange(len(a_PK))[:, None, None], won.shape)
    # A prompt weighs 1, however many samples it has.
    weight = np.full(won.size, 1 / (won.shape[1] * won.shape[2]))
    return prompt.ravel().astype(np.float64), np.ones(won.size), longer.ravel(), won.ravel(), weight


def _within_rows(scores_PK: FloatArray, long_PK: FloatArray) -> tuple[FloatArray, ...]:
    """Return the same columns for the pairs of two samples of one policy; the model's theta does not act on them."""
    first, second = np.triu_indices(scores_PK.shape[1], k=1)
    won = (scores_PK[:, first] > scores_PK[:, second]) + 0.5 * (scores_PK[:, first] == scores_PK[:, second])
    longer = long_PK[:, first] - long_PK[:, second]
    prompt = np.broadcast_to(np.arange(len(scores_PK))[:, None], won.shape)
    weight = np.full(won.size, 1 / max(1, len(first)))
    return prompt.ravel().astype(np.float64), np.zeros(won.size), longer.ravel(), won.ravel(), weight


def _fit_logistic(design_N2: FloatArray, won_N: FloatArray, weight_RN: FloatArray) -> FloatArray:
    """Return (R, 2) coefficients of R weighted logistic fits, each with half a drawn pseudo-row per column."""
    design = np.vstack([design_N2, np.eye(2)])
    won = np.append(won_N, [0.5, 0.5])
    # A drawn pair on each axis keeps the fit finite where one side wins every time.
    weight = np.hstack([weight_RN, np.full((len(weight_RN), 2), 0.5)])
    coefficient_R2 = np.zeros((len(weight_RN), 2))
    outer = np.stack([design[:, 0] ** 2, design[:, 0] * design[:, 1], design[:, 1] ** 2], axis=1)
    for _ in range(100):
        chance = sigmoid(coefficient_R2 @ design.T)
        gradient = (weight * (won - chance)) @ design
        h00, h01, h11 = ((weight * chance * (1 - chance)) @ outer).T
        determinant = h00 * h11 - h01 * h01
        step = np.stack([h11 * gradient[:, 0] - h01 * gradient[:, 1], h00 * gradient[:, 1] - h01 * gradient[:, 0]], 1)
        step = np.clip(step / determinant[:, None], -1.0, 1.0)  # far from the optimum Newton's step overshoots
        coefficient_R2 += step
        if np.abs(step).max() < 1e-9:
            break
    return coefficient_R2
