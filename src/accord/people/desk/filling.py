"""What becomes a task: whether it can be asked, its right answer, and a group of completions as one task or pairs."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from itertools import combinations, pairwise
from random import SystemRandom
from typing import Any

from accord.config import LabelConfig
from accord.errors import AccordError, DataError
from accord.people.desk.answers import read_answer
from accord.people.desk.kinds import check, check_can_be_gold, kind_of
from accord.people.desk.rows import NewTask
from accord.records import Completion, Prompt

# The system's own: processes that start alike must not draw alike. What was drawn is stored, so no seed is needed.
_RANDOM = SystemRandom()


def prepared(tasks: Iterable[NewTask], settings: LabelConfig) -> list[NewTask]:
    """Return tasks with all said. Raises DataError, naming the task, where one cannot be asked."""
    made = []
    for number, task in enumerate(tasks, 1):
        try:
            made.append(_prepare(task, settings))
        except AccordError as error:
            where = f"task {number}" + (f", {error.where}" if error.where else "")
            raise type(error)(error.what, where=where, why=error.why, hint=error.hint) from error
    return made


def _prepare(new: NewTask, settings: LabelConfig) -> NewTask:
    row = kind_of(new.kind, settings)
    overlap = settings.overlap if new.overlap is None else new.overlap
    num = len(new.completions)
    if not row.fewest <= num <= row.most:
        raise DataError(f"a {new.kind} task of {num} completions", hint=f"give {row.fewest} to {row.most}")
    if len({completion.id for completion in new.completions}) < num:
        raise DataError("a completion stands twice in a task")
    if any(completion.prompt_id != new.prompt.id for completion in new.completions):
        raise DataError("a completion of the task answers another prompt")
    # Finite, for priorities are sorted and JSON has no infinity.
    if not 1 <= overlap <= 1000 or not abs(new.priority) < 1e300:
        raise DataError(f"overlap {overlap}, priority {new.priority}", hint="give 1 to 1000, and a finite number")
    gold = None if new.gold is None else checked_gold(new.kind, settings, num, new.gold)
    return NewTask(**{**vars(new), "overlap": overlap, "gold": gold})


def checked_gold(kind: str, settings: LabelConfig, num_completions: int, values: dict[str, Any]) -> dict[str, Any]:
    """Return a right answer as JSON has it. Raises DataError where a task of this kind and size has no such answer."""
    check_can_be_gold(kind, settings)
    answer = read_answer(values)
    check(kind, settings, num_completions, answer)
    return answer.plain()


def group_tasks(
    prompt: Prompt, completions: Sequence[Completion], *, serve_as: str, num_pairs: int | None = None, **task: Any
) -> list[NewTask]:
    """Return the tasks of a group of completions: one of the kind ``serve_as``, or, as "pairs", pairs.

    The pairs share ``group``. The first ones drawn form a random path through the group, so that K - 1 of them connect
    all K completions.

    Args:
        num_pairs: How many of the K (K - 1) / 2 pairs; all by default.
        **task: The other fields of `NewTask`.

    Raises:
        DataError: There are not so many pairs, or too few completions.
    """
    if serve_as != "pairs":
        return [NewTask(kind=serve_as, prompt=prompt, completions=tuple(completions), **task)]
    num, group = len(completions), task.pop("group", "") or secrets.token_urlsafe(9)
    most = num * (num - 1) // 2
    wanted = most if num_pairs is None else num_pairs
    if not 1 <= wanted <= most:
        raise DataError(f"{wanted} pairs of {num} completions", hint=f"there are {most}")
    pairs = _random_pairs(num, wanted)
    chosen = [(completions[i], completions[j]) for i, j in pairs]
    return [NewTask(kind="pair", prompt=prompt, completions=pair, group=group, **task) for pair in chosen]


def _random_pairs(num: int, wanted: int) -> list[tuple[int, int]]:
    # A path first: without it few pairs may fall apart into groups whose texts nobody has compared.
    path = _RANDOM.sample(range(num), num)
    along = list(pairwise(path))
    seen = {frozenset(pair) for pair in along}
    others = [pair for pair in combinations(path, 2) if frozenset(pair) not in seen]
    return [*along, *_RANDOM.sample(others, len(others))][:wanted]
