"""How far a policy's samples are from the texts a reward model was taught: where they are, its word is worth less.

Three looks at it: how well a classifier tells the two apart, how many of the samples' words were never judged, and
whether the members of an ensemble differ more about the samples. Torch-free.

Shapes: N texts, S scored texts, H members.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from accord.errors import DataError
from accord.evals.metrics import word_count
from accord.evals.pair_baseline import baseline_rows
from accord.evals.pairs import some_of
from accord.evals.tfidf import fit_vocabulary, word_terms, words
from accord.seeds import stream_seed
from accord.stats import FloatArray, Interval, bootstrap_by_cluster, cluster_draws, percentile_interval

MOST_TEXTS = 2_000  # of each side: a classifier of so many is fitted in seconds, and its interval is narrow
FOLDS = 5
PENALTY = 1.0


@dataclass(frozen=True)
class Drift:
    """Samples beside the texts that were judged.

    ``told_apart``: area under the ROC curve of a classifier on prompts it was not fitted to: 0.5 = the same kind of
    texts, 1 = always told apart. ``new_words``: share of a sample's words that stand in no judged text. ``longer``:
    mean length of the samples in words over that of the judged texts. ``score`` is the mean score of each side,
    ``spread`` the mean standard deviation over an ensemble's members, None without one.
    """

    told_apart: Interval
    new_words: Interval
    longer: float
    score_samples: Interval
    score_judged: Interval
    spread_samples: Interval | None
    spread_judged: Interval | None


@dataclass(frozen=True, eq=False)
class DriftSide:
    """Texts of one side with their prompts.

    ``score_S`` are scores of S texts of this kind with the prompts ``scored``, ``member_SH`` those of an ensemble's
    members, where there are several.
    """

    texts: Sequence[str]
    prompts: Sequence[str]
    score_S: FloatArray
    scored: Sequence[str]
    member_SH: FloatArray | None = None


def measure_drift(judged: DriftSide, samples: DriftSide, *, seed: int = 0) -> Drift:
    """Return how samples differ from judged texts; intervals resample prompts."""
    known = {word for text in judged.texts for word in words(text)}
    shares = [
        float(np.mean([word not in known for word in found])) if (found := words(t)) else 0.0 for t in samples.texts
    ]
    spreads = [_spread(side, seed) for side in (samples, judged)]
    return Drift(
        told_apart=told_apart(judged, samples, seed=seed),
        new_words=bootstrap_by_cluster(shares, samples.prompts, seed=seed),
        longer=_mean_words(samples) / max(1.0, _mean_words(judged)),
        score_samples=bootstrap_by_cluster(samples.score_S, samples.scored, seed=seed),
        score_judged=bootstrap_by_cluster(judged.score_S, judged.scored, seed=seed),
        spread_samples=spreads[0],
        spread_judged=spreads[1],
    )


def _mean_words(side: DriftSide) -> float:
    return float(np.mean([word_count(text) for text in side.texts]))


def _spread(side: DriftSide, seed: int) -> Interval | None:
    if side.member_SH is None:
        return None
    return bootstrap_by_cluster(side.member_SH.std(axis=1, ddof=1), side.scored, seed=seed)


def told_apart(judged: DriftSide, samples: DriftSide, *, seed: int = 0) -> Interval:
    """Return the area under the ROC curve of a logistic regression on TF-IDF that tells samples from judged texts.

    Each prompt's texts are scored by a classifier that saw none of that prompt; the interval resamples prompts.
    Raises DataError where fewer than `FOLDS` prompts hold texts.
    """
    drawn = [
        some_of(list(zip(side.texts, side.prompts, strict=True)), MOST_TEXTS, stream_seed(seed, "drift"))
        for side in (judged, samples)
    ]
    texts = [text for side in drawn for text, _ in side]
    prompts = [prompt for side in drawn for _, prompt in side]
    is_sample_N = np.repeat([False, True], [len(side) for side in drawn])
    names = sorted(set(prompts))
    if len(names) < FOLDS:
        raise DataError(f"{len(names)} prompts", why=f"a classifier is tried on each {FOLDS}th part of them")
    place = {name: i for i, name in enumerate(np.random.default_rng(seed).permutation(names))}
    cluster_N = np.array([place[prompt] for prompt in prompts])
    score_N = _scores_across(texts, is_sample_N, cluster_N % FOLDS)
    drawn_R = np.concatenate(
        [
            [area_under_curve(score_N, is_sample_N, count_C[cluster_N]) for count_C in counts]
            for counts in cluster_draws(len(names), 200, seed, len(names))
        ]
    )
    value = area_under_curve(score_N, is_sample_N, np.ones(len(texts)))
    return percentile_interval(value, drawn_R[np.isfinite(drawn_R)], 0.95, len(texts), len(names))


def _scores_across(
    texts: Sequence[str], is_sample_N: npt.NDArray[np.bool_], fold_N: npt.NDArray[np.int64]
) -> FloatArray:
    """Return each text's log-odds of being a sample, by a classifier fitted to the other folds."""
    from sklearn.linear_model import LogisticRegression

    score_N = np.zeros(len(texts))
    for fold in range(FOLDS):
        inside = fold_N == fold
        learnt = [text for text, one in zip(texts, inside, strict=True) if not one]
        if not inside.any() or len(set(is_sample_N[~inside])) < 2:
            continue
        vocabulary, idf = fit_vocabulary(learnt, word_terms, min_texts=1)
        rows = baseline_rows(texts, [(word_terms, tuple(vocabulary), idf)])
        model = LogisticRegression(C=1 / PENALTY, class_weight="balanced", max_iter=500)
        model.fit(rows[~inside], is_sample_N[~inside])
        score_N[inside] = model.decision_function(rows[inside])
    return score_N


def area_under_curve(score_N: npt.ArrayLike, positive_N: npt.ArrayLike, weight_N: npt.ArrayLike) -> float:
    """Return the chance that a positive has a higher score than a negative, ties half; NaN where one kind is missing.

    Weights say how often each counts (Hanley & McNeil 1982).
    """
    score, positive, weight = (np.asarray(one) for one in (score_N, positive_N, weight_N))
    _, place = np.unique(score, return_inverse=True)
    yes = np.bincount(place, weight * positive)
    no = np.bincount(place, weight * ~positive.astype(bool))
    if not yes.sum() or not no.sum():
        return float("nan")
    below = np.cumsum(no) - no / 2
    return float(yes @ below / (yes.sum() * no.sum()))
