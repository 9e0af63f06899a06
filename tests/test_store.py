"""The store: what goes in comes out, once, whole or not at all, for ever. In SQLite, and in PostgreSQL if there is one.

`conftest.place` says which PostgreSQL that is.
"""

from __future__ import annotations

import itertools
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import work_schema
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from accord.errors import AccordError, DataError, ResourceError, UsageError
from accord.records import (
    Annotator,
    Completion,
    Demonstration,
    Label,
    Prompt,
    Ranking,
    Rating,
    Record,
    Remark,
    Source,
    Withdrawal,
    content_id,
)
from accord.store import Mismatch, Store, database, migrate, schema
from accord.store.database import make_engine, transaction

AT = "2026-01-02T03:04:05.000006+00:00"

HUMAN = Source(origin="human", name="corpus")
POLICY = Source(origin="policy", name="sft", version="7", sampling="temperature 1")
ADA = Annotator(name="Ada", annotator_kind="human")
SIM = Annotator(name="sim 1", annotator_kind="simulated", note="likes short ones")
PROMPT = Prompt(text="Film: Heat\nReview:", topic="Heat", meta={"split": "train"})
OTHER = Prompt(text="Film: Ran\nReview:", topic="Ran")
GOOD = Completion(prompt_id=PROMPT.id, text=" A joy.", source=HUMAN, meta={"verdict": "fresh"})
BAD = Completion(prompt_id=PROMPT.id, text=" A mess.", source=POLICY)
FAR = Completion(prompt_id=OTHER.id, text=" A joy.", source=HUMAN)


def rate(value: float, **changes: Any) -> Rating:
    fields = {"annotator_id": ADA.id, "completion_id": GOOD.id, "created_at": AT, "value": value, "low": -4, "high": 4}
    return Rating(**(fields | changes))


def rank(**changes: Any) -> Ranking:
    fields = {"annotator_id": ADA.id, "prompt_id": PROMPT.id, "created_at": AT}
    return Ranking(**(fields | {"completion_ids": (BAD.id, GOOD.id), "ranks": (2, 1)} | changes))


RANKING = rank(seconds=2.5, flags=("hurried", "sure"), note="close", guideline="Which is better?")
RATING = rate(3.0)
LABEL = Label(annotator_id=SIM.id, completion_id=BAD.id, created_at=AT, good=False)
DEMONSTRATION = Demonstration(annotator_id=ADA.id, prompt_id=PROMPT.id, created_at=AT, text=" Taut, humane.")
REMARK = Remark(annotator_id=ADA.id, completion_id=BAD.id, created_at=AT, flags=("rude",), note="the last word")
BASE: tuple[Record, ...] = (HUMAN, POLICY, ADA, SIM, PROMPT, OTHER, GOOD, BAD, FAR)
WORLD: tuple[Record, ...] = (*BASE, RANKING, RATING, LABEL, DEMONSTRATION, REMARK)
JUDGEMENTS = ("rankings", "ratings", "labels", "demonstrations", "remarks")
FACT_TABLES = ("texts", "sources", "annotators", "prompts", "completions", "ranking_items", *JUDGEMENTS, "withdrawals")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A SQLite store that holds WORLD, closed."""
    path = tmp_path / "accord.db"
    with Store.open(path) as store:
        store.add(WORLD)
    return path


def everything(store: Store, *, history: bool = True) -> list[Record]:
    judgements = (store.rankings, store.ratings, store.labels, store.demonstrations, store.remarks)
    facts: list[Record] = [*store.sources(), *store.annotators(), *store.prompts(), *store.completions()]
    return facts + [judgement for reader in judgements for judgement in reader(history=history)]


def raw(path: Path, *statements: str) -> list[tuple[Any, ...]]:
    """What another program may do to the file: SQL without our connection's settings."""
    rows: list[tuple[Any, ...]] = []
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in statements:
            rows = connection.execute(statement).fetchall()
    return rows


def run_python(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, text=True)


# -- in and out --------------------------------------------------------------------------------------------------------


def test_what_goes_in_comes_out(place: str) -> None:
    with Store.open(place) as store:
        assert store.add(WORLD) == 14
        assert everything(store) == list(WORLD)
        assert [found.id for found in everything(store)] == [record.id for record in WORLD]
    with Store.open(place) as store:
        assert everything(store) == list(WORLD)


def test_meta_comes_back_though_it_is_no_part_of_identity(place: str) -> None:
    odd = Prompt(text="odd", meta={"k\x00": "\ud800\x1a \U0001f600 \x1a0000", "": ""})
    with Store.open(place) as store:
        store.add([*WORLD, odd])
        metas = [fact.meta for fact in (*store.prompts(), *store.completions())]
        assert metas == [{"split": "train"}, {}, odd.meta, {"verdict": "fresh"}, {}, {}]


def test_adding_again_adds_nothing(place: str) -> None:
    with Store.open(place) as store:
        store.add(WORLD)
        assert store.add(WORLD) == 0
        assert store.add([*WORLD, OTHER, rate(1.0), rate(1.0)]) == 1
        assert everything(store) == [*BASE, RANKING, RATING, rate(1.0), LABEL, DEMONSTRATION, REMARK]


def test_first_meta_stays(place: str) -> None:
    with Store.open(place) as store:
        store.add([PROMPT])
        assert store.add([replace(PROMPT, meta={"split": "test"})]) == 0
        assert [prompt.meta for prompt in store.prompts()] == [{"split": "train"}]


def test_order_within_a_batch_is_free(place: str) -> None:
    with Store.open(place) as store:
        assert store.add(reversed(WORLD)) == 14
        assert {fact.id for fact in everything(store)} == {fact.id for fact in WORLD}


def test_a_completion_brings_its_source_along_uncounted(place: str) -> None:
    with Store.open(place) as store:
        assert store.add([PROMPT, GOOD]) == 2
        assert list(store.sources()) == [HUMAN]
        assert store.add([HUMAN]) == 0


def test_adding_nothing_is_fine(place: str) -> None:
    with Store.open(place) as store:
        assert store.add([]) == 0
        assert everything(store) == []


def test_a_text_is_stored_once(place: str) -> None:
    with Store.open(place) as store:
        store.add([*WORLD, rate(1.0, guideline=PROMPT.text), rate(2.0, note=GOOD.text)])
    engine = make_engine(place)
    with engine.connect() as connection:
        texts = sorted(row[0] for row in connection.execute(text("SELECT text FROM texts")))
    engine.dispose()
    # Two prompts, two different completion texts of three, the demonstration's, RANKING's guideline, two notes, and "".
    expected = {PROMPT.text, OTHER.text, GOOD.text, BAD.text, DEMONSTRATION.text, "Which is better?", "close", ""}
    expected |= {"the last word"}
    assert texts == sorted(expected)


