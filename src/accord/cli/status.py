"""What a project holds: facts in the store, and how far each run has come."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accord.cli.options import Json, Verbose
from accord.cli.progress import duration
from accord.cli.project import Project, ProjectDir, find_project
from accord.cli.talk import path_text, talking
from accord.errors import DataError
from accord.files import read_json

TAIL_BYTES = 65_536
BEGUN = ("running.json", "metrics.jsonl", "checkpoints")


@dataclass(frozen=True)
class StageStatus:
    """One stage of a run: "done" or "begun", the seconds it worked, its last row of metrics, its last checkpoint."""

    name: str
    state: str
    seconds: float | None
    metrics: dict[str, Any]
    checkpoint: str


@dataclass(frozen=True)
class RunStatus:
    folder: Path
    stages: tuple[StageStatus, ...]
    report: Path | None

    def text(self) -> str:
        head = f"{path_text(self.folder)}" + (f"  (report: {path_text(self.report)})" if self.report else "")
        return "\n".join([head, *(f"  {stage_text(stage)}" for stage in self.stages)])


def status(project: ProjectDir = None, json: Json = False, verbose: Verbose = False) -> None:
    """Show the store's facts and how far each run is.

    Works without a project too: then it shows the runs below the working directory.

    \b
    Examples:
      accord status
      accord status --project reviews --json
    """
    with talking(json, verbose) as talk:
        home = find_project(project)
        counts = store_counts(home)
        folder = home.runs if home else Path("runs")
        runs = [run_status(path) for path in find_runs(folder)]
        held = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count) or "empty"
        lines = [
            f"project {path_text(home.root)}, store: {held}" if home else "no project here (`accord init` makes one)"
        ]
        lines += [run.text() for run in runs] or [f"no runs in {path_text(folder)} yet: try `accord demo`"]
        talk.result({"project": home and home.root, "store": counts, "runs": runs}, text="\n".join(lines))


def store_counts(project: Project | None) -> dict[str, int]:
    """Return how many facts of each kind the project's store holds; empty without a store, which is not created."""
    if project is None or ("://" not in project.store and not Path(project.store).exists()):
        return {}
    from accord.store import Store

    with Store.open(project.store) as store:
        return store.counts()


def find_runs(folder: Path) -> list[Path]:
    """Return the folders of runs below ``folder``: those that hold a resolved recipe, at most two levels down."""
    return sorted(path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/resolved.json"))


def run_status(folder: Path) -> RunStatus:
    """Read a run's folder, its stages in the order they were finished; nothing in it is trusted to be whole."""
    done = sorted(folder.glob("*/stage.json"), key=lambda stamp: stamp.stat().st_mtime)
    begun = {path.parent for name in BEGUN for path in folder.glob(f"*/{name}")} - {stamp.parent for stamp in done}
    stages = [stage_status(stamp.parent, "done", stamp) for stamp in done]
    stages += [stage_status(path, "begun", path / "running.json") for path in sorted(begun)]
    report = folder / "report.html"
    return RunStatus(folder, tuple(stages), report if report.is_file() else None)


def stage_status(folder: Path, state: str, stamp: Path) -> StageStatus:
    try:
        seconds = read_json(stamp)["seconds"]
    except (DataError, KeyError, TypeError):
        seconds = None
    steps = sorted(path.name for path in (folder / "checkpoints").glob("step_*"))
    return StageStatus(folder.name, state, seconds, last_row(folder / "metrics.jsonl"), steps[-1] if steps else "")


def stage_text(stage: StageStatus) -> str:
    shown = [f"{key} {value:.4g}" for key, value in stage.metrics.items() if isinstance(value, int | float)][:5]
    took = "" if stage.seconds is None else duration(stage.seconds)
    return "  ".join(filter(None, (f"{stage.name:<12}{stage.state:<6}", took, ", ".join(shown), stage.checkpoint)))


def last_row(path: Path) -> dict[str, Any]:
    """Return the last whole row of a JSONL file that may be growing; empty where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            tail = file.read().decode("utf-8", "replace")
    except OSError:
        return {}
    return next(_rows(tail), {})


def _rows(tail: str) -> Iterator[dict[str, Any]]:
    for line in reversed(tail.splitlines()):
        try:
            row = jsonlib.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row
