"""What simulated annotators said, as the plain rows that the quality report reads: no desk, no server, no clock."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from accord.config import LabelConfig
from accord.people.desk.answers import read_answer
from accord.people.desk.kinds import check
from accord.people.desk.rows import Person, QueuedTask, Skip, Submission
from accord.people.quality import Quality, report
from accord.people.simulation.annotators import ShownTask, SimulatedAnnotator
from accord.records import Completion, Prompt, Source

SETTINGS = LabelConfig()
WORDS = ("awful", "bad", "dull", "weak", "fair", "fine", "good", "great", "superb")
VALUES = {word: i - 4 for i, word in enumerate(WORDS)}


def gold(text: str) -> float:
    """The utility of a text made by `texts`: the sum of its rated words."""
    return sum(VALUES.get(word, 0) for word in text.split()) / 2


def texts(count: int, seed: int) -> list[str]:
    """Different texts of 5 to 40 words, the length unrelated to how good they are."""
    draw = random.Random(seed)
    return [
        " ".join([f"text{i}", draw.choice(WORDS), draw.choice(WORDS), *["and"] * draw.randint(2, 37)])
        for i in range(count)
    ]


def make_tasks(kind: str, count: int, size: int, overlap: int, seed: int) -> list[QueuedTask]:
    source = Source(origin="policy", name="test")
    every, made = texts(count * size, seed), []
    for number in range(count):
        prompt = Prompt(text=f"prompt {number}")
        group = every[number * size : (number + 1) * size]
        completions = tuple(Completion(prompt_id=prompt.id, text=text, source=source) for text in group)
        made.append(
            QueuedTask(
                id=f"task-{number:03d}",
                kind=kind,
                prompt=prompt,
                completions=completions,
                overlap=overlap,
                priority=0.0,
                group="",
                gold=None,
                origin="test",
                created_at=0.0,
            )
        )
    return made


@dataclass
class Workshop:
    """Annotators that answer tasks in turn, a second apart; the order shown is drawn for each anew."""

    tasks: list[QueuedTask]
    annotators: Sequence[SimulatedAnnotator]
    seed: int = 0
    submissions: list[Submission] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.people = [
            Person(i + 1, annotator.name, "annotator", f"annotator-{i + 1}", False, True)
            for i, annotator in enumerate(self.annotators)
        ]

    def work(self) -> Quality:
        """Everybody in turn takes the first task with a free slot; then the report."""
        draw, slots = random.Random(self.seed), {task.id: task.overlap for task in self.tasks}
        seen: set[tuple[int, str]] = set()
        waiting = list(range(len(self.annotators)))
        while waiting:
            waiting = [i for i in waiting if self._step(i, draw, slots, seen)]
        return self.report()

    def _step(self, i: int, draw: random.Random, slots: dict[str, int], seen: set[tuple[int, str]]) -> bool:
        annotator = self.annotators[i]
        done = sum(one.person_id == i + 1 for one in self.submissions)
        task = next((task for task in self.tasks if slots[task.id] and (i, task.id) not in seen), None)
        if task is None or done >= annotator.patience:
            return False
        seen.add((i, task.id))
        order = draw.sample(range(len(task.completions)), len(task.completions))
        shown = tuple(task.completions[place].text for place in order)
        said = annotator.answer(ShownTask(task.kind, task.prompt.text, shown, SETTINGS.model_dump(mode="json")))
        if said is None:
            self.skips.append(Skip(task.id, task.kind, i + 1, SETTINGS.skip_reasons[0], ""))
            return True
        slots[task.id] -= 1
        self.submit(i + 1, task, order, said)
        return True

    def submit(self, person_id: int, task: QueuedTask, order: Sequence[int], said: dict[str, Any], **more: Any) -> None:
        answer = read_answer(said)
        check(task.kind, SETTINGS, len(task.completions), answer)
        fields = {
            "id": f"submission-{len(self.submissions)}",
            "task_id": task.id,
            "kind": task.kind,
            "person_id": person_id,
            "person_name": self.people[person_id - 1].name,
            "order": tuple(order),
            "answer": answer,
            "seconds": answer.seconds,
            "pauses_s": 0.0,
            "guideline_rev": 0,
            "created_at": 1_000_000.0 + len(self.submissions),
            "extra": False,
            "undone": False,
            "adjudication": False,
            "gold": task.gold is not None,
            "judgement_ids": (),
        }
        self.submissions.append(Submission(**{**fields, **more}))

    def report(self) -> Quality:
        return report(self.submissions, self.tasks, self.people, skips=self.skips)
