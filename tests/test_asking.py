"""Who ranks a run's samples in people's place: what they say, in the store, in the file to learn from, on the page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from chatserver import ChatServer, always_a, longer, serving_chat
from conftest import WriteRows
from test_rounds import PLACES, THINGS, TINY
from typer.testing import CliRunner

from accord.cli.main import app
from accord.config import AskConfig, ChatConfig, LabelConfig, Recipe, ScorerConfig, load_recipe
from accord.errors import DataError, UsageError
from accord.formats import read_items, to_records
from accord.loop import run
from accord.loop.ai_feedback import REPLIES, function_annotators, scorer_annotators
from accord.loop.panel import simulated_annotators
from accord.loop.task import Annotators, Asked
from accord.models.placement import AUTO
from accord.people.desk import Desk
from accord.people.exporting import write_judgements
from accord.people.quality import report_of
from accord.people.simulation.readers import one_reader, reader_panel
from accord.records import Annotator, Label, Source
from accord.store import Store

SAMPLES: list[dict[str, Any]] = [
    {"prompt": "Say hello", "text": "Say hello", "topic": "hello", "completions": ["hi", "hello there", "hi", "hello"]},
    {
        "prompt": [{"role": "user", "content": "Which tea?"}],
        "text": "<user>Which tea?",
        "topic": "tea",
        "completions": ["Green tea, as it is mild.", "tea tea tea tea tea"],
    },
    {"prompt": "Twice", "text": "Twice", "topic": "twice", "completions": ["same", "same"]},
]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving_chat(longer) as made:
        yield made


@pytest.fixture
def asked(tmp_path: Path, write_rows: WriteRows) -> Asked:
    samples = Path(write_rows("samples.jsonl", SAMPLES))
    source = Source(origin="policy", name="mine/base")
    (tmp_path / "ask").mkdir()
    return Asked(samples, tmp_path / "ask/judgements.jsonl", source, str(tmp_path / "accord.db"), 0.5, 0)


def answer(asked: Asked, annotators: Annotators) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    result = annotators.answer({}, asked)
    return result, [json.loads(line) for line in asked.judgements.read_text().splitlines()]


def chat(server: ChatServer, **more: Any) -> Annotators:
    given = {"url": server.url, "model": "judge-1", "concurrency": 2, **more}
    return scorer_annotators(ScorerConfig(chat=ChatConfig(**given)), AUTO)


# -- AI feedback -------------------------------------------------------------------------------------------------------


def test_a_chat_model_compares_every_two_samples_and_each_prompt_counts_once(asked: Asked, server: ChatServer) -> None:
    """Three different samples make three pairs, two make one, equal ones none. A prompt weighs .5, over its pairs."""
    result, rows = answer(asked, chat(server))
    assert [(row["completions"], row["ranks"]) for row in rows] == [
        (["hi", "hello there"], [2, 1]),
        (["hi", "hello"], [2, 1]),
        (["hello there", "hello"], [1, 2]),
        (["Green tea, as it is mild.", "tea tea tea tea tea"], [1, 2]),
    ]
    assert [row["weight"] for row in rows] == [0.166667] * 3 + [0.5]
    assert len({row["group"] for row in rows[:3]}) == 1 and rows[0]["group"] != rows[3]["group"]
    assert {(row["origin"], row["annotator"]) for row in rows} == {("AI feedback", "judge-1")}
    assert rows[3]["prompt"] == SAMPLES[1]["prompt"] and rows[3]["topic"] == "tea"
    counts = {"prompts": 2, "pairs": 4, "decided": 4, "ties": 0, "contradictions": 0, "unreadable": 0, "requests": 8}
    assert {key: result[key] for key in counts} == counts
    assert (result["called"], result["judgements"], result["annotators"]) == ("AI feedback", 4, ["judge-1"])
    with Store.open(asked.store) as store:
        (annotator,) = store.annotators()
        assert annotator.annotator_kind == "model" and "AI feedback" in annotator.note
        assert len(list(store.rankings())) == 4


def test_a_contradiction_is_a_tie_that_says_so_and_the_unreadable_is_left_out(asked: Asked, server: ChatServer) -> None:
    """By place alone among the greetings: three ties. On the tea it mumbles: one pair unread, nothing of it kept."""
    server.judge = lambda first, second: "Well." if "tea" in first else always_a(first, second)
    result, rows = answer(asked, chat(server))
    assert [row["ranks"] for row in rows] == [[1, 1]] * 3
    counts = {"decided": 0, "contradictions": 3, "unreadable": 1, "judgements": 3, "pairs": 4}
    assert {key: result[key] for key in counts} == counts
    assert "in 3 the order shown decided" in result["description"][0]
    with Store.open(asked.store) as store:
        assert {ranking.note for ranking in store.rankings()} == {"the two orders contradict each other"}
    server.judge = lambda first, second: "Well."
    asked.judgements.with_name(REPLIES).unlink()
    with pytest.raises(DataError, match="none of 4 comparisons by judge-1 could be read"):
        chat(server).answer({}, asked)


def test_a_killed_stage_goes_on_with_the_replies_it_has(asked: Asked, server: ChatServer) -> None:
    server.faults = [None] * 3 + [400]
    with pytest.raises(DataError):
        chat(server, concurrency=1).answer({}, asked)
    server.faults, before = [], len(server.bodies)
    result, rows = answer(asked, chat(server, concurrency=1))
    assert result["requests"] == len(server.bodies) - before == 8 - 3 and len(rows) == 4
    with Store.open(asked.store) as store:  # and once more: no new facts
        kept = store.counts()
    answer(asked, chat(server))
    with Store.open(asked.store) as store:
        assert store.counts() == kept


def test_its_settings_say_what_was_asked_and_not_with_whose_key(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is set otherwise is asked anew; how fast it goes makes no difference."""
    monkeypatch.setenv("MY_API_KEY", "sk-secret")
    plain, keyed = chat(server).settings, chat(server, key_env="MY_API_KEY", concurrency=9, timeout_s=1.0).settings
    assert plain == keyed and "judge_prompt" in plain and "secret" not in json.dumps(keyed)
    assert chat(server, criteria="Rhymes.").settings != plain


