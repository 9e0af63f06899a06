"""The first screen as a browser shows it: on a laptop and a phone, in light and dark, without scripts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from test_first_screen import CHATML, changed_by, judged_run
from test_first_screen import prompts as prompts_of

from accord.formats.jsonl import write_jsonl
from accord.report.run_page import write_report
from tests.webapp import CHROMIUM, chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytest.importorskip("playwright")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")]

LONG = "A reply that goes on for a while, as chat models' replies do, and says little that is new in the end. " * 12


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module", params=["better", "gamed"])
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with a long conversation, long answers, and once with a broken floor."""
    folder = tmp_path_factory.mktemp(request.param)
    broken = {"length_ratio": 1.9} if request.param == "gamed" else {}
    run = judged_run(folder, "second_reward_model", prompts_of(0.71, 0.06, 64), **broken)
    rows = changed_by(1.0, 2.0, 3.0)
    for row in rows:
        row |= {"prompt": CHATML.replace("Why?", f"Why, {row['prompt']}? " + LONG), "completion": LONG}
    write_jsonl(run / "eval" / "samples.jsonl", rows)
    return write_report(run)


def opened(browser: Browser, report: Path, width: int, height: int, scheme: Any = "light") -> Page:
    size: Any = {"viewport": {"width": width, "height": height}, "color_scheme": scheme}
    page = browser.new_context(**size).new_page()
    page.goto(report.as_uri())
    return page


def bottom_of(page: Page, selector: str) -> float:
    box = page.locator(selector).first.bounding_box()
    assert box is not None
    return box["y"] + box["height"]


def test_verdict_and_both_answers_stand_above_the_fold_of_a_laptop(browser: Browser, report: Path) -> None:
    page = opened(browser, report, 1280, 800)
    assert bottom_of(page, ".told") <= 800 and bottom_of(page, ".one .says") <= 800
    sentence, card = page.locator("h1").bounding_box(), page.locator(".one").bounding_box()
    assert sentence and card and sentence["x"] + sentence["width"] <= card["x"]  # beside it
    page.context.close()


def test_on_a_phone_the_prompt_begins_on_the_first_screen(browser: Browser, report: Path) -> None:
    page = opened(browser, report, 390, 844)
    card = page.locator(".one").bounding_box()
    assert card and card["y"] < 844 and bottom_of(page, "h1") < 844 / 2
    assert not page.evaluate("document.documentElement.scrollWidth > innerWidth")
    assert page.locator(".picture").bounding_box()["y"] > card["y"]  # type: ignore[index]
    page.context.close()


def test_what_is_folded_opens_by_keyboard(browser: Browser, report: Path) -> None:
    page = opened(browser, report, 1280, 800)
    rest = page.locator(".one .sample.candidate details")
    assert not rest.locator("blockquote").is_visible()
    rest.locator("summary").press("Enter")
    assert rest.locator("blockquote").is_visible()
    page.get_by_role("link", name="More texts").click()
    assert page.url.endswith("#samples") and page.locator("#samples").is_visible()
    page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_first_screen_is_accessible(browser: Browser, report: Path, scheme: Any, width: int) -> None:
    """axe-core finds nothing serious or critical in it."""
    from axe_playwright_python.sync_playwright import Axe

    page = opened(browser, report, width, 844, scheme)
    page.evaluate("document.querySelectorAll('header details').forEach(one => { one.open = true; })")
    found = Axe().run(page, context="header", options={"resultTypes": ["violations"]}).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")] == []
    page.context.close()
