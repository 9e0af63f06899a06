"""What is held out shares nothing with what is learnt: on judgements made by a coin nothing can be known of it."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accord.algo.table import PREFERENCE_LOSSES, REWARD_LOSSES
from accord.config import DpoConfig, RewardConfig, SftConfig
from accord.models.folder import load_policy
from accord.progress import quiet
from accord.stats import share_of_pairs
from accord.train.dpo import DpoSetup, _offline
from accord.train.held_out import Measured, hold_out, was_held_out
from accord.train.judged import read_groups
from accord.train.learner import Learner
from accord.train.sft import _read_split

WriteRows = Callable[[str, Iterable[Mapping[str, Any]]], Path]


def test_every_twentieth_unit_is_held_out_in_the_order_of_first_rows() -> None:
    rows = list(range(60))
    assert hold_out(rows) == ([i for i in rows if i % 20], [0, 20, 40])
    train, valid = hold_out(rows, [(i % 30,) for i in rows])
    assert valid == [0, 20, 30, 50] and sorted(train + valid) == rows and was_held_out(train, valid)


def test_rows_that_hang_together_through_others_are_one_unit() -> None:
    names: list[tuple[str, ...]] = [("a",), ("b",), ("a", "b"), *((f"n{i}",) for i in range(25)), ("b", "z"), ("z",)]
    _, valid = hold_out(list(range(len(names))), names)
    assert valid == [0, 1, 2, 22, 28, 29]  # the 20th unit after the first one


def test_of_fewer_than_twenty_units_nothing_is_held_out() -> None:
    rows = list(range(100))
    train, valid = hold_out(rows, [(i % 19,) for i in rows])
    assert list(train) == rows and not was_held_out(train, valid) and valid == rows[::19]


@given(st.lists(st.lists(st.integers(0, 40), max_size=3), min_size=1, max_size=80))
def test_no_name_stands_on_both_sides(names: list[list[int]]) -> None:
    rows = list(range(len(names)))
    train, valid = hold_out(rows, names)
    if was_held_out(train, valid):
        assert sorted([*train, *valid]) == rows
        assert not {n for i in train for n in names[i]} & {n for i in valid for n in names[i]}


def coin_rows(shared: str) -> list[dict[str, Any]]:
    """Of 400 prompts four answers each in a coin's order, told pair by pair; what they share is the name given."""
    coin, rows = random.Random(0), []
    for number in range(400):
        order = coin.sample([f"answer {i}" for i in range(4)], 4)
        names = {"prompt": f"P{number}", "topic": "", "group": ""}
        names |= {"prompt": f"P{number} {{}}", shared: f"T{number}"} if shared != "prompt" else {}
        for i, better in enumerate(order):
            for worse in order[i + 1 :]:
                row = {"chosen": f"{better} of {number}", "rejected": f"{worse} of {number}"}
                rows.append({**names, "prompt": names["prompt"].format(len(rows)), **row})
    coin.shuffle(rows)
    return rows


