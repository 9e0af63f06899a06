"""A share of what a run asks is kept for its judge, where nobody else judges: a reward model of other prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from accord.config import Recipe
from accord.errors import DataError, UsageError
from accord.evals.judges import recipe_judges
from accord.loop.task import Task
from accord.seeds import hash_position

KEPT = "judge.jsonl"  # beside the rankings that teach the reward model
_Rows = Sequence[Mapping[str, Any]]


def keeps_share(recipe: Recipe, task: Task) -> bool:
    """Whether what is asked must bring the judge too: the task brings none, and the recipe names none that scores.

    Judges that compare pairs (people, chat models) cannot choose among snapshots.
    """
    alone = not task.judges and task.judgements("judge") is None and not recipe_judges(recipe.eval)
    return alone and recipe.ask.who != "nobody" and recipe.task.judge_share > 0


def check_judged(recipe: Recipe, task: Task) -> None:
    """Refuse a run whose result nobody would judge, before any work. Raises UsageError."""
    if not (task.judges or task.judgements("judge") or recipe_judges(recipe.eval) or keeps_share(recipe, task)):
        raise UsageError(
            "nobody judges the result",
            why="a policy cannot be judged by the score that it was optimised for",
            hint="name a scorer that trains nothing with eval.judges, or keep judgements for one: task.judge_share",
        )


def kept_for_judge(rows: _Rows, share: float) -> tuple[_Rows, _Rows]:
    """Return the rows that teach the judge alone, about that share, and the others; a prompt is never among both.

    By the prompt's hash: what is asked later moves nothing from one side to the other, but where one side is empty.
    Raises DataError where there is one prompt only.
    """
    places = {name: hash_position(name) for name in map(_name, rows)}
    if len(places) < 2:
        raise DataError(
            f"judgements of {len(places)} prompts cannot teach both a reward model and its judge",
            hint="raise ask.prompts, or name a judge with eval.judges",
        )
    first, *_, last = sorted(places, key=places.__getitem__)
    kept = {name for name, place in places.items() if place < share} - {last} | {first}
    return [row for row in rows if _name(row) in kept], [row for row in rows if _name(row) not in kept]


def _name(row: Mapping[str, Any]) -> str:
    return json.dumps(row["prompt"], sort_keys=True, ensure_ascii=False)
