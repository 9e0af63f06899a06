"""The sequential test: its error rates and its power by simulation, and its capital by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom

from accord.stats import arms_in_order, sequential_look

RUNS, LONG, ALPHA = 400, 1500, 0.05


def decisions(
    canary: float, prod: float, *, share: float = 0.3, delta: float = 0.05, long: int = LONG
) -> dict[str, int]:
    """How often each decision is reached, looked at after every outcome, in simulated traffic."""
    draw = np.random.default_rng(7)
    counts = {"worse": 0, "not worse": 0, "undecided": 0}
    for _ in range(RUNS):
        arms = draw.random(long) < share
        values = draw.random(long) < np.where(arms, canary, prod)
        look = sequential_look(zip(arms.tolist(), values.astype(float).tolist(), strict=True), alpha=ALPHA, delta=delta)
        counts[look.decision] += 1
    return counts


def most_by_chance(rate: float) -> int:
    """So many of the runs at most if the rate is true, but for one chance in a thousand."""
    return int(binom.ppf(0.999, RUNS, rate))


def test_a_canary_as_good_is_seldom_called_worse_however_often_one_looks() -> None:
    found = decisions(0.7, 0.7)
    assert found["worse"] <= most_by_chance(ALPHA)


def test_a_canary_at_the_edge_is_seldom_called_not_worse() -> None:
    found = decisions(0.65, 0.7, delta=0.05)
    assert found["not worse"] <= most_by_chance(ALPHA)


def test_a_worse_canary_is_found_out_and_a_better_one_let_through() -> None:
    assert decisions(0.4, 0.7)["worse"] >= 0.95 * RUNS
    assert decisions(0.85, 0.7)["not worse"] >= 0.95 * RUNS


def test_a_test_that_looks_at_p_values_would_be_wrong_here() -> None:
    """The simulation sees what it is for: a z-test looked at after every outcome is wrong far too often."""
    draw, wrong = np.random.default_rng(3), 0
    for _ in range(100):
        a, b = (draw.random(500) < 0.7 for _ in range(2))
        n = np.arange(1, 501)
        gap = (np.cumsum(b) - np.cumsum(a)) / n
        error = np.sqrt(np.maximum(1e-9, 2 * 0.21 / n))
        wrong += bool((gap[20:] / error[20:] > 1.645).any())
    assert wrong > 15


def test_the_capital_by_hand() -> None:
    """prod 1, canary 0, three times: bets 0, then 1 / (1.25 / 2) * .5 cut to a half, then a half."""
    look = sequential_look([(False, 1.0), (True, 0.0)] * 3, alpha=1e-9)
    assert look.against == pytest.approx(1.0 * 1.5 * 1.5) and look.decision == "undecided"
    assert (look.canary, look.other, look.num_canary, look.num_other) == (0.0, 1.0, 3, 3)
    n = 2 + math.ceil(math.log(20) / math.log(1.5)) - 1
    assert sequential_look([(False, 1.0), (True, 0.0)] * 50, alpha=0.05).decided_after == n


def test_the_others_since_the_last_are_one_number() -> None:
    rows = [(False, 1.0), (False, 0.0), (True, 0.0), (False, 1.0), (False, 1.0), (True, 1.0)]
    one = sequential_look(rows)
    assert one.against == sequential_look([(False, 0.5), (True, 0.0), (False, 1.0), (True, 1.0)]).against
    assert sequential_look([(True, 0.0)] * 30).decision == "undecided"  # nobody to compare with
    with pytest.raises(ValueError, match="not 0 to 1"):
        sequential_look([(True, 1.5)])


def test_arms_in_the_order_they_came() -> None:
    assert arms_in_order([(2.0, 1.0)], [(1.0, 0.0), (3.0, 0.5)]) == [(False, 0.0), (True, 1.0), (False, 0.5)]
