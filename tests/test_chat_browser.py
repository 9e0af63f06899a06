"""The chat page in a browser: what is clicked there lies in the store afterwards; hostile texts stay texts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from serverapp import Server, eventually, serving

from accord.models.placement import PLAIN
from accord.serve.feedback import FeedbackBook
from accord.serve.keys import KeyRing
from accord.serve.served import ServeSettings
from accord.store import Store
from tests.webapp import CHROMIUM, chromium
from tests.xss import HTML

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytest.importorskip("playwright")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")]
BOX = "#message"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def kept(chat_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Store]]:
    """A server that short answers come from, and the store behind it."""
    with Store.open(tmp_path_factory.mktemp("chat") / "accord.db") as store:
        settings = ServeSettings(rows=4, context=240, placement=PLAIN)
        with serving({"talker": chat_model}, settings, book=FeedbackBook(store, b"secret")) as server:
            yield server, store


def opened(browser: Browser, server: Server, compare: str = "0", **more: Any) -> Page:
    """The page in a browser of its own, whose memory is empty but for how often it shows two answers."""
    page = browser.new_context(**more).new_page()
    page.add_init_script(
        f"localStorage.getItem('accord:compare') || localStorage.setItem('accord:compare', '\"{compare}\"')"
    )
    page.goto(f"{server.url}/chat")
    page.wait_for_selector("#log", state="attached")
    return page


def until(page: Page, condition: str) -> None:
    """Wait for it; the browser's own way of waiting evaluates strings, which the page's policy forbids."""
    eventually(lambda: bool(page.evaluate(condition)))


def send(page: Page, text: str) -> None:
    """Ask, by keyboard, and wait until the answer is there."""
    before = page.locator(".turn.theirs").count()
    page.fill(BOX, text)
    page.press(BOX, "Enter")
    until(
        page, f"document.querySelectorAll('.turn.theirs').length > {before} && document.getElementById('stop').hidden"
    )


def thanked(page: Page) -> None:
    until(page, "document.getElementById('toast').textContent.startsWith('Thank')")
    page.evaluate("document.getElementById('toast').textContent = ''")


def answer_in(page: Page) -> str:
    return str(page.evaluate("JSON.parse(localStorage.getItem('accord:talks'))[0].turns.at(-1).content"))


def test_thumbs_edits_and_retries_lie_in_the_store(browser: Browser, kept: tuple[Server, Store]) -> None:
    server, store = kept
    page = opened(browser, server)
    send(page, "What do foxes eat?")
    first = answer_in(page)
    page.click("[data-do=down]")
    thanked(page)
    page.fill(".editing input", "too vague")
    page.press(".editing input", "Enter")
    thanked(page)
    (one,) = (found for found in store.completions() if found.text == first)
    (label,) = store.labels(completion_id=one.id)
    assert (label.good, label.note) == (False, "too vague")
    assert page.get_attribute("[data-do=down]", "aria-pressed") == "true"

    page.click("[data-do=retry]")
    until(page, "document.getElementById('stop').hidden && document.querySelector('[data-do=edit]')")
    second = answer_in(page)
    assert page.locator(".turn.theirs").count() == 1
    page.click("[data-do=edit]")
    page.fill(".editing textarea", "Mice, mostly.")
    page.click(".editing button:not([type=button])")
    page.wait_for_selector("text=edited by you")
    eventually(lambda: any(found.text == "Mice, mostly." for found in store.completions()))
    mended = next(found for found in store.completions() if found.text == "Mice, mostly.")
    worse = next(found for found in store.completions() if found.text == second)
    eventually(lambda: any({mended.id, worse.id} == {*ranking.completion_ids} for ranking in store.rankings()))
    # What was mended is what the model reads next.
    send(page, "And in winter?")
    assert page.locator(".turn.theirs").first.inner_text().find("Mice, mostly.") >= 0
    page.context.close()


def test_two_answers_are_compared_and_history_stays(browser: Browser, kept: tuple[Server, Store]) -> None:
    server, store = kept
    page = opened(browser, server, compare="1")
    before = len(list(store.rankings()))
    send(page, "Which is better?")
    assert page.locator(".cards.two .card").count() == 2 and page.is_disabled(BOX)
    texts = page.evaluate(
        "JSON.parse(localStorage.getItem('accord:talks'))[0].turns[1].choose.map((one) => one.content)"
    )
    page.reload()  # what waits for a word waits on
    page.wait_for_selector("[data-do=B]")
    page.keyboard.press("Tab")
    page.focus("[data-do=B]")
    page.keyboard.press("Enter")
    thanked(page)
    (ranking,) = list(store.rankings())[before:]
    of = {found.id: found.text for found in store.completions()}
    ranked = dict(zip((of[id_] for id_ in ranking.completion_ids), ranking.ranks, strict=True))
    assert ranked == {texts[0]: 2, texts[1]: 1} and answer_in(page) == texts[1]
    page.click("#new")
    page.select_option("#compare", "0")
    send(page, "Another matter")
    page.reload()
    page.wait_for_selector("#list li:nth-child(2)")
    assert page.locator("#list .quiet").first.inner_text() == "Another matter"
    page.click("#list li:nth-child(2) .quiet")
    page.wait_for_selector("text=Which is better?")
    page.click("#list li:nth-child(2) [aria-label^=Delete]")
    until(page, "document.querySelectorAll('#list li').length === 1")
    page.context.close()


def test_a_server_that_keeps_nothing_and_one_that_asks_for_a_key(browser: Browser, chat_model: Path) -> None:
    ring = KeyRing()
    key = ring.add("ann", per_minute=0)
    with serving({"talker": chat_model}, ServeSettings(rows=2, context=120, placement=PLAIN), ring) as server:
        page = opened(browser, server, locale="zh-CN")
        page.wait_for_selector("#door:not([hidden])")
        page.fill("#key", "wrong")
        page.press("#key", "Enter")
        page.wait_for_selector("#problem:not([hidden])")
        page.fill("#key", key)
        page.press("#key", "Enter")
        page.wait_for_selector("#door", state="hidden")
        send(page, "你好")
        assert page.locator("[data-do=up]").count() == 0 and page.locator("[data-do=copy]").count() == 1
        assert page.inner_text("#send") == "发送" and "本服务器不保存" in page.inner_text("#talks")
        assert key not in json.dumps(page.evaluate("({...localStorage})"))
        page.context.close()


def test_a_stopped_answer_frees_its_place(browser: Browser, chat_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving({"talker": chat_model}, ServeSettings(rows=1, placement=PLAIN)) as server:
        page = opened(browser, server)
        page.fill(BOX, "Go on for ever")
        page.press(BOX, "Enter")
        until(page, "document.querySelector('[aria-busy] .prose')?.textContent.length > 0")
        page.keyboard.press("Escape")
        until(page, "document.getElementById('stop').hidden")
        eventually(lambda: server.served.policy("").worker.alive and server.measure("accord_running_rows") == 0)
        send(page, "Short")
        assert page.locator(".turn.theirs").count() == 2
        page.context.close()


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_accessible(browser: Browser, kept: tuple[Server, Store], width: int, scheme: Any) -> None:
    from axe_playwright_python.sync_playwright import Axe

    server, _ = kept
    page = opened(browser, server, compare="1", color_scheme=scheme, viewport={"width": width, "height": 800})
    send(page, "One `code`, a long-word-" + "x" * 60)
    page.click("[data-do=tie]")
    page.wait_for_selector("[data-do=edit]")
    page.click("[data-do=edit]")
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    if folder := os.environ.get("ACCORD_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/chat_{scheme}_{width}.png")
    page.context.close()


def test_hostile_texts_stay_texts(browser: Browser, kept: tuple[Server, Store]) -> None:
    """A hundred attacks as titles, questions and answers of conversations, some as messages that are sent."""
    server, _ = kept
    alarms: list[str] = []
    page = browser.new_context().new_page()
    page.on("dialog", lambda dialog: (alarms.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda sent: sent.url.startswith((server.url, "data:", "blob:")) or alarms.append(sent.url))
    attacks = [HTML[i % len(HTML)] + " " + HTML[-1 - i % len(HTML)] for i in range(100)]
    turns = [{"role": ("user", "assistant")[i % 2], "content": text, "note": text} for i, text in enumerate(attacks)]
    talks = [{"title": attacks[i], "turns": turns} for i in range(10)]
    talks[0] = {"title": "two", "turns": [*turns[:1], {"role": "assistant", "choose": turns[1:3]}]}
    page.add_init_script(
        f"localStorage.getItem('accord:talks') || localStorage.setItem('accord:talks', {json.dumps(json.dumps(talks))})"
    )
    page.goto(f"{server.url}/chat")
    page.wait_for_selector(".cards.two")
    page.click("#list li:nth-child(2) .quiet")
    until(page, "document.querySelectorAll('.turn').length === 100")
    page.click("#new")
    page.select_option("#compare", "0")
    for text in [attack for attack in HTML if len(attack) < 40][:3]:
        page.click("#new")
        send(page, text)
    page.wait_for_timeout(200)
    assert alarms == [] and page.evaluate("document.scripts.length") <= 2
    page.context.close()
