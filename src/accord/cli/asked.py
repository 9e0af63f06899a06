"""Which questions a run waits for people to answer, told from its folder and the store. Reads only, without torch."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accord.config import AskConfig

if TYPE_CHECKING:
    from accord.people.watching import AnswersSoFar

_ROUND = re.compile(r"round_(\d+)")


def round_folders(run: Path) -> dict[int, Path]:
    """The folders of a run's rounds that have begun, by number: the first works in the run's own."""
    later = {int(found[1]): path for path in run.glob("round_*") if (found := _ROUND.fullmatch(path.name))}
    return {1: run, **dict(sorted(later.items()))}


def answers_waited_for(run: Path, resolved: Mapping[str, Any], store: str) -> AnswersSoFar | None:
    """How far people are with what the run's newest round asks; None where it waits for nobody.

    Args:
        resolved: The run's recipe with every key, of ``resolved.json``.
        store: Path or URL of the store where people answer.
    """
    asks, rounds = resolved.get("ask", {}), round_folders(run)
    newest = rounds[max(rounds)]
    if asks.get("who") != "people" or not (newest / "sample/stage.json").exists():
        return None
    if (newest / "ask/stage.json").exists() or ("://" not in store and not Path(store).exists()):
        return None
    from accord.config import LabelConfig
    from accord.people.desk import Desk
    from accord.people.watching import Questions
    from accord.store import Store

    config = AskConfig.model_validate(asks, strict=False)
    earlier = {task for number in rounds if number != max(rounds) for task in _asked_in(rounds[number])}
    with Store.open(store) as facts:
        tasks = [task for task in Desk(facts, LabelConfig()).queue.tasks() if task.origin in _origins(resolved, rounds)]
    ours = {task.id: task.overlap for task in tasks if task.id not in earlier}
    queued_at = max((task.created_at for task in tasks if task.id in ours), default=0.0)
    return Questions(store, ours, config.enough, config.simulated, queued_at).standing() if ours else None


def _origins(resolved: Mapping[str, Any], rounds: Collection[int]) -> set[str]:
    """Where the tasks of a run come from: the policies whose samples it asks about."""
    name = resolved.get("name", "")
    return {f"{name}/{policy}" for policy in ("base", "sft", *(f"round_{number}" for number in rounds))}


def _asked_in(folder: Path) -> set[str]:
    """The tasks that a finished round asked."""
    path = folder / "ask/tasks.jsonl"
    return {json.loads(line)["task"] for line in path.read_text().splitlines()} if path.exists() else set()
