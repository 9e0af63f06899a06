"""Models of annotators: planted habits are recovered, small cases by hand, and what the priors hold together."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest

from accord.errors import DataError
from accord.stats import DawidSkene, bradley_terry_with_annotators, dawid_skene

ACCURACY = {"ann": 0.95, "bea": 0.85, "cid": 0.75, "dan": 0.6, "eve": 0.5, "fox": 0.2}


def judgements(seed: int, num_items: int = 400, overlap: int = 4) -> tuple[list[int], list[str], list[int], np.ndarray]:
    """Items of two equally common truths, each judged by some of six people of known accuracy."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, num_items)
    rows = [
        (item, person, int(truth[item] if rng.random() < ACCURACY[person] else 1 - truth[item]))
        for item in range(num_items)
        for person in rng.choice(list(ACCURACY), overlap, replace=False).tolist()
    ]
    items, people, values = (list(column) for column in zip(*rows, strict=True))
    return items, people, values, truth


def by_person(fitted: DawidSkene, field: str) -> dict[str, object]:
    return dict(zip(fitted.annotators, getattr(fitted, field), strict=True))


def test_dawid_skene_recovers_planted_accuracies() -> None:
    items, people, values, truth = judgements(0)
    fitted = dawid_skene(items, people, values)
    for person, interval in by_person(fitted, "accuracy").items():
        assert interval.value == pytest.approx(ACCURACY[person], abs=0.09), person
    kappa = {person: interval.value for person, interval in by_person(fitted, "kappa").items()}
    assert kappa["eve"] == pytest.approx(0.0, abs=0.12)  # who guesses
    assert kappa["fox"] < -0.25 and kappa["dan"] > 0.02
    assert min(kappa["ann"], kappa["bea"]) > kappa["cid"] > kappa["dan"] > kappa["eve"]
    votes = np.array([np.mean([v for i, v in zip(items, values, strict=True) if i == item]) for item in range(400)])
    by_vote = ((votes > 0.5) == truth).mean() * (votes != 0.5).mean() + 0.5 * (votes == 0.5).mean()
    assert (fitted.posterior_NC.argmax(axis=1) == truth).mean() > by_vote + 0.05


@dataclass(frozen=True)
class Planted:
    """People of known accuracy, and the least that a stated .95 may cover: of each person, of the best of them."""

    accuracy: tuple[float, ...]
    num_items: int
    overlap: int
    each: float
    best: float

    def experiment(self, rng: np.random.Generator, level: float = 0.95) -> np.ndarray:
        """Return (A, 3) accuracy and bounds that are found."""
        truth = rng.integers(0, 2, self.num_items)
        person = rng.random((self.num_items, len(self.accuracy))).argsort(axis=1)[:, : self.overlap]
        right = rng.random(person.shape) < np.array(self.accuracy)[person]
        value = np.where(right, truth[:, None], 1 - truth[:, None])
        items = np.repeat(np.arange(self.num_items), self.overlap)
        fitted = dawid_skene(items.tolist(), person.ravel().tolist(), value.ravel().tolist(), level=level)
        found = np.array([(one.value, one.low, one.high) for one in fitted.accuracy])
        return found[np.argsort(fitted.annotators)]


PLANTED = [
    Planted((0.95, 0.8, 0.7), 200, 3, 0.95, 0.93),  # with the fit taken as known .86, of the best .70
    Planted((0.95, 0.85, 0.8, 0.75, 0.7), 120, 2, 0.94, 0.86),  # and .83, .64
]


@pytest.mark.slow
@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: f"{len(planted.accuracy)}-people")
def test_the_intervals_of_accuracy_cover(planted: Planted) -> None:
    """Over 60 experiments .94 stands for .95 with a deviation of .016 of the mean over three people or more."""
    rng, accuracy = np.random.default_rng(0), np.array(planted.accuracy)
    found = np.array([planted.experiment(rng) for _ in range(60)])
    hits = (found[..., 1] <= accuracy) & (accuracy <= found[..., 2])
    assert hits.mean() >= planted.each - 0.016
    assert hits[:, accuracy.argmax()].mean() >= planted.best - 0.03
    assert ((found[..., 1] <= found[..., 0]) & (found[..., 0] <= found[..., 2])).all()
    # not by being as wide as the scale
    assert (found[..., 2] - found[..., 1]).mean() < 0.4


