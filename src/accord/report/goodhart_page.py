"""The page of over-optimisation: gold and proxy along sqrt(KL), and the laws that were fitted. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accord.files import read_json
from accord.report.figures import METHOD_STYLES, Figure, lines_along_kl
from accord.report.names import title_of
from accord.report.pages import ComparedPage, ComparedRow, Measure, text_cell, write_compared
from accord.report.parts import interval
from accord.report.run_folder import CURVES_FILE, RunFolder
from accord.report.svg import Point, Series

METHODS = {"best_of_n": "Best of n", "rl": "Checkpoints"}
LAW_MEASURES = (
    Measure("alpha", "", "alpha"),
    Measure("beta", "", "beta"),
    Measure("Gold peaks at KL", "", "peak_kl", 1),
    Measure("Gold there", "", "peak_gold", 2),
    Measure("Measured to KL", "", "largest_kl", 1),
    Measure("What it says", "", "says"),
)
LAWS_IN_WORDS = (
    "Gold follows d (alpha - beta d) for best of n and d (alpha - beta log d) for checkpoints, d = sqrt(KL) "
    "(Gao et al. 2022)."
)
_Curve = Mapping[str, Any]


def write_goodhart_page(folder: Path) -> Path:
    """Write the page from ``goodhart/curves.json``, and return its path: ``report.html``.

    In the folder of a run that is the run's own; the page of its curves lies in ``goodhart``.
    """
    page = folder / ("goodhart/report.html" if (folder / "resolved.json").exists() else "report.html")
    return write_compared(_page(read_json(folder / CURVES_FILE)), page)


def over_optimisation(run: RunFolder) -> dict[str, Any]:
    """What `accord eval goodhart` has measured of a run: its sentence, figures and table; ``measured`` says whether."""
    if CURVES_FILE not in run.files and CURVES_FILE not in run.damaged:
        return {"measured": False}
    page = _page(run.need(CURVES_FILE))
    return {"measured": True, "page": page, "figures": page.figures, "sentence": page.verdict}


def _page(stored: Mapping[str, Any]) -> ComparedPage:
    curves = stored["curves"]
    return ComparedPage(
        title="Over-optimisation",
        kind="over-optimisation",
        verdict=goodhart_sentence(curves),
        caption=f"{LAWS_IN_WORDS} {stored['prompts']:,} prompts of {stored['topics']:,} topics, "
        f"{stored['samples_per_prompt']} samples a prompt; scores in standard deviations of the start's samples",
        headings=("Optimised by", "How"),
        measures=LAW_MEASURES,
        rows=tuple(_row(curve) for curve in curves),
        figures=tuple(_figures(curves)),
        section="Where, or whether, gold peaks",
    )


def goodhart_sentence(curves: Sequence[_Curve]) -> str:
    """Return what is shown of gold, in a sentence."""
    told = [
        f"{METHODS[one['method']].lower()} by {title_of(one['proxy'])}: {_in_words(one['law'])}"
        for one in curves
        if one["law"]
    ]
    if not told:
        return "There are too few distances to say where gold peaks."
    joined = "; ".join(told)
    return joined[:1].upper() + joined[1:] + "."


def _in_words(law: _Curve) -> str:
    peak = law["peak_kl"]
    if law["says"] == "peaks":
        return (
            f"gold peaks at a KL of {peak['value']:.1f} nats [{peak['low']:.1f}, {peak['high']:.1f}] and falls beyond"
        )
    measured = f"{law['largest_kl']:.1f} nats"
    if law["says"] == "still rises":
        return f"gold still rises at {measured}, the furthest that was measured"
    return f"whether gold peaks within {measured} is not shown"


def _row(curve: _Curve) -> ComparedRow:
    labels, law = (title_of(curve["proxy"]), METHODS[curve["method"]]), curve["law"]
    if not law:
        return ComparedRow(labels, absent=curve["left_out"])
    cells = [_cell(law[one.key], one.digits) for one in LAW_MEASURES[:-1]]
    return ComparedRow(labels, (*cells, text_cell(law["says"])))


def _cell(found: Any, digits: int) -> dict[str, str]:
    """Return a cell; of a peak without an upper end it says so, and of none it says why."""
    if isinstance(found, Mapping) and found["value"] is None:
        return {"prefix": "", "value": "none", "range": str(found.get("why", ""))}
    if isinstance(found, Mapping) and found["high"] is None and found["low"] is not None:
        return interval({**found, "low": None}, digits) | {"range": f"from {found['low']:.{digits}f} without end"}
    return interval(found, digits)


def _figures(curves: Sequence[_Curve]) -> list[Figure]:
    """Return gold of all curves in one figure, and gold beside the proxy for each."""
    gold = [_line(f"{title_of(one['proxy'])}, {METHODS[one['method']].lower()}", METHOD_STYLES[i % 10], one, "gold")
            for i, one in enumerate(curves)]  # fmt: skip
    found = [lines_along_kl("Gold along the distance from the start", gold, "gold above the start’s", "the start")]
    for one in curves:
        title = f"{METHODS[one['method']]} by {title_of(one['proxy'])}: proxy, gold, and the law"
        lines = [_line("Proxy", "control", one, "proxy"), _line("Gold", "candidate", one, "gold"), *_law_line(one)]
        found.append(lines_along_kl(title, lines, "above the start’s", "the start"))
    return found


def _line(name: str, style: str, curve: _Curve, measure: str) -> Series:
    points = [Point(0.0, 0.0, label="the start")]
    for one in curve["points"]:
        value, kl = one[measure], one["kl"]["value"]
        label = f"{name}, {one['name']}: {value['value']:.3f} at KL {kl:.2f} nats"
        points.append(Point(math.sqrt(max(0.0, kl)), value["value"], value["low"], value["high"], label))
    return Series(name, style, tuple(points))


def _law_line(curve: _Curve) -> list[Series]:
    """Return the law of gold over what was measured, as a line without marks."""
    law = curve["law"]
    if not law:
        return []
    alpha, beta, edge = law["alpha"]["value"], law["beta"]["value"], math.sqrt(law["largest_kl"])
    steps = [edge * i / 40 for i in range(1, 41)]
    weighed = math.log if law["law"] == "rl" else float
    points = tuple(Point(d, d * (alpha - beta * weighed(d))) for d in steps)
    return [Series("The law of gold", "ideal", points, marks=False)]
