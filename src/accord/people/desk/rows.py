"""What the desk hands out and takes in: plain frozen rows, and the errors of the desk.

Times are seconds since 1970; the facts in the store hold the same moments as ISO 8601.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from accord.errors import DataError
from accord.people.desk.answers import JUDGING, Answer
from accord.records import Completion, Prompt

Role = Literal["admin", "manager", "annotator"]
#: How the origin of tasks begins whose answers are kept for judging.
RESERVED = f"{JUDGING}: "


class Gone(DataError):
    """Something is not there, not yours, or can no longer be changed. Over HTTP: 404."""


class Conflict(DataError):
    """A key was used for something else, or the task was answered already. Over HTTP: 409."""


class Unconfirmed(DataError):
    """The newest guidelines must be read and confirmed first. Over HTTP: 409."""


class Forbidden(DataError):
    """The person's role does not allow it. Over HTTP: 403."""


@dataclass(frozen=True)
class Person:
    """A person who works here; ``annotator_id`` is the content id of the `Annotator` of the person's judgements."""

    id: int
    name: str
    role: Role
    annotator_id: str
    disabled: bool
    simulated: bool


class ApiToken(NamedTuple):
    """A token that a person's programs use, less the token itself."""

    id: int
    label: str
    created_at: float


class OpenLink(NamedTuple):
    """A link that lets one person in, less its token: ``person`` again, or somebody new where that is "".

    ``made_by`` is "" for the command line.
    """

    id: int
    role: Role
    person: str
    made_by: str
    created_at: float
    expires_at: float


class AuditRow(NamedTuple):
    """Something that was done about access: by whom ("": the command line), and to whom; None: to nobody."""

    at: float
    by: str
    action: str
    about: str | None
    detail: str


class Entered(NamedTuple):
    """Who has come in, and the token of the session that this opened."""

    person: Person
    session: str


class Guideline(NamedTuple):
    """Instructions to annotators; ``rev`` counts from 1. Revision 0 is the empty one before any were written."""

    rev: int
    text: str
    created_at: float


@dataclass(frozen=True, kw_only=True)
class NewTask:
    """Something to be judged. ``gold`` is the right answer as a mapping, by position in ``completions``.

    Tasks of higher ``priority`` come first, older ones first among equals. Tasks that belong together, such as the
    pairs drawn from one group of completions, share ``group``. ``overlap`` people answer it; None: as the settings say.
    Where ``origin`` begins with `RESERVED`, the answers are kept for judging.
    """

    kind: str
    prompt: Prompt
    completions: tuple[Completion, ...] = ()
    overlap: int | None = None
    priority: float = 0.0
    group: str = ""
    gold: dict[str, Any] | None = None
    origin: str = ""


@dataclass(frozen=True, kw_only=True)
class QueuedTask:
    """A task in the queue. Its completions stand in the order they were given in, not as anybody sees them."""

    id: str
    kind: str
    prompt: Prompt
    completions: tuple[Completion, ...]
    overlap: int
    priority: float
    group: str
    gold: dict[str, Any] | None
    origin: str
    created_at: float

    @property
    def reserved(self) -> bool:
        """Whether its answers are kept for judging, and train nothing."""
        return self.origin.startswith(RESERVED)


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """A task that somebody has until a moment. ``order[i]`` is the place in ``task.completions`` of the i-th shown."""

    task: QueuedTask
    order: tuple[int, ...]
    until: float
    draft: dict[str, Any] | None
    revision: int
    guideline_rev: int

    @property
    def shown(self) -> tuple[Completion, ...]:
        return tuple(self.task.completions[i] for i in self.order)


@dataclass(frozen=True)
class Receipt:
    """What became of an answer.

    ``extra``: it came after the task had gone to others, and is kept beside theirs. ``repeated``: the key was known,
    and nothing was done.
    """

    submission_id: str
    task_id: str
    revision: int
    extra: bool
    repeated: bool


@dataclass(frozen=True, kw_only=True)
class Submission:
    """An answer as it was given: positions are those of ``order``. ``gold``: its task has a right answer now."""

    id: str
    task_id: str
    kind: str
    person_id: int
    person_name: str
    order: tuple[int, ...]
    answer: Answer
    seconds: float
    pauses_s: float
    guideline_rev: int
    created_at: float
    extra: bool
    undone: bool
    adjudication: bool
    gold: bool
    judgement_ids: tuple[str, ...]


class GivenAnswer(NamedTuple):
    """The little of a submission that counting needs; ``number`` rises with each that comes in.

    ``shown``, ``said`` and ``made`` are JSON: the order of the completions, the answer in that order, and the ids of
    the judgements that it makes.
    """

    number: int
    task_id: str
    person_id: int
    created_at: float
    adjudication: bool
    shown: str
    said: str
    made: str


@dataclass(frozen=True)
class AnswersSince:
    """The answers that came in after another one, and what has become of all of them by now.

    ``undone``: numbers of those taken back. ``skipped``: the task of each skip that stands.
    """

    new: tuple[GivenAnswer, ...]
    undone: frozenset[int]
    gold_tasks: frozenset[str]
    skipped: tuple[str, ...]
    people: tuple[Person, ...]


class Served(NamedTuple):
    """The group or task that a submission answered, whether that is a gold question, and the judgements it made."""

    group: str
    gold: bool
    judgement_ids: tuple[str, ...]


class Skip(NamedTuple):
    """A task that a person would not answer, and why."""

    task_id: str
    kind: str
    person_id: int
    reason: str
    note: str


class Progress(NamedTuple):
    """What a person has done of one kind of task. ``seconds`` in all; ``done`` counts extra answers, not undone ones.

    ``first_at`` and ``last_at`` are None where nothing was submitted.
    """

    person_id: int
    name: str
    kind: str
    done: int
    extra: int
    undone: int
    skipped: int
    seconds: float
    first_at: float | None
    last_at: float | None


class Standing(NamedTuple):
    """One person's own progress: answers in all and since a moment, and tasks that wait for this person now."""

    done: int
    since: int
    left: int
