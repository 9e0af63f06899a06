"""Facts added: one transaction that stores all of a batch or, naming the record at fault, nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, cast

from sqlalchemy import Connection, Insert, Select, Table, bindparam, func, select, text
from sqlalchemy.dialects import postgresql, sqlite

from accord.errors import DataError
from accord.records import Completion, Judgement, Ranking, Record, Source, Withdrawal, content_id
from accord.store import schema
from accord.store.database import LOOKUP_IDS, chunks, is_sqlite
from accord.store.kinds import FACT_KINDS, KIND_OF, FactKind, to_column

# Rows of one executemany: large imports stay in bounded memory, and calls are few.
_INSERT_ROWS = 10_000

Facts = Mapping[FactKind, Sequence[Record]]


def prepare(records: Iterable[Record]) -> Facts:
    """Sort records by kind and compute their ids: all that can be done before the database is held."""
    facts: dict[FactKind, list[Record]] = {kind: [] for kind in FACT_KINDS}
    for record in records:
        kind = KIND_OF.get(type(record))
        if kind is None:
            raise DataError(f"{record!r:.80} is no fact", hint="add prompts, completions, annotators and judgements")
        _ = record.id
        facts[kind].append(record)
    return {kind: facts[kind] for kind in FACT_KINDS if facts[kind]}


def add_facts(connection: Connection, records: Iterable[Record]) -> int:
    """Add facts inside a request of `Store.write`: they are stored, or not, with whatever else it does."""
    return write(connection, prepare(records))


def write(connection: Connection, facts: Facts) -> int:
    """Insert what is not there yet and return how many facts that were. Sources come along with their completions."""
    batch = _Batch(connection)
    batch.add_texts(facts)
    new = 0
    for kind, records in facts.items():
        if kind.record is Completion:
            batch.add_sources(cast(Sequence[Completion], records))
        new += batch.add_judgements(kind, records) if kind.is_judgement else batch.add(kind, records)
        if kind.record is Withdrawal:
            batch.check_withdrawn(cast(Sequence[Withdrawal], records))
    if new >= _INSERT_ROWS and not is_sqlite(connection):
        # Until its statistics know of many new rows, PostgreSQL joins them as if there were few: 50 times slower.
        connection.execute(text(f"ANALYZE {', '.join(schema.metadata.tables)}"))
    return new


class _Batch:
    """The inserts of one transaction. ``keys`` knows the integer key of every content id (or text) met so far."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.text_keys: dict[str, int] = {}
        self.keys: defaultdict[str, dict[str, int]] = defaultdict(dict)

    def add_texts(self, facts: Facts) -> None:
        named = ((name, records) for kind, records in facts.items() for name in kind.text_fields())
        texts = dict.fromkeys(getattr(record, name) for name, records in named for record in records)
        ids = {value: content_id("text", value) for value in texts}
        self._insert(schema.texts, ({"content_id": id_, "text": value} for value, id_ in ids.items()))
        keys = self._find(schema.texts, ids.values())
        self.text_keys = {value: keys[id_] for value, id_ in ids.items()}

    def add_sources(self, completions: Sequence[Completion]) -> None:
        # Sources stand in completions, not beside them: nobody adds them by hand.
        sources = {completion.source.id: completion.source for completion in completions}
        self.add(KIND_OF[Source], list(sources.values()))

    def add(self, kind: FactKind, records: Sequence[Record]) -> int:
        """Insert records that refer to no other of their own kind in this batch."""
        for name, target in kind.targets():
            self._find(target, (_named(getattr(record, name)) for record in records))
        return self._insert(kind.table, (self._row(kind, record) for record in records))

    def add_judgements(self, kind: FactKind, records: Sequence[Record]) -> int:
        judgements = cast(Sequence[Judgement], records)
        last = self.connection.execute(_last_key(kind.table)).scalar() or 0
        new = sum(self._add_wave(kind, wave) for wave in _waves(judgements))
        if kind.table is schema.rankings:
            self._add_items(cast(Sequence[Ranking], records), last)
        return new

    def _add_wave(self, kind: FactKind, wave: Sequence[Judgement]) -> int:
        new = self.add(kind, wave)
        corrections = [judgement for judgement in wave if judgement.supersedes is not None]
        keys = self._find(kind.table, (judgement.id for judgement in corrections))
        for judgement in corrections:
            if judgement.id not in keys:  # the database lets only one row supersede another
                raise _refusal(
                    judgement,
                    f"another {judgement.kind} already supersedes {judgement.supersedes}",
                    "supersede that newer one instead",
                )
        return new

    def _add_items(self, rankings: Sequence[Ranking], last: int) -> None:
        keys = self._find(schema.rankings, (ranking.id for ranking in rankings))
        completions = self._find(schema.completions, (id_ for r in rankings for id_ in r.completion_ids))
        self._insert(schema.ranking_items, (row for r in rankings for row in _item_rows(r, keys[r.id], completions)))
        self._check_prompts({ranking.id: ranking for ranking in rankings}, last)

    def _check_prompts(self, rankings: Mapping[str, Ranking], last: int) -> None:
        """Check that rankings added after key ``last`` rank completions of one prompt."""
        found = self.connection.execute(_STRANGER, {"last": last}).first()
        if found is not None:
            raise _refusal(rankings[found[0]], f"completion {found[1]} answers another prompt")

    def check_withdrawn(self, withdrawals: Sequence[Withdrawal]) -> None:
        """Check that what is taken back is there; it may be a judgement of any kind."""
        wanted = {withdrawal.judgement_id: withdrawal for withdrawal in withdrawals}
        found = {id_ for kind in FACT_KINDS if kind.is_judgement for id_ in self._find(kind.table, wanted)}
        for id_ in wanted.keys() - found:
            raise _refusal(wanted[id_], f"there is no judgement {id_!r} to withdraw")

    def _row(self, kind: FactKind, record: Record) -> dict[str, Any]:
        row: dict[str, Any] = {"content_id": record.id}
        for link in kind.links:
            value = getattr(record, link.field)
            if link.target is None:
                row[link.column] = to_column(link.field, value)
            elif link.target is schema.texts:
                row[link.column] = self.text_keys[value]
            else:
                row[link.column] = _key(record, link.field, _named(value), self.keys[link.target.name])
        return row

    def _insert(self, table: Table, rows: Iterable[dict[str, Any]]) -> int:
        """Insert the rows that are not there yet, and return how many those were."""
        statement = _insert_new(table, is_sqlite(self.connection))
        return sum(self.connection.execute(statement, chunk).rowcount for chunk in chunks(rows, _INSERT_ROWS))

    def _find(self, table: Table, ids: Iterable[str | None]) -> Mapping[str, int]:
        """Return the keys of a table by content id, with those of ``ids`` looked up where they exist."""
        known = self.keys[table.name]
        wanted = (id_ for id_ in dict.fromkeys(ids) if id_ is not None and id_ not in known)
        for chunk in chunks(wanted, LOOKUP_IDS):
            known.update((row[0], row[1]) for row in self.connection.execute(_keys_of(table), {"ids": chunk}))
        return known


