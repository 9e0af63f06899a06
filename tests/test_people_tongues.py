"""The pages speak English and Chinese: nothing is missing or outside the catalogue, and the browser chooses."""

from __future__ import annotations

import ast
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from string import Formatter
from typing import Any, get_args

import pytest

import accord.people.web as web
from accord.config import LabelConfig
from accord.people.desk.answers import Answer
from accord.people.desk.audit import Action
from accord.people.desk.kinds import FEEDBACK_KINDS
from accord.people.quality.alarms import CHECKS
from accord.people.web import app, pages
from accord.people.web.tongues import catalogue, tongue_of
from accord.stats import DEFINITIONS
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
    tabs = {"Overview", "Disagreements", "Gold", "Tasks", "People", "Guidelines", "Export"}
    flags = {*settings.flags, *settings.skip_reasons}
    log = {*get_args(Action), "by a link", "made by an admin"}
    return asked | keys | errors | roles | said | tabs | flags | log


# ---- errors, reasons, alarms -----------------------------------------------------------------------------------------

SRC = HERE.parents[1]
TELLING = [*(SRC / "people" / "desk").glob("*.py"), *(SRC / "people" / "quality").glob("*.py"), *HERE.glob("*.py")]
# Words for who starts the app at a terminal, descriptions of the interface for programs, HTML and headers.
SILENT = ("serving.py", "code.py", "marks.py", "markdown.py", "tongues.py", "made_apart.py")
NOT_TOLD = {
    *(field.description for field in Answer.model_fields.values()),
    *("decided again", "Nothing to do", "Accord: people", "Bad address.", "A body has one length.", "Not for you"),
    *("the route {a} declares no access", "logged in", "by the token {a}", "task {a}", "{a} {b}"),
    "The host {a} is not served here. Start with --allow-host NAME to allow it.",
    "Too many headers, or too long ones.",
}
PROSE = re.compile(r"[A-Za-z]{2,}[^A-Za-z]* [^A-Za-z]*[A-Za-z]{2,}|[a-z]{3,} \0|\0 [a-z]{3,}")


def template(node: ast.JoinedStr) -> str:
    """An f-string with {a}, {b} for its values."""
    parts, names = "", iter("abcdefgh")
    for value in node.values:
        parts += value.value if isinstance(value, ast.Constant) else f"{{{next(names)}}}"
    return parts


def prose(file: Path) -> Iterator[str]:
    """What a module says in words: all its strings of two words or more, docstrings and assertions aside."""
    tree, aside = ast.parse(file.read_text()), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            aside |= {id(first.value)} if isinstance(first, ast.Expr) else set()
        if isinstance(node, ast.JoinedStr | ast.Assert):
            aside |= {id(inner) for inner in ast.walk(node) if inner is not node}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr) and id(node) not in aside:
            yield template(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in aside:
            yield node.value


def told_in_code() -> set[str]:
    found = {text for file in TELLING if file.name not in SILENT for text in prose(file)}
    found |= {text for text in prose(SRC / "stats" / "agreement.py") if "judge" in text or "agreement" in text}
    said = {text for text in found if PROSE.search(re.sub(r"\{[a-z]\}", "\0", text)) and "<" not in text}
    said = {
        text
        for text in said
        if not re.search(r"'self'|=\(\)|max-age|no-cache|[a-z]\{[a-z]\}|give both|needs items|[{]b[}] judgements", text)
    }
    said |= {*CHECKS, "poor agreement", "longer", "shorter", "nominal", "ordinal", "order of two"}
    said |= {*DEFINITIONS, *DEFINITIONS.values()}
    # Of what is put together from two strings, the whole is one template.
    said |= {f"{text}{{a}}" for text in said if text.endswith(" ")}
    return {text for text in said if not text.endswith(" ") and not text.startswith(";")} - NOT_TOLD


def test_every_error_reason_and_alarm_has_words_in_both_languages() -> None:
    known = {text for part in catalogue().values() for text in part}
    chinese = tongue_of("zh")
    assert [text for text in sorted(told_in_code() - known) if "{a}" in text or chinese.told(text) == text] == []


def test_nothing_that_is_told_is_unused() -> None:
    """Beside what the modules say: pydantic's and the web's own words, and what the store's errors are."""
    found = catalogue()["told"].keys() - told_in_code()
    others = ("Input should", "String should", "List should", "Field ", "Extra ", "JSON ", "Request ", "Method ")
    others += ("Not Found", "Content ", "There was an error parsing", "the store ", "the disk", "free some", "wait for")
    others += ("another program", "the file or", "make both", "`accord", "give one of {a}; own", "clicks at random")
    others += ("{a}, simulated", "share right", "scores")
    assert [text for text in sorted(found) if not text.startswith(others)] == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("there is no task 'x{y}'", "没有任务 'x{y}'"),
        ("only an admin invites managers and admins", "只有管理员能邀请经理和管理员"),
        ("it needs the role admin", "需要角色：管理员"),
        ("1 by default: nobody else judged the same, and no gold question was answered",) * 2,
        ("there are 2 completions", "共有 2 个回答"),
        ("the longer wins in 80% [70%, 90%], 31% more often than with others",) * 2,
        ("Eve's own words", "Eve's own words"),
        ("there is no task " + "x" * 1000, "there is no task " + "x" * 1000),
    ],
)
def test_what_is_told_is_found_by_its_template(text: str, told: str) -> None:
    spoken = tongue_of("zh").told(text)
    assert spoken == told or (text == told and not re.search(r"[a-z]{3,} [a-z]{3,}", spoken))
    assert tongue_of("en").told(text) == text


