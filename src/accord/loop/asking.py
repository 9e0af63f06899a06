"""Who says which samples are better: people at the desk, the task's own annotators, a scorer, a function, or nobody."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from accord.config import LabelConfig, ScorerConfig
from accord.errors import DataError, UsageError
from accord.extend import blaming, is_outside, outside
from accord.files import write_text
from accord.formats.jsonl import write_jsonl
from accord.loop.cache import Inputs, Stage
from accord.loop.stages import Home, source_of
from accord.loop.task import Annotators, Asked
from accord.models.placement import Placement
from accord.people.desk import Desk
from accord.people.intake import queue_groups
from accord.progress import Log
from accord.records import Completion, Prompt, Source
from accord.scoring.weighted import load_scorer, scorer_inputs
from accord.store import Store

JUDGEMENTS, SAMPLES = "judgements.jsonl", "samples.jsonl"


def ask_stage(home: Home, samples: Path, policy: str) -> Stage | None:
    """Let those that ``ask.who`` names rank the samples; None where nobody is asked."""
    config, task = home.recipe.ask, home.task
    if config.who == "nobody":
        return None
    one = annotators_of(home)
    source, store, seed = source_of(home, policy), home.store, home.recipe.seed

    def work(inputs: Inputs, folder: Path, log: Log) -> Any:
        log(0.0, f"{config.who} rank samples")
        return one.answer(inputs, Asked(inputs["samples"], folder / JUDGEMENTS, source, store, config.weight, seed))

    named = {"who": config.who, "weight": config.weight, "use": home.recipe.task.use}
    settings = {**named, "task": task.settings, **one.settings}
    return home.stage("ask", settings, {"samples": samples, **one.inputs}, work)


def annotators_of(home: Home) -> Annotators:
    """The annotators that ``ask.who`` names. Raises UsageError where the task has none of that name."""
    config = home.recipe.ask
    if config.scorer is not None:
        return _scored(config.scorer, Placement.of(home.recipe.rl))
    if is_outside(config.who):
        return _outside(config.who)
    if config.who not in home.task.annotators:
        raise UsageError(
            f"ask.who is {config.who}, and the task {home.recipe.task.use} has no such annotators",
            hint="ask " + ", ".join(["nobody", "scorer", *home.task.annotators, "or module:NAME of yours"]),
        )
    return home.task.annotators[config.who]


def collect_stage(home: Home, asked: Path | None) -> Stage:
    """What the reward model learns from, ``rankings.jsonl``: the task's standing judgements, then what was asked."""
    inputs = {"standing": home.task.judgements("train"), "asked": asked}
    given = {name: path for name, path in inputs.items() if path is not None}

    def work(inputs: Inputs, folder: Path, log: Log) -> Any:
        parts = [path.read_text(encoding="utf-8") for path in inputs.values()]
        write_text(folder / "rankings.jsonl", "".join(parts))
        return {name: text.count("\n") for name, text in zip(inputs, parts, strict=True)}

    return home.stage("rankings", {}, given, work)


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
    """Samples wait for people as rankings; whoever starts `accord label` there is shown them."""
    policy = home.recipe.optimise
    source, store, guideline = source_of(home, policy), home.store, home.task.guideline

    def work(inputs: Inputs, folder: Path, log: Log) -> Any:
        log(0.0, "samples for people to rank")
        return {"queued": queue_samples(read_samples(inputs["samples"]), source, store=store, guideline=guideline)}

    return home.stage("queue", {"policy": policy, "store": store}, {"samples": samples}, work)


def queue_samples(groups: Sequence[Mapping[str, Any]], source: Source, *, store: str, guideline: str = "") -> int:
    """Queue groups of a policy's samples as rankings for people, and return how many were new.

    See `accord.people.intake.queue_groups`. Where there are no guidelines yet, people get those given.
    """
    with Store.open(store) as facts:
        desk = Desk(facts, LabelConfig())
        if guideline and desk.directory.guideline().rev == 0:
            desk.directory.write_guideline(guideline, None)
        return queue_groups(desk, as_facts(groups, source), serve_as="ranking", origin=source.name)


def as_facts(groups: Iterable[Mapping[str, Any]], source: Source) -> Iterator[tuple[Prompt, tuple[Completion, ...]]]:
    """Groups of samples as facts: each prompt with its completions."""
    for group in groups:
        prompt = prompt_fact(group["prompt"], group["topic"])
        texts = group["completions"]
        yield prompt, tuple(Completion(prompt_id=prompt.id, text=text, source=source) for text in texts)


def prompt_fact(asked: Any, topic: str) -> Prompt:
    """A prompt of text or messages as a fact."""
    return Prompt(text=asked, topic=topic) if isinstance(asked, str) else Prompt.of_messages(asked, topic=topic)


def read_samples(path: Path) -> list[dict[str, Any]]:
    """The groups that a sample stage wrote."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
