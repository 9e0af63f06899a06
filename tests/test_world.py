"""The whole loop on a user's own prompts, model and people, as the README says it; killed between any two steps."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import WriteRows
from killed import carry_out
from test_rounds import answer_all

from accord.config.base import merged

TOPICS = ("billing", "login", "orders")
#: What a user might change in accord.yaml; here so that a run takes seconds.
TINY: dict[str, Any] = {
    "task": {"measured_prompts": 6},
    "ask": {"prompts": 5, "overlap": 2, "queue": 2},
    "sample": {"samples_per_prompt": 3, "max_new_tokens": 6},
    "reward": {"epochs": 1, "max_tokens": 300, "precision": "fp32"},
    "rl": {"iterations": 2, "prompts_per_iteration": 4, "max_new_tokens": 6, "ppo_epochs": 1, "eval_every": 1},
    "eval": {"samples_per_prompt": 1, "best_of": 2, "bootstrap": 100, "curve_samples": 1},
}


def bot_log() -> list[dict[str, Any]]:
    return [{"question": f"How do I change seat {i}?", "category": TOPICS[i % 3], "at": i} for i in range(60)]


def steps_of(run: Path) -> int:
    """How many stages, summaries and pages of a run stand."""
    finished = {"stage.json", "summary.json", "report.html"}
    return sum(len(finished.intersection(files)) for _, _, files in os.walk(run))


class Project:
    """A user's project: what is typed there, and the people who answer when a run waits for them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file, self.run = folder, folder / "accord.yaml", folder / "runs/support"
        self.log = folder.parent / f"{folder.name}.txt"
        self.kills = self.waits = 0

    def accord(self, *words: str, killed: bool = False) -> int:
        inside = self.folder if self.folder.is_dir() else self.folder.parent
        code, kills = carry_out(words, inside, self.log, (lambda: steps_of(self.run)) if killed else None)
        self.kills += kills
        return code

    def go_through(self, killed: bool = False) -> dict[str, Any]:
        """``accord run`` until it is done; its summary."""
        while (code := self.accord("run", killed=killed)) == 5:
            self.waits += 1
            assert answer_all(self.folder / "accord.db", "Ada Ben") > 0, self.log.read_text()
        assert code == 0 and self.accord("status") == 0, self.log.read_text()
        return {**json.loads((self.run / "summary.json").read_text()), "seconds": 0}

    def weights(self) -> dict[Path, bytes]:
        return {path.relative_to(self.run): path.read_bytes() for path in self.run.rglob("*.safetensors")}


@pytest.mark.slow
def test_the_loop_on_ones_own_prompts_killed_between_any_two_steps(
    tmp_path: Path, chat_model: Path, write_rows: WriteRows
) -> None:
    """Two rounds, and what they bring is that of a run that nobody kills, on the same answers."""
    log = write_rows("bot_log.jsonl", bot_log())
    (tmp_path / "there").mkdir()
    first, again = Project(tmp_path / "support"), Project(tmp_path / "there/support")
    assert first.accord("init", "support", "--model", str(chat_model)) == 0, first.log.read_text()
    first.file.write_text(yaml.safe_dump(merged(yaml.safe_load(first.file.read_text()), TINY)))
    for words in (
        ("import", str(log), "--prompt-field", "question", "--topic-field", "category"),
        ("run", "--dry-run"),
    ):
        assert first.accord(*words) == 0, first.log.read_text()
    assert not first.run.exists()
    killed = first.go_through(killed=True)
    assert first.kills > 15 and first.waits == 2 and len(killed["rounds"]) == 2

    shutil.copytree(first.folder, again.folder, ignore=shutil.ignore_patterns("runs"))
    left_alone = again.go_through()
    assert (again.kills, again.waits) == (0, 0)  # what was asked is answered in the store
    assert killed == left_alone
    weights = first.weights()
    assert len(weights) > 4 and weights == again.weights()
