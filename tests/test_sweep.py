"""Sweeps: every combination once, each in its own folder, continued where it stopped, and one report over all."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import TEXTS, WriteRows
from test_cli import Done
from test_report import results_of

from accord.config import Recipe, load_recipe
from accord.errors import DataError, UsageError
from accord.grid import Combination, folder_name, grid
from accord.loop import sweep_stage
from accord.report.figures import candidate_line
from accord.report.names import Names
from accord.report.sweep_page import Outcome, of_stage, write_sweep_report


def load(more: Sequence[str]) -> Recipe:
    return load_recipe(None, more)


# -- grids -------------------------------------------------------------------------------------------------------------


def test_every_combination_stands_once_the_last_key_changing_fastest() -> None:
    points = grid(["rl.kl_coef=.01,0.2", "seed=0,1,2"], load)
    assert [(point.recipe.rl.kl_coef, point.recipe.seed) for point in points] == [
        (0.01, 0), (0.01, 1), (0.01, 2), (0.2, 0), (0.2, 1), (0.2, 2),
    ]  # fmt: skip
    assert points[1].name == "rl.kl_coef=.01,seed=1"
    assert points[1].values == {"rl.kl_coef": ".01", "seed": "1"}


def test_a_value_is_yaml_and_may_hold_commas() -> None:
    points = grid(["rl.actor.betas=[0.9,0.95], [0.8, 0.9]", "rl.rewards=[{regex: 'a,b'}],[]"], load)
    assert [point.recipe.rl.actor.betas for point in points[::2]] == [(0.9, 0.95), (0.8, 0.9)]
    assert points[0].recipe.rl.rewards[0].regex == "a,b" and points[1].recipe.rl.rewards == ()
    assert points[2].values["rl.actor.betas"] == "[0.8, 0.9]"


@pytest.mark.parametrize(
    ("axes", "told"),
    [
        (["rl.kl_ceof=1,2"], "did you mean 'rl.kl_coef'?"),
        (["rl.kl_coef=.1,abc"], "override rl.kl_coef=abc: rl.kl_coef: input should be a valid number"),
        (["rl.kl_coef=.1"], "'rl.kl_coef=.1' has 1 value"),
        (["rl.kl_coef="], "has 0 values"),
        (["rl.kl_coef"], "has 0 values"),
        (["=1,2"], "has 2 values"),
        (["rl.kl_coef=.1,.1"], "names one value twice"),
        (["rl.kl_coef=.1,,.2"], "cannot be read"),
        (["rl.kl_coef=[.1,.2"], "cannot be read"),
        (["seed=0,1", "seed=2,3"], "seed is given twice"),
        (["seed=0,1,2,3,4,5,6,7,8", "rl.clip=.1,.2,.3,.4,.5,.6,.7,.8"], "9 * 8 = 72 combinations"),
    ],
)
def test_grids_that_make_no_sense_are_refused(axes: list[str], told: str) -> None:
    with pytest.raises(UsageError, match=re.escape(told)):
        grid(axes, load)


def test_folder_names_are_short_safe_and_different() -> None:
    assert folder_name(["rl.kl_coef=1e-3", "seed=0"]) == "rl.kl_coef=1e-3,seed=0"
    odd = [folder_name([f"base.model={path}"]) for path in ("../a", "..\\a", ".. a")]
    assert len(set(odd)) == 3
    assert all(re.fullmatch(r"base\.model=\.\._a-[0-9a-f]{8}", name) for name in odd)
    assert len(folder_name([f"base.model={'x' * 300}"])) <= 120


# -- single stages -----------------------------------------------------------------------------------------------------


@pytest.fixture
def demonstrations(write_rows: WriteRows) -> Path:
    return write_rows("demos.jsonl", [{"prompt": text[:6], "completion": text[6:20]} for text in TEXTS * 2])


@pytest.mark.slow
def test_a_stage_is_swept_and_continued(policy_folder: Path, demonstrations: Path, tmp_path: Path) -> None:
    out = tmp_path / "lrs"
    argv = (
        "sft",
        "--model",
        str(policy_folder),
        "--data",
        str(demonstrations),
        "-o",
        str(out),
        "--json",
        "--seed",
        "4",
    )
    argv += ("sft.epochs=1", "sft.batch_tokens=128", "--sweep", "sft.optim.lr=1e-4,1e-2", "--sweep", "sft.dropout=0,.2")
    done = Done(*argv)
    assert done.code == 0, done.err
    names = [f"sft.optim.lr={lr},sft.dropout={drop}" for lr in ("1e-4", "1e-2") for drop in ("0", ".2")]
    assert list(done.json["runs"]) == names and done.json["failed"] == {}
    for name in names:
        result = json.loads((out / name / "stage.json").read_text())["result"]
        assert done.json["runs"][name]["train_nll"] == result["train_nll"]
        assert (out / name / "model" / "config.json").exists()
    assert len({numbers["train_nll"] for numbers in done.json["runs"].values()}) == 4
    told = json.loads((out / "sweep.json").read_text())
    assert told["planned"] == 4
    assert told["runs"][2]["values"] == {"sft.optim.lr": "1e-2", "sft.dropout": "0"}
    page = (out / "sweep.html").read_text()
    assert page.count("<tr>") == 5 and "Training NLL" in page and "<svg" in page

    stamps = {name: (out / name / "stage.json").stat().st_mtime_ns for name in names}
    (out / names[1] / "stage.json").unlink()
    again = Done(*argv)
    assert again.json["runs"] == done.json["runs"]
    moved = [name for name in names if (out / name / "stage.json").stat().st_mtime_ns != stamps[name]]
    assert moved == [names[1]]


def test_a_swept_seed_reaches_the_stage(policy_folder: Path, demonstrations: Path, tmp_path: Path) -> None:
    argv = ("sft", "--model", str(policy_folder), "--data", str(demonstrations), "sft.epochs=1", "--json")
    swept = Done(*argv, "-o", str(tmp_path / "seeds"), "--sweep", "seed=3,5").json["runs"]
    alone = Done(*argv, "-o", str(tmp_path / "alone"), "--seed", "5").json
    assert swept["seed=5"]["train_nll"] == alone["train_nll"] != swept["seed=3"]["train_nll"]
    refused = Done(*argv, "-o", str(tmp_path / "no"), "seed=5")
    assert refused.code == 2 and "has no effect here" in refused.err


def test_one_point_that_fails_leaves_the_others(policy_folder: Path, demonstrations: Path, tmp_path: Path) -> None:
    argv = ("sft", "--model", str(policy_folder), "--data", str(demonstrations), "-o", str(tmp_path / "out"), "--json")
    done = Done(*argv, "sft.epochs=1", "--sweep", "sft.max_tokens=2,60")
    assert done.code == 0, done.err
    assert list(done.json["runs"]) == ["sft.max_tokens=60"]
    (told,) = done.json["failed"].values()
    assert told and told.splitlines()[0] in (tmp_path / "out" / "sweep.html").read_text().replace("&#39;", "'")
    done = Done(*argv, "sft.epochs=1", "--sweep", "sft.max_tokens=2,3")
    assert done.code == 3


def test_an_interrupted_sweep_has_a_report_of_what_is_done(tmp_path: Path) -> None:
    """Ctrl-C amid the second point; the next start takes the first from its folder and does the rest."""
    worked: list[int] = []

    def stage(recipe: Recipe, folder: Path, log: Any) -> dict[str, float]:
        if recipe.seed == 1 and worked == [0]:
            raise KeyboardInterrupt
        worked.append(recipe.seed)
        return {"valid_nll": 2.0 + recipe.seed}

    def start() -> Any:
        points = grid(["seed=0,1,2"], load)
        return sweep_stage(points, stage, sections=("sft",), inputs={}, output_dir=tmp_path / "out")

    with pytest.raises(KeyboardInterrupt):
        start()
    told = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert (told["planned"], [run["name"] for run in told["runs"]]) == (3, ["seed=0"])
    worked.append(-1)
    made = start()
    assert worked == [0, -1, 1, 2]
    assert {name: numbers["valid_nll"] for name, numbers in made.runs.items()} == {
        "seed=0": 2.0,
        "seed=1": 3.0,
        "seed=2": 4.0,
    }


def test_a_sweep_of_which_nothing_works_is_an_error(tmp_path: Path) -> None:
    def stage(recipe: Recipe, folder: Path, log: Any) -> None:
        raise DataError(f"seed {recipe.seed} is unlucky")

    with pytest.raises(DataError, match="seed 0 is unlucky"):
        sweep_stage(grid(["seed=0,1"], load), stage, sections=("sft",), inputs={}, output_dir=tmp_path / "out")
    assert "seed 1 is unlucky" in (tmp_path / "out" / "sweep.html").read_text()


def test_dry_run_names_the_points() -> None:
    done = Done("run", "demo", "--dry-run", "--sweep", "rl.kl_coef=.01,.2")
    assert done.out == "rl.kl_coef=.01\nrl.kl_coef=.2\n"
    resolved = Done("run", "demo", "--dry-run", "--json", "--sweep", "rl.kl_coef=.01,.2").json
    assert resolved["rl.kl_coef=.2"]["rl"]["kl_coef"] == 0.2


# -- the report --------------------------------------------------------------------------------------------------------


def point(name: str) -> Combination:
    return Combination(name, {"rl.kl_coef": name}, Recipe())


def test_the_score_of_an_rl_stage_is_drawn_along_the_root_of_kl(tmp_path: Path) -> None:
    """KL 4 and 16 lie at 2 and 4 on the axis: twice as far from 0."""
    outcomes = [
        of_stage(
            point("a"), {"num_episodes": 8, "final": {"score": 0.5, "kl": 4.0, "part_polite": 0.25, "bad": math.nan}}
        ),
        of_stage(point("b"), {"num_episodes": 8, "final": {"score": 1.5, "kl": 16.0, "part_polite": 0.75, "bad": 1.0}}),
        Outcome("c", {"rl.kl_coef": "c"}, {}, failed="the loss is nan <b>"),
    ]
    page = write_sweep_report(tmp_path, outcomes, planned=4).read_text()
    assert "3 of 4 combinations of rl.kl_coef" in page
    assert "a: score 0.500, KL 4.00 nats" in page and "b: score 1.500, KL 16.00 nats" in page
    assert "it is no evidence" in page and "part_polite" in page
    assert "the loss is nan &lt;b&gt;" in page
    first = re.search(r'<circle cx="([\d.]+)"[^>]*><title>a: score', page)
    second = re.search(r'<polygon points="([\d.]+),[^>]*><title>b: score', page)
    zero = re.search(r'<text x="([\d.]+)" y="[\d.]+" text-anchor="middle" class="tick">0</text>', page)
    assert first and second and zero
    near, far = float(first[1]) - float(zero[1]), float(second[1]) - float(zero[1])
    assert far / near == pytest.approx(2.0, abs=0.02)
    assert "bad" not in json.loads((tmp_path / "sweep.json").read_text())["runs"][0]["numbers"]


def test_whole_runs_show_win_rates_and_judge_along_kl(tmp_path: Path) -> None:
    results = json.loads(json.dumps(results_of().to_json()))
    ppo = next(row for row in results["policies"] if row["name"] == "ppo")
    lines = {measure: candidate_line("PPO", results, measure) for measure in ("judge", "proxy")}
    numbers = {"win_rate": ppo["win_rate"], "kl": ppo["kl"], "seconds": 12.0}
    outcomes = [Outcome(name, {"rl.kl_coef": name}, numbers, lines, names=Names.of(results)) for name in (".01", ".2")]
    page = write_sweep_report(tmp_path, outcomes, planned=2).read_text()
    assert "Judge score against KL on validation prompts, one line a run" in page
    assert "Win rate of PPO against SFT" in page
    win = ppo["win_rate"]
    assert f"[{win['low']:.3f}, {win['high']:.3f}]" in page
    assert page.count('class="s-m1"') >= 2  # the second run has a style of its own in both pictures
