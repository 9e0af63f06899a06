"""The facts: their ids, their one canonical form, and what they refuse."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accord.errors import DataError
from accord.records import (
    Annotator,
    Completion,
    Demonstration,
    JudgedGroup,
    Label,
    Prompt,
    RankedGroup,
    Ranking,
    Rating,
    Remark,
    Source,
    Withdrawal,
    content_id,
    now_utc,
)

AT = "2026-01-02T03:04:05.000006+00:00"


def rating(**changes: Any) -> Rating:
    fields = {"annotator_id": "a", "completion_id": "c", "created_at": AT, "value": 3.0, "low": 1.0, "high": 5.0}
    return Rating(**(fields | changes))


def ranking(**changes: Any) -> Ranking:
    fields = {"annotator_id": "a", "prompt_id": "p", "created_at": AT, "completion_ids": ("x", "y"), "ranks": (1, 2)}
    return Ranking(**(fields | changes))


# Truth from another program: printf '%s' '<the JSON in the comment>' | b2sum --length=128
@pytest.mark.parametrize(
    ("record", "expected"),
    [
        # ["prompt",{"text":"Grüße ✓","topic":"films"}]
        (Prompt(text="Grüße ✓", topic="films"), "b2:cb602a42a0b7e40cab5adb7abb956c8b"),
        # ["source",{"name":"n","origin":"policy","sampling":"t=1","version":"7"}]
        (Source(origin="policy", name="n", version="7", sampling="t=1"), "b2:170497fae7b2e11879597b5a0fc931be"),
        # ["rating",{"annotator_id":"a","completion_id":"c","created_at":"2026-01-02T03:04:05.000006+00:00",
        # "flags":["spam"],"guideline":"","high":5.0,"low":1.0,"note":"","seconds":2.5,"supersedes":null,"value":3.0}]
        (rating(flags=("spam",), seconds=2.5), "b2:f1586c633262253f501734f7fd7ba1ac"),
        # ["label",{"annotator_id":"a","completion_id":"c","created_at":"2026-01-02T03:04:05.000006+00:00","flags":[],
        # "good":true,"guideline":"","note":"","seconds":null,"supersedes":null}]
        (Label(annotator_id="a", completion_id="c", created_at=AT, good=True), "b2:775f2e915dbf3942ccb889b21d78c0be"),
    ],
)
def test_id_is_the_blake2b_of_canonical_json(record: Any, expected: str) -> None:
    assert record.id == expected


def test_what_came_later_is_hashed_only_where_it_says_something() -> None:
    """The ids above stand although prompts and ratings have learnt to say more since; each new word is covered."""
    assert rating(axis="").id == rating().id != rating(axis="helpfulness").id
    assert ranking(unacceptable=()).id == ranking().id != ranking(unacceptable=("y",)).id
    assert ranking(strength=None).id == ranking().id != ranking(strength="slightly").id
    talk = Prompt.of_messages([{"role": "user", "content": "Hi"}])
    assert talk.id != Prompt(text=talk.text).id


def test_a_prompt_of_messages_has_one_canonical_form() -> None:
    talk = Prompt.of_messages([{"role": "user", "content": "Grüße\u2028"}, {"content": "?", "role": "assistant"}])
    assert talk.text == '[{"content":"Grüße\u2028","role":"user"},{"content":"?","role":"assistant"}]'
    assert Prompt(text=' [{"role": "user", "content": "Hi"}]', form="messages") == Prompt.of_messages(
        [{"role": "user", "content": "Hi"}]
    )
    assert talk.turns()[0] == {"role": "user", "content": "Grüße\u2028"}
    assert Prompt(text="Hi").turns() == [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    "text", ["", "Hi", "[]", "{}", '["Hi"]', '[{"role": "user"}]', '[{"role": "user", "content": 3}]', "[" * 5000]
)
def test_a_prompt_of_messages_refuses_other_texts(text: str) -> None:
    with pytest.raises(DataError, match="no list of them"):
        Prompt(text=text, form="messages")


def test_unacceptable_completions_stand_in_the_order_shown() -> None:
    assert ranking(unacceptable=["y", "x", "y"]).unacceptable == ("x", "y")
    with pytest.raises(DataError, match="does not stand in the ranking"):
        ranking(unacceptable=("z",))


def test_a_strength_needs_a_choice_between_two() -> None:
    assert ranking(strength="better").strength == "better"
    for changes in ({"ranks": (1, 1)}, {"completion_ids": ("x", "y", "z"), "ranks": (1, 2, 3)}):
        with pytest.raises(DataError, match="beside no choice"):
            ranking(strength="better", **changes)
    with pytest.raises(DataError, match="strength is 'hugely'"):
        ranking(strength="hugely")


def test_a_remark_says_something() -> None:
    said = {"annotator_id": "a", "completion_id": "c", "created_at": AT}
    assert Remark(**said, flags=("rude",)).id != Remark(**said, note="rude").id
    with pytest.raises(DataError, match="says nothing"):
        Remark(**said, note="  ")


def test_id_of_a_withdrawal_covers_what_it_takes_back() -> None:
    first, second = (Withdrawal(annotator_id="a", judgement_id=id_, created_at=AT) for id_ in ("x", "y"))
    assert first.id != second.id


def test_id_of_a_completion_covers_its_source_by_id() -> None:
    source = Source(origin="human", name="corpus")
    completion = Completion(prompt_id="p", text="t", source=source)
    assert completion.id == content_id("completion", {"prompt_id": "p", "text": "t", "source": source.id})
    assert completion.id != replace(completion, source=replace(source, version="2")).id


def test_meta_is_no_part_of_identity() -> None:
    assert Prompt(text="t", meta={"split": "train"}).id == Prompt(text="t").id
    assert Prompt(text="t", meta={"split": "train"}) == Prompt(text="t")


def test_each_field_is_part_of_the_id() -> None:
    changes: list[dict[str, Any]] = [
        {"annotator_id": "b"},
        {"completion_id": "d"},
        {"created_at": "later"},
        {"value": 4.0},
        {"low": 0.0},
        {"high": 6.0},
        {"seconds": 1.0},
        {"guideline": "g"},
        {"note": "n"},
        {"flags": ("spam",)},
        {"supersedes": "s"},
    ]
    assert len({rating(**change).id for change in changes} | {rating().id}) == len(changes) + 1


def test_kinds_with_the_same_fields_have_other_ids() -> None:
    assert content_id("rating", {}) != content_id("label", {})


def test_numbers_have_one_form() -> None:
    assert rating(value=3, low=1, high=5, seconds=2).id == rating(value=3.0, low=1.0, high=5.0, seconds=2.0).id
    assert rating(value=-0.0, low=-1.0).id == rating(value=0.0, low=-1.0).id


def test_lists_become_tuples() -> None:
    made = ranking(completion_ids=["x", "y"], ranks=[1, 2], flags=["spam"])
    assert made == ranking(flags=("spam",))
    assert hash(made) == hash(ranking(flags=("spam",)))
    assert made.id == ranking(flags=("spam",)).id


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_has_an_id(text: str) -> None:
    assert len(Prompt(text=text).id) == len("b2:") + 32


def test_a_record_is_frozen_even_after_its_id_was_asked_for() -> None:
    prompt = Prompt(text="t")
    before = prompt.id
    with pytest.raises(FrozenInstanceError):
        prompt.text = "u"  # type: ignore[misc]
    assert replace(prompt, text="u").id != before


def test_ties_are_allowed() -> None:
    assert ranking(ranks=(1, 1)).ranks == (1, 1)


def test_now_is_utc_to_the_microsecond() -> None:
    assert now_utc().endswith("+00:00")
    assert len(now_utc()) == len(AT)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Source(origin="human", name=""), "a source has no name"),
        (lambda: Source(origin="martian", name="n"), "origin is 'martian'"),  # type: ignore[arg-type]
        (lambda: Annotator(name="", annotator_kind="human"), "an annotator has no name"),
        (lambda: Annotator(name="n", annotator_kind="robot"), "annotator_kind is 'robot'"),  # type: ignore[arg-type]
        (lambda: Prompt(text=5), "text of a prompt is 5"),  # type: ignore[arg-type]
        (lambda: Prompt(text="t", meta={"n": 1}), "is not a table of texts"),  # type: ignore[dict-item]
        (lambda: ranking(completion_ids=("x",), ranks=(1,)), "needs 2 completions, got 1"),
        (lambda: ranking(ranks=(1,)), "1 ranks for 2 completions"),
        (lambda: ranking(ranks=(0, 1)), "rank 0 is below 1"),
        (lambda: ranking(ranks=(1.5, 2)), "are not whole numbers"),
        (lambda: ranking(completion_ids=("x", "x")), "stands twice"),
        (lambda: rating(value=6.0), r"rating 6.0 is outside 1.0..5.0"),
        (lambda: rating(value=float("nan")), "rating nan is outside"),
        (lambda: rating(seconds=-1.0), "took -1.0 seconds"),
        (lambda: rating(seconds=float("nan")), "took nan seconds"),
        (lambda: Label(annotator_id="a", completion_id="c", good=1), "good is 1"),  # type: ignore[arg-type]
        (lambda: Demonstration(annotator_id="a", prompt_id="p", text=" \n"), "a demonstration is empty"),
        (lambda: RankedGroup(prompt="p", completions=("x",), ranks=(1,)), "needs 2 completions, got 1"),
        (lambda: RankedGroup(prompt="p", completions=("x", "y"), ranks=(1,)), "1 ranks for 2 completions"),
        (lambda: JudgedGroup(prompt="p", completions=(), values=()), "has no completion"),
        (lambda: JudgedGroup(prompt="p", completions=("x",), values=(1.0, 0.0)), "2 values for 1 completions"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make()


def test_ranked_group_as_json() -> None:
    group = RankedGroup(prompt="p", completions=("x", "y"), ranks=(1.0, 2.0), topic="t")
    expected = {"prompt": "p", "completions": ["x", "y"], "ranks": [1.0, 2.0], "topic": "t", "origin": "file"}
    assert group.to_json() == expected | {"weight": 1.0}
