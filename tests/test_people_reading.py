"""How texts look in a real browser: drawn or raw, right to left, code, images, the system prompt in view."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from accord.records import Prompt
from tests.test_people_browser import Person
from tests.test_people_texts import CODE, png
from tests.webapp import CHROMIUM, Served, chromium, serving, task

pytest.importorskip("playwright")
from playwright.sync_api import expect

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")]
HARD = (
    "  So $x_1^2$ and $\\foo{a}$:\n\n```python\n"
    + CODE
    + "```\n\n\tpay \u202e500\u202c now\u200b, \\_not\\_ `a  b` <b>\n"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path) as running:
        yield running


# A mark stands for a character: what the page says the text is.
STORED = """box => { const copy = box.cloneNode(true);
  for (const one of copy.querySelectorAll(".mark:not(.joiner)"))
    one.replaceWith(String.fromCodePoint(parseInt(one.textContent.slice(2), 16)));
  return copy.textContent; }"""


def test_a_text_is_drawn_or_raw_by_key_and_by_button(browser: Browser, served: Served) -> None:
    served.desk.queue.add_tasks([task("pair", "What is $y$?", HARD, "plain", priority=2), task("label", "next", "$z$")])
    with Person(browser, served, "Eve") as eve:
        page = eve.open()
        card = page.locator(".card", has=page.locator("pre"))
        drawn, raw = card.locator(".text"), card.locator(".raw")
        box = drawn.locator("math").first.bounding_box()
        assert box is not None and box["width"] > 5 and box["height"] > 8
        expect(drawn).to_contain_text("$\\foo{a}$")
        expect(raw).to_be_hidden()
        eve.press("r")
        expect(drawn).to_be_hidden()
        expect(page.locator(".conversation .raw")).to_have_text("What is $y$?")
        assert raw.evaluate(STORED) == HARD
        assert raw.evaluate("box => getComputedStyle(box).whiteSpace") == "pre-wrap"
        card.get_by_role("button", name="Raw text of").click()
        expect(drawn).to_be_visible()
        expect(page.locator(".conversation .raw")).to_be_visible()  # each has its own switch
        eve.press("d")
        expect(card.locator(".diff")).to_be_visible()
        expect(drawn).to_be_hidden()
        eve.press("d")
        expect(drawn).to_be_visible()
        eve.press("r", "1")
        eve.submit()
        expect(page.locator(".card .raw")).to_have_text("$z$")  # as it was on the last page
        eve.press("r")
        expect(page.locator(".card math")).to_have_text("z")


def test_code_is_copied_as_it_is_stored(browser: Browser, served: Served) -> None:
    hidden = "x = 1 # \u202e\u200b\n"
    served.desk.queue.add_tasks(
        [task("label", "Code?", f"```python\n{CODE}```\n\n```\n{hidden}```\n\n    indented  \n")]
    )
    with Person(browser, served, "Eve") as eve:
        eve.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page = eve.open()
        for place, code in enumerate((CODE, hidden, "indented  \n")):
            page.locator(".copy").nth(place).click()
            expect(page.locator(".copy").nth(place)).to_have_text("Copied")
            assert page.evaluate("navigator.clipboard.readText()") == code
        keyword = page.locator(".text .k").first.evaluate("one => getComputedStyle(one).color")
        assert keyword != page.locator(".text pre").first.evaluate("one => getComputedStyle(one).color")


def test_an_image_of_the_project_is_shown(browser: Browser, tmp_path: Path, served: Served) -> None:
    (tmp_path / "cat.png").write_bytes(png(7))
    served.desk.queue.add_tasks([task("label", "![a cat](cat.png) ![no](https://evil.invalid/no.png)", "yes")])
    with Person(browser, served, "Eve") as eve:
        page = eve.open()
        image = page.get_by_role("img", name="a cat")
        assert image.evaluate("async one => (await one.decode(), one.naturalWidth)") == 7
        expect(page.locator(".no-image")).to_have_text("[image: no, https://evil.invalid/no.png]")
        assert page.locator(".prose img").count() == 1


# The room left and right of a line in its box.
SIDES = """one => { const range = document.createRange(); range.selectNodeContents(one);
  const text = range.getBoundingClientRect(), box = one.getBoundingClientRect();
  return [text.left - box.left, box.right - text.right]; }"""
# Where two words stand, from the left.
PLACES = """one => { const walk = document.createTreeWalker(one, NodeFilter.SHOW_TEXT), found = {};
  for (let node; (node = walk.nextNode()); ) for (const word of ["123", "xyz"]) {
    const at = node.data.indexOf(word), range = document.createRange();
    if (at < 0) continue;
    range.setStart(node, at); range.setEnd(node, at + 3);
    found[word] = range.getBoundingClientRect().left; }
  return found; }"""


def test_each_line_has_its_own_direction_and_overrides_do_nothing(browser: Browser, served: Served) -> None:
    served.desk.queue.add_tasks([task("label", "שלום לכולם\n\nhello\n\n- אחת", "abc \u202e123 xyz")])
    with Person(browser, served, "Eve") as eve:
        page = eve.open()
        first, second = page.locator(".turn p:not(.role)").nth(0), page.locator(".turn p:not(.role)").nth(1)
        left, right = first.evaluate(SIDES)
        assert left > 50 and right < 2
        bullet = page.locator(".turn li").evaluate("one => getComputedStyle(one).direction")
        assert bullet == "rtl"
        left, right = second.evaluate(SIDES)
        assert left < 2 and right > 50
        found = page.locator(".card .text").evaluate(PLACES)
        assert found["123"] < found["xyz"]  # an override would turn them round
        expect(page.locator(".card .text .mark")).to_have_attribute("title", "U+202E RIGHT-TO-LEFT OVERRIDE")


def test_the_system_prompt_stays_in_view(browser: Browser, served: Served) -> None:
    turns = [{"role": "system", "content": "Answer as a pirate. " * 20}]
    turns += [{"role": ("user", "assistant")[i % 2], "content": f"turn {i} " * 120} for i in range(9)]
    served.desk.queue.add_tasks(
        [task("ranking", Prompt.of_messages(turns), *(f"{i} word " * 300 for i in range(3)), overlap=2)]
    )
    for width in (1280, 390):
        with Person(browser, served, f"Eve {width}", viewport={"width": width, "height": 700}) as eve:
            page = eve.open()
            system = page.locator(".system")
            page.locator(".earlier summary").click()
            for _ in range(2):  # closed, then open
                page.evaluate("scrollTo(0, document.body.scrollHeight)")
                box = system.bounding_box()
                assert box is not None and 0 <= box["y"] < 5 and box["height"] < 300
                expect(system).to_contain_text("Answer as a pirate.")
                eve.press("j")
                card = page.locator(".card:focus").bounding_box()
                assert card is not None and card["y"] >= box["y"] + box["height"] - 1  # not under it
                system.locator("summary").click()


def test_hints_say_what_a_phone_can_do(browser: Browser, served: Served) -> None:
    served.desk.queue.add_tasks(
        [task("ranking", "Which?", "one", "two", priority=2, overlap=2), task("pair", "Which?", "one", "two")]
    )
    with Person(browser, served, "Eve", viewport={"width": 390, "height": 800}) as eve:
        page = eve.open()
        hint = page.locator(".hint > span:visible").inner_text()
        assert hint == "Best on top. Drag by the handle, or press the arrows."
        page.get_by_label("Move A down").click()
        page.locator("#submit").click()
        eve.submitted()
        page.locator("#submit").click()
        expect(page.locator("#problem")).to_have_text("Choose first: which is better, and by how much.")
        page.goto(served.url)
        assert "keyboard" not in page.locator("main").inner_text()
    with Person(browser, served, "Fay") as fay:
        page = fay.open()
        assert (
            page.locator(".hint > span:visible").inner_text()
            == "Best on top. Drag by the handle, or j k to walk and ⇧j ⇧k to move."
        )
