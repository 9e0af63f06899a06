"""What a project holds: facts in the store, and how far each run has come."""

from __future__ import annotations

import contextlib
import json as jsonlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from accord.cli.asked import answers_waited_for, round_folders
from accord.cli.options import Json, Verbose
from accord.cli.people import Port
from accord.cli.project import Project, ProjectDir, find_project
from accord.cli.talk import Talk, path_text, talking
from accord.cli.verdicts import verdict_of
from accord.errors import DataError, UsageError
from accord.files import numbered, object_in, read_json
from accord.progress import duration
from accord.train.finished import FINISHED, finished_call

if TYPE_CHECKING:
    from accord.people.matchups import SourceMatchup

TAIL_BYTES = 65_536
BEGUN = ("running.json", "metrics.jsonl", "checkpoints")
SPLITS_SHOWN = ("train", "valid", "test", "judge")


@dataclass(frozen=True)
class StageStatus:
    """One stage of a run: "done" or "begun", the seconds it worked, its last row of metrics, its last checkpoint."""

    name: str
    state: str
    seconds: float | None
    metrics: dict[str, Any]
    checkpoint: str


@dataclass(frozen=True)
class RoundStatus:
    """A finished round: its candidate, whether it was promoted or why not, and its win rate with a 95 % interval."""

    number: int
    candidate: str
    champion: str
    promoted: bool
    reasons: tuple[str, ...]
    win_rate: float | None
    win_rate_low: float | None
    win_rate_high: float | None

    def text(self) -> str:
        became = "promoted" if self.promoted else f"not promoted: {'; '.join(self.reasons) or 'it broke a floor'}"
        return f"round {self.number}: {self.candidate} {became}{self._won()}; champion {self.champion}"

    def _won(self) -> str:
        if self.win_rate is None or self.win_rate_low is None or self.win_rate_high is None:
            return ""
        return f", win rate {self.win_rate:.2f} [{self.win_rate_low:.2f}, {self.win_rate_high:.2f}]"


@dataclass(frozen=True)
class Waited:
    """How many answers a run waits for, how many there are and from how many people; and all of it in words."""

    answered: int
    needed: int
    people: int
    text: str


@dataclass(frozen=True)
class RunStatus:
    """A run: the stages of its rounds, the rounds that are finished, and the answers it waits for, if it does.

    ``rows`` counts the task's rows by kind and split, ``rounds_wanted`` the rounds that its recipe asks for.
    """

    folder: Path
    stages: tuple[StageStatus, ...]
    report: Path | None
    rounds: tuple[RoundStatus, ...] = ()
    rounds_wanted: int = 1
    rows: Mapping[str, int] = field(default_factory=dict)
    waiting: Waited | None = None

    @property
    def is_done(self) -> bool:
        return len(self.rounds) >= self.rounds_wanted

    def text(self) -> str:
        head = f"{path_text(self.folder)}" + (f"  (report: {path_text(self.report)})" if self.report else "")
        lines = [head, *(f"  {stage_text(stage)}" for stage in self.stages)]
        lines += [f"  {one.text()}" for one in self.rounds]
        lines += [f"  rounds: {len(self.rounds)} of {self.rounds_wanted}"] if self.rounds_wanted > 1 else []
        return "\n".join([*lines, *([f"  waiting for people: {self.waiting.text}"] if self.waiting else [])])


@dataclass(frozen=True)
class Worker:
    """Somebody who answers: how often so far, and whether it is a simulated annotator."""

    name: str
    role: str
    answers: int
    simulated: bool

    def text(self) -> str:
        return f"{self.name}{' (simulated)' if self.simulated else ''} {self.answers:,}"


Web = Annotated[
    Path | None,
    typer.Option("--web", metavar="RUN", help="Show this run's folder on a page that keeps up with it, until Ctrl-C."),
]


