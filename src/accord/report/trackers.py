"""A run's numbers handed on to the trackers that people use: TensorBoard, Weights & Biases, trackio. Torch-free.

Training writes ``metrics.jsonl`` and knows no tracker. Who follows a folder reads what was added and passes it on, from
a thread of the same command; what each tracker has got stands in ``tracked.json``, so that a run that goes on sends
nothing twice. Packages are loaded when they are asked for, and nothing leaves this machine by itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from accord.config import Tracker
from accord.errors import ResourceError
from accord.files import GrowingRows, object_in, write_json
from accord.progress import Log, Notice
from accord.report.run_folder import stages_of

_TRACKED = "tracked.json"
_LOOK_S = 2.0  # seconds between two looks at the folder


class Board(Protocol):
    """A tracker's own writer: numbers by name at a step of a stage, then the end."""

    def log(self, stage: str, step: int, numbers: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


class TensorBoardWriter:
    """Event files in ``tensorboard/``: `tensorboard --logdir FOLDER`."""

    def __init__(self, folder: Path) -> None:
        self._writer = _package("tensorboard.summary").Writer(str(folder / "tensorboard"))

    def log(self, stage: str, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(f"{stage}/{name}", value, step=step)

    def close(self) -> None:
        self._writer.close()


class WandbWriter:
    """An offline run of Weights & Biases in ``wandb/``; `wandb sync` uploads it where its owner wants that."""

    def __init__(self, folder: Path) -> None:
        wandb = _package("wandb")
        quiet = wandb.Settings(silent=True, console="off", disable_git=True, save_code=False)
        # WANDB_MODE=online is its owner's word; by default nothing leaves the machine.
        mode = os.environ.get("WANDB_MODE", "offline")
        named = {"project": os.environ.get("WANDB_PROJECT", "accord"), "name": folder.name, "id": _id_of(folder)}
        self._run = wandb.init(dir=str(folder), mode=mode, resume="allow", settings=quiet, **named)
        self._known: set[str] = set()

    def log(self, stage: str, step: int, numbers: Mapping[str, float]) -> None:
        if stage not in self._known:  # its own counter rises over all stages: each is drawn along steps of its own
            self._known.add(stage)
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        self._run.log({f"{stage}/step": step} | {f"{stage}/{name}": value for name, value in numbers.items()})

    def close(self) -> None:
        self._run.finish()


class TrackioWriter:
    """A run in trackio's database in ``trackio/``: `TRACKIO_DIR=FOLDER/trackio trackio show`."""

    def __init__(self, folder: Path) -> None:
        # Its place is read when the package is loaded, and once a process.
        os.environ.setdefault("TRACKIO_DIR", str(folder / "trackio"))
        with _silent():
            self._run = _package("trackio").init(
                project="accord", name=f"{folder.name}-{_id_of(folder)}", resume="allow", auto_log_gpu=False
            )

    def log(self, stage: str, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log({f"{stage}/{name}": value for name, value in numbers.items()}, step=step)

    def close(self) -> None:
        with _silent():
            self._run.finish()


#: What opens each tracker on a run's folder.
TRACKERS: Mapping[Tracker, Callable[[Path], Board]] = {
    "tensorboard": TensorBoardWriter,
    "wandb": WandbWriter,
    "trackio": TrackioWriter,
}


def _package(name: str) -> ModuleType:
    """Load a tracker's package. Raises ResourceError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        hint = f"pip install {package}, or `pip install 'accord[track]'`"
        raise ResourceError(f"the tracker {package} is not installed", why=str(error), hint=hint) from error


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep what a package prints off the command's own lines."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def _id_of(folder: Path) -> str:
    """The run's name among all runs: two folders of one name are two runs."""
    return hashlib.blake2b(str(folder).encode(), digest_size=6).hexdigest()


class Follower:
    """What has been added to the metrics of a run's stages, for one tracker."""

    def __init__(self, folder: Path, name: str, board: Board) -> None:
        self._folder, self._name, self._board = folder, name, board
        self._files: dict[Path, GrowingRows] = {}

    def catch_up(self) -> int:
        """Hand on every row that the tracker has not got; return how many there were."""
        told = object_in(self._folder / _TRACKED)
        got: dict[str, Any] = dict(told.get(self._name, {}))
        sent = sum(self._stage(stage, path, got) for stage, path in _metrics_of(self._folder))
        if sent:
            write_json(self._folder / _TRACKED, told | {self._name: got})
        return sent

    def _stage(self, stage: str, path: Path, got: dict[str, Any]) -> int:
        found = self._files.setdefault(path, GrowingRows(path)).rows()
        rows = [row for row in found if isinstance(row.get("step"), int)]
        if not rows:
            return 0
        # Another first row is another training: its steps begin anew.
        first = hashlib.blake2b(json.dumps(rows[0]).encode(), digest_size=8).hexdigest()
        last = got[stage]["step"] if got.get(stage, {}).get("first") == first else -1
        new = [row for row in rows if row["step"] > last]
        for row in new:
            numbers = {name: value for name, value in row.items() if name != "step" and _is_number(value)}
            self._board.log(stage, row["step"], numbers)
        got[stage] = {"first": first, "step": max(last, rows[-1]["step"])}
        return len(new)


def _metrics_of(folder: Path) -> Iterator[tuple[str, Path]]:
    """The stages that have logged, by name, with their files; a single stage's folder is its own."""
    if (folder / "metrics.jsonl").is_file():
        yield folder.name, folder / "metrics.jsonl"
    # Its seeds, rounds, and rounds of seeds are runs within it, whose stages bear their names.
    within = sorted(path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/resolved.json"))
    places = [folder, *within]
    files = {place / stage / "metrics.jsonl" for place in places for stage in stages_of(place)}
    for path in sorted(files - {place / "metrics.jsonl" for place in places}):
        if path.is_file():
            yield path.parent.relative_to(folder).as_posix(), path


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@contextlib.contextmanager
def tracked(folder: Path, names: Sequence[Tracker], log: Log) -> Iterator[None]:
    """Hand a run's numbers on to trackers while the block works, and the last ones at its end.

    A tracker that fails in between is told of and left alone: a run is not lost for its picture.

    Raises:
        ResourceError: a tracker's package is not installed; before any work.
    """
    if not names:
        yield
        return
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    boards = {name: TRACKERS[name](folder) for name in names}
    followers = {name: Follower(folder, name, board) for name, board in boards.items()}
    ended = threading.Event()

    def catch_up() -> None:
        for name, follower in list(followers.items()):
            try:
                follower.catch_up()
            except Exception as error:  # whatever a stranger's package raises
                del followers[name]
                log(0.0, Notice(f"the tracker {name} failed and gets no more: {type(error).__name__}: {error}"))

    def follow() -> None:
        while not ended.wait(_LOOK_S):
            catch_up()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        catch_up()
        for board in boards.values():
            board.close()
