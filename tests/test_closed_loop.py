"""Deployment and learning from it, whole: a real `accord serve`, simulated users over HTTP, `accord round`.

Users are programs and are called that. What they like is hidden from everything but them, and from the test, which asks
the served model itself at the end.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from test_turn import ROUND, Bench, older_judgements, share_of_a

from accord.serve.aliases import PROD
from accord.store import Store
from benchmarks.closed_loop import longer, preferred, served_project, until_served

TOKENS = 10
ASKED = [f"He said {n}:" for n in range(40)]  # what the served model answers at the start and at the end
#: As a round of `test_turn`, with a judge that no user has taught.
WORLD: dict[str, Any] = {
    "task": {**ROUND["task"], "simulated": True, "measured_prompts": 40, "judge_share": 0.0},
    "reward": {**ROUND["reward"], "epochs": 4},
    "gates": {**ROUND["gates"], "shadow_delta": 0.2},
}


def prompts(many: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [f"Say {draw.randrange(10**9)}:" for _ in range(many)]


@pytest.mark.slow
def test_users_with_a_hidden_taste_are_served_better_after_two_rounds(tmp_path: Path, letters_folder: Path) -> None:
    bench = Bench(tmp_path / "shop", letters_folder, **WORLD)
    with Store.open(bench.folder / "accord.db") as store:
        older_judgements(store, 60)
    with served_project(bench.folder, TOKENS) as users:
        before, turns = users.answers(ASKED), []
        for number in range(2):
            users.talk(prompts(110, number), share_of_a)
            turns.append(bench.turn()[1])
            until_served(bench.folder, users)
        found = preferred(users.answers(ASKED), before, share_of_a)
    assert "promoted" in [turn["state"] for turn in turns], [turn["sentences"] for turn in turns]
    assert all(turn["admission"]["admitted"] > 50 for turn in turns)
    assert found.low > 0.5 and found.value > 0.6, found


@pytest.mark.slow
def test_users_who_reward_length_alone_and_a_flood_are_refused_with_reasons(
    tmp_path: Path, letters_folder: Path
) -> None:
    bench = Bench(tmp_path / "shop", letters_folder, **{**WORLD, "eval": {**ROUND["eval"], "length_high": 1.25}})
    with Store.open(bench.folder / "accord.db") as store:
        older_judgements(store, 60)
    with served_project(bench.folder, TOKENS) as users:
        users.talk(prompts(180, 7), longer)
        users.flood(70)
        code, told = bench.turn()
    assert (code, told["state"]) == (7, "refused"), told["sentences"]
    assert any("length ratio refused" in why for why in told["reasons"]), told["reasons"]
    assert told["admission"]["users"]["app/mallory"] == {"admitted": 0, "refused": 70}
    assert any("within an hour" in why for why in told["admission"]["reasons"])
    assert bench.aliases.get(PROD).folder == letters_folder.resolve()  # type: ignore[union-attr]
    assert (bench.folder / "rounds/0001/report.html").is_file()
