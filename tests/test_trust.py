"""Whose word counts: the order of trust, who has enough to say, how many pairs that takes, what nobody is called."""

from __future__ import annotations

import math

import numpy as np
import pytest

from accord.config import EvalConfig, ScorerConfig
from accord.errors import DataError, UsageError
from accord.evals.judges import open_judges
from accord.evals.results import Floor, better_floor, policy_floors, summarise, with_judge
from accord.evals.trust import (
    JUDGE_KINDS,
    KIND_OF_SCORER,
    JudgeSaid,
    check_judge_name,
    deciding,
    in_order_of_trust,
    judge_said,
    told_in_order,
)
from accord.report.glossary import TERMS
from accord.stats import WORTH_SEEING, Interval, pairs_needed


def said(kind: str, low: float, high: float, n: int = 40, name: str = "") -> JudgeSaid:
    return judge_said(name or kind, kind, Interval((low + high) / 2, low, high, n, n))


# ---- how many pairs --------------------------------------------------------------------------------------------------


def test_pairs_needed_by_hand() -> None:
    """p = .65: (1.959964 * .5 + .841621 * sqrt(.65 * .35))^2 / .15^2 = (.979982 + .401423)^2 / .0225 = 84.81."""
    assert pairs_needed(0.65) == pairs_needed(0.35) == 85
    # p = .6, power .9: (.979982 + 1.281552 * .489898)^2 / .01 = (.979982 + .627830)^2 / .01 = 258.5
    assert pairs_needed(0.6, power=0.9) == 259
    # a fifth tie: (1.959964 * sqrt(.2) + .841621 * sqrt(.2275 - .05))^2 / .0225 = (.876522 + .354580)^2 / .0225 = 67.4
    assert pairs_needed(0.65, ties=0.2) == 68


def test_so_many_pairs_show_it_four_times_in_five() -> None:
    """Second way: draw outcomes of that law, and count how often their mean is further from one half than chance."""
    rng = np.random.default_rng(0)
    for win, ties in ((0.65, 0.0), (0.65, 0.3), (0.58, 0.1)):
        n = pairs_needed(win, ties=ties)
        law = [win - ties / 2, ties, 1 - win - ties / 2]
        outcomes = rng.choice([1.0, 0.5, 0.0], size=(20_000, n), p=law)
        shown = np.abs(outcomes.mean(axis=1) - 0.5) > 1.96 * math.sqrt((1 - ties) / 4 / n)
        assert shown.mean() == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize(("win", "ties"), [(0.5, 0.0), (0.9, 0.4), (1.2, 0.0), (0.6, 1.0)])
def test_what_no_number_of_pairs_shows_is_refused(win: float, ties: float) -> None:
    with pytest.raises(DataError, match="win rate of"):
        pairs_needed(win, ties=ties)


# ---- what a judge says -----------------------------------------------------------------------------------------------


def test_what_an_interval_says() -> None:
    """85 prompts show .65: with fewer an interval about one half says nothing, with as many it says no."""
    assert said("function", 0.52, 0.7).says == "better" and said("function", 0.2, 0.49).says == "worse"
    few = said("people", 0.45, 0.7, 40)
    assert (few.says, few.needed, few.missing) == ("too few to say", 85, 45)
    assert said("people", 0.45, 0.6, 85).says == "no better"
    alone = judge_said("one", "people", Interval(1.0, math.nan, math.nan, 1, 1))
    assert (alone.says, alone.missing) == ("too few to say", 84)
    nobody = judge_said("none", "people", None)
    assert (nobody.says, nobody.missing) == ("too few to say", 85) and deciding([nobody, few]) is few


def test_ties_need_fewer_pairs_and_too_many_of_them_break_nothing() -> None:
    tied = judge_said("people", "people", Interval(0.55, 0.45, 0.6, 70, 70), ties=0.2)
    assert (tied.needed, tied.missing, tied.says) == (68, 0, "no better")
    assert judge_said("people", "people", Interval(0.5, 0.4, 0.6, 5, 5), ties=1.0).needed == pairs_needed(
        0.65, ties=0.7
    )


def test_the_most_trusted_judge_that_has_enough_to_say_decides() -> None:
    people, second = said("people", 0.4, 0.8), said("second_reward_model", 0.51, 0.7)
    own, other = said("function", 0.1, 0.3, name="short"), said("function", 0.6, 0.9, name="polite")
    assert deciding([own, second, people]) is second  # people are asked first, and are too few
    assert deciding([own, said("people", 0.2, 0.45), second]).says == "worse"  # their word, though it is a no
    assert deciding([other, own]) is other and deciding([own, other]) is own  # of one kind the first
    assert deciding([said("chat", 0.4, 0.6), people]) is people  # nobody can say: the most trusted one has not said yes
    assert [one.judge for one in in_order_of_trust([own, second, people])] == ["people", "second_reward_model", "short"]
    told = told_in_order([own, second, people])
    assert [(one["judge"], one["decides"]) for one in told] == [
        ("people", False), ("second_reward_model", True), ("short", False),
    ]  # fmt: skip
    assert [JudgeSaid.of_json(one) for one in told] == [people, second, own]


