"""What of users' feedback may be learnt from: rules on rows, secrets, and the way from the store into training."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from accord.cli.main import app
from accord.config import AdmitConfig, TaskConfig
from accord.errors import UsageError
from accord.formats import read_items
from accord.formats.item import Item
from accord.loop.files_task import StoreTask, is_live
from accord.loop.task import TaskPlace
from accord.people.admission import Recalled, SaidOnce, admit, read_admission, readmit, recall, thumb_pairs
from accord.people.scrub import scrubbed
from accord.people.views import training_view
from accord.progress import quiet
from accord.records import Annotator, Completion, Prompt, Ranking, Source
from accord.serve.feedback import FeedbackBody, FeedbackBook, ServedText
from accord.store import Store

DAY = 86_400.0


def said(number: int, user: str = "web/u1", **more: Any) -> SaidOnce:
    """One thumb, a minute after the one before, on a text of its own."""
    values: dict[str, Any] = {
        "id": number,
        "key": user.split("/")[0],
        "user": user,
        "kind": "thumb",
        "value": True,
        "words": "",
        "axis": "",
        "model": "shop",
        "version": "v1",
        "prompt": f"Question {number}?",
        "form": "text",
        "texts": (f"Answer {number}.",),
        "at": 90.0 * number,
        "judgements": (f"j{number}",),
    }
    return SaidOnce(**{**values, **more})


def refused(*rows: SaidOnce, recalled: list[Recalled] | None = None, **settings: Any) -> dict[str, str]:
    return dict(admit(rows, recalled or [], AdmitConfig(**settings)).refused)


# ---- rules -----------------------------------------------------------------------------------------------------------


def test_what_an_honest_user_says_counts_whole() -> None:
    found = admit([said(n) for n in range(20)])
    assert not found.refused and set(found.weight.values()) == {1.0} and found.users == {"web/u1": (20, 0)}
    assert found.to_json()["admitted"] == 20


def test_a_switch_lets_nothing_in() -> None:
    assert list(refused(said(1), feedback=False)) == ["j1"]


def test_a_flood_is_a_program_and_the_hours_before_it_are_not() -> None:
    calm = [said(n, at=600.0 * n) for n in range(10)]
    flood = [said(100 + n, at=50_000 + n) for n in range(70)]
    found = refused(*calm, *flood)
    assert set(found) == {one.judgements[0] for one in flood} and "within an hour" in found["j100"]
    assert refused(*flood, most_per_hour=0) == {}
    # Sixty in an hour may be, wherever the hour begins; one more may not.
    assert not refused(*(said(n, at=DAY + 60.0 * n) for n in range(60)))
    assert len(refused(*(said(n, at=DAY + 59.0 * n) for n in range(61)))) == 61


def test_a_day_has_an_end_and_a_user_a_weight() -> None:
    rows = [said(n, at=DAY + 120.0 * n) for n in range(130)]
    found = admit(rows, config=AdmitConfig())
    assert set(found.refused) == {f"j{n}" for n in range(100, 130)}
    assert sum(found.weight.values()) == pytest.approx(20.0) and len(found.weight) == 100
    whole = admit(rows, config=AdmitConfig(most_per_day=0, user_weight=0.0))
    assert not whole.refused and sum(whole.weight.values()) == 130


def test_the_same_text_served_again_is_judged_once_the_newest_word() -> None:
    first, again = said(1), said(2, prompt="Question 1?", texts=("Answer 1.",), value=False)
    other = said(3, "web/u2", prompt="Question 1?", texts=("Answer 1.",))
    assert set(refused(first, again, other)) == {"j1"}


def test_accounts_in_step_are_one() -> None:
    """Twelve answers alike in a row are a script; eleven, or the same in another order, are people who agree."""
    prompts = [f"What about {n}?" for n in range(12)]
    values = [bool(n % 2) for n in range(12)]

    def account(user: str, start: int, order: list[int]) -> list[SaidOnce]:
        return [
            said(start + i, user, prompt=prompts[n], value=values[n], texts=(f"{user} reads {n}",), at=400.0 * i)
            for i, n in enumerate(order)
        ]

    order = list(range(12))
    bots = account("web/a", 0, order) + account("web/b", 100, order)
    mixed = random.Random(0).sample(order, 12)
    people = account("web/c", 200, mixed) + account("web/d", 300, order[:11])
    found = refused(*bots, *people)
    assert set(found) == {one.judgements[0] for one in bots} and "another account" in found["j0"]
    assert not refused(*bots, same_run=0)


def test_words_that_several_accounts_send_alike() -> None:
    long = "This answer is wonderful and everybody should read it."
    rows = [said(n, f"web/u{n}", words=long + "  " * n) for n in range(3)]
    short = [said(10 + n, f"web/v{n}", words="Thanks!") for n in range(9)]
    assert set(refused(*rows, *short)) == {"j0", "j1", "j2"}
    assert not refused(*rows[:2])


@pytest.mark.parametrize("source", ["user:web/u1", "key:web", "model:v1"])
def test_a_source_is_recalled_whole(source: str) -> None:
    other = said(2, "app/u9", version="v2")
    assert set(refused(said(1), other, recalled=[Recalled(source, reason="a script")])) == {"j1"}
    assert set(refused(said(1), other, recall=(source,))) == {"j1"}
    assert "a script" in refused(said(1), recalled=[Recalled(source, reason="a script")])["j1"]


def test_sources_are_named_as_they_must_be() -> None:
    with pytest.raises(ValueError, match="names no source"):
        AdmitConfig(recall=("mallory",))


def test_prompts_of_refused_feedback_are_withheld_and_others_are_not() -> None:
    found = admit(
        [said(1), said(2, "web/u2"), said(3, "web/u2", prompt="Question 1?")], [Recalled("user:web/u2", "opt_out")]
    )
    assert (found.withheld, len(found.prompts)) == ({json.dumps("Question 2?")}, 2)


def test_comments_and_copies_teach_nothing_and_are_counted() -> None:
    rows = [said(1, kind="comment"), said(2, kind="copy", judgements=()), said(3)]
    assert (admit(rows).remarks, admit(rows).users) == (2, {"web/u1": (1, 0)})


# ---- thumbs ----------------------------------------------------------------------------------------------------------


def label(prompt: str, text: str, good: bool, **more: Any) -> Item:
    return Item(prompt=prompt, completions=(text,), labels=(good,), sources=(None,), origin="users", **more)


def test_thumbs_are_pairs_where_one_is_up_and_one_is_down() -> None:
    rows = [label("p", "a", True), label("p", "b", False), label("p", "c", False), label("q", "d", True)]
    made = thumb_pairs(rows, 0.5)
    assert {one.completions for one in made} == {("a", "b"), ("a", "c")}
    assert [one.weight for one in made] == [0.25, 0.25] and {one.origin for one in made} == {"pairs of thumbs"}
    assert not thumb_pairs([label("p", "a", True), label("p", "a", False)], 1.0)
    asked = [{"role": "user", "content": "p"}]
    assert len(thumb_pairs([label(asked, "a", True), label(asked, "b", False)], 1.0)) == 1  # type: ignore[arg-type]
    assert not thumb_pairs([label("p", "a", True, axis="safe"), label("p", "b", False)], 1.0)


# ---- secrets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Write to ada.lovelace+x@example.co.uk, please.", "Write to [e-mail], please."),
        ("Call +49 (30) 901820-11 or 030 / 9018 2011", "Call [phone] or [phone]"),
        ("我的手机是13812345678。", "我的手机是[phone]。"),
        ("Call (212) 555-0123.", "Call [phone]."),
        ("key sk-proj-abcdefghij0123456789ABCD ok", "key [secret] ok"),
        ("ghp_" + "a1" * 20, "[secret]"),
        ("AKIAIOSFODNN7EXAMPLE", "[secret]"),
        ('password: "hunter22" and more', 'password: "[secret]" and more'),
        ("密码是 abc12345，谢谢", "密码是 [secret]，谢谢"),
        ("postgres://me:s3cret@db/x", "postgres://me:[secret]@db/x"),
        ("card 4111 1111 1111 1111 ok", "card [card number] ok"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE+/=\n-----END RSA PRIVATE KEY-----", "[secret]"),
    ],
)
def test_secrets_are_replaced(text: str, left: str) -> None:
    found = Counter[str]()
    assert scrubbed(text, found) == left and found.total() == len(re.findall(r"\[(?:e-mail|phone|secret|card)", left))
    assert scrubbed(left) == left


@pytest.mark.parametrize(
    "text",
    [
        "On 2026-12-01 at 10:15:30 we sold 1,234,567 pieces for 99.95 each.",
        "Version 3.11.2, build 20261201, ISBN 978-3-16-148410-0",
        "The pass word of the day; a secret garden; api keys in general",
        "order 4111 1111 1111 1112",  # no card: the check digit is wrong
        "x = 1234567890123456789012",
        "ada at example dot org",
        "12 + 34 = 46, 555-1234",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert scrubbed(text) == text


def test_no_text_makes_it_slow() -> None:
    """Steps grow with the text, at sizes where their square would take minutes."""
    for piece in ("a.", "1 ", "@", "a@a.", "password:", "+1-", "-----BEGIN PRIVATE KEY-----", "eyJa", "http://a:"):
        scrubbed(piece * 50_000)


# ---- the store -------------------------------------------------------------------------------------------------------


class Shop:
    """A project's store with a book of feedback, and a clock."""

    def __init__(self, store: Store) -> None:
        self.store, self.now = store, 1e9
        self.book = FeedbackBook(store, b"secret", clock=lambda: self.now)
        self.count = 0

    def served(self, prompt: str, text: str, user: str = "web/u1", kind: Any = "human") -> str:
        detail = {"prompt_ids": [1], "completion_ids": [2], "behaviour_logp": [-0.1], "finish": "stop"}
        detail["sampling"] = json.dumps({"seed": self.count})
        self.count += 1
        who = user.split("/")[0]
        return self.book.keep(ServedText(who, user, kind, "shop", "v1", prompt, "text", text, detail))

    def say(self, token: str, kind: str, value: Any, **more: Any) -> None:
        self.now += 90.0
        self.count += 1
        self.book.take(FeedbackBody(feedback_token=token, kind=kind, value=value, **more), f"key-{self.count:08d}")

    def task(self, folder: Path, **settings: Any) -> StoreTask:
        config = TaskConfig(use="store", split_by="prompt", judge_share=0.2, test_share=0.2, valid_share=0.1)
        return StoreTask(TaskPlace(config, folder, self.store.place, folder, admit=AdmitConfig(**settings)))


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with Store.open(tmp_path / "accord.db") as store:
        yield Shop(store)


