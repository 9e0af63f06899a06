"""The report of a sweep: one self-contained HTML page and one JSON file over all its combinations. Torch-free."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accord.files import write_json
from accord.grid import Point as Combination
from accord.report import parts
from accord.report.figures import Figure, dot_of, kl_axis, legend, win_figure
from accord.report.glossary import TERMS
from accord.report.run_folder import read_run
from accord.report.run_page import RUN_COLUMNS, SEED_LINES, run_numbers, write_page
from accord.report.svg import Axis, Dot, Point, Series, chart, dots

#: What a single stage's result may hold: column, glossary term, key, decimals.
STAGE_COLUMNS = (
    ("Training NLL", "", "train_nll", 4),
    ("Held-out NLL", "", "valid_nll", 4),
    ("Held-out accuracy", "", "valid_accuracy", 4),
    ("Score", "", "score", 3),
    ("KL", "kl", "kl", 2),
    ("Length", "", "length", 1),
    ("Ended", "", "eos_rate", 3),
    ("Distinct", "", "distinct", 3),
    ("Entropy", "", "entropy", 3),
    ("NLL under the reference", "", "reference_nll", 3),
)
HEADLINES = ("valid_accuracy", "valid_nll", "score")  # the first that a stage has is drawn
STYLES = ("ppo", "uncured", "best_of_n", "sft", "base")


@dataclass(frozen=True)
class Outcome:
    """What came of one combination: its numbers, plain or with an interval, or why there are none.

    ``lines`` holds, of a whole run, judge and proxy of its snapshots along KL.
    """

    name: str
    values: Mapping[str, str]
    numbers: Mapping[str, Any]
    lines: Mapping[str, Series] | None = None
    failed: str = ""


def of_run(point: Combination, folder: Path) -> Outcome:
    """The headline numbers of a whole run's folder."""
    found = parts.part(run_numbers, read_run(folder))
    if found["absent"]:
        return Outcome(point.name, point.values, {}, failed=found["absent"])
    return Outcome(point.name, point.values, found["values"], found["lines"])


def of_stage(point: Combination, result: Mapping[str, Any]) -> Outcome:
    """The numbers in a stage's result, those of its last step among them."""
    flat = {**result, **(result.get("final") or {})}
    numbers = {key: value for key, value in flat.items() if isinstance(value, int | float) and math.isfinite(value)}
    return Outcome(point.name, point.values, numbers)


def write_sweep_report(output_dir: Path, outcomes: Sequence[Outcome], *, planned: int) -> Path:
    """Write ``sweep.json`` and ``sweep.html`` over the combinations that have been tried; the page's path."""
    rows = [
        {"name": one.name, "values": dict(one.values), "numbers": dict(one.numbers), "failed": one.failed}
        for one in outcomes
    ]
    write_json(output_dir / "sweep.json", {"planned": planned, "runs": rows})
    columns = _columns(outcomes)
    context = {
        "name": output_dir.name,
        "planned": planned,
        "keys": list(outcomes[0].values),
        "columns": [(column, TERMS.get(term)) for column, term, _, _ in columns],
        "rows": [_row(one, columns, output_dir) for one in outcomes],
        "figures": _figures([one for one in outcomes if not one.failed]),
    }
    return write_page(output_dir / "sweep.html", "sweep.html.j2", context)


def _columns(outcomes: Sequence[Outcome]) -> list[tuple[str, str, str, int]]:
    """The columns that some combination fills, parts of a score after the others."""
    held = {key for one in outcomes for key in one.numbers}
    order = (*RUN_COLUMNS, *STAGE_COLUMNS) if "win_rate" in held else (*STAGE_COLUMNS, *RUN_COLUMNS)
    known = {column[2]: column for column in order}
    score_parts = sorted(key for key in held if key.startswith("part_"))
    return [column for key, column in known.items() if key in held] + [(key, "", key, 3) for key in score_parts]


def _row(one: Outcome, columns: Sequence[tuple[str, str, str, int]], output_dir: Path) -> dict[str, Any]:
    page = output_dir / one.name / "report.html"
    link = page if page.exists() else page.parent
    return {
        "values": list(one.values.values()),
        "link": Path(os.path.relpath(link, output_dir)).as_posix(),
        "failed": one.failed,
        "cells": [parts.interval(one.numbers.get(key), digits) for _, _, key, digits in columns],
    }


# ---- pictures ------------------------------------------------------------------------------------------------------


def _figures(outcomes: Sequence[Outcome]) -> list[Figure]:
    """Whole runs: win rates, then judge and proxy along KL. A stage with a KL: score along it. Else one number each."""
    if not outcomes:
        return []
    if all(one.lines for one in outcomes):
        wins = [dot_of(one.name, "ppo", one.numbers["win_rate"]) for one in outcomes]
        along = [_along(outcomes, measure, label) for measure, label in SEED_LINES.items()]
        return [win_figure("Win rate of PPO against SFT by the judge, test films", wins), *along]
    if all({"score", "kl"} <= set(one.numbers) for one in outcomes):
        return [_score_along_kl(outcomes)]
    shared = set.intersection(*(set(one.numbers) for one in outcomes))
    key = next((key for key in HEADLINES if key in shared), None)
    if key is None:
        return []
    label = next(column for column, _, name, _ in STAGE_COLUMNS if name == key)
    rows = [Dot(one.name, "ppo", one.numbers[key], None, None) for one in outcomes]
    return [Figure(label, dots(rows, title=label, axis=label.lower()))]


def _styled(outcomes: Sequence[Outcome]) -> list[tuple[Outcome, str]]:
    return [(one, STYLES[place % len(STYLES)]) for place, one in enumerate(outcomes)]


def _along(outcomes: Sequence[Outcome], measure: str, label: str) -> Figure:
    """Snapshots of every run along KL, on validation films; each point with its interval."""
    lines = [replace(one.lines[measure], name=one.name, style=style) for one, style in _styled(outcomes) if one.lines]
    title = f"{label.capitalize()} against KL on validation films, one line a run"
    return _drawn(title, lines, label)


def _score_along_kl(outcomes: Sequence[Outcome]) -> Figure:
    """The last iteration of every run: the score it was optimised for, at its KL."""
    series = []
    for one, style in _styled(outcomes):
        kl, score = one.numbers["kl"], one.numbers["score"]
        point = Point(math.sqrt(max(0.0, kl)), score, label=f"{one.name}: score {score:.3f}, KL {kl:.2f} nats")
        series.append(Series(one.name, style, (point,), line=False))
    note = "The score is what was optimised: it is no evidence of better texts."
    return replace(_drawn("Score of the last iteration against KL", series, "score"), note=note)


def _drawn(title: str, series: Sequence[Series], label: str) -> Figure:
    largest = max(point.x for one in series for point in one.points) ** 2
    return Figure(title, chart(series, kl_axis(largest), Axis(label), title=title), legend(series))
