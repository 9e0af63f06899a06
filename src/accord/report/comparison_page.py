"""The page of a comparison: each method's judge score against sqrt(KL), which wins, and what it cost. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from accord.report.figures import Figure, kl_axis
from accord.report.parts import NONE, number, percent
from accord.report.run_page import write_page
from accord.report.svg import WIDE, Axis, Dot, Point, Series, chart, dots, swatch

STYLES = tuple(f"m{i}" for i in range(10))


@dataclass(frozen=True)
class Estimate:
    """A measure averaged over seeds, and half the width of its 95 % interval.

    Two errors add up in squares: that of the mean over seeds, by Student's t (few seeds say little: with 3 it is 4.3
    standard errors), and the mean of the seeds' own, which resample the films that all seeds share.
    """

    value: float
    half: float
    span: tuple[float, float] = (-math.inf, math.inf)

    @classmethod
    def of(cls, found: Sequence[Mapping[str, Any] | float], *, share: bool = False) -> Estimate:
        """Of the seeds' values or intervals; that of a share stays within 0 and 1."""
        values = [one["value"] if isinstance(one, Mapping) else one for one in found]
        own = [_half(one) for one in found if isinstance(one, Mapping)] or [0.0]
        between = 0.0
        if len(values) > 1:
            from scipy.special import stdtrit  # here: every run imports this page, few need it

            between = float(stdtrit(len(values) - 1, 0.975)) * stdev(values) / math.sqrt(len(values))
        half = math.hypot(between, math.sqrt(fmean(half * half for half in own)))
        return cls(fmean(values), half, (0.0, 1.0) if share else cls.span)

    @property
    def low(self) -> float:
        return max(self.span[0], self.value - self.half)

    @property
    def high(self) -> float:
        return min(self.span[1], self.value + self.half)

    def text(self, digits: int = 3) -> str:
        return f"{number(self.value, digits)} [{number(self.low, digits)}, {number(self.high, digits)}]"


def _half(interval: Mapping[str, Any]) -> float:
    """Half the width of an interval; 0 where it has no bounds."""
    low, high = interval["low"], interval["high"]
    return 0.0 if low is None or high is None else (high - low) / 2


@dataclass(frozen=True)
class Line:
    """One method over all seeds."""

    name: str
    style: str
    best_of: int
    tests: list[Mapping[str, Any]]
    num_scored: float
    seconds: float
    held: int
    seeds: int
    along: list[tuple[str, list[Mapping[str, Any]]]]

    @property
    def win_rate(self) -> Estimate:
        return Estimate.of([row["win_rate"] for row in self.tests], share=True)

    def measure(self, name: str) -> Estimate:
        return Estimate.of([row[name] for row in self.tests])


