"""Options that several commands share, and the part of their help that comes from the configuration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, get_args

import typer

from accord.config import Recipe, Tracker, load_recipe
from accord.errors import UsageError


def data_file(text: str) -> Path:
    """Return the data file that an option names, as PATH or FORMAT:PATH."""
    from accord.formats import input_file

    return input_file(text)


Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout; everything else to stderr.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Show the traceback of an error.")]
Resume = Annotated[bool, typer.Option(help="Continue from the last checkpoint, or start afresh.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the model that another command made in the same folder.")
]
Seed = Annotated[int, typer.Option(min=0, metavar="N", help="Decides every random choice.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Change keys of the recipe, like rl.kl_coef=0.02.")
]
FromRecipe = Annotated[
    str | None, typer.Option("--recipe", metavar="RECIPE", help="Take the settings from a recipe, by name or file.")
]
Model = Annotated[Path, typer.Option(metavar="DIR", help="A Hugging Face folder: config, weights, tokenizer.")]
ValidData = Annotated[
    Path | None,
    typer.Option(
        parser=data_file, metavar="FILE", help="Held-out rows in the same form; every twentieth of --data without it."
    ),
]
Sweep = Annotated[
    list[str] | None,
    typer.Option("--sweep", metavar="KEY=A,B,...", help="One run a value, and one report; several: every combination."),
]
ScorerModel = Annotated[
    Path | None, typer.Option("--reward-model", metavar="DIR", help="What `accord reward` wrote, or rl.rewards alone.")
]
Track = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TRACKER", help="Hand the numbers on to tensorboard, wandb (offline) or trackio; once for each."
    ),
]
OutputDir = Annotated[Path, typer.Option("-o", "--output-dir", metavar="DIR", help="Where the model is written.")]
OutputFile = Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The JSONL file to write.")]
RunDir = Annotated[
    Path | None, typer.Option("-o", "--output-dir", metavar="DIR", help="The run's folder; by default runs/NAME.")
]
PromptField = Annotated[
    str | None,
    typer.Option(metavar="COLUMN", help="Prompts stand in this column; columns that no flag names are kept beside."),
]
TopicField = Annotated[
    str | None, typer.Option(metavar="COLUMN", help="With --prompt-field: the column that says what each is about.")
]
Ignore = Annotated[
    list[str] | None,
    typer.Option(metavar="COLUMN", help="Leave out a column that only looks like a judgement; several times."),
]
FromDir = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Take the downloads from this folder: no network is used.")
]


def trackers_named(names: Sequence[str] | None) -> tuple[Tracker, ...]:
    """Return the trackers of these names. Raises UsageError for another one."""
    found = tuple(one for one in get_args(Tracker) if one in (names or ()))
    if unknown := set(names or ()) - set(found):
        raise UsageError(f"there is no tracker {min(unknown)!r}", hint=f"give {', '.join(get_args(Tracker))}")
    return found


def stage_recipe(recipe: str | None, overrides: Sequence[str] | None, sections: Sequence[str]) -> Recipe:
    """The recipe a single stage reads its sections (or single keys) from. An override of another key is refused."""
    for override in overrides or ():
        key = override.split("=", 1)[0].strip()
        known = key.split(".", 1)[0] in Recipe.model_fields
        if known and not any(key == section or key.startswith(f"{section}.") for section in sections):
            readable = [section if "." in section else f"{section}.*" for section in sections]
            raise UsageError(f"{override!r} has no effect here", hint="this command reads " + " and ".join(readable))
    return load_recipe(recipe, overrides or ())
