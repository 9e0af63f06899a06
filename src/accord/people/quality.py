"""How well the labelling goes: progress, agreement, what each person's answers are worth, what looks wrong.

`report` reads plain rows (of the desk, or of a test) and computes everything a manager is shown. Every number comes
with its interval or with the reason why there is none. `weights` is what the reward stage multiplies a person's
judgements by.

**The weight of a person** is the person's kappa against the truth that all answers suggest together (Dawid-Skene, with
gold questions and adjudications as known truths), over the team's median, within 0.05 and 1. For two equally common
answers kappa is 2p - 1 with p the chance of being right, and that is how much of the gradient of an answer is signal:
E[label | truth] = (2p - 1) * truth. Who answered little is drawn towards the team: `PRIOR_TASKS` typical tasks are
added to the person's own.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from accord.errors import DataError
from accord.people.alarms import Alarm, alarms
from accord.people.evidence import LABEL, Choice, Evidence, Score, compared, gold_answer, read, valued
from accord.stats import (
    DEFINITIONS,
    Estimate,
    Interval,
    Unknown,
    bootstrap_by_cluster,
    bradley_terry_with_annotators,
    cohen_kappa,
    dawid_skene,
    fleiss_kappa,
    judged_items,
    krippendorff_alpha,
    raw_agreement,
    wilson,
)

if TYPE_CHECKING:
    from accord.people.rows import Person, Skip, Submission, Task

PRIOR_TASKS = 10.0
LEAST_WEIGHT = 0.05
RESAMPLES = 500
MOST_COUPLES = 200  # pairs of people shown; those with most tasks in common
MOST_DISPUTED = 100
MOST_COMPARISONS = 20_000  # the newest, for the strengths with annotators
RATE_WINDOW_S = 3600.0


@dataclass(frozen=True)
class AgreementRow:
    """How far people agree on one ``measure``: all orders of two completions, those of one kind, labels, an axis."""

    measure: str
    raw: Estimate
    fleiss: Estimate
    alpha: Estimate
    alpha_metric: str


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
    completions in which the one shown first won, the longer won, neither did; ``longer_excess`` how much more often
    than with other people on the same two. ``words_per_s``: median over tasks of words shown by seconds in view.
    ``one_answer``: share of the value said most often, over labels and ratings. ``silent_after``: the number of answers
    after which the person stopped although there was more to do; None who did not.
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
    one_answer: Estimate
    repeats: Estimate
    silent_after: int | None
    weight: float
    weight_reason: str

    @property
    def num_done(self) -> int:
        return sum(self.done.values())


@dataclass(frozen=True)
class DisputedTask:
    """A task that people answer differently. ``disagreement``: 0 = all alike, 1 = all opposite.

    ``split`` holds each person's answer in the order of ``Task.completions``: ranks, ratings or labels.
    """

    task_id: str
    kind: str
    disagreement: float
    split: tuple[tuple[str, Any], ...]
    adjudicated: bool


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


def weights(quality: Quality) -> dict[str, float]:
    """What each annotator's judgements count in training, 0.05 to 1, by annotator id."""
    return {row.annotator_id: row.weight for row in quality.people}


def report(
    submissions: Iterable[Submission],
    tasks: Iterable[Task],
    people: Iterable[Person],
    *,
    skips: Iterable[Skip] = (),
    counts: Mapping[str, int] | None = None,
    now: float | None = None,
) -> Quality:
    """Judge the judgements.

    Args:
        counts: the desk's counts of its queue, passed through.
        now: seconds since 1970, for the speed of the last hour; by default the moment of the last answer.
    """
    task_of = {task.id: task for task in tasks}
    everybody = {person.id: person for person in people}
    evidence = read(submissions, task_of)
    answers = [one for one in evidence.answers if one.person_id in everybody]
    names = {person.id: person.name for person in everybody.values()}
    fair = [choice for choice in evidence.choices if choice.task_id not in evidence.gold_tasks]
    fair_scores = [score for score in evidence.scores if score.task_id not in evidence.gold_tasks]
    rows = _person_rows(evidence, answers, task_of, everybody, Counter(skip.person_id for skip in skips))
    agreement = tuple(_agreement(fair, fair_scores))
    couples = _couples(fair, fair_scores, names)
    disputed = _disputed(answers, task_of, evidence, names)
    left = _answers_left(answers, task_of)
    per_hour = _speed(answers, now)
    return Quality(
        num_tasks=len(task_of),
        num_answers=len(answers),
        answers_left=left,
        per_hour=per_hour,
        hours_left=_hours_left(left, per_hour),
        queue=dict(counts or {}),
        agreement=agreement,
        couples=couples[:MOST_COUPLES],
        couples_left_out=max(0, len(couples) - MOST_COUPLES),
        first_shown=_share(_first_wins(fair), "two completions were not yet ordered"),
        longer=_share(_longer_wins(fair), "two completions of different length were not yet ordered"),
        people=rows,
        disputed=disputed[:MOST_DISPUTED],
        num_disputed=len(disputed),
        alarms=alarms(rows, agreement),
        definitions=DEFINITIONS,
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Interval | Unknown):
        return value.to_json()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
