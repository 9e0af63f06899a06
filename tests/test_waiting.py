"""People in the middle of a run: what ends the waiting, how far they agree by hand, what is told while they work."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest
from own_kind import NAME as OWN_KIND
from own_kind import write_kind
from test_cli import Clock, Stream
from webapp import http_get, task

from accord.cli.progress import Progress
from accord.cli.talk import Talk
from accord.cli.waiting import LINK_HOURS, Door, JoinLink, invited, join_links, reception
from accord.config import AskConfig, EnoughConfig, LabelConfig, Recipe, load_recipe, recipe_schema
from accord.errors import DataError, ResourceError, UsageError
from accord.loop.task import Asked
from accord.loop.waiting import WaitingForPeople, people_at_the_desk
from accord.people.desk import Desk, Person
from accord.people.desk.answers import read_answer
from accord.people.quality import report_of
from accord.people.running import announced, running_app
from accord.people.watching import AnswersSoFar, Questions, Watch, wait_for_people
from accord.people.web.serving import Address
from accord.progress import Notice, named_part
from accord.records import Source
from accord.stats import Interval, Unknown
from accord.store import Store


class Office:
    """A store with ``count`` tasks about the texts a, b, c; people answer them by name, ranks by text."""

    def __init__(self, place: Path, count: int, kind: str = "ranking", overlap: int = 2) -> None:
        self.place, self.store = str(place / "accord.db"), Store.open(place / "accord.db")
        self.desk = Desk(self.store, LabelConfig(undo_minutes=600))
        self.desk.queue.add_tasks(task(kind, f"task {n}", *"abc", overlap=overlap) for n in range(count))
        self.tasks = [one.id for one in self.desk.queue.tasks()]
        self.sent = 0

    def person(self, name: str, **more: bool) -> Person:
        known = {person.name: person for person in self.desk.directory.people()}
        return known.get(name) or self.desk.directory.add_person(name, "annotator", **more)

    def answer(self, name: str, *ranks: Mapping[str, int], simulated: bool = False) -> list[str]:
        """Answer the next tasks of this person with these ranks; the ids of the answers."""
        person, receipts = self.person(name, simulated=simulated), []
        for by_text in ranks:
            got = self.desk.queue.claim(person.id)
            assert got is not None
            said = read_answer({"ranks": [by_text[text.text] for text in got.shown]})
            self.sent += 1
            receipts.append(self.desk.answers.submit(person.id, got.task.id, said, key=f"answer {self.sent}"))
        return [receipt.submission_id for receipt in receipts]

    def questions(self, overlap: int = 2, **enough: object) -> Questions:
        return Questions(self.place, dict.fromkeys(self.tasks, overlap), EnoughConfig.model_validate(enough))


ABC, ACB, CBA = ({text: rank for rank, text in enumerate(order, 1)} for order in ("abc", "acb", "cba"))


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return Office(tmp_path, 3)


# ---- agreement -------------------------------------------------------------------------------------------------------


def test_agreement_is_that_of_hand_arithmetic_and_of_the_managers_page(office: Office) -> None:
    """abc and abc agree on three of three orders, abc and acb on two, abc and cba on none, ab and ba too: 5 of 10."""
    office.desk.queue.add_tasks([task("ranking", "of two", *"ab", overlap=2)])
    office.tasks = [one.id for one in office.desk.queue.tasks()]
    office.answer("Ada", ABC, ABC, ABC, ABC)
    assert office.questions().standing().agreement == Unknown("no task has two answers that can be compared yet")
    office.answer("Ben", ABC, ACB, CBA, {"a": 2, "b": 1})
    found = office.questions().standing().agreement
    assert isinstance(found, Interval)
    assert (found.value, found.n, found.clusters) == (pytest.approx(5 / 10), 10, 4)
    page = report_of(office.desk).agreement[0].raw
    assert isinstance(page, Interval)
    assert (found.low, found.high, page.value) == (pytest.approx(page.low), pytest.approx(page.high), found.value)


def test_of_three_people_each_two_are_compared(tmp_path: Path) -> None:
    """abc, cba and abc: of the three pairs of people one says the same, of each order. One task states no agreement."""
    office = Office(tmp_path, 2, overlap=3)
    crew = (("Ada", ABC), ("Ben", CBA), ("Cleo", ABC))
    for name, ranks in crew:
        office.answer(name, ranks)
    alone = office.questions(overlap=3).standing()
    assert isinstance(alone.agreement, Unknown) and "agreement" not in alone.line(0.0)
    for name, ranks in crew:
        office.answer(name, ranks)
    found = office.questions(overlap=3).standing().agreement
    assert isinstance(found, Interval) and found.value == pytest.approx(1 / 3)
    assert "agreement 0.33 [" in office.questions(overlap=3).standing().line(0.0)


def test_labels_agree_by_completion(tmp_path: Path) -> None:
    """Good, good, bad and good, bad, bad: two labels of three are alike, in both tasks."""
    office = Office(tmp_path, 2, kind="label")
    said_by = (("Ada", {"a": True, "b": True, "c": False}), ("Ben", {"a": True, "b": False, "c": False}))
    for number, (name, good) in enumerate([*said_by, *said_by]):
        got = office.desk.queue.claim(office.person(name).id)
        assert got is not None
        said = read_answer({"good": [good[text.text] for text in got.shown]})
        office.desk.answers.submit(office.person(name).id, got.task.id, said, key=f"{name} {number}")
    found = office.questions().standing().agreement
    assert isinstance(found, Interval) and (found.value, found.n) == (pytest.approx(2 / 3), 6)


# ---- what ends the waiting -------------------------------------------------------------------------------------------


def test_agreement_ends_it_when_its_interval_is_narrow_enough_on_twenty_tasks(tmp_path: Path) -> None:
    """All alike: Wilson's interval of K tasks is [K / (K + 3.84), 1]; 19 are .168 wide, 20 .161."""
    office = Office(tmp_path, 21)
    office.answer("Ada", *[ABC] * 21)
    office.answer("Ben", *[ABC] * 19)
    asked, closer = office.questions(agreement=0.17), office.questions(agreement=0.16)
    with Watch(asked) as watch:
        assert watch.look(0.0).ended == ""
        office.answer("Ben", ABC)
        found = watch.look(0.0)
    assert isinstance(found.agreement, Interval)
    assert found.agreement.low == pytest.approx(20 / 23.8415, abs=1e-4)
    assert (found.ended, closer.standing().ended) == ("agreement", "")
    assert found.why_ended() == (
        "enough: 41 of 42 answers by 2 people: it is known well enough how far they agree, "
        "agreement 1.00 [0.84, 1.00] on 20 tasks"
    )


