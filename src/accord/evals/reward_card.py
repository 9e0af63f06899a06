"""How good a reward model is: held-out pairs of human reviews, baselines on the same pairs, calibration, length bias.

Every accuracy is on pairs of texts by people about one film that nothing was trained on, and its interval resamples
films. Beside it stand what needs no model (the longer text wins) and what needs no network (Bradley-Terry on TF-IDF,
taught by the very groups the reward model was taught by).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from accord.errors import DataError
from accord.evals.metrics import log_words
from accord.evals.tfidf import (
    FloatArray,
    Terms,
    char_terms,
    fit_vocabulary,
    tfidf_rows,
    unit_rows,
    word_terms,
    words,
)
from accord.records import RankedGroup
from accord.stats import Calibration, Interval, margin_calibration, paired_difference, share_by_cluster

if TYPE_CHECKING:
    from scipy.sparse import csr_array
else:
    csr_array = Any

IntArray = npt.NDArray[np.int64]

STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
GAP_EDGES = (1.0, 2.0, 3.0, 4.0, 8.0)


# ---- pairs ---------------------------------------------------------------------------------------------------------


class RatedText(Protocol):
    """What a held-out review must tell: its text, its film, people's mean rating and the critic's verdict."""

    @property
    def text(self) -> str: ...
    @property
    def film(self) -> str: ...
    @property
    def mean(self) -> float: ...
    @property
    def verdict(self) -> str: ...


@dataclass(frozen=True, eq=False)
class Pairs:
    """N pairs of reviews of one film; ``better`` and ``worse`` (N,) index the reviews, ``gap`` is in rating points."""

    better: IntArray
    worse: IntArray
    films: npt.NDArray[np.str_]
    gap: FloatArray
    same_verdict: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.better)

    def where(self, mask: npt.NDArray[np.bool_]) -> Pairs:
        """The pairs for which ``mask`` (N,) is True."""
        return Pairs(self.better[mask], self.worse[mask], self.films[mask], self.gap[mask], self.same_verdict[mask])

    def margins(self, scores: npt.ArrayLike) -> FloatArray:
        """(N,) score of the better text minus that of the worse; positive = ordered as people did."""
        score_M = np.asarray(scores, dtype=np.float64)
        if score_M.ndim != 1 or not np.isfinite(score_M).all():
            raise DataError(f"scores of shape {score_M.shape}", why="expected one finite score per review")
        if len(self) and len(score_M) <= max(self.better.max(), self.worse.max()):
            raise DataError(
                f"{len(score_M)} scores", why="the pairs index more reviews", hint="score all reviews, in order"
            )
        return np.asarray(score_M[self.better] - score_M[self.worse])


def held_out_pairs(reviews: Sequence[RatedText], min_gap: float = 1.0) -> Pairs:
    """All pairs of reviews of one film whose mean ratings lie more than ``min_gap`` points apart."""
    by_film: dict[str, list[int]] = {}
    for i, review in enumerate(reviews):
        by_film.setdefault(review.film, []).append(i)
    means = [review.mean for review in reviews]
    found = [
        (a, b, film)
        for film, members in by_film.items()
        for a in members
        for b in members
        if means[a] - means[b] > min_gap
    ]
    if not found:
        raise DataError(f"no two reviews of one film lie more than {min_gap} apart", hint="hold out more films")
    return Pairs(
        better=np.array([a for a, _, _ in found], dtype=np.int64),
        worse=np.array([b for _, b, _ in found], dtype=np.int64),
        films=np.array([film for _, _, film in found]),
        gap=np.array([means[a] - means[b] for a, b, _ in found]),
        same_verdict=np.array([reviews[a].verdict == reviews[b].verdict for a, b, _ in found]),
    )


def pair_hits(scores: npt.ArrayLike, pairs: Pairs) -> FloatArray:
    """(N,) 1 where the scores order the pair as people did, a half for a tie, 0 else."""
    return np.asarray((np.sign(pairs.margins(scores)) + 1) / 2)


def pair_accuracy(scores: npt.ArrayLike, pairs: Pairs, *, seed: int = 0) -> Interval:
    """Share of pairs that the scores (one per review) order as people did; interval by film."""
    return share_by_cluster(pair_hits(scores, pairs), pairs.films, seed=seed)


def accuracy_difference(scores_a: npt.ArrayLike, scores_b: npt.ArrayLike, pairs: Pairs, *, seed: int = 0) -> Interval:
    """Accuracy of a minus that of b on the same pairs; interval by film."""
    return paired_difference(pair_hits(scores_a, pairs), pair_hits(scores_b, pairs), pairs.films, seed=seed)


# ---- baselines -----------------------------------------------------------------------------------------------------


def longer_wins(texts: Sequence[str]) -> FloatArray:
    """The baseline that prefers the longer text: its number of characters."""
    return np.array([len(text.strip()) for text in texts], dtype=np.float64)


def single_words(text: str) -> set[str]:
    return {f"w:{word}" for word in words(text)}


WORDS: tuple[tuple[Terms, ...], ...] = ((single_words,), (word_terms,))
WORDS_AND_CHARACTERS: tuple[tuple[Terms, ...], ...] = ((word_terms, char_terms),)


@dataclass(frozen=True, eq=False)
class PairBaseline:
    """A linear Bradley-Terry scorer on TF-IDF; ``strength`` is the inverse of its penalty."""

    blocks: tuple[tuple[Terms, tuple[str, ...], FloatArray], ...]
    coefficients: FloatArray
    strength: float
    trained_pairs: int

    def score(self, texts: Sequence[str]) -> FloatArray:
        """(N,) scores; their difference is the log-odds that people prefer the one text to the other."""
        return np.asarray(_baseline_rows(texts, self.blocks) @ self.coefficients)


def fit_pair_baseline(
    groups: Sequence[RankedGroup],
    valid_texts: Sequence[str],
    valid_pairs: Pairs,
    *,
    kinds: Sequence[tuple[Terms, ...]] = WORDS,
    max_pairs: int = 40_000,
    seed: int = 0,
) -> PairBaseline:
    """Bradley-Terry logistic regression on TF-IDF differences, fitted to the pairs of ranked groups.

    Minimises sum log(1 + exp(-w (x_chosen - x_rejected))) + |w|^2 / (2 strength), no intercept; ``strength`` and which
    of ``kinds`` to read are those with the best accuracy on ``valid_pairs``. A group's weight weighs its pairs.

    Args:
        groups: the groups the reward model trains on; tied completions make no pair.
        valid_texts, valid_pairs: held-out reviews and their pairs, of films that are neither trained on nor reported.
        kinds: the sets of terms to choose from: ``WORDS`` (single words; words and pairs of words) or
            ``WORDS_AND_CHARACTERS``, which is stronger.
        max_pairs: more are drawn down to this number by ``seed``.
    """
    chosen, rejected, weight_N = _training_pairs(groups, max_pairs, seed)
    texts = sorted({*chosen, *rejected})
    number = {text: i for i, text in enumerate(texts)}
    chosen_N, rejected_N = (np.array([number[text] for text in side]) for side in (chosen, rejected))
    best: tuple[float, PairBaseline] | None = None
    for terms in kinds:
        blocks = tuple((term, *_frozen(fit_vocabulary(texts, term, min_texts=1))) for term in terms)
        rows = _baseline_rows(texts, blocks)
        valid_rows = _baseline_rows(valid_texts, blocks)
        difference = (rows[chosen_N] - rows[rejected_N]).tocsr()
        coefficients = np.zeros(rows.shape[1])
        for strength in STRENGTHS:
            coefficients = _fit_differences(difference, weight_N, strength, coefficients)
            accuracy = float(pair_hits(valid_rows @ coefficients, valid_pairs).mean())
            if best is None or accuracy > best[0]:
                best = accuracy, PairBaseline(blocks, coefficients, strength, len(chosen))
    if best is None:
        raise DataError("no kind of terms to choose from")
    return best[1]


def _frozen(vocabulary: tuple[list[str], FloatArray]) -> tuple[tuple[str, ...], FloatArray]:
    return tuple(vocabulary[0]), vocabulary[1]


def _training_pairs(
    groups: Sequence[RankedGroup], max_pairs: int, seed: int
) -> tuple[list[str], list[str], FloatArray]:
    """Chosen texts, rejected texts and weights of all strictly ordered pairs, or of a random part of them."""
    pairs = [
        (group.completions[a], group.completions[b], group.weight)
        for group in groups
        for a, rank_a in enumerate(group.ranks)
        for b, rank_b in enumerate(group.ranks)
        if rank_a < rank_b
    ]
    if not pairs:
        raise DataError("the ranked groups hold no ordered pair", why="every completion is tied with the others")
    if len(pairs) > max_pairs:
        kept = np.sort(np.random.default_rng(seed).choice(len(pairs), max_pairs, replace=False))
        pairs = [pairs[i] for i in kept]
    chosen, rejected, weights = zip(*pairs, strict=True)
    return list(chosen), list(rejected), np.array(weights, dtype=np.float64)


def _baseline_rows(texts: Sequence[str], blocks: Sequence[tuple[Terms, tuple[str, ...], FloatArray]]) -> csr_array:
    from scipy.sparse import hstack

    return hstack([unit_rows(tfidf_rows(texts, *block)) for block in blocks], format="csr")


def _fit_differences(difference: csr_array, weight_N: FloatArray, strength: float, start_V: FloatArray) -> FloatArray:
    """Minimise the weighted logistic loss of the differences' signs with L-BFGS, from ``start_V``."""
    from scipy.optimize import minimize

    def loss(w: FloatArray) -> tuple[float, FloatArray]:
        margin_N = difference @ w
        wrong_N = weight_N * 0.5 * (1 - np.tanh(margin_N / 2))
        value = float(weight_N @ np.logaddexp(0, -margin_N) + w @ w / (2 * strength))
        return value, np.asarray(w / strength - difference.T @ wrong_N)

    return np.asarray(minimize(loss, start_V, jac=True, method="L-BFGS-B", options={"maxiter": 500}).x)


