"""What people do on the pages, done in a real browser; then the facts in the store are compared with the clicks."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from accord.cli.project import create_project
from accord.people.desk.answers import Answer
from accord.records import Prompt
from tests.own_kind import NAME, sent, write_kind
from tests.webapp import CHROMIUM, CHROMIUM_ARGS, Served, serving, task

pytest.importorskip("playwright")
from playwright.sync_api import Browser, BrowserContext, Page, Playwright, expect, sync_playwright

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")]
expect.set_options(timeout=30_000)  # as long as Playwright waits for all else; five seconds are short when it is busy
FIVE = ["the oak", "a birch\n\n- with\n- a list", "one elm, **bold**", "`willow`", "pine " * 120]


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as running:
        yield running


@pytest.fixture(scope="module")
def browser(playwright: Playwright) -> Iterator[Browser]:
    running = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
    yield running
    running.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path) as running:
        yield running


class Person:
    """Somebody in front of a browser. Page errors and refused content make the test fail when it leaves."""

    def __init__(self, browser: Browser, served: Served, name: str, role: str = "annotator", **more: Any) -> None:
        self.served, self.row = served, served.person(name, role)
        self.context: BrowserContext = browser.new_context(**({"viewport": {"width": 1280, "height": 860}} | more))
        session = served.desk.directory.open_session(self.row.id)
        self.context.add_cookies([{"name": served.cookie, "value": session, "url": served.url}])
        self.page: Page = self.context.new_page()
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda told: self._heard(told.type, told.text))

    def _heard(self, kind: str, text: str) -> None:
        if kind == "error" and "Failed to load resource" not in text and "ERR_" not in text:
            self.errors.append(text)

    def __enter__(self) -> Person:
        return self

    def __exit__(self, *failure: object) -> None:
        self.context.close()
        assert failure[0] is not None or not self.errors, self.errors

    def open(self, path: str = "/task") -> Page:
        self.page.goto(self.served.url + path)
        if path.startswith("/task"):
            self.ready()
        return self.page

    def ready(self) -> None:
        self.page.wait_for_selector("#task[data-ready]")

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def submitted(self) -> None:
        """The page after a submission: the next task, or that all is done."""
        self.page.wait_for_function("() => !document.querySelector('#task.sending, #task[inert]')")
        self.page.wait_for_selector("#task[data-ready], .hello")

    def submit(self) -> None:
        """Enter, and wait for another page than this one."""
        here = self.page.locator("#task").get_attribute("data-task")
        self.press("Enter")
        gone = "was => document.querySelector('.hello, #task[data-ready]')?.dataset.task !== was"
        self.page.wait_for_function(gone, arg=here)
        self.page.wait_for_selector("#task[data-ready], .hello")

    def texts(self) -> list[str]:
        """The completions on the page by position, as the page's own script would edit them."""
        cards = self.page.locator(".card")
        found = {}
        for i in range(cards.count()):
            place = int(cards.nth(i).get_attribute("data-position") or -1)
            found[place] = cards.nth(i).locator(".editing textarea").input_value()
        return [found[i] for i in sorted(found)]


def by_text(served: Served, ids: tuple[str, ...]) -> list[str]:
    text_of = {completion.id: completion.text for completion in served.store.completions()}
    return [text_of[id_] for id_ in ids]


def ranks_by_text(served: Served, **where: Any) -> list[dict[str, int]]:
    """Every ranking that counts: text -> rank."""
    return [
        dict(zip(by_text(served, one.completion_ids), one.ranks, strict=True)) for one in served.store.rankings(**where)
    ]


def drafted(served: Served, person: Person) -> dict[str, Any]:
    """What the server has of the answer that this person is at."""
    held = served.desk.queue.claim(person.row.id)
    return (held.draft if held else None) or {}


def eventually(is_so: Callable[[], bool]) -> None:
    for _ in range(600):
        if is_so():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come about in half a minute")


def drag(page: Page, letter: str, other: str, share: float) -> None:
    """Drag a card by its handle onto another one, at a share of its height."""
    page.locator(f".card[data-letter={letter}]").scroll_into_view_if_needed()
    grip = page.get_by_label(f"Drag {letter}").bounding_box()
    assert grip is not None
    page.mouse.move(grip["x"] + grip["width"] / 2, grip["y"] + grip["height"] / 2)
    page.mouse.down()
    rolled, still = -1, 0
    for _ in range(100):  # the page rolls under a card that is held at its edge, and pauses where the machine is busy
        target = page.locator(f".card[data-letter={other}]").bounding_box()
        assert target is not None
        y = target["y"] + share * target["height"]
        page.mouse.move(grip["x"] + 9, min(max(y, 5), 855), steps=3)
        at = page.evaluate("scrollY")
        still = still + 1 if at == rolled and 0 < y < 860 else 0
        if still == 4:
            break
        rolled = at
        page.wait_for_timeout(60)
    page.mouse.up()


def standing(page: Page) -> dict[str, int]:
    cards = page.locator(".ranked .card")
    return {
        str(cards.nth(i).get_attribute("data-letter")): int(cards.nth(i).locator(".rank").inner_text())
        for i in range(cards.count())
    }


