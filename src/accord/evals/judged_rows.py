"""Labels and ratings as what a reward model is measured on: who judged two completions of a prompt has ordered them.

A judgement of one completion says nothing by itself of another's. Where one person judged several completions of a
prompt they are ordered by that person's word; else by the mean over all who judged them. What stays alone under its
prompt, or was judged like the others, orders nothing, and is counted. How well scores tell better from worse across
prompts too says the concordance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal

import numpy as np

from accord.errors import DataError
from accord.evals.pairs import some_of
from accord.formats.stage_rows import Chat, JudgedRow, RankedRow, read_judged_rows, read_ranked_rows
from accord.records import RankedGroup, ranks_by_value
from accord.stats import Interval, share_of_pairs

JudgedAs = Literal["label", "rating"]
MOST_JUDGED = 2000  # completions of the concordance: their pairs are two millions, drawn by the seed beyond


@dataclass(frozen=True)
class Measurable:
    """What files hold: rankings, and of labels and ratings also each completion's mean judgement.

    ``alone`` counts judged completions that nothing orders.
    """

    rows: tuple[RankedRow, ...]
    judged: tuple[tuple[str, str, str, float], ...] = ()
    alone: int = 0


def read_measured(paths: Sequence[Path], chat: Chat | None) -> Measurable:
    """Return the judgements of files, each of rankings, pairs, labels or ratings.

    ``judged`` are (prompt, completion, topic, mean judgement).

    Raises:
        DataError: a file is none of them, or no two completions of a prompt were judged differently.
    """
    rows: list[RankedRow] = []
    judged: list[JudgedRow] = []
    for path in paths:
        found = _rankings_or_judged(path, chat)
        if isinstance(found[0], RankedRow):
            rows += [row for row in found if isinstance(row, RankedRow)]
        else:
            judged += [row for row in found if isinstance(row, JudgedRow)]
    ordered = list(_ordered(judged))
    texts = _means(judged)
    placed = {(row.group.prompt, text) for row in ordered for text in row.group.completions}
    if not rows and not ordered:
        raise DataError(
            "no two completions of one prompt were judged differently",
            why=f"each of the {len(texts):,} judged completions stands alone, or is judged like the others",
            hint="give a file in which prompts have a good and a bad completion",
        )
    told = tuple((*key, topic, value) for key, (topic, value) in texts.items())
    return Measurable((*rows, *ordered), told, len(texts.keys() - placed))


def _rankings_or_judged(path: Path, chat: Chat | None) -> Sequence[RankedRow | JudgedRow]:
    """Return the rows of a file as what it holds. Raises the complaint about rankings where it is none of these."""
    try:
        return read_ranked_rows(path, chat)
    except DataError as complaint:
        for what in ("label", "rating"):
            try:
                return read_judged_rows(path, what, chat)
            except DataError:
                continue
        raise complaint


def _ordered(judged: Sequence[JudgedRow]) -> Iterator[RankedRow]:
    """Yield each person's order of a prompt's completions; of prompts where nobody has one the order of the means."""
    by_person: dict[tuple[str, str], list[JudgedRow]] = {}
    by_prompt: dict[str, list[JudgedRow]] = {}
    for row in judged:
        by_person.setdefault((row.group.prompt, row.annotator), []).append(row)
        by_prompt.setdefault(row.group.prompt, []).append(row)
    seen = set()
    for (prompt, who), rows in by_person.items():
        if ranked := _ranked(rows, who):
            seen.add(prompt)
            yield ranked
    for prompt, rows in by_prompt.items():
        if prompt not in seen and (ranked := _ranked(rows, "")):
            yield ranked


def _ranked(rows: Sequence[JudgedRow], who: str) -> RankedRow | None:
    """Return completions by their mean judgement, the best first; None where there are not two different ones."""
    means = _means(rows)
    if len({value for _, value in means.values()}) < 2:
        return None
    first = rows[0]
    group = RankedGroup(
        prompt=first.group.prompt,
        completions=tuple(text for _, text in means),
        ranks=ranks_by_value([value for _, value in means.values()]),
        origin=first.group.origin,
        topic=first.group.topic,
        group=first.group.group,
    )
    return RankedRow(group, first.asked, who, first.besides)


def _means(rows: Sequence[JudgedRow]) -> dict[tuple[str, str], tuple[str, float]]:
    """Return (prompt, completion) -> topic and mean judgement, in the order of the file."""
    found: dict[tuple[str, str], list[float]] = {}
    topics: dict[str, str] = {}
    for row in rows:
        topics[row.group.prompt] = row.group.topic or row.group.prompt
        for text, value in zip(row.group.completions, row.group.values, strict=True):
            found.setdefault((row.group.prompt, text), []).append(value)
    return {key: (topics[key[0]], fmean(values)) for key, values in found.items()}


def concordance(
    scores: Mapping[tuple[str, str], float],
    judged: Sequence[tuple[str, str, str, float]],
    *,
    seed: int = 0,
) -> Interval:
    """Return how often of two completions, of any prompts, the one that was judged better has the higher score.

    A tie of scores counts half. Of labels this is the area under the ROC curve; of ratings Harrell's C. Intervals
    resample topics. Raises DataError where all were judged alike.
    """
    shown = some_of(list(judged), MOST_JUDGED, seed)
    score_N = np.array([scores[prompt, text] for prompt, text, _, _ in shown])
    value_N = np.array([value for *_, value in shown])
    better_NN = (value_N[:, None] > value_N).astype(np.float64)
    if not better_NN.any():
        raise DataError("all completions were judged alike")
    right_NN = (np.sign(score_N[:, None] - score_N) + 1) / 2
    return share_of_pairs(right_NN, better_NN, [topic for _, _, topic, _ in shown], seed=seed)