def test_answers_end_it_before_all_else(office: Office) -> None:
    asked = office.questions(answers=2, within="1h")
    office.answer("Ada", ABC)
    assert asked.standing(now=0.0).ended == ""
    office.answer("Ada", ABC)
    found = asked.standing(now=1e12)
    assert (found.ended, found.why_ended()) == ("answers", "enough: 2 of 2 answers by 1 person")


def test_a_deadline_ends_it_with_what_there_is(office: Office) -> None:
    asked = Questions(office.place, dict.fromkeys(office.tasks, 2), EnoughConfig(within="2h"), queued_at=1000.0)
    office.answer("Ada", ABC)
    assert asked.standing(now=8199.9).ended == ""
    found = asked.standing(now=8200.0)
    assert (found.ended, found.deadline) == ("deadline", 8200.0)
    assert found.why_ended().startswith("enough: 1 of 6 answers by 1 person: the deadline 1970-01-01 ")


def ask_about(place: Path, config: AskConfig) -> dict[str, object]:
    """Ask people about one prompt as a stage of a run does."""
    (place / "samples.jsonl").write_text('{"prompt": "A fox:", "topic": "fox", "completions": ["a", "b", "c"]}\n')
    source = Source(origin="policy", name="tiny/sft")
    asked = Asked(place / "samples.jsonl", place / "said.jsonl", source, str(place / "accord.db"), 1.0, 0)
    found: dict[str, object] = people_at_the_desk(config, "", "ranking", None).answer({}, asked)
    return found