# ---- calibration and length ----------------------------------------------------------------------------------------


def calibration(scores: npt.ArrayLike, pairs: Pairs, num_bins: int = 10) -> Calibration:
    """Does sigmoid(|margin|) of a pair say how often the model is right?"""
    return margin_calibration(pairs.margins(scores), num_bins)


def accuracy_by_gap(scores: npt.ArrayLike, pairs: Pairs, *, seed: int = 0) -> dict[str, Interval]:
    """Accuracy where people's ratings lie 1-2, 2-3, 3-4, 4-8 points apart; it should rise (Llama 2, table 28)."""
    result = {}
    for low, high in pairwise(GAP_EDGES):
        inside = (pairs.gap > low) & (pairs.gap <= high)
        if inside.any():
            result[f"{low:g}-{high:g}"] = pair_accuracy(scores, pairs.where(inside), seed=seed)
    return result


def length_correlation(scores: npt.ArrayLike, texts: Sequence[str]) -> float:
    """Pearson correlation of the score with log(1 + words); 0 where either does not vary."""
    score_N = np.asarray(scores, dtype=np.float64)
    long_N = np.array([log_words(text) for text in texts])
    if len(score_N) != len(long_N) or not np.isfinite(score_N).all():
        raise DataError(f"{len(score_N)} scores for {len(long_N)} texts", why="expected one finite score per text")
    if len(score_N) < 2 or np.ptp(score_N) == 0 or np.ptp(long_N) == 0:
        return 0.0
    return float(np.corrcoef(score_N, long_N)[0, 1])


