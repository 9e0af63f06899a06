"""Who says which samples are better: people at the desk, the task's own annotators, a scorer, a function, or nobody."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accord.config import Recipe, ScorerConfig
from accord.errors import DataError, UsageError
from accord.extend import blaming, is_outside, outside
from accord.files import write_text
from accord.formats.jsonl import write_jsonl
from accord.loop.cache import Inputs, Stage, given_inputs
from accord.loop.samples import queue_samples, read_samples
from accord.loop.stages import Home, source_of
from accord.loop.task import Annotators, Asked, Task
from accord.loop.waiting import ASKED, people_at_the_desk
from accord.models.placement import Placement
from accord.progress import Log
from accord.scoring.weighted import load_scorer, scorer_inputs
from accord.train.reward import reward_loss

JUDGEMENTS = "judgements.jsonl"
#: What a file must hold for what a reward loss reads.
READS = {"pairs": "ranking", "orders": "ranking", "labels": "label", "ratings": "rating"}


def reads_of(recipe: Recipe) -> str:
    """The kind of judgement that the recipe's reward model learns from."""
    return READS[reward_loss(recipe.reward).reads]


def sources_asked(recipe: Recipe) -> frozenset[str]:
    """The sources whose samples the recipe asks people about: whatever may be the champion (`accord.loop.round`)."""
    policies = ("base", "sft", *(f"round_{number}" for number in range(1, recipe.rounds)))
    return frozenset(f"{recipe.name}/{policy}" for policy in policies if recipe.ask.who == "people")


def ask_stage(home: Home, samples: Path, policy: str) -> Stage | None:
    """Let those that ``ask.who`` names rank the samples; None where nobody is asked."""
    config, task = home.recipe.ask, home.task
    if config.who == "nobody":
        return None
    one = annotators_of(home)
    source, store, seed = source_of(home, policy), home.store, home.recipe.seed  # the same annotators in every round

    def work(inputs: Inputs, folder: Path, log: Log) -> Any:
        log(0.0, f"{config.who} rank samples")
        return one.answer(inputs, Asked(inputs["samples"], folder / JUDGEMENTS, source, store, config.weight, seed))

    named = {"who": config.who, "weight": config.weight, "use": home.recipe.task.use}
    settings = {**named, "task": task.settings, **one.settings}
    return home.stage("ask", settings, {"samples": samples, **one.inputs}, work)


def check_annotators(recipe: Recipe, task: Task) -> None:
    """Refuse an ``ask.who`` that nobody answers to. Raises UsageError."""
    who = recipe.ask.who
    if is_outside(who):
        outside(who)
    elif who not in ("nobody", "people", "scorer", *task.annotators):
        raise UsageError(
            f"ask.who is {who}, and the task {recipe.task.use} has no such annotators",
            hint="ask " + ", ".join(["nobody", "people", "scorer", *task.annotators, "or module:NAME of yours"]),
        )
    if who == "nobody" and task.judgements("train") is None:
        raise UsageError(
            f"the task {recipe.task.use} has no judgements to learn from, and nobody is asked: ask.who is nobody",
            hint="give judgements (`accord import`, task.judgements=FILE), or say who is asked: ask.who=people",
        )


def annotators_of(home: Home) -> Annotators:
    """The annotators that ``ask.who`` names; `check_annotators` has found that there are some."""
    config = home.recipe.ask
    if config.who == "people":
        earlier = home.earlier(f"ask/{ASKED}")
        return people_at_the_desk(config, home.task.guideline, reads_of(home.recipe), earlier[-1] if earlier else None)
    if config.scorer is not None:
        return _scored(config.scorer, Placement.of(home.recipe.rl))
    if is_outside(config.who):
        return _outside(config.who)
    return home.task.annotators[config.who]


def collect_stage(home: Home, asked: Path | None) -> Stage:
    """What the reward model learns from, ``rankings.jsonl``: the task's standing judgements, then what was asked.

    Of people a round collects the answers to earlier rounds again, of others it takes what those rounds wrote.
    """
    inputs: dict[str, Path | None] = {"standing": home.task.judgements("train")}
    if asked is not None and home.recipe.ask.who != "people":
        inputs |= {f"asked_{n}": path for n, path in enumerate(home.earlier(f"ask/{JUDGEMENTS}"), 1)}
    inputs["asked"] = asked

    def work(inputs: Inputs, folder: Path, log: Log) -> Any:
        parts = [path.read_text(encoding="utf-8") for path in inputs.values()]
        write_text(folder / "rankings.jsonl", "".join(parts))
        return {name: text.count("\n") for name, text in zip(inputs, parts, strict=True)}

    return home.stage("rankings", {}, given_inputs(inputs), work)


# ---- scorers and functions -----------------------------------------------------------------------------------------


def _scored(config: ScorerConfig, placement: Placement) -> Annotators:
    """A scorer that ranks the samples: the higher score is the better rank, equal scores tie."""

    def answer(inputs: Inputs, asked: Asked) -> dict[str, Any]:
        scorer = load_scorer([config], placement=placement)

        def values(group: Mapping[str, Any]) -> list[float]:
            return scorer.score([(group["text"], text) for text in group["completions"]]).tolist()

        return _write_rankings(asked, values, f"scorer {config.label}")

    return Annotators(scorer_inputs([config]), answer, {"scorer": config.model_dump()})


def _outside(name: str) -> Annotators:
    """A user's own ``module:name(prompt, completions)``: one number a completion, higher = better."""
    judge = outside(name)

    def answer(inputs: Inputs, asked: Asked) -> dict[str, Any]:
        def values(group: Mapping[str, Any]) -> list[float]:
            with blaming(name):
                found = [float(value) for value in judge(group["prompt"], group["completions"])]
            if len(found) != len(group["completions"]):
                raise DataError(f"{name} gave {len(found)} numbers for {len(group['completions'])} completions")
            return found

        return _write_rankings(asked, values, name)

    return Annotators({}, answer, {"annotator": name})


def _write_rankings(asked: Asked, values: Callable[[Mapping[str, Any]], list[float]], origin: str) -> dict[str, Any]:
    """Rank each group of samples by its values, 1 = best; groups of fewer than two different texts say nothing."""
    rows = []
    for group in read_samples(asked.samples):
        texts = list(dict.fromkeys(group["completions"]))
        if len(texts) < 2:
            continue
        found = values({**group, "completions": texts})
        ranks = [1 + sum(other > value for other in found) for value in found]
        row = {"prompt": group["prompt"], "completions": texts, "ranks": ranks, "origin": origin}
        rows.append({**row, "topic": group["topic"], "weight": asked.weight})
    write_jsonl(asked.judgements, rows)
    return {"rankings": len(rows)}


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