def status(
    project: ProjectDir = None, web: Web = None, port: Port = 8766, json: Json = False, verbose: Verbose = False
) -> None:
    """Show what a project holds, who works in it, how far each run is, and what to do next.

    Reads only, also while a run is at work, waits for people, or was killed. Works without a project too: then it shows
    the runs below the working directory.

    With --web a page of this machine shows how far a run is, its curves, alarms and newest samples as they come.

    \b
    Examples:
      accord status
      accord status --project reviews --json
      accord status --web runs/demo/seed_0
    """
    with talking(json, verbose) as talk:
        if web is not None:
            show_live(talk, web, port)
            return
        home = find_project(project)
        counts, workers, judged_by = store_counts(home), find_workers(home), store_judged_by(home)
        matchups, trained = find_matchups(home), find_trainings(home.root if home else Path())
        folder = home.runs if home else Path("runs")
        runs = [run_status(path, home.store if home else "") for path in find_runs(folder)]
        models = find_models(home)
        next_step = next_command(home, counts, runs)
        held = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count) or "empty"
        lines = [
            f"project {path_text(home.root)}, store: {held}" if home else "no project here (`accord init` makes one)"
        ]
        lines += [f"models: {', '.join(models)}"] if models else []
        lines += (
            [f"judged by: {', '.join(f'{name} {count:,}' for name, count in judged_by.items())}"] if judged_by else []
        )
        lines += rows_lines(home, runs)
        lines += [f"people: {', '.join(one.text() for one in workers)}"] if workers else []
        lines += [f"blind comparison: {one.text()}" for one in matchups]
        none = "" if home and home.recipe.values else ": try `accord demo`"
        lines += [one.text() for one in trained]
        none = "" if trained else none
        lines += [run.text() for run in runs] or [f"no runs in {path_text(folder)} yet{none}"]
        told: dict[str, Any] = {"project": home and home.root, "store": counts, "models": models, "people": workers}
        told |= {
            "trained": trained,
            "runs": runs,
            "judged_by": judged_by,
            "matchups": [one.to_json() for one in matchups],
        }
        talk.result(told | {"next": next_step}, text="\n".join(lines), next_step=next_step)


def show_live(talk: Talk, folder: Path, port: int) -> None:
    """Serve the live page of a run's folder to this machine until somebody stops it."""
    from accord.people.web.serving import Address, served
    from accord.report.live import live_app

    address, app = Address(port=port), live_app(folder)
    with contextlib.closing(address.bound()) as listening, served(app, listening) as serving:
        url = address.url(listening)
        talk.result({"url": url, "folder": folder}, text=f"open {url}   (Ctrl-C stops the page, not the run)")
        talk.out.flush()
        with contextlib.suppress(KeyboardInterrupt):
            serving.join()


@dataclass(frozen=True)
class TrainedStatus:
    """A single stage that was finished in a folder of its own: its command, and how it went in a sentence."""

    folder: Path
    command: str
    verdict: str

    def text(self) -> str:
        return f"{path_text(self.folder)}  {self.command}: {self.verdict}"


def find_trainings(root: Path) -> list[TrainedStatus]:
    """Return the stages that `accord sft` and the like have finished below a folder, two levels down at most."""
    found = sorted(path.parent for depth in ("*", "*/*") for path in root.glob(f"{depth}/{FINISHED}"))
    told = [(folder, finished_call(folder)) for folder in found]
    return [TrainedStatus(folder, str(call.get("command")), _went(call, folder)) for folder, call in told if call]


def _went(call: Mapping[str, Any], folder: Path) -> str:
    """How a finished stage went; of a folder that was changed by hand, that it cannot be read."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        return verdict_of(call["command"], call["result"], folder)
    return "its numbers cannot be read"


def rows_lines(home: Project | None, runs: Sequence[RunStatus]) -> list[str]:
    """Prompts and judgements by split, as the project's own run has dealt them out."""
    own = next((run for run in runs if home and run.folder == own_run(home)), None)
    if own is None:
        return []
    kinds = dict.fromkeys(name.rpartition("_")[0] for name in own.rows if name.rpartition("_")[2] in SPLITS_SHOWN)
    told = {kind: [f"{own.rows.get(f'{kind}_{split}', 0):,} {split}" for split in SPLITS_SHOWN] for kind in kinds}
    return [f"{kind}: {', '.join(parts)}" for kind, parts in told.items()]


def own_run(home: Project) -> Path | None:
    """The folder of the project's own run; None where it has no recipe that makes sense."""
    with contextlib.suppress(UsageError):
        return home.runs / home.recipe_with().name
    return None


def next_command(home: Project | None, counts: Mapping[str, int], runs: Sequence[RunStatus]) -> str:
    """The one thing to do now."""
    if home is None:
        return "accord init NAME --model smollm2" if not runs else ""
    if not home.recipe.values:
        return "accord demo" if not runs else ""
    try:
        recipe = home.recipe_with()
    except UsageError as error:
        return f"mend {path_text(home.file)}: {error.what}"
    if not recipe.base.model:
        return f"name a model in {path_text(home.file)}: base: {{model: FOLDER}}"
    if recipe.task.use == "store" and not counts.get("prompts"):
        return "accord import FILE"
    run = next((one for one in runs if one.folder == home.runs / recipe.name), None)
    if run is None:
        return "accord run --dry-run"
    if run.waiting is not None and run.waiting.answered < run.waiting.needed:
        place = path_text(home.root)
        return f"accord run --serve --invite 3   (prints a link a colleague), or accord label {place}, then accord run"
    return f"open {path_text(run.report)}" if run.is_done and run.report else "accord run"


