"""Which of the train prompts a round asks about: in their order, at random, or those whose samples models disagree on.

With ``ask.choose: uncertain`` the policy answers ``ask.pool`` times as many prompts as are asked about, an ensemble of
small reward models learns what has been judged so far (`accord.evals.pair_ensemble`), and those prompts are asked about
whose samples it disagrees on most. Every topic among the candidates is met, one that was met seldom before one that was
met often. Chosen so or at random, no prompt is asked about again before all others have been.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from accord.config import Recipe
from accord.errors import DataError, UsageError
from accord.evals.pair_ensemble import fit_pair_ensemble
from accord.extend import blaming, is_outside, outside
from accord.formats import Item, read_items
from accord.formats.item import prompt_key
from accord.formats.jsonl import write_jsonl
from accord.loop.asking import JUDGEMENTS, reads_of
from accord.loop.cache import Inputs, Stage, given_inputs
from accord.loop.samples import SAMPLES, read_samples
from accord.loop.stages import Home, Places, in_order, sample_stage
from accord.progress import Log
from accord.records import RankedGroup, ranks_by_value
from accord.seeds import stream_seed
from accord.stats import FloatArray
from accord.stats.disagreement import mutual_information

CONSIDERED = "choices.jsonl"  # beside the samples: every candidate with its worth, and whether it is asked about
STREAM = "ranked samples"
PromptSamples = Mapping[str, Any]


def samples_to_ask(home: Home, policy: Path, prompts: Path) -> Path:
    """The samples that this round asks about, drawn from the policy."""
    config = home.recipe.ask
    name, judged = config.choose, judged_inputs(home)
    if name == "uncertain" and not judged:
        home.runner.say("ask.choose: nothing has been judged yet, so that prompts are chosen at random")
        name = "random"
    if name in PLACES:
        home.do(sample_stage(home, "sample", policy, prompts, PLACES[name](home), STREAM))
    else:
        pool = prompts_at_random(home, config.pool)
        home.do(sample_stage(home, "candidates", policy, prompts, pool, STREAM))
        say_how(home, home.do(choose_stage(home, judged)))
    return home.path(f"sample/{SAMPLES}")


def check_choosing(recipe: Recipe) -> None:
    """Refuse an ``ask.choose`` that cannot be found, or that has nothing to compare. Raises UsageError."""
    name, shown = recipe.ask.choose, recipe.sample.samples_per_prompt
    if is_outside(name):
        outside(name)
    elif name == "uncertain" and shown < 2:
        raise UsageError(
            f"sample.samples_per_prompt is {shown}, and ask.choose uncertain compares samples of one prompt",
            hint="raise sample.samples_per_prompt, or choose at random",
        )


# ---- places in the file of prompts -----------------------------------------------------------------------------------


def prompts_in_order(home: Home) -> Places:
    """The prompts in their order, going on where the last round stopped."""
    count = home.recipe.ask.prompts
    return in_order(count, (home.number - 1) * count)


def prompts_at_random(home: Home, times: int = 1) -> Places:
    """So many times ``ask.prompts`` prompts at random: those asked about least so far, and of every topic one.

    None of them has been asked about more often than the last of ``ask.prompts`` must be.
    """
    count, seed = home.recipe.ask.prompts, stream_seed(home.seed, "chosen prompts")

    def of(inputs: Inputs) -> list[int]:
        before = (read_samples(path) for name, path in inputs.items() if name.startswith("earlier"))
        return places_at_random(read_items(inputs["prompts"]), itertools.chain(*before), count, times, seed)

    return Places(of, {"choose": "random", "count": count, "times": times}, asked_before(home))


def places_at_random(
    prompts: Iterable[Item], before: Iterable[PromptSamples], count: int, times: int, seed: int
) -> list[int]:
    """The places of prompts for `prompts_at_random`; ``before`` are the samples of earlier rounds."""
    items, known = list(prompts), list(before)
    asked_of = Counter(prompt_key(group["prompt"]) for group in known)
    asked = [asked_of[prompt_key(item.prompt)] for item in items]
    order = random.Random(seed).sample(range(len(items)), len(items))
    topics = [item.topic for item in items]
    whole = least_asked_first(order, asked, topics, Counter(group["topic"] for group in known))
    if count >= len(whole):  # all of them, and again from the first: there are no others to choose from
        return [whole[i % len(whole)] for i in range(count)]
    return [i for i in whole[: count * times] if asked[i] <= asked[whole[count - 1]]]


def least_asked_first(
    order: Sequence[int], asked: Sequence[int], topics: Sequence[str], met: Mapping[str, int]
) -> list[int]:
    """An order in which what was asked least comes first; among equals one of each topic, then the others as they were.

    Args:
        asked: How often each was asked about.
        met: How often each topic was: of those whose first stand side by side the one met least leads.
    """
    found: list[int] = []
    for level in sorted(set(asked)):
        so_far = Counter(met) + Counter(topics[i] for i in found)
        found += every_topic_first([i for i in order if asked[i] == level], topics, so_far)
    return found


def every_topic_first(order: Sequence[int], topics: Sequence[str], met: Mapping[str, int]) -> list[int]:
    """The first of each topic, of topics met least before others; then the rest of the order."""
    firsts = {topics[i]: i for i in reversed(order)}
    leading = sorted((i for i in order if firsts[topics[i]] == i), key=lambda i: met.get(topics[i], 0))
    return leading + [i for i in order if firsts[topics[i]] != i]


#: Ways to choose that need no samples to choose from.
PLACES: Mapping[str, Callable[[Home], Places]] = {"in_order": prompts_in_order, "random": prompts_at_random}


# ---- choosing among samples ------------------------------------------------------------------------------------------


def choose_stage(home: Home, judged: Mapping[str, Path]) -> Stage:
    """Of the candidates' samples those that are asked about, ``samples.jsonl``: the worthiest first."""
    config, reads, seed = home.recipe.ask, reads_of(home.recipe), stream_seed(home.seed, "choosing")

    def work(inputs: Inputs, folder: Path, log: Log) -> Any:
        groups = read_samples(inputs["candidates"])
        before = [group for name in inputs if name.startswith("earlier") for group in read_samples(inputs[name])]
        learnt = [group for name in judged for group in read_orders(inputs[name], reads)]
        log(0.0, f"choosing {config.prompts} of {len(groups)} prompts, {len(learnt)} judgements known")
        worth = worth_of(config.choose)(groups, learnt, seed)
        places = chosen_places(groups, worth, before, config.prompts)
        write_jsonl(folder / SAMPLES, [groups[i] for i in places])
        write_jsonl(folder / CONSIDERED, _choices(groups, worth, set(places)))
        return _told(groups, places, len(learnt), at_random=worth is None)

    settings = {"choose": config.choose, "count": config.prompts, "reads": reads}
    inputs = {"candidates": home.path(f"candidates/{SAMPLES}"), **judged, **asked_before(home)}
    return home.stage("sample", settings, inputs, work)


