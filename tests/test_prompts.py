"""Which prompts an optimisation draws: filters that count what they drop, weights, and exact resume."""

from __future__ import annotations

import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import WriteRows, random_policy
from test_train import random_scalar

from accord.config import PromptsConfig, RlConfig
from accord.errors import DataError
from accord.formats.stage_rows import PromptRow, read_prompts
from accord.models.folder import RewardScale, save_policy, save_scalar
from accord.models.shape import DecoderConfig
from accord.scoring.room import Room, short_enough
from accord.seeds import stream_seed
from accord.text.tokenizer import Tokenizer
from accord.train.prompts import choose_prompts, pick_prompts
from accord.train.rl import rl

ROWS = [PromptRow(text) for text in ("one", "one two", "one two three", "four", "four five six seven")]


def split(text: str) -> list[str]:
    return text.split()


# -- filters -----------------------------------------------------------------------------------------------------------


def test_without_filters_all_prompts_stay() -> None:
    assert choose_prompts(PromptsConfig(), ROWS, split) == (ROWS, {})


def test_each_filter_counts_what_it_drops_of_what_was_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"own_filter_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text("def keep(prompt):\n    return 'two' not in prompt\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    config = PromptsConfig(max_tokens=3, regex="^one", function=f"{name}:keep")
    kept, dropped = choose_prompts(config, ROWS, split)
    # of five: "four five six seven" has four tokens; then "four" does not begin with "one"; then two hold "two"
    assert [row.text for row in kept] == ["one"]
    assert dropped == {"max_tokens": 1, "regex": 1, "function": 2}


def test_no_prompt_left_is_told_with_the_counts() -> None:
    with pytest.raises(DataError, match=re.escape("none of 5 prompts is left: rl.prompts.max_tokens dropped 1, ")):
        choose_prompts(PromptsConfig(max_tokens=3, regex="nowhere"), ROWS, split)


def test_a_filter_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"own_filter_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text("def keep(prompt):\n    raise KeyError(prompt)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(DataError, match=r"rl\.prompts\.function failed: KeyError: 'one'"):
        choose_prompts(PromptsConfig(function=f"{name}:keep"), ROWS, split)


def test_the_stage_tells_what_it_left_out(
    policy_folder: Path, reward_folder: Path, write_rows: WriteRows, tmp_path: Path
) -> None:
    data = write_rows("prompts.jsonl", [{"prompt": "He:"}, {"prompt": "The village:"}, {"prompt": "fog " * 40}])
    config = RlConfig(iterations=1, prompts_per_iteration=2, max_new_tokens=4, ppo_epochs=1, prompts={"max_tokens": 20})
    said: list[str] = []
    made = rl(
        config,
        model=policy_folder,
        reward_model=reward_folder,
        data=data,
        output_dir=tmp_path / "out",
        log=lambda _, text: said.append(text),
    )
    assert made.dropped_prompts == {"max_tokens": 1}
    assert "2 prompts; left out: 1 by max_tokens" in said


@pytest.mark.parametrize("reads", ["policy", "reward model"])
def test_a_prompt_without_room_is_left_out_before_the_first_step(
    reads: str, tiny_config: DecoderConfig, words: Tokenizer, write_rows: WriteRows, tmp_path: Path
) -> None:
    """One prompt of six is longer than a context: the run is whole, and says what it left out."""
    short = replace(tiny_config, max_positions=24)
    save_policy(tmp_path / "policy", random_policy(short if reads == "policy" else tiny_config, 0, 0.1), words)
    scale = RewardScale(0.0, 1.0)
    save_scalar(tmp_path / "judge", random_scalar(short if reads != "policy" else tiny_config), words, scale)
    texts = ["He:", "She:", "The village:", "Bread:", "Fog:", "fog " * 22]
    data = write_rows("prompts.jsonl", [{"prompt": text} for text in texts])
    config = RlConfig(iterations=3, prompts_per_iteration=4, max_new_tokens=4, ppo_epochs=1, precision="fp32")
    said: list[str] = []
    made = rl(
        config,
        model=tmp_path / "policy",
        reward_model=tmp_path / "judge",
        data=data,
        output_dir=tmp_path / "out",
        log=lambda _, text: said.append(text),
    )
    assert made.dropped_prompts == {f"{reads} context": 1} and made.num_episodes == 12
    assert f"5 prompts; left out: 1 by {reads} context" in said


def test_prompts_that_are_all_too_long_are_refused_with_the_room_there_is() -> None:
    rows = [PromptRow("one two three"), PromptRow("one two three four")]
    kept, dropped = short_enough(rows, [Room("policy", split, 3)])
    assert [row.text for row in kept] == ["one two three"] and dropped == {"policy": 1}
    with pytest.raises(DataError, match="none of 2 prompts is short enough"):
        short_enough(rows, [Room("policy", split, 3), Room("reward model", split, 2)])


# -- which are drawn ---------------------------------------------------------------------------------------------------


def test_unweighted_passes_are_the_permutations_they_always_were() -> None:
    """Runs of earlier versions must resume: the order is that of torch's permutation of the stream "prompts"."""
    texts = [str(i) for i in range(7)]
    wanted = []
    for epoch in range(3):
        generator = torch.Generator().manual_seed(stream_seed(3, "prompts", epoch))
        wanted += [texts[i] for i in torch.randperm(7, generator=generator)]
    got = [text for step in range(4) for text in pick_prompts(texts, 5, step, 3)]
    assert got == wanted[:20]


@pytest.mark.parametrize("weight", [1.0, 0.3, 7.0])
def test_equal_weights_change_nothing(weight: float) -> None:
    texts = [str(i) for i in range(11)]
    for step in range(9):
        assert pick_prompts(texts, 4, step, 1, [weight] * 11) == pick_prompts(texts, 4, step, 1)


@pytest.mark.slow
def test_a_prompt_is_drawn_by_its_weight() -> None:
    texts, weights = ["a", "b", "c", "d"], [3.0, 1.0, 0.5, 0.5]
    # a pass has 4 places over weights of 5: shares 2.4, .8, .4, .4
    shares = dict(zip(texts, (2.4, 0.8, 0.4, 0.4), strict=True))
    passes = [pick_prompts(texts, 4, step, 0, weights) for step in range(2000)]
    for drawn in passes:
        count = Counter(drawn)
        assert all(int(share) <= count[text] <= int(share) + 1 for text, share in shares.items())
    total = Counter(text for drawn in passes for text in drawn)
    for text, share in shares.items():
        assert total[text] / 2000 == pytest.approx(share, abs=0.05)  # four standard errors of at most .011


def test_a_weighted_draw_is_a_function_of_seed_and_step() -> None:
    texts, weights = [str(i) for i in range(9)], [1.0 + i for i in range(9)]
    forwards = [pick_prompts(texts, 4, step, 0, weights) for step in range(12)]
    backwards = [pick_prompts(texts, 4, step, 0, weights) for step in reversed(range(12))]
    assert forwards == backwards[::-1]
    assert forwards != [pick_prompts(texts, 4, step, 1, weights) for step in range(12)]


def test_weights_stand_in_the_file(write_rows: WriteRows) -> None:
    data = write_rows(
        "prompts.jsonl", [{"prompt": "a"}, {"prompt": "b", "weight": 2.5}, {"prompt": "c", "weight": None}]
    )
    assert [row.weight for row in read_prompts(data)] == [1.0, 2.5, 1.0]
    with pytest.raises(DataError, match=r'bad\.jsonl:1: "weight" is 0'):
        read_prompts(write_rows("bad.jsonl", [{"prompt": "a", "weight": 0}]))
