"""The pages speak English and Chinese: nothing is missing or outside the catalogue, and the browser chooses."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from string import Formatter
from typing import get_args

import pytest

import accord.people.web as web
from accord.config import LabelConfig
from accord.people.desk.audit import Action
from accord.people.desk.kinds import FEEDBACK_KINDS
from accord.people.web import app, pages
from accord.people.web.tongues import catalogue, tongue_of
from tests.webapp import CHROMIUM, chromium, serving, task

HERE = Path(web.__file__).parent
TEMPLATES, SCRIPTS = sorted(HERE.rglob("*.j2")), sorted((HERE / "static").glob("*.js"))
LITERAL = r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'"
LETTERS = re.compile(r"[A-Za-z]{2,}")


def in_templates() -> set[str]:
    return {ast.literal_eval(one) for file in TEMPLATES for one in re.findall(rf"\b_\(({LITERAL})", file.read_text())}


def in_scripts() -> set[str]:
    return {json.loads(one) for file in SCRIPTS for one in re.findall(r'\bt\(("(?:[^"\\]|\\.)*")', file.read_text())}


def in_code() -> set[str]:
    """What Python hands to templates to be said: kinds, keys, answers, roles, errors, the usual settings."""
    settings = LabelConfig()
    asked = {text for axis in settings.axes for text in (axis.name, axis.question)}
    keys = {words for row in FEEDBACK_KINDS.values() for _, words in row.keys}
    fixed = [*pages._RAW, *pages._ON_COMPLETIONS, *pages._LABELLING, ("", "compare words of two"), ("", "note")]
    keys |= {words for _, words in fixed} | {"submit", "this"}
    errors = {*app._TITLES.values(), "That did not work"}
    roles = {"annotator", "manager", "admin", "user", "assistant", "system"}
    said = {"rank {n}", "unacceptable", "good", "bad", "edited", "a person", *pages._STRENGTHS.values()}
    said |= {*FEEDBACK_KINDS, *(row.title for row in FEEDBACK_KINDS.values()), *pages._SUBMIT.values()}
    tabs = {"Overview", "Disagreements", "Gold", "People", "Guidelines", "Export"}
    flags = {*settings.flags, *settings.skip_reasons}
    log = {*get_args(Action), "by a link", "made by an admin"}
    return asked | keys | errors | roles | said | tabs | flags | log


def test_every_text_has_words_in_both_languages() -> None:
    known = catalogue()
    assert in_templates() | in_code() <= {*known["pages"], *known["scripts"]}
    assert in_scripts() <= known["scripts"].keys()
    # English words are their own keys, so what is known is known in both; an empty word would be silence.
    assert all(words.strip() for part in known.values() for words in part.values())
    assert len(known["pages"]) > 200 and len(known["scripts"]) > 30


def test_nothing_in_the_catalogue_is_unused() -> None:
    usual = {"tool", "This token is not known. Was it copied whole?"}
    usual.add("Something went wrong on the server. Nothing that was acknowledged is lost.")
    assert catalogue()["pages"].keys() - in_templates() - in_code() == usual
    assert catalogue()["scripts"].keys() == in_scripts()


@pytest.mark.parametrize("text", sorted({**catalogue()["pages"], **catalogue()["scripts"]}))
def test_both_languages_have_the_same_places_and_marks(text: str) -> None:
    words = {**catalogue()["pages"], **catalogue()["scripts"]}[text]

    def places(said: str) -> list[str]:
        return sorted(name for _, name, _, _ in Formatter().parse(said) if name)

    def marks(said: str) -> list[str]:
        return sorted(one for one in re.findall(r"<[^>]*>", said) if "span" not in one)

    assert places(words) == places(text) and marks(words) == marks(text)
    assert (
        re.search(r"[\u4e00-\u9fff]", words)
        or text in ("Kappa", "Alpha")
        or text.startswith(("Fleiss", "Kripp", "Cohen"))
    )


def visible(text: str) -> Iterator[str]:
    """What a template says by itself: text between tags, and in the attributes that people read or hear."""
    text = re.sub(r"\{#.*?#\}|\{\{.*?\}\}|\{%.*?%\}", "\x01", text, flags=re.S)
    text = re.sub(r"<(kbd|code|svg|script)\b.*?</\1>", "", text, flags=re.S)
    yield from re.findall(r'\s(?:aria-label|title|placeholder|alt|data-tell|data-label)="([^"]*)"', text)
    yield re.sub(r"<[^>]*>", "\n", text)


@pytest.mark.parametrize("file", TEMPLATES, ids=lambda file: file.name)
def test_no_template_has_visible_text_of_its_own(file: Path) -> None:
    own = [word for said in visible(file.read_text()) for word in LETTERS.findall(said.replace("Accord", ""))]
    assert own == []
    # Nor does an expression print a word of its own past the catalogue.
    for shown in re.findall(r"\{\{(.*?)\}\}", file.read_text(), re.S):
        bare = re.sub(rf"\b(?:_|asset)\((?:{LITERAL})", "", shown)
        bare = re.sub(r"== *[\"']\w*[\"']|\"\w+\" (?:if|else)|'(?:theirs|ours|/|/login|task\.js)'|\"%\.2f\"", "", bare)
        assert not [one for one in re.findall(LITERAL, bare) if LETTERS.search(one)], shown


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.name)
def test_no_script_says_a_sentence_past_the_catalogue(file: Path) -> None:
    code = re.sub(r"//.*|console\.\w+\(.*", "", file.read_text())
    code = re.sub(r'\bt\("(?:[^"\\]|\\.)*"|className = "[^"]*"', "", code)
    literals = re.findall(r'"(?:[^"\\]|\\.)*"|`[^`]*`', code)
    sentences = [one for one in literals if re.search(r"[A-Za-z]{3,} [a-z]{2,}", one)]
    assert not [one for one in sentences if not re.search(r"[\[\]#.]|^\"(GET|PUT|POST) ", one)]
    assert not re.search(r'content: "[A-Za-z]', (HERE / "static" / "app.css").read_text())


@pytest.mark.parametrize(
    ("accepted", "spoken"),
    [
        ("", "en"),
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("en-GB,en;q=0.9,zh;q=0.8", "en"),
        ("zh-TW", "zh"),
        ("en,zh", "en"),
        ("zh,en", "zh"),
        ("ZH", "zh"),
        ("de-DE,de;q=0.9", "en"),
        ("de,zh;q=0.4,en;q=0.3", "zh"),
        ("zh;q=0, en;q=0.1", "en"),
        ("*;q=0.5", "en"),
        ("zh;q=nonsense", "en"),
        ("zh" + "," * 5000, "zh"),
    ],
)
def test_the_browser_chooses(accepted: str, spoken: str) -> None:
    assert tongue_of(accepted).code == spoken


def test_pages_are_in_the_language_of_the_browser(tmp_path: Path) -> None:
    """What people wrote stays theirs: the title of a kind is translated, a prompt and a name are not."""
    with serving(tmp_path) as served, served.by_cookie(served.person("<b>Eve</b>")) as eve:
        served.desk.queue.add_tasks([task("pair", "Which?", "one", "two")])
        chinese = {"Accept-Language": "zh-CN,zh;q=0.9"}
        home = eve.get("/", headers=chinese).text
        assert '<html lang="zh">' in home and "有 <b>1</b> 个任务等着您。" in home and "&lt;b&gt;Eve&lt;/b&gt;" in home
        page = eve.get("/task", headers=chinese).text
        assert "哪个回答更好？" in page and "<p>Which?</p>" in page and '<meta name="words"' in page
        english = eve.get("/task").text
        assert (
            '<html lang="en">' in english
            and "Which completion is better?" in english
            and 'words" content' not in english
        )
        assert not re.search(r"[\u4e00-\u9fff]", english)
        assert "不在这里" in eve.get("/nothing", headers=chinese).text


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_task_is_answered_in_chinese(tmp_path: Path) -> None:
    pytest.importorskip("playwright")
    from playwright.sync_api import expect

    from tests.test_people_browser import Person

    with serving(tmp_path) as served, chromium() as browser:
        served.desk.queue.add_tasks([task("ranking", "树？", "橡树", "榆树", "冷杉")])
        with Person(browser, served, "小明", locale="zh-CN") as person:
            page = person.open()
            person.press("Enter")
            expect(page.locator("#problem")).to_contain_text("您没有移动任何一个")
            person.press("j", "J", "x")
            expect(page.locator("#live")).to_have_text("A: 共 3 名中的第 2 名，不可接受")
            mark = page.locator(".unacceptable .letter").evaluate("one => getComputedStyle(one, '::after').content")
            assert mark == '"不可接受"'
            words = page.locator("main").inner_text() + page.locator("header").first.inner_text()
            assert set(re.findall(r"[A-Za-z]{2,}", words)) <= {"Accord"}
            person.press("Enter")
            expect(page.get_by_role("heading", name="全部完成。")).to_be_visible()
        assert len(list(served.desk.reading.submissions())) == 1
