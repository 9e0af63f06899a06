"""Who may come in and what they may do: people, invites, sessions, API tokens; and the guidelines they confirm.

Functions on one connection. Tokens are random, shown once, and stand in the database only as SHA-256.
"""

from __future__ import annotations

import hashlib
import secrets
import unicodedata
from collections.abc import Iterator
from typing import Any, get_args

from sqlalchemy import Connection, bindparam, insert, select, update

from accord.errors import DataError
from accord.people.desk.rows import ApiToken, Conflict, Forbidden, Gone, Guideline, Person, Role, Unconfirmed
from accord.records import Annotator
from accord.store import add_facts, schema
from accord.store.operations import confirmations, guidelines, invites, people, sessions, tokens

SESSION_S = 30 * 86_400.0
_MOST_NAME = 100
_JOINERS = "\u200c\u200d"  # invisible, but Persian and Indian names are written with them


def hashed(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _new_token() -> str:
    return secrets.token_urlsafe(32)


# ---- people ----------------------------------------------------------------------------------------------------------


_PEOPLE = select(
    people.c.id,
    people.c.name,
    people.c.role,
    schema.annotators.c.content_id,
    people.c.disabled,
    schema.annotators.c.annotator_kind,
).join_from(people, schema.annotators)
_PERSON = _PEOPLE.where(people.c.id == bindparam("me"))


def _person(row: Any) -> Person:
    id_, name, role, annotator_id, disabled, kind = row
    return Person(id_, name, role, annotator_id, disabled, simulated=kind == "simulated")


def all_people(connection: Connection) -> list[Person]:
    return [_person(row) for row in connection.execute(_PEOPLE.order_by(people.c.id))]


def person(connection: Connection, person_id: int) -> Person:
    row = connection.execute(_PERSON, {"me": person_id}).first()
    if row is None:
        raise Gone(f"there is no person {person_id}")
    return _person(row)


def active(connection: Connection, person_id: int) -> Person:
    """The person, who must not be disabled."""
    found = person(connection, person_id)
    if found.disabled:
        raise Forbidden(f"{found.name} is disabled", hint="an admin can ask for another account")
    return found


def require(by: Person, *roles: Role) -> None:
    if by.role not in roles or by.disabled:
        raise Forbidden(f"{by.name} may not do this", why=f"it needs the role {' or '.join(roles)}")


def add_person(connection: Connection, at: float, name: str, role: Role, *, simulated: bool) -> Person:
    _check_role(role)
    name = _clean_name(connection, name)
    annotator = Annotator(name=name, annotator_kind="simulated" if simulated else "human")
    add_facts(connection, [annotator])
    annotators = schema.annotators
    key = connection.scalar(select(annotators.c.id).where(annotators.c.content_id == annotator.id))
    row = {"name": name, "role": role, "annotator_id": key, "disabled": False, "lean": 0, "created_at": at}
    made = connection.execute(insert(people).values(row)).inserted_primary_key
    assert made is not None
    return person(connection, made[0])


def _clean_name(connection: Connection, name: str) -> str:
    name = unicodedata.normalize("NFC", " ".join(name.split()))
    seen = _as_seen(name)
    readable = all(unicodedata.category(character) not in ("Cc", "Cs", "Cf") for character in seen)
    if not seen or len(name) > _MOST_NAME or not readable:
        raise DataError(f"{name!r:.40} is no name", hint=f"give 1 to {_MOST_NAME} letters")
    # Not by SQL: SQLite knows upper and lower case of ASCII alone.
    if seen in map(_as_seen, connection.scalars(select(people.c.name))):
        raise DataError(f"the name {name!r} is taken", hint="choose another one")
    return name


def _as_seen(name: str) -> str:
    """What the eye tells apart: no upper and lower case, no widths of letters, nothing invisible."""
    folded = unicodedata.normalize("NFKC", name).casefold()
    return unicodedata.normalize("NFKC", folded).translate(dict.fromkeys(map(ord, _JOINERS))).strip()


def _check_role(role: str) -> None:
    if role not in get_args(Role):
        raise DataError(f"there is no role {role!r}", hint="give one of " + ", ".join(get_args(Role)))


def set_role(connection: Connection, person_id: int, role: Role, by: Person) -> None:
    require(by, "admin")
    _check_role(role)
    if role != "admin":
        _keep_an_admin(connection, person_id)
    connection.execute(update(people).where(people.c.id == person(connection, person_id).id).values(role=role))


def disable(connection: Connection, at: float, person_id: int, by: Person) -> None:
    require(by, "admin")
    _keep_an_admin(connection, person_id)
    connection.execute(update(people).where(people.c.id == person(connection, person_id).id).values(disabled=True))
    connection.execute(sessions.delete().where(sessions.c.person_id == person_id))
    mine = (tokens.c.person_id == person_id) & tokens.c.revoked_at.is_(None)
    connection.execute(update(tokens).where(mine).values(revoked_at=at))


def _keep_an_admin(connection: Connection, person_id: int) -> None:
    others = (people.c.role == "admin") & ~people.c.disabled & (people.c.id != person_id)
    if (
        person(connection, person_id).role == "admin"
        and not connection.execute(select(people.c.id).where(others)).first()
    ):
        raise Conflict("the last admin stays one", hint="make somebody else an admin first")


# ---- invites, sessions, tokens ---------------------------------------------------------------------------------------


_OF_SESSION = _PEOPLE.join(sessions, sessions.c.person_id == people.c.id).where(
    sessions.c.token_hash == bindparam("token"), sessions.c.expires_at > bindparam("at"), ~people.c.disabled
)
_OF_TOKEN = _PEOPLE.join(tokens, tokens.c.person_id == people.c.id).where(
    tokens.c.token_hash == bindparam("token"), tokens.c.revoked_at.is_(None), ~people.c.disabled
)


def invite(connection: Connection, at: float, role: Role, by: Person | None, hours: float) -> str:
    _check_role(role)
    if by is not None:
        require(by, "admin", *(("manager",) if role == "annotator" else ()))
    if not 0 < hours <= 8_760:
        raise DataError(f"an invite cannot last {hours} hours", hint="give more than 0 and at most 8760")
    token = _new_token()
    row = {"token_hash": hashed(token), "role": role, "invited_by": by and by.id, "created_at": at}
    connection.execute(insert(invites).values(row | {"expires_at": at + hours * 3600}))
    return token


def accept_invite(connection: Connection, at: float, token: str, name: str) -> Person:
    found = connection.execute(select(invites).where(invites.c.token_hash == hashed(token))).first()
    if found is None or found.used_by is not None or found.expires_at <= at:
        why = "it was never given" if found is None else "it was used" if found.used_by else "it has expired"
        raise Gone("this invite is not valid", why=why, hint="ask for a new one")
    made = add_person(connection, at, name, found.role, simulated=False)
    connection.execute(update(invites).where(invites.c.id == found.id).values(used_by=made.id))
    return made


def open_session(connection: Connection, at: float, person_id: int) -> str:
    token, expires_at = _new_token(), at + SESSION_S
    person_id = active(connection, person_id).id
    connection.execute(sessions.delete().where(sessions.c.expires_at <= at))
    row = {"token_hash": hashed(token), "person_id": person_id, "expires_at": expires_at}
    connection.execute(insert(sessions).values(row))
    return token


def person_of_session(connection: Connection, at: float, token: str) -> Person | None:
    row = connection.execute(_OF_SESSION, {"token": hashed(token), "at": at}).first()
    return None if row is None else _person(row)


def close_session(connection: Connection, token: str) -> None:
    connection.execute(sessions.delete().where(sessions.c.token_hash == hashed(token)))


def make_token(connection: Connection, at: float, person_id: int, label: str) -> str:
    token, label = _new_token(), label.strip()
    if not label or len(label) > _MOST_NAME:
        raise DataError("a token needs a label", hint=f"say in 1 to {_MOST_NAME} letters what it is for")
    row = {"token_hash": hashed(token), "person_id": active(connection, person_id).id, "label": label}
    connection.execute(insert(tokens).values(row | {"created_at": at}))
    return token


def person_of_token(connection: Connection, token: str) -> Person | None:
    row = connection.execute(_OF_TOKEN, {"token": hashed(token)}).first()
    return None if row is None else _person(row)


def tokens_of(connection: Connection, person_id: int) -> Iterator[ApiToken]:
    mine = (tokens.c.person_id == person_id) & tokens.c.revoked_at.is_(None)
    columns = (tokens.c.id, tokens.c.label, tokens.c.created_at)
    return (ApiToken(*row) for row in connection.execute(select(*columns).where(mine).order_by(tokens.c.id)))


def revoke_token(connection: Connection, at: float, token_id: int, by: Person) -> None:
    mine = tokens.c.id == token_id
    if by.role != "admin":
        mine &= tokens.c.person_id == by.id
    changed = connection.execute(update(tokens).where(mine, tokens.c.revoked_at.is_(None)).values(revoked_at=at))
    if not changed.rowcount:
        raise Gone(f"there is no token {token_id}")


# ---- guidelines ------------------------------------------------------------------------------------------------------

_NONE_YET = Guideline(0, "", 0.0)
_GUIDELINES = select(guidelines.c.rev, guidelines.c.text, guidelines.c.created_at)
_GUIDELINE = _GUIDELINES.where(guidelines.c.rev == bindparam("rev"))
_LAST_GUIDELINE = _GUIDELINES.order_by(guidelines.c.rev.desc()).limit(1)
# The newest revision, with the person where that one has confirmed it.
_CONFIRMED = (
    select(guidelines.c.rev, confirmations.c.person_id)
    .outerjoin_from(
        guidelines,
        confirmations,
        (confirmations.c.rev == guidelines.c.rev) & (confirmations.c.person_id == bindparam("me")),
    )
    .order_by(guidelines.c.rev.desc())
    .limit(1)
)


def guideline(connection: Connection, rev: int | None = None) -> Guideline:
    """The guidelines of a revision, or the newest."""
    found = connection.execute(_LAST_GUIDELINE) if rev is None else connection.execute(_GUIDELINE, {"rev": rev})
    row = found.first()
    return _NONE_YET if row is None else Guideline(*row)


def write_guideline(connection: Connection, at: float, text: str, by: Person | None) -> Guideline:
    if by is not None:
        require(by, "admin", "manager")
    last = guideline(connection)
    if text == last.text:
        return last
    new = Guideline(last.rev + 1, text, at)
    connection.execute(insert(guidelines).values(**new._asdict(), written_by=by and by.id))
    return new


def _newest(connection: Connection, who: Person) -> tuple[int, bool]:
    """The newest revision, and whether a person has confirmed it. Programs read none and need not."""
    row = connection.execute(_CONFIRMED, {"me": who.id}).first()
    return (0, True) if row is None else (row.rev, who.simulated or row.person_id is not None)


def confirmed(connection: Connection, who: Person) -> bool:
    return _newest(connection, who)[1]


def confirmed_rev(connection: Connection, who: Person) -> int:
    """The newest revision. Raises Unconfirmed where the person has not confirmed it."""
    rev, is_confirmed = _newest(connection, who)
    if not is_confirmed:
        raise Unconfirmed("the guidelines have changed", why=f"revision {rev} is new", hint="read and confirm it")
    return rev


def confirm(connection: Connection, at: float, person_id: int, rev: int) -> None:
    who = active(connection, person_id)
    newest, is_confirmed = _newest(connection, who)
    if rev != newest:
        raise Conflict(f"the guidelines are at revision {newest}, not {rev}", hint="read the newest ones")
    if not is_confirmed:
        connection.execute(insert(confirmations).values(person_id=person_id, rev=rev, created_at=at))
