"""Which questions a run waits for people to answer, told from its folder and the store. Reads only, without torch."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accord.config import AskConfig, EnoughConfig

if TYPE_CHECKING:
    from accord.people.watching import AnswersSoFar

_ROUND = re.compile(r"round_(\d+)")


def round_folders(run: Path) -> dict[int, Path]:
    """The folders of a run's rounds that have begun, by number: the first works in the run's own."""
    later = {int(found[1]): path for path in run.glob("round_*") if (found := _ROUND.fullmatch(path.name))}
    return {1: run, **dict(sorted(later.items()))}


@dataclass(frozen=True)
class _Asking:
    """What a round asks people: which tasks are its own, by their origin, and when there are enough answers."""

    is_own: Callable[[str], bool]
    enough: EnoughConfig
    simulated: bool


def _ranking(resolved: Mapping[str, Any], number: int) -> _Asking | None:
    """The samples to be ranked, of whatever policy is the champion."""
    if resolved.get("ask", {}).get("who") != "people":
        return None
    config, name = AskConfig.model_validate(resolved["ask"], strict=False), resolved.get("name", "")
    policies = ("base", "sft", *(f"round_{earlier}" for earlier in range(1, number)))
    origins = {f"{name}/{policy}" for policy in policies}
    return _Asking(origins.__contains__, config.enough, config.simulated)


def _judging(resolved: Mapping[str, Any], number: int) -> _Asking | None:
    """The blind pairs to be judged."""
    people = resolved.get("eval", {}).get("people", {})
    if not people.get("prompts"):
        return None
    # Of what is kept for judging the origin says so, in a word before the policy's name.
    ending = f": {resolved.get('name', '')}/round_{number}"
    enough = EnoughConfig.model_validate(people.get("enough", {}), strict=False)
    return _Asking(lambda origin: origin.endswith(ending), enough, bool(people.get("simulated")))


#: The stage that people are asked after, the one that asks, and what it asks; of those that have begun the last waits.
_STEPS: tuple[tuple[str, str, Callable[[Mapping[str, Any], int], _Asking | None]], ...] = (
    ("sample", "ask", _ranking),
    ("eval", "judged_people", _judging),
)


def answers_waited_for(run: Path, resolved: Mapping[str, Any], store: str) -> AnswersSoFar | None:
    """How far people are with what the run's newest round asks; None where it waits for nobody.

    Args:
        resolved: The run's recipe with every key, of ``resolved.json``.
        store: Path or URL of the store where people answer.
    """
    rounds = round_folders(run)
    number, newest = max(rounds.items())
    if "://" not in store and not Path(store).exists():
        return None
    for before, stage, asks in _STEPS:
        waits = (newest / before / "stage.json").exists() and not (newest / stage / "stage.json").exists()
        if waits and (asking := asks(resolved, number)) is not None:
            return _so_far(asking, {task for one in rounds.values() if one != newest for task in _asked_in(one)}, store)
    return None


def _so_far(asking: _Asking, earlier: Collection[str], store: str) -> AnswersSoFar | None:
    """How far people are with the tasks of these origins that no earlier round has asked."""
    from accord.config import LabelConfig
    from accord.people.desk import Desk
    from accord.people.watching import Questions
    from accord.store import Store

    with Store.open(store) as facts:
        tasks = [task for task in Desk(facts, LabelConfig()).queue.tasks() if asking.is_own(task.origin)]
    ours = {task.id: task.overlap for task in tasks if task.id not in earlier}
    queued_at = max((task.created_at for task in tasks if task.id in ours), default=0.0)
    return Questions(store, ours, asking.enough, asking.simulated, queued_at).standing() if ours else None


def _asked_in(folder: Path) -> set[str]:
    """The tasks that a finished round asked."""
    path = folder / "ask/tasks.jsonl"
    return {json.loads(line)["task"] for line in path.read_text().splitlines()} if path.exists() else set()
