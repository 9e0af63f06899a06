"""Runs of any algorithm, task and judge in one page: what is compared, what is not and why, and what differs."""

from __future__ import annotations

import json
import re
import shutil
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from test_report import HOSTILE, Page, fabricate
from typer.testing import CliRunner

from accord.cli.main import app
from accord.errors import DataError, UsageError
from accord.files import read_json, read_rows, write_json
from accord.formats.jsonl import write_jsonl
from accord.report.run_page import write_report
from accord.report.side_by_side import side_by_side


def rescored(run: Path, policy: str, lead: float) -> None:
    """Give every sample of a policy its judge's score anew: that of the start's sample plus a lead."""
    rows = read_rows(run / "eval" / "samples.jsonl")
    start = {(row["prompt"], row["sample"]): row["judge"] for row in rows if row["policy"] == "sft"}
    for row in rows:
        if row["policy"] == policy:
            row["judge"] = start[row["prompt"], row["sample"]] + lead
    write_jsonl(run / "eval" / "samples.jsonl", rows)


def changed(run: Path, file: str, **keys: Any) -> None:
    write_json(run / file, read_json(run / file) | keys)


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """A PPO and a GRPO run, judged by one judge on the same films; GRPO is better on each of them."""
    runs = fabricate(tmp_path / "a" / "mine"), fabricate(tmp_path / "b" / "mine", candidate="grpo", uncured=False)
    rescored(runs[0], "ppo", 1.0)
    rescored(runs[1], "grpo", 5.0)
    recipe = read_json(runs[1] / "resolved.json")
    recipe["rl"]["algorithm"] = "grpo"
    write_json(runs[1] / "resolved.json", recipe)
    return runs


