"""Annotators to test with: real raters replayed, and synthetic ones with planted defects.

**Replayed raters** are the people of one block of the rated film reviews: what each said of 30 texts, -4..4, is real,
and so is their disagreement. The task is not: they rated single texts, and a program turns one person's ratings of the
texts shown into an order, so ties are common. They are recorded as simulated annotators, because nobody was shown the
task, the order or the guidelines, and no time was measured; the same people's own ratings are facts of their own
(`accord.demo.film_reviews.records_of`) with annotators of the kind "human".

**Synthetic annotators** follow a gold scorer with noise. A defect takes the place of judgement (see `DEFECTS`); it is
planted so that the manager page must find it.

A mind speaks of completions by position as shown, as every annotator does.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from accord.demo.film_reviews import HUMAN_SOURCE, RATING_HIGH, RATING_LOW, RatedReview
from accord.errors import UsageError
from accord.people.simulation.simulated import ranks_of
from accord.seeds import stream_seed

REVIEW_PROMPT = "Write one or two sentences of a film review that speaks well of its film."
WORDS_PER_S, HASTY_WORDS_PER_S = 4.0, 60.0  # a simulated reader's pace, and that of one who does not read
GIVE_UP = 6  # answers after which a synthetic annotator with the defect "dropout" leaves

AnswerJson = dict[str, Any]


class View(NamedTuple):
    """What an annotator sees of a task: the texts in the order shown."""

    kind: str
    prompt: str
    texts: tuple[str, ...]
    settings: Mapping[str, Any]


class Mind(Protocol):
    """Who answers. ``answer`` returns the answer's fields, or None to skip; ``patience``: answers before it leaves."""

    @property
    def name(self) -> str: ...

    @property
    def patience(self) -> float: ...

    def answer(self, view: View) -> AnswerJson | None: ...


# ---- what an annotator says, given what it feels -------------------------------------------------------------------


class Felt(NamedTuple):
    """``levels``: how good each completion is, higher is better, in steps that matter; ``shares``: the same, 0..1."""

    levels: Sequence[float]
    shares: Sequence[float]
    tie_within: float


def say(view: View, felt: Felt) -> AnswerJson | None:
    """An answer of the kind asked for; None for kinds that ask for more than an opinion."""
    return SAYING[view.kind](view, felt) if view.kind in SAYING else None


def _ranks(view: View, felt: Felt) -> AnswerJson:
    ranks = ranks_of({str(i): level for i, level in enumerate(felt.levels)}, felt.tie_within)
    return {"ranks": [ranks[str(i)] for i in range(len(felt.levels))]}


def _pair(view: View, felt: Felt) -> AnswerJson:
    said, gap = _ranks(view, felt), abs(felt.levels[0] - felt.levels[1])
    if said["ranks"][0] != said["ranks"][1]:
        steps = ((4.0, "significantly"), (2.0, "better"), (1.0, "slightly"), (-1.0, "negligibly"))
        said["strength"] = next(name for least, name in steps if gap >= least)
    return said


def _ratings(view: View, felt: Felt) -> AnswerJson:
    axes = view.settings["axes"]
    return {
        "ratings": [
            {axis["name"]: axis["low"] + round(share * (axis["high"] - axis["low"])) for axis in axes}
            for share in felt.shares
        ]
    }


def _labels(view: View, felt: Felt) -> AnswerJson:
    return {"good": [share > 0.5 for share in felt.shares]}


SAYING: Mapping[str, Callable[[View, Felt], AnswerJson]] = {
    "pair": _pair,
    "ranking": _ranks,
    "rating": _ratings,
    "label": _labels,
}


# ---- real raters, replayed -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReplayedRater:
    """One column of one block: what one real person gave each of up to 30 texts, -4..4. Others it skips."""

    name: str
    ratings: Mapping[str, int]
    patience: float = math.inf

    def answer(self, view: View) -> AnswerJson | None:
        if not all(text in self.ratings for text in view.texts):
            return None
        given = [self.ratings[text] for text in view.texts]
        shares = [(value - RATING_LOW) / (RATING_HIGH - RATING_LOW) for value in given]
        return say(view, Felt([float(value) for value in given], shares, 0.0))


class Block(NamedTuple):
    """One block of the rated reviews: its texts and the people who rated all of them."""

    number: int
    texts: tuple[str, ...]
    raters: tuple[ReplayedRater, ...]


