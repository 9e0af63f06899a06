"""Slots and who has them, on one connection: an assignment is one person's part in one task, in one of six states.

A task has ``overlap`` slots; ``free`` says how many nobody has or has filled. An assignment fills a slot (``counts``)
while leased or submitted::

    leased ──> submitted | skipped | released | expired (its time is over: seen by whoever comes next)
    expired, released ──> leased, or submitted late: with a slot if one is free, else as an extra
    submitted, skipped ──> leased again (undone), with a slot if it has one or one is free
    barred: never theirs, for they wrote one of the texts

All of this happens in requests to the store's one writer, one after the other: no slot is given twice.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from sqlalchemy import Connection, Row, Select, bindparam, select, update

from accord.config import LabelConfig
from accord.people.desk.rows import Gone
from accord.people.desk.transactions import Transaction
from accord.store.operations import assignments, tasks

# Statements are built once, with their values bound: to build one and to find what it was compiled to took 110 of
# 142 us (docs/LOG.md, "Annotators at once").
HELD: Select[Any] = select(
    assignments, tasks.c.free, tasks.c.kind, tasks.c.gold, tasks.c.task_id.label("task")
).join_from(assignments, tasks)
_HELD_BY = HELD.where(assignments.c.person_id == bindparam("me"), tasks.c.task_id == bindparam("wanted"))
_IS_OVER = (assignments.c.state == "leased") & (assignments.c.until <= bindparam("at"))
_OVER = select(assignments.c.task_id, assignments.c.counts).where(_IS_OVER)
_EXPIRE = update(assignments).where(_IS_OVER).values(state="expired", counts=False)
_FREE_MORE = update(tasks).where(tasks.c.id == bindparam("key")).values(free=tasks.c.free + bindparam("more"))
_TAKE_SLOT = update(tasks).where(tasks.c.id == bindparam("key"), tasks.c.free > 0).values(free=tasks.c.free - 1)
_CHANGE = update(assignments).where(assignments.c.id == bindparam("key"))


def held(connection: Connection, person_id: int, task_id: str) -> Row[Any]:
    """Return a person's assignment of a task, whatever its state. Raises Gone where the person never had it."""
    row = connection.execute(_HELD_BY, {"me": person_id, "wanted": task_id}).first()
    if row is None:
        raise Gone(f"you do not have a task {task_id!r}", hint="claim the next one")
    return row


def change(connection: Connection, row: Row[Any], **values: Any) -> None:
    """Set columns of an assignment that `held` has found."""
    connection.execute(_CHANGE, {"key": row.id, **values})


def expire(tx: Transaction) -> None:
    """Take back the leases whose time is over."""
    # No clock runs in the background: whoever comes next sees what is over. Most find nothing, and one read is all.
    rows = tx.connection.execute(_OVER, {"at": tx.at}).all()
    if not rows:
        return
    tx.connection.execute(_EXPIRE, {"at": tx.at})
    freed = Counter(row.task_id for row in rows if row.counts)
    if freed:
        tx.connection.execute(_FREE_MORE, [{"key": key, "more": number} for key, number in freed.items()])


def take_slot(connection: Connection, task_key: int) -> bool:
    """Take a free slot of a task, and return whether there was one."""
    return connection.execute(_TAKE_SLOT, {"key": task_key}).rowcount == 1


def renew(tx: Transaction, settings: LabelConfig, row: Row[Any], **more: Any) -> Row[Any]:
    """Lease it again to who had it, in the order drawn then; without a slot where none is free."""
    values = {
        "state": "leased",
        # The order stays as drawn: shown anew in another one, a draft by position would say something else.
        "counts": row.counts or take_slot(tx.connection, row.task_id),
        "given_at": tx.at,
        "until": lease_end(tx, settings),
    }
    change(tx.connection, row, **values, **more)
    return held(tx.connection, row.person_id, row.task)


def lease_end(tx: Transaction, settings: LabelConfig) -> float:
    """Return until when a task that is leased now is its person's."""
    return tx.at + settings.lease_minutes * 60


def leave(connection: Connection, row: Row[Any], **values: Any) -> None:
    """Set columns of an assignment that is over, and give its slot back."""
    change(connection, row, counts=False, **values)
    if row.counts:
        connection.execute(_FREE_MORE, {"key": row.task_id, "more": 1})


def release_all(connection: Connection, person_id: int) -> None:
    """Give back all that a person holds."""
    mine = (assignments.c.person_id == person_id) & (assignments.c.state == "leased")
    for row in connection.execute(HELD.where(mine)).all():
        leave(connection, row, state="released")
