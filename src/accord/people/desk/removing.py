"""Tasks taken out of the queue, on one connection. Answers that were given stay, and so does their task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Connection, delete, func, select, update

from accord.people.desk.transactions import Transaction
from accord.store.database import LOOKUP_IDS, chunks
from accord.store.operations import assignments, submissions, task_completions, tasks


class Removed(NamedTuple):
    """What became of tasks: gone without a trace, closed with the answers they have, or done before."""

    gone: int
    closed: int
    done: int


def remove_tasks(tx: Transaction, origin: str) -> Removed:
    """Take out of the queue what came from an origin and still waits for answers.

    A task that nobody has answered or is at now is deleted. Of the others nobody new is asked, and who is at one may
    still send the answer: it is kept as an extra.
    """
    waiting, done = _open(tx.connection, origin)
    kept = _begun(tx, waiting)
    fresh = [key for key in waiting if key not in kept]
    for some in chunks(fresh, LOOKUP_IDS):
        for table in (assignments, task_completions):
            tx.connection.execute(delete(table).where(table.c.task_id.in_(some)))
        tx.connection.execute(delete(tasks).where(tasks.c.id.in_(some)))
    for some in chunks(sorted(kept), LOOKUP_IDS):
        _close(tx.connection, some)
    return Removed(len(fresh), len(kept), done)


def _open(connection: Connection, origin: str) -> tuple[list[int], int]:
    """Return the keys of an origin's tasks that want answers, and how many have all of theirs."""
    filled = (
        select(func.count())
        .where(assignments.c.task_id == tasks.c.id, assignments.c.state == "submitted", assignments.c.counts)
        .scalar_subquery()
    )
    rows = connection.execute(select(tasks.c.id, filled < tasks.c.overlap).where(tasks.c.origin == origin)).all()
    waiting = [key for key, wants in rows if wants]
    return waiting, len(rows) - len(waiting)


def _begun(tx: Transaction, keys: Sequence[int]) -> set[int]:
    """Return the tasks that somebody has answered, undone or not, or is at now."""
    leased = (assignments.c.state == "leased") & (assignments.c.until > tx.at)
    found: set[int] = set()
    for some in chunks(keys, LOOKUP_IDS):
        found |= set(tx.connection.scalars(select(submissions.c.task_id).where(submissions.c.task_id.in_(some))))
        at_it = select(assignments.c.task_id).where(leased, assignments.c.task_id.in_(some))
        found |= set(tx.connection.scalars(at_it))
    return found


def _close(connection: Connection, keys: Sequence[int]) -> None:
    """Ask for no more answers than there are; leases end, as if their time were over."""
    a = assignments.c
    ended = update(assignments).where(a.task_id.in_(keys), a.state == "leased").values(state="expired", counts=False)
    connection.execute(ended)
    filled = select(func.count()).where(a.task_id == tasks.c.id, a.counts).scalar_subquery()
    connection.execute(update(tasks).where(tasks.c.id.in_(keys)).values(overlap=filled, free=0))