def test_counts(place: str) -> None:
    with Store.open(place) as store:
        store.add([*WORLD, rate(1.0, supersedes=RATING.id)])
        expected = {"sources": 2, "annotators": 2, "prompts": 2, "completions": 3, "rankings": 1, "ratings": 2}
        assert store.counts() == expected | {"labels": 1, "demonstrations": 1, "remarks": 1, "withdrawals": 0}


def test_readers_select(place: str) -> None:
    by_sim = rate(1.0, annotator_id=SIM.id)
    of_bad = rate(2.0, completion_id=BAD.id)
    far = Demonstration(annotator_id=SIM.id, prompt_id=OTHER.id, created_at=AT, text=" Vast.")
    with Store.open(place) as store:
        store.add([*WORLD, by_sim, of_bad, far])
        assert list(store.prompts(topic="Ran")) == [OTHER]
        assert list(store.prompts(topic="no such")) == []
        assert list(store.sources(name="sft")) == [POLICY]
        assert list(store.sources(origin="human")) == [HUMAN]
        assert list(store.annotators(annotator_kind="simulated")) == [SIM]
        assert list(store.annotators(name="Ada")) == [ADA]
        assert list(store.completions(prompt_id=PROMPT.id)) == [GOOD, BAD]
        assert list(store.completions(topic="Ran")) == [FAR]
        assert list(store.completions(source_name="corpus")) == [GOOD, FAR]
        assert list(store.completions(origin="policy")) == [BAD]
        assert list(store.completions(topic="Heat", source_name="corpus")) == [GOOD]
        assert list(store.ratings(annotator_id=SIM.id)) == [by_sim]
        assert list(store.ratings(completion_id=BAD.id)) == [of_bad]
        assert list(store.rankings(prompt_id=PROMPT.id, annotator_id=ADA.id)) == [RANKING]
        assert list(store.rankings(prompt_id=OTHER.id)) == []
        assert list(store.labels(completion_id=BAD.id)) == [LABEL]
        assert list(store.labels(annotator_id=ADA.id)) == []
        assert list(store.demonstrations(prompt_id=OTHER.id)) == [far]


def test_a_reader_sees_one_snapshot_while_others_write(place: str) -> None:
    with Store.open(place) as store:
        store.add([ADA, PROMPT, GOOD, *(rate(value) for value in (0, 1, 2))])
        reader = store.ratings()
        first = next(reader)
        store.add([rate(3), rate(4, supersedes=rate(1).id)])
        assert [first, *reader] == [rate(0), rate(1), rate(2)]
        assert list(store.ratings()) == [rate(0), rate(2), rate(3), rate(4, supersedes=rate(1).id)]


def test_a_reader_of_several_tables_sees_one_snapshot(place: str) -> None:
    late = replace(GOOD, source=replace(HUMAN, name="late"))
    with Store.open(place) as store, Store.open(place) as other:
        store.add([PROMPT, GOOD])

        def add_meanwhile(*arguments: Any) -> None:
            # Sources are read before completions; between the two, another writer adds one of each.
            if "FROM completions" in arguments[2]:
                other.add([late])

        event.listen(store._engine, "before_cursor_execute", add_meanwhile)
        assert list(store.completions()) == [GOOD]
        event.remove(store._engine, "before_cursor_execute", add_meanwhile)
        assert list(store.completions()) == [GOOD, late]


@pytest.mark.slow
@pytest.mark.parametrize(
    "odd", ["", "\x00", "a\x00b", "\ud83d", "\udca9\ud83d", "\x1a", "\x1a0041", "\x1a\x1a001a", "\u2028 \uffff 😀"]
)
def test_odd_characters_survive(place: str, odd: str) -> None:
    with Store.open(place) as store:
        prompt = Prompt(text=odd, topic=odd)
        assert store.add([prompt]) == 1
        assert list(store.prompts(topic=odd)) == [prompt]
        assert store.verify() == []


ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=12)
NAME = ANY_TEXT.filter(bool)
REAL = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def worlds(draw: st.DrawFn) -> list[Record]:
    """A prompt with completions, an annotator, and one judgement of each kind, of any texts and numbers."""
    source = Source(origin=draw(st.sampled_from(["human", "policy", "user"])), name=draw(NAME), version=draw(ANY_TEXT))
    annotator = Annotator(name=draw(NAME), annotator_kind="model", note=draw(ANY_TEXT))
    prompt = Prompt(text=draw(ANY_TEXT), topic=draw(ANY_TEXT))
    texts = draw(st.lists(ANY_TEXT, min_size=2, max_size=5, unique=True))
    completions = [Completion(prompt_id=prompt.id, text=text, source=source) for text in texts]
    shared: dict[str, Any] = {
        "annotator_id": annotator.id,
        "created_at": draw(ANY_TEXT),
        "seconds": draw(st.none() | st.floats(0, 1e9)),
        "guideline": draw(ANY_TEXT),
        "note": draw(ANY_TEXT),
        "flags": tuple(draw(st.lists(ANY_TEXT, max_size=3))),
    }
    low, value, high = sorted(draw(st.tuples(REAL, REAL, REAL)))
    ranks = draw(st.lists(st.integers(1, 9), min_size=len(texts), max_size=len(texts)))
    ids = draw(st.permutations([completion.id for completion in completions]))
    return [
        source,
        annotator,
        prompt,
        *completions,
        Ranking(prompt_id=prompt.id, completion_ids=tuple(ids), ranks=tuple(ranks), **shared),
        Rating(completion_id=ids[0], value=value, low=low, high=high, **shared),
        Label(completion_id=ids[0], good=draw(st.booleans()), **shared),
        Demonstration(prompt_id=prompt.id, text="." + draw(ANY_TEXT), **shared),
    ]


@pytest.mark.slow
@pytest.mark.hypothesis
def test_any_record_survives(place: str) -> None:
    with Store.open(place) as store:

        @given(worlds())
        @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
        def check(world: list[Record]) -> None:
            store.add(world)
            stored = {fact.id: fact for fact in everything(store)}
            assert [stored.get(record.id) for record in world] == world

        check()
        assert store.verify() == []


def _many_ratings(num_completions: int, num_raters: int) -> list[Record]:
    guideline = "How positive or negative is this text, from -4 (extremely negative) to 4 (extremely positive)?"
    completions = [Completion(prompt_id=PROMPT.id, text=f" {i}", source=HUMAN) for i in range(num_completions)]
    raters = [Annotator(name=f"rater {i}", annotator_kind="human") for i in range(num_raters)]
    ratings = [
        rate(i % 9 - 4, completion_id=completion.id, annotator_id=rater.id, guideline=guideline)
        for completion in completions
        for i, rater in enumerate(raters)
    ]
    return [PROMPT, *raters, *completions, *ratings]


