"""The page of a comparison: each policy's judge score against sqrt(KL), which wins, and what it cost. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from accord.report.figures import METHOD_STYLES, Figure, lines_along_kl
from accord.report.names import Names
from accord.report.pages import ComparedPage, ComparedRow, Measure, text_cell, write_compared
from accord.report.parts import NONE, number, percent
from accord.report.svg import WIDE, Dot, Point, Series, dots


@dataclass(frozen=True)
class SeedMean:
    """A measure averaged over seeds, and half the width of its 95 % interval.

    Two errors add up in squares: that of the mean over seeds, by Student's t (few seeds say little: with 3 it is 4.3
    standard errors), and the mean of the seeds' own, which resample the topics that all seeds share.
    """

    value: float
    half: float
    span: tuple[float, float] = (-math.inf, math.inf)

    @classmethod
    def of(cls, found: Sequence[Mapping[str, Any] | float], *, share: bool = False) -> SeedMean:
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
class Method:
    """One candidate over all seeds."""

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
    def win_rate(self) -> SeedMean:
        return SeedMean.of([row["win_rate"] for row in self.tests], share=True)

    def measure(self, name: str) -> SeedMean:
        return SeedMean.of([row[name] for row in self.tests])


def write_comparison(out_dir: Path, name: str, seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Write ``report.html`` and ``table.md`` over the seeds of a comparison; returns its numbers.

    Args:
        seeds: what ``eval/results.json`` of each holds, and ``costs``: policy -> ``num_scored`` and ``seconds``.
    """
    names = Names.of(seeds[0])
    methods = sorted(_methods(seeds), key=lambda one: one.win_rate.value, reverse=True)
    verdict, prompts = _verdict(methods, names.reference), seeds[0]["num_test_prompts"]
    page = ComparedPage(
        title=f"{name}: {len(methods)} methods",
        kind=f"{name} · {len(methods)} methods · {len(seeds)} seeds",
        verdict=verdict,
        caption="The judge trained nothing. It chose each method's snapshot on validation prompts; these are "
        f"{prompts} test prompts, mean of {len(seeds)} seeds with 95 % intervals",
        headings=("Method",),
        measures=COMPARED_MEASURES,
        rows=(*(_row(one) for one in methods), _reference(seeds, names.reference)),
        figures=(
            _wins(methods, names.reference),
            *(_along(methods, measure, names.reference) for measure in ("judge", "proxy") if _measured_along(methods)),
        ),
        section="Method by method",
        names=names,
    )
    write_compared(page, out_dir / "report.html", out_dir / "table.md")
    return {"verdict": verdict, "methods": {one.name: _numbers(one) for one in methods}}


def _methods(seeds: Sequence[Mapping[str, Any]]) -> list[Method]:
    """The candidates of all seeds, in the order of the first."""
    rows = [row for row in seeds[0]["policies"] if row["role"] == "candidate"]
    return [_method(seeds, row["name"], METHOD_STYLES[i % len(METHOD_STYLES)]) for i, row in enumerate(rows)]


def _method(seeds: Sequence[Mapping[str, Any]], name: str, style: str) -> Method:
    tests = [next(row for row in seed["policies"] if row["name"] == name) for seed in seeds]
    chosen = [seed["selections"].get(name, {"held": True, "snapshots": []}) for seed in seeds]
    costs = [seed["costs"][name] for seed in seeds]
    shared = min(len(one["snapshots"]) for one in chosen)  # a seed with fewer labelled groups takes fewer steps
    steps = [one["step"] for one in chosen[0]["snapshots"][:shared]]
    stops = [(f"step {s}", [one["snapshots"][j]["row"] for one in chosen]) for j, s in enumerate(steps)]
    start = ("the start", [seed["start"] for seed in seeds])
    return Method(
        name=name,
        style=style,
        best_of=tests[0]["best_of"],
        tests=tests,
        num_scored=fmean(one["num_scored"] for one in costs),
        seconds=fmean(one["seconds"] for one in costs),
        held=sum(bool(one["held"]) for one in chosen),
        seeds=len(seeds),
        along=[start, *stops] if steps else _best_of_n(seeds, tests[0]["best_of"]),
    )


