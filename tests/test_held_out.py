"""What is held out shares nothing with what is learnt: on judgements made by a coin nothing can be known of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accord.algo.table import REWARD_LOSSES
from accord.config import RewardConfig
from accord.train.held_out import hold_out, was_held_out
from accord.train.judged import read_groups

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


@pytest.mark.parametrize("shared", ["prompt", "topic", "group"])
def test_a_memory_of_pairs_made_by_a_coin_knows_nothing_of_held_out_ones(write_rows: WriteRows, shared: str) -> None:
    """Each prompt has four answers and a coin's order of them, told pair by pair: who remembers the pairs that he saw,
    and puts answers in the order of their wins, is right in half of the held-out ones. By rows it was 89 of 120.
    """
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
