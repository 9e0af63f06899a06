"""Who may come in and what they may do: people, invites, sessions, API tokens; and the guidelines they confirm.

Tokens are random, shown once, and stand in the database only as SHA-256.
"""

from __future__ import annotations

import hashlib
import secrets
import unicodedata
from typing import get_args

from sqlalchemy import Connection, bindparam, insert, select, update

from accord.errors import DataError
from accord.people.desk.access import (
    SELECT_PEOPLE,
    active,
    all_people,
    find_guideline,
    find_person,
    newest_rev,
    person_of,
    require,
)
from accord.people.desk.leases import release_all
from accord.people.desk.rows import ApiToken, Conflict, Gone, Guideline, Person, Role
from accord.people.desk.transactions import DeskPart, Transaction, in_transaction
from accord.records import Annotator
from accord.store import add_facts, schema
from accord.store.operations import confirmations, guidelines, invites, people, sessions, tokens

# A month without a new login. It costs little: who is disabled loses all sessions at once.
SESSION_S = 30 * 86_400.0
# Characters of a name and of a token's label: both stand in tables beside numbers.
_MOST_NAME = 100
_JOINERS = "\u200c\u200d"  # invisible, but Persian and Indian names are written with them
_OF_SESSION = SELECT_PEOPLE.join(sessions, sessions.c.person_id == people.c.id).where(
    sessions.c.token_hash == bindparam("token"), sessions.c.expires_at > bindparam("at"), ~people.c.disabled
)
_OF_TOKEN = SELECT_PEOPLE.join(tokens, tokens.c.person_id == people.c.id).where(
    tokens.c.token_hash == bindparam("token"), tokens.c.revoked_at.is_(None), ~people.c.disabled
)


