"""The store: the one way to the facts on disk."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from sqlalchemy import Connection, Engine

from accord.errors import UsageError
from accord.files import create_private
from accord.records import (
    Annotator,
    AnnotatorKind,
    Completion,
    Demonstration,
    Label,
    Prompt,
    Ranking,
    Rating,
    Record,
    Remark,
    Source,
    SourceKind,
    Withdrawal,
)
from accord.store import reading, writing
from accord.store.database import address_of, explained, is_sqlite, make_engine, place_of, snapshot
from accord.store.kinds import KIND_OF
from accord.store.migrate import bring_up_to_date
from accord.store.reading import MeanRating, Mismatch, RankedSource
from accord.store.writer import Writer

_R = TypeVar("_R", bound=Record)
_T = TypeVar("_T")


class Store:
    """Append-only facts in SQLite or PostgreSQL. Safe to share between threads; several processes may open one store.

    Readers are iterators over one snapshot of the store, in the order the facts were added; a fact comes back equal
    to the one that was added. Readers of judgements leave out what a later one supersedes or
    a withdrawal takes back, unless ``history=True``.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # SQLite has one writer at a time; waiting for it here is fairer and quicker than polling the file's lock.
        self._writer = Writer(engine)
        self._closed = False

    @classmethod
    def open(cls, place: str | Path) -> Self:
        """Open or create the store in a file, or in a database by URL (``postgresql://user:password@host/name``).

        An older schema is migrated; a SQLite file that holds facts is first copied to ``<file>.schema-<version>.bak``.

        Raises:
            UsageError: Neither a path nor a known URL.
            DataError: Not a database, not a store, damaged, or written by a newer Accord.
            ResourceError: Locked, read-only, full, unreachable, or psycopg is missing.
        """
        engine = make_engine(place)
        try:
            # Judgements, names and the hashes of keys stand in it; SQLite would open it to everybody.
            if is_sqlite(engine):
                with contextlib.suppress(OSError):  # SQLite says why it cannot be made
                    create_private(Path(place_of(engine)))
            with explained(engine):
                bring_up_to_date(engine)
        except BaseException:
            engine.dispose()
            raise
        return cls(engine)

    def close(self) -> None:
        """Finish what is being written and let go of the database. A closed store refuses all else."""
        self._closed = True
        self._writer.close()
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def place(self) -> str:
        """Return the file's path, or the URL without password."""
        return place_of(self._engine)

    @property
    def address(self) -> str:
        """Return what `Store.open` takes to open the same store elsewhere. It may hold a password: never show it."""
        return address_of(self._engine)

    def add(self, records: Iterable[Record]) -> int:
        """Add facts in one transaction and return how many of them were new. On return they are safe on disk.

        A fact that is there already is left as it is, its ``meta`` too. What a record refers to must be in the store
        or anywhere in ``records``; a completion brings its source along.

        Raises:
            DataError: A record refers to something unknown, ranks completions of another prompt, or supersedes what
                another one already supersedes. The message names the record, and nothing was stored.
        """
        facts = writing.prepare(records)
        return self.write(lambda connection: writing.write(connection, facts))

    def write(self, work: Callable[[Connection], _T]) -> _T:
        """Run ``work(connection)`` as the only writer, whole or not at all, and return what it returns.

        Requests of several threads share a commit; each returns when that one is safe on disk. ``work`` runs in
        another thread, should be quick, and may not call `write` or `add`: it adds facts by `add_facts`.

        Raises:
            AccordError: What the database refused; and whatever ``work`` raises, which leaves nothing behind.
        """
        self._open_engine()
        return self._writer.run(work)

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """Open a connection that reads one snapshot: what others commit meanwhile stays unseen."""
        with explained(self._open_engine()), snapshot(self._engine) as connection:
            yield connection

    def sources(self, *, name: str | None = None, origin: SourceKind | None = None) -> Iterator[Source]:
        return self._read(Source, {"name": name, "origin": origin})

    def annotators(
        self, *, name: str | None = None, annotator_kind: AnnotatorKind | None = None
    ) -> Iterator[Annotator]:
        return self._read(Annotator, {"name": name, "annotator_kind": annotator_kind})

    def prompts(self, *, topic: str | None = None) -> Iterator[Prompt]:
        return self._read(Prompt, {"topic": topic})

    def completions(
        self,
        *,
        prompt_id: str | None = None,
        topic: str | None = None,
        source_name: str | None = None,
        origin: SourceKind | None = None,
    ) -> Iterator[Completion]:
        wanted = {"prompt_id": prompt_id, "prompts.topic": topic}
        return self._read(Completion, wanted | {"sources.name": source_name, "sources.origin": origin})

    def rankings(
        self, *, prompt_id: str | None = None, annotator_id: str | None = None, history: bool = False
    ) -> Iterator[Ranking]:
        return self._read(Ranking, {"prompt_id": prompt_id, "annotator_id": annotator_id}, history=history)

    def ratings(
        self, *, completion_id: str | None = None, annotator_id: str | None = None, history: bool = False
    ) -> Iterator[Rating]:
        return self._read(Rating, {"completion_id": completion_id, "annotator_id": annotator_id}, history=history)

    def labels(
        self, *, completion_id: str | None = None, annotator_id: str | None = None, history: bool = False
    ) -> Iterator[Label]:
        return self._read(Label, {"completion_id": completion_id, "annotator_id": annotator_id}, history=history)

    def demonstrations(
        self, *, prompt_id: str | None = None, annotator_id: str | None = None, history: bool = False
    ) -> Iterator[Demonstration]:
        return self._read(Demonstration, {"prompt_id": prompt_id, "annotator_id": annotator_id}, history=history)

    def remarks(
        self, *, completion_id: str | None = None, annotator_id: str | None = None, history: bool = False
    ) -> Iterator[Remark]:
        return self._read(Remark, {"completion_id": completion_id, "annotator_id": annotator_id}, history=history)

    def withdrawals(self, *, annotator_id: str | None = None) -> Iterator[Withdrawal]:
        return self._read(Withdrawal, {"annotator_id": annotator_id})

    def mean_ratings(self, scale: tuple[float, float] | None = None, *, axis: str = "") -> Iterator[MeanRating]:
        """Yield mean and number of the ratings of each rated completion, superseded ones left out. Computed in SQL.

        Args:
            scale: The (low, high) of the ratings to take; needed only where the store holds several scales.
            axis: Which question the ratings answer.

        Raises:
            DataError: The ratings stand on several scales and none was asked for.
        """
        with explained(self._open_engine()), snapshot(self._engine) as connection:
            yield from reading.mean_ratings(connection, scale, axis)

    def counts(self) -> dict[str, int]:
        """Return how many facts of each kind the store holds, superseded judgements among them."""
        with explained(self._open_engine()), snapshot(self._engine) as connection:
            return reading.count(connection)

    def flags(self) -> frozenset[str]:
        """Return the flags that stand on any ranking, rating or label, superseded ones among them."""
        with explained(self._open_engine()), snapshot(self._engine) as connection:
            return reading.flags(connection)

    def judged_by(self) -> dict[str, int]:
        """Return how many judgements count now, by the kind of annotator: human, simulated or model."""
        with explained(self._open_engine()), snapshot(self._engine) as connection:
            return reading.judged_by(connection)

    def ranked_sources(self) -> Iterator[RankedSource]:
        """Yield the places in rankings that compare completions of different policies and count now."""
        with explained(self._open_engine()), snapshot(self._engine) as connection:
            yield from reading.ranked_sources(connection)

    def verify(self) -> list[Mismatch]:
        """Derive every content id again and report the rows that were tampered with or damaged; empty if none."""
        with explained(self._open_engine()), snapshot(self._engine) as connection:
            return reading.verify(connection)

    def _read(self, record: type[_R], where: dict[str, Any], *, history: bool = False) -> Iterator[_R]:
        with explained(self._open_engine()), snapshot(self._engine) as connection:
            for found in reading.read_facts(connection, KIND_OF[record], where, history=history):
                assert isinstance(found, record)
                yield found

    def _open_engine(self) -> Engine:
        if self._closed:
            raise UsageError("the store is closed", where=self.place, hint="open it again with Store.open")
        return self._engine
