"""How many labels choosing saves: ``python -m benchmarks.choosing [--from-dir DIR] [--seeds 5] [--ways a,b]``.

People who rated film reviews are replayed (`accord.demo.raters`): a label is one person's ranking of a few reviews of
one block, by the ratings that this very person gave them. Round after round a way to choose picks the next tasks from
a pool of four times as many, with the functions of `accord.loop.choosing`, starting from one round at random. After
each round a reward model is fitted to all labels so far and orders pairs of reviews of held-out films, whose mean
ratings lie more than a point apart.

The reward model is the cheap one: Bradley-Terry on TF-IDF, as the members of the ensemble that chooses. What a network
would gain by choosing is another question.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from scipy.optimize import isotonic_regression

from accord.demo.film_reviews import FilmReviews, RatedReview, fetch, film_split, read_reviews
from accord.demo.raters import blocks
from accord.evals.pair_baseline import baseline_rows, fit_differences
from accord.evals.pair_ensemble import STRENGTH, fit_pair_ensemble
from accord.evals.pairs import HeldOutPairs, RatedCompletion, pair_hits, rated_pairs
from accord.evals.tfidf import fit_vocabulary, word_terms
from accord.formats import Item
from accord.loop.choosing import PromptWorth, chosen_places, disagreement, places_at_random
from accord.records import RankedGroup
from accord.seeds import stream_seed
from accord.stats import FloatArray
from accord.stats.intervals import sigmoid

POOL = 4  # as `ask.pool`


@dataclass(frozen=True)
class Setting:
    """How much is asked: ``shown`` reviews a task, ``batch`` tasks a round, ``labels`` in the end."""

    shown: int
    batch: int
    labels: int


# ---- other ways to choose, to compare with ---------------------------------------------------------------------------


def by_margins(measure: Callable[[FloatArray], FloatArray]) -> PromptWorth:
    """The mean over a task's pairs of a measure of the members' margins, (M, N) to (N,)."""

    def worth(groups: Sequence[Mapping[str, Any]], learnt: Sequence[RankedGroup], seed: int) -> list[float]:
        texts = list(dict.fromkeys(text for group in groups for text in group["completions"]))
        score_MS = fit_pair_ensemble(learnt, texts, seed=seed).score(texts)
        place = {text: i for i, text in enumerate(texts)}
        return [
            float(measure(_margins(score_MS[:, [place[text] for text in group["completions"]]])).mean())
            for group in groups
        ]

    return worth


def _margins(score_MK: FloatArray) -> FloatArray:
    first, second = np.triu_indices(score_MK.shape[1], 1)
    return np.asarray(score_MK[:, first] - score_MK[:, second])


def unsure(margin_MN: FloatArray) -> FloatArray:
    """1 where the members' mean probability is a half, 0 where it is certain."""
    return np.asarray(1 - np.abs(2 * sigmoid(margin_MN).mean(0) - 1))


WAYS: Mapping[str, PromptWorth | None] = {
    "random": None,
    "uncertain": disagreement,
    "variance": by_margins(lambda margin_MN: margin_MN.var(0)),
    "unsure": by_margins(unsure),
}


# ---- the replay ------------------------------------------------------------------------------------------------------


def label_tasks(rated: Sequence[RatedReview], shown: int, seed: int, deals: int = 2) -> list[RankedGroup]:
    """Every review in ``deals`` tasks of its block, each ranked by one person of that block."""
    draw = random.Random(stream_seed(seed, "tasks", shown))
    tasks = []
    for block in [block for block in blocks(rated, seed) if len(block.texts) >= shown] * deals:
        texts = draw.sample(block.texts, len(block.texts))
        for start in range(0, len(texts) - shown + 1, shown):
            some, rater = tuple(texts[start : start + shown]), draw.choice(block.raters)
            ranks = tuple(1.0 + sum(rater.ratings[other] > rater.ratings[text] for other in some) for text in some)
            tasks.append(RankedGroup(prompt=f"task {len(tasks)}", completions=some, ranks=ranks))
    return tasks


class Learner:
    """Fits the reward model to labels and says how many held-out pairs it orders as people did."""

    def __init__(self, texts: Sequence[str], held_out: HeldOutPairs) -> None:
        vocabulary, idf = fit_vocabulary(texts, word_terms)
        terms = (word_terms, tuple(vocabulary), idf)
        self.held_out, self.held_out_rows = held_out, baseline_rows(held_out.completions, [terms])
        self.rows, self.number = baseline_rows(texts, [terms]), {text: i for i, text in enumerate(texts)}

    def accuracy(self, labels: Iterable[RankedGroup]) -> float:
        pairs = [
            (self.number[a], self.number[b])
            for label in labels
            for a, rank_a in zip(label.completions, label.ranks, strict=True)
            for b, rank_b in zip(label.completions, label.ranks, strict=True)
            if rank_a < rank_b
        ]
        better, worse = np.array(pairs).T
        difference = (self.rows[better] - self.rows[worse]).tocsr()
        fitted = fit_differences(difference, np.ones(len(pairs)), STRENGTH, np.zeros(self.rows.shape[1]))
        return float(pair_hits(self.held_out_rows @ fitted, self.held_out.pairs).mean())


