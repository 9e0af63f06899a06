"""The worth of each person's answers, and how the person works.

**The weight of a person** is the person's kappa against the truth that the others' answers suggest (Dawid-Skene, with
gold questions and adjudications as known truths), over the team's median kappa, within 0.05 and 1. For two equally
common answers kappa grows as 2p - 1 with p the chance of being right, and that much of an answer is signal: the label
-1 or 1 has the mean (2p - 1) * truth. How sure the others are cancels in the ratio. Who answered little is drawn
towards the team: `PRIOR_TASKS` typical tasks are added to the person's own. What nobody else judged, and no gold
question covers, says nothing about anybody.

Shares are of tasks: of a ranking, the pairs together count as one trial in the intervals.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, median
from typing import TYPE_CHECKING, Any

import numpy as np

from accord.errors import DataError
from accord.people.quality.evidence import LABEL, Choice, Evidence, Score, gold_points
from accord.people.quality.figures import PersonRow
from accord.stats import (
    AnnotatorStrengths,
    Estimate,
    Interval,
    Unknown,
    bootstrap_by_cluster,
    bradley_terry_with_annotators,
    dawid_skene,
    wilson,
)

if TYPE_CHECKING:
    from accord.people.desk.rows import Person, QueuedTask, Submission

# So many typical tasks are added to a person's own: somebody new counts as the team does until the record is longer.
PRIOR_TASKS = 10.0
# Never 0: kappa is an estimate, and a judgement that counts nothing would be left out without anybody's decision.
LEAST_WEIGHT = 0.05
# Per person and habit: teams of hundreds are judged while a manager waits.
RESAMPLES = 200
MOST_COMPARISONS = 5_000  # the newest, for the strengths with annotators
# In the person's own gaps: who answers once a day is not silent after an hour. And the others must have gone on.
SILENT_GAPS, SILENT_ANSWERS = 20, 10

Trial = tuple[str, float]  # (task, outcome within 0..1)


def person_rows(
    evidence: Evidence,
    answers: Sequence[Submission],
    task_of: Mapping[str, QueuedTask],
    people: Mapping[int, Person],
    skipped: Mapping[int, int],
) -> tuple[PersonRow, ...]:
    """Return a row for everybody who answered or skipped anything, in the order of their ids."""
    choices, scores = _by_person(evidence.choices), _by_person(evidence.scores)
    done = _by_person(answers)
    others, ratings = _others(evidence.choices), _ratings(evidence.scores)
    worth, fitted = person_worth(evidence), _strengths(evidence.choices)
    silent, partner = _silent(answers, task_of), _partners(answers)
    rows = []
    for person_id in sorted({*done, *skipped} & people.keys()):
        own, person = done.get(person_id, []), people[person_id]
        said = choices.get(person_id, [])
        fair = [choice for choice in said if choice.task_id not in evidence.gold_tasks]
        value = worth.get(person_id, _NOTHING)
        rows.append(
            PersonRow(
                person_id=person_id,
                name=person.name,
                annotator_id=person.annotator_id,
                simulated=person.simulated,
                done=dict(Counter(one.kind for one in own)),
                skipped=skipped.get(person_id, 0),
                skip_rate=_skip_rate(len(own), skipped.get(person_id, 0)),
                flag_rate=share_of_tasks([(one.id, float(_flags(one))) for one in own], "no answers yet"),
                median_seconds=_median([one.seconds for one in own if one.seconds > 0]),
                per_hour=_per_hour(own),
                words_per_s=_median(list(_paces(own, task_of))),
                gold=_gold(own, task_of, evidence.gold_tasks),
                agrees=share_of_tasks(_alike(fair, others), "nobody else ordered the same completions"),
                accuracy=value.accuracy,
                kappa=value.kappa,
                scale=fitted[person_id][0] if person_id in fitted else _NO_FIT,
                left=fitted[person_id][1] if person_id in fitted else _NO_FIT,
                first_shown=share_of_tasks(first_wins(said), "no completion was preferred to another"),
                longer=share_of_tasks(longer_wins(said), "no completion was preferred to one of another length"),
                longer_excess=_excess(said, others, _longer),
                tied=share_of_tasks([(one.task_id, float(one.value == 0)) for one in said], "nothing was ordered"),
                tied_excess=_excess(said, others, _tied),
                lenience=_lenience(scores.get(person_id, []), ratings),
                one_answer=_one_answer(scores.get(person_id, [])),
                repeats=share_of_tasks(_repeats(said), "nothing was shown twice"),
                silent_after=silent.get(person_id),
                partner=people[partner[person_id]].name if person_id in partner else "",
                weight=value.weight,
                weight_reason=value.weight_reason,
            )
        )
    return tuple(rows)


def share_of_tasks(trials: Iterable[Trial], without: str) -> Estimate:
    """Return the mean over tasks of the mean outcome in the task, with Wilson's interval at the number of tasks."""
    by_task: dict[str, list[float]] = defaultdict(list)
    for task_id, outcome in trials:
        by_task[task_id].append(outcome)
    if not by_task:
        return Unknown(without)
    share = min(1.0, fmean(fmean(outcomes) for outcomes in by_task.values()))
    bounds = wilson(share * len(by_task), len(by_task))
    return Interval(share, bounds.low, bounds.high, sum(map(len, by_task.values())), len(by_task))


