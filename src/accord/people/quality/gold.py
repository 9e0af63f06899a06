"""Gold questions: tasks whose right answer is known, mixed into people's work to see how right they are."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from accord.people.quality.evidence import gold_points
from accord.people.quality.habits import Trial, share_of_tasks
from accord.stats import Estimate

if TYPE_CHECKING:
    from accord.people.desk import Desk
    from accord.people.desk.rows import QueuedTask


@dataclass(frozen=True)
class GoldTask:
    """One gold question. ``right``: the share of its answer that people gave too, by person.

    ``missed`` names who did not give all of it, with the share that each did, the worst first.
    """

    task: QueuedTask
    num_answers: int
    right: Estimate
    missed: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class GoldPerson:
    """One person's answers to gold questions; the same ``right`` as in the quality report."""

    name: str
    num_answers: int
    right: Estimate


def gold_report(desk: Desk) -> tuple[list[GoldTask], list[GoldPerson]]:
    """Return all gold questions and all who answered any, the least right first, then what nobody answered yet."""
    tasks = {task.id: task for task in desk.queue.tasks(gold=True)}
    by_task: dict[str, list[Trial]] = {id_: [] for id_ in tasks}
    by_person: dict[int, list[Trial]] = defaultdict(list)
    name_of = {}
    for one in desk.reading.submissions(gold=True):
        points = gold_points(one, tasks[one.task_id]) if one.task_id in tasks else []
        if points and not (one.undone or one.adjudication):
            by_task[one.task_id].append((one.person_name, fmean(points)))
            by_person[one.person_id].append((one.task_id, fmean(points)))
            name_of[one.person_id] = one.person_name
    questions = [_question(task, by_task[id_]) for id_, task in tasks.items()]
    people = [
        GoldPerson(name_of[id_], len(trials), share_of_tasks(trials, "")) for id_, trials in sorted(by_person.items())
    ]
    return sorted(questions, key=_least_right), sorted(people, key=_least_right)


def _question(task: QueuedTask, answers: list[Trial]) -> GoldTask:
    missed = sorted((share, name) for name, share in answers if share < 1)
    right = share_of_tasks(answers, "nobody has answered it yet")
    return GoldTask(task, len(answers), right, tuple((name, share) for share, name in missed))


def _least_right(row: GoldTask | GoldPerson) -> float:
    return getattr(row.right, "value", 2.0)
