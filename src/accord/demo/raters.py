"""Annotators of the film demo: the people who rated its reviews, replayed, and synthetic ones with the demo's taste.

**Replayed raters** are the people of one block of the rated film reviews: what each said of 30 texts, -4..4, is real,
and so is their disagreement. The task is not: they rated single texts, and a program turns one person's ratings of the
texts shown into an order, so ties are common. They are recorded as simulated annotators, because nobody was shown the
task, the order or the guidelines, and no time was measured; the same people's own ratings are facts of their own
(`accord.demo.film_reviews.records_of`) with annotators of the kind "human".

`accord simulate` finds the two rows of this module, `replayed_raters` and `synthetic_reviewers`, by their names.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

from accord.demo.film_reviews import (
    HUMAN_SOURCE,
    RATING_HIGH,
    RATING_LOW,
    FilmReviews,
    RatedReview,
    fetch,
    film_split,
    read_reviews,
)
from accord.demo.taste import build_taste, ordinary_length
from accord.errors import UsageError
from accord.people.simulation.annotators import (
    AnnotatorGroup,
    AnnotatorRequest,
    AnswerJson,
    Opinion,
    ShownTask,
    answer_of,
    synthetic,
)
from accord.seeds import stream_seed

REVIEW_PROMPT = "Write one or two sentences of a film review that speaks well of its film."
TASKS, SIZE, SYNTHETIC_OVERLAP = 30, 4, 5


# ---- rows of `accord simulate` ---------------------------------------------------------------------------------------


def replayed_raters(request: AnnotatorRequest) -> Iterator[AnnotatorGroup]:
    """Yield blocks of real raters until there are ``count``, each with tasks of the reviews of its block.

    Reviews of films kept for judging and testing are left out.

    Raises:
        UsageError: There are not so many raters, or defects are asked of them.
    """
    if request.defects:
        raise UsageError("--defects has no effect on real raters", hint="add --annotators synthetic")
    left, num_tasks = request.count, TASKS if request.num_tasks is None else request.num_tasks
    for block in blocks(_training_reviews(_data(request)), request.seed):
        raters = block.raters[:left]
        left -= len(raters)
        tasks = _tasks_for(request, block.texts, num_tasks, len(raters), len(raters))
        yield AnnotatorGroup(raters, tasks, "real raters, replayed by a program")
        if not left:
            return
    raise UsageError(f"there are {request.count - left} raters, not {request.count}", where="--count")


def synthetic_reviewers(request: AnnotatorRequest) -> Iterator[AnnotatorGroup]:
    """Yield annotators whose gold scorer is the demo's hidden taste, around its median over the reviews.

    They answer what waits; only where nothing does, tasks are added without being asked for.
    """
    data = _data(request)
    texts = [review.text for review in _training_reviews(data)]
    taste = build_taste(data.words(), ordinary_length(texts))
    # The median review is neither good nor bad: labels and ratings need a zero, which a utility has not.
    middle = median(map(taste.utility, texts))
    team = synthetic(
        request.count, lambda text: taste.utility(text) - middle, request.seed, dict(request.defects or {})
    )
    num_tasks = request.num_tasks if request.num_tasks is not None else 0 if request.waiting else TASKS
    yield AnnotatorGroup(team, _tasks_for(request, texts, num_tasks, SYNTHETIC_OVERLAP, len(team)))


def _data(request: AnnotatorRequest) -> FilmReviews:
    return read_reviews(fetch(request.downloads, request.from_dir))


def _training_reviews(data: FilmReviews) -> list[RatedReview]:
    # What people say of these may train: nothing of films kept for judging or testing enters the queue.
    return [review for review in data.rated if film_split(review.film) == "train"]


def _tasks_for(
    request: AnnotatorRequest, texts: Sequence[str], num_tasks: int, overlap: int, most: int
) -> list[dict[str, Any]]:
    """Return tasks on reviews as requested, each for ``overlap`` people by default, for ``most`` at most."""
    size = request.size or (2 if request.kind == "pair" else SIZE)
    return review_tasks(texts, num_tasks, size, request.kind, min(request.overlap or overlap, most), request.seed)


# ---- real raters, replayed -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReplayedRater:
    """One column of one block: what one real person gave each of up to 30 texts, -4..4. Others it skips."""

    name: str
    ratings: Mapping[str, int]
    patience: float = math.inf

    def answer(self, task: ShownTask) -> AnswerJson | None:
        if not all(text in self.ratings for text in task.texts):
            return None
        given = [self.ratings[text] for text in task.texts]
        fractions = [(value - RATING_LOW) / (RATING_HIGH - RATING_LOW) for value in given]
        return answer_of(task, Opinion([float(value) for value in given], fractions, 0.0))


class ReviewBlock(NamedTuple):
    """One block of the rated reviews: its texts and the people who rated all of them."""

    number: int
    texts: tuple[str, ...]
    raters: tuple[ReplayedRater, ...]


def blocks(rated: Sequence[RatedReview], seed: int) -> Iterator[ReviewBlock]:
    """Return the blocks in an order drawn by the seed."""
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
        yield ReviewBlock(number, tuple(review.text for review in reviews), raters)


def review_tasks(
    texts: Sequence[str], num_tasks: int, size: int, kind: str, overlap: int, seed: int
) -> list[dict[str, Any]]:
    """Return tasks for ``POST /api/tasks``: groups of ``size`` different texts, each group drawn at random.

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