def test_a_deadline_without_an_answer_is_an_error_that_says_how_to_go_on(tmp_path: Path) -> None:
    over = AskConfig(who="people", enough=EnoughConfig(deadline="2001-02-03T04:05"))
    with pytest.raises(DataError, match=r"nobody has answered before the deadline, 2001-02-03 04:05") as error:
        ask_about(tmp_path, over)
    assert "later deadline" in error.value.hint and f"accord label {tmp_path}" in error.value.hint
    with pytest.raises(WaitingForPeople, match="0 of 1 answers"):
        ask_about(tmp_path, AskConfig(who="people", enough=EnoughConfig(within="1h")))
    with Store.open(tmp_path / "accord.db") as store:
        desk = Desk(store, LabelConfig())
        got = desk.queue.claim(desk.directory.add_person("Ada", "annotator").id)
        assert got is not None
        desk.answers.submit(1, got.task.id, read_answer({"ranks": [1, 2, 3]}), key="one")
    two = AskConfig(who="people", overlap=2, enough=EnoughConfig(deadline="2001-02-03T04:05"))
    told = ask_about(tmp_path, two)
    assert (told["enough"], told["answers"], told["judgements"]) == ("answers", 1, 1)  # queued with an overlap of one


def test_a_moved_deadline_opens_no_finished_round_and_more_answers_do() -> None:
    def identity(**enough: object) -> object:
        config = AskConfig(who="people", overlap=2, enough=EnoughConfig.model_validate(enough))
        return people_at_the_desk(config, "", "ranking", None).settings["enough"]

    assert identity() == identity(deadline="2026-12-24T18:00") == identity(within="2h") == 0
    assert identity(answers=5) == 5  # as it stood in stamps before there was more to say
    assert identity(answers=5, agreement=0.1) != identity(answers=5, agreement=0.2)


def test_waiting_ends_at_the_deadline_and_not_a_poll_later(office: Office) -> None:
    told: list[AnswersSoFar] = []
    soon = datetime.fromtimestamp(time.time() + 0.3).isoformat()
    wait_for_people(office.questions(deadline=soon), lambda _, standing: told.append(standing), every_s=600)
    assert [one.ended for one in told] == [""]


# ---- the settings ----------------------------------------------------------------------------------------------------


def test_a_plain_number_is_so_many_answers(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("ask: {who: people, overlap: 2, enough: 240}\n")
    (tmp_path / "two.yaml").write_text("extends: one.yaml\nask: {enough: {agreement: 0.1, within: 48h}}\n")
    assert load_recipe(tmp_path / "one.yaml").ask.enough == EnoughConfig(answers=240)
    both = load_recipe(tmp_path / "two.yaml", ["ask.enough=60"])
    assert both.ask.enough == EnoughConfig(answers=60, agreement=0.1, within="48h")
    assert AskConfig.model_validate({"enough": 3}).enough.answers == 3
    assert both.resolved()["ask"]["enough"]["answers"] == 60
    assert {"type": "integer", "minimum": 0} in recipe_schema()["$defs"]["EnoughConfig"]["anyOf"]


def test_a_deadline_is_a_moment_or_a_span() -> None:
    def ends_at(queued_at: float, **enough: str) -> float | None:
        return Questions("accord.db", {}, EnoughConfig.model_validate(enough), queued_at=queued_at).deadline

    at = datetime(2026, 12, 24, 17, tzinfo=UTC).timestamp()
    assert ends_at(0.0, deadline="2026-12-24T18:00+01:00") == at
    here = load_recipe(None, ["ask.enough.deadline=2026-12-24 18:00:00"]).ask.enough  # YAML makes a moment of it
    assert ends_at(0.0, deadline=here.deadline) == datetime(2026, 12, 24, 18).timestamp()
    spans = [ends_at(100.0, within=text) for text in ("90m", "1.5h", "2d", "")]
    assert spans == [100 + 5400, 100 + 5400, 100 + 172_800, None]
    assert ends_at(at - 7200, deadline="2026-12-24T18:00+01:00", within="1h") == at - 3600


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("ask.enough=-1", "ask.enough.answers"),
        ("ask.enough=[1]", "ask.enough is a section"),
        ("ask.enough.agreement=0.1", "give overlap 2 or more"),
        ("ask.enough.deadline=tomorrow", "2026-12-24T18:00"),
        ("ask.enough.deadline=2026-12-24", "2026-12-24T18:00"),
        ("ask.enough.within=48", "like 90m, 48h or 2d"),
        ("ask.enough.within=two days", "like 90m, 48h or 2d"),
        ("ask.enough.within=0h", "longer than nothing"),
        ("ask.enough.answer=3", "did you mean 'ask.enough.answers'"),
    ],
)
def test_what_cannot_be_enough_is_refused(override: str, told: str) -> None:
    with pytest.raises(UsageError) as error:
        load_recipe(None, ["ask.who=people", override])
    assert told in str(error.value)