# ---- coming in ---------------------------------------------------------------------------------------------------


def test_a_link_lets_one_in_and_the_token_leaves_the_address_bar(browser: Browser, served: Served) -> None:
    token = served.desk.directory.invite("annotator", by=None)
    served.desk.directory.write_guideline("# Be *fair*", by=None)
    served.desk.queue.add_tasks([task("label", "Good?", "yes")])
    page = browser.new_page()
    page.goto(f"{served.url}/join/{token}")
    assert page.url == f"{served.url}/join"
    page.get_by_label("Name").fill("Gil")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Hello, Gil.")).to_be_visible()
    page.get_by_role("link", name="Read the guidelines first").click()
    expect(page.locator(".prose em")).to_have_text("fair")
    page.wait_for_load_state()  # the form's script runs
    page.get_by_role("button", name="I have read this").click()
    page.wait_for_selector("#task[data-ready]")
    page.locator(".menu summary").click()
    page.get_by_role("button", name="Log out", exact=True).click()
    page.wait_for_url("**/login")
    page.goto(f"{served.url}/join/{token}")
    page.get_by_label("Name").fill("Gus")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("not valid")
    page.context.close()


# ---- ranking -----------------------------------------------------------------------------------------------------


def test_five_are_ranked_with_a_tie_by_keyboard(browser: Browser, served: Served) -> None:
    served.desk.queue.add_tasks([task("ranking", "Which tree?", *FIVE)])
    with Person(browser, served, "Eve") as eve:
        page = eve.open()
        a, b, c, d, e = eve.texts()
        eve.press("j", "J")  # A down: B A C D E
        eve.press("j", "j", "j", "K", "K")  # E up twice: B A E C D
        expect(page.locator("#live")).to_have_text("E: rank 3 of 5")
        eve.press("=")  # E tied with A
        expect(page.locator("#live")).to_have_text("E: rank 2 of 4, tied with A")
        eve.press("j", "j", "x")  # D is unacceptable
        assert standing(page) == {"B": 1, "A": 2, "E": 2, "C": 3, "D": 4}
        eve.press("Enter")
        eve.submitted()
    assert ranks_by_text(served) == [{b: 1, a: 2, e: 2, c: 3, d: 4}]
    (ranking,) = served.store.rankings()
    assert by_text(served, ranking.completion_ids) == [a, b, c, d, e]
    assert by_text(served, ranking.unacceptable) == [d] and ranking.seconds is not None and ranking.seconds >= 0


def test_five_are_ranked_with_a_tie_by_mouse(browser: Browser, served: Served) -> None:
    served.desk.queue.add_tasks([task("ranking", "Which tree?", *FIVE)])
    with Person(browser, served, "Eve", reduced_motion="reduce") as eve:
        page = eve.open()
        a, b, c, d, e = eve.texts()
        drag(page, "C", "A", 0.1)  # C A B D E
        assert standing(page) == {"C": 1, "A": 2, "B": 3, "D": 4, "E": 5}
        drag(page, "A", "E", 0.95)  # C B D E A
        assert standing(page) == {"C": 1, "B": 2, "D": 3, "E": 4, "A": 5}
        drag(page, "E", "C", 0.5)  # onto C: tied
        assert standing(page) == {"C": 1, "E": 1, "B": 2, "D": 3, "A": 4}
        page.get_by_label("Move D up").click()
        assert standing(page) == {"C": 1, "E": 1, "D": 2, "B": 3, "A": 4}
        page.get_by_label("Tie A with the one above").click()
        assert standing(page) == {"C": 1, "E": 1, "D": 2, "B": 3, "A": 3}
        page.get_by_label("A is unacceptable").click()
        page.get_by_role("button", name="Submit").click()
        eve.submitted()
    assert ranks_by_text(served) == [{c: 1, e: 1, d: 2, b: 3, a: 3}]
    (ranking,) = served.store.rankings()
    assert by_text(served, ranking.unacceptable) == [a]


def test_what_was_ranked_is_what_is_exported(browser: Browser, tmp_path: Path) -> None:
    create_project(tmp_path)
    with serving(tmp_path) as served, Person(browser, served, "Eve") as eve:
        served.desk.queue.add_tasks([task("ranking", "Which tree?", "oak", "elm", "fir", "yew")])
        eve.open()
        a, b, c, d = eve.texts()
        eve.press("j", "J", "j", "=", "x", "Enter")  # B, A = C, D; C is unacceptable
        eve.submitted()
    file = tmp_path / "rankings.jsonl"
    argv = ["export", "--format", "accord", "--only", "ranking", "-o", str(file), "--project", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "accord", *argv], check=True, capture_output=True)
    (row,) = map(json.loads, file.read_text().splitlines())
    assert row["prompt"] == "Which tree?"
    assert dict(zip(row["completions"], row["ranks"], strict=True)) == {a: 2, b: 1, c: 2, d: 3}


