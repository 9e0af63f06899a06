"""Questions that people answer in the middle of a run: how many answers are in, who is at it, when there are enough."""

from __future__ import annotations

import json
import math
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import TracebackType
from typing import Self

from accord.config import EnoughConfig, LabelConfig
from accord.config.enough import span_s
from accord.people.desk import Desk, Person
from accord.people.desk.rows import AnswersSince, GivenAnswer
from accord.people.quality.so_far import AgreementSoFar
from accord.stats import Estimate, Interval, Unknown
from accord.store import Store

POLL_S = 3.0  # often enough to watch; a look at a store of a hundred thousand answers takes 40 ms
PACE_OVER_S = 1800.0  # people come and go: how fast they are is what they did in the last half hour
AT_WORK_S = 600.0  # who has answered within ten minutes is at it: a long ranking takes one or two
# An interval by resampling fewer clusters than about 20 is too narrow (`accord.stats.bootstrap_by_cluster`).
FEWEST_AGREED = 20
# Resampling 50,000 tasks takes two seconds of the processor: then it is done again after half a minute only.
AGE_A_SECOND = 20.0
SIMULATED = "simulated annotators"
_ONE_EACH = Unknown("nobody was asked what another was asked")


@dataclass(frozen=True)
class AnswersSoFar:
    """How far people are with a round's tasks. Times are seconds since 1970.

    ``answers`` counts all that teach, ``answered`` of those what fills a task's overlap, ``needed`` what the round
    waits for. ``people`` are real ones; ``simulated`` answers are counted apart, and among ``answers`` only where
    ``takes_simulated``. ``agreement`` is people's, and programs' only where no people answer. ``recent`` holds time and
    name of the answers of the last half hour, oldest first.
    ``ended`` names what ends the waiting, a key of ``ask.enough``; "" while there are not enough.
    """

    needed: int
    answered: int
    answers: int
    people: int
    skipped: int
    simulated: int
    takes_simulated: bool = False
    recent: tuple[tuple[float, str], ...] = ()
    agreement: Estimate = _ONE_EACH
    deadline: float | None = None
    ended: str = ""

    @property
    def missing(self) -> int:
        return max(0, self.needed - self.answered)

    @property
    def simulated_among(self) -> int:
        """How many of the answers that count are simulated annotators'."""
        return self.simulated if self.takes_simulated else 0

    def text(self) -> str:
        """How it stands, in words."""
        more = [f"{self.skipped} skipped"] if self.skipped else []
        told = f"of them by {SIMULATED}" if self.simulated_among else f"by {SIMULATED} do not count"
        more += [f"{self.simulated} {told}"] if self.simulated else []
        by = f" by {self.people} {'person' if self.people == 1 else 'people'}" if self.people else ""
        return f"{self.answered} of {self.needed} answers{by}" + (f" ({', '.join(more)})" if more else "")

    def why_ended(self) -> str:
        """What ended the waiting, and with how many answers."""
        why = {
            "agreement": f": it is known well enough how far they agree, {self._agreed()}",
            "deadline": f": the deadline {moment_text(self.deadline or 0.0)} is over",
        }
        return f"enough: {self.text()}{why.get(self.ended, '')}"

    def line(self, now: float) -> str:
        """All of it in one line: how many answers, how fast, until when, how far people agree, and who is at it."""
        parts = [f"{self.text()}{self._pace(now)}", self._until(), self._agreed(), self._at_work(now)]
        return "; ".join(filter(None, parts))

    def per_hour(self, now: float) -> float | None:
        """Answers an hour over the last half hour, or since the first of it; None before the second one."""
        times = [at for at, _ in self.recent if now - at < PACE_OVER_S]
        return 3600 * (len(times) - 1) / max(1.0, now - times[0]) if len(times) > 1 else None

    def at_work(self, now: float) -> dict[str, int]:
        """Who has answered in the last ten minutes, and how often, the busiest first."""
        return dict(Counter(name for at, name in self.recent if now - at < AT_WORK_S).most_common())

    def _pace(self, now: float) -> str:
        per_hour = self.per_hour(now)
        if per_hour is None:
            return ""
        minutes = 60 * self.missing / per_hour
        left = f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"
        return f", {per_hour:.0f} an hour: enough in about {left}"

    def _until(self) -> str:
        return "" if self.deadline is None else f"until {moment_text(self.deadline)}"

    def _agreed(self) -> str:
        told = agreement_text(self.agreement) if isinstance(self.agreement, Interval) else ""
        return told if self.people else told.replace("agreement", f"agreement of {SIMULATED}", 1)

    def _at_work(self, now: float) -> str:
        names = ", ".join(f"{name} {count}" for name, count in self.at_work(now).items())
        return f"in the last {AT_WORK_S / 60:.0f} minutes {names}" if names else ""


def agreement_text(found: Estimate) -> str:
    """Agreement with its interval and how much it rests on; why there is none."""
    if isinstance(found, Unknown):
        return f"agreement unknown: {found.why}"
    return f"agreement {found.value:.2f} [{found.low:.2f}, {found.high:.2f}] on {found.clusters} tasks"


def moment_text(at: float) -> str:
    """A moment by the clock of this machine, with its zone."""
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M %Z").strip()


