"""The desk: who may come in, which task is whose, what was answered. One door to the work around the facts.

Everything that changes anything is one request to the store's writer: it is done as a whole or not at all, one after
the other, and safe on disk when the call returns. The desk knows nothing of the web; many threads, and many processes
on one store, may use desks at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection

from accord.config import LabelConfig
from accord.errors import AccordError
from accord.people.desk import directory, queries, queue, submitting
from accord.people.desk.answers import Answer
from accord.people.desk.kinds import kind_of
from accord.people.desk.queue import group_tasks
from accord.people.desk.rows import (
    ApiToken,
    Assignment,
    Conflict,
    Forbidden,
    Gone,
    Guideline,
    NewTask,
    Person,
    Progress,
    Receipt,
    Role,
    Skip,
    Standing,
    Submission,
    Task,
    Unconfirmed,
)
from accord.people.desk.submitting import Sent
from accord.records import Completion, Prompt
from accord.store import Store

__all__ = [
    "ApiToken",
    "Assignment",
    "Conflict",
    "Desk",
    "Forbidden",
    "Gone",
    "Guideline",
    "NewTask",
    "Person",
    "Progress",
    "Receipt",
    "Role",
    "Skip",
    "Standing",
    "Submission",
    "Task",
    "Unconfirmed",
    "group_tasks",
]

_TASKS_KEPT = 2_000


class Desk:
    """The work of labelling on one store.

    Errors, all of them `DataError`: `Gone` for what is not there, not yours or no longer to be changed; `Conflict` for
    a key used twice or a task answered already; `Unconfirmed`, `Forbidden`; plain ones for what makes no sense.

    Args:
        settings: Axes, flags, times. Gold answers and submissions are checked by them.
        clock: Seconds since 1970; tests give their own.
    """

    def __init__(self, store: Store, settings: LabelConfig, *, clock: Callable[[], float] = time.time) -> None:
        for kind in (settings.kind, *settings.own_kinds):
            kind_of(kind, settings)  # what the project names wrongly is told now, not when it is asked
        self.store = store
        self.settings = settings
        self._clock = clock
        # A task never changes but for its gold answer, which comes from elsewhere: whoever claims one sends it soon.
        self._known_task = lru_cache(_TASKS_KEPT)(self.task)

    # ---- people ------------------------------------------------------------------------------------------------------

    def add_person(self, name: str, role: Role, *, simulated: bool = False) -> Person:
        """Raises DataError where the name is taken or none."""
        at = self._clock()
        return self.store.write(lambda c: directory.add_person(c, at, name, role, simulated=simulated))

    def people(self) -> list[Person]:
        with self.store.snapshot() as connection:
            return directory.all_people(connection)

    def person(self, person_id: int) -> Person:
        with self.store.snapshot() as connection:
            return directory.person(connection, person_id)

    def set_role(self, person_id: int, role: Role, by: Person) -> None:
        """Admins only. The last admin stays one: raises Conflict."""
        self.store.write(lambda c: directory.set_role(c, person_id, role, by))

    def disable(self, person_id: int, by: Person) -> None:
        """Admins only: end the person's sessions and tokens, and release what the person holds."""
        at = self._clock()

        def work(connection: Connection) -> None:
            directory.disable(connection, at, person_id, by)
            queue.release_all(connection, person_id)

        self.store.write(work)

    def invite(self, role: Role, *, by: Person | None, hours: float = 72.0) -> str:
        """A token that lets one person in, once. Managers invite annotators, admins and the command line anybody."""
        at = self._clock()
        return self.store.write(lambda c: directory.invite(c, at, role, by, hours))

    def accept_invite(self, token: str, name: str) -> Person:
        """Raises Gone where the invite was used or has expired, DataError where the name is taken or none."""
        at = self._clock()
        return self.store.write(lambda c: directory.accept_invite(c, at, token, name))

    def open_session(self, person_id: int) -> str:
        """The token of a session of 30 days."""
        at = self._clock()
        return self.store.write(lambda c: directory.open_session(c, at, person_id))

    def person_of_session(self, token: str) -> Person | None:
        with self.store.snapshot() as connection:
            return directory.person_of_session(connection, self._clock(), token)

    def close_session(self, token: str) -> None:
        self.store.write(lambda c: directory.close_session(c, token))

    def make_token(self, person_id: int, label: str) -> str:
        """A token for programs, valid until revoked."""
        at = self._clock()
        return self.store.write(lambda c: directory.make_token(c, at, person_id, label))

    def person_of_token(self, token: str) -> Person | None:
        with self.store.snapshot() as connection:
            return directory.person_of_token(connection, token)

    def tokens(self, person_id: int) -> list[ApiToken]:
        """The tokens not revoked."""
        with self.store.snapshot() as connection:
            return list(directory.tokens_of(connection, person_id))

    def revoke_token(self, token_id: int, by: Person) -> None:
        """One's own, or, for an admin, anybody's. Raises Gone."""
        at = self._clock()
        self.store.write(lambda c: directory.revoke_token(c, at, token_id, by))

    # ---- guidelines --------------------------------------------------------------------------------------------------

    def guideline(self) -> Guideline:
        """The newest; revision 0 and no text before one was written."""
        with self.store.snapshot() as connection:
            return directory.guideline(connection)

    def write_guideline(self, text: str, by: Person | None) -> Guideline:
        """Managers, admins and the command line. The same text again makes no new revision."""
        at = self._clock()
        return self.store.write(lambda c: directory.write_guideline(c, at, text, by))

    def confirmed(self, person_id: int) -> bool:
        """Whether the person has confirmed the newest guidelines; simulated ones need not."""
        with self.store.snapshot() as connection:
            return directory.confirmed(connection, directory.person(connection, person_id))

    def confirm(self, person_id: int, rev: int) -> None:
        """Raises Conflict where ``rev`` is not the newest."""
        at = self._clock()
        self.store.write(lambda c: directory.confirm(c, at, person_id, rev))

    # ---- tasks -------------------------------------------------------------------------------------------------------

    def add_tasks(self, tasks: Iterable[NewTask]) -> int:
        """Queue tasks and store their prompts and completions: all of them, or none and a DataError that names one."""
        prepared = []
        for number, task in enumerate(tasks, 1):
            try:
                prepared.append(queue.prepare(task, self.settings))
            except AccordError as error:
                where = f"task {number}" + (f", {error.where}" if error.where else "")
                raise type(error)(error.what, where=where, why=error.why, hint=error.hint) from error
        at = self._clock()
        return self.store.write(lambda c: queue.add_tasks(c, at, prepared))

    def add_group(
        self,
        prompt: Prompt,
        completions: Sequence[Completion],
        *,
        serve_as: str = "",
        num_pairs: int | None = None,
        **task: Any,
    ) -> int:
        """Queue a group of completions as one task, or as random pairs that share ``group``; see `group_tasks`.

        Args:
            serve_as: "pairs", or a kind of task; by default what the settings' ``kind`` says.
            **task: overlap, priority, group, gold, origin of `NewTask`.
        """
        chosen = serve_as or ("pairs" if self.settings.kind == "pair" else self.settings.kind)
        return self.add_tasks(group_tasks(prompt, completions, serve_as=chosen, num_pairs=num_pairs, **task))

    def task(self, task_id: str) -> Task:
        with self.store.snapshot() as connection:
            return queries.task(connection, task_id)

    def tasks(self, *, after: str = "", gold: bool = False) -> Iterator[Task]:
        """All tasks, oldest first, streamed; or those that came ``after`` one, or the gold questions only."""
        with self.store.snapshot() as connection:
            yield from queries.all_tasks(connection, after=after, gold=gold)

    def set_gold(self, task_id: str, answer: Answer | None, by: Person, *, overlap: int | None = None) -> None:
        """Say what the right answer is, by position in ``task.completions``; None: there is none. Managers, admins.

        Args:
            overlap: How many people are asked in all; who has the task, or has answered it, is never turned away.
        """
        values = None if answer is None else answer.plain()
        self.store.write(lambda c: queue.set_gold(c, self.settings, task_id, values, by, overlap))

    # ---- leases ------------------------------------------------------------------------------------------------------

    def claim(self, person_id: int, *, kinds: Sequence[str] | None = None) -> Assignment | None:
        """One slot of one task, for ``lease_minutes``; None where nothing waits for this person.

        A task the person has comes first, then one whose lease ran out, then the queue by priority and age. Never a
        task that was answered or skipped, nor a text of the person's own. Raises Unconfirmed.
        """
        at = self._clock()
        row = self.store.write(lambda c: queue.claim(c, at, self.settings, person_id, kinds))
        return None if row is None else self._assignment(row)

    def assignment(self, person_id: int, task_id: str) -> Assignment:
        """The task as the person has it now. Raises Gone where its time is over."""
        with self.store.snapshot() as connection:
            row = queue.held(connection, person_id, task_id)
            if row.state != "leased" or row.until <= self._clock():
                raise Gone("you do not have this task now", hint="claim the next one")
        return self._assignment(row)

    def heartbeat(self, person_id: int, task_id: str) -> float:
        """Lease it anew and return until when; after its time too, unless somebody else has it: raises Gone."""
        at = self._clock()
        return self.store.write(lambda c: queue.heartbeat(c, at, self.settings, person_id, task_id))

    def release(self, person_id: int, task_id: str) -> None:
        """Give it back to the queue. Its draft is kept."""
        at = self._clock()
        self.store.write(lambda c: queue.release(c, at, person_id, task_id))

    def skip(self, person_id: int, task_id: str, reason: str, note: str = "") -> None:
        """Give it back for good, for one of the settings' ``skip_reasons``. Its draft is kept."""
        at = self._clock()
        self.store.write(lambda c: queue.skip(c, at, self.settings, person_id, task_id, reason, note))

    def unskip(self, person_id: int, task_id: str) -> Assignment:
        """Have it again, with its draft; where others have taken all slots, the answer will be an extra."""
        at = self._clock()
        return self._assignment(self.store.write(lambda c: queue.unskip(c, at, self.settings, person_id, task_id)))

    def save_draft(self, person_id: int, task_id: str, draft: dict[str, Any]) -> None:
        """Keep what is not sent yet, also when its time is over. Raises Gone after it was answered or given back."""
        at = self._clock()
        self.store.write(lambda c: queue.save_draft(c, at, person_id, task_id, draft))

    # ---- answers -----------------------------------------------------------------------------------------------------

    def submit(self, person_id: int, task_id: str, answer: Answer, *, key: str) -> Receipt:
        """Make an answer facts. On return it is safe on disk.

        The same key and answer again change nothing and bring the same receipt, ``repeated``. An answer that comes
        after its time fills a slot if one is free, and is else kept as an extra.

        Raises:
            DataError: The answer does not fit the task; the message names the field.
            Gone: The person never had the task, or gave it back.
            Conflict: The key came with another answer, or the task was answered under another key.
        """
        at, sent = self._clock(), Sent(person_id, self._known_task(task_id), answer, key)
        return self.store.write(lambda c: submitting.submit(c, at, self.settings, sent))

    def undo(self, person_id: int, submission_id: str) -> Assignment:
        """Take an answer back within ``undo_minutes``: its judgements are withdrawn, the task is the person's again."""
        at = self._clock()
        return self._assignment(
            self.store.write(lambda c: submitting.undo(c, at, self.settings, person_id, submission_id))
        )

    def adjudicate(self, person_id: int, task_id: str, answer: Answer, *, key: str) -> Receipt:
        """Decide a disputed task, by position in ``task.completions``. Managers and admins.

        The judgements of others stay; an earlier decision is withdrawn.
        """
        at, sent = self._clock(), Sent(person_id, self._known_task(task_id), answer, key)
        return self.store.write(lambda c: submitting.adjudicate(c, at, self.settings, sent))

    # ---- reading -----------------------------------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """Sums over queue and answers; `queries.counts` says which."""
        with self.store.snapshot() as connection:
            return queries.counts(connection, self._clock())

    def progress(self) -> list[Progress]:
        """One row a person and kind of task."""
        with self.store.snapshot() as connection:
            return queries.progress(connection)

    def standing(self, person_id: int, *, since: float = 0.0) -> Standing:
        """One person's own progress; ``since`` is where "today" begins."""
        with self.store.snapshot() as connection:
            return queries.standing(connection, person_id, since)

    def submissions(
        self, *, person_id: int | None = None, task_id: str | None = None, gold: bool = False, last: int | None = None
    ) -> Iterator[Submission]:
        """All submissions, undone ones too, oldest first, streamed; or the ``last`` so many, newest first.

        Those of one person, of one task, or of ``gold`` questions only.
        """
        with self.store.snapshot() as connection:
            yield from queries.all_submissions(connection, person_id=person_id, task_id=task_id, gold=gold, last=last)

    def skips(self) -> Iterator[Skip]:
        """The tasks that people skipped and did not take again."""
        with self.store.snapshot() as connection:
            yield from queries.skips(connection)

    def _assignment(self, row: Any) -> Assignment:
        return queries.assignment(row, self._known_task(row.task))