def rankings_by_people(store: Store, count: int) -> None:
    """Pairs that stand already, of as many prompts."""
    ada, source = Annotator(name="Ada", annotator_kind="human"), Source(origin="policy", name="old")
    facts: list[Any] = [ada, source]
    for n in range(count):
        prompt = Prompt(text=f"Old question {n}?")
        pair = [Completion(prompt_id=prompt.id, text=f"{word} answer {n}", source=source) for word in ("Good", "Bad")]
        ids = tuple(one.id for one in pair)
        ranked = Ranking(annotator_id=ada.id, prompt_id=prompt.id, completion_ids=ids, ranks=(1, 2))
        facts += [prompt, *pair, ranked]
    store.add(facts)


def compare(shop: Shop, prompt: str, user: str = "web/u1") -> None:
    tokens = [shop.served(prompt, f"{word} says {prompt}", user) for word in ("One", "Two")]
    shop.say(tokens[0], "ranking", [1, 2], others=[tokens[1]])


def test_training_reads_only_what_was_admitted(shop: Shop, tmp_path: Path) -> None:
    rankings_by_people(shop.store, 40)
    for n in range(40):
        compare(shop, f"New question {n}?", f"web/u{n % 8}")
    start = shop.now
    for n in range(80):  # within an hour
        shop.now = start + n
        compare(shop, f"Spam {n}?", "web/mallory")
        shop.now = start + n
    left_out: dict[str, int] = {}
    every = [
        judgement for judgement in shop.store.rankings() if training_view(shop.store, left_out=left_out)(judgement)
    ]
    assert len(every) == 40 and sum(left_out.values()) == 120  # nothing of it, where nobody admits it

    task = shop.task(tmp_path / "data")
    told = task.prepare({}, tmp_path / "data", quiet)
    rows = {split: [*read_items(task.path("judgements", split))] for split in ("train", "judge", "valid", "test")}
    live = {split: [one for one in items if is_live(one)] for split, items in rows.items()}
    assert sum(map(len, live.values())) + told["left_out"]["judgements"]["why"]["users, of the judge's prompts"] == 40
    assert live["train"] and live["test"] and not live["judge"] and rows["judge"]
    assert told["admission"]["users"]["web/mallory"] == {"admitted": 0, "refused": 80}
    assert sum(count for why, count in told["left_out"]["judgements"]["why"].items() if "within an hour" in why) == 80
    texts = "".join(path.read_text() for path in (tmp_path / "data").glob("*.jsonl"))
    assert "New question" in texts and "Spam" not in texts
    assert told["left_out"]["judgements"]["why"]["prompts of users' feedback that was refused"] == 80


