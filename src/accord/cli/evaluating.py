"""Policies and reward models measured, each with a page; and pages written anew."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

import accord
from accord.cli.keys import HelpAll, with_keys
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

if TYPE_CHECKING:
    from accord.evals.reward_eval import RewardEvalResult

_NAMED = re.compile(r"([A-Za-z][\w.-]*)=(.+)")
# A word that stands where a model may, and names a key: keys have a section in front.
_KEY = re.compile(r"(?:eval|sample|rl)\.[a-z_.]+=.*")
_MOVED = "accord eval is three commands now: write accord eval policy A B ... --data FILE --judge NAME=WHAT"


class EvalGroup(TyperGroup):
    """The commands of ``accord eval``, which was one command once: its flags are refused with the new spelling."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0].startswith("--") and args[0] not in ("--help", "-h"):
            ctx.fail(f"{args[0]} stands in front of a command: {_MOVED}")
        return super().parse_args(ctx, args)


CACHE = ".accord/samples"
SampleCacheDir = Annotated[
    Path, typer.Option("--cache", metavar="DIR", help="Keeps samples: the same ones are not drawn a second time.")
]

app = typer.Typer(
    cls=EvalGroup, no_args_is_help=True, rich_markup_mode=None, help="Measure policies and reward models."
)


@app.command("policy", cls=with_keys("eval"))
def eval_policy(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]DIR...", help="Models to measure, without NAME called by their folders; and KEY=VALUE."
        ),
    ],
    data: Annotated[
        Path,
        typer.Option(parser=data_file, metavar="FILE", help='JSONL of {"prompt"} rows that nothing was trained on.'),
    ],
    output_dir: Annotated[Path, typer.Option("-o", "--output-dir", metavar="DIR", help="Where the page is written.")],
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="The model they are compared with, as a rule where they started; else the first of them.",
        ),
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option(
            parser=data_file, metavar="FILE", help="Plain texts: how strange they are to a model says what it forgot."
        ),
    ] = None,
    probes: Annotated[
        bool, typer.Option(help="Probe what they know, whether they give in, and what they refuse.")
    ] = True,
    cache: SampleCacheDir = Path(CACHE),
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
    """Compare models with the one they started from, or with the first of them.

    Each writes completions of the same prompts, and a judge that trained none of them says which are better. The page
    shows win rates with intervals, how far each model has moved (KL), whether its texts have grown longer or more
    alike, and the texts themselves. A reward model that the policies were optimised for is no judge of them: name it
    with --reward-model, and it stands beside the judge.

    \b
    Examples:
      accord eval policy sft/model ppo/model dpo/model --data test.jsonl --judge second=judge/model -o compared
      accord eval policy new=ppo/model --reference sft/model --data test.jsonl --judge short=mine:shorter \\
                         --reward-model reward/model -o compared eval.samples_per_prompt=8
    """
    with talking(json, verbose) as talk:
        overrides = [word for word in models if _KEY.fullmatch(word)]
        given = [word for word in models if word not in overrides]
        policies = {name: Path(folder) for name, folder in named("MODEL", given, unnamed=folder_title).items()}
        if reference is None and len(policies) > 1:
            reference = policies.pop(next(iter(policies)))
        if reference is None:
            raise UsageError("there is nothing to compare it with", hint="name two models, or --reference DIR")
        from accord.evals.folders import Beside

        config = stage_recipe(recipe, overrides, ("eval", "sample.max_new_tokens", "sample.temperature", "rl.rewards"))
        judges = {name: judge_of(what) for name, what in named("--judge", judge or ()).items()} | config.eval.judges
        made = accord.evaluate(
            config.eval.model_copy(update={"judges": judges}),
            policies=policies,
            reference=reference,
            data=data,
            output_dir=output_dir,
            reward_model=reward_model,
            rewards=config.rl.rewards,
            sampling=config.sample,
            beside=Beside(probes, texts, cache),
            seed=seed,
            log=talk.log,
        )
        talk.result(made, above=run_lines(output_dir), next_step=f"open {path_text(made.report)}")