def test_a_template_is_looked_for_in_little_time() -> None:
    """Texts hold what strangers sent: the worst of them for patterns with several places."""
    for text in (" is outside" * 36, ".." * 200, " " * 400, "a task of " * 40, "kappa over tasks " * 23):
        start = time.process_time()
        tongue_of("zh").told(text)
        assert time.process_time() - start < 1.0


def test_the_interface_answers_in_the_language_of_the_browser(tmp_path: Path) -> None:
    """Wrong requests of every kind: not one English sentence in the answers, and none in Chinese for a program."""
    with serving(tmp_path) as served, served.by_cookie(served.person("Eve", "manager")) as eve:
        served.desk.queue.add_tasks([task("pair", "Which?", "one", "two")])
        held = eve.post("/api/claim", json={}).json()["task_id"]
        key = {"Idempotency-Key": "12345678"}
        submit = f"/api/tasks/{held}/submit"
        tries: list[tuple[str, str, Any, dict[str, str]]] = [
            ("POST", "/api/tasks/none/skip", {"reason": "x"}, {}),
            ("POST", f"/api/tasks/{held}/skip", {"reason": "x"}, {}),
            ("POST", f"/api/tasks/{held}/skip", {}, {}),
            ("POST", submit, {"ranks": [1, 2]}, {}),
            ("POST", submit, {"ranks": [3, 4]}, key),
            ("POST", submit, {"ranks": [1]}, key),
            ("POST", submit, {"ranks": [1, 1], "strength": "better"}, key),
            ("POST", submit, {"ranks": ["a", 2]}, key),
            ("POST", submit, {"ranks": 1}, key),
            ("POST", submit, {"good": [True, "x"]}, key),
            ("POST", submit, {"ranks": [1, 2], "seconds": -1}, key),
            ("POST", submit, {"ranks": [1, 2], "note": "x" * 5000}, key),
            ("POST", submit, {"ranks": [1, 2], "more": 1}, key),
            ("POST", submit, {"ranks": [1, 2], "flags": [["none"], []]}, key),
            ("POST", submit, [1], key),
            ("POST", submit, None, key),
            ("POST", submit, {"ranks": [1, 2], "strength": "wild"}, key),
            ("GET", f"/api/tasks/{held}/diff?a=7&b=1", None, {}),
            ("GET", f"/api/tasks/{held}/diff?a=x", None, {}),
            ("GET", f"/api/tasks/{held}/diff?a=-1&listed=maybe", None, {}),
            ("POST", "/api/submissions/none/undo", None, {}),
            ("POST", "/api/guideline/confirm", {"rev": 7}, {}),
            ("POST", "/api/invites", {"role": "admin"}, {}),
            ("POST", "/api/people", {"name": "x"}, {}),
            ("POST", "/api/links/77/revoke", None, {}),
            ("POST", "/api/tasks/remove", {"origin": "nothing"}, {}),
            ("POST", "/api/tasks", [{"kind": "poll", "prompt": "x"}], {}),
            ("POST", "/api/tasks", [{"kind": "pair", "prompt": []}], {}),
            ("POST", "/api/me", None, {}),
            ("GET", "/api/nothing", None, {}),
            ("POST", "/api/claim", {"kinds": ["poll"]}, {}),
            ("GET", "/api/me", None, {"Authorization": "Bearer wrong"}),
            ("POST", "/api/claim", {}, {"Origin": "http://evil.example"}),
            ("POST", "/api/claim", {}, {"X-CSRF-Token": "0"}),
        ]
        for verb, path, body, headers in tries:
            for language in ("zh-CN", ""):
                sent = {} if body is None else {"json": body}
                answer = eve.request(verb, path, headers={"Accept-Language": language, **headers}, **sent)
                said = answer.json()["error"]
                assert answer.status_code >= 400 and bool(re.search(r"[\u4e00-\u9fff]", said)) == bool(language), said
                if language:
                    bare = re.sub(r"'[^']*'|\b(CSRF|JSON|own_kinds)\b|^[\w. :\[\]-]+: |：.*", "", said)
                    assert not re.search(r"[A-Za-z]{3,} [A-Za-z]{3,}", bare), said


