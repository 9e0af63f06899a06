"""The tutorial's way through the whole house: a run, people's rankings in a browser, a reward model and PPO on them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from test_loop import TOY, given, reviews  # noqa: F401 (fixtures)

from accord.config import load_recipe
from accord.loop.run import run

pytest.importorskip("playwright")
from playwright.sync_api import Page

from tests.webapp import CHROMIUM, chromium, labelling

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")]


def accord(*words: str, cwd: Path) -> dict[str, Any]:
    """A command as a user calls it, and its result."""
    command = [sys.executable, "-m", "accord", *words, "--json"]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@contextmanager
def page_of(link: str) -> Iterator[Page]:
    """A browser whose owner came in by the link."""
    with chromium() as browser:
        page = browser.new_page()
        page.goto(link)
        page.get_by_label("Name").fill("Ada")
        page.keyboard.press("Enter")
        page.wait_for_selector(".hello")
        page.goto(f"{link.split('/join')[0]}/task")  # leads to the guidelines first
        guidelines = page.get_by_role("button", name="I have read this")
        page.wait_for_load_state()
        if guidelines.count():  # where the project has some
            guidelines.click()
        page.wait_for_selector("#task[data-ready]")
        yield page


def rank_the_last_first(page: Page) -> tuple[list[str], list[int]]:
    """Move the last of four to the top, tie the next two, call the last one unacceptable, submit; what it means."""
    page.wait_for_selector("#task[data-ready]")
    texts = [page.locator(f".card[data-position='{i}'] .editing textarea").input_value() for i in range(4)]
    # Shown a b c d. The last moves up three places: d a b c. Then b ties with a, and c is unacceptable.
    page.keyboard.press("j")  # the first key takes up the first card
    for key in ("j", "j", "j", "Shift+K", "Shift+K", "Shift+K", "j", "j", "=", "j", "x"):
        page.keyboard.press(key)
    ranks = [int(page.locator(f".card[data-position='{i}'] .rank").inner_text()) for i in range(4)]
    before = page.locator("#task").get_attribute("data-task")
    page.keyboard.press("Enter")
    page.wait_for_function(
        "before => !document.querySelector('#task') || document.querySelector('#task').dataset.task !== before",
        arg=before,
    )
    return texts, ranks


def test_from_a_run_by_hand_in_the_browser_to_a_policy(
    tmp_path: Path,
    reviews: Path,  # noqa: F811
    given: Path,  # noqa: F811
) -> None:
    recipe = load_recipe(None, [*TOY, f"base.model={given}", "ask.queue=3", "name=toy"])
    run(recipe, output_dir=tmp_path / "runs/toy", from_dir=reviews)
    clicked = []
    with labelling("runs/toy", cwd=tmp_path) as (told, _), page_of(told["link"]) as page:
        clicked = [rank_the_last_first(page) for _ in range(3)]
        page.wait_for_selector(".hello")
    assert all(ranks == [2, 2, 4, 1] or ranks == [2, 2, 3, 1] for _, ranks in clicked)

    export = ("export", "--project", "runs/toy", "--format", "accord", "--only", "ranking", "-o", "mine.jsonl")
    assert accord(*export, cwd=tmp_path)["counts"]["judgements"] == 3  # the simulated annotators' are left out
    rows = [json.loads(line) for line in (tmp_path / "mine.jsonl").read_text().splitlines()]
    assert [(row["completions"], row["ranks"]) for row in rows] == [(texts, [2, 2, 3, 1]) for texts, _ in clicked]
    assert all(row["unacceptable"] == [False, False, True, False] for row in rows)
    assert {(row["annotator"], row["origin"]) for row in rows} == {("Ada", "people")}

    made = accord(
        *("reward", "--model", "runs/toy/reward/model", "--data", "mine.jsonl", "-o", "mine/reward"),
        *("reward.epochs=1", "reward.precision=fp32"),
        cwd=tmp_path,
    )
    assert (made["num_groups"], made["num_pairs"]) == (3, 15)  # five pairs of four with one tie
    prompts = "runs/toy/data/prompts_train.jsonl"
    done = accord(
        *("rl", "--model", "runs/toy/sft/model", "--reward-model", "mine/reward/model", "--data", prompts),
        *("-o", "mine/ppo", "rl.iterations=1", "rl.prompts_per_iteration=4", "rl.max_new_tokens=6"),
        cwd=tmp_path,
    )
    assert (tmp_path / "mine/ppo/model/model.safetensors").exists() and done["final"]["scored"] == 4