def test_a_drag_given_up_changes_nothing(browser: Browser, served: Served) -> None:
    served.desk.queue.add_tasks([task("ranking", "Which?", "one", "two", "three")])
    with Person(browser, served, "Eve") as eve:
        page = eve.open()
        grip = page.get_by_label("Drag A").bounding_box()
        assert grip is not None
        page.mouse.move(grip["x"] + 5, grip["y"] + 5)
        page.mouse.down()
        page.mouse.move(grip["x"] + 5, grip["y"] + 300, steps=5)
        eve.press("Escape")
        page.mouse.up()
        assert standing(page) == {"A": 1, "B": 2, "C": 3}


def test_ties_are_made_cut_and_left_by_moving(browser: Browser, served: Served) -> None:
    served.desk.queue.add_tasks([task("ranking", "Which?", "one", "two", "three", "four")])
    with Person(browser, served, "Eve") as eve:
        page = eve.open()
        eve.press("j", "j", "=", "j", "=")  # A = B = C, D
        assert standing(page) == {"A": 1, "B": 1, "C": 1, "D": 2}
        eve.press("k", "=")  # cut above B: A, B = C, D
        assert standing(page) == {"A": 1, "B": 2, "C": 2, "D": 3}
        eve.press("J")  # B out of its tie, below: A, C, B, D
        assert standing(page) == {"A": 1, "C": 2, "B": 3, "D": 4}
        eve.press("k", "=", "j", "=", "j", "K")  # A = C = B, then D over the whole tie
        assert standing(page) == {"D": 1, "A": 2, "C": 2, "B": 2}


def test_an_order_nobody_touched_is_asked_about_once(browser: Browser, served: Served) -> None:
    served.desk.queue.add_tasks([task("ranking", "Which?", "one", "two")])
    with Person(browser, served, "Eve") as eve:
        page = eve.open()
        eve.press("Enter")
        expect(page.locator("#problem")).to_contain_text("not moved anything")
        eve.press("Enter")
        eve.submitted()
    assert len(ranks_by_text(served)) == 1


# ---- the other kinds ---------------------------------------------------------------------------------------------

PAIR_KEYS = {
    "1": ((1, 2), "significantly", 0),
    "2": ((1, 2), "better", 0),
    "3": ((1, 2), "slightly", 0),
    "4": ((1, 2), "negligibly", 0),
    "5": ((1, 1), None, 0),
    "6": ((2, 1), "negligibly", 0),
    "7": ((2, 1), "slightly", 0),
    "8": ((2, 1), "better", 0),
    "9": ((2, 1), "significantly", 0),
    "0": ((1, 1), None, 2),
}


def test_every_key_of_a_pair_says_what_it_shows(browser: Browser, served: Served) -> None:
    served.desk.queue.add_tasks([task("pair", f"Question {key}", f"{key} a", f"{key} b") for key in PAIR_KEYS])
    with Person(browser, served, "Eve") as eve:
        eve.open()
        for key in PAIR_KEYS:
            eve.press("9" if key != "9" else "1", key)  # the last one counts
            eve.submit()
    said = [(one.ranks, one.strength, len(one.unacceptable)) for one in served.store.rankings()]
    assert said == list(PAIR_KEYS.values())


def test_a_pair_is_judged_by_mouse_and_enter(browser: Browser, served: Served) -> None:
    served.desk.queue.add_tasks([task("pair", "Which?", "one", "two")])
    with Person(browser, served, "Eve") as eve:
        page = eve.open()
        a, b = eve.texts()
        page.locator("label.choice", has_text="B is slightly").click()
        eve.press("Enter")
        eve.submitted()
    assert ranks_by_text(served) == [{a: 2, b: 1}]


def test_axes_are_rated_by_digits(browser: Browser, served: Served) -> None:
    axes = [{"name": "help", "low": 1, "high": 7, "question": "?"}, {"name": "truth", "low": 1, "high": 5}]
    with serving(served_folder(served), axes=axes) as other, Person(browser, other, "Eve") as eve:
        other.desk.queue.add_tasks([task("rating", "How good?", "one", "two")])
        page = eve.open()
        texts = eve.texts()
        eve.press("7", "3", "Enter")
        expect(page.locator("#problem")).to_have_text("Rate help too.")
        eve.press("2", "5", "k", "4", "Enter")  # the second completion's help is changed to 4
        eve.submitted()
        text_of = {one.id: one.text for one in other.store.completions()}
        said = {(text_of[one.completion_id], one.axis): (one.value, one.high) for one in other.store.ratings()}
    a, b = texts
    assert said == {(a, "help"): (7, 7), (a, "truth"): (3, 5), (b, "help"): (4, 7), (b, "truth"): (5, 5)}


def served_folder(served: Served) -> Path:
    folder = Path(served.store.place).parent / "other"
    folder.mkdir()
    return folder


def test_good_and_bad_by_keys_with_flags_and_a_note(browser: Browser, served: Served) -> None:
    served.desk.queue.add_tasks([task("label", "Good?", "one", "two", "three")])
    with Person(browser, served, "Eve") as eve:
        page = eve.open()
        a, b, c = eve.texts()
        eve.press("g", "b", "g")
        eve.press("k", "f", "Space", "Tab", "Space", "Escape")  # two flags on B
        eve.press("n")
        page.keyboard.type("sgb 123 ?")  # keys rest while one types
        eve.press("Escape", "Enter")
        eve.submitted()
    text_of = {one.id: one.text for one in served.store.completions()}
    assert {text_of[one.completion_id]: one.good for one in served.store.labels()} == {a: True, b: False, c: True}
    (remark,) = served.store.remarks()
    assert text_of[remark.completion_id] == b and remark.flags == ("off-topic", "made up")
    assert [one.note for one in served.store.labels() if one.note] == ["sgb 123 ?"]


