"""Which rows of a file are kept from training, which of very many are measured, and the number that comes of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from accord.connected import Connected
from accord.records import JudgedGroup, RankedGroup
from accord.stats import bootstrap_by_cluster, share_by_cluster

_T = TypeVar("_T")

HELD_OUT_EVERY = 20  # 5 % of the data: enough to see overfitting, and little is lost to training


def hold_out(
    rows: Sequence[_T], names: Sequence[Iterable[Hashable]] | None = None
) -> tuple[Sequence[_T], Sequence[_T]]:
    """Split off every twentieth unit of rows as held out; of fewer than twenty units the first serves for both.

    Rows that share a name (a topic, a prompt, a group), directly or through others, are one unit: what was learnt of
    one of them would be measured on the other. Units count in the order of their first rows.

    Args:
        rows: All rows, R of them.
        names: What each row shares with others; without it each is a unit of its own.
    """
    unit_R = list(range(len(rows))) if names is None else unit_names(names)
    order = {unit: place for place, unit in enumerate(dict.fromkeys(unit_R))}
    out_R = [order[unit] % HELD_OUT_EVERY == 0 for unit in unit_R]
    if len(order) < HELD_OUT_EVERY:
        return rows, [row for row, unit in zip(rows, unit_R, strict=True) if order[unit] == 0]
    train = [row for row, is_out in zip(rows, out_R, strict=True) if not is_out]
    return train, [row for row, is_out in zip(rows, out_R, strict=True) if is_out]


def unit_names(names: Sequence[Iterable[Hashable]]) -> list[int]:
    """Return the unit of each row, by the number of the first row that it hangs together with."""
    together, first = Connected[int](), dict[Hashable, int]()
    for row, shared_names in enumerate(names):
        together.join([row, *(first.setdefault(name, row) for name in shared_names)])
    return [together.find(row) for row in range(len(names))]


def shared(judged: RankedGroup | JudgedGroup) -> set[tuple[str, str]]:
    """Return the names that a judgement may share with others: its prompt, topic and group."""
    named = {"prompt": judged.prompt, "topic": judged.topic, "group": judged.group}
    return {(kind, name) for kind, name in named.items() if name}


def was_held_out(train: Sequence[_T], valid: Sequence[_T]) -> bool:
    """Return whether held-out rows trained nothing: of too few units `hold_out` lets the first serve for both."""
    return bool(valid) and not (train and valid[0] is train[0])


def every_nth(rows: Sequence[_T], most: int) -> Sequence[_T]:
    """Return all rows, or every n-th of more than ``most``: spread over the file, whose order may mean something."""
    return rows[:: max(1, -(-len(rows) // most))]


# -- texts without names -----------------------------------------------------------------------------------------------

RUN = 13  # tokens: shorter runs stand in texts that have nothing else in common
CHUNK = 1 << 20  # tokens looked through at a time: 8 MB a column


def leaked(train_T: npt.NDArray[Any], texts: Sequence[Sequence[int]]) -> list[bool]:
    """Return which texts a stream of training tokens holds: half of their runs of 13 tokens or more, or the whole text.

    Duplicates and near-duplicates are found so, and overlapping cuts of one document (Brown et al. 2020, appendix C,
    by words). Another part of the same document is not: nothing in its tokens tells.

    Args:
        train_T: (T,) token ids of the training texts, one behind the other, with end tokens between.
        texts: Token ids of held-out texts, their end tokens included: a shorter text than a run counts as a whole.
    """
    by_length = defaultdict[int, list[int]](list)
    for place, text in enumerate(texts):
        by_length[min(len(text), RUN)].append(place)
    found = [False] * len(texts)
    for length, members in by_length.items():
        if length == 0:
            continue
        runs = [_runs(np.asarray(texts[place]), length) for place in members]
        wanted = np.unique(np.concatenate(runs))
        seen = np.zeros(len(wanted), dtype=bool)
        for start in range(0, len(train_T) - length + 1, CHUNK):
            hashes = np.unique(_runs(train_T[start : start + CHUNK + length - 1], length))
            seen |= np.isin(wanted, hashes, assume_unique=True)
        for place, run in zip(members, runs, strict=True):
            found[place] = bool(seen[np.searchsorted(wanted, run)].mean() >= 0.5)
    return found


def _runs(ids_T: npt.NDArray[Any], length: int) -> npt.NDArray[np.uint64]:
    """Return a number for each run of so many tokens; two runs share one by a chance of 2^-64 or so."""
    total = np.zeros(len(ids_T) - length + 1, dtype=np.uint64)
    for i in range(length):
        total = total * np.uint64(0x9E3779B97F4A7C15) + ids_T[i : len(ids_T) - length + 1 + i].astype(np.uint64)
        total ^= total >> np.uint64(29)
    return total


# -- the number of rows that trained nothing ---------------------------------------------------------------------------


@dataclass(frozen=True)
class HeldOut:
    """A number of rows that trained nothing, with its 95 % interval, and the same of a baseline that learnt nothing.

    Attributes:
        value: None, as its interval is, where there are too few rows; then ``why`` says so.
        n: Rows that were measured: judgements, demonstrations, texts.
        units: How many of them share no topic, prompt or group with each other; the interval resamples these.
        baseline: The number of what ``baseline_is`` names, on the same rows.
        what: What it is a number of, in words.
    """

    what: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    units: int = 0
    baseline: float | None = None
    baseline_is: str = ""
    why: str = ""


def none_held_out(what: str) -> HeldOut:
    """Return what stands in the number's place where nothing was held out."""
    return HeldOut(what, why=f"fewer than {HELD_OUT_EVERY} that share no topic, prompt or group: none is held out")


@dataclass(frozen=True)
class Measured:
    """Numbers of held-out rows, one each: values and weights, the same by a baseline, and what hangs together.

    A row without choices weighs nothing. ``names``: what each row shares with others.
    """

    what: str
    values: Sequence[float]
    weights: Sequence[float]
    baseline: Sequence[float]
    baseline_is: str
    names: Sequence[Iterable[Hashable]]

    def told(self) -> HeldOut:
        """Return the weighted mean with its interval by unit; no number of fewer than twenty rows."""
        counted = [i for i, weight in enumerate(self.weights) if weight > 0]
        units = unit_names([self.names[i] for i in counted])
        found = HeldOut(self.what, n=len(counted), units=len(set(units)), baseline_is=self.baseline_is)
        if len(counted) < HELD_OUT_EVERY:
            return replace(found, why=f"{len(counted)} held out, and fewer than {HELD_OUT_EVERY} tell nothing")
        # Of few prompts that all rows share nothing can be said of others: rows then, and the number is of these alone.
        clusters = units if found.units >= HELD_OUT_EVERY else counted
        weights = [self.weights[i] for i in counted]
        of = share_by_cluster if self.is_share else bootstrap_by_cluster
        said = of([self.values[i] for i in counted], clusters, weights=weights)
        base = sum(w * self.baseline[i] for w, i in zip(weights, counted, strict=True)) / sum(weights)
        return replace(found, value=said.value, low=said.low, high=said.high, baseline=base)

    @property
    def is_share(self) -> bool:
        return all(0 <= value <= 1 for value in self.values)
