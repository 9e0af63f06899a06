"""Pages written anew from what a folder holds, whatever wrote it: a run, a comparison, seeds, a sweep. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accord.errors import DataError
from accord.files import numbered, read_json
from accord.report.comparison_page import write_comparison
from accord.report.goodhart_page import write_goodhart_page
from accord.report.reward_page import CARD, write_reward_page
from accord.report.run_folder import CURVES_FILE, read_run
from accord.report.run_page import write_pages
from accord.report.seeds_page import write_seeds_report
from accord.report.sweep_page import Outcome, of_run, write_sweep_report

#: What the other commands of `accord eval` leave in a folder, and what draws it.
MEASURED = {CARD: write_reward_page, CURVES_FILE: write_goodhart_page}


def redraw(folder: Path) -> list[Path]:
    """Write the pages of a folder, and of the runs within it, from what is stored there; their paths, its own last.

    Raises:
        DataError: nothing in the folder can be reported.
    """
    below = [path for path in sorted(folder.iterdir()) if _is_run(path)] if folder.is_dir() else []
    seeds = [path for path in below if path.name.startswith("seed_")]
    if (folder / "comparison.json").is_file():  # its seeds have no pages of their own
        return [_comparison(folder, read_json(folder / "comparison.json"))]
    if (folder / "sweep.json").is_file():
        return [*_pages_of(below), _sweep(folder, read_json(folder / "sweep.json"))]
    if seeds:
        return [*_pages_of(seeds), write_seeds_report(folder, seeds)]
    if not _is_run(folder) and not (folder / "eval" / "results.json").is_file():
        for file, write in MEASURED.items():
            if (folder / file).is_file():
                return [write(folder)]
        raise DataError(
            "nothing here can be reported",
            where=str(folder),
            why="there is no run, evaluation, comparison or sweep in it",
            hint="give the folder that `accord run` or `accord eval` wrote",
        )
    return _pages_of([folder])


def _is_run(folder: Path) -> bool:
    return (folder / "resolved.json").is_file()


def _pages_of(runs: Sequence[Path]) -> list[Path]:
    """The pages of each run, in their order; those of its later rounds before its own."""
    return [page for run in runs for one in (*_rounds(run), run) for page in write_pages(one)]


def _rounds(run: Path) -> list[Path]:
    """The folders of a run's later rounds, in their order."""
    return [path for path in numbered(run, "round_").values() if _is_run(path)]


def _sweep(folder: Path, stored: Mapping[str, Any]) -> Path:
    return write_sweep_report(folder, [_outcome(folder, row) for row in stored["runs"]], planned=stored["planned"])


def _outcome(folder: Path, row: Mapping[str, Any]) -> Outcome:
    """A combination as it was reported; of a whole run also the lines of its figures."""
    if not row["failed"] and (folder / row["name"] / "eval" / "results.json").is_file():
        return of_run(row["name"], row["values"], folder / row["name"])
    return Outcome(row["name"], row["values"], row["numbers"], failed=row["failed"])


def _comparison(folder: Path, seeds: list[Mapping[str, Any]]) -> Path:
    run = next((path for path in sorted(folder.glob("seed_*")) if _is_run(path)), folder)
    write_comparison(folder, read_run(run).name, seeds)
    return folder / "report.html"