def once(said: Iterable[Any]) -> list[Any]:
    """Return each person's first answer on each item (and axis); later ones are repeats."""
    first: dict[Hashable, Any] = {}
    for one in said:
        first.setdefault((one.person_id, getattr(one, "axis", ""), one.item), one)
    return list(first.values())


def first_wins(choices: Iterable[Choice]) -> list[Trial]:
    return [(one.task_id, float(one.value == one.first_shown)) for one in choices if one.value]


def longer_wins(choices: Iterable[Choice]) -> list[Trial]:
    return [(one.task_id, float(one.value == one.longer)) for one in choices if one.value and one.longer]


def _by_person(rows: Iterable[Any]) -> dict[int, list[Any]]:
    found: dict[int, list[Any]] = defaultdict(list)
    for row in rows:
        found[row.person_id].append(row)
    return found


# ---- against the others ----------------------------------------------------------------------------------------------


def _others(choices: Iterable[Choice]) -> dict[tuple[str, str], list[Choice]]:
    found: dict[tuple[str, str], list[Choice]] = defaultdict(list)
    for choice in once(choices):
        found[choice.item].append(choice)
    return found


def _alike(own: Iterable[Choice], others: Mapping[tuple[str, str], list[Choice]]) -> Iterator[Trial]:
    """Return, for each order of two, the share of other people who gave the same."""
    for one in once(own):
        same = [float(other.value == one.value) for other in others[one.item] if other.person_id != one.person_id]
        if same:
            yield one.task_id, fmean(same)


def _longer(choice: Choice) -> float | None:
    return float(choice.value == choice.longer) if choice.value and choice.longer else None


def _tied(choice: Choice) -> float | None:
    return float(choice.value == 0)


def _excess(own: Iterable[Choice], others: Mapping[tuple[str, str], list[Choice]], outcome: Any) -> Estimate:
    """Return the mean outcome of a person's choices less that of other people on the same items; interval by task."""
    differences, tasks = [], []
    for one in once(own):
        mine = outcome(one)
        theirs = [outcome(other) for other in others[one.item] if other.person_id != one.person_id]
        theirs = [value for value in theirs if value is not None]
        if mine is not None and theirs:
            differences.append(mine - fmean(theirs))
            tasks.append(one.task_id)
    if not differences:
        return Unknown("nobody else ordered the same completions")
    return bootstrap_by_cluster(differences, tasks, resamples=RESAMPLES)


def _ratings(scores: Iterable[Score]) -> dict[tuple[str, str], list[Score]]:
    found: dict[tuple[str, str], list[Score]] = defaultdict(list)
    for score in once(scores):
        if score.axis != LABEL:
            found[score.axis, score.item].append(score)
    return found


def _lenience(own: Iterable[Score], ratings: Mapping[tuple[str, str], list[Score]]) -> Estimate:
    """Return how much higher a person rates than others do on the same completion and axis; interval by task."""
    differences, tasks = [], []
    for one in once(own):
        theirs = [other.value for other in ratings.get((one.axis, one.item), ()) if other.person_id != one.person_id]
        if theirs:
            differences.append(one.value - fmean(theirs))
            tasks.append(one.task_id)
    if not differences:
        return Unknown("nobody else rated the same completions")
    return bootstrap_by_cluster(differences, tasks, resamples=RESAMPLES)


@dataclass(frozen=True)
class Worth:
    """A person's accuracy, and what the person's judgements count for that reason."""

    accuracy: Estimate
    kappa: Estimate
    weight: float
    weight_reason: str


_UNTOLD = Unknown("nobody else judged the same, and no gold question was answered")
_NOTHING = Worth(_UNTOLD, _UNTOLD, 1.0, f"1 by default: {_UNTOLD.why}")
_NO_FIT = Unknown("no completion was preferred to another")


