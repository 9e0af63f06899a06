"""What lets people in, on one connection: links, sessions, tokens; and how each ends with what it came from.

Tokens of any kind are random, shown once, and stand in the database only as SHA-256. A link invites somebody new, or
lets somebody in again who is known (``person_id``). Whoever may no longer make links takes along all that still opens a
door by what this person has seen: the links, the tokens made for others, and the sessions that either opened.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, insert, select, update

from accord.errors import DataError
from accord.people.desk.audit import Action, note
from accord.people.desk.rows import Gone, OpenLink, Person, Role
from accord.people.desk.transactions import Transaction
from accord.store.operations import invites, people, sessions, tokens

# A month without a new login. It costs little: who is disabled loses all sessions at once.
SESSION_S = 30 * 86_400.0
# A year at most: a link that is forgotten in a mailbox must not let anybody in for ever.
MOST_HOURS = 8_760.0


def hashed(secret: str) -> str:
    """Return the SHA-256 of a token, as it stands in the database and in memory."""
    # Tokens are 256 random bits: no salt and no slow hash is needed, as there is for passwords that people choose.
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def new_secret() -> str:
    """Return 256 random bits as text."""
    return secrets.token_urlsafe(32)


# ---- links -----------------------------------------------------------------------------------------------------------


def make_link(tx: Transaction, role: Role, by: Person | None, hours: float, person: Person | None = None) -> str:
    """Return the token of a new link: an invitation, or, for a ``person``, a login."""
    if not 0 < hours <= MOST_HOURS:
        raise DataError(f"a link cannot last {hours} hours", hint=f"give more than 0 and at most {MOST_HOURS:.0f}")
    token = new_secret()
    row: dict[str, Any] = {"token_hash": hashed(token), "role": role, "invited_by": by and by.id, "created_at": tx.at}
    row |= {"expires_at": tx.at + hours * 3600, "person_id": person and person.id}
    tx.connection.execute(insert(invites).values(row))
    if person is None:
        note(tx, "invitation made", by, detail=role)
    else:
        note(tx, "login link made", by, person.id)
    return token


def link_of(connection: Connection, token: str) -> Row[Any] | None:
    """Return the row of a link, whatever has become of it; None where there never was one."""
    return connection.execute(select(invites).where(invites.c.token_hash == hashed(token))).first()


def is_open(row: Row[Any], at: float) -> bool:
    """Whether the link of a row still lets somebody in."""
    return row.used_by is None and row.revoked_at is None and row.expires_at > at


def check_link(row: Row[Any] | None, at: float) -> Row[Any]:
    """Return the row of a link that still lets somebody in. Raises Gone, saying why it does not."""
    if row is not None and is_open(row, at):
        return row
    revoked = row is not None and row.revoked_at is not None
    why = "it was never given" if row is None else "it was used" if row.used_by else "it has expired"
    raise Gone("this link is not valid", why="it was taken back" if revoked else why, hint="ask for a new one")


def use_link(tx: Transaction, row: Row[Any], person: Person) -> None:
    """Note who came in by a link: nobody does again."""
    tx.connection.execute(update(invites).where(invites.c.id == row.id).values(used_by=person.id))


def retire_start_links(tx: Transaction) -> None:
    """Take back what earlier starts of the app have printed for an admin, and nobody has used."""
    _end_links(tx, (invites.c.role == "admin") & invites.c.invited_by.is_(None))


def open_links(connection: Connection, at: float, by: Person) -> list[OpenLink]:
    """Return the links that let somebody in now: those a person made; all of them for an admin."""
    maker, known = people.alias(), people.alias()
    mine = _open_at(at) if by.role == "admin" else _open_at(at) & (invites.c.invited_by == by.id)
    found = (
        select(invites.c.id, invites.c.role, known.c.name, maker.c.name, invites.c.created_at, invites.c.expires_at)
        .select_from(
            invites.outerjoin(maker, maker.c.id == invites.c.invited_by).outerjoin(
                known, known.c.id == invites.c.person_id
            )
        )
        .where(mine)
        .order_by(invites.c.id.desc())
    )
    return [OpenLink(row[0], row[1], row[2] or "", row[3] or "", *row[4:]) for row in connection.execute(found)]


def revoke_link_of(tx: Transaction, link_id: int, by: Person) -> None:
    """Take a link back: one's own, or, for an admin, anybody's. Raises Gone where none such is open."""
    mine = (invites.c.id == link_id) & _open_at(tx.at)
    if by.role != "admin":
        mine &= invites.c.invited_by == by.id
    about = tx.connection.scalar(select(invites.c.person_id).where(mine))
    if not _end_links(tx, mine):
        raise Gone(f"there is no open link {link_id}")
    note(tx, "link revoked", by, about)


def _open_at(at: float) -> ColumnElement[bool]:
    return and_(invites.c.used_by.is_(None), invites.c.revoked_at.is_(None), invites.c.expires_at > at)


def _end_links(tx: Transaction, which: ColumnElement[bool]) -> int:
    """Take back the links of a condition that nobody has used, and return how many."""
    still = which & _open_at(tx.at)
    return tx.connection.execute(update(invites).where(still).values(revoked_at=tx.at)).rowcount


# ---- sessions and tokens ---------------------------------------------------------------------------------------------


def start_session(tx: Transaction, person_id: int, *, token_id: int | None = None, link_id: int | None = None) -> str:
    """Return the token of a new session of 30 days; it ends with the token or link that opened it."""
    token = new_secret()
    # Nobody else clears up what has ended; the few logins are moments enough.
    tx.connection.execute(sessions.delete().where(sessions.c.expires_at <= tx.at))
    row = {"token_hash": hashed(token), "person_id": person_id, "expires_at": tx.at + SESSION_S}
    tx.connection.execute(insert(sessions).values(row | {"token_id": token_id, "link_id": link_id}))
    return token


def end_tokens(tx: Transaction, which: ColumnElement[bool]) -> list[int]:
    """Revoke the tokens of a condition, end the sessions they opened, and return whose they were."""
    found = tx.connection.execute(
        select(tokens.c.id, tokens.c.person_id).where(which, tokens.c.revoked_at.is_(None))
    ).all()
    keys = [row.id for row in found]
    tx.connection.execute(update(tokens).where(tokens.c.id.in_(keys)).values(revoked_at=tx.at))
    tx.connection.execute(sessions.delete().where(sessions.c.token_id.in_(keys)))
    return [row.person_id for row in found]


def end_sessions(tx: Transaction, person_id: int) -> int:
    """End all sessions of a person, and the open links that would make new ones; return how many sessions."""
    _end_links(tx, invites.c.person_id == person_id)
    return tx.connection.execute(sessions.delete().where(sessions.c.person_id == person_id)).rowcount


# ---- who may no longer -----------------------------------------------------------------------------------------------


def void_made_by(tx: Transaction, person: Person, by: Person) -> None:
    """Void what a person made and others come in by: open links, tokens of others, and the sessions they opened."""
    links = _end_links(tx, invites.c.invited_by == person.id)
    ended = end_tokens(tx, (tokens.c.made_by == person.id) & (tokens.c.person_id != person.id))
    # A login link that its maker used oneself would be a way back as somebody else.
    by_links = select(invites.c.id).where(invites.c.invited_by == person.id, invites.c.person_id.is_not(None))
    others = sessions.c.link_id.in_(by_links) & (sessions.c.person_id != person.id)
    out = tx.connection.execute(sessions.delete().where(others)).rowcount
    counts: dict[Action, int] = {"links void": links, "tokens void": len(ended), "sessions ended": out}
    for action, count in counts.items():
        if count:
            note(tx, action, by, person.id, str(count))
