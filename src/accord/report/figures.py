"""The report's pictures, made from what a run wrote. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from accord.report.names import Names, policy_title, style_of, title_of
from accord.report.svg import Axis, Dot, Point, Series, chart, dots, gauge, swatch

KL_TICKS = (0, 1, 2, 4, 7, 10, 15, 20, 30, 40, 60, 80, 100, 150, 200, 300, 400, 600, 800, 1000)
METHOD_STYLES = tuple(f"m{i}" for i in range(10))  # of policies side by side, none of which is the first
SMALL = (360, 200)
ResultRow = Mapping[str, Any]
MOST_POINTS = 120  # of a training curve; more are joined, mean and range


@dataclass(frozen=True)
class Figure:
    """A picture and what is needed beneath it; ``legend`` holds swatch and name of each series."""

    title: str
    picture: Markup
    legend: tuple[tuple[Markup, str], ...] = ()
    note: str = ""


def legend(series: Iterable[Series]) -> tuple[tuple[Markup, str], ...]:
    """Swatch and name of each series."""
    return tuple((swatch(one), one.name) for one in series)


# ---- frontier ------------------------------------------------------------------------------------------------------


def kl_axis(largest: float, reference: str) -> Axis:
    """KL in nats on a square-root scale: Gao et al. 2022 found scores to be simple functions of sqrt(KL)."""
    edge = math.sqrt(max(largest, 1.0)) * 1.06
    ticks: list[tuple[float, str]] = []
    for kl in KL_TICKS:
        if math.sqrt(kl) <= edge and (not ticks or math.sqrt(kl) - ticks[-1][0] > 0.09 * edge):
            ticks.append((math.sqrt(kl), str(kl)))
    return Axis(f"KL to {reference} in nats (square-root scale)", (-0.03 * edge, edge), tuple(ticks))


def _value(row: Mapping[str, Any], measure: str) -> tuple[float, float | None, float | None]:
    found = row[measure]
    return (found["value"], found["low"], found["high"]) if isinstance(found, Mapping) else (float(found), None, None)


def _along_kl(name: str, style: str, rows: Sequence[tuple[float, Mapping[str, Any], str]], measure: str) -> Series:
    """Points of (KL, row, what it is) at sqrt(KL)."""
    points = []
    for kl, row, what in rows:
        value, low, high = _value(row, measure)
        label = f"{name}, {what}: {measure} {value:.3f}, KL {kl:.2f} nats"
        points.append(Point(math.sqrt(max(0.0, kl)), value, low, high, label))
    return Series(name, style, tuple(points))


def _snapshots(results: ResultRow, snapshots: Sequence[ResultRow]) -> list[tuple[float, Any, str]]:
    """From the reference (KL 0) through the snapshots in the order of training."""
    start: list[tuple[float, Any, str]] = [(0.0, results["start"], f"the start ({Names.of(results).reference})")]
    return start + [(s["row"]["kl"]["value"], s["row"], f"step {s['step']}") for s in snapshots]


def snapshot_line(title: str, style: str, results: ResultRow, snapshots: Sequence[ResultRow], measure: str) -> Series:
    """The snapshots of one training along KL, from the reference on."""
    return _along_kl(title, style, _snapshots(results, snapshots), measure)


def candidate_line(title: str, results: ResultRow, measure: str) -> Series:
    """The snapshots of a run's candidate along KL; the start alone where it has none."""
    chosen = results["selections"].get(results["candidate"], {"snapshots": []})
    return snapshot_line(title, "candidate", results, chosen["snapshots"], measure)


def frontier_series(results: ResultRow, measure: str, *, with_best_of_n: bool = True) -> list[Series]:
    """Candidates, controls and best-of-n along KL, for one measure."""
    trained = {name: one["snapshots"] for name, one in results["selections"].items() if one["snapshots"]}
    several = len(trained) > 1
    series = [
        snapshot_line(title_of(name), METHOD_STYLES[i % 10] if several else "candidate", results, snapshots, measure)
        for i, (name, snapshots) in enumerate(trained.items())
    ]
    series += [snapshot_line(title_of(n), "control", results, s, measure) for n, s in results["controls"].items()]
    if with_best_of_n and len(results["best_of_n_curve"]) > 1:
        rows = [(p["kl_bound"], p, f"n = {p['n']}") for p in results["best_of_n_curve"]]
        series.append(_along_kl("Best of n (KL is an upper bound)", "best_of_n", rows, measure))
    return series