def chosen_places(
    groups: Sequence[PromptSamples], worth: Sequence[float] | None, before: Sequence[PromptSamples], count: int
) -> list[int]:
    """The places of ``count`` groups: the least asked, one of every topic, the worthiest. Without worth, the first."""
    asked_of = Counter(prompt_key(group["prompt"]) for group in before)
    asked = [asked_of[prompt_key(group["prompt"])] for group in groups]
    order = sorted(range(len(groups)), key=lambda i: 0.0 if worth is None else -worth[i])
    met = Counter(group["topic"] for group in before)
    return least_asked_first(order, asked, [group["topic"] for group in groups], met)[:count]


def _choices(
    groups: Sequence[PromptSamples], worth: Sequence[float] | None, places: set[int]
) -> Iterable[dict[str, Any]]:
    for i, group in enumerate(groups):
        told = {} if worth is None else {"worth": round(worth[i], 6)}
        yield {"prompt": group["prompt"], "topic": group["topic"], **told, "asked": i in places}


def _told(groups: Sequence[PromptSamples], places: Sequence[int], learnt: int, at_random: bool) -> dict[str, Any]:
    return {
        "prompts": len(places),
        "completions": sum(len(groups[i]["completions"]) for i in places),
        "candidates": len(groups),
        "topics": len({groups[i]["topic"] for i in places}),
        "judgements": learnt,
        "at_random": at_random,
    }


def say_how(home: Home, result: Mapping[str, Any]) -> None:
    """Say it where prompts could not be chosen as they were to be."""
    if result.get("at_random"):
        home.runner.say("ask.choose: the judgements so far order no two samples, so that prompts are chosen at random")


# ---- what is worth asking --------------------------------------------------------------------------------------------

