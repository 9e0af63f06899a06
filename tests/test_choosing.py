"""Which prompts are asked about: disagreement by hand, every topic met, no prompt twice before all others."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import WriteRows
from hypothesis import given
from hypothesis import strategies as st
from test_rounds import PLACES, THINGS, TINY, rows_of

from accord.config import AskConfig, load_recipe
from accord.demo.film_reviews import RatedReview
from accord.errors import DataError, UsageError
from accord.evals.pair_ensemble import STRENGTH, fit_pair_ensemble
from accord.formats import Item
from accord.loop import run
from accord.loop.choosing import (
    chosen_places,
    disagreement,
    every_topic_first,
    least_asked_first,
    places_at_random,
    read_orders,
    worth_of,
)
from accord.loop.run import check_recipe
from accord.records import RankedGroup
from accord.stats.disagreement import mutual_information
from benchmarks.choosing import label_tasks, labels_needed

# ---- the measure -----------------------------------------------------------------------------------------------------


def test_the_information_of_an_answer_by_hand() -> None:
    nine, four = math.log(9), math.log(4)  # log-odds of .9 and .8
    margins = [
        # agree; .9 and .1: log 2 - H(.9) = .693147 - .325083; sure of opposite sides: log 2
        [nine, nine, 800.0],
        [nine, -nine, -800.0],
    ]
    assert mutual_information(margins) == pytest.approx([0, 0.368064, math.log(2)], abs=1e-6)
    # .5, .5, .8: H(.6) - (2 H(.5) + H(.8)) / 3 = .673012 - (2 x .693147 + .500402) / 3
    assert mutual_information([[0.0], [0.0], [four]]) == pytest.approx([0.044113], abs=1e-6)


@given(st.lists(st.lists(st.floats(-900, 900), min_size=3, max_size=3), min_size=1, max_size=6))
def test_the_information_lies_between_nothing_and_one_answer(margins: list[list[float]]) -> None:
    found = mutual_information(margins)
    assert np.all(found >= -1e-12) and np.all(found <= math.log(2) + 1e-12)
    assert mutual_information(-np.array(margins)) == pytest.approx(found, abs=1e-12)  # whichever side comes first


# ---- the ensemble ----------------------------------------------------------------------------------------------------


def pair(better: str, worse: str, **more: Any) -> RankedGroup:
    return RankedGroup(prompt="Which?", completions=(better, worse), ranks=(1, 2), **more)


def test_members_spread_as_the_posterior_does() -> None:
    """One word against another, and two that nobody judged: against the integral over the difference, on a grid."""
    groups = [pair("kind", "rude") for _ in range(8)] + [pair("rude", "kind") for _ in range(4)]
    ensemble = fit_pair_ensemble(groups, ["kind", "rude", "red", "blue"], members=600, seed=3)
    kind, rude, red, blue = ensemble.score(["kind", "rude", "red", "blue"]).T
    unknown = red - blue  # two weights from N(0, strength)
    assert abs(unknown.mean()) < 0.15 and unknown.std() == pytest.approx((2 * STRENGTH) ** 0.5, rel=0.1)
    grid = np.linspace(-8, 8, 4001)
    log_posterior = -(grid**2) / (4 * STRENGTH) - 8 * np.logaddexp(0, -grid) - 4 * np.logaddexp(0, grid)
    posterior = np.exp(log_posterior - log_posterior.max())
    posterior /= posterior.sum()
    mean = float(posterior @ grid)
    spread = float(posterior @ (grid - mean) ** 2) ** 0.5
    assert (kind - rude).mean() == pytest.approx(mean, abs=0.1)
    assert (kind - rude).std() == pytest.approx(spread, rel=0.2)


def test_what_one_group_holds_is_weighed_together() -> None:
    """Twelve judgements of one group are one draw: members then differ more than over twelve of their own."""
    apart = [pair("kind", "rude") for _ in range(8)] + [pair("rude", "kind") for _ in range(4)]
    together = [pair("kind", "rude", group="a")] * 8 + [pair("rude", "kind", group="b")] * 4
    spreads = []
    for groups in (apart, together):
        kind, rude = fit_pair_ensemble(groups, ["kind", "rude"], members=300).score(["kind", "rude"]).T
        spreads.append((kind - rude).std())
    assert spreads[1] > 1.3 * spreads[0]


def test_an_ensemble_of_nothing() -> None:
    with pytest.raises(DataError, match="no ordered pair"):
        fit_pair_ensemble([RankedGroup(prompt="Which?", completions=("a", "b"), ranks=(1, 1))], ["a"])


# ---- every topic, nobody twice ---------------------------------------------------------------------------------------


def test_one_of_every_topic_comes_first() -> None:
    topics = ["sea", "sea", "town", "sea", "wood"]
    assert every_topic_first([0, 1, 2, 3, 4], topics, {}) == [0, 2, 4, 1, 3]
    assert every_topic_first([3, 1, 0, 4, 2], topics, {"sea": 2, "wood": 1}) == [2, 4, 3, 1, 0]


def test_what_was_asked_less_comes_first() -> None:
    asked, topics = [1, 0, 1, 0, 2], ["a", "a", "b", "a", "c"]
    # level 0: 3 then 1 (both a); level 1: b was not met, a was; level 2: 4
    assert least_asked_first([4, 3, 2, 1, 0], asked, topics, {}) == [3, 1, 2, 0, 4]


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=12), st.integers(1, 5), st.integers(2, 4))
def test_rounds_ask_about_everything_once_before_anything_twice(topics: list[str], count: int, times: int) -> None:
    """Whatever is worth most: rounds of a pool and a choice from it, until each prompt would be asked three times."""
    prompts = [Item(prompt=f"{topic} {i}", topic=topic) for i, topic in enumerate(topics)]
    before: list[dict[str, Any]] = []
    for number in range(3 * len(topics) // count):
        pool = places_at_random(prompts, before, count, times, seed=number)
        known = Counter(group["prompt"] for group in before)
        must = sorted(known[item.prompt] for item in prompts)[min(count, len(prompts)) - 1]
        assert all(known[prompts[i].prompt] <= must for i in pool)  # no candidate that could not be chosen
        groups = [{"prompt": prompts[i].prompt, "topic": prompts[i].topic} for i in pool]
        worth = [float(len(groups) - i) if number % 2 else float(i) for i in range(len(groups))]
        chosen = chosen_places(groups, worth, before, count)
        assert len(chosen) == count
        before += [groups[i] for i in chosen]
        asked = Counter({item.prompt: 0 for item in prompts})
        asked.update(group["prompt"] for group in before)
        assert max(asked.values()) - min(asked.values()) <= 1
        if count >= len(set(topics)) and number == 0:
            assert {groups[i]["topic"] for i in chosen} == set(topics)


def test_the_worthiest_are_chosen() -> None:
    groups = [{"prompt": name, "topic": topic} for name, topic in (("A", "x"), ("B", "x"), ("C", "y"), ("D", "x"))]
    assert chosen_places(groups, [0.1, 0.3, 0.0, 0.2], [], 3) == [1, 2, 3]  # the best of each topic, then the best
    assert chosen_places(groups, None, [], 3) == [0, 2, 1]
    assert chosen_places(groups, [0.1, 0.3, 0.0, 0.2], [groups[1]], 2) == [2, 3]  # y was never met, B was asked


# ---- worth -----------------------------------------------------------------------------------------------------------


def test_what_nobody_has_judged_is_worth_more() -> None:
    learnt = [pair("a kind word", "a rude word") for _ in range(40)]
    groups = [
        {"prompt": "1", "completions": ["a kind word", "a rude word"]},
        {"prompt": "2", "completions": ["a red kite", "a blue fox"]},
        {"prompt": "3", "completions": ["a red kite", "a red kite"]},  # nothing to compare
    ]
    known, unknown, alone = disagreement(groups, learnt, seed=0) or []
    assert 0 < known < unknown / 3 and alone == 0.0
    assert disagreement(groups, [RankedGroup(prompt="?", completions=("a", "b"), ranks=(1, 1))], 0) is None


def test_an_own_function_says_what_is_worth_asking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_worth.py").write_text(
        "def most(prompt, completions):\n    return len(completions)\ndef bad(prompt, completions):\n    return 1 / 0\n"
        "def endless(prompt, completions):\n    return float('inf')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_worth", raising=False)
    groups = [{"prompt": "1", "completions": ["a", "b"]}, {"prompt": "2", "completions": ["a", "b", "c"]}]
    assert worth_of("own_worth:most")(groups, [], 0) == [2.0, 3.0]
    with pytest.raises(DataError, match="own_worth:bad failed"):
        worth_of("own_worth:bad")(groups, [], 0)
    with pytest.raises(DataError, match="not finite"):
        worth_of("own_worth:endless")(groups, [], 0)


def test_judgements_of_every_kind_become_rankings(write_rows: WriteRows) -> None:
    chat = [{"role": "user", "content": "Q"}]
    ranked = [
        {"prompt": "Q", "completions": ["a", "b", "c"], "ranks": [2, 1, None]},
        {"prompt": chat, "chosen": [{"role": "assistant", "content": "yes"}], "rejected": "no"},
    ]
    found = read_orders(write_rows("ranked.jsonl", ranked[:1]), "ranking")
    assert [(group.completions, group.ranks) for group in found] == [(("a", "b"), (2, 1))]
    found = read_orders(write_rows("chat.jsonl", ranked[1:]), "ranking")
    assert [group.completions for group in found] == [("yes", "no")]
    rated = [{"prompt": "Q", "completion": text, "rating": value} for text, value in (("a", 1), ("a", 4), ("b", 2))]
    found = read_orders(write_rows("rated.jsonl", [*rated, {"prompt": "R", "completion": "c", "rating": 3}]), "rating")
    assert [(group.completions, group.ranks) for group in found] == [(("a", "b"), (1, 2))]  # 2.5 and 2
    labels = [{"prompt": "Q", "completion": text, "label": good} for text, good in (("a", False), ("b", True))]
    found = read_orders(write_rows("labels.jsonl", labels), "label")
    assert [(group.completions, group.ranks) for group in found] == [(("a", "b"), (2, 1))]


# ---- the proof: benchmarks/choosing.py -------------------------------------------------------------------------------


def test_labels_needed_by_hand() -> None:
    rising = np.array([0.6, 0.7])  # .5 at 0 labels, then these at 50 and 100
    assert [labels_needed(rising, 50, target) for target in (0.55, 0.6, 0.65)] == pytest.approx([25, 50, 75])
    assert labels_needed(rising, 50, 0.8) == 100  # never reached: all there were
    bumpy = np.array([0.6, 0.58, 0.7])  # made monotone: .59, .59, .7
    assert labels_needed(bumpy, 50, 0.59) == pytest.approx(50)
    assert labels_needed(bumpy, 50, 0.645) == pytest.approx(125)


def test_a_label_is_what_one_person_said_of_every_review_shown() -> None:
    """Two blocks of four and three reviews, two people each: of the second no task of four can be made."""
    ratings = {0: [(3, -1), (0, 0), (1, 2), (1, -4)], 1: [(1, 2), (3, 0), (2, 2)]}
    rated = [
        RatedReview("film", f"text {block} {i}", given, block, "Any", "fresh")
        for block, of in ratings.items()
        for i, given in enumerate(of)
    ]
    tasks = label_tasks(rated, 4, seed=0, deals=3)
    assert len(tasks) == 3
    for task in tasks:
        said = [ratings[0][int(text[-1])] for text in task.completions]
        ranked = [tuple(1.0 + sum(o[c] > one[c] for o in said) for one in said) for c in (0, 1)]
        assert task.ranks in ranked and sorted(task.completions) == [f"text 0 {i}" for i in range(4)]


# ---- settings --------------------------------------------------------------------------------------------------------


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="who is nobody"):
        AskConfig(choose="uncertain")
    with pytest.raises(ValueError, match="pool is what choose: uncertain chooses from"):
        AskConfig(who="people", choose="random", pool=3)
    with pytest.raises(UsageError, match="did you mean 'uncertain'"):
        load_recipe(None, ["ask.who=people", "ask.choose=uncertian"])
    asked = ["ask.who=panel", "ask.choose=uncertain", "sample.samples_per_prompt=1"]
    with pytest.raises(UsageError, match="compares samples of one prompt"):
        check_recipe(load_recipe(None, asked), [])
    with pytest.raises(UsageError, match="no module 'nowhere'"):
        check_recipe(load_recipe(None, ["ask.who=panel", "ask.choose=nowhere:at_all"]), [])


# ---- whole runs ------------------------------------------------------------------------------------------------------

VOWELS = """
def vowels(prompt, completions):
    return [sum(letter in "aeiou" for letter in text) for text in completions]
