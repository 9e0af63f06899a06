"""What answers say, taken apart: orders of two completions (choices) and values of one (scores).

The items are contents, not tasks: the same two completions in two tasks are one item, so that a person's second look
at them shows how steady the person is. Nothing here knows models or times.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from accord.people.desk.answers import Answer
    from accord.people.desk.rows import QueuedTask, Submission
    from accord.records import Completion

LABEL = "label"  # the axis of good and bad


class Choice(NamedTuple):
    """The order that one answer gives two completions.

    ``value``: 1 = the first of ``item`` is better, -1 = the second, 0 = tied.
    ``item`` holds their ids in order. ``first_shown`` and ``longer`` are +1 or -1 for the one of the two that was shown
    first and that has more characters; ``longer`` is 0 where they are equally long.
    """

    person_id: int
    task_id: str
    kind: str
    item: tuple[str, str]
    value: int
    first_shown: int
    longer: int


class Score(NamedTuple):
    """The value that one answer gives one completion on one axis (`LABEL`: 1 = good, 0 = bad)."""

    person_id: int
    task_id: str
    kind: str
    axis: str
    item: str
    value: int


@dataclass(frozen=True)
class Evidence:
    """All answers that count, and what they say. ``known``: the truth of choices and scores by gold or adjudication."""

    answers: tuple[Submission, ...]
    choices: tuple[Choice, ...]
    scores: tuple[Score, ...]
    known_choices: Mapping[tuple[str, str], int]
    known_scores: Mapping[tuple[str, str], int]
    gold_tasks: frozenset[str]
    decided_tasks: frozenset[str]


def read_evidence(submissions: Iterable[Submission], tasks: Mapping[str, QueuedTask]) -> Evidence:
    """Take answers apart. Answers taken back are left out; a manager's decisions are truths, not judgements."""
    answers: list[Submission] = []
    choices: list[Choice] = []
    scores: list[Score] = []
    truths: list[tuple[Answer, Sequence[Completion]]] = []
    decided = set()
    for one in submissions:
        task = tasks.get(one.task_id)
        if one.undone or task is None:
            continue
        shown = [task.completions[i] for i in one.order]
        if one.adjudication:
            truths.append((one.answer, shown))
            decided.add(task.id)
            continue
        answers.append(one)
        choices += [Choice(one.person_id, one.task_id, one.kind, *row) for row in compared(one.answer, shown)]
        scores += [Score(one.person_id, one.task_id, one.kind, *row) for row in valued(one.answer, shown)]
    gold = {task.id: task for task in tasks.values() if task.gold is not None}
    truths += [(gold_answer(task), task.completions) for task in gold.values()]
    known_choices = {row[0]: row[1] for answer, shown in truths for row in compared(answer, shown)}
    known_scores = {row[:2]: row[2] for answer, shown in truths for row in valued(answer, shown)}
    return Evidence(
        tuple(answers),
        tuple(choices),
        tuple(scores),
        known_choices,
        known_scores,
        frozenset(gold),
        frozenset(decided),
    )


def compared(answer: Answer, shown: Sequence[Completion]) -> Iterator[tuple[tuple[str, str], int, int, int]]:
    """Yield (item, value, first_shown, longer) of each two completions, as in `Choice`; nothing where none compare."""
    return ordered_pairs(levels_of(answer), shown)


def ordered_pairs(
    levels: Sequence[float], shown: Sequence[Completion]
) -> Iterator[tuple[tuple[str, str], int, int, int]]:
    """Yield the same of completions whose levels, higher = better, are known; nothing where there are no levels."""
    for (i, left), (j, right) in combinations(enumerate(shown), 2) if levels else ():
        if left.id != right.id:
            sign = 1 if left.id < right.id else -1
            better = (levels[i] > levels[j]) - (levels[i] < levels[j])
            longer = (len(left.text) > len(right.text)) - (len(left.text) < len(right.text))
            yield (min(left.id, right.id), max(left.id, right.id)), sign * better, sign, sign * longer


def levels_of(answer: Answer) -> list[float]:
    """Return how good each completion shown is to this person, higher = better; ratings by their sum over the axes."""
    if answer.ranks is not None:
        return [-float(rank) for rank in answer.ranks]
    return [float(sum(axes.values())) for axes in answer.ratings or ()]


def valued(answer: Answer, shown: Sequence[Completion]) -> Iterator[tuple[str, str, int]]:
    """Yield (axis, completion, value) of every single value given."""
    for completion, axes in zip(shown, answer.ratings or (), strict=False):
        yield from ((axis, completion.id, value) for axis, value in axes.items())
    for completion, good in zip(shown, answer.good or (), strict=False):
        yield LABEL, completion.id, int(good)


def gold_points(one: Submission, task: QueuedTask) -> list[float]:
    """Return 1 or 0 for each statement of the gold answer: whether this answer makes it too."""
    right = _statements(gold_answer(task), task.completions)
    said = _statements(one.answer, [task.completions[i] for i in one.order])
    return [float(said.get(what) == value) for what, value in right.items()]


def _statements(answer: Answer, shown: Sequence[Completion]) -> dict[tuple[object, object], int]:
    """Return orders of two completions; where none are compared, labels and values."""
    orders: dict[tuple[object, object], int] = {(None, row[0]): row[1] for row in compared(answer, shown)}
    return orders or {(row[0], row[1]): row[2] for row in valued(answer, shown)}


def gold_answer(task: QueuedTask) -> Answer:
    """Return the right answer of a gold question, by position in ``task.completions``."""
    from accord.people.desk.answers import Answer

    return Answer.model_validate(task.gold)