@pytest.mark.parametrize("shared", ["prompt", "topic", "group"])
def test_dpo_too_holds_out_what_no_memory_of_a_coin_knows(
    write_rows: WriteRows, policy_folder: Path, shared: str, tmp_path: Path
) -> None:
    policy, tokenizer = load_policy(policy_folder)
    setup = DpoSetup(DpoConfig(loss="simpo"), PREFERENCE_LOSSES["simpo"], policy, tokenizer, 0)  # without a reference
    source = _offline(setup, policy_folder, write_rows("p.jsonl", coin_rows(shared)), None, tmp_path, quiet)
    wins: Counter[tuple[int, ...]] = Counter()
    idle = Learner({}, {}, 1)  # drawn beforehand, judgements need no policy
    learnt = [group for step in range(source.num_groups // 32) for group in source.groups(step, idle)[0]]
    for group in learnt:
        wins[group.examples[group.better[0]].completion] += 1
        wins[group.examples[group.worse[0]].completion] -= 1
    gaps = [wins[g.examples[g.better[0]].completion] - wins[g.examples[g.worse[0]].completion] for g in source.valid]
    assert source.num_held_out == len(gaps) == 120 and len(learnt) > 2000
    assert sum((gap > 0) + 0.5 * (gap == 0) for gap in gaps) / len(gaps) == 0.5


def test_sft_holds_out_whole_prompts(write_rows: WriteRows, policy_folder: Path) -> None:
    """Each prompt has three demonstrations that a memory of prompts would know."""
    rows = [{"prompt": f"Film {i % 100}:", "completion": f" text {i % 100}"} for i in range(300)]
    policy, tokenizer = load_policy(policy_folder)
    train, valid = _read_split(SftConfig(), policy, tokenizer, write_rows("d.jsonl", rows), None, quiet)
    assert len(valid) == 15 and not {row.prompt for row in train} & {row.prompt for row in valid}


def test_a_held_out_number_by_hand() -> None:
    """Thirty rows in thirty units, weights 1 and 2; then the same rows under three prompts, and too few of them."""
    values, weights = [1.0] * 20 + [0.0] * 10, [1.0] * 20 + [2.0] * 10
    names: list[tuple[str, ...]] = [(f"p{i}",) for i in range(30)]
    found = Measured("it", values, weights, [0.5] * 30, "a coin", names).told()
    assert (found.value, found.n, found.units, found.baseline, found.why) == (0.5, 30, 30, 0.5, "")
    assert found.low is not None and found.high is not None and 0.2 < found.low < 0.5 < found.high < 0.8
    alone = Measured("it", values, weights, [0.5] * 30, "a coin", [(f"p{i % 3}",) for i in range(30)]).told()
    assert (alone.value, alone.units, alone.low) == (0.5, 3, found.low)  # of these prompts alone, row by row
    few = Measured("it", values, [1.0] * 19 + [0.0] * 11, [0.5] * 30, "a coin", names).told()
    assert (few.value, few.low, few.n) == (None, None, 19) and "fewer than 20" in few.why


def test_the_interval_resamples_units_and_not_rows() -> None:
    """Forty prompts of ten rows that all go alike: the forty are what was drawn."""
    values = [float(i % 2) for i in range(40) for _ in range(10)]
    by_prompt, by_row = [(i // 10,) for i in range(400)], [(i,) for i in range(400)]
    units, rows = (Measured("it", values, [1.0] * 400, values, "", names).told() for names in (by_prompt, by_row))
    assert units.low is not None and rows.low is not None and units.units == 40
    assert 0.5 - units.low == pytest.approx(math.sqrt(10) * (0.5 - rows.low), rel=0.15)


def test_the_share_of_ordered_pairs_covers_what_items_drawn_anew_give() -> None:
    """Scores and truths with a correlation of .5: in how many of 60 fresh sets does the interval hold the whole's?"""
    rng = np.random.default_rng(0)

    def shares(count: int) -> tuple[np.ndarray, np.ndarray]:
        truth = rng.normal(size=count)
        score = 0.5 * truth + math.sqrt(0.75) * rng.normal(size=count)
        higher = truth[:, None] > truth
        return (score[:, None] > score).astype(float), higher.astype(float)

    right, counted = shares(3000)
    whole = (right * counted).sum() / counted.sum()
    found = [share_of_pairs(*shares(60), seed=i) for i in range(60)]
    assert sum(one.low <= whole <= one.high for one in found) >= 52
    assert found[0].n == 60


@pytest.mark.parametrize("shared", ["prompt", "topic", "group"])
def test_a_memory_of_pairs_made_by_a_coin_knows_nothing_of_held_out_ones(write_rows: WriteRows, shared: str) -> None:
    """Each prompt has four answers and a coin's order of them, told pair by pair: who remembers the pairs that he saw,
    and puts answers in the order of their wins, is right in half of the held-out ones. By rows it was 89 of 120.
    """
    rows = coin_rows(shared)
    train, valid, _ = read_groups(
        RewardConfig(), REWARD_LOSSES["bradley_terry"], write_rows("p.jsonl", rows), None, None
    )
    wins: dict[str, int] = {}
    for pair in train:
        wins[pair.completions[0]] = wins.get(pair.completions[0], 0) + 1
        wins[pair.completions[1]] = wins.get(pair.completions[1], 0) - 1
    scores = [wins.get(pair.completions[0], 0) - wins.get(pair.completions[1], 0) for pair in valid]
    right = sum((score > 0) + 0.5 * (score == 0) for score in scores) / len(scores)
    assert len(valid) == 120 and right == 0.5
