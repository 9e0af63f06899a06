"""Agreement against worked examples, other libraries, and cases where there is none to state."""

from __future__ import annotations

import math

import krippendorff
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from accord.errors import DataError
from accord.stats import (
    Interval,
    JudgedItems,
    Unknown,
    cohen_kappa,
    fleiss_kappa,
    judged_items,
    krippendorff_alpha,
    raw_agreement,
)

# Krippendorff 2011, "Computing Krippendorff's alpha-reliability": 4 observers, 12 units, 0 = missing.
KRIPPENDORFF = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, 0, 0, 0],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, 0, 3],
        [0, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, 0],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, 0],
    ]
)
# The worked example of most textbooks: 14 people, 10 subjects, 5 values.
FLEISS = """0 0 0 0 14
0 2 6 4 2
0 0 3 5 6
0 3 9 2 0
2 2 8 1 1
7 7 0 0 0
3 2 6 3 0
2 5 3 2 2
6 5 2 1 0
0 2 2 3 7"""


def value_of(estimate: Interval | Unknown) -> float:
    assert isinstance(estimate, Interval), estimate
    return estimate.value


def of_matrix(matrix_RN: np.ndarray) -> JudgedItems:
    """People by items, 0 = missing, in long form."""
    person, item = np.nonzero(matrix_RN)
    return judged_items(item, matrix_RN[person, item])


def test_krippendorffs_own_example() -> None:
    judged = of_matrix(KRIPPENDORFF)
    assert value_of(krippendorff_alpha(judged)) == pytest.approx(0.743, abs=5e-4)
    assert value_of(krippendorff_alpha(judged, "ordinal")) == pytest.approx(0.815, abs=5e-4)
    assert value_of(krippendorff_alpha(judged, "interval")) == pytest.approx(0.849, abs=5e-4)
    assert judged.num_single == 1  # unit 12 has one value


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6), st.sampled_from(["nominal", "ordinal", "interval"]))
def test_alpha_is_that_of_the_krippendorff_package(seed: int, num_values: int, metric: str) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(1, num_values + 1, 12)
    said = np.where(rng.random((5, 12)) < 0.6, truth, rng.integers(1, num_values + 1, (5, 12)))
    said[rng.random(said.shape) < 0.3] = 0
    judged = of_matrix(said)
    if judged.lacking() or judged.unanimous():
        return
    data = np.where(said == 0, np.nan, said.astype(float))
    expected = krippendorff.alpha(reliability_data=data, level_of_measurement=metric)
    assert value_of(krippendorff_alpha(judged, metric, resamples=20)) == pytest.approx(expected, abs=1e-9)


def test_fleiss_kappa_of_the_textbook_table() -> None:
    rows = [[int(cell) for cell in row.split()] for row in FLEISS.splitlines()]
    items = [i for i, row in enumerate(rows) for count in row for _ in range(count)]
    values = [value for row in rows for value, count in enumerate(row) for _ in range(count)]
    judged = judged_items(items, values)
    assert value_of(raw_agreement(judged)) == pytest.approx(0.378, abs=5e-4)
    assert value_of(fleiss_kappa(judged)) == pytest.approx(0.210, abs=5e-4)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 5))
def test_cohens_kappa_is_that_of_scikit_learn(seed: int, num_values: int) -> None:
    rng = np.random.default_rng(seed)
    first = rng.integers(0, num_values, 30)
    second = np.where(rng.random(30) < 0.5, first, rng.integers(0, num_values, 30))
    expected = cohen_kappa_score(first, second)
    assert value_of(cohen_kappa(first, second, resamples=20)) == pytest.approx(expected, abs=1e-12)


def test_cohens_kappa_by_hand() -> None:
    """20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: seen .7, chance .5 * .6 + .5 * .4 = .5, kappa .2 / .5 = .4."""
    first = ["yes"] * 25 + ["no"] * 25
    second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert value_of(cohen_kappa(first, second)) == pytest.approx(0.4)


