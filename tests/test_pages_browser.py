"""Every page of `report/` in a browser: accessible in light and dark, on phones and paper; hostile texts stay texts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from test_answers_table import curves_of
from test_live import page_of, run_of
from test_report import fabricate

import accord
from accord.config import EvalConfig, ScorerConfig
from accord.files import read_json, read_rows, write_json
from accord.formats.jsonl import write_jsonl
from accord.report.goodhart_page import write_goodhart_page
from accord.report.run_folder import CURVES_FILE
from accord.report.run_page import write_report
from accord.report.side_by_side import side_by_side
from tests.webapp import CHROMIUM, chromium
from tests.xss import HTML

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytest.importorskip("playwright")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")]
PAGES = ("report", "side by side", "reward", "goodhart", "live")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


def hostile_run(folder: Path, **more: Any) -> Path:
    """A run whose prompts and completions are all that the list of attacks knows, with every section of its report."""
    run = fabricate(folder, **more)
    rows = read_rows(run / "eval" / "samples.jsonl")
    for i, row in enumerate(rows):
        row |= {"completion": HTML[i % len(HTML)] + " " + HTML[-1 - i % len(HTML)], "topic": ""}
        row["judge"] -= 1.0 if row["policy"] != "sft" and int(row["prompt"].split()[2]) < 3 else 0.0
        row["prompt"] += " " + HTML[int(row["prompt"].split()[2]) * 5 % len(HTML)]
    write_jsonl(run / "eval" / "samples.jsonl", rows)
    write_json(run / "eval/results.json", read_json(run / "eval/results.json"))
    write_json(run / CURVES_FILE, curves_of())
    return run


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Where each page is: files, but for the live one, which a server answers."""
    folder, monkeypatch = tmp_path_factory.mktemp("pages"), pytest.MonkeyPatch()
    runs = [hostile_run(folder / "ppo"), hostile_run(folder / "grpo", candidate="grpo")]
    (folder / "length_of.py").write_text("def length(prompts, texts):\n    return [len(t) for t in texts]\n")
    monkeypatch.syspath_prepend(folder)
    rows = [{"prompt": f"{i} {HTML[i]}", "chosen": HTML[i] * 2, "rejected": HTML[-i]} for i in range(1, 30)]
    write_jsonl(folder / "held.jsonl", rows)
    scorer = ScorerConfig(function="length_of:length")
    measured = accord.evaluate_reward(
        EvalConfig(), model=scorer, data=[folder / "held.jsonl"], output_dir=folder / "rm"
    )
    write_json(folder / "gold" / CURVES_FILE, curves_of())
    live = run_of(folder / "live", pid=os.getpid())
    (live / "rl/samples/step_000004.txt").write_text("".join(f"[+1.00] {text}\n" for text in HTML))
    alarm = {"step": 3, "alarm": HTML[0], "cause": HTML[10]}
    (live / "rl/events.jsonl").write_text(json.dumps(alarm) + "\n")
    paths = {
        "report": write_report(runs[0]),
        "side by side": side_by_side(runs, folder / "side.html"),
        "reward": measured.report,
        "goodhart": write_goodhart_page(folder / "gold"),
    }
    with page_of(live) as url:
        yield {name: path.as_uri() for name, path in paths.items()} | {"live": url}
    monkeypatch.undo()


def opened(browser: Browser, url: str, width: int = 1280, scheme: Any = "light", **more: Any) -> tuple[Page, list[str]]:
    """A page, and what went wrong on it: scripts that ran into an error, dialogs, requests to anywhere else."""
    page = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme, **more).new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("dialog", lambda dialog: (faults.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda asked: None if asked.url.startswith(url.rstrip("/")) else faults.append(asked.url))
    page.goto(url)
    return page, faults


@pytest.mark.parametrize("name", PAGES)
def test_pages_are_accessible_and_inert(browser: Browser, urls: dict[str, str], name: str) -> None:
    """axe-core finds nothing, in light and dark, wide and narrow; nothing runs, and nothing is fetched."""
    from axe_playwright_python.sync_playwright import Axe

    for width, scheme in ((1280, "light"), (390, "dark")):
        page, faults = opened(browser, urls[name], width, scheme)
        page.locator("h1").wait_for()
        page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
        found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
        assert [(one["id"], one["impact"], one["nodes"][0]["html"][:200]) for one in found] == [], (width, scheme)
        assert not page.evaluate("document.documentElement.scrollWidth > innerWidth"), f"it scrolls sideways at {width}"
        assert faults == []
        page.context.close()


def rows_shown(page: Page) -> list[str]:
    return page.locator("[data-answers] tbody tr:visible").evaluate_all("rows => rows.map(row => row.dataset.change)")


def test_the_table_of_answers_is_searched_filtered_and_ordered_by_keyboard(
    browser: Browser, urls: dict[str, str]
) -> None:
    page, faults = opened(browser, urls["report"])
    told, search = page.locator("[data-answers] output"), page.get_by_label("Search")
    assert told.text_content() == "9 of 9 prompts shown" and len(rows_shown(page)) == 9
    texts = [text.lower() for text in page.locator("[data-answers] tbody tr").all_text_contents()]
    search.press_sequentially("IMG film 3")
    wanted = sum(all(word in text for word in ("img", "film", "3")) for text in texts)
    assert told.text_content() == f"{wanted} of 9 prompts shown" and len(rows_shown(page)) == wanted < 9
    search.press("Enter")  # sends nothing anywhere
    assert page.url == urls["report"]
    search.fill("<img")  # as text
    assert 0 < len(rows_shown(page)) < 9
    search.fill("")
    page.get_by_label("Show").select_option("before")
    assert told.text_content() == "3 of 9 prompts shown" and all(float(one) < 0 for one in rows_shown(page))
    page.get_by_label("Show").select_option("")
    page.locator("[data-order]").select_option("best")
    best = [float(one) for one in rows_shown(page)]
    assert best == sorted(best, reverse=True)
    assert faults == []
    page.context.close()


def test_without_scripts_and_on_paper_the_table_is_whole(browser: Browser, urls: dict[str, str]) -> None:
    page, _ = opened(browser, urls["report"], java_script_enabled=False)
    assert page.locator("[data-answers] tbody tr:visible").count() == 9
    assert not page.locator("[data-answers] form").is_visible()
    page.context.close()
    page, _ = opened(browser, urls["report"])
    page.get_by_label("Search").fill("Film: Film 3")
    shown = len(rows_shown(page))
    page.emulate_media(media="print")
    assert not page.get_by_label("Search").is_visible()
    assert page.get_by_text(f"{shown} of 9 prompts shown").is_visible()  # paper says what is left out
    box = page.locator(".answers").evaluate("one => [one.scrollHeight, one.clientHeight]")
    assert box[0] <= box[1] + 1  # nothing is cut at the edge of the box
    assert len(page.pdf(format="A4")) > 10_000
    page.context.close()
