"""A policy's samples: as rows of a file, as facts, and in the queue where people find them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from accord.config import AskConfig, LabelConfig
from accord.extend import is_outside
from accord.people.desk import Desk
from accord.people.intake import queue_groups, queued_tasks
from accord.records import Completion, Prompt, Source
from accord.store import Store

SAMPLES = "samples.jsonl"


def read_samples(path: Path) -> list[dict[str, Any]]:
    """The groups that a sample stage wrote."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def as_facts(groups: Iterable[Mapping[str, Any]], source: Source) -> Iterator[tuple[Prompt, tuple[Completion, ...]]]:
    """Groups of samples as facts: each prompt with its completions."""
    for group in groups:
        prompt = prompt_fact(group["prompt"], group["topic"])
        texts = group["completions"]
        yield prompt, tuple(Completion(prompt_id=prompt.id, text=text, source=source) for text in texts)


def prompt_fact(asked: Any, topic: str) -> Prompt:
    """A prompt of text or messages as a fact."""
    return Prompt(text=asked, topic=topic) if isinstance(asked, str) else Prompt.of_messages(asked, topic=topic)


def queue_samples(
    groups: Sequence[Mapping[str, Any]], source: Source, *, store: str, ask: AskConfig, guideline: str = ""
) -> int:
    """Queue groups of a policy's samples for people as ``ask`` says, and return how many tasks were new.

    See `accord.people.intake.queue_groups`. Where there are no guidelines yet, people get those given.
    """
    with Store.open(store) as facts:
        desk = Desk(facts, _settings(ask))
        if guideline and desk.directory.guideline().rev == 0:
            desk.directory.write_guideline(guideline, None)
        return queue_groups(desk, as_facts(groups, source), serve_as=_serve_as(ask), origin=source.name).added


def tasks_about(groups: Sequence[Mapping[str, Any]], source: Source, *, store: str, ask: AskConfig) -> dict[str, int]:
    """The tasks in the queue that ask about groups of samples, each with the number of people who are to answer it."""
    with Store.open(store) as facts:
        found = queued_tasks(Desk(facts, _settings(ask)), as_facts(groups, source), serve_as=_serve_as(ask))
        return {task.id: task.overlap for task in found}


def _serve_as(ask: AskConfig) -> str:
    """How the queue takes a group: whole, or as all its pairs."""
    return "pairs" if ask.kind == "pair" else ask.kind


def _settings(ask: AskConfig) -> LabelConfig:
    own = (ask.kind,) if is_outside(ask.kind) else ()
    return LabelConfig(overlap=ask.overlap, own_kinds=own)
