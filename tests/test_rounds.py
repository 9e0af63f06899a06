"""Runs that ask people, and runs of several rounds: a tiny model, people who answer at the desk, a function."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from conftest import WriteRows
from typer.testing import CliRunner
from webapp import http, http_get, labelling

from accord.cli.main import app
from accord.config import AskConfig, EnoughConfig, EvalConfig, LabelConfig, Recipe, load_recipe
from accord.errors import DataError, UsageError
from accord.evals.results import policy_floors
from accord.formats.facts import UNKNOWN_TIME
from accord.loop import WaitingForPeople, run
from accord.loop.round import broken_floors
from accord.loop.samples import queue_samples, tasks_about
from accord.loop.task import Asked
from accord.loop.waiting import people_at_the_desk
from accord.people.desk import Assignment, Desk, NewTask
from accord.people.desk.answers import read_answer
from accord.people.running import running_app
from accord.people.simulation.client import Client
from accord.people.watching import Questions
from accord.records import Annotator, Completion, Prompt, Ranking, Source
from accord.stats import Interval
from accord.store import Store
from accord.train.rl import rl

PLACES = ("harbour", "kitchen", "village", "garden", "museum", "station", "library", "forest", "island", "market")
THINGS = ("kite", "clock", "letter", "soup", "fox", "chess", "rain", "bread")
TINY = [
    *("sample.samples_per_prompt=3", "sample.max_new_tokens=6", "ask.prompts=4", "ask.queue=0"),
    *("reward.epochs=1", "reward.groups_per_step=4", "reward.precision=fp32", "reward.max_tokens=60"),
    *("rl.iterations=2", "rl.prompts_per_iteration=4", "rl.max_new_tokens=6", "rl.ppo_epochs=1", "rl.eval_every=1"),
    *("rl.precision=fp32", "eval.samples_per_prompt=1", "eval.best_of=2", "eval.bootstrap=100", "eval.curve_samples=1"),
    "eval.judges={vowels: {regex: '[aeiou]'}}",
]


@pytest.fixture
def recipe(tmp_path: Path, policy_folder: Path, write_rows: WriteRows) -> Any:
    """``recipe(*overrides)``: a run on 80 prompts that asks people about samples of four of them."""
    prompts = write_rows("prompts.jsonl", [{"prompt": f"A {t} in the {p}:"} for t in THINGS for p in PLACES])

    def make(*overrides: str) -> Recipe:
        given = [f"base.model={policy_folder}", f"task.prompts={prompts}", "ask.who=people", "name=tiny"]
        return load_recipe(None, [*given, *TINY, *overrides])

    return make


def answer_all(place: Path, names: str = "Ada", most: int = 10_000) -> int:
    """People rank what waits for them, longer texts first; how many answers they gave."""
    given = 0
    with Store.open(place) as store:
        desk = Desk(store, LabelConfig())
        known = {person.name: person for person in desk.directory.people()}
        for name in names.split():
            person = known.get(name) or desk.directory.add_person(name, "annotator")
            while given < most and (got := desk.queue.claim(person.id)) is not None:
                desk.answers.submit(person.id, got.task.id, read_answer(by_length(got)), key=f"{name}-{got.task.id}")
                given += 1
    return given


def by_length(got: Assignment) -> dict[str, Any]:
    texts = [completion.text for completion in got.shown]
    return {"ranks": [1 + sum(len(other) > len(text) for other in texts) for text in texts]}


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_a_run_waits_for_people_and_goes_on_with_what_they_said(tmp_path: Path, recipe: Any) -> None:
    out, said, wanted = tmp_path / "run", [], recipe("ask.weight=0.5")
    place = out / "accord.db"

    def start() -> Any:
        said.clear()
        return run(wanted, output_dir=out, log=lambda _, text: said.append(text))

    with pytest.raises(WaitingForPeople) as first:
        start()
    assert (first.value.answered, first.value.missing, first.value.exit_code) == (0, 4, 5)
    assert str(first.value) == (
        f"waiting for people: 0 of 4 answers\n  hint: accord label {out}, then run the same again"
    )
    assert answer_all(place, most=3) == 3
    with pytest.raises(WaitingForPeople, match="3 of 4 answers by 1 person"):
        start()
    assert "sample: already done" in said  # and nothing was queued twice
    assert not (out / "rankings").exists()

    assert answer_all(place) == 1
    start()
    asked = json.loads((out / "ask/stage.json").read_text())["result"]
    wanted_counts = {"tasks": 4, "answers": 4, "people": 1, "judgements": 4}
    assert {key: asked[key] for key in wanted_counts} == wanted_counts
    rows = rows_of(out / "rankings/rankings.jsonl")
    drawn = {row["prompt"]: set(row["completions"]) for row in rows_of(out / "sample/samples.jsonl")}
    assert len(rows) == 4
    for row in rows:
        assert set(row["completions"]) == drawn[row["prompt"]] and row["weight"] == 0.5
        longest = max(map(len, row["completions"]))
        best = [text for text, rank in zip(row["completions"], row["ranks"], strict=True) if rank == 1]
        assert best == [text for text in row["completions"] if len(text) == longest]
    start()
    assert said and not any(text.endswith(": starting") for text in said)


@pytest.mark.slow
def test_what_a_run_asks_in_its_own_store_does_not_begin_it_anew(tmp_path: Path, recipe: Any) -> None:
    """Task and desk share a store: answers are the run's own; what stood is read once, whatever comes meanwhile."""
    place, said = tmp_path / "accord.db", []
    importer = Annotator(name="a file", annotator_kind="human")
    imported: list[Ranking] = []
    source = Source(origin="policy", name="another bot")
    with Store.open(place) as store:
        desk, tasks = Desk(store, LabelConfig()), []
        for number, prompt in enumerate(Prompt(text=f"A {t} in the {p}:") for t in THINGS for p in PLACES):
            texts = tuple(Completion(prompt_id=prompt.id, text=text, source=source) for text in (" fog", " rain wind"))
            store.add([prompt, *texts])
            if number % 2:
                tasks.append(NewTask(kind="pair", prompt=prompt, completions=texts))
                ids = tuple(text.id for text in texts)
                said_of = {"prompt_id": prompt.id, "completion_ids": ids, "ranks": (1, 2)}
                imported.append(Ranking(annotator_id=importer.id, created_at=UNKNOWN_TIME, **said_of))
        desk.queue.add_tasks(tasks)
    assert answer_all(place, "Ada") == len(tasks) == 40

    def start(*more: str, **how: Any) -> None:
        said.clear()
        wanted = recipe("task.use=store", "task.prompts=''", "task.judge_share=0", *more)
        run(wanted, output_dir=tmp_path / "run", store=str(place), log=lambda _, text: said.append(text), **how)

    with pytest.raises(WaitingForPeople):
        start()
    standing = (tmp_path / "run/data/judgements_train.jsonl").read_bytes()
    assert answer_all(place, "Ben") == 4
    with Store.open(place) as store:
        store.add([importer, *imported])
    start()
    assert "data: already done" in said and "sample: already done" in said
    learnt = (tmp_path / "run/rankings/rankings.jsonl").read_bytes()
    assert learnt.startswith(standing) and learnt.count(b"\n") == standing.count(b"\n") + 4
    start(resume=False)
    twice = 2 * standing.count(b"\n")  # now the file's rankings count too, and still no answer of this run's
    assert (tmp_path / "run/data/judgements_train.jsonl").read_bytes().count(b"\n") == twice
    assert (tmp_path / "run/rankings/rankings.jsonl").read_bytes().count(b"\n") == twice + 4


