"""A test that may be looked at after every outcome: is one arm worse than the other, or is it shown not to be?

By betting (Shafer 2021; Waudby-Smith & Ramdas 2024, JRSS-B 86:1): a gambler who bets that the canary is worse, at odds
that are fair where it is not, has capital E_t with E[E_t] <= 1 under that hypothesis at every t. By Ville's inequality
it ever reaches 1 / alpha with probability at most alpha, however often one looks and whenever one stops.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Decision = Literal["worse", "not worse", "undecided"]
# Bets stay below what a single outcome could ruin: 1 + bet * d is then at least one half.
MOST_BET = 0.5


@dataclass(frozen=True)
class SequentialLook:
    """What is known by now.

    Attributes:
        decision: worse, not worse (by more than delta), or undecided.
        against: Capital of the bet that the canary is worse; 1 / alpha of it decides.
        for_it: Capital of the bet that it lies less than delta below.
        canary, other: Mean outcomes, 0 to 1.
        num_canary, num_other: How many outcomes there are.
        decided_after: Canary outcomes until the decision; 0 where there is none.
    """

    decision: Decision
    against: float
    for_it: float
    canary: float
    other: float
    num_canary: int
    num_other: int
    decided_after: int = 0


class _Bettor:
    """Capital of a gambler on the mean of numbers in [-1, 1] being above 0.

    Each bet is set by what came before (aGRAPA: the mean over the second moment, cut to [0, `MOST_BET`]).
    """

    def __init__(self) -> None:
        self.log_capital = 0.0
        # A quarter of an outcome at each end: the first bet is none, and no variance is ever 0.
        self._n, self._sum, self._squares = 1.0, 0.0, 0.25

    def see(self, number: float) -> None:
        mean = self._sum / self._n
        bet = min(MOST_BET, max(0.0, mean / (self._squares / self._n)))
        self.log_capital += math.log1p(bet * number)
        self._n, self._sum, self._squares = self._n + 1, self._sum + number, self._squares + number * number


def sequential_look(
    outcomes: Iterable[tuple[bool, float]], *, alpha: float = 0.05, delta: float = 0.0
) -> SequentialLook:
    """Return what a sequence of outcomes says, each (is the canary's, 0 to 1) in the order they came.

    Each of the canary's outcomes is set against the mean of the others' since the one before; the first decision holds.

    Args:
        alpha: Probability of ever calling a canary worse that is not, and of ever calling one not worse that lies
            ``delta`` or more below: each.
        delta: How far below still counts as not worse.
    """
    against, for_it, limit = _Bettor(), _Bettor(), math.log(1 / alpha)
    decision: Decision = "undecided"
    decided_after = 0
    sums = {True: [0.0, 0], False: [0.0, 0]}
    waiting: list[float] = []
    batch: list[float] = []
    for is_canary, value in outcomes:
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"an outcome is {value}, not 0 to 1")
        sums[is_canary][0] += value
        sums[is_canary][1] += 1
        (waiting if is_canary else batch).append(value)
        while waiting and batch and decision == "undecided":
            below = sum(batch) / len(batch) - waiting.pop(0)
            batch.clear()
            against.see(below)
            for_it.see((delta - below) / (1 + delta))
            decision = _decided(against.log_capital >= limit, for_it.log_capital >= limit)
            decided_after = int(sums[True][1]) if decision != "undecided" else 0
    means = {arm: total / max(1, count) for arm, (total, count) in sums.items()}
    return SequentialLook(
        decision,
        math.exp(min(700.0, against.log_capital)),
        math.exp(min(700.0, for_it.log_capital)),
        means[True],
        means[False],
        int(sums[True][1]),
        int(sums[False][1]),
        decided_after,
    )


def _decided(worse: bool, not_worse: bool) -> Decision:
    return "worse" if worse else "not worse" if not_worse else "undecided"


def arms_in_order(
    canary: Sequence[tuple[float, float]], other: Sequence[tuple[float, float]]
) -> list[tuple[bool, float]]:
    """Return outcomes of two arms, each (moment, value), as one sequence in time."""
    rows = [(at, True, value) for at, value in canary] + [(at, False, value) for at, value in other]
    return [(is_canary, value) for _, is_canary, value in sorted(rows)]
