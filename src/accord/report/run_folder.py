"""A run's folder as the report sees it: whatever is there, and why the rest is not. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accord.errors import DataError
from accord.files import read_json, read_rows
from accord.report.names import Names

#: Stages that come before any policy is optimised; those that a run has besides them optimise one, but for `LAST`.
FIRST = ("data", "base", "tokenizer", "pretrain", "sft", "sample", "ask", "rankings", "reward")
LAST = ("labelled", "eval", "queued", "queue")
_ROUND = re.compile(r"round_(\d+)")
_OF_A_ROUND = re.compile(r"round_\d+/")


def score_key(judge: str, judges: Iterable[str]) -> str:
    """Return under which key rows of samples hold a judge's score; the first of the judges, who leads, has no name."""
    return "judge" if judge == next(iter(judges), "") else f"judge:{judge}"


class Absent(Exception):
    """A part of the report cannot be shown; the message says why."""


@dataclass(frozen=True)
class RunFolder:
    """What a run has written. ``files`` maps a relative path to its JSON, or to None where there is none.

    ``damaged`` says what is wrong with a file that cannot be read. ``metrics`` and ``events`` hold the rows of each of
    ``stages``, ``samples`` the completions on test prompts, ``pairs`` those that a judge compared, by its name.
    """

    path: Path
    stages: tuple[str, ...]
    files: Mapping[str, Any]
    metrics: Mapping[str, list[dict[str, Any]]]
    events: Mapping[str, list[dict[str, Any]]]
    samples: list[dict[str, Any]]
    damaged: Mapping[str, str] = field(default_factory=dict)
    pairs: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)

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

    @property
    def names(self) -> Names:
        """How its reference and its candidate are called."""
        return Names.of(self.get("eval/results.json"))

    @property
    def name(self) -> str:
        """The recipe's name, else the folder's."""
        return str(self.get("resolved.json").get("name", self.path.name))

    @property
    def number(self) -> int:
        """Which round of a run it is, by its folder's name; 1 where it is the run itself."""
        found = _ROUND.fullmatch(self.path.name)
        return int(found[1]) if found else 1

    @property
    def seed(self) -> Any:
        """The seed that everything followed from; a dash where nothing says it."""
        return self.get("resolved.json").get("seed", self.get("eval/results.json").get("seed", "–"))

    @property
    def optimised(self) -> tuple[str, ...]:
        """The stages that optimised a policy."""
        return tuple(
            stage
            for stage in self.stages
            if stage not in (*FIRST, *LAST) and not stage.startswith(("judge_", "judged_"))
        )

    def policy_of(self, stage: str) -> Mapping[str, Any]:
        """The row of the policy that a stage made, by where its snapshots lie; one without measures where unknown."""
        results = self.get("eval/results.json")
        for row in results.get("policies", ()):
            if str(results.get("folders", {}).get(row["name"], "")).startswith(f"{stage}/"):
                return {**row}
        return {"name": stage.rsplit("/", 1)[-1], "role": "candidate", "best_of": 1}


GATE = "gate.json"  # what the gate says of the reward model
ROUND_GATES_FILE = "round_gates.json"  # what the gates of `accord round` found
BESIDE = "beside.json"  # in the folder of the evaluation: what stands beside the win rates
CURVES_FILE = "goodhart/curves.json"  # gold and proxy along KL, where `accord eval goodhart` has measured them
JSON_FILES = (
    "resolved.json",
    "origins.json",
    "env.json",
    "summary.json",
    "data/manifest.json",
    "reward/card.json",
    GATE,
    ROUND_GATES_FILE,
    "eval/results.json",
    f"eval/{BESIDE}",
    CURVES_FILE,
)


def read_run(path: Path) -> RunFolder:
    """Read a run's folder; nothing in it is trusted to be there or whole.

    Raises:
        DataError: there is no such folder.
    """
    if not path.is_dir():
        raise DataError("no such run folder", where=str(path), hint="give the folder that `accord run` wrote")
    stages = stages_of(path)
    files: dict[str, Any] = {}
    damaged: dict[str, str] = {}
    for name in (*JSON_FILES, *(f"{stage}/stage.json" for stage in stages)):
        if (path / name).exists():
            try:
                files[name] = read_json(path / name)
            except DataError as error:
                damaged[name] = f"{name}: {error.what}"
    return RunFolder(
        path=path,
        stages=stages,
        files=files,
        metrics={stage: read_rows(path / stage / "metrics.jsonl") for stage in stages},
        events={stage: read_rows(path / stage / "events.jsonl") for stage in stages},
        samples=read_rows(path / "eval" / "samples.jsonl"),
        damaged=damaged,
        pairs={file.parent.name.removeprefix("judged_"): read_rows(file) for file in path.glob("judged_*/pairs.jsonl")},
    )


def stages_of(path: Path) -> tuple[str, ...]:
    """Sub-folders in which a stage has worked, one or two levels deep, in the order a run works through them.

    Later rounds of a run have pages of their own.
    """
    kept = ("stage.json", "metrics.jsonl", "events.jsonl")
    files = [file for name in kept for file in (*path.glob(f"*/{name}"), *path.glob(f"*/*/{name}"))]
    stages = {file.parent.relative_to(path).as_posix() for file in files}
    found = {stage for stage in stages if not _OF_A_ROUND.match(stage)}
    between = sorted(found - {*FIRST, *LAST})
    return (*(s for s in FIRST if s in found), *between, *(s for s in LAST if s in found))
