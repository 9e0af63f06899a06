"""Simulated annotators: a stated taste, reproducible noise, ties. The expected numbers are worked out in comments."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accord.demo import taste as sim
from accord.demo.taste import Taste, TasteAnnotator
from accord.errors import DataError, UsageError
from accord.people.simulation.annotators import ranks_of
from accord.records import Completion, Prompt, Ranking, Source

WORDS = {"good": 2.0, "splendid": 3.0, "warm": 1.0, "dull": -2.0, "awful": -3.0, "like": 1.5, "no": -1.2}
SOURCE = Source(origin="policy", name="fixture")
PROMPT = Prompt(text="Film: Fixture\nReview:", topic="Fixture")

FULL_PRAISE = "A splendid film about two brothers on a farm, with warm acting by everyone in it."
FULL_NEUTRAL = "A film about two brothers on a farm, with some acting by everyone in it."
FULL_BLAME = "An awful film about two brothers on a farm, with dull acting by everyone in it."
SLOGAN = "Splendid, good, warm!"


@pytest.fixture
def taste() -> Taste:
    return sim.build_taste(WORDS, (10, 30))


def _completions(texts: Sequence[str], prompt: Prompt = PROMPT) -> list[Completion]:
    return [Completion(prompt_id=prompt.id, text=text, source=SOURCE) for text in texts]


def _quiet(noise: float = 0.0, tie_within: float = 0.0) -> TasteAnnotator:
    return TasteAnnotator("simulated-quiet", 1.0, 1.0, noise, tie_within)


def _groups(n: int, seed: int = 3) -> list[list[Completion]]:
    """Groups of four reviews that differ in praise and in completeness."""
    draw = random.Random(seed)
    words = ["splendid", "good", "warm", "plain", "dull", "awful"]
    things = ["brothers", "farm", "acting", "music", "winter", "camera", "town", "letters", "horse", "river"]
    groups = []
    for i in range(n):
        prompt = Prompt(text=f"Film: {i}\nReview:", topic=str(i))
        texts = {
            f"A {draw.choice(words)} film about {' and '.join(draw.sample(things, draw.randint(1, 6)))}, number {k}"
            + draw.choice([".", ".", ""])
            for k in range(4)
        }
        groups.append(_completions(sorted(texts), prompt))
    return groups


# -- taste -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("good", math.tanh(2 / 2 / 2)),  # one word rated 2: 2 / (1 + 1) / 2
        ("good, then splendid", math.tanh(5 / 3 / 2)),  # (2 + 3) / (2 + 1) / 2
        ("good and dull", 0.0),  # 2 - 2
        ("not good", math.tanh(-1 / 2 / 2)),  # 2 * -0.5 = -1
        ("isn't a very good one", math.tanh(-1 / 2 / 2)),  # the negation stands three words before
        ("isn't it a very good one", math.tanh(2 / 2 / 2)),  # four words before: too far
        ("Never dull", math.tanh(1 / 2 / 2)),  # -2 * -0.5 = 1
        ("like no other", 0.0),  # words of grammar carry no rating
        ("", 0.0),
    ],
)
def test_positivity_by_hand(taste: Taste, text: str, expected: float) -> None:
    assert taste.positivity(text) == pytest.approx(expected)


def _many(count: int) -> str:
    """A sentence of ``count`` different words nobody rated."""
    return " ".join("x" * (i + 1) for i in range(count)) + "."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (FULL_PRAISE, 1.0),
        (FULL_NEUTRAL[:-1], 0.5),  # no end
        (_many(5), 5 / 10),  # shorter than 10
        (_many(45), 0.5),  # 1.5 times the longest
        (_many(61), 0.0),
        (
            "The brothers and the farm and the town, in it.",
            3 / 4 * 8 / 9,
        ),  # 3 specific words; "and the" twice in 9 pairs
        ("Brothers, farm, brothers, acting, music.", 5 / 10 * 4 / 5),  # 4 of 5 words are distinct
        ("Brothers, farm, acting, music, winter!!", 5 / 10 / 2),  # two exclamation marks
        ("Good splendid brothers farm.", 4 / 10 * 2 / 4 * (1 / 3) / (2 / 4)),  # 2 specific words; half are rated
        ("", 0.0),
        ("...", 0.0),
    ],
)
def test_substance_by_hand(taste: Taste, text: str, expected: float) -> None:
    assert taste.substance(text) == pytest.approx(expected)


def test_a_slogan_loses_against_a_full_positive_review(taste: Taste) -> None:
    order = [FULL_PRAISE, FULL_NEUTRAL, SLOGAN]
    assert sorted(order, key=taste.utility, reverse=True) == order
    assert taste.utility(FULL_PRAISE) > taste.utility(FULL_NEUTRAL) > taste.utility(FULL_BLAME)
    assert taste.positivity(SLOGAN) > 0 and taste.substance(SLOGAN) < 0.05


def test_repetition_and_endless_praise_do_not_pay(taste: Taste) -> None:
    looped = "A splendid film about two brothers, " * 3 + "a splendid film."
    assert taste.utility(looped) < taste.utility(FULL_PRAISE)
    piled = FULL_PRAISE[:-1] + " splendid" * 8 + "."
    assert taste.utility(piled) < taste.utility(FULL_PRAISE)


@given(st.text(max_size=200))
def test_parts_of_utility_stay_in_their_range(text: str) -> None:
    taste = sim.build_taste(WORDS, (10, 30))
    assert -1 <= taste.positivity(text) <= 1
    assert 0 <= taste.substance(text) <= 1


def test_ordinary_length_is_a_range_of_quantiles() -> None:
    texts = [" ".join(["word"] * n) for n in range(1, 102)]  # 1..101 words: quantile q is 1 + 100 q
    assert sim.ordinary_length(texts) == (21.0, 96.0)


def test_bad_taste_is_refused() -> None:
    with pytest.raises(UsageError, match="ordinary length"):
        sim.build_taste(WORDS, (0, 10))
    with pytest.raises(UsageError, match="needs rated words"):
        sim.build_taste({"the": 1.0}, (5, 10))
    with pytest.raises(UsageError, match="no texts"):
        sim.ordinary_length([])


# -- rankings ----------------------------------------------------------------------------------------------------------


def test_a_quiet_annotator_ranks_by_utility_with_ties(taste: Taste) -> None:
    texts = [FULL_NEUTRAL, SLOGAN, FULL_PRAISE, FULL_NEUTRAL.replace("farm", "boat")]
    ranking = sim.rank(taste, _quiet(), _completions(texts), 0)
    by_id = dict(zip(ranking.completion_ids, ranking.ranks, strict=True))
    # The two neutral reviews have the same utility: rank 2 twice. The slogan comes last.
    assert [by_id[c.id] for c in _completions(texts)] == [2, 3, 1, 2]
    assert ranking.guideline == sim.GUIDELINE and ranking.prompt_id == PROMPT.id


def test_ties_are_measured_from_the_best_of_the_tie() -> None:
    # Steps of 0.6 with a threshold of 1: a chain would tie all four; from the best, b joins a, and d joins c.
    assert ranks_of({"a": 3.0, "b": 2.4, "c": 1.8, "d": 1.2}, 1.0) == {"a": 1, "b": 1, "c": 2, "d": 2}


def test_the_order_given_and_the_order_shown_do_not_matter(taste: Taste) -> None:
    member = sim.taste_annotators(1, 5)[0]
    for group in _groups(30):
        expected = sim.rank(taste, member, group, 1)
        assert sim.rank(taste, member, group[::-1], 1) == expected
        assert set(expected.completion_ids) == {c.id for c in group}
    firsts = Counter(sim.rank(taste, member, g, 1).completion_ids.index(min(c.id for c in g)) for g in _groups(200))
    assert set(firsts) == {0, 1, 2, 3} and max(firsts.values()) < 80  # shuffled: 50 each expected, sd 6


def test_rankings_depend_on_seed_annotator_and_group_alone(taste: Taste) -> None:
    team, groups = sim.taste_annotators(4, 0), _groups(20)
    whole = list(sim.simulate_rankings(groups, taste, team, 7, per_group=2))
    assert whole == list(sim.simulate_rankings(groups, taste, team, 7, per_group=2))
    parts = [r for g in reversed(groups) for r in sim.simulate_rankings([g], taste, team[::-1], 7, per_group=2)]
    assert {r.id for r in parts} == {r.id for r in whole}
    assert {r.id for r in whole} != {r.id for r in sim.simulate_rankings(groups, taste, team, 8, per_group=2)}


def test_groups_are_shared_out_and_answered_by_different_annotators(taste: Taste) -> None:
    team = sim.taste_annotators(4, 0)
    rankings = list(sim.simulate_rankings(_groups(400), taste, team, 0, per_group=2))
    assert len(rankings) == 800
    pairs = [{a.annotator_id, b.annotator_id} for a, b in zip(rankings[::2], rankings[1::2], strict=True)]
    assert all(len(pair) == 2 for pair in pairs)
    load = Counter(r.annotator_id for r in rankings)
    assert set(load) == {member.record().id for member in team} and min(load.values()) > 150  # 200 each expected, sd 10


def test_equal_completions_count_once_and_lone_ones_are_left_out(taste: Taste) -> None:
    twice = [*_completions([SLOGAN, SLOGAN]), *_completions([FULL_PRAISE])]
    same = _completions([SLOGAN, SLOGAN])
    rankings = list(sim.simulate_rankings([twice, same, []], taste, sim.taste_annotators(1, 0), 0))
    assert [len(r.completion_ids) for r in rankings] == [2]


def test_annotators_differ_are_stable_and_are_called_simulated() -> None:
    five, three = sim.taste_annotators(5, 1), sim.taste_annotators(3, 1)
    assert five[:3] == three
    assert len({a.positivity_weight for a in five}) == 5
    for member in five:
        record = member.record()
        assert record.annotator_kind == "simulated" and "simulated" in record.name and "simulated" in record.note
    assert not {a.name for a in five} & {a.name for a in sim.taste_annotators(5, 2)}


def test_misuse_is_refused(taste: Taste) -> None:
    with pytest.raises(UsageError, match="0 simulated annotators"):
        sim.taste_annotators(0, 0)
    with pytest.raises(UsageError, match="3 rankings a group"):
        list(sim.simulate_rankings(_groups(1), taste, sim.taste_annotators(2, 0), 0, per_group=3))
    with pytest.raises(UsageError, match="2 prompts"):
        sim.rank(taste, _quiet(), [*_groups(2)[0], *_groups(2)[1]], 0)
    with pytest.raises(DataError, match="needs 2 completions"):
        sim.rank(taste, _quiet(), _completions([SLOGAN]), 0)


# -- noise and agreement -----------------------------------------------------------------------------------------------


def _utilities(taste: Taste, groups: list[list[Completion]]) -> dict[str, float]:
    return {c.id: taste.utility(c.text) for group in groups for c in group}


def test_noise_flips_pairs_as_often_as_the_normal_distribution_says(taste: Taste) -> None:
    """Two texts d apart under noise of sd s each: the better one wins with Phi(d / (s sqrt 2))."""
    member = _quiet(noise=0.5)
    gap = member.utility(taste, FULL_PRAISE) - member.utility(taste, FULL_NEUTRAL)
    wins, total = 0, 4_000
    pair = _completions([FULL_PRAISE, FULL_NEUTRAL])
    for seed in range(total):
        ranking = sim.rank(taste, member, pair, seed)
        wins += ranking.ranks[ranking.completion_ids.index(pair[0].id)] == 1
    expected = 0.5 * (1 + math.erf(gap / 0.5 / 2))  # Phi(x) = (1 + erf(x / sqrt 2)) / 2 with x = gap / (0.5 sqrt 2)
    assert wins / total == pytest.approx(expected, abs=5 * math.sqrt(0.25 / total))


def test_agreement_is_above_chance_and_below_one_and_ties_happen(taste: Taste) -> None:
    groups = _groups(300)
    rankings = list(sim.simulate_rankings(groups, taste, sim.taste_annotators(5, 0), 0, per_group=2))
    found = sim.agreement(rankings, _utilities(taste, groups))
    assert found.between is not None and found.with_taste is not None and found.tied is not None
    assert 0.6 < found.between < 0.95
    assert found.between < found.with_taste < 0.97  # two noisy orders agree less than one noisy and one true
    assert 0.02 < found.tied < 0.3


def test_agreement_by_hand() -> None:
    def ranking(who: str, ranks: tuple[int, ...]) -> Ranking:
        return Ranking(annotator_id=who, prompt_id="p", completion_ids=("a", "b", "c"), ranks=ranks)

    found = sim.agreement([ranking("x", (1, 2, 3)), ranking("y", (2, 1, 2))], {"a": 3.0, "b": 2.0, "c": 1.0})
    # x: a>b, a>c, b>c. y: b>a, a=c, b>c. Both order ab (differ) and bc (same): 1/2.
    # With the taste a>b>c: x 3 of 3, y 1 of 2 (b>a wrong, b>c right): 4/5. Ties: 1 of 6.
    assert found == sim.Agreement(between=0.5, with_taste=0.8, tied=pytest.approx(1 / 6), num_pairs=6)


def test_agreement_of_nothing_is_none() -> None:
    assert sim.agreement([], {}) == sim.Agreement(None, None, None, 0)


def test_the_description_says_simulated_and_shows_the_guideline(taste: Taste) -> None:
    text = " ".join(sim.describe_taste(taste, sim.taste_annotators(3, 0)))
    assert "3 simulated annotators, programs and not people" in text and sim.GUIDELINE in text
    assert "10 to 30 words" in text
