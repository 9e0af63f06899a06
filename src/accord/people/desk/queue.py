"""What waits to be judged, and who has it: tasks come in, slots of them are leased, drafts are kept."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from random import SystemRandom
from typing import Any

from sqlalchemy import Column, Connection, Row, Select, Table, bindparam, func, insert, select, update

from accord.config import LabelConfig
from accord.errors import DataError
from accord.people.desk.access import acting, active, confirmed_rev
from accord.people.desk.answers import MOST_DEPTH, MOST_NOTE, MOST_TEXT, Answer, is_deep
from accord.people.desk.audit import note
from accord.people.desk.filling import checked_gold, prepared
from accord.people.desk.kinds import kind_of
from accord.people.desk.leases import HELD, change, expire, held, lease_end, leave, renew, take_slot
from accord.people.desk.removing import Removed, remove_tasks
from accord.people.desk.rows import Assignment, Gone, NewTask, Person, QueuedTask
from accord.people.desk.tasks import assignment_of, stored_task, stored_tasks
from accord.people.desk.transactions import DeskPart, Transaction, in_transaction
from accord.people.remembered import Remembered
from accord.store import Store, add_facts, schema
from accord.store.database import LOOKUP_IDS, chunks
from accord.store.operations import HAS_FREE_SLOT, assignments, people, task_completions, tasks

# Not seeded: nobody shall foresee an order, and the one drawn is stored with the assignment and the answer.
_RANDOM = SystemRandom()
_MOST_KEPT = 16_000_000  # characters of tasks: ten thousand usual ones
# A draft may hold the longest text and, beside it, all else that an answer has.
_MOST_DRAFT = 2 * MOST_TEXT
#: States in which a task is not given to a person (again).
NOT_AGAIN = ("leased", "submitted", "skipped", "barred")
_NO_ASSIGNMENT = {
    "shown": "[]",
    "state": "barred",
    "counts": False,
    "revision": 1,
    "guideline_rev": 0,
    "given_at": 0.0,
    "until": 0.0,
    "draft": None,
    "reason": "",
    "note": "",
}

# States are ordered as words: "leased" comes after "expired", so it is the first one in descending order.
# What a person has, the latest first, before what the person had when the lease ran out and nobody took.
_OWN: Select[Any] = (
    HELD.where(assignments.c.person_id == bindparam("me"))
    .where(assignments.c.state.in_(("leased", "expired")), (assignments.c.state == "leased") | (tasks.c.free > 0))
    .order_by(assignments.c.state.desc(), assignments.c.given_at.desc(), assignments.c.id.desc())
    .limit(1)
)
# The next task by turn and age that has a free slot and that the person may have.
_IN_TURN: Select[Any] = (
    select(
        tasks.c.id,
        tasks.c.task_id,
        select(func.count()).where(task_completions.c.task_id == tasks.c.id).scalar_subquery().label("size"),
        assignments.c.id.is_not(None).label("released"),
    )
    .outerjoin_from(
        tasks, assignments, (assignments.c.task_id == tasks.c.id) & (assignments.c.person_id == bindparam("me"))
    )
    .where(HAS_FREE_SLOT, assignments.c.id.is_(None) | assignments.c.state.not_in(NOT_AGAIN))
    .order_by(tasks.c.turn, tasks.c.id)
    .limit(1)
)
# The order of two is balanced, not merely random: of few pairs chance alone would show one side first too often,
# and left bias could not be told from taste.
_GIVE = insert(assignments)
_BALANCE = select(people.c.position_balance).where(people.c.id == bindparam("me"))
_SHIFT_BALANCE = (
    update(people)
    .where(people.c.id == bindparam("me"))
    .values(position_balance=people.c.position_balance + bindparam("more"))
)


class Queue(DeskPart):
    """The tasks of a project, and the leases on them; `accord.people.desk.leases` has the states of an assignment."""

    def __init__(self, store: Store, settings: LabelConfig, clock: Callable[[], float]) -> None:
        super().__init__(store, settings, clock)
        # A task never changes but for its gold answer, which comes from elsewhere: whoever claims one sends it soon.
        self.known_task = Remembered(self.task, _task_size, most=_MOST_KEPT)

    # ---- tasks -------------------------------------------------------------------------------------------------------

    def add_tasks(self, new: Iterable[NewTask]) -> int:
        """Queue tasks and store their prompts and completions: all of them, or none and a DataError that names one."""
        return self._add(prepared(new, self._settings))

    @in_transaction
    def _add(self, tx: Transaction, new: Sequence[NewTask]) -> int:
        prompts = [task.prompt for task in new]
        completions = [completion for task in new for completion in task.completions]
        add_facts(tx.connection, [*prompts, *completions])
        prompt_keys = _keys(tx.connection, schema.prompts.c.content_id, schema.prompts.c.id, [p.id for p in prompts])
        ids = [secrets.token_urlsafe(12) for _ in new]
        rows = [_task_row(tx.at, id_, task, prompt_keys) for id_, task in zip(ids, new, strict=True)]
        _insert(tx.connection, tasks, rows)
        task_keys = _keys(tx.connection, tasks.c.task_id, tasks.c.id, ids)
        c = schema.completions.c
        keys = _keys(tx.connection, c.content_id, c.id, [completion.id for completion in completions])
        items = [
            {"task_id": task_keys[id_], "position": position, "completion_id": keys[completion.id]}
            for id_, task in zip(ids, new, strict=True)
            for position, completion in enumerate(task.completions)
        ]
        _insert(tx.connection, task_completions, items)
        _bar_writers(tx.connection, list(task_keys.values()))
        return len(new)

    def task(self, task_id: str) -> QueuedTask:
        """Return one task. Raises Gone where there is none."""
        with self._store.snapshot() as connection:
            return stored_task(connection, task_id)

    def tasks(self, *, after: str = "", gold: bool = False) -> Iterator[QueuedTask]:
        """Yield all tasks, oldest first, streamed; or those that came ``after`` one, or the gold questions only."""
        with self._store.snapshot() as connection:
            yield from stored_tasks(connection, after=after, gold=gold)

    @in_transaction
    def remove(self, tx: Transaction, origin: str, by: Person | None = None) -> Removed:
        """Take the tasks that came from an origin out of the queue; answers that were given are kept.

        Managers, admins and the command line.
        """
        who = None if by is None else acting(tx.connection, by, "admin", "manager")
        removed = remove_tasks(tx, origin)
        if removed.gone or removed.closed:
            note(tx, "tasks removed", who, detail=f"{removed.gone + removed.closed} {origin}"[:200])
        return removed

    def origins(self) -> dict[str, int]:
        """Return where the tasks with a free place came from, and how many there are of each."""
        counted = select(tasks.c.origin, func.count()).where(HAS_FREE_SLOT).group_by(tasks.c.origin)
        with self._store.snapshot() as connection:
            rows = connection.execute(counted.order_by(tasks.c.origin)).all()
        return {row[0]: row[1] for row in rows}

    @in_transaction
    def set_gold(
        self, tx: Transaction, task_id: str, answer: Answer | None, by: Person, *, overlap: int | None = None
    ) -> None:
        """Say what the right answer is, by position in ``task.completions``; None: there is none. Managers, admins.

        Args:
            overlap: How many people are asked in all, as many as before by default; who has the task, or has answered
                it, is never turned away.
        """
        acting(tx.connection, by, "admin", "manager")
        columns = select(tasks.c.id, tasks.c.kind, tasks.c.overlap, tasks.c.free)
        row = tx.connection.execute(columns.where(tasks.c.task_id == task_id)).first()
        if row is None:
            raise Gone(f"there is no task {task_id!r}")
        size = select(func.count()).select_from(task_completions).where(task_completions.c.task_id == row.id)
        num = tx.connection.execute(size).scalar_one()
        gold = None if answer is None else json.dumps(checked_gold(row.kind, self._settings, num, answer.plain()))
        # A task that is done has no free place: gold made of it would measure nobody new, so more may be asked.
        taken = row.overlap - row.free
        places = row.overlap if overlap is None else max(1, taken, overlap)
        new = {"gold": gold, "overlap": places, "free": places - taken}
        tx.connection.execute(update(tasks).where(tasks.c.id == row.id).values(**new))

    # ---- leases ------------------------------------------------------------------------------------------------------

    def claim(self, person_id: int, *, kinds: Sequence[str] | None = None) -> Assignment | None:
        """Lease one slot of one task for ``lease_minutes``; None where nothing waits for this person.

        A task the person has comes first, then one whose lease ran out, then the queue by priority and age. Never a
        task that was answered or skipped, nor a text of the person's own. Raises Unconfirmed.
        """
        row = self._claim(person_id, kinds)
        return None if row is None else self._assignment(row)

    @in_transaction
    def _claim(self, tx: Transaction, person_id: int, kinds: Sequence[str] | None) -> Row[Any] | None:
        who = active(tx.connection, person_id)
        rev = confirmed_rev(tx.connection, who)
        # A kind that does not exist would wait for ever where an error helps.
        for kind in kinds or ():
            kind_of(kind, self._settings)
        expire(tx)
        own = tx.connection.execute(_of_kinds(_OWN, kinds), {"me": person_id}).first()
        if own is not None:
            # Leased anew from now, and by the guidelines that were confirmed since.
            return renew(tx, self._settings, own, guideline_rev=rev)
        next_one = tx.connection.execute(_of_kinds(_IN_TURN, kinds), {"me": person_id}).first()
        return None if next_one is None else self._lease(tx, who, next_one, rev)

    def _lease(self, tx: Transaction, who: Person, task: Row[Any], rev: int) -> Row[Any]:
        if task.released:
            return renew(tx, self._settings, held(tx.connection, who.id, task.task_id), guideline_rev=rev)
        row = {
            "shown": json.dumps(_draw_order(tx.connection, who, task.size)),
            "state": "leased",
            "counts": take_slot(tx.connection, task.id),
            "guideline_rev": rev,
            "given_at": tx.at,
            "until": lease_end(tx, self._settings),
        }
        tx.connection.execute(_GIVE, _NO_ASSIGNMENT | row | {"task_id": task.id, "person_id": who.id})
        return held(tx.connection, who.id, task.task_id)

    def assignment(self, person_id: int, task_id: str) -> Assignment:
        """Return the task as the person has it now. Raises Gone where its time is over."""
        with self._store.snapshot() as connection:
            row = held(connection, person_id, task_id)
            if row.state != "leased" or row.until <= self._clock():
                raise Gone("you do not have this task now", hint="claim the next one")
        return self._assignment(row)

    def _assignment(self, row: Row[Any]) -> Assignment:
        return assignment_of(row, self.known_task(row.task))

    @in_transaction
    def heartbeat(self, tx: Transaction, person_id: int, task_id: str) -> float:
        """Lease it anew and return until when; after its time too, unless somebody else has it: raises Gone."""
        row = _begun(tx, person_id, task_id)
        counts = row.counts or (row.state == "expired" and take_slot(tx.connection, row.task_id))
        if row.state == "expired" and not counts:
            raise Gone("the task has gone to somebody else", hint="an answer is still kept, beside theirs")
        until = lease_end(tx, self._settings)
        change(tx.connection, row, state="leased", counts=counts, until=until)
        return until

    @in_transaction
    def release(self, tx: Transaction, person_id: int, task_id: str) -> None:
        """Give it back to the queue. Its draft is kept."""
        leave(tx.connection, _begun(tx, person_id, task_id), state="released")

    @in_transaction
    def skip(self, tx: Transaction, person_id: int, task_id: str, reason: str, note: str = "") -> None:
        """Give it back for good, for one of the settings' ``skip_reasons``. Its draft is kept."""
        reasons = self._settings.skip_reasons
        if reason not in reasons:
            raise DataError(f"there is no reason {reason!r}", where="reason", hint="one of " + ", ".join(reasons))
        if len(note) > MOST_NOTE:
            raise DataError(f"a note of {len(note)} characters", where="note", hint=f"write at most {MOST_NOTE}")
        leave(tx.connection, _begun(tx, person_id, task_id), state="skipped", reason=reason, note=note)

    def unskip(self, person_id: int, task_id: str) -> Assignment:
        """Have it again, with its draft; where others have taken all slots, the answer will be an extra."""
        return self._assignment(self._unskip(person_id, task_id))

    @in_transaction
    def _unskip(self, tx: Transaction, person_id: int, task_id: str) -> Row[Any]:
        active(tx.connection, person_id)
        expire(tx)
        row = held(tx.connection, person_id, task_id)
        if row.state != "skipped":
            raise Gone("you have not skipped this task")
        return renew(tx, self._settings, row, reason="", note="")

    @in_transaction
    def save_draft(self, tx: Transaction, person_id: int, task_id: str, draft: dict[str, Any]) -> None:
        """Keep what is not sent yet, also when its time is over. Raises Gone after it was answered or given back."""
        if is_deep(draft):
            raise DataError("the draft is nested too deep", hint=f"at most {MOST_DEPTH} lists and mappings are kept")
        text = json.dumps(draft, ensure_ascii=False)  # as long in any alphabet
        if len(text) > _MOST_DRAFT:
            raise DataError(f"a draft of {len(text)} characters", hint=f"at most {_MOST_DRAFT} are kept")
        change(tx.connection, _begun(tx, person_id, task_id), draft=text)


