"""Who somebody is and what they may do, on one connection: people, roles, and which guidelines they have confirmed."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, bindparam, select

from accord.people.desk.rows import Forbidden, Gone, Guideline, Person, Role, Unconfirmed
from accord.store import schema
from accord.store.operations import confirmations, guidelines, people

SELECT_PEOPLE = select(
    people.c.id,
    people.c.name,
    people.c.role,
    schema.annotators.c.content_id,
    people.c.disabled,
    schema.annotators.c.annotator_kind,
).join_from(people, schema.annotators)
_PERSON = SELECT_PEOPLE.where(people.c.id == bindparam("me"))
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


def person_of(row: Any) -> Person:
    """Return the person of a row of ``SELECT_PEOPLE``."""
    id_, name, role, annotator_id, disabled, kind = row
    return Person(id_, name, role, annotator_id, disabled, simulated=kind == "simulated")


def all_people(connection: Connection) -> list[Person]:
    """Return everybody, in the order in which they came."""
    return [person_of(row) for row in connection.execute(SELECT_PEOPLE.order_by(people.c.id))]


def find_person(connection: Connection, person_id: int) -> Person:
    """Return one person. Raises Gone where there is none."""
    row = connection.execute(_PERSON, {"me": person_id}).first()
    if row is None:
        raise Gone(f"there is no person {person_id}")
    return person_of(row)


def active(connection: Connection, person_id: int) -> Person:
    """Return one person, who must not be disabled: raises Forbidden."""
    found = find_person(connection, person_id)
    if found.disabled:
        raise Forbidden(f"{found.name} is disabled", hint="an admin can ask for another account")
    return found


def require(by: Person, *roles: Role) -> None:
    """Raise Forbidden where a person has none of the roles, or is disabled."""
    if by.role not in roles or by.disabled:
        raise Forbidden(f"{by.name} may not do this", why=f"it needs the role {' or '.join(roles)}")


def acting(connection: Connection, by: Person, *roles: Role) -> Person:
    """Return who does something, as the person is now: a request may have waited while an admin shut its sender out.

    Raises Forbidden where the person has none of the roles any more.
    """
    now = find_person(connection, by.id)
    require(now, *roles)
    return now


def find_guideline(connection: Connection, rev: int | None = None) -> Guideline:
    """Return the guidelines of one revision, or the newest; the empty ones where there are none."""
    found = connection.execute(_LAST_GUIDELINE) if rev is None else connection.execute(_GUIDELINE, {"rev": rev})
    row = found.first()
    return _NONE_YET if row is None else Guideline(*row)


def newest_rev(connection: Connection, who: Person) -> tuple[int, bool]:
    """Return the newest revision, and whether a person has confirmed it. Programs read none and need not."""
    row = connection.execute(_CONFIRMED, {"me": who.id}).first()
    return (0, True) if row is None else (row.rev, who.simulated or row.person_id is not None)


def confirmed_rev(connection: Connection, who: Person) -> int:
    """Return the newest revision. Raises Unconfirmed where the person has not confirmed it."""
    rev, is_confirmed = newest_rev(connection, who)
    if not is_confirmed:
        raise Unconfirmed("the guidelines have changed", why=f"revision {rev} is new", hint="read and confirm it")
    return rev
