"""Answers become facts: once, whatever is sent twice; on record, also when taken back; kept, also when late."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, bindparam, func, insert, select, update

from accord.config import LabelConfig
from accord.errors import DataError
from accord.people.desk.access import active, find_guideline, require
from accord.people.desk.answers import ADJUDICATION, GOLD, JUDGING, Answer
from accord.people.desk.kinds import check, facts
from accord.people.desk.leases import change, expire, held, renew, take_slot
from accord.people.desk.queue import Queue
from accord.people.desk.rows import Assignment, Conflict, Gone, Person, QueuedTask, Receipt
from accord.people.desk.tasks import assignment_of
from accord.people.desk.transactions import DeskPart, Transaction, in_transaction
from accord.records import Judgement, Withdrawal
from accord.store import Store, add_facts
from accord.store.operations import submissions, tasks

# Built once, as in `accord.people.desk.leases`.
_SUBMISSIONS = select(submissions, tasks.c.task_id.label("task")).join_from(submissions, tasks)
_OF_KEY = _SUBMISSIONS.where(submissions.c.person_id == bindparam("me"), submissions.c.key == bindparam("sent"))
_LAST_AT = select(func.max(submissions.c.created_at)).where(submissions.c.person_id == bindparam("me"))
_KEEP = insert(submissions)


@dataclass(frozen=True)
class _Sent:
    """An answer as it comes in; ``key`` is the sender's: the same answer sent again has the same."""

    person_id: int
    task: QueuedTask
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


