"""The examples do what they say: PPO on one page learns, and the notebook's reward model finds the taste."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def test_ppo_on_one_page_is_one_page() -> None:
    assert len((EXAMPLES / "ppo.py").read_text().splitlines()) <= 170


@pytest.mark.slow
def test_ppo_on_one_page_learns_its_alphabet(capsys: pytest.CaptureFixture[str]) -> None:
    """A policy with random weights gets about one letter in thirteen right; a learner gets far beyond."""
    scores = runpy.run_path(str(EXAMPLES / "ppo.py"))["train"](iterations=25)
    assert sum(scores[:3]) / 3 < 0.12 and sum(scores[-3:]) / 3 > 0.5
    assert capsys.readouterr().out.splitlines()[0].startswith("iteration   0  score 0.0")


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(capsys: pytest.CaptureFixture[str]) -> None:
    notebook = json.loads((EXAMPLES / "loop.ipynb").read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in notebook["cells"]:
        assert {"cell_type", "id", "metadata", "source"} <= set(cell)
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)  # what it prints is the reader's own
            exec(compile("".join(cell["source"]), f"loop.ipynb, {cell['id']}", "exec"), names)
    assert names["accuracy"] > 0.8 and len(names["pairs"]) > 100
    assert "pairs as the taste does" in capsys.readouterr().out
