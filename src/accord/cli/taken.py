"""What a command takes from the project around it where no file is named: the model, prompts, judgements, places.

Each taken thing is told, with how many rows it has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accord.algo.table import PREFERENCE_LOSSES, REWARD_LOSSES
from accord.cli.project import Project, base_model, find_project
from accord.cli.talk import Talk, path_text
from accord.config import load_recipe
from accord.errors import UsageError
from accord.files import sha256_file, write_text
from accord.models.known_models import KNOWN_MODELS

SAMPLES = "samples.jsonl"  # in the project's folder: what `accord sample` draws there, and `accord label` queues
QUEUED = "samples.jsonl.queued"  # beside it: the hash of the samples that were queued


@dataclass(frozen=True)
class Taken:
    """A path that the project gives, and what it is in words."""

    path: Path
    said: str


@dataclass(frozen=True)
class Asked:
    """The command that something is taken for, with the settings that say which judgements it reads."""

    command: str
    recipe: str | None = None
    overrides: tuple[str, ...] = ()

    def kinds(self) -> tuple[str, ...]:
        """The kinds of rows that the command's loss reads."""
        if self.command == "sft":
            return ("demonstration", "conversation")
        made = load_recipe(self.recipe, self.overrides)
        if self.command == "reward":
            loss = REWARD_LOSSES.get(made.reward.loss)
            return _READ[loss.reads] if loss else _READ["pairs"]
        loss_of = PREFERENCE_LOSSES.get(made.dpo.loss)
        return ("ranking",) if loss_of is None or loss_of.paired else ("ranking", "label")


_READ = {"pairs": ("ranking",), "orders": ("ranking",), "labels": ("label",), "ratings": ("rating",)}


def fill_in(talk: Talk, command: str, given: Mapping[str, Any], wanted: tuple[str, ...]) -> dict[str, Any]:
    """Return what a command was given, with what is missing of the wanted taken from the project; it is told.

    Raises:
        UsageError: Something is missing, and there is no project, or it has none.
    """
    missing = [name for name in wanted if given[name] is None]
    home = find_project(None) if missing else None
    found: dict[str, Any] = dict(given)
    for name in missing:
        flag = f"--{name.replace('_', '-')}"
        give = _GIVEN.get((command, name)) or _GIVEN.get(("", name))
        if home is None or give is None:
            hint = "" if give is None else "; in a project (`accord init`) it may be left out"
            raise UsageError(f"{flag} is missing", hint=f"name it{hint}")
        taken = give(home, Asked(command, given.get("recipe"), tuple(given.get("overrides") or ())))
        talk.log.note(f"{flag} {path_text(taken.path)}  ({taken.said})")
        found[name] = Path(path_text(taken.path))
    if home is not None and _wants_reward_model(command, given, home):
        found["reward_model"] = Path(path_text(home.root / "reward/model"))
        talk.log.note(f"--reward-model {found['reward_model']}  (what `accord reward` made)")
    return found


def _wants_reward_model(command: str, given: Mapping[str, Any], home: Project) -> bool:
    """Whether a policy is to be optimised, nothing says for what, and the project has a reward model."""
    says = given.get("reward_model") or given.get("recipe")
    says = says or any(override.startswith("rl.rewards") for override in given.get("overrides") or ())
    return command == "rl" and not says and (home.root / "reward/model").is_dir()


def new_samples(home: Project) -> Path | None:
    """Return the project's samples where `accord label` has not queued these yet; None where there is nothing new."""
    path, mark = home.root / SAMPLES, home.root / QUEUED
    if not home.file.is_file() or not path.is_file():
        return None
    known = mark.read_text().strip() if mark.is_file() else ""
    return None if known == sha256_file(path) else path


def mark_queued(samples: Path) -> None:
    """Write down that these samples were queued: taken out of the queue, they stay out."""
    write_text(samples.with_name(QUEUED), sha256_file(samples) + "\n")


# ---- one function for each thing -------------------------------------------------------------------------------------


def project_model(home: Project) -> Path:
    """Return the folder of the model that a project starts from. Raises UsageError where it names none."""
    named = base_model(home)
    path = home.root / ("models/" + named if named in KNOWN_MODELS else named)
    path = home.root / "models" / path.stem if path.suffix == ".gguf" else path
    if not named or not path.is_dir():
        what = f"base.model is {named!r}, no folder" if named else "the project names no model"
        raise UsageError(what, where=path_text(home.file), hint="--model DIR, or base: {model: FOLDER} there")
    return path


def _model(home: Project, asked: Asked) -> Taken:
    return Taken(project_model(home), f"the model of {path_text(home.file)}")


def _place(home: Project, asked: Asked) -> Taken:
    return Taken(home.root / asked.command, "a folder of the project")


def _file(home: Project, asked: Asked) -> Taken:
    return Taken(home.root / {"sample": SAMPLES, "score": "scored.jsonl"}[asked.command], "a file of the project")


def _samples(home: Project, asked: Asked) -> Taken:
    path = home.root / SAMPLES
    if not path.is_file():
        raise UsageError("the project has no samples", where=path_text(path), hint="`accord sample` draws some")
    return Taken(path, "what `accord sample` drew last")


def _prompts(home: Project, asked: Asked) -> Taken:
    """The store's prompts: all for a policy, and for samples as many as a round asks about, new ones first."""
    from accord.people.exporting import write_prompts
    from accord.store import Store

    most = home.recipe_with().ask.prompts if asked.command == "sample" and home.recipe.values else None
    path = _target(home, asked.command)
    with Store.open(home.store) as store:
        made = write_prompts(store, path, messages=_is_chat(home), most=most)
    said = f"{made.taken:,} of the store's {made.there:,} prompts"
    said += f", at most ask.prompts ({most:,}); nobody was asked about {made.new:,} of them yet" if most else ""
    return Taken(path, said)


def _judgements(home: Project, asked: Asked) -> Taken:
    """What people said, as `accord export` weighs it, of the kinds that the command's loss reads."""
    from accord.people.exporting import write_judgements
    from accord.store import Store

    path, kinds = _target(home, asked.command), asked.kinds()
    with Store.open(home.store) as store:
        made = write_judgements(store, path, "accord", kinds=kinds, messages=_is_chat(home))
    called = " and ".join(f"{kind}s" for kind in kinds)
    return Taken(path, f"{made.rows:,} {called} by people, of the store")


def _target(home: Project, command: str) -> Path:
    folder = home.root / "exports"
    folder.mkdir(exist_ok=True)
    return folder / f"for-{command}.jsonl"


def _is_chat(home: Project) -> bool:
    return bool(home.recipe.values) and home.recipe_with().task.chat


#: By command and parameter, or by parameter alone: who gives it.
_GIVEN: Mapping[tuple[str, str], Callable[[Project, Asked], Taken]] = {
    ("sample", "model"): _model,
    ("sft", "model"): _model,
    ("reward", "model"): _model,
    ("rl", "model"): _model,
    ("dpo", "model"): _model,
    ("sample", "data"): _prompts,
    ("rl", "data"): _prompts,
    ("sft", "data"): _judgements,
    ("reward", "data"): _judgements,
    ("dpo", "data"): _judgements,
    ("score", "data"): _samples,
    ("", "output_dir"): _place,
    ("", "output"): _file,
}