class Answers(DeskPart):
    """The way of an answer into the store, and back."""

    def __init__(self, store: Store, settings: LabelConfig, clock: Callable[[], float], queue: Queue) -> None:
        super().__init__(store, settings, clock)
        self._queue = queue

    def submit(self, person_id: int, task_id: str, answer: Answer, *, key: str) -> Receipt:
        """Make an answer facts. On return it is safe on disk.

        The same key and answer again change nothing and bring the same receipt, ``repeated``. An answer that comes
        after its time fills a slot if one is free, and is else kept as an extra.

        Raises:
            DataError: The answer does not fit the task; the message names the field.
            Gone: The person never had the task, or gave it back.
            Conflict: The key came with another answer, or the task was answered under another key.
        """
        return self._submit(_Sent(person_id, self._queue.known_task(task_id), answer, key))

    @in_transaction
    def _submit(self, tx: Transaction, sent: _Sent) -> Receipt:
        who = active(tx.connection, sent.person_id)
        # First of all: what was sent twice gets its receipt, also when the lease is long over.
        known = _known(tx.connection, sent, adjudication=False)
        if known is not None:
            return known
        expire(tx)
        row = held(tx.connection, sent.person_id, sent.task.id)
        if row.state == "submitted":
            raise Conflict("you have answered this task already", hint="undo that answer first")
        if row.state in ("skipped", "barred"):
            hint = "undo the skip first, or claim the next one"
            raise Gone(f"you do not have this task: it is {row.state}", hint=hint)
        self._check(sent)
        if sent.answer.seconds < self._settings.min_seconds:
            what = f"answered after {sent.answer.seconds:g} seconds"
            raise DataError(what, where="answer.seconds", hint=f"take at least {self._settings.min_seconds:g}")
        # Late answers are kept: nobody's work is thrown away. Without a free slot it is an extra beside the others.
        counts = row.counts or take_slot(tx.connection, row.task_id)
        change(tx.connection, row, state="submitted", counts=counts, draft=None)
        # By the guidelines that the person had confirmed when claiming it last, not by those that were written since.
        order, rev = tuple(json.loads(row.shown)), row.guideline_rev
        shown = _Shown(row.task_id, row.gold is not None, order, row.revision, rev, extra=not counts)
        return self._record(tx, sent, who, shown)

    def adjudicate(self, person_id: int, task_id: str, answer: Answer, *, key: str) -> Receipt:
        """Decide a disputed task, by position in ``task.completions``. Managers and admins.

        The decision is a judgement beside those of others, which stay. An earlier decision is withdrawn, whoever made
        it.
        """
        return self._adjudicate(_Sent(person_id, self._queue.known_task(task_id), answer, key))

    @in_transaction
    def _adjudicate(self, tx: Transaction, sent: _Sent) -> Receipt:
        who = active(tx.connection, sent.person_id)
        require(who, "admin", "manager")
        known = _known(tx.connection, sent, adjudication=True)
        if known is not None:
            return known
        self._check(sent)
        # A manager sees the completions as they are listed, with everybody's answers beside them: nothing is shuffled.
        order, rev = tuple(range(len(sent.task.completions))), find_guideline(tx.connection).rev
        decided = submissions.c.adjudication & (tasks.c.task_id == sent.task.id)
        before = tx.connection.execute(select(submissions).join_from(submissions, tasks).where(decided)).all()
        for row in before:
            if row.undone_at is None:
                _withdraw(tx, row, who, "decided again")
        revision = 1 + sum(row.person_id == who.id for row in before)
        asked = select(tasks.c.id, tasks.c.gold).where(tasks.c.task_id == sent.task.id)
        key, gold = tx.connection.execute(asked).one()
        shown = _Shown(key, gold is not None, order, revision, rev, adjudication=True)
        return self._record(tx, sent, who, shown)

    def undo(self, person_id: int, submission_id: str) -> Assignment:
        """Take an answer back within ``undo_minutes``: its judgements are withdrawn, the task is the person's again.

        The answer is the task's draft. Raises Gone where it is too late, or nothing of the person's.
        """
        row = self._undo(person_id, submission_id)
        return assignment_of(row, self._queue.known_task(row.task))

    @in_transaction
    def _undo(self, tx: Transaction, person_id: int, submission_id: str) -> Row[Any]:
        who = active(tx.connection, person_id)
        row = tx.connection.execute(_SUBMISSIONS.where(submissions.c.submission_id == submission_id)).first()
        if row is None or row.person_id != person_id:
            raise Gone(f"you have no submission {submission_id!r}")
        self._check_undoable(tx, row)
        # Withdrawn, not superseded: the next answer may lack some of the facts that this one made.
        _withdraw(tx, row, who, "undone")
        expire(tx)
        back = held(tx.connection, person_id, row.task)
        draft = json.loads(row.answer) | {"seconds": row.seconds, "pauses_s": row.pauses_s}
        return renew(tx, self._settings, back, revision=back.revision + 1, draft=json.dumps(draft))

    def _check_undoable(self, tx: Transaction, row: Row[Any]) -> None:
        if row.undone_at is not None:
            raise Gone("this answer was taken back already")
        if row.adjudication:
            hint = "decide again: only the last decision counts"
            raise Gone("a decision on a disputed task is not taken back", hint=hint)
        if tx.at - row.created_at > self._settings.undo_minutes * 60:
            raise Gone(f"an answer can be taken back for {self._settings.undo_minutes:g} minutes")

    def _check(self, sent: _Sent) -> None:
        if not 1 <= len(sent.key) <= 200:
            raise DataError("the key of an answer has 1 to 200 characters", where="key")
        check(sent.task.kind, self._settings, len(sent.task.completions), sent.answer)

    def _record(self, tx: Transaction, sent: _Sent, who: Person, shown: _Shown) -> Receipt:
        created_at = _moment(tx, who.id)
        flags = (ADJUDICATION,) * shown.adjudication + (GOLD,) * shown.is_gold + (JUDGING,) * sent.task.reserved
        guideline = find_guideline(tx.connection, shown.guideline_rev).text
        said = {"annotator_id": who.annotator_id, "guideline": guideline, "created_at": _iso(created_at)}
        task, seen = sent.task, [sent.task.completions[i] for i in shown.order]
        made = facts(task.kind, task.prompt, seen, sent.answer, self._settings, flags=flags, **said)
        add_facts(tx.connection, made)
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
        tx.connection.execute(_KEEP, row)
        return Receipt(row["submission_id"], sent.task.id, shown.revision, shown.extra, repeated=False)


def _known(connection: Connection, sent: _Sent, *, adjudication: bool) -> Receipt | None:
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


def _moment(tx: Transaction, person_id: int) -> float:
    """Now, but a microsecond after the person's last answer at least: a fact said twice must not be one fact."""
    last = tx.connection.scalar(_LAST_AT, {"me": person_id})
    return round(tx.at, 6) if last is None else max(round(tx.at, 6), round(last + 1e-6, 6))


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="microseconds")


def _withdraw(tx: Transaction, row: Row[Any], who: Person, note: str) -> None:
    back = {"annotator_id": who.annotator_id, "created_at": _iso(tx.at), "note": note}
    add_facts(tx.connection, [Withdrawal(judgement_id=id_, **back) for id_ in json.loads(row.judgement_ids)])
    tx.connection.execute(update(submissions).where(submissions.c.id == row.id).values(undone_at=tx.at))
