"""The rows of the quality report: every number is an interval, or the reason why there is none."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from accord.stats import Estimate, Interval, Unknown


@dataclass(frozen=True)
class AgreementRow:
    """The agreement of people on one ``measure``: all orders of two completions, those of one kind, labels, an axis."""

    measure: str
    raw: Estimate
    fleiss: Estimate
    alpha: Estimate
    alpha_metric: str


def with_interval(agreement: Estimate) -> Estimate:
    """Return an agreement that has an interval; the reason for none where all of it comes from one task."""
    if isinstance(agreement, Interval) and agreement.clusters < 2:
        return Unknown("all answers that compare are of one task: how far they would agree on others cannot be said")
    return agreement


@dataclass(frozen=True)
class CoupleRow:
    """Two people on what both judged: orders of two completions and labels."""

    people: tuple[str, str]
    raw: Estimate
    cohen: Estimate
    num_tasks: int


@dataclass(frozen=True)
class PersonRow:
    """One person. Shares are of tasks: the pairs of one ranking count as one trial in the intervals.

    ``accuracy`` and ``kappa`` are against the truth suggested by all; ``scale`` and ``left`` those of
    `accord.stats.bradley_terry_with_annotators`. ``first_shown``, ``longer``, ``tied``: shares of the orders of two
    completions in which the one shown first won, the longer won, neither did; ``longer_excess`` and ``tied_excess``:
    how much more often than with other people on the same two. ``words_per_s``: median over tasks of words shown by
    seconds in view. ``lenience``: mean of own ratings less those of others on the same completion and axis, in points.
    ``one_answer``: share of the value said most often, over labels and ratings. ``silent_after``: the
    number of answers after which the person stopped although there was more to do; None for who did not. ``partner``:
    the one other person who answered most of the same tasks with nobody else; "" where several did.
    """

    person_id: int
    name: str
    annotator_id: str
    simulated: bool
    done: Mapping[str, int]
    skipped: int
    skip_rate: Estimate
    flag_rate: Estimate
    median_seconds: Estimate
    per_hour: Estimate
    words_per_s: Estimate
    gold: Estimate
    agrees: Estimate
    accuracy: Estimate
    kappa: Estimate
    scale: Estimate
    left: Estimate
    first_shown: Estimate
    longer: Estimate
    longer_excess: Estimate
    tied: Estimate
    tied_excess: Estimate
    lenience: Estimate
    one_answer: Estimate
    repeats: Estimate
    silent_after: int | None
    partner: str
    weight: float
    weight_reason: str

    @property
    def num_done(self) -> int:
        return sum(self.done.values())


@dataclass(frozen=True)
class DisputedTask:
    """A task that people answer differently. ``disagreement``: 0 = all alike, 1 = all opposite.

    ``split`` holds each person's answer in the order of ``QueuedTask.completions``: ranks, ratings or labels.
    """

    task_id: str
    kind: str
    disagreement: float
    split: tuple[tuple[str, Any], ...]
    adjudicated: bool


@dataclass(frozen=True)
class Alarm:
    """Something that looks wrong: whom it concerns (empty: all), what was seen, and the likely cause."""

    name: str
    who: str
    symptom: str
    cause: str


@dataclass(frozen=True)
class Quality:
    """Everything a manager is shown. ``queue`` holds the desk's own counts as given."""

    num_tasks: int
    num_answers: int
    answers_left: int
    per_hour: Estimate
    hours_left: Estimate
    queue: Mapping[str, int]
    agreement: tuple[AgreementRow, ...]
    couples: tuple[CoupleRow, ...]
    couples_left_out: int
    first_shown: Estimate
    longer: Estimate
    people: tuple[PersonRow, ...]
    disputed: tuple[DisputedTask, ...]
    num_disputed: int
    alarms: tuple[Alarm, ...]
    definitions: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        plain = _plain(self)
        assert isinstance(plain, dict)
        return plain


def _plain(value: Any) -> Any:
    if isinstance(value, Interval | Unknown):
        return value.to_json()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
