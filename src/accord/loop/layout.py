"""Where the work of a run's training stages lies: how many processes, what each holds, and what it costs in memory."""

from __future__ import annotations

import os

import torch

from accord.config import Recipe
from accord.errors import UsageError
from accord.loop.costs import FROZEN_BYTES, TRAINED_BYTES, ModelSize
from accord.train.launch import refuse_ranks

GIGA = 1e9


def check_scale(recipe: Recipe) -> None:
    """Refuse what several processes cannot train, before any work. Raises UsageError."""
    ranks = recipe.scale.ranks
    if ranks == 1:
        return
    refuse_ranks(ranks)
    if not recipe.base.model and recipe.model.kind == "lstm":
        raise UsageError(
            f"scale.ranks is {ranks}, and model.kind is lstm",
            why="several processes train the families that the decoder reads, block by block",
            hint="set scale.ranks=1, or model.kind=llama",
        )


def layout_lines(recipe: Recipe, size: ModelSize | None) -> list[str]:
    """Return what several processes hold and do, in words; nothing of one."""
    ranks = recipe.scale.ranks
    if ranks == 1:
        return []
    cuda = torch.cuda.is_available()
    own = "a GPU of its own" if cuda else f"{max(1, (os.cpu_count() or 1) // ranks)} of {os.cpu_count()} CPU threads"
    return [
        f"{ranks} processes in each training stage, started by torchrun on this machine, each with {own}; "
        "all else in one",
        *_memory_lines(recipe, size),
        "dealt out: prompts to sample, completions to score, rows of every forward and backward pass",
        "whole in each: the table of an iteration (tokens, log-probabilities, values, scores), and while samples are "
        "drawn the policy's weights; the first process writes what is written",
    ]


def _memory_lines(recipe: Recipe, size: ModelSize | None) -> list[str]:
    whole = [] if recipe.rl.lora.rank and recipe.optimise == "rl" else ["reference"]
    whole += ["reward model"] if recipe.optimise == "rl" else []
    split = "split: weights, gradients and moments of what trains, block by block"
    if size is None:
        return [split, f"whole in each: {' and '.join(whole)}"] if whole else [split]
    trained = TRAINED_BYTES * size.weights / GIGA
    held = FROZEN_BYTES * size.weights / GIGA
    lines = [f"{split}: of a model in full {trained / recipe.scale.ranks:.2f} GB each of {trained:.2f} GB"]
    return [*lines, *(f"whole in each: the {name}, about {held:.2f} GB" for name in whole)]
