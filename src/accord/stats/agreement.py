"""How far people agree: raw, beyond chance (Cohen, Fleiss, Krippendorff), and on the order of pairs.

Judgements come in long form, one value per judgement, so that missing ones need no mark. Whatever cannot be stated
(nobody judged twice, everybody said the same) is an `Unknown` with its reason, not an exception: it is news, not an
error. Intervals are percentile bootstraps that draw whole items (or whole clusters of items), which Zapf et al. 2016
(BMC Med. Res. Methodol. 16:93) recommend for Fleiss' kappa and Krippendorff's alpha. Where nobody disagrees every
resample says 1, which few items cannot show: Wilson's bound on the raw agreement stands in then, see `_with_width`.

Axes: N items, C values, K clusters, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from accord.errors import DataError
from accord.stats.intervals import (
    Estimate,
    FloatArray,
    IntArray,
    Interval,
    Labels,
    Unknown,
    cluster_draws,
    cluster_index,
    percentile_interval,
    share_by_cluster,
    vector,
    wilson,
)

Metric = Literal["nominal", "ordinal", "interval"]

#: What each number means, in one line, for whoever shows it.
DEFINITIONS: Mapping[str, str] = {
    "raw": "Of two people who judged the same item, the share that said the same; mean over items.",
    "cohen": "Cohen's kappa: agreement of two people beyond what their own habits would give by chance. 1 = always "
    "the same, 0 = no better than chance.",
    "fleiss": "Fleiss' kappa: agreement of any number of people beyond chance, where chance draws from all answers "
    "together. 1 = always the same, 0 = no better than chance.",
    "alpha": "Krippendorff's alpha: 1 - (disagreement seen) / (disagreement of answers shuffled over all items). 1 = "
    "always the same, 0 = no better than chance; below .667 most conclusions are unsafe (Krippendorff 2004).",
}

MAX_VALUES = 64  # alpha holds a C x C table for every item


@dataclass(frozen=True, eq=False)
class JudgedItems:
    """How often each item was given each value; of items with two judgements or more, the others say nothing.

    ``count_NC`` (N, C); ``values`` the C different values, in order; ``cluster_N`` the cluster of each item, 0..K-1;
    ``num_single`` how many items had one judgement and are left out.
    """

    count_NC: FloatArray
    values: tuple[Any, ...]
    cluster_N: IntArray
    num_single: int

    @property
    def num_clusters(self) -> int:
        return int(self.cluster_N.max()) + 1 if len(self.cluster_N) else 0

    def lacking(self) -> Unknown | None:
        """Return why no agreement can be stated at all; None if one can."""
        if len(self.count_NC):
            return None
        if self.num_single:
            return Unknown(f"no item was judged by two people ({self.num_single} by one): give tasks an overlap of 2")
        return Unknown("nothing was judged yet")

    def unanimous(self) -> Unknown | None:
        """Return why agreement beyond chance cannot be stated; None if it can."""
        used = self.count_NC.sum(axis=0) > 0
        if used.sum() > 1:
            return None
        value = self.values[int(used.argmax())]
        return Unknown(
            f"all {int(self.count_NC.sum())} judgements say {value}: where only one answer occurs, agreement by "
            "chance is certain and nothing can lie beyond it (0/0); the raw agreement is 1"
        )


def judged_items(items: Labels, values: Labels, clusters: Labels | None = None) -> JudgedItems:
    """Tabulate judgements.

    Args:
        items: (M,) what was judged, per judgement. One person judges an item at most once.
        values: (M,) what was said.
        clusters: (M,) the unit of resampling (the task, the film); None makes each item its own.
    """
    item_M = cluster_index(items, len(values))
    levels = sorted(set(values), key=_order)
    number = {value: i for i, value in enumerate(levels)}
    count_NC = np.zeros((int(item_M.max()) + 1 if len(item_M) else 0, len(levels)))
    np.add.at(count_NC, (item_M, np.array([number[value] for value in values], dtype=np.int64)), 1.0)
    cluster_N = np.zeros(len(count_NC), dtype=np.int64)
    cluster_N[item_M] = item_M if clusters is None else cluster_index(clusters, len(values))
    several = count_NC.sum(axis=1) >= 2
    kept = np.unique(cluster_N[several], return_inverse=True)[1].astype(np.int64)
    return JudgedItems(count_NC[several], tuple(levels), kept, int((~several).sum()))


def _order(value: Hashable) -> tuple[int, Any]:
    return (0, value) if isinstance(value, int | float | np.number) else (1, str(value))


def raw_agreement(judged: JudgedItems, *, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> Estimate:
    """Return the mean over items of the share of pairs of judgements that are equal (`DEFINITIONS` "raw")."""
    if why := judged.lacking():
        return why
    return share_by_cluster(_alike(judged), judged.cluster_N, level=level, resamples=resamples, seed=seed)


def fleiss_kappa(judged: JudgedItems, *, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> Estimate:
    """Return Fleiss' kappa of any number of people (Fleiss 1971), (P - Pe) / (1 - Pe).

    P is the raw agreement, Pe = sum_c p_c^2 with p_c the mean over items of the share that said c. With as many
    judgements of each item this is Fleiss' own; otherwise each item weighs the same (Gwet 2014, ch. 2).
    """
    if why := judged.lacking() or judged.unanimous():
        return why
    share_NC = judged.count_NC / judged.count_NC.sum(axis=1, keepdims=True)
    sums_KF = _by_cluster(judged, np.column_stack([np.ones(len(share_NC)), _alike(judged), share_NC]))

    def kappa(count_RK: npt.NDArray[Any]) -> FloatArray:
        total_RF = count_RK @ sums_KF
        mean_RF = total_RF[:, 1:] / total_RF[:, :1]
        return _beyond(mean_RF[:, 0], (mean_RF[:, 1:] ** 2).sum(axis=1))

    return _resampled(kappa, judged, sums_KF.shape[1], level, resamples, seed)


def krippendorff_alpha(
    judged: JudgedItems, metric: Metric = "nominal", *, level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> Estimate:
    """Return alpha = 1 - Do / De for any number of people and missing judgements.

    Krippendorff 2004, ch. 11; 2011.

    Args:
        metric: How far two values lie apart: "nominal" (0 or 1), "ordinal" (by how many judgements lie between them),
            "interval" (the square of their difference). The last two need numbers.

    Raises:
        DataError: values that are not numbers for an ordinal or interval metric, or more than 64 different ones.
    """
    if why := judged.lacking() or judged.unanimous():
        return why
    values_C, size = _numbers(judged, metric), len(judged.values)
    if size > MAX_VALUES:
        raise DataError(f"{size} different values", why=f"alpha takes up to {MAX_VALUES}", hint="round the values")
    pairs_NCC = judged.count_NC[:, :, None] * judged.count_NC[:, None, :]
    # No judgement is paired with itself.
    pairs_NCC[:, range(size), range(size)] -= judged.count_NC
    # Each judgement counts once, however many others its item has (Krippendorff's coincidences).
    pairs_NCC /= judged.count_NC.sum(axis=1)[:, None, None] - 1
    sums_KF = _by_cluster(judged, pairs_NCC.reshape(len(pairs_NCC), -1))

    def alpha(count_RK: npt.NDArray[Any]) -> FloatArray:
        pairs_RCC = (count_RK @ sums_KF).reshape(-1, size, size)
        seen_R, chance_R = _DISAGREEMENT[metric](pairs_RCC, pairs_RCC.sum(axis=2), values_C)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(1 - (pairs_RCC.sum(axis=(1, 2)) - 1) * seen_R / chance_R)

    return _resampled(alpha, judged, size * size, level, resamples, seed)


def cohen_kappa(
    first: Labels,
    second: Labels,
    clusters: Labels | None = None,
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Return Cohen's kappa of two people on the same items.

    Chance is the product of their own shares of each value (Cohen 1960).

    Args:
        first, second: (N,) what each said of the same N items.
        clusters: (N,) the unit of resampling; None makes each item its own.
    """
    if len(first) != len(second):
        raise DataError(f"{len(first)} and {len(second)} judgements", hint="give both people's of the same items")
    if not len(first):
        return Unknown("the two judged nothing in common")
    levels = sorted(set(first) | set(second), key=_order)
    number, size = {value: i for i, value in enumerate(levels)}, len(levels)
    judged = judged_items([*range(len(first))] * 2, [*first, *second], None if clusters is None else [*clusters] * 2)
    if why := judged.unanimous():
        return why
    cell_N = [number[a] * size + number[b] for a, b in zip(first, second, strict=True)]
    sums_KF = _by_cluster(judged, np.eye(size * size)[cell_N])

    def kappa(count_RK: npt.NDArray[Any]) -> FloatArray:
        table_RCC = (count_RK @ sums_KF).reshape(-1, size, size) / (count_RK @ sums_KF).sum(axis=1)[:, None, None]
        chance_R = (table_RCC.sum(axis=1) * table_RCC.sum(axis=2)).sum(axis=1)
        return _beyond(np.trace(table_RCC, axis1=1, axis2=2), chance_R)

    return _resampled(kappa, judged, size * size, level, resamples, seed)


