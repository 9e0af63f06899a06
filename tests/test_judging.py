"""People as judges: which pairs, blind and at random, kept out of training; and a run that waits for their word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chatserver import longer, serving_chat
from conftest import WriteRows
from test_rounds import PLACES, THINGS, answer_all, recipe, rows_of  # noqa: F401 - the fixture
from webapp import serving

from accord.config import LabelConfig, PeopleJudgeConfig, load_recipe
from accord.errors import UsageError
from accord.evals.judged_pairs import JudgedPair, kept_apart, pair_verdict, read_pairs
from accord.files import read_json
from accord.formats import from_facts
from accord.loop import WaitingForPeople, run
from accord.loop import judging as room
from accord.people.desk import Desk, NewTask
from accord.people.desk.answers import JUDGING, Answer, read_answer
from accord.people.desk.rows import RESERVED
from accord.people.quality import quality_weights, report_of
from accord.people.views import training_view
from accord.records import Completion, Prompt, Source
from accord.report.redraw import redraw
from accord.store import Store

# ---- which pairs, and what is said of them ---------------------------------------------------------------------------


@pytest.fixture
def drawn(tmp_path: Path, write_rows: WriteRows) -> dict[str, Path]:
    """Four prompts, two samples of each policy: of the second the first sample is empty, of the third all are."""
    texts = {
        "sft": [[" a", " b"], [" ", " d"], ["", ""], [" same  text", " h"]],
        "ppo": [[" A", " B"], [" C", " D"], [" E", " F"], [" same text", " H"]],
        "best": [[" x"] * 2] * 4,
    }
    asked: list[Any] = ["one", [{"role": "user", "content": "two"}], "three", "four"]
    read = ["one", "<user>two", "three", "four"]  # as the model's template lays them out
    samples = [
        {"policy": policy, "prompt": prompt, "topic": f"topic {number}", "sample": k, "completion": text}
        for policy, rows in texts.items()
        for number, (prompt, row) in enumerate(zip(read, rows, strict=True))
        for k, text in enumerate(row)
    ]
    (tmp_path / "results.json").write_text(json.dumps({"reference": "sft", "candidate": "ppo"}))
    return {
        "samples": write_rows("samples.jsonl", samples),
        "results": tmp_path / "results.json",
        "test_prompts": write_rows("prompts.jsonl", [{"prompt": one} for one in asked]),
    }


def test_pairs_are_the_first_samples_that_can_be_shown_under_the_prompt_as_it_was_asked(drawn: dict[str, Path]) -> None:
    pairs = read_pairs(drawn, 10, seed=0)
    assert pairs == [
        JudgedPair("one", "topic 0", " a", " A"),
        JudgedPair(({"role": "user", "content": "two"},), "topic 1", " d", " D"),
        JudgedPair("four", "topic 3", " same  text", " same text"),
    ]
    assert [pair.alike for pair in pairs] == [False, False, True]
    few = {read_pairs(drawn, 1, seed)[0].candidate for seed in range(20)}
    assert few == {pair.candidate for pair in pairs} and read_pairs(drawn, 1, 3) == read_pairs(drawn, 1, 3)


def test_a_win_rate_by_hand() -> None:
    """Prompts 1: won twice; 2: won and lost; 3: tied and won; 4: alike; 5: nobody. (1 + .5 + .75 + .5) / 4 = .6875."""
    pairs = [JudgedPair(f"{i}", f"{i}", "same" if i == 4 else "a", "same" if i == 4 else "b") for i in range(1, 6)]
    found = pair_verdict(("people", "people"), pairs, [[1, 1], [1, 0], [0.5, 1], [], []], 200)
    assert found.win_rate is not None and found.win_rate.value == pytest.approx(0.6875)
    assert found.ties == pytest.approx((0 + 0 + 0.5 + 1) / 4) and (found.win_rate.n, found.win_rate.clusters) == (4, 4)
    assert found.win_rate.low < 0.6875 < found.win_rate.high and found.missing == found.needed - 4
    assert pair_verdict(("people", "people"), pairs[:1], [[]], 200).win_rate is None


def test_how_far_a_second_reward_model_is_apart_is_said_by_who_taught_both(write_rows: WriteRows) -> None:
    def rows(name: str, *annotators: str) -> Path:
        return write_rows(name, [{"prompt": "p", "annotator": one} if one else {"prompt": "p"} for one in annotators])

    own = rows("judge.jsonl", "Ada", "Ben", "Ada")
    assert kept_apart(own, rows("a.jsonl", "Ben", "Eve")) == (
        "other prompts; 1 of its 2 annotators taught the reward model too"
    )
    assert kept_apart(own, rows("b.jsonl", "Eve", "")) == "other prompts and other annotators (2)"
    assert kept_apart(rows("c.jsonl", ""), own) == "other prompts; it is not known who judged them"


# ---- at the desk -----------------------------------------------------------------------------------------------------

CHAMPION, CANDIDATE = (Source(origin="policy", name=f"tiny/{name}") for name in ("sft", "round_1"))


def queue_pairs(place: Path, count: int, overlap: int = 1) -> dict[int, Any]:
    pairs = [JudgedPair(f"prompt {i}", f"{i}", f" old {i}", f" new {i}") for i in range(count)]
    return room._queue(PeopleJudgeConfig(overlap=overlap), pairs, (CHAMPION, CANDIDATE), str(place), "")


def test_the_page_shows_neither_who_wrote_what_nor_the_same_side_first(tmp_path: Path) -> None:
    """Over the real server: every key of what an annotator is given, and on which side the new policy stands."""
    queue_pairs(tmp_path / "accord.db", 12)
    first, given = [], []
    with serving(tmp_path) as served, served.by_token(served.person("Ada")) as ada:
        while (answer := ada.post("/api/claim", json={})).status_code == 200:
            shown = answer.json()
            given.append(answer.text)
            assert shown["kind"] == "pair" and [list(one) for one in shown["completions"]] == [["text"], ["text"]]
            first.append(shown["completions"][0]["text"].split()[0])
            own = {"Idempotency-Key": f"ada-{shown['task_id']}"}
            sent = ada.post(f"/api/tasks/{shown['task_id']}/submit", json={"ranks": [1, 2]}, headers=own)
            assert sent.status_code == 201
    assert len(first) == 12 and first.count("new") == 6  # of two completions each order comes once in two
    assert first not in (["new", "old"] * 6, ["old", "new"] * 6)  # and by chance; both come so once in 32 runs each
    for text in given:
        assert not any(word in text for word in ("tiny", "sft", "round_1", JUDGING))


def test_pairs_come_before_what_waits_and_are_queued_once(tmp_path: Path) -> None:
    place = tmp_path / "accord.db"
    prompt = Prompt(text="waits")
    texts = tuple(Completion(prompt_id=prompt.id, text=text, source=CHAMPION) for text in "ab")
    with Store.open(place) as store:
        Desk(store, LabelConfig()).queue.add_tasks([NewTask(kind="ranking", prompt=prompt, completions=texts)])
    first = queue_pairs(place, 3, overlap=2)
    assert {task.id for task in queue_pairs(place, 3, overlap=2).values()} == {task.id for task in first.values()}
    with Store.open(place) as store:
        desk = Desk(store, LabelConfig())
        ada = desk.directory.add_person("Ada", "annotator")
        got = desk.queue.claim(ada.id)
    assert got is not None and got.task.reserved and got.task.overlap == 2


def judge(store: Store, name: str, likes: str, most: int = 100) -> None:
    """Somebody answers what waits: the text that begins so is better, ties where both do."""
    desk = Desk(store, LabelConfig())
    person = desk.directory.add_person(name, "annotator", simulated=name.startswith("robot"))
    while most and (got := desk.queue.claim(person.id)) is not None:
        ranks = [1 if one.text.strip().startswith(likes) else 2 for one in got.shown]
        best = min(ranks)
        answer = read_answer({"ranks": [rank - best + 1 for rank in ranks]})
        desk.answers.submit(person.id, got.task.id, answer, key=f"{name}-{got.task.id}")
        most -= 1


def test_what_people_say_of_pairs_is_read_whichever_side_it_was_shown_on(tmp_path: Path) -> None:
    place = tmp_path / "accord.db"
    tasks = queue_pairs(place, 6, overlap=3)
    with Store.open(place) as store:
        judge(store, "Ada", "new")
        judge(store, "Ben", "old", most=2)
        judge(store, "robot", "old")
    said, people, simulated = room._answers(tasks, str(place), simulated=False)
    assert (people, simulated) == (2, 0) and sorted(map(sorted, said.values())) == [[0, 1]] * 2 + [[1]] * 4
    said, people, simulated = room._answers(tasks, str(place), simulated=True)
    assert (people, simulated) == (2, 6) and sum(map(len, said.values())) == 14
    tie = Answer(ranks=(1, 1))
    with Store.open(place) as store:
        desk = Desk(store, LabelConfig())
        eve = desk.directory.add_person("Eve", "annotator")
        got = desk.queue.claim(eve.id)
        assert got is not None
        desk.answers.submit(eve.id, got.task.id, tie, key="eve")
    assert 0.5 in {one for of in room._answers(tasks, str(place), simulated=False)[0].values() for one in of}


def test_answers_kept_for_judging_teach_nothing_and_weigh_nobody(tmp_path: Path) -> None:
    """Their facts say so; the training view leaves them out and counts them; an export and the weights are without."""
    place = tmp_path / "accord.db"
    queue_pairs(place, 4, overlap=2)
    with Store.open(place) as store:
        judge(store, "Ada", "new")
        judge(store, "Ben", "old")
        rankings = list(store.rankings())
        assert len(rankings) == 8 and all(one.flags == (JUDGING,) for one in rankings)
        left_out: dict[str, int] = {}
        view = training_view(store, left_out=left_out)
        assert [item for item in from_facts(store, view) if item.ranks] == []
        assert left_out == {"answers kept for judging": 8}
        assert quality_weights(store) == {} and report_of(Desk(store, LabelConfig())).num_answers == 0


def test_a_name_that_begins_otherwise_is_not_kept_for_judging(tmp_path: Path) -> None:
    with Store.open(tmp_path / "accord.db") as store:
        desk = Desk(store, LabelConfig())
        prompt = Prompt(text="p")
        texts = tuple(Completion(prompt_id=prompt.id, text=text, source=CHAMPION) for text in "ab")
        desk.queue.add_tasks([NewTask(kind="pair", prompt=prompt, completions=texts, origin=f"my {RESERVED}")])
        assert not next(iter(desk.queue.tasks())).reserved


# ---- in a run --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_asks_people_about_rounds_on_test_prompts_and_their_word_decides(
    tmp_path: Path,
    recipe: Any,  # noqa: F811 - the fixture
) -> None:
    """Samples are ranked and pairs are judged in two rounds; both by two people who prefer the longer text."""
    out, said = tmp_path / "run", []
    place = out / "accord.db"
    wanted = recipe("rounds=2", "eval.people.prompts=5", "eval.people.overlap=2")

    def start() -> Any:
        said.clear()
        return run(wanted, output_dir=out, log=lambda _, text: said.append(text))

    with pytest.raises(WaitingForPeople, match="0 of 4"):
        start()
    assert answer_all(place) == 4
    with pytest.raises(WaitingForPeople) as judging:
        start()
    assert judging.value.missing <= 10 and "round 1: eval: already done" not in said
    assert not (out / "judged_people/verdict.json").exists()
    with pytest.raises(WaitingForPeople):
        start()
    again = {"round 1: eval: already done", "round 1: rl: already done"}
    assert again <= set(said)  # nothing is drawn anew while people judge
    test_prompts = {row["prompt"] for row in rows_of(out / "data/prompts_test.jsonl")}
    with Store.open(place) as store:
        tasks = [task for task in Desk(store, LabelConfig()).queue.tasks() if task.reserved]
    assert {task.prompt.text for task in tasks} <= test_prompts and {task.kind for task in tasks} == {"pair"}
    assert {one.source.name for task in tasks for one in task.completions} == {"tiny/base", "tiny/round_1"}

    answer_all(place, "Ada Ben")  # the longer text
    with pytest.raises(WaitingForPeople, match="0 of 4"):
        start()  # the second round asks for rankings
    judged = read_json(out / "judged_people/verdict.json")
    rows = rows_of(out / "judged_people/pairs.jsonl")
    by_hand = []
    for row in rows:
        longer = len(row["candidate"]) - len(row["champion"])
        expected = 0.5 if longer == 0 or row["alike"] else float(longer > 0)
        assert row["candidate_wins"] == ([] if row["alike"] else [expected] * 2)
        by_hand.append(expected)
    assert judged["win_rate"]["value"] == pytest.approx(sum(by_hand) / len(by_hand)) and len(rows) == 5
    assert (judged["kind"], judged["called"]) == ("people", "people, in blind pairs")
    summary = read_json(out / "summary.json")
    assert [one["judge"] for one in summary["judges"]] == ["people", "vowels"]
    assert summary["decided_by"] == next(one["judge"] for one in summary["judges"] if one["decides"])

    while True:
        try:
            summary = start()
            break
        except WaitingForPeople:
            assert answer_all(place, "Ada Ben")
    kept = {row["champion"] for row in rows} | {row["candidate"] for row in rows}
    learnt = rows_of(out / "round_2/rankings/rankings.jsonl")
    assert learnt and not {row["prompt"] for row in learnt} & test_prompts
    assert kept.isdisjoint(text for row in learnt if row["prompt"] in test_prompts for text in row["completions"])
    assert [row["round"] for row in summary["rounds"]] == [1, 2]
    assert all(row["decided_by"] in ("people", "vowels") and row["first"]["win_rate"] for row in summary["rounds"])
    pages = [out / "report.html", out / "round_2/report.html"]
    before = [page.read_bytes() for page in pages]
    assert all(b"people, in blind pairs" in page for page in before)
    for page in pages:
        page.unlink()
    assert set(pages) <= set(redraw(out)) and [page.read_bytes() for page in pages] == before


@pytest.mark.slow
def test_of_a_chat_model_people_see_the_conversation_and_not_its_template(
    tmp_path: Path,
    recipe: Any,  # noqa: F811 - the fixture
    chat_model: Path,
    write_rows: WriteRows,
) -> None:
    """Prompts are messages; the page shows turns, and the answer of either side decides nothing but the win rate."""
    turns = [[{"role": "user", "content": f"A {t} in the {p}?"}] for t in THINGS for p in PLACES]
    prompts = write_rows("messages.jsonl", [{"prompt": one} for one in turns])
    more = (f"base.model={chat_model}", f"task.prompts={prompts}", "ask.who=scorer", "ask.scorer={regex: '[aeiou]'}")
    out, wanted = tmp_path / "run", recipe(*more, "eval.people.prompts=3")
    with pytest.raises(WaitingForPeople):
        run(wanted, output_dir=out)
    with serving(out) as served, served.by_token(served.person("Ada")) as ada:
        shown = ada.post("/api/claim", json={}).json()
    assert shown["prompt"] in turns and len(shown["completions"]) == 2
    with Store.open(out / "accord.db") as store:
        assert all(task.prompt.form == "messages" for task in Desk(store, LabelConfig()).queue.tasks() if task.reserved)
    answer_all(out / "accord.db", "Ada")
    told = run(wanted, output_dir=out)["judges"]
    assert [one["judge"] for one in told] == ["people", "vowels"] and told[0]["win_rate"]["n"] == 3


@pytest.mark.slow
def test_simulated_annotators_who_judge_are_never_called_people(
    tmp_path: Path,
    recipe: Any,  # noqa: F811 - the fixture
) -> None:
    out, people = tmp_path / "run", ("eval.people.prompts=5", "eval.people.simulated=true")
    wanted = recipe(*people, "ask.who=scorer", "ask.scorer={regex: '[aeiou]'}")
    with pytest.raises(WaitingForPeople, match=r"0 of \d"):
        run(wanted, output_dir=out)
    with Store.open(out / "accord.db") as store:
        judge(store, "robot", " ")
    summary = run(wanted, output_dir=out)
    told = next(one for one in summary["judges"] if one["judge"] == "simulated")
    assert (told["kind"], told["called"]) == ("simulated", "simulated annotators: programs")
    page = (out / "report.html").read_text()
    assert "people, in blind pairs" not in page and "simulated annotators: programs" in page


@pytest.mark.slow
def test_a_chat_model_judges_a_run_beside_what_scores(
    tmp_path: Path,
    recipe: Any,  # noqa: F811 - the fixture
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A real server that likes the longer text: AI feedback, above the function, and never called people."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    out = tmp_path / "run"
    with serving_chat(longer) as server:
        judges = f"{{vowels: {{regex: '[aeiou]'}}, helpful: {{chat: {{url: '{server.url}', model: tiny}}}}}}"
        more = ("ask.who=scorer", "ask.scorer={regex: '[aeiou]'}", f"eval.judges={judges}")
        summary = run(recipe(*more), output_dir=out)
        asked = len(server.bodies)
        assert run(recipe(*more), output_dir=out)["judges"] == summary["judges"] and len(server.bodies) == asked
    told = summary["judges"]
    assert [(one["judge"], one["kind"]) for one in told] == [("helpful", "chat"), ("vowels", "function")]
    inputs = {"samples": out / "eval/samples.jsonl", "results": out / "eval/results.json"}
    pairs = read_pairs({**inputs, "test_prompts": out / "data/prompts_test.jsonl"}, 1000, 0)
    wins = [(len(one.candidate) > len(one.champion)) + (len(one.candidate) == len(one.champion)) / 2 for one in pairs]
    assert told[0]["win_rate"]["value"] == pytest.approx(sum(wins) / len(wins)) and told[0]["win_rate"]["n"] == len(
        wins
    )
    kept = rows_of(out / "judged_helpful/pairs.jsonl")
    assert [row["candidate_wins"] for row in kept] == [[win] for win in wins]
    beside = json.loads((out / "eval/beside.json").read_text())["standings"]
    assert set(beside["rankings"]) == {"vowels", "helpful"}
    assert [one["judges"] for one in beside["agreement"]] == [["vowels", "helpful"]]
    page = (out / "report.html").read_text()
    assert "By Helpful: Bradley-Terry strengths" in page and "Vowels and Helpful prefer the same completion" in page
    assert "a chat model: AI feedback" in page and "people, in blind pairs" not in page
    by_chat = "in the order of what was said of their pairs" in page
    assert by_chat == (summary["decided_by"] == "helpful") and "a chat model (AI feedback), prefer" in page + str(told)


def test_a_program_that_is_called_people_is_refused_before_any_work(
    tmp_path: Path,
    recipe: Any,  # noqa: F811 - the fixture
) -> None:
    with pytest.raises(UsageError, match="a judge is called 'people'"):
        run(recipe("eval.judges={people: {regex: '[aeiou]'}}"), output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_people_judge_one_candidate() -> None:
    with pytest.raises(UsageError, match="people would judge one candidate"):
        load_recipe("compare", ["eval.people.prompts=5"])
