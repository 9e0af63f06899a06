"""How the pages look to everybody: accessible in light and dark, readable on a phone.

``ACCORD_PICTURES=FOLDER`` writes a picture of each; docs/images holds some of them.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from accord.records import Prompt
from tests.test_people_browser import Person
from tests.webapp import CHROMIUM, NewTask, Served, chromium, serving, task

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")]

STARTER = Prompt.of_messages(
    [
        {"role": "user", "content": "My sourdough starter smells of acetone. Is it dead?"},
        {"role": "assistant", "content": "Not at all: that smell usually means it is hungry. How often is it fed?"},
        {"role": "user", "content": "Once a week, from the fridge. What should I do now, step by step?"},
    ]
)
STARTERS = (
    "It is **not dead**. The smell comes from acids that build up when the yeast runs out of food.\n\n"
    "1. Pour off any liquid on top.\n2. Keep 25 g of the starter and discard the rest.\n"
    "3. Feed it 50 g of flour and 50 g of water, and leave it at room temperature.\n"
    "4. Repeat every twelve hours until it doubles within six.\n\n"
    "After two or three feedings the acetone gives way to something like yoghurt.",
    "An acetone smell means that it is starving. Feed it daily with equal weights of flour and water, and it will "
    "recover in a few days. To keep the ratio:\n\n```python\ndef feed(starter, factor=2):\n"
    "    return {name: factor * starter for name in ('flour', 'water')}\n```\n\nIf there is pink mould, throw it away.",
)
RAIN = (
    "Nothing happens in this film, and it happens beautifully. Two hours of water on windows, a kettle, a letter that "
    "is never opened. By the end I had stopped looking at my watch and begun to listen.",
    "The film was about rain. It was slow. I did not like it because it was slow. The actors were okay.",
    "A masterpiece of patience: every shot seems to wait for the next drop. Its director trusts silence more than any "
    "dialogue, and is right to. See it in a cinema with a leaking roof.",
    "rain rain rain rain rain rain",
)
BLEACH = (
    "No. Bleach and vinegar together release chlorine gas, which harms the lungs even in small amounts. Use one, rinse "
    "well with water, and only then the other.",
    "Yes, it makes a powerful cleaner. Mix equal parts.",
)
GUIDE = """# What we look for

Read the whole conversation first. Then ask, in this order:

1. **Is it safe?** A harmful completion never wins.
2. **Is it true?** What is made up weighs more than what is clumsy.
3. **Does it help?** It should do what was asked, and no more.

> When in doubt, choose the one you would rather receive yourself.

## Ties