def test_recalled_feedback_changes_the_data_and_comes_back(shop: Shop, tmp_path: Path) -> None:
    rankings_by_people(shop.store, 30)
    for n in range(10):
        compare(shop, f"New question {n}?", "web/u1")

    def facts() -> str:
        return str(shop.task(tmp_path / "data").settings["facts"])

    before = facts()
    assert recall(shop.store, "user:web/u1", reason="they asked") and not recall(shop.store, "user:web/u1")
    assert facts() != before and read_admission(shop.store).users == {"web/u1": (0, 10)}
    assert readmit(shop.store, "user:web/u1") and not readmit(shop.store, "user:web/u1")
    assert facts() == before
    with pytest.raises(UsageError, match="names no source"):
        recall(shop.store, "mallory")


def test_users_texts_are_scrubbed_on_their_way_and_others_are_not(shop: Shop, tmp_path: Path) -> None:
    rankings_by_people(shop.store, 30)
    for n in range(12):
        compare(shop, f"I am u{n}@example.org, what is {n}?")
    data = tmp_path / "data"
    told = shop.task(data).prepare({}, data, quiet)
    texts = "".join(path.read_text() for path in data.glob("*.jsonl"))
    assert "[e-mail]" in texts and "@example.org" not in texts
    assert told["left_out"]["judgements"]["why"]["e-mails replaced in users' texts"] >= 24
    shop.task(data, scrub=False).prepare({}, data, quiet)
    assert "@example.org" in "".join(path.read_text() for path in data.glob("*.jsonl"))