def _task_size(task_id: str, task: QueuedTask) -> int:
    """Characters of a task; a few hundred for what is not text."""
    return 500 + len(task.prompt.text) + sum(300 + len(one.text) for one in task.completions)


def _begun(tx: Transaction, person_id: int, task_id: str) -> Row[Any]:
    """An assignment that its person still works on, on time or late. Raises Gone for any other."""
    active(tx.connection, person_id)
    expire(tx)
    row = held(tx.connection, person_id, task_id)
    if row.state not in ("leased", "expired"):
        raise Gone(f"you do not have this task now: it is {row.state}", hint="claim the next one")
    return row


def _of_kinds(statement: Select[Any], kinds: Sequence[str] | None) -> Select[Any]:
    return statement if kinds is None else statement.where(tasks.c.kind.in_(kinds))


def _draw_order(connection: Connection, who: Person, num: int) -> list[int]:
    """A random order. Of two completions each order comes once in every two draws, so that a person sees both alike."""
    order = _RANDOM.sample(range(num), num)
    if num == 2:
        balance = connection.execute(_BALANCE, {"me": who.id}).scalar_one()
        order = order if balance == 0 else [1, 0] if balance > 0 else [0, 1]
        connection.execute(_SHIFT_BALANCE, {"me": who.id, "more": 1 if order == [0, 1] else -1})
    return order


