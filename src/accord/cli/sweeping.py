"""A stage carried out once, or at every point of a sweep."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import accord
from accord.cli.once import called, carry_out
from accord.cli.options import stage_recipe
from accord.cli.talk import Talk, path_text
from accord.config import Recipe
from accord.grid import grid


def stage_or_sweep(
    talk: Talk,
    name: str,
    *,
    inputs: Mapping[str, Path | None],
    output_dir: Path,
    recipe: str | None,
    overrides: Sequence[str] | None,
    sweep: Sequence[str] | None,
    seed: int,
    resume: bool,
    overwrite: bool,
    next_step: str,
) -> None:
    """Call ``accord.NAME`` with its section of the recipe, once or for every combination of a sweep; print its result.

    ``inputs`` are the files and folders that it reads, by the names of its parameters.
    """

    def load(more: Sequence[str]) -> Recipe:
        return stage_recipe(recipe, [*(overrides or ()), f"seed={seed}", *more], (name, "seed"))

    def stage(made: Recipe, folder: Path, log: Callable[[float, str], None]) -> Any:
        section, door = getattr(made, name), getattr(accord, name)
        return door(section, **inputs, output_dir=folder, seed=made.seed, resume=resume, log=log)

    stage_recipe(recipe, overrides, (name,))  # --seed says the seed, and seed=N is no second way
    if not sweep:
        made = load(())
        call = called(name, made, inputs, output_dir)
        work = partial(stage, made, output_dir, talk.log)
        carry_out(talk, call, work, next_step=next_step, overwrite=overwrite, resume=resume)
        return
    swept = accord.sweep_stage(
        grid(sweep, load),
        stage,
        sections=(name,),
        inputs={key: path for key, path in inputs.items() if path is not None},
        output_dir=output_dir,
        resume=resume,
        log=talk.log,
    )
    talk.result(swept, next_step=f"open {path_text(swept.report)}")