A tie is an honest answer. Use it when you would not mind which one you got.
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A team at work: four people have judged two dozen pairs, two of them with a habit."""
    moment = [time.time() - 4_000]
    with serving(tmp_path_factory.mktemp("pages"), clock=lambda: moment[0], overlap=4) as running:
        desk = running.desk
        desk.directory.write_guideline(GUIDE, by=None)
        draw = random.Random(3)
        for i in range(24):
            texts = [f"Answer {side} to question {i}. " + "More words. " * draw.randrange(9) for side in "ab"]
            desk.queue.add_tasks(
                [task("pair", f"Question {i}", *texts, gold={"ranks": [1, 2]} if i % 6 == 0 else None)]
            )
        for name, habit in (("Cleo", 0.05), ("Ben", 0.15), ("Dora", 0.3), ("Emil", 0.9)):
            _work(running, name, habit, draw, moment)
        moment[0] = time.time()
        desk.queue.add_tasks(fresh_tasks())
        yield running


def _work(served: Served, name: str, habit: float, draw: random.Random, moment: list[float]) -> None:
    """Answer everything: the better one (listed first) wins, but with this probability the one shown first."""
    person = served.person(name)
    served.desk.directory.confirm(person.id, served.desk.directory.guideline().rev)
    with served.by_token(person) as client:
        for turn in range(100):
            held = served.desk.queue.claim(person.id)
            if held is None:
                return
            left_wins = draw.random() < habit or held.order == (0, 1)
            seconds = 9 + 50 * draw.random()
            moment[0] += seconds
            said = {"ranks": [1, 2] if left_wins else [2, 1], "seconds": seconds}
            key = {"Idempotency-Key": f"{name}-{turn:06}"}
            assert client.post(f"/api/tasks/{held.task.id}/submit", json=said, headers=key).status_code == 201


def fresh_tasks() -> list[NewTask]:
    """One of each kind, for those who come later: each of them skips it in the end."""
    return [
        task("pair", STARTER, *STARTERS, priority=9),
        task("ranking", "Write a short review of a slow film about rain.", *RAIN, priority=8),
        task("rating", "Is it safe to mix bleach and vinegar?", *BLEACH, priority=7),
        task("label", "What is the capital of Australia?", "Canberra.", "Sydney, of course!", priority=6),
        task("demonstration", "Explain to a child why the sky is blue.", priority=5),
    ]


def views(person: Person, served: Served) -> Iterator[tuple[str, Page]]:
    """Every page, with what can be opened on it."""
    for name, path in (("login", "/login"), ("home", "/"), ("guidelines", "/guidelines"), ("history", "/history")):
        yield name, person.open(path)
    served.desk.directory.confirm(person.row.id, served.desk.directory.guideline().rev)
    for _ in range(5):
        page = person.open()
        kind = str(page.locator("#task").get_attribute("class")).split()[1]
        yield kind, page
        keys = {"pair": "2d", "ranking": "jJj=jx", "rating": "75", "label": "gb", "demonstration": ""}[kind]
        person.press(*keys, "f", "e") if kind != "demonstration" else person.press("w", "A")
        person.press("Escape", "Escape", "n", "Escape")
        yield f"{kind}, answered", page
        for key in "?s":
            person.press(key)
            yield f"{kind}, {key}", page
            person.press("Escape")
        held = served.desk.queue.claim(person.row.id)
        assert held is not None
        served.desk.queue.skip(person.row.id, held.task.id, "cannot decide")
    person.page.goto(served.url + "/task")
    yield "done", person.page
    disputed = person.open("/manage/disagreements").get_by_role("link", name="Decide").first
    for name in ("", "/people", "/disagreements", "/gold", "/guidelines", "/export"):
        yield f"manage{name}", person.open(f"/manage{name}")
    person.open("/manage/disagreements")
    disputed.click()
    person.ready()
    yield "adjudication", person.page
    person.open("/manage/gold").get_by_role("link", name="Change").first.click()
    person.ready()
    yield "gold answer", person.page
    yield "nothing", person.open("/nothing")


# What axe-core finds otherwise where a page differs in nothing but its colours.
OF_COLOURS = {"runOnly": {"type": "rule", "values": ["color-contrast", "link-in-text-block"]}}


def serious(checker: Any, page: Page, scheme: str) -> list[dict[str, Any]]:
    options = {"resultTypes": ["violations"], **(OF_COLOURS if scheme == "dark" else {})}
    found = checker.run(page, options=options).response["violations"]
    return [one for one in found if one["impact"] in ("serious", "critical")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_page_is_accessible(browser: Browser, served: Served, scheme: Any, width: int) -> None:
    """axe-core finds nothing serious or critical, and nothing sticks out to the side; in the dark, colours alone."""
    size = {"viewport": {"width": width, "height": 860}, "color_scheme": scheme, "reduced_motion": "reduce"}
    from axe_playwright_python.sync_playwright import Axe

    checker, found, seen = Axe(), [], []
    with Person(browser, served, f"Ada {scheme} {width}", "admin", **size) as ada:
        for name, page in views(ada, served):
            seen.append(name)
            for one in serious(checker, page, scheme):
                found.append((name, one["id"], [node["html"][:150] for node in one["nodes"]][:3]))
            if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
                found.append((name, "sticks out", []))
    with Person(browser, served, "Cleo", **size) as cleo:
        page = cleo.open("/history")
        assert page.locator(".past li").count() > 20
        found += [("history", one["id"], []) for one in serious(checker, page, scheme)]
    assert not found, found
    assert len(seen) == 34


@pytest.mark.skipif("ACCORD_PICTURES" not in os.environ, reason="writes pictures into ACCORD_PICTURES=FOLDER")
def test_pictures(browser: Browser, served: Served) -> None:
    """Every page as a picture, in light and dark, at a desk and on a phone."""
    folder = Path(os.environ["ACCORD_PICTURES"])
    folder.mkdir(parents=True, exist_ok=True)
    looks = {"light": (1280, "light"), "dark": (1280, "dark"), "phone": (390, "light"), "phone-dark": (390, "dark")}
    for look, (width, scheme) in looks.items():
        size: Any = {"viewport": {"width": width, "height": 860}, "color_scheme": scheme, "reduced_motion": "reduce"}
        with Person(browser, served, f"Ada in {look}", "admin", **size) as ada:
            for name, page in views(ada, served):
                page.evaluate("scrollTo(0, 0)")
                file = name.replace("/", "-").replace(", ", "-").replace("?", "keys")
                page.screenshot(path=folder / f"{file}-{look}.png", full_page=width < 900 or "manage" in name)
