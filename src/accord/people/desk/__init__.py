"""The desk: who may come in, which task is whose, what was answered. One door to the work around the facts.

Everything that changes anything is one request to the store's writer: it is done as a whole or not at all, one after
the other, and safe on disk when the call returns. The desk knows nothing of the web; many threads, and many processes
on one store, may use desks at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from accord.config import LabelConfig
from accord.people.desk.directory import Directory
from accord.people.desk.filling import group_tasks
from accord.people.desk.kinds import kind_of
from accord.people.desk.queue import Queue
from accord.people.desk.reading import DeskReading
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
    QueuedTask,
    Receipt,
    Role,
    Skip,
    Standing,
    Submission,
    Unconfirmed,
)
from accord.people.desk.submitting import Answers
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
    "QueuedTask",
    "Receipt",
    "Role",
    "Skip",
    "Standing",
    "Submission",
    "Unconfirmed",
    "group_tasks",
]


class Desk:
    """The work of labelling on one store, in four parts: who, what waits, what was answered, how it stands.

    Errors, all of them `DataError`: `Gone` for what is not there, not yours or no longer to be changed; `Conflict` for
    a key used twice or a task answered already; `Unconfirmed`, `Forbidden`; plain ones for what makes no sense.

    Args:
        settings: Axes, flags, times. Gold answers and submissions are checked by them.
        clock: Seconds since 1970; tests give their own.

    Attributes:
        directory: People, their sessions and tokens, the guidelines they have confirmed.
        queue: Tasks, the leases on them, drafts.
        answers: Submitting, taking back, deciding.
        reading: Submissions, skips, counts, everybody's progress.
    """

    def __init__(self, store: Store, settings: LabelConfig, *, clock: Callable[[], float] = time.time) -> None:
        for kind in (settings.kind, *settings.own_kinds):
            kind_of(kind, settings)  # what the project names wrongly is reported now, not when it is asked
        self.store = store
        self.settings = settings
        self.directory = Directory(store, settings, clock)
        self.queue = Queue(store, settings, clock)
        self.answers = Answers(store, settings, clock, self.queue)
        self.reading = DeskReading(store, settings, clock)
