"""`accord report` writes the pages of any finished folder anew, as its command first wrote them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_comparison import seeds
from test_report import fabricate
from typer.testing import CliRunner

from accord.cli.main import app
from accord.errors import DataError
from accord.files import write_json
from accord.report.comparison_page import write_comparison
from accord.report.redraw import redraw
from accord.report.run_page import write_model_card, write_report
from accord.report.seeds_page import write_seeds_report
from accord.report.sweep_page import Outcome, of_run, write_sweep_report


def pages(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for name in ("*.html", "*.md") for path in folder.rglob(name)}


def check_redrawn(folder: Path) -> None:
    """Every page comes back as it was, and is named."""
    before = pages(folder)
    for path in before:
        path.unlink()
    made = redraw(folder)
    assert pages(folder) == before and before
    assert {path for path in before if path.name != "table.md"} == set(made)


def test_a_run(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run")
    write_report(run)
    check_redrawn(run)
    write_json(run / "model" / "config.json", {"model_type": "llama"})  # a policy was published
    write_model_card(run)
    check_redrawn(run)


def test_a_run_of_several_rounds(tmp_path: Path) -> None:
    """Ten rounds and a half: every round's own page too, the tenth after the ninth; a folder without a run is none."""
    run = fabricate(tmp_path / "run")
    numbers = [2, 9, 10]
    for number in numbers:
        write_report(fabricate(run / f"round_{number}"))
    (run / "round_3").mkdir()
    (run / "round_two").mkdir()
    write_report(run)
    check_redrawn(run)
    assert redraw(run) == [*(run / f"round_{number}" / "report.html" for number in numbers), run / "report.html"]


def test_several_seeds(tmp_path: Path) -> None:
    runs = [fabricate(tmp_path / f"seed_{seed}", seed=seed) for seed in (0, 1)]
    for run in runs:
        write_report(run)
    write_seeds_report(tmp_path, runs)
    check_redrawn(tmp_path)


def test_a_comparison(tmp_path: Path) -> None:
    found = seeds({"A": [0.9, 0.8], "B": [0.6, 0.6]})
    write_json(tmp_path / "comparison.json", found)
    for seed in (0, 1):
        write_json(tmp_path / f"seed_{seed}" / "resolved.json", {"name": "mine", "seed": seed})
    write_comparison(tmp_path, "mine", found)
    check_redrawn(tmp_path)


def test_a_sweep_of_runs(tmp_path: Path) -> None:
    values = {"a": {"rl.kl_coef": "0.1"}, "b": {"rl.kl_coef": "0.2"}}
    outcomes = []
    for name, value in values.items():
        write_report(fabricate(tmp_path / name))
        outcomes.append(of_run(name, value, tmp_path / name))
    outcomes.append(Outcome("c", {"rl.kl_coef": "0.3"}, {}, failed="the loss is nan"))
    write_sweep_report(tmp_path, outcomes, planned=4)
    check_redrawn(tmp_path)


def test_a_sweep_of_a_stage(tmp_path: Path) -> None:
    outcomes = [Outcome(name, {"sft.epochs": name}, {"valid_nll": 2.0 + int(name)}) for name in "12"]
    write_sweep_report(tmp_path, outcomes, planned=2)
    check_redrawn(tmp_path)


def test_the_command_says_what_it_wrote_and_refuses_what_is_no_run(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run")
    found = CliRunner().invoke(app, ["report", str(run), "--json"], catch_exceptions=False)
    assert json.loads(found.stdout) == {"pages": [str(run / "report.html")]} and (run / "report.html").is_file()
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "nowhere"):
        with pytest.raises(DataError, match="nothing here can be reported"):
            redraw(tmp_path / folder)
