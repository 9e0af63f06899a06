"""The page of a comparison: means over seeds, their intervals, and what they allow to say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from accord.report.comparison_page import SeedMean, write_comparison


def interval(value: float, half: float) -> dict[str, Any]:
    return {"value": value, "low": value - half, "high": value + half, "n": 10, "clusters": 5}


def test_an_interval_over_seeds_by_hand() -> None:
    # values .6, .7, .8: deviation .1, over sqrt(3), times 4.302653 (Student, 2 degrees of freedom) = .248414;
    # halves of .05 on each seed add in squares: sqrt(.248414^2 + .05^2) = .253396
    found = SeedMean.of([interval(0.6, 0.05), interval(0.7, 0.05), interval(0.8, 0.05)])
    assert (found.value, found.half) == (pytest.approx(0.7), pytest.approx(0.253396, abs=1e-6))
    alone = SeedMean.of([interval(0.6, 0.05)])
    assert (alone.low, alone.high) == (pytest.approx(0.55), pytest.approx(0.65))
    assert SeedMean.of([1.0, 1.0]).half == 0.0
    assert SeedMean.of([0.7, 0.9], share=True).high == 1.0


def row(win: float, best_of: int = 1) -> dict[str, Any]:
    measured = {name: interval(win, 0.01) for name in ("win_rate", "length_controlled", "judge", "proxy")}
    kl = {"value": 4.0, "low": None, "high": None, "n": 10, "clusters": 5}
    return {**measured, "kl": kl, "length_ratio": 1.0, "best_of": best_of}


def seeds(wins: dict[str, list[float]], broken: str = "") -> list[dict[str, Any]]:
    """A comparison of trained methods; ``broken`` names one that breaks a floor on the last seed."""
    count = len(next(iter(wins.values())))
    start = {**row(0.5), "name": "sft", "role": "reference"}
    return [
        {
            "seed": i,
            "num_test_prompts": 3,
            "reference": "sft",
            "candidate": next(iter(wins)),
            "start": start,
            "best_of_n_curve": [],
            "policies": [start, *({**row(one[i]), "name": name, "role": "candidate"} for name, one in wins.items())],
            "selections": {
                name: {
                    "step": 5,
                    "held": not (name == broken and i == count - 1),
                    "snapshots": [{"step": 5, "held": True, "row": row(one[i])}],
                }
                for name, one in wins.items()
            },
            "costs": {name: {"num_scored": 100, "seconds": 30.0} for name in wins},
        }
        for i in range(count)
    ]


@pytest.mark.parametrize(
    ("wins", "broken", "told"),
    [
        ({"A": [0.9, 0.9], "B": [0.6, 0.6]}, "", "A wins"),
        ({"A": [0.9, 0.9], "B": [0.6, 0.6]}, "", "The lead is larger than its error"),
        ({"A": [0.9, 0.5], "B": [0.6, 0.6]}, "", "A leads"),
        ({"A": [0.9, 0.5], "B": [0.6, 0.6]}, "", "It cannot be told apart from B"),
        ({"A": [0.9, 0.9], "B": [0.6, 0.6]}, "A", "B wins"),
        ({"A": [0.9, 0.9], "B": [0.6, 0.6]}, "A", "a floor broke on some seed: A"),
        ({"A": [0.9, 0.9]}, "A", "there is no winner"),
        ({"A": [0.9, 0.9]}, "", "for 100 scored or labelled completions and 0.5 minutes"),
    ],
)
def test_the_verdict(tmp_path: Path, wins: dict[str, list[float]], broken: str, told: str) -> None:
    made = write_comparison(tmp_path, "test", seeds(wins, broken))
    assert told in made["verdict"]
    assert math.isclose(made["methods"]["A"]["win_rate"], sum(wins["A"]) / 2)
    assert (tmp_path / "report.html").exists() and "| A |" in (tmp_path / "table.md").read_text()
