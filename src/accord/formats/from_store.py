"""Facts of a store as items."""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from accord.formats.facts import ORIGINS, UNKNOWN_TIME
from accord.formats.item import Item, TextOrTurns
from accord.records import (
    Annotator,
    Completion,
    Demonstration,
    Judgement,
    Label,
    Prompt,
    Ranking,
    Rating,
    Source,
)


class StoredFacts(Protocol):
    """What `from_facts` needs of a store."""

    def prompts(self) -> Iterator[Prompt]: ...

    def annotators(self) -> Iterator[Annotator]: ...

    def completions(self) -> Iterator[Completion]: ...

    def rankings(self) -> Iterator[Ranking]: ...

    def demonstrations(self) -> Iterator[Demonstration]: ...

    def labels(self) -> Iterator[Label]: ...

    def ratings(self) -> Iterator[Rating]: ...


class Weighed(NamedTuple):
    """What a judgement counts in training, and with which others it makes one batch element.

    ``origin`` says whose it is where that is more than the kind of its annotator says.
    """

    weight: float = 1.0
    group: str = ""
    origin: str = ""


#: What a judgement counts; None: it is left out.
View = Callable[[Judgement], Weighed | None]


def as_said(judgement: Judgement) -> Weighed:
    """Let every judgement count, each by itself."""
    return Weighed()


def from_facts(store: StoredFacts, view: View = as_said) -> Iterator[Item]:
    """Return what a store holds as items: one for each judgement, then one for each prompt that has none.

    Judgements are those that the store's readers give, so not what was superseded or withdrawn. Memory stays flat:
    prompts and completions wait in a file, to be looked up as judgements pass.

    Args:
        view: Says what counts, and how much.
    """
    with tempfile.TemporaryDirectory(prefix="accord-") as folder:
        texts = _Texts(Path(folder), store)
        try:
            for judgement in _judgements(store):
                if (weighed := view(judgement)) is not None:
                    said = {name: value for name, value in weighed._asdict().items() if name != "origin" or value}
                    yield replace(texts.said(judgement), **said)
            yield from texts.unjudged()
        finally:
            texts.close()


def _judgements(store: StoredFacts) -> Iterator[Judgement]:
    yield from store.rankings()
    yield from store.demonstrations()
    yield from store.labels()
    yield from store.ratings()


def _ranking(ranking: Ranking) -> tuple[tuple[str, ...], dict[str, Any]]:
    bad = ranking.unacceptable
    labels = tuple(id_ not in bad for id_ in ranking.completion_ids) if bad else ()
    said = {"ranks": ranking.ranks, "labels": labels, "strength": ranking.strength, "axis": ranking.axis}
    return ranking.completion_ids, said


def _rating(rating: Rating) -> tuple[tuple[str, ...], dict[str, Any]]:
    said = {"ratings": (rating.value,), "scale": (rating.low, rating.high), "axis": rating.axis}
    return (rating.completion_id,), said


#: The completions that a judgement is about, and what it says of them.
_SAID: Mapping[type[Judgement], Callable[[Any], tuple[tuple[str, ...], dict[str, Any]]]] = {
    Ranking: _ranking,
    Rating: _rating,
    Label: lambda label: ((label.completion_id,), {"labels": (label.good,), "axis": label.axis}),
    Demonstration: lambda shown: ((), {"demonstration": True}),
}


_TABLES = """
CREATE TABLE prompts (id TEXT PRIMARY KEY, value TEXT, judged INTEGER DEFAULT 0) WITHOUT ROWID;
CREATE TABLE completions (id TEXT PRIMARY KEY, prompt_id TEXT, value TEXT) WITHOUT ROWID;
"""


class _Texts:
    """Prompts and completions by id, in a file of their own."""

    def __init__(self, folder: Path, store: StoredFacts) -> None:
        self.annotators = {one.id: (one.name, ORIGINS[one.annotator_kind]) for one in store.annotators()}
        self.db = sqlite3.connect(folder / "texts.db", isolation_level=None, check_same_thread=False)
        # A file that is thrown away: nothing to recover, nothing to flush.
        self.db.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; BEGIN;" + _TABLES)
        self.db.executemany(
            "INSERT INTO prompts (id, value) VALUES (?, ?)",
            (
                (prompt.id, json.dumps([_text(prompt), prompt.topic, prompt_columns(prompt)]))
                for prompt in store.prompts()
            ),
        )
        self.db.executemany(
            "INSERT INTO completions VALUES (?, ?, ?)",
            ((c.id, c.prompt_id, json.dumps([c.text, _fields(c.source)])) for c in store.completions()),
        )
        self.db.execute("CREATE INDEX of_prompt ON completions (prompt_id)")

    def close(self) -> None:
        self.db.close()

    def said(self, judgement: Judgement) -> Item:
        """Return a judgement as an item. Its prompt counts as judged."""
        ids, said = _SAID[type(judgement)](judgement)
        find = "SELECT prompt_id, value FROM completions WHERE id = ?"
        found = [self.db.execute(find, (id_,)).fetchone() for id_ in ids]
        prompt_id = getattr(judgement, "prompt_id", None) or found[0][0]
        self.db.execute("UPDATE prompts SET judged = 1 WHERE id = ?", (prompt_id,))
        [value] = self.db.execute("SELECT value FROM prompts WHERE id = ?", (prompt_id,)).fetchone()
        at = "" if judgement.created_at == UNKNOWN_TIME else judgement.created_at
        annotator, origin = self.annotators[judgement.annotator_id]
        by = {"annotator": annotator, "origin": origin, "created_at": at}
        item = _item(value, [value for _, value in found], **by, **said)
        # What a person wrote to show how is no completion of a source.
        return replace(item, completions=(judgement.text,)) if isinstance(judgement, Demonstration) else item

    def unjudged(self) -> Iterator[Item]:
        of_prompt = "SELECT value FROM completions WHERE prompt_id = ? ORDER BY id"
        # By id, which is a hash: the same store gives the same file.
        for id_, value in self.db.execute("SELECT id, value FROM prompts WHERE NOT judged ORDER BY id"):
            yield _item(value, [found for (found,) in self.db.execute(of_prompt, (id_,))])


def _text(prompt: Prompt) -> Any:
    return prompt.text if prompt.form == "text" else prompt.turns()


def prompt_columns(prompt: Prompt) -> dict[str, str]:
    """Return the columns that came with a prompt, but for its origin: that of a judgement is another thing."""
    return {name: value for name, value in prompt.meta.items() if name != "origin"}


def _fields(source: Source) -> dict[str, str]:
    return {name: getattr(source, name) for name in ("origin", "name", "version", "sampling")}


def _item(prompt: str, completions: list[str], **said: Any) -> Item:
    """Return an item of what `_Texts` keeps."""
    asked, topic, extra = json.loads(prompt)
    texts: list[tuple[TextOrTurns, Any]] = [tuple(json.loads(value)) for value in completions]
    sources = tuple(Source(**fields) for _, fields in texts)
    completed = tuple(text for text, _ in texts)
    return Item(prompt=asked, completions=completed, sources=sources, topic=topic, extra=extra, **said)
