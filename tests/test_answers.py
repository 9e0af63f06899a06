"""Answers by position become facts about completions: each kind by hand, and the same whatever the order shown."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accord.config import AxisConfig, LabelConfig
from accord.errors import DataError
from accord.people.desk.answers import Answer, read_answer
from accord.people.desk.kinds import FEEDBACK_KINDS, check, facts
from accord.records import (
    Completion,
    Demonstration,
    Label,
    Prompt,
    Ranking,
    Rating,
    Record,
    Remark,
    Source,
)

SETTINGS = LabelConfig(
    axes=(AxisConfig(name="wit", low=0, high=4, question="Is it witty?"), AxisConfig(name="depth")),
    flags=("rude", "false"),
)
PROMPT = Prompt(text="Why is the sky blue?")
MODEL = Source(origin="policy", name="m")
C = tuple(Completion(prompt_id=PROMPT.id, text=f"Because {i}.", source=MODEL) for i in range(9))
BY: dict[str, Any] = {"annotator_id": "b2:ada", "guideline": "Be fair.", "created_at": "2026-01-01T00:00:00+00:00"}


def said(kind: str, order: tuple[int, ...], answer: Answer, flags: tuple[str, ...] = ()) -> list[Record]:
    check(kind, SETTINGS, len(order), answer)
    return facts(kind, PROMPT, [C[i] for i in order], answer, SETTINGS, flags=flags, **BY)


# -- each kind by hand -------------------------------------------------------------------------------------------------


def test_a_choice_between_two() -> None:
    # Shown: completion 1, then completion 0. The second shown, completion 0, is slightly better.
    answer = Answer(ranks=(2, 1), strength="slightly", note="close", seconds=8.5)
    assert said("pair", (1, 0), answer) == [
        Ranking(
            prompt_id=PROMPT.id,
            completion_ids=(C[1].id, C[0].id),
            ranks=(2, 1),
            strength="slightly",
            seconds=8.5,
            note="close",
            **BY,
        )
    ]


def test_both_bad_is_a_tie_of_two_unacceptable_ones() -> None:
    (fact,) = said("pair", (1, 0), Answer(ranks=(1, 1), unacceptable=(True, True)))
    assert isinstance(fact, Ranking)
    assert (fact.ranks, set(fact.unacceptable), fact.strength) == ((1, 1), {C[0].id, C[1].id}, None)


def test_a_time_that_nobody_measured_is_none() -> None:
    (fact,) = said("pair", (0, 1), Answer(ranks=(1, 2)))
    assert isinstance(fact, Ranking) and fact.seconds is None


def test_a_ranking_of_four_with_a_tie_and_one_unacceptable() -> None:
    # Shown 2, 0, 3, 1; ranks 2, 1, 2, 4: completion 0 is best, 2 and 3 tie, 1 is last and not acceptable.
    answer = Answer(ranks=(2, 1, 2, 4), unacceptable=(False, False, False, True))
    (fact,) = said("ranking", (2, 0, 3, 1), answer)
    assert isinstance(fact, Ranking)
    assert fact.completion_ids == (C[2].id, C[0].id, C[3].id, C[1].id)
    assert fact.ranks == (2, 1, 2, 3)  # 1, 2, 2, 4 and 1, 2, 2, 3 are one order, written in one way
    assert fact.unacceptable == (C[1].id,)


def test_ratings_stand_on_the_scale_of_their_axis() -> None:
    made = said("rating", (1, 0), Answer(ratings=({"wit": 4, "depth": 1}, {"depth": 7, "wit": 0}), note="n", seconds=3))
    first: dict[str, Any] = {"completion_id": C[1].id, **BY}
    second: dict[str, Any] = {"completion_id": C[0].id, **BY}
    assert made == [
        Rating(axis="wit", value=4, low=0, high=4, note="n", seconds=3.0, **first),
        Rating(axis="depth", value=1, low=1, high=7, **first),
        Rating(axis="wit", value=0, low=0, high=4, **second),
        Rating(axis="depth", value=7, low=1, high=7, **second),
    ]


def test_without_guidelines_a_rating_answers_its_question() -> None:
    answer = Answer(ratings=({"wit": 4, "depth": 1},))
    made = facts("rating", PROMPT, C[:1], answer, SETTINGS, **{**BY, "guideline": ""})
    assert [fact.guideline for fact in made if isinstance(fact, Rating)] == ["Is it witty?", ""]


def test_good_and_bad() -> None:
    made = said("label", (2, 0, 1), Answer(good=(True, False, True)), flags=("gold",))
    assert made == [
        Label(completion_id=C[2].id, good=True, flags=("gold",), **BY),
        Label(completion_id=C[0].id, good=False, flags=("gold",), **BY),
        Label(completion_id=C[1].id, good=True, flags=("gold",), **BY),
    ]


def test_a_demonstration() -> None:
    made = said("demonstration", (), Answer(text="It scatters.", note="sure"))
    assert made == [Demonstration(prompt_id=PROMPT.id, text="It scatters.", note="sure", **BY)]


def test_flags_become_remarks_and_an_edit_a_pair_and_a_demonstration() -> None:
    answer = read_answer(
        {"ranks": [1, 2], "flags": [[], ["rude", "false"]], "edit": {"of": 1, "text": "Rayleigh."}, "note": "hm"}
    )
    made = said("pair", (1, 0), answer, flags=("adjudication",))
    flagged: dict[str, Any] = {"flags": ("adjudication",), **BY}
    edit = Completion(
        prompt_id=PROMPT.id, text="Rayleigh.", source=Source(origin="human", name="edit", version=C[0].id)
    )
    assert made == [
        Ranking(prompt_id=PROMPT.id, completion_ids=(C[1].id, C[0].id), ranks=(1, 2), note="hm", **flagged),
        Remark(completion_id=C[0].id, **{**BY, "flags": ("rude", "false")}),
        edit,
        Demonstration(prompt_id=PROMPT.id, text="Rayleigh.", **flagged),
        Ranking(prompt_id=PROMPT.id, completion_ids=(edit.id, C[0].id), ranks=(1, 2), **flagged),
    ]


def test_an_edit_that_changes_nothing_is_refused() -> None:
    with pytest.raises(DataError, match=r"answer\.edit: the edited text is the original"):
        said("pair", (1, 0), Answer(ranks=(1, 2), edit={"of": 0, "text": C[1].text}))  # type: ignore[arg-type]


# -- what does not fit -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "num", "answer", "field", "what"),
    [
        ("pair", 2, {}, "ranks", "a pair task needs ranks"),
        ("pair", 2, {"ranks": [1, 2, 3]}, "ranks", "3 values for 2 completions"),
        ("pair", 2, {"ranks": [2, 2]}, "ranks", "are no ranks"),
        ("pair", 2, {"ranks": [0, 1]}, "ranks", "are no ranks"),
        ("pair", 2, {"ranks": [1, 3]}, "ranks", "are no ranks"),
        ("pair", 2, {"ranks": [1, 1], "strength": "better"}, "strength", "a tie has no strength"),
        ("pair", 2, {"ranks": [1, 2], "unacceptable": [True, True]}, "unacceptable", "both are bad or none"),
        ("pair", 2, {"ranks": [1, 1], "unacceptable": [True, False]}, "unacceptable", "both are bad or none"),
        ("pair", 2, {"ranks": [1, 2], "good": [True, False]}, "good", "a pair task has no good"),
        ("ranking", 3, {"ranks": [1, 2, 3], "strength": "better"}, "strength", "a ranking task has no strength"),
        ("ranking", 3, {"ranks": [1, 2, 3], "unacceptable": [True]}, "unacceptable", "1 values for 3"),
        ("rating", 1, {"ratings": [{"wit": 1}]}, "ratings", "axes wit"),
        ("rating", 1, {"ratings": [{"wit": 1, "depth": 1, "age": 1}]}, "ratings", "axes wit, depth, age"),
        ("rating", 1, {"ratings": [{"wit": 5, "depth": 1}]}, "ratings", r"wit 5 is outside 0\.\.4"),
        ("rating", 1, {"ratings": [{"wit": 0, "depth": 0}]}, "ratings", r"depth 0 is outside 1\.\.7"),
        ("rating", 2, {"ratings": [{"wit": 0, "depth": 1}]}, "ratings", "1 values for 2"),
        ("label", 2, {"good": [True]}, "good", "1 values for 2"),
        ("demonstration", 0, {"text": " \n"}, "text", "the demonstration is empty"),
        ("demonstration", 0, {"text": "x", "flags": []}, "flags", "a demonstration task has no flags"),
        ("demonstration", 0, {"text": "x", "edit": {"of": 0, "text": "y"}}, "edit", "has no edit"),
        ("label", 1, {"good": [True], "flags": [["dull"]]}, "flags", "no flag 'dull'"),
        ("label", 1, {"good": [True], "flags": [["rude", "rude"]]}, "flags", "twice"),
        ("label", 1, {"good": [True], "flags": []}, "flags", "0 values for 1"),
        ("label", 1, {"good": [True], "edit": {"of": 1, "text": "y"}}, "edit", "no completion 1"),
        ("label", 1, {"good": [True], "edit": {"of": 0, "text": " "}}, "edit", "is empty"),
    ],
)
def test_an_answer_that_does_not_fit_names_its_field(
    kind: str, num: int, answer: dict[str, Any], field: str, what: str
) -> None:
    with pytest.raises(DataError, match=what) as caught:
        check(kind, SETTINGS, num, read_answer(answer))
    assert caught.value.where == f"answer.{field}"


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"ranks": [1, 1.5]}, "answer.ranks.1"),
        ({"ranks": [1, True]}, "answer.ranks.1"),
        ({"ranks": ["1", 2]}, "answer.ranks.0"),
        ({"ranks": [1, None]}, "answer.ranks.1"),
        ({"good": [1]}, "answer.good.0"),
        ({"strength": "much"}, "answer.strength"),
        ({"note": "x" * 4001}, "answer.note"),
        ({"text": "x" * 100_001}, "answer.text"),
        ({"seconds": -1}, "answer.seconds"),
        ({"seconds": float("nan")}, "answer.seconds"),
        ({"pauses_s": float("inf")}, "answer.pauses_s"),
        ({"edit": {"of": -1, "text": "x"}}, "answer.edit.of"),
        ({"model": "m"}, "answer.model"),
    ],
)
def test_what_is_no_answer_is_refused_with_its_place(values: dict[str, Any], where: str) -> None:
    with pytest.raises(DataError) as caught:
        read_answer(values)
    assert caught.value.where == where


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(DataError, match="no task of the kind 'poll'"):
        check("poll", SETTINGS, 2, Answer())


# -- whatever the order ------------------------------------------------------------------------------------------------


@st.composite
def opinions(draw: st.DrawFn) -> tuple[str, int, dict[str, Any]]:
    """A kind, a number of completions, and what somebody thinks of each of them, in the order of the task."""
    kind = draw(st.sampled_from(sorted(set(FEEDBACK_KINDS) - {"demonstration"})))
    num = draw(st.integers(FEEDBACK_KINDS[kind].fewest, FEEDBACK_KINDS[kind].most))

    def each(strategy: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(strategy, min_size=num, max_size=num))

    opinion: dict[str, Any] = {
        "flags": [tuple(sorted(flags)) for flags in each(st.sets(st.sampled_from(SETTINGS.flags)))]
    }
    if kind in ("pair", "ranking"):
        levels = each(st.integers(1, 9))
        opinion["ranks"] = [sorted(set(levels)).index(level) + 1 for level in levels]
    if kind == "ranking":
        opinion["unacceptable"] = each(st.booleans())
    if kind == "rating":
        opinion["ratings"] = each(st.fixed_dictionaries({"wit": st.integers(0, 4), "depth": st.integers(1, 7)}))
    if kind == "label":
        opinion["good"] = each(st.booleans())
    return kind, num, opinion


def meaning(made: list[Record]) -> dict[str, Any]:
    """What facts say of each completion, by its id: read from the facts alone."""
    found: dict[str, Any] = {}
    for fact in made:
        if isinstance(fact, Ranking):
            found["ranks"] = dict(zip(fact.completion_ids, fact.ranks, strict=True))
            found["unacceptable"] = set(fact.unacceptable)
        elif isinstance(fact, Rating):
            found.setdefault("ratings", {}).setdefault(fact.completion_id, {})[fact.axis] = fact.value
        elif isinstance(fact, Label):
            found.setdefault("good", {})[fact.completion_id] = fact.good
        else:
            assert isinstance(fact, Remark)
            found.setdefault("flags", {})[fact.completion_id] = fact.flags
    return found


@given(opinions(), st.randoms(use_true_random=False))
def test_facts_say_the_same_whatever_the_order(opinion: tuple[str, int, dict[str, Any]], random: Any) -> None:
    kind, num, values = opinion
    order = tuple(random.sample(range(num), num))
    shown = {name: [each[i] for i in order] for name, each in values.items()}
    found = meaning(said(kind, order, read_answer(shown)))

    flags = {C[i].id: flags for i, flags in enumerate(values["flags"]) if flags}
    assert found.get("flags", {}) == flags
    for name in ("ranks", "ratings", "good"):
        if name in values:
            assert found[name] == {C[i].id: value for i, value in enumerate(values[name])}
    if "unacceptable" in values:
        assert found["unacceptable"] == {C[i].id for i, bad in enumerate(values["unacceptable"]) if bad}


def test_the_order_matters_to_the_answer() -> None:
    """The test above can fail: the same positions under another order say something else."""
    answer = Answer(ranks=(1, 2))
    assert meaning(said("pair", (0, 1), answer)) != meaning(said("pair", (1, 0), answer))


def test_a_plain_answer_reads_back_as_itself() -> None:
    answer = Answer(ranks=(2, 1), flags=((), ("rude",)), seconds=2.5)
    assert read_answer(answer.plain()) == answer
    assert answer.plain() == {"ranks": [2, 1], "flags": [[], ["rude"]], "seconds": 2.5}