def write_comparison(out_dir: Path, name: str, seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Write ``report.html`` and ``table.md`` over the seeds of a comparison; returns its numbers."""
    lines = sorted(_lines(seeds), key=lambda line: line.win_rate.value, reverse=True)
    verdict = _verdict(lines)
    rows = [*(_row(line) for line in lines), _reference(seeds)]
    context = {
        "name": name,
        "seeds": len(seeds),
        "num_test_prompts": seeds[0]["num_test_prompts"],
        "verdict": verdict,
        "columns": COLUMNS,
        "rows": rows,
        "figures": [_wins(lines), *(_along(lines, measure) for measure in ("judge", "proxy"))],
    }
    write_page(out_dir / "table.md", "comparison.md.j2", context)
    write_page(out_dir / "report.html", "comparison.html.j2", context)
    return {"verdict": verdict, "methods": {line.name: _numbers(line) for line in lines}}


def _lines(seeds: Sequence[Mapping[str, Any]]) -> list[Line]:
    lines = []
    for i, first in enumerate(seeds[0]["methods"]):
        found = [seed["methods"][i] for seed in seeds]
        shared = min(len(one["snapshots"]) for one in found)  # a seed with fewer labelled groups takes fewer steps
        steps = [one["step"] for one in first["snapshots"][:shared]]
        reference = [seed["reference"]["validation"] for seed in seeds]
        stops = [(f"step {s}", [m["snapshots"][j]["row"] for m in found]) for j, s in enumerate(steps)]
        along = [("the start", reference), *stops]
        lines.append(
            Line(
                first["name"],
                STYLES[i % len(STYLES)],
                first["test"]["best_of"],
                [one["test"] for one in found],
                sum(one["num_scored"] for one in found) / len(found),
                sum(one["seconds"] for one in found) / len(found),
                sum(bool(one["held"]) for one in found),
                len(found),
                along if steps else _best_of_n(seeds, first["test"]["best_of"]),
            )
        )
    return lines


def _best_of_n(seeds: Sequence[Mapping[str, Any]], most: int) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Best of 1, 2, 4 ... by the proxy; the KL of each is a bound."""
    curves = [[point for point in seed["best_of_n_curve"] if point["n"] <= most] for seed in seeds]
    points = [[{**point, "kl": point["kl_bound"]} for point in curve] for curve in curves]
    return [(f"n = {at[0]['n']}, at most", list(at)) for at in zip(*points, strict=True)]


def _verdict(lines: Sequence[Line]) -> str:
    """Which method wins, what cannot be told apart from it, and what it cost."""
    sound = [line for line in lines if line.held == line.seeds]
    if not sound:
        return "No method held every floor on every seed: there is no winner."
    best = sound[0]
    close = [line.name for line in sound[1:] if not _apart(best.win_rate, line.win_rate)]
    cost = _cost(best)
    rest = f" It cannot be told apart from {_listed(close)}." if close else " The lead is larger than its error."
    broken = [line.name for line in lines if line.held < line.seeds]
    note = f" Out of the contest, as a floor broke on some seed: {_listed(broken)}." if broken else ""
    verb = "leads" if close else "wins"
    return (
        f"{best.name} {verb}: the judge prefers it to SFT in {percent(best.win_rate.value)} of comparisons, "
        f"at KL {number(best.measure('kl').value, 1)}, for {cost}.{rest}{note}"
    )


def _apart(first: Estimate, second: Estimate) -> bool:
    return abs(first.value - second.value) > math.hypot(first.half, second.half)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _cost(line: Line) -> str:
    if line.best_of > 1:
        return f"no training, but {line.best_of} scored samples for every completion"
    return f"{line.num_scored:,.0f} scored or labelled completions and {line.seconds / 60:.1f} minutes"


COLUMNS = ("Method", "Win rate", "At equal length", "Judge", "Proxy", "KL", "Length ratio", "Floors held", "Cost")


def _row(line: Line) -> dict[str, Any]:
    lengths = [row["length_controlled"] for row in line.tests if row["length_controlled"] is not None]
    cells = [
        line.win_rate.text(),
        Estimate.of(lengths, share=True).text() if lengths else NONE,
        line.measure("judge").text(),
        line.measure("proxy").text(),
        ("at most " if line.best_of > 1 else "") + number(line.measure("kl").value, 2),
        number(line.measure("length_ratio").value, 2),
        f"{line.held} of {line.seeds} seeds",
        _cost(line),
    ]
    return {"name": line.name, "cells": cells, "held": line.held == line.seeds}


def _reference(seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The SFT policy that all methods started from."""
    rows = [seed["reference"]["test"] for seed in seeds]
    measures = [Estimate.of([row[name] for row in rows]).text() for name in ("judge", "proxy")]
    return {"name": "SFT (the start)", "cells": [NONE, NONE, *measures, "0", "1", NONE, NONE], "held": True}


def _numbers(line: Line) -> dict[str, Any]:
    win = line.win_rate
    return {
        "win_rate": win.value,
        "win_rate_low": win.low,
        "win_rate_high": win.high,
        "judge": line.measure("judge").value,
        "kl": line.measure("kl").value,
        "length_ratio": line.measure("length_ratio").value,
        "floors_held": line.held,
        "num_scored": line.num_scored,
        "seconds": line.seconds,
    }


def _wins(lines: Sequence[Line]) -> Figure:
    title = "Win rate against SFT by the judge, test films, mean of the seeds"
    shown = [Dot(line.name, line.style, line.win_rate.value, line.win_rate.low, line.win_rate.high) for line in lines]
    edge = min(0.45, *(dot.low for dot in shown if dot.low is not None))
    picture = dots(shown, title=title, axis="share of comparisons won", rule=0.5, span=(max(0.0, edge - 0.03), 1.0))
    return Figure(title, picture)


def _along(lines: Sequence[Line], measure: str) -> Figure:
    """Every method's snapshots on validation films, mean of the seeds; best of n at its bound."""
    series = []
    for line in lines:
        points = []
        for what, rows in line.along:
            kl, found = Estimate.of([row["kl"] for row in rows]).value, Estimate.of([row[measure] for row in rows])
            label = f"{line.name}, {what}: {measure} {found.text()}, KL {kl:.2f} nats"
            points.append(Point(math.sqrt(max(0.0, kl)), found.value, found.low, found.high, label))
        series.append(Series(line.name, line.style, tuple(points)))
    largest = max(point.x for one in series for point in one.points) ** 2
    title = f"{measure.capitalize()} score against KL on validation films, mean of the seeds"
    picture = chart(series, kl_axis(largest), Axis(f"{measure} score"), title=title, size=(WIDE, 420))
    note = "From SFT (KL 0) through the snapshots. Whiskers: 95 % (films, seeds). Best of n: a bound on its KL."
    return Figure(title, picture, tuple((swatch(one), one.name) for one in series), note)
