"""Which prompts an optimisation sees, in which order: functions of file, seed and step alone, so that runs resume."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from accord.config import PromptsConfig
from accord.errors import DataError
from accord.extend import blaming, outside
from accord.formats.stage_rows import PromptRow
from accord.seeds import stream_seed


def choose_prompts(
    config: PromptsConfig, rows: Sequence[PromptRow], encode: Callable[[str], Sequence[int]]
) -> tuple[list[PromptRow], dict[str, int]]:
    """Return the prompts that all filters keep, and how many each filter dropped of those still there.

    Args:
        encode: text -> token ids, for the filter by length.

    Raises:
        DataError: no prompt is left, or a filter of the user's own fails.
        UsageError: there is no such filter.
    """
    filters: dict[str, Callable[[str], object]] = {}
    if config.max_tokens:
        filters["max_tokens"] = lambda text: len(encode(text)) <= config.max_tokens
    if config.regex:
        filters["regex"] = re.compile(config.regex).search
    if config.function:
        filters["function"] = outside(config.function)
    kept, dropped = list(rows), dict.fromkeys(filters, 0)
    for name, keeps in filters.items():
        with blaming(f"rl.prompts.{name}"):
            passed = [row for row in kept if keeps(row.text)]
        # One after the other, so that each number is what that filter alone took.
        kept, dropped[name] = passed, len(kept) - len(passed)
    if not kept:
        counts = ", ".join(f"rl.prompts.{name} dropped {count}" for name, count in dropped.items())
        raise DataError(f"none of {len(rows)} prompts is left: {counts}", hint="loosen the filter, or look at the file")
    return kept, dropped


@dataclass(frozen=True)
class Prompts:
    """The prompts of an optimisation, and how often each is drawn against the others."""

    texts: Sequence[str]
    weights: Sequence[float] | None = None

    def pick(self, count: int, step: int, seed: int) -> list[str]:
        """Return the prompts of a step, a function of the seed and the step alone."""
        return pick_prompts(self.texts, count, step, seed, self.weights)


def pick_prompts(
    prompts: Sequence[str], count: int, step: int, seed: int, weights: Sequence[float] | None = None
) -> list[str]:
    """Return the prompts of an iteration: consecutive slices of a fresh permutation each pass over the prompts.

    A pass has as many places as there are prompts. Without ``weights`` each prompt takes one; with them it takes its
    share of them, rounded up or down at random so that its mean over passes is exact.
    """
    # A position in an endless row of passes: a step knows its prompts without the steps before it, so runs resume.
    places = [divmod(position, len(prompts)) for position in range(step * count, (step + 1) * count)]
    orders = {epoch: _order(len(prompts), epoch, seed, weights) for epoch, _ in places}
    return [prompts[orders[epoch][index]] for epoch, index in places]


def _order(length: int, epoch: int, seed: int, weights: Sequence[float] | None) -> list[int]:
    """Return the prompts of a pass by index, in random order."""
    order = permutation(length, stream_seed(seed, "prompts", epoch))
    if weights is None:
        return order
    # Systematic sampling: places at equal distances over the weights laid end to end, from a random start.
    generator = torch.Generator().manual_seed(stream_seed(seed, "prompt weights", epoch))
    ends = torch.tensor(weights, dtype=torch.float64).cumsum(0)
    places = torch.arange(length) + torch.rand((), generator=generator, dtype=torch.float64)
    drawn = torch.searchsorted(ends * (length / ends[-1]), places, right=True).clamp(max=length - 1)
    picked: list[int] = drawn[order].tolist()
    return picked


def permutation(length: int, seed: int) -> list[int]:
    """Return 0 .. length - 1 in an order that the seed decides."""
    order: list[int] = torch.randperm(length, generator=torch.Generator().manual_seed(seed)).tolist()
    return order