def test_a_demonstration_of_a_conversation_is_written(browser: Browser, served: Served) -> None:
    turns = [("user", "Hi"), ("assistant", "Hello"), ("user", "A joke?"), ("assistant", "No."), ("user", "Please.")]
    prompt = Prompt.of_messages([{"role": role, "content": content} for role, content in turns])
    served.desk.queue.add_tasks([task("demonstration", prompt)])
    with Person(browser, served, "Eve") as eve:
        page = eve.open()
        joke = page.locator(".text", has_text="A joke?")
        expect(joke).not_to_be_visible()  # collapsed, but reachable
        page.get_by_text("Earlier in this conversation").click()
        expect(joke).to_be_visible()
        eve.press("w")
        page.keyboard.type("Why not.\n\nBecause.")
        expect(page.locator("#words")).to_have_text("3 words")
        eve.press("Control+Enter")
        eve.submitted()
    (written,) = served.store.demonstrations()
    assert (written.text, written.prompt_id) == ("Why not.\n\nBecause.", prompt.id)


def test_the_best_is_edited(browser: Browser, served: Served) -> None:
    served.desk.queue.add_tasks([task("pair", "Which?", "\nan edge\n", "two")])
    with Person(browser, served, "Eve") as eve:
        page = eve.open()
        texts = eve.texts()
        key, best = ("1", 0) if texts[0] == "\nan edge\n" else ("9", 1)
        eve.press(key, "e")
        expect(page.locator("textarea:focus")).to_have_value("\nan edge\n")  # every letter of the original
        page.locator("textarea:focus").fill("an edge, 2 sharper")
        eve.press("Escape", "Enter")
        eve.submitted()
    (edit,) = [one for one in served.store.completions() if one.source.name == "edit"]
    original = next(one for one in served.store.completions() if one.text == texts[best])
    assert edit.text == "an edge, 2 sharper" and edit.source.version == original.id
    assert [one.text for one in served.store.demonstrations()] == ["an edge, 2 sharper"]
    assert {"an edge, 2 sharper": 1, texts[best]: 2} in ranks_by_text(served)


def test_an_edit_is_discarded(browser: Browser, served: Served) -> None:
    served.desk.queue.add_tasks([task("pair", "Which?", "one", "two")])
    with Person(browser, served, "Eve") as eve:
        page = eve.open()
        page.get_by_label("Edit B").click()
        page.keyboard.type("more ")
        page.get_by_role("button", name="Discard the edit").click()
        eve.press("1", "Enter")
        eve.submitted()
    assert list(served.store.demonstrations()) == []


def test_the_words_that_differ_are_marked_and_unmarked(browser: Browser, served: Served) -> None:
    served.desk.queue.add_tasks([task("pair", "Which?", "the old cat", "the new cat")])
    with Person(browser, served, "Eve") as eve:
        page = eve.open()
        a, b = (text.split()[1] for text in eve.texts())
        eve.press("d")
        expect(page.locator("del")).to_have_text(a)
        expect(page.locator("ins")).to_have_text(b)
        eve.press("d")
        expect(page.locator("del")).not_to_be_visible()


# ---- undo, skip, drafts ------------------------------------------------------------------------------------------


def test_undo_gives_the_task_back_with_the_answer(browser: Browser, served: Served) -> None:
    served.desk.queue.add_tasks(
        [task("ranking", "Trees?", "oak", "elm", "fir"), task("label", "Good?", "x", priority=-1)]
    )
    with Person(browser, served, "Eve") as eve:
        page = eve.open()
        a, b, c = eve.texts()
        eve.press("j", "j", "=", "Enter")  # A = B, C
        expect(page.locator("#task.label[data-ready]")).to_be_visible()
        eve.press("u")
        expect(page.locator("#task.ranking[data-ready]")).to_be_visible()
        assert standing(page) == {"A": 1, "B": 1, "C": 2} and eve.texts() == [a, b, c]
        assert ranks_by_text(served) == []
        page.get_by_label("Tie B with the one above").click()
        eve.press("Enter")
        expect(page.locator("#task.label[data-ready]")).to_be_visible()
    assert ranks_by_text(served) == [{a: 1, b: 2, c: 3}]
    assert len(list(served.store.rankings(history=True))) == 2  # the first is on record, withdrawn


def test_skip_wants_a_reason_and_can_be_undone(browser: Browser, served: Served) -> None:
    served.desk.queue.add_tasks([task("pair", "Which?", "one", "two")])
    with Person(browser, served, "Eve") as eve:
        page = eve.open()
        a, b = eve.texts()
        eve.press("2", "s", "Escape", "s", "3", "Enter")
        expect(page.get_by_role("heading", name="All done.")).to_be_visible()
        expect(page.get_by_role("button", name="Undo last")).to_be_visible()  # so its script runs, and hears the key
        assert [skip.reason for skip in served.desk.reading.skips()] == ["cannot decide"]
        eve.press("u")
        eve.page.wait_for_selector("#task[data-ready]")
        assert list(served.desk.reading.skips()) == [] and eve.texts() == [a, b]
        expect(page.locator("input[name=choice]:checked")).to_have_value("0 better")  # the draft was kept
        eve.press("Enter")
        eve.submitted()
    assert ranks_by_text(served) == [{a: 1, b: 2}]