PromptWorth = Callable[[Sequence[PromptSamples], Sequence[RankedGroup], int], Sequence[float] | None]


def worth_of(name: str) -> PromptWorth:
    """What says how much a prompt is worth asking about, from its samples: a row of the table, or a user's own."""
    return WORTH[name] if name in WORTH else _own_worth(name)


def disagreement(groups: Sequence[PromptSamples], learnt: Sequence[RankedGroup], seed: int) -> list[float] | None:
    """How far an ensemble taught by the judgements disagrees on the pairs of each group's samples, their mean in nats.

    None where no judgement orders two completions: there is nothing that an ensemble could learn.
    """
    if not any(len(set(group.ranks)) > 1 for group in learnt):
        return None
    texts = list(dict.fromkeys(text for group in groups for text in group["completions"]))
    score_MS = fit_pair_ensemble(learnt, texts, seed=seed).score(texts)
    place = {text: i for i, text in enumerate(texts)}
    return [_mean_disagreement(score_MS[:, sorted({place[text] for text in group["completions"]})]) for group in groups]


def _mean_disagreement(score_MK: FloatArray) -> float:
    first, second = np.triu_indices(score_MK.shape[1], 1)
    return float(mutual_information(score_MK[:, first] - score_MK[:, second]).mean()) if len(first) else 0.0


def _own_worth(name: str) -> PromptWorth:
    """A user's own ``module:name(prompt, completions)``: a number, higher = asked about sooner."""
    judge = outside(name)

    def worth(groups: Sequence[PromptSamples], learnt: Sequence[RankedGroup], seed: int) -> list[float]:
        with blaming(name):
            found = [float(judge(group["prompt"], group["completions"])) for group in groups]
        if not all(map(math.isfinite, found)):
            raise DataError(f"{name} gave a number that is not finite", hint="give one finite number a prompt")
        return found

    return worth


#: How much each of the candidates is worth asking about, higher = sooner; None where it cannot be said.
WORTH: Mapping[str, PromptWorth] = {"uncertain": disagreement}


# ---- what is known so far --------------------------------------------------------------------------------------------


def judged_inputs(home: Home) -> dict[str, Path]:
    """The files of what has been judged before this round asks; people's answers are collected anew in every round."""
    told = home.earlier(f"ask/{JUDGEMENTS}")
    told = told[-1:] if home.recipe.ask.who == "people" else told
    return given_inputs(
        {"standing": home.task.judgements("train"), **{f"asked_{n}": one for n, one in enumerate(told, 1)}}
    )


def asked_before(home: Home) -> dict[str, Path]:
    """The samples that earlier rounds have asked about."""
    return {f"earlier_{n}": path for n, path in enumerate(home.earlier(f"sample/{SAMPLES}"), 1)}


def read_orders(path: Path, reads: str) -> list[RankedGroup]:
    """The judgements of a file as rankings of texts.

    Of labels and ratings one a prompt, by the mean of what each completion was given.
    """
    items = [item for item in read_items(path) if item.kind == reads]
    if reads == "ranking":
        return [group for item in items if (group := _ranking_of(item)) is not None]
    values: dict[str, dict[str, list[float]]] = {}
    for item in items:
        for text, value in zip(item.completions, item.labels if reads == "label" else item.ratings, strict=True):
            if value is not None:
                values.setdefault(prompt_key(item.prompt), {}).setdefault(_text(text), []).append(float(value))
    return [_ranked_by_mean(prompt, of) for prompt, of in values.items() if len(of) > 1]


def _ranking_of(item: Item) -> RankedGroup | None:
    judged = [(_text(text), rank) for text, rank in zip(item.completions, item.ranks, strict=True) if rank is not None]
    if len(judged) < 2:
        return None
    texts, ranks = zip(*judged, strict=True)
    return RankedGroup(
        prompt=prompt_key(item.prompt), completions=texts, ranks=ranks, weight=item.weight, group=item.group
    )


def _ranked_by_mean(prompt: str, values: Mapping[str, Sequence[float]]) -> RankedGroup:
    means = [sum(given) / len(given) for given in values.values()]
    return RankedGroup(prompt=prompt, completions=tuple(values), ranks=ranks_by_value(means))


def _text(completion: Any) -> str:
    """The words of a completion, text or messages."""
    return completion if isinstance(completion, str) else " ".join(str(turn.get("content", "")) for turn in completion)