@pytest.mark.slow
def test_many_ratings_take_few_statements(place: str) -> None:
    statements: list[str] = []
    with Store.open(place) as store:
        event.listen(store._engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
        assert store.add(_many_ratings(500, 20)) == 1 + 20 + 500 + 500 * 20
    assert len(statements) < 40
    # PostgreSQL plans its joins by statistics, and has none of new rows before it was told.
    assert ("://" in place) == any(statement.startswith("ANALYZE") for statement in statements)


@pytest.mark.slow
def test_many_ratings_take_little_room(tmp_path: Path) -> None:
    with Store.open(tmp_path / "accord.db") as store:
        store.add(_many_ratings(500, 20))
    assert (tmp_path / "accord.db").stat().st_size / (500 * 20) < 250


# -- whole or not at all -----------------------------------------------------------------------------------------------

STRANGER = content_id("nobody", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("record", "message"),
    [
        (replace(GOOD, prompt_id=STRANGER), "prompt_id .* is not in the store"),
        (rate(1.0, completion_id=STRANGER), "completion_id .* is not in the store"),
        (rate(1.0, annotator_id=STRANGER), "annotator_id .* is not in the store"),
        (rate(1.0, annotator_id=GOOD.id), "annotator_id .* is not in the store"),
        (rate(1.0, supersedes=STRANGER), "supersedes .* is not in the store"),
        (rate(1.0, supersedes=LABEL.id), "supersedes .* is not in the store"),
        (rank(completion_ids=(GOOD.id, STRANGER)), "completion .* is not in the store"),
        (rank(completion_ids=(GOOD.id, FAR.id)), "answers another prompt"),
        (replace(DEMONSTRATION, prompt_id=STRANGER), "prompt_id .* is not in the store"),
        (replace(LABEL, annotator_id=STRANGER), "annotator_id .* is not in the store"),
    ],
)
def test_a_batch_with_a_fault_leaves_nothing_and_names_the_record(place: str, record: Record, message: str) -> None:
    new = [Prompt(text="new"), Annotator(name="new", annotator_kind="human"), rate(2.0, note="new")]
    with Store.open(place) as store:
        store.add(WORLD)
        before = store.counts()
        with pytest.raises(DataError, match=message) as caught:
            store.add([*new, record])
        assert caught.value.where == f"{record.kind} {record.id}"
        assert store.counts() == before
        assert everything(store) == list(WORLD)
        assert store.add(new) == 3


def test_a_ranking_of_strangers_alone_is_refused_in_an_empty_store(place: str) -> None:
    with Store.open(place) as store:
        with pytest.raises(DataError, match="annotator_id"):
            store.add([RANKING])
        assert sum(store.counts().values()) == 0


def test_what_is_no_fact_is_refused(place: str) -> None:
    with Store.open(place) as store:
        with pytest.raises(DataError, match="'a text' is no fact"):
            store.add([PROMPT, "a text"])  # type: ignore[list-item]
        assert list(store.prompts()) == []


def test_an_iterator_that_fails_leaves_nothing(place: str) -> None:
    def failing() -> Iterator[Record]:
        yield PROMPT
        raise KeyError("midway")

    with Store.open(place) as store:
        with pytest.raises(KeyError, match="midway"):
            store.add(failing())
        assert list(store.prompts()) == []


# -- corrections -------------------------------------------------------------------------------------------------------


def test_a_correction_replaces_in_the_view_and_stays_in_history(place: str) -> None:
    second, third = rate(2.0, supersedes=RATING.id), rate(1.0, supersedes=rate(2.0, supersedes=RATING.id).id)
    with Store.open(place) as store:
        store.add(WORLD)
        assert store.add([second]) == 1
        assert list(store.ratings()) == [second]
        assert store.add([third]) == 1
        assert list(store.ratings()) == [third]
        assert list(store.ratings(history=True)) == [RATING, second, third]
        assert store.add([second, third]) == 0


def test_every_kind_of_judgement_can_be_corrected(place: str) -> None:
    corrections: list[Record] = [
        replace(RANKING, ranks=(1, 1), supersedes=RANKING.id),
        replace(RATING, value=0.0, supersedes=RATING.id),
        replace(LABEL, good=True, supersedes=LABEL.id),
        replace(DEMONSTRATION, text=" Better.", supersedes=DEMONSTRATION.id),
        replace(REMARK, note="the first word", supersedes=REMARK.id),
    ]
    with Store.open(place) as store:
        store.add(WORLD)
        assert store.add(corrections) == 5
        assert everything(store, history=False) == [*BASE, *corrections]
        assert len(everything(store)) == len(WORLD) + 5
        assert store.verify() == []


def test_a_chain_of_corrections_can_come_at_once_in_any_order(place: str) -> None:
    chain = [rate(0.0)]
    for value in (1.0, 2.0, 3.0):
        chain.append(rate(value, supersedes=chain[-1].id))
    with Store.open(place) as store:
        assert store.add([*BASE, chain[2], chain[3], chain[0], chain[1]]) == len(BASE) + 4
        assert list(store.ratings()) == [chain[3]]


@pytest.mark.parametrize("at_once", [True, False])
def test_only_one_may_supersede_another(place: str, at_once: bool) -> None:
    first, second = rate(1.0, supersedes=RATING.id), rate(2.0, supersedes=RATING.id)
    with Store.open(place) as store:
        store.add(WORLD if at_once else [*WORLD, first])
        with pytest.raises(DataError, match=f"already supersedes {RATING.id}") as caught:
            store.add([first, second] if at_once else [second])
        assert caught.value.where == f"rating {second.id}"
        assert list(store.ratings()) == [RATING if at_once else first]


# -- means -------------------------------------------------------------------------------------------------------------


def test_flags_of_judgements_are_told(place: str) -> None:
    with Store.open(place) as store:
        assert store.flags() == frozenset()
        store.add([*BASE, RANKING, REMARK])  # what a remark ticks says nothing of a judgement
        assert store.flags() == {"hurried", "sure"}
        store.add([rate(4.0, flags=("sure", "late"))])
        assert store.flags() == {"hurried", "sure", "late"}


def test_mean_ratings(place: str) -> None:
    wrong = rate(-4.0, note="slipped")
    ratings = [rate(1), rate(2), wrong, rate(4, supersedes=wrong.id), rate(-1, completion_id=BAD.id)]
    with Store.open(place) as store:
        store.add([*BASE, *ratings])
        # 1, 2 and, instead of -4, 4: 7 / 3.
        assert list(store.mean_ratings()) == [(GOOD.id, pytest.approx(7 / 3), 3), (BAD.id, -1.0, 1)]
        assert [mean.n for mean in store.mean_ratings()] == [3, 1]


def test_mean_ratings_never_mixes_scales(place: str) -> None:
    with Store.open(place) as store:
        store.add([*BASE, rate(-1), rate(2, low=1, high=5), rate(4, low=1, high=5)])
        with pytest.raises(DataError, match=r"2 scales: -4\.\.4, 1\.\.5"):
            list(store.mean_ratings())
        assert list(store.mean_ratings(scale=(1, 5))) == [(GOOD.id, 3.0, 2)]
        assert list(store.mean_ratings(scale=(-4, 4))) == [(GOOD.id, -1.0, 1)]
        assert list(store.mean_ratings(scale=(0, 1))) == []


# -- for ever ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("table", FACT_TABLES)
def test_the_database_refuses_to_change_or_delete_facts(place: str, table: str) -> None:
    column = "rank" if table == "ranking_items" else "content_id"
    statements = [f"UPDATE {table} SET {column} = {column}", f"DELETE FROM {table}"]
    statements += [] if "://" not in place else [f"TRUNCATE {table} CASCADE"]
    with Store.open(place) as store:
        store.add([*WORLD, Withdrawal(annotator_id=ADA.id, judgement_id=LABEL.id)])
    engine = make_engine(place)
    for statement in statements:
        with pytest.raises(DBAPIError, match=f"{table} is append-only"), transaction(engine) as connection:
            connection.execute(text(statement))
    engine.dispose()
    with Store.open(place) as store:
        assert everything(store) == list(WORLD)


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT OR REPLACE INTO texts (id, content_id, text) SELECT id, content_id, 'forged' FROM texts",
        "INSERT OR REPLACE INTO texts (content_id, text) SELECT content_id, 'forged' FROM texts",
        "INSERT OR REPLACE INTO texts (id, content_id, text) SELECT id, 'new ' || id, 'forged' FROM texts",
        "INSERT OR REPLACE INTO ranking_items SELECT ranking_id, position, completion_id, 9, 1 FROM ranking_items",
        "INSERT OR REPLACE INTO ranking_items SELECT ranking_id, position + 7, completion_id, 9, 1 FROM ranking_items",
    ],
)
def test_sqlite_replaces_nothing_either(path: Path, statement: str) -> None:
    raw(path, statement)
    with Store.open(path) as store:
        assert everything(store) == list(WORLD)
        assert store.verify() == []