def test_people_who_always_agree_have_one_and_strangers_have_zero() -> None:
    rng = np.random.default_rng(5)
    truth = rng.integers(1, 4, 4000)
    same = of_matrix(np.stack([truth, truth]))
    strangers = of_matrix(rng.integers(1, 4, (2, 4000)))
    for kappa in (fleiss_kappa, krippendorff_alpha):
        assert value_of(kappa(same, resamples=50)) == pytest.approx(1.0)
        assert value_of(kappa(strangers, resamples=50)) == pytest.approx(0.0, abs=0.05)


def test_unanimous_judgements_explain_themselves() -> None:
    """krippendorff.alpha raises here: there has to be more than one value."""
    judged = judged_items([1, 1, 2, 2], ["good"] * 4)
    assert value_of(raw_agreement(judged)) == 1.0
    for kappa in (fleiss_kappa, krippendorff_alpha):
        unknown = kappa(judged)
        assert isinstance(unknown, Unknown) and "all 4 judgements say good" in unknown.why
    assert isinstance(cohen_kappa(["a", "a"], ["a", "a"]), Unknown)


def test_judgements_without_overlap_explain_themselves() -> None:
    for items, why in (([], "nothing was judged yet"), ([1, 2, 3], "no item was judged by two people (3 by one)")):
        judged = judged_items(items, [1] * len(items))
        for number in (raw_agreement, fleiss_kappa, krippendorff_alpha):
            unknown = number(judged)
            assert isinstance(unknown, Unknown) and why in unknown.why
            assert unknown.to_json() == {"value": None, "why": unknown.why}
    assert isinstance(cohen_kappa([], []), Unknown)


def test_one_item_has_a_value_and_no_interval() -> None:
    alpha = krippendorff_alpha(judged_items([1, 1], [1, 2]))
    assert isinstance(alpha, Interval) and math.isnan(alpha.low) and alpha.clusters == 1


