"""Simulated readers: each feature by hand, the sum by hand, and what may change a ranking."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import permutations
from statistics import fmean, pstdev

import pytest

from accord.errors import UsageError
from accord.people.quality import rankings_quality
from accord.people.simulation.annotators import AnnotatorRequest, ShownTask, make_annotators
from accord.people.simulation.readers import (
    TEXT_FEATURES,
    SimulatedReader,
    describe_readers,
    freshness,
    moderation,
    on_topic,
    one_reader,
    own_words,
    plainness,
    reader_panel,
    stems,
    table_weights,
    text_utility,
    text_words,
    wholeness,
    willingness,
)
from accord.records import Completion, Prompt, Ranking, Source

ASKED = "How do I reset the router?"
GOOD = "Hold the reset button of the router for ten seconds."
REFUSED = "I'm sorry, but I cannot help with that"


def test_words_and_what_they_begin_with() -> None:
    assert text_words("Don't re-set it, Zoë: 42_times") == ["don't", "re", "set", "it", "zoë", "times"]
    assert stems("The orders ordering of a fox") == {"order"}


def test_an_answer_speaks_of_what_was_asked_and_adds_something() -> None:
    # The prompt's longer words: reset, route(r). Own of the answer: hold, butto(n), secon(ds), of six wanted.
    assert on_topic(ASKED, GOOD) == 1.0 and on_topic(ASKED, "Reset it.") == 0.5 and on_topic(ASKED, REFUSED) == 0.0
    assert own_words(ASKED, GOOD) == 0.5 and own_words(ASKED, ASKED) == 0.0
    assert on_topic("Hi!", "Hello.") == 1.0


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("Yes.", 1),
        ('He said "no."', 1),
        ("```py\nx\n```", 1),
        ("Really?) ", 1),
        ("好的。", 1),
        ("Yes, and", 0),
        ("", 0),
    ],
)
def test_a_text_that_ends(text: str, whole: int) -> None:
    assert wholeness("", text) == whole


def test_repetition_length_plainness_and_refusals_by_hand() -> None:
    assert freshness("", "a b a b") == pytest.approx(2 / 3) and freshness("", "one") == 1.0
    assert [moderation("", "word " * n) for n in (0, 4, 8, 120, 180, 240, 500)] == [0, 0.5, 1, 1, 0.5, 0, 0]
    # Five exclamation marks too many, two shouted words, one mark of a chat template: 1 / (1 + 8).
    assert plainness("", "GREAT!!! GREAT!!! <|im_end|>") == pytest.approx(1 / 9)
    assert plainness("", "Fine!") == 1.0 and plainness("", "br\ufffdken") == 0.5
    refusals = (REFUSED, "As an AI language model, I have no router.", "I can't assist with it.", "I’m unable to say.")
    assert [willingness("", text) for text in (*refusals, GOOD, "I cannot recommend it enough!")] == [0, 0, 0, 0, 1, 1]


def test_the_taste_is_the_sum_by_hand() -> None:
    # 1 + .5 + 1 + 1 + .75 + .5 + .75; the refusal: own words 5 of 6, fresh, moderate, plain: 5/6 + 1 + .75 + .5
    assert text_utility(ASKED, GOOD, table_weights()) == pytest.approx(5.5)
    assert text_utility(ASKED, REFUSED, table_weights()) == pytest.approx(5 / 6 + 2.25)
    assert all(feature.reason and feature.weight > 0 for feature in TEXT_FEATURES.values())


@pytest.mark.parametrize("name", TEXT_FEATURES)
def test_a_feature_lies_between_0_and_1_for_whatever_text(name: str) -> None:
    draw, letters = random.Random(0), "ab EF!.?\n\x00\ufffd<|好'’é1_-"
    for _ in range(300):
        prompt, text = ("".join(draw.choices(letters, k=draw.randrange(40))) for _ in range(2))
        assert 0.0 <= TEXT_FEATURES[name].measure(prompt, text) <= 1.0


# -- readers -----------------------------------------------------------------------------------------------------------

TEXTS = (GOOD, REFUSED, "Reset reset reset reset", "The router has a small hole at its back: press a pin into it.")


def test_a_ranking_depends_on_seed_reader_and_texts_alone() -> None:
    reader = one_reader(3)
    wanted = dict(zip(TEXTS, reader.ranks(ASKED, TEXTS), strict=True))
    for shown in permutations(TEXTS):
        assert dict(zip(shown, reader.ranks(ASKED, shown), strict=True)) == wanted
    assert reader.felt(ASKED, TEXTS) != one_reader(4).felt(ASKED, TEXTS)
    assert wanted[GOOD] < wanted[REFUSED] < wanted["Reset reset reset reset"] or wanted[REFUSED] > wanted[GOOD]


def test_the_noise_is_of_each_text_and_as_large_as_said() -> None:
    """2,000 draws: the mean is 0 and the deviation .3, each within five standard errors (.0067 and .0047)."""
    reader = replace(one_reader(0), noise=0.3)
    texts = [f"text {n}" for n in range(2000)]
    plain = [text_utility(ASKED, text, table_weights()) for text in texts]
    noise = [felt - utility for felt, utility in zip(reader.felt(ASKED, texts), plain, strict=True)]
    assert abs(fmean(noise)) < 0.034 and abs(pstdev(noise) - 0.3) < 0.024


def test_a_lean_decides_between_equals_by_the_order_shown() -> None:
    reader = SimulatedReader("r", table_weights(), noise=0.0, lean=0.2, tie_within=0.1, seed=0)
    same = ("Hold the router.", "Hold the router!")
    assert reader.ranks(ASKED, same) == (1, 2) and reader.ranks(ASKED, same[::-1]) == (1, 2)
    assert replace(reader, lean=0.0).ranks(ASKED, same) == (1, 1)
    assert reader.ranks(ASKED, (REFUSED, GOOD)) == (2, 1)  # 5.5 against 3.08 + .2


def test_a_panel_differs_within_bounds_and_the_first_stay_the_same() -> None:
    panel = reader_panel(40, 0)
    assert panel[:3] == reader_panel(3, 0) and len({reader.name for reader in panel}) == 40
    assert all(0.1 <= reader.noise <= 0.8 and 0 <= reader.lean <= 0.2 for reader in panel)
    assert len({reader.noise for reader in panel}) > 30 and len({reader.weights["whole"] for reader in panel}) == 40
    with pytest.raises(UsageError, match="at least 1"):
        reader_panel(0, 0)


def test_they_are_called_simulated_and_their_taste_is_told() -> None:
    record = one_reader(0).record()
    assert record.annotator_kind == "simulated" and "simulated" in record.name and "simulated" in record.note
    told = " ".join(describe_readers(reader_panel(3, 0)))
    assert "3 simulated annotators, programs and not people" in told
    assert all(feature.reason in told for feature in TEXT_FEATURES.values())


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("ranking", {"ranks": [1, 2]}),
        ("pair", {"ranks": [1, 2], "strength": "significantly"}),
        ("label", {"good": [True, False]}),
    ],
)
def test_they_answer_whatever_kind_the_queue_asks(kind: str, wanted: dict[str, object]) -> None:
    reader = replace(one_reader(0), noise=0.0)
    assert reader.answer(ShownTask(kind, ASKED, (GOOD, REFUSED), {})) == wanted
    assert reader.answer(ShownTask("demonstration", ASKED, (), {})) is None


def test_they_come_to_accord_simulate_without_texts_of_their_own(tmp_path: object) -> None:
    request = AnnotatorRequest(3, 5, None)  # type: ignore[arg-type]
    (group,) = make_annotators("readers", request)
    assert list(group.annotators) == list(reader_panel(3, 5)) and not group.tasks
    for wrong in (replace(request, num_tasks=3), replace(request, defects={"tie": 1})):
        with pytest.raises(UsageError):
            make_annotators("readers", wrong)


# -- how far they agree, and what each counts --------------------------------------------------------------------------


def rankings_by(readers: dict[str, list[tuple[int, ...]]]) -> list[tuple[Ranking, list[Completion]]]:
    """Each reader's ranks of the same prompts' three completions."""
    source, made = Source(origin="policy", name="p"), []
    for who, several in readers.items():
        for n, ranks in enumerate(several):
            prompt = Prompt(text=f"prompt {n}")
            completions = [Completion(prompt_id=prompt.id, text=f"text {i}", source=source) for i in range(3)]
            ids = tuple(completion.id for completion in completions)
            said = Ranking(annotator_id=who, created_at="t", prompt_id=prompt.id, completion_ids=ids, ranks=ranks)
            made.append((said, completions))
    return made


def test_agreement_by_hand() -> None:
    """Of the three pairs of (1, 2, 3) and (1, 3, 2) two are alike; of (1, 2, 3) and (1, 2, 3) all: 5 of 6."""
    found = rankings_quality(rankings_by({"a": [(1, 2, 3), (1, 2, 3)], "b": [(1, 3, 2), (1, 2, 3)]}))
    assert found.agreement.raw.value == pytest.approx(5 / 6)  # type: ignore[union-attr]


def test_who_ranks_at_random_counts_less_than_who_agrees() -> None:
    draw, orders = random.Random(0), list(permutations((1, 2, 3)))
    truth = [draw.choice(orders) for _ in range(60)]
    careless = [draw.choice(orders) for _ in range(60)]
    found = rankings_quality(rankings_by({"a": truth, "b": truth, "c": truth, "careless": careless}))
    assert found.weights["a"] == found.weights["b"] == 1.0 and found.weights["careless"] < 0.35


def test_alone_nothing_can_be_said_of_anybody() -> None:
    found = rankings_quality(rankings_by({"a": [(1, 2, 3)] * 5}))
    assert found.weights == {"a": 1.0} and "value" not in vars(found.agreement.raw)