def _alike(judged: JudgedItems) -> FloatArray:
    """Return the (N,) share of pairs of judgements of an item that are equal."""
    total_N = judged.count_NC.sum(axis=1)
    return np.asarray((judged.count_NC * (judged.count_NC - 1)).sum(axis=1) / (total_N * (total_N - 1)))


def _by_cluster(judged: JudgedItems, values_NF: FloatArray) -> FloatArray:
    sums_KF = np.zeros((judged.num_clusters, values_NF.shape[1]))
    np.add.at(sums_KF, judged.cluster_N, values_NF)
    return sums_KF


def _beyond(seen_R: FloatArray, chance_R: FloatArray) -> FloatArray:
    """Return agreement beyond chance; NaN where a resample holds one value only."""
    room_R = 1 - chance_R
    # 0 / 0, not 1: a resample in which one answer occurs says nothing about agreement beyond chance.
    return np.divide(seen_R - chance_R, room_R, out=np.full_like(seen_R, math.nan), where=room_R > 1e-12)


def _numbers(judged: JudgedItems, metric: Metric) -> FloatArray:
    if metric == "nominal":
        return np.zeros(len(judged.values))
    if not all(isinstance(value, int | float | np.number) for value in judged.values):
        raise DataError(f"{metric} alpha of values that are not numbers", hint="use the nominal metric")
    return np.array(judged.values, dtype=np.float64)