def test_thumbs_make_pairs_to_train_on_and_never_to_measure(shop: Shop, tmp_path: Path) -> None:
    rankings_by_people(shop.store, 30)
    for n in range(40):
        up, down = (shop.served(f"Thumbed {n}?", f"{word} {n}", f"web/u{n % 8}") for word in ("Fine", "Poor"))
        shop.say(up, "thumb", True)
        if n % 2:
            shop.say(down, "thumb", False)
    data = tmp_path / "data"
    task = shop.task(data)
    why = task.prepare({}, data, quiet)["left_out"]["judgements"]["why"]
    found = {
        split: [one for one in read_items(task.path("judgements", split)) if is_live(one)]
        for split in ("train", "test")
    }
    assert found["train"] and not found["test"]
    assert all(one.completions[0].startswith("Fine") and one.weight == 0.5 for one in found["train"])
    assert len(found["train"]) + why["pairs of thumbs, on prompts that measure: thumbs only teach"] == 20
    assert why["thumbs without an opposite one on the same prompt"] == 20
    assert not any(is_live(item) for _, item in shop.task(data, thumb_weight=0.0).found)


def test_users_alone_teach_no_judge(shop: Shop, tmp_path: Path) -> None:
    for n in range(40):
        compare(shop, f"New question {n}?", f"web/u{n % 4}")
    task = shop.task(tmp_path / "data")
    task.prepare({}, tmp_path / "data", quiet)
    assert task.judgements("judge") is None and task.judgements("test") is not None


def test_simulated_users_never_become_people(shop: Shop, tmp_path: Path) -> None:
    rankings_by_people(shop.store, 30)
    tokens = [shop.served("Ask", word, "bot/u1", "simulated") for word in ("One", "Two")]
    shop.say(tokens[0], "ranking", [1, 2], others=[tokens[1]])
    assert not any(is_live(item) for _, item in shop.task(tmp_path / "data").found)
    task = shop.task(tmp_path / "data")
    place = replace(task.place, config=task.place.config.model_copy(update={"simulated": True}))
    assert [item.origin for _, item in StoreTask(place).found if is_live(item)] == ["simulated users"]


def test_the_command_tells_and_recalls(tmp_path: Path) -> None:
    runner = CliRunner()
    home = tmp_path / "shop"
    assert runner.invoke(app, ["init", str(home)], prog_name="accord").exit_code == 0
    with Store.open(home / "accord.db") as store:
        shop = Shop(store)
        for n in range(5):
            compare(shop, f"New question {n}?", f"web/u{n % 2}")
    command = ["feedback", str(home)]
    assert "5 pieces of feedback admitted, 0 refused" in runner.invoke(app, command, prog_name="accord").stdout
    done = runner.invoke(app, [*command, "--recall", "user:web/u1", "--reason", "a script"], prog_name="accord")
    assert "2 refused: user recalled: a script" in done.stdout and "user:web/u1: recalled" in done.stdout
    again = runner.invoke(app, [*command, "--readmit", "user:web/u1", "--json"], prog_name="accord")
    assert json.loads(again.stdout)["refused"] == 0
    assert runner.invoke(app, [*command, "--opt-out", "u1"], prog_name="accord").exit_code == 2