def test_a_draft_survives_a_reload(browser: Browser, served: Served) -> None:
    served.desk.queue.add_tasks([task("ranking", "Trees?", "oak", "elm", "fir")])
    with Person(browser, served, "Eve") as eve:
        page = eve.open()
        eve.press("j", "J", "x", "f", "Space", "Escape", "n")
        page.keyboard.type("so far")
        page.reload()  # at once: the last words leave with the page
        eve.ready()
        assert standing(page) == {"B": 1, "A": 2, "C": 3}
        expect(page.get_by_label("A is unacceptable")).to_have_attribute("aria-pressed", "true")
        expect(page.locator("#note")).to_have_value("so far")
        assert page.locator("input[name=flag-0]:checked").count() == 1
        eventually(lambda: drafted(served, eve).get("note") == "so far")  # sent as the page was left
    with Person(browser, served, "Eve") as elsewhere:  # another browser: what the server has
        page = elsewhere.open()
        assert standing(page) == {"B": 1, "A": 2, "C": 3}


def test_a_draft_left_in_a_browser_is_not_the_next_persons(browser: Browser, served: Served) -> None:
    served.desk.queue.add_tasks([task("label", "Good?", "oak", overlap=2)])
    with Person(browser, served, "Eve") as eve:
        page = eve.open()
        page.route("**/draft", lambda route: route.abort())
        eve.press("b", "n")
        page.keyboard.type("Eve's own words")
        expect(page.locator("#saved")).to_have_text("draft kept in this browser")
        bob = served.person("Bob")
        session = served.desk.directory.open_session(bob.id)
        eve.context.add_cookies([{"name": served.cookie, "value": session, "url": served.url}])
        eve.open()
        expect(page.locator("#note")).to_have_value("")
        assert page.locator("input[type=radio][name=good-0]:checked").count() == 0


def test_a_draft_made_without_connection_is_kept_in_the_browser(browser: Browser, served: Served) -> None:
    served.desk.queue.add_tasks([task("demonstration", "Write!")])
    with Person(browser, served, "Eve") as eve:
        page = eve.open()
        eve.context.set_offline(True)
        eve.press("w")
        page.keyboard.type("far from any network")
        expect(page.locator("#saved")).to_have_text("draft kept in this browser")
        eve.context.set_offline(False)
        page.reload()
        eve.ready()
        expect(page.locator("#text")).to_have_value("far from any network")
        expect(page.locator("#saved")).to_have_text("draft saved")
    assert drafted(served, eve)["text"] == "far from any network"


# ---- once, and only once -----------------------------------------------------------------------------------------


def test_two_browsers_at_once_never_get_one_slot(browser: Browser, served: Served) -> None:
    served.desk.queue.add_tasks([task("label", f"Question {i}", f"text {i}") for i in range(12)])
    with Person(browser, served, "Eve") as eve, Person(browser, served, "Fay") as fay:
        eve.open()
        fay.open()
        for turn in range(6):
            for person in (eve, fay) if turn % 2 else (fay, eve):
                person.press("g")
                person.submit()
    done = list(served.desk.reading.submissions())
    assert len(done) == len({one.task_id for one in done}) == 12 and not any(one.extra for one in done)
    assert len(list(served.store.labels())) == 12


def test_a_double_click_is_one_judgement(browser: Browser, served: Served) -> None:
    served.desk.queue.add_tasks(
        [task("pair", "Which?", "one", "two"), task("pair", "And now?", "three", "four", priority=-1)]
    )
    with Person(browser, served, "Eve") as eve:
        page = eve.open()
        eve.press("1")
        page.get_by_role("button", name="Submit").dblclick()
        page.locator(".text", has_text="And now?").wait_for()
        page.evaluate(  # and as fast as a script can
            """async () => {
                const given = JSON.parse(document.getElementById("task").dataset.task);
                const csrf = document.querySelector('meta[name="csrf"]').content;
                const send = () => fetch(`/api/tasks/${given.task_id}/submit`, {
                    method: "POST",
                    headers: {"X-CSRF-Token": csrf, "Content-Type": "application/json", "Idempotency-Key": "same-key"},
                    body: JSON.stringify({ranks: [1, 2], seconds: 1}),
                });
                const answers = await Promise.all([send(), send(), send(), send()]);
                const codes = answers.map((answer) => answer.status).sort();
                if (codes.join() !== "200,200,200,201") throw new Error(codes.join());
            }"""
        )
    assert len(list(served.desk.reading.submissions())) == len(ranks_by_text(served)) == 2


