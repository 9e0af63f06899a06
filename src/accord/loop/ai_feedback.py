"""AI feedback: a scorer, a user's own function or a chat model ranks samples. It is never counted as people's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from accord.config import ChatConfig, ScorerConfig
from accord.errors import DataError
from accord.extend import blaming, outside
from accord.loop.cache import Inputs
from accord.loop.programs import ProgramSaid, SampleGroup, keep, ranking_of, sample_groups
from accord.loop.task import Annotators, Asked
from accord.models.placement import Placement
from accord.records import Annotator, ranks_by_value
from accord.scoring.chat_comparer import ChatComparer, Comparison, Preference, count_outcomes
from accord.scoring.chat_prompts import JUDGE_PROMPT
from accord.scoring.weighted import load_scorer, scorer_inputs

REPLIES = "replies.jsonl"  # in the stage's folder: what a chat model has answered is not paid for twice
Values = Callable[[SampleGroup], Sequence[float]]


def scorer_annotators(config: ScorerConfig, placement: Placement) -> Annotators:
    """What ``ask.scorer`` names: the higher score is the better rank, equal scores tie; a chat model compares pairs."""
    if config.chat is not None:
        return _chat_annotators(config.chat, config.label)

    def answer(inputs: Inputs, asked: Asked) -> dict[str, Any]:
        scorer = load_scorer([config], placement=placement)

        def values(group: SampleGroup) -> Sequence[float]:
            return scorer.score([(group.text, text) for text in group.texts]).tolist()

        return _by_value(asked, Annotator(name=f"scorer {config.label}", annotator_kind="model"), values)

    return Annotators(scorer_inputs([config]), answer, {"scorer": config.model_dump()})


def function_annotators(name: str) -> Annotators:
    """A user's own ``module:name(prompt, completions)``: one number a completion, higher = better."""
    judge = outside(name)

    def answer(inputs: Inputs, asked: Asked) -> dict[str, Any]:
        def values(group: SampleGroup) -> Sequence[float]:
            with blaming(name):
                found = [float(value) for value in judge(group.asked, group.texts)]
            if len(found) != len(group.texts):
                raise DataError(f"{name} gave {len(found)} numbers for {len(group.texts)} completions")
            return found

        return _by_value(asked, Annotator(name=name, annotator_kind="model"), values)

    return Annotators({}, answer, {"annotator": name})


def _by_value(asked: Asked, annotator: Annotator, values: Values) -> dict[str, Any]:
    """Rank each group of samples by its values, 1 = best."""
    said = []
    for group in sample_groups(asked):
        ranks = ranks_by_value(values(group))
        ids = [completion.id for completion in group.completions]
        said.append(ProgramSaid(group, annotator, ranking_of(group, annotator, dict(zip(ids, ranks, strict=True)))))
    return keep(asked, said) | {"description": [f"{annotator.name} ranked the samples of {len(said)} prompts."]}


# ---- a chat model ----------------------------------------------------------------------------------------------------


def _chat_annotators(config: ChatConfig, label: str) -> Annotators:
    """A chat model that is asked about every two samples of a prompt, in both orders."""
    name = config.model if label == "chat" else label

    def answer(inputs: Inputs, asked: Asked) -> dict[str, Any]:
        comparer = ChatComparer(config, replies=asked.judgements.with_name(REPLIES))
        groups = sample_groups(asked)
        pairs = [(group, a, b) for group in groups for a, b in combinations(group.completions, 2)]
        found = comparer.compare_all([Comparison(g.asked, a.text, b.text) for g, a, b in pairs], log=asked.log)
        note = f"AI feedback: {config.model}, asked in both orders at temperature 0, judge prompt {JUDGE_PROMPT}"
        annotator = Annotator(name=name, annotator_kind="model", note=note)
        said = list(_by_pair([(g, (a.id, b.id), one) for (g, a, b), one in zip(pairs, found, strict=True)], annotator))
        counts = count_outcomes(found)
        if not said:
            raise DataError(
                f"none of {len(pairs)} comparisons by {config.model} could be read",
                where=str(asked.judgements.with_name(REPLIES)),
                hint="look at the replies; ask another model, or raise max_tokens",
            )
        told = {"prompts": len(groups), "pairs": len(pairs), **counts, "requests": comparer.replies.num_asked}
        return keep(asked, said) | told | {"description": _described(name, len(pairs), counts)}

    settings = {"scorer": {"name": label, "chat": _of_result(config)}, "judge_prompt": JUDGE_PROMPT}
    return Annotators({}, answer, settings)


def _of_result(config: ChatConfig) -> dict[str, Any]:
    """The settings that decide what comes out: how fast, and with whose key, does not."""
    return config.model_dump(exclude={"key_env", "concurrency", "timeout_s"})


Compared = tuple[SampleGroup, tuple[str, str], Preference]


def _by_pair(compared: Sequence[Compared], annotator: Annotator) -> Iterator[ProgramSaid]:
    """Return each pair that could be read as a ranking of two; all of one prompt's together count as one ranking."""
    readable: dict[str, int] = {}
    for group, _, one in compared:
        readable[group.name] = readable.get(group.name, 0) + (one.value is not None)
    for group, pair, one in compared:
        if one.value is not None:
            ranks = {0.0: (2, 1), 0.5: (1, 1), 1.0: (1, 2)}[one.value]
            note = "the two orders contradict each other" if one.outcome == "contradiction" else ""
            ranking = ranking_of(group, annotator, dict(zip(pair, ranks, strict=True)), note)
            yield ProgramSaid(group, annotator, ranking, 1 / readable[group.name], together=True)


def _described(name: str, pairs: int, counts: Mapping[str, int]) -> list[str]:
    return [
        f"{name}, a chat model and not people, compared {pairs} pairs of samples, each in both orders: "
        f"{counts['decided']} it decided alike, {counts['ties']} it called equal, in {counts['contradictions']} the "
        "order shown decided and they count as ties; "
        f"{counts['unreadable']} replies could not be read and are left out."
    ]
