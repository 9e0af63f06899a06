"""``accord sample``: rows that keep what their prompt's row says, work that goes on, and what it says at its end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from accord.cli.main import app
from accord.config import (
    FITTED_SAMPLES,
    DataFacts,
    MachineFacts,
    ModelFacts,
    Recipe,
    SampleConfig,
    ScorerConfig,
    fit,
    load_recipe,
)
from accord.rollout.generator import EngineGenerator, Generated
from accord.scoring import sample, score
from accord.scoring.sample_file import DrawnSoFar

WriteRows = Callable[[str, Iterable[Mapping[str, Any]]], Path]
SMALL = SampleConfig(samples_per_prompt=2, max_new_tokens=5)
ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
PROMPTS = [
    {"prompt": ASKED, "topic": "people", "source": "faq", "id": 7},
    {"prompt": "The village:", "completion": " old", "score": 3.0, "model": "a bot"},
]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def call(*argv: object) -> Result:
    return CliRunner().invoke(app, list(map(str, argv)))


# ---- rows ------------------------------------------------------------------------------------------------------------


def test_a_row_keeps_what_its_prompts_row_says(chat_model: Path, write_rows: WriteRows, tmp_path: Path) -> None:
    made = sample(SMALL, model=chat_model, data=write_rows("p.jsonl", PROMPTS), output=tmp_path / "s.jsonl")
    chat, _, plain, _ = rows_of(made.output)
    assert {name: chat[name] for name in ("prompt", "topic", "source", "id")} == PROMPTS[0]
    assert chat["model"] == str(chat_model)
    assert chat["rendered"] == "[system] Be brief.\n[user] Who?\n[assistant] "
    # What the row said of another completion would lie beside this one.
    assert plain["prompt"] == "The village:" and plain["model"] == str(chat_model)
    assert not {"score", "rendered", "topic"} & plain.keys()


def test_scores_are_of_what_the_model_saw_and_rows_come_back_whole(
    chat_model: Path, write_rows: WriteRows, tmp_path: Path
) -> None:
    data, rewards = write_rows("p.jsonl", PROMPTS[:1]), [ScorerConfig(regex=r"\[assistant\]")]
    at_once = sample(SMALL, model=chat_model, data=data, output=tmp_path / "a.jsonl", rewards=rewards)
    plain = sample(SMALL, model=chat_model, data=data, output=tmp_path / "b.jsonl")
    later = rows_of(score(rows=plain.output, output=tmp_path / "c.jsonl", rewards=rewards).output)
    # No template is at hand: what was laid out is in the row.
    assert [row["score"] for row in later] == [row["score"] for row in rows_of(at_once.output)]
    for before, after in zip(rows_of(plain.output), later, strict=True):
        assert {name: after[name] for name in before} == before


def test_samples_reach_people_and_their_judgements_leave_as_the_rows_were(
    chat_model: Path, write_rows: WriteRows, tmp_path: Path
) -> None:
    """sample, label --add, an answer, export: messages, topic and columns of the user's own all the way."""
    from accord import formats
    from accord.config import LabelConfig
    from accord.people.desk import Desk
    from accord.people.desk.answers import Answer
    from accord.people.exporting import write_judgements
    from accord.people.intake import groups_of, queue_groups
    from accord.records import Source
    from accord.store import Store

    made = sample(SMALL, model=chat_model, data=write_rows("p.jsonl", PROMPTS[:1]), output=tmp_path / "s.jsonl")
    with Store.open(tmp_path / "accord.db") as store:
        desk = Desk(store, LabelConfig())
        groups = groups_of(formats.read_items(made.output), Source(origin="policy", name="s.jsonl"))
        assert queue_groups(desk, groups, serve_as="ranking").added == 1
        ada = desk.directory.add_person("Ada", "annotator")
        task = desk.queue.claim(ada.id)
        assert task is not None and task.task.prompt.turns() == ASKED
        assert {one.source.name for one in task.shown} == {str(chat_model)}
        desk.answers.submit(ada.id, task.task.id, Answer(ranks=(1, 2)), key="k")
        write_judgements(store, tmp_path / "out.jsonl", "accord")
    [row] = rows_of(tmp_path / "out.jsonl")
    assert (row["prompt"], row["topic"], row["source"], row["id"]) == (ASKED, "people", "faq", "7")
    assert sorted(row["completions"]) == sorted(one["completion"] for one in rows_of(made.output))


