"""Who is measured, and on which prompts. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from accord.errors import UsageError
from accord.formats.stage_rows import Chat, PromptRow, read_prompts

ContestantRole = Literal["reference", "candidate", "control", "baseline"]


@dataclass(frozen=True)
class Contestant:
    """One policy that is measured.

    Attributes:
        name: What pages and ``results.json`` call it.
        snapshots: Training step -> folder; ``{0: folder}`` where there is nothing to choose.
        role: Of a candidate the judge chooses a snapshot on validation prompts. A control is the same training
            otherwise: its snapshots are measured there too, and its last one is reported. A baseline is only reported.
        note: What the tables say beneath its name.
        best_of: The proxy picks the best of so many samples.
        stream: Names its random numbers, its name where empty: a policy can get another name and keep its samples.
        is_first: Where the first of several rounds started: KL and win rates of all others are told against it too.
    """

    name: str
    snapshots: Mapping[int, Path]
    role: ContestantRole = "candidate"
    note: str = ""
    best_of: int = 1
    stream: str = ""
    is_first: bool = False

    def __post_init__(self) -> None:
        if not self.snapshots:
            raise UsageError(
                f"{self.name} has no snapshot to measure", hint="lower eval_every, so that training writes some"
            )

    @property
    def last(self) -> int:
        """The step of its last snapshot."""
        return max(self.snapshots)

    @property
    def random(self) -> str:
        """The name of its random numbers."""
        return self.stream or self.name

    @property
    def chosen(self) -> bool:
        """Whether the judge chooses among its snapshots; best-of-n has none of its own."""
        return self.role == "candidate" and self.best_of == 1


@dataclass(frozen=True)
class EvalPrompts:
    """Files of prompts, JSONL of ``{"prompt", "topic"}``: those that choose, and those that are reported."""

    valid: Path
    test: Path


def read_once(path: Path, chat: Chat | None = None) -> list[PromptRow]:
    """Return the prompts of a file, each of which stands there once.

    ``chat`` lays out prompts that are messages.
    """
    rows = read_prompts(path, chat)
    if len({row.text for row in rows}) < len(rows):
        raise UsageError("a prompt stands twice", where=str(path), hint="evaluate on each prompt once")
    return rows


def best_of_n_of(reference: Path, n: int) -> Contestant:
    """Return best-of-n of the reference by the proxy: what the reward model can do without any training."""
    note = f"the proxy picks one of {n} of the reference's samples"
    return Contestant("best_of_n", {0: reference}, "baseline", note, n)


def check_names(reference: Contestant, contestants: tuple[Contestant, ...]) -> None:
    """Refuse two policies of one name: rows and random numbers go by names."""
    names = [reference.name, *(one.name for one in contestants)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"two policies are called {' and '.join(map(repr, twice))}", hint="give each its own name")


def policy_name(folder: Path) -> str:
    """Return what a policy is called that has only a folder: by what made it, ``runs/ppo/model`` is "ppo"."""
    found = folder.resolve()
    return found.parent.name if found.name == "model" and found.parent.name else found.name