def _nominal(pairs_RCC: FloatArray, total_RC: FloatArray, values_C: FloatArray) -> tuple[FloatArray, FloatArray]:
    seen_R = total_RC.sum(axis=1) - np.trace(pairs_RCC, axis1=1, axis2=2)
    return seen_R, total_RC.sum(axis=1) ** 2 - (total_RC**2).sum(axis=1)


def _ordinal(pairs_RCC: FloatArray, total_RC: FloatArray, values_C: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the interval metric's sums on mid-ranks.

    sum_{g=c..k} n_g - (n_c + n_k) / 2 is the difference of two of them.
    """
    return _squares(pairs_RCC, total_RC, np.cumsum(total_RC, axis=1) - total_RC / 2)


def _interval(pairs_RCC: FloatArray, total_RC: FloatArray, values_C: FloatArray) -> tuple[FloatArray, FloatArray]:
    return _squares(pairs_RCC, total_RC, np.broadcast_to(values_C - values_C.mean(), total_RC.shape))


def _squares(pairs_RCC: FloatArray, total_RC: FloatArray, value_RC: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return sum_ck w_ck (v_c - v_k)^2 of pairs within items, and of all pairs; by (a - b)^2 = a^2 + b^2 - 2ab."""
    square_R = (total_RC * value_RC**2).sum(axis=1)
    seen_R = 2 * square_R - 2 * np.einsum("rc,rck,rk->r", value_RC, pairs_RCC, value_RC)
    return seen_R, 2 * total_RC.sum(axis=1) * square_R - 2 * (total_RC * value_RC).sum(axis=1) ** 2


#: Metric -> (disagreement seen, disagreement of all pairs), each summed over pairs, from tables of values.
_DISAGREEMENT: Mapping[Metric, Callable[[FloatArray, FloatArray, FloatArray], tuple[FloatArray, FloatArray]]] = {
    "nominal": _nominal,
    "ordinal": _ordinal,
    "interval": _interval,
}


def _resampled(
    statistic: Callable[[npt.NDArray[Any]], FloatArray],
    judged: JudgedItems,
    width: int,
    level: float,
    resamples: int,
    seed: int,
) -> Interval:
    """Return the statistic with its bootstrap interval.

    Resamples in which it does not exist are left out of the interval; where that is most of them, none is stated.
    """
    clusters, n = judged.num_clusters, len(judged.count_NC)
    value = float(statistic(np.ones((1, clusters)))[0])
    draws = np.concatenate(
        [statistic(count_RK) for count_RK in cluster_draws(clusters, resamples, seed, max(clusters, width))]
    )
    stated = draws[np.isfinite(draws)]
    # An interval of the few resamples that exist would be too narrow.
    if 2 * len(stated) < len(draws):
        return Interval(value, math.nan, math.nan, n, clusters)
    return _with_width(percentile_interval(value, stated, level, n, clusters), judged, level)


def _with_width(found: Interval, judged: JudgedItems, level: float) -> Interval:
    """Give an agreement whose resamples are all alike the interval of the raw agreement.

    1 - kappa = (1 - raw) / (1 - chance), with chance as the answers given have it, turns the ends of one into those of
    the other, cut at -1: of answers that are nearly all the same nothing can be said. For alpha of numbers it takes
    people who do not agree to answer at random (Aickin 1990).
    """
    if not found.has_no_width:
        return found
    raw = float(_alike(judged).mean())
    bounds = wilson(raw * found.clusters, found.clusters, level)
    share_NC = judged.count_NC / judged.count_NC.sum(axis=1, keepdims=True)
    room = 1 - float((share_NC.mean(axis=0) ** 2).sum())
    # With a true kappa of .9 and 12 items (300 draws, 162 without any disagreement) it covers in 99 %, the bootstrap
    # alone in 45 %.
    unit = (1 - found.value) / (1 - raw) if raw < 1 else 1 / room
    low, high = (max(-1.0, 1 - unit * (1 - bound)) for bound in (bounds.low, bounds.high))
    return replace(found, low=low, high=high)


def pairwise_agreement(
    first: npt.ArrayLike, second: npt.ArrayLike, groups: Labels, *, level: float = 0.95, seed: int = 0
) -> Interval:
    """Return the share of pairs that both order alike, with its interval by group.

    The pairs are those of items of one group that both score differently.

    Args:
        first, second: (N,) two annotators' (or predictors') scores or ranks of the same items, same direction.
        groups: (N,) which items were compared with one another (the prompt). Pairs tied by either do not count.
    """
    a_N = vector(first, "first")
    b_N = vector(second, "second", len(a_N))
    group_N = cluster_index(groups, len(a_N))
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
            "no pair of items is ordered by both", hint="agreement needs items that both scored differently"
        )
    return share_by_cluster(np.concatenate(alike), np.concatenate(owner), level=level, seed=seed)
