"""Facts read back: as records, as counts, as means; and the check that they are still what was written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from typing import Any, NamedTuple, TypeVar, cast

from sqlalchemy import ColumnElement, Connection, Select, Table, bindparam, exists, func, select

from accord.errors import DataError
from accord.records import AnnotatorKind, Completion, Ranking, Record, Source, content_id
from accord.store import schema
from accord.store.database import LOOKUP_IDS, chunks
from accord.store.kinds import FACT_KINDS, KIND_OF, FactKind, to_record

# Rows held at a time: a store of millions of judgements is streamed in constant memory.
_FETCH_ROWS = 2_000

_R = TypeVar("_R", bound=Record)


class MeanRating(NamedTuple):
    """The average rating of a completion: mean value, number of ratings."""

    completion_id: str
    mean: float
    n: int


class RankedSource(NamedTuple):
    """A completion's place in a ranking: who wrote it, who ranked it, of which prompt, and the flags of the ranking."""

    ranking: int
    prompt: int
    topic: str
    source: str
    rank: int
    annotator: int
    annotator_kind: AnnotatorKind
    flags: str


class Mismatch(NamedTuple):
    """A row that is not what was once written: its table, the content id it claims, and what is wrong."""

    table: str
    id: str
    why: str


def read_facts(
    connection: Connection, kind: FactKind, where: Mapping[str, Any], *, history: bool = True
) -> Iterator[Record]:
    """Yield the facts of a kind in the order they were added.

    Args:
        where: Wanted values by field, or by ``table.column`` of what a field refers to; None wants any.
        history: Also judgements that were superseded or withdrawn.
    """
    for id_, values in _stored(connection, kind, where, history=history):
        yield _known(kind, id_, values)


def find(connection: Connection, record: type[_R], ids: Iterable[str]) -> dict[str, _R]:
    """Return the facts of a kind with these content ids, by id; those that are not there are left out."""
    kind = KIND_OF[record]
    found: dict[str, _R] = {}
    for some in chunks(dict.fromkeys(ids), LOOKUP_IDS):
        wanted = {"ids": some}
        # Sources are few and completions many: read once a page in place of a join a row.
        sources = _sources(connection.execute(_sources_of_these(), wanted)) if record is Completion else {}
        for id_, values in _by_fact(kind, connection.execute(_these(kind), wanted), sources):
            found[id_] = cast(_R, _known(kind, id_, values))
    return found


def _known(kind: FactKind, id_: str, values: dict[str, Any]) -> Record:
    """Return the record of stored fields under its stored id: only `verify` derives ids again."""
    record = to_record(kind, values)
    # The hash would be a tenth of the time that an export takes.
    vars(record)["id"] = id_
    return record


@cache
def _these(kind: FactKind) -> Select[Any]:
    return _query(kind).select.where(kind.table.c.content_id.in_(bindparam("ids", expanding=True)))


@cache
def _sources_of_these() -> Select[Any]:
    completions = schema.completions.c
    named = select(completions.source_id).where(completions.content_id.in_(bindparam("ids", expanding=True)))
    return _query(KIND_OF[Source]).select.where(schema.sources.c.id.in_(named))


def count(connection: Connection) -> dict[str, int]:
    """Return how many facts of each kind there are, the superseded ones among them."""
    return {kind.table.name: _count(connection, kind.table) for kind in FACT_KINDS}


def flags(connection: Connection) -> frozenset[str]:
    """Return the flags of all judgements of completions, superseded ones among them."""
    found = (select(table.c.flags).distinct() for table in (schema.rankings, schema.ratings, schema.labels))
    return frozenset(flag for query in found for some in connection.scalars(query) for flag in json.loads(some))


def judged_by(connection: Connection) -> dict[str, int]:
    """Return how many judgements that count now there are, by the kind of who made them."""
    found: dict[str, int] = {}
    for kind in (kind for kind in FACT_KINDS if kind.is_judgement):
        who = schema.annotators.c.annotator_kind
        joined = kind.table.join(schema.annotators, schema.annotators.c.id == kind.table.c.annotator_id)
        query = select(who, func.count()).select_from(joined).where(_counts_now(kind.table)).group_by(who)
        for name, number in connection.execute(query):
            found[name] = found.get(name, 0) + number
    return found


