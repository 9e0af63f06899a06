"""Who may come in and what they may do: people, links, sessions, API tokens; and the guidelines they confirm.

`accord.people.desk.keys` says how each of these ends with what it came from; every change of access is logged.
"""

from __future__ import annotations

import unicodedata
from typing import get_args

from sqlalchemy import Connection, bindparam, insert, select, update

from accord.errors import DataError
from accord.people.desk.access import (
    SELECT_PEOPLE,
    acting,
    active,
    all_people,
    find_guideline,
    find_person,
    newest_rev,
    person_of,
    require,
)
from accord.people.desk.audit import last_rows, note
from accord.people.desk.keys import (
    check_link,
    end_sessions,
    end_tokens,
    hashed,
    is_open,
    link_of,
    make_link,
    new_secret,
    open_links,
    retire_start_links,
    revoke_link_of,
    start_session,
    use_link,
    void_made_by,
)
from accord.people.desk.leases import release_all
from accord.people.desk.rows import (
    ApiToken,
    AuditRow,
    Conflict,
    Entered,
    Gone,
    Guideline,
    OpenLink,
    Person,
    Role,
)
from accord.people.desk.transactions import DeskPart, Transaction, in_transaction
from accord.records import Annotator
from accord.store import add_facts, schema
from accord.store.operations import confirmations, guidelines, people, sessions, tokens

#: How long an invitation lasts, and a login link: who lost the browser asks for one now.
INVITE_HOURS, LOGIN_HOURS = 72.0, 24.0
# From the least to the most.
_ROLES = ("annotator", "manager", "admin")
# Characters of a name and of a token's label: both stand in tables beside numbers.
_MOST_NAME = 100
_JOINERS = "\u200c\u200d"  # invisible, but Persian and Indian names are written with them
_OF_SESSION = SELECT_PEOPLE.join(sessions, sessions.c.person_id == people.c.id).where(
    sessions.c.token_hash == bindparam("token"), sessions.c.expires_at > bindparam("at"), ~people.c.disabled
)
_OF_TOKEN = SELECT_PEOPLE.join(tokens, tokens.c.person_id == people.c.id).where(
    tokens.c.token_hash == bindparam("token"), tokens.c.revoked_at.is_(None), ~people.c.disabled
)
_TOKEN = _OF_TOKEN.add_columns(tokens.c.id, tokens.c.label)


