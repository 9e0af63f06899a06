"""Tasks as the database holds them, on one connection: with their prompts and completions, some hundreds at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Row, bindparam, select

from accord.people.desk.answers import is_deep
from accord.people.desk.rows import Assignment, Gone, QueuedTask
from accord.records import Completion, Prompt
from accord.store import find, schema
from accord.store.database import LOOKUP_IDS
from accord.store.operations import task_completions, tasks

_TASKS = select(tasks, schema.prompts.c.content_id.label("prompt")).join_from(tasks, schema.prompts)
_TASK = _TASKS.where(tasks.c.task_id == bindparam("wanted"))
_LISTED = (
    select(task_completions.c.task_id, schema.completions.c.content_id)
    .join_from(task_completions, schema.completions)
    .where(task_completions.c.task_id.in_(bindparam("keys", expanding=True)))
    .order_by(task_completions.c.task_id, task_completions.c.position)
)


def stored_task(connection: Connection, task_id: str) -> QueuedTask:
    """Return one task. Raises Gone where there is none."""
    rows = connection.execute(_TASK, {"wanted": task_id}).all()
    if not rows:
        raise Gone(f"there is no task {task_id!r}")
    return _made(connection, rows)[0]


def stored_tasks(connection: Connection, *, after: str, gold: bool) -> Iterator[QueuedTask]:
    """Yield tasks, oldest first, those after one, or gold questions only; some hundreds are held at a time."""
    last = connection.scalar(select(tasks.c.id).where(tasks.c.task_id == after)) or 0
    wanted = _TASKS.where(tasks.c.gold.is_not(None)) if gold else _TASKS
    # Pages by key, not by OFFSET: each page costs the same however far one has read.
    while rows := connection.execute(wanted.where(tasks.c.id > last).order_by(tasks.c.id).limit(LOOKUP_IDS)).all():
        yield from _made(connection, rows)
        last = rows[-1].id


def _made(connection: Connection, rows: Sequence[Row[Any]]) -> list[QueuedTask]:
    ids: dict[int, list[str]] = {row.id: [] for row in rows}
    for key, id_ in connection.execute(_LISTED, {"keys": list(ids)}):
        ids[key].append(id_)
    prompts = find(connection, Prompt, [row.prompt for row in rows])
    found = find(connection, Completion, [id_ for some in ids.values() for id_ in some])
    return [_task(row, prompts[row.prompt], tuple(found[id_] for id_ in ids[row.id])) for row in rows]


def _task(row: Row[Any], prompt: Prompt, completions: tuple[Completion, ...]) -> QueuedTask:
    return QueuedTask(
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


def _draft(row: Row[Any]) -> dict[str, Any] | None:
    """Return the draft of an assignment. One that an older version kept and no page can show is none."""
    try:
        draft: dict[str, Any] | None = None if row.draft is None else json.loads(row.draft)
    except RecursionError:
        return None
    return None if is_deep(draft) else draft


def assignment_of(row: Row[Any], task: QueuedTask) -> Assignment:
    """Return the assignment of a row of `accord.people.desk.leases.held`, with the gold answer that stands there."""
    return Assignment(
        task=replace(task, gold=_gold(row)),
        order=tuple(json.loads(row.shown)),
        until=row.until,
        draft=_draft(row),
        revision=row.revision,
        guideline_rev=row.guideline_rev,
    )
