"""Policies measured beside each other, and pages written anew."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

import accord
from accord.cli.keys import HelpAll
from accord.cli.options import (
    FromRecipe,
    Json,
    Overrides,
    ScorerModel,
    Seed,
    Verbose,
    data_file,
    stage_recipe,
)
from accord.cli.talk import path_text, talking
from accord.cli.verdicts import run_lines
from accord.config import ScorerConfig
from accord.errors import UsageError
from accord.extend import is_outside

_NAMED = re.compile(r"([A-Za-z][\w.-]*)=(.+)")


def eval_(
    policy: Annotated[
        list[str],
        typer.Option(metavar="[NAME=]DIR", help="A model to measure; once for each. Without NAME its folder's."),
    ],
    reference: Annotated[
        Path, typer.Option(metavar="DIR", help="The model they are compared with, usually the one they started from.")
    ],
    data: Annotated[
        Path,
        typer.Option(parser=data_file, metavar="FILE", help='JSONL of {"prompt"} rows that nothing was trained on.'),
    ],
    output_dir: Annotated[Path, typer.Option("-o", "--output-dir", metavar="DIR", help="Where the page is written.")],
    overrides: Overrides = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=WHAT",
            help="What says which text is better: a reward model's folder, module:function or a URL.",
        ),
    ] = None,
    reward_model: ScorerModel = None,
    recipe: FromRecipe = None,
    seed: Seed = 0,
    help_all: HelpAll = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Compare models with the one they started from.

    Each writes completions of the same prompts, and a judge that trained none of them says which are better. The page
    shows win rates with intervals, how far each model has moved (KL), whether its texts have grown longer or more
    alike, and the texts themselves. A reward model that the policies were optimised for is no judge of them: name it
    with --reward-model, and it stands beside the judge.

    \b
    Examples:
      accord eval --policy ppo/model --policy dpo/model --reference sft/model --data test.jsonl \\
                  --judge second=judge/model -o compared
      accord eval --policy new=ppo/model --reference sft/model --data test.jsonl --judge short=mine:shorter \\
                  --reward-model reward/model -o compared sample.max_new_tokens=120 eval.samples_per_prompt=8
    """
    with talking(json, verbose) as talk:
        config = stage_recipe(recipe, overrides, ("eval", "sample.max_new_tokens", "sample.temperature", "rl.rewards"))
        judges = {name: judge_of(what) for name, what in named("--judge", judge or ()).items()} | config.eval.judges
        made = accord.evaluate(
            config.eval.model_copy(update={"judges": judges}),
            policies={name: Path(folder) for name, folder in named("--policy", policy, unnamed=folder_title).items()},
            reference=reference,
            data=data,
            output_dir=output_dir,
            reward_model=reward_model,
            rewards=config.rl.rewards,
            sampling=config.sample,
            seed=seed,
            log=talk.log,
        )
        talk.result(made, above=run_lines(output_dir), next_step=f"open {path_text(made.report)}")


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What a run, comparison, sweep or eval wrote.")],
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Write the pages of a finished or interrupted run anew.

    Nothing is computed again: pages and model cards are drawn from the numbers that the folder holds, those of each
    seed, point of a sweep or method too. What a run has not written yet is left out with a line that says why.

    \b
    Examples:
      accord report runs/demo
      accord report runs/kls
    """
    with talking(json, verbose) as talk:
        pages = accord.redraw(folder)
        told = "\n".join(path_text(page) for page in pages)
        talk.result({"pages": pages}, text=told, next_step=f"open {path_text(pages[-1])}")


def named(flag: str, given: Sequence[str], unnamed: Callable[[str], str] | None = None) -> dict[str, str]:
    """What was given as NAME=WHAT, by name; ``unnamed`` finds a name for a bare WHAT.

    Raises UsageError for one without a name where nothing finds it, and for a name given twice.
    """
    found: dict[str, str] = {}
    for text in given:
        match = _NAMED.fullmatch(text)
        if match is None and unnamed is None:
            raise UsageError(f"{text!r} has no name", where=flag, hint=f"write it like {flag} NAME={text}")
        name, what = match.groups() if match else (unnamed(text) if unnamed else "", text)
        if name in found:
            raise UsageError(f"two are called {name!r}", where=flag, hint=f"name each: {flag} NAME={text}")
        found[name] = what
    return found


def folder_title(folder: str) -> str:
    """The name of a policy that is given as a folder alone."""
    from accord.evals.contestants import policy_name

    return policy_name(Path(folder))


def judge_of(what: str) -> ScorerConfig:
    """A judge by what it is: a function of the user's own, a URL, or the folder of a reward model."""
    kind = "function" if is_outside(what) else "http" if what.startswith(("http://", "https://")) else "model"
    return ScorerConfig.model_validate({kind: what})
