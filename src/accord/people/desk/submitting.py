"""Answers become facts: once, whatever is sent twice; on record, also when taken back; kept, also when late."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, bindparam, func, insert, select, update

from accord.config import LabelConfig
from accord.errors import DataError
from accord.people.desk import directory, queue
from accord.people.desk.answers import ADJUDICATION, GOLD, Answer
from accord.people.desk.kinds import check, facts
from accord.people.desk.rows import Conflict, Gone, Person, Receipt, Task
from accord.records import Judgement, Withdrawal
from accord.store import add_facts
from accord.store.operations import submissions, tasks

_SUBMISSIONS = select(submissions, tasks.c.task_id.label("task")).join_from(submissions, tasks)
_OF_KEY = _SUBMISSIONS.where(submissions.c.person_id == bindparam("me"), submissions.c.key == bindparam("sent"))
_LAST_AT = select(func.max(submissions.c.created_at)).where(submissions.c.person_id == bindparam("me"))
_KEEP = insert(submissions)


@dataclass(frozen=True)
class Sent:
    """An answer as it comes in; ``key`` is the sender's: the same answer sent again has the same."""

    person_id: int
    task: Task
    answer: Answer
    key: str


@dataclass(frozen=True)
class _Shown:
    """What an answer answers: the task as it was shown."""

    task_key: int
    is_gold: bool
    order: tuple[int, ...]
    revision: int
    guideline_rev: int
    extra: bool = False
    adjudication: bool = False


def submit(connection: Connection, at: float, settings: LabelConfig, sent: Sent) -> Receipt:
    who = directory.active(connection, sent.person_id)
    known = _known(connection, sent, adjudication=False)
    if known is not None:
        return known
    queue.expire(connection, at)
    row = queue.held(connection, sent.person_id, sent.task.id)
    if row.state == "submitted":
        raise Conflict("you have answered this task already", hint="undo that answer first")
    if row.state in ("skipped", "barred"):
        raise Gone(f"you do not have this task: it is {row.state}", hint="undo the skip first, or claim the next one")
    _check(settings, sent)
    if sent.answer.seconds < settings.min_seconds:
        what = f"answered after {sent.answer.seconds:g} seconds"
        raise DataError(what, where="answer.seconds", hint=f"take at least {settings.min_seconds:g}")
    counts = row.counts or queue.take_slot(connection, row.task_id)
    queue.change(connection, row, state="submitted", counts=counts, draft=None)
    order, rev = tuple(json.loads(row.shown)), row.guideline_rev
    shown = _Shown(row.task_id, row.gold is not None, order, row.revision, rev, extra=not counts)
    return _record(connection, at, settings, sent, who, shown)


def adjudicate(connection: Connection, at: float, settings: LabelConfig, sent: Sent) -> Receipt:
    """A decision on a disputed task, in the order of its completions: a judgement beside the others.

    An earlier decision on it is withdrawn, whoever made it.
    """
    who = directory.active(connection, sent.person_id)
    directory.require(who, "admin", "manager")
    known = _known(connection, sent, adjudication=True)
    if known is not None:
        return known
    _check(settings, sent)
    order, rev = tuple(range(len(sent.task.completions))), directory.guideline(connection).rev
    decided = submissions.c.adjudication & (tasks.c.task_id == sent.task.id)
    before = connection.execute(select(submissions).join_from(submissions, tasks).where(decided)).all()
    for row in before:
        if row.undone_at is None:
            _withdraw(connection, at, row, who, "decided again")
    revision = 1 + sum(row.person_id == who.id for row in before)
    key, gold = connection.execute(select(tasks.c.id, tasks.c.gold).where(tasks.c.task_id == sent.task.id)).one()
    shown = _Shown(key, gold is not None, order, revision, rev, adjudication=True)
    return _record(connection, at, settings, sent, who, shown)


def _check(settings: LabelConfig, sent: Sent) -> None:
    if not 1 <= len(sent.key) <= 200:
        raise DataError("the key of an answer has 1 to 200 characters", where="key")
    check(sent.task.kind, settings, len(sent.task.completions), sent.answer)


