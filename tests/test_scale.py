"""Runs in several processes: what a plan says of them, what is refused, and a whole run with every stage in two."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import WriteRows
from test_plan import ASKED, JUDGE, TINY

from accord.cli.plans import plan_text
from accord.config import Recipe, load_recipe
from accord.errors import UsageError
from accord.loop.costs import ModelSize
from accord.loop.layout import iteration_lines, layout_lines
from accord.loop.plan import plan_run
from accord.loop.run import check_recipe, run
from accord.store import Store


@pytest.fixture
def recipe(chat_model: Path, write_rows: WriteRows) -> Any:
    """``recipe(*overrides)``: a run of a chat model on 40 short prompts."""
    prompts = write_rows("prompts.jsonl", [{"prompt": asked} for asked in ASKED[:-1]])
    given = [f"base.model={chat_model}", f"task.prompts={prompts}", "task.judge_share=0", *TINY, JUDGE]

    def make(*overrides: str) -> Recipe:
        return load_recipe(None, [*given, *overrides])

    return make


# ---- what is said and refused before a run


def test_one_process_has_no_layout(recipe: Any, tmp_path: Path) -> None:
    assert plan_run(recipe(), output_dir=tmp_path / "run").layout == ()
    assert "processes" not in plan_text(plan_run(recipe(), output_dir=tmp_path / "run"))


def test_the_plan_says_what_lies_where(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: a billion weights, 16 bytes each while they train and 4 while they stand still."""
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    size = ModelSize(1_000_000_000, 2048, 24, 4096)
    first, split, reference, reward, *_ = layout_lines(load_recipe(None, ["scale.ranks=3"]), size)
    assert first.startswith("3 processes in each training stage") and "each with 2 of 6 CPU threads" in first
    assert "5.33 GB each of 16.00 GB" in split
    assert (reference, reward) == (
        "whole in each: the reference, about 4.00 GB",
        "whole in each: the reward model, about 4.00 GB",
    )
    with_adapter = layout_lines(load_recipe(None, ["scale.ranks=3", "rl.lora.rank=4"]), size)
    assert not any("reference" in line for line in with_adapter)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "each with a GPU of its own" in layout_lines(load_recipe(None, ["scale.ranks=3"]), None)[0]


def test_the_plan_says_who_draws(recipe: Any, tmp_path: Path) -> None:
    """By hand: an iteration is the stage's seconds over its iterations, here 30 over the 2 of TINY."""
    size = ModelSize(1_000_000_000, 2048, 24, 4096)
    given = load_recipe(None, ["scale.ray=auto", "scale.rollout_workers=3"])
    (workers,) = layout_lines(given, size)
    assert workers.startswith("3 rollout workers with Accord's engine") and "each about 4.00 GB" in workers
    (vllm,) = layout_lines(load_recipe(None, ["scale.rollout=vllm"]), None)
    assert vllm.startswith("1 rollout worker of vLLM, in its own environment")
    assert layout_lines(load_recipe(None, ["scale.ray=auto"]), None) == [
        "each training stage in a process placed by Ray (auto)"
    ]
    assert iteration_lines(recipe(), 30.0) == [] == iteration_lines(recipe("scale.ranks=2"), None)
    assert "about 15.0 s (7.5 to 30.0)" in iteration_lines(recipe("scale.ranks=2"), 30.0)[0]
    plan = plan_run(recipe("scale.ranks=2"), output_dir=tmp_path / "run")
    assert plan.layout[-1].startswith("an iteration of rl takes about")


def test_the_layout_stands_in_the_plan_that_is_printed(recipe: Any, tmp_path: Path) -> None:
    plan = plan_run(recipe("scale.ranks=2"), output_dir=tmp_path / "run")
    text = " ".join(plan_text(plan).split())
    assert plan.layout and all(" ".join(line.split()) in text for line in plan.layout)


def test_what_several_processes_cannot_train_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"scale\.ranks is 2, and model\.kind is lstm"):
        check_recipe(load_recipe("smoke", ["scale.ranks=2", "model.kind=lstm"]), [])
    check_recipe(load_recipe("smoke", ["scale.ranks=1", "model.kind=lstm"]), [])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match=r"scale\.ranks is 3, and there are 2 GPUs"):
        check_recipe(load_recipe("smoke", ["scale.ranks=3"]), [])


# ---- a whole run


@pytest.mark.slow
def test_a_whole_run_in_two_processes(recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stage is done, and by its identity done for one process too: a run goes on with any number of them."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    said: list[str] = []
    summary = run(
        recipe("scale.ranks=2"), output_dir=tmp_path / "run", log=lambda fraction, text: said.append(str(text))
    )
    assert json.loads((tmp_path / "run/summary.json").read_text()) == json.loads(json.dumps(summary))
    assert (tmp_path / "run/model/model.safetensors").exists() and (tmp_path / "run/report.html").exists()
    steps = [json.loads(line)["step"] for line in (tmp_path / "run/rl/metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 1] and any("reward" in line for line in said)
    assert plan_run(recipe("scale.ranks=1"), output_dir=tmp_path / "run").is_done


@pytest.mark.slow
@pytest.mark.parametrize("place", ["postgresql"], indirect=True)
def test_a_whole_run_whose_facts_stand_in_postgresql(recipe: Any, place: str, tmp_path: Path) -> None:
    """Beside the same run on SQLite: the same facts, and the same numbers of both trainings."""
    for name, store in (("sqlite", None), ("postgresql", place)):
        run(recipe(), output_dir=tmp_path / name, store=store)
    with Store.open(tmp_path / "sqlite/accord.db") as ours, Store.open(place) as theirs:
        assert ours.counts() == theirs.counts()
        facts = [sorted(one.id for one in store.rankings()) for store in (ours, theirs)]
    assert facts[0] == facts[1] and facts[0]
    for stage in ("reward", "rl"):
        assert numbers(tmp_path / "sqlite" / stage) == numbers(tmp_path / "postgresql" / stage)
    assert not (tmp_path / "postgresql/accord.db").exists()


def numbers(stage: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
