"""People asked in the middle of a run: samples into the queue, how many answers are in, and what they say.

A round's questions are tasks at the desk of the run's store. While too few are answered the stage that asks ends with
`WaitingForPeople`, and nothing of it counts as done; once there are enough, what people said stands in a file, and that
round reads no later answer.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accord.config import AskConfig, LabelConfig
from accord.errors import AccordError, DataError
from accord.formats import Weighed, from_facts, to_jsonl
from accord.formats.jsonl import write_jsonl
from accord.loop.cache import Inputs
from accord.loop.samples import queue_samples, read_samples, tasks_about
from accord.loop.task import Annotators, Asked
from accord.people.desk import Desk
from accord.people.desk.rows import Submission
from accord.people.quality import quality_weights
from accord.people.views import training_view
from accord.records import Judgement
from accord.store import Store

ASKED = "tasks.jsonl"  # beside the judgements of a round: the tasks that they answered, those of earlier rounds too
POLL_S = 3.0  # often enough to watch, seldom enough that a hundred thousand answers may be counted each time
PACE_OVER_S = 1800.0  # people come and go: how fast they are is what they did in the last half hour


@dataclass(frozen=True)
class AnswersSoFar:
    """How far people are with a round's tasks.

    ``answers`` counts all that teach, ``answered`` of those what fills a task's overlap, ``needed`` what the round
    waits for. ``simulated`` answers are not counted where people are waited for. ``times``: seconds since 1970.
    """

    needed: int
    answered: int
    answers: int
    people: int
    skipped: int
    simulated: int
    times: tuple[float, ...] = ()
    judgements: frozenset[str] = frozenset()

    @property
    def missing(self) -> int:
        return max(0, self.needed - self.answered)

    def text(self) -> str:
        """How it stands, in words."""
        more = [f"{self.skipped} skipped"] if self.skipped else []
        more += [f"{self.simulated} by simulated annotators do not count"] if self.simulated else []
        by = f" by {self.people} {'person' if self.people == 1 else 'people'}" if self.people else ""
        return f"{self.answered} of {self.needed} answers{by}" + (f" ({', '.join(more)})" if more else "")


@dataclass(frozen=True)
class Questions:
    """Tasks in a store that people answer; ``enough`` answers are waited for, 0: each by all of its overlap."""

    store: str
    tasks: Mapping[str, int]
    enough: int = 0
    simulated: bool = False

    def standing(self) -> AnswersSoFar:
        """How far they are now. Tasks that have become gold questions are neither waited for nor counted."""
        with Store.open(self.store) as facts:
            desk = Desk(facts, LabelConfig())
            gold = {task.id for task in desk.queue.tasks(gold=True)}
            ours = {id_: overlap for id_, overlap in self.tasks.items() if id_ not in gold}
            given = [one for one in desk.reading.submissions() if one.task_id in ours and not one.undone]
            played = {person.id for person in desk.directory.people() if person.simulated}
            skipped = sum(skip.task_id in ours for skip in desk.reading.skips())
        return _standing(self, ours, given, played, skipped)


def _standing(
    asked: Questions, tasks: Mapping[str, int], given: Sequence[Submission], played: set[int], skipped: int
) -> AnswersSoFar:
    taken = [one for one in given if asked.simulated or one.person_id not in played]
    answers = [one for one in taken if not one.adjudication]
    filled = Counter(one.task_id for one in answers)
    most = sum(tasks.values())
    return AnswersSoFar(
        needed=min(asked.enough, most) if asked.enough else most,
        answered=sum(min(filled[id_], overlap) for id_, overlap in tasks.items()),
        answers=len(answers),
        people=len({one.person_id for one in answers}),
        skipped=skipped,
        simulated=len(given) - len(taken),
        times=tuple(sorted(one.created_at for one in answers)),
        judgements=frozenset(id_ for one in taken for id_ in one.judgement_ids),
    )


class WaitingForPeople(AccordError):
    """Not an error: a run has asked people and ends here until they have answered.

    The same run goes on from there. ``standing`` says how far they are, ``place`` names the folder whose
    ``accord label`` shows the tasks, "" where the store is a database server's.
    """

    exit_code = 5

    def __init__(self, standing: AnswersSoFar, questions: Questions) -> None:
        self.standing, self.questions = standing, questions
        self.answered, self.missing = standing.answered, standing.missing
        self.place = "" if "://" in questions.store else str(Path(questions.store).parent)
        super().__init__(f"waiting for people: {standing.text()}", hint=f"{self.command}, then run the same again")

    @property
    def command(self) -> str:
        """What lets people answer."""
        return f"accord label {self.place}".strip()


def wait_for_people(questions: Questions, say: Callable[[str], None], *, every_s: float = POLL_S) -> None:
    """Look at the store until the answers are enough, and say each time how far people are."""
    while (standing := questions.standing()).missing:
        say(f"waiting for people: {standing.text()}{_pace(standing, time.time())}")
        time.sleep(every_s)


def _pace(standing: AnswersSoFar, now: float) -> str:
    """How fast answers come, and when there will be enough; nothing before the second one of the last half hour."""
    recent = [at for at in standing.times if now - at < PACE_OVER_S]
    if len(recent) < 2:
        return ""
    per_hour = 3600 * (len(recent) - 1) / max(1.0, now - recent[0])
    minutes = 60 * standing.missing / per_hour
    left = f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"
    return f", {per_hour:.0f} an hour: enough in about {left}"


# ---- as annotators of a run ------------------------------------------------------------------------------------------


def people_at_the_desk(config: AskConfig, guideline: str, reads: str, earlier: Path | None) -> Annotators:
    """People, as `accord.loop.asking` asks anybody: ``answer`` queues the samples and collects what people say.

    Args:
        reads: The kind of judgement that the reward model learns from.
        earlier: The tasks of the rounds before, whose answers (late ones too) are collected again with this one's.
    """

    def answer(inputs: Inputs, asked: Asked) -> dict[str, Any]:
        own = _ask(config, asked, guideline)
        standing = own.standing()
        if standing.missing:
            raise WaitingForPeople(standing, own)
        before = read_asked(inputs["earlier"]) if "earlier" in inputs else {}
        every = replace(own, tasks={**before, **own.tasks})
        said = _collect(every, asked, reads)
        write_jsonl(asked.judgements.with_name(ASKED), ({"task": id_, "overlap": n} for id_, n in every.tasks.items()))
        return {"tasks": len(own.tasks), **said}

    settings = config.model_dump(include={"kind", "overlap", "enough", "simulated"}) | {"reads": reads}
    return Annotators({} if earlier is None else {"earlier": earlier}, answer, settings)


def read_asked(path: Path) -> dict[str, int]:
    """The tasks that a round has asked, each with its overlap."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {row["task"]: row["overlap"] for row in rows}


