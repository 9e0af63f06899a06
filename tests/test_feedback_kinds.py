"""A kind of feedback is one row: each built-in one has all it needs, and one from outside is asked and answered."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from own_kind import NAME, sent, write_kind
from webapp import Served, serving, task

from accord.config import LabelConfig
from accord.config.sections import FEEDBACK_NAMES
from accord.errors import DataError, UsageError
from accord.people.desk import Desk
from accord.people.desk.answers import Answer
from accord.people.desk.kinds import FEEDBACK_KINDS, kind_of
from accord.store import Store

Enter = Callable[..., httpx2.Client]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    write_kind(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("sending", None)


@pytest.fixture
def served(module: Path) -> Iterator[Served]:
    with serving(module, own_kinds=(NAME,)) as app:
        yield app


@pytest.fixture
def enter(served: Served) -> Iterator[Enter]:
    """``enter(name, role)``: that person's browser, closed at the end."""
    with contextlib.ExitStack() as stack:
        yield lambda name, role="annotator": stack.enter_context(served.by_cookie(served.person(name, role)))


def test_the_configuration_knows_the_names_of_the_table() -> None:
    assert tuple(FEEDBACK_KINDS) == FEEDBACK_NAMES


@pytest.mark.parametrize("name", FEEDBACK_KINDS)
def test_every_kind_has_its_page_and_its_words(name: str, served: Served, enter: Enter) -> None:
    """Whatever stands in the table is shown: no kind is known to the desk and unknown to the page."""
    row = FEEDBACK_KINDS[name]
    assert row.template.is_file() and row.script.is_file() and row.title and row.keys
    served.desk.queue.add_tasks([task(name, "What?", *[f"text {i}" for i in range(row.fewest)])])
    ada = enter("Ada")
    shown = ada.get("/task")
    assert shown.status_code == 200 and row.title in shown.text
    script = f"/{row.script.name}"
    assert script in shown.text
    documented = (Path(__file__).parents[1] / "docs" / "people.md").read_text(encoding="utf-8")
    assert f"| `{name}` |" in documented


def test_a_kind_of_ones_own_is_asked_shown_answered_and_read_back(served: Served, enter: Enter) -> None:
    served.desk.queue.add_tasks([task(NAME, "A greeting", "hello", "hi <b>you</b>", "good day")])
    bob = enter("Bob")
    shown = bob.get("/task")
    assert shown.status_code == 200 and "Which one would you send?" in shown.text and "Send C" in shown.text
    assert "<b>you</b>" not in shown.text
    script = bob.get(f"/kinds/{NAME}/script.js")
    assert script.headers["content-type"].startswith("text/javascript") and "Say which one" in script.text
    claimed = bob.post("/api/claim", json={"kinds": [NAME]}).json()
    texts = [one["text"] for one in claimed["completions"]]
    answer = {"values": {"pick": texts.index("good day"), "doubt": 2}, "seconds": 3}
    done = bob.post(
        f"/api/tasks/{claimed['task_id']}/submit", json=answer, headers={"Idempotency-Key": "a-key-of-my-own"}
    )
    assert done.status_code == 201, done.text
    labels = list(served.store.labels())
    text_of = {completion.id: completion.text for completion in served.store.completions()}
    assert sent(labels, text_of) == {"hello": False, "hi <b>you</b>": False, "good day": True}
    assert all(label.flags == ("doubt 2",) for label in labels) and {label.seconds for label in labels} == {3, None}
    (one,) = served.desk.reading.submissions()
    assert one.kind == NAME and one.answer.values == answer["values"]
    history = bob.get("/history").text
    assert "Which one would you send?" in history and "doubt 2" in history
    manager = enter("Mia", "manager")
    for page in ("/manage", "/manage/gold", "/manage/disagreements"):
        assert manager.get(page).status_code == 200
    refused = manager.get(f"/manage/task/{claimed['task_id']}/gold")
    assert refused.status_code == 422 and "no right answer" in refused.text


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"values": {"pick": 0, "doubt": 4}}, "answer.values.doubt"),
        ({"values": {"pick": 0}}, "answer.values.doubt"),
        ({"values": {"pick": 9, "doubt": 0}}, "no text 9"),
        ({"values": {"pick": 0, "doubt": 0}, "ranks": [1, 2]}, "has no ranks"),
        ({"ranks": [1, 2]}, "has no ranks"),
        ({}, "needs values"),
    ],
)
def test_what_does_not_fit_the_schema_names_the_field(
    served: Served, enter: Enter, answer: dict[str, object], message: str
) -> None:
    served.desk.queue.add_tasks([task(NAME, "A greeting", "hello", "hi")])
    bob = enter("Bob")
    claimed = bob.post("/api/claim", json={"kinds": None}).json()
    path = f"/api/tasks/{claimed['task_id']}/submit"
    done = bob.post(path, json=answer, headers={"Idempotency-Key": "a-key-of-my-own"})
    assert done.status_code == 422 and message in done.text


def test_nobody_loads_code_by_naming_a_kind(served: Served, enter: Enter) -> None:
    """Only what the project's settings name is imported; a manager's request is not."""
    mia = enter("Mia", "manager")
    made = mia.post("/api/tasks", json=[{"kind": "antigravity:geohash", "prompt": "x"}])
    assert made.status_code == 422 and "no task of the kind" in made.text
    claimed = mia.post("/api/claim", json={"kinds": ["antigravity:geohash"]})
    assert claimed.status_code == 422 and mia.get("/kinds/antigravity:geohash/script.js").status_code == 422
    assert "antigravity" not in sys.modules


def test_a_kind_that_the_settings_no_longer_name_is_refused_with_a_hint(served: Served) -> None:
    served.desk.queue.add_tasks([task(NAME, "A greeting", "hello", "hi")])
    ada = served.person("Ada")
    held = served.desk.queue.claim(ada.id)
    assert held is not None
    without = Desk(served.store, LabelConfig())
    with pytest.raises(DataError, match="own_kinds"):
        without.answers.submit(ada.id, held.task.id, Answer(values={"pick": 0, "doubt": 0}), key="k")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("sending:NOT_A_KIND", DataError, "no FeedbackKind"),
        ("sending:GONE", UsageError, "GONE"),
        ("no_such_module:KIND", UsageError, "no_such_module"),
    ],
)
def test_settings_that_name_no_kind_are_refused_at_the_start(
    name: str, error: type[Exception], message: str, module: Path
) -> None:
    with Store.open(module / "facts.db") as store, pytest.raises(error, match=message):
        Desk(store, LabelConfig(kind=name))
    with pytest.raises(error, match=message):
        kind_of(name, LabelConfig(own_kinds=(name,)))


def test_a_row_that_fails_is_told_as_its_own_fault(
    served: Served, enter: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.desk.queue.add_tasks([task(NAME, "A greeting", "hello", "hi")])
    bob = enter("Bob")
    row = kind_of(NAME, served.desk.settings)
    row.template.write_text("{{ nothing.here }}")
    shown = bob.get("/task")
    assert shown.status_code == 422 and "ending:SEND failed" in shown.text
