"""Hostile texts in every place a text can stand, shown by a real browser in every view: nothing runs, nothing leaves.

Twice: as people see it, and with the browser's content security policy switched off, so that escaping and cleaning
must hold by themselves.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html import unescape
from urllib.parse import urlsplit

import pytest

from accord.people.desk.answers import Answer
from accord.people.web import markdown
from accord.people.web.diff import word_diff
from accord.records import Completion, Prompt, Source
from tests.webapp import CHROMIUM, CHROMIUM_ARGS, NewTask, Served, serving
from tests.xss import EVIL, payloads, short

KINDS = {"ranking": 9, "rating": 9, "label": 9, "pair": 2, "demonstration": 0}
# What must not be on a page, whatever its texts say.
INSPECT = """() => {
  const found = [];
  const report = (scope, selector) => document.querySelectorAll(scope).forEach(
    (box) => box.querySelectorAll(selector).forEach((one) => found.push(one.outerHTML)));
  report(".prose, td, th, li, h1, h2, p, summary",
         "script, iframe, object, embed, img, picture, video, audio, link, style, base, meta");
  report(".prose", "[id], [name], svg, form, input");
  for (const one of document.querySelectorAll("*"))
    for (const { name } of one.attributes)
      if (name.startsWith("on") || name === "style" || name === "srcdoc") found.push(one.outerHTML);
  for (const link of document.querySelectorAll(".prose a[href]")) {
    const schemed = /^(https?:|mailto:)/.test(link.getAttribute("href"));
    if (!schemed || link.rel !== "noopener noreferrer" || link.target !== "_blank") found.push(link.outerHTML);
  }
  if (document.querySelectorAll("#task").length > 1) found.push("two tasks");
  return found;
}"""
CLASSES = {"no-image", "tex", "mark", "mark joiner", "c", "f", "k", "n", "s"}
IN_FORMULAS = {"display", "form", "fence", "stretchy", "width", "minsize", "maxsize", "columnalign", "scriptlevel"}
IN_FORMULAS |= {"displaystyle"}
drawn_anew = markdown._rendered
TRIES = re.compile(r"alert|evil|script|7\*7|file:|blob:|api/logout|msgbox|onclick|base64", re.I)


def test_the_corpus_is_large_and_each_text_tries_something() -> None:
    texts = payloads()
    assert len(texts) >= 200 and len(set(texts)) == len(texts)
    assert all(TRIES.search(unescape(text)) for text in texts)


@pytest.mark.parametrize("text", payloads())
def test_rendered_markdown_holds_nothing_but_the_allowed_tags(text: str) -> None:
    made = str(markdown.render(text))
    tags = re.findall(r"<(/?)([a-zA-Z0-9]+)([^>]*)>", made)
    assert {name for _, name, _ in tags} <= markdown.TAGS
    for _, name, attributes in tags:
        for attribute, value in re.findall(r'([\w-]+)="([^"]*)"', attributes):
            assert attribute in {"href", "title", "rel", "target", "class", "tabindex", "start", "dir"} | IN_FORMULAS
            assert attribute != "href" or re.match(r"(https?|mailto):", unescape(value)), made
            assert attribute != "class" or (name == "span" and value in CLASSES)
    assert made.count("<") == len(tags)


@pytest.mark.parametrize("text", payloads()[:60])
def test_marked_differences_are_escaped(text: str) -> None:
    diff = word_diff(text, text + " more")
    assert diff is not None
    for part in (diff.a, diff.b):
        assert set(re.findall(r"<[^>]*>", str(part))) <= {"<ins>", "</ins>", "<del>", "</del>"}
    assert unescape(re.sub("<[^>]*>", "", str(diff.a))) == text


def test_what_is_meant_is_shown() -> None:
    """The walls let through what markdown is for."""
    made = str(
        markdown.render("**b** `c` [l](https://example.org)\n\n1. x\n\n|a|\n|-|\n|1|\n\n```py\nx < y\n```\nline\nbreak")
    )
    for part in (
        "<strong>b</strong>",
        "<code>c</code>",
        'href="https://example.org"',
        '<ol dir="auto">',
        "<td>1</td>",
        "x &lt; y",
    ):
        assert part in made
    assert "line<br>" in made and '<pre tabindex="0">' in made
    assert str(markdown.render("![a cat](https://example.org/cat.png)")) == (
        '<p><span class="no-image">[image: a cat, https://example.org/cat.png]</span></p>\n'
    )


HOSTILE = ("[", "![", "[a](", "> > a\n", "1. a\n", "**a *b ", "_a ", "~~", "`a ", "|a", "<a ", "a\n", "&#", "\\", "$")


@pytest.mark.slow
@pytest.mark.parametrize("part", HOSTILE)
def test_no_text_makes_the_renderer_take_more_than_so_many_steps(part: str) -> None:
    """A step is a call of a Python function. 100,000 characters of images took 15 million."""
    for size in (markdown.MOST_MARKS, 2 * markdown.MOST_MARKS, 100_000):
        assert _steps((part * size)[:size]) < 2_000_000


def test_a_short_text_cannot_make_a_huge_table() -> None:
    """Rows of one letter under a header of 200 cells are filled up: 14,530 characters made 6.6 MB."""
    text = ("|a" * 200 + "\n" + "|-" * 200 + "\n" + "x\n" * 325 + "\n") * 10
    assert len(drawn_anew(text)) < 10 * len(text)
    honest = "|a|b|\n|-|-|\n" + "|1|2|\n" * 300
    assert drawn_anew(honest).count("<tr>") == 301


def _steps(text: str) -> int:
    steps = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal steps
        steps += event == "call"

    sys.setprofile(count)
    try:
        drawn_anew(text)
    finally:
        sys.setprofile(None)
    return steps


def test_a_text_of_too_many_marks_stands_as_it_is_written_and_a_long_one_of_few_does_not() -> None:
    marks = "<b>*\n" * markdown.MOST_MARKS
    made = str(markdown.render(marks))
    assert made == "<p>" + "&lt;b&gt;*<br>\n" * markdown.MOST_MARKS + "</p>"
    assert str(markdown.render("word " * 40_000 + "**bold**")).endswith("<strong>bold</strong></p>\n")


# ---- in a real browser -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Tasks of every kind made of hostile texts, answered by people with hostile names, notes and edits."""
    with serving(tmp_path_factory.mktemp("hostile"), overlap=4) as served:
        texts = payloads()
        names = [name for name in short(100) if "\t" not in name]
        served.desk.directory.write_guideline("\n\n".join(texts), by=None)
        tasks = list(_tasks(texts))
        served.desk.queue.add_tasks(tasks)
        for i in range(2):
            _answer_all(served, names[i], texts, turn=i)
        for name in names[2:]:
            served.person(name)
        yield served


