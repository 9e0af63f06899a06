"""How well the labelling goes: progress, agreement, what each person's answers are worth, what looks wrong.

`report` reads plain rows (of the desk, or of a test) and computes everything a manager is shown. `weights` is what the
reward stage multiplies a person's judgements by; how it is found is said in `accord.people.quality.habits`.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from accord.config import LabelConfig
from accord.formats.facts import ORIGINS
from accord.people.quality.alarms import alarms
from accord.people.quality.evidence import LABEL, Choice, Evidence, Score, ordered_pairs, read_evidence
from accord.people.quality.figures import AgreementRow, CoupleRow, DisputedTask, PersonRow, Quality, with_interval
from accord.people.quality.habits import first_wins, longer_wins, once, person_rows, person_worth, share_of_tasks
from accord.stats import (
    DEFINITIONS,
    Estimate,
    Interval,
    Metric,
    Unknown,
    cohen_kappa,
    fleiss_kappa,
    judged_items,
    krippendorff_alpha,
    raw_agreement,
)

if TYPE_CHECKING:
    from accord.people.desk import Desk
    from accord.people.desk.rows import Person, QueuedTask, Skip, Submission
    from accord.records import Completion, Ranking
    from accord.store import Store

# Agreement is what a manager reads first: its interval gets more resamples than each person's habits.
RESAMPLES = 500
MOST_COUPLES = 100  # pairs of people shown: those with most tasks in common
# Enough to work on; the page says how many more there are.
MOST_DISPUTED = 100
# The last hour says how fast it goes now; on fewer answers a rate would be chance.
SPEED_WINDOW_S = 3600.0
FEWEST_FOR_SPEED = 5


def weights(quality: Quality) -> dict[str, float]:
    """Return what each annotator's judgements count in training, 0.05 to 1, by annotator id."""
    return {row.annotator_id: row.weight for row in quality.people}


def quality_weights(store: Store) -> dict[str, float]:
    """Return the `weights` of all who have answered in a store's queue; nothing is known of imported annotators."""
    from accord.people.desk import Desk

    desk = Desk(store, LabelConfig())
    evidence = read_evidence(desk.reading.submissions(), _that_may_teach(desk.queue.tasks()))
    people = {person.id: person for person in desk.directory.people()}
    worth = {id_: one for part in _apart(evidence, people) for id_, one in person_worth(part.evidence).items()}
    annotator_of = {person.id: person.annotator_id for person in people.values()}
    answered = dict.fromkeys(one.person_id for one in evidence.answers)
    return {annotator_of[id_]: worth[id_].weight if id_ in worth else 1.0 for id_ in answered}


class RankingsQuality(NamedTuple):
    """How far rankings agree, and what each annotator's count, by annotator id: as those of people at the desk."""

    agreement: AgreementRow
    weights: dict[str, float]


def rankings_quality(rankings: Iterable[tuple[Ranking, Sequence[Completion]]]) -> RankingsQuality:
    """Return agreement and weights of rankings that came by no queue, each with the completions it ranks."""
    choices = [choice for ranking, completions in rankings for choice in _choices(ranking, completions)]
    everybody = sorted({who for who, _ in choices})
    number = {who: place for place, who in enumerate(everybody)}
    said = [choice._replace(person_id=number[who]) for who, choice in choices]
    worth = person_worth(Evidence((), tuple(said), (), {}, {}, frozenset(), frozenset()))
    found = {who: worth[place].weight if place in worth else 1.0 for who, place in number.items()}
    return RankingsQuality(_row("order of two", said, "nominal"), found)


def _choices(ranking: Ranking, completions: Sequence[Completion]) -> Iterator[tuple[str, Choice]]:
    by_id = {completion.id: completion for completion in completions}
    shown = [by_id[id_] for id_ in ranking.completion_ids]
    task = ",".join(sorted(by_id))
    for row in ordered_pairs([-float(rank) for rank in ranking.ranks], shown):
        yield ranking.annotator_id, Choice(0, task, "ranking", *row)