def frontier(
    results: ResultRow,
    measure: str,
    title: str,
    y_label: str,
    *,
    allowed: tuple[float | None, float | None] | None = None,
    with_best_of_n: bool = True,
) -> Figure | None:
    """One measure against KL on validation prompts; what was chosen stands out. None where there is nothing to draw."""
    series = frontier_series(results, measure, with_best_of_n=with_best_of_n)
    if not series:
        return None
    chosen = _chosen(results, measure)
    largest = max(point.x for one in series for point in one.points) ** 2
    shown = [*series, chosen] if chosen else series
    axis = kl_axis(largest, Names.of(results).reference)
    return Figure(title, chart(shown, axis, Axis(y_label), title=title, allowed=allowed), legend(shown))


def _chosen(results: ResultRow, measure: str) -> Series | None:
    rings = []
    for name, one in results["selections"].items():
        if not one["snapshots"]:  # of a policy that has but one nothing was chosen
            continue
        row = next(s["row"] for s in one["snapshots"] if s["step"] == one["step"])
        label = f"chosen: step {one['step']} of {title_of(name)}"
        rings.append(Point(math.sqrt(max(0.0, row["kl"]["value"])), _value(row, measure)[0], label=label, size=8.5))
    return Series("chosen snapshot", "chosen", tuple(rings), line=False) if rings else None


def lines_along_kl(title: str, lines: Sequence[Series], y_label: str, reference: str, **more: Any) -> Figure:
    """Lines of several runs along KL. ``more`` goes to the chart."""
    largest = max(point.x for one in lines for point in one.points) ** 2
    picture = chart(lines, kl_axis(largest, reference), Axis(y_label), title=title, **more)
    return Figure(title, picture, legend(lines))


# ---- intervals in rows ---------------------------------------------------------------------------------------------


def dot_of(name: str, style: str, interval: Mapping[str, Any]) -> Dot:
    return Dot(name, style, interval["value"], interval["low"], interval["high"])


def win_rates(rows: Sequence[ResultRow], reference: str) -> Figure:
    """Each policy's win rate against the reference with its interval."""
    shown = [dot_of(policy_title(row), style_of(row), row["win_rate"]) for row in rows]
    return win_figure(f"Win rate against {reference} by the judge, test prompts", shown)


def win_figure(title: str, shown: Sequence[Dot]) -> Figure:
    """Win rates in rows; one half, no better than the reference, is marked."""
    edge = min([0.4, *(dot.value if dot.low is None else dot.low for dot in shown)])
    picture = dots(shown, title=title, axis="share of comparisons won", rule=0.5, span=(max(0.0, edge - 0.05), 1.0))
    return Figure(title, picture)


def accuracies(card: ResultRow, by: str = "people") -> Figure:
    """Reward model and baselines on the same held-out pairs, all of them and those of each part; who ordered them."""
    found = {"Reward model": card["model"], **{title_of(name): one for name, one in card["baselines"].items()}}
    shown = [
        dot_of(name + suffix, "candidate" if name == "Reward model" else "reference", interval)
        for part in ("", *card["model"]["parts"])
        for name, one in found.items()
        if (interval := one["parts"].get(part) if part else one["all_pairs"]) is not None
        for suffix in [f", {part.replace('_', ' ')}" if part else ""]
    ]
    title = f"Accuracy on held-out pairs that {by} ordered"
    return Figure(title, dots(shown, title=title, axis=f"share of pairs ordered as {by} did", rule=0.5))


def calibration_figure(card: Mapping[str, Any]) -> Figure:
    """Confidence against accuracy; a dot's area grows with its number of pairs."""
    bins = card["calibration"]["bins"]
    most = max(one["n"] for one in bins)
    points = tuple(
        Point(
            one["confidence"],
            one["accuracy"],
            label=f"confidence {one['confidence']:.2f}: right in {one['accuracy']:.3f} of {one['n']} pairs",
            size=2.5 + 6.5 * math.sqrt(one["n"] / most),
        )
        for one in bins
    )
    ideal = Series("perfectly calibrated", "ideal", (Point(0.5, 0.5), Point(1.0, 1.0)), marks=False)
    series = [ideal, Series("reward model", "candidate", points)]
    title = "Is it as often right as it is sure?"
    picture = chart(series, Axis("confidence in the pair", (0.48, 1.02)), Axis("share right"), title=title)
    return Figure(title, picture, legend(series), f"calibration error {card['calibration']['error']:.3f}")


def by_gap(card: Mapping[str, Any]) -> Figure:
    """Accuracy where people's ratings lie further apart."""
    items = list(card["by_gap"].items())
    points = tuple(
        Point(i, v["value"], v["low"], v["high"], f"gap {gap}: {v['value']:.3f} of {v['n']} pairs")
        for i, (gap, v) in enumerate(items)
    )
    ticks = tuple((float(i), gap) for i, (gap, _) in enumerate(items))
    title = "Is it more often right where people agree more?"
    series = [Series("reward model", "candidate", points)]
    x = Axis(f"{card['gap_unit']} between the two texts", (-0.4, len(items) - 0.6), ticks)
    return Figure(title, chart(series, x, Axis("accuracy"), title=title))


