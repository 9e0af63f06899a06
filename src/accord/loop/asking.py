"""Who says which samples are better: people at the desk, the task's own annotators, a scorer, a function, or nobody."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accord.config import Recipe
from accord.errors import UsageError
from accord.extend import is_outside, outside
from accord.files import write_text
from accord.formats.jsonl import write_jsonl
from accord.loop.ai_feedback import function_annotators, scorer_annotators
from accord.loop.cache import Inputs, Stage, given_inputs
from accord.loop.kept import KEPT, keeps_share, kept_for_judge
from accord.loop.panel import simulated_annotators
from accord.loop.samples import queue_samples, read_samples
from accord.loop.stages import Home, source_of
from accord.loop.task import Annotators, Asked, Task
from accord.loop.waiting import ASKED, people_at_the_desk
from accord.models.placement import Placement
from accord.people.simulation.readers import one_reader, reader_panel
from accord.progress import Log
from accord.train.reward import reward_loss

JUDGEMENTS = "judgements.jsonl"
#: What a file must hold for what a reward loss reads.
READS = {"pairs": "ranking", "orders": "ranking", "labels": "label", "ratings": "rating"}


def reads_of(recipe: Recipe) -> str:
    """The kind of judgement that the recipe's reward model learns from."""
    return READS[reward_loss(recipe.reward).reads]


def sources_asked(recipe: Recipe) -> frozenset[str]:
    """The sources whose samples the recipe asks anybody about: whatever may be the champion (`accord.loop.round`)."""
    policies = ("base", "sft", *(f"round_{number}" for number in range(1, recipe.rounds + 1)))
    asks = recipe.ask.who != "nobody" or recipe.eval.people.prompts
    return frozenset(f"{recipe.name}/{policy}" for policy in policies if asks)


def ask_stage(home: Home, samples: Path, champion: str) -> Stage | None:
    """Let those that ``ask.who`` names rank the champion's samples; None where nobody is asked."""
    config, task = home.recipe.ask, home.task
    if config.who == "nobody":
        return None
    one = annotators_of(home)
    policy = "sft" if home.number == 1 else champion  # so in facts, also where nothing was fine-tuned
    source, store, seed = source_of(home, policy), home.store, home.recipe.seed  # the same annotators in every round

    def work(inputs: Inputs, folder: Path, log: Log) -> Any:
        log(0.0, f"{config.who} rank samples")
        asked = Asked(inputs["samples"], folder / JUDGEMENTS, source, store, config.weight, seed, log)
        return one.answer(inputs, asked)

    named = {"who": config.who, "weight": config.weight, "use": home.recipe.task.use}
    settings = {**named, "task": task.settings, **one.settings}
    return home.stage("ask", settings, {"samples": samples, **one.inputs}, work)


def check_annotators(recipe: Recipe, task: Task) -> None:
    """Refuse an ``ask.who`` that nobody answers to, or that cannot say what is to be learnt. Raises UsageError."""
    who = recipe.ask.who
    if is_outside(who):
        outside(who)
    if who == "nobody" and task.judgements("train") is None:
        raise UsageError(
            f"the task {recipe.task.use} has no judgements to learn from, and nobody is asked: ask.who is nobody",
            hint="give judgements (`accord import`, task.judgements=FILE), or say who is asked: ask.who=people",
        )
    if who not in ("nobody", "people", *task.annotators):
        check_programs(recipe)


def check_programs(recipe: Recipe) -> None:
    """Refuse programs in people's place that cannot say what is to be learnt, or are too few. Raises UsageError."""
    config, who, reads = recipe.ask, recipe.ask.who, reads_of(recipe)
    if reads != "ranking":
        raise UsageError(
            f"ask.who {who} brings rankings, and reward.loss {recipe.reward.loss} learns from {reads}s",
            hint="choose a reward.loss that reads rankings, or ask people",
        )
    # One who ranks alone ranks once, whatever the overlap of people is.
    if who == "panel" and config.overlap > config.annotators:
        raise UsageError(
            f"ask.overlap is {config.overlap}, and the panel (ask.annotators) has {config.annotators}",
            hint="raise ask.annotators, or lower ask.overlap",
        )