@pytest.mark.slow
def test_at_sidaks_level_whoever_comes_out_best_is_covered() -> None:
    """Ten people alike: the first by the fit is so by luck, and one person's interval covers .86 of those."""
    team = Planted(10 * (0.8,), 80, 5, 0, 0)
    rng = np.random.default_rng(1)
    found = np.array([team.experiment(rng, 0.95 ** (1 / 10)) for _ in range(60)])
    best = found[np.arange(60), found[..., 0].argmax(axis=1)]
    assert ((best[:, 1] <= 0.8) & (best[:, 2] >= 0.8)).mean() >= 0.93


def test_em_never_descends() -> None:
    objectives = dawid_skene(*judgements(3)[:3]).objectives
    assert len(objectives) > 3
    assert all(later >= earlier - 1e-9 * abs(earlier) for earlier, later in pairwise(objectives))


def test_one_person_and_known_truths_by_hand() -> None:
    """Four gold items, truths a a b b, said a b b b; pseudo-judgements 1 right and 1/2 wrong for each truth.

    Confusion of truth a: (1 + 1, 1 + .5) / 3.5; of truth b: (0 + .5, 2 + 1) / 3.5. Shares: 2 + 1 of 6 each.
    Accuracy 3/4 (known truths need no others); the person says a 1/4 and b 3/4 of the time, so chance is 1/2 and kappa
    (3/4 - 1/2) / (1/2) = 1/2.
    """
    fitted = dawid_skene([1, 2, 3, 4], ["p"] * 4, list("abbb"), known={1: "a", 2: "a", 3: "b", 4: "b", 9: "a"})
    assert fitted.confusion_ACC[0] == pytest.approx(np.array([[2, 1.5], [0.5, 3]]) / 3.5)
    assert fitted.share_C == pytest.approx([0.5, 0.5])
    assert fitted.accuracy[0].value == pytest.approx(0.75)
    assert fitted.kappa[0].value == pytest.approx(0.5)
    assert fitted.posterior_NC == pytest.approx(np.array([[1, 0], [1, 0], [0, 1], [0, 1]]))


def test_known_truths_tell_a_wrong_majority_from_a_right_minority() -> None:
    """Three of four people turn every answer round. Votes alone believe them; twenty gold questions do not."""
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 2, 100)
    items = np.repeat(np.arange(100), 4)
    people = np.tile(np.arange(4), 100)
    values = np.where(people == 0, truth[items], 1 - truth[items])
    alone = dawid_skene(items.tolist(), people.tolist(), values.tolist())
    known = {item: int(truth[item]) for item in range(20)}
    told = dawid_skene(items.tolist(), people.tolist(), values.tolist(), known=known)
    assert alone.accuracy[0].value < 0.1
    assert told.accuracy[0].value > 0.9 and told.accuracy[1].value < 0.1


def test_who_always_says_the_same_is_nobody_beyond_chance() -> None:
    items, people, values, _ = judgements(4)
    stuck = [1] * 400
    fitted = dawid_skene(items + list(range(400)), people + ["same"] * 400, values + stuck)
    kappa = by_person(fitted, "kappa")["same"]
    assert kappa.value == pytest.approx(0.0, abs=0.02)


def test_kappa_does_not_count_a_persons_own_word() -> None:
    """Two who guess, two judgements an item: with the own word counted, each would seem right in far over half."""
    rng = np.random.default_rng(6)
    items, people = np.repeat(np.arange(400), 2).tolist(), ["a", "b"] * 400
    fitted = dawid_skene(items, people, rng.integers(0, 2, 800).tolist())
    assert all(abs(kappa.value) < 0.12 for kappa in fitted.kappa)