def by_length(prompt: Any, completions: list[str]) -> list[int]:
    return [len(text) for text in completions]


def test_a_scorer_and_a_function_rank_whole_groups(asked: Asked) -> None:
    function = function_annotators("test_asking:by_length")
    scorer = scorer_annotators(ScorerConfig(regex="hello", name="greets"), AUTO)
    for annotators, ranks, name in (
        (function, [[3, 1, 2], [1, 2]], "test_asking:by_length"),
        (scorer, [[3, 1, 1], [1, 1]], "scorer greets"),
    ):
        result, rows = answer(asked, annotators)
        assert [row["ranks"] for row in rows] == ranks and {row["origin"] for row in rows} == {"AI feedback"}
        assert {row["weight"] for row in rows} == {0.5} and result["called"] == "AI feedback"
        assert result["annotators"] == [name]


def test_a_server_of_scores_ranks_too(asked: Asked, server: ChatServer) -> None:
    """Three texts of the greetings and two on tea, scored by hand in the order asked: 2 and 9 are the best."""
    server.faults = [b'{"scores": [1, 2, 0.5]}', 503, b'{"scores": [7, 9]}']
    _, rows = answer(asked, scorer_annotators(ScorerConfig(http=server.url), AUTO))
    assert [row["ranks"] for row in rows] == [[2, 1, 3], [2, 1]]
    assert [len(body["completions"]) for body in server.bodies] == [3, 2, 2]


def test_with_nothing_to_rank_there_is_nothing_to_ask(asked: Asked, write_rows: WriteRows, server: ChatServer) -> None:
    write_rows("samples.jsonl", SAMPLES[2:])
    for annotators in (chat(server), simulated_annotators([one_reader(0)], 1, 0)):
        with pytest.raises(DataError, match="no prompt has two different samples"):
            annotators.answer({}, asked)
    assert not server.bodies


# -- simulated annotators ----------------------------------------------------------------------------------------------


def test_one_simulated_annotator_has_the_written_down_taste(asked: Asked) -> None:
    result, rows = answer(asked, simulated_annotators([one_reader(0)], 1, 0))
    assert [len(row["completions"]) for row in rows] == [3, 2]
    tea = dict(zip(rows[1]["completions"], rows[1]["ranks"], strict=True))
    assert tea == {"Green tea, as it is mild.": 1, "tea tea tea tea tea": 2}
    assert {(row["origin"], row["annotator"], row["weight"]) for row in rows} == {
        ("simulated annotators", "simulated-0", 0.5)
    }
    assert result["called"] == "simulated annotators" and result["agreement"]["value"] is None
    with Store.open(asked.store) as store:
        assert {annotator.annotator_kind for annotator in store.annotators()} == {"simulated"}


