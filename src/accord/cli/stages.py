"""Single stages on a user's own files: a table of commands, each of which calls one public function.

A row says what a command reads and where its settings stand; flags, help and the call follow from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any

import typer

import accord
from accord.cli.keys import HelpAll
from accord.cli.once import called, carry_out
from accord.cli.options import (
    FromRecipe,
    Json,
    Model,
    OutputDir,
    OutputFile,
    Overrides,
    Overwrite,
    Resume,
    ScorerModel,
    Seed,
    Sweep,
    Track,
    ValidData,
    Verbose,
    data_file,
    stage_recipe,
    trackers_named,
)
from accord.cli.sampled import fitted_for_people, next_after_samples, samples_text
from accord.cli.sweeping import stage_or_sweep
from accord.cli.taken import fill_in
from accord.cli.talk import Talk, path_text, talking
from accord.report.trackers import tracked


@dataclass(frozen=True)
class StageCommand:
    """A command that carries out one stage.

    Attributes:
        name: Of the command, of the public function of `accord`, and of the section of the recipe.
        text: What --help says.
        work: What the command does with its arguments.
        inputs: Required files and folders: the parameter's name -> its type with its help.
        optional: The same for those that may be left out.
        output: Where the result goes: the parameter's name and its type.
        sections: Sections of the recipe whose keys --help lists.
        options: Other parameters, with their defaults, in the order of --help.
        next_step: What to run then; ``{model}`` and ``{output}`` are filled in.
    """

    name: str
    text: str
    work: Callable[[Talk, StageCommand, dict[str, Any]], None]
    inputs: Mapping[str, Any]
    optional: Mapping[str, Any] = field(default_factory=dict)
    output: tuple[str, Any] = ("output_dir", OutputDir)
    sections: tuple[str, ...] = ()
    options: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    next_step: str = ""

    def paths(self, given: Mapping[str, Any]) -> dict[str, Path | None]:
        """Return the files and folders that the command reads, by the public function's own names."""
        return {name: given[name] for name in (*self.inputs, *self.optional)}

    def in_project(self) -> StageCommand:
        """Return the same, whose next step names no files: the project around it gives them."""
        return replace(self, next_step=_NEXT_IN_PROJECT.get(self.name, self.next_step))

    def next_after(self, output: Path) -> str:
        """Return what to run after this command has written ``output``."""
        return self.next_step.format(model=path_text(output / "model"), output=path_text(output))


_NEXT_IN_PROJECT = {
    "sft": "accord reward",
    "reward": "accord rl",
    "rl": "accord sample --model {model}",
    "dpo": "accord sample --model {model}",
}
_RECIPE: dict[str, tuple[Any, Any]] = {"overrides": (Overrides, None), "recipe": (FromRecipe, None)}
_SEED: dict[str, tuple[Any, Any]] = {"seed": (Seed, 0)}
_AGAIN: dict[str, tuple[Any, Any]] = {
    "resume": (Resume, True),
    "overwrite": (Overwrite, False),
    "track": (Track, None),
}
_ONCE: dict[str, tuple[Any, Any]] = {**_RECIPE, **_SEED, **_AGAIN}
_SWEEPING: dict[str, tuple[Any, Any]] = {**_RECIPE, "sweep": (Sweep, None), **_SEED, **_AGAIN}
_TALK: dict[str, tuple[Any, Any]] = {"json": (Json, False), "verbose": (Verbose, False)}


def file(text: str) -> Any:
    """Return the type of an option that names a file of data (PATH or FORMAT:PATH), with its help."""
    return Annotated[Path, typer.Option(parser=data_file, metavar="FILE", help=text)]


def file_or_none(text: str) -> Any:
    """Return the type of such an option that may be left out."""
    return Annotated[Path | None, typer.Option(parser=data_file, metavar="FILE", help=text)]


def folder_or_none(text: str, *flags: str) -> Any:
    """Return the type of an option that names a folder and may be left out."""
    return Annotated[Path | None, typer.Option(*flags, metavar="DIR", help=text)]


def command_of(stage: StageCommand) -> Callable[..., None]:
    """Return the function of a command as Typer reads it: its signature and its help come from the row."""

    def command(**given: Any) -> None:
        with talking(given.pop("json"), given.pop("verbose")) as talk:
            given.pop("help_all", None)
            wanted = (*stage.inputs, stage.output[0])
            here = stage if all(given[name] is not None for name in wanted) else stage.in_project()
            named = trackers_named(given.pop("track", None))
            filled = fill_in(talk, stage.name, given, wanted)
            with tracked(filled[stage.output[0]], named, talk.log):
                stage.work(talk, here, filled)

    # Not required, for a project may give them: what is missing is asked for then.
    wanted = {**stage.inputs, stage.output[0]: stage.output[1], **stage.optional}
    optional = {name: (kind, None) for name, kind in wanted.items()} | {**stage.options, **_TALK}
    optional |= {"help_all": (HelpAll, False)} if stage.sections else {}
    kind = Parameter.KEYWORD_ONLY
    signature = [Parameter(name, kind, annotation=a, default=default) for name, (a, default) in optional.items()]
    command.__name__ = command.__qualname__ = stage.name
    command.__doc__ = stage.text if stage.name == "pretrain" else _of_project(stage.text)
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in signature}
    setattr(command, "__signature__", Signature(signature))  # noqa: B010 - no attribute of functions, says mypy
    return command


