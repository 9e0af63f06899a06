"""The store's one writer: requests share commits, none undoes another, and nobody is told before the disk is."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event

from accord.errors import DataError, ResourceError, UsageError
from accord.records import Annotator, Label, Prompt
from accord.store import Store, add_facts
from accord.store.writer import MOST_A_COMMIT


def prompt_request(text: str) -> Callable[[Connection], int]:
    return lambda connection: add_facts(connection, [Prompt(text=text)])


def texts(store: Store) -> list[str]:
    return [prompt.text for prompt in store.prompts()]


@contextmanager
def held_up(store: Store, pool: ThreadPoolExecutor) -> Iterator[Callable[[Callable[[Connection], Any]], Future[Any]]]:
    """While inside, the writer is busy and what is asked waits in line, in the order asked."""
    busy, go_on = threading.Event(), threading.Event()

    def wait(connection: Connection) -> None:
        busy.set()
        assert go_on.wait(30)

    first = pool.submit(store.write, wait)
    assert busy.wait(30)

    def ask(work: Callable[[Connection], Any]) -> Future[Any]:
        before = store._writer._requests.qsize()
        told = pool.submit(store.write, work)
        while store._writer._requests.qsize() == before:
            pass
        return told

    yield ask
    go_on.set()
    first.result(30)


def test_what_waits_shares_one_commit_of_at_most_so_many(place: str) -> None:
    commits: list[int] = []
    with Store.open(place) as store, ThreadPoolExecutor(200) as pool:
        event.listen(store._engine, "commit", lambda connection: commits.append(1))
        with held_up(store, pool) as ask:
            told = [ask(prompt_request(f"{i}")) for i in range(MOST_A_COMMIT + 3)]
        assert [future.result() for future in told] == [1] * len(told)
        assert len(commits) == 3  # the one that held up, a full one, the rest
        assert texts(store) == [f"{i}" for i in range(MOST_A_COMMIT + 3)]


def test_a_request_that_fails_leaves_nothing_and_the_others_alone(place: str) -> None:
    def halfway(connection: Connection) -> None:
        add_facts(connection, [Prompt(text="half")])
        raise KeyError("midway")

    stranger = Label(annotator_id="b2:nobody", completion_id="b2:nothing", good=True)
    with Store.open(place) as store, ThreadPoolExecutor(20) as pool:
        with held_up(store, pool) as ask:
            before, failing = ask(prompt_request("before")), ask(halfway)
            refused = ask(lambda connection: add_facts(connection, [Prompt(text="also half"), stranger]))
            wrong = ask(lambda connection: connection.exec_driver_sql("SELECT no_such_column"))
            after = ask(prompt_request("after"))
        assert (before.result(), after.result()) == (1, 1)
        for future, kind in ((failing, KeyError), (refused, DataError), (wrong, ResourceError)):
            with pytest.raises(kind):
                future.result()
        assert texts(store) == ["before", "after"]
        assert store.write(prompt_request("later")) == 1
        assert store.verify() == []


def test_nobody_is_told_before_the_commit(place: str) -> None:
    told: list[bool] = []
    with Store.open(place) as store, ThreadPoolExecutor(20) as pool:
        with held_up(store, pool) as ask:
            asked = [ask(prompt_request(f"{i}")) for i in range(3)]
            # SQLAlchemy calls this before it commits; the requests have run by then.
            event.listen(store._engine, "commit", lambda connection: told.extend(future.done() for future in asked))
        assert [future.result() for future in asked] == [1, 1, 1]
    assert told[-3:] == [False] * 3


def test_a_full_disk_refuses_and_loses_nothing_that_was_told(tmp_path: Path) -> None:
    with Store.open(tmp_path / "accord.db") as store, ThreadPoolExecutor(20) as pool:
        store.add([Prompt(text="old")])
        limit = [0]
        event.listen(
            store._engine, "begin", lambda connection: connection.exec_driver_sql(f"PRAGMA max_page_count={limit[0]}")
        )
        pages = store.write(lambda connection: connection.exec_driver_sql("PRAGMA page_count").scalar_one())
        limit[0] = pages + 2
        with held_up(store, pool) as ask:
            small, large, last = ask(prompt_request("s")), ask(prompt_request("x" * 100_000)), ask(prompt_request("t"))
        with pytest.raises(ResourceError, match="the disk is full"):
            large.result()
        kept = {text for text, future in (("s", small), ("t", last)) if future.exception() is None}
        assert set(texts(store)) == {"old"} | kept
        limit[0] = 1_000_000_000
        assert store.write(prompt_request("x" * 100_000)) == 1
        assert store.verify() == []


def test_a_request_cannot_wait_for_another(tmp_path: Path) -> None:
    with Store.open(tmp_path / "accord.db") as store:
        with pytest.raises(RuntimeError, match="pass the connection on"):
            store.write(lambda connection: store.add([Annotator(name="Ada", annotator_kind="human")]))
        assert store.add([Annotator(name="Ada", annotator_kind="human")]) == 1


def test_closing_finishes_what_waits_and_refuses_what_comes(place: str) -> None:
    store = Store.open(place)
    with ThreadPoolExecutor(20) as pool:
        with held_up(store, pool) as ask:
            told = [ask(prompt_request(f"{i}")) for i in range(5)]
            closing = pool.submit(store.close)
            while not store._closed:
                pass
            with pytest.raises(UsageError, match="the store is closed"):
                store.add([Prompt(text="late")])
        closing.result()
        assert [future.result() for future in told] == [1] * 5
    assert store._writer._thread is not None and not store._writer._thread.is_alive()
    with Store.open(place) as store:
        assert texts(store) == [f"{i}" for i in range(5)]


@pytest.mark.slow
def test_a_store_that_is_only_read_starts_no_thread(tmp_path: Path) -> None:
    with Store.open(tmp_path / "accord.db") as store:
        assert list(store.prompts()) == []
        assert store._writer._thread is None
