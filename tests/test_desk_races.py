"""Many at once, sudden ends, and a full house: fifty threads, several processes, kill -9, 50,000 answers."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, insert

from accord.config import LabelConfig
from accord.people.desk import Desk, NewTask, Person, Receipt
from accord.people.desk.answers import Answer
from accord.records import Completion, Prompt, Source
from accord.store import Store, operations

PROMPT = Prompt(text="Why is the sky blue?")
MODEL = Source(origin="policy", name="m")
C = tuple(Completion(prompt_id=PROMPT.id, text=f"Because {i}.", source=MODEL) for i in range(3))


def label_tasks(number: int, overlap: int) -> list[NewTask]:
    return [NewTask(kind="label", prompt=PROMPT, completions=C[:1], overlap=overlap) for _ in range(number)]


def in_threads(work: Callable[[int], None], number: int) -> None:
    """Run ``work(0..number-1)`` at once; what one of them raises is raised here."""
    start, errors = threading.Barrier(number), []

    def run(index: int) -> None:
        try:
            start.wait(30)
            work(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.slow
def test_fifty_at_once_fill_every_slot_once(place: str) -> None:
    receipts: list[Receipt] = []
    with Store.open(place) as store:
        desk = Desk(store, LabelConfig())
        people = [desk.directory.add_person(f"person {i}", "annotator") for i in range(50)]
        desk.queue.add_tasks(label_tasks(24, overlap=5))

        def work(index: int) -> None:
            who = people[index].id
            while (found := desk.queue.claim(who)) is not None:
                receipts.append(
                    desk.answers.submit(who, found.task.id, Answer(good=(index % 2 == 0,)), key=found.task.id)
                )

        in_threads(work, 50)
        assert Counter(receipt.task_id for receipt in receipts) == {task.id: 5 for task in desk.queue.tasks()}
        rows = list(desk.reading.submissions())
        assert len({(row.task_id, row.person_id) for row in rows}) == len(rows) == 24 * 5
        assert not any(receipt.extra or receipt.repeated for receipt in receipts)
        assert len(list(store.labels())) == 24 * 5
        assert store.verify() == []


def test_a_double_click_makes_one_judgement(place: str) -> None:
    receipts: list[Receipt] = []
    with Store.open(place) as store:
        desk = Desk(store, LabelConfig())
        ada = desk.directory.add_person("Ada", "annotator")
        desk.queue.add_tasks(label_tasks(10, overlap=1))
        for _ in range(10):
            found = desk.queue.claim(ada.id)
            assert found is not None
            task = found.task.id
            in_threads(
                lambda _, task=task: receipts.append(desk.answers.submit(ada.id, task, Answer(good=(True,)), key=task)),
                4,
            )
        assert len({receipt.submission_id for receipt in receipts}) == 10
        assert Counter(receipt.repeated for receipt in receipts) == {False: 10, True: 30}
        assert len(list(store.labels())) == 10


def test_one_person_in_many_windows_gets_one_task(place: str) -> None:
    got: list[Any] = []
    with Store.open(place) as store:
        desk = Desk(store, LabelConfig())
        ada = desk.directory.add_person("Ada", "annotator")
        desk.queue.add_tasks([NewTask(kind="ranking", prompt=PROMPT, completions=C) for _ in range(5)])
        in_threads(lambda _: got.append(desk.queue.claim(ada.id)), 16)
        assert len({(found.task.id, found.order) for found in got}) == 1
        assert desk.reading.counts()["waiting"] == 4


# -- other processes ---------------------------------------------------------------------------------------------------

_ANNOTATORS = """
import sys, threading
from accord.config import LabelConfig
from accord.people.desk.answers import Answer
from accord.people.desk import Desk
from accord.store import Store

place, names = sys.argv[1], sys.argv[2:]
with Store.open(place) as store:
    desk = Desk(store, LabelConfig(flags=("rude",)))
    ids = {person.name: person.id for person in desk.directory.people()}

    def work(name):
        while (found := desk.queue.claim(ids[name])) is not None:
            answer = Answer(ranks=(1, 2), flags=((), ("rude",)))
            receipt = desk.answers.submit(ids[name], found.task.id, answer, key="key of " + found.task.id)
            sys.stdout.write(f"{name} {found.task.id} {receipt.submission_id}\\n")
            sys.stdout.flush()

    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""


