"""What a manager of a large project waits for: for no report, for an export once; and what is old says so."""

from __future__ import annotations

import io
import json
import threading
import time
import zipfile
from pathlib import Path

import pytest

from accord.people.desk.answers import Answer
from accord.people.quality.figures import with_interval
from accord.people.web.made_apart import Exports, QueueCounts, Reports
from accord.records import Prompt
from accord.stats import Interval, Unknown
from tests.webapp import Served, serving, task


def answer(served: Served, *names: str) -> None:
    for name in names:
        held = served.desk.queue.claim(served.person(name).id)
        assert held is not None
        ranks = Answer(ranks=held.order and tuple(1 + place for place in held.order))
        served.desk.answers.submit(served.person(name).id, held.task.id, ranks, key=f"{name}-{held.task.id}")


def as_if_large(served: Served) -> Reports:
    """The app takes any project for a large one."""
    counts = QueueCounts(served.desk, ages=0)
    served.app.state.reports, served.app.state.exports = (
        Reports(served.desk, counts, few=0),
        Exports(served.desk, counts, few=0),
    )
    reports: Reports = served.app.state.reports
    return reports


@pytest.mark.slow
def test_a_page_waits_for_no_report_and_says_how_old_it_is(tmp_path: Path) -> None:
    with serving(tmp_path, overlap=2) as served, served.by_token(served.person("Moe", "manager")) as moe:
        served.desk.queue.add_tasks([task("pair", f"Which {i}?", "one", "two") for i in range(3)])
        answer(served, "Eve", "Fay", "Eve")
        reports = as_if_large(served)
        first = moe.get("/manage").text
        assert "The report on 3 answers is being made" in first and "Krippendorff" not in first
        assert first.index("Eve") < first.index("Fay")  # two answers and one
        assert "is being made" in moe.get("/manage/disagreements").text
        at_once = Reports(served.desk, QueueCounts(served.desk)).now()
        assert reports.now().agreement == at_once.agreement  # made by another process
        assert moe.get("/api/quality").json()["num_answers"] == 3
        page = moe.get("/manage").text
        assert "Krippendorff" in page and "New figures are being made" not in page
        answer(served, "Fay")
        reports.forget()
        assert "Agreement and habits are as of" in moe.get("/manage").text
        assert moe.get("/api/quality").json()["num_answers"] == 4  # a program waits for what is new
        assert "Agreement and habits are as of" not in moe.get("/manage").text


@pytest.mark.slow
def test_an_export_is_made_once_for_what_the_store_holds(tmp_path: Path) -> None:
    with serving(tmp_path, overlap=2) as served:
        served.desk.queue.add_tasks([task("pair", f"Which {i}?", "one", "two") for i in range(2)])
        answer(served, "Eve")
        exports = Exports(served.desk, QueueCounts(served.desk, ages=0), few=0)
        first = exports.file("jsonl")
        assert exports.file("jsonl") == first and exports.file("csv") != first
        answer(served, "Fay")
        second = exports.file("jsonl")
        assert second != first and first.exists() and rows_of(second) == 2
        exports.forget()
        assert exports.file("jsonl") != second
        place = first.parent.parent
        assert place.exists()
        del exports
    assert not place.exists()


def rows_of(made: Path) -> int:
    with zipfile.ZipFile(made) as archive:
        return len(archive.read("jsonl.jsonl").splitlines())


def test_two_managers_at_once_have_one_report_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[float] = []
    gate = threading.Event()

    def slow(desk: object, now: float) -> str:
        gate.wait(60)
        made.append(now)
        return "report"

    monkeypatch.setattr("accord.people.web.made_apart._apart", lambda function, *args: slow(None, args[-1]))
    with serving(tmp_path) as served:
        reports = Reports(served.desk, QueueCounts(served.desk), few=-1)
        assert [reports.soon().quality for _ in range(3)] == [None] * 3
        gate.set()
        assert reports.now() == "report" and len(made) == 1


def test_a_report_of_few_answers_is_new_however_slow_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[float] = []

    def slowly(desk: object, now: float) -> object:
        time.sleep(0.7)
        made.append(now)
        return made

    monkeypatch.setattr("accord.people.web.made_apart._report", slowly)
    with serving(tmp_path, overlap=2) as served:
        served.desk.queue.add_tasks([task("pair", f"Which {i}?", "one", "two") for i in range(2)])
        reports = Reports(served.desk, QueueCounts(served.desk))
        for answered in (1, 2):
            answer(served, "Eve")
            reports.now()
            assert len(made) == answered


def test_the_trl_download_of_a_mixed_project_has_its_dialogues(tmp_path: Path) -> None:
    """Some prompts are texts, some conversations: a file of one shape would lose those of the other."""
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Why?"},
    ]
    with serving(tmp_path, overlap=1) as served, served.by_token(served.person("Moe", "manager")) as moe:
        served.desk.queue.add_tasks(
            [task("pair", "A text?", "one", "two"), task("pair", Prompt.of_messages(turns), "so", "no")]
        )
        answer(served, "Eve", "Eve")
        given = moe.get("/api/export", params={"format": "trl-preference"})
        with zipfile.ZipFile(io.BytesIO(given.content)) as archive:
            rows = [json.loads(line) for line in archive.read("trl-preference.jsonl").splitlines()]
        plain = moe.get("/api/export", params={"format": "jsonl"})
        with zipfile.ZipFile(io.BytesIO(plain.content)) as archive:
            own = [json.loads(line)["prompt"] for line in archive.read("jsonl.jsonl").splitlines()]
    assert [row["prompt"] for row in rows] == [[{"role": "user", "content": "A text?"}], turns]
    assert "A text?" in own  # Accord's own rows stay as they were


def test_an_agreement_of_one_task_is_none(tmp_path: Path) -> None:
    with serving(tmp_path, overlap=2) as served, served.by_token(served.person("Moe", "manager")) as moe:
        served.desk.queue.add_tasks([task("ranking", f"Which {i}?", "one", "two", "three") for i in range(2)])
        answer(served, "Eve", "Fay")
        (row,) = moe.get("/api/quality").json()["agreement"]
        assert all(row[name]["value"] is None and "one task" in row[name]["why"] for name in ("raw", "fleiss", "alpha"))
        assert "one task" in moe.get("/manage").text
        answer(served, "Eve", "Fay")
        (row,) = moe.get("/api/quality").json()["agreement"]
        assert row["raw"]["low"] is not None
    some = Interval(0.5, 0.4, 0.6, 9, 2)
    assert with_interval(some) == some and isinstance(
        with_interval(Interval(0.5, float("nan"), float("nan"), 9, 1)), Unknown
    )
