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
BURN_IN, DRAWS = 20, 200  # sweeps of the sampler, which starts at the fit: 50 more move no bound by .01


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
        smoothing: pseudo-judgements of each person and truth: this many right ones and half as many wrong ones, shared
            by the wrong values, so that people with few judgements stay near the middle (a Dirichlet prior; EM then
            climbs to the maximum of the posterior).

    The interval of the accuracy counts what is not known of truths, confusions and shares alike, by draws from their
    posterior (Gibbs sampling from the fit on): the wider of the draws' quantiles and of Wilson's interval at as many
    trials as the draws' variance is worth. In simulation a stated .95 covered .94 to .97 over teams of 3 to 20 people
    and two values, and .80 to .97 for the best of a team, least where items are few or have two judgements; of three
    values with half of a team of five near guessing .91, and .76 for the best (docs/LOG.md, 2026-12-01).
    It is the interval of one person, not of all: all were covered at once in .93 (3 people) to .40 (20), and whoever
    comes out best in .86 to .99. For all at once, or the best of A, ask for ``level ** (1 / A)`` (Sidak 1967).
    Kappa's interval is Wilson's at the number of trials and takes the fitted confusions as known.

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
    drawn_RA = _draw_accuracies(votes, fixed_NC, posterior_NC, smoothing)
    accuracy, kappa = [], []
    for annotator in range(len(people)):
        own = annotator_M == annotator
        accuracy.append(_covering(_share_right(right_M[own], trial_M[own], level), drawn_RA[:, annotator], level))
        # By the others' word alone: with their own counted, people who guess seem right where the others are unsure
        # (kappa .20 where it is 0, in a team of 20).
        share = _share_right(others_M[own], trial_M[own], level)
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
    pseudo_CC = _pseudo_counts(votes.num_values, smoothing)
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


def _pseudo_counts(num_values: int, smoothing: float) -> FloatArray:
    # Twice as much on the diagonal: people are taken for better than chance until they show otherwise. The wrong values
    # share one half: with a half for each, ratings of 1 to 5 would begin with twice as many wrong as right.
    wrong = 0.5 / max(1, num_values - 1)
    return smoothing * (wrong + (1 - wrong) * np.eye(num_values))


def _draw_accuracies(votes: _Votes, fixed_NC: FloatArray, posterior_NC: FloatArray, smoothing: float) -> FloatArray:
    """Return (R, A) draws of the accuracies from their posterior: truths given people, people given truths, in turn."""
    rng = np.random.default_rng(0)
    known_N1 = np.isfinite(fixed_NC[:, :1])
    pseudo_CC = np.maximum(_pseudo_counts(votes.num_values, smoothing), LEAST_COUNT)
    truths, draws = np.arange(votes.num_values), []
    for sweep in range(BURN_IN + DRAWS):
        below_N = rng.random((len(posterior_NC), 1)) > posterior_NC.cumsum(axis=1)
        truth_NC = (np.minimum(below_N.sum(axis=1, keepdims=True), truths[-1]) == truths).astype(np.float64)
        confusion_ACC = rng.standard_gamma(votes.confusion_counts(truth_NC) + pseudo_CC) + np.finfo(np.float64).tiny
        confusion_ACC /= confusion_ACC.sum(axis=2, keepdims=True)
        share_C = rng.standard_gamma(np.maximum(truth_NC.sum(axis=0) + smoothing, LEAST_COUNT))
        share_C = (share_C + np.finfo(np.float64).tiny) / (share_C + np.finfo(np.float64).tiny).sum()
        log_joint_NC = votes.log_evidence(confusion_ACC) + np.log(share_C)
        drawn_NC = np.exp(log_joint_NC - np.logaddexp.reduce(log_joint_NC, axis=1, keepdims=True))
        posterior_NC = np.where(known_N1, fixed_NC, drawn_NC)
        if sweep >= BURN_IN:
            draws.append(np.einsum("acc,c->a", confusion_ACC, share_C))
    return np.array(draws)


def _covering(share: Interval, drawn_R: FloatArray, level: float) -> Interval:
    """Return a share with the wider interval of draws from its posterior and of as many trials as they are worth.

    Draws alone are too narrow where the prior pulls (the best and the worst), trials alone where few judge an item.
    """
    mean, variance = float(drawn_R.mean()), float(drawn_R.var())
    worth = mean * (1 - mean) / variance - 1 if variance > 0 else float(share.n)
    # Judgements of one cluster count as one.
    design = share.clusters / share.n
    trials = max(design * min(worth, share.n), LEAST_COUNT)
    bounds = wilson(share.value * trials, trials, level)
    low, high = np.quantile(drawn_R, ((1 - level) / 2, (1 + level) / 2))
    low, high = (share.value + (bound - share.value) / np.sqrt(design) for bound in (low, high))
    low, high = max(0.0, min(bounds.low, float(low))), min(1.0, max(bounds.high, float(high)))
    return Interval(share.value, low, high, share.n, share.clusters)


def _without_own(votes: _Votes, posterior_NC: FloatArray, confusion_ACC: FloatArray) -> FloatArray:
    """Return the (M,) chance that what was said is true, by everything but this judgement; known truths stay known."""
    own_MC = np.log(confusion_ACC)[votes.annotator_M, :, votes.value_M]
    log_MC = np.log(np.maximum(posterior_NC, np.finfo(np.float64).tiny))[votes.item_M] - own_MC
    said_M = log_MC[np.arange(len(log_MC)), votes.value_M]
    return np.asarray(np.exp(said_M - np.logaddexp.reduce(log_MC, axis=1)))


def _share_right(right_m: FloatArray, trial_m: IntArray, level: float) -> Interval:
    """Return the mean chance of being right over trials, with Wilson's interval."""
    trial_m = np.unique(trial_m, return_inverse=True)[1]
    size_K = np.bincount(trial_m)
    share = min(1.0, float((np.bincount(trial_m, right_m) / size_K).mean()))
    bounds = wilson(share * len(size_K), len(size_K), level)
    return Interval(share, bounds.low, bounds.high, len(right_m), len(size_K))


def _beyond(accuracy: Interval, chance: float) -> Interval:
    """Return the same beyond chance, at least -1; with one value in all there is none to go beyond."""
    # All said one thing: 0 / 0.
    if chance > 1 - 1e-12:
        return accuracy
    bounds = (accuracy.value, accuracy.low, accuracy.high)
    value, low, high = (max(-1.0, (bound - chance) / (1 - chance)) for bound in bounds)
    return Interval(value, low, high, accuracy.n, accuracy.clusters)
