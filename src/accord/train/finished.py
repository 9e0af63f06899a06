"""What stands beside a stage's model once it is finished: what made it, and how it went. Torch-free.

Who gives the same command again is told so, and who would replace the model by another one is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import accord
from accord.config import without_device
from accord.errors import DataError, UsageError
from accord.extend import code_in
from accord.files import read_json, sha256_tree, write_json

FINISHED = "finished.json"
MODEL = "model"  # the folder below a stage's own that holds its result
MOST_DIFFERENCES = 4  # that a refusal names


def identity_of(settings: Mapping[str, Any], inputs: Mapping[str, Path]) -> str:
    """Return the hash of a stage's settings, of the user's own code that they name, and of its input files.

    The device is none of it: a run may go on where there is a GPU.
    """
    files = {name: sha256_tree(path) for name, path in inputs.items()}
    # Contents and not names: a file that is moved is the same input, one that is overwritten is another.
    content = {"settings": without_device(settings), "code": code_in(settings), "inputs": files}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


@dataclass(frozen=True)
class StageCall:
    """A stage as somebody asks for it: its command, settings by section, seed, input files, and its own folder."""

    command: str
    settings: Mapping[str, Any]
    seed: int
    inputs: Mapping[str, Path]
    folder: Path

    @cached_property
    def identity(self) -> str:
        """The hash of all that decides the result, of the inputs as they are when it is first asked for."""
        return identity_of({**self.settings, "seed": self.seed}, self.inputs)

    @property
    def model(self) -> Path:
        return self.folder / MODEL

    def to_json(self) -> dict[str, Any]:
        """Return what a later call is compared with."""
        paths = {name: str(path) for name, path in self.inputs.items()}
        return {"command": self.command, "settings": self.settings, "seed": self.seed, "inputs": paths}


def finished_call(folder: Path) -> dict[str, Any]:
    """Return what a folder says of the stage that was finished there; empty where it says nothing."""
    try:
        found = read_json(folder / FINISHED)
    except DataError:
        return {}
    return found if isinstance(found, dict) and (folder / MODEL).is_dir() else {}


def result_before(call: StageCall, *, overwrite: bool = False, anew: bool = False) -> dict[str, Any] | None:
    """Return the result where the very same call was finished in its folder; None where it is to be carried out.

    ``anew``: carry it out again, though it would make the same.

    Raises:
        UsageError: The folder holds another model, or one of the inputs, and nobody said ``overwrite``.
    """
    if not call.model.is_dir():
        return None
    stood = finished_call(call.folder)
    if overwrite:
        return None
    if stood.get("identity") == call.identity:
        return None if anew else dict(stood["result"])
    inside = [name for name, path in call.inputs.items() if path.resolve().is_relative_to(call.model.resolve())]
    flag = f"--{inside[0].replace('_', '-')}" if inside else ""
    what = f"is {flag} itself, and would be replaced" if inside else "holds a model already"
    hint = f"give a fresh folder, -o {_fresh(call.folder)}, or --overwrite to replace it"
    raise UsageError(what, where=str(call.model), why=_why(stood, call), hint=hint)


def record_finished(call: StageCall, result: Mapping[str, Any]) -> None:
    """Write down what made the model in a stage's folder, and how it went."""
    made = {"version": accord.__version__, "identity": call.identity, "result": dict(result)}
    write_json(call.folder / FINISHED, call.to_json() | made)


def _why(stood: Mapping[str, Any], call: StageCall) -> str:
    if not stood:
        return "nothing says what made it"
    if stood["command"] != call.command:
        return f"`accord {stood['command']}` made it"
    differences = list(_differences(stood, json.loads(json.dumps(call.to_json(), default=str))))
    shown = ", ".join(differences[:MOST_DIFFERENCES]) or "the contents of its inputs were others"
    more = len(differences) - MOST_DIFFERENCES
    return f"it was made otherwise: {shown}" + (f" and {more} more" if more > 0 else "")


def _differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """Yield ``rl.kl_coef was 0.1, is 0.2`` of each value that is another."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in now:
            inner = f"{name}.{key}" if name and name not in ("settings", "inputs") else key
            yield from _differences(before.get(key), now[key], inner)
    elif before != now:
        yield f"{name} was {before}, is {now}"


def _fresh(folder: Path) -> Path:
    """Return a name like a folder's that nothing has."""
    return next(path for n in range(2, 10_000) if not (path := folder.with_name(f"{folder.name}-{n}")).exists())
