"""Annotators to test with: what they are shown, what they answer, and synthetic ones with planted defects.

A simulated annotator is anything with a name, a patience and an answer; `accord simulate --annotators module:NAME`
takes yours (see `AnnotatorRequest`). **Synthetic annotators** follow a gold scorer with noise. A defect takes the place
of judgement (see `DEFECTS`); it is planted so that the manager page must find it.

An annotator speaks of completions by position as shown, as every annotator does.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from accord.errors import UsageError
from accord.extend import blaming, outside
from accord.seeds import stream_seed

WORDS_PER_S, HASTY_WORDS_PER_S = 4.0, 60.0  # a simulated reader's pace, and that of one who does not read
GIVE_UP = 6  # answers after which a synthetic annotator with the defect "dropout" leaves

AnswerJson = dict[str, Any]


class ShownTask(NamedTuple):
    """A task as an annotator sees it: the texts in the order shown."""

    kind: str
    prompt: str
    texts: tuple[str, ...]
    settings: Mapping[str, Any]


class SimulatedAnnotator(Protocol):
    """A program that answers: the answer's fields, or None to skip; ``patience``: answers before it leaves."""

    @property
    def name(self) -> str: ...

    @property
    def patience(self) -> float: ...

    def answer(self, task: ShownTask) -> AnswerJson | None: ...


@dataclass(frozen=True)
class AnnotatorRequest:
    """What `accord simulate` asks of a row of `ANNOTATORS`: annotators, and tasks to add for them.

    Args:
        num_tasks: Tasks to add; None: as many as the row thinks right.
        kind, size, overlap: What those tasks ask, of how many texts, and of how many annotators (None: the row's own).
        waiting: Answers that the queue waits for already.
        downloads, from_dir: Where data is kept, and where it is taken from instead of the net.
    """

    count: int
    seed: int
    downloads: Path
    from_dir: Path | None = None
    defects: Mapping[str, int] | None = None
    num_tasks: int | None = None
    kind: str = "ranking"
    size: int | None = None
    overlap: int | None = None
    waiting: int = 0


class AnnotatorGroup(NamedTuple):
    """Annotators who answer together, ``who`` they are in words, and ``tasks`` as ``POST /api/tasks`` takes them."""

    annotators: Sequence[SimulatedAnnotator]
    tasks: Sequence[Mapping[str, Any]] = ()
    who: str = "programs, and no people"


#: Who answers, by name: where the function is that makes them. Yours is ``module:NAME``, of the same type.
ANNOTATORS: Mapping[str, str] = {
    # By name, not by import: nothing but its own command imports the demo.
    "raters": "accord.demo.raters:replayed_raters",
    "synthetic": "accord.demo.raters:synthetic_reviewers",
    "readers": "accord.people.simulation.readers:simulated_readers",
}
MakeAnnotators = Callable[[AnnotatorRequest], Iterable[AnnotatorGroup]]


def make_annotators(name: str, request: AnnotatorRequest) -> list[AnnotatorGroup]:
    """Return the groups of annotators that a row of `ANNOTATORS`, or one's own ``module:NAME``, makes.

    Raises:
        UsageError: There is no such row, or it makes nobody.
        DataError: One's own function fails.
    """
    if name == "panel":
        hint = "raters are those of the film demo, replayed; readers are the panel that ask.who means, for any text"
        raise UsageError("annotators called panel are now called raters or readers", hint=hint)
    make: MakeAnnotators = outside(
        ANNOTATORS.get(name, name), hint="give module:NAME, or one of " + ", ".join(ANNOTATORS)
    )
    with blaming(name):
        groups = [AnnotatorGroup(*group) for group in make(request)]
    if not any(group.annotators for group in groups):
        raise UsageError(f"{name} makes no annotators", hint="return one AnnotatorGroup at least")
    return groups


# ---- what an annotator says, given its opinion -------------------------------------------------------------------


class Opinion(NamedTuple):
    """How good each completion seems to an annotator.

    ``levels`` are in steps that matter, higher is better; ``fractions`` place the same on a scale from 0 to 1.
    Levels within ``tie_within`` of the best of a tie are equal.
    """

    levels: Sequence[float]
    fractions: Sequence[float]
    tie_within: float


def answer_of(task: ShownTask, opinion: Opinion) -> AnswerJson | None:
    """Return an answer of the kind asked for; None for kinds that ask for more than an opinion."""
    return ANSWERS[task.kind](task, opinion) if task.kind in ANSWERS else None


def _ranks(task: ShownTask, opinion: Opinion) -> AnswerJson:
    ranks = ranks_of({str(i): level for i, level in enumerate(opinion.levels)}, opinion.tie_within)
    return {"ranks": [ranks[str(i)] for i in range(len(opinion.levels))]}


def _pair(task: ShownTask, opinion: Opinion) -> AnswerJson:
    said, gap = _ranks(task, opinion), abs(opinion.levels[0] - opinion.levels[1])
    if said["ranks"][0] != said["ranks"][1]:
        # The four degrees of Llama 2, by differences that the annotator can feel.
        steps = ((4.0, "significantly"), (2.0, "better"), (1.0, "slightly"), (-1.0, "negligibly"))
        said["strength"] = next(name for least, name in steps if gap >= least)
    return said


def _ratings(task: ShownTask, opinion: Opinion) -> AnswerJson:
    axes = task.settings["axes"]
    return {
        "ratings": [
            {axis["name"]: axis["low"] + round(fraction * (axis["high"] - axis["low"])) for axis in axes}
            for fraction in opinion.fractions
        ]
    }


def _labels(task: ShownTask, opinion: Opinion) -> AnswerJson:
    return {"good": [fraction > 0.5 for fraction in opinion.fractions]}


#: How an opinion becomes an answer, by the kind of task.
ANSWERS: Mapping[str, Callable[[ShownTask, Opinion], AnswerJson]] = {
    "pair": _pair,
    "ranking": _ranks,
    "rating": _ratings,
    "label": _labels,
}


def ranks_of(levels: Mapping[str, float], tie_within: float) -> dict[str, int]:
    """Return ranks from 1 = best; whatever is within the threshold of the best of a tie joins it."""
    ranks: dict[str, int] = {}
    rank_now, best = 0, math.inf
    for key in sorted(levels, key=lambda k: (-levels[k], k)):
        if not ranks or best - levels[key] > tie_within:
            rank_now, best = rank_now + 1, levels[key]
        ranks[key] = rank_now
    return ranks


# ---- synthetic annotators ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Synthetic:
    """An annotator that follows a gold scorer with Gaussian noise, unless a defect takes its place.

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

    def answer(self, task: ShownTask) -> AnswerJson | None:
        # By the texts, not by their order or the task: who is asked again says the same.
        draw = random.Random(stream_seed(self.seed, self.name, *sorted(task.texts)))
        honest = {text: self.gold(text) + draw.gauss(0.0, self.noise) for text in sorted(set(task.texts))}
        levels = DEFECTS[self.defect](task.texts, [honest[text] for text in task.texts], draw)
        fractions = [1 / (1 + math.exp(-max(-50.0, min(50.0, level)))) for level in levels]
        said = answer_of(task, Opinion([level / self.step for level in levels], fractions, 0.4))
        if said is None:
            return None
        # Simulated seconds, for nobody waits: a reader's pace, about a fifth up or down from answer to answer.
        pace = HASTY_WORDS_PER_S if self.defect == "fast" else WORDS_PER_S * math.exp(draw.gauss(0.0, 0.2))
        words = sum(len(text.split()) for text in (task.prompt, *task.texts))
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
    """Make ``count`` synthetic annotators, the first of them with the defects asked for.

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