@dataclass(frozen=True)
class Questions:
    """Tasks in a store that people answer, each with its overlap, and what ends the waiting for them.

    ``queued_at``: when they were queued, in seconds since 1970; ``enough.within`` counts from there.
    """

    store: str
    tasks: Mapping[str, int]
    enough: EnoughConfig = field(default_factory=EnoughConfig)
    simulated: bool = False
    queued_at: float = 0.0

    @property
    def deadline(self) -> float | None:
        """When the waiting ends whatever has come, in seconds since 1970; None where nothing says."""
        moments = [datetime.fromisoformat(self.enough.deadline).timestamp()] if self.enough.deadline else []
        moments += [self.queued_at + span_s(self.enough.within)] if self.enough.within else []
        return min(moments, default=None)

    def standing(self, now: float | None = None) -> AnswersSoFar:
        """How far they are. Tasks that have become gold questions are neither waited for nor counted."""
        with Watch(self) as watch:
            return watch.look(time.time() if now is None else now)


def ending(enough: EnoughConfig, standing: AnswersSoFar, now: float) -> str:
    """Return what ends the waiting, a key of ``ask.enough``: the first that is met; "" while none is."""
    known = standing.agreement
    met = {
        "answers": not standing.missing,
        "agreement": isinstance(known, Interval)
        and known.clusters >= FEWEST_AGREED
        and known.high - known.low < enough.agreement,
        "deadline": standing.deadline is not None and now >= standing.deadline,
    }
    return next((key for key, is_met in met.items() if is_met), "")


class Watch:
    """Looks at the same questions again and again, and reads only what has come since the last look."""

    def __init__(self, questions: Questions) -> None:
        self._questions = questions
        self._store = Store.open(questions.store)
        self._reading = Desk(self._store, LabelConfig()).reading
        self._held: dict[int, GivenAnswer] = {}
        self._taken: list[GivenAnswer] = []
        self._last = 0
        self._agreement = AgreementSoFar()
        self._agreed_until = 0.0
        self._seen: _Seen | None = None
        self._standing: AnswersSoFar | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._store.close()

    def look(self, now: float) -> AnswersSoFar:
        """How far people are at this moment."""
        since, tasks = self._reading.answers_since(self._last), self._questions.tasks
        self._last = since.new[-1].number if since.new else self._last
        self._held |= {one.number: one for one in since.new if one.task_id in tasks}
        seen = _Seen.of(since, len(self._held))
        if self._standing is None or seen != self._seen:
            self._seen = seen
            self._standing = self._count(since)
        recent = self._standing.recent[bisect_left(self._standing.recent, (now - PACE_OVER_S, "")) :]
        standing = replace(self._standing, recent=recent, deadline=self._questions.deadline)
        return replace(standing, ended=ending(self._questions.enough, standing, now))

    def judgements(self) -> frozenset[str]:
        """The judgements that the answers of the last look have made, a manager's decisions among them."""
        return frozenset(id_ for one in self._taken for id_ in json.loads(one.made))

    def _count(self, since: AnswersSince) -> AnswersSoFar:
        asked = self._questions
        tasks = {id_: overlap for id_, overlap in asked.tasks.items() if id_ not in since.gold_tasks}
        given = [one for one in self._held.values() if one.number not in since.undone and one.task_id in tasks]
        played = {person.id for person in since.people if person.simulated}
        self._taken = [one for one in given if asked.simulated or one.person_id not in played]
        answers = [one for one in self._taken if not one.adjudication]
        filled, most = Counter(one.task_id for one in answers), sum(tasks.values())
        return AnswersSoFar(
            needed=min(asked.enough.answers, most) if asked.enough.answers else most,
            answered=sum(min(filled[id_], overlap) for id_, overlap in tasks.items()),
            answers=len(answers),
            people=len({one.person_id for one in answers} - played),
            skipped=sum(task_id in tasks for task_id in since.skipped),
            simulated=sum(one.person_id in played for one in given),
            takes_simulated=asked.simulated,
            recent=_named(answers, since.people),
            agreement=self._agreed(tasks, [one for one in answers if one.person_id not in played] or answers),
        )

    def _agreed(self, tasks: Mapping[str, int], answers: Iterable[GivenAnswer]) -> Estimate:
        """Agreement on the tasks that several people answer; of many thousands it may be some looks old."""
        if max(tasks.values(), default=0) < 2:
            return _ONE_EACH
        if self._standing is None or time.monotonic() >= self._agreed_until:
            started = time.thread_time()
            found = self._agreement.of(one for one in answers if tasks[one.task_id] > 1)
            took = time.thread_time() - started
            self._agreed_until = time.monotonic() + AGE_A_SECOND * max(0.0, took - 0.5)
            return found
        self._seen = None  # counted anew at the next look, whether something comes or not
        return self._standing.agreement


@dataclass(frozen=True)
class _Seen:
    """What decides the counts of a look: where it is as it was, so are they."""

    held: int
    undone: frozenset[int]
    gold_tasks: frozenset[str]
    skipped: int
    people: tuple[Person, ...]

    @classmethod
    def of(cls, since: AnswersSince, held: int) -> _Seen:
        return cls(held, since.undone, since.gold_tasks, len(since.skipped), since.people)


def _named(answers: Sequence[GivenAnswer], people: Iterable[Person]) -> tuple[tuple[float, str], ...]:
    """Time and name of each answer, oldest first; the simulated go by one name, and are not counted as people."""
    names = {person.id: SIMULATED if person.simulated else person.name for person in people}
    return tuple(sorted((one.created_at, names[one.person_id]) for one in answers))


#: Called at each look while people are waited for.
Watcher = Callable[[Questions, AnswersSoFar], None]


def wait_for_people(questions: Questions, tell: Watcher, *, every_s: float = POLL_S) -> None:
    """Look at the store until something ends the waiting, and tell each time how far people are."""
    with Watch(questions) as watch:
        while not (standing := watch.look(time.time())).ended:
            tell(questions, standing)
            left = math.inf if standing.deadline is None else standing.deadline - time.time()
            time.sleep(max(0.0, min(every_s, left)))
