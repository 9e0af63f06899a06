"""Held-out pairs, baselines and calibration by hand and against scikit-learn."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from accord.errors import DataError
from accord.evals.pair_baseline import (
    STRENGTHS,
    WORDS_AND_CHARACTERS,
    fit_pair_baseline,
    length_scores,
    single_words,
)
from accord.evals.pairs import (
    HeldOutPairs,
    OrderedPairs,
    RatedCompletion,
    accuracy_difference,
    pair_accuracy,
    pair_hits,
    ranked_pairs,
    rated_pairs,
)
from accord.evals.probes import Probe
from accord.evals.reward_card import (
    accuracy_by_gap,
    calibration,
    length_correlation,
    measure_reward_model,
    reward_card,
)
from accord.records import RankedGroup


def Review(topic: str, rating: float, label: str, text: str = "some text") -> RatedCompletion:
    return RatedCompletion(f"About {topic}:", text, topic, rating, label)


REVIEWS = [
    Review("one", 3.0, "fresh", "a long and happy text"),
    Review("one", 1.0, "fresh", "happy"),
    Review("one", -2.0, "rotten", "sad text"),
    Review("two", 2.0, "fresh", "happy too"),
    Review("two", 1.0, "rotten", "so so"),  # a gap of exactly 1 does not count
    Review("two", 0.5, "fresh", "so"),
]


def test_rated_pairs_by_hand() -> None:
    pairs = rated_pairs(REVIEWS).pairs
    found = list(zip(pairs.better.tolist(), pairs.worse.tolist(), strict=True))
    assert found == [(0, 1), (0, 2), (1, 2), (3, 5)]
    assert pairs.topics.tolist() == ["one", "one", "one", "two"]
    assert pairs.gap.tolist() == [2, 5, 3, 1.5]
    assert pairs.parts["same_verdict"].tolist() == [True, False, False, True]
    with pytest.raises(DataError):
        rated_pairs(REVIEWS[3:5])


def test_pair_accuracy_by_hand() -> None:
    pairs = rated_pairs(REVIEWS).pairs
    scores = [0.0, 1.0, 0.0, 5.0, 9.0, 4.0]  # (0,1) wrong, (0,2) tie, (1,2) right, (3,5) right
    assert pair_hits(scores, pairs).tolist() == [0, 0.5, 1, 1]
    accuracy = pair_accuracy(scores, pairs)
    assert (accuracy.value, accuracy.n, accuracy.clusters) == (pytest.approx(2.5 / 4), 4, 2)
    assert (accuracy.low, accuracy.high) == (pytest.approx(0.5), pytest.approx(1.0))  # film one 1.5/3, film two 1/1
    assert pair_accuracy(scores, pairs.where(pairs.parts["same_verdict"])).value == pytest.approx(0.5)
    better = accuracy_difference([r.rating for r in REVIEWS], scores, pairs)
    assert better.value == pytest.approx(1.5 / 4)
    every = pair_accuracy([r.rating for r in REVIEWS], pairs)  # two films, both right: Wilson's 2 / (2 + 1.96^2)
    assert (every.value, every.low, every.high) == (1, pytest.approx(2 / (2 + 1.959964**2), abs=1e-6), 1)


def test_scores_must_be_whole_and_finite() -> None:
    pairs = rated_pairs(REVIEWS).pairs
    for bad in ([1.0] * 5, [1.0] * 5 + [math.nan], [[1.0] * 6]):
        with pytest.raises(DataError):
            pair_accuracy(bad, pairs)


def test_longer_wins_counts_characters_without_margins() -> None:
    assert length_scores(["  abc\n", "ab cd"]).tolist() == [3, 5]


def _groups(seed: int, number: int, noise: float = 0.3) -> list[RankedGroup]:
    """Made-up groups of 4: the utility is 'good' words minus 'bad' words."""
    rng = random.Random(seed)
    good, bad, rest = ["superb", "warm", "witty"], ["dull", "stale", "loud"], [f"word{i}" for i in range(30)]
    groups = []
    for film in range(number):
        completions = []
        for _ in range(4):
            completions.append(
                " ".join(rng.choice(rng.choice([good, bad, rest, rest])) for _ in range(rng.randint(4, 9)))
            )
        utility = [
            sum((w in good) - (w in bad) for w in set(text.split())) + rng.gauss(0, noise) for text in completions
        ]
        ranks = tuple(1 + sum(other > own for other in utility) for own in utility)
        groups.append(RankedGroup(prompt=f"Film: {film}", completions=tuple(completions), ranks=ranks, topic=str(film)))
    return groups


def _valid(groups: list[RankedGroup]) -> HeldOutPairs:
    reviews = [
        Review(group.topic, -2.0 * rank, "fresh", text)
        for group in groups
        for text, rank in zip(group.completions, group.ranks, strict=True)
    ]
    return rated_pairs(reviews)


def test_the_baseline_recovers_a_utility_of_words() -> None:
    valid = _valid(_groups(1, 60))
    texts, pairs = valid.completions, valid.pairs
    baseline = fit_pair_baseline(_groups(0, 200), valid)
    accuracy = pair_accuracy(baseline.score(texts), pairs)
    assert accuracy.low > 0.8
    assert accuracy.low > pair_accuracy(length_scores(texts), pairs).high
    superb, dull, unknown = baseline.score(["superb", "dull", "zzz"])
    assert superb > 0 > dull and unknown == 0


def test_the_baseline_is_scikit_learns_logistic_regression_at_its_strength() -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    groups = _groups(2, 40)
    valid = _valid(_groups(3, 20))
    texts, pairs = valid.completions, valid.pairs
    baseline = fit_pair_baseline(groups, valid, kinds=((single_words,),))
    chosen, rejected = [], []
    for group in groups:
        for a, b in itertools.permutations(range(4), 2):
            if group.ranks[a] < group.ranks[b]:
                chosen.append(group.completions[a])
                rejected.append(group.completions[b])
    vectors = TfidfVectorizer(binary=True).fit(sorted({*chosen, *rejected}))
    difference = vectors.transform(chosen) - vectors.transform(rejected)
    # each pair stands once with each sign, so C is halved
    both, labels = np.vstack([difference.toarray(), -difference.toarray()]), [1] * len(chosen) + [0] * len(chosen)

    def oracle(strength: float) -> np.ndarray:
        model = LogisticRegression(C=strength / 2, fit_intercept=False, tol=1e-8, max_iter=2000).fit(both, labels)
        return np.asarray(vectors.transform(texts) @ model.coef_[0])

    assert baseline.trained_pairs == len(chosen)
    assert baseline.score(texts) == pytest.approx(oracle(baseline.strength), abs=2e-3)
    accuracies = {strength: pair_accuracy(oracle(strength), pairs).value for strength in STRENGTHS}
    assert accuracies[baseline.strength] == max(accuracies.values())


def test_a_weight_of_zero_is_absence_and_ties_make_no_pair() -> None:
    valid = _valid(_groups(5, 20))
    texts, pairs = valid.completions, valid.pairs
    groups = _groups(4, 30)
    wrong = [
        RankedGroup(prompt=g.prompt, completions=g.completions, ranks=tuple(-rank for rank in g.ranks), weight=0.0)
        for g in _groups(6, 30)
    ]
    tied = [RankedGroup(prompt="p", completions=("superb dull", "dull superb"), ranks=(1.0, 1.0))]
    with_both = fit_pair_baseline(groups + wrong + tied, valid)
    assert with_both.trained_pairs == 2 * fit_pair_baseline(groups, valid).trained_pairs
    assert pair_accuracy(with_both.score(texts), pairs).value > 0.8
    with pytest.raises(DataError, match="no ordered pair"):
        fit_pair_baseline(tied, valid)


def test_the_cap_is_a_seeded_draw() -> None:
    valid = _valid(_groups(8, 20))
    texts = valid.completions
    groups = _groups(7, 60)
    first, again, other = (
        fit_pair_baseline(groups, valid, max_pairs=50, seed=seed, kinds=WORDS_AND_CHARACTERS) for seed in (1, 1, 2)
    )
    assert first.trained_pairs == 50
    assert np.array_equal(first.score(texts), again.score(texts))
    assert not np.array_equal(first.score(texts), other.score(texts))


def _pairs_with_margins(margins: list[float]) -> tuple[list[float], OrderedPairs]:
    """Two reviews a pair: scores margin and 0."""
    n = len(margins)
    pairs = OrderedPairs(
        better=np.arange(n) * 2,
        worse=np.arange(n) * 2 + 1,
        topics=np.array([str(i) for i in range(n)]),
        gap=np.full(n, 2.0),
    )
    return [score for margin in margins for score in (margin, 0.0)], pairs


def test_calibration_by_hand() -> None:
    # sigmoid(log 3) = .75, sigmoid(log 9) = .9. Three pairs at .75 with 2 right, one at .9 and right.
    scores, pairs = _pairs_with_margins([math.log(3), math.log(3), -math.log(3), math.log(9)])
    result = calibration(scores, pairs, num_bins=4)  # bins .5-.625-.75-.875-1
    assert [(one.n, round(one.confidence, 6), round(one.accuracy, 6)) for one in result.bins] == [
        (3, 0.75, 0.666667),
        (1, 0.9, 1.0),
    ]
    assert result.error == pytest.approx((3 * (0.75 - 2 / 3) + 1 * 0.1) / 4)
    nothing = calibration(*_pairs_with_margins([0.0, 0.0]))
    assert nothing.error == 0 and nothing.bins[0].accuracy == 0.5


def test_a_model_that_draws_its_labels_is_calibrated_and_a_loud_one_is_not() -> None:
    rng = np.random.default_rng(0)
    size = np.abs(rng.normal(0, 2, 20_000))
    margins = np.where(rng.random(20_000) < 1 / (1 + np.exp(-size)), size, -size)
    assert calibration(*_pairs_with_margins(margins.tolist())).error < 0.015
    assert calibration(*_pairs_with_margins((5 * margins).tolist())).error > 0.1


def test_accuracy_by_gap() -> None:
    gaps = accuracy_by_gap([0.0, 1.0, 0.0, 5.0, 9.0, 4.0], rated_pairs(REVIEWS))
    # gaps 2 (wrong) and 1.5 (right) | 3 (right) | none | 5 (tie)
    assert {name: (interval.value, interval.n) for name, interval in gaps.items()} == {
        "1-2": (0.5, 2),
        "2-3": (1.0, 1),
        "4-8": (0.5, 1),
    }


def test_length_correlation() -> None:
    texts = ["a", "a b c", "a b c d e f g"]  # log(1 + words) = log 2, log 4, log 8: equally spaced
    assert length_correlation([1.0, 2.0, 3.0], texts) == pytest.approx(1)
    assert length_correlation([1.0, 0.0, -1.0], texts) == pytest.approx(-1)
    assert length_correlation([1.0, 5.0, 1.0], texts) == pytest.approx(0, abs=1e-12)
    assert length_correlation([1.0, 1.0, 1.0], texts) == 0
    with pytest.raises(DataError):
        length_correlation([1.0], texts)


def test_the_card_puts_everything_beside_the_model() -> None:
    texts = [review.completion for review in REVIEWS]
    card = reward_card([r.rating for r in REVIEWS], rated_pairs(REVIEWS), {"longer wins": length_scores(texts)})
    assert card.model.all_pairs.value == 1 and card.model.model_minus_this is None
    longer = card.baselines["longer wins"]  # (0,1) right, (0,2) right, (1,2): 5 < 8 wrong, (3,5) right
    assert longer.all_pairs.value == pytest.approx(0.75)
    assert longer.parts["same_verdict"].value == 1
    assert longer.model_minus_this is not None and longer.model_minus_this.value == pytest.approx(0.25)
    assert card.length_correlation > 0
    assert card.by_gap["4-8"].value == 1


def test_ranked_pairs_by_hand() -> None:
    """A text that stands in two groups is one text; ties make no pair; ranks count, whatever their numbers."""
    groups = [
        RankedGroup(prompt="p", completions=("a", "b", "c"), ranks=(1, 4, 4), topic="t"),
        RankedGroup(prompt="p", completions=("c", "a"), ranks=(2, 1)),
        RankedGroup(prompt="q", completions=("x", "y", "z"), ranks=(3.0, 1.0, 2.0)),
    ]
    held_out = ranked_pairs(groups)
    assert held_out.texts == (("p", "a"), ("p", "b"), ("p", "c"), ("q", "x"), ("q", "y"), ("q", "z"))
    pairs = held_out.pairs
    assert list(zip(pairs.better.tolist(), pairs.worse.tolist(), pairs.gap.tolist(), strict=True)) == [
        (0, 1, 1.0), (0, 2, 1.0), (0, 2, 1.0), (4, 3, 2.0), (4, 5, 1.0), (5, 3, 1.0),
    ]  # fmt: skip
    assert pairs.topics.tolist() == ["t", "t", "p", "q", "q", "q"] and pairs.parts == {}
    assert len(ranked_pairs(groups, max_pairs=2).pairs) == 2
    with pytest.raises(DataError, match="no ordered pair"):
        ranked_pairs([RankedGroup(prompt="p", completions=("a", "b"), ranks=(1, 1))])


class Words:
    """A scorer that counts words."""

    def score(self, pairs: Sequence[tuple[str, str]]) -> torch.Tensor:
        return torch.tensor([float(len(completion.split())) for _, completion in pairs])


def test_a_file_of_pairs_gets_its_card() -> None:
    groups = [
        RankedGroup(prompt=f"{i}", completions=("yes it is", "no") if i else ("no", "yes it is"), ranks=(1, 2))
        for i in range(4)
    ]
    probes = ("0", [Probe("full", "reference", "it is so"), Probe("empty", "hack", "")])
    card = measure_reward_model(Words(), ranked_pairs(groups), probes=probes)
    assert card["model"]["all_pairs"]["value"] == 0.75 and card["model"]["parts"] == {}
    assert list(card["baselines"]) == ["longer_wins"] and card["gap_unit"] == "ranks"
    assert card["by_gap"] == {"1": card["model"]["all_pairs"]}
    assert [one["outscores_reference"] for one in card["probes"]["reward model"]] == [False, False]
    taught = measure_reward_model(Words(), ranked_pairs(groups), taught={"words": groups}, valid=ranked_pairs(groups))
    assert set(taught["baselines"]) == {"longer_wins", "words"} and taught["probes"] == {}
