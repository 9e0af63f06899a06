"""What training makes of judgements: who counts, how much, and what is one group."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from accord import formats
from accord.formats import Item
from accord.formats.jsonl import read_rankings
from accord.people.views import training_view
from accord.records import (
    Annotator,
    Completion,
    Demonstration,
    Label,
    Prompt,
    Ranking,
    Rating,
    Record,
    Source,
    Withdrawal,
)
from accord.store import Store

ADA, BEN, SIM = (
    Annotator(name=name, annotator_kind=kind)
    for name, kind in (("Ada", "human"), ("Ben", "human"), ("sim 1", "simulated"))
)
PROMPT = Prompt(text="Film: Ran\nReview:", topic="Ran")
POLICY = Source(origin="policy", name="sft")
A, B, C, D, E, F = (Completion(prompt_id=PROMPT.id, text=f" {letter}.", source=POLICY) for letter in "ABCDEF")
WORLD: tuple[Record, ...] = (ADA, BEN, SIM, PROMPT, A, B, C, D, E, F)


def rank(annotator: Annotator, *order: Completion, ranks: tuple[int, ...] = (), **said: Any) -> Ranking:
    """Best first, unless ``ranks`` say it."""
    ids = tuple(completion.id for completion in order)
    said = {"prompt_id": PROMPT.id, "annotator_id": annotator.id, **said}
    return Ranking(completion_ids=ids, ranks=ranks or tuple(range(1, len(order) + 1)), **said)


def viewed(path: Path, facts: Iterable[Record], left_out: dict[str, int] | None = None, **options: Any) -> list[Item]:
    with Store.open(path / "accord.db") as store:
        store.add([*WORLD, *facts])
        view = training_view(store, left_out=left_out, **options)
        return list(formats.from_facts(store, view))


def said(items: Iterable[Item]) -> list[tuple[str, str, float]]:
    return [("".join(map(str, item.completions)), item.annotator, item.weight) for item in items]


def test_one_person_counts_one_whether_by_a_ranking_or_by_pairs(tmp_path: Path) -> None:
    facts = [rank(ADA, A, B, C, D), rank(BEN, A, B), rank(BEN, B, C), rank(BEN, C, D)]
    items = viewed(tmp_path, facts)
    assert said(items) == [
        (" A. B. C. D.", "Ada", 1.0),
        (" A. B.", "Ben", 0.333333),
        (" B. C.", "Ben", 0.333333),
        (" C. D.", "Ben", 0.333333),
    ]
    assert {item.group for item in items} == {min(c.id for c in (A, B, C, D))}
    assert {item.origin for item in items} == {"people"}


def test_an_edit_joins_the_group_of_what_it_edits(tmp_path: Path) -> None:
    """Ada compares 6 pairs in a ranking of four, and one by setting her edit above C: each pair counts 1/7."""
    edit = Completion(prompt_id=PROMPT.id, text=" C!", source=Source(origin="human", name="edit", version=C.id))
    items = viewed(tmp_path, [edit, rank(ADA, A, B, C, D), rank(ADA, edit, C), rank(ADA, E, F)])
    assert said(items) == [
        (" A. B. C. D.", "Ada", round(6 / 7, 6)),
        (" C! C.", "Ada", round(1 / 7, 6)),
        (" E. F.", "Ada", 1.0),  # another group of the same prompt
    ]
    assert items[0].group == items[1].group != items[2].group


def test_groups_join_when_a_later_ranking_connects_them(tmp_path: Path) -> None:
    items = viewed(tmp_path, [rank(ADA, A, B), rank(ADA, C, D), rank(BEN, E, F), rank(BEN, D, B)])
    groups = [item.group for item in items]
    assert groups[0] == groups[1] == groups[3] != groups[2]
    assert [weight for _, _, weight in said(items)] == [0.5, 0.5, 1.0, 1.0]


def test_weights_of_annotators_enter(tmp_path: Path) -> None:
    facts: list[Record] = [rank(ADA, A, B), rank(BEN, B, A), Label(annotator_id=BEN.id, completion_id=A.id, good=True)]
    facts += [Rating(annotator_id=ADA.id, completion_id=A.id, value=5, low=1, high=7, axis="wit")]
    facts += [Demonstration(annotator_id=BEN.id, prompt_id=PROMPT.id, text=" Shown.")]
    items = viewed(tmp_path, facts, weights={BEN.id: 0.25})
    assert {(item.kind, item.annotator, item.weight) for item in items} == {
        ("ranking", "Ada", 1.0),
        ("ranking", "Ben", 0.25),
        ("label", "Ben", 0.25),
        ("rating", "Ada", 1.0),
        ("demonstration", "Ben", 0.25),
    }


def test_simulated_annotators_and_gold_answers_are_left_out_and_counted(tmp_path: Path) -> None:
    facts = [rank(SIM, A, B), rank(ADA, A, B), rank(BEN, A, B, flags=("gold",)), rank(ADA, C, D), rank(SIM, C, D)]
    left_out: dict[str, int] = {}
    assert said(viewed(tmp_path, facts, left_out)) == [(" A. B.", "Ada", 1.0), (" C. D.", "Ada", 1.0)]
    assert left_out == {"judgements by simulated annotators": 2, "answers to gold questions": 1}
    both = viewed(tmp_path, (), simulated=True)
    assert [item.origin for item in both] == ["simulated annotators", "people", "people", "simulated annotators"]


def test_an_adjudication_decides_for_all(tmp_path: Path) -> None:
    """It overrules those on the same completions or some of them, not those on more; and nothing of another kind."""
    facts: list[Record] = [rank(ADA, A, B, C), rank(BEN, C, A), rank(ADA, C, B, A, D), rank(BEN, E, F)]
    facts += [Label(annotator_id=ADA.id, completion_id=A.id, good=False), rank(BEN, B, C, A, flags=("adjudication",))]
    left_out: dict[str, int] = {}
    items = viewed(tmp_path, facts, left_out)
    assert [text for text, _, _ in said(items)] == [" C. B. A. D.", " E. F.", " B. C. A.", " A."]
    assert left_out == {"judgements that an adjudication has decided": 2}


def test_what_was_withdrawn_is_not_there(tmp_path: Path) -> None:
    first = rank(ADA, A, B)
    facts: list[Record] = [first, Withdrawal(annotator_id=ADA.id, judgement_id=first.id), rank(ADA, B, A)]
    assert said(viewed(tmp_path, facts)) == [(" B. A.", "Ada", 1.0)]


def test_the_reward_stage_reads_what_was_said(tmp_path: Path) -> None:
    """From the store to the file to the groups of the reward stage: ties, strength, unacceptable, weight and group."""
    facts = [
        rank(ADA, A, B, C, ranks=(2, 1, 2), unacceptable=(C.id,)),
        rank(BEN, B, C, strength="slightly"),
        rank(BEN, A, B, ranks=(1, 1)),
    ]
    items = viewed(tmp_path, facts)
    formats.write(tmp_path / "out.jsonl", items, "accord")
    ranked, pair, tie = read_rankings(tmp_path / "out.jsonl")
    assert (ranked.prompt, ranked.completions, ranked.ranks) == (PROMPT.text, (" A.", " B.", " C."), (2, 1, 2))
    assert (pair.strength, pair.weight, pair.ranks) == ("slightly", 0.5, (1, 2))
    assert (tie.ranks, tie.weight, tie.topic) == ((1, 1), 0.5, "Ran")
    assert ranked.group == pair.group == tie.group == min(c.id for c in (A, B, C))
    again = list(formats.read(tmp_path / "out.jsonl"))
    assert [item.labels for item in again] == [(True, True, False), (), ()]


@pytest.mark.parametrize("form", ["trl-preference", "openai-preference", "accord"])
def test_other_formats_take_the_view_too(form: str, tmp_path: Path) -> None:
    manifest = formats.write(tmp_path / "out.jsonl", viewed(tmp_path, [rank(ADA, A, B, C)]), form)
    assert manifest.counts["pairs"] == 3
