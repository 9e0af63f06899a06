"""Access to the database: from a path or URL to an engine, transactions that read or write, errors that say what to do.

SQLite runs in WAL mode with ``synchronous=FULL``: what was committed survives kill -9 and power loss, and readers see a
snapshot while one writer writes. Writers take the write lock when they begin, so that they wait for each other instead
of failing half-way; PostgreSQL does the same with an advisory lock.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event, func, make_url, select
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from accord.errors import AccordError, DataError, ResourceError, UsageError

#: How long a writer waits for another one before it gives up.
BUSY_TIMEOUT_S = 60.0
#: Most values of one ``IN (...)``: databases take only so many.
LOOKUP_IDS = 500
#: Connections kept for the next reader: one for each thread of a web server, and the writer's. A new one costs a
#: millisecond, for SQLite reads the whole schema again.
_KEPT_OPEN = 41
#: By an arbitrary number that all Accord writers of one PostgreSQL database agree on.
_LOCK_WRITERS = select(func.pg_advisory_xact_lock(0xACC0_4D))

_T = TypeVar("_T")

_EXAMPLES = "give a path such as accord.db, or postgresql://user:password@host/database"


def make_engine(place: str | Path) -> Engine:
    """Make an engine for a file or a URL (``postgresql://...``, ``sqlite:///path``). It connects to nothing yet."""
    if isinstance(place, str) and re.match(r"[A-Za-z][\w+.-]*://", place):
        return _engine_by_url(place)
    return _sqlite_engine(Path(place))


def place_of(engine: Engine) -> str:
    """Return where the engine leads, for messages: the path, or the URL without password and options."""
    url = engine.url
    return str(url.database) if is_sqlite(engine) else url.set(query={}).render_as_string(hide_password=True)


def address_of(engine: Engine) -> str:
    """Return what `make_engine` takes to make the same engine, password and all."""
    return str(engine.url.database) if is_sqlite(engine) else engine.url.render_as_string(hide_password=False)


def is_sqlite(bind: Engine | Connection) -> bool:
    return bind.dialect.name == "sqlite"


def _engine_by_url(text: str) -> Engine:
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as error:
        raise UsageError("the store's URL cannot be understood", hint=_EXAMPLES) from error
    if url.drivername == "sqlite":
        return _sqlite_engine(Path(url.database or ""))
    if url.drivername not in ("postgresql", "postgres", "postgresql+psycopg"):
        raise UsageError(f"no store lives behind {url.drivername}://", hint=_EXAMPLES)
    return _postgresql_engine(url)


def _postgresql_engine(url: URL) -> Engine:
    try:
        # pre_ping: a connection that a firewall or a restart has cut is replaced instead of failing a request.
        return create_engine(url.set(drivername="postgresql+psycopg"), pool_pre_ping=True)
    except ImportError as error:
        raise ResourceError(
            "PostgreSQL needs the package psycopg, which is not installed",
            where=url.set(query={}).render_as_string(hide_password=True),
            hint="run `pip install 'accord[postgres]'`, or give a path to use SQLite",
        ) from error


def _sqlite_engine(path: Path) -> Engine:
    if path.name in ("", ":memory:"):
        raise UsageError(f"the store needs a file, not {str(path)!r}", hint=_EXAMPLES)
    path = path.absolute()
    if path.is_dir():
        raise DataError("this is a folder, not a store", where=str(path), hint=f"give a file: {path / 'accord.db'}")
    if not path.parent.is_dir():
        raise DataError("the folder of the store does not exist", where=str(path), hint=f"make {path.parent} first")
    if not _may_be_sqlite(path):
        raise DataError("this file is not a database", where=str(path), hint="give another file, or a new name")
    url = URL.create("sqlite", database=str(path))
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S}, pool_size=_KEPT_OPEN)
    # Python's driver would begin transactions late and by itself; a snapshot needs BEGIN at the start.
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _may_be_sqlite(path: Path) -> bool:
    """Whether the file is absent, empty or begins as SQLite files do. SQLite itself takes one of few bytes for new."""
    try:
        with path.open("rb") as file:
            return file.read(16) in (b"", b"SQLite format 3\0")
    except OSError:
        return True  # absent, or SQLite will say why it cannot be read


def _prepare_sqlite(connection: sqlite3.Connection, record: object) -> None:
    connection.isolation_level = None  # Python then begins no transaction by itself; _begin_sqlite does
    _switch_to_wal(connection)
    # FULL: a judgement that was acknowledged survives a power cut (NORMAL may lose the last commits in WAL mode).
    # Foreign keys are checked only where a connection asks for it.
    for pragma in ("synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    """Switch a file to WAL once for all. While others read or make the same switch, SQLite refuses without waiting."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            return connection.execute("PRAGMA journal_mode=WAL").close()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            # SQLite does not use its busy timeout for this one change.
            time.sleep(0.01)


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("accord_writes", False)
    # IMMEDIATE takes the write lock at once: a transaction that read first and then wrote could fail half-way.
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """Open one transaction of the only writer: committed at the end, undone by any error."""
    with engine.connect() as connection:
        connection.execution_options(accord_writes=True)
        with connection.begin():
            if not is_sqlite(connection):
                connection.execute(_LOCK_WRITERS)
            yield connection


@contextmanager
def snapshot(engine: Engine) -> Iterator[Connection]:
    """Open one snapshot: what others commit meanwhile stays unseen."""
    # A transaction of SQLite is a snapshot by itself; PostgreSQL by default sees new commits with each statement.
    options: dict[str, Any] = {} if is_sqlite(engine) else {"isolation_level": "REPEATABLE READ"}
    with engine.connect() as connection:
        yield connection.execution_options(**options)


def chunks(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


# What SQLite's result codes mean to a person: error class, what, why, hint.
_SQLITE_ERRORS: dict[int, tuple[type[AccordError], str, str, str]] = {
    sqlite3.SQLITE_BUSY: (
        ResourceError,
        "the store is locked",
        "another program has been writing to it for too long",
        "wait for that program, or end it, and try again",
    ),
    sqlite3.SQLITE_READONLY: (
        ResourceError,
        "the store cannot be written",
        "the file or its folder is read-only",
        "make both writable, or copy the store to another folder",
    ),
    sqlite3.SQLITE_CANTOPEN: (
        ResourceError,
        "the store cannot be opened",
        "its file or folder cannot be written or read by this user",
        "make both writable, or choose another folder",
    ),
    sqlite3.SQLITE_FULL: (ResourceError, "the disk is full", "", "free some space; nothing of this change was kept"),
    sqlite3.SQLITE_NOTADB: (
        DataError,
        "this file is not a database",
        "it was made by another program, or it is damaged",
        "give another file, or restore it from a copy",
    ),
    sqlite3.SQLITE_CORRUPT: (
        DataError,
        "the database is damaged",
        "the disk or another program wrote into it",
        "run `accord doctor --repair`, or put a copy of `accord backup` in its place",
    ),
}


@contextmanager
def explained(engine: Engine) -> Iterator[None]:
    """Turn what the database raises into an error that says what, where, why, and a hint."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        code = getattr(cause, "sqlite_errorcode", 0) & 0xFF  # the low byte is the kind, the rest its details
        kind, what, why, hint = _SQLITE_ERRORS.get(code) or _other(cause)
        raise kind(what, where=place_of(engine), why=why, hint=hint) from error


def _other(cause: BaseException | None) -> tuple[type[AccordError], str, str, str]:
    why = " ".join(str(cause).split())
    return ResourceError, "the database refused", why, "check that it runs, that you may use it, and its URL"