def _that_may_teach(tasks: Iterable[QueuedTask]) -> dict[str, QueuedTask]:
    """Return tasks by id without those kept for judging: not even a weight of what trains may come from them."""
    return {task.id: task for task in tasks if not task.reserved}


def report_of(desk: Desk, *, now: float | None = None) -> Quality:
    """Return the `report` on all that a desk holds."""
    rows = (desk.reading.submissions(), desk.queue.tasks(), desk.directory.people())
    return report(*rows, skips=desk.reading.skips(), counts=desk.reading.counts(), now=now)


def report(
    submissions: Iterable[Submission],
    tasks: Iterable[QueuedTask],
    people: Iterable[Person],
    *,
    skips: Iterable[Skip] = (),
    counts: Mapping[str, int] | None = None,
    now: float | None = None,
) -> Quality:
    """Report how the labelling goes and what each person's answers are worth.

    Simulated annotators are compared among themselves, and people among themselves: neither agrees with, disputes or
    weighs the other.

    Args:
        counts: the desk's counts of its queue, passed through.
        now: seconds since 1970, for the speed of the last hour; by default the moment of the last answer.
    """
    task_of = _that_may_teach(tasks)
    everybody = {person.id: person for person in people}
    evidence = read_evidence(submissions, task_of)
    answers = [one for one in evidence.answers if one.person_id in everybody]
    skipped = Counter(skip.person_id for skip in skips if skip.task_id in task_of)
    parts = [_compared(part, task_of, skipped) for part in _apart(evidence, everybody)]
    fair = next((part.fair for part in parts if part.fair), [])
    disputed = sorted((row for part in parts for row in part.disputed), key=_by_dispute)
    left = _answers_left(answers, task_of)
    per_hour = _speed(answers, now)
    return Quality(
        num_tasks=len(task_of),
        num_answers=len(answers),
        answers_left=left,
        per_hour=per_hour,
        hours_left=_hours_left(left, per_hour),
        queue=dict(counts or {}),
        agreement=tuple(row for part in parts for row in part.agreement),
        couples=tuple(row for part in parts for row in part.couples),
        couples_left_out=sum(part.couples_left_out for part in parts),
        first_shown=share_of_tasks(first_wins(fair), "nobody has ordered two completions yet"),
        longer=share_of_tasks(longer_wins(fair), "nobody has ordered two completions of different length yet"),
        people=tuple(sorted((row for part in parts for row in part.rows), key=lambda row: row.person_id)),
        disputed=tuple(disputed[:MOST_DISPUTED]),
        num_disputed=len(disputed),
        alarms=tuple(alarm for part in parts for alarm in alarms(part.rows, part.agreement)),
        definitions=DEFINITIONS,
    )


# ---- people apart from programs --------------------------------------------------------------------------------------


class _Part(NamedTuple):
    """What people said, or what simulated annotators did; ``suffix`` is "" for people."""

    evidence: Evidence
    people: Mapping[int, Person]
    suffix: str


def _apart(evidence: Evidence, everybody: Mapping[int, Person]) -> list[_Part]:
    """Return the evidence of people, then that of simulated annotators."""
    parts = []
    for simulated, suffix in ((False, ""), (True, f", {ORIGINS['simulated']}")):
        own = {id_: person for id_, person in everybody.items() if person.simulated == simulated}
        kept = replace(
            evidence,
            answers=tuple(one for one in evidence.answers if one.person_id in own),
            choices=tuple(one for one in evidence.choices if one.person_id in own),
            scores=tuple(one for one in evidence.scores if one.person_id in own),
        )
        parts.append(_Part(kept, own, suffix))
    return parts


class _Compared(NamedTuple):
    """A part's figures; ``fair`` are its orders of two, those of gold questions left out."""

    rows: tuple[PersonRow, ...]
    agreement: tuple[AgreementRow, ...]
    couples: tuple[CoupleRow, ...]
    couples_left_out: int
    disputed: list[DisputedTask]
    fair: list[Choice]


