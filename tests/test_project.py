"""A project with a recipe of its own, from `accord init` to `accord status`: a user with prompts and a model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import WriteRows
from typer.testing import CliRunner

from accord.cli.main import app
from accord.cli.project import Project, find_project
from accord.config import TaskConfig
from accord.formats import Columns, Item, named_table, read_items
from accord.loop.files_task import as_chat, split_of, units_of
from accord.store import Store

TOPICS = ("billing", "login", "orders")
#: What makes a run of the project's own recipe tiny, and answered by a function in place of people.
TINY = [
    "ask={who: scorer, scorer: {regex: e}, prompts: 6, queue: 2}",
    "sample={samples_per_prompt: 2, max_new_tokens: 5}",
    *("reward={epochs: 1, max_tokens: 512, precision: fp32}", "eval.judges={vowels: {regex: '[aeiou]'}}"),
    *("rl.iterations=2", "rl.prompts_per_iteration=4", "rl.max_new_tokens=5", "rl.ppo_epochs=1", "rl.eval_every=1"),
    *("eval.samples_per_prompt=1", "eval.best_of=2", "eval.bootstrap=100", "eval.curve_samples=1", "rl.precision=fp32"),
]


class Said:
    """What a command said, and its exit code."""

    def __init__(self, *argv: object) -> None:
        done = CliRunner().invoke(app, [*map(str, argv)], prog_name="accord")
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        self.code, self.out, self.err = done.exit_code, done.stdout, done.stderr
        self.next = next((line.removeprefix("next: ") for line in done.stdout.splitlines() if line[:6] == "next: "), "")

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def bot_log(count: int = 60) -> list[dict[str, Any]]:
    """Questions to a bot, each once, of three categories, with the answers that it gave."""
    return [
        {"question": f"How do I change seat {i}?", "answer": "No idea.", "category": TOPICS[i % 3], "at": i}
        for i in range(count)
    ]


def own(folder: Path) -> Project:
    found = find_project(folder)
    assert found is not None
    return found


# ---- init ------------------------------------------------------------------------------------------------------------


def test_init_writes_a_recipe_of_its_own_each_line_explained(elsewhere: Path, chat_model: Path) -> None:
    done = Said("init", "support", "--model", chat_model)
    assert done.code == 0, done.err
    text = (elsewhere / "support/accord.yaml").read_text()
    recipe = own(elsewhere / "support").recipe_with()
    assert (recipe.name, recipe.base.model) == ("support", str(chat_model))
    assert (recipe.task.use, recipe.task.chat, recipe.rounds) == ("store", True, 2)
    asked = recipe.ask
    assert (asked.who, asked.kind, asked.prompts, asked.overlap) == ("people", "ranking", 120, 2)
    assert (recipe.sample.samples_per_prompt, recipe.optimise, recipe.rl.algorithm) == (4, "rl", "ppo")
    settings = [line for line in text.splitlines() if line.strip() and not line.startswith("#") and line[-1] != ":"]
    assert len(settings) > 10 and all(" # " in line for line in settings)
    assert max(len(line) for line in text.splitlines() if not line.startswith("base:")) <= 120
    assert f"model: {chat_model} (used where it stands, not copied; a chat model)" in done.out
    assert not list((elsewhere / "support/models").iterdir())
    assert done.next.startswith("cd support && accord import FILE")


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")
def test_another_users_project_in_a_folder_above_is_not_obeyed(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    below = elsewhere / "mine" / "deep"
    below.mkdir(parents=True)
    file = elsewhere / "accord.yaml"
    file.write_text("task: {use: 'evil:TASK'}\n")
    assert find_project(None) is not None  # one's own
    os.chown(file, 12345, 12345)
    monkeypatch.chdir(below)
    assert find_project(None) is None
    said = capsys.readouterr().err
    assert f"{file} belongs to another user, and is not obeyed; --project {elsewhere} takes it" in said
    assert find_project(elsewhere) is not None  # whoever names it means it
    (elsewhere / "mine" / "accord.yaml").write_text("")
    assert find_project(None) == find_project(elsewhere / "mine")
    (elsewhere / "mine" / "accord.yaml").unlink()
    monkeypatch.chdir(elsewhere)
    assert find_project(None) is not None  # whoever goes into a shared project's folder
    elsewhere.chmod(0o1777)
    assert find_project(None) is None  # as /tmp: anybody could have left it there
    os.chown(file, 0, 0)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert find_project(None) is not None  # the machine's own


def test_a_model_inside_the_project_is_named_from_its_folder(elsewhere: Path, policy_folder: Path) -> None:
    """And one without a chat template reads prompts as they stand."""
    model = elsewhere / "support/models/mine"
    model.mkdir(parents=True)
    for file in policy_folder.iterdir():
        os.link(file, model / file.name)
    done = Said("init", "support", "--model", model)
    assert done.code == 0 and "no chat template" in done.out
    recipe = own(elsewhere / "support").recipe_with()
    assert recipe.base.model == "models/mine" and not recipe.task.chat


def test_init_touches_nothing_that_is_there(elsewhere: Path, chat_model: Path) -> None:
    (elsewhere / "accord.yaml").write_text("# mine\n")
    done = Said("init", "--model", chat_model)
    assert (elsewhere / "accord.yaml").read_text() == "# mine\n"
    assert done.next == f"write this line into accord.yaml:  base: {{model: {chat_model}}}"
    (elsewhere / "accord.yaml").write_text(f"base: {{model: {chat_model}}}\n")
    assert Said("init", "--model", chat_model).next.startswith("accord import FILE")


def test_init_without_a_model_says_where_to_name_one(elsewhere: Path) -> None:
    assert "accord init support --model smollm2" in Said("init", "support").next
    assert yaml.safe_load((elsewhere / "support/accord.yaml").read_text()).keys() >= {"task", "ask", "store", "label"}
    assert Said("status", "--project", "support").next == "name a model in support/accord.yaml: base: {model: FOLDER}"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--model", "gone"], "no model is named 'gone'"),
        (["--model", "gone.gguf"], "gone.gguf: no such file"),
        (["--model", "empty"], "empty: no config.json in the folder"),
        (["--data", "gone.jsonl"], "gone.jsonl: there is no such file"),
        (["--topic-field", "category"], "--topic-field has no effect without --prompt-field"),
    ],
)
def test_what_is_not_there_leaves_no_project_behind(elsewhere: Path, given: list[str], told: str) -> None:
    (elsewhere / "empty").mkdir()
    done = Said("init", "support", *given)
    assert done.code in (2, 3) and told in done.err and not (elsewhere / "support").exists()


def test_init_imports_files_too(elsewhere: Path, chat_model: Path, write_rows: WriteRows) -> None:
    log = write_rows("bot_log.jsonl", bot_log())
    done = Said("init", "support", "--model", chat_model, "--data", log, "--prompt-field", "question")
    assert done.code == 0 and done.next == "cd support && accord run --dry-run"
    assert f"imported {log}: 60 prompts, 0 judgements" in done.out


# ---- keys of accord.yaml ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told", "hint"),
    [
        ("stroe: x", "accord.yaml:1: unknown key 'stroe'", "did you mean 'store'?"),
        ("store: a.db\noptimize: rl", "accord.yaml:2: unknown key 'optimize'", "did you mean 'optimise'?"),
        ("rl:\n  kl_ceof: 1", "accord.yaml:2: unknown key 'rl.kl_ceof'", "did you mean 'rl.kl_coef'?"),
        ("kl_coef: 1", "accord.yaml:1: unknown key 'kl_coef'", "'rl.kl_coef'"),
        ("task: {prompts: store}", "accord.yaml:1: task.use", ""),
        ("rounds: two", "accord.yaml:1: rounds", ""),
    ],
)
def test_keys_that_make_no_sense_are_refused_with_their_line(elsewhere: Path, text: str, told: str, hint: str) -> None:
    (elsewhere / "accord.yaml").write_text(text + "\n")
    done = Said("run", "--show-recipe")
    if "prompts: store" in text:  # a file of that name, which a run looks for
        assert done.code == 0 and "there is no such file" in Said("run", "--dry-run").err
        return
    assert done.code == 2 and told in done.err and hint in done.err


def test_its_own_recipe_wins_over_the_defaults_and_extends_others(elsewhere: Path) -> None:
    own_keys = "extends: smollm2\nrl: {iterations: 3}\n"
    (elsewhere / "accord.yaml").write_text(own_keys + "defaults: {rl: {iterations: 9, kl_coef: 0.3}, seed: 4}\n")
    recipe = own(elsewhere).recipe_with(["rl.temperature=0.5"])
    assert (recipe.rl.iterations, recipe.rl.temperature, recipe.seed) == (3, 0.5, 4)
    assert recipe.base.model == "smollm2"  # of recipes/smollm2.yaml
    assert recipe.rl.kl_coef == 0.1  # which says it, and stands above the project's defaults
    other = yaml.safe_load(Said("run", "demo", "--show-recipe").out)
    assert other["seed"] == 4 and other["name"] == "demo" and other["rl"]["iterations"] != 3


def test_a_project_is_called_after_its_folder(elsewhere: Path) -> None:
    for folder, name in (("My project (2)", "my-project-2-"), ("plain", "plain")):
        (elsewhere / folder).mkdir()
        (elsewhere / folder / "accord.yaml").write_text("rounds: 1\n")
        assert own(elsewhere / folder).recipe_with().name == name


@pytest.mark.parametrize(
    ("where", "told"),
    [("", "no recipe is named, and there is no project here"), ("store: accord.db", "has no recipe of its own")],
)
def test_run_without_a_recipe_says_what_is_missing(elsewhere: Path, where: str, told: str) -> None:
    if where:
        (elsewhere / "accord.yaml").write_text(where)
    for more in ([], ["--dry-run"], ["rl.kl_coef=0.1"]):
        done = Said("run", *more)
        assert done.code == 2 and told in done.err and "accord run demo" in done.err


def test_paths_of_accord_yaml_are_seen_from_its_folder(
    elsewhere: Path, policy_folder: Path, write_rows: WriteRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = write_rows("prompts.jsonl", [{"prompt": f"What is in house {i}?"} for i in range(40)])
    (elsewhere / "accord.yaml").write_text(
        f"task: {{prompts: {prompts.name}}}\nbase: {{model: here}}\nask: {{who: simulated}}\n"
    )
    os.symlink(policy_folder, elsewhere / "here")
    (elsewhere / "below").mkdir()
    monkeypatch.chdir("below")
    plan = Said("run", "--dry-run", "--json").json
    assert plan["model"] == str(elsewhere / "here") and sum(plan["counts"]["prompts"].values()) == 40
    assert plan["folder"] == str(elsewhere / "runs" / elsewhere.name.lower().strip("_"))
    assert Path.cwd() == elsewhere / "below"


# ---- import ----------------------------------------------------------------------------------------------------------


def test_a_file_of_prompts_alone_is_imported_by_its_columns(elsewhere: Path, write_rows: WriteRows) -> None:
    faults: list[dict[str, Any]] = [{"question": "  ", "category": "login"}, {"answer": "x"}]
    rows = [*bot_log(9), *faults, {"question": "Is it?", "category": 7}]
    log = write_rows("bot_log.jsonl", rows)
    (elsewhere / "accord.yaml").write_text("base: {model: models/x}\n")
    named = ("import", log, "--prompt-field", "question", "--topic-field", "category")
    told = Said(*named, "--json").json
    assert (told["rows"], told["prompts"], told["new"], told["rejected"]) == (12, 10, 10, 2)
    assert "judgements" not in told or told["judgements"] == 0
    with Store.open("accord.db") as store:
        found = {prompt.text: prompt for prompt in store.prompts()}
        assert store.counts()["demonstrations"] == 0  # what the bot said is not what it should have said
    assert found["How do I change seat 4?"].topic == "login" and found["Is it?"].topic == "7"
    assert dict(found["How do I change seat 4?"].meta)["answer"] == "No idea."
    rejects = [json.loads(line) for line in Path(told["rejects"]).read_text().splitlines()]
    assert [row["where"].rpartition(":")[2] for row in rejects] == ["10", "11"]
    again = Said(*named)
    assert "new: 0" in again.out and again.next == "accord run --dry-run"


def test_rows_of_prompts_are_written_too(elsewhere: Path, write_rows: WriteRows) -> None:
    done = Said("import", write_rows("log.jsonl", bot_log(3)), "--prompt-field", "question", "-o", "prompts.jsonl")
    assert done.code == 0 and done.next == "accord sample --model DIR --data prompts.jsonl -o samples.jsonl"
    assert [item.prompt for item in read_items("prompts.jsonl")] == [row["question"] for row in bot_log(3)]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--prompt-field", "qestion"], "no column is called 'qestion'"),
        (["--prompt-field", "qestion"], "did you mean 'question'?"),
        (["--prompt-field", "question", "--topic-field", "topic"], "no column is called 'topic'"),
        (["--topic-field", "category"], "--topic-field has no effect without --prompt-field"),
        (["--prompt-field", "question", "--format", "hh"], "--prompt-field reads a table of prompts"),
    ],
)
def test_columns_that_are_not_there_are_refused(
    elsewhere: Path, write_rows: WriteRows, given: list[str], told: str
) -> None:
    (elsewhere / "accord.yaml").write_text("")
    done = Said("import", write_rows("log.jsonl", bot_log(3)), *given)
    assert done.code in (2, 3) and told in done.err


def test_the_next_step_of_an_import_is_that_of_the_project(elsewhere: Path, write_rows: WriteRows) -> None:
    (elsewhere / "accord.yaml").write_text("")  # no recipe of its own
    done = Said("import", write_rows("log.jsonl", bot_log(3)), "--prompt-field", "question")
    assert done.next == "accord run files --dry-run task.use=store base.model=DIR"


# ---- what the task makes of prompts ----------------------------------------------------------------------------------


def test_chat_makes_a_prompt_of_text_the_users_turn() -> None:
    chat, plain = TaskConfig(use="store", chat=True), TaskConfig(use="store")
    user, assistant = ({"role": "user", "content": "Hi?"},), ({"role": "assistant", "content": "Hello."},)
    ranked = Item(prompt="Hi?", completions=("A", "B"), ranks=(1, 2))
    assert as_chat(ranked, chat).prompt == user
    assert [turns[0]["content"] for turns in as_chat(ranked, chat).completions] == ["A", "B"]  # type: ignore[index]
    assert as_chat(ranked, plain) == ranked and as_chat(Item(prompt=user), chat).prompt == user
    shown = as_chat(Item(prompt="Hi?", completions=("Hello.",), demonstration=True), chat)
    assert (shown.prompt, shown.completions) == (user, (assistant,)) and shown.kind == "demonstration"


def test_split_by_prompt_spreads_a_topic_over_the_splits() -> None:
    """Of three topics whole topics fill at most three splits; each prompt by itself fills all of them."""
    items = [Item(prompt=f"Ask {i}?", topic=TOPICS[i % 3]) for i in range(120)]
    by_topic, by_prompt = (TaskConfig(split_by=way) for way in ("topic", "prompt"))
    assert set(units_of(items, by_topic)) == set(TOPICS)
    units = units_of(items, by_prompt)
    assert len(set(units)) == 120
    assert {split_of(unit, by_prompt) for unit in units} == {"train", "valid", "test", "judge"}
    twice = [Item(prompt="Same?", topic="billing"), Item(prompt="same? ", topic="login")]
    assert len(set(units_of(twice, by_prompt))) == 1  # one prompt is one unit, whatever its topics


def test_columns_of_a_table_are_read_as_they_are_named(write_rows: WriteRows) -> None:
    turns = [{"role": "user", "content": "Hi?"}]
    log = write_rows("log.jsonl", [{"q": turns, "t": None}, {"q": "Yes?", "t": "a", "prompt": "no"}])
    found = list(read_items(log, named_table(Columns(prompt="q", topic="t"))))
    assert [(item.prompt, item.topic, dict(item.extra)) for item in found] == [
        (tuple(turns), "", {}), ("Yes?", "a", {"prompt": "no"}),
    ]  # fmt: skip


# ---- the story -------------------------------------------------------------------------------------------------------


def tree(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_from_a_bots_log_to_a_report_each_command_says_the_next(
    elsewhere: Path, chat_model: Path, write_rows: WriteRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows("bot_log.jsonl", bot_log())
    assert Said("init", "support", "--model", chat_model).next.startswith("cd support && accord import FILE")
    monkeypatch.chdir("support")
    assert Said("status").next == "accord import FILE"
    imported = Said("import", "../bot_log.jsonl", "--prompt-field", "question", "--topic-field", "category")
    assert imported.next == "accord run --dry-run" == Said("status").next

    before = tree(Path.cwd())
    plan = Said("run", "--dry-run", *TINY, "--json").json
    assert tree(Path.cwd()) == before
    assert [stage["state"] for stage in plan["stages"] if stage["name"] == "sft"] == ["left out"]
    assert Said("run", "--dry-run", *TINY[:1]).next.startswith("accord run 'ask={who: scorer")

    ran = Said("run", *TINY)
    assert ran.code == 0, ran.err
    out = Path("runs/support")
    assert (out / "report.html").is_file() and (out / "round_2/summary.json").is_file()
    assert ran.next == "open runs/support/report.html" and "accord status" in ran.out
    for split in ("train", "valid", "test"):
        rows = (out / f"data/prompts_{split}.jsonl").read_text().splitlines()
        assert plan["counts"]["prompts"][split] == len(rows)
    # Sixty prompts of text, each the user's turn of a chat.
    first = json.loads((out / "data/prompts_train.jsonl").read_text().splitlines()[0])
    assert first["prompt"][0]["role"] == "user" and first["topic"] in TOPICS

    done = Said("run", "--dry-run", *TINY, "--json").json
    assert [stage for stage in done["stages"] if stage["state"] not in ("done", "left out")] == []
    assert done["is_done"]
    monkeypatch.chdir("models")  # from a folder below it is the same run
    status = Said("status", "--json").json
    (run,) = status["runs"]
    assert [one["number"] for one in run["rounds"]] == [1, 2] and run["rounds_wanted"] == 2
    summary = json.loads((elsewhere / "support/runs/support/summary.json").read_text())
    assert run["rounds"][0]["win_rate"] == summary["judge_win_rate"]
    assert status["next"] == f"open {elsewhere / 'support/runs/support/report.html'}"
    stamps = {path: path.stat().st_mtime_ns for path in (elsewhere / "support/runs").rglob("stage.json")}
    assert Said("run", *TINY).code == 0
    assert {path: path.stat().st_mtime_ns for path in (elsewhere / "support/runs").rglob("stage.json")} == stamps