def floor_gauge(floor: Mapping[str, Any]) -> Markup:
    """A floor's value against its bound."""
    words = f"{floor['name']}: {floor['value']:.3f}, must be {floor['bound']}"
    return gauge(floor["value"], floor["low"], floor["high"], held=bool(floor["held"]), words=words)


# ---- training curves -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """A picture of training: which keys of a stage's metrics, under which names; a ``share`` cannot exceed 1."""

    title: str
    keys: tuple[tuple[str, str], ...]
    share: bool = False


#: Curves by the stage that logs them; those of "policy" are drawn for every policy that was optimised.
CURVES: Mapping[str, tuple[Curve, ...]] = {
    "pretrain": (Curve("Pretraining loss (nats per token)", (("loss", "loss"),)),),
    "sft": (Curve("Fine-tuning loss (nats per token)", (("loss", "loss"),)),),
    "reward": (
        Curve("Reward model loss", (("loss", "loss"),)),
        Curve("Reward model accuracy in training", (("accuracy", "accuracy"),), share=True),
    ),
    "policy": (
        Curve("Proxy score", (("score", "score"),)),
        Curve("Pairs ordered right by the policy", (("accuracy", "share"),), share=True),
        Curve("Margin of the implicit reward", (("margin", "margin"),)),
        Curve("KL to {reference} (nats per completion)", (("kl", "KL"),)),
        Curve("Length (tokens)", (("length", "length"),)),
        Curve("NLL under {reference} (nats per token)", (("reference_nll", "NLL"),)),
        Curve("Entropy (nats per token)", (("entropy", "entropy"),)),
        Curve("Ended completions", (("eos_rate", "share"),), share=True),
        Curve("Distinct completions", (("distinct", "share"),), share=True),
        Curve("Explained variance of the critic", (("explained_variance", "explained variance"),)),
        Curve("Value loss", (("value_loss", "value loss"),)),
        Curve("Clip fraction", (("clip_high", "above"), ("clip_low", "below"))),
        Curve("KL coefficient", (("kl_coef", "coefficient"),)),
        Curve("Price of length", (("length_price", "price"),)),
    ),
}
MetricRows = Sequence[Mapping[str, Any]]


def training_figure(title: str, curve: Curve, lines: Sequence[tuple[str, str, MetricRows]]) -> Figure | None:
    """One training curve of all lines (name, style, metrics); None where none has logged it.

    Of a curve with several keys only the first line is drawn, a style for each key.
    """
    if len(curve.keys) > 1:
        wanted = [(key, name, style) for style, (key, name) in zip(("candidate", "best_of_n"), curve.keys, strict=True)]
        found = [thinned(lines[0][2], key, name, style) for key, name, style in wanted]
    else:
        found = [thinned(rows, curve.keys[0][0], name, style) for name, style, rows in lines]
    series = [one for one in found if one]
    if not series:
        return None
    span = _share_span(series) if curve.share else None
    picture = chart(series, Axis("step"), Axis("", span), title=title, size=SMALL)
    return Figure(title, picture, legend(series) if len(curve.keys) > 1 else ())


def _share_span(series: Sequence[Series]) -> tuple[float, float]:
    return min(0.8, *(p.y if p.low is None else p.low for one in series for p in one.points)) - 0.02, 1.01


def training_legend(lines: Sequence[tuple[str, str, MetricRows]]) -> tuple[tuple[Markup, str], ...]:
    """What the lines of a policy's curves are, where there are several."""
    return legend(Series(name, style, (), marks=False) for name, style, _ in lines) if len(lines) > 1 else ()


def thinned(rows: Sequence[Mapping[str, Any]], key: str, name: str, style: str) -> Series | None:
    """A metric over steps; of too many steps neighbours are joined into mean and range."""
    found = [(row["step"] + 1, row[key]) for row in rows if isinstance(row.get(key), int | float) and "step" in row]
    if not found:
        return None
    size = math.ceil(len(found) / MOST_POINTS)
    points = []
    for start in range(0, len(found), size):
        steps, values = zip(*found[start : start + size], strict=True)
        mean = sum(values) / len(values)
        wide = len(values) > 1
        points.append(
            Point(sum(steps) / len(steps), mean, min(values) if wide else None, max(values) if wide else None)
        )
    return Series(name, style, tuple(points), marks=len(points) == 1, band=True)