def find_models(project: Project | None) -> list[str]:
    """The models in the project's ``models/``, and what they take on disk."""
    if project is None:
        return []
    folders = sorted(path.parent for path in (project.root / "models").glob("*/config.json"))
    return [f"{folder.name} ({_megabytes(folder)} MB)" for folder in folders]


def _megabytes(folder: Path) -> int:
    return round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6)


def find_workers(project: Project | None) -> list[Worker]:
    """Everybody who may answer, and how often each has: those who have answered most come first."""
    if not _has_store(project) or project is None:
        return []
    from accord.config import LabelConfig
    from accord.people.desk import Desk
    from accord.store import Store

    with Store.open(project.store) as store:
        desk = Desk(store, LabelConfig())
        answers = Counter[int]()
        for row in desk.reading.progress():
            answers[row.person_id] += row.done
        found = [Worker(one.name, one.role, answers[one.id], one.simulated) for one in desk.directory.people()]
    return sorted(found, key=lambda one: (one.simulated, -one.answers, one.name))


def store_counts(project: Project | None) -> dict[str, int]:
    """Return how many facts of each kind the project's store holds; empty without a store, which is not created."""
    if not _has_store(project) or project is None:
        return {}
    from accord.store import Store

    with Store.open(project.store) as store:
        return store.counts()


def store_judged_by(project: Project | None) -> dict[str, int]:
    """Return how many judgements stand in the project's store, by who made them: people, simulated ones, models."""
    if not _has_store(project) or project is None:
        return {}
    from accord.formats.facts import ORIGINS
    from accord.store import Store

    with Store.open(project.store) as store:
        found = store.judged_by()
    return {origin: found[kind] for kind, origin in ORIGINS.items() if kind in found}


def find_matchups(project: Project | None) -> list[SourceMatchup]:
    """Return how sources fared against each other where their completions were compared, two names at a time."""
    if not _has_store(project) or project is None:
        return []
    from accord.people.matchups import source_matchups
    from accord.store import Store

    with Store.open(project.store) as store:
        return source_matchups(store)


def _has_store(project: Project | None) -> bool:
    return project is not None and ("://" in project.store or Path(project.store).exists())


def find_runs(folder: Path) -> list[Path]:
    """Return the folders of runs below ``folder``: those that hold a resolved recipe, at most two levels down.

    Later rounds belong to their run.
    """
    found = sorted(path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/resolved.json"))
    rounds = {later for run in found for number, later in round_folders(run).items() if number > 1}
    return [path for path in found if path not in rounds]


def run_status(folder: Path, store: str = "") -> RunStatus:
    """Read a run's folder, its stages in the order they were finished; nothing in it is trusted to be whole.

    ``store``: where people answer what it asks; by default the run's own.
    """
    rounds, resolved, report = round_folders(folder), object_in(folder / "resolved.json"), folder / "report.html"
    stages = [stage for number, path in rounds.items() for stage in _stages_of(path, _prefix(number))]
    asked = answers_waited_for(folder, resolved, store or str(folder / "accord.db"))
    return RunStatus(
        folder,
        tuple(stages),
        report if report.is_file() else None,
        tuple(_round_status(number, path) for number, path in rounds.items() if (path / "summary.json").is_file()),
        int(resolved.get("rounds", 1)),
        object_in(folder / "data/stage.json").get("result", {}).get("counts", {}),
        None if asked is None else Waited(asked.answered, asked.needed, asked.people, asked.text()),
    )


def _prefix(number: int) -> str:
    return "" if number == 1 else f"round_{number}/"


def _stages_of(folder: Path, prefix: str) -> list[StageStatus]:
    done = sorted(folder.glob("*/stage.json"), key=lambda stamp: stamp.stat().st_mtime)
    begun = {path.parent for name in BEGUN for path in folder.glob(f"*/{name}")} - {stamp.parent for stamp in done}
    stages = [stage_status(stamp.parent, "done", stamp) for stamp in done]
    stages += [stage_status(path, "begun", path / "running.json") for path in sorted(begun)]
    return [replace(stage, name=prefix + stage.name) for stage in stages]


def _round_status(number: int, folder: Path) -> RoundStatus:
    told = object_in(folder / "summary.json")
    champion = told.get("champion", {})
    return RoundStatus(
        number,
        str(told.get("candidate", "")),
        str(champion.get("policy", "")),
        bool(champion.get("promoted")),
        tuple(champion.get("reasons", ())),
        told.get("judge_win_rate"),
        told.get("judge_win_rate_low"),
        told.get("judge_win_rate_high"),
    )


def stage_status(folder: Path, state: str, stamp: Path) -> StageStatus:
    try:
        seconds = read_json(stamp)["seconds"]
    except (DataError, KeyError, TypeError):
        seconds = None
    steps = [path.name for path in numbered(folder / "checkpoints").values()]
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