# ---- looking again ---------------------------------------------------------------------------------------------------


def test_looking_again_finds_what_a_first_look_finds(tmp_path: Path) -> None:
    """Answers, answers taken back, gold questions and skips, in any order."""
    office, draw = Office(tmp_path, 6), random.Random(0)
    boss = office.desk.directory.add_person("Bea", "manager")
    office.person("robot", simulated=True)
    sent: dict[str, list[str]] = {"Ada": [], "Ben": [], "robot": []}
    golden = list(office.tasks[:2])
    with Watch(office.questions()) as watch:
        for _ in range(24):
            name, what = draw.choice(list(sent)), draw.choice(["answer", "answer", "undo", "gold", "skip"])
            got = office.desk.queue.claim(office.person(name).id)
            if what == "answer" and got is not None:
                sent[name] += office.answer(name, draw.choice([ABC, ACB, CBA]))
            elif what == "undo" and sent[name]:
                office.desk.answers.undo(office.person(name).id, sent[name].pop())
            elif what == "gold" and golden:
                office.desk.queue.set_gold(golden.pop(), read_answer({"ranks": [1, 2, 3]}), boss)
            elif what == "skip" and got is not None:
                office.desk.queue.skip(office.person(name).id, got.task.id, "cannot decide")
            now = time.time()
            assert watch.look(now) == office.questions().standing(now)


def test_a_look_reads_what_is_new_and_nothing_else(office: Office) -> None:
    office.answer("Ada", ABC, ABC)
    first = office.desk.reading.answers_since(0)
    office.answer("Ben", ACB)
    then = office.desk.reading.answers_since(first.new[-1].number)
    assert [one.person_id for one in first.new + then.new] == [1, 1, 2]
    assert not office.desk.reading.answers_since(then.new[-1].number).new


def test_simulated_annotators_are_named_so_and_are_no_people(office: Office) -> None:
    office.answer("robot", ABC, ABC, ABC, simulated=True)
    office.answer("Ada", ABC)
    now = time.time()
    people = office.questions().standing(now)
    assert (people.answered, people.people, people.at_work(now)) == (1, 1, {"Ada": 1})
    assert people.text() == "1 of 6 answers by 1 person (3 by simulated annotators do not count)"
    assert isinstance(people.agreement, Unknown)
    both = Questions(office.place, dict.fromkeys(office.tasks, 2), simulated=True).standing(now)
    assert both.text() == "4 of 6 answers by 1 person (3 of them by simulated annotators)"
    assert both.at_work(now) == {"simulated annotators": 3, "Ada": 1}
    assert isinstance(both.agreement, Unknown)  # people agree with people alone


def test_agreement_of_simulated_annotators_alone_is_called_so(tmp_path: Path) -> None:
    """Two programs that always say the same; people who never do take their place."""
    office = Office(tmp_path, 2, overlap=4)
    for name in ("robot", "machine"):
        office.answer(name, ABC, ABC, simulated=True)
    taken = Questions(office.place, dict.fromkeys(office.tasks, 4), simulated=True)
    assert "; agreement of simulated annotators 1.00 [0.34, 1.00] on 2 tasks" in taken.standing().line(0.0)  # 2 / 5.84
    office.answer("Ada", ABC, ABC)
    office.answer("Ben", CBA, CBA)
    found = taken.standing()
    assert isinstance(found.agreement, Interval) and found.agreement.value == 0.0
    assert "; agreement 0.00" in found.line(0.0)


