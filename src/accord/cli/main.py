"""The command line: ``accord COMMAND``. Torch is loaded only inside the commands that compute."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import accord
from accord.cli import (
    backing_up,
    chatting,
    clustering,
    data,
    doctor,
    evaluating,
    feedback,
    models,
    people,
    project,
    rounds,
    runs,
    serving,
    simulating,
    stages,
    status,
)
from accord.cli.keys import FIRST_OF_A_RUN, label_keys_help, with_keys
from accord.config import Recipe
from accord.ranks import launched_ranks

HELP = """The whole loop of reinforcement learning from human feedback, on one machine.

\b
Start here:
  accord demo              the whole loop on real film reviews and human ratings
  accord run demo          the same from its recipe, with any key changed
  accord doctor            is this machine fit for it?

\b
With your own model and files, no project needed:
  accord sft     --model DIR --data demonstrations.jsonl -o sft
  accord reward  --model sft/model --data rankings.jsonl -o reward
  accord rl      --model sft/model --reward-model reward/model --data prompts.jsonl -o ppo
  accord dpo     --model sft/model --data rankings.jsonl -o dpo
  accord eval reward --model reward/model --data held_out.jsonl
  accord eval policy sft/model ppo/model --data test.jsonl --judge NAME=DIR -o compared

Exit codes: 2 usage, 3 data, 4 resources, 5 waiting for people, 6 paused by an alarm, 7 refused by
the gates of a round, 130 interrupted.
"""

app = typer.Typer(
    name="accord",
    help=HELP,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"accord {accord.__version__}")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    pass


app.command(epilog="Keys and their values here: accord run demo --show-recipe. Meanings: accord run --help-all.")(
    runs.demo
)
app.command()(project.init)
app.command(cls=with_keys(*Recipe.model_fields, first=FIRST_OF_A_RUN, recipe_word=True))(runs.run)
for stage in stages.STAGES:
    app.command(cls=with_keys(*stage.sections) if stage.sections else None)(stages.command_of(stage))
app.add_typer(evaluating.app, name="eval")
app.command()(evaluating.report)
app.command(epilog=label_keys_help())(people.label)
app.command()(simulating.simulate)
app.command()(serving.serve)
app.command()(chatting.chat)
app.command()(feedback.feedback)
app.command("round")(rounds.round_)
app.command()(rounds.rollback)
app.command()(models.models)
app.command("import")(data.import_)
app.command()(data.export)
app.add_typer(data.app, name="data")
app.add_typer(clustering.app, name="cluster")
app.command()(status.status)
app.command()(backing_up.backup)
app.command()(doctor.doctor)


#: Commands that several processes carry out together, as torchrun starts them.
TRAINING = ("pretrain", "sft", "reward", "rl", "dpo")


def refuse_several(argv: Sequence[str]) -> None:
    """Stop where torchrun started several processes of a command that each would carry out by itself."""
    rank, world = launched_ranks()
    alone = bool(argv) and argv[0] not in TRAINING
    if world > 1 and (alone or "--sweep" in argv):
        if rank == 0:
            what = "a sweep" if not alone else f"accord {argv[0]}"
            told = f"accord: {what} is for one process, and torchrun started {world}\n"
            hint = f"start it without torchrun; together train: accord {', '.join(TRAINING)}"
            sys.stderr.write(f"{told}  hint: {hint}; `accord run RECIPE scale.ranks={world}` starts these itself\n")
        raise SystemExit(2)


def main() -> None:
    """Entry point of the ``accord`` script."""
    refuse_several(sys.argv[1:])
    app(prog_name="accord")


if __name__ == "__main__":
    main()
