"""The page over the runs of several seeds, and the headline numbers of a run. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accord.report import parts
from accord.report.figures import Figure, candidate_line, dot_of, lines_along_kl, win_figure
from accord.report.names import Names
from accord.report.pages import ComparedPage, ComparedRow, Measure, text_cell, write_compared
from accord.report.run_folder import RunFolder, read_run

#: The headline measures of a whole run.
RUN_MEASURES = (
    Measure("Win rate", "win_rate", "win_rate"),
    Measure("KL", "kl", "kl", 2),
    Measure("Length ratio", "length_ratio", "length_ratio"),
    Measure("NLL above {reference}", "nll_excess", "nll_excess"),
    Measure("Distinct", "distinct_share", "distinct_share"),
    Measure("Reward accuracy", "reward_accuracy", "accuracy"),
    Measure("Same verdict", "same_verdict", "same_verdict"),
    Measure("TF-IDF baseline", "tfidf", "baseline"),
    Measure("Seconds", "", "seconds", 0),
)
SEED_LINES = {"judge": "judge score", "proxy": "proxy score"}


def write_seeds_report(out_dir: Path, seed_dirs: Sequence[Path]) -> Path:
    """Write ``report.html`` and ``table.md`` over the runs of several seeds, and return the page's path."""
    rows = [_seed_row(path) for path in seed_dirs]
    done = [row for row in rows if not row["absent"]]
    held = bool(rows) and all(row.get("held") for row in rows)
    names = done[0]["names"] if done else Names()
    page = ComparedPage(
        title=f"{out_dir.name}: {len(rows)} seeds",
        kind=f"{out_dir.name} · {len(rows)} seeds",
        verdict=_verdict(done, len(rows), names),
        caption="One whole run a seed: data order, weights, samples and annotators all follow from it",
        headings=("Seed",),
        measures=(*RUN_MEASURES, Measure("Floors", "floor", "floors")),
        rows=(*(_compared(row, out_dir) for row in rows), *_totals(done)),
        figures=tuple(_seed_figures(done, names)),
        section="Seed by seed",
        tone="good" if held else "bad",
        pill="All floors are held on every seed." if held else "Not every floor is held on every seed.",
        names=names,
    )
    return write_compared(page, out_dir / "report.html", out_dir / "table.md")


def _seed_row(path: Path) -> Mapping[str, Any]:
    if not path.is_dir():
        return {"seed": path.name, "path": path, "absent": "it has no folder yet"}
    run = read_run(path)
    return {"seed": run.seed, "path": path, **parts.part(run_numbers, run)}


def run_numbers(run: RunFolder) -> dict[str, Any]:
    """The headline numbers of a run's candidate; those of a reward model only where it has one."""
    results, card, summary = run.need("eval/results.json"), run.get("reward/card.json"), run.need("summary.json")
    row = parts.candidate_row(results)
    values = {key: row[key] for key in ("win_rate", "kl", "length_ratio", "nll_excess", "distinct_share")}
    if card:
        values["accuracy"] = card["model"]["all_pairs"]
        values["same_verdict"] = card["model"]["parts"].get("same_verdict")
        values["baseline"] = summary["baseline_accuracy"]
    line = f"seed {run.seed}"
    return {
        "names": run.names,
        "values": values | {"seconds": summary["seconds"]},
        "held": all(floor["held"] for floor in summary["floors"].values()),
        "broken": [name.replace("_", " ") for name, floor in summary["floors"].items() if not floor["held"]],
        "lines": {measure: candidate_line(line, results, measure) for measure in SEED_LINES},
    }


def _compared(row: Mapping[str, Any], out_dir: Path) -> ComparedRow:
    label = (str(row["seed"]),)
    link = Path(os.path.relpath(row["path"] / "report.html", out_dir)).as_posix()
    if row["absent"]:
        return ComparedRow(label, link=link, absent=f"not finished: {row['absent']}")
    cells = [parts.interval(row["values"].get(one.key), one.digits) for one in RUN_MEASURES]
    floors = text_cell(", ".join(row["broken"]) or "all held")
    return ComparedRow(label, (*cells, floors), link, broken=None if row["held"] else len(cells))


def _totals(rows: Sequence[Mapping[str, Any]]) -> list[ComparedRow]:
    """Mean, least and largest of each column over the finished seeds."""
    if not rows:
        return []
    columns = [[_plain_value(row["values"].get(one.key)) for row in rows] for one in RUN_MEASURES]
    shown = []
    for name, of in (("mean", lambda v: sum(v) / len(v)), ("least", min), ("largest", max)):
        texts = [
            parts.number(of(values), one.digits) if None not in values else parts.NONE
            for values, one in zip(columns, RUN_MEASURES, strict=True)
        ]
        shown.append(ComparedRow((name,), tuple(text_cell(text) for text in (*texts, "")), total=True))
    return shown


def _verdict(rows: Sequence[Mapping[str, Any]], planned: int, names: Names) -> str:
    """Mean and least win rate over the finished seeds."""
    if not rows:
        return "No seed has finished yet."
    values = [row["values"]["win_rate"]["value"] for row in rows]
    mean, least = parts.percent(sum(values) / len(values)), parts.percent(min(values))
    who = f"Over {planned} seeds {names.candidate} wins"
    return f"{who} {mean} of comparisons with {names.reference} on average, {least} at least."


def _plain_value(found: Any) -> Any:
    return found["value"] if isinstance(found, Mapping) else found


def _seed_figures(rows: Sequence[Mapping[str, Any]], names: Names) -> list[Figure]:
    """Win rates of the finished seeds, then judge and proxy of all their snapshots along KL."""
    if not rows:
        return []
    wins = [dot_of(f"seed {row['seed']}", "candidate", row["values"]["win_rate"]) for row in rows]
    along = [
        lines_along_kl(
            f"{label.capitalize()} against KL on validation prompts, one line a seed",
            [row["lines"][measure] for row in rows],
            label,
            names.reference,
        )
        for measure, label in SEED_LINES.items()
    ]
    return [win_figure(win_title(names), wins), *along]


def win_title(names: Names) -> str:
    """The title of a figure of win rates."""
    return f"Win rate of {names.candidate} against {names.reference} by the judge, test prompts"
