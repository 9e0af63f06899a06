"""What training makes of judgements: who counts, how much, and what is one group."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from accord import formats
from accord.config import LabelConfig
from accord.formats import Item
from accord.formats.stage_rows import read_rankings
from accord.people.desk import Desk, NewTask, group_tasks
from accord.people.desk.answers import Answer, Edit
from accord.people.views import MOST_TOGETHER, training_view
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


def served(path: Path, answers: Iterable[tuple[str, str, Answer]], tasks: Iterable[list[NewTask]]) -> None:
    """Queue tasks, and let people answer those of a prompt's text in turn: (person, prompt, answer as shown)."""
    with Store.open(path / "accord.db") as store:
        desk = Desk(store, LabelConfig(overlap=3))
        desk.queue.add_tasks(task for group in tasks for task in group)
        people = {
            name: desk.directory.add_person(name, "annotator").id
            for name in dict.fromkeys(name for name, _, _ in answers)
        }
        for number, (name, kind, answer) in enumerate(answers):
            taken = desk.queue.claim(people[name], kinds=[kind])
            assert taken is not None
            desk.answers.submit(people[name], taken.task.id, answer, key=f"key-{number:032d}")


def test_one_person_counts_one_whether_by_a_ranking_or_by_pairs(tmp_path: Path) -> None:
    """A ranking of four, an edit with it, and the same four as four pairs: each person counts 1 a group as served."""
    four = (A, B, C, D)
    tasks = [group_tasks(PROMPT, four, serve_as="ranking"), group_tasks(PROMPT, four, serve_as="pairs", num_pairs=4)]
    answers = [("Ada", "ranking", Answer(ranks=(1, 2, 3, 4)))]
    answers += [("Eve", "ranking", Answer(ranks=(1, 1, 1, 1), edit=Edit(of=2, text=" Mine.")))]
    answers += [("Ben", "pair", Answer(ranks=(1, 2)))] * 4
    served(tmp_path, answers, tasks)
    items = [item for item in viewed(tmp_path, ()) if item.kind == "ranking"]
    assert [(item.annotator, len(item.ranks), item.weight) for item in items] == [
        ("Ada", 4, 1.0),
        ("Eve", 4, round(6 / 7, 6)),  # six pairs of four, and one with the edit
        ("Eve", 2, round(1 / 7, 6)),
        *[("Ben", 2, 0.25)] * 4,
    ]
    assert {item.group for item in items} == {min(items[0].group, A.id, B.id, C.id, D.id, items[2].group)}
    assert {item.origin for item in items} == {"people"}


def test_every_served_group_counts_also_where_completions_meet_again(tmp_path: Path) -> None:
    """Three tasks out of one pool: whoever answers all three counts three times, in one batch element."""
    tasks = [group_tasks(PROMPT, three, serve_as="ranking") for three in ((A, B, C), (C, D, E), (E, F, A))]
    served(tmp_path, [("Ada", "ranking", Answer(ranks=(1, 2, 3)))] * 3, tasks)
    items = viewed(tmp_path, ())
    assert [item.weight for item in items] == [1.0, 1.0, 1.0]
    assert len({item.group for item in items}) == 1


def test_a_ranking_from_a_file_counts_by_itself(tmp_path: Path) -> None:
    items = viewed(tmp_path, [rank(ADA, A, B), rank(ADA, B, C), rank(BEN, E, F), rank(ADA, C, D)])
    assert said(items) == [(" A. B.", "Ada", 1), (" B. C.", "Ada", 1), (" E. F.", "Ben", 1), (" C. D.", "Ada", 1)]
    groups = [item.group for item in items]
    assert groups[0] == groups[1] == groups[3] == min(c.id for c in (A, B, C, D)) != groups[2]


def test_groups_join_when_a_later_ranking_connects_them(tmp_path: Path) -> None:
    items = viewed(tmp_path, [rank(ADA, A, B), rank(ADA, C, D), rank(BEN, E, F), rank(BEN, D, B)])
    groups = [item.group for item in items]
    assert groups[0] == groups[1] == groups[3] != groups[2]


@pytest.mark.slow
def test_what_is_left_out_joins_no_groups(tmp_path: Path) -> None:
    facts = [rank(ADA, A, B), rank(ADA, C, D), rank(SIM, B, C), rank(BEN, A, D, flags=("gold",))]
    first, second = viewed(tmp_path, facts)
    assert first.group == min(A.id, B.id) and second.group == min(C.id, D.id)


def test_a_pool_too_large_for_one_batch_element_is_cut_by_what_was_served(tmp_path: Path) -> None:
    pool = [Completion(prompt_id=PROMPT.id, text=f" {i}.", source=POLICY) for i in range(MOST_TOGETHER + 1)]
    chain = [rank(ADA, first, second) for first, second in pairwise(pool)]
    items = viewed(tmp_path, [*pool, *chain[:-1]])
    assert len({item.group for item in items}) == 1
    items = viewed(tmp_path, chain[-1:])
    assert {item.group for item in items} == {ranking.id for ranking in chain}


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


def test_a_task_that_became_gold_later_is_left_out_too(tmp_path: Path) -> None:
    served(
        tmp_path,
        [("Ada", "ranking", Answer(ranks=(1, 2))), ("Ben", "pair", Answer(ranks=(1, 2)))],
        [group_tasks(PROMPT, (A, B), serve_as="ranking"), group_tasks(PROMPT, (C, D), serve_as="pairs")],
    )
    with Store.open(tmp_path / "accord.db") as store:
        desk = Desk(store, LabelConfig())
        boss = desk.directory.add_person("Eve", "manager")
        (task,) = (task for task in desk.queue.tasks() if task.kind == "ranking")
        desk.queue.set_gold(task.id, Answer(ranks=(1, 2)), boss)
    left_out: dict[str, int] = {}
    assert [item.annotator for item in viewed(tmp_path, (), left_out) if item.kind == "ranking"] == ["Ben"]
    assert left_out == {"answers to gold questions": 1}


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
    items = viewed(tmp_path, facts, weights={BEN.id: 0.5})
    formats.write_items(tmp_path / "out.jsonl", items, "accord")
    ranked, pair, tie = read_rankings(tmp_path / "out.jsonl")
    assert (ranked.prompt, ranked.completions, ranked.ranks) == (PROMPT.text, (" A.", " B.", " C."), (2, 1, 2))
    assert (pair.strength, pair.weight, pair.ranks) == ("slightly", 0.5, (1, 2))
    assert (tie.ranks, tie.weight, tie.topic) == ((1, 1), 0.5, "Ran")
    assert ranked.group == pair.group == tie.group == min(c.id for c in (A, B, C))
    again = list(formats.read_items(tmp_path / "out.jsonl"))
    assert [item.labels for item in again] == [(True, True, False), (), ()]


@pytest.mark.parametrize("form", ["trl-preference", "openai-preference", "accord"])
def test_other_formats_take_the_view_too(form: str, tmp_path: Path) -> None:
    manifest = formats.write_items(tmp_path / "out.jsonl", viewed(tmp_path, [rank(ADA, A, B, C)]), form)
    assert manifest.counts["pairs"] == 3