def curve(
    tasks: Sequence[RankedGroup], worth: PromptWorth | None, setting: Setting, learner: Learner, seed: int
) -> FloatArray:
    """Held-out accuracy after each round, the first of which asks at random whatever the way."""
    items = [Item(prompt=task.prompt) for task in tasks]
    groups = [{"prompt": task.prompt, "topic": "", "completions": list(task.completions)} for task in tasks]
    asked: list[int] = []
    found = []
    for number in range(setting.labels // setting.batch):
        before = [groups[i] for i in asked]
        times, draw = (POOL if worth and asked else 1), stream_seed(seed, "round", number)
        pool = places_at_random(items, before, setting.batch, times, draw)
        known = [tasks[i] for i in asked]
        values = worth([groups[i] for i in pool], known, draw) if worth and asked else None
        asked += [pool[i] for i in chosen_places([groups[i] for i in pool], values, before, setting.batch)]
        found.append(learner.accuracy(tasks[i] for i in asked))
    return np.array(found)


# ---- what came out ---------------------------------------------------------------------------------------------------


def labels_needed(accuracies: FloatArray, batch: int, target: float) -> float:
    """Labels at which a curve, made monotone, reaches an accuracy; of one that does not, all there were."""
    rising = np.concatenate([[0.5], isotonic_regression(accuracies).x])  # nothing learnt: chance
    at = np.arange(len(rising)) * float(batch)
    reached = int(np.argmax(rising >= target - 1e-12)) if rising[-1] >= target - 1e-12 else len(rising) - 1
    if reached == 0 or rising[reached] < target - 1e-12:
        return float(at[reached])
    low, high = rising[reached - 1], rising[reached]
    return float(at[reached - 1] + batch * (target - low) / (high - low))


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % interval of a few runs (Student's t)."""
    mean = statistics.fmean(values)
    half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def saved(curve_S: Sequence[FloatArray], random_S: Sequence[FloatArray], batch: int, budget: int) -> str:
    """Labels needed for the accuracy that random choice has at a budget, as a share of what it needs itself."""
    logs, short = [], 0
    for own, other in zip(curve_S, random_S, strict=True):
        target = float(isotonic_regression(other).x[budget // batch - 1])
        short += bool(isotonic_regression(own).x[-1] < target)
        logs.append(math.log(labels_needed(own, batch, target) / labels_needed(other, batch, target)))
    mean, low, high = (math.exp(value) for value in interval(logs))
    return f"{mean:.2f} ({low:.2f} to {high:.2f})" + (f", {short} of {len(logs)} never" if short else "")


def table(curves: Mapping[str, Sequence[FloatArray]], setting: Setting) -> str:
    """The accuracies of each way, their lead over random choice, and the labels that it needs."""
    rounds = setting.labels // setting.batch
    shown = [rounds // 4, rounds // 2, rounds]
    budgets = [setting.batch * (rounds // 4), setting.batch * (rounds // 2)]
    head = [f"accuracy at {n * setting.batch}" for n in shown] + [f"lead at {n * setting.batch}" for n in shown]
    head += [f"labels for random's accuracy at {budget}, as a share of its own" for budget in budgets]
    lines = ["| way | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]
    for name, found in curves.items():
        cells = [f"{statistics.fmean(one[n - 1] for one in found):.3f}" for n in shown]
        for n in shown:
            leads = [one[n - 1] - other[n - 1] for one, other in zip(found, curves["random"], strict=True)]
            cells.append("{:+.3f} ({:+.3f} to {:+.3f})".format(*interval(leads)) if name != "random" else "")
        cells += [saved(found, curves["random"], setting.batch, b) if name != "random" else "1" for b in budgets]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def held_out_pairs(data: FilmReviews) -> HeldOutPairs:
    """Pairs of reviews of one test film whose mean ratings lie more than a point apart."""
    test = [review for review in data.rated if film_split(review.film) == "test"]
    return rated_pairs([RatedCompletion(one.film, one.text, one.film, one.mean, one.verdict) for one in test])


def main(argv: Sequence[str] | None = None) -> int:
    """Replay, print a line a curve and the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.choosing", description=__doc__)
    parser.add_argument("--from-dir", type=Path, help="holds the two artefacts of the film demo already")
    parser.add_argument("--cache", type=Path, default=Path("downloads"), help="keeps them otherwise")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--ways", default="uncertain", help=f"besides random, of {', '.join(WAYS)}")
    parser.add_argument("--shown", type=int, default=4, help="reviews a task")
    parser.add_argument("--batch", type=int, default=50, help="labels a round")
    parser.add_argument("--labels", type=int, default=800, help="labels in the end")
    given = parser.parse_args(argv)
    setting = Setting(given.shown, given.batch, given.labels)
    data = read_reviews(fetch(given.cache, given.from_dir))
    train = [review for review in data.rated if film_split(review.film) == "train"]
    held_out = held_out_pairs(data)
    learner = Learner(list(dict.fromkeys(review.text for review in train)), held_out)
    print(f"{len(train)} rated reviews to ask about, {len(held_out.pairs)} held-out pairs, {setting}", flush=True)
    curves: dict[str, list[FloatArray]] = {}
    for name in ["random", *given.ways.split(",")]:
        for seed in range(given.seeds):
            tasks = label_tasks(train, setting.shown, seed)
            curves.setdefault(name, []).append(curve(tasks, WAYS[name], setting, learner, seed))
            print(name, seed, len(tasks), " ".join(f"{one:.4f}" for one in curves[name][-1]), flush=True)
    print(table(curves, setting))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