@pytest.mark.slow
def test_a_finished_round_reads_no_later_answer_and_the_next_one_does(tmp_path: Path, recipe: Any) -> None:
    """Five of eight answers are enough; the others come when the round is closed."""
    out, said = tmp_path / "run", []
    place = out / "accord.db"

    def start(*overrides: str) -> Any:
        said.clear()
        wanted = recipe("ask.overlap=2", "ask.enough=5", *overrides)
        return run(wanted, output_dir=out, log=lambda _, text: said.append(text))

    with pytest.raises(WaitingForPeople, match="0 of 5"):
        start()
    assert answer_all(place, "Ada Ben", most=5) == 5
    first = start()
    assert "rounds" not in first and first["champion"].keys() == {"policy", "promoted", "reasons"}
    closed = (out / "ask/judgements.jsonl").read_bytes()
    weights = (out / "reward/model/model.safetensors").read_bytes()
    assert answer_all(place, "Ada Ben") == 3
    start()
    assert "ask: 3 answers came after this round had enough; the next round reads them" in said
    assert (out / "ask/judgements.jsonl").read_bytes() == closed
    assert (out / "reward/model/model.safetensors").read_bytes() == weights

    with pytest.raises(WaitingForPeople, match="0 of 5"):
        start("rounds=2")
    assert (out / "ask/judgements.jsonl").read_bytes() == closed
    asked_twice = [row["prompt"] for path in (out, out / "round_2") for row in rows_of(path / "sample/samples.jsonl")]
    assert len(set(asked_twice)) == 8  # other prompts than before
    assert answer_all(place, "Ada Ben") == 8
    summary = start("rounds=2")
    again = json.loads((out / "round_2/ask/stage.json").read_text())["result"]
    assert (again["answers"], again["tasks"], again["people"]) == (16, 4, 2)
    learnt = rows_of(out / "round_2/rankings/rankings.jsonl")
    assert len(learnt) == 16 and {row["prompt"] for row in learnt} == set(asked_twice)
    assert [row["round"] for row in summary["rounds"]] == [1, 2]
    assert [row["answers"] for row in summary["rounds"]] == [5, 16]


