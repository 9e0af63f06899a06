"""Reading the desk: what was answered, streamed; counts and progress, summed up in SQL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, Row, Select, case, func, select

from accord.people.desk.access import all_people
from accord.people.desk.answers import read_answer
from accord.people.desk.queue import NOT_AGAIN
from accord.people.desk.rows import AnswersSince, GivenAnswer, Progress, Served, Skip, Standing, Submission
from accord.people.desk.transactions import DeskPart
from accord.store.operations import HAS_FREE_SLOT, assignments, people, submissions, tasks

# Rows held at a time, so that memory does not grow with a project of hundreds of thousands of answers.
_FETCH_ROWS = 1_000
_SUBMISSIONS = (
    select(submissions, tasks.c.task_id.label("task"), tasks.c.kind, tasks.c.gold, people.c.name)
    .join_from(submissions, tasks)
    .join(people, people.c.id == submissions.c.person_id)
)
_GIVEN = select(
    submissions.c.id,
    tasks.c.task_id,
    submissions.c.person_id,
    submissions.c.created_at,
    submissions.c.adjudication,
    submissions.c.shown,
    submissions.c.answer,
    submissions.c.judgement_ids,
).join_from(submissions, tasks)
_SERVED = (
    select(tasks.c.group_name, tasks.c.task_id, tasks.c.gold, submissions.c.judgement_ids)
    .join_from(submissions, tasks)
    .order_by(submissions.c.id)
)
_UNDONE = select(submissions.c.id).where(submissions.c.undone_at.is_not(None))
_GOLD_TASKS = select(tasks.c.task_id).where(tasks.c.gold.is_not(None))
_SKIPPED = select(tasks.c.task_id).join_from(assignments, tasks).where(assignments.c.state == "skipped")


class DeskReading(DeskPart):
    """What a desk has to tell of its queue and of its answers: each call reads one snapshot."""

    def submissions(
        self, *, person_id: int | None = None, task_id: str | None = None, gold: bool = False, last: int | None = None
    ) -> Iterator[Submission]:
        """Yield all submissions, undone ones too, oldest first, streamed; or the ``last`` so many, newest first.

        Those of one person, of one task, or of ``gold`` questions only.
        """
        query = _SUBMISSIONS
        if person_id is not None:
            query = query.where(submissions.c.person_id == person_id)
        if task_id is not None:
            query = query.where(tasks.c.task_id == task_id)
        if gold:
            query = query.where(tasks.c.gold.is_not(None))
        # The last ones by time, which the index of a person's submissions holds in order.
        order = (submissions.c.id,) if last is None else (submissions.c.created_at.desc(), submissions.c.id.desc())
        streamed = {"yield_per": _FETCH_ROWS}
        with (
            self._store.snapshot() as connection,
            connection.execute(query.order_by(*order).limit(last), execution_options=streamed) as rows,
        ):
            yield from map(_submission, rows)  # a reader may stop early: both end with it

    def served(self) -> Iterator[Served]:
        """Yield what each submission answered and which judgements it made, undone ones too, oldest first, streamed."""
        streamed = {"yield_per": _FETCH_ROWS}
        with self._store.snapshot() as connection, connection.execute(_SERVED, execution_options=streamed) as rows:
            for group, task_id, gold, judgement_ids in rows:
                yield Served(group or task_id, gold is not None, tuple(json.loads(judgement_ids)))

    def answers_since(self, number: int) -> AnswersSince:
        """Return what came in after an answer, all of it after 0: who looks again and again reads each answer once."""
        newer = _GIVEN.where(submissions.c.id > number).order_by(submissions.c.id)
        with self._store.snapshot() as connection:
            return AnswersSince(
                new=tuple(GivenAnswer(*row) for row in connection.execute(newer)),
                undone=frozenset(connection.scalars(_UNDONE)),
                gold_tasks=frozenset(connection.scalars(_GOLD_TASKS)),
                skipped=tuple(connection.scalars(_SKIPPED)),
                people=tuple(all_people(connection)),
            )

    def skips(self) -> Iterator[Skip]:
        """Yield the tasks that people skipped and did not take again."""
        a = assignments.c
        columns = select(tasks.c.task_id, tasks.c.kind, a.person_id, a.reason, a.note).join_from(assignments, tasks)
        with self._store.snapshot() as connection:
            for row in connection.execute(columns.where(a.state == "skipped").order_by(a.id)):
                yield Skip(*row)

    def counts(self) -> dict[str, int]:
        """Return how the queue and its answers stand.

        ``slots`` (the overlaps of all tasks) = ``waiting`` + ``leased`` + ``filled``. ``expired`` leases are among
        those waiting. ``submissions`` are those not undone; ``extra`` and ``adjudications`` among them.
        """
        with self._store.snapshot() as connection:
            parts = [connection.execute(sums).one() for sums in (_queued(), _given(self._clock()), _answered())]
        found = {name: int(value) for part in parts for name, value in part._mapping.items()}
        found["waiting"] += found.pop("unseen")  # leases that are over, and nobody has come since
        return found

    def progress(self) -> list[Progress]:
        """Return what each person has done of each kind of task, adjudications left out: one row a person and kind."""
        with self._store.snapshot() as connection:
            done = {tuple(row[:2]): row[2:] for row in connection.execute(_done_by_person())}
            skipped = {tuple(row[:2]): int(row[2]) for row in connection.execute(_skipped_by_person())}
            names = {person.id: person.name for person in all_people(connection)}
        rows = []
        for who, kind in sorted(done.keys() | skipped.keys()):
            *numbers, seconds, first, last = done.get((who, kind), (0, 0, 0, 0.0, None, None))
            num_done, extra, undone = map(int, numbers)
            few = skipped.get((who, kind), 0)
            rows.append(Progress(who, names[who], kind, num_done, extra, undone, few, float(seconds), first, last))
        return rows

    def answered_by(self) -> dict[str, int]:
        """Return how many tasks each person has answered, the most first."""
        a = assignments.c
        # By the index of assignments alone: 250,000 answers take a thirtieth of a second, and one where each is read.
        counted = (
            select(a.person_id, func.count())
            .where(a.state == "submitted")
            .group_by(a.person_id)
            .order_by(func.count().desc(), a.person_id)
        )
        with self._store.snapshot() as connection:
            names = {person.id: person.name for person in all_people(connection)}
            return {names[who]: int(number) for who, number in connection.execute(counted)}

    def standing(self, person_id: int, *, since: float = 0.0) -> Standing:
        """Return one person's own progress; ``since`` is where "today" begins."""
        s = submissions.c
        mine = (s.person_id == person_id) & s.undone_at.is_(None)
        sums = select(func.count(), _sum(s.created_at >= since)).select_from(submissions).where(mine)
        with self._store.snapshot() as connection:
            done = connection.execute(sums).one()
            return Standing(int(done[0]), int(done[1]), _num_left(connection, person_id))


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


