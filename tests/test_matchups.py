"""Blind comparisons of two sources: win rates by hand, by whom, and what does not count."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from accord.cli.main import app
from accord.config import LabelConfig
from accord.people.desk import Desk, NewTask, Person
from accord.people.desk.answers import Answer
from accord.people.matchups import source_matchups
from accord.records import Annotator, Completion, Prompt, Ranking, Source
from accord.stats import wilson
from accord.store import Store

OLD, NEW = (Source(origin="policy", name=name) for name in ("old", "new"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "accord.db") as store:
        yield store


def ranked(store: Store, who: Annotator, number: int, ranks: tuple[int, ...], *sources: Source, flags: str = "") -> str:
    """Store a ranking of completions by these sources, and return its id."""
    prompt = Prompt(text=f"P{number}")
    written = [Completion(prompt_id=prompt.id, text=f"{i}", source=source) for i, source in enumerate(sources)]
    judged = Ranking(
        annotator_id=who.id,
        prompt_id=prompt.id,
        completion_ids=tuple(one.id for one in written),
        ranks=ranks,
        flags=(flags,) if flags else (),
    )
    store.add([who, prompt, *written, judged])
    return judged.id


def test_win_rates_by_hand(store: Store) -> None:
    ada, bob = (Annotator(name=name, annotator_kind="human") for name in ("Ada", "Bob"))
    program = Annotator(name="P", annotator_kind="simulated")
    ranked(store, ada, 0, (1, 2), NEW, OLD)  # new wins: 1
    ranked(store, bob, 0, (2, 1), NEW, OLD)  # new loses, so prompt 0 is a half
    ranked(store, ada, 1, (1, 1), OLD, NEW)  # a tie: a half
    ranked(store, ada, 2, (2, 1, 3), OLD, NEW, OLD)  # new beats both: 1
    ranked(store, ada, 3, (1, 2), OLD, OLD)  # one source alone: nothing
    ranked(store, ada, 4, (2, 1), NEW, OLD, flags="judging")  # a run reports that itself
    ranked(store, program, 5, (2, 1), NEW, OLD)
    people, programs = source_matchups(store)
    assert (people.first, people.second, people.by) == ("new", "old", "people")
    assert people.win_rate.value == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert (people.win_rate.n, people.annotators, people.comparisons, people.ties) == (3, 2, 4, 0.25)
    assert people.verdict == "too few to say"
    assert (programs.by, programs.win_rate.value, programs.win_rate.n) == ("simulated annotators", 0.0, 1)
    assert "simulated annotators" in programs.text()


def test_who_wins_every_time_is_preferred_with_the_interval_of_so_many_prompts(store: Store) -> None:
    ada = Annotator(name="Ada", annotator_kind="human")
    for number in range(12):
        ranked(store, ada, number, (1, 2), NEW, OLD)
    [found] = source_matchups(store)
    assert found.verdict == "new is preferred" and found.win_rate.low == pytest.approx(wilson(12, 12).low)


def test_status_says_it_of_what_people_have_clicked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the file that `accord label --add` reads to the line of `accord status`."""
    from accord import formats
    from accord.people.intake import groups_of, queue_groups

    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(app, ["init", "."]).exit_code == 0
    rows = [{"prompt": f"P{i}", "completion": f" {m}{i}", "model": m} for m in ("sft", "ppo") for i in range(6)]
    file = tmp_path / "both.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Store.open(tmp_path / "accord.db") as store:
        desk = Desk(store, LabelConfig())
        queue_groups(desk, groups_of(formats.read_items(file), Source(origin="policy", name="f")), serve_as="pairs")
        ada = desk.directory.add_person("Ada", "annotator")
        while (task := desk.queue.claim(ada.id)) is not None:
            likes_ppo = tuple(1 if one.source.name == "ppo" else 2 for one in task.shown)
            desk.answers.submit(ada.id, task.task.id, Answer(ranks=likes_ppo), key=task.task.id)
    done = CliRunner().invoke(app, ["status"])
    assert "blind comparison: ppo against sft, people: 1.000 [" in done.stdout
    assert "6 prompts, 6 comparisons by 1; ppo is preferred" in done.stdout
    [told] = json.loads(CliRunner().invoke(app, ["status", "--json"]).stdout)["matchups"]
    assert told["win_rate"]["value"] == 1.0 and told["verdict"] == "ppo is preferred"


def test_nothing_is_said_where_nothing_was_compared(store: Store) -> None:
    person: Person = Desk(store, LabelConfig()).directory.add_person("Ada", "annotator")
    prompt = Prompt(text="P")
    both = tuple(Completion(prompt_id=prompt.id, text=text, source=OLD) for text in "ab")
    desk = Desk(store, LabelConfig())
    desk.queue.add_tasks([NewTask(kind="pair", prompt=prompt, completions=both)])
    task = desk.queue.claim(person.id)
    assert task is not None
    desk.answers.submit(person.id, task.task.id, Answer(ranks=(1, 2)), key="k")
    assert source_matchups(store) == []