class Directory(DeskPart):
    """The people of a project, what lets them in, and the guidelines that they work by."""

    # ---- people ------------------------------------------------------------------------------------------------------

    @in_transaction
    def add_person(
        self, tx: Transaction, name: str, role: Role, *, simulated: bool = False, by: Person | None = None
    ) -> Person:
        """Add somebody, an annotator too. Raises DataError where the name is taken or none."""
        made = _add_person(tx, name, role, simulated=simulated)
        note(tx, "person added", by, made.id, role)
        return made

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
        """Give somebody a role. Admins only; the last admin stays one: raises Conflict.

        Who gets a lesser one takes along the links, and the tokens of others, that the person has made.
        """
        acting(tx.connection, by, "admin")
        _check_role(role)
        if role != "admin":
            _keep_an_admin(tx.connection, person_id)
        known = find_person(tx.connection, person_id)
        tx.connection.execute(update(people).where(people.c.id == known.id).values(role=role))
        note(tx, "role changed", by, known.id, role)
        if _ROLES.index(role) < _ROLES.index(known.role):
            void_made_by(tx, known, by)

    @in_transaction
    def disable(self, tx: Transaction, person_id: int, by: Person) -> None:
        """Shut somebody out: end all that lets the person in, or in which the person had a hand. Admins only.

        What the person holds goes back to the queue; what the person said stays.
        """
        acting(tx.connection, by, "admin")
        _keep_an_admin(tx.connection, person_id)
        known = find_person(tx.connection, person_id)
        tx.connection.execute(update(people).where(people.c.id == known.id).values(disabled=True))
        note(tx, "person disabled", by, known.id)
        end_sessions(tx, known.id)
        end_tokens(tx, tokens.c.person_id == known.id)
        void_made_by(tx, known, by)
        release_all(tx.connection, known.id)

    # ---- links -------------------------------------------------------------------------------------------------------

    @in_transaction
    def invite(self, tx: Transaction, role: Role, *, by: Person | None, hours: float = INVITE_HOURS) -> str:
        """Return the token of a link that lets one new person in, once.

        Managers invite annotators, admins and the command line anybody.
        """
        _check_role(role)
        if by is not None:
            acting(tx.connection, by, "admin", *(("manager",) if role == "annotator" else ()))
        return make_link(tx, role, by, hours)

    @in_transaction
    def login_link(self, tx: Transaction, person_id: int, *, by: Person | None, hours: float = LOGIN_HOURS) -> str:
        """Return the token of a link that lets somebody in again, once. Admins, and the command line."""
        if by is not None:
            acting(tx.connection, by, "admin")
        known = active(tx.connection, person_id)
        return make_link(tx, known.role, by, hours, known)

    @in_transaction
    def start_link(self, tx: Transaction) -> tuple[str, Person | None]:
        """Return the token of a link for an admin, and which: the first one, or None for who becomes the first.

        The command line prints it at each start; those of earlier starts end.
        """
        retire_start_links(tx)
        admins = [person for person in all_people(tx.connection) if person.role == "admin" and not person.disabled]
        first = admins[0] if admins else None
        return make_link(tx, "admin", None, LOGIN_HOURS if first else INVITE_HOURS, first), first

    def links(self, by: Person) -> list[OpenLink]:
        """Return the links that let somebody in now, the newest first: one's own, or all of them for an admin."""
        with self._store.snapshot() as connection:
            return open_links(connection, self._clock(), by)

    @in_transaction
    def revoke_link(self, tx: Transaction, link_id: int, by: Person) -> None:
        """Take an open link back: one's own, or, for an admin, anybody's. Raises Gone where there is none."""
        revoke_link_of(tx, link_id, acting(tx.connection, by, "admin", "manager"))

    def person_of_link(self, token: str) -> Person | None:
        """Return whom a link lets in again; None for an invitation, and for a link that lets nobody in."""
        with self._store.snapshot() as connection:
            row = link_of(connection, token)
            if row is None or row.person_id is None or not is_open(row, self._clock()):
                return None
            return find_person(connection, row.person_id)

    def enter_by_link(self, token: str, name: str) -> Entered:
        """Let somebody in by a link: a new person under ``name``, or the one it was made for. It lets in once.

        Raises:
            Gone: The link was never given, was used, taken back, or has expired.
            DataError: The name is taken or none.
            Forbidden: The person is disabled.
        """
        # By reading first: who tries tokens that never were keeps no writer busy.
        with self._store.snapshot() as connection:
            check_link(link_of(connection, token), self._clock())
        return self._enter_by_link(token, name)

    @in_transaction
    def _enter_by_link(self, tx: Transaction, token: str, name: str) -> Entered:
        row = check_link(link_of(tx.connection, token), tx.at)
        if row.person_id is None:
            person = _add_person(tx, name, row.role, simulated=False)
        else:
            person = active(tx.connection, row.person_id)
        use_link(tx, row, person)
        note(tx, "came in" if row.person_id is None else "logged in", person, person.id, "by a link")
        return Entered(person, start_session(tx, person.id, link_id=row.id))

    # ---- sessions and tokens -----------------------------------------------------------------------------------------

    def enter_by_token(self, token: str) -> Entered | None:
        """Open a session by a program's token, with which it ends; None where the token lets nobody in."""
        return self._enter_by_token(token) if self.person_of_token(token) is not None else None

    @in_transaction
    def _enter_by_token(self, tx: Transaction, token: str) -> Entered | None:
        row = tx.connection.execute(
            _OF_TOKEN.add_columns(tokens.c.id, tokens.c.label), {"token": hashed(token)}
        ).first()
        if row is None:
            return None
        *columns, token_id, label = row
        person = person_of(columns)
        note(tx, "logged in", person, person.id, f"by the token {label!r}")
        return Entered(person, start_session(tx, person.id, token_id=token_id))

    @in_transaction
    def open_session(self, tx: Transaction, person_id: int) -> str:
        """Return the token of a new session of 30 days. Raises Forbidden for who is disabled."""
        return start_session(tx, active(tx.connection, person_id).id)

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
    def log_out_everywhere(self, tx: Transaction, person_id: int, by: Person) -> None:
        """End all sessions of a person and all open links that log the person in: one's own, for an admin anybody's."""
        if by.id != person_id:
            acting(tx.connection, by, "admin")
        known = find_person(tx.connection, person_id)
        note(tx, "logged out everywhere", by, known.id, str(end_sessions(tx, known.id)))

    @in_transaction
    def make_token(self, tx: Transaction, person_id: int, label: str, *, by: Person | None = None) -> str:
        """Return a new token for a person's programs, valid until revoked. Admins make those of others."""
        if by is not None and by.id != person_id:
            acting(tx.connection, by, "admin")
        token, label = new_secret(), label.strip()
        if not label or len(label) > _MOST_NAME:
            raise DataError("a token needs a label", hint=f"say in 1 to {_MOST_NAME} letters what it is for")
        row = {"token_hash": hashed(token), "person_id": active(tx.connection, person_id).id, "label": label}
        tx.connection.execute(insert(tokens).values(row | {"created_at": tx.at, "made_by": by and by.id}))
        note(tx, "token made", by, person_id, label)
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
        """End a token and the sessions it opened: one's own, or, for an admin, anybody's. Raises Gone."""
        mine = tokens.c.id == token_id
        if find_person(tx.connection, by.id).role != "admin":
            mine &= tokens.c.person_id == by.id
        ended = end_tokens(tx, mine)
        if not ended:
            raise Gone(f"there is no token {token_id}")
        note(tx, "token revoked", by, ended[0])

    def log(self, by: Person, *, most: int = 100) -> list[AuditRow]:
        """Return the last things that were done about access, the newest first. Admins only."""
        require(by, "admin")
        with self._store.snapshot() as connection:
            return last_rows(connection, most)

    # ---- guidelines --------------------------------------------------------------------------------------------------

    def guideline(self) -> Guideline:
        """Return the newest guidelines; revision 0 and no text before any were written."""
        with self._store.snapshot() as connection:
            return find_guideline(connection)

    @in_transaction
    def write_guideline(self, tx: Transaction, text: str, by: Person | None) -> Guideline:
        """Write new guidelines: managers, admins and the command line. The same text again makes no new revision."""
        if by is not None:
            acting(tx.connection, by, "admin", "manager")
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
