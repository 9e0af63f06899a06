"""The share of what is asked that is kept for a judge: apart by prompt, stable, and never empty."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import WriteRows
from hypothesis import given
from hypothesis import strategies as st

from accord.config import load_recipe
from accord.errors import DataError
from accord.loop.files_task import FilesTask
from accord.loop.kept import keeps_share, kept_for_judge
from accord.loop.run import run
from accord.loop.task import TaskPlace
from accord.scoring.reward_model import RewardModel


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def asked(*prompts: Any) -> list[dict[str, Any]]:
    return [{"prompt": prompt, "number": number} for number, prompt in enumerate(prompts)]


@given(st.lists(st.integers(0, 30), min_size=2, max_size=60), st.floats(0.01, 0.99))
def test_a_prompt_is_on_one_side_and_neither_is_empty(numbers: list[int], share: float) -> None:
    rows = asked(*(f"Ask {number}?" for number in numbers))
    if len(set(numbers)) < 2:
        with pytest.raises(DataError, match="judgements of 1 prompts cannot teach both"):
            kept_for_judge(rows, share)
        return
    kept, rest = kept_for_judge(rows, share)
    assert kept and rest and sorted([*kept, *rest], key=lambda row: row["number"]) == rows
    assert not {row["prompt"] for row in kept} & {row["prompt"] for row in rest}


def test_the_share_is_met_and_more_prompts_move_none() -> None:
    """Of 2,000 prompts .15 are 300, give or take four deviations of 16."""
    some, more = asked(*map(str, range(1_000))), asked(*map(str, range(2_000)))
    kept, all_kept = ({row["prompt"] for row in kept_for_judge(rows, 0.15)[0]} for rows in (some, more))
    assert abs(len(all_kept) - 300) < 64 and kept == {one for one in all_kept if int(one) < 1_000}


def test_messages_are_one_prompt_however_their_keys_stand() -> None:
    one, other = [{"role": "user", "content": "Hi?"}], [{"content": "Hi?", "role": "user"}]
    kept, rest = kept_for_judge(asked(one, other, "Yes?"), 0.5)
    assert {len(kept), len(rest)} == {1, 2}


@pytest.mark.parametrize(
    ("keys", "keeps"),
    [
        ([], True),
        (["eval.judges={short: {regex: x}}"], False),
        (["eval.judges={other: {chat: {url: 'http://localhost:1', model: m}}}"], True),  # it compares, and scores none
        (["ask.who=nobody"], False),
        (["task.judge_share=0"], False),
    ],
)
def test_a_share_is_kept_where_nobody_else_can_choose(
    tmp_path: Path, write_rows: WriteRows, keys: list[str], keeps: bool
) -> None:
    prompts = write_rows("prompts.jsonl", [{"prompt": "Hi?"}])
    recipe = load_recipe(None, [f"task.prompts={prompts}", "ask.who=people", *keys])
    assert keeps_share(recipe, FilesTask(TaskPlace(recipe.task, tmp_path, "", tmp_path))) is keeps


@pytest.mark.slow
def test_a_run_on_prompts_alone_has_a_judge_of_its_own(chat_model: Path, tmp_path: Path, write_rows: WriteRows) -> None:
    prompts = write_rows("prompts.jsonl", [{"prompt": f"What is in house {i}?"} for i in range(40)])
    keys = [
        *(f"base.model={chat_model}", f"task.prompts={prompts}", "task.chat=true", "ask.queue=0", "rl.iterations=1"),
        *("ask={who: scorer, scorer: {regex: e}, prompts: 12}", "sample={samples_per_prompt: 3, max_new_tokens: 6}"),
        *("reward={epochs: 1, max_tokens: 512, precision: fp32}", "rl.prompts_per_iteration=4", "rl.max_new_tokens=5"),
        *("rl.ppo_epochs=1", "eval={samples_per_prompt: 1, best_of: 2, bootstrap: 100, curve_samples: 1}"),
    ]
    out = tmp_path / "run"
    summary = run(load_recipe(None, keys), output_dir=out)
    kept, taught = rows_of(out / "rankings/judge.jsonl"), rows_of(out / "rankings/rankings.jsonl")
    said = [row["prompt"][0]["content"] for row in kept], [row["prompt"][0]["content"] for row in taught]
    assert kept and taught and not set(said[0]) & set(said[1])
    assert sorted([*kept, *taught], key=str) == sorted(rows_of(out / "ask/judgements.jsonl"), key=str)
    (judge,) = out.glob("judge_*/model")
    pair = [("[user] x\n[assistant] ", "abc")]
    assert RewardModel.load(judge).score(pair).tolist() != RewardModel.load(out / "reward/model").score(pair).tolist()
    assert 0 <= summary["judge_win_rate"] <= 1
