"""Reading the desk: tasks and submissions streamed, counts and progress summed up in SQL."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Row, bindparam, case, func, select

from accord.people.desk import directory, queue
from accord.people.desk.answers import read_answer
from accord.people.desk.rows import Assignment, Gone, Progress, Skip, Standing, Submission, Task
from accord.records import Completion, Prompt
from accord.store import find, schema
from accord.store.database import LOOKUP_IDS
from accord.store.operations import assignments, people, submissions, task_completions, tasks

_FETCH_ROWS = 1_000


# ---- tasks -----------------------------------------------------------------------------------------------------------


_TASKS = select(tasks, schema.prompts.c.content_id.label("prompt")).join_from(tasks, schema.prompts)
_TASK = _TASKS.where(tasks.c.task_id == bindparam("wanted"))
_LISTED = (
    select(task_completions.c.task_id, schema.completions.c.content_id)
    .join_from(task_completions, schema.completions)
    .where(task_completions.c.task_id.in_(bindparam("keys", expanding=True)))
    .order_by(task_completions.c.task_id, task_completions.c.position)
)


def task(connection: Connection, task_id: str) -> Task:
    """Raises Gone where there is none."""
    rows = connection.execute(_TASK, {"wanted": task_id}).all()
    if not rows:
        raise Gone(f"there is no task {task_id!r}")
    return _made(connection, rows)[0]


def all_tasks(connection: Connection, *, after: str = "", gold: bool = False) -> Iterator[Task]:
    """Tasks, oldest first, those after one, or gold questions only; some hundreds are held at a time."""
    last = connection.scalar(select(tasks.c.id).where(tasks.c.task_id == after)) or 0
    wanted = _TASKS.where(tasks.c.gold.is_not(None)) if gold else _TASKS
    while rows := connection.execute(wanted.where(tasks.c.id > last).order_by(tasks.c.id).limit(LOOKUP_IDS)).all():
        yield from _made(connection, rows)
        last = rows[-1].id


def _made(connection: Connection, rows: Sequence[Row[Any]]) -> list[Task]:
    ids: dict[int, list[str]] = {row.id: [] for row in rows}
    for key, id_ in connection.execute(_LISTED, {"keys": list(ids)}):
        ids[key].append(id_)
    prompts = find(connection, Prompt, [row.prompt for row in rows])
    found = find(connection, Completion, [id_ for some in ids.values() for id_ in some])
    return [_task(row, prompts[row.prompt], tuple(found[id_] for id_ in ids[row.id])) for row in rows]


def _task(row: Row[Any], prompt: Prompt, completions: tuple[Completion, ...]) -> Task:
    return Task(
        id=row.task_id,
        kind=row.kind,
        prompt=prompt,
        completions=completions,
        overlap=row.overlap,
        priority=0.0 - row.turn,
        group=row.group_name,
        gold=_gold(row),
        origin=row.origin,
        created_at=row.created_at,
    )


def _gold(row: Row[Any]) -> dict[str, Any] | None:
    return None if row.gold is None else json.loads(row.gold)


def assignment(row: Row[Any], task: Task) -> Assignment:
    """The assignment of a row of `queue.held`."""
    return Assignment(
        task=replace(task, gold=_gold(row)),
        order=tuple(json.loads(row.shown)),
        until=row.until,
        draft=None if row.draft is None else json.loads(row.draft),
        revision=row.revision,
        guideline_rev=row.guideline_rev,
    )


# ---- what was answered -----------------------------------------------------------------------------------------------


def all_submissions(
    connection: Connection, *, person_id: int | None, task_id: str | None, gold: bool, last: int | None
) -> Iterator[Submission]:
    """Submissions, oldest first; or the ``last`` so many, newest first. With ``gold`` those of gold questions only."""
    more = (tasks.c.task_id.label("task"), tasks.c.kind, tasks.c.gold, people.c.name)
    query = (
        select(submissions, *more).join_from(submissions, tasks).join(people, people.c.id == submissions.c.person_id)
    )
    if person_id is not None:
        query = query.where(submissions.c.person_id == person_id)
    if task_id is not None:
        query = query.where(tasks.c.task_id == task_id)
    if gold:
        query = query.where(tasks.c.gold.is_not(None))
    order = (submissions.c.id,) if last is None else (submissions.c.created_at.desc(), submissions.c.id.desc())
    found = query.order_by(*order).limit(last)
    with connection.execute(found, execution_options={"yield_per": _FETCH_ROWS}) as rows:  # a reader may stop early
        yield from map(_submission, rows)


def _submission(row: Row[Any]) -> Submission:
    return Submission(
        id=row.submission_id,
        task_id=row.task,
        kind=row.kind,
        person_id=row.person_id,
        person_name=row.name,
        order=tuple(json.loads(row.shown)),
        answer=read_answer(json.loads(row.answer) | {"seconds": row.seconds, "pauses_s": row.pauses_s}),
        seconds=row.seconds,
        pauses_s=row.pauses_s,
        guideline_rev=row.guideline_rev,
        created_at=row.created_at,
        extra=row.extra,
        undone=row.undone_at is not None,
        adjudication=row.adjudication,
        gold=row.gold is not None,
        judgement_ids=tuple(json.loads(row.judgement_ids)),
    )


def skips(connection: Connection) -> Iterator[Skip]:
    a = assignments
    columns = select(tasks.c.task_id, tasks.c.kind, a.c.person_id, a.c.reason, a.c.note).join_from(a, tasks)
    return (Skip(*row) for row in connection.execute(columns.where(a.c.state == "skipped").order_by(a.c.id)))


# ---- sums ------------------------------------------------------------------------------------------------------------


def _sum(condition: Any) -> Any:
    return func.coalesce(func.sum(case((condition, 1), else_=0)), 0)


def counts(connection: Connection, at: float) -> dict[str, int]:
    """How the queue and its answers stand.

    ``slots`` (the overlaps of all tasks) = ``waiting`` + ``leased`` + ``filled``. ``expired`` leases are among those
    waiting. ``submissions`` are those not undone; ``extra`` and ``adjudications`` among them.
    """
    t, a, s = tasks.c, assignments.c, submissions.c
    over = (a.state == "leased") & (a.until <= at)
    now = ~s.undone_at.is_not(None)
    row = connection.execute(
        select(
            func.count().label("tasks"),
            func.coalesce(func.sum(t.overlap), 0).label("slots"),
            func.coalesce(func.sum(t.free), 0).label("waiting"),
            _sum(t.gold.is_not(None)).label("gold"),
        )
    ).one()
    given = connection.execute(
        select(
            _sum((a.state == "leased") & ~over & a.counts).label("leased"),
            _sum(over | (a.state == "expired")).label("expired"),
            _sum(over & a.counts).label("unseen"),
            _sum((a.state == "submitted") & a.counts).label("filled"),
            _sum(a.state == "skipped").label("skipped"),
        )
    ).one()
    answers = connection.execute(
        select(
            _sum(now).label("submissions"),
            _sum(now & s.extra).label("extra"),
            _sum(now & s.adjudication).label("adjudications"),
            _sum(~now).label("undone"),
        )
    ).one()
    found = {name: int(value) for part in (row, given, answers) for name, value in part._mapping.items()}
    found["waiting"] += found.pop("unseen")  # leases that are over, and nobody has come since
    return found


def progress(connection: Connection) -> list[Progress]:
    """What each person has done of each kind of task, adjudications left out."""
    s, a = submissions.c, assignments.c
    now = s.undone_at.is_(None)
    answered = (
        select(
            s.person_id,
            tasks.c.kind,
            _sum(now),
            _sum(now & s.extra),
            _sum(~now),
            func.coalesce(func.sum(case((now, s.seconds), else_=0.0)), 0.0),
            func.min(s.created_at),
            func.max(s.created_at),
        )
        .join_from(submissions, tasks)
        .where(~s.adjudication)
        .group_by(s.person_id, tasks.c.kind)
    )
    left_out = (
        select(a.person_id, tasks.c.kind, func.count())
        .join_from(assignments, tasks)
        .where(a.state == "skipped")
        .group_by(a.person_id, tasks.c.kind)
    )
    done = {tuple(row[:2]): row[2:] for row in connection.execute(answered)}
    skipped = {tuple(row[:2]): int(row[2]) for row in connection.execute(left_out)}
    names = {person.id: person.name for person in directory.all_people(connection)}
    rows = []
    for who, kind in sorted(done.keys() | skipped.keys()):
        *numbers, seconds, first, last = done.get((who, kind), (0, 0, 0, 0.0, None, None))
        num_done, extra, undone = map(int, numbers)
        few = skipped.get((who, kind), 0)
        rows.append(Progress(who, names[who], kind, num_done, extra, undone, few, float(seconds), first, last))
    return rows


def standing(connection: Connection, person_id: int, since: float) -> Standing:
    s = submissions.c
    mine = (s.person_id == person_id) & s.undone_at.is_(None)
    done = connection.execute(
        select(func.count(), _sum(s.created_at >= since)).select_from(submissions).where(mine)
    ).one()
    return Standing(int(done[0]), int(done[1]), queue.num_left(connection, person_id))
