"""The tutorial's way on one's own data, typed as it is written: a bot's log, rankings, models; no file named twice."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("playwright")
from playwright.sync_api import Page
from test_tutorial import page_of, rank_the_last_first

from tests.webapp import CHROMIUM, labelling

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")]

TUTORIAL = Path(__file__).resolve().parents[1] / "docs" / "tutorial.md"
MATH, ARABIC = (
    "What is $\\frac{1}{2} + x_1$ if x is \\(\\sqrt{4}\\)?",
    "\u0623\u064a\u0646 \u0637\u0644\u0628\u064a\u061f",
)
LOG = [
    {"question": text, "category": topic, "answer": "No.", "thumbs": i % 2, "took_ms": 120 + i}
    for i, (text, topic) in enumerate(
        ((MATH, "sums"), (ARABIC, "orders"), ("Where is it?", "orders"), ("Why?", "other"))
    )
]
#: What makes a stage tiny, where the tutorial leaves it open.
TINY = {"sample": ["sample.max_new_tokens=6"], "reward": ["reward.epochs=1", "reward.precision=fp32"]}
TINY["rl"] = ["rl.iterations=1", "rl.prompts_per_iteration=4", "rl.minibatches=1", "rl.max_new_tokens=4"]


def commands() -> list[list[str]]:
    """Return the commands of the tutorial's block, word by word, without the comments."""
    text = TUTORIAL.read_text(encoding="utf-8").split("**Stage by stage instead of a run.**")[1]
    block = re.findall(r"^    (accord .*)$", text.split("A column like")[0], re.MULTILINE)
    # The comments hold apostrophes; no command holds a #.
    return [shlex.split(part) for line in block for part in line.split("#")[0].split("&&")]


def run(words: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "accord", *words[1:], *TINY.get(words[1], [])]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def texts_in_view(page: Page) -> str:
    return str(page.locator("#task").inner_text())


def test_from_a_bots_log_to_a_reward_model_as_the_tutorial_types_it(tmp_path: Path, chat_model: Path) -> None:
    (tmp_path / "bot_log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in LOG), encoding="utf-8")
    typed = commands()
    assert [words[1] for words in typed if words[0] == "accord"] == [
        *("init", "import", "sample", "label", "export", "reward", "rl")
    ]  # fmt: skip
    home, shown = tmp_path, ""
    for words in typed:
        if words[0] == "cd":
            home = home / words[1]
        elif words[1] == "label":
            shown = judged_in_the_browser(home)
        else:
            words = [str(chat_model) if word == "smollm2" else word for word in words]
            done = run(words, home)
            if words[1] == "sample":
                assert done.stdout.count("asked: ") == 3
    assert "\\frac" not in shown and ARABIC in shown
    rows = [json.loads(line) for line in next((home / "exports").glob("accord*.jsonl")).read_text().splitlines()]
    assert {row["prompt"][0]["content"] for row in rows} == {row["question"] for row in LOG}
    assert {row["topic"] for row in rows} == {"sums", "orders", "other"}
    assert {(row["annotator"], row["origin"]) for row in rows} == {("Ada", "people")}
    assert (home / "reward/model/model.safetensors").exists() and (home / "rl/model/model.safetensors").exists()


def judged_in_the_browser(home: Path) -> str:
    """Rank all that waits, by keys; return what stood on the pages."""
    shown = ""
    with labelling(".", cwd=home) as (told, _), page_of(told["link"]) as page:
        assert told["added"] == len(LOG)
        for _ in LOG:
            shown += texts_in_view(page)
            text = page.locator("#task").inner_text()
            if "What is" in text:
                # Formulas are drawn; what is stored has their source.
                assert page.locator("#task math").count() == 2 and "<|im_start|>" not in text
            if ARABIC in text:
                line = page.locator("#task [dir=auto]", has_text=ARABIC).first
                assert line.evaluate("e => getComputedStyle(e).direction") == "rtl"
            rank_the_last_first(page)
        page.wait_for_selector(".hello")
    return shown