def test_a_submission_without_connection_is_sent_again_and_counted_once(browser: Browser, served: Served) -> None:
    served.desk.queue.add_tasks([task("pair", "Which?", "one", "two")])
    with Person(browser, served, "Eve") as eve:
        page = eve.open()
        a, b = eve.texts()
        lost: list[str] = []

        def lose_the_answer(route: Any) -> None:  # the server has it, the browser does not know
            route.fetch()
            lost.append(route.request.headers["idempotency-key"])
            route.abort()

        page.route("**/submit", lose_the_answer, times=1)
        eve.press("8", "Enter")
        expect(page.locator("#toast")).to_contain_text("Your answer is kept")
        eve.submitted()
        expect(page.get_by_role("heading", name="All done.")).to_be_visible()
    assert len(lost) == 1 and ranks_by_text(served) == [{a: 2, b: 1}]


def test_a_submission_waits_for_the_network(browser: Browser, served: Served) -> None:
    served.desk.queue.add_tasks([task("pair", "Which?", "one", "two")])
    with Person(browser, served, "Eve") as eve:
        page = eve.open()
        eve.context.set_offline(True)
        eve.press("1", "Enter")
        expect(page.locator("#toast")).to_contain_text("No connection")
        assert list(served.desk.reading.submissions()) == []
        eve.context.set_offline(False)
        expect(page.get_by_role("heading", name="All done.")).to_be_visible()
    assert len(list(served.desk.reading.submissions())) == 1


def test_a_session_that_ended_loses_nothing(browser: Browser, served: Served) -> None:
    served.desk.queue.add_tasks([task("pair", "Which?", "one", "two")])
    with Person(browser, served, "Eve") as eve:
        page = eve.open()
        eve.press("1")
        eve.context.clear_cookies()
        eve.press("Enter")
        expect(page.locator("#problem")).to_contain_text("You are logged out")
        expect(page.locator("input[name=choice]:checked")).to_have_value("0 significantly")
    assert list(served.desk.reading.submissions()) == []


# ---- time, keys --------------------------------------------------------------------------------------------------


def test_the_minimum_reading_time_counts_what_was_seen(browser: Browser, served: Served) -> None:
    with serving(served_folder(served), min_seconds=5) as other, Person(browser, other, "Eve") as eve:
        other.desk.queue.add_tasks([task("label", "Good?", "yes")])
        page = eve.open()
        button = page.locator("#submit")
        expect(button).to_be_disabled()
        expect(button).to_contain_text("Read on")
        hide = "h => { Object.defineProperty(document, 'hidden', {get: () => h, configurable: true});" + (
            "document.dispatchEvent(new Event('visibilitychange')); }"
        )
        page.evaluate(hide, True)
        time.sleep(1.5)
        page.evaluate(hide, False)
        eve.press("g", "Enter")
        assert list(other.desk.reading.submissions()) == []
        expect(button).to_be_enabled()
        eve.press("Enter")
        eve.submitted()
        (done,) = other.desk.reading.submissions()
    assert 5 <= done.seconds < 300 and 1.4 <= done.pauses_s < 100  # seconds, on a busy machine too


def test_keys_rest_with_modifiers_and_in_windows(browser: Browser, served: Served) -> None:
    served.desk.queue.add_tasks([task("pair", "Which?", "one", "two")])
    with Person(browser, served, "Eve") as eve:
        page = eve.open()
        eve.press("Alt+1", "Meta+2")
        assert page.locator("input[name=choice]:checked").count() == 0
        eve.press("?")
        expect(page.get_by_role("dialog")).to_contain_text("both are bad")
        eve.press("3")
        assert page.locator("input[name=choice]:checked").count() == 0
        eve.press("Escape", "3")
        assert page.locator("input[name=choice]:checked").count() == 1


def test_keys_become_ones_own_without_a_clash_and_stay_at_this_browser(browser: Browser, served: Served) -> None:
    """j and k become h and t, and with them Shift; x is taken, a digit is none. After a new login they are still so."""
    served.desk.queue.add_tasks([task("ranking", "Trees?", "oak", "elm", "fir", overlap=9)])
    with Person(browser, served, "Eve") as eve:
        page = eve.open()

        def change(key: str, own: str) -> None:
            page.get_by_role("button", name=f"{key} change", exact=True).click()
            eve.press(own)

        eve.press("?")
        told = page.get_by_role("dialog").get_by_role("status")
        change("j", "x")
        expect(told).to_have_text("x means something else already.")
        eve.press("5")
        expect(told).to_have_text("Take a letter or a sign.")
        eve.press("=")
        expect(told).to_have_text("= means something else already.")
        eve.press("-")
        expect(told).to_have_text("Take a letter: it is used with Shift too.")
        eve.press("H")
        expect(told).to_have_text("Kept in this browser.")
        change("k", "t")
        change("x", "j")  # free again
        expect(page.locator(".hint kbd").nth(0)).to_have_text("h")
        expect(page.locator("dialog .keys")).to_contain_text("⇧h")
        eve.press("Escape")
        eve.press("h", "H", "j")  # A down, and unacceptable
        assert standing(page) == {"B": 1, "A": 2, "C": 3}
        expect(page.get_by_label("A is unacceptable")).to_have_attribute("aria-pressed", "true")
        expect(page.get_by_label("Move A down")).to_have_attribute("title", "Move down (Shift+h)")
        eve.press("k", "x")  # mean nothing now
        assert standing(page) == {"B": 1, "A": 2, "C": 3}
        page.locator(".menu summary").click()
        page.get_by_role("button", name="Log out", exact=True).click()
        page.wait_for_url("**/login")
        session = served.desk.directory.open_session(eve.row.id)
        eve.context.add_cookies([{"name": served.cookie, "value": session, "url": served.url}])
        eve.open()
        eve.press("h", "T", "?")
        page.get_by_role("button", name="Back to the usual keys").click()
        expect(page.locator(".hint kbd").nth(0)).to_have_text("j")
        eve.press("Escape", "n")
        expect(page.locator("#note")).to_be_focused()
        other = served.desk.directory.open_session(served.person("Fay").id)
        page.evaluate('key => localStorage.setItem(key, \'{"j": "h"}\')', f"accord:keys:{eve.row.id}")
        eve.context.add_cookies([{"name": served.cookie, "value": other, "url": served.url}])
        eve.open()
        expect(page.locator(".hint kbd").nth(0)).to_have_text("j")  # Fay's own hands