def annotators(place: str, *names: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", _ANNOTATORS, place, *names], stdout=subprocess.PIPE, text=True)


def queue_pairs(place: str, names: list[str], tasks: int, overlap: int) -> None:
    with Store.open(place) as store:
        desk = Desk(store, LabelConfig())
        for name in names:
            desk.directory.add_person(name, "annotator")
        pair = NewTask(kind="pair", prompt=PROMPT, completions=C[:2], overlap=overlap)
        assert desk.queue.add_tasks([pair] * tasks) == tasks


def check_nothing_lost(place: str, told: list[str]) -> list[Any]:
    """Every acknowledged answer is there once, with its judgements; and nothing is there in part."""
    with Store.open(place) as store:
        rows = list(Desk(store, LabelConfig(flags=("rude",))).reading.submissions())
        by_id = {row.id: row for row in rows}
        assert len(by_id) == len(rows)
        for line in told:
            name, task, id_ = line.rsplit(" ", 2)
            assert (by_id[id_].person_name, by_id[id_].task_id) == (name, task)
        assert len({(row.person_id, row.task_id) for row in rows}) == len(rows)
        rankings = {fact.id for fact in store.rankings()}
        remarks = {fact.id for fact in store.remarks()}
        assert len(rankings) == len(remarks) == len(rows)
        assert rankings | remarks == {id_ for row in rows for id_ in row.judgement_ids}
        assert store.verify() == []
        return rows


@pytest.mark.slow
def test_several_processes_on_one_store_share_the_queue(place: str) -> None:
    names = [f"p{i}" for i in range(6)]
    queue_pairs(place, names, tasks=20, overlap=2)
    processes = [annotators(place, *names[i : i + 2]) for i in (0, 2, 4)]
    told = [line for process in processes for line in process.communicate()[0].splitlines()]
    assert [process.returncode for process in processes] == [0, 0, 0]
    rows = check_nothing_lost(place, told)
    assert len(rows) == len(told) == 40
    assert set(Counter(row.task_id for row in rows).values()) == {2}
    assert not any(row.extra for row in rows)


@pytest.mark.slow
def test_kill_9_loses_no_answer_that_was_acknowledged(place: str) -> None:
    names = [f"p{i}" for i in range(4)]
    queue_pairs(place, names, tasks=400, overlap=2)
    told: list[str] = []
    for kill in range(3):
        process = annotators(place, *names)
        assert process.stdout is not None
        told += [process.stdout.readline().rstrip("\n") for _ in range(7 + 12 * kill)]
        process.send_signal(signal.SIGKILL)
        told += [line for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
        process.stdout.close()
        assert process.wait() == -signal.SIGKILL
        told = [line.rstrip("\n") for line in told]
        rows = check_nothing_lost(place, told)
        assert len(told) <= len(rows) <= len(told) + len(names) * (kill + 1)  # finished but not told: one a thread
        assert max(Counter(row.task_id for row in rows).values()) <= 2


# -- a full house ------------------------------------------------------------------------------------------------------

TASKS, PEOPLE, OVERLAP = 10_000, 8, 6  # the first five people have answered everything


def fill(desk: Desk) -> list[Person]:
    """10,000 tasks, each answered by the first five of eight people; one slot of each is free."""
    people = [desk.directory.add_person(f"person {i}", "annotator") for i in range(PEOPLE)]
    pair = NewTask(kind="pair", prompt=PROMPT, completions=C[:2], overlap=OVERLAP)
    desk.queue.add_tasks([pair] * TASKS)
    done = people[:5]
    assignments = [
        {"task_id": task, "person_id": who.id, "shown": "[0, 1]", "state": "submitted", "counts": True, "revision": 1}
        | {"guideline_rev": 0, "given_at": 0.0, "until": 0.0, "draft": None, "reason": "", "note": ""}
        for who in done
        for task in range(1, TASKS + 1)
    ]
    answer = json.dumps({"ranks": [1, 2]})
    submissions = [
        {"submission_id": f"{who.id}-{task}", "task_id": task, "person_id": who.id, "revision": 1, "key": f"{task}"}
        | {"shown": "[0, 1]", "answer": answer, "seconds": 5.0, "pauses_s": 0.0, "guideline_rev": 0}
        | {"created_at": float(task), "undone_at": None, "extra": False, "adjudication": False, "judgement_ids": "[]"}
        for who in done
        for task in range(1, TASKS + 1)
    ]

    def work(connection: Any) -> None:
        connection.execute(insert(operations.assignments), assignments)
        connection.execute(insert(operations.submissions), submissions)
        connection.execute(operations.tasks.update().values(free=OVERLAP - 5))

    desk.store.write(work)
    return people


class Work:
    """What SQLite does for a call: the statements, and how many thousand steps of its machine they take."""

    def __init__(self, store: Store) -> None:
        self.kilosteps = 0
        self.statements: list[tuple[str, Any]] = []
        event.listen(store._engine, "connect", self._connected)
        event.listen(store._engine, "before_cursor_execute", self._executing)
        store._engine.dispose()  # connections made from now on are counted

    def _connected(self, connection: sqlite3.Connection, record: object) -> None:
        connection.set_progress_handler(self._step, 1000)

    def _step(self) -> int:
        self.kilosteps += 1
        return 0

    def _executing(self, *arguments: Any) -> None:
        self.statements.append((arguments[2], arguments[3]))

    @contextmanager
    def of(self) -> Iterator[None]:
        self.kilosteps, self.statements = 0, []
        yield

    def scans(self, path: Path) -> list[str]:
        """The tables of the work that statements read from end to end, by SQLite's own plan."""
        connection = sqlite3.connect(path)
        plans = [
            row[3]
            for statement, values in self.statements
            if re.match("SELECT|UPDATE|DELETE", statement)
            for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", values or ())
        ]
        connection.close()
        assert plans
        return [plan for plan in plans if re.match(r"SCAN (tasks|assignments|submissions|task_completions)$", plan)]


@pytest.fixture(scope="module")
def full_house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Desk, list[Person], Work]]:
    path = tmp_path_factory.mktemp("house") / "accord.db"
    with Store.open(path) as store:
        desk = Desk(store, LabelConfig())
        people = fill(desk)
        yield path, desk, people, Work(store)