def test_a_panel_overlaps_is_weighed_and_says_how_far_it_agrees(asked: Asked, write_rows: WriteRows) -> None:
    texts = ["Fine, take the bus at noon.", "bus bus bus bus", "I'm sorry, but I can't help", "The bus leaves at noon"]
    write_rows(
        "samples.jsonl",
        [{"prompt": f"When goes bus {n}?", "text": "", "topic": str(n), "completions": texts} for n in range(30)],
    )
    result, rows = answer(asked, simulated_annotators(reader_panel(5, 0), 3, 0))
    assert len(rows) == 90 and len({row["group"] for row in rows}) == 30
    assert len(result["annotators"]) == 5 == len(result["weights"])
    for row in rows:
        assert row.get("weight", 1.0) == pytest.approx(0.5 * result["weights"][row["annotator"]], abs=1e-3)
    # By hand: the share of alike orders over all pairs of texts that two of a prompt's three rankings order.
    alike = []
    for group in {row["group"] for row in rows}:
        ranks = [dict(zip(row["completions"], row["ranks"], strict=True)) for row in rows if row["group"] == group]
        for one, other in combinations(ranks, 2):
            for a, b in combinations(texts, 2):
                alike.append(((one[a] > one[b]) - (one[a] < one[b])) == ((other[a] > other[b]) - (other[a] < other[b])))
    assert result["agreement"]["value"] == pytest.approx(sum(alike) / len(alike)) and len(alike) == 30 * 3 * 6
    assert 0 < result["agreement"]["low"] < result["agreement"]["high"] <= 1
    assert any("Of orders of two samples" in line for line in result["description"])
    again, same = answer(asked, simulated_annotators(reader_panel(5, 0), 3, 0))
    assert (again, same) == (result, rows)


# -- never counted as people -------------------------------------------------------------------------------------------


def test_ai_feedback_and_simulated_rankings_are_exported_only_where_asked(
    asked: Asked, server: ChatServer, tmp_path: Path
) -> None:
    """4 comparisons by a chat model, 2 rankings by a simulated annotator, and nobody else."""
    chat(server).answer({}, asked)
    simulated_annotators([one_reader(0)], 1, 0).answer({}, asked)
    with Store.open(asked.store) as store:
        quality = report_of(Desk(store, LabelConfig()))
        assert (quality.num_answers, quality.people, quality.agreement) == (0, (), ())
        assert store.judged_by() == {"model": 4, "simulated": 2}

        def exported(**options: bool) -> dict[str, int]:
            made = write_judgements(store, tmp_path / "out.jsonl", "accord", kinds=("ranking",), **options)
            return dict(made.origins)

        with pytest.raises(DataError, match="2 judgements by simulated annotators") as nothing:
            exported()
        assert "4 judgements that are AI feedback" in str(nothing.value)
        assert exported(ai=True) == {"AI feedback": 4} and exported(simulated=True) == {"simulated annotators": 2}
        assert exported(ai=True, simulated=True) == {"AI feedback": 4, "simulated annotators": 2}
        # And read again from the file nobody becomes human on the way.
        facts = list(to_records(read_items(tmp_path / "out.jsonl"), source="file"))
        assert {one.annotator_kind for one in facts if hasattr(one, "annotator_kind")} == {"model", "simulated"}


def test_status_says_by_whom_judgements_are(asked: Asked, server: ChatServer, tmp_path: Path) -> None:
    (tmp_path / "accord.yaml").write_text("store: accord.db\n")
    chat(server).answer({}, asked)
    with Store.open(asked.store) as store:
        (completion, *_) = store.completions()
        ada = Annotator(name="Ada", annotator_kind="human")
        label = Label(annotator_id=ada.id, completion_id=completion.id, good=True)
        store.add([ada, label, replace(label, good=False, supersedes=label.id)])
    done = CliRunner().invoke(app, ["status", "--project", str(tmp_path)])
    assert "judged by: people 1, AI feedback 4" in done.stdout, done.output


