"""Several small reward models of the same judgements, fitted in seconds, to see where they disagree. Torch-free.

Each is Bradley-Terry on TF-IDF, as `accord.evals.pair_baseline`. They differ in two ways:

1. What they learnt from: each weighs the judgements by draws of an exponential distribution with mean 1, a smooth
   bootstrap in which no judgement is lost (Rubin 1981, "The Bayesian bootstrap").
2. What they think of words that nobody has judged: each is drawn to weights of its own, which come from the prior that
   the penalty stands for (Osband et al. 2018, arXiv:1806.03335). Drawn to 0, all would give an unknown text the same
   score, and be in complete agreement about what they know nothing of.

Shapes: M members, N texts or pairs, V terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from accord.errors import DataError
from accord.evals.pair_baseline import baseline_rows, fit_differences
from accord.evals.pairs import some_of
from accord.evals.tfidf import Terms, fit_vocabulary, word_terms
from accord.records import RankedGroup
from accord.seeds import stream_seed
from accord.stats import FloatArray, IntArray

# Accuracy on held-out films moves by less than .005 between 1 and 30 (100 to 1,000 rankings of the film raters).
STRENGTH = 1.0
MEMBERS = 10
# Members need not be good, but different: ten of them take seconds, however much has been judged.
MAX_ENSEMBLE_PAIRS = 10_000


@dataclass(frozen=True, eq=False)
class PairEnsemble:
    """M linear Bradley-Terry scorers on the same terms; ``coefficients`` (M, V)."""

    terms: tuple[Terms, tuple[str, ...], FloatArray]
    coefficients: FloatArray

    def score(self, texts: Sequence[str]) -> FloatArray:
        """(M, N) scores; their difference is the log-odds that people prefer the one text to the other."""
        return np.asarray((baseline_rows(texts, [self.terms]) @ self.coefficients.T).T)


def fit_pair_ensemble(
    groups: Sequence[RankedGroup], texts: Sequence[str], *, members: int = MEMBERS, seed: int = 0
) -> PairEnsemble:
    """Fit an ensemble to the ordered pairs of ranked groups.

    Args:
        groups: what was judged; those of one ``group`` are weighed together.
        texts: what the members are to differ about: its terms are theirs too.

    Raises:
        DataError: No group has an ordered pair.
    """
    chosen, rejected, weight_N, unit_N = _weighed_pairs(groups, seed)
    known = list(dict.fromkeys([*chosen, *rejected]))
    vocabulary, idf = fit_vocabulary(dict.fromkeys([*known, *texts]), word_terms, min_texts=1)
    terms = (word_terms, tuple(vocabulary), idf)
    rows, place = baseline_rows(known, [terms]), {text: i for i, text in enumerate(known)}
    difference = (rows[[place[text] for text in chosen]] - rows[[place[text] for text in rejected]]).tocsr()
    rng = np.random.default_rng(stream_seed(seed, "ensemble"))
    coefficients = []
    for _ in range(members):
        drawn_N = rng.exponential(size=unit_N.max() + 1)[unit_N]
        prior_V = rng.normal(scale=STRENGTH**0.5, size=len(vocabulary))
        coefficients.append(fit_differences(difference, weight_N * drawn_N, STRENGTH, prior_V, prior_V))
    return PairEnsemble(terms, np.array(coefficients))


def _weighed_pairs(groups: Sequence[RankedGroup], seed: int) -> tuple[list[str], list[str], FloatArray, IntArray]:
    """Better texts, worse texts, weights, and the number of what each pair was judged in; or a part of the pairs."""
    units: dict[str | int, int] = {}
    pairs = [
        (group.completions[a], group.completions[b], group.weight, units.setdefault(group.group or i, len(units)))
        for i, group in enumerate(groups)
        for a, rank_a in enumerate(group.ranks)
        for b, rank_b in enumerate(group.ranks)
        if rank_a < rank_b
    ]
    if not pairs:
        raise DataError("the ranked groups hold no ordered pair", why="every completion is tied with the others")
    chosen, rejected, weights, numbers = zip(*some_of(pairs, MAX_ENSEMBLE_PAIRS, seed), strict=True)
    return list(chosen), list(rejected), np.array(weights, dtype=np.float64), np.array(numbers, dtype=np.int64)
