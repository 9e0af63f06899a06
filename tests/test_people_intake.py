"""Completions of a file into the queue: grouped by prompt, once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from accord import formats
from accord.cli.main import app
from accord.config import LabelConfig
from accord.errors import DataError
from accord.people.desk import Desk
from accord.people.desk.answers import Answer
from accord.people.intake import Queued, groups_of, queue_groups
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


def queued(desk: Desk, path: Path, rows: list[dict[str, Any]], **options: Any) -> Queued:
    file = path / "samples.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    groups = groups_of(formats.read_items(file), Source(origin="policy", name="sft"))
    return queue_groups(desk, groups, **({"serve_as": "ranking", "origin": "samples.jsonl"} | options))


def queue(desk: Desk, path: Path, rows: list[dict[str, Any]], **options: Any) -> int:
    return queued(desk, path, rows, **options).added


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


def test_rows_of_one_prompt_are_gathered_wherever_they_stand(desk: Desk, tmp_path: Path) -> None:
    rows = [{"prompt": p, "completion": f" {p}{i}.", "model": f"m{i}"} for i in range(2) for p in ("P", "Q", "R")]
    assert queue(desk, tmp_path, rows) == 3
    assert [[one.text for one in task.completions] for task in desk.queue.tasks()] == [
        [f" {p}0.", f" {p}1."] for p in "PQR"
    ]


def test_what_makes_no_task_is_told_with_what_would(desk: Desk, tmp_path: Path) -> None:
    rows = [
        {"prompt": "Alone:", "completion": " One."},
        {"prompt": "Twice:", "completion": " Same."},
        {"prompt": "Twice:", "completion": " Same."},
        *({"prompt": "Both:", "completion": f" {i}."} for i in range(2)),
    ]
    found = queued(desk, tmp_path, rows)
    assert (found.added, found.already) == (1, 0)
    few, same = found.left_out.items()
    assert few[1] == 1 and "fewer completions than the 2 that a ranking compares" in few[0]
    assert "sample.samples_per_prompt" in few[0] and "kind=label" in few[0]
    assert same[1] == 1 and "all the same text" in same[0]
    again = queued(desk, tmp_path, rows)
    assert (again.added, again.already, sum(again.left_out.values())) == (0, 1, 2)


def test_prompts_alone_wait_for_completions_or_for_people_who_write(desk: Desk, tmp_path: Path) -> None:
    rows = [{"prompt": "P"}, {"prompt": "Q"}]
    found = queued(desk, tmp_path, rows, serve_as="label")
    [(why, count)] = found.left_out.items()
    assert (found.added, count) == (0, 2) and "accord sample" in why and "kind=demonstration" in why
    assert queued(desk, tmp_path, rows, serve_as="demonstration").added == 2


def test_a_prompt_that_gains_a_completion_is_asked_only_what_is_new(desk: Desk, tmp_path: Path) -> None:
    rows = [{"prompt": "P", "completion": f" {x}."} for x in "ab"]
    more = [*rows, {"prompt": "P", "completion": " c."}]
    assert [queue(desk, tmp_path, one, serve_as="pairs", only_new=True) for one in (rows, more, more)] == [1, 2, 0]
    pairs = [frozenset(one.text.strip(" .") for one in task.completions) for task in desk.queue.tasks()]
    assert sorted("".join(sorted(pair)) for pair in pairs) == ["ab", "ac", "bc"]
    assert [queue(desk, tmp_path, one, serve_as="label", only_new=True) for one in (rows, more, more)] == [1, 1, 0]
    *_, first, second = desk.queue.tasks()
    assert [len(first.completions), [one.text for one in second.completions]] == [2, [" c."]]


def test_a_row_says_who_wrote_it(desk: Desk, tmp_path: Path) -> None:
    rows = [
        {"prompt": "P", "completion": " a.", "model": "old", "source": "faq", "topic": "t", "day": 3},
        {"prompt": "P", "completion": " b.", "source": "new", "topic": "t"},
        {"prompt": "Q", "completions": [" c.", " d."], "model": ["old", "new"]},
        {"prompt": "R", "completion": " e."},
        {"prompt": "R", "completion": " f."},
    ]
    assert queue(desk, tmp_path, rows) == 3
    tasks = list(desk.queue.tasks())
    assert [[one.source.name for one in task.completions] for task in tasks] == [["old", "new"]] * 2 + [["sft"] * 2]
    # What else the row says stays with the prompt; what it says of one completion does not.
    assert (tasks[0].prompt.topic, tasks[0].prompt.meta) == ("t", {"source": "faq", "day": "3"})


def test_a_conversation_is_a_prompt_with_its_last_answer(desk: Desk, tmp_path: Path) -> None:
    rows = [{"messages": [*ASKED, {"role": "assistant", "content": text}]} for text in ("Heat.", "Ran.")]
    assert queue(desk, tmp_path, rows) == 1
    [task] = desk.queue.tasks()
    assert task.prompt.turns() == ASKED and [one.text for one in task.completions] == ["Heat.", "Ran."]


def test_what_was_queued_can_be_taken_out_and_queued_again(desk: Desk, tmp_path: Path) -> None:
    rows = [{"prompt": p, "completion": f" {p}{i}."} for p in "PQR" for i in range(2)]
    ada = desk.directory.add_person("Ada", "annotator")
    bob = desk.directory.add_person("Bob", "annotator")
    assert queue(desk, tmp_path, rows) == 3
    answered, begun = (desk.queue.claim(person.id) for person in (ada, bob))
    assert answered is not None and begun is not None
    desk.answers.submit(ada.id, answered.task.id, Answer(ranks=(1, 2)), key="k")
    assert desk.queue.remove("samples.jsonl") == (1, 1, 1)  # nobody saw it; Bob is at it; Ada has answered it
    assert desk.queue.claim(ada.id) is None and desk.queue.claim(bob.id) is None
    # What Bob was at is kept when he sends it, and so is Ada's.
    assert desk.answers.submit(bob.id, begun.task.id, Answer(ranks=(2, 1)), key="k").extra
    assert len(list(desk.reading.submissions())) == 2
    assert desk.queue.remove("samples.jsonl") == (0, 0, 2) and desk.queue.origins() == {}
    assert queue(desk, tmp_path, rows) == 1  # the one that is gone


def test_a_group_that_cannot_be_served_queues_nothing(desk: Desk, tmp_path: Path) -> None:
    rows = [*SAMPLES, *({"prompt": "P", "completion": f" {i}."} for i in range(12))]
    with pytest.raises(DataError, match="9"):
        queue(desk, tmp_path, rows)
    assert list(desk.queue.tasks()) == []


def test_accord_label_takes_a_file_out_of_the_queue(tmp_path: Path) -> None:
    with Store.open(tmp_path / "accord.db") as store:
        rows = [{"prompt": "P", "completion": f" {i}."} for i in range(4)]
        assert queue(Desk(store, LabelConfig()), tmp_path, rows, serve_as="pairs") == 6
    done = CliRunner().invoke(app, ["label", str(tmp_path), "--remove", str(tmp_path / "samples.jsonl")])
    assert done.exit_code == 0 and done.stdout.startswith("6 tasks of"), done.output
    again = CliRunner().invoke(app, ["label", str(tmp_path), "--remove", "samples.jsonl"])
    assert again.exit_code == 2 and "nothing waits" in again.stderr


@pytest.mark.slow
def test_accord_label_queues_a_file(tmp_path: Path) -> None:
    rows = [{"prompt": "P", "completion": f" {i}."} for i in range(4)]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Store.open(tmp_path / "accord.db"):
        pass
    for added, already in ((2, 0), (0, 1)):
        with labelling(".", "--add", "samples.jsonl", "--pairs", "2", "kind=pair", cwd=tmp_path) as (told, _):
            assert (told["added"], told["already"], told["left_out"]) == (added, already, {})
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
        (("--remove", "mine.jsonl"), "no task in the queue came from 'mine.jsonl'"),
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