# ---- the card ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Accuracies:
    """One scorer on the held-out pairs: all, those of one verdict, and its lead over the scorer in question."""

    all_pairs: Interval
    same_verdict: Interval | None
    model_minus_this: Interval | None


@dataclass(frozen=True)
class RewardCard:
    """What is known of a reward model before anything is optimised against it."""

    model: Accuracies
    baselines: dict[str, Accuracies]
    by_gap: dict[str, Interval]
    calibration: Calibration
    length_correlation: float


def reward_card(
    scores: npt.ArrayLike, reviews: Sequence[RatedText], baselines: Mapping[str, npt.ArrayLike], *, seed: int = 0
) -> RewardCard:
    """The card of a scorer on held-out reviews.

    Args:
        scores: (M,) the model's score of each review.
        baselines: the scores of others on the same reviews, by name.
    """
    pairs = held_out_pairs(reviews)
    return RewardCard(
        model=_accuracies(scores, pairs, None, seed),
        baselines={name: _accuracies(other, pairs, scores, seed) for name, other in baselines.items()},
        by_gap=accuracy_by_gap(scores, pairs, seed=seed),
        calibration=calibration(scores, pairs),
        length_correlation=length_correlation(scores, [review.text for review in reviews]),
    )


def _accuracies(scores: npt.ArrayLike, pairs: Pairs, model: npt.ArrayLike | None, seed: int) -> Accuracies:
    same = pairs.where(pairs.same_verdict)
    return Accuracies(
        all_pairs=pair_accuracy(scores, pairs, seed=seed),
        same_verdict=pair_accuracy(scores, same, seed=seed) if len(same) else None,
        model_minus_this=None if model is None else accuracy_difference(model, scores, pairs, seed=seed),
    )