def _known(connection: Connection, sent: Sent, *, adjudication: bool) -> Receipt | None:
    """The receipt given for this key before. Raises Conflict where it was for something else."""
    row = connection.execute(_OF_KEY, {"me": sent.person_id, "sent": sent.key}).first()
    if row is None:
        return None
    same = (row.task, row.adjudication, row.answer) == (sent.task.id, adjudication, _content(sent.answer))
    if not same:
        raise Conflict("this key came with another answer", where="key", hint="make a new key for every new answer")
    return Receipt(row.submission_id, row.task, row.revision, row.extra, repeated=True)


def _content(answer: Answer) -> str:
    """What an answer says, without the time it took: who sends it again may have counted on."""
    said = answer.model_dump(mode="json", exclude_defaults=True, exclude={"seconds", "pauses_s"})
    return json.dumps(said, sort_keys=True)


def _record(
    connection: Connection, at: float, settings: LabelConfig, sent: Sent, who: Person, shown: _Shown
) -> Receipt:
    created_at = _moment(connection, who.id, at)
    flags = (ADJUDICATION,) * shown.adjudication + (GOLD,) * shown.is_gold
    guideline = directory.guideline(connection, shown.guideline_rev).text
    said = {"annotator_id": who.annotator_id, "guideline": guideline, "created_at": iso(created_at)}
    task, seen = sent.task, [sent.task.completions[i] for i in shown.order]
    made = facts(task.kind, task.prompt, seen, sent.answer, settings, flags=flags, **said)
    add_facts(connection, made)
    row: dict[str, Any] = {
        "submission_id": secrets.token_urlsafe(12),
        "task_id": shown.task_key,
        "person_id": who.id,
        "revision": shown.revision,
        "key": sent.key,
        "shown": json.dumps(shown.order),
        "answer": _content(sent.answer),
        "seconds": sent.answer.seconds,
        "pauses_s": sent.answer.pauses_s,
        "guideline_rev": shown.guideline_rev,
        "created_at": created_at,
        "extra": shown.extra,
        "adjudication": shown.adjudication,
        "judgement_ids": json.dumps([fact.id for fact in made if isinstance(fact, Judgement)]),
    }
    connection.execute(_KEEP, row)
    return Receipt(row["submission_id"], sent.task.id, shown.revision, shown.extra, repeated=False)


def _moment(connection: Connection, person_id: int, at: float) -> float:
    """Now, but a microsecond after the person's last answer at least: a fact said twice must not be one fact."""
    last = connection.scalar(_LAST_AT, {"me": person_id})
    return round(at, 6) if last is None else max(round(at, 6), round(last + 1e-6, 6))


def iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="microseconds")


def undo(connection: Connection, at: float, settings: LabelConfig, person_id: int, submission_id: str) -> Row[Any]:
    """Withdraw the judgements of an answer and give the task back, with the answer as its draft."""
    who = directory.active(connection, person_id)
    row = connection.execute(_SUBMISSIONS.where(submissions.c.submission_id == submission_id)).first()
    if row is None or row.person_id != person_id:
        raise Gone(f"you have no submission {submission_id!r}")
    if row.undone_at is not None:
        raise Gone("this answer was taken back already")
    if row.adjudication:
        raise Gone(
            "a decision on a disputed task is not taken back", hint="decide again: only the last decision counts"
        )
    if at - row.created_at > settings.undo_minutes * 60:
        raise Gone(f"an answer can be taken back for {settings.undo_minutes:g} minutes")
    _withdraw(connection, at, row, who, "undone")
    queue.expire(connection, at)
    held = queue.held(connection, person_id, row.task)
    draft = json.loads(row.answer) | {"seconds": row.seconds, "pauses_s": row.pauses_s}
    return queue.give_back(connection, at, settings, held, json.dumps(draft))


def _withdraw(connection: Connection, at: float, row: Row[Any], who: Person, note: str) -> None:
    back = {"annotator_id": who.annotator_id, "created_at": iso(at), "note": note}
    add_facts(connection, [Withdrawal(judgement_id=id_, **back) for id_ in json.loads(row.judgement_ids)])
    connection.execute(update(submissions).where(submissions.c.id == row.id).values(undone_at=at))