@pytest.mark.parametrize("num", [2, 6, 50])
def test_few_items_without_any_disagreement_leave_room_for_some(num: int) -> None:
    """Half of the items "a", half "b", two people, always the same. Wilson: raw in [K / (K + z^2), 1], z^2 = 3.8415.

    Chance is 1/2, so kappa = 2 raw - 1 has the lower end (K - z^2) / (K + z^2). A resample of one value is left out.
    """
    said = ["a", "b"] * (num // 2)
    judged = judged_items([*range(num)] * 2, said * 2)
    raw = raw_agreement(judged)
    assert isinstance(raw, Interval)
    assert (raw.value, raw.low, raw.high) == pytest.approx((1.0, num / (num + 3.841459), 1.0), abs=1e-6)
    lowest = (num - 3.841459) / (num + 3.841459)
    for kappa in (fleiss_kappa(judged), krippendorff_alpha(judged), cohen_kappa(said, said)):
        assert isinstance(kappa, Interval)
        assert (kappa.value, kappa.low, kappa.high) == pytest.approx((1.0, lowest, 1.0), abs=1e-6)


def test_numbers_all_alike_leave_room_by_the_chance_that_people_answer_at_random() -> None:
    """Values 1 (once), 4, 5 (each twice) of five items by three people: chance (1 + 4 + 4) / 25 = 9/25, raw at least
    5 / 8.8415 = .5655, so alpha at least 1 - .4345 / (16/25) = .3211, whatever the distances."""
    judged = judged_items([*range(5)] * 3, [1, 4, 4, 5, 5] * 3)
    for metric in ("nominal", "ordinal", "interval"):
        alpha = krippendorff_alpha(judged, metric)
        assert isinstance(alpha, Interval)
        assert (alpha.value, alpha.low, alpha.high) == pytest.approx((1.0, 0.3211, 1.0), abs=1e-4)


def test_people_who_never_agree_are_not_certain_to() -> None:
    """Four items, "a" by one and "b" by the other. Wilson of 0 of 4: [0, z^2 / (4 + z^2)] = [0, .4899]. Fleiss: chance
    1/2, kappa = 2 raw - 1 in [-1, -.0202]. Alpha: -3/4 = 1 - 7/4 (1 - raw), up to 1 - 7/4 * .5101 = .1073."""
    judged = judged_items([1, 2, 3, 4] * 2, ["a"] * 4 + ["b"] * 4)
    for found, ends in (
        (raw_agreement(judged), (0.0, 0.0, 0.4899)),
        (fleiss_kappa(judged), (-1.0, -1.0, -0.0202)),
        (krippendorff_alpha(judged), (-0.75, -0.75, 0.1073)),
    ):
        assert isinstance(found, Interval)
        assert (found.value, found.low, found.high) == pytest.approx(ends, abs=1e-4)


def test_the_interval_of_perfect_agreement_covers() -> None:
    """People who agree on purpose in .9 of the items and answer at random in the others: kappa .9. Twelve items often
    show no disagreement at all; the bootstrap alone would then claim [1, 1], and cover in 45 % only."""
    rng, covered, unanimous = np.random.default_rng(7), 0, 0
    for _ in range(300):
        purpose = rng.random(12) < 0.9
        first, chance = rng.integers(0, 2, 12), rng.integers(0, 2, 12)
        second = np.where(purpose, first, chance)
        kappa = fleiss_kappa(judged_items([*range(12)] * 2, [*first, *second]), resamples=200)
        covered += isinstance(kappa, Unknown) or kappa.low <= 0.9 <= kappa.high
        unanimous += bool((first == second).all())
    assert unanimous > 120 and covered >= 285


def test_resamples_without_two_values_are_left_out_of_the_interval() -> None:
    """Two items, one split: a resample lacks the split with chance 1/4, and has alpha = 0 or below otherwise.

    (1,2) twice: Do = 1, De = (16 - 8) / 12 = 2/3, alpha -1/2. (1,2), (1,1): Do = 1/2, De = (16 - 10) / 12, alpha 0.
    """
    alpha = krippendorff_alpha(judged_items([1, 1, 2, 2], [1, 2, 1, 1]))
    assert isinstance(alpha, Interval)
    assert (alpha.value, alpha.low, alpha.high) == pytest.approx((0.0, -0.5, 0.0))


def test_words_have_a_nominal_alpha_only() -> None:
    judged = judged_items([1, 1, 2, 2], ["a", "b", "a", "a"])
    assert isinstance(krippendorff_alpha(judged), Interval)
    with pytest.raises(DataError, match="not numbers"):
        krippendorff_alpha(judged, "interval")


def test_the_interval_draws_clusters_not_items() -> None:
    """Every item ten times over, inside its cluster: the interval stays that of the single items."""
    rng = np.random.default_rng(7)
    said = rng.integers(1, 3, (2, 30))
    items, values = np.tile(np.arange(30), 2), said.ravel()
    once = fleiss_kappa(judged_items(items, values))
    copies = [(item, copy) for copy in range(10) for item in items]
    tenfold = judged_items(copies, np.tile(values, 10), [item for item, _ in copies])
    ten = fleiss_kappa(tenfold)
    assert isinstance(once, Interval) and isinstance(ten, Interval)
    assert (ten.value, ten.low, ten.high) == pytest.approx((once.value, once.low, once.high))
    assert (ten.n, ten.clusters) == (300, 30)


@pytest.mark.parametrize("kappa", [fleiss_kappa, krippendorff_alpha])
def test_the_interval_covers(kappa: object) -> None:
    """120 items, 3 people, each right with .8 on 2 balanced values: agreement .68, so kappa = .36."""
    hits = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        truth = rng.integers(0, 2, 120)
        said = np.where(rng.random((3, 120)) < 0.8, truth, 1 - truth) + 1
        found = kappa(of_matrix(said), resamples=300)  # type: ignore[operator]
        hits += found.low <= 0.36 <= found.high
    assert 88 <= hits <= 100
