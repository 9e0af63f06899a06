"""The way of a database to the newest schema: from nothing, or from an older one; a newer one is refused."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, select, table, text

from accord.errors import DataError
from accord.files import create_private, partial_name
from accord.store import schema
from accord.store.database import is_sqlite, place_of, snapshot, transaction

MIGRATIONS = Path(__file__).with_name("migrations")


def bring_up_to_date(engine: Engine) -> None:
    """Create or migrate the schema, in one transaction. A SQLite file that holds facts is first copied beside itself.

    Raises:
        DataError: The database belongs to a newer Accord, or to another program.
    """
    # By reading first: opening a store that is up to date waits for no writer.
    with snapshot(engine) as connection:
        version = _version(connection)
    if version == schema.SCHEMA_VERSION:
        return
    with transaction(engine) as connection:
        version = _version(connection)  # another process may have been faster
        if version is not None and version < schema.SCHEMA_VERSION and is_sqlite(engine) and _holds_facts(connection):
            _back_up(Path(place_of(engine)), version)
        if version != schema.SCHEMA_VERSION:
            _upgrade(connection)


def _version(connection: Connection) -> str | None:
    """Return the schema's version, None for an empty database. Refuses what this code does not know."""
    names = inspect(connection).get_table_names()
    if not names:
        return None
    where = place_of(connection.engine)
    if schema.VERSION_TABLE not in names:
        raise DataError(
            f"this database is not a store of Accord; it holds {', '.join(sorted(names)[:3])}",
            where=where,
            hint="give another file, or an empty database",
        )
    version = connection.execute(text(f"SELECT version_num FROM {schema.VERSION_TABLE}")).scalar()
    if version is None or version > schema.SCHEMA_VERSION:
        raise DataError(
            f"the store has schema {version}, and this Accord knows none after {schema.SCHEMA_VERSION}",
            where=where,
            why="a newer Accord has written it",
            hint="run `pip install --upgrade accord`",
        )
    return str(version)


def _holds_facts(connection: Connection) -> bool:
    names = set(inspect(connection).get_table_names()) - {schema.VERSION_TABLE}
    return any(connection.execute(select(text("1")).select_from(table(name)).limit(1)).first() for name in names)


def _back_up(path: Path, version: str) -> None:
    """Write a whole copy beside the file, or none. The caller holds the write lock, so nothing is missed."""
    target = path.with_name(f"{path.name}.schema-{version}.bak")
    # Beside it and then renamed: a copy that was cut off must not look like one.
    aside = partial_name(target)
    try:
        create_private(aside)
        with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(aside)) as copy:
            source.backup(copy)
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


def _upgrade(connection: Connection) -> None:
    # Alembic takes a tenth of a second to import, and only new and old databases need it.
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    # A percent sign in a path is ConfigParser's own.
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    command.upgrade(config, "head")
