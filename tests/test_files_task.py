"""A user's own data through the whole loop: files of judgements in, a report out, with a tiny random chat model."""

from __future__ import annotations

import gzip
import itertools
import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import WriteRows
from hypothesis import given as hypothesis_given
from hypothesis import strategies as st
from typer.testing import CliRunner

from accord.cli.main import app
from accord.config import LabelConfig, TaskConfig, load_recipe
from accord.errors import DataError, UsageError
from accord.formats import Item
from accord.loop.cache import Stage
from accord.loop.files_task import FilesTask, StoreTask, asked, shortened, split_of, topics_of
from accord.loop.run import run
from accord.loop.task import TaskPlace
from accord.people.desk import Desk, group_tasks
from accord.people.desk.answers import Answer
from accord.records import Completion, Prompt, Source
from accord.scoring.reward_model import RewardModel
from accord.store import Store

NO_SFT = "sft: left out, as the task has no demonstrations"
SPLITS = ("train", "judge", "valid", "test")
DATA = next((up / "shared/data" for up in Path(__file__).parents if (up / "shared/data").is_dir()), Path("shared/data"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the files of shared/data are not here")
HH, OASST = DATA / "hh-harmless-base-test.jsonl.gz", DATA / "oasst-en_100_tree.jsonl"

TOY = [
    *("reward.epochs=1", "reward.max_tokens=512", "reward.precision=fp32"),
    *("rl.iterations=1", "rl.prompts_per_iteration=4", "rl.max_new_tokens=5", "rl.ppo_epochs=1", "rl.eval_every=1"),
    *("dpo.max_tokens=512", "dpo.groups_per_step=16", "dpo.eval_every=2"),
    *("eval.samples_per_prompt=1", "eval.best_of=2", "eval.bootstrap=100", "eval.curve_samples=1"),
    *("sample.max_new_tokens=5", "sample.samples_per_prompt=2", "ask.queue=2", "task.measured_prompts=6"),
]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def first_said(prompt: Any) -> str:
    """Of a row's prompt what the user says first."""
    text = prompt if isinstance(prompt, str) else next(turn["content"] for turn in prompt if turn["role"] == "user")
    return " ".join(text.casefold().split())


def check_splits(data: Path) -> Counter[str]:
    """No topic and no first prompt stands in two splits. Returns how many rows each split has."""
    found: Counter[str] = Counter()
    seen: dict[tuple[str, str], str] = {}
    for path in sorted(data.glob("*_*.jsonl")):
        kind, split = path.stem.rsplit("_", 1)
        for row in rows_of(path) if kind != "rejects" else []:
            found[split] += 1
            for name in (("topic", row["topic"].casefold()), ("said", first_said(row["prompt"]))):
                assert seen.setdefault(name, split) == split, name
    return found


def own_rows(count: int = 90) -> list[dict[str, Any]]:
    """Pairs about a few dozen things; some ask the same, some are no good."""
    draw, things = random.Random(0), ("bread", "fox", "kite", "soup", "rain", "clock")
    rows: list[dict[str, Any]] = []
    for i in range(count):
        asked = f"Say something of the {draw.choice(things)} of house {i // 2}."
        rows.append({"prompt": [{"role": "user", "content": asked}], "chosen": f"It is warm {i}.", "rejected": "No."})
    rows[7]["chosen"] = "  "
    rows[11]["rejected"] = 4
    return rows


def run_files(folder: Path, model: Path, judgements: str | Path, *more: str) -> tuple[dict[str, Any], list[str]]:
    """The summary of a run on judgements, and what it said."""
    said: list[str] = []
    recipe = load_recipe(None, [f"base.model={model}", f"task.judgements={judgements}", *TOY, *more])
    return run(recipe, output_dir=folder, log=lambda _, text: said.append(text)), said


def test_a_prompt_is_one_however_the_keys_of_its_messages_stand() -> None:
    items = [Item(prompt=[turn]) for turn in ({"role": "user", "content": "Hi"}, {"content": "Hi", "role": "user"})]
    assert [one.prompt for one in asked(items)] == [({"role": "user", "content": "Hi"},)]


def test_pairs_of_ones_own_run_from_file_to_report(chat_model: Path, tmp_path: Path, write_rows: WriteRows) -> None:
    pairs, out = write_rows("pairs.jsonl", own_rows()), tmp_path / "run"
    summary, said = run_files(out, chat_model, pairs)
    assert (out / "report.html").is_file() and (out / "model/config.json").is_file()
    assert not (out / "sft").exists() and summary["left_out"] == {"sft": "as the task has no demonstrations"}
    assert NO_SFT in said
    assert summary["candidate"] == "ppo" and 0 <= summary["judge_win_rate"] <= 1

    told = json.loads((out / "data/stage.json").read_text())["result"]
    assert told["left_out"]["judgements"]["why"] == {"a text is empty": 1, '"rejected" is a number, not a string': 1}
    assert summary["counts"]["judgements_left_out"] == 2
    (line,) = (text for text in said if "left out" in text and text.startswith("data"))
    assert "2 rows of the judgements are left out" in line and f"{pairs}:8" in line
    assert [row["where"] for row in rows_of(out / "data/rejects_judgements.jsonl")] == [f"{pairs}:8", f"{pairs}:12"]
    assert sum(told["counts"][f"judgements_{split}"] for split in ("train", "judge", "valid", "test")) == 88

    assert set(check_splits(out / "data")) == {"train", "judge", "valid", "test"}
    again, said = run_files(out, chat_model, pairs)
    assert {**again, "seconds": 0} == {**summary, "seconds": 0}
    assert [text for text in said if not text.endswith("already done")] == [NO_SFT]

    card = json.loads((out / "reward/card.json").read_text())
    assert {"longer_wins", "tfidf_bradley_terry"} == card["baselines"].keys()
    found = card["model"]["all_pairs"]
    assert found["value"] == pytest.approx(accuracy_of(out / "reward/model", out / "data/judgements_test.jsonl"))
    assert found["n"] == told["counts"]["judgements_test"] and 0 <= found["low"] <= found["high"] <= 1
    assert summary["reward_accuracy"] == found["value"]
    assert summary["baseline_accuracy"] == card["baselines"]["longer_wins"]["all_pairs"]["value"] == 1.0
    assert f"{found['value']:.3f}"[1:] in (out / "report.html").read_text()


def accuracy_of(model: Path, judgements: Path) -> float:
    """How often a reward model scores the chosen text higher, without the card: the template is laid out by hand."""
    scorer, right = RewardModel.load(model), []
    for row in rows_of(judgements):
        prompt = "".join(f"[{turn['role']}] {turn['content']}\n\n" for turn in row["prompt"]) + "[assistant] "
        better, worse = scorer.score([(prompt, text) for text in row["completions"]]).tolist()
        assert row["ranks"] == [1, 2]
        right.append(float(better > worse))
    return sum(right) / len(right)


@pytest.mark.slow
@needs_data
def test_harmless_pairs_run_and_what_is_no_good_is_told(chat_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    summary, said = run_files(out, chat_model, f"hh:{HH}", "task.max_characters=160", "reward.groups_per_step=32")
    told = json.loads((out / "data/stage.json").read_text())["result"]
    with gzip.open(HH, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    empty = sum(not row[side].rsplit("Assistant:", 1)[1].strip() for row in rows for side in ("chosen", "rejected"))
    kept = sum(told["counts"][f"judgements_{split}"] for split in SPLITS)
    assert empty == 4 and len(rows) == 2312
    assert told["left_out"]["judgements"]["why"]["a text is empty"] == 4
    assert kept + summary["counts"]["judgements_left_out"] == 2312 and 100 < kept < 300
    assert len(rows_of(out / "data/rejects_judgements.jsonl")) == 4
    assert any("a text is empty (4)" in text for text in said)
    assert set(check_splits(out / "data")) == {"train", "judge", "valid", "test"}
    assert (out / "report.html").is_file() and summary["reward_accuracy"] is not None


@pytest.mark.slow
@needs_data
def test_trees_run_whole_and_say_what_they_hold_besides(chat_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    summary, said = run_files(out, chat_model, OASST, "task.max_characters=600", "task.test_share=0.2")
    assert "data: the judgements hold besides: 226 of kind prompt, 42 of kind sample" in said
    assert set(check_splits(out / "data")) == {"train", "judge", "valid", "test"}
    assert (out / "report.html").is_file() and summary["candidate"] == "ppo"


@pytest.mark.slow
def test_direct_preference_and_its_controls_go_by_their_names(
    chat_model: Path, tmp_path: Path, write_rows: WriteRows
) -> None:
    pairs, out = write_rows("pairs.jsonl", own_rows()), tmp_path / "run"
    dpo = ["optimise=dpo", "dpo.loss=ipo", "controls={soft: {dpo: {dpo_beta: 0.5}}}", "ask.queue=2", "name=mine"]
    summary, said = run_files(out, chat_model, pairs, *dpo)
    assert summary["candidate"] == "ipo" and not list(out.glob("rl*"))
    rows = json.loads((out / "eval/results.json").read_text())["policies"]
    assert [(row["name"], row["role"]) for row in rows] == [
        ("base", "reference"), ("best_of_n", "baseline"), ("ipo", "candidate"), ("ipo_soft", "control"),
    ]  # fmt: skip
    assert rows[-1]["note"].startswith("dpo_beta 0.5 instead of 0.1")
    page, card = (out / "report.html").read_text(), (out / "README.md").read_text()
    assert "IPO" in page and "PPO" not in page + card and "IPO" in card
    with Store.open(out / "accord.db") as store:
        assert {task.origin for task in Desk(store, LabelConfig()).queue.tasks()} == {"mine/dpo"}
    measured = json.loads((out / "dpo/stage.json").read_text())["result"]
    assert measured["num_groups"] == summary["counts"]["judgements_train"]  # none of them is held out: valid is
    _, said = run_files(out, chat_model, pairs, *dpo)
    assert [text for text in said if not text.endswith("already done")] == [NO_SFT]


@pytest.mark.slow
def test_direct_preference_online_draws_on_the_prompts(chat_model: Path, tmp_path: Path, write_rows: WriteRows) -> None:
    online = ["optimise=dpo", "dpo={online: true, max_new_tokens: 5, groups_per_step: 16}"]
    summary, _ = run_files(tmp_path / "run", chat_model, write_rows("pairs.jsonl", own_rows()), *online)
    done = json.loads((tmp_path / "run/dpo/stage.json").read_text())["result"]
    prompts = summary["counts"]["prompts_train"]
    assert summary["candidate"] == "dpo" and done["num_completions"] == 2 * -(-prompts // 16) * 16


@pytest.mark.parametrize(
    ("columns", "given", "told"),
    [
        (("prompt", "choosen", "rejected"), "{}", '"choosen"'),
        (("prompt", "choosen", "rejected"), "accord:{}", '"chosen" is missing (30)'),
        (("prompt", "chosen", "reject"), "{}", '"reject"'),
        (("prompt", "completion", "score"), "{}", "holds no ranking"),
        (("prompt", "chosen", "rejected"), "hh:{}", "hh"),
    ],
)
def test_a_wrong_column_is_refused_by_its_name_before_any_model(
    tmp_path: Path, write_rows: WriteRows, columns: tuple[str, ...], given: str, told: str
) -> None:
    path = write_rows("rows.jsonl", [dict(zip(columns, (f"p{i}", "A.", "B."), strict=True)) for i in range(30)])
    with pytest.raises(DataError) as refused:
        prepared(tmp_path, judgements=given.format(path))
    assert told in str(refused.value) and str(path) in str(refused.value)


def prepared(folder: Path, **config: Any) -> dict[str, Any]:
    """What the data stage of task files derives of these files."""
    place = TaskPlace(TaskConfig(**config), folder / "data", str(folder / "accord.db"), folder)
    task = FilesTask(place)
    found: dict[str, Any] = task.prepare(task.inputs, place.folder, lambda fraction, text: None)
    return found


def test_the_format_that_is_named_is_the_one_that_is_read(tmp_path: Path, write_rows: WriteRows) -> None:
    """One and the same row is a prompt of its own in one format and none in another."""
    rows = [
        {
            "prompt": f"Say {i}.",
            "chosen": "\n\nHuman: Hi\n\nAssistant: A.",
            "rejected": f"\n\nHuman: Hi\n\nAssistant: {i}.",
        }
        for i in range(60)
    ]
    path = write_rows("rows.jsonl", rows)
    assert prepared(tmp_path, judgements=f"trl:{path}")["counts"]["prompts_train"] > 20
    with pytest.raises(DataError, match="none falls into"):  # all begin with Hi
        prepared(tmp_path, judgements=f"hh:{path}")
    recipes = [load_recipe(None, [f"task.judgements={name}:{path}"]).task for name in ("hh", "trl")]
    stages = [Stage("data", {}, FilesTask(TaskPlace(one, tmp_path, "", tmp_path)).inputs, print) for one in recipes]
    assert stages[0].identity() != stages[1].identity()


def test_what_shares_a_topic_or_a_first_prompt_is_one_unit() -> None:
    def item(prompt: str, topic: str = "") -> Item:
        return Item(prompt=[{"role": "system", "content": "x"}, {"role": "user", "content": prompt}], topic=topic)

    items = [
        *(item("Of bread?", "food"), item("of  BREAD?"), item("Of soup?", "Food"), item("Of kites?", "toys")),
        *(item("Of kites?", "air"), item("Alone"), item("x" * 80), item("X" * 80 + " ")),
    ]
    # By hand: food by topic and by Of bread?; toys and air meet in Of kites?; the last two are one text.
    named = topics_of(items)
    assert named[:6] == ["Food"] * 3 + ["air"] * 2 + ["Alone"] and named[6] == named[7]
    assert topics_of(items[::-1]) == named[::-1]  # whatever stands first
    again = topics_of([replace(one, topic=name) for one, name in zip(items, named, strict=True)])
    assert again == named  # a derived topic that comes back as a given one changes nothing


@hypothesis_given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=30))
def test_units_are_the_connected_parts(pairs: list[tuple[int, int]]) -> None:
    items = [Item(prompt=f"p{prompt}", topic=f"t{topic}" if topic else "") for topic, prompt in pairs]
    parts: list[set[str]] = []
    for item in items:
        names = {str(item.prompt), *([item.topic] if item.topic else [])}
        touched = [part for part in parts if part & names]
        parts = [part for part in parts if not part & names] + [names.union(*touched)]
    found = topics_of(items)
    for (one, name), (two, other) in itertools.combinations(zip(items, found, strict=True), 2):
        together = any({str(one.prompt), str(two.prompt)} <= part for part in parts)
        assert (name == other) == together


def test_a_name_is_the_name_of_itself() -> None:
    for text in ("Short", "a  b " * 3, "word " * 40, "ß" * 70, "x" * 61):
        assert shortened(shortened(text)) == shortened(text) and len(shortened(text)) <= 60
    assert shortened("y" * 70) != shortened("y" * 71)


def test_a_share_of_zero_keeps_nothing_for_a_judge(tmp_path: Path, write_rows: WriteRows) -> None:
    path = write_rows("pairs.jsonl", own_rows())
    task = FilesTask(TaskPlace(TaskConfig(judgements=str(path), judge_share=0), tmp_path / "data", "", tmp_path))
    assert task.judgements("judge") is None and task.judgements("train") is not None
    found = prepared(tmp_path, judgements=str(path), judge_share=0)
    assert found["counts"]["judgements_judge"] == 0
    assert split_of("a", TaskConfig(valid_share=0.98, test_share=0.01, judge_share=0)) == "valid"


def test_prompts_without_judgements_leave_nothing_to_a_judge_and_the_measured_ones_where_they_are(
    tmp_path: Path, write_rows: WriteRows
) -> None:
    """The same prompts twice, alone and with a judgement of some: those of valid and test are the same ones."""
    asked = [{"prompt": f"Question {i}?"} for i in range(80)]
    judged = [{"prompt": f"Judged {i}?", "chosen": "a b", "rejected": "c"} for i in range(40)]
    paths = {"prompts": str(write_rows("asked.jsonl", asked))}
    folder, share = tmp_path / "data", {"judge_share": 0.4, "valid_share": 0.2, "test_share": 0.2}

    def split(name: str) -> set[str]:
        lines = (folder / f"prompts_{name}.jsonl").read_text().splitlines()
        return {json.loads(line)["prompt"] for line in lines}

    counts = prepared(tmp_path, **paths, **share)["counts"]
    alone = {name: split(name) for name in SPLITS}
    assert not alone["judge"] and counts["prompts_judge"] == 0 and sum(map(len, alone.values())) == 80
    prepared(tmp_path, **paths, **share, judgements=str(write_rows("judged.jsonl", judged)))
    both = {name: split(name) for name in SPLITS}
    assert both["valid"] == alone["valid"] and both["test"] == alone["test"]
    assert len(both["judge"]) > 20 and both["judge"] | both["train"] == alone["train"]


def test_annotators_of_the_judge_teach_nothing_else_and_nobody_else_teaches_it(
    tmp_path: Path, write_rows: WriteRows
) -> None:
    """Twelve people on 300 topics: who is which is told by where their judgements stand; none stands on both sides."""
    rows = [
        {"prompt": f"p{i}", "chosen": "a b", "rejected": "c", "topic": f"topic {i}", "annotator": f"person {i % 12}"}
        for i in range(300)
    ]
    told = prepared(tmp_path, judgements=str(write_rows("pairs.jsonl", rows)), judge_annotators=0.4, judge_share=0.3)

    def people(split: str) -> set[str]:
        lines = (tmp_path / "data" / f"judgements_{split}.jsonl").read_text().splitlines()
        return {json.loads(line)["annotator"] for line in lines}

    assert people("judge") and people("train") and not people("judge") & (people("train") | people("valid"))
    assert people("judge") | people("train") == {f"person {i}" for i in range(12)} == people("test")
    counts = told["counts"]
    kept = sum(counts[f"judgements_{split}"] for split in ("train", "judge", "valid", "test"))
    assert counts["judgements_left_out"] == 300 - kept > 0
    assert "by an annotator kept apart from this split" in told["left_out"]["judgements"]["why"]
    with pytest.raises(UsageError, match="which is 0"):
        load_recipe(None, ["task.judge_annotators=0.3", "task.judge_share=0"])


def test_a_file_of_nothing_but_faults_gives_up(tmp_path: Path, write_rows: WriteRows) -> None:
    path = write_rows("pairs.jsonl", [{"prompt": f"p{i}", "chosen": "a", "rejected": " "} for i in range(1_100)])
    with pytest.raises(DataError, match="more than 1,000 rows of the judgements"):
        prepared(tmp_path, judgements=str(path))


# ---- a project's store -----------------------------------------------------------------------------------------------


def cli(*args: object) -> dict[str, Any]:
    """What a command prints as JSON."""
    done = CliRunner().invoke(app, [*map(str, args), "--json"])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture
def project(tmp_path: Path, write_rows: WriteRows) -> Path:
    """A project with imported pairs, and further answers of a person and of a simulated annotator at the desk."""
    root = tmp_path / "project"
    cli("init", root)
    cli("import", write_rows("pairs.jsonl", own_rows()), "--project", root)
    with Store.open(root / "accord.db") as store:
        desk = Desk(store, LabelConfig())
        for name, about in (("Ada", "ships"), ("sim 1", "films")):
            person = desk.directory.add_person(name, "annotator", simulated=name == "sim 1").id
            for number in range(6):
                served(desk, person, f"Tell me of {about} {number}.")
    return root


def served(desk: Desk, person: int, asked: str) -> None:
    """Queue two completions of a prompt and let a person prefer the first."""
    prompt = Prompt.of_messages([{"role": "user", "content": asked}])
    source = Source(origin="policy", name="sft")
    two = tuple(Completion(prompt_id=prompt.id, text=text, source=source) for text in ("Gladly.", "No."))
    desk.queue.add_tasks(group_tasks(prompt, two, serve_as="ranking"))
    taken = desk.queue.claim(person)
    assert taken is not None
    desk.answers.submit(person, taken.task.id, Answer(ranks=(1, 2)), key=f"key of {asked}".ljust(32, "."))


@pytest.mark.slow
def test_a_project_runs_from_its_store(chat_model: Path, project: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"task: {{use: store}}\nbase: {{model: {chat_model}}}\n")
    again = ["run", recipe, "--project", project, *TOY]
    summary, out = cli(*again), project / "runs/mine"
    told = json.loads((out / "data/stage.json").read_text())["result"]
    # 89 pairs were imported (one row was no good, one text empty), Ada said 6 more; the simulated one's 6 are told.
    assert sum(told["counts"][f"judgements_{split}"] for split in SPLITS) == 88 + 6
    assert told["left_out"]["judgements"]["why"]["judgements by simulated annotators"] == 6
    assert set(check_splits(out / "data")) == set(SPLITS)
    assert (out / "report.html").is_file() and summary["reward_accuracy"] is not None
    with Store.open(project / "accord.db") as store:  # the run's own samples wait there: they change nothing
        assert sum(task.origin == "mine/rl" for task in Desk(store, LabelConfig()).queue.tasks()) == 2
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("*/stage.json")}
    cli(*again)
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/stage.json")} == stamps
    with Store.open(project / "accord.db") as store:
        desk = Desk(store, LabelConfig())
        served(desk, desk.directory.add_person("Eve", "annotator").id, "Tell me of bread.")
    cli(*again)
    assert (out / "data/stage.json").stat().st_mtime_ns != stamps[out / "data/stage.json"]


def test_simulated_annotators_count_where_they_are_asked_for(project: Path) -> None:
    store = str(project / "accord.db")
    for simulated, count in ((False, 95), (True, 101)):
        task = StoreTask(TaskPlace(TaskConfig(use="store", simulated=simulated), project, store, project))
        assert sum(kind == "judgements" for kind, _ in task.found) == count


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no store"):
        StoreTask(TaskPlace(TaskConfig(use="store"), tmp_path, str(tmp_path / "accord.db"), tmp_path))
    assert not list(tmp_path.iterdir())


# ---- before any work -------------------------------------------------------------------------------------------------


def refused(*args: object) -> str:
    """What a command says that is refused; nothing is written."""
    here = sorted(Path.cwd().rglob("*"))
    done = CliRunner().invoke(app, [*map(str, args)])
    assert done.exit_code in (2, 3) and sorted(Path.cwd().rglob("*")) == here, done.output
    return done.stderr


def test_the_template_says_what_to_fill_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for more in ([], ["--dry-run"]):
        told = refused("run", "files", *more)
        assert "the recipe names no data" in told and "task.judgements=FILE" in told and "base.model=FOLDER" in told
    assert "files" in refused("run", "nowhere")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["task.judgements=gone.jsonl"], "gone.jsonl: there is no such file"),
        (["task.judgements=hh:gone.jsonl"], "gone.jsonl: there is no such file"),
        (["task.prompts=gone.csv"], "task.prompts names it"),
        (["task.use=nowhere:TASK"], "no module 'nowhere'"),
        (["task.use=json:dumps"], "json:dumps failed: TypeError"),
        (["task.use=builtins:repr"], "makes str, not a task"),
        (["task.use=accord.demo.films:FILMS", "task.options={group_sise: 3}"], "group_sise"),
        (["task.use=store"], "there is no store"),
        (["base.model=gone"], "gone"),
        (["optimise=dpo", "dpo.loss=nowhere:LOSS"], "nowhere"),
        (["ask={who: scorer, scorer: {model: gone/model}}"], "gone/model: there is no such model"),
        (["ask.who=panel", "ask.overlap=9"], "ask.overlap is 9, and the panel"),
        (["ask.who=nowhere:ASK"], "no module 'nowhere'"),
        (["eval.judges={one: {model: gone/judge}}"], "gone/judge: there is no such model"),
    ],
)
def test_a_dry_run_finds_what_a_run_would_miss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_rows: WriteRows, given: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    named = "" if any("use=" in one for one in given) else write_rows("pairs.jsonl", own_rows())
    keys = [f"task.judgements={named}"] if named else []
    mine = tmp_path / "mine.yaml"
    mine.write_text("base: {model: model}\n")
    assert told in refused("run", mine, "--dry-run", *keys, *given)
    if named:
        assert CliRunner().invoke(app, ["run", str(mine), "--dry-run", *keys]).exit_code == 0