def late_answers(result: Mapping[str, Any], tasks: Path, store: str, config: AskConfig) -> int:
    """How many answers came after a round was closed, with ``result`` of its stage that asked."""
    now = Questions(store, read_asked(tasks), simulated=config.simulated).standing()
    return max(0, now.answers - int(result["answers"]))


def _ask(config: AskConfig, asked: Asked, guideline: str) -> Questions:
    """Queue what is not in the queue yet, and return the round's tasks."""
    groups = read_samples(asked.samples)
    queue_samples(groups, asked.source, store=asked.store, ask=config, guideline=guideline)
    tasks = tasks_about(groups, asked.source, store=asked.store, ask=config)
    if not tasks:
        raise DataError(
            "there is nothing to ask people",
            where=str(asked.samples),
            why="no prompt has two different samples",
            hint="raise sample.samples_per_prompt or sample.temperature",
        )
    return Questions(asked.store, tasks, config.enough, config.simulated)


def _collect(asked_of: Questions, asked: Asked, reads: str) -> dict[str, Any]:
    """Write what people said of these tasks as the reward stage reads it, and return how much that is."""
    standing = asked_of.standing()
    left_out: dict[str, int] = {}
    with Store.open(asked_of.store) as facts:
        _refuse_strangers(asked_of, facts)
        weights = quality_weights(facts)
        weigh = training_view(facts, weights=weights, simulated=asked_of.simulated, left_out=left_out)

        def view(judgement: Judgement) -> Weighed | None:
            return weigh(judgement) if judgement.id in standing.judgements else None

        said = [item for item in from_facts(facts, view) if item.kind == reads]
    rows = list(to_jsonl(replace(item, weight=round(item.weight * asked.weight, 6)) for item in said))
    if not rows:
        told = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise DataError(f"of {standing.answers} answers none is a {reads} to learn from", why=told)
    write_jsonl(asked.judgements, rows)
    counts = {"answers": standing.answers, "people": standing.people, "skipped": standing.skipped}
    return counts | {"simulated_answers": standing.simulated, "judgements": len(rows), "left_out": left_out}


def _refuse_strangers(asked: Questions, facts: Store) -> None:
    """Raise DataError where the store does not know the tasks that earlier rounds asked."""
    known = {task.id for task in Desk(facts, LabelConfig()).queue.tasks()}
    if unknown := asked.tasks.keys() - known:
        raise DataError(
            f"{len(unknown)} tasks of earlier rounds are not in this store",
            where=asked.store if "://" not in asked.store else "",
            hint="go on with the store that the run began with",
        )