def _without_guards(path: Path, *statements: str) -> None:
    """Tampering by one who knows how: the triggers are dropped first."""
    triggers = [row[0] for row in raw(path, "SELECT name FROM sqlite_master WHERE type = 'trigger'")]
    raw(path, *(f"DROP TRIGGER {name}" for name in triggers), *statements)


def test_verify_finds_nothing_in_an_honest_store(place: str) -> None:
    with Store.open(place) as store:
        store.add(WORLD)
        assert store.verify() == []


def test_verify_finds_a_tampered_text(path: Path) -> None:
    _without_guards(path, "UPDATE texts SET text = ' A mess!' WHERE text = ' A mess.'")
    with Store.open(path) as store:
        why = "its values are not those that were stored"
        assert store.verify() == [
            Mismatch("texts", content_id("text", " A mess."), "the text is not the one that was stored"),
            Mismatch("completions", BAD.id, why),
        ]


@pytest.mark.parametrize(
    ("statement", "table", "id_", "why"),
    [
        ("UPDATE ratings SET value = -3", "ratings", RATING.id, "are not those"),
        ("UPDATE ratings SET annotator_id = 3 - annotator_id", "ratings", RATING.id, "are not those"),
        ("UPDATE labels SET good = 1", "labels", LABEL.id, "are not those"),
        ("UPDATE ranking_items SET rank = 3 - rank", "rankings", RANKING.id, "are not those"),
        ("UPDATE ranking_items SET position = 3 - position", "rankings", RANKING.id, "are not those"),
        ("DELETE FROM ranking_items WHERE position = 0", "rankings", RANKING.id, "make no ranking"),
        ("DELETE FROM ranking_items", "rankings", "", "1 rows refer to something that is missing"),
        ("UPDATE rankings SET flags = 'spam'", "rankings", RANKING.id, "make no ranking"),
        ("UPDATE sources SET version = '8'", "sources", POLICY.id, "are not those"),
        ("UPDATE annotators SET name = 'Bob' WHERE name = 'Ada'", "annotators", ADA.id, "are not those"),
        ("UPDATE prompts SET topic = 'Ran'", "prompts", PROMPT.id, "are not those"),
        ("DELETE FROM annotators WHERE name = 'Ada'", "ratings", "", "1 rows refer to something that is missing"),
    ],
)
def test_verify_finds_tampering(path: Path, statement: str, table: str, id_: str, why: str) -> None:
    _without_guards(path, statement)
    with Store.open(path) as store:
        assert [m for m in store.verify() if (m.table, m.id) == (table, id_) and why in m.why]


# -- many writers, sudden ends -----------------------------------------------------------------------------------------

_APPENDER = """
import sys
from accord.records import Annotator, Completion, Prompt, Rating, Source
from accord.store import Store

place, start, end = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
annotator = Annotator(name="shared", annotator_kind="human")
new = 0
with Store.open(place) as store:
    for i in range(start, end):
        prompt = Prompt(text=f"prompt {i}")
        completion = Completion(prompt_id=prompt.id, text="shared", source=Source(origin="human", name="shared"))
        place = {"annotator_id": annotator.id, "completion_id": completion.id, "created_at": "2026-01-01"}
        new += store.add([annotator, prompt, completion, Rating(value=1, low=0, high=1, **place)])
        print(i, flush=True)
print(new)
"""


@pytest.mark.slow
def test_kill_9_loses_nothing_that_was_acknowledged(place: str) -> None:
    acknowledged = 0
    for kills in range(2):
        process = run_python(_APPENDER, place, str(1000 * kills), str(1000 * kills + 1000))
        assert process.stdout is not None
        lines = [int(process.stdout.readline()) for _ in range(5 + 6 * kills)]
        process.send_signal(signal.SIGKILL)
        lines += [int(line) for line in process.stdout.read().splitlines()]
        process.stdout.close()
        assert process.wait() == -signal.SIGKILL
        acknowledged += len(lines)
        with Store.open(place) as store:
            counts = store.counts()
            texts = {prompt.text for prompt in store.prompts()}
            assert {f"prompt {i}" for i in lines} <= texts
            # At most one more a kill, finished but not told; and no batch in part.
            assert acknowledged <= counts["prompts"] <= acknowledged + kills + 1
            assert counts["prompts"] == counts["completions"] == counts["ratings"]
            assert store.verify() == []


