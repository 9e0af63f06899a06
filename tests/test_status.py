"""`accord status`: projects, and runs that are half done, were refused a promotion, wait for people, or were killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import WriteRows
from test_project import TINY, Said, bot_log, tree

from accord.cli.asked import answers_waited_for
from accord.config import LabelConfig
from accord.people.desk import Desk, NewTask
from accord.people.desk.answers import read_answer
from accord.records import Completion, Prompt, Source
from accord.store import Store


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def summary(promoted: bool, low: float, policy: str, reasons: tuple[str, ...] = ()) -> dict[str, Any]:
    won = {"judge_win_rate": low + 0.1, "judge_win_rate_low": low, "judge_win_rate_high": low + 0.2}
    return {"candidate": "ppo", **won, "champion": {"policy": policy, "promoted": promoted, "reasons": list(reasons)}}


def a_run(folder: Path, rounds: int = 3, who: str = "scorer") -> Path:
    """A run of three rounds: the first promoted, the second refused, the third at work in rl."""
    counts = {"prompts_train": 61, "prompts_valid": 15, "prompts_test": 25, "prompts_judge": 19}
    write(folder / "resolved.json", {"name": folder.name, "rounds": rounds, "ask": {"who": who}})
    write(folder / "data/stage.json", {"seconds": 1, "result": {"counts": counts}})
    write(folder / "summary.json", summary(True, 0.55, "model"))
    write(folder / "report.html", "")
    write(folder / "round_2/resolved.json", {})
    write(folder / "round_2/sample/stage.json", {"seconds": 3})
    write(folder / "round_2/summary.json", summary(False, 0.4, "model", ("judge_win_rate_low is 0.4, not above 0.5",)))
    write(folder / "round_3/resolved.json", '{"half')
    write(folder / "round_3/rl/running.json", '{"seco')
    write(folder / "round_3/rl/metrics.jsonl", '{"step": 7, "score": 0.25}\n{"st')
    os.makedirs(folder / "round_3/rl/checkpoints/step_000005")
    return folder


def test_rounds_of_a_run_are_told_with_their_intervals_and_reasons(elsewhere: Path) -> None:
    a_run(elsewhere / "runs/support")
    told = Said("status", "--json").json["runs"]
    assert len(told) == 1  # later rounds are no runs of their own
    rounds = told[0]["rounds"]
    assert [(one["number"], one["promoted"], one["reasons"]) for one in rounds] == [
        (1, True, []), (2, False, ["judge_win_rate_low is 0.4, not above 0.5"]),
    ]  # fmt: skip
    out = Said("status").out
    assert "  round 1: ppo promoted, win rate 0.65 [0.55, 0.75]; champion model\n" in out
    assert "  round 2: ppo not promoted: judge_win_rate_low is 0.4, not above 0.5, win rate 0.50 [0.40, 0.60]" in out
    assert "  rounds: 2 of 3\n" in out
    assert "  round_3/rl  begun   step 7, score 0.25  step_000005\n" in out


@pytest.mark.parametrize("broken", ["summary.json", "data/stage.json", "resolved.json", "round_2/summary.json"])
@pytest.mark.parametrize("content", ["", '{"half": ', "[1, 2]", "{}"])
def test_a_file_that_is_not_whole_stops_nothing(elsewhere: Path, broken: str, content: str) -> None:
    write(a_run(elsewhere / "runs/support") / broken, content)
    assert Said("status").code == 0


def test_status_writes_nothing_and_shows_rows_models_and_the_next_step(elsewhere: Path, chat_model: Path) -> None:
    Said("init", "--model", chat_model)
    name = elsewhere.name.lower()
    Said("import", Path(__file__), "--dry-run")
    write(elsewhere / "models/mine/config.json", "{}")
    a_run(elsewhere / "runs" / name)
    (elsewhere / "log.jsonl").write_text('{"question": "Why?"}\n')
    assert Said("import", "log.jsonl", "--prompt-field", "question").code == 0
    before = tree(elsewhere)
    out = Said("status").out
    assert tree(elsewhere) == before
    assert "models: mine (0 MB)\n" in out and "prompts: 61 train, 15 valid, 25 test, 19 judge\n" in out
    assert out.endswith("next: accord run\n")
    for number in (2, 3):
        write(elsewhere / f"runs/{name}/round_{number}/summary.json", summary(True, 0.6, f"round_{number}/model"))
    assert Said("status").next == f"open runs/{name}/report.html"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("base: {model: x}\nrl: {kl_ceof: 1}\n", "mend accord.yaml: unknown key 'rl.kl_ceof'"),
        ("rounds: 2\n", "name a model in accord.yaml"),
        ("base: {model: x}\ntask: {use: store}\n", "accord import FILE"),
        ("base: {model: x}\n", "accord run --dry-run"),
        ("", "accord demo"),
    ],
)
def test_the_next_step_fits_what_is_there(elsewhere: Path, text: str, told: str) -> None:
    (elsewhere / "accord.yaml").write_text(text)
    assert Said("status").next.startswith(told)


def test_without_a_project_it_says_how_to_make_one() -> None:
    assert Said("status").next == "accord init NAME --model smollm2"


# ---- people ----------------------------------------------------------------------------------------------------------


def ask(desk: Desk, prompts: int, origin: str, overlap: int = 1) -> None:
    """Queue two completions of so many prompts."""
    for number in range(prompts):
        prompt, source = Prompt(text=f"{origin} {number}?"), Source(origin="policy", name=origin)
        two = tuple(Completion(prompt_id=prompt.id, text=text, source=source) for text in ("Gladly.", "No."))
        desk.queue.add_tasks([NewTask(kind="ranking", prompt=prompt, completions=two, origin=origin, overlap=overlap)])


def answer(desk: Desk, name: str, most: int, *, simulated: bool = False) -> None:
    known = {person.name: person for person in desk.directory.people()}
    person = known.get(name) or desk.directory.add_person(name, "annotator", simulated=simulated)
    for _ in range(most):
        got = desk.queue.claim(person.id)
        assert got is not None
        given = read_answer({"ranks": [1, 2]})
        desk.answers.submit(person.id, got.task.id, given, key=f"{name}-{got.task.id}"[:60].ljust(32, "."))


def test_who_works_is_told_and_simulated_ones_are_called_so(elsewhere: Path) -> None:
    Said("init")
    with Store.open("accord.db") as store:
        desk = Desk(store, LabelConfig())
        ask(desk, 7, "a")
        desk.directory.add_person("Eve", "annotator")
        answer(desk, "Bea", 1)
        answer(desk, "Ada", 3)
        answer(desk, "Sim", 2, simulated=True)
    told = Said("status", "--json").json["people"]
    assert [(one["name"], one["answers"], one["simulated"]) for one in told] == [
        ("Ada", 3, False), ("Bea", 1, False), ("Eve", 0, False), ("Sim", 2, True),
    ]  # fmt: skip
    assert "people: Ada 3, Bea 1, Eve 0, Sim (simulated) 2\n" in Said("status").out


def test_a_run_waits_for_the_tasks_of_its_newest_round_alone(elsewhere: Path) -> None:
    """Four tasks of round 1 are over; three of round 2 wait for two people each; what other runs ask is not counted."""
    run, resolved = elsewhere / "runs/mine", {"name": "mine", "rounds": 2, "ask": {"who": "people", "overlap": 2}}
    for place in ("sample/stage.json", "ask/stage.json", "round_2/sample/stage.json"):
        write(run / place, {})
    with Store.open("accord.db") as store:
        desk = Desk(store, LabelConfig())
        ask(desk, 4, "mine/sft")
        first = [task.id for task in desk.queue.tasks()]
        write(run / "ask/tasks.jsonl", "".join(json.dumps({"task": one, "overlap": 1}) + "\n" for one in first))
        answer(desk, "Ada", 4)
        ask(desk, 3, "mine/round_1", overlap=2)
        ask(desk, 5, "yours/round_1")
        ask(desk, 5, "mine/rl")  # samples of the last policy, which nobody waits for
        answer(desk, "Ada", 2)
    found = answers_waited_for(run, resolved, "accord.db")
    assert found is not None and (found.needed, found.answered, found.people) == (6, 2, 1)
    write(run / "round_2/ask/stage.json", {})
    assert answers_waited_for(run, resolved, "accord.db") is None
    (run / "round_2/ask/stage.json").unlink()
    assert answers_waited_for(run, {**resolved, "ask": {"who": "scorer"}}, "accord.db") is None
    assert answers_waited_for(run, resolved, "gone.db") is None and not Path("gone.db").exists()


def test_a_run_whose_pairs_are_judged_by_people_waits_too(elsewhere: Path) -> None:
    """Of five pairs two are judged; whoever ranked the samples, and though nobody waits for these any more."""
    run, judged = elsewhere / "runs/mine", {"people": {"prompts": 5, "enough": {"answers": 4}}}
    resolved = {"name": "mine", "ask": {"who": "panel"}, "eval": judged}
    write(run / "eval/stage.json", {})
    with Store.open("accord.db") as store:
        desk = Desk(store, LabelConfig())
        ask(desk, 5, "judging: mine/round_1")
        answer(desk, "Ada", 2)
        ask(desk, 9, "judging: mine/round_2")
        ask(desk, 9, "mine/sft")
    found = answers_waited_for(run, resolved, "accord.db")
    assert found is not None and (found.needed, found.answered) == (4, 2)
    assert answers_waited_for(run, {**resolved, "eval": {}}, "accord.db") is None
    write(run / "judged_people/stage.json", {})
    assert answers_waited_for(run, resolved, "accord.db") is None


@pytest.mark.slow
def test_how_far_people_are_with_a_run_of_the_projects_own(
    elsewhere: Path, chat_model: Path, write_rows: WriteRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = write_rows("bot_log.jsonl", bot_log())
    Said("init", "support", "--model", chat_model, "--data", log, "--prompt-field", "question")
    monkeypatch.chdir("support")
    asks = ["ask={prompts: 6, queue: 2}", *TINY[1:]]
    waited = Said("run", *asks)
    assert waited.code == 5 and "waiting for people: 0 of 12 answers" in waited.out
    told = Said("status")
    assert "  waiting for people: 0 of 12 answers\n" in told.out
    assert told.next.startswith("accord run --serve") and told.next.endswith("or accord label ., then accord run")
    with Store.open("accord.db") as store:
        desk = Desk(store, LabelConfig())
        answer(desk, "Ada", 5)
    status = Said("status", "--json").json
    assert status["runs"][0]["waiting"] == {
        "answered": 5, "needed": 12, "people": 1, "text": "5 of 12 answers by 1 person"
    }  # fmt: skip
    with Store.open("accord.db") as store:
        desk = Desk(store, LabelConfig())
        answer(desk, "Ada", 1)
        answer(desk, "Ben", 6)
    assert Said("status").next == "accord run"


@pytest.mark.slow
def test_a_run_that_was_killed_is_told_and_goes_on(
    elsewhere: Path, chat_model: Path, write_rows: WriteRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = write_rows("bot_log.jsonl", bot_log())
    Said("init", "support", "--model", chat_model, "--data", log, "--prompt-field", "question")
    monkeypatch.chdir("support")
    long = [*TINY, "rounds=1", "rl.iterations=400", "rl.eval_every=400"]
    with subprocess.Popen([sys.executable, "-m", "accord", "run", *long], stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not Path("runs/support/rl/checkpoints").exists():
            time.sleep(0.05)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    before = tree(Path.cwd())
    told, plan = Said("status"), Said("run", *long, "--dry-run", "--json").json
    assert tree(Path.cwd()) == before
    assert told.next == "accord run" and "  rl          begun " in told.out and "  reward      done " in told.out
    found = {stage["name"]: stage["state"] for stage in plan["stages"]}
    assert found["reward"] == "done" and found["rl"] == "begun" and found["eval"] == "to do"
    ran = Said("run", *TINY, "rounds=1")  # shorter: what is left of the long one is not gone on with
    assert ran.code == 0, ran.err
    assert Said("status").next == "open runs/support/report.html"
