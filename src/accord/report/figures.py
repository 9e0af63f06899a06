"""The report's pictures, made from what a run wrote. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from accord.report.svg import Axis, Dot, Point, Series, chart, dots, gauge, swatch

STYLES = {"base": "base", "sft": "sft", "best_of_n": "best_of_n", "ppo": "ppo", "ppo_uncured": "uncured"}
NAMES = {"base": "Base", "sft": "SFT", "ppo": "PPO", "ppo_uncured": "PPO without the cure"}
KL_TICKS = (0, 1, 2, 4, 7, 10, 15, 20, 30, 40, 60, 80, 100, 150, 200, 300, 400, 600, 800, 1000)
SMALL = (360, 200)
MOST_POINTS = 120  # of a training curve; more are joined, mean and range


@dataclass(frozen=True)
class Figure:
    """A picture and what is needed beneath it; ``legend`` holds swatch and name of each series."""

    title: str
    picture: Markup
    legend: tuple[tuple[Markup, str], ...] = ()
    note: str = ""


def policy_name(row: Mapping[str, Any]) -> str:
    """How the report calls a policy."""
    return f"Best of {row['best_of']}" if row["name"] == "best_of_n" else NAMES.get(row["name"], str(row["name"]))


def legend(series: Iterable[Series]) -> tuple[tuple[Markup, str], ...]:
    """Swatch and name of each series."""
    return tuple((swatch(one), one.name) for one in series)


# ---- frontier ------------------------------------------------------------------------------------------------------


def kl_axis(largest: float) -> Axis:
    """KL in nats on a square-root scale: Gao et al. 2022 found scores to be simple functions of sqrt(KL)."""
    edge = math.sqrt(max(largest, 1.0)) * 1.06
    ticks: list[tuple[float, str]] = []
    for kl in KL_TICKS:
        if math.sqrt(kl) <= edge and (not ticks or math.sqrt(kl) - ticks[-1][0] > 0.09 * edge):
            ticks.append((math.sqrt(kl), str(kl)))
    return Axis("KL to SFT in nats (square-root scale)", (-0.03 * edge, edge), tuple(ticks))


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


def _snapshots(results: Mapping[str, Any], snapshots: Sequence[Mapping[str, Any]]) -> list[tuple[float, Any, str]]:
    """From the reference (KL 0) through the snapshots in the order of training."""
    start: list[tuple[float, Any, str]] = [(0.0, results["selection"]["reference"], "the start (SFT)")]
    return start + [(s["row"]["kl"]["value"], s["row"], f"step {s['step']}") for s in snapshots]


def frontier_series(results: Mapping[str, Any], measure: str, *, with_best_of_n: bool = True) -> list[Series]:
    """PPO's snapshots, the uncured run's and best-of-n along KL, for one measure."""
    series = [snapshot_line("PPO", results, measure)]
    if results["uncured"]:
        series.append(_along_kl("PPO without the cure", "uncured", _snapshots(results, results["uncured"]), measure))
    if with_best_of_n:
        rows = [(p["kl_bound"], p, f"n = {p['n']}") for p in results["best_of_n_curve"]]
        series.append(_along_kl("Best of n (KL is an upper bound)", "best_of_n", rows, measure))
    return series


def frontier(
    results: Mapping[str, Any],
    measure: str,
    title: str,
    y_label: str,
    *,
    allowed: tuple[float | None, float | None] | None = None,
    with_best_of_n: bool = True,
) -> Figure:
    """One measure against KL on validation films; the snapshot that was chosen stands out."""
    series = frontier_series(results, measure, with_best_of_n=with_best_of_n)
    chosen = _chosen(results, measure)
    largest = max(point.x for one in series for point in one.points) ** 2
    shown = [*series, chosen] if chosen else series
    picture = chart(shown, kl_axis(largest), Axis(y_label), title=title, allowed=allowed)
    return Figure(title, picture, legend(shown))


def _chosen(results: Mapping[str, Any], measure: str) -> Series | None:
    selection = results["selection"]
    for snapshot in selection["snapshots"]:
        if snapshot["step"] == selection["step"]:
            value, kl = _value(snapshot["row"], measure)[0], snapshot["row"]["kl"]["value"]
            ring = Point(math.sqrt(max(0.0, kl)), value, label=f"chosen: step {selection['step']}", size=8.5)
            return Series("chosen snapshot", "chosen", (ring,), line=False)
    return None


def snapshot_line(name: str, results: Mapping[str, Any], measure: str) -> Series:
    """PPO's snapshots of one run along KL."""
    return _along_kl(name, "ppo", _snapshots(results, results["selection"]["snapshots"]), measure)


def seeds_frontier(lines: Sequence[Series], y_label: str) -> Figure:
    """PPO's snapshots of several seeds along KL."""
    largest = max(point.x for one in lines for point in one.points) ** 2
    title = f"{y_label.capitalize()} against KL on validation films, one line a seed"
    return Figure(title, chart(lines, kl_axis(largest), Axis(y_label), title=title))


# ---- intervals in rows ---------------------------------------------------------------------------------------------


def dot_of(name: str, style: str, interval: Mapping[str, Any]) -> Dot:
    return Dot(name, style, interval["value"], interval["low"], interval["high"])


