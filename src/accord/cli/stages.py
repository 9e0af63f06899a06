"""Single stages on a user's own files: each command turns argv into a config and calls one public function."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import accord
from accord.cli.options import (
    FromRecipe,
    Json,
    Model,
    OutputDir,
    OutputFile,
    Overrides,
    Resume,
    ScorerModel,
    Seed,
    Sweep,
    ValidData,
    Verbose,
    data_file,
    stage_recipe,
)
from accord.cli.sweeping import stage_or_sweep
from accord.cli.talk import path_text, talking


def pretrain(
    texts: Annotated[
        Path, typer.Option(parser=data_file, metavar="FILE", help='JSONL of {"text"} rows to learn from.')
    ],
    valid_texts: Annotated[
        Path, typer.Option(parser=data_file, metavar="FILE", help='JSONL of {"text"} rows to be tested on.')
    ],
    output_dir: OutputDir,
    tokenizer: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder with tokenizer.json and its config; one is trained without it."),
    ] = None,
    overrides: Overrides = None,
    recipe: FromRecipe = None,
    seed: Seed = 0,
    resume: Resume = True,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Train a small model from scratch on plain texts.

    \b
    Examples:
      accord pretrain --texts texts.jsonl --valid-texts valid.jsonl -o base
      accord pretrain --texts t.jsonl --valid-texts v.jsonl --tokenizer tok -o base model.width=128 pretrain.epochs=2
    """
    with talking(json, verbose) as talk:
        sections = ("pretrain", "model") if tokenizer else ("pretrain", "model", "tokenizer")
        config = stage_recipe(recipe, overrides, sections)
        if tokenizer is None:
            tokenizer = accord.tokenizer(config.tokenizer, texts=texts, output_dir=output_dir / "tokenizer").tokenizer
        made = accord.pretrain(
            config.pretrain,
            config.model,
            texts=texts,
            valid_texts=valid_texts,
            tokenizer=tokenizer,
            output_dir=output_dir,
            seed=seed,
            resume=resume,
            log=talk.log,
        )
        talk.result(made, next_step=f"accord sft --model {path_text(output_dir / 'model')} --data FILE.jsonl -o sft")