def test_a_dry_run_writes_nothing(project: Path, tmp_path: Path, chat_model: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"task: {{use: store}}\nbase: {{model: {chat_model}}}\n")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert cli("run", recipe, "--project", project, "--dry-run")["recipe"]["task"]["use"] == "store"
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_the_template_runs_once_it_is_filled_in(chat_model: Path, tmp_path: Path, write_rows: WriteRows) -> None:
    named = [f"base.model={chat_model}", f"task.judgements={write_rows('pairs.jsonl', own_rows())}"]
    small = ["reward.max_tokens=512", "rl.max_new_tokens=5", "rl.iterations=1", "rl.prompts_per_iteration=4"]
    recipe = load_recipe("files", [*named, *small, "eval.bootstrap=100", "task.measured_prompts=6", "ask.queue=2"])
    summary = run(recipe, output_dir=tmp_path / "run")
    assert summary["candidate"] == "ppo" and (tmp_path / "run/report.html").is_file()


def test_a_runs_own_samples_make_no_new_data(project: Path) -> None:
    """A policy's samples of a judged prompt come back as a prompt fact with the topic that the run derived."""
    store = str(project / "accord.db")

    def task() -> StoreTask:
        return StoreTask(TaskPlace(TaskConfig(use="store"), project, store, project))

    before = task()
    prompt = before.found[0][1].prompt
    assert prompt is not None and not isinstance(prompt, str)
    with Store.open(store) as facts:
        again = Prompt.of_messages([dict(turn) for turn in prompt], topic="derived")
        facts.add([again, Completion(prompt_id=again.id, text="x", source=Source(origin="policy", name="mine/rl"))])
    assert task().settings == before.settings
