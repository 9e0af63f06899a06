"""In a project no file is named twice: commands take prompts, samples, judgements and models from it, and say so."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from accord.cli.main import app
from accord.cli.project import find_place
from accord.cli.taken import Asked, mark_queued, new_samples
from accord.config import LabelConfig, load_label
from accord.people.desk import Desk
from accord.people.desk.answers import Answer
from accord.store import Store
from tests.webapp import labelling

WriteRows = Callable[[str, Iterable[Mapping[str, Any]]], Path]
LOG = [{"question": f"Who is {name}?", "category": "people", "answer": "no"} for name in ("Ada", "Bob", "Cy", "Di")]
QUICK = ("reward.epochs=1", "reward.precision=fp32")


def call(*argv: object) -> Result:
    done = CliRunner().invoke(app, list(map(str, argv)))
    assert done.exit_code == 0, done.output
    return done


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def project(chat_model: Path, write_rows: WriteRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a bot's log of questions, which is its working directory."""
    log = write_rows("log.jsonl", LOG)
    monkeypatch.chdir(tmp_path)
    call("init", "own", "--model", chat_model)
    monkeypatch.chdir(tmp_path / "own")
    call("import", log, "--prompt-field", "question", "--topic-field", "category")
    return tmp_path / "own"


def judge(project: Path, count: int) -> None:
    """Let Ada prefer the longer text of so many tasks."""
    with Store.open(project / "accord.db") as store:
        desk = Desk(store, LabelConfig())
        ada = next(iter(desk.directory.people()), None) or desk.directory.add_person("Ada", "annotator")
        for _ in range(count):
            task = desk.queue.claim(ada.id)
            assert task is not None
            lengths = [len(one.text) for one in task.shown]
            ranks = tuple(1 + sum(other > length for other in lengths) for length in lengths)
            desk.answers.submit(ada.id, task.task.id, Answer(ranks=ranks), key=task.task.id)


@pytest.mark.slow
def test_from_a_bots_log_to_a_policy_no_file_is_named_twice(project: Path) -> None:
    drawn = call("sample", "sample.max_new_tokens=8")
    assert re.search(r"--model .*model  \(the model of accord\.yaml\)", drawn.stderr)
    assert "--data exports/for-sample.jsonl  (4 of the store's 4 prompts" in drawn.stderr
    assert "nobody was asked about 4 of them yet" in drawn.stderr
    assert drawn.stdout.startswith("16 samples in samples.jsonl") and drawn.stdout.count("wrote:") == 3
    assert "asked: Who is Ada?" in drawn.stdout and "next: accord label   (queues them" in drawn.stdout
    # What the user said is laid out as a chat, as the project's recipe says it.
    rows = rows_of(project / "samples.jsonl")
    assert rows[0]["prompt"] == [{"role": "user", "content": "Who is Ada?"}] and rows[0]["topic"] == "people"
    with labelling(".", cwd=project) as (told, _):
        assert (told["added"], told["left_out"]) == (4, {})
    with labelling(".", cwd=project) as (told, _):
        assert "added" not in told
    judge(project, 3)
    taught = call("reward", *QUICK)
    assert "--data exports/for-reward.jsonl  (3 rankings by people, of the store)" in taught.stderr
    assert "--output-dir reward  (a folder of the project)" in taught.stderr and "next: accord rl" in taught.stdout
    policy = call("rl", "rl.iterations=1", "rl.prompts_per_iteration=4", "rl.minibatches=1", "rl.max_new_tokens=4")
    assert "--reward-model reward/model  (what `accord reward` made)" in policy.stderr
    assert "--data exports/for-rl.jsonl  (4 of the store's 4 prompts)" in policy.stderr
    assert (project / "rl/model/README.md").is_file() and "next: accord sample --model rl/model" in policy.stdout
    assert "reward  reward: too few judgements" in call("status").stdout


def test_prompts_that_nobody_was_asked_about_come_first(project: Path) -> None:
    text = (project / "accord.yaml").read_text().replace("prompts: 120", "prompts: 2")
    (project / "accord.yaml").write_text(text)
    first = call("sample", "sample.max_new_tokens=4").stderr
    assert "2 of the store's 4 prompts, at most ask.prompts (2); nobody was asked about 2 of them yet" in first
    asked = {row["prompt"][0]["content"] for row in rows_of(project / "samples.jsonl")}
    home = find_place(None)
    with Store.open(home.store) as store:
        from accord.cli.people import _add

        assert _add(Desk(store, load_label([], defaults=home.label)), project / "samples.jsonl", None).added == 2
    call("sample", "sample.max_new_tokens=4")
    others = {row["prompt"][0]["content"] for row in rows_of(project / "samples.jsonl")}
    # The queue holds the first two as messages, the store as text: they are the same questions.
    assert len(asked) == len(others) == 2 and not asked & others


def test_samples_are_new_until_they_were_queued(project: Path) -> None:
    home, samples = find_place(None), project / "samples.jsonl"
    assert new_samples(home) is None
    samples.write_text("{}\n")
    assert new_samples(home) == samples
    mark_queued(samples)
    assert new_samples(home) is None
    samples.write_text("{}\n{}\n")
    assert new_samples(home) == samples


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("sample",), "--model is missing"),
        (("sft", "--model", "m", "-o", "out"), "--data is missing"),
        (("reward", "--model", "m", "--data", "d"), "--output-dir is missing"),
        (("pretrain", "--texts", "t", "-o", "out"), "--valid-texts is missing"),
    ],
)
def test_without_a_project_what_is_missing_is_named(
    argv: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, argv)
    assert done.exit_code == 2 and says in done.stderr
    assert ("in a project (`accord init`) it may be left out" in done.stderr) == (argv[0] != "pretrain")


@pytest.mark.parametrize(
    ("command", "override", "kinds"),
    [
        ("reward", "reward.loss=plackett_luce", ("ranking",)),
        ("reward", "reward.loss=binary", ("label",)),
        ("reward", "reward.loss=regression", ("rating",)),
        ("reward", "reward.loss=mine:LOSS", ("ranking",)),
        ("dpo", "dpo.loss=ipo", ("ranking",)),
        ("dpo", "dpo.loss=kto", ("ranking", "label")),
        ("sft", "sft.epochs=1", ("demonstration", "conversation")),
    ],
)
def test_a_command_takes_what_its_loss_reads(command: str, override: str, kinds: tuple[str, ...]) -> None:
    assert Asked(command, None, (override,)).kinds() == kinds


def test_a_project_without_judgements_says_so(project: Path) -> None:
    done = CliRunner().invoke(app, ["reward"])
    assert done.exit_code == 3 and "Traceback" not in done.stderr and not (project / "reward").exists()