def test_unsure_truths_widen_the_interval_of_the_accuracy() -> None:
    items, people, values, truth = judgements(7, num_items=200, overlap=2)
    unsure = by_person(dawid_skene(items, people, values), "accuracy")["cid"]
    told = by_person(dawid_skene(items, people, values, known=dict(enumerate(truth.tolist()))), "accuracy")["cid"]
    assert told.n == unsure.n and unsure.high - unsure.low > 1.15 * (told.high - told.low)


def test_the_pairs_of_one_ranking_are_one_trial() -> None:
    items, people, values, _ = judgements(5)
    clusters = [item // 10 for item in items]
    single, clustered = dawid_skene(items, people, values), dawid_skene(items, people, values, clusters)
    for one, ten in zip(single.accuracy, clustered.accuracy, strict=True):
        assert ten.clusters == 40 and one.clusters == one.n
        assert ten.high - ten.low > 1.5 * (one.high - one.low)


def test_without_smoothing_whoever_saw_no_known_item_divides_by_nothing() -> None:
    """Items 1 and 2 are known and judged by a alone; b has judged the third with a. Nothing is penalised."""
    items, people = [1, 2, 3, 3, 4, 4], ["a", "a", "a", "b", "a", "b"]
    fitted = dawid_skene(items, people, list("xyxxyy"), known={1: "x", 2: "y"}, smoothing=0.0)
    # a was right of both known ones, so what a says of the others is true, and b says the same
    assert fitted.posterior_NC == pytest.approx(np.array([[1, 0], [0, 1], [1, 0], [0, 1]]), abs=1e-6)
    assert fitted.confusion_ACC == pytest.approx(np.array([np.eye(2)] * 2), abs=1e-6)
    assert np.isfinite(fitted.objectives).all() and [one.value for one in fitted.accuracy] == pytest.approx([1, 1])


def test_one_value_in_all_is_no_failure() -> None:
    fitted = dawid_skene([1, 1, 2], ["a", "b", "a"], ["x", "x", "x"])
    assert fitted.posterior_NC == pytest.approx(np.ones((2, 1)))
    with pytest.raises(DataError, match="0 items"):
        dawid_skene([], [], [])


# ---- Bradley-Terry with annotators ---------------------------------------------------------------------------------

SCALE = {"typical": 1.0, "sharp": 1.5, "vague": 0.5, "random": 0.0, "flipped": -1.0, "left": 1.0, "right": 1.0}
LEFT = {"left": 1.5, "right": -1.0}


def comparisons(seed: int, prompts: int, k: int, overlap: int = 3) -> tuple[list[object], ...]:
    """All pairs of k completions of each prompt, each by some of seven people, in either order."""
    rng = np.random.default_rng(seed)
    rows = []
    for prompt in range(prompts):
        theta = rng.normal(0, 1.5, k)
        for i in range(k):
            for j in range(i):
                for person in rng.choice(list(SCALE), overlap, replace=False).tolist():
                    one, two = (i, j) if rng.random() < 0.5 else (j, i)
                    odds = SCALE[person] * (theta[one] - theta[two]) + LEFT.get(person, 0.0)
                    won = float(rng.random() < 1 / (1 + np.exp(-odds)))
                    rows.append(((prompt, one), (prompt, two), person, won))
    return tuple(list(column) for column in zip(*rows, strict=True))


def test_planted_scales_and_left_biases_are_recovered() -> None:
    fitted = bradley_terry_with_annotators(*comparisons(0, prompts=150, k=4))
    scale = dict(zip(fitted.annotators, (interval.value for interval in fitted.scale), strict=True))
    left = dict(zip(fitted.annotators, fitted.left, strict=True))
    for person, planted in SCALE.items():
        assert scale[person] == pytest.approx(planted, abs=0.35), person
    assert scale["sharp"] > scale["typical"] > scale["vague"] > scale["random"] > scale["flipped"]
    for person in SCALE:
        assert left[person].value == pytest.approx(LEFT.get(person, 0.0), abs=0.35), person
        assert (left[person].low > 0 or left[person].high < 0) == (person in LEFT), person
    assert fitted.spread == pytest.approx(1.5, abs=0.3)


def test_scales_do_not_grow_where_pairs_are_judged_three_times() -> None:
    """Maximising strengths and scales together would give typical people scales above 2 here."""
    fitted = bradley_terry_with_annotators(*comparisons(1, prompts=250, k=2))
    scale = dict(zip(fitted.annotators, (interval.value for interval in fitted.scale), strict=True))
    assert 0.6 < scale["typical"] < 1.5 and abs(scale["random"]) < 0.45


def test_strengths_are_recovered_when_all_are_compared_with_all() -> None:
    rng = np.random.default_rng(2)
    theta = np.linspace(-2, 2, 9)
    first, second = rng.integers(0, 9, 4000), rng.integers(0, 9, 4000)
    first, second = first[first != second], second[first != second]
    won = (rng.random(len(first)) < 1 / (1 + np.exp(theta[second] - theta[first]))).astype(float)
    fitted = bradley_terry_with_annotators(first.tolist(), second.tolist(), ["one"] * len(first), won)
    found = np.array([dict(zip(fitted.items, fitted.theta, strict=True))[item] for item in range(9)])
    assert found * fitted.scale[0].value == pytest.approx(theta, abs=0.25)


def test_unconnected_and_one_sided_comparisons_are_held_together() -> None:
    fitted = bradley_terry_with_annotators(["a", "c"], ["b", "d"], ["p", "q"], [1.0, 0.5])
    theta = dict(zip(fitted.items, fitted.theta, strict=True))
    assert theta["a"] > 0 > theta["b"] and theta["c"] == pytest.approx(theta["d"])
    assert np.isfinite(fitted.theta).all()


@pytest.mark.parametrize(("num_people", "num_turned"), [(5, 1), (5, 2), (10, 1), (3, 0)])
def test_people_who_never_waver_have_finite_strengths_and_the_turned_are_found(
    num_people: int, num_turned: int
) -> None:
    """60 pairs on which all agree, but some the wrong way round: nothing in the data bounds the strengths."""
    draw = random.Random(0)
    rows = []
    for pair in range(60):
        first_is_better = draw.random() < 0.5
        rows += [(f"{pair}a", f"{pair}b", p, float(first_is_better != (p < num_turned))) for p in range(num_people)]
    fitted = bradley_terry_with_annotators(*map(list, zip(*rows, strict=True)))
    scale = [interval.value for interval in fitted.scale]
    assert fitted.spread <= 4 and max(abs(fitted.theta)) < 8
    assert all(-2 < value < -0.5 for value in scale[:num_turned]) and all(1 < value < 2 for value in scale[num_turned:])


def test_a_tie_counts_half_and_the_order_of_the_two_does_not_matter() -> None:
    one = bradley_terry_with_annotators([*"abab"], [*"bacc"], ["p"] * 4, [0.5, 0.5, 1.0, 1.0])
    assert one.theta[0] == pytest.approx(one.theta[1], abs=1e-9)
    assert one.theta[0] > one.theta[2]
    items, people = ["a", "a", "b", "b"], ["p"] * 4
    swapped = bradley_terry_with_annotators(["b", "c", "c", "a"], items, people, [0.0, 1.0, 1.0, 1.0])
    straight = bradley_terry_with_annotators(items, ["b", "c", "c", "a"], people, [1.0, 0.0, 0.0, 0.0])
    mirrored = dict(zip(swapped.items, swapped.theta, strict=True))
    for item, value in zip(straight.items, straight.theta, strict=True):
        assert value == pytest.approx(mirrored[item], abs=1e-6)
    assert straight.left[0].value == pytest.approx(-swapped.left[0].value, abs=1e-6)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (([1], [1], ["p"], [1.0]), "with itself"),
        (([1], [2], ["p"], [1.5]), "between 0 and 1"),
        (([1], [2, 3], ["p"], [1.0]), "must match"),
        (([], [], [], []), "N > 0"),
    ],
)
def test_senseless_comparisons_are_refused(rows: tuple[list[object], ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        bradley_terry_with_annotators(*rows)