# ---- sums ------------------------------------------------------------------------------------------------------------


def _sum(condition: Any) -> Any:
    return func.coalesce(func.sum(case((condition, 1), else_=0)), 0)


def _queued() -> Select[Any]:
    t = tasks.c
    return select(
        func.count().label("tasks"),
        func.coalesce(func.sum(t.overlap), 0).label("slots"),
        func.coalesce(func.sum(t.free), 0).label("waiting"),
        _sum(t.gold.is_not(None)).label("gold"),
    )


def _given(at: float) -> Select[Any]:
    a = assignments.c
    over = (a.state == "leased") & (a.until <= at)
    return select(
        _sum((a.state == "leased") & ~over & a.counts).label("leased"),
        _sum(over | (a.state == "expired")).label("expired"),
        _sum(over & a.counts).label("unseen"),
        _sum((a.state == "submitted") & a.counts).label("filled"),
        _sum(a.state == "skipped").label("skipped"),
    )


def _answered() -> Select[Any]:
    s = submissions.c
    now = ~s.undone_at.is_not(None)
    return select(
        _sum(now).label("submissions"),
        _sum(now & s.extra).label("extra"),
        _sum(now & s.adjudication).label("adjudications"),
        _sum(~now).label("undone"),
    )


def _done_by_person() -> Select[Any]:
    s = submissions.c
    now = s.undone_at.is_(None)
    return (
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


def _skipped_by_person() -> Select[Any]:
    a = assignments.c
    return (
        select(a.person_id, tasks.c.kind, func.count())
        .join_from(assignments, tasks)
        .where(a.state == "skipped")
        .group_by(a.person_id, tasks.c.kind)
    )


def _num_left(connection: Connection, person_id: int) -> int:
    """How many tasks a person could still be given, or has: counted without a look at each task of the queue."""
    a = assignments.c
    # Three counts by index in place of a join of all tasks with one's own assignments.
    free = connection.execute(select(func.count()).select_from(tasks).where(HAS_FREE_SLOT)).scalar_one()
    mine = select(func.count()).select_from(assignments.join(tasks)).where(a.person_id == person_id)
    had = connection.execute(mine.where(a.state.in_(NOT_AGAIN), HAS_FREE_SLOT)).scalar_one()
    return free - had + connection.execute(mine.where(a.state == "leased")).scalar_one()
