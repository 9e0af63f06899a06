"""How right each person is when nobody knows the truth: the model of Dawid & Skene.

Axes: M judgements, N items, A annotators, C values (of the truth and of what is said alike).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from accord.errors import DataError
from accord.stats.intervals import FloatArray, IntArray, Interval, Labels, cluster_index, wilson

LEAST_COUNT = 1e-12  # of a judgement


@dataclass(frozen=True, eq=False)
class DawidSkene:
    """What the judgements say together about the items and about the people.

    ``posterior_NC`` (N, C) chance of each value being the truth of each of ``items``; ``confusion_ACC`` (A, C, C) the
    chance that annotator a says the second value where the first is true; ``share_C`` (C,) how common each truth is;
    ``objectives`` the penalised log-likelihood after each step, which never falls.
    ``accuracy``, one per annotator: the share of their judgements that are right, by the posterior.
    ``kappa``: the same beyond chance and by the others' judgements alone, (share - chance) / (1 - chance) where the
    share is that of the truth without the person's own word, and chance that of the person's habits. It is 0 for who
    clicks at random or always says the same, below 0 for who turns the scale round. Where the others are unsure it
    falls short of what the accuracy suggests, for the best people most of all: who is left without them?
    """

    items: tuple[Any, ...]
    annotators: tuple[Any, ...]
    values: tuple[Any, ...]
    posterior_NC: FloatArray
    confusion_ACC: FloatArray
    share_C: FloatArray
    objectives: tuple[float, ...]
    accuracy: tuple[Interval, ...]
    kappa: tuple[Interval, ...]


def dawid_skene(
    items: Labels,
    annotators: Labels,
    values: Labels,
    clusters: Labels | None = None,
    *,
    known: Mapping[Any, Any] | None = None,
    smoothing: float = 1.0,
    level: float = 0.95,
    max_steps: int = 200,
) -> DawidSkene:
    """Fit by EM (Dawid & Skene 1979), started from the known truths, or from the shares of the votes without any.

    Args:
        items, annotators, values: (M,) what was judged, by whom, what was said.
        clusters: (M,) judgements of one person in one cluster (the pairs of one ranking) count as one trial in the
            intervals; None: every judgement is a trial.
        known: the truth of some items (gold questions), which is then not inferred.
        smoothing: pseudo-judgements of each person and truth: this many right ones and half as many of each wrong
            value, so that people with few judgements stay near the middle (a Dirichlet prior; EM then climbs to the
            maximum of the posterior).

    The intervals are Wilson's at the number of trials; for the accuracy that number is reduced by what is not known of
    the truths (the variance of the posteriors, added as in Rubin's rule). They take the fitted confusions as known.

    Raises:
        DataError: there are no judgements, or the columns differ in length.
    """
    if not len(values) or not len(items) == len(annotators) == len(values):
        raise DataError(f"{len(items)} items, {len(annotators)} annotators, {len(values)} values", why="M > 0 of each")
    truths = {item: value for item, value in (known or {}).items() if item in set(items)}
    levels = sorted(set(values) | set(truths.values()), key=lambda value: (str(type(value)), value))
    number = {value: i for i, value in enumerate(levels)}
    item_M, annotator_M = cluster_index(items, len(values)), cluster_index(annotators, len(values))
    value_M = np.array([number[value] for value in values], dtype=np.int64)
    names, people = tuple(dict.fromkeys(items)), tuple(dict.fromkeys(annotators))
    place = {name: i for i, name in enumerate(names)}
    fixed_NC = np.full((len(names), len(levels)), np.nan)
    for item, value in truths.items():
        fixed_NC[place[item]] = np.eye(len(levels))[number[value]]
    votes = _Votes(item_M, annotator_M, value_M, len(names), len(people), len(levels))
    posterior_NC, confusion_ACC, share_C, objectives = _climb(votes, fixed_NC, smoothing, max_steps)
    right_M = posterior_NC[item_M, value_M]
    others_M = _without_own(votes, posterior_NC, confusion_ACC)
    trial_M = np.arange(len(values)) if clusters is None else cluster_index(clusters, len(values))
    accuracy, kappa = [], []
    for annotator in range(len(people)):
        own = annotator_M == annotator
        accuracy.append(_share_right(right_M[own], trial_M[own], level, imputed=True))
        # By the others' word alone: with their own counted, people who guess seem right where the others are unsure
        # (kappa .20 where it is 0, in a team of 20).
        share = _share_right(others_M[own], trial_M[own], level, imputed=False)
        kappa.append(_beyond(share, float(share_C @ votes.habits(annotator))))
    return DawidSkene(
        names,
        people,
        tuple(levels),
        posterior_NC,
        confusion_ACC,
        share_C,
        objectives,
        tuple(accuracy),
        tuple(kappa),
    )


@dataclass(frozen=True, eq=False)
class _Votes:
    """The judgements as numbers, and the two sums over them that EM needs."""

    item_M: IntArray
    annotator_M: IntArray
    value_M: IntArray
    num_items: int
    num_annotators: int
    num_values: int

    def habits(self, annotator: int) -> FloatArray:
        """Return (C,) how often the annotator says each value."""
        said = np.bincount(self.value_M[self.annotator_M == annotator], minlength=self.num_values)
        return np.asarray(said / said.sum())

    def shares(self) -> FloatArray:
        """Return the (N, C) share of each item's votes."""
        cell_M = self.item_M * self.num_values + self.value_M
        count_NC = np.bincount(cell_M, minlength=self.num_items * self.num_values).reshape(-1, self.num_values)
        return np.asarray(count_NC / count_NC.sum(axis=1, keepdims=True))

    def confusion_counts(self, posterior_NC: FloatArray) -> FloatArray:
        """Return the (A, C, C) expected number of (truth, said) of each annotator."""
        cell_M = self.annotator_M * self.num_values + self.value_M
        size = self.num_annotators * self.num_values
        by_truth = [np.bincount(cell_M, chance_N[self.item_M], minlength=size) for chance_N in posterior_NC.T]
        count_CAC = np.array(by_truth, dtype=np.float64).reshape(self.num_values, self.num_annotators, self.num_values)
        return count_CAC.swapaxes(0, 1)

    def log_evidence(self, confusion_ACC: FloatArray) -> FloatArray:
        """Return the (N, C) log chance of an item's votes under each truth."""
        said_MC = np.log(confusion_ACC)[self.annotator_M, :, self.value_M]
        return np.stack([np.bincount(self.item_M, column, minlength=self.num_items) for column in said_MC.T], axis=1)


def _climb(
    votes: _Votes, fixed_NC: FloatArray, smoothing: float, max_steps: int
) -> tuple[FloatArray, FloatArray, FloatArray, tuple[float, ...]]:
    known_N1 = np.isfinite(fixed_NC[:, :1])
    # Twice as much on the diagonal: people are taken for better than chance until they show otherwise.
    pseudo_CC = smoothing * (np.eye(votes.num_values) + 1) / 2
    # A first guess from the known truths alone where there are some: votes may all be wrong, and EM would stay there.
    guess_NC = np.zeros_like(fixed_NC) if known_N1.any() else votes.shares()
    posterior_NC = np.where(known_N1, fixed_NC, guess_NC)
    objectives: list[float] = []
    for _ in range(max_steps):
        count_ACC = votes.confusion_counts(posterior_NC) + pseudo_CC
        # Without pseudo-judgements whoever has judged no item of a truth says nothing of it, and what never happened
        # keeps a logarithm.
        count_ACC = np.maximum(count_ACC, LEAST_COUNT)
        confusion_ACC = count_ACC / count_ACC.sum(axis=2, keepdims=True)
        share_C = np.maximum(posterior_NC.sum(axis=0) + smoothing, LEAST_COUNT)
        share_C /= share_C.sum()
        log_joint_NC = votes.log_evidence(confusion_ACC) + np.log(share_C)
        # In logs: the chance of many votes together leaves float64.
        total_N1 = np.logaddexp.reduce(log_joint_NC, axis=1, keepdims=True)
        posterior_NC = np.where(known_N1, fixed_NC, np.exp(log_joint_NC - total_N1))
        seen_NC = np.where(known_N1, fixed_NC * log_joint_NC, total_N1 / votes.num_values)
        penalty = float((pseudo_CC * np.log(confusion_ACC)).sum() + smoothing * np.log(share_C).sum())
        objectives.append(float(seen_NC.sum()) + penalty)
        if len(objectives) > 1 and objectives[-1] - objectives[-2] < 1e-7 * abs(objectives[-1]):
            break
    return posterior_NC, confusion_ACC, share_C, tuple(objectives)


def _without_own(votes: _Votes, posterior_NC: FloatArray, confusion_ACC: FloatArray) -> FloatArray:
    """Return the (M,) chance that what was said is true, by everything but this judgement; known truths stay known."""
    own_MC = np.log(confusion_ACC)[votes.annotator_M, :, votes.value_M]
    log_MC = np.log(np.maximum(posterior_NC, np.finfo(np.float64).tiny))[votes.item_M] - own_MC
    said_M = log_MC[np.arange(len(log_MC)), votes.value_M]
    return np.asarray(np.exp(said_M - np.logaddexp.reduce(log_MC, axis=1)))


def _share_right(right_m: FloatArray, trial_m: IntArray, level: float, *, imputed: bool) -> Interval:
    """Return the mean chance of being right over trials; ``imputed`` widens the interval, see `dawid_skene`."""
    trial_m = np.unique(trial_m, return_inverse=True)[1]
    size_K = np.bincount(trial_m)
    share = min(1.0, float((np.bincount(trial_m, right_m) / size_K).mean()))
    sampling = share * (1 - share) / len(size_K)
    unknown = float((np.bincount(trial_m, right_m * (1 - right_m)) / size_K).sum()) / len(size_K) ** 2
    trials = len(size_K) * (sampling / (sampling + unknown) if imputed and unknown > 0 else 1.0)
    bounds = wilson(share * trials, trials, level)
    return Interval(share, bounds.low, bounds.high, len(right_m), len(size_K))


def _beyond(accuracy: Interval, chance: float) -> Interval:
    """Return the same beyond chance, at least -1; with one value in all there is none to go beyond."""
    # All said one thing: 0 / 0.
    if chance > 1 - 1e-12:
        return accuracy
    bounds = (accuracy.value, accuracy.low, accuracy.high)
    value, low, high = (max(-1.0, (bound - chance) / (1 - chance)) for bound in bounds)
    return Interval(value, low, high, accuracy.n, accuracy.clusters)
