"""The tables of the newest schema, as SQLAlchemy sees them. How they come to be stands in ``migrations``.

Every table has a small integer key for joins and the ``content_id`` of the fact, which is its identity. Texts are
stored once, whoever refers to them. No row is ever changed or deleted: triggers of the database refuse it.
"""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    false,
)

#: Revision of the newest migration. A database that names a later one was written by a newer Accord.
SCHEMA_VERSION = "0007"
VERSION_TABLE = "accord_version"

# What a database refuses, and the character that stands for it, which must itself be told apart.
_UNSTORABLE = re.compile("[\x00\x1a\ud800-\udfff]")
_ESCAPED = re.compile("\x1a([0-9a-f]{4})")


class AnyText(TypeDecorator[str]):
    """The type of a column that holds any Python string.

    PostgreSQL refuses NUL and both databases refuse lone surrogates, yet real files hold them.
    Such characters stand as U+001A (SUBSTITUTE) and four hexadecimal digits, and so does U+001A itself. All other
    text is stored as it is, so that plain SQL reads it.
    """

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        if value is None or not _UNSTORABLE.search(value):
            return value
        return _UNSTORABLE.sub(lambda found: f"\x1a{ord(found[0]):04x}", value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        if value is None or "\x1a" not in value:
            return value
        return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), value)


metadata = MetaData()


def _table(name: str, *columns: Any) -> Table:
    # SQLite gives keys on its own only to a column of type INTEGER.
    key = Column("id", BigInteger().with_variant(Integer(), "sqlite"), Identity(always=True), primary_key=True)
    return Table(name, metadata, key, Column("content_id", Text, nullable=False, unique=True), *columns)


def _text(name: str) -> Column[str]:
    return Column(name, AnyText, nullable=False)


def _later(name: str, default: str) -> Column[str]:
    """Return a column of text that older facts lack."""
    return Column(name, AnyText, nullable=False, server_default=default)


def _refers(name: str, table: str, *, index: bool = False, nullable: bool = False) -> Column[int]:
    return Column(name, BigInteger, ForeignKey(f"{table}.id"), index=index, nullable=nullable)


def _judgements(name: str, *columns: Any) -> Table:
    table = _table(
        name,
        _refers("annotator_id", "annotators"),
        _text("created_at"),
        Column("seconds", Double),
        _refers("guideline_id", "texts"),
        _refers("note_id", "texts"),
        _text("flags"),
        _refers("supersedes_id", name, nullable=True),
        *columns,
    )
    later = table.c.supersedes_id
    # Partial and unique: one judgement supersedes another at most, and the many that supersede none cost nothing.
    superseded = later.is_not(None)
    Index(f"ix_{name}_supersedes_id", later, unique=True, sqlite_where=superseded, postgresql_where=superseded)
    return table


# Each text once: prompts, completions, notes and guidelines refer to it, and the many that are alike share it.
texts = _table("texts", _text("text"))
sources = _table("sources", _text("origin"), _text("name"), _text("version"), _text("sampling"))
annotators = _table("annotators", _text("name"), _text("annotator_kind"), _text("note"))
prompts = _table("prompts", _refers("text_id", "texts"), _text("topic"), _text("meta"), _later("form", "text"))
completions = _table(
    "completions",
    _refers("prompt_id", "prompts", index=True),
    _refers("text_id", "texts"),
    _refers("source_id", "sources"),
    _text("meta"),
)
rankings = _judgements(
    "rankings", _refers("prompt_id", "prompts", index=True), Column("strength", Text), _later("axis", "")
)
ranking_items = Table(
    "ranking_items",
    metadata,
    Column("ranking_id", BigInteger, ForeignKey("rankings.id"), primary_key=True),
    Column("position", Integer, primary_key=True),
    _refers("completion_id", "completions", index=True),
    Column("rank", Integer, nullable=False),
    Column("unacceptable", Boolean, nullable=False, server_default=false()),
    UniqueConstraint("ranking_id", "completion_id"),
)
ratings = _judgements(
    "ratings",
    _refers("completion_id", "completions", index=True),
    Column("value", Double, nullable=False),
    Column("low", Double, nullable=False),
    Column("high", Double, nullable=False),
    _later("axis", ""),
)
labels = _judgements(
    "labels",
    _refers("completion_id", "completions", index=True),
    Column("good", Boolean, nullable=False),
    _later("axis", ""),
)
demonstrations = _judgements("demonstrations", _refers("prompt_id", "prompts", index=True), _refers("text_id", "texts"))
remarks = _judgements("remarks", _refers("completion_id", "completions", index=True))
withdrawals = _table(
    "withdrawals",
    _refers("annotator_id", "annotators"),
    Column("judgement_id", Text, nullable=False, index=True),
    _text("created_at"),
    _text("note"),
)