def mean_ratings(connection: Connection, scale: tuple[float, float] | None, axis: str) -> Iterator[MeanRating]:
    """Yield the mean rating on an axis by completion, of what counts now. Raises DataError where scales differ."""
    ratings, completions = schema.ratings, schema.completions
    current = _counts_now(ratings) & (ratings.c.axis == axis)
    if scale is None:
        _require_one_scale(connection, current)
    else:
        current &= (ratings.c.low == scale[0]) & (ratings.c.high == scale[1])
    means = (
        select(completions.c.content_id, func.avg(ratings.c.value), func.count())
        .join_from(ratings, completions)
        .where(current)
        .group_by(completions.c.id, completions.c.content_id)
        .order_by(completions.c.id)
    )
    for id_, mean, n in _stream(connection, means):
        yield MeanRating(id_, mean, n)


def ranked_sources(connection: Connection) -> Iterator[RankedSource]:
    """Yield the places in rankings that compare completions of different policies and count now, ranking by ranking."""
    r, i, c, s = schema.rankings, schema.ranking_items, schema.completions, schema.sources
    a, p = schema.annotators, schema.prompts
    written = i.join(c, c.c.id == i.c.completion_id).join(s, s.c.id == c.c.source_id)
    several = (
        select(i.c.ranking_id)
        .select_from(written)
        .where(s.c.origin == "policy")
        .group_by(i.c.ranking_id)
        .having(func.count(s.c.name.distinct()) > 1)
    )
    ranked = written.join(r, r.c.id == i.c.ranking_id).join(a, a.c.id == r.c.annotator_id)
    told = (r.c.id, p.c.id, p.c.topic, s.c.name, i.c.rank, a.c.id, a.c.annotator_kind, r.c.flags)
    rows = (
        select(*told)
        .select_from(ranked.join(p, p.c.id == r.c.prompt_id))
        .where(r.c.id.in_(several), s.c.origin == "policy", _counts_now(r))
        .order_by(r.c.id, i.c.position)
    )
    return map(RankedSource._make, _stream(connection, rows))


def verify(connection: Connection) -> list[Mismatch]:
    """Derive every content id again from what is stored, and report each row that does not fit its own."""
    found = list(_verify_texts(connection))
    for kind in FACT_KINDS:
        found += _verify_kind(connection, kind)
    return found


def _verify_texts(connection: Connection) -> Iterator[Mismatch]:
    texts = schema.texts
    for id_, text in _stream(connection, select(texts.c.content_id, texts.c.text).order_by(texts.c.id)):
        if content_id("text", text) != id_:
            yield Mismatch("texts", id_, "the text is not the one that was stored")


def _verify_kind(connection: Connection, kind: FactKind) -> Iterator[Mismatch]:
    lost = _count(connection, kind.table)
    for id_, values in _stored(connection, kind, {}, history=True):
        lost -= 1
        if why := _why_not(kind, id_, values):
            yield Mismatch(kind.table.name, id_, why)
    if lost:
        yield Mismatch(kind.table.name, "", f"{lost} rows refer to something that is missing")


def _why_not(kind: FactKind, id_: str, values: dict[str, Any]) -> str:
    try:
        record = to_record(kind, values)
    except (DataError, ValueError, TypeError) as error:
        return f"its values make no {kind.record.kind}: {error}"
    return "" if record.id == id_ else "its values are not those that were stored"


@dataclass
class _Query:
    """The select of one kind of fact: content id first, then its fields; and what can be asked of it, by name."""

    select: Select[Any]
    fields: list[str] = field(default_factory=list)
    names: dict[str, ColumnElement[Any]] = field(default_factory=dict)


