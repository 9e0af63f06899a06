"""Simulated annotators for any task: one reader, or a panel whose members differ, with the weights that people get."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from accord.loop.cache import Inputs
from accord.loop.programs import ProgramSaid, SampleGroup, keep, ranking_of, sample_groups
from accord.loop.task import Annotators, Asked
from accord.people.quality import rankings_quality
from accord.people.simulation.readers import SimulatedReader, describe_readers
from accord.seeds import stream_seed
from accord.stats import Interval


def simulated_annotators(readers: Sequence[SimulatedReader], overlap: int, seed: int) -> Annotators:
    """Readers who rank the samples, each group by ``overlap`` of them, chosen by hash."""

    def answer(inputs: Inputs, asked: Asked) -> dict[str, Any]:
        said = [one for group in sample_groups(asked) for one in _rank(group, readers, overlap, seed)]
        quality = rankings_quality((one.ranking, one.group.completions) for one in said)
        names = {one.annotator.id: one.annotator.name for one in said}
        weighed = [replace(one, weight=quality.weights[one.annotator.id]) for one in said]
        agreed = {"agreement": quality.agreement.raw.to_json(), "alpha": quality.agreement.alpha.to_json()}
        weights = {names[id_]: round(weight, 3) for id_, weight in quality.weights.items()}
        lines = [*describe_readers(readers), _agreement(quality.agreement.raw, overlap)]
        return keep(asked, weighed) | agreed | {"weights": weights, "description": lines}

    settings = {"readers": [asdict(reader) for reader in readers], "overlap": overlap}
    return Annotators({}, answer, settings)


def _rank(group: SampleGroup, readers: Sequence[SimulatedReader], overlap: int, seed: int) -> Iterator[ProgramSaid]:
    """Return the rankings of a group, each in an order of its own."""
    # By hash, not in turn: leaving one group out gives no other group to somebody else.
    turns = sorted(readers, key=lambda reader: stream_seed(seed, "reader's turn", group.name, reader.name))
    asked = " ".join(turn["content"] for turn in group.prompt.turns())
    for reader in turns[:overlap]:
        shown = sorted(group.completions, key=lambda completion: completion.id)
        random.Random(stream_seed(seed, "reader's order", reader.name, group.name)).shuffle(shown)
        ranks = reader.ranks(asked, [completion.text for completion in shown])
        by_id = dict(zip((completion.id for completion in shown), ranks, strict=True))
        yield ProgramSaid(group, reader.record(), ranking_of(group, reader.record(), by_id), together=overlap > 1)


def _agreement(raw: Any, overlap: int) -> str:
    if not isinstance(raw, Interval):
        return f"How far they agree nobody can say: each prompt was ranked by {overlap}."
    return f"Of orders of two samples that two of them gave, {raw.value:.2f} [{raw.low:.2f}, {raw.high:.2f}] are alike."
