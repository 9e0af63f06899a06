"""Completions of a file into the queue: grouped by prompt, once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from accord import formats
from accord.config import LabelConfig
from accord.errors import DataError
from accord.people.desk import Desk
from accord.people.intake import groups_of, queue_groups
from accord.records import Source
from accord.store import Store
from tests.webapp import labelling

ASKED = [{"role": "user", "content": "Which film?"}]
SAMPLES = [
    *({"prompt": "Film: Ran\nReview:", "completion": text, "topic": "Ran"} for text in (" A.", " B.", " A.", " C.")),
    *({"prompt": ASKED, "completion": text} for text in ("Heat.", "Ran.")),
    {"prompt": "Alone:", "completion": " One."},
]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with Store.open(tmp_path / "accord.db") as store:
        yield Desk(store, LabelConfig())


def queue(desk: Desk, path: Path, rows: list[dict[str, Any]], **options: Any) -> int:
    file = path / "samples.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    groups = groups_of(formats.read_items(file), Source(origin="policy", name="sft"))
    return queue_groups(desk, groups, **({"serve_as": "ranking", "origin": "samples.jsonl"} | options))


def test_samples_become_one_task_a_prompt(desk: Desk, tmp_path: Path) -> None:
    assert queue(desk, tmp_path, SAMPLES) == 2
    plain, chat = desk.queue.tasks()
    assert (plain.prompt.text, plain.prompt.topic) == ("Film: Ran\nReview:", "Ran")
    assert [completion.text for completion in plain.completions] == [" A.", " B.", " C."]
    assert chat.prompt.turns() == ASKED
    assert [completion.text for completion in chat.completions] == ["Heat.", "Ran."]
    assert {(task.kind, task.origin, c.source.name) for task in (plain, chat) for c in task.completions} == {
        ("ranking", "samples.jsonl", "sft")
    }


@pytest.mark.parametrize("serve_as", ["ranking", "pairs", "rating", "label"])
def test_the_same_file_queues_nothing_twice(serve_as: str, desk: Desk, tmp_path: Path) -> None:
    made = {"ranking": 2, "pairs": 3 + 1, "rating": 3, "label": 3}[serve_as]
    assert [queue(desk, tmp_path, SAMPLES, serve_as=serve_as) for _ in range(2)] == [made, 0]
    more = [*SAMPLES, {"prompt": "Alone:", "completion": " Two."}]
    assert queue(desk, tmp_path, more, serve_as=serve_as) == 1
    assert len(list(desk.queue.tasks())) == made + 1


def test_a_group_as_random_pairs(desk: Desk, tmp_path: Path) -> None:
    rows = [{"prompt": "P", "completion": f" {i}."} for i in range(6)]
    assert queue(desk, tmp_path, rows, serve_as="pairs", num_pairs=7) == 7
    tasks = list(desk.queue.tasks())
    assert len({task.group for task in tasks}) == 1 and tasks[0].group
    assert {len(task.completions) for task in tasks} == {2}
    assert len({c.id for task in tasks for c in task.completions}) == 6
    assert queue(desk, tmp_path, rows, serve_as="pairs", num_pairs=7) == 0


def test_a_group_that_cannot_be_served_queues_nothing(desk: Desk, tmp_path: Path) -> None:
    rows = [*SAMPLES, *({"prompt": "P", "completion": f" {i}."} for i in range(12))]
    with pytest.raises(DataError, match="9"):
        queue(desk, tmp_path, rows)
    assert list(desk.queue.tasks()) == []


@pytest.mark.slow
def test_accord_label_queues_a_file(tmp_path: Path) -> None:
    rows = [{"prompt": "P", "completion": f" {i}."} for i in range(4)]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Store.open(tmp_path / "accord.db"):
        pass
    for added in (2, 0):
        with labelling(".", "--add", "samples.jsonl", "--pairs", "2", "kind=pair", cwd=tmp_path) as (told, _):
            assert told["added"] == added
    with Store.open(tmp_path / "accord.db") as store:
        tasks = list(Desk(store, LabelConfig()).queue.tasks())
    assert [(task.kind, task.origin, len(task.completions)) for task in tasks] == [("pair", "samples.jsonl", 2)] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--add", "none.jsonl"), "no such file"),
        (("--add", "samples.jsonl", "--pairs", "2"), "no effect where kind=ranking"),
        (("--pairs", "2"), "no effect without --add"),
        (("--add", "samples.jsonl", "--pairs", "9", "kind=pair"), "9 pairs of 2 completions"),
    ],
)
def test_what_cannot_be_queued_is_told_before_anything_is_served(
    words: tuple[str, ...], told: str, tmp_path: Path
) -> None:
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps({"prompt": "P", "completion": t}) + "\n" for t in "ab"))
    with Store.open(tmp_path / "accord.db") as store:
        command = [sys.executable, "-m", "accord", "label", ".", *words, "--port", "0"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode in (2, 3) and told in done.stderr
        assert list(Desk(store, LabelConfig()).queue.tasks()) == []
