"""The report of a sweep: one self-contained HTML page and one JSON file over all its combinations. Torch-free."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from accord.files import write_json
from accord.grid import Combination
from accord.report import parts
from accord.report.figures import METHOD_STYLES, Figure, dot_of, lines_along_kl, win_figure
from accord.report.names import Names
from accord.report.pages import ComparedPage, ComparedRow, Measure, write_compared
from accord.report.run_folder import read_run
from accord.report.seeds_page import RUN_MEASURES, SEED_LINES, run_numbers, win_title
from accord.report.svg import Dot, Point, Series, dots

#: What a single stage's result may hold.
STAGE_MEASURES = (
    Measure("Training NLL", "", "train_nll", 4),
    Measure("Held-out NLL", "", "valid_nll", 4),
    Measure("Held-out accuracy", "", "valid_accuracy", 4),
    Measure("Score", "", "score"),
    Measure("KL", "kl", "kl", 2),
    Measure("Length", "", "length", 1),
    Measure("Ended", "", "eos_rate"),
    Measure("Distinct", "", "distinct"),
    Measure("Entropy", "", "entropy"),
    Measure("NLL under the reference", "", "reference_nll"),
)
HEADLINES = ("valid_accuracy", "valid_nll", "score", "train_nll")  # the first that a stage has is drawn


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
    names: Names = field(default_factory=Names)


def of_run(name: str, values: Mapping[str, str], folder: Path) -> Outcome:
    """The headline numbers of a whole run's folder."""
    found = parts.part(run_numbers, read_run(folder))
    if found["absent"]:
        return Outcome(name, values, {}, failed=found["absent"])
    return Outcome(name, values, found["values"], found["lines"], names=found["names"])


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
    measures = _measures(outcomes)
    done = [one for one in outcomes if not one.failed]
    keys = tuple(outcomes[0].values)
    page = ComparedPage(
        title=f"{output_dir.name}: sweep",
        kind=f"{output_dir.name} · sweep",
        verdict=f"{len(rows)} of {planned} combinations of {', '.join(keys)}",
        caption="Everything else is the same in all of them, the seed too unless it is swept",
        headings=keys,
        measures=tuple(measures),
        rows=tuple(_row(one, measures, output_dir) for one in outcomes),
        figures=tuple(_figures(done)),
        section="One by one",
        names=done[0].names if done else Names(),
    )
    return write_compared(page, output_dir / "sweep.html")


def _measures(outcomes: Sequence[Outcome]) -> list[Measure]:
    """The columns that some combination fills, parts of a score after the others."""
    held = {key for one in outcomes for key in one.numbers}
    order = (*RUN_MEASURES, *STAGE_MEASURES) if "win_rate" in held else (*STAGE_MEASURES, *RUN_MEASURES)
    known = {one.key: one for one in order}
    score_parts = sorted(key for key in held if key.startswith("part_"))
    return [one for key, one in known.items() if key in held] + [Measure(key, "", key) for key in score_parts]


def _row(one: Outcome, measures: Sequence[Measure], output_dir: Path) -> ComparedRow:
    page = output_dir / one.name / "report.html"
    link = page if page.exists() else page.parent
    labels, place = tuple(one.values.values()), Path(os.path.relpath(link, output_dir)).as_posix()
    if one.failed:
        return ComparedRow(labels, link=place, absent=f"failed: {one.failed}")
    cells = tuple(parts.interval(one.numbers.get(measure.key), measure.digits) for measure in measures)
    return ComparedRow(labels, cells, place)


# ---- pictures ------------------------------------------------------------------------------------------------------


def _figures(outcomes: Sequence[Outcome]) -> list[Figure]:
    """Whole runs: win rates, then judge and proxy along KL. A stage with a KL: score along it. Else one number each."""
    if not outcomes:
        return []
    if all(one.lines for one in outcomes):
        names = outcomes[0].names
        wins = [dot_of(one.name, "candidate", one.numbers["win_rate"]) for one in outcomes]
        along = [_along(outcomes, measure, label) for measure, label in SEED_LINES.items()]
        return [win_figure(win_title(names), wins), *along]
    if all({"score", "kl"} <= set(one.numbers) for one in outcomes):
        return [_score_along_kl(outcomes)]
    shared = set.intersection(*(set(one.numbers) for one in outcomes))
    key = next((key for key in HEADLINES if key in shared), None)
    if key is None:
        return []
    label = next(one.heading for one in STAGE_MEASURES if one.key == key)
    rows = [Dot(one.name, "candidate", one.numbers[key], None, None) for one in outcomes]
    return [Figure(label, dots(rows, title=label, axis=label.lower()))]


def _styled(outcomes: Sequence[Outcome]) -> list[tuple[Outcome, str]]:
    return [(one, METHOD_STYLES[place % len(METHOD_STYLES)]) for place, one in enumerate(outcomes)]


def _along(outcomes: Sequence[Outcome], measure: str, label: str) -> Figure:
    """Snapshots of every run along KL, on validation prompts; each point with its interval."""
    lines = [replace(one.lines[measure], name=one.name, style=style) for one, style in _styled(outcomes) if one.lines]
    title = f"{label.capitalize()} against KL on validation prompts, one line a run"
    return lines_along_kl(title, lines, label, outcomes[0].names.reference)


def _score_along_kl(outcomes: Sequence[Outcome]) -> Figure:
    """The last iteration of every run: the score it was optimised for, at its KL."""
    series = []
    for one, style in _styled(outcomes):
        kl, score = one.numbers["kl"], one.numbers["score"]
        point = Point(math.sqrt(max(0.0, kl)), score, label=f"{one.name}: score {score:.3f}, KL {kl:.2f} nats")
        series.append(Series(one.name, style, (point,), line=False))
    note = "The score is what was optimised: it is no evidence of better texts."
    drawn = lines_along_kl("Score of the last iteration against KL", series, "score", "the reference")
    return replace(drawn, note=note)
