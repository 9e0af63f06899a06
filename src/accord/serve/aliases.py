"""Which model is served under which name: aliases that are moved in one step, and every move written down.

``prod`` answers, ``canary`` answers its share of conversations beside it, ``reference`` is what KL is paid to. The file
is replaced whole: who reads it sees the state before a move or after it. Weights are named, never moved or deleted.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accord.errors import DataError, ResourceError
from accord.files import read_json, write_json
from accord.lock import only_writer

ALIASES = "aliases.json"
MOVE_PATIENCE_S = 5.0  # another's move takes milliseconds
PROD, CANARY, REFERENCE = "prod", "canary", "reference"


@dataclass(frozen=True)
class ServedModel:
    """A model under an alias: its folder and the version of its weights.

    Of a canary also its share of conversations, and the error rate and tolerance of its test.
    """

    folder: Path
    version: str
    share: float = 0.0
    alpha: float = 0.05
    delta: float = 0.05

    @classmethod
    def of_json(cls, row: Mapping[str, Any]) -> ServedModel:
        numbers = {name: float(row[name]) for name in ("share", "alpha", "delta") if name in row}
        return cls(Path(row["folder"]), str(row["version"]), **numbers)


def aliases_of_rounds(rounds: Path) -> AliasFile:
    """Return the aliases in a folder of rounds: beside 0001, 0002 and so on."""
    return AliasFile(rounds / "models")


@dataclass(frozen=True)
class AliasFile:
    """The aliases in a folder of their own, and their history."""

    folder: Path

    @property
    def path(self) -> Path:
        return self.folder / ALIASES

    def all(self) -> dict[str, ServedModel]:
        """Return what stands now, by alias."""
        return {name: ServedModel.of_json(row) for name, row in self._read()["aliases"].items()}

    def get(self, alias: str) -> ServedModel | None:
        return self.all().get(alias)

    def history(self) -> list[dict[str, Any]]:
        """Return every move, the oldest first: when, which alias, from which version to which, and why."""
        found: list[dict[str, Any]] = self._read()["history"]
        return found

    def move(self, changes: Mapping[str, ServedModel | None], why: str) -> None:
        """Let aliases name other models, None for none, all in one step."""
        with self._alone():
            stands = self._read()
            aliases = dict(stands["aliases"])
            history = list(stands["history"])
            for alias, model in changes.items():
                before = aliases.pop(alias, None)
                if model is not None:
                    aliases[alias] = {**asdict(model), "folder": str(model.folder)}
                if before != aliases.get(alias):
                    row = {"alias": alias, "from": before, "to": aliases.get(alias), "why": why}
                    history.append({"at": time.time(), **row})
            if history != stands["history"]:
                write_json(self.path, {"aliases": aliases, "history": history})

    def roll_back(self, why: str) -> ServedModel:
        """Let ``prod`` name what it named before, and the canary nothing. Raises DataError where it named nothing."""
        moves = [row for row in self.history() if row["alias"] == PROD and row["to"] != row["from"]]
        stands, before = self.get(PROD), next((row["from"] for row in reversed(moves)), None)
        if stands is None or before is None:
            raise DataError(
                "there is no earlier model to go back to", where=str(self.path), hint="nothing was promoted yet"
            )
        model = ServedModel.of_json(before)
        if not (model.folder / "config.json").is_file():
            raise DataError("the model before this one is gone", where=str(model.folder))
        self.move({PROD: model, CANARY: None}, why)
        return model

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the folder; wait a little where somebody else does."""
        end = time.monotonic() + MOVE_PATIENCE_S
        with contextlib.ExitStack() as held:
            while True:
                try:
                    held.enter_context(only_writer(self.folder))
                    break
                except ResourceError:
                    if time.monotonic() > end:
                        raise
                    time.sleep(0.02)
            yield

    def _read(self) -> dict[str, Any]:
        found = read_json(self.path) if self.path.exists() else {}
        return {"aliases": found.get("aliases", {}), "history": found.get("history", [])}