@cache
def _query(kind: FactKind) -> _Query:
    table = kind.table
    query = _Query(select(table.c.content_id).select_from(table).order_by(table.c.id))
    for link in kind.links:
        column: ColumnElement[Any] = table.c[link.column]
        if link.target is not None:
            other = link.target.alias(link.column.removesuffix("_id"))
            query.select = query.select.join(other, other.c.id == column, isouter=bool(table.c[link.column].nullable))
            query.names |= {f"{link.target.name}.{c.name}": c for c in other.c}
            column = other.c.text if link.target is schema.texts else other.c.content_id
        _show(query, link.field, column)
    if table is schema.rankings:
        _add_items(query)
    return query


def _show(query: _Query, name: str, column: ColumnElement[Any]) -> None:
    query.select = query.select.add_columns(column)
    query.fields.append(name)
    query.names[name] = column


def _add_items(query: _Query) -> None:
    """Select one row an item instead of one row a ranking, in the order shown."""
    items, completions = schema.ranking_items, schema.completions
    query.select = (
        query.select.join(items, items.c.ranking_id == schema.rankings.c.id)
        .join(completions, completions.c.id == items.c.completion_id)
        .order_by(items.c.position)
    )
    _show(query, "completion_ids", completions.c.content_id)
    _show(query, "ranks", items.c.rank)
    _show(query, "unacceptable", items.c.unacceptable)


def _stored(
    connection: Connection, kind: FactKind, where: Mapping[str, Any], *, history: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield content id and fields of each fact, as they are stored."""
    query = _query(kind)
    wanted = [query.names[name] == value for name, value in where.items() if value is not None]
    if kind.is_judgement and not history:
        wanted.append(_counts_now(kind.table))
    sources = _sources(connection.execute(_query(KIND_OF[Source]).select)) if kind.record is Completion else {}
    return _by_fact(kind, _stream(connection, query.select.where(*wanted)), sources)


def _by_fact(
    kind: FactKind, rows: Iterable[Any], sources: Mapping[str, Record]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield rows of the kind's query as content id and fields of each fact."""
    fields = _query(kind).fields
    for id_, some in groupby(rows, key=lambda row: row[0]):
        values = _values(fields, list(some), ranking=kind.record is Ranking)
        if "source" in values:
            values["source"] = sources[values["source"]]
        yield id_, values


def _values(names: list[str], rows: list[Any], *, ranking: bool) -> dict[str, Any]:
    values: dict[str, Any] = dict(zip(names, rows[0][1:], strict=True))
    if ranking:
        *_, ids, values["ranks"], unacceptable = zip(*rows, strict=True)
        values["completion_ids"] = ids
        values["unacceptable"] = tuple(id_ for id_, bad in zip(ids, unacceptable, strict=True) if bad)
    return values


def _sources(rows: Iterable[Any]) -> dict[str, Record]:
    kind = KIND_OF[Source]
    return {id_: to_record(kind, values) for id_, values in _by_fact(kind, rows, {})}


def _counts_now(table: Table) -> ColumnElement[bool]:
    """Whether a judgement counts now: nothing supersedes it, and it was not withdrawn."""
    later, withdrawn = table.alias("later"), schema.withdrawals
    superseded = exists().where(later.c.supersedes_id == table.c.id)
    return ~superseded & ~exists().where(withdrawn.c.judgement_id == table.c.content_id)


def _require_one_scale(connection: Connection, current: ColumnElement[bool]) -> None:
    ratings = schema.ratings
    scales = connection.execute(select(ratings.c.low, ratings.c.high).where(current).distinct()).all()
    if len(scales) > 1:
        shown = ", ".join(f"{low:g}..{high:g}" for low, high in sorted(map(tuple, scales)))
        raise DataError(
            f"the ratings stand on {len(scales)} scales: {shown}",
            why="a mean over different scales means nothing",
            hint="ask for one of them: scale=(low, high)",
        )


def _count(connection: Connection, table: Table) -> int:
    return connection.execute(select(func.count()).select_from(table)).scalar_one()


def _stream(connection: Connection, statement: Select[Any]) -> Iterator[Any]:
    with connection.execute(statement, execution_options={"yield_per": _FETCH_ROWS}) as rows:  # a reader may stop early
        yield from rows
