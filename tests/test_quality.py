"""The judgement of the judgements: planted defects are found, honest people are left alone, and numbers by hand."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
from labelling import Workshop, gold, make_tasks

from accord.demo.film_reviews import RatedReview
from accord.demo.raters import ReplayedRater, blocks, review_tasks
from accord.errors import UsageError
from accord.people.desk.rows import Skip
from accord.people.quality import Quality, weights
from accord.people.quality.alarms import alarms
from accord.people.simulation.annotators import ShownTask, synthetic
from accord.stats import Interval, Unknown

AXES = ("helpfulness", "harmlessness", "truthfulness")

DEFECTS = {"position": 1, "length": 1, "random": 1, "tie": 1, "flipped": 1, "fast": 1, "dropout": 1}
FOUND = {
    "position": {"position-biased"},
    "length": {"length-biased"},
    "random": {"random"},
    "tie": {"always-tie"},
    "flipped": {"flipped"},
    "fast": {"too fast", "random"},
}


def workshop(kind: str, size: int, seed: int, defects: dict[str, int] | None = None, num_tasks: int = 150) -> Workshop:
    team = synthetic(18, gold, seed, DEFECTS if defects is None else defects)
    return Workshop(make_tasks(kind, num_tasks, size, 5, seed), team, seed)


def found(quality: Quality) -> dict[str, set[str]]:
    """Alarms by planted defect; honest people under "", the team under "team"."""
    by_defect: dict[str, set[str]] = {}
    for alarm in quality.alarms:
        defect = alarm.who.removeprefix("synthetic ")[3:] if alarm.who else "team"
        by_defect.setdefault(defect, set()).add(alarm.name)
    return by_defect


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "size"), [("pair", 2), ("ranking", 4), ("rating", 3)])
def test_planted_defects_are_found_and_nobody_else_is_accused(kind: str, size: int) -> None:
    quality = workshop(kind, size, seed=1).work()
    seen = found(quality)
    if kind == "rating":
        assert seen["tie"] == {"always-tie", "one answer"}
        seen["tie"].discard("one answer")
    assert seen == FOUND


@pytest.mark.slow
def test_planted_defects_of_labels_are_found() -> None:
    seen = found(workshop("label", 3, seed=1).work())
    assert seen.keys() == {"position", "length", "random", "tie", "flipped", "fast"}
    assert seen["flipped"] == {"flipped"} and seen["tie"] == {"one answer"} and "too fast" in seen["fast"]


@pytest.mark.slow
def test_a_coin_is_found_on_a_short_record_and_nobody_else_is_accused() -> None:
    """29 pairs each of six people, three a pair; one of them flips coins. The 95 % interval alone finds 19 of 24."""
    teams = [
        Workshop(make_tasks("pair", 58, 2, 3, seed), synthetic(6, gold, seed, {"random": 1}), seed)
        for seed in range(24)
    ]
    quality = [team.work() for team in teams]
    accused = [(alarm.name, alarm.who.endswith("random")) for one in quality for alarm in one.alarms]
    assert accused.count(("random", True)) >= 21 and not [name for name, is_coin in accused if not is_coin]


@pytest.mark.parametrize(
    ("kappa", "high", "is_told"),
    [
        (0.20, 0.52, True),  # a quarter of .8, and .20 + 2.326 / 1.960 * .32 = .58 is below .8
        (0.25, 0.52, False),  # nearly a third: may be somebody weak
        (0.20, 0.72, False),  # up to .20 + 2.326 / 1.960 * .52 = .82: a typical person may look so
        (0.30, 0.47, True),  # a long record, wholly below .6 of .8
    ],
)
def test_who_agrees_little_is_told_by_how_little_and_how_surely(kappa: float, high: float, is_told: bool) -> None:
    shop = two_people()
    shop.submit(1, shop.tasks[0], (0, 1), {"ranks": [1, 2]})
    (row,) = shop.report().people
    intervals = [
        Interval(value, 2 * value - top, top, 29, 29) for value, top in ((0.8, 0.9), (0.8, 0.9), (kappa, high))
    ]
    told = alarms([replace(row, kappa=one) for one in intervals], ())
    assert [alarm.name for alarm in told] == ["random"] * is_told


def test_who_works_with_one_other_alone_may_be_low_by_the_others_fault() -> None:
    """Ann and Bea share five tasks, in three of them with nobody else: partners; Cy has two, with both. With a fourth
    task of all three they are no partners: three of six are not most."""
    shop = Workshop(make_tasks("pair", 6, 2, 3, 0), [ReplayedRater(name, {}) for name in ("ann", "bea", "cy")])
    crews = [(1, 2), (1, 2), (1, 2), (1, 2, 3), (1, 2, 3)]
    for task, crew in zip(shop.tasks, crews, strict=False):
        for person_id in crew:
            shop.submit(person_id, task, (0, 1), {"ranks": [1, 2]})
    assert [row.partner for row in shop.report().people] == ["bea", "ann", ""]
    (row, *_) = shop.report().people
    told = alarms([replace(row, kappa=Interval(value, 0.0, value, 29, 29)) for value in (0.9, 0.9, 0.1)], ())
    assert [alarm.cause.partition("; ")[2] for alarm in told] == ["or bea does: nobody else judged most of these tasks"]
    for person_id in (1, 2, 3):
        shop.submit(person_id, shop.tasks[5], (0, 1), {"ranks": [1, 2]})
    assert [row.partner for row in shop.report().people] == ["", "", ""]


@pytest.mark.slow
def test_an_honest_team_is_left_alone() -> None:
    """Eight honest teams of 18, nine checks each: an accusation is an error in at most one of a thousand."""
    accused = [alarm for seed in range(8) for alarm in workshop("pair", 2, seed, {}, 100).work().alarms]
    assert len(accused) <= 1


@pytest.mark.slow
def test_weights_tell_good_from_bad() -> None:
    quality = workshop("ranking", 4, seed=2).work()
    given = weights(quality)
    assert all(0 < weight <= 1 for weight in given.values()) and len(given) == 18
    by_defect = {row.name[13:]: row.weight for row in quality.people}
    honest = [row.weight for row in quality.people if not row.name[13:]]
    assert min(honest) > 0.7 and max(honest) == 1.0
    for defect in ("position", "random", "tie", "flipped", "fast"):
        assert by_defect[defect] < 0.45, defect
    assert by_defect["flipped"] == 0.05
    assert by_defect["dropout"] > 0.7  # six honest answers: drawn towards the team
    reasons = {row.name[13:]: row.weight_reason for row in quality.people}
    assert "against the team's median" in reasons["random"]


def test_who_stops_while_there_is_more_to_do_is_named_with_the_number_of_answers() -> None:
    quality = workshop("pair", 2, seed=3).work()
    assert {row.name[13:]: row.silent_after for row in quality.people if row.silent_after} == {"dropout": 6}


def test_the_report_is_plain_json_with_every_number_an_interval_or_a_reason() -> None:
    told = json.loads(json.dumps(workshop("ranking", 3, seed=4, num_tasks=30).work().to_json(), allow_nan=False))
    person = told["people"][0]
    for name in ("gold", "kappa", "accuracy", "first_shown", "longer", "repeats", "words_per_s", "scale", "left"):
        assert set(person[name]) in ({"value", "low", "high", "n", "clusters"}, {"value", "why"}), name
    assert told["agreement"][0]["measure"] == "order of two, simulated annotators" and "alpha" in told["definitions"]


# ---- by hand ---------------------------------------------------------------------------------------------------------


def two_people(kind: str = "pair", num_tasks: int = 4, size: int = 2) -> Workshop:
    raters = [ReplayedRater(name, {}) for name in ("ann", "bea")]
    return Workshop(make_tasks(kind, num_tasks, size, 2, 0), raters)


def test_people_and_programs_are_compared_each_among_themselves() -> None:
    """Ann and Bea agree on all four tasks; two programs on none of them, nor with people. Raw agreement: 1, and 0."""
    shop = Workshop(make_tasks("pair", 4, 2, 4, 0), [ReplayedRater(name, {}) for name in ("ann", "bea", "p1", "p2")])
    shop.people = [replace(person, simulated=person.id > 2) for person in shop.people]
    for number, task in enumerate(shop.tasks):
        for person_id, ranks in ((1, [1, 2]), (2, [1, 2]), (3, [2, 1]), (4, [1, 2] if number == 9 else [1, 1])):
            shop.submit(person_id, task, (0, 1), {"ranks": ranks})
    quality = shop.report()
    raw = {row.measure: row.raw.value for row in quality.agreement if isinstance(row.raw, Interval)}
    assert raw == {"order of two": 1.0, "order of two, simulated annotators": 0.0}
    assert {row.people for row in quality.couples} == {("ann", "bea"), ("p1", "p2")}
    # People dispute nothing; the programs dispute every task, and nobody's name stands beside theirs.
    assert {name for row in quality.disputed for name, _ in row.split} == {"p1", "p2"} and quality.num_disputed == 4
    assert [row.name for row in quality.people] == ["ann", "bea", "p1", "p2"]
    shop.submissions = [one for one in shop.submissions if one.person_id < 3]
    alone = {row.name: row.weight for row in shop.report().people}
    assert {row.name: row.weight for row in quality.people if not row.simulated} == alone
    assert quality.first_shown.value == 1.0  # of people: of both it would be 8 of 12


def test_nothing_answered_yet_explains_itself() -> None:
    quality = two_people().report()
    assert (quality.num_answers, quality.answers_left, quality.people, quality.agreement) == (0, 8, (), ())
    assert isinstance(quality.per_hour, Unknown) and isinstance(quality.hours_left, Unknown)
    json.dumps(quality.to_json(), allow_nan=False)


def test_lenience_by_hand() -> None:
    """Ann gives 5, 6, 4 where Bea gives 3, 3, 5: 2, 3 and -1 above her, so 4/3; Bea is as far below; on all axes."""
    shop = two_people("rating", num_tasks=3, size=1)
    for task, ann, bea in zip(shop.tasks, (5, 6, 4), (3, 3, 5), strict=True):
        for person, value in ((1, ann), (2, bea)):
            shop.submit(person, task, (0,), {"ratings": [dict.fromkeys(AXES, value)]})
    told = [row.lenience for row in shop.report().people]
    assert [round(one.value, 9) for one in told if isinstance(one, Interval)] == [round(4 / 3, 9), round(-4 / 3, 9)]
    assert all(one.low <= one.value <= one.high and one.clusters == 3 for one in told if isinstance(one, Interval))


def test_who_rates_alone_is_neither_lenient_nor_strict() -> None:
    shop = two_people("rating", num_tasks=1, size=1)
    shop.submit(1, shop.tasks[0], (0,), {"ratings": [dict.fromkeys(AXES, 4)]})
    (row,) = shop.report().people
    assert isinstance(row.lenience, Unknown)


def test_agreement_and_left_wins_by_hand() -> None:
    """Four pairs. Ann sees them as listed, Bea turned round. Same, same, opposite, tie against first.

    Raw agreement 2/4. Ann prefers the one shown first in 2 of 3 (task 4 is a tie), Bea in 1 of 4.
    """
    shop = two_people()
    ann = ([1, 2], [2, 1], [1, 2], [1, 1])
    bea = ([2, 1], [1, 2], [2, 1], [2, 1])  # turned round: best is the listed first, second, first, first
    for task, a, b in zip(shop.tasks, ann, bea, strict=True):
        shop.submit(1, task, (0, 1), {"ranks": a})
        shop.submit(2, task, (1, 0), {"ranks": b})
    quality = shop.report()
    by_name = {row.name: row for row in quality.people}
    assert quality.agreement[0].raw.value == pytest.approx(3 / 4)
    assert by_name["ann"].first_shown.value == pytest.approx(2 / 3)
    assert by_name["bea"].first_shown.value == pytest.approx(1 / 4)
    assert by_name["ann"].tied.value == pytest.approx(1 / 4)
    assert [row.agrees.value for row in quality.people] == pytest.approx([3 / 4, 3 / 4])  # with the other, not oneself
    assert quality.answers_left == 0 and quality.hours_left.value == 0.0
    (couple,) = quality.couples
    assert couple.people == ("ann", "bea") and couple.num_tasks == 4 and couple.raw.value == pytest.approx(3 / 4)
    (dispute,) = quality.disputed
    assert (dispute.task_id, dispute.disagreement) == ("task-003", 0.5)
    assert dispute.split == (("ann", (1, 1)), ("bea", (1, 2)))


def test_answers_taken_back_do_not_count() -> None:
    shop = two_people(num_tasks=1)
    shop.submit(1, shop.tasks[0], (0, 1), {"ranks": [1, 2]})
    shop.submit(1, shop.tasks[0], (0, 1), {"ranks": [2, 1]}, undone=True)
    quality = shop.report()
    assert quality.num_answers == 1 and quality.answers_left == 1


def test_gold_is_scored_and_left_out_of_agreement_and_disputes() -> None:
    """Gold says the first is better in all four tasks. Ann is right in 4 of 4, Bea in 1."""
    shop = two_people()
    shop.tasks = [replace(task, gold={"ranks": [1, 2]}) for task in shop.tasks]
    for number, task in enumerate(shop.tasks):
        shop.submit(1, task, (0, 1), {"ranks": [1, 2]})
        shop.submit(2, task, (1, 0), {"ranks": [2, 1] if number == 0 else [1, 2]})
    quality = shop.report()
    gold_of = {row.name: row.gold.value for row in quality.people}
    assert gold_of == {"ann": 1.0, "bea": 0.25}
    assert quality.agreement == () and quality.disputed == () and quality.couples == ()
    assert all(isinstance(row.agrees, Unknown) for row in quality.people)
    given = {row.name: row.weight for row in quality.people}
    assert given["bea"] < given["ann"] == 1.0


def test_who_answered_little_is_drawn_towards_the_team() -> None:
    """Ann is right on all of 20 gold tasks, Cid on all, Bea wrong on two: kappa 1 and below 0, the team's median 1.

    Bea has 2 tasks: kappa is -1 at the lowest, (2 * -1 + 10 * 1) / 12 = 2/3 of the team's.
    """
    raters = [ReplayedRater(name, {}) for name in ("ann", "bea", "cid")]
    shop = Workshop(make_tasks("pair", 20, 2, 3, 0), raters)
    shop.tasks = [replace(task, gold={"ranks": [1, 2] if i % 2 else [2, 1]}) for i, task in enumerate(shop.tasks)]
    for number, task in enumerate(shop.tasks):
        right = task.gold["ranks"]
        shop.submit(1, task, (0, 1), {"ranks": right})
        shop.submit(3, task, (0, 1), {"ranks": right})
        if number < 2:
            shop.submit(2, task, (0, 1), {"ranks": right[::-1]})
    given = {row.name: row.weight for row in shop.report().people}
    assert given == {"ann": 1.0, "cid": 1.0, "bea": pytest.approx(2 / 3, abs=0.02)}


@pytest.mark.parametrize(("num_tasks", "silent_after"), [(3, None), (12, None), (13, 3)])
def test_who_stopped_left_ten_tasks_to_the_others(num_tasks: int, silent_after: int | None) -> None:
    """Ann does three tasks in three seconds, Bea all of them in the hours after."""
    shop = two_people(num_tasks=num_tasks)
    for task in shop.tasks[:3]:
        shop.submit(1, task, (0, 1), {"ranks": [1, 2]})
    for number, task in enumerate(shop.tasks):
        shop.submit(2, task, (0, 1), {"ranks": [1, 2]}, created_at=2_000_000.0 + 1000 * number)
    assert [row.silent_after for row in shop.report().people] == [silent_after, None]
    shop.tasks = [*shop.tasks[:3], *(replace(task, created_at=1_500_000.0) for task in shop.tasks[3:])]
    assert [row.silent_after for row in shop.report().people] == [None, None]  # they came when Ann had gone


def test_an_extra_answer_fills_no_slot() -> None:
    shop = two_people(num_tasks=1)
    shop.submit(1, shop.tasks[0], (0, 1), {"ranks": [1, 2]}, extra=True)
    assert shop.report().answers_left == 2


def test_everybody_saying_good_is_news_about_the_texts_and_not_about_a_person() -> None:
    shop = two_people("label", num_tasks=60, size=2)
    for task in shop.tasks:
        for person in (1, 2):
            shop.submit(person, task, (0, 1), {"good": [True, True]})
    quality = shop.report()
    assert quality.alarms == () and isinstance(quality.agreement[0].alpha, Unknown)


def test_a_decision_is_a_truth_and_puts_its_task_last_among_the_disputed() -> None:
    shop = two_people()
    for task in shop.tasks:
        shop.submit(1, task, (0, 1), {"ranks": [1, 2]})
        shop.submit(2, task, (0, 1), {"ranks": [2, 1]})
    before = shop.report()
    shop.submit(1, shop.tasks[0], (0, 1), {"ranks": [2, 1]}, adjudication=True)
    after = shop.report()
    assert before.num_answers == after.num_answers == 8
    assert not any(row.adjudicated for row in before.disputed) and len(after.disputed) == 4
    assert [row.adjudicated for row in after.disputed] == [False, False, False, True]
    assert after.disputed[-1].task_id == "task-000"
    kappa = {row.name: row.kappa.value for row in after.people}
    assert kappa["bea"] > kappa["ann"]


def test_the_same_two_completions_in_another_task_are_a_repeat() -> None:
    shop = two_people(num_tasks=3)
    first, second, third = shop.tasks
    shop.tasks[1] = second = replace(first, id=second.id)
    shop.submit(1, first, (0, 1), {"ranks": [1, 2]})
    shop.submit(1, second, (1, 0), {"ranks": [2, 1]})  # the same choice, shown the other way round
    shop.submit(2, first, (0, 1), {"ranks": [1, 2]})
    shop.submit(2, second, (0, 1), {"ranks": [2, 1]})
    for person in (1, 2):
        shop.submit(person, third, (0, 1), {"ranks": [1, 2]})
    rows = {row.name: row for row in shop.report().people}
    assert rows["ann"].repeats.value == 1.0 and rows["bea"].repeats.value == 0.0
    assert shop.report().agreement[0].raw.value == 1.0  # by their first words
    assert rows["ann"].kappa.n == rows["bea"].kappa.n == 2


def test_skips_flags_and_speed_by_hand() -> None:
    """Ann: 3 answers of 10, 20, 60 s, one flagged, and 1 skip. Mean 30 s: 120 an hour."""
    shop = two_people()
    for task, seconds, flags in zip(shop.tasks, (10, 20, 60), ([[], []], [["rude"], []], None), strict=False):
        shop.submit(1, task, (0, 1), {"ranks": [1, 2], "seconds": seconds, "flags": flags})
    shop.skips.append(Skip("task-003", "pair", 1, "cannot decide", ""))
    (ann,) = shop.report().people
    assert ann.skip_rate.value == pytest.approx(1 / 4) and ann.flag_rate.value == pytest.approx(1 / 3)
    assert ann.median_seconds.value == 20 and ann.per_hour.value == pytest.approx(120)
    assert dict(ann.done) == {"pair": 3} and ann.skipped == 1


def alarms_of(shop: Workshop) -> set[tuple[str, str]]:
    return {(alarm.name, alarm.who) for alarm in shop.report().alarms}


@pytest.mark.parametrize("num_tasks", [4, 8])
def test_who_misses_gold_questions_is_named_once_there_are_five(num_tasks: int) -> None:
    shop = two_people(num_tasks=num_tasks)
    shop.tasks = [replace(task, gold={"ranks": [1, 2] if i % 2 else [2, 1]}) for i, task in enumerate(shop.tasks)]
    for task in shop.tasks:
        shop.submit(1, task, (0, 1), {"ranks": task.gold["ranks"]})
        shop.submit(2, task, (0, 1), {"ranks": task.gold["ranks"][::-1]})
    named = {who for name, who in alarms_of(shop) if name == "misses gold"}
    assert named == ({"bea"} if num_tasks >= 5 else set())


def test_who_contradicts_oneself_is_named() -> None:
    shop = two_people(num_tasks=16)
    shop.tasks = [*shop.tasks[:8], *(replace(task, id=f"{task.id} again") for task in shop.tasks[:8])]
    for number, task in enumerate(shop.tasks):
        first = [1, 2] if number % 2 else [2, 1]
        shop.submit(1, task, (0, 1), {"ranks": first})
        shop.submit(2, task, (0, 1), {"ranks": first if number < 8 else first[::-1]})
    assert {who for name, who in alarms_of(shop) if name == "unsteady"} == {"bea"}


@pytest.mark.parametrize(("alike", "is_told"), [(0, True), (5, False), (10, False)])
def test_poor_agreement_is_told_where_the_whole_interval_is_poor(alike: int, is_told: bool) -> None:
    """Ten pairs, of which some are judged alike: with 5 of 10 alpha is near 0, but .6 is not ruled out."""
    shop = two_people(num_tasks=10)
    for number, task in enumerate(shop.tasks):
        first = [1, 2] if number % 2 else [2, 1]
        shop.submit(1, task, (0, 1), {"ranks": first})
        shop.submit(2, task, (0, 1), {"ranks": first if number < alike else first[::-1]})
    assert (("poor agreement", "") in alarms_of(shop)) == is_told


def test_who_orders_upside_down_is_not_called_a_friend_of_short_texts_too() -> None:
    """All follow length, one of five the other way round: one alarm, not two."""
    raters = [ReplayedRater(name, {}) for name in "abcde"]
    shop = Workshop(make_tasks("pair", 60, 2, 5, 0), raters)
    for task in shop.tasks:
        first, second = (len(completion.text) for completion in task.completions)
        for person in range(5):
            shop.submit(person + 1, task, (0, 1), {"ranks": [1, 2] if (first >= second) == (person > 0) else [2, 1]})
    assert alarms_of(shop) - {("poor agreement", "")} == {("flipped", "a")}


def test_speeds_and_the_median_have_intervals_by_hand() -> None:
    """100 answers, a second apart and of 1 to 100 s: an answer a second is 3600 an hour, 99 arrivals +- 1.96 sqrt(99).

    The exact binomial puts the median between the 40th and the 61st of 100. A mean of 50.5 s is 71.3 an hour.
    """
    shop = two_people(num_tasks=100)
    for task, seconds in zip(shop.tasks, range(1, 101), strict=True):
        shop.submit(1, task, (0, 1), {"ranks": [1, 2], "seconds": seconds})
    quality = shop.report()
    (ann,) = quality.people
    assert quality.per_hour.value == pytest.approx(3600)
    assert (quality.per_hour.low, quality.per_hour.high) == pytest.approx((2890.8, 4309.2), abs=0.1)
    hours = quality.hours_left
    assert (hours.low, hours.value, hours.high) == pytest.approx((100 / 4309.2, 100 / 3600, 100 / 2890.8), rel=1e-3)
    assert ann.median_seconds.value == 50.5
    assert ann.median_seconds.low == pytest.approx(40, abs=1.5) and ann.median_seconds.high == pytest.approx(
        61, abs=1.5
    )
    half = 1.96 * 28.87 / 10  # of the mean of 100 values that spread evenly over 1 to 100
    assert ann.per_hour.value == pytest.approx(3600 / 50.5)
    assert ann.per_hour.low == pytest.approx(3600 / (50.5 + half), rel=0.03)
    assert ann.per_hour.high == pytest.approx(3600 / (50.5 - half), rel=0.03)


def test_one_person_alone_has_weight_one_by_default() -> None:
    shop = two_people()
    shop.submit(1, shop.tasks[0], (0, 1), {"ranks": [1, 2]})
    (ann,) = shop.report().people
    assert ann.weight == 1.0 and "by default" in ann.weight_reason
    assert isinstance(ann.kappa, Unknown)


def test_ratings_have_a_row_of_agreement_an_axis() -> None:
    shop = two_people("rating", num_tasks=3, size=1)
    for task, (a, b) in zip(shop.tasks, ((1, 1), (4, 4), (7, 6)), strict=True):
        for person, value in ((1, a), (2, b)):
            axes = {"helpfulness": value, "harmlessness": 7, "truthfulness": value}
            shop.submit(person, task, (0,), {"ratings": [axes]})
    rows = {row.measure.removesuffix(", simulated annotators"): row for row in shop.report().agreement}
    assert set(rows) == {"helpfulness", "harmlessness", "truthfulness"}
    assert rows["helpfulness"].raw.value == pytest.approx(2 / 3) and rows["helpfulness"].alpha_metric == "ordinal"
    assert isinstance(rows["harmlessness"].alpha, Unknown) and rows["harmlessness"].raw.value == 1.0


# ---- those who answer ------------------------------------------------------------------------------------------------

RATED = [
    RatedReview("film", f"text {block}-{i}", (i - 2, 2 - i, 0), block, "A Film", "fresh")
    for block in range(3)
    for i in range(5)
]


def test_a_replayed_rater_says_what_was_said_and_skips_what_was_not_rated() -> None:
    made = {block.number: block for block in blocks(RATED, seed=0)}
    up, down, level = made[1].raters
    assert up.name == "replayed rater 001-00" and len(made[1].texts) == 5
    shown = ShownTask("ranking", "", ("text 1-0", "text 1-4", "text 1-2"), {})
    assert up.answer(shown) == {"ranks": [3, 1, 2]} and down.answer(shown) == {"ranks": [1, 3, 2]}
    assert level.answer(shown) == {"ranks": [1, 1, 1]}
    assert up.answer(ShownTask("ranking", "", ("text 1-0", "text 2-0"), {})) is None
    pair = ShownTask("pair", "", ("text 1-0", "text 1-4"), {})
    assert up.answer(pair) == {"ranks": [2, 1], "strength": "significantly"}
    assert level.answer(pair) == {"ranks": [1, 1]}
    axes = {"axes": [{"name": "positive", "low": 1, "high": 7}]}
    rated = up.answer(
        ShownTask("rating", "", ("text 1-0", "text 1-2", "text 1-4"), axes)
    )  # -2, 0, 2: 1 + 1.5, 3, 4.5, halves to even
    assert rated == {"ratings": [{"positive": value} for value in (3, 4, 5)]}
    assert up.answer(ShownTask("label", "", ("text 1-0", "text 1-2", "text 1-4"), {})) == {"good": [False, False, True]}
    assert up.answer(ShownTask("demonstration", "", (), {})) is None


def test_blocks_come_in_an_order_of_the_seed_and_tasks_hold_different_reviews() -> None:
    assert Counter(block.number for block in blocks(RATED, 5)) == Counter(range(3))
    assert [b.number for b in blocks(RATED, 5)] == [b.number for b in blocks(RATED, 5)]
    tasks = review_tasks([review.text for review in RATED], 20, 4, "ranking", 3, seed=1)
    assert all(len({c["text"] for c in task["completions"]}) == 4 for task in tasks)
    with pytest.raises(UsageError, match="fewer than the 16"):
        review_tasks([review.text for review in RATED], 1, 16, "ranking", 3, seed=1)


def test_unknown_defects_and_too_many_are_refused() -> None:
    with pytest.raises(UsageError, match="'tired'"):
        synthetic(3, gold, 0, {"tired": 1})
    with pytest.raises(UsageError, match="4 defects among 3"):
        synthetic(3, gold, 0, {"random": 4})


def test_a_synthetic_annotator_says_the_same_whatever_the_order_shown() -> None:
    (annotator,) = synthetic(1, gold, 7, {})
    texts = ("text1 good and", "text2 awful and", "text3 fine and and")
    forward = annotator.answer(ShownTask("ranking", "", texts, {}))
    backward = annotator.answer(ShownTask("ranking", "", texts[::-1], {}))
    assert forward is not None and backward is not None
    assert forward["ranks"] == backward["ranks"][::-1]


def test_all_estimates_of_a_person_are_intervals_or_reasons() -> None:
    for row in workshop("pair", 2, seed=5, num_tasks=20).work().people:
        for value in vars(row).values():
            assert not isinstance(value, float) or 0 < value <= 1
        assert isinstance(row.kappa, Interval | Unknown)