def test_keys_that_no_keyboard_sends_are_not_kept(browser: Browser, served: Served) -> None:
    """Shift makes SS of ß, so it cannot stand for j and J; what else lies in the browser's memory stops no page."""
    served.desk.queue.add_tasks([task("ranking", "Trees?", "oak", "elm", "fir")])
    with Person(browser, served, "Eve") as eve:
        page = eve.open()
        place = f"accord:keys:{eve.row.id}"
        for held in ('{"j": 7, "k": "t"}', '{"j": "ß", "k": "t"}', '{"j": ["h"], "k": "t"}', '{"j": "hh", "k": "t"}'):
            page.evaluate("([place, held]) => localStorage.setItem(place, held)", [place, held])
            eve.open()
            assert page.locator(".hint kbd").all_text_contents()[:2] == ["j", "t"], held
        eve.press("j", "j", "T", "?")
        assert standing(page) == {"B": 1, "A": 2, "C": 3}
        page.get_by_role("button", name="j change", exact=True).click()
        page.evaluate(
            "key => document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}))", "ß"
        )
        expect(page.get_by_role("dialog").get_by_role("status")).to_have_text("Take a letter or a sign.")


def test_a_disagreement_is_decided_beside_what_was_said(browser: Browser, served: Served) -> None:
    served.desk.queue.add_tasks([task("pair", "Which?", "one", "two", overlap=2)])
    for name, ranks in (("Eve", (1, 2)), ("Fay", (2, 1))):
        with served.by_token(served.person(name)) as client:
            held = client.post("/api/claim", json={}).json()
            first = held["completions"][0]["text"] == "one"
            said = {"ranks": list(ranks if first else ranks[::-1])}
            client.post(
                f"/api/tasks/{held['task_id']}/submit",
                json=said,
                headers={"Idempotency-Key": f"k-{name:8}".replace(" ", "x")},
            )
    with Person(browser, served, "Moe", "manager") as moe:
        page = moe.open("/manage/disagreements")
        page.get_by_role("link", name="Decide").click()
        moe.ready()
        expect(page.locator("table").first).to_contain_text("Eve")
        assert moe.texts() == ["one", "two"]
        moe.press("9", "Enter")
        page.wait_for_url("**/manage/disagreements")
    by_flag = {one.flags: one.ranks for one in served.store.rankings() if "adjudication" in one.flags}
    assert by_flag == {("adjudication",): (2, 1)} and len(ranks_by_text(served)) == 3


# ---- gold questions ----------------------------------------------------------------------------------------------


def test_a_task_is_made_gold_answered_missed_and_retired(browser: Browser, served: Served) -> None:
    """By keyboard, with the widget that annotators have; who gets it next sees a task like any other."""
    served.desk.queue.add_tasks([task("ranking", "Trees?", "oak", "elm", "fir")])
    with Person(browser, served, "Moe", "manager") as moe, Person(browser, served, "Eve") as eve:
        page = moe.open("/manage/gold")
        page.get_by_role("link", name="Make gold").click()
        moe.ready()
        assert page.get_by_label("Flags of A").count() == page.get_by_label("Edit A").count() == 0
        moe.press("e", "f", "s", "u", "j", "j", "j", "K", "n")  # no edit, no flag, no skip; oak, fir, elm
        page.keyboard.type("Firs come second.")
        moe.press("Escape")
        page.get_by_label("Ask up to").fill("0")
        moe.press("Escape", "Enter")
        assert (
            page.url.endswith("/gold") and served.desk.reading.counts()["gold"] == 0
        )  # nobody to ask: refused by the form
        page.get_by_label("Ask up to").fill("2")
        moe.press("Enter")
        page.wait_for_url("**/manage/gold")
        expect(page.locator(".past")).to_contain_text("A > C > B")
        expect(page.locator(".past")).to_contain_text("Firs come second.")
        (made,) = served.desk.queue.tasks()
        assert made.gold is not None and made.overlap == 2 and "seconds" not in made.gold
        eve.open()
        assert "gold" not in eve.page.content().lower()
        letters = "".join("ABC"[eve.texts().index(tree)] for tree in ("fir", "elm", "oak"))
        for place, letter in enumerate(letters):
            while standing(eve.page)[letter] > place + 1:
                eve.page.get_by_label(f"Move {letter} up").click()
        if letters == "ABC":
            eve.press("Enter")  # an order nobody touched is asked about once
        eve.press("Enter")
        eve.submitted()
        page.reload()
        expect(page.locator(".past")).to_contain_text("1 of 2 answered")
        expect(page.locator(".past")).to_contain_text("Eve (33 %)")  # fir before elm is right; oak is first in gold
        page.get_by_role("link", name="Change").click()
        moe.ready()
        assert standing(page) == {"A": 1, "C": 2, "B": 3}  # what was said before
        page.go_back()
        page.get_by_role("button", name="Retire").click()
        expect(page.get_by_text("There are none yet.")).to_be_visible()
    (task_now,) = served.desk.queue.tasks()
    assert task_now.gold is None and task_now.overlap == 2