# ---- what is told ----------------------------------------------------------------------------------------------------


def test_the_line_says_how_fast_until_when_and_who() -> None:
    """Four answers in 20 minutes are 9 an hour (3 gaps); six are missing: 40 minutes."""
    now = 1_000_000.0
    recent = ((now - 1200, "Ada"), (now - 900, "Ada"), (now - 300, "Ben"), (now - 1, "Ada"))
    standing = AnswersSoFar(10, 4, 4, 2, 0, 0, recent=recent, agreement=Interval(0.75, 0.5, 0.9, 12, 4))
    assert standing.line(now) == (
        "4 of 10 answers by 2 people, 9 an hour: enough in about 40 minutes; "
        "agreement 0.75 [0.50, 0.90] on 4 tasks; in the last 10 minutes Ben 1, Ada 1"
    )
    assert standing.per_hour(now + 600) == pytest.approx(3600 * 2 / 1500)  # the first is half an hour old by then
    assert standing.line(now + 3600) == "4 of 10 answers by 2 people; agreement 0.75 [0.50, 0.90] on 4 tasks"
    assert "until 1970-01-1" in AnswersSoFar(10, 0, 0, 0, 0, 0, deadline=now).line(now)


def test_a_log_file_gets_a_line_a_minute_and_every_notice() -> None:
    clock, stream = Clock(), Stream()
    log = Progress(stream, clock)  # type: ignore[arg-type]
    named_part(log, 0, 2, "round 1")(0.5, "sample: done")
    for second in range(0, 130, 10):
        log.waiting(f"waiting {second}")
        clock.now += 10
    named_part(log, 0, 2, "round 1")(0.5, Notice("ask: enough"))
    named_part(log, 0, 2, "round 1")(0.5, Notice("ask: 3 came late"))
    told = [line.strip() for line in stream.lines]
    assert told[1:] == [
        *("[ 25%] waiting 0", "[ 25%] waiting 60", "[ 25%] waiting 120"),
        *("[ 25%] round 1: ask: enough", "[ 25%] round 1: ask: 3 came late"),
    ]


def test_waiting_is_no_work_for_the_time_left() -> None:
    """A quarter in ten seconds, then an hour of people: the other three quarters take 30 seconds."""
    clock, stream = Clock(), Stream()
    log = Progress(stream, clock)  # type: ignore[arg-type]
    clock.now += 10
    log(0.25, "sample")
    clock.now += 3600
    log.waiting("waiting for people")
    assert log.seconds_left == pytest.approx(30)


def test_a_terminal_gets_one_line_in_place() -> None:
    stream = Stream(tty=True)
    with Progress(stream) as log:  # type: ignore[arg-type]
        log.waiting("waiting for people: 0 of 4 answers")
        log.waiting("waiting for people: 1 of 4 answers")
        log(0.5, Notice("ask: enough: [4 of 4] answers"))
    drawn = "".join(stream.lines)
    assert "1 of 4 answers" in drawn and "ask: enough: [4 of 4] answers" in drawn
    assert drawn.rstrip("\n").endswith("\x1b[2K")


# ---- where people answer ---------------------------------------------------------------------------------------------


def test_an_app_is_found_while_it_runs_and_not_after_it_was_killed(tmp_path: Path) -> None:
    store = str(tmp_path / "accord.db")
    assert running_app(store) == "" == running_app("postgresql://host/db")
    with announced(store, "http://one"):
        assert running_app(store) == running_app(store) == "http://one"
        with announced(store, "http://two"):
            assert running_app(store) == "http://one"
        assert running_app(store) == "http://one"
    assert running_app(store) == "" and list(tmp_path.iterdir()) == []
    code = "import sys\nfrom accord.people.running import announced\n"
    code += f"with announced({store!r}, 'http://one'): print(1, flush=True), sys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() and running_app(store) == "http://one"
    child.kill()
    child.communicate()
    assert child.returncode == -signal.SIGKILL and Path(store + ".app").exists()
    assert running_app(store) == ""


