"""The table of all prompts before and after: its marks by hand, and how many it shows of how many."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_report import fabricate

from accord.evals.goodhart import GoodhartCurve, GoodhartPoint
from accord.evals.results import plain
from accord.files import write_json
from accord.formats.jsonl import write_jsonl
from accord.report import answers_table as table
from accord.report.redraw import redraw
from accord.report.run_folder import CURVES_FILE, read_run
from accord.report.run_page import write_report
from accord.stats import bootstrap_by_cluster, fit_gold_law


def answered(
    policy: str, prompt: str, text: str, judge: float, proxy: float, tokens: int, **more: Any
) -> dict[str, Any]:
    row = {"policy": policy, "topic": "", "prompt": prompt, "sample": 0, "completion": text, "judge": judge}
    return {**row, "proxy": proxy, "tokens": tokens, "finished": True, **more}


def with_samples(run: Path, rows: list[dict[str, Any]]) -> Path:
    write_jsonl(run / "eval" / "samples.jsonl", rows)
    return run


def test_marks_by_hand(tmp_path: Path) -> None:
    """The score rises and the judge falls; twice as long; cut; the same words; a tie."""
    run = with_samples(
        fabricate(tmp_path / "run"),
        [
            answered("sft", "P1", "short", 1.0, 0.0, 10),
            answered("ppo", "P1", "much longer", 0.5, 3.0, 20),
            answered("sft", "P2", "the same words", 1.0, 1.0, 30),
            answered("ppo", "P2", " the  same words ", 1.0, 1.0, 15, finished=False),
            answered("sft", "P3", "a", 1.0, 1.0, 4),
            answered("ppo", "P3", "b", 2.0, 0.5, 5),
            answered("sft", "P4", "of the start alone", 1.0, 1.0, 4),
        ],
    )
    found = table.answers_table(read_run(run))
    assert [row["marks"] for row in found["rows"]] == [
        ["before", "gamed", "longer"],
        ["tie", "shorter", "cut", "alike"],
        ["after"],
    ]
    assert found["of"] == 3 and found["rows"][0]["change"] == -0.5
    assert found["rows"][0]["told"] == [("Ratings", "-0.50"), ("Proxy", "+3.00")]
    assert [mark for mark, _ in found["filters"]] == [
        "after", "before", "tie", "gamed", "longer", "shorter", "cut", "alike"
    ]  # fmt: skip


def test_judges_that_disagree_are_marked(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run")
    results = read_run(run).need("eval/results.json")
    write_json(run / "eval/results.json", {**results, "judges": {"one": "", "two": ""}})
    rows = [answered("sft", "P", "x", 0.0, 0.0, 4, **{"judge:two": 0.0})]
    rows += [answered("ppo", "P", "y", 1.0, 1.0, 4, **{"judge:two": -1.0})]
    [row] = table.answers_table(read_run(with_samples(run, rows)))["rows"]
    assert row["marks"] == ["after", "split"]


def test_of_many_prompts_some_are_drawn_by_the_seed_and_the_page_says_of_how_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "MOST_PROMPTS_SHOWN", 5)
    run = fabricate(tmp_path / "run")
    page = write_report(run).read_text()
    assert "5 of 9 test prompts, drawn by the seed" in page and page.count("<tr data-change=") == 5
    assert write_report(run).read_text() == page
    other = write_report(fabricate(tmp_path / "other", seed=3)).read_text()
    shown = [re.findall(r"<tr data-change.*?<blockquote>(.*?)</blockquote>", one) for one in (page, other)]
    assert len(shown[0]) == 5 and shown[0] != shown[1] and shown[0] == sorted(shown[0])  # in the order of the file


def curves_of(seed: int = 0) -> dict[str, Any]:
    """What `accord eval goodhart` writes, of gold that peaks at d = 1.5 / (2 * 0.5)."""
    rng, kl = np.random.default_rng(seed), np.array([0.2, 0.6, 1.2, 2.0, 4.0, 6.0])
    d = np.sqrt(kl)
    gold = (d * (1.5 - 0.5 * d))[:, None] + rng.normal(0, 0.05, (6, 30))
    law = fit_gold_law("best_of_n", gold, kl, resamples=200)
    points = tuple(
        GoodhartPoint(f"n = {i}", *(bootstrap_by_cluster(of, resamples=50) for of in (np.full(30, k), g, 2 * g + 0.1)))
        for i, (k, g) in enumerate(zip(kl, gold, strict=True))
    )
    curve = GoodhartCurve("reward_model", "best_of_n", points, law)
    return {"prompts": 30, "topics": 30, "samples_per_prompt": 64, "curves": plain((curve,))}


def test_what_was_measured_of_over_optimisation_stands_in_the_report_of_its_run(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run")
    assert "Where optimising stops to help" not in write_report(run).read_text()
    write_json(run / CURVES_FILE, curves_of())
    assert redraw(run) == [run / "goodhart/report.html", run / "report.html"]
    page = (run / "report.html").read_text()
    assert "gold peaks at a KL of 2." in page and 'href="goodhart/report.html"' in page  # (1.5 / (2 * 0.5)) ** 2 = 2.25
    assert "Gold along the distance" in page and "gold peaks" in (run / "goodhart/report.html").read_text()
    (run / CURVES_FILE).write_text("{")
    broken = write_report(run).read_text()
    assert "Left out: goodhart/curves.json" in broken
