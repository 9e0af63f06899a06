"""Where the work of a run's training stages lies: how many processes, what each holds, and what it costs in memory."""

from __future__ import annotations

import importlib.util
import os

import torch

from accord.config import Recipe
from accord.errors import UsageError
from accord.loop.costs import FROZEN_BYTES, TRAINED_BYTES, UNSURE, ModelSize
from accord.train.launch import refuse_ranks

GIGA = 1e9


def check_scale(recipe: Recipe) -> None:
    """Refuse what several processes cannot train, before any work. Raises UsageError."""
    ranks = recipe.scale.ranks
    if recipe.scale.ray and importlib.util.find_spec("ray") is None:
        raise UsageError("scale.ray is set, and Ray is not installed", hint="pip install 'accord[ray]'")
    if ranks == 1:
        return
    if not recipe.scale.ray:  # a cluster has other machines
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
        return _copies(recipe, size)
    cuda = torch.cuda.is_available()
    own = "a GPU of its own" if cuda else f"{max(1, (os.cpu_count() or 1) // ranks)} of {os.cpu_count()} CPU threads"
    where = f"placed by Ray ({recipe.scale.ray})" if recipe.scale.ray else "started by torchrun on this machine"
    return [
        f"{ranks} processes in each training stage, {where}, each with {own}; all else in one",
        *_copies(recipe, size),
        *_memory_lines(recipe, size),
        "dealt out: prompts to sample, completions to score, rows of every forward and backward pass",
        "whole in each: the table of an iteration (tokens, log-probabilities, values, scores), and while samples are "
        "drawn the policy's weights; the first process writes what is written",
    ]


def iteration_lines(recipe: Recipe, stage_seconds: float | None) -> list[str]:
    """Return how long an iteration of policy optimisation takes by the cost model; nothing where it is not known.

    Processes with a GPU each share the work; those of one CPU share its threads, and are no faster together.
    """
    if recipe.optimise != "rl" or not stage_seconds:
        return []
    scale = recipe.scale
    if scale.ranks == 1 and not scale.ray and scale.rollout == "engine":
        return []
    parts = scale.ranks if torch.cuda.is_available() else 1
    each = stage_seconds / recipe.rl.iterations / parts
    return [
        f"an iteration of rl takes about {each:.1f} s ({each / UNSURE:.1f} to {each * UNSURE:.1f}) by the "
        "cost model; on clusters it was 0.7 to 1.7 times off (docs/scale.md)"
    ]


def _copies(recipe: Recipe, size: ModelSize | None) -> list[str]:
    """Say who draws samples in the policy's place, and what that holds."""
    scale, drawn = recipe.scale, recipe.scale.rollout
    if recipe.optimise != "rl" or (not scale.rollout_workers and drawn == "engine"):
        return (
            [f"each training stage in a process placed by Ray ({scale.ray})"] if scale.ray and scale.ranks == 1 else []
        )
    held = "" if size is None else f", each about {FROZEN_BYTES * size.weights / GIGA:.2f} GB of weights in fp32"
    count = f"{scale.rollout_workers or 1} rollout worker{'s' * (scale.rollout_workers > 1)}"
    who = "of vLLM, in its own environment" if drawn == "vllm" else "with Accord's engine"
    return [f"{count} {who}, draw the samples of rl{held}; weights reach them as a folder, and a canary compares both"]


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
