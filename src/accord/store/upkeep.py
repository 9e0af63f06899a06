"""A SQLite store looked at, copied while others write to it, and mended: what can be read of a damaged one is kept."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Engine

from accord.errors import DataError, ResourceError, UsageError
from accord.files import create_private, partial_name, remove, writing
from accord.store.database import explained, is_sqlite, make_engine, place_of
from accord.store.schema import SCHEMA_VERSION, VERSION_TABLE
from accord.store.store import Store

MOST_TOLD = 5  # problems that a message names
LAST_ROW = 2**61  # beyond any row's number


@dataclass(frozen=True)
class Repaired:
    """What became of a store.

    Attributes:
        place: The store's file.
        problems: What was wrong with it; without any nothing was done.
        damaged: The file as it was, beside the store; None where nothing was done.
        kept: Rows that stand in it now, by table.
        unreadable: Rows that could not be read, by table: at most so many, for numbers may have gaps.
        dangling: Rows that were left out as what they refer to is lost.
        changed: Facts whose content is not what their name says, `Store.verify`; they are kept.
    """

    place: Path
    problems: list[str]
    damaged: Path | None = None
    kept: dict[str, int] = field(default_factory=dict)
    unreadable: dict[str, int] = field(default_factory=dict)
    dangling: dict[str, int] = field(default_factory=dict)
    changed: int = 0


def problems_of(place: str | Path, *, thorough: bool = False) -> list[str]:
    """Return what is wrong with a store's file; none for a sound one, and for a database behind a URL.

    ``thorough`` looks into every index and at every reference too, which takes several times as long.
    """
    engine = _engine(place)
    if engine is None or not Path(place_of(engine)).exists():
        return []
    with closing(sqlite3.connect(place_of(engine))) as connection:
        return _problems(connection, thorough)


def require_sound(place: str | Path) -> None:
    """Refuse a store that is damaged, before anything is written into it. Raises DataError."""
    if problems := problems_of(place):
        raise DataError(
            "the store is damaged",
            where=str(place),
            why="; ".join(problems[:MOST_TOLD]),
            hint="run `accord doctor --repair`, or put a copy of `accord backup` in its place",
        )


def _problems(connection: sqlite3.Connection, thorough: bool) -> list[str]:
    check = "integrity_check" if thorough else "quick_check"
    try:
        said = [str(row[0]) for row in connection.execute(f"PRAGMA {check}({10 * MOST_TOLD})")]
        dangling = list(connection.execute("PRAGMA foreign_key_check")) if thorough else []
    except sqlite3.DatabaseError as error:
        return [str(error)]
    lost = Counter(f"rows of {row[0]} refer to rows of {row[2]} that are missing" for row in dangling)
    return [*([] if said == ["ok"] else said), *(f"{count} {what}" for what, count in lost.items())]


# ---- a copy ----------------------------------------------------------------------------------------------------------


def back_up(place: str | Path, target: Path) -> Path:
    """Write a whole copy of a store to a file, while others may go on writing to it. Only its owner can read it.

    Raises:
        UsageError: The store is a database behind a URL, or ``target`` is there already.
        DataError: The store is not there, or damaged: a copy of it would be no help.
    """
    engine = _engine(place)
    if engine is None:
        raise UsageError("this store is no file", where="the store", hint="use the database's own: pg_dump --format=c")
    if not Path(place_of(engine)).is_file():
        raise DataError("there is no such store", where=str(place), hint="run `accord init`, or name the project")
    if target.exists():
        raise UsageError("this file is there already", where=str(target), hint="choose another -o")
    require_sound(place)
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = partial_name(target)
        create_private(aside)
    try:
        with explained(engine), closing(engine.raw_connection()) as connection:
            assert connection.driver_connection is not None
            connection.driver_connection.execute("VACUUM INTO ?", (str(aside),))
        require_sound(aside)
        with writing(target):
            aside.replace(target)
    finally:
        remove(aside)
        engine.dispose()
    return target


# ---- a repair --------------------------------------------------------------------------------------------------------


def repair(place: str | Path) -> Repaired:
    """Mend a damaged store: its indexes alone, or else all that can be read of it in a new file.

    The file as it was stays beside it.

    Raises:
        UsageError: The store is a database behind a URL.
        DataError: It is of another version of Accord, so that what is left cannot be told apart.
        ResourceError: Somebody has it open.
    """
    engine = _engine(place)
    if engine is None:
        raise UsageError("this store is no file", where="the store", hint="its database has tools of its own")
    path = Path(place_of(engine))
    problems = problems_of(path, thorough=True)
    if not problems:
        return Repaired(path, [])
    _require_alone(path)
    damaged = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}")
    with writing(damaged):
        for end in ("", "-wal"):
            if (source := path.with_name(path.name + end)).exists():
                create_private(damaged.with_name(damaged.name + end))
                shutil.copyfile(source, damaged.with_name(damaged.name + end))
    if _reindexed(path):
        return Repaired(path, problems, damaged, _counts(path))
    return _rebuilt(path, problems, damaged)


def _engine(place: str | Path) -> Engine | None:
    engine = make_engine(place)
    return engine if is_sqlite(engine) else None


def _require_alone(path: Path) -> None:
    """Raise ResourceError where another process has the file open: what it writes later would be lost."""
    with closing(sqlite3.connect(path, timeout=1.0)) as connection:
        try:
            connection.execute("PRAGMA journal_mode=DELETE").close()  # works for the only one alone
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise ResourceError(
                    "the store is in use", where=str(path), hint="end `accord label` and `accord run` first"
                ) from error


def _reindexed(path: Path) -> bool:
    """Whether the damage was in indexes alone, which are now made anew."""
    with closing(sqlite3.connect(path)) as connection, contextlib.suppress(sqlite3.DatabaseError):
        connection.execute("REINDEX")
        connection.commit()
        return not _problems(connection, thorough=True)
    return False


def _rebuilt(path: Path, problems: list[str], damaged: Path) -> Repaired:
    new = partial_name(path)
    try:
        Store.open(new).close()
        with closing(sqlite3.connect(path)) as old, closing(sqlite3.connect(new, isolation_level=None)) as made:
            # A text that is no UTF-8 any more is kept as far as it is; `Store.verify` then finds it.
            old.text_factory = lambda text: text.decode("utf-8", "replace")
            _require_version(old, path)
            unreadable = {table: _copy(old, made, table) for table in _tables(made)}
            nothing = not made.total_changes
            dangling = _without_dangling(made)
            made.execute("PRAGMA journal_mode=DELETE").close()
        with Store.open(new) as store:
            changed = len(store.verify())
        kept = _counts(new)
        if nothing:
            raise DataError(
                "nothing of the store can be read",
                where=str(path),
                why="; ".join(problems[:MOST_TOLD]),
                hint="put a copy of `accord backup` in its place; the file is as it was",
            )
        with writing(path):
            new.replace(path)
            for end in ("-wal", "-shm"):  # of the old file: nothing of the new one stands in them
                remove(path.with_name(path.name + end))
    finally:
        for end in ("", "-wal", "-shm"):
            remove(new.with_name(new.name + end))
    return Repaired(path, problems, damaged, kept, {t: n for t, n in unreadable.items() if n}, dangling, changed)


def _require_version(old: sqlite3.Connection, path: Path) -> None:
    """Raise DataError for a store of which is known that its tables are other ones."""
    version = SCHEMA_VERSION
    with contextlib.suppress(sqlite3.DatabaseError):
        version = old.execute(f"SELECT version_num FROM {VERSION_TABLE}").fetchone()[0]
    if version != SCHEMA_VERSION:
        raise DataError(
            f"the damaged store has schema {version}, and this Accord makes {SCHEMA_VERSION}",
            where=str(path),
            hint="repair it with the Accord that wrote it, or put a copy in its place",
        )


def _tables(connection: sqlite3.Connection) -> list[str]:
    names = connection.execute(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite~_%' ESCAPE '~'"
    )
    return [name for (name,) in names.fetchall() if name != VERSION_TABLE]


def _counts(path: Path) -> dict[str, int]:
    with closing(sqlite3.connect(path)) as connection:
        return {t: connection.execute(f'SELECT count(*) FROM "{t}"').fetchone()[0] for t in _tables(connection)}


def _copy(old: sqlite3.Connection, made: sqlite3.Connection, table: str) -> int:
    """Copy what can be read of a table, and return how many rows may be lost."""
    columns, keys = _columns(made, table)
    listed = ", ".join(f'"{name}"' for name in columns)
    # In the order of the tree that holds the rows, by whole numbers: beyond damage it is entered at a higher one.
    number = keys[0] if "rowid" not in columns and keys else "rowid"
    query = f'SELECT "{number}", {listed} FROM "{table}" WHERE "{number}" >= ? ORDER BY {", ".join(keys) or "rowid"}'
    gaps: list[int] = []
    insert = f'INSERT OR IGNORE INTO "{table}" ({listed}) VALUES ({", ".join("?" * len(columns))})'
    made.execute("PRAGMA foreign_keys=OFF").close()
    made.execute("BEGIN").close()
    made.executemany(insert, _salvaged(old, query, gaps)).close()
    made.execute("COMMIT").close()
    return sum(gaps)


def _columns(connection: sqlite3.Connection, table: str) -> tuple[list[str], list[str]]:
    """Return a table's columns, the rows' numbers among them where it has any; and else the columns of its key."""
    told = connection.execute(f'PRAGMA table_info("{table}")').fetchall()
    columns = [name for _, name, *_ in told]
    try:
        connection.execute(f'SELECT rowid FROM "{table}" LIMIT 1').close()
    except sqlite3.OperationalError:  # made WITHOUT ROWID
        return columns, [name for _, name, *_, place in sorted(told, key=lambda one: one[-1]) if place]
    # A whole number that is the key is the row's number by another name.
    return ["rowid", *columns], []


def _salvaged(old: sqlite3.Connection, query: str, gaps: list[int]) -> Iterator[tuple[object, ...]]:
    """Yield the rows of a table that can be read, in order, and note how many numbers lie in each gap between."""
    first = 1
    while True:
        try:
            for number, *row in old.execute(query, (first,)):
                first = number + 1
                yield tuple(row)
            return
        except sqlite3.DatabaseError:
            after = _readable_from(old, f"{query} LIMIT 1", first)
        if after is None:
            gaps.append(1)  # and whatever came behind it
            return
        gaps.append(after - first)
        first = after


def _readable_from(old: sqlite3.Connection, query: str, bad: int) -> int | None:
    """Return the least number above ``bad``, where a table cannot be read, from which it can; None where it cannot.

    Steps that double reach beyond the damage, halves go back to its end.
    """

    def reads(number: int) -> bool:
        try:
            old.execute(query, (number,)).fetchone()
        except sqlite3.DatabaseError:
            return False
        return True

    step = 1
    while not reads(bad + step):
        step *= 2
        if step > LAST_ROW:
            return None
    bad, good = bad + step // 2, bad + step
    while good - bad > 1:
        middle = (bad + good) // 2
        bad, good = (bad, middle) if reads(middle) else (middle, good)
    return good


def _without_dangling(made: sqlite3.Connection) -> dict[str, int]:
    """Leave out rows that refer to lost ones, and theirs in turn; how many there were, by table."""
    triggers = made.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:  # they refuse to delete facts
        made.execute(f'DROP TRIGGER "{name}"').close()
    left_out = Counter[str]()
    while found := Counter({table: _leave_out(made, table) for table in _tables(made)}) + Counter():
        left_out.update(found)
    for _, sql in triggers:
        made.execute(sql).close()
    return dict(left_out)


def _leave_out(made: sqlite3.Connection, table: str) -> int:
    """Delete a table's rows that refer to rows that are not there; how many there were."""
    count = 0
    for _, _, parent, mine, theirs, *_ in made.execute(f'PRAGMA foreign_key_list("{table}")').fetchall():
        there = f'SELECT 1 FROM "{parent}" WHERE "{parent}"."{theirs or "id"}" = "{table}"."{mine}"'
        lost = f'"{mine}" IS NOT NULL AND NOT EXISTS ({there})'
        count += made.execute(f'DELETE FROM "{table}" WHERE {lost}').rowcount
    return count