def _compared(part: _Part, task_of: Mapping[str, QueuedTask], skipped: Mapping[int, int]) -> _Compared:
    evidence, people, suffix = part
    fair = [choice for choice in evidence.choices if choice.task_id not in evidence.gold_tasks]
    fair_scores = [score for score in evidence.scores if score.task_id not in evidence.gold_tasks]
    labels = [score for score in fair_scores if score.axis == LABEL]
    names = {id_: person.name for id_, person in people.items()}
    couples, left_out = _couples([*fair, *labels], names)
    agreement = tuple(replace(row, measure=row.measure + suffix) for row in _agreement(fair, fair_scores))
    rows = person_rows(evidence, evidence.answers, task_of, people, skipped)
    disputed = _disputed(evidence.answers, task_of, evidence, names)
    return _Compared(rows, agreement, couples, left_out, disputed, fair)


# ---- agreement -------------------------------------------------------------------------------------------------------


def _agreement(choices: Sequence[Choice], scores: Sequence[Score]) -> Iterator[AgreementRow]:
    """Return agreement on orders of two completions, together and by kind of task; then on labels and every axis."""
    kinds = sorted({choice.kind for choice in choices})
    if choices:
        yield _row("order of two", choices, "nominal")
    for kind in kinds if len(kinds) > 1 else ():
        yield _row(f"order of two ({kind})", [choice for choice in choices if choice.kind == kind], "nominal")
    for axis in sorted({score.axis for score in scores}):
        own = [score for score in scores if score.axis == axis]
        yield _row(axis, own, "nominal" if axis == LABEL else "ordinal")


def _row(measure: str, said: Sequence[Choice | Score], metric: Metric) -> AgreementRow:
    kept = once(said)
    judged = judged_items([one.item for one in kept], [one.value for one in kept], _one_cluster_per_item(kept))
    raw = raw_agreement(judged, resamples=RESAMPLES)
    fleiss = fleiss_kappa(judged, resamples=RESAMPLES)
    alpha = krippendorff_alpha(judged, metric, resamples=RESAMPLES)
    return AgreementRow(measure, with_interval(raw), with_interval(fleiss), with_interval(alpha), metric)


def _one_cluster_per_item(said: Sequence[Choice | Score]) -> list[str]:
    """Return the task of each item; what stands in several tasks belongs to the first."""
    task_of: dict[Hashable, str] = {}
    return [task_of.setdefault(one.item, one.task_id) for one in said]


def _couples(said: Sequence[Choice | Score], names: Mapping[int, str]) -> tuple[tuple[CoupleRow, ...], int]:
    """Return each two people with tasks in common, those with most first, and how many couples are left out."""
    by_item: dict[Hashable, list[Choice | Score]] = defaultdict(list)
    for one in once(said):
        by_item[one.item].append(one)
    common: dict[tuple[int, int], list[tuple[Choice | Score, Choice | Score]]] = defaultdict(list)
    for both in by_item.values():
        for a, b in combinations(sorted(both, key=lambda one: one.person_id), 2):
            common[a.person_id, b.person_id].append((a, b))
    size = {couple: len({a.task_id for a, _ in both}) for couple, both in common.items()}
    ordered = sorted(common, key=lambda couple: (-size[couple], couple))
    shown = tuple(_couple((names[a], names[b]), common[a, b], size[a, b]) for a, b in ordered[:MOST_COUPLES])
    return shown, len(ordered) - len(shown)


def _couple(
    people: tuple[str, str], both: Sequence[tuple[Choice | Score, Choice | Score]], num_tasks: int
) -> CoupleRow:
    tasks = [a.task_id for a, _ in both]
    alike = share_of_tasks([(a.task_id, float(a.value == b.value)) for a, b in both], "")
    values = [a.value for a, _ in both], [b.value for _, b in both]
    return CoupleRow(
        people, with_interval(alike), with_interval(cohen_kappa(*values, tasks, resamples=RESAMPLES)), num_tasks
    )


