"""What was done about access, on one connection: a log for who asks later. Triggers of the database keep its rows."""

from __future__ import annotations

from typing import Literal

from sqlalchemy import Connection, insert, select

from accord.people.desk.rows import AuditRow, Person
from accord.people.desk.transactions import Transaction
from accord.store.operations import access_log, people

Action = Literal[
    "person added",
    "role changed",
    "person disabled",
    "invitation made",
    "login link made",
    "link revoked",
    "links void",
    "came in",
    "logged in",
    "logged out everywhere",
    "token made",
    "token revoked",
    "tokens void",
    "sessions ended",
    "tasks removed",
]


def note(tx: Transaction, action: Action, by: Person | None, about: int | None = None, detail: str = "") -> None:
    """Log what somebody did, and to whom; ``by`` is None for the command line."""
    row = {"at": tx.at, "by_id": by and by.id, "about_id": about, "action": action, "detail": detail}
    tx.connection.execute(insert(access_log).values(row))


def last_rows(connection: Connection, most: int) -> list[AuditRow]:
    """Return the last rows of the log, the newest first."""
    by, about = people.alias(), people.alias()
    log = access_log.c
    rows = (
        select(log.at, by.c.name, log.action, about.c.name, log.detail)
        .select_from(access_log.outerjoin(by, by.c.id == log.by_id).outerjoin(about, about.c.id == log.about_id))
        .order_by(log.id.desc())
        .limit(most)
    )
    return [AuditRow(at, name or "", *rest) for at, name, *rest in connection.execute(rows)]