def person_worth(evidence: Evidence) -> dict[int, Worth]:
    """Return accuracy, kappa and weight of each person of whom anything can be said.

    Over several families of answers (orders of two, labels, an axis) they are means weighted by tasks.
    """
    families: list[tuple[Sequence[Choice | Score], Mapping[Any, int]]] = [
        (evidence.choices, evidence.known_choices),
        *(
            (scores, {item: value for (axis, item), value in evidence.known_scores.items() if axis == own})
            for own, scores in _lone_scores(evidence.scores).items()
        ),
    ]
    found: dict[int, list[tuple[Interval, Interval]]] = defaultdict(list)
    for said, known in families:
        kept = once(said)
        # What nobody else judged and no gold question covers says nothing about anybody.
        judges = Counter(one.item for one in kept)
        kept = [one for one in kept if judges[one.item] > 1 or one.item in known]
        if kept:
            columns = ([one.item for one in kept], [one.person_id for one in kept], [one.value for one in kept])
            fitted = dawid_skene(*columns, [one.task_id for one in kept], known=known)
            for person_id, accuracy, kappa in zip(fitted.annotators, fitted.accuracy, fitted.kappa, strict=True):
                found[person_id].append((accuracy, kappa))
    accuracy_of = {person: _pooled([accuracy for accuracy, _ in rows]) for person, rows in found.items()}
    # Weights come from kappa by the others' word alone: with the own counted in, who guesses seems right on the items
    # where the others are unsure (.20 where it should be 0, in a team of 20).
    kappa_of = {person: _pooled([kappa for _, kappa in rows]) for person, rows in found.items()}
    team = median(kappa.value for kappa in kappa_of.values()) if kappa_of else 0.0
    return {person: Worth(accuracy_of[person], kappa, *_weight(kappa, team)) for person, kappa in kappa_of.items()}


def _lone_scores(scores: Iterable[Score]) -> dict[str, list[Score]]:
    """Return, by axis, labels and ratings of tasks with one completion (others are compared, and count as choices)."""
    size = Counter((score.person_id, score.task_id, score.axis) for score in scores if score.kind == "rating")
    found: dict[str, list[Score]] = defaultdict(list)
    for score in scores:
        if size[score.person_id, score.task_id, score.axis] <= 1:
            found[score.axis].append(score)
    return found


def _pooled(parts: Sequence[Interval]) -> Interval:
    """Return the mean weighted by tasks, and of the ends too: answers of one person on several axes go together."""
    share = np.array([part.clusters for part in parts]) / sum(part.clusters for part in parts)
    ends = np.array([(part.value, part.low, part.high) for part in parts])
    value, low, high = (share @ ends).tolist()
    return Interval(value, low, high, sum(part.n for part in parts), sum(part.clusters for part in parts))


def _weight(kappa: Interval, team: float) -> tuple[float, str]:
    if team <= 0:
        return 1.0, "1 by default: the team as a whole agrees no better than chance, so nobody can be told apart"
    drawn = (kappa.clusters * kappa.value + PRIOR_TASKS * team) / (kappa.clusters + PRIOR_TASKS)
    # Never above 1: otherwise one person's taste would lead the reward model.
    weight = min(1.0, max(LEAST_WEIGHT, drawn / team))
    return weight, (
        f"kappa {kappa.value:.2f} over {kappa.clusters} tasks ({drawn:.2f} when drawn towards the team) against the "
        f"team's median {team:.2f}"
    )


def _strengths(choices: Sequence[Choice]) -> dict[int, tuple[Interval, Interval]]:
    """Return scale and left bias of each person; empty where the model cannot be fitted."""
    newest = choices[-MOST_COMPARISONS:]
    if not newest:
        return {}
    shown = [one.item if one.first_shown == 1 else one.item[::-1] for one in newest]
    people = [one.person_id for one in newest]
    outcomes = [(1 + one.value * one.first_shown) / 2 for one in newest]
    try:
        fitted: AnnotatorStrengths = bradley_terry_with_annotators(
            [first for first, _ in shown], [second for _, second in shown], people, outcomes
        )
    except DataError:
        return {}
    return dict(zip(fitted.annotators, zip(fitted.scale, fitted.left, strict=True), strict=True))


# ---- the person's own ------------------------------------------------------------------------------------------------


def _skip_rate(done: int, skipped: int) -> Estimate:
    return wilson(skipped, done + skipped) if done + skipped else Unknown("no answers yet")


