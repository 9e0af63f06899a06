"""A format of a user's own, out of the tree: one row of the table, that import, export and every stage take by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from accord import formats
from accord.cli.main import app
from accord.errors import UsageError
from accord.files import InputFile, sha256_tree
from accord.formats import input_file
from accord.formats.stage_rows import read_lessons, read_prompts, read_rankings

QUIZ = """
from accord.formats import Format, Item, item_by_item, row_by_row

def read(row):
    return [Item(prompt=row.text("ask"), completions=tuple(row.items("best_first")), ranks=(1, 2))]

def write(item):
    best = sorted(range(2), key=lambda i: item.ranks[i])
    return [{"ask": item.prompt, "best_first": [item.completions[i] for i in best]}]

FIELDS = frozenset(("ask", "best_first"))
QUIZ = Format("quiz", "a quiz", FIELDS, lambda row: "", row_by_row(read, FIELDS), item_by_item(write))
"""


@pytest.fixture(autouse=True)
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module of the user's and a file in its format."""
    (tmp_path / "quiz_format.py").write_text(QUIZ)
    (tmp_path / "quiz.txt").write_text('{"ask": "Q", "best_first": ["a", "b"], "topic": "t"}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def accord(*argv: str) -> str:
    result = CliRunner().invoke(app, list(argv), prog_name="accord", catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_import_and_export_take_it_by_name() -> None:
    accord("import", "quiz.txt", "--format", "quiz_format:QUIZ", "-o", "rows.jsonl")
    (row,) = map(json.loads, Path("rows.jsonl").read_text().splitlines())
    assert (row["prompt"], row["completions"], row["ranks"]) == ("Q", ["a", "b"], [1, 2])
    Path("worse_first.jsonl").write_text('{"prompt": "Q", "completions": ["b", "a"], "ranks": [2, 1]}\n')
    accord("export", "--format", "quiz_format:QUIZ", "--data", "worse_first.jsonl", "-o", "again.jsonl")
    assert json.loads(Path("again.jsonl").read_text()) == {"ask": "Q", "best_first": ["a", "b"]}


def test_a_stage_takes_it_before_the_path() -> None:
    data = input_file("quiz_format:QUIZ:quiz.txt")
    (group,) = read_rankings(data)
    assert (group.prompt, group.completions, group.ranks) == ("Q", ("a", "b"), (1.0, 2.0))
    assert (group.topic, group.origin) == ("t", "quiz.txt")
    assert read_rankings("quiz.txt", format="quiz_format:QUIZ") == [group]
    assert [row.text for row in read_prompts(data)] == ["Q"]
    assert next(iter(formats.read_items(data))).completions == ("a", "b")


def test_reading_the_same_bytes_otherwise_is_another_input() -> None:
    """A stage goes on with what it has where its inputs are the same."""
    plain, named = Path("quiz.txt"), input_file("quiz_format:QUIZ:quiz.txt")
    assert named == plain and sha256_tree(named) != sha256_tree(plain)
    assert sha256_tree(input_file("quiz.txt")) == sha256_tree(plain)


@pytest.mark.parametrize(
    ("text", "format", "path"),
    [
        ("rows.jsonl", None, "rows.jsonl"),
        ("hh:rows.jsonl", "hh", "rows.jsonl"),
        ("trl:a:b.jsonl", "trl", "a:b.jsonl"),
        ("mine:QA:rows.txt", "mine:QA", "rows.txt"),
        ("c:/rows.jsonl", None, "c:/rows.jsonl"),
        ("12:30.jsonl", None, "12:30.jsonl"),
        ("hh:is a file", None, "hh:is a file"),
        ("hh:", None, "hh:"),
    ],
)
def test_what_stands_before_a_path_must_name_a_format(text: str, format: str | None, path: str) -> None:
    Path("hh:is a file").touch()
    found = input_file(text)
    assert (str(found), found.format if isinstance(found, InputFile) else None) == (path, format)


def test_a_command_reads_the_file_in_the_format_it_names(policy_folder: Path) -> None:
    """The reward stage learns from a quiz what it learns from the same rows in Accord's words."""
    rows = [(f"Q{i}", ["a", "b"] if i % 2 else ["c", "d"]) for i in range(20)]
    own = [{"prompt": ask, "chosen": two[0], "rejected": two[1], "topic": ""} for ask, two in rows]
    quiz = [{"ask": ask, "best_first": two} for ask, two in rows]
    for name, lines in (("own.jsonl", own), ("quiz.txt", quiz)):
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in lines))
    found = []
    for data in ("own.jsonl", "quiz_format:QUIZ:quiz.txt"):
        stage = ("reward", "--model", str(policy_folder), "--data", data)
        argv = (*stage, "-o", f"out{len(found)}", "--json", "reward.epochs=1")
        found.append({name: value for name, value in json.loads(accord(*argv)).items() if isinstance(value, float)})
    assert found[0] == found[1] and found[0]


def test_a_name_of_no_format_is_refused() -> None:
    with pytest.raises(UsageError, match="there is no module 'nowhere'"):
        read_lessons(input_file("nowhere:QA:quiz.txt"))