class Directory(DeskPart):
    """The people of a project, what lets them in, and the guidelines that they work by."""

    # ---- people ------------------------------------------------------------------------------------------------------

    @in_transaction
    def add_person(self, tx: Transaction, name: str, role: Role, *, simulated: bool = False) -> Person:
        """Add somebody, an annotator too. Raises DataError where the name is taken or none."""
        return _add_person(tx, name, role, simulated=simulated)

    def people(self) -> list[Person]:
        """Return everybody, disabled ones too, in the order in which they came."""
        with self._store.snapshot() as connection:
            return all_people(connection)

    def person(self, person_id: int) -> Person:
        """Return one person. Raises Gone where there is none."""
        with self._store.snapshot() as connection:
            return find_person(connection, person_id)

    @in_transaction
    def set_role(self, tx: Transaction, person_id: int, role: Role, by: Person) -> None:
        """Give somebody a role. Admins only; the last admin stays one: raises Conflict."""
        require(by, "admin")
        _check_role(role)
        if role != "admin":
            _keep_an_admin(tx.connection, person_id)
        known = find_person(tx.connection, person_id).id
        tx.connection.execute(update(people).where(people.c.id == known).values(role=role))

    @in_transaction
    def disable(self, tx: Transaction, person_id: int, by: Person) -> None:
        """Shut somebody out: end the person's sessions and tokens, and release what the person holds. Admins only."""
        require(by, "admin")
        _keep_an_admin(tx.connection, person_id)
        known = find_person(tx.connection, person_id).id
        tx.connection.execute(update(people).where(people.c.id == known).values(disabled=True))
        tx.connection.execute(sessions.delete().where(sessions.c.person_id == person_id))
        mine = (tokens.c.person_id == person_id) & tokens.c.revoked_at.is_(None)
        tx.connection.execute(update(tokens).where(mine).values(revoked_at=tx.at))
        release_all(tx.connection, person_id)

    # ---- invites, sessions, tokens -----------------------------------------------------------------------------------

    @in_transaction
    def invite(self, tx: Transaction, role: Role, *, by: Person | None, hours: float = 72.0) -> str:
        """Return a token that lets one person in, once.

        Managers invite annotators, admins and the command line anybody.
        """
        _check_role(role)
        if by is not None:
            require(by, "admin", *(("manager",) if role == "annotator" else ()))
        # A year at most: a link that is forgotten in a mailbox must not let anybody in for ever.
        if not 0 < hours <= 8_760:
            raise DataError(f"an invite cannot last {hours} hours", hint="give more than 0 and at most 8760")
        token = _new_token()
        row = {"token_hash": hashed(token), "role": role, "invited_by": by and by.id, "created_at": tx.at}
        tx.connection.execute(insert(invites).values(row | {"expires_at": tx.at + hours * 3600}))
        return token

    @in_transaction
    def accept_invite(self, tx: Transaction, token: str, name: str) -> Person:
        """Add the person who was invited.

        Raises:
            Gone: The invite was used or has expired.
            DataError: The name is taken or none.
        """
        found = tx.connection.execute(select(invites).where(invites.c.token_hash == hashed(token))).first()
        if found is None or found.used_by is not None or found.expires_at <= tx.at:
            why = "it was never given" if found is None else "it was used" if found.used_by else "it has expired"
            raise Gone("this invite is not valid", why=why, hint="ask for a new one")
        made = _add_person(tx, name, found.role, simulated=False)
        tx.connection.execute(update(invites).where(invites.c.id == found.id).values(used_by=made.id))
        return made

    @in_transaction
    def open_session(self, tx: Transaction, person_id: int) -> str:
        """Return the token of a new session of 30 days. Raises Forbidden for who is disabled."""
        token, expires_at = _new_token(), tx.at + SESSION_S
        person_id = active(tx.connection, person_id).id
        # Nobody else clears up what has ended; the few logins are moments enough.
        tx.connection.execute(sessions.delete().where(sessions.c.expires_at <= tx.at))
        row = {"token_hash": hashed(token), "person_id": person_id, "expires_at": expires_at}
        tx.connection.execute(insert(sessions).values(row))
        return token

    def person_of_session(self, token: str) -> Person | None:
        """Return whose session this is; None where it has ended or never was."""
        with self._store.snapshot() as connection:
            row = connection.execute(_OF_SESSION, {"token": hashed(token), "at": self._clock()}).first()
        return None if row is None else person_of(row)

    @in_transaction
    def close_session(self, tx: Transaction, token: str) -> None:
        """End a session."""
        tx.connection.execute(sessions.delete().where(sessions.c.token_hash == hashed(token)))

    @in_transaction
    def make_token(self, tx: Transaction, person_id: int, label: str) -> str:
        """Return a new token for a person's programs, valid until revoked."""
        token, label = _new_token(), label.strip()
        if not label or len(label) > _MOST_NAME:
            raise DataError("a token needs a label", hint=f"say in 1 to {_MOST_NAME} letters what it is for")
        row = {"token_hash": hashed(token), "person_id": active(tx.connection, person_id).id, "label": label}
        tx.connection.execute(insert(tokens).values(row | {"created_at": tx.at}))
        return token

    def person_of_token(self, token: str) -> Person | None:
        """Return whose program this is; None where the token was revoked or never was."""
        with self._store.snapshot() as connection:
            row = connection.execute(_OF_TOKEN, {"token": hashed(token)}).first()
        return None if row is None else person_of(row)

    def tokens(self, person_id: int) -> list[ApiToken]:
        """Return a person's tokens that are not revoked, less the tokens themselves."""
        mine = (tokens.c.person_id == person_id) & tokens.c.revoked_at.is_(None)
        columns = (tokens.c.id, tokens.c.label, tokens.c.created_at)
        with self._store.snapshot() as connection:
            found = connection.execute(select(*columns).where(mine).order_by(tokens.c.id))
            return [ApiToken(*row) for row in found]

    @in_transaction
    def revoke_token(self, tx: Transaction, token_id: int, by: Person) -> None:
        """End a token: one's own, or, for an admin, anybody's. Raises Gone where there is none."""
        mine = tokens.c.id == token_id
        if by.role != "admin":
            mine &= tokens.c.person_id == by.id
        revoked = update(tokens).where(mine, tokens.c.revoked_at.is_(None)).values(revoked_at=tx.at)
        if not tx.connection.execute(revoked).rowcount:
            raise Gone(f"there is no token {token_id}")

    # ---- guidelines --------------------------------------------------------------------------------------------------

    def guideline(self) -> Guideline:
        """Return the newest guidelines; revision 0 and no text before any were written."""
        with self._store.snapshot() as connection:
            return find_guideline(connection)

    @in_transaction
    def write_guideline(self, tx: Transaction, text: str, by: Person | None) -> Guideline:
        """Write new guidelines: managers, admins and the command line. The same text again makes no new revision."""
        if by is not None:
            require(by, "admin", "manager")
        last = find_guideline(tx.connection)
        if text == last.text:
            return last
        new = Guideline(last.rev + 1, text, tx.at)
        tx.connection.execute(insert(guidelines).values(**new._asdict(), written_by=by and by.id))
        return new

    def confirmed(self, person_id: int) -> bool:
        """Whether the person has confirmed the newest guidelines; simulated ones need not."""
        with self._store.snapshot() as connection:
            return newest_rev(connection, find_person(connection, person_id))[1]

    @in_transaction
    def confirm(self, tx: Transaction, person_id: int, rev: int) -> None:
        """Note that a person has read the newest guidelines. Raises Conflict where ``rev`` is not the newest."""
        who = active(tx.connection, person_id)
        newest, is_confirmed = newest_rev(tx.connection, who)
        if rev != newest:
            raise Conflict(f"the guidelines are at revision {newest}, not {rev}", hint="read the newest ones")
        if not is_confirmed:
            tx.connection.execute(insert(confirmations).values(person_id=person_id, rev=rev, created_at=tx.at))


def hashed(secret: str) -> str:
    """Return the SHA-256 of a token, as it stands in the database and in memory."""
    # Tokens are 256 random bits: no salt and no slow hash is needed, as there is for passwords that people choose.
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _new_token() -> str:
    return secrets.token_urlsafe(32)


def _add_person(tx: Transaction, name: str, role: Role, *, simulated: bool) -> Person:
    _check_role(role)
    name = _clean_name(tx.connection, name)
    annotator = Annotator(name=name, annotator_kind="simulated" if simulated else "human")
    add_facts(tx.connection, [annotator])
    annotators = schema.annotators
    key = tx.connection.scalar(select(annotators.c.id).where(annotators.c.content_id == annotator.id))
    row = {"name": name, "role": role, "annotator_id": key, "disabled": False, "position_balance": 0}
    made = tx.connection.execute(insert(people).values(row | {"created_at": tx.at})).inserted_primary_key
    assert made is not None
    return find_person(tx.connection, made[0])


def _clean_name(connection: Connection, name: str) -> str:
    name = unicodedata.normalize("NFC", " ".join(name.split()))
    # Control characters, halves of characters and invisible ones would let two people look like one.
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


def _keep_an_admin(connection: Connection, person_id: int) -> None:
    others = (people.c.role == "admin") & ~people.c.disabled & (people.c.id != person_id)
    if (
        find_person(connection, person_id).role == "admin"
        and not connection.execute(select(people.c.id).where(others)).first()
    ):
        raise Conflict("the last admin stays one", hint="make somebody else an admin first")