SIMULATED = """
def vowels(prompt, completions):
    return [sum(letter in "aeiou" for letter in text) for text in completions]
"""


@pytest.mark.slow
@pytest.mark.parametrize("better", [True, False])
def test_the_next_round_starts_from_what_was_promoted(
    tmp_path: Path, recipe: Any, monkeypatch: pytest.MonkeyPatch, better: bool
) -> None:
    """Every floor held, and one broken: the second round begins elsewhere, and learns from the judgements of both."""
    (tmp_path / "vowel_lovers.py").write_text(SIMULATED)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("accord.loop.round.broken_floors", lambda floors: [] if better else ["it is no good"])
    started: list[Path] = []

    def watched(config: Any, *, model: Path, **more: Any) -> Any:
        started.append(model)
        return rl(config, model=model, **more)

    monkeypatch.setattr("accord.loop.stages.rl", watched)
    out, wanted = tmp_path / "run", recipe("ask.who=vowel_lovers:vowels", "rounds=2")
    base = Path(wanted.base.model)
    summary = run(wanted, output_dir=out)
    assert started == [base, out / "model" if better else base]
    champions = ["model", "round_2/model"] if better else [str(base), str(base)]
    assert [row["policy"] for row in summary["rounds"]] == champions
    assert [row["promoted"] for row in summary["rounds"]] == [better, better]
    assert [row["reasons"] for row in summary["rounds"]] == [[] if better else ["it is no good"]] * 2
    assert (out / "model").is_dir() and (out / "round_2/model").is_dir() == better
    told = json.loads((out / "round_2/eval/results.json").read_text())
    assert told["reference"] == ("round_1" if better else "base")
    first, second = (rows_of(folder / "rankings/rankings.jsonl") for folder in (out, out / "round_2"))
    assert second[: len(first)] == first and len(first) < len(second) <= 8
    page = (out / "report.html").read_text()
    assert "round_2/report.html" in page and ("promoted" if better else "refused: it is no good") in page
    assert "Its policy was" not in (out / "round_2/report.html").read_text()


def test_only_what_holds_every_floor_is_promoted() -> None:
    """The floor of the win rate is that its interval lies above one half, whatever the others say."""
    config = EvalConfig()
    row = {"length_ratio": 1.0, "nll_excess": 0.1, "distinct_share": 1.0}

    def reasons(low: float, **changed: float) -> list[str]:
        win = Interval(0.6, low, 0.7, 40, 40)
        floors = policy_floors(config, SimpleNamespace(win_rate=win, **{**row, **changed}))  # type: ignore[arg-type]
        return broken_floors({floor.name: floor.to_json() for floor in floors})

    assert reasons(0.51) == []
    assert reasons(0.5) == ["judge_win_rate_low is 0.5, not above 0.5"]
    assert reasons(0.51, length_ratio=1.4) == ["length_ratio is 1.4, not 0.8 to 1.25"]


# ---- whose answers count ---------------------------------------------------------------------------------------------


