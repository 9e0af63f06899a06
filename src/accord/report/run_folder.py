"""A run's folder as the report sees it: whatever is there, and why the rest is not. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accord.errors import DataError
from accord.files import read_json

#: Sub-folders in the order a run works through them.
STAGES = ("data", "base", "tokenizer", "pretrain", "sft", "ask", "rankings", "reward", "rl", "rl_uncured", "eval")


class Absent(Exception):
    """A part of the report cannot be shown; the message says why."""


@dataclass(frozen=True)
class RunFolder:
    """What a run has written. ``files`` maps a relative path to its JSON, or to None where there is none.

    ``damaged`` says what is wrong with a file that cannot be read. ``metrics`` and ``events`` hold the rows of each
    stage, ``samples`` the completions on test films.
    """

    path: Path
    files: Mapping[str, Any]
    metrics: Mapping[str, list[dict[str, Any]]]
    events: Mapping[str, list[dict[str, Any]]]
    samples: list[dict[str, Any]]
    damaged: Mapping[str, str] = field(default_factory=dict)

    def need(self, name: str) -> Any:
        """The JSON of a file; raises `Absent` where it is missing or damaged."""
        if self.files.get(name) is None:
            raise Absent(self.damaged.get(name, f"this run has not written {name}"))
        return self.files[name]

    def get(self, name: str) -> Mapping[str, Any]:
        """The JSON of a file, empty where it is missing, damaged or not an object."""
        found = self.files.get(name)
        return found if isinstance(found, Mapping) else {}

    def stage(self, name: str) -> Mapping[str, Any]:
        """What a finished stage left in its ``stage.json``."""
        return self.get(f"{name}/stage.json")


JSON_FILES = (
    "resolved.json",
    "env.json",
    "summary.json",
    "data/manifest.json",
    "reward/card.json",
    "eval/results.json",
    *(f"{stage}/stage.json" for stage in STAGES),
)


def read_run(path: Path) -> RunFolder:
    """Read a run's folder; nothing in it is trusted to be there or whole.

    Raises:
        DataError: there is no such folder.
    """
    if not path.is_dir():
        raise DataError("no such run folder", where=str(path), hint="give the folder that `accord run` wrote")
    files: dict[str, Any] = {}
    damaged: dict[str, str] = {}
    for name in JSON_FILES:
        if (path / name).exists():
            try:
                files[name] = read_json(path / name)
            except DataError as error:
                damaged[name] = f"{name}: {error.what}"
    return RunFolder(
        path=path,
        files=files,
        metrics={stage: _rows(path / stage / "metrics.jsonl") for stage in STAGES},
        events={stage: _rows(path / stage / "events.jsonl") for stage in STAGES},
        samples=_rows(path / "eval" / "samples.jsonl"),
        damaged=damaged,
    )


def _rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file; a line that is none (the last one of a killed run) is left out."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            found.append(row)
    return found