def _best_of_n(seeds: Sequence[Mapping[str, Any]], most: int) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Best of 1, 2, 4 ... by the proxy; the KL of each is a bound."""
    curves = [[point for point in seed["best_of_n_curve"] if point["n"] <= most] for seed in seeds]
    points = [[{**point, "kl": point["kl_bound"]} for point in curve] for curve in curves]
    return [(f"n = {at[0]['n']}, at most", list(at)) for at in zip(*points, strict=True)]


def _verdict(lines: Sequence[Method], reference: str) -> str:
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
        f"{best.name} {verb}: the judge prefers it to {reference} in {percent(best.win_rate.value)} of comparisons, "
        f"at KL {number(best.measure('kl').value, 1)}, for {cost}.{rest}{note}"
    )


def _apart(first: SeedMean, second: SeedMean) -> bool:
    return abs(first.value - second.value) > math.hypot(first.half, second.half)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _cost(line: Method) -> str:
    if line.best_of > 1:
        return f"no training, but {line.best_of} scored samples for every completion"
    return f"{line.num_scored:,.0f} scored or labelled completions and {line.seconds / 60:.1f} minutes"


COMPARED_MEASURES = (
    Measure("Win rate", "win_rate", "win_rate"),
    Measure("At equal length", "length_controlled", "length_controlled"),
    Measure("Judge", "judge", "judge"),
    Measure("Proxy", "proxy", "proxy"),
    Measure("KL", "kl", "kl", 2),
    Measure("Length ratio", "length_ratio", "length_ratio", 2),
    Measure("Floors held", "floor", "held"),
    Measure("Cost", "", "cost"),
)
FLOORS_CELL = 6  # the number of the cell that says where floors held


def _row(line: Method) -> ComparedRow:
    lengths = [row["length_controlled"] for row in line.tests if row["length_controlled"] is not None]
    cells = [
        line.win_rate.text(),
        SeedMean.of(lengths, share=True).text() if lengths else NONE,
        line.measure("judge").text(),
        line.measure("proxy").text(),
        ("at most " if line.best_of > 1 else "") + number(line.measure("kl").value, 2),
        number(line.measure("length_ratio").value, 2),
        f"{line.held} of {line.seeds} seeds",
        _cost(line),
    ]
    broken = FLOORS_CELL if line.held < line.seeds else None
    return ComparedRow((line.name,), tuple(text_cell(cell) for cell in cells), broken=broken)


def _reference(seeds: Sequence[Mapping[str, Any]], name: str) -> ComparedRow:
    """The policy that all methods started from."""
    rows = [next(row for row in seed["policies"] if row["role"] == "reference") for seed in seeds]
    measures = [SeedMean.of([row[key] for row in rows]).text() for key in ("judge", "proxy")]
    cells = (NONE, NONE, *measures, "0", "1", NONE, NONE)
    return ComparedRow((f"{name} (the start)",), tuple(text_cell(cell) for cell in cells))


def _numbers(line: Method) -> dict[str, Any]:
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


def _wins(lines: Sequence[Method], reference: str) -> Figure:
    title = f"Win rate against {reference} by the judge, test prompts, mean of the seeds"
    shown = [Dot(line.name, line.style, line.win_rate.value, line.win_rate.low, line.win_rate.high) for line in lines]
    edge = min(0.45, *(dot.low for dot in shown if dot.low is not None))
    picture = dots(shown, title=title, axis="share of comparisons won", rule=0.5, span=(max(0.0, edge - 0.03), 1.0))
    return Figure(title, picture)


def _measured_along(lines: Sequence[Method]) -> bool:
    """Whether anything was measured on the way: of methods with one snapshot each nothing is chosen on validation."""
    return any(line.along for line in lines)


def _along(lines: Sequence[Method], measure: str, reference: str) -> Figure:
    """Every method's snapshots on validation prompts, mean of the seeds; best of n at its bound."""
    series = []
    for line in lines:
        points = []
        for what, rows in line.along:
            kl, found = SeedMean.of([row["kl"] for row in rows]).value, SeedMean.of([row[measure] for row in rows])
            label = f"{line.name}, {what}: {measure} {found.text()}, KL {kl:.2f} nats"
            points.append(Point(math.sqrt(max(0.0, kl)), found.value, found.low, found.high, label))
        series.append(Series(line.name, line.style, tuple(points)))
    title = f"{measure.capitalize()} score against KL on validation prompts, mean of the seeds"
    note = (
        f"From {reference} (KL 0) through the snapshots. Whiskers: 95 % (topics, seeds). Best of n: a bound on its KL."
    )
    return replace(lines_along_kl(title, series, f"{measure} score", reference, size=(WIDE, 420)), note=note)
