"""The table of each kind of fact, and how columns and fields correspond. Derived from the foreign keys alone.

- A column that refers to ``texts`` holds a text field: ``guideline_id`` is the field ``guideline``.
- A column that refers to another table holds a content id: ``prompt_id``, ``source_id`` (field ``source``),
  ``supersedes_id`` (field ``supersedes``).
- Any other column holds the field of its name; ``meta`` and ``flags`` as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import Table

from accord.records import (
    Annotator,
    Completion,
    Demonstration,
    Judgement,
    Label,
    Prompt,
    Ranking,
    Rating,
    Record,
    Remark,
    Source,
    Withdrawal,
)
from accord.store import schema

# Lists and mappings that are never searched for: no tables of their own.
_JSON = ("meta", "flags")
_encode = json.JSONEncoder(ensure_ascii=False, sort_keys=True).encode


@dataclass(frozen=True)
class Link:
    """A column, the field of the record it stands for, and the table it refers to (None: it holds the value)."""

    column: str
    field: str
    target: Table | None


@dataclass(frozen=True, eq=False)
class FactKind:
    """One kind of fact: its record, its table, and the links between them. ``id`` and items of rankings are apart."""

    record: type[Record]
    table: Table
    links: tuple[Link, ...]

    @property
    def is_judgement(self) -> bool:
        return issubclass(self.record, Judgement)

    def targets(self) -> Iterable[tuple[str, Table]]:
        """Return the fields that name other facts, with the tables of those."""
        return ((link.field, link.target) for link in self.links if link.target not in (None, schema.texts))

    def text_fields(self) -> tuple[str, ...]:
        return tuple(link.field for link in self.links if link.target is schema.texts)


def _kind(record: type[Record], table: Table) -> FactKind:
    names = {f.name for f in fields(record)}

    def link(column: str, target: Table | None) -> Link:
        return Link(column, column if column in names else column.removesuffix("_id"), target)

    targets = {c.name: next((key.column.table for key in c.foreign_keys), None) for c in table.columns}
    return FactKind(record, table, tuple(link(c, t) for c, t in targets.items() if c not in ("id", "content_id")))


#: Every kind of fact, each before those that may refer to it.
FACT_KINDS = (
    _kind(Source, schema.sources),
    _kind(Annotator, schema.annotators),
    _kind(Prompt, schema.prompts),
    _kind(Completion, schema.completions),
    _kind(Ranking, schema.rankings),
    _kind(Rating, schema.ratings),
    _kind(Label, schema.labels),
    _kind(Demonstration, schema.demonstrations),
    _kind(Remark, schema.remarks),
    _kind(Withdrawal, schema.withdrawals),
)
KIND_OF: Mapping[type[Record], FactKind] = {kind.record: kind for kind in FACT_KINDS}


def to_column(field: str, value: Any) -> Any:
    """Return the stored form of a field that refers to nothing."""
    return _encode(value) if field in _JSON else value


def to_record(kind: FactKind, values: dict[str, Any]) -> Record:
    """Return the record of stored fields. Raises DataError or ValueError where they make none."""
    for name in _JSON:
        if name in values:
            values[name] = json.loads(values[name])
    return kind.record(**values)
