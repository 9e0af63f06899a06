"""What a run is about: prompts, demonstrations, judgements and texts by split, and the judges that say what is better.

A task is found by name: `files` and `store` are built in, a user's own is ``module:NAME``, something that is called
with a `TaskPlace` and gives a `Task`; a class will do. Everything a task derives it writes in `Task.prepare`, the first
stage of a run; later stages are given the paths of those files.

Splits: "train" teaches policies and reward models; "judge" teaches judges alone; snapshots are chosen on "valid";
policies are reported on "test". What belongs together (a topic, a prompt) stands in one split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from accord.config import AdmitConfig, Layer, S, TaskConfig, build
from accord.errors import UsageError
from accord.extend import blaming, row
from accord.loop.cache import Inputs
from accord.models.placement import Placement
from accord.progress import Log, quiet
from accord.records import Source
from accord.scoring.scorer import Scorer

Split = Literal["train", "judge", "valid", "test"]


@dataclass(frozen=True)
class TaskPlace:
    """What a task is made of: its settings, the folder for what it derives, and where things are kept.

    ``store`` is the path or URL of the store of facts, ``cache`` keeps downloads, ``from_dir`` holds them already.
    ``reads`` says what the reward model learns from: "ranking", "label" or "rating". ``asks`` names the sources whose
    completions this run asks people about: what they say of these is the run's own, and not what stands already.
    ``resume``: an earlier start of the run counts; ``frozen``: so does what it found in the store, and nothing newer.
    ``admit`` says what of users' feedback counts.
    """

    config: TaskConfig
    folder: Path
    store: str
    cache: Path
    from_dir: Path | None = None
    seed: int = 0
    reads: str = "ranking"
    asks: frozenset[str] = frozenset()
    resume: bool = True
    frozen: bool = False
    admit: AdmitConfig = field(default_factory=AdmitConfig)

    def options(self, kind: type[S]) -> S:
        """The settings ``task.options`` of a task of one's own, checked. Raises UsageError at the first bad key."""
        return build(kind, [Layer(dict(self.config.options), "task.options", {})])


@dataclass(frozen=True)
class TaskJudge:
    """A judge that a stage of its own fits from declared files. It trains nothing.

    ``fit(inputs, folder, log)`` writes into ``folder``, ``load(folder, placement)`` reads it back. ``kind`` says how
    far it is to be trusted: a row of `accord.evals.trust.JUDGE_KINDS`.
    """

    inputs: Inputs
    fit: Callable[[Inputs, Path, Log], Any]
    load: Callable[[Path, Placement], Scorer]
    settings: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "second_reward_model"


@dataclass(frozen=True)
class Asked:
    """What annotators are asked: files of samples to rank, and what is known of them.

    ``samples`` holds ``{"prompt", "text", "topic", "completions"}`` rows, ``text`` being what the model read of the
    prompt; ``source`` says who wrote them. Judgements go to ``judgements`` as rows for the reward stage, each of
    ``weight``; facts into ``store``. ``log`` is told how far the work is.
    """

    samples: Path
    judgements: Path
    source: Source
    store: str
    weight: float
    seed: int
    log: Log = quiet


@dataclass(frozen=True)
class Annotators:
    """Who answers in place of people: ``answer(inputs, asked)`` ranks samples and says in JSON how it went."""

    inputs: Inputs
    answer: Callable[[Inputs, Asked], Any]
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RewardCheck:
    """How a reward model fares on what trained nothing: ``card(inputs, scorer, rankings, seed)`` is ``card.json``.

    ``rankings`` are what the reward model learnt from, for baselines that learn from the same; ``baseline`` is the one
    of them that the model must not fall below.
    """

    inputs: Inputs
    card: Callable[[Inputs, Scorer, Path, int], dict[str, Any]]
    baseline: str


class Task(Protocol):
    """What a run is about. Paths hold rows that every stage reads; None where the task has nothing of the kind.

    ``settings`` and ``inputs`` decide what `prepare` writes. ``judges`` by name: the first chooses among snapshots;
    where there is none, the loop fits a reward model to the "judge" split of the judgements. ``annotators`` are those
    that ``ask.who`` may name. ``guideline`` is what people are told where a project has no guidelines yet.
    """

    settings: Mapping[str, Any]
    inputs: Inputs
    judges: Mapping[str, TaskJudge]
    annotators: Mapping[str, Annotators]
    held_out: RewardCheck | None
    guideline: str

    def prepare(self, inputs: Inputs, folder: Path, log: Log) -> Any: ...
    def prompts(self, split: Split) -> Path: ...
    def demonstrations(self, split: Split) -> Path | None: ...
    def judgements(self, split: Split) -> Path | None: ...
    def texts(self, split: Split) -> Path | None: ...


class PlainTask:
    """What most tasks have in common; a task of one's own may start from it and replace what differs.

    Files are looked for in the task's folder: ``prompts_train.jsonl``, ``demonstrations_valid.jsonl`` and so on;
    ``has`` says which kinds there are.
    """

    light = False  # whether `prepare` reads local files alone, in moments: a plan may then call it
    has: frozenset[str] = frozenset()
    guideline: str = ""
    held_out: RewardCheck | None = None

    def __init__(self, place: TaskPlace) -> None:
        self.place = place
        self.settings: Mapping[str, Any] = {"options": dict(place.config.options)}
        self.inputs: Inputs = {}
        self.judges: Mapping[str, TaskJudge] = {}
        self.annotators: Mapping[str, Annotators] = {}

    def path(self, kind: str, split: Split) -> Path:
        return self.place.folder / f"{kind}_{split}.jsonl"

    def prompts(self, split: Split) -> Path:
        return self.path("prompts", split)

    def demonstrations(self, split: Split) -> Path | None:
        return self.path("demonstrations", split) if "demonstrations" in self.has else None

    def judgements(self, split: Split) -> Path | None:
        return self.path("judgements", split) if "judgements" in self.has else None

    def texts(self, split: Split) -> Path | None:
        return self.path("texts", split) if "texts" in self.has else None


#: What a run asks of every task.
NEEDED = ("prepare", "prompts", "demonstrations", "judgements", "texts", "settings", "inputs", "judges", "annotators")


def find_task(place: TaskPlace, built_in: Mapping[str, Callable[[TaskPlace], Task]]) -> Task:
    """The task that ``task.use`` names. Raises UsageError where there is none, or its settings make no sense."""
    name = place.config.use
    make = row(built_in, name)
    if not callable(make):
        raise UsageError(f"{name!r} is {type(make).__name__}, not a task", hint="a task is called with a TaskPlace")
    with blaming(name):
        made = make(place)
    missing = [one for one in NEEDED if not hasattr(made, one)]
    if missing:
        hint = f"it has no {', '.join(missing)}; accord.loop.task.PlainTask is a beginning"
        raise UsageError(f"{name!r} makes {type(made).__name__}, not a task", hint=hint)
    return made
