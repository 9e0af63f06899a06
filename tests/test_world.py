"""The whole loop on a user's own prompts, model and people, as the README says it; killed between any two steps."""

from __future__ import annotations

import json
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


def steps_of(project: Path) -> int:
    """How many stages, models and summaries of the project's run stand."""
    run = project / "runs/support"
    return sum(len([*run.rglob(name)]) for name in ("stage.json", "summary.json", "report.html"))


class Colleague:
    """A user of a project: what was typed, what came of it, and the people who are asked on the way."""

    def __init__(self, folder: Path, killed: bool) -> None:
        self.folder, self.project = folder, folder / "support"
        self.killed, self.kills, self.waits = killed, 0, 0

    def accord(self, *words: str) -> int:
        inside = self.project if self.project.is_dir() else self.folder
        steps = (lambda: steps_of(self.project)) if self.killed and words[0] == "run" else None
        code, kills = carry_out(words, inside, self.folder / "said.txt", steps)
        self.kills += kills
        return code

    def said(self) -> str:
        return (self.folder / "said.txt").read_text()

    def go_through(self, model: Path, log: Path) -> dict[str, Any]:
        """The commands of the README, people answering whenever a run waits for them; the summary of the run."""
        assert self.accord("init", "support", "--model", str(model)) == 0, self.said()
        file = self.project / "accord.yaml"
        file.write_text(yaml.safe_dump(merged(yaml.safe_load(file.read_text()), TINY)))
        imported = ("import", str(log), "--prompt-field", "question", "--topic-field", "category")
        assert self.accord(*imported) == 0 and self.accord("run", "--dry-run") == 0, self.said()
        assert not (self.project / "runs/support").exists()
        while (code := self.accord("run")) == 5:
            self.waits += 1
            assert answer_all(self.project / "accord.db", "Ada Ben") > 0, self.said()
        assert code == 0 and self.accord("status") == 0, self.said()
        summary: dict[str, Any] = json.loads((self.project / "runs/support/summary.json").read_text())
        return summary


@pytest.mark.slow
def test_the_loop_on_ones_own_prompts_killed_between_any_two_steps(
    tmp_path: Path, chat_model: Path, write_rows: WriteRows
) -> None:
    log = write_rows("bot_log.jsonl", bot_log())
    users = {}
    for name in ("killed", "left alone"):
        (tmp_path / name).mkdir()
        users[name] = Colleague(tmp_path / name, name == "killed")
    found = {name: user.go_through(chat_model, log) for name, user in users.items()}
    assert users["killed"].kills > 15 and users["left alone"].kills == 0
    assert [user.waits for user in users.values()] == [2, 2]
    one, other = ({**summary, "seconds": 0} for summary in found.values())
    assert one == other and len(one["rounds"]) == 2
    weights = [sorted((user.project / "runs/support").rglob("*.safetensors")) for user in users.values()]
    assert len(weights[0]) == len(weights[1]) > 4
    for here, there in zip(*weights, strict=True):
        assert here.read_bytes() == there.read_bytes(), here