def _of_project(text: str) -> str:
    """Return a command's help with what holds in a project, before the examples."""
    head, examples = text.split("\b\n", 1)
    return f"{head}In a project --model, --data and -o may be left out: it says what it takes.\n\n\b\n{examples}"


# -- what commands do --------------------------------------------------------------------------------------------------


def _stage(talk: Talk, stage: StageCommand, given: dict[str, Any]) -> None:
    paths = stage.paths(given)
    rest = {name: value for name, value in given.items() if name not in paths}
    stage_or_sweep(talk, stage.name, inputs=paths, next_step=stage.next_after(given["output_dir"]), **rest)


def _pretrain(talk: Talk, stage: StageCommand, given: dict[str, Any]) -> None:
    tokenizer, output_dir = given["tokenizer"], given["output_dir"]
    sections = ("pretrain", "model") if tokenizer else stage.sections
    config = stage_recipe(given["recipe"], given["overrides"], sections)

    def trained_tokenizer() -> Path:
        made = accord.tokenizer(config.tokenizer, texts=given["texts"], output_dir=output_dir / "tokenizer")
        found: Path = made.tokenizer
        return found

    def work() -> Any:
        return accord.pretrain(
            config.pretrain,
            config.model,
            **stage.paths(given) | {"tokenizer": tokenizer or trained_tokenizer()},
            output_dir=output_dir,
            seed=given["seed"],
            resume=given["resume"],
            log=talk.log,
        )

    call = called(
        "pretrain", config.model_copy(update={"seed": given["seed"]}), stage.paths(given), output_dir, *sections
    )
    again = {"overwrite": given["overwrite"], "resume": given["resume"]}
    carry_out(talk, call, work, next_step=stage.next_after(output_dir), **again)


def _sample(talk: Talk, stage: StageCommand, given: dict[str, Any]) -> None:
    recipe = stage_recipe(given["recipe"], given["overrides"], ("sample", "rl.rewards"))
    recipe, fitted = fitted_for_people(recipe, given["model"])
    for line in fitted:
        talk.log.note(line)
    result = accord.sample(
        recipe.sample,
        **stage.paths(given),
        output=given["output"],
        rewards=recipe.rl.rewards,
        seed=given["seed"],
        resume=given["resume"],
        log=talk.log,
    )
    steps = next_after_samples(result.output, scored=result.mean_score is not None)
    talk.result(result, text=samples_text(result, recipe.sample.max_new_tokens), next_step=steps)


def _score(talk: Talk, stage: StageCommand, given: dict[str, Any]) -> None:
    rewards = stage_recipe(given["recipe"], given["overrides"], ("rl.rewards",)).rl.rewards
    made = accord.score(reward_model=given["model"], rewards=rewards, rows=given["data"], output=given["output"])
    talk.result(made)


# -- the table ---------------------------------------------------------------------------------------------------------

_SAMPLE_NEXT = "accord sample --model {model} --data FILE.jsonl -o samples.jsonl"