def _disputed(
    answers: Sequence[Submission], task_of: Mapping[str, QueuedTask], evidence: Evidence, names: Mapping[int, str]
) -> list[DisputedTask]:
    """Return tasks on which people differ, the most disputed first, decided ones last, and no gold questions."""
    said: dict[str, dict[int, Submission]] = defaultdict(dict)
    for one in answers:
        if one.task_id not in evidence.gold_tasks:
            said[one.task_id][one.person_id] = one
    found = []
    for task_id, by_person in said.items():
        votes = {person: _in_task_order(one) for person, one in by_person.items()}
        couples = [(a, b) for a, b in combinations(votes.values(), 2) if a and b]
        distance = fmean(_distance(a, b) for a, b in couples) if couples else 0.0
        if distance > 0:
            split = tuple((names[person], vote) for person, vote in votes.items())
            is_decided = task_id in evidence.decided_tasks
            found.append(DisputedTask(task_id, task_of[task_id].kind, distance, split, is_decided))
    return sorted(found, key=_by_dispute)


def _by_dispute(row: DisputedTask) -> tuple[bool, float, str]:
    return row.adjudicated, -row.disagreement, row.task_id


def _in_task_order(one: Submission) -> tuple[Any, ...]:
    """Return ranks, ratings or labels by place in ``QueuedTask.completions``; empty for what compares nothing."""
    shown = one.answer.ranks or one.answer.ratings or one.answer.good or ()
    placed = dict(zip(one.order, shown, strict=False))
    return tuple(placed[place] for place in sorted(placed))


def _distance(a: Sequence[Any], b: Sequence[Any]) -> float:
    """Return how far answers differ, 0 = alike, 1 = opposite.

    Orders of two count by half their difference in sign, labels by share, ratings by axis.
    """
    if isinstance(a[0], bool):
        return fmean(float(x != y) for x, y in zip(a, b, strict=True))
    if isinstance(a[0], Mapping):
        a, b = [-sum(x.values()) for x in a], [-sum(y.values()) for y in b]
    pairs = list(combinations(range(len(a)), 2))
    signs = [abs(_sign(a[i] - a[j]) - _sign(b[i] - b[j])) / 2 for i, j in pairs]
    return fmean(signs) if signs else float(a != b)


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


# ---- progress --------------------------------------------------------------------------------------------------------


def _answers_left(answers: Iterable[Submission], task_of: Mapping[str, QueuedTask]) -> int:
    """Return how many answers the tasks still want. Extra ones do not stand for those wanted."""
    done = Counter(one.task_id for one in answers if not one.extra)
    return sum(max(0, task.overlap - done[task.id]) for task in task_of.values())


def _speed(answers: Sequence[Submission], now: float | None) -> Estimate:
    """Return answers an hour over the last hour (or since the first of it)."""
    times = sorted(one.created_at for one in answers)
    end = max(times, default=0.0) if now is None else now
    recent = [moment for moment in times if moment >= end - SPEED_WINDOW_S]
    if len(recent) < FEWEST_FOR_SPEED or end <= recent[0]:
        return Unknown(f"{len(recent)} answers in the last hour; {FEWEST_FOR_SPEED} are needed to state a speed")
    hours, n = (end - recent[0]) / 3600, len(recent) - 1
    half = 1.96 * math.sqrt(n)  # arrivals are about Poisson
    return Interval(n / hours, max(0.0, n - half) / hours, (n + half) / hours, len(recent), len(recent))


def _hours_left(left: int, per_hour: Estimate) -> Estimate:
    if isinstance(per_hour, Unknown):
        return per_hour if left else Interval(0.0, 0.0, 0.0, 0, 0)
    low, high = left / per_hour.high, left / per_hour.low if per_hour.low else math.inf
    return Interval(
        left / per_hour.value, low, high if math.isfinite(high) else math.nan, per_hour.n, per_hour.clusters
    )