"""


@pytest.mark.slow
def test_a_run_chooses_from_the_second_round_on(
    tmp_path: Path, policy_folder: Path, write_rows: WriteRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is judged before the first round: it asks at random and says so; the second one has learnt from it."""
    (tmp_path / "own_taste.py").write_text(VOWELS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_taste", raising=False)
    prompts = write_rows(
        "prompts.jsonl", [{"prompt": f"A {t} in the {p}:", "topic": p} for t in THINGS for p in PLACES]
    )
    given = [f"base.model={policy_folder}", f"task.prompts={prompts}", "ask.who=own_taste:vowels", "name=tiny"]
    out, said = tmp_path / "run", []
    recipe = load_recipe(None, [*given, *TINY, "ask.choose=uncertain", "ask.pool=3", "rounds=2"])

    def start() -> None:
        said.clear()
        run(recipe, output_dir=out, log=lambda _, text: said.append(text))

    start()
    fallback = "round 1: ask.choose: nothing has been judged yet, so that prompts are chosen at random"
    assert said.count(fallback) == 1 and not (out / "candidates").exists()
    told = json.loads((out / "round_2/sample/stage.json").read_text())["result"]
    assert told["prompts"] == 4 and told["candidates"] == 12 and told["judgements"] > 0 and not told["at_random"]
    choices = rows_of(out / "round_2/sample/choices.jsonl")
    samples = [rows_of(folder / "sample/samples.jsonl") for folder in (out, out / "round_2")]
    asked = [[row["prompt"] for row in rows] for rows in samples]
    assert sorted(asked[1]) == sorted(row["prompt"] for row in choices if row["asked"])
    assert len({*asked[0], *asked[1]}) == 8  # nobody is asked about a prompt again
    topics = [{row["topic"] for row in rows} for rows in samples]
    assert len(topics[0]) == len(topics[1]) == 4
    unmet = {row["topic"] for row in choices} - topics[0]
    assert len(topics[1] & unmet) == min(4, len(unmet))  # topics that were never met come first
    start()
    assert fallback in said and not any(text.endswith(": starting") for text in said)