def _bar_writers(connection: Connection, task_keys: Sequence[int]) -> None:
    """Nobody judges a text of their own: an edit, or a demonstration that came into the queue."""
    t, c, d = task_completions.c, schema.completions.c, schema.demonstrations.c
    written = (
        select(t.task_id, people.c.id)
        .select_from(task_completions.join(schema.completions))
        .join(schema.demonstrations, (d.prompt_id == c.prompt_id) & (d.text_id == c.text_id))
        .join(people, people.c.annotator_id == d.annotator_id)
        .distinct()
    )
    # As assignments that were never leased: the query of `claim` then needs to know nothing of texts.
    for some in chunks(task_keys, LOOKUP_IDS):
        found = connection.execute(written.where(t.task_id.in_(some))).all()
        rows = [_NO_ASSIGNMENT | {"task_id": task, "person_id": person} for task, person in found]
        _insert(connection, assignments, rows)


def _task_row(at: float, id_: str, task: NewTask, prompt_keys: Mapping[str, int]) -> dict[str, Any]:
    return {
        "task_id": id_,
        "kind": task.kind,
        "prompt_id": prompt_keys[task.prompt.id],
        "overlap": task.overlap,
        "free": task.overlap,
        "turn": -task.priority,
        "group_name": task.group,
        "gold": None if task.gold is None else json.dumps(task.gold),
        "origin": task.origin,
        "created_at": at,
    }


def _keys(connection: Connection, name: Column[str], key: Column[int], values: Iterable[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for some in chunks(dict.fromkeys(values), LOOKUP_IDS):
        found.update((row[0], row[1]) for row in connection.execute(select(name, key).where(name.in_(some))))
    return found


def _insert(connection: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    for some in chunks(rows, LOOKUP_IDS):
        connection.execute(insert(table), some)