def _flags(one: Submission) -> bool:
    return any(one.answer.flags or ())


def _median(values: Sequence[float]) -> Estimate:
    """Return the median with its interval by order statistics (the binomial's, as a normal)."""
    if not values:
        return Unknown("no time was measured")
    ordered, n = sorted(values), len(values)
    half = NormalDist().inv_cdf(0.975) * n**0.5 / 2
    low, high = ordered[max(0, int(n / 2 - half))], ordered[min(n - 1, int(n / 2 + half))]
    return Interval(median(ordered), low, high, n, n)


def _per_hour(own: Sequence[Submission]) -> Estimate:
    """Return answers an hour of time in view."""
    timed = [one.seconds for one in own if one.seconds > 0]
    if not timed:
        return Unknown("no time was measured")
    slow = bootstrap_by_cluster(timed, resamples=RESAMPLES)
    return Interval(3600 / slow.value, 3600 / slow.high, 3600 / slow.low, slow.n, slow.clusters)


def _paces(own: Iterable[Submission], task_of: Mapping[str, QueuedTask]) -> Iterator[float]:
    """Yield the words shown per second in view, of each answer."""
    for one in own:
        task = task_of[one.task_id]
        words = sum(len(completion.text.split()) for completion in task.completions) + len(task.prompt.text.split())
        if one.seconds > 0:
            yield words / one.seconds


def _gold(own: Iterable[Submission], task_of: Mapping[str, QueuedTask], gold_tasks: frozenset[str]) -> Estimate:
    """Return the share of what the gold answers say that the person said too."""
    trials = []
    for one in own:
        if one.task_id in gold_tasks:
            trials += [(one.task_id, point) for point in gold_points(one, task_of[one.task_id])]
    return share_of_tasks(trials, "no gold question was answered")


def _one_answer(scores: Sequence[Score]) -> Estimate:
    """Return the share of the commonest value, of the axis where that is largest."""
    by_axis: dict[str, list[Score]] = defaultdict(list)
    for score in scores:
        by_axis[score.axis].append(score)
    found = []
    for axis in sorted(by_axis):
        common = Counter(score.value for score in by_axis[axis]).most_common(1)[0][0]
        found.append(share_of_tasks([(one.task_id, float(one.value == common)) for one in by_axis[axis]], ""))
    stated = [share for share in found if isinstance(share, Interval)]
    return max(stated, key=lambda share: share.value) if stated else Unknown("nothing was labelled or rated")


def _repeats(own: Iterable[Choice]) -> Iterator[Trial]:
    """Yield whether each order of two completions is the one that the person gave in another task before."""
    first: dict[tuple[str, str], Choice] = {}
    for one in own:
        before = first.setdefault(one.item, one)
        if before.task_id != one.task_id:
            yield one.task_id, float(before.value == one.value)


def _partners(answers: Sequence[Submission]) -> dict[int, int]:
    """Return, for each person, the one other who alone answered most of what the person shared with anybody."""
    answered: dict[str, set[int]] = defaultdict(set)
    for one in answers:
        answered[one.task_id].add(one.person_id)
    together: dict[int, Counter[frozenset[int]]] = defaultdict(Counter)
    for crew in answered.values():
        for person_id in crew if len(crew) > 1 else ():
            together[person_id][frozenset(crew - {person_id})] += 1
    usual = {person_id: others.most_common(1)[0] for person_id, others in together.items()}
    return {
        person_id: next(iter(others))
        for person_id, (others, times) in usual.items()
        if len(others) == 1 and 2 * times > together[person_id].total()
    }


def _silent(answers: Sequence[Submission], task_of: Mapping[str, QueuedTask]) -> dict[int, int]:
    """Return who fell silent, and after how many answers.

    Silent is who gave no answer for 20 of the person's usual gaps, in which the others answered ten tasks that the
    person could have answered too.
    """
    ordered = sorted(answers, key=lambda one: one.created_at)
    moments = [one.created_at for one in ordered]
    found = {}
    for person_id, own in _by_person(ordered).items():
        last, mine = own[-1].created_at, {one.task_id for one in own}
        gap = median(np.diff([one.created_at for one in own]).tolist()) if len(own) > 1 else 0.0
        missed = {one.task_id for one in ordered[bisect_right(moments, last) :]} - mine
        missed = {task_id for task_id in missed if task_of[task_id].created_at <= last}  # later ones nobody offered
        if len(own) > 2 and len(missed) >= SILENT_ANSWERS and ordered[-1].created_at - last > SILENT_GAPS * gap:
            found[person_id] = len(own)
    return found