def test_each_colleague_gets_a_link_and_who_is_in_one_of_the_own(office: Office) -> None:
    office.person("Ada")
    office.person("robot", simulated=True)
    office.desk.directory.add_person("Bea", "manager")

    def enters(link: JoinLink, name: str) -> Person:
        return office.desk.directory.enter_by_link(link.url.removeprefix("http://app/join/"), name).person

    links = join_links(office.desk, "3", "http://app")
    assert [link.who for link in links] == ["Ada", "colleague 2", "colleague 3"]
    assert enters(links[0], "").name == "Ada"
    for number, link in enumerate(links[1:]):
        assert enters(link, f"new {number}").role == "annotator"
    named = join_links(office.desk, "ada, Cleo", "http://app")
    assert [link.who for link in named] == ["Ada", "Cleo"] and office.person("Cleo").role == "annotator"
    assert [enters(link, "").name for link in named] == ["Ada", "Cleo"]
    office.desk.directory.disable(office.person("Cleo").id, office.desk.directory.add_person("Chef", "admin"))
    with pytest.raises(UsageError, match="Cleo is disabled"):
        join_links(office.desk, "Cleo", "http://app")


@pytest.mark.parametrize("text", ["Ada,,Ben", "Ada,Ada", ","])
def test_nobody_is_invited_twice_or_without_a_name(text: str) -> None:
    with pytest.raises(UsageError, match="--invite"):
        invited(text)
    assert (invited("3"), invited(""), invited("Ada, Ben")) == (3, [], ["Ada", "Ben"])


@pytest.mark.parametrize(
    ("door", "who", "told"),
    [
        (Door(serve=True), "nobody", "--serve has no effect where ask.who is nobody"),
        (Door(invite="3"), "people", "--invite needs an app"),
        (Door(address=Address(port=0)), "people", "--port, --allow-host and --proxy have no effect without --serve"),
    ],
)
def test_a_door_that_leads_nowhere_is_refused(tmp_path: Path, door: Door, who: str, told: str) -> None:
    recipe = Recipe(ask=AskConfig(who=who))
    with pytest.raises(UsageError, match=told), reception(None, recipe, tmp_path, None, door):  # type: ignore[arg-type]
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_app_of_a_run_serves_its_own_kinds_and_is_missed_when_it_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_kind(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    recipe = Recipe(ask=AskConfig(who="people", kind=OWN_KIND))
    office, log = Office(tmp_path, 1), Progress(Stream())  # type: ignore[arg-type]
    talk, door = Talk(False, log, sys.stdout), Door(serve=True, invite="1", address=Address(port=0))
    with reception(talk, recipe, tmp_path, None, door) as people:
        assert people.settings.own_kinds == (OWN_KIND,) and people.waits
        assert running_app(office.place) == ""  # nothing is asked yet
        people.tell(office.questions(), office.questions().standing())
        url = running_app(office.place)
        assert http_get(f"{url}/login").status_code == 200 and people.links[0].url.startswith(f"{url}/join/")
        people.close()
        with pytest.raises(ResourceError, match="the annotation app has ended"):
            people.tell(office.questions(), office.questions().standing())
    assert running_app(office.place) == ""


def test_a_link_of_a_run_lasts_over_the_weekend(tmp_path: Path) -> None:
    clock = Clock()
    with Store.open(tmp_path / "accord.db") as store:
        directory = Desk(store, LabelConfig(), clock=clock).directory
        ada = directory.add_person("Ada", "annotator")
        usual, long = directory.login_link(ada.id, by=None), directory.login_link(ada.id, by=None, hours=LINK_HOURS)
        clock.now += 25 * 3600
        assert (directory.person_of_link(usual), directory.person_of_link(long)) == (None, ada)
        clock.now += 48 * 3600
        assert directory.person_of_link(long) is None


def test_people_who_only_judge_are_received_too(tmp_path: Path) -> None:
    recipe = load_recipe(None, ["ask.who=nobody", "eval.people.prompts=4"])
    door = Door(serve=True, address=Address(port=0))
    with reception(None, recipe, tmp_path, None, door) as people:  # type: ignore[arg-type]
        assert people.waits