def test_a_manager_reads_reasons_and_alarms_in_chinese(tmp_path: Path) -> None:
    with serving(tmp_path, overlap=2) as served, served.by_cookie(served.person("Ada", "admin")) as ada:
        served.desk.queue.add_tasks([task("pair", f"Which {n}?", f"first {n}", f"second one {n}") for n in range(12)])
        for name, ranks in (("Eve", (1, 2)), ("Fay", (2, 1))):
            person = served.person(name)
            while (held := served.desk.queue.claim(person.id)) is not None:
                shown = ranks if held.order == (0, 1) else ranks[::-1]
                served.desk.answers.submit(person.id, held.task.id, Answer(ranks=shown), key=held.task.id)
        chinese = {"Accept-Language": "zh-CN"}
        page = ada.get("/manage", headers=chinese).text
        assert ada.get("/manage").text.count("agree") > 3 and "一致程度低" in page
        main = page.partition("<main")[2].partition(">")[2].partition("</main>")[0]
        text = re.sub(r"<[^>]*>", "\n", re.sub(r"<(script|style|svg)\b.*?</\1>", "", main, flags=re.S))
        known = {"Eve", "Fay", "Krippendorff", "Cohen", "Fleiss", "kappa", "alpha"}
        assert {*re.findall(r"[A-Za-z]{3,}", text)} <= known


def test_tasks_are_taken_out_from_the_page(tmp_path: Path) -> None:
    """A name that a stranger gave is shown as text; what a stranger asks to take out stays."""
    odd = "<b>odd</b>.jsonl"
    with serving(tmp_path) as served, served.by_cookie(served.person("Moe", "manager")) as moe:
        made = [task("pair", f"Which {n}?", "one", "two", origin=odd if n else "api") for n in range(4)]
        served.desk.queue.add_tasks(made)
        held = served.desk.queue.claim(served.person("Eve").id)
        page = moe.get("/manage/tasks").text
        assert "&lt;b&gt;odd" in page and "<b>odd" not in page and "Take out" in page
        with served.by_token(served.person("Eve")) as eve:
            assert eve.post("/api/tasks/remove", json={"origin": odd}).status_code == 403
        assert moe.post("/api/tasks/remove", json={"origin": odd}).json() == {"gone": 3, "closed": 0, "done": 0}
        assert moe.post("/api/tasks/remove", json={"origin": odd}).status_code == 404
        assert moe.post("/api/tasks/remove", json={"origin": "api"}).json() == {"gone": 0, "closed": 1, "done": 0}
        assert held is not None and odd not in moe.get("/manage/tasks").text
        log = served.desk.directory.log(served.person("Ada", "admin"))
        assert [row.detail for row in log if row.action == "tasks removed"] == ["1 api", f"3 {odd}"]


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


@pytest.mark.parametrize("text", sorted({text for part in catalogue().values() for text in part}))
def test_both_languages_have_the_same_places_and_marks(text: str) -> None:
    words = {text: words for part in catalogue().values() for text, words in part.items()}[text]

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
    code = re.sub(r'\bt\("(?:[^"\\]|\\.)*"|\bclass(?:Name =|:) "[^"]*"', "", code)
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