@pytest.mark.slow
def test_work_at_the_desk_does_not_grow_with_the_queue(full_house: tuple[Path, Desk, list[Person], Work]) -> None:
    """Bounds in SQLite's own steps, which no other load on the machine changes; a million of them take about 20 ms."""
    path, desk, people, work = full_house
    ada = people[6]
    session = desk.directory.open_session(ada.id)
    for _ in range(3):
        with work.of():
            assert desk.directory.person_of_session(session) == ada
        assert work.kilosteps <= 2
        with work.of():
            found = desk.queue.claim(ada.id)
        assert found is not None
        assert (work.kilosteps <= 10, work.scans(path)) == (True, [])
        with work.of():
            receipt = desk.answers.submit(ada.id, found.task.id, Answer(ranks=(1, 2)), key=f"k {found.task.id}")
            desk.answers.undo(ada.id, receipt.submission_id)
            desk.queue.heartbeat(ada.id, found.task.id)
            desk.queue.save_draft(ada.id, found.task.id, {})
            desk.queue.skip(ada.id, found.task.id, "cannot decide")
        assert (work.kilosteps <= 20, work.scans(path)) == (True, [])
        with work.of():
            assert len(list(desk.reading.submissions(person_id=people[0].id, last=20))) == 20
        assert (work.kilosteps <= 10, work.scans(path)) == (True, [])


def test_the_longest_claim_is_of_who_has_done_all(full_house: tuple[Path, Desk, list[Person], Work]) -> None:
    path, desk, people, work = full_house
    with work.of():
        assert desk.queue.claim(people[0].id) is None  # 10,000 tasks with a free slot, none for this person
    assert (work.kilosteps <= 1000, work.scans(path)) == (True, [])
    with work.of():
        assert desk.reading.standing(people[0].id) == (TASKS, TASKS, 0)
    assert work.kilosteps <= 1500


def test_sums_are_made_in_sql(full_house: tuple[Path, Desk, list[Person], Work]) -> None:
    _, desk, people, work = full_house
    with work.of():
        counts = desk.reading.counts()
        rows = desk.reading.progress()
    assert len(work.statements) <= 8
    assert counts["slots"] == TASKS * OVERLAP
    assert [row.done for row in rows if row.person_id in {p.id for p in people[:5]}] == [TASKS] * 5
    assert sum(1 for _ in desk.reading.submissions(person_id=people[4].id)) == TASKS