def blocks(rated: Sequence[RatedReview], seed: int) -> Iterator[Block]:
    """The blocks in an order drawn by the seed."""
    by_number: dict[int, list[RatedReview]] = {}
    for review in rated:
        by_number.setdefault(review.block, []).append(review)
    numbers = sorted(by_number)
    random.Random(stream_seed(seed, "blocks")).shuffle(numbers)
    for number in numbers:
        reviews = by_number[number]
        columns = range(min(len(review.ratings) for review in reviews))
        raters = tuple(
            ReplayedRater(f"replayed rater {number:03d}-{c:02d}", {one.text: one.ratings[c] for one in reviews})
            for c in columns
        )
        yield Block(number, tuple(review.text for review in reviews), raters)


def review_tasks(
    texts: Sequence[str], num_tasks: int, size: int, kind: str, overlap: int, seed: int
) -> list[dict[str, Any]]:
    """Tasks for ``POST /api/tasks``: groups of ``size`` different texts, each group drawn at random.

    Raises:
        UsageError: the texts are fewer than a group needs.
    """
    distinct = sorted(set(texts))
    if len(distinct) < size:
        raise UsageError(f"{len(distinct)} reviews are fewer than the {size} of a task")
    draw = random.Random(stream_seed(seed, "review tasks", kind, size))
    source = {"origin": HUMAN_SOURCE.origin, "name": HUMAN_SOURCE.name, "version": HUMAN_SOURCE.version}
    return [
        {
            "kind": kind,
            "prompt": REVIEW_PROMPT,
            "completions": [{"text": text, "source": source} for text in draw.sample(distinct, size)],
            "overlap": overlap,
        }
        for _ in range(num_tasks)
    ]


# ---- synthetic annotators ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Synthetic:
    """Follows a gold scorer with Gaussian noise, unless a defect takes its place.

    ``gold`` gives a text's utility, 0 = neither good nor bad; differences of ``step`` matter. The noise follows from
    the seed, the name and the texts.
    """

    name: str
    gold: Callable[[str], float]
    seed: int
    noise: float = 0.35
    step: float = 0.5
    defect: str = ""

    @property
    def patience(self) -> float:
        return GIVE_UP if self.defect == "dropout" else math.inf

    def answer(self, view: View) -> AnswerJson | None:
        draw = random.Random(stream_seed(self.seed, self.name, *sorted(view.texts)))
        honest = {text: self.gold(text) + draw.gauss(0.0, self.noise) for text in sorted(set(view.texts))}
        felt = DEFECTS[self.defect](view.texts, [honest[text] for text in view.texts], draw)
        shares = [1 / (1 + math.exp(-max(-50.0, min(50.0, level)))) for level in felt]
        said = say(view, Felt([level / self.step for level in felt], shares, 0.4))
        if said is None:
            return None
        pace = HASTY_WORDS_PER_S if self.defect == "fast" else WORDS_PER_S * math.exp(draw.gauss(0.0, 0.2))
        words = sum(len(text.split()) for text in (view.prompt, *view.texts))
        return {**said, "seconds": round(0.2 + words / pace, 2)}


Defect = Callable[[Sequence[str], list[float], random.Random], list[float]]
#: What takes the place of judgement: (texts as shown, honest utilities, noise) -> utilities.
DEFECTS: Mapping[str, Defect] = {
    "": lambda texts, honest, draw: honest,
    "position": lambda texts, honest, draw: [1.0 - place for place in range(len(texts))],
    "length": lambda texts, honest, draw: [(len(text) - 150) / 60 for text in texts],
    "random": lambda texts, honest, draw: [draw.gauss(0.0, 1.0) for _ in texts],
    "tie": lambda texts, honest, draw: [0.0] * len(texts),
    "flipped": lambda texts, honest, draw: [-level for level in honest],
    "fast": lambda texts, honest, draw: [draw.gauss(0.0, 1.0) for _ in texts],
    "noisy": lambda texts, honest, draw: [level + draw.gauss(0.0, 0.7) for level in honest],
    "dropout": lambda texts, honest, draw: honest,
}


def synthetic(count: int, gold: Callable[[str], float], seed: int, defects: Mapping[str, int]) -> list[Synthetic]:
    """``count`` synthetic annotators, the first of them with the defects asked for.

    Raises:
        UsageError: an unknown defect, or more of them than annotators.
    """
    unknown = sorted(set(defects) - (set(DEFECTS) - {""}))
    if unknown:
        raise UsageError(f"there is no defect {unknown[0]!r}", hint="give some of " + ", ".join(filter(None, DEFECTS)))
    planted = [name for name, number in defects.items() for _ in range(number)]
    if len(planted) > count:
        raise UsageError(f"{len(planted)} defects among {count} annotators", hint="give more annotators with --count")
    given = [*planted, *[""] * (count - len(planted))]
    return [
        Synthetic(" ".join(filter(None, (f"synthetic {i + 1:02d}", defect))), gold, seed, defect=defect)
        for i, defect in enumerate(given)
    ]