def sft(
    model: Model,
    data: Annotated[
        Path,
        typer.Option(parser=data_file, metavar="FILE", help='JSONL of {"prompt", "completion"} or {"messages"} rows.'),
    ],
    output_dir: OutputDir,
    valid_data: ValidData = None,
    overrides: Overrides = None,
    recipe: FromRecipe = None,
    sweep: Sweep = None,
    seed: Seed = 0,
    resume: Resume = True,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Fine-tune a model on demonstrations.

    The loss counts the completion and its end token only; of conversations, the assistant's turns.

    \b
    Examples:
      accord sft --model base/model --data demonstrations.jsonl -o sft
      accord sft --model SmolLM2-135M --data demos.jsonl -o sft sft.epochs=1 sft.optim.lr=5e-5
      accord sft --model base/model --data demos.jsonl -o lrs --sweep sft.optim.lr=1e-4,5e-4
    """
    with talking(json, verbose) as talk:
        stage_or_sweep(
            talk,
            "sft",
            inputs={"model": model, "data": data, "valid_data": valid_data},
            output_dir=output_dir,
            recipe=recipe,
            overrides=overrides,
            sweep=sweep,
            seed=seed,
            resume=resume,
            next_step=f"accord reward --model {path_text(output_dir / 'model')} --data FILE.jsonl -o reward",
        )


def reward(
    model: Model,
    data: Annotated[
        Path,
        typer.Option(
            parser=data_file,
            metavar="FILE",
            help='JSONL of {"prompt", "completions", "ranks"} rows (1 = best, equal = tie) '
            'or {"prompt", "chosen", "rejected"}; {"prompt", "completion", "label"} for reward.loss=binary, '
            '"rating" for regression.',
        ),
    ],
    output_dir: OutputDir,
    valid_data: ValidData = None,
    overrides: Overrides = None,
    recipe: FromRecipe = None,
    sweep: Sweep = None,
    seed: Seed = 0,
    resume: Resume = True,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Learn a reward model from rankings, labels or ratings.

    All pairs of one ranking share a batch element, so a long ranking weighs no more than a short one.

    \b
    Examples:
      accord reward --model sft/model --data prefs.jsonl -o reward
      accord reward --model sft/model --data prefs.jsonl -o reward reward.heads=4 reward.optim.lr=1e-5
      accord reward --model sft/model --data thumbs.jsonl -o reward reward.loss=binary
    """
    with talking(json, verbose) as talk:
        scorer = path_text(output_dir / "model")
        stage_or_sweep(
            talk,
            "reward",
            inputs={"model": model, "data": data, "valid_data": valid_data},
            output_dir=output_dir,
            recipe=recipe,
            overrides=overrides,
            sweep=sweep,
            seed=seed,
            resume=resume,
            next_step=f"accord rl --model DIR --reward-model {scorer} --data FILE.jsonl -o ppo",
        )


def rl(
    model: Model,
    data: Annotated[
        Path, typer.Option(parser=data_file, metavar="FILE", help='JSONL of {"prompt"} rows; "weight" may be added.')
    ],
    output_dir: OutputDir,
    reward_model: ScorerModel = None,
    ptx_data: Annotated[
        Path | None,
        typer.Option(
            parser=data_file, metavar="FILE", help='JSONL of {"text"} rows not to be forgotten; wants rl.ptx.coef.'
        ),
    ] = None,
    overrides: Overrides = None,
    recipe: FromRecipe = None,
    sweep: Sweep = None,
    seed: Seed = 0,
    resume: Resume = True,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Optimise a policy against a reward model, rewards of your own, or both.

    Drifting from the model it started as costs reward: rl.kl_coef a nat. rl.algorithm says how: ppo, rloo, grpo and
    others, or module:name of your own.

    \b
    Examples:
      accord rl --model sft/model --reward-model reward/model --data prompts.jsonl -o ppo
      accord rl --model sft/model --reward-model reward/model --data prompts.jsonl -o rloo rl.algorithm=rloo
      accord rl --model sft/model --reward-model reward/model --data prompts.jsonl -o kls --sweep rl.kl_coef=.01,.05,.2
      accord rl --model sft/model --data prompts.jsonl -o ppo 'rl.rewards=[{function: "mine:score"}]'
    """
    with talking(json, verbose) as talk:
        stage_or_sweep(
            talk,
            "rl",
            inputs={"model": model, "reward_model": reward_model, "data": data, "ptx_data": ptx_data},
            output_dir=output_dir,
            recipe=recipe,
            overrides=overrides,
            sweep=sweep,
            seed=seed,
            resume=resume,
            next_step=f"accord sample --model {path_text(output_dir / 'model')} --data FILE.jsonl -o samples.jsonl",
        )


def dpo(
    model: Model,
    data: Annotated[
        Path,
        typer.Option(
            parser=data_file,
            metavar="FILE",
            help="JSONL of rankings or pairs, as for `accord reward`; with dpo.loss=kto also of "
            '{"prompt", "completion", "label"} rows (true = good); with dpo.online=true of {"prompt"} rows.',
        ),
    ],
    output_dir: OutputDir,
    reward_model: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="What `accord reward` wrote: it ranks completions where dpo.online=true."),
    ] = None,
    valid_data: ValidData = None,
    overrides: Overrides = None,
    recipe: FromRecipe = None,
    sweep: Sweep = None,
    seed: Seed = 0,
    resume: Resume = True,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Improve a model on judgements directly, without a reward model.

    The loss is a row of a table: dpo, cdpo, ipo, ipo_sum, kto, simpo, orpo, or module:name of your own. Online, a
    reward model or dpo.rewards rank completions that the model draws on the way.

    \b
    Examples:
      accord dpo --model sft/model --data rankings.jsonl -o dpo
      accord dpo --model sft/model --data thumbs.jsonl -o kto dpo.loss=kto
      accord dpo --model sft/model --reward-model reward/model --data prompts.jsonl -o online dpo.online=true
    """
    with talking(json, verbose) as talk:
        stage_or_sweep(
            talk,
            "dpo",
            inputs={"model": model, "reward_model": reward_model, "data": data, "valid_data": valid_data},
            output_dir=output_dir,
            recipe=recipe,
            overrides=overrides,
            sweep=sweep,
            seed=seed,
            resume=resume,
            next_step=f"accord sample --model {path_text(output_dir / 'model')} --data FILE.jsonl -o samples.jsonl",
        )


def sample(
    model: Model,
    data: Annotated[Path, typer.Option(parser=data_file, metavar="FILE", help='JSONL of {"prompt"} rows.')],
    output: OutputFile,
    reward_model: ScorerModel = None,
    overrides: Overrides = None,
    recipe: FromRecipe = None,
    seed: Seed = 0,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Draw completions from a model.

    Each comes with the log-probability it was drawn with. With a reward model each has its score, and with
    sample.best_of=n each is the best of n.

    \b
    Examples:
      accord sample --model ppo/model --data prompts.jsonl -o samples.jsonl
      accord sample --model ppo/model --data prompts.jsonl -o samples.jsonl sample.samples_per_prompt=8
      accord sample --model sft/model --reward-model reward/model --data prompts.jsonl -o best.jsonl sample.best_of=16
    """
    with talking(json, verbose) as talk:
        config = stage_recipe(recipe, overrides, ("sample", "rl.rewards"))
        made = accord.sample(
            config.sample,
            model=model,
            data=data,
            output=output,
            reward_model=reward_model,
            rewards=config.rl.rewards,
            seed=seed,
            log=talk.log,
        )
        talk.result(made, next_step=f"accord score --model DIR --data {path_text(output)} -o scored.jsonl")


def score(
    data: Annotated[
        Path, typer.Option(parser=data_file, metavar="FILE", help='JSONL of {"prompt", "completion"} rows.')
    ],
    output: OutputFile,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model", "--reward-model", metavar="DIR", help="What `accord reward` wrote, or rl.rewards alone."
        ),
    ] = None,
    overrides: Overrides = None,
    recipe: FromRecipe = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Score completions with a reward model, rewards of your own, or both.

    The rows come back with "score" added, and with "parts" where there are several.

    \b
    Examples:
      accord score --model reward/model --data samples.jsonl -o scored.jsonl
      accord score --data samples.jsonl -o scored.jsonl 'rl.rewards=[{regex: "please", weight: 0.5}]'
    """
    with talking(json, verbose) as talk:
        rewards = stage_recipe(recipe, overrides, ("rl.rewards",)).rl.rewards
        talk.result(accord.score(reward_model=model, rewards=rewards, rows=data, output=output))