def _tasks(texts: list[str]) -> Iterator[NewTask]:
    """All texts as completions of rankings; a few tasks of the other kinds."""
    kinds = ["ranking"] * -(-len(texts) // 9) + ["rating", "label", "pair", "demonstration"]
    source = Source(origin="policy", name="<img src=x onerror=alert(1)>", version="<script>alert(1)</script>")
    for number, kind in enumerate(kinds):
        start = 9 * number
        chosen = [texts[(start + i) % len(texts)] for i in range(KINDS[kind])]
        turns = [{"role": ("user", "assistant")[i % 2], "content": texts[(start + i) % len(texts)]} for i in range(3)]
        prompt = Prompt.of_messages(turns)
        made = tuple(Completion(prompt_id=prompt.id, text=text, source=source) for text in chosen)
        yield NewTask(kind=kind, prompt=prompt, completions=made)


def _answer_all(served: Served, name: str, texts: list[str], turn: int) -> None:
    person = served.person(name)
    rev = served.desk.directory.guideline().rev
    served.desk.directory.confirm(person.id, rev)
    with served.by_token(person) as client:
        number = 0
        while (answer := client.post("/api/claim", json={})).status_code == 200:
            held, number = answer.json(), number + 1
            places = range(len(held["completions"]))
            ranks = [1 + (i + turn) % len(places) for i in places]
            said = {
                "pair": {"ranks": ranks},
                "ranking": {"ranks": ranks},
                "rating": {
                    "ratings": [{axis["name"]: 1 + 3 * turn for axis in held["settings"]["axes"]} for _ in places]
                },
                "label": {"good": [bool(turn)] * len(places)},
                "demonstration": {"text": texts[number % len(texts)]},
            }[held["kind"]]
            said |= {"note": texts[number % len(texts)]}
            if places:
                said |= {"edit": {"of": 0, "text": "edited " + texts[(number + 7) % len(texts)]}}
            path, key = f"/api/tasks/{held['task_id']}", {"Idempotency-Key": f"key-{name[:5].encode().hex()}-{number}"}
            assert client.post(f"{path}/submit", json=said, headers=key).status_code == 201


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("policy", ["with", "without"])
def test_nothing_runs_and_nothing_leaves(hostile: Served, policy: str) -> None:
    pytest.importorskip("playwright")
    from playwright.sync_api import sync_playwright

    seen: list[str] = []
    with sync_playwright() as playwright:
        # What asks for another host is seen below; it finds none. (A route would do, and keeps nothing in the cache.)
        alone = f"--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE {urlsplit(hostile.url).hostname}"
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*CHROMIUM_ARGS, alone])
        context = browser.new_context(bypass_csp=policy == "without")
        context.on("request", lambda one: one.url.startswith(hostile.url) or seen.append(f"request {one.url}"))
        context.on("page", lambda page: len(context.pages) > 1 and seen.append(f"window {page.url}"))
        page = context.new_page()
        page.on("dialog", lambda dialog: (seen.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on("pageerror", lambda error: seen.append(f"error {error}"))
        page.on(
            "framenavigated", lambda frame: frame.url.startswith(hostile.url) or seen.append(f"went to {frame.url}")
        )
        views = 0
        for path, then in _views(hostile, policy):
            if "person" in then:
                context.add_cookies([{"name": hostile.cookie, "value": then["person"], "url": hostile.url}])
            answer = page.goto(hostile.url + path)
            assert answer is not None and answer.status == 200, path
            if "task" in path:
                page.wait_for_selector("#task[data-ready]")
            for key in then.get("keys", ""):
                page.keyboard.press(key)
            if "d" in then.get("keys", ""):
                page.wait_for_selector(".diff:not([hidden])")
            seen += page.evaluate(INSPECT)
            assert not seen, (path, seen)
            views += 1
        browser.close()
    assert views > 70


def _views(served: Served, policy: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Every page that shows a text, with keys that make more of it appear."""
    admin = served.person(f"admin {policy}", "admin")
    session = served.desk.directory.open_session(admin.id)
    yield "/guidelines", {"person": session}
    served.desk.directory.confirm(admin.id, served.desk.directory.guideline().rev)
    for path in (
        "/manage",
        "/manage/people",
        "/manage/disagreements",
        "/manage/guidelines",
        "/manage/export",
        "/history",
    ):
        yield path, {}
    for task in served.desk.queue.tasks():
        yield f"/manage/task/{task.id}", {"keys": "od" if task.completions else ""}
    gold = next(task for task in served.desk.queue.tasks() if task.kind == "pair")
    for text in payloads()[:7]:
        served.desk.queue.set_gold(gold.id, Answer(ranks=(1, 2), note=text), admin)
        yield "/manage/gold", {}
    yield f"/manage/task/{gold.id}/gold", {"keys": "od"}
    judge = served.desk.directory.people()[0]
    yield "/history", {"person": served.desk.directory.open_session(judge.id)}
    yield "/", {}
    # as an annotator who has begun: texts as drafts too
    fresh = served.person(f"fresh {policy}")
    served.desk.directory.confirm(fresh.id, served.desk.directory.guideline().rev)
    yield "/", {"person": served.desk.directory.open_session(fresh.id)}
    while (held := served.desk.queue.claim(fresh.id)) is not None:
        text = payloads()[held.revision % 7]
        draft = {"note": text, "edit": {"of": 0, "text": text}, "text": text, "flags": [[text]] * 9, "ranks": [text]}
        served.desk.queue.save_draft(fresh.id, held.task.id, draft)
        yield "/task", {"keys": "od" if len(held.order) > 1 else ""}
        served.desk.queue.skip(fresh.id, held.task.id, "cannot decide", text)
    yield "/history", {}
    token = served.desk.directory.invite("annotator", by=None)
    yield f"/join/{token}", {"person": "none"}
    yield "/login?" + EVIL, {}