def test_an_export_of_a_blind_comparison_says_who_wrote_which(tmp_path: Path) -> None:
    from accord import formats
    from accord.formats import Item
    from accord.people.intake import groups_of
    from accord.records import Source

    old, new = (Source(origin="policy", name=name) for name in ("old", "new"))
    pair = Item(prompt="P", completions=(" a", " b"), ranks=(1.0, 2.0), sources=(old, new))
    formats.write_items(
        tmp_path / "out.jsonl", [pair, Item(prompt="Q", completions=pair.completions, ranks=(1, 1))], "accord"
    )
    first, second = rows_of(tmp_path / "out.jsonl")
    assert first["model"] == ["old", "new"] and "model" not in second
    # And read again it is the same comparison.
    [(_, written), _] = groups_of(formats.read_items(tmp_path / "out.jsonl"), Source(origin="policy", name="f"))
    assert [one.source for one in written] == [old, new]


# ---- work that goes on -----------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


def killed_after(groups: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the generator die when so many prompts are done; the list says which were drawn."""
    whole, drawn = EngineGenerator.generate_groups, list[int]()

    def dying(self: EngineGenerator, *args: Any, **more: Any) -> Iterator[tuple[int, list[Generated]]]:
        for count, (place, group) in enumerate(whole(self, *args, **more)):
            if count == groups:
                raise Killed
            drawn.append(place)
            yield place, group

    monkeypatch.setattr(EngineGenerator, "generate_groups", dying)
    return drawn


def test_what_was_done_is_not_drawn_again(
    policy_folder: Path, write_rows: WriteRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_rows("p.jsonl", [{"prompt": f"The village {'and ' * i}:"} for i in range(5)])
    given: dict[str, Any] = {"model": policy_folder, "data": data, "seed": 4}
    whole = rows_of(sample(SMALL, **given, output=tmp_path / "whole.jsonl").output)
    output, part = tmp_path / "s.jsonl", tmp_path / "s.jsonl.part"
    with monkeypatch.context() as dying:
        before = killed_after(3, dying)
        with pytest.raises(Killed):
            sample(SMALL, **given, output=output)
    assert not output.exists() and len(part.read_text().splitlines()) == 1 + 3
    with part.open("a") as file:
        file.write('{"place": 4, "samp')  # as a killed process leaves it
    after, said = killed_after(9, monkeypatch), list[str]()
    found = rows_of(sample(SMALL, **given, output=output, log=lambda _, text: said.append(text)).output)
    assert sorted(before + after) == [0, 1, 2, 3, 4] and not part.exists()
    assert "going on: 3 of 5 prompts are done" in said
    assert [row["completion"] for row in found] == [row["completion"] for row in whole]
    assert [row["logp"] for row in found] == pytest.approx([row["logp"] for row in whole], abs=1e-4)


def test_the_same_command_again_says_so_and_draws_nothing(
    policy_folder: Path, write_rows: WriteRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, output = write_rows("p.jsonl", [{"prompt": "The village:"}]), tmp_path / "s.jsonl"
    given: dict[str, Any] = {"model": policy_folder, "data": data, "output": output}
    drawn, said = killed_after(9, monkeypatch), list[str]()
    first = sample(SMALL, **given, rewards=[ScorerConfig(regex="e")])
    again = sample(SMALL, **given, rewards=[ScorerConfig(regex="e")], log=lambda _, text: said.append(text))
    assert again == first and drawn == [0]
    assert said == [f"finished before: the same command wrote {output}; nothing was done (--no-resume: anew)"]
    sample(SMALL, **given, rewards=[ScorerConfig(regex="a")])  # other scores
    output.write_text("")  # not as it was written
    sample(SMALL, **given, rewards=[ScorerConfig(regex="a")])
    sample(SMALL, **given, rewards=[ScorerConfig(regex="a")], resume=False)
    assert drawn == [0, 0, 0, 0]


@pytest.mark.parametrize("change", [{"seed": 5}, {"resume": False}])
def test_what_was_done_with_other_settings_is_not_taken(
    change: dict[str, Any], policy_folder: Path, write_rows: WriteRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_rows("p.jsonl", [{"prompt": "The village:"}, {"prompt": "Bread"}])
    given: dict[str, Any] = {"model": policy_folder, "data": data, "output": tmp_path / "s.jsonl", "seed": 4}
    with monkeypatch.context() as dying, pytest.raises(Killed):
        killed_after(1, dying)
        sample(SMALL, **given)
    drawn = killed_after(9, monkeypatch)
    sample(SMALL, **given | change)
    assert sorted(drawn) == [0, 1]


@pytest.mark.slow
def test_kill_9_loses_no_finished_prompt(policy_folder: Path, write_rows: WriteRows, tmp_path: Path) -> None:
    from killed import carry_out

    data = write_rows("p.jsonl", [{"prompt": "The village:"}] * 60)
    argv = [
        "sample",
        "--model",
        policy_folder,
        "--data",
        data,
        "sample.samples_per_prompt=8",
        "sample.max_new_tokens=40",
    ]
    part = tmp_path / "s.jsonl.part"

    def steps() -> int:
        return min(3, len(part.read_text().splitlines()) // 16) if part.exists() else 0

    code, kills = carry_out([*map(str, argv), "-o", str(tmp_path / "s.jsonl")], tmp_path, tmp_path / "log", steps)
    assert code == 0 and kills >= 1, (tmp_path / "log").read_text()
    assert carry_out([*map(str, argv), "-o", str(tmp_path / "w.jsonl")], tmp_path, tmp_path / "log") == (0, 0)
    whole, found = (rows_of(tmp_path / name) for name in ("w.jsonl", "s.jsonl"))
    assert [row["completion"] for row in found] == [row["completion"] for row in whole] and len(whole) == 480


# ---- what it says ----------------------------------------------------------------------------------------------------


def test_it_shows_three_and_says_how_many_were_cut(chat_model: Path, write_rows: WriteRows, tmp_path: Path) -> None:
    data = write_rows("p.jsonl", [{"prompt": [{"role": "user", "content": f"Who is {i}?"}]} for i in range(7)])
    done = call("sample", "--model", chat_model, "--data", data, "-o", tmp_path / "s.jsonl", "sample.max_new_tokens=3")
    rows = rows_of(tmp_path / "s.jsonl")
    cut = sum(row["finish"] == "length" for row in rows)
    assert done.exit_code == 0, done.stderr
    assert f"28 samples in {tmp_path}/s.jsonl; {cut} (" in done.stdout and "raise sample.max_new_tokens" in done.stdout
    assert [f"asked: Who is {i}?" in done.stdout for i in range(7)] == [i in (0, 3, 6) for i in range(7)]
    assert done.stdout.count("wrote: ") == 3 and "[cut at 3 tokens]" in done.stdout
    assert "next: accord init && accord label --add" in done.stdout and "accord score --model DIR" in done.stdout


def test_steering_characters_of_a_sample_do_not_reach_the_terminal(tmp_path: Path) -> None:
    from accord.cli.sampled import samples_text
    from accord.scoring import SampleResult

    row = {"prompt": "P\x1b[2J", "completion": " \x1b]0;title", "finish": "stop", "tokens": 2}
    (tmp_path / "s.jsonl").write_text(json.dumps(row) + "\n")
    text = samples_text(SampleResult(tmp_path / "s.jsonl", 1, 0, 2.0, 1.0, None, 1, 0.0), 8)
    assert "\x1b" not in text and "all of them end by themselves" in text


SMOLLM = ModelFacts(134_515_008, 576, 30, 8192, 49_152, chat=True)


@pytest.mark.parametrize(
    ("model", "given", "length", "temperature"),
    [
        (SMOLLM, (), 256, 0.8),
        (SMOLLM, ("sample.max_new_tokens=40", "sample.temperature=0.3"), 40, 0.3),
        (ModelFacts(134_515_008, 576, 30, 8192, 49_152), (), 80, 0.8),  # it goes on writing: nothing shows where to end
        (ModelFacts(7_000_000_000, 4096, 32, 400, 32_000, chat=True), (), 200, 1.0),
        (ModelFacts(1_000_000, 64, 2, 512, 320, chat=True), (), 80, 1.0),
    ],
)
def test_values_that_fit_the_kind_of_model(
    model: ModelFacts, given: tuple[str, ...], length: int, temperature: float
) -> None:
    recipe: Recipe = load_recipe(None, given)
    made = fit(recipe, model, DataFacts(), MachineFacts(8 << 30), FITTED_SAMPLES)
    assert (made.sample.max_new_tokens, made.sample.temperature) == (length, temperature)
    assert made.model_copy(update={"sample": recipe.sample}) == recipe  # no other key


@pytest.mark.parametrize("damage", ["", "\x00", "[]", '{"place": 1}', '{"place'])
def test_a_damaged_line_of_what_was_drawn_is_drawn_again(damage: str, tmp_path: Path) -> None:
    head, whole = json.dumps({"of": "x"}), [json.dumps({"place": i, "samples": []}) for i in range(3)]
    (tmp_path / "out.jsonl.part").write_text("\n".join([head, whole[0], damage, whole[2]]) + "\n")
    assert list(DrawnSoFar(tmp_path / "out.jsonl", "x", resume=True)._groups) == [0, 2]