def test_no_program_is_called_people() -> None:
    """Neither by the table nor by a name that a user gives it."""
    for kind, words in JUDGE_KINDS.items():
        spoken = f"{words.called} {words.prefers}".lower().replace(",", "").replace(":", "").split()
        assert not set(words.never) - {"annotators"} & set(spoken), kind
        assert kind == "people" or "people" in words.never
    assert list(JUDGE_KINDS)[:4] == ["people", "second_reward_model", "chat", "function"]
    assert set(KIND_OF_SCORER.values()) <= set(JUDGE_KINDS) and set(ScorerConfig.KINDS) <= set(KIND_OF_SCORER)
    for name in ("people", "our_people", "Human"):
        with pytest.raises(UsageError, match="and it is a function of yours"):
            check_judge_name(name, "function")
    check_judge_name("people", "people")
    with pytest.raises(UsageError, match="a judge is called 'people'"):
        open_judges([ScorerConfig(regex="a", name="people")])


def test_the_page_explains_the_same_numbers() -> None:
    meaning = TERMS["enough"].meaning
    assert f"win rate of {WORTH_SEEING:g}" in meaning and f"({pairs_needed(WORTH_SEEING)} without ties)" in meaning


# ---- in results ------------------------------------------------------------------------------------------------------


def results(win: Interval, **row: object) -> dict[str, object]:
    numbers = {"kl": {"value": 2.0}, "length_ratio": 1.0, "nll_excess": 0.1, "distinct_share": 1.0}
    floors = [better_floor(win).to_json(), Floor("distinct_share", 1.0, 0.95).to_json()]
    judged = told_in_order([judge_said("second", "second_reward_model", win)])
    return {
        "candidate": "ppo", "seed": 0, "judges": {"second": ""}, "judged": {"ppo": judged}, "floors": {"ppo": floors},
        "policies": [{"name": "ppo", "win_rate": win.to_json(), **numbers, **row}],
    }  # fmt: skip


def test_people_who_can_say_overrule_the_program_and_their_floor_stands_in_its_place() -> None:
    found = results(Interval(0.7, 0.6, 0.8, 40, 40))
    assert summarise(found)["decided_by"] == "second" and summarise(found)["floors"]["judge_win_rate_low"]["held"]
    worse = with_judge(found, judge_said("people", "people", Interval(0.3, 0.2, 0.4, 40, 40), ties=0.1))
    told = summarise(worse)
    assert (told["decided_by"], told["judge_win_rate"], told["judge_win_rate_low"]) == ("people", 0.3, 0.2)
    assert not told["floors"]["judge_win_rate_low"]["held"] and told["floors"]["distinct_share"]["held"]
    assert [one["judge"] for one in told["judges"]] == ["people", "second"]
    unsure = with_judge(found, judge_said("people", "people", Interval(0.5, 0.3, 0.7, 20, 20)))
    assert summarise(unsure)["decided_by"] == "second" and unsure["judged"]["ppo"][0]["missing"] == 65
    assert found["judged"]["ppo"][0]["judge"] == "second"  # what was found stays as it is


def test_the_first_start_is_told_by_the_judge_that_decides_or_the_most_trusted_that_looked() -> None:
    win = Interval(0.7, 0.6, 0.8, 40, 40)
    first = {"kl": {"value": 5.0}, "win_rates": {"short": {"value": 0.1}, "second": {"value": 0.9}}}
    found = results(win, first=first)
    assert summarise(found)["first"] == {"kl": 5.0, "judge": "second", "win_rate": {"value": 0.9}}
    people = with_judge(found, judge_said("people", "people", win))
    assert summarise(people)["decided_by"] == "people" and summarise(people)["first"]["judge"] == "second"
    assert summarise(results(win))["first"] is None


def test_the_floor_is_by_the_judge_that_decides() -> None:
    class Row:
        win_rate, length_ratio, nll_excess, distinct_share = Interval(0.6, 0.55, 0.7, 9, 9), 1.0, 0.0, 1.0

    assert policy_floors(EvalConfig(), Row())[0].value == 0.55  # type: ignore[arg-type]
    assert policy_floors(EvalConfig(), Row(), Interval(0.5, 0.4, 0.6, 9, 9))[0].value == 0.4  # type: ignore[arg-type]
