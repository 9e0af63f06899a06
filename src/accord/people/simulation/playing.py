"""Annotators to test with, at work: they claim and answer over HTTP, as people's browsers do."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from accord.extend import blaming
from accord.people.simulation.annotators import ShownTask, SimulatedAnnotator
from accord.people.simulation.client import Client
from accord.progress import Log

if TYPE_CHECKING:
    from accord.people.desk import Desk

NOT_MINE = "not my field"  # the reason for skipping what a replayed rater never saw, if the project has it


class ProjectAdmin(Protocol):
    """The part of an admin that a simulation needs: a `Client` with an admin's token, or a `DeskAdmin`."""

    def add_person(self, name: str) -> tuple[int, str]: ...

    def dismiss(self, person_id: int) -> None: ...

    def add_tasks(self, tasks: Sequence[Mapping[str, Any]]) -> int: ...

    def waiting(self) -> int: ...

    def quality(self) -> dict[str, Any]: ...


class DeskAdmin:
    """An admin on the desk itself: a project needs no account for a simulation of its own."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def add_person(self, name: str) -> tuple[int, str]:
        person = self._desk.directory.add_person(name, "annotator", simulated=True)
        return person.id, self._desk.directory.make_token(person.id, "accord simulate")

    def dismiss(self, person_id: int) -> None:
        person = self._desk.directory.person(person_id)
        for token in self._desk.directory.tokens(person_id):
            self._desk.directory.revoke_token(token.id, by=person)

    def add_tasks(self, tasks: Sequence[Mapping[str, Any]]) -> int:
        from accord.people.web.api import GivenTask

        return self._desk.queue.add_tasks([GivenTask.model_validate(task).made() for task in tasks])

    def waiting(self) -> int:
        return self._desk.reading.counts()["waiting"]

    def quality(self) -> dict[str, Any]:
        from accord.people.quality import report_of

        return report_of(self._desk).to_json()


@dataclass(frozen=True)
class Played:
    """The outcome of a simulation: answers and skips by annotator, and who left before the queue was empty."""

    answered: Mapping[str, int]
    skipped: Mapping[str, int]
    left: tuple[str, ...]


def play(admin: ProjectAdmin, url: str, annotators: Sequence[SimulatedAnnotator], log: Log) -> Played:
    """Register annotators as simulated ones and let them answer in turn until there is nothing left for anybody.

    They are dismissed afterwards: their tokens open nothing any more.
    """
    expected = admin.waiting()
    run = secrets.token_hex(2)  # names are taken once; a second simulation of the same raters has its own
    answered, skipped, left = ({f"{annotator.name} #{run}": 0 for annotator in annotators} for _ in range(3))
    people, seats = [], []
    for annotator in annotators:
        person_id, token = admin.add_person(f"{annotator.name} #{run}")
        people.append(person_id)
        seats.append((f"{annotator.name} #{run}", annotator, Client(url, token)))
    try:
        waiting = list(seats)
        while waiting:
            still = []
            for name, annotator, client in waiting:
                if answered[name] >= annotator.patience:
                    left[name] = 1
                elif (task := client.claim()) is not None:
                    did = answered if _answer(client, annotator, task) else skipped
                    did[name] += 1
                    still.append((name, annotator, client))
            waiting = still
            done = sum(answered.values())
            log(min(1.0, done / max(1, expected)), f"{done} answers, {len(waiting)} annotators at work")
    finally:
        for _, _, client in seats:
            client.close()
        # Also after an error: tokens of programs must not outlive them.
        for person_id in people:
            admin.dismiss(person_id)
    return Played(answered, skipped, tuple(name for name, gone in left.items() if gone))


def _answer(client: Client, annotator: SimulatedAnnotator, task: Mapping[str, Any]) -> bool:
    prompt = " ".join(turn["content"] for turn in task["prompt"])
    texts = tuple(completion["text"] for completion in task["completions"])
    with blaming(annotator.name):
        said = annotator.answer(ShownTask(task["kind"], prompt, texts, task["settings"]))
    if said is None:
        # Every project has reasons to skip, and not every one has this.
        reasons = task["settings"]["skip_reasons"]
        client.skip(task["task_id"], NOT_MINE if NOT_MINE in reasons else reasons[0])
        return False
    # A new key with each revision: after an undo the same answer is a new one.
    client.submit(task["task_id"], said, key=f"{task['task_id']}-{task['revision']}-{secrets.token_hex(8)}")
    return True