# -- in recipes and runs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["ask.who=panel", "ask.overlap=9"], "ask.overlap is 9, and the panel"),
        (["ask.who=simulated", "ask.annotators=3"], "annotators says how many the panel has, and who is simulated"),
        (["ask.who=panel", "reward.loss=binary"], "ask.who panel brings rankings"),
        (["ask.who=scorer", "ask.scorer={regex: a}", "reward.loss=regression"], "ask.who scorer brings rankings"),
        (
            ["ask.who=scorer", "ask.scorer={chat: {url: 'http://localhost:1', model: m, key_env: NO_KEY}}"],
            "NO_KEY is not",
        ),
        (["rl.rewards=[{chat: {url: 'http://localhost:1', model: m}}]"], "gives no score"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_any_work(
    tmp_path: Path, write_rows: WriteRows, policy_folder: Path, given: list[str], told: str
) -> None:
    prompts = write_rows("prompts.jsonl", [{"prompt": f"A {t} in the {p}:"} for t in THINGS for p in PLACES])
    with pytest.raises(UsageError, match=told):
        recipe = load_recipe(None, [f"base.model={policy_folder}", f"task.prompts={prompts}", *TINY, *given])
        run(recipe, output_dir=tmp_path / "run")
    assert not (tmp_path / "run/data").exists()


def project(folder: Path) -> str:
    """A store that holds 80 prompts."""
    rows = folder / "prompts.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"A {t} in the {p}:"}) + "\n" for t in THINGS for p in PLACES))
    with Store.open(folder / "accord.db") as store:
        store.add(to_records(read_items(rows), source="prompts"))
    return str(folder / "accord.db")


def recipe_of(policy: Path, *overrides: str) -> Recipe:
    return load_recipe(None, [f"base.model={policy}", "task.use=store", "name=tiny", *TINY, *overrides])


@pytest.mark.slow
@pytest.mark.parametrize("who", ["simulated", "panel", "scorer"])
def test_a_whole_run_names_who_ranked_and_goes_on_where_it_stopped(
    tmp_path: Path, policy_folder: Path, server: ChatServer, who: str
) -> None:
    """Two rounds on a project's own prompts: the run's facts come into the store it learns from, and change nothing."""
    place = project(tmp_path)
    chat_model = f"ask.scorer={{chat: {{url: '{server.url}', model: judge-1}}}}"
    more = {"scorer": [chat_model], "panel": ["ask.overlap=2", "ask.annotators=3"], "simulated": []}[who]
    recipe = recipe_of(policy_folder, f"ask.who={who}", "rounds=2", "task.ai=true", "task.simulated=true", *more)
    said: list[str] = []
    summary = run(recipe, output_dir=tmp_path / "run", store=place, log=lambda _, text: said.append(text))
    called = "AI feedback" if who == "scorer" else "simulated annotators"
    assert summary["asked"]["called"] == called and summary["asked"]["judgements"] > 3
    first, second = summary["rounds"]
    assert (first["called"], second["called"]) == (called, called)
    rows = [json.loads(line) for line in (tmp_path / "run/round_2/rankings/rankings.jsonl").read_text().splitlines()]
    assert len(rows) == first["judgements"] + second["judgements"] and {row["origin"] for row in rows} == {called}
    with Store.open(place) as store:
        kind = "model" if who == "scorer" else "simulated"
        assert {annotator.annotator_kind for annotator in store.annotators()} == {kind}
        assert not list(Desk(store, LabelConfig()).reading.submissions())
    page = (tmp_path / "run/report.html").read_text()
    card = (tmp_path / "run/README.md").read_text()
    assert f"{first['judgements']:,} by {called}" in page and called in card and "People who were asked" not in page
    asked_so_far = len(server.bodies)
    said.clear()
    run(recipe, output_dir=tmp_path / "run", store=place, log=lambda _, text: said.append(text))
    assert said and not any(text.endswith(": starting") for text in said) and len(server.bodies) == asked_so_far


@pytest.mark.slow
def test_a_later_run_learns_from_ai_feedback_only_where_it_is_told_to(
    tmp_path: Path, policy_folder: Path, server: ChatServer
) -> None:
    place = project(tmp_path)
    asks = ["ask.who=scorer", f"ask.scorer={{chat: {{url: '{server.url}', model: judge-1}}}}", "ask.prompts=40"]
    run(recipe_of(policy_folder, *asks), output_dir=tmp_path / "first", store=place)
    counted = {}
    for ai in ("false", "true"):
        later = recipe_of(policy_folder, "ask.who=panel", "name=later", f"task.ai={ai}")
        out = tmp_path / f"later_{ai}"
        counted[ai] = run(later, output_dir=out, store=place)["counts"]
    told = counted["true"]
    taught = {split: told[f"judgements_{split}"] for split in ("train", "judge", "valid", "test")}
    assert counted["false"]["judgements_left_out"] == taught["train"] + taught["judge"]
    # It was asked about prompts to train on, those of the share for a judge among them, as nothing taught one yet:
    # nothing of it measures, and the reward model holds some out by itself.
    assert taught["train"] > 60 and taught["judge"] > 0 and taught["valid"] == taught["test"] == 0


def test_the_defaults_of_who_is_asked() -> None:
    assert (AskConfig().annotators, AskConfig().overlap) == (8, 1)