@pytest.mark.slow
def test_two_processes_write_to_one_new_store(place: str) -> None:
    # Both make the schema, both add the shared facts, and prompts 20..39 are common to both.
    processes = [run_python(_APPENDER, place, "0", "40"), run_python(_APPENDER, place, "20", "60")]
    told = [process.communicate()[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    with Store.open(place) as store:
        counts = store.counts()
        assert (counts["prompts"], counts["completions"], counts["ratings"], counts["annotators"]) == (60, 60, 60, 1)
        assert sum(int(lines[-1]) for lines in told) == 60 * 3 + 1
        assert store.verify() == []


@pytest.mark.slow
def test_threads_share_a_store(place: str) -> None:
    new: list[int] = []

    def work(store: Store) -> None:
        for i in range(10):
            new.append(store.add([PROMPT, Prompt(text=f"prompt {i}")]))
            assert PROMPT in list(store.prompts())

    with Store.open(place) as store:
        threads = [threading.Thread(target=work, args=(store,)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(new), sum(new)) == (60, 11)
        assert len(list(store.prompts())) == 11


def test_forty_readers_at_once_open_no_connection_twice(tmp_path: Path) -> None:
    with Store.open(tmp_path / "accord.db") as store:
        opened: list[object] = []
        event.listen(store._engine, "connect", lambda connection, record: opened.append(connection))
        for _ in range(3):
            with ExitStack() as readers:
                for _ in range(40):
                    readers.enter_context(store.snapshot()).execute(text("SELECT 1"))
        assert len(opened) <= 40


# -- what an annotator can say besides ---------------------------------------------------------------------------------

TALK = Prompt.of_messages([{"role": "user", "content": "Which film?"}], topic="Heat")


def test_details_of_a_judgement_come_back(place: str) -> None:
    talked = Completion(prompt_id=TALK.id, text="Heat.", source=POLICY)
    details = [
        rank(unacceptable=(GOOD.id, BAD.id), ranks=(1, 1)),
        rank(unacceptable=(GOOD.id,), strength="slightly"),
        rate(3.0, axis="helpfulness"),
    ]
    with Store.open(place) as store:
        assert store.add([*WORLD, TALK, talked, *details]) == len(WORLD) + 5
        assert list(store.rankings()) == [RANKING, *details[:2]]
        assert list(store.ratings()) == [RATING, details[2]]
        assert list(store.prompts())[-1].turns() == [{"role": "user", "content": "Which film?"}]
        assert store.verify() == []
        # RATING alone has no axis; the other axis has a mean of its own.
        assert [(m.mean, m.n) for m in store.mean_ratings()] == [(3.0, 1)]
        assert [(m.mean, m.n) for m in store.mean_ratings(axis="helpfulness")] == [(3.0, 1)]
        assert list(store.mean_ratings(axis="wit")) == []


@pytest.mark.slow
@pytest.mark.parametrize("judgement", [RANKING, RATING, LABEL, DEMONSTRATION, REMARK], ids=lambda j: j.kind)
def test_a_withdrawn_judgement_is_left_out_and_kept(place: str, judgement: Any) -> None:
    back = Withdrawal(annotator_id=ADA.id, judgement_id=judgement.id, created_at=AT, note="undone")
    with Store.open(place) as store:
        store.add(WORLD)
        assert store.add([back, back]) == 1
        assert set(everything(store, history=False)) == set(WORLD) - {judgement}
        assert set(everything(store)) == set(WORLD)
        assert list(store.withdrawals()) == [back]
        assert list(store.mean_ratings()) == ([] if judgement is RATING else [(GOOD.id, 3.0, 1)])
        assert store.counts()["withdrawals"] == 1
        assert store.verify() == []


def test_what_was_never_said_cannot_be_withdrawn(place: str) -> None:
    with Store.open(place) as store:
        store.add(WORLD)
        with pytest.raises(DataError, match="no judgement 'b2:none' to withdraw"):
            store.add([Withdrawal(annotator_id=ADA.id, judgement_id="b2:none", created_at=AT)])
        assert list(store.withdrawals()) == []
        later = rate(1.0)
        store.add([Withdrawal(annotator_id=ADA.id, judgement_id=later.id, created_at=AT), later])  # of one batch
        assert later not in list(store.ratings())


# -- the schema --------------------------------------------------------------------------------------------------------

_JUDGEMENT = """
    id INTEGER PRIMARY KEY, content_id TEXT NOT NULL UNIQUE, annotator_id BIGINT NOT NULL REFERENCES annotators (id),
    created_at TEXT NOT NULL, seconds DOUBLE PRECISION CHECK (seconds >= 0),
    guideline_id BIGINT NOT NULL REFERENCES texts (id), note_id BIGINT NOT NULL REFERENCES texts (id),
    flags TEXT NOT NULL, supersedes_id BIGINT REFERENCES {name} (id)
"""
_FINAL_TABLES = {
    "accord_version": "version_num VARCHAR(32) NOT NULL, CONSTRAINT accord_version_pkc PRIMARY KEY (version_num)",
    "texts": "id INTEGER PRIMARY KEY, content_id TEXT NOT NULL UNIQUE, text TEXT NOT NULL",
    "sources": """id INTEGER PRIMARY KEY, content_id TEXT NOT NULL UNIQUE,
        origin TEXT NOT NULL CHECK (origin IN ('human', 'policy', 'user')),
        name TEXT NOT NULL, version TEXT NOT NULL, sampling TEXT NOT NULL""",
    "annotators": """id INTEGER PRIMARY KEY, content_id TEXT NOT NULL UNIQUE, name TEXT NOT NULL,
        annotator_kind TEXT NOT NULL CHECK (annotator_kind IN ('human', 'simulated', 'model')), note TEXT NOT NULL""",
    "prompts": """id INTEGER PRIMARY KEY, content_id TEXT NOT NULL UNIQUE,
        text_id BIGINT NOT NULL REFERENCES texts (id), topic TEXT NOT NULL, meta TEXT NOT NULL,
        form TEXT NOT NULL DEFAULT 'text' CHECK (form IN ('text', 'messages'))""",
    "completions": """id INTEGER PRIMARY KEY, content_id TEXT NOT NULL UNIQUE,
        prompt_id BIGINT NOT NULL REFERENCES prompts (id), text_id BIGINT NOT NULL REFERENCES texts (id),
        source_id BIGINT NOT NULL REFERENCES sources (id), meta TEXT NOT NULL""",
    "rankings": f"""{_JUDGEMENT}, prompt_id BIGINT NOT NULL REFERENCES prompts (id),
        strength TEXT CHECK (strength IN ('significantly', 'better', 'slightly', 'negligibly')),
        axis TEXT NOT NULL DEFAULT ''""",
    "ranking_items": """ranking_id BIGINT NOT NULL REFERENCES rankings (id), position INTEGER NOT NULL,
        completion_id BIGINT NOT NULL REFERENCES completions (id), rank INTEGER NOT NULL CHECK (rank >= 1),
        unacceptable BOOLEAN NOT NULL DEFAULT FALSE,
        PRIMARY KEY (ranking_id, position), UNIQUE (ranking_id, completion_id)""",
    "ratings": f"""{_JUDGEMENT}, completion_id BIGINT NOT NULL REFERENCES completions (id),
        value DOUBLE PRECISION NOT NULL, low DOUBLE PRECISION NOT NULL, high DOUBLE PRECISION NOT NULL,
        axis TEXT NOT NULL DEFAULT '', CHECK (value BETWEEN low AND high)""",
    "labels": f"""{_JUDGEMENT}, completion_id BIGINT NOT NULL REFERENCES completions (id), good BOOLEAN NOT NULL,
        axis TEXT NOT NULL DEFAULT ''""",
    "demonstrations": f"""{_JUDGEMENT}, prompt_id BIGINT NOT NULL REFERENCES prompts (id),
        text_id BIGINT NOT NULL REFERENCES texts (id)""",
    "remarks": f"{_JUDGEMENT}, completion_id BIGINT NOT NULL REFERENCES completions (id)",
    "withdrawals": """id INTEGER PRIMARY KEY, content_id TEXT NOT NULL UNIQUE,
        annotator_id BIGINT NOT NULL REFERENCES annotators (id), judgement_id TEXT NOT NULL,
        created_at TEXT NOT NULL, note TEXT NOT NULL""",
}
_FINAL_INDEXES = {
    "ix_completions_prompt_id": "completions (prompt_id)",
    "ix_demonstrations_prompt_id": "demonstrations (prompt_id)",
    "ix_labels_completion_id": "labels (completion_id)",
    "ix_ranking_items_completion_id": "ranking_items (completion_id)",
    "ix_rankings_prompt_id": "rankings (prompt_id)",
    "ix_ratings_completion_id": "ratings (completion_id)",
    "ix_remarks_completion_id": "remarks (completion_id)",
    "ix_withdrawals_judgement_id": "withdrawals (judgement_id)",
}


def _plain(sql: str) -> str:
    return "".join(sql.split())


def test_the_final_schema_exactly(path: Path) -> None:
    found = raw(path, "SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    tables = {name: _plain(sql) for kind, name, sql in found if kind == "table"}
    indexes = {name: _plain(sql) for kind, name, sql in found if kind == "index"}
    without_key = dict.fromkeys(("ranking_items", "task_completions"), "WITHOUTROWID")
    assert tables == {
        name: _plain(f"CREATE TABLE {name} ({columns.format(name=name)})") + without_key.get(name, "")
        for name, columns in (_FINAL_TABLES | work_schema.TABLES).items()
    }
    corrections = {
        f"ix_{name}_supersedes_id": f"CREATE UNIQUE INDEX ix_{name}_supersedes_id ON {name} (supersedes_id) "
        "WHERE supersedes_id IS NOT NULL"
        for name in JUDGEMENTS
    }
    expected = (
        {name: f"CREATE INDEX {name} ON {columns}" for name, columns in _FINAL_INDEXES.items()}
        | corrections
        | work_schema.INDEXES
    )
    assert indexes == {name: _plain(sql) for name, sql in expected.items()}
    triggers = {name for kind, name, _ in found if kind == "trigger"}
    assert triggers == {
        f"{name}_refuses_{act}" for name in (*FACT_TABLES, "access_log") for act in ("update", "delete", "replace")
    }


def test_the_tables_in_code_are_those_the_migrations_make(place: str) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    Store.open(place).close()
    engine = make_engine(place)
    with engine.connect() as connection:
        # SQLite tells types only by affinity; its columns stand word for word in the test above.
        options = {"version_table": schema.VERSION_TABLE, "compare_type": "://" in place}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), schema.metadata) == []
    engine.dispose()


def test_the_newest_migration_is_the_schema_version() -> None:
    from alembic.script import ScriptDirectory

    assert ScriptDirectory(str(migrate.MIGRATIONS)).get_current_head() == schema.SCHEMA_VERSION


def test_sqlite_is_set_to_lose_nothing(path: Path) -> None:
    engine = make_engine(path)
    with engine.connect() as connection:
        pragmas = {
            name: connection.execute(text(f"PRAGMA {name}")).scalar() for name in ("synchronous", "foreign_keys")
        }
    engine.dispose()
    assert pragmas == {"synchronous": 2, "foreign_keys": 1}  # 2 = FULL
    assert raw(path, "PRAGMA journal_mode") == [("wal",)]


NEXT_VERSION = f"{int(schema.SCHEMA_VERSION) + 1:04d}"


@pytest.fixture
def next_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes the code one schema version newer, by a migration that runs the statements given."""

    def release(*statements: str) -> None:
        folder = tmp_path / "migrations"
        shutil.copytree(migrate.MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
        now, later = schema.SCHEMA_VERSION, NEXT_VERSION
        lines = ["from alembic import op", f"revision = {later!r}", f"down_revision = {now!r}", "def upgrade():"]
        lines += [f"    op.execute({statement!r})" for statement in statements]
        (folder / "versions" / f"v{later}_next.py").write_text("\n".join(lines), encoding="utf-8")
        monkeypatch.setattr(migrate, "MIGRATIONS", folder)
        monkeypatch.setattr(schema, "SCHEMA_VERSION", later)

    return release


@pytest.mark.parametrize("version", ["0001", "0002", "0003", "0004"])
def test_a_store_of_an_older_schema_keeps_its_facts(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    """Written in SQL that knows of no later column, by the migrations up to that version."""
    older = tmp_path / "older"
    later = [f"v{number:04d}*" for number in range(int(version) + 1, int(schema.SCHEMA_VERSION) + 1)]
    shutil.copytree(migrate.MIGRATIONS, older, ignore=shutil.ignore_patterns("__pycache__", *later))
    with monkeypatch.context() as patch:
        patch.setattr(migrate, "MIGRATIONS", older)
        patch.setattr(schema, "SCHEMA_VERSION", version)
        with Store.open(place) as store, store.snapshot() as connection:
            if version < "0003":
                with pytest.raises(SQLAlchemyError, match="people"):
                    connection.execute(text("SELECT * FROM people"))
    engine = make_engine(place)
    with transaction(engine) as connection:
        for statement, values in _first_facts():
            connection.execute(text(statement), values)
    engine.dispose()
    with Store.open(place) as store:
        assert (list(store.prompts()), list(store.rankings()), list(store.ratings())) == ([PROMPT], [RANKING], [RATING])
        assert store.verify() == []
        assert store.add([RANKING, RATING, LABEL, ADA, SIM]) == 2  # the label and its annotator: the rest is there
        with store.snapshot() as connection:
            found = {table: connection.execute(text(f"SELECT * FROM {table}")).all() for table in work_schema.TABLES}
        assert not any(found.values())


def test_invitations_of_who_may_no_longer_invite_end_with_the_newer_schema(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two a maker, for an admin and for an annotator; by the command line too."""
    older = tmp_path / "older"
    shutil.copytree(
        migrate.MIGRATIONS, older, ignore=shutil.ignore_patterns("__pycache__", "v0005*", "v0006*", "v0007*")
    )
    with monkeypatch.context() as patch:
        patch.setattr(migrate, "MIGRATIONS", older)
        patch.setattr(schema, "SCHEMA_VERSION", "0004")
        Store.open(place).close()
    engine = make_engine(place)
    makers = {"admin": False, "manager": False, "annotator": False, "gone": True}
    with transaction(engine) as connection:
        for number, (name, disabled) in enumerate(makers.items(), 1):
            row = {"n": name, "r": "admin" if disabled else name, "k": number, "d": disabled}
            annotator = "INSERT INTO annotators (content_id, name, annotator_kind, note) VALUES (:n, :n, 'human', '')"
            connection.execute(text(annotator), row)
            columns = "INSERT INTO people (name, role, annotator_id, disabled, lean, created_at)"
            connection.execute(text(f"{columns} VALUES (:n, :r, :k, :d, 0, 1)"), row)
        for maker, role in itertools.product((None, 1, 2, 3, 4), ("admin", "annotator")):
            columns = "INSERT INTO invites (token_hash, role, invited_by, created_at, expires_at)"
            row = {"h": f"{maker} {role}", "r": role, "m": maker}
            connection.execute(text(f"{columns} VALUES (:h, :r, :m, 1, 9e9)"), row)
    engine.dispose()
    with Store.open(place) as store, store.snapshot() as connection:
        still = connection.scalars(text("SELECT token_hash FROM invites WHERE revoked_at IS NULL ORDER BY id")).all()
    assert still == ["None admin", "None annotator", "1 admin", "1 annotator", "2 annotator"]


def test_an_order_and_a_label_keep_the_question_that_they_answer(place: str) -> None:
    safer, safe = replace(RANKING, axis="safety"), replace(LABEL, axis="safety")
    with Store.open(place) as store:
        store.add([*WORLD, safer, safe])
        assert {ranking.axis for ranking in store.rankings()} == {"", "safety"}
        assert {label.axis for label in store.labels()} == {"", "safety"} and store.verify() == []
    assert len({RANKING.id, safer.id}) == 2 and replace(safer, axis="").id == RANKING.id


def _first_facts() -> Iterator[tuple[str, dict[str, Any]]]:
    """PROMPT, GOOD, BAD, RANKING and RATING as rows of the first schema; keys count from 1 in this order."""
    texts = [PROMPT.text, GOOD.text, BAD.text, "", RANKING.note, RANKING.guideline]
    key = {value: number for number, value in enumerate(texts, 1)}
    for value in texts:
        yield "INSERT INTO texts (content_id, text) VALUES (:id, :t)", {"id": content_id("text", value), "t": value}
    for source in (HUMAN, POLICY):
        row = {"id": source.id, "o": source.origin, "n": source.name, "v": source.version, "s": source.sampling}
        yield "INSERT INTO sources (content_id, origin, name, version, sampling) VALUES (:id, :o, :n, :v, :s)", row
    row = {"id": ADA.id, "n": ADA.name}
    yield "INSERT INTO annotators (content_id, name, annotator_kind, note) VALUES (:id, :n, 'human', '')", row
    prompt = {"id": PROMPT.id, "topic": PROMPT.topic, "meta": '{"split": "train"}'}
    yield "INSERT INTO prompts (content_id, text_id, topic, meta) VALUES (:id, 1, :topic, :meta)", prompt
    completions = (
        "INSERT INTO completions (content_id, prompt_id, text_id, source_id, meta) VALUES (:id, 1, :t, :s, '{}')"
    )
    yield completions, {"id": GOOD.id, "t": key[GOOD.text], "s": 1}
    yield completions, {"id": BAD.id, "t": key[BAD.text], "s": 2}
    columns = "content_id, annotator_id, created_at, seconds, guideline_id, note_id, flags"
    said = {"at": AT, "g": key[RANKING.guideline], "n": key[RANKING.note], "f": '["hurried", "sure"]'}
    ranked = f"INSERT INTO rankings ({columns}, prompt_id) VALUES (:id, 1, :at, 2.5, :g, :n, :f, 1)"
    yield ranked, {"id": RANKING.id, **said}
    for position, (completion, place) in enumerate(zip((2, 1), RANKING.ranks, strict=True)):
        item = {"p": position, "c": completion, "r": place}
        yield "INSERT INTO ranking_items (ranking_id, position, completion_id, rank) VALUES (1, :p, :c, :r)", item
    rated = f"INSERT INTO ratings ({columns}, completion_id, value, low, high)"
    yield f"{rated} VALUES (:id, 1, :at, NULL, 4, 4, '[]', 1, 3, -4, 4)", {"id": RATING.id, "at": AT}


def test_an_older_store_is_migrated_on_open(place: str, next_version: Callable[..., None]) -> None:
    with Store.open(place) as store:
        store.add(WORLD)
    next_version("ALTER TABLE prompts ADD COLUMN language TEXT")
    with Store.open(place) as store:
        assert everything(store) == list(WORLD)
        assert store.verify() == []
    engine = make_engine(place)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT language FROM prompts")).all() == [(None,), (None,)]
    engine.dispose()


def test_a_store_is_copied_before_it_is_migrated(
    path: Path, next_version: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    next_version("ALTER TABLE prompts ADD COLUMN language TEXT")
    Store.open(path).close()
    copy = path.with_name(f"accord.db.schema-{int(NEXT_VERSION) - 1:04d}.bak")
    assert sorted(p.name for p in path.parent.glob("*accord.db*")) == ["accord.db", copy.name]
    monkeypatch.undo()
    with Store.open(copy) as store:
        assert everything(store) == list(WORLD)
    with pytest.raises(
        DataError, match=f"schema {NEXT_VERSION}, and this Accord knows none after {schema.SCHEMA_VERSION}"
    ):
        Store.open(path)


def test_an_empty_store_is_migrated_without_a_copy(tmp_path: Path, next_version: Callable[..., None]) -> None:
    Store.open(tmp_path / "accord.db").close()
    next_version("ALTER TABLE prompts ADD COLUMN language TEXT")
    Store.open(tmp_path / "accord.db").close()
    assert [p.name for p in tmp_path.glob("*accord.db*")] == ["accord.db"]


def test_a_migration_that_fails_changes_nothing(
    place: str, next_version: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(place) as store:
        store.add(WORLD)
    next_version("CREATE TABLE half (done INTEGER)", "ALTER TABLE prompts ADD COLUMN language TEXT", "SELECT no_such")
    with pytest.raises(ResourceError, match="no_such"):
        Store.open(place)
    monkeypatch.undo()
    with Store.open(place) as store:
        assert everything(store) == list(WORLD)
    engine = make_engine(place)
    with engine.connect() as connection, pytest.raises(DBAPIError, match="half"):
        connection.execute(text("SELECT * FROM half"))
    engine.dispose()


def test_a_newer_store_is_refused_and_left_alone(place: str) -> None:
    with Store.open(place) as store:
        store.add(WORLD)
    engine = make_engine(place)
    with transaction(engine) as connection:
        connection.execute(text("UPDATE accord_version SET version_num = '0999'"))
    engine.dispose()
    with pytest.raises(
        DataError, match=f"schema 0999, and this Accord knows none after {schema.SCHEMA_VERSION}"
    ) as caught:
        Store.open(place)
    assert "pip install --upgrade accord" in caught.value.hint


# -- what cannot be opened ---------------------------------------------------------------------------------------------


def _refused(place: str | Path, kind: type[AccordError], what: str) -> AccordError:
    with pytest.raises(kind, match=what) as caught:
        Store.open(place)
    assert caught.value.hint
    return caught.value


def test_a_folder_is_refused(tmp_path: Path) -> None:
    error = _refused(tmp_path, DataError, "this is a folder")
    assert error.where == str(tmp_path)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    _refused(tmp_path / "no" / "accord.db", DataError, "the folder of the store does not exist")


@pytest.mark.parametrize("content", ["x", "Dear diary,\n" * 10, "no database " * 1000])
def test_another_file_is_refused_and_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(content)
    error = _refused(path, DataError, "not a database")
    assert error.where == str(path)
    assert path.read_text() == content


def test_a_database_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "bookmarks.db"
    raw(path, "CREATE TABLE bookmarks (url TEXT)")
    _refused(path, DataError, "not a store of Accord; it holds bookmarks")
    assert raw(path, "SELECT name FROM sqlite_master") == [("bookmarks",)]


def test_a_damaged_store_is_refused(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[100:4096] = b"\xff" * 3996  # the first page holds the list of tables
    path.write_bytes(data)
    _refused(path, DataError, "damaged")


def test_a_locked_store_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.05)
    with Store.open(path) as store, closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(ResourceError, match="the store is locked") as caught:
            store.add([Prompt(text="new")])
        assert (caught.value.where, len(list(store.prompts()))) == (str(path), 2)
        other.execute("ROLLBACK")
        assert store.add([Prompt(text="new")]) == 1


def test_opening_waits_for_who_hinders_the_switch_to_wal(tmp_path: Path) -> None:
    path = tmp_path / "accord.db"
    raw(path, "PRAGMA user_version = 1")  # a database without tables, not yet in WAL mode
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")  # SQLite then refuses the switch at once, whatever its timeout
        timer = threading.Timer(0.1, other.execute, ["ROLLBACK"])
        timer.start()
        Store.open(path).close()
        timer.join()


_OPENER = """
import itertools
import os, sys
from accord.errors import ResourceError
from accord.records import Prompt
from accord.store import Store

Store.open(sys.argv[1]).close()  # imports all there is to import, while Python's own folder can be read
os.setuid(65534) if os.geteuid() == 0 else None  # root may write anywhere
for place in sys.argv[2:]:
    try:
        with Store.open(place) as store:
            store.add([Prompt(text="new")])
    except ResourceError as error:
        print(f"{error.what} | {error.where} | {bool(error.hint)}")
"""


@pytest.mark.slow
def test_read_only_folder_and_file_are_named(tmp_path: Path) -> None:
    # Not in tmp_path: only its owner may enter it, and the subprocess gives up root's rights.
    folder = Path(tempfile.mkdtemp(prefix="accord-test-"))
    try:
        for name in ("old.db", "sealed.db"):
            with Store.open(folder / name) as store:
                store.add([PROMPT])
        (folder / "open").mkdir()
        shutil.move(folder / "sealed.db", folder / "open" / "sealed.db")
        (folder / "open" / "sealed.db").chmod(0o444)
        (folder / "open").chmod(0o777)
        folder.chmod(0o555)
        places = [str(folder / "new.db"), str(folder / "old.db"), str(folder / "open" / "sealed.db")]
        told = run_python(_OPENER, str(tmp_path / "first.db"), *places).communicate()[0].splitlines()
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)
    assert [line.split(" | ")[1:] for line in told] == [[place, "True"] for place in places]
    assert all(line.startswith(("the store cannot be opened", "the store cannot be written")) for line in told)


@pytest.mark.parametrize(
    ("place", "what"),
    [
        ("mysql://user@host/name", "no store lives behind mysql://"),
        ("postgresql://user@host:port/name", "cannot be understood"),
        ("sqlite://", "needs a file"),
        (":memory:", "needs a file"),
        ("", "needs a file"),
    ],
)
def test_what_is_no_place_is_refused(place: str, what: str) -> None:
    _refused(place, UsageError, what)


def test_sqlite_by_url(tmp_path: Path) -> None:
    path = tmp_path / "accord.db"
    with Store.open(f"sqlite:///{path}") as store:
        assert store.place == str(path)
        assert store.add([PROMPT]) == 1
    with Store.open(path) as store:
        assert list(store.prompts()) == [PROMPT]


def test_odd_paths_and_a_changed_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    with Store.open("100 % né?mode=ro#.db") as store:
        monkeypatch.chdir("elsewhere")
        assert store.add([PROMPT]) == 1
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["100 % né?mode=ro#.db"]


def test_postgresql_without_its_driver_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    error = _refused("postgresql://ada:secret@host/name", ResourceError, "needs the package psycopg")
    assert "accord[postgres]" in error.hint
    assert "secret" not in str(error)


def test_postgresql_out_of_reach_says_so() -> None:
    pytest.importorskip("psycopg")
    error = _refused("postgres://ada:secret@127.0.0.1:1/name?connect_timeout=2", ResourceError, "the database refused")
    assert error.where == "postgresql+psycopg://ada:***@127.0.0.1:1/name"
    assert "secret" not in str(error)


def test_a_closed_store_refuses_all(path: Path) -> None:
    store = Store.open(path)
    store.close()
    with pytest.raises(UsageError, match="the store is closed"):
        store.add([PROMPT])
    with pytest.raises(UsageError, match="the store is closed"):
        next(store.prompts())
    with pytest.raises(UsageError, match="the store is closed"):
        store.counts()