def test_a_retired_question_asks_no_fewer_than_the_task_asked(browser: Browser, served: Served) -> None:
    """Five were to be asked, although one is usual here; eight as gold."""
    served.desk.queue.add_tasks([task("pair", "Which?", "one", "two", overlap=5)])
    (made,) = served.desk.queue.tasks()
    with Person(browser, served, "Moe", "manager") as moe:
        served.desk.queue.set_gold(made.id, Answer(ranks=(1, 2)), moe.row, overlap=8)
        page = moe.open("/manage/gold")
        page.get_by_role("button", name="Retire").click()
        expect(page.get_by_text("There are none yet.")).to_be_visible()
    (task_now,) = served.desk.queue.tasks()
    assert task_now.gold is None and task_now.overlap >= 5


@pytest.mark.parametrize("path", ["/manage/task/{}/gold", "/manage/task/{}"])
def test_what_a_manager_could_not_send_does_not_come_back(browser: Browser, served: Served, path: str) -> None:
    """Moe's answer is refused; Mia sets another. Moe's browser then starts from hers, and drafts nothing."""
    served.desk.queue.add_tasks([task("ranking", "Trees?", "oak", "elm", "fir")])
    (made,) = served.desk.queue.tasks()
    with Person(browser, served, "Moe", "manager") as moe:
        page, drafts = moe.page, list[str]()
        page.on("request", lambda request: drafts.append(request.url) if request.url.endswith("/draft") else None)
        moe.open(path.format(made.id))
        moe.ready()
        cookies = moe.context.cookies()
        moe.context.clear_cookies()
        moe.press("j", "J", "Enter")  # elm, oak, fir
        expect(page.locator("#problem")).to_contain_text("You are logged out")
        assert standing(page) == {"B": 1, "A": 2, "C": 3}  # while the page is open nothing is lost
        moe.context.add_cookies(cookies)  # type: ignore[arg-type]
        served.desk.queue.set_gold(made.id, Answer(ranks=(3, 2, 1)), served.person("Mia", "manager"))
        moe.open(path.format(made.id))
        moe.ready()
        hers = {"C": 1, "B": 2, "A": 3} if path.endswith("gold") else {"A": 1, "B": 2, "C": 3}
        assert standing(page) == hers and drafts == []


def test_a_decided_disagreement_becomes_gold_with_the_decision(browser: Browser, served: Served) -> None:
    served.desk.queue.add_tasks([task("pair", "Which?", "one", "two", overlap=2)])
    with Person(browser, served, "Moe", "manager") as moe:
        (made,) = served.desk.queue.tasks()
        served.desk.answers.adjudicate(moe.row.id, made.id, Answer(ranks=(2, 1), strength="slightly"), key="decided")
        page = moe.open(f"/manage/task/{made.id}")
        page.get_by_role("link", name="Make it a gold question").click()
        moe.ready()
        expect(page.locator("input[name=choice]:checked")).to_have_value("1 slightly")
        moe.press("Enter")
        page.wait_for_url("**/manage/gold")
    gold = served.desk.queue.task(made.id).gold
    assert gold is not None and (gold["ranks"], gold["strength"]) == ([2, 1], "slightly")


# ---- a kind of one's own -----------------------------------------------------------------------------------------


def test_a_kind_of_ones_own_is_answered_by_keyboard(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_kind(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with serving(tmp_path, own_kinds=(NAME,)) as served:
        served.desk.queue.add_tasks([task(NAME, "A greeting", "hello", "hi", "good day")])
        with Person(browser, served, "Uma") as uma:
            page = uma.open()
            texts = uma.texts()
            uma.press("Enter")
            expect(page.get_by_role("alert")).to_contain_text("Say which one")
            page.locator("#doubt").fill("1")
            page.locator("h2, .card").first.click()
            uma.press("2")
            eventually(lambda: drafted(served, uma).get("values") == {"pick": 1, "doubt": 1})
            uma.open()
            expect(page.get_by_label("Send B")).to_be_checked()
            uma.submit()
        labels = list(served.store.labels())
        text_of = {completion.id: completion.text for completion in served.store.completions()}
        assert sent(labels, text_of) == {text: text == texts[1] for text in texts}
    sys.modules.pop("sending", None)