def annotators_of(home: Home) -> Annotators:
    """The annotators that ``ask.who`` names, the task's own first; `check_annotators` has found that there are some."""
    who = home.recipe.ask.who
    if is_outside(who):
        return function_annotators(who)
    return home.task.annotators[who] if who in home.task.annotators else WHO[who](home)


def _people(home: Home) -> Annotators:
    earlier = home.earlier(f"ask/{ASKED}")
    reads, last = reads_of(home.recipe), earlier[-1] if earlier else None
    return people_at_the_desk(home.recipe.ask, home.task.guideline, reads, last)


def _scorer(home: Home) -> Annotators:
    config = home.recipe.ask.scorer
    assert config is not None  # AskConfig holds it
    return scorer_annotators(config, Placement.of(home.recipe.rl))


def _one_reader(home: Home) -> Annotators:
    return simulated_annotators([one_reader(home.recipe.seed)], 1, home.recipe.seed)


def _panel(home: Home) -> Annotators:
    config, seed = home.recipe.ask, home.recipe.seed
    return simulated_annotators(reader_panel(config.annotators, seed), config.overlap, seed)


#: Who can be asked in any task, and how they are made of a run; a task may bring more, or others of these names.
WHO: Mapping[str, Callable[[Home], Annotators]] = {
    "people": _people,
    "scorer": _scorer,
    "panel": _panel,
    "simulated": _one_reader,
}


def collect_stage(home: Home, asked: Path | None) -> Stage:
    """What the reward model learns from, ``rankings.jsonl``: the task's standing judgements, then what was asked.

    Of people a round collects the answers to earlier rounds again, of others it takes what those rounds wrote. Where
    nobody else judges, a share of the prompts is kept for the judge, in `KEPT`.
    """
    share = home.recipe.task.judge_share if keeps_share(home.recipe, home.task) else 0.0
    inputs: dict[str, Path | None] = {"standing": home.task.judgements("train")}
    if asked is not None and home.recipe.ask.who != "people":
        inputs |= {f"asked_{n}": path for n, path in enumerate(home.earlier(f"ask/{JUDGEMENTS}"), 1)}
    inputs["asked"] = asked

    def work(inputs: Inputs, folder: Path, log: Log) -> Any:
        parts = [path.read_text(encoding="utf-8") for path in inputs.values()]
        counts = {name: text.count("\n") for name, text in zip(inputs, parts, strict=True)}
        if not share:
            write_text(folder / "rankings.jsonl", "".join(parts))
            return counts
        kept, rest = kept_for_judge([json.loads(line) for line in "".join(parts).split("\n") if line], share)
        write_jsonl(folder / KEPT, kept)
        write_jsonl(folder / "rankings.jsonl", rest)
        return counts | {"kept_for_judge": len(kept)}

    return home.stage("rankings", {"judge_share": share} if share else {}, given_inputs(inputs), work)


# ---- people --------------------------------------------------------------------------------------------------------


def queue_stage(home: Home, samples: Path) -> Stage:
    """Samples of the new policy wait for people; whoever starts `accord label` there is shown them."""
    policy, config = home.recipe.optimise, home.recipe.ask
    source, store, guideline = source_of(home, policy), home.store, home.task.guideline

    def work(inputs: Inputs, folder: Path, log: Log) -> Any:
        log(0.0, "samples for people to rank")
        groups = read_samples(inputs["samples"])
        return {"queued": queue_samples(groups, source, store=store, ask=config, guideline=guideline)}

    asked = {"policy": policy, "store": store, "kind": config.kind, "overlap": config.overlap}
    return home.stage("queue", asked, {"samples": samples}, work)