def win_rates(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Each policy's win rate against SFT with its interval."""
    shown = [dot_of(policy_name(row), STYLES.get(row["name"], "base"), row["win_rate"]) for row in rows]
    return win_figure("Win rate against SFT by the judge, test films", shown)


def win_figure(title: str, shown: Sequence[Dot]) -> Figure:
    """Win rates in rows; one half, no better than SFT, is marked."""
    edge = min([0.4, *(dot.value if dot.low is None else dot.low for dot in shown)])
    picture = dots(shown, title=title, axis="share of comparisons won", rule=0.5, span=(max(0.0, edge - 0.05), 1.0))
    return Figure(title, picture)


def accuracies(card: Mapping[str, Any]) -> Figure:
    """Reward model and baselines on the same held-out pairs, all of them and those of one verdict."""
    found = {"Reward model": card["model"], **{readable(k): v for k, v in card["baselines"].items()}}
    shown = [
        dot_of(name + suffix, "ppo" if name == "Reward model" else "sft", one[which])
        for which, suffix in (("all_pairs", ""), ("same_verdict", ", same verdict"))
        for name, one in found.items()
        if one[which] is not None
    ]
    title = "Accuracy on held-out pairs of reviews by people"
    return Figure(title, dots(shown, title=title, axis="share of pairs ordered as people did", rule=0.5))


def readable(key: str) -> str:
    """``tfidf_bradley_terry`` as a person would write it."""
    special = {"tfidf_bradley_terry": "TF-IDF Bradley-Terry", "longer_wins": "Longer wins"}
    return special.get(key, key.replace("_", " ").capitalize())


def calibration(card: Mapping[str, Any]) -> Figure:
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
    series = [ideal, Series("reward model", "ppo", points)]
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
    series = [Series("reward model", "ppo", points)]
    x = Axis("rating points between the two reviews", (-0.4, len(items) - 0.6), ticks)
    return Figure(title, chart(series, x, Axis("accuracy"), title=title))


def floor_gauge(floor: Mapping[str, Any]) -> Markup:
    """A floor's value against its bound."""
    words = f"{floor['name']}: {floor['value']:.3f}, must be {floor['bound']}"
    return gauge(floor["value"], floor["low"], floor["high"], held=bool(floor["held"]), words=words)


# ---- training curves -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """A picture of training: which keys of a stage's metrics, under which names.

    ``beside`` names a stage whose first key is drawn too; a ``share`` cannot exceed 1.
    """

    stage: str
    title: str
    keys: tuple[tuple[str, str], ...]
    beside: str = ""
    share: bool = False


CURVES = (
    Curve("pretrain", "Pretraining loss (nats per token)", (("loss", "loss"),)),
    Curve("sft", "Fine-tuning loss (nats per token)", (("loss", "loss"),)),
    Curve("reward", "Reward model loss", (("loss", "loss"),)),
    Curve("reward", "Reward model accuracy in training", (("accuracy", "accuracy"),), share=True),
    Curve("rl", "Proxy score", (("score", "score"),), "rl_uncured"),
    Curve("rl", "KL to SFT (nats per completion)", (("kl", "KL"),), "rl_uncured"),
    Curve("rl", "Length (tokens)", (("length", "length"),), "rl_uncured"),
    Curve("rl", "NLL under SFT (nats per token)", (("reference_nll", "NLL"),), "rl_uncured"),
    Curve("rl", "Entropy (nats per token)", (("entropy", "entropy"),), "rl_uncured"),
    Curve("rl", "Ended completions", (("eos_rate", "share"),), "rl_uncured", share=True),
    Curve("rl", "Distinct completions", (("distinct", "share"),), "rl_uncured", share=True),
    Curve("rl", "Explained variance of the critic", (("explained_variance", "explained variance"),), "rl_uncured"),
    Curve("rl", "Value loss", (("value_loss", "value loss"),), "rl_uncured"),
    Curve("rl", "Clip fraction", (("clip_high", "above"), ("clip_low", "below"))),
    Curve("rl", "KL coefficient", (("kl_coef", "coefficient"),)),
    Curve("rl", "Price of length", (("length_price", "price"),)),
)


def training_figure(curve: Curve, metrics: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure | None:
    """One training curve, with the run without the cure beside it; None where nothing was logged."""
    styles = ("ppo", "best_of_n")
    name = "PPO" if curve.beside and metrics.get(curve.beside) else ""
    series = [
        one
        for style, (key, label) in zip(styles, curve.keys, strict=False)
        if (one := thinned(metrics[curve.stage], key, name or label, style))
    ]
    if name and (other := thinned(metrics[curve.beside], curve.keys[0][0], "PPO without the cure", "uncured")):
        series.append(other)
    if not series:
        return None
    x = Axis("iteration" if curve.stage.startswith("rl") else "step")
    picture = chart(series, x, Axis("", _share_span(series) if curve.share else None), title=curve.title, size=SMALL)
    return Figure(curve.title, picture, legend(series) if len(curve.keys) > 1 else ())


def _share_span(series: Sequence[Series]) -> tuple[float, float]:
    return min(0.8, *(p.y if p.low is None else p.low for one in series for p in one.points)) - 0.02, 1.01


def training_legend(metrics: Mapping[str, Sequence[Any]]) -> tuple[tuple[Markup, str], ...]:
    """What the lines of PPO's curves are, where there are two kinds."""
    kinds = [Series("PPO", "ppo", (), marks=False), Series("PPO without the cure", "uncured", (), marks=False)]
    return legend(kinds) if metrics.get("rl_uncured") else ()


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