def _named(value: Record | str | None) -> str | None:
    """Return the content id that a referring field names."""
    return value.id if isinstance(value, Record) else value


def _key(record: Record, name: str, named: str | None, keys: Mapping[str, int]) -> int | None:
    key = None if named is None else keys.get(named)
    if key is None and named is not None:
        raise _refusal(record, f"{name} {named!r} is not in the store", "add that first, or in the same call")
    return key


def _refusal(record: Record, what: str, hint: str = "") -> DataError:
    return DataError(what, where=f"{record.kind} {record.id}", why="nothing of this batch was stored", hint=hint)


def _item_rows(ranking: Ranking, key: int, completions: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    for position, (id_, rank) in enumerate(zip(ranking.completion_ids, ranking.ranks, strict=True)):
        completion_key = _key(ranking, "completion", id_, completions)
        item = {"ranking_id": key, "position": position, "completion_id": completion_key, "rank": rank}
        yield item | {"unacceptable": id_ in ranking.unacceptable}


# Statements that are built once: building one and looking up what it was compiled to takes longer than running it.


@cache
def _insert_new(table: Table, for_sqlite: bool) -> Insert:
    insert = sqlite.insert(table) if for_sqlite else postgresql.insert(table)
    return insert.on_conflict_do_nothing().execution_options(preserve_rowcount=True)


@cache
def _keys_of(table: Table) -> Select[Any]:
    return select(table.c.content_id, table.c.id).where(table.c.content_id.in_(bindparam("ids", expanding=True)))


@cache
def _last_key(table: Table) -> Select[Any]:
    return select(func.max(table.c.id))


# A ranking added after key ``last`` with a completion of another prompt.
_STRANGER = (
    select(schema.rankings.c.content_id, schema.completions.c.content_id)
    .select_from(schema.rankings)
    .join(schema.ranking_items, schema.ranking_items.c.ranking_id == schema.rankings.c.id)
    .join(schema.completions, schema.completions.c.id == schema.ranking_items.c.completion_id)
    .where(
        schema.rankings.c.id > bindparam("last"),
        schema.completions.c.prompt_id != schema.rankings.c.prompt_id,
    )
    .limit(1)
)


def _waves(judgements: Sequence[Judgement]) -> Iterator[Sequence[Judgement]]:
    """Yield each judgement after the one it supersedes, in as few rounds as that takes."""
    waiting = list(judgements)
    # The database knows what is superseded by its key, so that one must be in it first.
    while waiting:
        ids = {judgement.id for judgement in waiting}
        yield [judgement for judgement in waiting if judgement.supersedes not in ids]
        waiting = [judgement for judgement in waiting if judgement.supersedes in ids]
