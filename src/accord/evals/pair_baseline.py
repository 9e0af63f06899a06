"""What a reward model must beat: whoever prefers the longer text, and Bradley-Terry on TF-IDF without a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from accord.errors import DataError
from accord.evals.pairs import MAX_BASELINE_PAIRS, HeldOutPairs, pair_hits, some_of
from accord.evals.tfidf import (
    Terms,
    char_terms,
    fit_vocabulary,
    tfidf_rows,
    unit_rows,
    word_terms,
    words,
)
from accord.records import RankedGroup
from accord.stats import FloatArray

if TYPE_CHECKING:
    from scipy.sparse import csr_array
else:
    csr_array = Any

STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # inverse penalties to choose from: held-out accuracy falls at both ends


def length_scores(texts: Sequence[str]) -> FloatArray:
    """Return the baseline that prefers the longer text: its number of characters."""
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
        return np.asarray(baseline_rows(texts, self.blocks) @ self.coefficients)


def fit_pair_baseline(
    groups: Sequence[RankedGroup],
    valid: HeldOutPairs,
    *,
    kinds: Sequence[tuple[Terms, ...]] = WORDS,
    max_pairs: int = MAX_BASELINE_PAIRS,
    seed: int = 0,
) -> PairBaseline:
    """Bradley-Terry logistic regression on TF-IDF differences, fitted to the pairs of ranked groups.

    Minimises sum log(1 + exp(-w (x_chosen - x_rejected))) + |w|^2 / (2 strength), no intercept; ``strength`` and which
    of ``kinds`` to read are those with the best accuracy on ``valid``. A group's weight weighs its pairs.

    Args:
        groups: the groups the reward model trains on; tied completions make no pair.
        valid: held-out completions and their pairs, of topics that are neither trained on nor reported.
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
        rows = baseline_rows(texts, blocks)
        valid_rows = baseline_rows(valid.completions, blocks)
        difference = (rows[chosen_N] - rows[rejected_N]).tocsr()
        coefficients = np.zeros(rows.shape[1])
        for strength in STRENGTHS:
            coefficients = fit_differences(difference, weight_N, strength, coefficients)
            accuracy = float(pair_hits(valid_rows @ coefficients, valid.pairs).mean())
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
    chosen, rejected, weights = zip(*some_of(pairs, max_pairs, seed), strict=True)
    return list(chosen), list(rejected), np.array(weights, dtype=np.float64)


def baseline_rows(texts: Sequence[str], blocks: Sequence[tuple[Terms, tuple[str, ...], FloatArray]]) -> csr_array:
    """(N, V) each kind of terms side by side, each text's row of length 1 in each."""
    from scipy.sparse import hstack

    return hstack([unit_rows(tfidf_rows(texts, *block)) for block in blocks], format="csr")


def fit_differences(
    difference: csr_array,
    weight_N: FloatArray,
    strength: float,
    start_V: FloatArray,
    centre_V: FloatArray | None = None,
) -> FloatArray:
    """Minimise the weighted logistic loss of the differences' signs with L-BFGS, from ``start_V``.

    The penalty is on the distance from ``centre_V``, by default from 0.
    """
    from scipy.optimize import minimize

    def loss(w: FloatArray) -> tuple[float, FloatArray]:
        margin_N, pull_V = difference @ w, w if centre_V is None else w - centre_V
        wrong_N = weight_N * 0.5 * (1 - np.tanh(margin_N / 2))
        value = float(weight_N @ np.logaddexp(0, -margin_N) + pull_V @ pull_V / (2 * strength))
        return value, np.asarray(pull_V / strength - difference.T @ wrong_N)

    return np.asarray(minimize(loss, start_V, jac=True, method="L-BFGS-B", options={"maxiter": 500}).x)