def queued(place: Path, ask: AskConfig) -> Questions:
    """Three prompts with three samples each, in the queue of a store."""
    source = Source(origin="policy", name="tiny/sft")
    groups = [
        {"prompt": f"A {thing}:", "topic": thing, "completions": ["a", "bb", "ccc"]}
        for thing in ("kite", "fox", "rain")
    ]
    queue_samples(groups, source, store=str(place), ask=ask)
    return Questions(str(place), tasks_about(groups, source, store=str(place), ask=ask), ask.enough, ask.simulated)


def test_gold_questions_skips_and_simulated_annotators_do_not_answer(tmp_path: Path) -> None:
    place = tmp_path / "accord.db"
    asked = queued(place, AskConfig(who="people"))
    with Store.open(place) as store:
        desk = Desk(store, LabelConfig())
        boss, ada = desk.directory.add_person("Bea", "manager"), desk.directory.add_person("Ada", "annotator")
        robot = desk.directory.add_person("robot", "annotator", simulated=True)
        by_robot, by_ada, golden = (desk.queue.claim(person.id) for person in (robot, ada, boss))
        assert by_robot and by_ada and golden
        desk.answers.submit(robot.id, by_robot.task.id, read_answer(by_length(by_robot)), key="robot")
        desk.queue.skip(ada.id, by_ada.task.id, "cannot decide")
        desk.answers.submit(boss.id, golden.task.id, read_answer(by_length(golden)), key="boss")
        before = asked.standing()
        desk.queue.set_gold(golden.task.id, read_answer(by_length(golden)), boss)
    assert (before.needed, before.answered, before.skipped, before.simulated) == (3, 1, 1, 1)
    now = asked.standing()
    assert (now.needed, now.answered, now.people) == (2, 0, 0)
    assert now.text() == "0 of 2 answers (1 skipped, 1 by simulated annotators do not count)"
    taken = Questions(asked.store, asked.tasks, simulated=True).standing()
    assert (taken.needed, taken.answered, taken.people, taken.simulated) == (2, 1, 0, 1)
    assert taken.text() == "1 of 2 answers (1 skipped, 1 of them by simulated annotators)"