@app.command("reward")
def eval_reward(
    model: Annotated[
        list[str],
        typer.Option(
            metavar="WHAT",
            help="A reward model's folder, module:function or a URL; several folders are measured as one ensemble.",
        ),
    ],
    data: Annotated[
        list[Path],
        typer.Option(parser=data_file, metavar="FILE", help="Rankings or pairs it did not learn from; once for each."),
    ],
    output_dir: Annotated[
        Path, typer.Option("-o", "--output-dir", metavar="DIR", help="Where the page is written.")
    ] = Path("eval-reward"),
    learnt: Annotated[
        Path | None,
        typer.Option(
            parser=data_file, metavar="FILE", help="What it learnt from, where `accord reward` has not written that."
        ),
    ] = None,
    start: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The model it started from, where that is not written either.")
    ] = None,
    samples: Annotated[
        Path | None,
        typer.Option(parser=data_file, metavar="FILE", help="Completions of the policy that is to be optimised."),
    ] = None,
    beside: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=WHAT", help="Another scorer on the same pairs: a folder, module:function or a URL."),
    ] = None,
    overrides: Overrides = None,
    seed: Seed = 0,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Measure a reward model on held-out judgements: may a policy be optimised against it?

    Its accuracy stands beside those of whoever prefers the longer text, of chance, of Bradley-Terry on TF-IDF taught
    by the same judgements, and of the trunk before training; beside people's own agreement; and by source, clearness,
    length, topic and annotator. Texts that say nothing are scored too. The verdict is refuse, warn or pass.

    \b
    Examples:
      accord eval reward --model reward/model --data held_out.jsonl
      accord eval reward --model reward/model --data rewardbench.jsonl --samples samples.jsonl -o checked
      accord eval reward --model mine:score --data llmbar.json --beside reward=reward/model
    """
    with talking(json, verbose) as talk:
        from accord.evals.reward_eval import RewardSources

        others = {name: judge_of(what) for name, what in named("--beside", beside or ()).items()}
        made = accord.evaluate_reward(
            stage_recipe(None, overrides, ("eval.gate_overrule",)).eval,
            model=scorer_of(model),
            data=data,
            output_dir=output_dir,
            sources=RewardSources(learnt, start, samples, others),
            seed=seed,
            log=talk.log,
        )
        above = [made.sentence, *made.findings]
        talk.result(made, above=above, text=reward_lines(made), next_step=f"open {path_text(made.report)}")


@app.command(
    "goodhart", cls=with_keys("eval", first=("eval.curve_samples", "eval.samples_per_prompt", "eval.bootstrap"))
)
def eval_goodhart(
    model: Annotated[Path, typer.Option(metavar="DIR", help="The policy that optimisation starts from.")],
    proxy: Annotated[
        list[str],
        typer.Option(
            metavar="[NAME=]WHAT", help="What is optimised: a reward model's folder, module:function or a URL; several."
        ),
    ],
    gold: Annotated[
        str, typer.Option(metavar="WHAT", help="What is truly wanted: a larger reward model that is not optimised.")
    ],
    data: Annotated[Path, typer.Option(parser=data_file, metavar="FILE", help="Prompts that nothing was trained on.")],
    output_dir: Annotated[
        Path, typer.Option("-o", "--output-dir", metavar="DIR", help="Where the page is written.")
    ] = Path("eval-goodhart"),
    snapshots: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Policies along one training by the first proxy: a stage's or run's folder."),
    ] = None,
    cache: SampleCacheDir = Path(CACHE),
    overrides: Overrides = None,
    seed: Seed = 0,
    help_all: HelpAll = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Show what happens to what is truly wanted while a proxy of it is optimised.

    The proxy picks the best of n samples, n = 2, 4, 8 ... (unbiased at each n, with its exact bound of KL); with
    --snapshots policies along a training stand beside it. Gao's laws are fitted, and say with intervals where gold
    peaks, or that it does not. Proxies of other sizes, of more or fewer judgements or of flipped ones are compared on
    the same samples.

    \b
    Examples:
      accord eval goodhart --model sft/model --proxy reward/model --gold judge/model --data test.jsonl
      accord eval goodhart --model sft/model --proxy small=r1/model --proxy flipped=r2/model --gold judge/model \\
                           --data test.jsonl --snapshots ppo eval.curve_samples=64
    """
    with talking(json, verbose) as talk:
        from accord.evals.goodhart import GoodhartInputs, checkpoints_in

        config = stage_recipe(None, overrides, ("eval", "sample.max_new_tokens", "sample.temperature"))
        proxies = {name: judge_of(what) for name, what in named("--proxy", proxy, unnamed=folder_title).items()}
        checkpoints = {} if snapshots is None else checkpoints_in(snapshots)
        made = accord.goodhart(
            config.eval,
            GoodhartInputs(model, data, proxies, judge_of(gold), checkpoints),
            output_dir=output_dir,
            sampling=config.sample,
            cache=cache,
            seed=seed,
            log=talk.log,
        )
        talk.result(made, above=[sentence_of_curves(output_dir)], next_step=f"open {path_text(made.report)}")


def sentence_of_curves(folder: Path) -> str:
    """Return the sentence of a page of over-optimisation."""
    from accord.files import read_json
    from accord.report.goodhart_page import goodhart_sentence
    from accord.report.run_folder import CURVES_FILE

    return goodhart_sentence(read_json(folder / CURVES_FILE)["curves"])


def scorer_of(given: Sequence[str]) -> ScorerConfig:
    """Return what gives the scores: one thing, or several folders as an ensemble."""
    if len(given) == 1:
        return judge_of(given[0])
    if any(judge_of(what).kind != "model" for what in given):
        raise UsageError("an ensemble is of reward models' folders", where="--model", hint="measure others one by one")
    return ScorerConfig(ensemble=tuple(given))


def reward_lines(made: RewardEvalResult) -> str:
    """Return the accuracies as a reader at the shell wants them."""
    rows = {"model": made.accuracy, **made.baselines}
    told = [f"{name}: {row['value']:.3f} [{_bound(row['low'])}, {_bound(row['high'])}]" for name, row in rows.items()]
    return "\n".join([*told, *(f"left out: {name}: {why}" for name, why in made.left_out.items())])


def _bound(value: float | None) -> str:
    return "?" if value is None else f"{value:.3f}"


def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="What a run, comparison, sweep or eval wrote.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="The page over several; by default side_by_side.html here."
        ),
    ] = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Write the pages of a finished or interrupted run anew, or one page over several runs.

    Nothing is computed again: pages and model cards are drawn from the numbers that the folder holds, those of each
    seed, point of a sweep or method too. What a run has not written yet is left out with a line that says why.
    Several folders are set side by side, whatever their algorithms, tasks and judges are.

    \b
    Examples:
      accord report runs/demo
      accord report runs/kls
      accord report runs/ppo runs/grpo runs/dpo
    """
    with talking(json, verbose) as talk:
        if len(folders) == 1 and output is not None:
            raise UsageError("the pages of one run lie in its folder", where="-o", hint="name several runs, or no -o")
        several = len(folders) > 1
        pages = (
            [accord.side_by_side(folders, output or Path("side_by_side.html"))]
            if several
            else accord.redraw(folders[0])
        )
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
