"""A run's stages: skipped when settings and input contents are the same, redone otherwise, never half believed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from accord.config import load_recipe
from accord.errors import UsageError
from accord.loop.cache import Inputs, Log, Runner, Stage
from accord.loop.round import control_note


class Work:
    """A stage's work that counts its calls and may die half-way."""

    def __init__(self) -> None:
        self.calls, self.dies = 0, False

    def __call__(self, inputs: Inputs, folder: Path, log: Log) -> Any:
        self.calls += 1
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "result").write_text(f"half {self.calls}")
        if self.dies:
            raise KeyboardInterrupt
        (folder / "result").write_text(f"whole {self.calls}")
        return {"call": self.calls}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "input.jsonl"
    path.write_text("one")
    return path


def stage(run: Path, work: Work, source: Path, resume: bool = True, **settings: Any) -> Any:
    runner = Runner(run, {"s": 1.0}, resume, lambda fraction, text: None)
    return runner.run(Stage("s", settings, {"source": source}, work))


def test_a_finished_stage_is_skipped_until_settings_or_contents_change(tmp_path: Path, source: Path) -> None:
    work = Work()
    assert stage(tmp_path / "run", work, source, lr=1) == {"call": 1}
    assert stage(tmp_path / "run", work, source, lr=1) == {"call": 1}
    assert stage(tmp_path / "run", work, source, lr=2) == {"call": 2}
    source.write_text("two")
    assert stage(tmp_path / "run", work, source, lr=2) == {"call": 3}
    source.touch()  # the same contents at another time
    assert stage(tmp_path / "run", work, source, lr=2) == {"call": 3}
    assert stage(tmp_path / "run", work, source, resume=False, lr=2) == {"call": 4}


def test_a_run_may_go_on_on_another_device(tmp_path: Path, source: Path) -> None:
    made: list[str] = []

    def stage(device: str) -> None:
        settings = {"rl": {"config": {"kl_coef": 0.1, "device": device}}}
        runner = Runner(tmp_path, {"one": 1.0}, True, lambda fraction, text: None)
        runner.run(Stage("one", settings, {"in": source}, lambda inputs, folder, log: made.append(device)))

    stage("cpu")
    stage("cuda")
    assert made == ["cpu"]


def test_what_other_settings_half_overwrote_is_not_taken_for_the_old_result(tmp_path: Path, source: Path) -> None:
    work = Work()
    stage(tmp_path / "run", work, source, lr=1)
    work.dies = True
    with pytest.raises(KeyboardInterrupt):
        stage(tmp_path / "run", work, source, lr=2)
    work.dies = False
    assert stage(tmp_path / "run", work, source, lr=1) == {"call": 3}
    assert (tmp_path / "run" / "s" / "result").read_text() == "whole 3"


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "\xff", '{"identity": 1}', '{"seconds": "x"}'])
def test_what_is_damaged_beside_a_stage_does_not_end_the_run(content: str, tmp_path: Path, source: Path) -> None:
    work, heard = Work(), list[str]()
    stage(tmp_path / "run", work, source)
    (tmp_path / "run/s/stage.json").write_text(content, encoding="latin-1")
    (tmp_path / "run/s/running.json").write_text(content, encoding="latin-1")
    runner = Runner(tmp_path / "run", {"s": 1.0}, True, lambda done, text: heard.append(text))
    assert runner.run(Stage("s", {}, {"source": source}, work)) == {"call": 2}
    assert [text for text in heard if "is damaged" in text and "stage.json" in text]
    assert [text for text in heard if "is damaged" in text and "running.json" in text]


def test_a_control_changes_what_it_names_and_the_note_says_so() -> None:
    changes = ["controls.uncured.rl.kl_coef=0.01", "controls.uncured.rl.iterations=3", "rl.length_coef=0.25"]
    recipe = load_recipe("demo", changes)
    bare = recipe.control("uncured")
    assert (bare.kl_coef, bare.length_coef, bare.iterations) == (0.01, 0.0, 3)
    assert bare.critic == recipe.rl.critic and bare.clip == recipe.rl.clip
    note = control_note(recipe, "uncured")
    assert "kl_coef 0.01 instead of 0.05" in note and "length_coef 0.0 instead of 0.25" in note
    assert "iterations 3 instead of" in note and "actor.lr" in note and "clip" not in note


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["uncured.iterations=3"], "controls: {uncured: {rl: {...}}}"),
        (["queue.prompts=3"], "ask.queue"),
        (["data.deals=3"], "task.options"),
        (["controls={x: {dpo: {}}}"], "controls.x has dpo: give rl, as optimise says"),
        (["optimise=dpo", "controls={x: {rl: {}}}"], "controls.x has rl: give dpo, as optimise says"),
        (["optimise=dpo", "controls={x: {dpo: {dpo_betta: 1}}}"], "controls.x.dpo.dpo_betta"),
        (["controls={x: {rl: {kl_coeff: 1}}}"], "controls.x.rl.kl_coeff"),
        (["controls={../x: {rl: {}}}"], "cannot be called so"),
        (["task.options={deals: 1}"], "options are for a task of your own"),
        (["task={use: store, judgements: x.jsonl}"], "brings its own"),
        (["task={judge_share: 0.5, valid_share: 0.3, test_share: 0.2}"], "leave nothing to train on"),
        (["ask.who=scorer"], "give both or neither"),
        (["ask.who=peple"], "did you mean 'people'"),
    ],
)
def test_what_moved_says_where_and_what_cannot_be_is_refused(overrides: list[str], told: str) -> None:
    with pytest.raises(UsageError) as refused:
        load_recipe(None, overrides)
    assert told in str(refused.value)


def test_a_stage_of_another_run_is_taken_over_where_it_is_the_same(tmp_path: Path, source: Path) -> None:
    work = Work()
    stage(tmp_path / "first", work, source, lr=1)

    def second(**settings: Any) -> Any:
        runner = Runner(tmp_path / "second", {"s": 1.0}, True, lambda fraction, text: None, [tmp_path / "first"])
        return runner.run(Stage("s", settings, {"source": source}, work))

    assert second(lr=1) == {"call": 1}
    assert (tmp_path / "second" / "s" / "result").read_text() == "whole 1"
    assert second(lr=2) == {"call": 2}
    assert (tmp_path / "second" / "s" / "result").read_text() == "whole 2"
    assert (tmp_path / "first" / "s" / "result").read_text() == "whole 1"  # nothing wrote through a shared file
    assert stage(tmp_path / "first", work, source, lr=1) == {"call": 1}  # the lender has kept its own stamp