def test_pairs_are_asked_of_every_two_samples_and_overlap_asks_each_of_several(tmp_path: Path) -> None:
    asked = queued(tmp_path / "accord.db", AskConfig(who="people", kind="pair", overlap=2))
    assert len(asked.tasks) == 9 and set(asked.tasks.values()) == {2}  # 3 of 3 samples, of 3 prompts
    assert asked.standing().needed == 18
    assert answer_all(tmp_path / "accord.db", "Ada") == 9
    assert (asked.standing().answered, asked.standing().missing) == (9, 9)
    enough = Questions(asked.store, asked.tasks, EnoughConfig(answers=9)).standing()
    assert (enough.needed, enough.missing) == (9, 0)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["ask.kind=rating"], "ask.kind rating brings no rankings"),
        (["ask.kind=ranking", "reward.loss=binary"], "give ask.kind label"),
        (["sample.samples_per_prompt=12"], "ask.kind ranking shows 2 to 9 at once"),
        (["ask.kind=absent:kind"], "absent"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_any_work(
    tmp_path: Path, recipe: Any, overrides: list[str], told: str
) -> None:
    with pytest.raises(UsageError, match=told):
        run(recipe(*overrides), output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_comparison_has_one_round() -> None:
    with pytest.raises(UsageError, match="rounds is 2, and a comparison of methods"):
        load_recipe("compare", ["rounds=2"])


def test_tasks_of_another_store_are_refused(tmp_path: Path, recipe: Any) -> None:
    """Where the store is another one, what earlier rounds asked cannot be found: that is said, not left out."""
    (tmp_path / "tasks.jsonl").write_text('{"task": "of another store", "overlap": 1}\n')
    ask = AskConfig(who="people", enough=EnoughConfig(answers=1))
    queued(tmp_path / "accord.db", ask)
    answer_all(tmp_path / "accord.db")
    rows = [{"prompt": "A fox:", "topic": "fox", "completions": ["a", "bb", "ccc"]}]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = Source(origin="policy", name="tiny/sft")
    asked = Asked(tmp_path / "samples.jsonl", tmp_path / "said.jsonl", source, str(tmp_path / "accord.db"), 1.0, 0)
    people = people_at_the_desk(ask, "", "ranking", tmp_path / "tasks.jsonl")
    with pytest.raises(DataError, match="1 tasks of earlier rounds are not in this store"):
        people.answer(people.inputs, asked)
    assert people_at_the_desk(ask, "", "ranking", None).answer({}, asked)["answers"] == 1


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path: Path, recipe: Any) -> list[str]:
    """``accord run`` of the recipe into ``run``."""
    base, prompts = recipe().base.model, recipe().task.prompts
    (tmp_path / "tiny.yaml").write_text("ask: {who: people}\n")
    given = [f"base.model={base}", f"task.prompts={prompts}", *TINY]
    return ["run", str(tmp_path / "tiny.yaml"), *given, "-o", str(tmp_path / "run")]


@pytest.mark.slow
def test_the_command_says_what_it_waits_for_and_how_to_go_on(
    tmp_path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, command, prog_name="accord")
    assert result.exit_code == 5, result.stderr
    assert result.stdout == (
        "waiting for people: 0 of 4 answers\n"
        "next: the same command with --serve --invite 3   (prints a link a colleague, and waits for them); or\n"
        "      accord label run   (prints a link: let them answer), then the same command again\n"
    )
    told = json.loads(CliRunner().invoke(app, [*command, "--json"], prog_name="accord").stdout)
    assert told == {
        **{"waiting_for": "people", "answered": 0, "missing": 4, "needed": 4, "people": 0, "simulated": 0},
        **{"deadline": None, "app": None, "links": []},
        **{"command": "accord label run", "exit_code": 5},
    }


@pytest.mark.slow
def test_a_command_that_waits_is_killed_and_goes_on_when_the_answers_come(tmp_path: Path, command: list[str]) -> None:
    """People answer over HTTP, at a real ``accord label``, while the run looks at the store."""
    said = tmp_path / "said.txt"

    def start() -> subprocess.Popen[str]:
        """The command, once it is seen to wait."""
        with said.open("w") as stderr:
            started = subprocess.Popen(
                [sys.executable, "-m", "accord", *command, "--wait"], stdout=subprocess.PIPE, stderr=stderr, text=True
            )
        while "waiting for people: 0 of 4 answers" not in said.read_text():
            assert started.poll() is None, said.read_text()
            time.sleep(0.1)
        return started

    with start() as killed:
        killed.kill()
    assert killed.returncode == -signal.SIGKILL
    with start() as waiting, labelling(tmp_path / "run") as (told, _):
        with Store.open(tmp_path / "run" / "accord.db") as store:
            desk = Desk(store, LabelConfig())
            client = Client(
                told["url"], desk.directory.make_token(desk.directory.add_person("Ada", "annotator").id, "tests")
            )
        while (task := client.claim()) is not None:
            lengths = [len(completion["text"]) for completion in task["completions"]]
            ranks = [1 + sum(other > length for other in lengths) for length in lengths]
            client.submit(task["task_id"], {"ranks": ranks}, key=task["task_id"])
        client.close()
        assert "report.html" in waiting.communicate(timeout=120)[0], said.read_text()
    assert waiting.returncode == 0
    assert len(rows_of(tmp_path / "run/rankings/rankings.jsonl")) == 4


class Colleague:
    """Somebody who opens a link from the run's output in a browser of one's own, and ranks longer texts first."""

    def __init__(self, link: str, name: str = "") -> None:
        self.url = link.rpartition("/join/")[0]
        self.browser = http(base_url=self.url, follow_redirects=True)
        self.browser.get(link)
        self.entered = self.browser.post("/join", data={"name": name})
        token = re.search(r'<meta name="csrf" content="(\w+)"', self.entered.text)
        self.browser.headers["X-CSRF-Token"] = token[1] if token else ""

    def answer(self, most: int = 100) -> int:
        for given in range(most):
            claimed = self.browser.post("/api/claim", json={"kinds": None})
            if claimed.status_code == 204:
                return given
            task = claimed.json()
            lengths = [len(completion["text"]) for completion in task["completions"]]
            said = {"ranks": [1 + sum(other > length for other in lengths) for length in lengths]}
            where, key = f"/api/tasks/{task['task_id']}/submit", {"Idempotency-Key": task["task_id"]}
            assert self.browser.post(where, json=said, headers=key).status_code == 201
        return most


@pytest.fixture
def colleague() -> Iterator[Any]:
    """``colleague(link, name)``: a browser of its own for each, closed at the end."""
    with contextlib.ExitStack() as browsers:

        def enter(link: str, name: str = "") -> Colleague:
            made = Colleague(link, name)
            browsers.callback(made.browser.close)
            return made

        yield enter


@contextlib.contextmanager
def told(command: list[str], into: Path, until: str, *more: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command as a process, once it has written ``until``; what it has written so far."""
    with into.open("w") as stderr:
        argv = [sys.executable, "-m", "accord", *command, *more]
        started = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=stderr, text=True)
    try:
        while until not in into.read_text():
            assert started.poll() is None, into.read_text()
            time.sleep(0.1)
        yield started, into.read_text()
    finally:
        started.kill()
        started.communicate()


def link_for(who: str, text: str) -> str:
    found = re.search(rf"for {who}, once: (http\S+)", text)
    assert found is not None, text
    return found[1]


@pytest.mark.slow
def test_a_run_that_serves_prints_links_is_killed_and_goes_on(
    tmp_path: Path, command: list[str], colleague: Any
) -> None:
    """Two colleagues open their links and answer; after kill -9 one has a new link; the app ends with the run."""
    said, door = tmp_path / "said.txt", ("--serve", "--invite", "Ada,Ben", "--port", "0")
    waits = "waiting for people: 0 of 8 answers"
    command += ["ask.overlap=2"]
    with told(command, said, waits, *door) as (killed, text):
        ada = colleague(link_for("Ada", text))
        assert "Hello, <bdi>Ada</bdi>." in ada.entered.text and ada.answer(2) == 2
        assert colleague(link_for("Ada", text)).entered.status_code == 422  # it lets one person in, once
        assert running_app(str(tmp_path / "run/accord.db")) == ada.url
        killed.kill()
        killed.wait()
    assert running_app(str(tmp_path / "run/accord.db")) == ""
    with told([*command, "ask.overlap=2"], said, "waiting for people: 2 of 8 answers by 1 person", *door) as (
        run,
        text,
    ):
        ada, ben = colleague(link_for("Ada", text)), colleague(link_for("Ben", text))
        admin = colleague(re.search(r"as a new admin: (\S+)", text)[1], "Zoe")  # type: ignore[index]
        assert admin.browser.get("/api/me").json()["role"] == "admin"
        assert (ada.answer(), ben.answer()) == (2, 4)
        out, _ = run.communicate(timeout=120)
        assert run.returncode == 0 and "report.html" in out, said.read_text()
    assert "ask: enough: 8 of 8 answers by 2 people" in said.read_text()
    with pytest.raises(httpx2.ConnectError):
        ada.browser.get("/login")
    found = json.loads((tmp_path / "run/ask/stage.json").read_text())["result"]
    agreed = found["agreement"]  # both rank by length: of every order they say the same
    assert (found["enough"], found["people"], agreed["value"], agreed["clusters"]) == ("answers", 2, 1.0, 4)


@pytest.mark.slow
def test_an_app_that_runs_already_is_used(tmp_path: Path, command: list[str], colleague: Any) -> None:
    """A run beside `accord label` opens no second one: it names the address, and its invitations lead there."""
    assert CliRunner().invoke(app, command, prog_name="accord").exit_code == 5
    with labelling(tmp_path / "run") as (served, _):
        found = CliRunner().invoke(app, [*command, "--invite", "2", "--json"], prog_name="accord")
        shown = json.loads(found.stdout)
        assert (found.exit_code, shown["app"]) == (5, served["url"])
        for number, link in enumerate(shown["links"]):
            assert f"Hello, <bdi>Dan {number}</bdi>." in colleague(link["url"], f"Dan {number}").entered.text
        said = tmp_path / "said.txt"
        with told(command, said, "0 of 3 answers", "--serve", "--invite", "2", "ask.enough=3") as (run, text):
            assert f"people answer at {served['url']}, where the app runs" in text
            assert "for Dan 0" in text and "/join/" in text  # who is in already gets a link that logs in
            assert answer_all(tmp_path / "run/accord.db", "Dan 0", most=3) == 3
            out, _ = run.communicate(timeout=120)
            assert run.returncode == 0 and "report.html" in out, said.read_text()
        assert http_get(f"{served['url']}/login").status_code == 200
