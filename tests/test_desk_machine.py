"""Any schedule of claims, answers, retries, second thoughts and time, against a model of dictionaries.

The model knows no SQL and stores no number of free slots: it counts them anew, from who has what until when.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from accord.config import LabelConfig
from accord.people.desk import Conflict, Desk, Gone, NewTask, Person
from accord.people.desk.answers import Answer
from accord.records import Completion, Label, Prompt, Source
from accord.store import Store, operations

PROMPT = Prompt(text="Film: Heat\nReview:")
POLICY = Source(origin="policy", name="m")
LEASE_S, UNDO_S = 20 * 60.0, 10 * 60.0
_NUMBERS = count()


@dataclass
class Part:
    """One person's part in one task."""

    state: str  # leased, released, submitted, skipped
    counts: bool
    until: float
    revision: int = 1


@dataclass(frozen=True)
class Said:
    person: int
    task: str
    good: bool
    key: str
    receipt: Any
    at: float


class Machine(RuleBasedStateMachine):
    """`desk_of` makes a desk with no tasks."""

    desk_of: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_767_225_600.0
        self.desk: Desk = type(self).desk_of(lambda: self.now)
        number = next(_NUMBERS)
        self.people: list[Person] = [self.desk.directory.add_person(f"{name} {number}", "annotator") for name in "ABC"]
        self.overlaps: dict[str, int] = {}
        self.turns: dict[str, tuple[float, int]] = {}
        self.parts: dict[tuple[int, str], Part] = {}
        self.said: list[Said] = []
        self.undone: set[str] = set()

    # The model --------------------------------------------------------------------------------------------------------

    def live(self, part: Part) -> bool:
        return part.state == "leased" and part.until > self.now

    def free(self, task: str) -> int:
        filled = [p for (_, t), p in self.parts.items() if t == task and p.counts]
        return self.overlaps[task] - sum(p.state == "submitted" or self.live(p) for p in filled)

    def late(self, part: Part) -> bool:
        return part.state == "leased" and part.until <= self.now

    def held_by(self, person: int) -> dict[str, Part]:
        return {task: part for (who, task), part in self.parts.items() if who == person}

    def some_part(self, data: st.DataObject, *states: str) -> tuple[int, str, Part]:
        keys = sorted(key for key, part in self.parts.items() if not states or part.state in states)
        who, task = data.draw(st.sampled_from(keys))
        return who, task, self.parts[who, task]

    # Rules ------------------------------------------------------------------------------------------------------------

    @initialize(tasks=st.lists(st.tuples(st.integers(1, 2), st.integers(0, 1)), min_size=1, max_size=3))
    def begin(self, tasks: list[tuple[int, int]]) -> None:
        for overlap, priority in tasks:
            self.add_task(overlap, priority)

    @rule(overlap=st.integers(1, 2), priority=st.integers(0, 1))
    def add_task(self, overlap: int, priority: int) -> None:
        completion = Completion(prompt_id=PROMPT.id, text=f" {len(self.overlaps)}", source=POLICY)
        new = NewTask(kind="label", prompt=PROMPT, completions=(completion,), overlap=overlap, priority=priority)
        assert self.desk.queue.add_tasks([new]) == 1
        (task,) = {task.id for task in self.desk.queue.tasks()} - self.overlaps.keys()
        self.turns[task] = (-priority, len(self.overlaps))
        self.overlaps[task] = overlap

    @rule(seconds=st.sampled_from([1.0, UNDO_S / 2, LEASE_S - 1, LEASE_S, 3 * LEASE_S]))
    def time_goes_by(self, seconds: float) -> None:
        self.now += seconds

    @rule(index=st.integers(0, 2))
    def claim(self, index: int) -> None:
        who = self.people[index].id
        mine = self.held_by(who)
        live = {task for task, part in mine.items() if self.live(part)}
        begun = {task for task, part in mine.items() if self.late(part) and self.free(task) > 0}
        again = {task for task, part in mine.items() if part.state == "released"}
        open_ = [t for t in self.overlaps if self.free(t) > 0 and (t not in mine or t in again)]
        expected = live or begun or set(sorted(open_, key=self.turns.__getitem__)[:1])
        found = self.desk.queue.claim(who)
        if found is None:
            assert expected == set()
            return
        task = found.task.id
        assert task in expected
        # A lease beyond the overlap (a skip taken back too late) takes a slot that has become free.
        counts = task not in live or mine[task].counts or self.free(task) > 0
        revision = mine[task].revision if task in mine else 1
        self.parts[who, task] = Part("leased", counts, self.now + LEASE_S, revision)
        part = self.parts[who, task]
        assert (found.until, found.revision) == (part.until, part.revision)

    @precondition(lambda self: self.parts)
    @rule(data=st.data(), good=st.booleans())
    def submit(self, data: st.DataObject, good: bool) -> None:
        who, task, part = self.some_part(data)
        key = f"key {len(self.said)}"
        if part.state in ("submitted", "skipped"):
            with pytest.raises(Conflict if part.state == "submitted" else Gone):
                self.desk.answers.submit(who, task, Answer(good=(good,)), key=key)
            return
        fills = (part.counts and self.live(part)) or self.free(task) > 0
        receipt = self.desk.answers.submit(who, task, Answer(good=(good,)), key=key)
        assert (receipt.extra, receipt.repeated, receipt.revision) == (not fills, False, part.revision)
        self.parts[who, task] = Part("submitted", fills, 0.0, part.revision)
        self.said.append(Said(who, task, good, key, receipt, self.now))

    @precondition(lambda self: self.said)
    @rule(data=st.data())
    def send_again(self, data: st.DataObject) -> None:
        said = data.draw(st.sampled_from(self.said))
        again = self.desk.answers.submit(said.person, said.task, Answer(good=(said.good,), seconds=9), key=said.key)
        assert again == type(again)(
            said.receipt.submission_id, said.task, said.receipt.revision, said.receipt.extra, True
        )

    @precondition(lambda self: self.said)
    @rule(data=st.data())
    def send_something_else_under_the_same_key(self, data: st.DataObject) -> None:
        said = data.draw(st.sampled_from(self.said))
        with pytest.raises(Conflict):
            self.desk.answers.submit(said.person, said.task, Answer(good=(not said.good,)), key=said.key)

    @precondition(lambda self: self.said)
    @rule(data=st.data())
    def undo(self, data: st.DataObject) -> None:
        said = data.draw(st.sampled_from(self.said))
        id_ = said.receipt.submission_id
        if id_ in self.undone or self.now - said.at > UNDO_S:
            with pytest.raises(Gone):
                self.desk.answers.undo(said.person, id_)
            return
        part = self.parts[said.person, said.task]
        counts = part.counts or self.free(said.task) > 0
        back = self.desk.answers.undo(said.person, id_)
        self.undone.add(id_)
        self.parts[said.person, said.task] = Part("leased", counts, self.now + LEASE_S, part.revision + 1)
        assert (back.task.id, back.revision) == (said.task, part.revision + 1)
        assert back.draft is not None and back.draft["good"] == [said.good]

    @precondition(lambda self: self.parts)
    @rule(data=st.data(), act=st.sampled_from(["release", "skip"]))
    def give_up(self, data: st.DataObject, act: str) -> None:
        who, task, part = self.some_part(data)
        door = self.desk.queue.release if act == "release" else lambda p, t: self.desk.queue.skip(p, t, "cannot decide")
        if part.state != "leased":
            with pytest.raises(Gone):
                door(who, task)
            return
        door(who, task)
        self.parts[who, task] = Part("released" if act == "release" else "skipped", False, 0.0, part.revision)

    @precondition(lambda self: any(part.state == "skipped" for part in self.parts.values()))
    @rule(data=st.data())
    def unskip(self, data: st.DataObject) -> None:
        who, task, part = self.some_part(data, "skipped")
        counts = self.free(task) > 0
        assert self.desk.queue.unskip(who, task).task.id == task
        self.parts[who, task] = Part("leased", counts, self.now + LEASE_S, part.revision)

    @precondition(lambda self: self.parts)
    @rule(data=st.data())
    def heartbeat(self, data: st.DataObject) -> None:
        who, task, part = self.some_part(data)
        if part.state != "leased" or (self.late(part) and self.free(task) == 0):
            with pytest.raises(Gone):
                self.desk.queue.heartbeat(who, task)
            return
        counts = part.counts if self.live(part) else True
        assert self.desk.queue.heartbeat(who, task) == self.now + LEASE_S
        self.parts[who, task] = Part("leased", counts, self.now + LEASE_S, part.revision)

    # What must hold after every step ----------------------------------------------------------------------------------

    @invariant()
    def no_slot_is_given_twice_and_none_is_lost(self) -> None:
        assert all(0 <= self.free(task) <= overlap for task, overlap in self.overlaps.items())
        counts = self.desk.reading.counts()
        parts = self.parts.values()
        assert counts["slots"] == sum(self.overlaps.values())
        assert counts["waiting"] == sum(map(self.free, self.overlaps))
        assert counts["leased"] == sum(self.live(part) and part.counts for part in parts)
        assert counts["filled"] == sum(part.state == "submitted" and part.counts for part in parts)
        assert counts["skipped"] == sum(part.state == "skipped" for part in parts)

    @invariant()
    def no_judgement_is_lost_or_double(self) -> None:
        annotators = {person.annotator_id: person.id for person in self.people}
        texts = {c.id: c.text for c in self.desk.store.completions()}
        by_task = {f" {number}": task for task, (_, number) in self.turns.items()}

        def as_said(facts: Any) -> Counter[tuple[int, str, bool]]:
            own = [fact for fact in facts if isinstance(fact, Label) and fact.annotator_id in annotators]
            return Counter((annotators[f.annotator_id], by_task[texts[f.completion_id]], f.good) for f in own)

        every = Counter((said.person, said.task, said.good) for said in self.said)
        standing = [said for said in self.said if said.receipt.submission_id not in self.undone]
        assert as_said(self.desk.store.labels(history=True)) == every
        assert as_said(self.desk.store.labels()) == Counter((s.person, s.task, s.good) for s in standing)
        assert len({(said.person, said.task) for said in standing}) == len(standing)
        shown = {
            row.id: (row.person_id, row.task_id, row.answer.good, row.extra, row.undone)
            for row in self.desk.reading.submissions()
        }
        assert shown == {
            (id_ := s.receipt.submission_id): (s.person, s.task, (s.good,), s.receipt.extra, id_ in self.undone)
            for s in self.said
        }


@pytest.mark.slow
@pytest.mark.hypothesis
def test_any_schedule_agrees_with_the_model(place: str) -> None:
    with Store.open(place) as store:

        def desk_of(clock: Any) -> Desk:
            """Facts and people stay, and the next annotators are others; all else begins anew."""
            tables = (operations.submissions, operations.assignments, operations.task_completions, operations.tasks)
            store.write(lambda c: [c.execute(table.delete()) for table in tables])
            return Desk(store, LabelConfig(), clock=clock)

        machine = type("Machine", (Machine,), {"desk_of": staticmethod(desk_of)})
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=15,
                stateful_step_count=30,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
        assert store.verify() == []
