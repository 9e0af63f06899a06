"""What programs say of samples in people's place: facts of an annotator kind of their own, and rows to learn from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from accord.errors import DataError
from accord.formats import Item, to_jsonl
from accord.formats.facts import ORIGINS, UNKNOWN_TIME
from accord.formats.jsonl import write_jsonl
from accord.loop.samples import as_facts, read_samples
from accord.loop.task import Asked
from accord.records import Annotator, Completion, Prompt, Ranking, content_id
from accord.store import Store


@dataclass(frozen=True)
class SampleGroup:
    """Different samples of one prompt: as facts, the prompt as it was given, and what the model read of it."""

    asked: Any
    text: str
    prompt: Prompt
    completions: tuple[Completion, ...]

    @property
    def texts(self) -> list[str]:
        return [completion.text for completion in self.completions]

    @property
    def name(self) -> str:
        """Return a name that neither the order of the samples nor that of the groups changes."""
        return content_id("group", [self.prompt.id, *sorted(completion.id for completion in self.completions)])


@dataclass(frozen=True)
class ProgramSaid:
    """One ranking by a program. What is said of one group by several, or pair by pair, counts ``together``."""

    group: SampleGroup
    annotator: Annotator
    ranking: Ranking
    weight: float = 1.0
    together: bool = False


def sample_groups(asked: Asked) -> list[SampleGroup]:
    """Return the groups that there is something to rank in: two different texts or more.

    Raises:
        DataError: There is none.
    """
    rows = read_samples(asked.samples)
    found = [
        SampleGroup(row["prompt"], row["text"], prompt, tuple({one.text: one for one in completions}.values()))
        for row, (prompt, completions) in zip(rows, as_facts(rows, asked.source), strict=True)
    ]
    groups = [group for group in found if len(group.completions) > 1]
    if not groups:
        raise DataError(
            "there is nothing to rank",
            where=str(asked.samples),
            why="no prompt has two different samples",
            hint="raise sample.samples_per_prompt or sample.temperature",
        )
    return groups


def ranking_of(group: SampleGroup, annotator: Annotator, ranks: Mapping[str, int], note: str = "") -> Ranking:
    """Return ranks by completion id as a fact, in the order in which they stand there."""
    # At no moment: a run that goes on after a kill makes the same facts.
    return Ranking(
        annotator_id=annotator.id,
        created_at=UNKNOWN_TIME,
        note=note,
        prompt_id=group.prompt.id,
        completion_ids=tuple(ranks),
        ranks=tuple(ranks.values()),
    )


def keep(asked: Asked, said: Sequence[ProgramSaid]) -> dict[str, Any]:
    """Keep judgements in the store and as rows for the reward stage; how many and by whom, as the stage tells it."""
    annotators = {one.annotator.id: one.annotator for one in said}
    groups = {one.group.name: one.group for one in said}
    facts = [fact for group in groups.values() for fact in (group.prompt, *group.completions)]
    with Store.open(asked.store) as store:
        store.add([*annotators.values(), *facts, *(one.ranking for one in said)])
    write_jsonl(asked.judgements, to_jsonl(_items(asked, said)))
    kinds = {annotator.annotator_kind for annotator in annotators.values()}
    called = ", ".join(ORIGINS[kind] for kind in sorted(kinds))
    return {"called": called, "judgements": len(said), "annotators": [one.name for one in annotators.values()]}


def _items(asked: Asked, said: Sequence[ProgramSaid]) -> Iterator[Item]:
    for one in said:
        text_of = {completion.id: completion.text for completion in one.group.completions}
        yield Item(
            prompt=one.group.asked,
            completions=tuple(text_of[id_] for id_ in one.ranking.completion_ids),
            ranks=one.ranking.ranks,
            topic=one.group.prompt.topic,
            origin=ORIGINS[one.annotator.annotator_kind],
            annotator=one.annotator.name,
            weight=round(one.weight * asked.weight, 6),
            group=one.group.name if one.together else "",
        )
