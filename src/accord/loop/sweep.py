"""Sweeps: one run a combination of values, each in a folder of its own, what they share done once, and one report."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accord.config import Recipe
from accord.errors import DataError
from accord.grid import Combination
from accord.lock import writes_alone
from accord.loop.cache import Inputs, Runner, Stage
from accord.loop.run import Where, run_in
from accord.loop.stages import Wait
from accord.progress import Log, named_text, quiet
from accord.report.sweep_page import Outcome, of_run, of_stage, write_sweep_report
from accord.scoring.weighted import scorer_inputs


@dataclass(frozen=True)
class SweepResult:
    """Where the report is, and each combination's numbers by its folder's name; ``failed`` says why some have none.

    A number is plain, or holds ``value``, ``low`` and ``high``.
    """

    report: Path
    runs: dict[str, Any]
    failed: dict[str, str]


@writes_alone
def sweep(
    points: Sequence[Combination],
    *,
    output_dir: Path,
    store: str | None = None,
    from_dir: Path | None = None,
    resume: bool = True,
    wait: Wait = False,
    log: Log = quiet,
) -> SweepResult:
    """Run, or continue, a whole recipe at every point, in ``output_dir/<name of the point>``.

    A finished stage of one point is taken over by the others wherever its settings and inputs are the same. All write
    into one store, and the downloads stand in ``output_dir``. Writes ``output_dir/sweep.html`` and ``sweep.json``.

    Raises:
        DataError: every point failed; where only some did, the report says why.
    """
    folders = [output_dir / point.name for point in points]
    if not resume:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)

    def work(point: Combination, log: Log) -> Outcome:
        folder = output_dir / point.name
        others = [other for other in folders if other != folder]
        where = Where(store or str(output_dir / "accord.db"), output_dir / "downloads", from_dir, others)
        run_in(point.recipe, folder, where, resume=True, log=log, wait=wait)
        return of_run(point.name, point.values, folder)

    return _each(points, work, output_dir, log)


@writes_alone
def sweep_stage(
    points: Sequence[Combination],
    stage: Callable[[Recipe, Path, Log], Any],
    *,
    sections: Sequence[str],
    inputs: Mapping[str, Path],
    output_dir: Path,
    resume: bool = True,
    log: Log = quiet,
) -> SweepResult:
    """Carry out a single stage at every point, in ``output_dir/<name of the point>``; finished points are skipped.

    Args:
        stage: ``stage(recipe, folder, log)`` does the work and returns the stage's result.
        sections: the parts of the recipe that the stage reads.
        inputs: the files and folders it reads, by name.

    Writes ``output_dir/sweep.html`` and ``sweep.json``. Raises DataError where every point failed.
    """

    def work(point: Combination, log: Log) -> Outcome:
        recipe, read = point.recipe, dict(inputs)
        if "rl" in sections:
            read |= scorer_inputs(point.recipe.rl.rewards)

        def once(inputs: Inputs, folder: Path, log: Log) -> Any:
            return stage(recipe, folder, log)

        settings = {"seed": recipe.seed, **{name: getattr(recipe, name).model_dump() for name in sections}}
        result = Runner(output_dir, {point.name: 1.0}, resume, log).run(Stage(point.name, settings, read, once))
        return of_stage(point, result)

    return _each(points, work, output_dir, log)


def _each(
    points: Sequence[Combination], work: Callable[[Combination, Log], Outcome], output_dir: Path, log: Log
) -> SweepResult:
    """Work at one point after the other. The report is written after each, so that an interrupted sweep has one."""
    outcomes: list[Outcome] = []
    errors: list[DataError] = []
    for place, point in enumerate(points):

        def part(fraction: float, text: str, place: int = place, point: Combination = point) -> None:
            log((place + fraction) / len(points), text if point.name in text else named_text(point.name, text))

        try:
            outcomes.append(work(point, part))
        except DataError as error:  # a loss that is no number ends this point, not the others
            errors.append(error)
            outcomes.append(Outcome(point.name, point.values, {}, failed=str(error)))
        report = write_sweep_report(output_dir, outcomes, planned=len(points))
    if len(errors) == len(points):
        raise errors[0]
    runs = {one.name: dict(one.numbers) for one in outcomes if not one.failed}
    return SweepResult(report, runs, {one.name: one.failed for one in outcomes if one.failed})
