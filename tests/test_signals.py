"""What users do without saying anything: found among what was served, written down once, and what it may teach."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_admission import Shop, rankings_by_people
from test_admission import shop as shop

from accord.config import AdmitConfig, Recipe, ScorerConfig, TaskConfig
from accord.formats.item import Item, reply_of
from accord.loop.files_task import StoreTask
from accord.loop.task import TaskPlace
from accord.loop.turn import look_at_signals
from accord.people.admission import read_admission, recall
from accord.people.signals import (
    ServedTurn,
    judge_signals,
    note_signals,
    read_signals,
    signal_pairs,
    signals_of,
    what_it_says,
)
from accord.records import Prompt


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ("Thanks, that works!", "thanks"),
        ("谢谢，很清楚", "thanks"),
        ("Perfect.", "thanks"),
        ("No, I meant the other one", "corrects"),
        ("That's not right.", "corrects"),
        ("不对，我问的是价格", "corrects"),
        ("No, thanks for nothing", "corrects"),
        ("How can I change my seat please?", "asks_again"),
        ("And how much is it?", "goes_on"),
        ("Now write it in French", "goes_on"),
        ("Nothing else, note the date", "goes_on"),
        ("", "goes_on"),
    ],
)
def test_what_a_message_says(message: str, says: str) -> None:
    assert what_it_says("How can I change my seat?", message) == says


def turn(number: int, turns: list[str], text: str, user: str = "u", at: float | None = None) -> ServedTurn:
    said = [{"role": ("user", "assistant")[i % 2], "content": one} for i, one in enumerate(turns)]
    prompt = Prompt.of_messages(said)
    return ServedTurn(number, user, "v1", prompt.text, "messages", text, 100.0 * number if at is None else at)


def kinds(
    served: list[ServedTurn], pressed: list[tuple[int, str]] | None = None, now: float = 0.0
) -> set[tuple[int, str]]:
    return {(one.served_id, one.kind) for one in signals_of(served, pressed or [], now)}


def test_the_next_message_is_found_by_the_turns_before_it() -> None:
    served = [
        turn(1, ["Hi"], "Hello. "),
        turn(2, ["Hi"], "Hello.", user="other"),
        turn(3, ["Hi", "Hello.", "Thanks!"], "Welcome."),
        turn(4, ["Hi", "Something else", "No, wrong"], "Oh."),  # an answer that we did not give
    ]
    assert kinds(served) == {(1, "thanks")}


def test_a_retry_is_the_same_asked_again_and_alternatives_are_none() -> None:
    served = [turn(1, ["Hi"], "A", at=1.0), turn(2, ["Hi"], "B", at=1.5), turn(3, ["Hi"], "C", at=9.0)]
    assert kinds(served) == {(2, "retry")}
    assert kinds(served, [(3, "copy"), (2, "retry")]) == {(2, "retry"), (3, "copy")}


def test_who_stays_away_has_left_and_that_says_nothing() -> None:
    found = signals_of([turn(1, ["Hi"], "A", at=0.0), turn(2, ["Ho"], "B", at=5000.0)], [], 5100.0)
    assert [(one.served_id, one.kind, one.value) for one in found] == [(1, "left", 0.0)]


def conversation(shop: Shop, question: str, answers: list[str], message: str, user: str = "web/u1") -> None:
    """A user asks, asks again until the last answer, and then says something."""
    said: list[dict[str, str]] = [{"role": "user", "content": question}]
    for text in answers:
        serve(shop, said, text, user)
        shop.now += 60
    serve(
        shop,
        [*said, {"role": "assistant", "content": answers[-1]}, {"role": "user", "content": message}],
        "Fine.",
        user,
    )
    shop.now += 60


def serve(shop: Shop, turns: list[dict[str, str]], text: str, user: str) -> str:
    prompt = Prompt.of_messages(turns)
    detail = {"sampling": json.dumps({"seed": shop.count})}
    shop.count += 1
    from accord.serve.feedback import ServedText

    return shop.book.keep(
        ServedText(user.split("/")[0], user, "human", "shop", "v1", prompt.text, prompt.form, text, detail)
    )


def test_signals_are_written_once_and_a_judge_s_are_ai_feedback(shop: Shop) -> None:
    conversation(shop, "What is it?", ["Bad one", "Good one"], "Thanks!")
    assert note_signals(shop.store, now=shop.now) == 2 and note_signals(shop.store, now=shop.now) == 0
    asked: list[tuple[str, str]] = []

    def score(pairs: Any) -> list[float]:
        asked.extend(pairs)
        return [3.0] * len(pairs)

    assert judge_signals(shop.store, "kind words", score) == 1 and judge_signals(shop.store, "kind words", score) == 0
    assert asked == [("user: What is it?\nassistant: Good one", "Thanks!")]
    with shop.store.snapshot() as connection:
        found = {(one.kind, one.judge, one.value) for one in read_signals(connection)}
    assert found == {("retry", "", -0.5), ("thanks", "", 1.0), ("next_message", "kind words", 1.0)}
    assert shop.store.counts()["completions"] == 0  # a signal makes no fact


def words(pair: Item) -> tuple[str, ...]:
    return tuple(map(reply_of, pair.completions))


def pairs_of(shop: Shop, weight: float = 0.1, **more: Any) -> list[Item]:
    return signal_pairs(shop.store, read_admission(shop.store), weight, **more)


def test_a_better_try_is_a_pair_of_little_weight(shop: Shop) -> None:
    conversation(shop, "What is it?", ["Bad one", "Worse one", "Good one"], "Thanks!")
    conversation(shop, "And that?", ["Only one"], "Wrong.")
    note_signals(shop.store, now=shop.now)
    found = pairs_of(shop)
    assert {words(one) for one in found} == {("Good one", "Bad one"), ("Good one", "Worse one")}
    assert sum(one.weight for one in found) == pytest.approx(0.1) and {one.origin for one in found} == {
        "pairs of signals"
    }
    recall(shop.store, "user:web/u1", "opt_out")
    assert pairs_of(shop) == []


def test_what_judges_made_of_it_counts_only_where_ai_feedback_is_wanted(shop: Shop) -> None:
    conversation(shop, "What is it?", ["One"], "Hm", "web/u1")
    conversation(shop, "What is it?", ["Two"], "Oh", "web/u2")
    note_signals(shop.store, now=shop.now)
    judge_signals(shop.store, "j", lambda pairs: [1.0 if message == "Oh" else -1.0 for _, message in pairs])
    assert [one.origin for one in pairs_of(shop, ai=True) if words(one) == ("Two", "One")][-1] == "AI feedback"
    assert all(one.origin == "pairs of signals" for one in pairs_of(shop))


def test_a_run_reads_signals_where_the_recipe_says_so(shop: Shop, tmp_path: Path) -> None:
    rankings_by_people(shop.store, 30)
    for n in range(30):
        conversation(shop, f"What is {n}? Write to u{n}@example.org", ["Bad one", "Good one"], "Thanks!", f"web/u{n}")
    note_signals(shop.store, now=shop.now)

    def rows(weight: float) -> list[Item]:
        config, admit = TaskConfig(use="store", split_by="prompt"), AdmitConfig(signal_weight=weight)
        found = StoreTask(TaskPlace(config, tmp_path, shop.store.place, tmp_path, admit=admit)).found
        return [item for kind, item in found if item.origin == "pairs of signals"]

    assert rows(0.0) == [] and len(rows(0.1)) == 30
    assert "example.org" not in str(rows(0.1))


def kind_words(prompts: list[str], completions: list[str]) -> list[float]:
    """A judge of what users said next."""
    return [1.0 if "Thanks" in text else -1.0 for text in completions]


def test_a_round_writes_signals_down_and_lets_the_recipe_s_judge_score_them(shop: Shop) -> None:
    conversation(shop, "What is it?", ["Good one"], "Thanks!")
    recipe = Recipe(admit=AdmitConfig(signal_judge=ScorerConfig(name="kind", function="test_signals:kind_words")))
    told: list[str] = []
    for _ in range(2):
        look_at_signals(str(shop.store.place), recipe, lambda done, text: told.append(text))
    with shop.store.snapshot() as connection:
        found = {(one.kind, one.judge) for one in read_signals(connection)}
    assert {("thanks", ""), ("next_message", "kind")} <= found
    assert told[0] == "signals: 1 scored by kind: AI feedback" and told[2] == "signals: 0 scored by kind: AI feedback"
