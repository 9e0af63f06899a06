"""People asked in the middle of a run: samples into the queue, how many answers are in, and what they say.

A round's questions are tasks at the desk of the run's store. While too few are answered the stage that asks ends with
`WaitingForPeople`, and nothing of it counts as done; once there are enough, what people said stands in a file, and that
round reads no later answer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
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
from accord.people.quality import quality_weights
from accord.people.views import training_view
from accord.people.watching import AnswersSoFar, Questions, Watch, moment_text
from accord.records import Judgement
from accord.store import Store

ASKED = "tasks.jsonl"  # beside the judgements of a round: the tasks that they answered, those of earlier rounds too


def store_folder(store: str) -> str:
    """The folder of a store, which `accord label` takes; "" where the store is a database server's."""
    return "" if "://" in store else str(Path(store).parent)


def label_command(store: str) -> str:
    """The command that lets people answer what waits in a store."""
    return f"accord label {store_folder(store)}".strip()


class WaitingForPeople(AccordError):
    """Not an error: a run has asked people and ends here until they have answered.

    The same run goes on from there. ``standing`` says how far they are, ``place`` names the folder whose
    ``accord label`` shows the tasks, "" where the store is a database server's.
    """

    exit_code = 5

    def __init__(self, standing: AnswersSoFar, questions: Questions) -> None:
        self.standing, self.questions = standing, questions
        self.answered, self.missing = standing.answered, standing.missing
        self.place = store_folder(questions.store)
        hint = f"{label_command(questions.store)}, then run the same again"
        super().__init__(f"waiting for people: {standing.text()}", hint=hint)


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
        if not standing.ended:
            raise WaitingForPeople(standing, own)
        _refuse_nothing(standing, own)
        before = read_asked(inputs["earlier"]) if "earlier" in inputs else {}
        every = replace(own, tasks={**before, **own.tasks})
        said = _collect(every, asked, reads)
        write_jsonl(asked.judgements.with_name(ASKED), ({"task": id_, "overlap": n} for id_, n in every.tasks.items()))
        ended = {"enough": standing.ended, "ended": standing.why_ended(), "agreement": standing.agreement.to_json()}
        return {"tasks": len(own.tasks), **said, **ended}

    settings = config.model_dump(include={"kind", "overlap", "simulated"}) | {"reads": reads}
    settings["enough"] = config.enough.amount()
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
    with Store.open(asked.store) as facts:
        newest = Desk(facts, LabelConfig()).queue.task(next(reversed(tasks)))
    return Questions(asked.store, tasks, config.enough, config.simulated, newest.created_at)


def _refuse_nothing(standing: AnswersSoFar, questions: Questions) -> None:
    """Raise DataError where a deadline has come before anybody answered: there is nothing to learn from."""
    if standing.ended == "deadline" and not standing.answers:
        raise DataError(
            f"nobody has answered before the deadline, {moment_text(standing.deadline or 0.0)}",
            why=standing.text(),
            hint="give ask.enough a later deadline (or within) and start the same run again; "
            f"the questions still wait: {label_command(questions.store)}",
        )


def _collect(asked_of: Questions, asked: Asked, reads: str) -> dict[str, Any]:
    """Write what people said of these tasks as the reward stage reads it, and return how much that is."""
    with Watch(asked_of) as watch:
        standing, answered = watch.look(time.time()), watch.judgements()
    left_out: dict[str, int] = {}
    with Store.open(asked_of.store) as facts:
        _refuse_strangers(asked_of, facts)
        weights = quality_weights(facts)
        weigh = training_view(facts, weights=weights, simulated=asked_of.simulated, left_out=left_out)

        def view(judgement: Judgement) -> Weighed | None:
            return weigh(judgement) if judgement.id in answered else None

        said = [item for item in from_facts(facts, view) if item.kind == reads]
    rows = list(to_jsonl(replace(item, weight=round(item.weight * asked.weight, 6)) for item in said))
    if not rows:
        told = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise DataError(f"of {standing.answers} answers none is a {reads} to learn from", why=told)
    write_jsonl(asked.judgements, rows)
    counts = {"answers": standing.answers, "people": standing.people, "skipped": standing.skipped}
    counts |= {"simulated_answers": standing.simulated, "of_them_simulated": standing.simulated_among}
    return counts | {"judgements": len(rows), "left_out": left_out}


def _refuse_strangers(asked: Questions, facts: Store) -> None:
    """Raise DataError where the store does not know the tasks that earlier rounds asked."""
    known = {task.id for task in Desk(facts, LabelConfig()).queue.tasks()}
    if unknown := asked.tasks.keys() - known:
        raise DataError(
            f"{len(unknown)} tasks of earlier rounds are not in this store",
            where=asked.store if "://" not in asked.store else "",
            hint="go on with the store that the run began with",
        )
