"""The agreement of people while they work, brought up to date answer by answer.

It is the raw agreement of the manager's page: of two people who ordered the same two completions, the share that
ordered them alike, the mean over all orders; where nothing is ordered, labels and ratings take their place. Its
interval resamples tasks, or is Wilson's where all tasks are alike.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from itertools import combinations
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from accord.people.desk.answers import Answer, read_answer
from accord.people.quality.evidence import LABEL, levels_of
from accord.people.quality.figures import with_interval
from accord.stats import Estimate, Unknown, share_by_cluster

if TYPE_CHECKING:
    from accord.people.desk.rows import GivenAnswer

RESAMPLES_SO_FAR = 500  # as many as the manager's page takes: both say the same
_NONE_YET = Unknown("no task has two answers that can be compared yet")


class TaskAgreement(NamedTuple):
    """How far the answers to one task agree: the mean over its items, 0 to 1, and how many items there are."""

    share: float
    items: int


class AgreementSoFar:
    """Keeps the agreement on each task, so that only tasks with another answer are looked at again."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple[int, ...], TaskAgreement]] = {}

    def of(self, answers: Iterable[GivenAnswer]) -> Estimate:
        """Return the agreement of these answers, each by another person of a task: ``n`` items in so many tasks."""
        by_task: dict[str, list[GivenAnswer]] = defaultdict(list)
        for one in answers:
            by_task[one.task_id].append(one)
        found = [self._of_task(task_id, own) for task_id, own in by_task.items() if len(own) > 1]
        stated = [one for one in found if one.items]
        if not stated:
            return _NONE_YET
        shares, items = [one.share for one in stated], [one.items for one in stated]
        return with_interval(replace(share_by_cluster(shares, weights=items, resamples=RESAMPLES_SO_FAR), n=sum(items)))

    def _of_task(self, task_id: str, answers: Sequence[GivenAnswer]) -> TaskAgreement:
        numbers = tuple(one.number for one in answers)
        known = self._known.get(task_id)
        if known is None or known[0] != numbers:
            known = self._known[task_id] = (numbers, agreement_on_task(map(statements_of, answers)))
        return known[1]


def agreement_on_task(statements: Iterable[dict[Hashable, int]]) -> TaskAgreement:
    """Return how far people's statements agree: of each item, the share of pairs of people who said the same."""
    said: dict[Hashable, list[int]] = defaultdict(list)
    for one in statements:
        for item, value in one.items():
            said[item].append(value)
    shares = [_share_alike(values) for values in said.values() if len(values) > 1]
    return TaskAgreement(fmean(shares) if shares else 0.0, len(shares))


def _share_alike(values: Sequence[int]) -> float:
    n = len(values)
    return sum(count * (count - 1) for count in Counter(values).values()) / (n * (n - 1))


def statements_of(given: GivenAnswer) -> dict[Hashable, int]:
    """Return the order of each two completions by their places in the task; where none is compared, each value."""
    places, answer = json.loads(given.shown), read_answer(json.loads(given.said))
    level = dict(zip(places, levels_of(answer), strict=False))
    orders: dict[Hashable, int] = {
        (a, b): (level[a] > level[b]) - (level[a] < level[b]) for a, b in combinations(sorted(level), 2)
    }
    return orders or _values(places, answer)


def _values(places: Sequence[int], answer: Answer) -> dict[Hashable, int]:
    labels: dict[Hashable, int] = {
        (LABEL, place): int(good) for place, good in zip(places, answer.good or (), strict=False)
    }
    for place, axes in zip(places, answer.ratings or (), strict=False):
        labels |= {(axis, place): value for axis, value in axes.items()}
    return labels
