"""The tables of the work, beside the facts: who may do what, what is to be judged, who has it, what was answered.

Other than facts these rows change: a lease ends, a slot is taken. Times are seconds since 1970. Tokens of any kind
stand here only as hashes.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    Table,
    UniqueConstraint,
    literal_column,
)

from accord.store.schema import AnyText, metadata


def _table(name: str, *columns: Any) -> Table:
    key = Column("id", BigInteger().with_variant(Integer(), "sqlite"), Identity(always=True), primary_key=True)
    return Table(name, metadata, key, *columns)


def _text(name: str, *, nullable: bool = False, unique: bool = False) -> Column[str]:
    return Column(name, AnyText, nullable=nullable, unique=unique)


def _time(name: str, *, nullable: bool = False) -> Column[float]:
    return Column(name, Double, nullable=nullable)


def _number(name: str) -> Column[int]:
    return Column(name, Integer, nullable=False)


def _flag(name: str) -> Column[bool]:
    return Column(name, Boolean, nullable=False)


def _refers(name: str, table: str, *, nullable: bool = False, unique: bool = False) -> Column[int]:
    return Column(name, BigInteger, ForeignKey(f"{table}.id"), nullable=nullable, unique=unique)


people = _table(
    "people",
    _text("name", unique=True),
    _text("role"),
    _refers("annotator_id", "annotators", unique=True),
    _flag("disabled"),
    # How often pairs were shown as listed, less how often the other way round; the column has its older name.
    Column("lean", Integer, nullable=False, key="position_balance"),
    _time("created_at"),
)
invites = _table(
    "invites",
    _text("token_hash", unique=True),
    _text("role"),
    _refers("invited_by", "people", nullable=True),
    _time("created_at"),
    _time("expires_at"),
    _refers("used_by", "people", nullable=True),
    _refers("person_id", "people", nullable=True),  # whom a login link lets in again; an invitation makes a new person
    _time("revoked_at", nullable=True),
)
sessions = _table(
    "sessions",
    _text("token_hash", unique=True),
    _refers("person_id", "people"),
    _time("expires_at"),
    # What opened it: where that is taken back, the session ends too.
    _refers("token_id", "tokens", nullable=True),
    _refers("link_id", "invites", nullable=True),
)
tokens = _table(
    "tokens",
    _text("token_hash", unique=True),
    _refers("person_id", "people"),
    _text("label"),
    _time("created_at"),
    _time("revoked_at", nullable=True),
    _refers("made_by", "people", nullable=True),
)
#: What was done about access. Triggers of the database refuse to change or delete a row.
access_log = _table(
    "access_log",
    _time("at"),
    _refers("by_id", "people", nullable=True),  # none: the command line
    _refers("about_id", "people", nullable=True),
    _text("action"),
    _text("detail"),
)
guidelines = Table(
    "guidelines",
    metadata,
    Column("rev", Integer, primary_key=True, autoincrement=False),
    _text("text"),
    _refers("written_by", "people", nullable=True),
    _time("created_at"),
)
confirmations = Table(
    "confirmations",
    metadata,
    Column("person_id", BigInteger, ForeignKey("people.id"), primary_key=True),
    Column("rev", Integer, ForeignKey("guidelines.rev"), primary_key=True),
    _time("created_at"),
)
tasks = _table(
    "tasks",
    _text("task_id", unique=True),
    _text("kind"),
    _refers("prompt_id", "prompts"),
    _number("overlap"),
    _number("free"),  # slots that nobody has or has filled: overlap less the assignments that count
    _time("turn"),  # minus the priority: tasks are given out by turn, then by age
    _text("group_name"),
    _text("gold", nullable=True),
    _text("origin"),
    _time("created_at"),
    CheckConstraint("free BETWEEN 0 AND overlap"),
)
#: As SQL with its number in it, for a prepared statement to see that the index of free tasks serves.
HAS_FREE_SLOT = tasks.c.free > literal_column("0")
# Only tasks with a free slot, in the order they are given out: a claim reads one row however many are done.
Index("ix_tasks_free", tasks.c.turn, tasks.c.id, sqlite_where=HAS_FREE_SLOT, postgresql_where=HAS_FREE_SLOT)
task_completions = Table(
    "task_completions",
    metadata,
    Column("task_id", BigInteger, ForeignKey("tasks.id"), primary_key=True),
    Column("position", Integer, primary_key=True),
    _refers("completion_id", "completions"),
)
#: A task as one person has it, has had it or will not have it. ``counts`` where it fills a slot of the task.
assignments = _table(
    "assignments",
    _refers("task_id", "tasks"),
    _refers("person_id", "people"),
    _text("shown"),  # the order of the completions, drawn once
    _text("state"),
    _flag("counts"),
    _number("revision"),
    _number("guideline_rev"),
    _time("given_at"),
    _time("until"),
    _text("draft", nullable=True),
    _text("reason"),
    _text("note"),
    # Nobody has a task twice, whatever two requests do at once.
    UniqueConstraint("person_id", "task_id"),
)
# Leases that are over, looked for with every request.
Index("ix_assignments_state", assignments.c.state, assignments.c.until)
# What a person has and has done, for the next claim and for "left".
Index("ix_assignments_person", assignments.c.person_id, assignments.c.state)
submissions = _table(
    "submissions",
    _text("submission_id", unique=True),
    _refers("task_id", "tasks"),
    _refers("person_id", "people"),
    _number("revision"),
    _text("key"),
    _text("shown"),
    _text("answer"),
    _time("seconds"),
    _time("pauses_s"),
    _number("guideline_rev"),
    _time("created_at"),
    _time("undone_at", nullable=True),
    _flag("extra"),
    _flag("adjudication"),
    _text("judgement_ids"),
    # An answer sent twice is one: the database itself refuses a second row for its key.
    UniqueConstraint("person_id", "key"),
)
Index(
    "ix_submissions_task",
    submissions.c.task_id,
    submissions.c.person_id,
    submissions.c.adjudication,
    submissions.c.revision,
    unique=True,
)
# The last answers of a person, for the history and for the time of the next one.
Index("ix_submissions_person", submissions.c.person_id, submissions.c.created_at)
#: Completions that a server gave, with what they were drawn by. They become facts when somebody says something of them.
served_texts = _table(
    "served",
    _text("name", unique=True),
    _text("who"),
    _text("said_by"),  # who asked, as an annotator: name, and whether a person
    _text("said_by_kind"),
    _text("model"),
    _text("version"),
    _text("prompt"),
    _text("form"),
    _text("text"),
    _text("detail"),
    _time("created_at"),
)
#: What users said, and signals that are no judgement. Sent twice it is one: the database refuses a second row.
feedback = _table(
    "feedback",
    _text("who"),
    _text("key"),
    _refers("served_id", "served"),
    _text("kind"),
    _text("body"),
    _text("judgement_ids"),
    _time("created_at"),
    UniqueConstraint("who", "key"),
)
Index("ix_feedback_served", feedback.c.served_id, feedback.c.kind)
#: Sources whose feedback counts no more: recalled by who runs the server, or opted out by the user.
recalls = _table(
    "recalls",
    _text("source"),
    _text("kind"),
    _text("reason"),
    _time("created_at"),
    _time("ended_at", nullable=True),
    CheckConstraint("kind IN ('recall', 'opt_out')"),
)
#: What users did without saying anything, by rules (``judge`` is "") or as a judge scored it: then it is AI feedback.
signals = _table(
    "signals",
    _refers("served_id", "served"),
    _text("kind"),
    _text("judge"),
    Column("value", Double, nullable=True),
    _text("detail"),
    _time("created_at"),
    UniqueConstraint("served_id", "kind", "judge"),
)