def told(page: Path) -> str:
    text = re.sub(r"<style>.*?</style>|<dl class=.glossary.*?</dl>", "", page.read_text(), flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", text)).split())


def test_one_judge_on_the_same_prompts_compares_them(two: tuple[Path, Path], tmp_path: Path) -> None:
    """Every sample of GRPO lies above every one of PPO on its prompt: 100 %, and the strongest stands first."""
    page = side_by_side(two, tmp_path / "page.html")
    text = told(page)
    assert text.startswith("2 runs side by side · Accord")
    assert "b/mine is better than a/mine: " in text and "in 100% of comparisons on 9 shared prompts" in text
    rows = re.findall(r'<tr><th scope="row">([^<]*)</th><td>(1|2)</td>', page.read_text())
    assert rows == [("b/mine", "1"), ("a/mine", "2")]


def test_the_other_order_of_scores_turns_the_verdict(two: tuple[Path, Path], tmp_path: Path) -> None:
    rescored(two[0], "ppo", 9.0)
    assert "a/mine is better than b/mine" in told(side_by_side(two, tmp_path / "page.html"))
    rescored(two[0], "ppo", 5.0)  # the same score: every comparison is a tie
    assert "is not shown to be better" in told(side_by_side(two, tmp_path / "page.html"))


@pytest.mark.parametrize("what", ["judge", "prompts"])
def test_what_cannot_be_compared_is_not(two: tuple[Path, Path], tmp_path: Path, what: str) -> None:
    """Another judge's scores, or the scores of other prompts, say nothing of who is ahead; the page says why."""
    if what == "judge":
        names = read_json(two[1] / "eval/results.json")["judges"]
        changed(two[1], "eval/results.json", judges=dict.fromkeys(names, "b2:of-another"))
    else:
        rows = [row | {"prompt": "Another " + row["prompt"]} for row in read_rows(two[1] / "eval/samples.jsonl")]
        write_jsonl(two[1] / "eval" / "samples.jsonl", rows)
    text = told(side_by_side(two, tmp_path / "page.html"))
    assert "each against its own start: none is compared with another" in text
    assert {"judge": "the judge that decides", "prompts": "test prompts"}[what] in text.split("Run by run")[0]
    assert "is better than" not in text.split("Who says so")[0].split("Each on its own")[0]


def test_settings_that_differ_stand_there_and_no_others(two: tuple[Path, Path], tmp_path: Path) -> None:
    raw = side_by_side(two, tmp_path / "page.html").read_text()
    table = raw.split('aria-label="Settings that differ"')[1].split("</table>")[0]
    keys = re.findall(r"<code>([^<]+)</code>", table)
    assert keys == ["rl.algorithm"] and "<td>ppo</td><td>grpo</td>" in table
    twice = [two[0], Path(shutil.copytree(two[0], tmp_path / "copy"))]
    assert "Nothing that was written down differs" in told(side_by_side(twice, tmp_path / "same.html"))


def test_curves_of_all_runs_lie_in_one_picture(two: tuple[Path, Path], tmp_path: Path) -> None:
    raw = side_by_side(two, tmp_path / "page.html").read_text()
    pictures = re.findall(r'aria-label="(KL to its start[^"]*)"', raw)
    assert len(pictures) == 1 and "a/mine: PPO from" in pictures[0] and "b/mine from" in pictures[0]
    assert "Judge score against KL" in raw


def test_seeds_and_sweeps_stand_for_their_runs(tmp_path: Path) -> None:
    for seed in (0, 1):
        fabricate(tmp_path / "seeds" / f"seed_{seed}", seed=seed)
    page = side_by_side([tmp_path / "seeds"], tmp_path / "page.html")
    assert page.read_text().count('<tr><th scope="row">seed_') >= 4 and "2 runs side by side" in told(page)


def test_several_candidates_of_a_run_are_rows_of_their_own(two: tuple[Path, Path], tmp_path: Path) -> None:
    results = read_json(two[0] / "eval/results.json")
    ppo = next(row for row in results["policies"] if row["name"] == "ppo")
    results["policies"].append(ppo | {"name": "dpo"})
    write_json(two[0] / "eval/results.json", results)
    text = told(side_by_side(two, tmp_path / "page.html"))
    assert "a/mine: PPO" in text and "a/mine: DPO" in text and "3 policies" in text


def test_an_evaluation_without_a_run_stands_beside_a_run(two: tuple[Path, Path], tmp_path: Path) -> None:
    """What `accord eval policy` leaves: results and samples alone."""
    for path in two[1].iterdir():
        if path.name != "eval":
            path.unlink() if path.is_file() else shutil.rmtree(path)
    text = told(side_by_side(two, tmp_path / "page.html"))
    assert "b/mine is better than a/mine" in text and "fewer than two of these runs have logged" in text


def test_hostile_names_and_texts_are_text(two: tuple[Path, Path], tmp_path: Path) -> None:
    results = read_json(two[1] / "eval/results.json")
    results["judges"] = {HOSTILE: "b2:x", **results["judges"]}
    write_json(two[1] / "eval/results.json", results)
    raw = side_by_side(two, tmp_path / "page.html").read_text()
    page = Page(raw)
    assert "<script>alert" not in raw and "<img" not in raw
    assert {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "img"} == set()


def test_the_command(two: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_report(two[0])
    found = CliRunner().invoke(app, ["report", *map(str, two), "--json"], catch_exceptions=False)
    assert json.loads(found.stdout) == {"pages": ["side_by_side.html"]}
    assert 'href="a/mine/report.html"' in Path("side_by_side.html").read_text()
    again = CliRunner().invoke(app, ["report", *map(str, two), "-o", "mine.html"])
    assert again.exit_code == 0 and Path("mine.html").is_file()
    Path("notes.html").write_text("my own words")
    for args in (["a/mine", "a/mine"], ["a/mine", "b/mine", "-o", "notes.html"], ["a/mine", "-o", "one.html"]):
        assert CliRunner().invoke(app, ["report", *args]).exit_code == 2, args
    assert Path("notes.html").read_text() == "my own words"


def test_what_is_no_run_is_refused(two: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "nowhere"):
        with pytest.raises(DataError, match=r"nothing here|no such folder"):
            side_by_side([two[0], tmp_path / folder], tmp_path / "page.html")
    write_json(two[1] / "eval/results.json", {"policies": "none"})
    with pytest.raises(DataError, match="cannot be read"):
        side_by_side(two, tmp_path / "page.html")
    with pytest.raises(UsageError, match="beside itself"):
        side_by_side([two[0], two[0]], tmp_path / "page.html")