STAGES = [
    StageCommand(
        "pretrain",
        """Train a small model from scratch on plain texts.

\b
Examples:
  accord pretrain --texts texts.jsonl --valid-texts valid.jsonl -o base
  accord pretrain --texts t.jsonl --valid-texts v.jsonl --tokenizer tok -o base model.width=128 pretrain.epochs=2
""",
        _pretrain,
        {
            "texts": file('JSONL of {"text"} rows to learn from.'),
            "valid_texts": file('JSONL of {"text"} rows to be tested on.'),
        },
        {"tokenizer": folder_or_none("Folder with tokenizer.json and its config; one is trained without it.")},
        sections=("pretrain", "model", "tokenizer"),
        options=_ONCE,
        next_step="accord sft --model {model} --data FILE.jsonl -o sft",
    ),
    StageCommand(
        "sft",
        """Fine-tune a model on demonstrations.

The loss counts the completion and its end token only; of conversations, the assistant's turns.

\b
Examples:
  accord sft --model base/model --data demonstrations.jsonl -o sft
  accord sft --model SmolLM2-135M --data demos.jsonl -o sft sft.epochs=1 sft.optim.lr=5e-5
  accord sft --model base/model --data demos.jsonl -o lrs --sweep sft.optim.lr=1e-4,5e-4
""",
        _stage,
        {"model": Model, "data": file('JSONL of {"prompt", "completion"} or {"messages"} rows.')},
        {"valid_data": ValidData},
        sections=("sft",),
        options=_SWEEPING,
        next_step="accord reward --model {model} --data FILE.jsonl -o reward",
    ),
    StageCommand(
        "sample",
        """Draw completions from a model.

Each comes with the log-probability it was drawn with. With a reward model each has its score, and with
sample.best_of=n each is the best of n.

\b
Examples:
  accord sample --model ppo/model --data prompts.jsonl -o samples.jsonl
  accord sample --model ppo/model --data prompts.jsonl -o samples.jsonl sample.samples_per_prompt=8
  accord sample --model sft/model --reward-model reward/model --data prompts.jsonl -o best.jsonl sample.best_of=16
""",
        _sample,
        {"model": Model, "data": file('JSONL of {"prompt"} rows.')},
        {"reward_model": ScorerModel},
        output=("output", OutputFile),
        sections=("sample",),
        options={**_RECIPE, **_SEED, "resume": (Resume, True)},
    ),
    StageCommand(
        "score",
        """Score completions with a reward model, rewards of your own, or both.

The rows come back with "score" added, and with "parts" where there are several.

\b
Examples:
  accord score --model reward/model --data samples.jsonl -o scored.jsonl
  accord score --data samples.jsonl -o scored.jsonl 'rl.rewards=[{regex: "please", weight: 0.5}]'
""",
        _score,
        {"data": file('JSONL of {"prompt", "completion"} rows.')},
        {"model": folder_or_none("What `accord reward` wrote, or rl.rewards alone.", "--model", "--reward-model")},
        output=("output", OutputFile),
        options=_RECIPE,
    ),
    StageCommand(
        "reward",
        """Learn a reward model from rankings, labels or ratings.

All pairs of one ranking share a batch element, so a long ranking weighs no more than a short one.

\b
Examples:
  accord reward --model sft/model --data prefs.jsonl -o reward
  accord reward --model sft/model --data prefs.jsonl -o reward reward.heads=4 reward.optim.lr=1e-5
  accord reward --model sft/model --data thumbs.jsonl -o reward reward.loss=binary
""",
        _stage,
        {
            "model": Model,
            "data": file(
                'JSONL of {"prompt", "completions", "ranks"} rows (1 = best, equal = tie) '
                'or {"prompt", "chosen", "rejected"}; {"prompt", "completion", "label"} for reward.loss=binary, '
                '"rating" for regression.'
            ),
        },
        {"valid_data": ValidData},
        sections=("reward",),
        options=_SWEEPING,
        next_step="accord rl --model DIR --reward-model {model} --data FILE.jsonl -o ppo",
    ),
    StageCommand(
        "rl",
        """Optimise a policy against a reward model, rewards of your own, or both.

Drifting from the model it started as costs reward: rl.kl_coef a nat. rl.algorithm says how: ppo, rloo, grpo and
others, or module:name of your own.

\b
Examples:
  accord rl --model sft/model --reward-model reward/model --data prompts.jsonl -o ppo
  accord rl --model sft/model --reward-model reward/model --data prompts.jsonl -o rloo rl.algorithm=rloo
  accord rl --model sft/model --reward-model reward/model --data prompts.jsonl -o kls --sweep rl.kl_coef=.01,.05,.2
  accord rl --model sft/model --data prompts.jsonl -o ppo 'rl.rewards=[{function: "mine:score"}]'
""",
        _stage,
        {"model": Model, "data": file('JSONL of {"prompt"} rows; "weight" may be added.')},
        {
            "reward_model": ScorerModel,
            "ptx_data": file_or_none('JSONL of {"text"} rows not to be forgotten; wants rl.ptx.coef.'),
            "reference": folder_or_none("Pay KL to this model, not to the one it starts from.", "--reference"),
            "second_reference": folder_or_none("Pay half of the KL's price to this model.", "--second-reference"),
        },
        sections=("rl",),
        options=_SWEEPING,
        next_step=_SAMPLE_NEXT,
    ),
    StageCommand(
        "dpo",
        """Improve a model on judgements directly, without a reward model.

The loss is a row of a table: dpo, cdpo, ipo, ipo_sum, kto, simpo, orpo, or module:name of your own. Online, a
reward model or dpo.rewards rank completions that the model draws on the way.

\b
Examples:
  accord dpo --model sft/model --data rankings.jsonl -o dpo
  accord dpo --model sft/model --data thumbs.jsonl -o kto dpo.loss=kto
  accord dpo --model sft/model --reward-model reward/model --data prompts.jsonl -o online dpo.online=true
""",
        _stage,
        {
            "model": Model,
            "data": file(
                "JSONL of rankings or pairs, as for `accord reward`; with dpo.loss=kto also of "
                '{"prompt", "completion", "label"} rows (true = good); with dpo.online=true of {"prompt"} rows.'
            ),
        },
        {
            "reward_model": folder_or_none(
                "What `accord reward` wrote: it ranks completions where dpo.online=true.", "--reward-model"
            ),
            "valid_data": ValidData,
        },
        sections=("dpo",),
        options=_SWEEPING,
        next_step=_SAMPLE_NEXT,
    ),
]
