"""Formats of other tools: what is written is read back as it was meant, and every file is told by its content."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_published import PUBLISHED

from accord import formats
from accord.errors import DataError, UsageError
from accord.formats import FORMATS, Item
from accord.formats.jsonl import write_jsonl
from accord.formats.stage_rows import read_judgements, read_lessons, read_prompts
from accord.records import Source

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
CONTAINERS = ("jsonl", "json", "jsonl.gz", "jsonl.zst", "csv", "tsv", "parquet")

EASY = (
    "A plain text.",
    " with a leading space",
    "emoji \U0001f98a and \u00e9",
    "two\nlines",
    'a "quoted" one, with; signs',
)
ODD = (
    *("", " ", "line \u2028 separator", "\ufeffmark", "tab\tand\rreturn\r\n", "\0", "NaN", "null", "0", "true"),
    *("Human: no", "a\n\nHuman: b", "\n\nAssistant: c", "\n\nHuman:", '[{"role": "user", "content": "x"}]', "{}", '"'),
)
texts = st.one_of(st.sampled_from(EASY + ODD), st.text(max_size=20))
scalars = st.one_of(
    st.booleans(), st.integers(-(2**40), 2**40), st.floats(allow_nan=False, allow_infinity=False), texts
)
extras = st.dictionaries(st.sampled_from(["id", "note", "lang"]), st.one_of(scalars, st.lists(scalars, max_size=2)))


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@st.composite
def dialogues(draw: st.DrawFn, *, system: bool = True, answered: bool = False) -> tuple[dict[str, str], ...]:
    """Messages in turn that begin with the user (after the system) and end with the user, or with the assistant."""
    first = draw(st.lists(texts.filter(bool), max_size=1)) if system else []
    rounds = draw(st.lists(st.tuples(texts, texts), min_size=answered, max_size=2))
    turns = [said("system", text) for text in first]
    turns += [turn for asked, told in rounds for turn in (said("user", asked), said("assistant", told))]
    return tuple(turns if answered else [*turns, said("user", draw(texts))])


def prompts(chat: bool, system: bool = True) -> st.SearchStrategy[Any]:
    return dialogues(system=system) if chat else texts


def two(draw: st.DrawFn) -> list[str]:
    return draw(st.lists(texts, min_size=2, max_size=2, unique=True))


# Each function draws an item that its format can say, given whether the file is a chat one.


def preference(draw: st.DrawFn, chat: bool, system: bool = True) -> Item:
    margin = draw(st.one_of(st.none(), st.floats(0, 9)))
    prompt = draw(prompts(chat, system))
    return Item(prompt=prompt, completions=two(draw), ranks=(1, 2), margin=margin, extra=draw(extras))


def bare_preference(draw: st.DrawFn, chat: bool, system: bool = False) -> Item:
    return Item(prompt=draw(dialogues(system=system)), completions=two(draw), ranks=(1, 2))


def chat_preference(draw: st.DrawFn, chat: bool) -> Item:
    return bare_preference(draw, chat, system=True)


def demonstration(draw: st.DrawFn, chat: bool) -> Item:
    return Item(prompt=draw(prompts(chat)), completions=(draw(texts),), demonstration=True, extra=draw(extras))


def label(draw: st.DrawFn, chat: bool) -> Item:
    good = draw(st.booleans())
    return Item(prompt=draw(prompts(chat)), completions=(draw(texts),), labels=(good,), extra=draw(extras))


def prompt_only(draw: st.DrawFn, chat: bool) -> Item:
    return Item(prompt=draw(prompts(chat)), extra=draw(extras))


def steps(draw: st.DrawFn, chat: bool) -> Item:
    labels = draw(st.lists(st.booleans(), min_size=1, max_size=4))
    return Item(prompt=draw(texts), completions=[draw(texts) for _ in labels], labels=labels, steps=True)


def lesson(draw: st.DrawFn, chat: bool) -> Item:
    return Item(prompt=None, completions=(draw(dialogues(answered=True) if chat else texts),), extra=draw(extras))


def conversation(draw: st.DrawFn, chat: bool) -> Item:
    return Item(prompt=None, completions=(draw(dialogues(answered=True)),))


def thread(draw: st.DrawFn, chat: bool) -> Item:
    return Item(prompt=None, completions=(draw(dialogues(system=False, answered=True)),))


def alpaca(draw: st.DrawFn, chat: bool) -> Item:
    """A text, a system prompt and a question, or a conversation."""
    if draw(st.booleans()):
        return replace(lesson(draw, True), extra=draw(extras))
    system = draw(st.lists(texts.filter(bool), max_size=1))
    asked = draw(texts)
    prompt = (said("system", system[0]), said("user", asked)) if system else asked
    return Item(prompt=prompt, completions=(draw(texts),), demonstration=True)


def asked_alpaca(draw: st.DrawFn) -> Any:
    """A prompt as Alpaca has it: a text, unless a system prompt or a history comes before."""
    turns = draw(dialogues())
    return turns if len(turns) > 1 else turns[0]["content"]


def alpaca_preference(draw: st.DrawFn, chat: bool) -> Item:
    return Item(prompt=asked_alpaca(draw), completions=two(draw), ranks=(1, 2), extra=draw(extras))


def chat_label(draw: st.DrawFn, chat: bool) -> Item:
    return Item(prompt=draw(dialogues()), completions=(draw(texts),), labels=(draw(st.booleans()),))


def alpaca_kto(draw: st.DrawFn, chat: bool) -> Item:
    return Item(prompt=asked_alpaca(draw), completions=(draw(texts),), labels=(draw(st.booleans()),))


def ranking(draw: st.DrawFn, chat: bool) -> Item:
    """Any ranking, with ties, with completions that nobody ranked, and with what may stand beside it."""
    completions = draw(st.lists(texts, min_size=2, max_size=5, unique=True))
    ranks = [
        *draw(st.lists(st.integers(1, 4), min_size=2, max_size=2)),
        *(draw(st.sampled_from([1, 2, None])) for _ in completions[2:]),
    ]
    bad = draw(st.one_of(st.just([]), st.lists(st.booleans(), min_size=len(completions), max_size=len(completions))))
    beside: dict[str, Any] = {"weight": draw(st.sampled_from([1.0, 0.5])), "topic": draw(st.sampled_from(["", "t"]))}
    if len(completions) == 2 and ranks[0] != ranks[1]:
        beside["strength"] = draw(st.sampled_from([None, "better", "negligibly"]))
    return Item(prompt=draw(prompts(chat)), completions=completions, ranks=ranks, labels=bad, **beside)


def tree(draw: st.DrawFn, chat: bool) -> Item:
    """A prompt with replies: ranked (the ranks dense, as positions), single, or none."""
    completions = draw(st.lists(texts, max_size=4, unique=True))
    ranks: list[int | None] = []
    if len(completions) > 1:
        drawn = draw(st.lists(st.integers(1, 3), min_size=len(completions), max_size=len(completions)))
        ranks = [sorted(set(drawn)).index(rank) + 1 for rank in drawn]
    return Item(prompt=draw(dialogues(system=False)), completions=completions, ranks=ranks)


SAYS: dict[str, Callable[[st.DrawFn, bool], Item]] = {
    "accord": ranking,
    "trl-preference": preference,
    "trl-unpaired": label,
    "trl-stepwise": steps,
    "trl-completion": demonstration,
    "trl-lm": lesson,
    "trl-prompt": prompt_only,
    "hh": bare_preference,
    "openai-preference": chat_preference,
    "openai-sft": conversation,
    "sharegpt": conversation,
    "sharegpt-preference": chat_preference,
    "sharegpt-kto": chat_label,
    "alpaca": alpaca,
    "alpaca-preference": alpaca_preference,
    "alpaca-kto": alpaca_kto,
    "oasst-trees": tree,
    "oasst-messages": tree,
    "oasst-threads": thread,
}
# Those of published sets and of tools are tested in test_published.py.
READ_ONLY, ELSEWHERE = {"hh-redteam", "plain", "samples", "doccano", *PUBLISHED}, {"trl-implicit"}


def test_every_format_is_tested() -> None:
    assert {*SAYS, *READ_ONLY, *ELSEWHERE} == set(FORMATS)
    assert {name for name, format in FORMATS.items() if format.write is None} == READ_ONLY


@st.composite
def files_of(draw: st.DrawFn, name: str) -> tuple[list[Item], str]:
    chat, container = draw(st.booleans()), draw(st.sampled_from(CONTAINERS))
    return [SAYS[name](draw, chat) for _ in range(draw(st.integers(1, 4)))], container


def plain(item: Item) -> Item:
    """Without what Open-Assistant adds of its own (ids, who wrote it)."""
    return replace(item, extra={}, sources=())


def is_within(few: list[Item], many: list[Item]) -> bool:
    rest = iter(many)
    return all(any(item == other for other in rest) for item in few)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAYS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_is_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    """Nothing is changed, and what a file cannot hold is counted: it never comes back as something else."""
    items, container = data.draw(files_of(name))
    if name.startswith("oasst") and container in ("csv", "tsv"):
        container = "jsonl"  # trees are no such tables
    if name == "oasst-trees" and container == "parquet":
        container = "json"
    path = tmp_path_factory.mktemp("written") / f"data.{container}"
    try:
        manifest = formats.write_items(path, items, name, kinds=["all"])
    except DataError as error:
        assert error.what == "there is nothing to write" and not path.exists()
        return
    found = formats.detect(path)
    again = list(formats.read_items(path, name))
    assert name in (found.format, *found.also), found
    if name.startswith("oasst"):
        items, again = (sorted(map(plain, some), key=repr) for some in (items, again))
    assert is_within(again, items)
    assert len(again) + sum(manifest.left_out.values()) == len(items), manifest.left_out
    assert manifest.left_out.keys() <= ALLOWED[name if name in ALLOWED else container] | ALLOWED[container]


@pytest.mark.parametrize("name", ["data.tsv", "data.TSV", "data.tsv.gz", "data.csv", "data.csv.gz"])
@pytest.mark.parametrize("text", [",", "a, b", "a\tb", ";", "a; b"])
def test_a_table_of_one_column_is_read_as_its_name_says(tmp_path: Path, name: str, text: str) -> None:
    """Its header holds no delimiter to go by."""
    path, item = tmp_path / name, Item(prompt=None, completions=(text,))
    formats.write_items(path, [Item(prompt=None, completions=("A plain text.",)), item], "trl-lm", kinds=["all"])
    assert [one.completions for one in formats.read_items(path, "trl-lm")] == [("A plain text.",), (text,)]


EMPTY_CELL, AS_MESSAGES = "CSV cannot tell an empty text from none", "in CSV a text would be read as messages"
MARKS = "the dialogue would be read otherwise: it holds HH's marks, or does not begin with the user"
ALLOWED = {
    "csv": {EMPTY_CELL, AS_MESSAGES},
    "tsv": {EMPTY_CELL, AS_MESSAGES},
    "accord": {"a text is empty"},
    "hh": {MARKS},
} | {name: set() for name in ("jsonl", "json", "jsonl.gz", "jsonl.zst", "parquet")}


@pytest.mark.parametrize("name", sorted({*SAYS} - {"hh"}))
@pytest.mark.parametrize("container", ["jsonl", "jsonl.zst", "parquet"])
def test_only_hh_and_csv_lack_words_for_easy_texts(tmp_path: Path, name: str, container: str) -> None:
    """And HH has them for texts without its marks."""
    item = easy_item(name)
    if name.startswith("oasst-t") and container == "parquet":
        return
    manifest = formats.write_items(tmp_path / f"x.{container}", [item], name, kinds=["all"])
    assert not manifest.left_out and manifest.rows >= 1
    assert [plain(found) for found in formats.read_items(tmp_path / f"x.{container}", name)] == [plain(item)]


def easy_item(name: str) -> Item:
    """One small item of the kind that a format is for."""
    asked, pair = (said("user", "Why?"),), ("Because.", "No idea.")
    table: dict[str, Item] = {
        "trl-unpaired": Item(prompt=asked, completions=("Because.",), labels=(True,)),
        "trl-stepwise": Item(prompt="2 + 2?", completions=("2 + 2 = 4", "So 5."), labels=(True, False), steps=True),
        "trl-completion": Item(prompt=asked, completions=("Because.",), demonstration=True),
        "trl-prompt": Item(prompt=asked),
        "alpaca": Item(prompt="Why?", completions=("Because.",), demonstration=True),
        "alpaca-preference": Item(prompt="Why?", completions=pair, ranks=(1, 2)),
        "alpaca-kto": Item(prompt="Why?", completions=("Because.",), labels=(False,)),
        "sharegpt-kto": Item(prompt=asked, completions=("Because.",), labels=(True,)),
        "accord": Item(prompt=asked, completions=pair, ranks=(1, 1)),
    }
    talk = Item(prompt=None, completions=((*asked, said("assistant", "Because.")),))
    lessons = dict.fromkeys(("trl-lm", "openai-sft", "sharegpt", "oasst-threads"), talk)
    return {**lessons, **table}.get(name, Item(prompt=asked, completions=pair, ranks=(1, 2)))


def test_a_file_is_known_as_what_it_was_written_as(tmp_path: Path) -> None:
    """The whole table: a more particular name comes first, and a pair that equally is another format says so."""
    as_well = {"openai-sft": "trl-lm"}
    same = {"trl-lm": "openai-sft"}  # {"messages"} and nothing else is both
    for name in SAYS:
        path = tmp_path / f"{name}.jsonl"
        formats.write_items(path, [easy_item(name)], name, kinds=["all"])
        found = formats.detect(path)
        assert found.format == same.get(name, name), found
        assert as_well.get(name, name) in (found.format, *found.also)
        assert "of the first" in found.why


def rows_as_items(name: str, rows: Iterable[dict[str, Any]]) -> list[Item]:
    from accord.formats.rows import InputRow, refuse

    reader = FORMATS[name].read
    assert reader is not None
    return list(reader((InputRow(row, f"here:{i}") for i, row in enumerate(rows, 1)), refuse))


# -- each format by hand -----------------------------------------------------------------------------------------------

HH_ROW = {
    "chosen": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Why is the sky blue?\n\nAssistant: It scatters light. ",
    "rejected": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Why is the sky blue?\n\nAssistant: It is painted.",
}


def test_hh_is_cut_at_the_last_common_turn() -> None:
    [item] = rows_as_items("hh", [HH_ROW])
    assert item.prompt == (said("user", "Hi"), said("assistant", "Hello."), said("user", "Why is the sky blue?"))
    assert [c[0]["content"] for c in item.completions] == ["It scatters light. ", "It is painted."]
    assert item.ranks == (1, 2) and item.num_judgements == 1


def test_hh_keeps_marks_in_a_completion_and_refuses_what_shares_nothing() -> None:
    later = {"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c", "rejected": "\n\nHuman: a\n\nAssistant: d"}
    [item] = rows_as_items("hh", [later])
    assert [c[0]["content"] for c in item.completions] == ["b\n\nHuman: c", "d"]
    for row, field in (
        ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: b"}, "rejected"),
        ({"chosen": HH_ROW["chosen"], "rejected": HH_ROW["chosen"]}, "rejected"),
        ({"chosen": "Hello", "rejected": HH_ROW["chosen"]}, "chosen"),
    ):
        with pytest.raises(DataError, match=f'^here:1: "{field}" '):
            rows_as_items("hh", [row])


def test_red_team_transcripts_are_samples_without_a_judgement(tmp_path: Path) -> None:
    row = {"transcript": "\n\nHuman: a\n\nAssistant: b", "rating": 4.0, "red_team_member_id": 3, "tags": None}
    path = tmp_path / "red.json"
    path.write_text(json.dumps([row]))
    assert formats.detect(path).format == "hh-redteam"
    [item] = formats.read_items(path)
    assert item.kind == "sample" and item.num_judgements == 0 and item.extra == {"rating": 4.0, "red_team_member_id": 3}


def message(name: str, text: str, *replies: Any, role: str = "assistant", **others: Any) -> dict[str, Any]:
    return {"message_id": name, "text": text, "role": role, "replies": list(replies), **others}


TREE = {
    "message_tree_id": "t",
    "tree_state": "ready_for_export",
    "prompt": message(
        "q",
        "Why?",
        message("b", "Because.", message("q2", "Why not?", role="prompter"), rank=1),
        message("a", "Light.", rank=0, emojis={"+1": 3}, synthetic=True, model_name="m"),
        message("n", "Nobody ranked me."),
        message("d", "Deleted.", message("x", "Lost.", role="prompter"), rank=2, deleted=True),
        message("r", "Refused.", rank=3, review_result=False),
        role="prompter",
        lang="en",
    ),
}


def test_a_tree_gives_rankings_samples_and_prompts() -> None:
    first, second = rows_as_items("oasst-trees", [TREE])
    assert first.kind == "ranking" and first.ranks == (2, 1, None) and first.prompt == (said("user", "Why?"),)
    assert [c[0]["content"] for c in first.completions] == ["Because.", "Light.", "Nobody ranked me."]
    assert list(first.pairs()) == [(1, 0)]
    assert first.sources[1] == Source(origin="policy", name="m") and first.sources[0].origin == "human"
    assert first.extra["message_tree_id"] == "t" and first.extra["replies"][1] == {
        "message_id": "a",
        "emojis": {"+1": 3},
    }
    assert second.kind == "prompt" and [t["content"] for t in second.prompt] == ["Why?", "Because.", "Why not?"]


def test_a_rank_with_none_to_compare_it_with_ranks_nothing() -> None:
    replies = [{"text": text, "role": "assistant", "rank": rank} for text, rank in (("a", 0), ("b", None))]
    [item] = rows_as_items("oasst-trees", [{"prompt": {"text": "q", "role": "prompter", "replies": replies}}])
    assert item.kind == "sample" and [turns[0]["content"] for turns in item.completions] == ["a", "b"]


def test_flat_messages_are_the_trees_again(tmp_path: Path) -> None:
    items = rows_as_items("oasst-trees", [TREE, {**TREE, "message_tree_id": "u"}])
    manifest = formats.write_items(tmp_path / "flat.jsonl", items, "oasst-messages", kinds=["all"])
    assert manifest.rows == 2 * 5
    again = list(formats.read_items(tmp_path / "flat.jsonl"))
    assert again == items
    rows = [json.loads(line) for line in (tmp_path / "flat.jsonl").read_text().splitlines()]
    rejected: list[formats.Reject] = []
    path = tmp_path / "orphan.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in [*rows[:2], {**rows[3], "parent_id": "gone"}, *rows[5:]]))
    assert len(list(formats.read_items(path, on_reject=rejected.append))) == 1 + 1 + 2 - 1 + 0 or rejected
    assert [reject.field for reject in rejected] == ["parent_id"] and rejected[0].where == f"{path}:3"


def test_alpaca_and_sharegpt_by_hand() -> None:
    row = {"instruction": "Add", "input": "2 and 3", "output": "5", "id": 7}
    assert rows_as_items("alpaca", [row]) == [
        Item(prompt="Add\n2 and 3", completions=("5",), demonstration=True, extra={"id": 7})
    ]
    before = {**row, "system": "Be brief.", "history": [["1 and 1?", "2"]]}
    [item] = rows_as_items("alpaca", [before])
    assert item.kind == "conversation" and [turn["role"] for turn in item.completions[0]] == [
        *("system", "user", "assistant", "user", "assistant")
    ]
    turns = [{"from": "Human", "value": "q"}, {"from": "chatgpt", "value": "a"}]
    [item] = rows_as_items("sharegpt", [{"conversations": turns, "system": "s", "tools": "[]"}])
    assert item.completions == ((said("system", "s"), said("user", "q"), said("assistant", "a")),)
    assert item.extra == {"tools": "[]"}
    with pytest.raises(DataError, match=r'"conversations\[0\].from" is \'martian\''):
        rows_as_items("sharegpt", [{"conversations": [{"from": "martian", "value": "q"}]}])


def test_openai_keeps_tools_and_weights(tmp_path: Path) -> None:
    messages = [said("user", "q"), {**said("assistant", "a"), "weight": 0}, said("user", "r"), said("assistant", "b")]
    row = {"messages": messages, "tools": [{"type": "function"}], "parallel_tool_calls": False}
    items = rows_as_items("openai-sft", [row])
    formats.write_items(tmp_path / "again.jsonl", items, "openai-sft")
    assert json.loads((tmp_path / "again.jsonl").read_text()) == row
    with pytest.raises(DataError, match="do not end with the assistant"):
        rows_as_items("openai-sft", [{"messages": messages[:1]}])
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    reply = [said("assistant", "c")]
    pair = {"input": {"messages": parts}, "preferred_output": reply, "non_preferred_output": [said("assistant", "d")]}
    [item] = rows_as_items("openai-preference", [pair])
    assert item.prompt == (said("user", "ab"),)
    image = [{"role": "user", "content": [{"type": "image_url"}]}]
    with pytest.raises(DataError, match="holds a part that is no text"):
        rows_as_items("openai-preference", [{**pair, "input": {"messages": image}}])


def test_plain_tables_under_other_names(tmp_path: Path) -> None:
    path = tmp_path / "plain.csv"
    path.write_text("question,answer1,answer2,winner\nq,a,b,2\nr,c,d,0\ns,e,f,3\n")
    rejected: list[formats.Reject] = []
    reading = formats.read_items(path, on_reject=rejected.append)
    assert [item.ranks for item in reading] == [(2, 1), (1, 1)]
    assert reading.detected.format == "plain" and (reading.num_rows, reading.num_rejected) == (3, 1)
    assert str(rejected[0]) == f"{path}:4: winner: is 3: write 1 or 2 for the better one, 0 for a tie"


def test_what_a_format_cannot_say_is_counted_not_mangled(tmp_path: Path) -> None:
    tie = Item(prompt="p", completions=("a", "b"), ranks=(1, 1))
    three = Item(prompt="p", completions=("a", "b", "c"), ranks=(2, 1, 2))
    thumb = Item(prompt="p", completions=("a",), labels=(True,))
    manifest = formats.write_items(tmp_path / "x.jsonl", [tie, three, thumb], "trl-preference")
    rows = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert [(row["chosen"], row["rejected"]) for row in rows] == [("b", "a"), ("b", "c")]
    assert manifest.left_out == {"a tie is no preference": 1, "a label is no preference": 1}
    assert manifest.counts == {"prompts": 1, "completions": 3, "judgements": 1, "pairs": 2}


def test_a_manifest_counts_what_was_written_whole_and_whose_it_is(tmp_path: Path) -> None:
    said_of = {"prompt": "p", "ranks": (1, 2)}
    machine = Item(**said_of, completions=("a", "b"), origin="simulated annotators")
    person = Item(**said_of, completions=("a", "c"), origin="people")
    no_csv = Item(**said_of, completions=("a", ""), origin="people")
    manifest = formats.write_items(tmp_path / "x.csv", [machine, no_csv, person, machine], "trl-preference")
    assert manifest.origins == {"people": 1, "simulated annotators": 2} and manifest.rows == 3
    assert manifest.counts == {"prompts": 1, "completions": 3, "judgements": 3, "pairs": 3}


def test_a_blank_turn_is_no_row_of_ours_but_an_empty_system_prompt_is() -> None:
    for content, rows in (("", 1), (" ", 0), ("Be kind.", 1)):
        item = Item(prompt=(said("system", content), said("user", "q")), completions=("a", "b"), ranks=(1, 2))
        assert len(list(formats.to_jsonl([item]))) == rows


def test_a_family_is_written_as_what_its_first_item_is(tmp_path: Path) -> None:
    thumb = Item(prompt="p", completions=("a",), labels=(True,))
    assert formats.write_items(tmp_path / "x.jsonl", [thumb], "trl").format == "trl-unpaired"
    assert formats.write_items(tmp_path / "y.jsonl", [easy_item("hh")], "openai").format == "openai-preference"
    assert formats.detect(tmp_path / "x.jsonl", "trl").format == "trl-unpaired"


def test_a_tree_in_rows_is_no_csv(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="oasst-messages cannot be CSV"):
        formats.write_items(tmp_path / "x.csv", [easy_item("oasst-messages")], "oasst-messages")


def test_no_tree_in_a_csv_file_is_read_as_a_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to write") as error:
        formats.write_items(tmp_path / "x.csv", [easy_item("oasst-trees")], "oasst-trees")
    assert "in CSV prompt would be read as a text (1)" in error.value.why


@pytest.mark.parametrize("name", ["alpaca", "alpaca-preference", "alpaca-kto"])
def test_alpaca_is_csv_too_though_it_has_no_input(tmp_path: Path, name: str) -> None:
    formats.write_items(tmp_path / "x.csv", [easy_item(name)], name)
    assert "input" in (tmp_path / "x.csv").read_text().splitlines()[0]
    assert formats.detect(tmp_path / "x.csv").format == name
    assert list(formats.read_items(tmp_path / "x.csv")) == [easy_item(name)]


@pytest.mark.parametrize("name", ["accord", "trl-prompt"])
def test_our_rows_of_every_kind_are_known_again(tmp_path: Path, name: str) -> None:
    """Of prompts, rankings and samples none is the larger part; what Open-Assistant says besides comes along."""
    ours = {"message_tree_id": "t", "message_id": "m", "lang": "en"}
    prompt, sample = Item(prompt="q", extra=ours), Item(prompt="q", completions=("a",), extra=ours)
    ranked = Item(prompt="q", completions=("a", "b"), ranks=(1, 2), extra=ours)
    items = [prompt, sample, ranked] * 3 if name == "accord" else [prompt]
    formats.write_items(tmp_path / "x.jsonl", items, name, kinds=["all"])
    assert formats.detect(tmp_path / "x.jsonl").format == name
    kinds = [item.kind for item in formats.read_items(tmp_path / "x.jsonl")]
    assert kinds == (["prompt", "demonstration", "ranking"] * 3 if name == "accord" else ["prompt"])


def test_texts_and_messages_do_not_mix_for_trl(tmp_path: Path) -> None:
    text, chat = Item(prompt="p"), Item(prompt=(said("user", "q"),))
    assert formats.write_items(tmp_path / "x.jsonl", [chat, text], "trl-prompt").rows == 2
    manifest = formats.write_items(tmp_path / "y.jsonl", [text, chat], "trl-prompt")
    assert manifest.rows == 1 and sum(manifest.left_out.values()) == 1
    assert formats.write_items(tmp_path / "z.jsonl", [text, chat], "trl-prompt", messages=True).rows == 2


def test_the_same_items_give_the_same_bytes(tmp_path: Path) -> None:
    for container in CONTAINERS:
        path = tmp_path / f"x.{container}"
        files = []
        for _ in range(2):
            formats.write_items(path, [easy_item("trl-preference")], "trl-preference")
            files.append((path.read_bytes(), formats.manifest_path(path).read_bytes()))
        assert files[0] == files[1]


class _Chat:
    """A chat template as simple as can be."""

    def prompt(self, messages: list[dict[str, Any]]) -> str:
        return "".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant>"

    def reply(self, messages: list[dict[str, Any]], content: str) -> str:
        return content


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_the_stages_take_every_row_of_ours(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    chat = data.draw(st.booleans())
    draws = data.draw(st.sampled_from([ranking, label, demonstration, lesson, prompt_only]))
    rows = list(formats.to_jsonl([draws(data.draw, chat)]))
    if not rows:
        return
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    write_jsonl(path, rows)
    if draws in (ranking, label):
        assert len(read_judgements(path, _Chat())) == 1
    elif draws is prompt_only:
        assert rows[0]["prompt"] == "" or len(read_prompts(path, _Chat())) == 1
    elif "text" not in rows[0]:
        assert len(read_lessons(path)) == 1


# -- a format of one's own ---------------------------------------------------------------------------------------------

OUTSIDE = """
from accord.formats import CannotSay, Format, Item, item_by_item, row_by_row

def read(row):
    if row.text("q") == "crash":
        raise KeyError("oops")
    return [Item(prompt=row.text("q"), completions=(row.text("a"),), demonstration=True)]

def write(item):
    if item.kind != "demonstration":
        raise CannotSay("no demonstration")
    return [{"q": item.prompt, "a": item.completions[0]}]

def why(row):
    return "it has a q" if "q" in row else ""

QA = Format("qa", "questions", frozenset("qa"), why, row_by_row(read, "qa"), item_by_item(write))
"""


def test_a_format_of_ones_own_needs_no_edit_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_formats.py").write_text(OUTSIDE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    item = Item(prompt="p", completions=("c",), demonstration=True)
    formats.write_items(Path("x.jsonl"), [item], "mine_formats:QA")
    assert list(formats.read_items("x.jsonl", "mine_formats:QA")) == [item]
    Path("x.jsonl").write_text('{"q": "crash", "a": "b"}\n')
    with pytest.raises(DataError, match="mine_formats:QA failed: KeyError"):
        list(formats.read_items("x.jsonl", "mine_formats:QA"))
    with pytest.raises(UsageError, match="not a Format"):
        formats.detect("x.jsonl", "mine_formats:read")
    with pytest.raises(UsageError, match="there is no 'nope'"):
        formats.detect("x.jsonl", "nope")


# -- the real files ----------------------------------------------------------------------------------------------------

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the files of shared/data are not here")


@needs_data
def test_the_real_hh_file(tmp_path: Path) -> None:
    """2,312 dialogues, and written again they are what they were, byte for byte."""
    path = DATA / "hh-harmless-base-test.jsonl.gz"
    result = formats.convert_file(path, tmp_path / "again.jsonl.gz", to="hh")
    assert (result.format, result.rows, result.rejected) == ("hh", 2312, 0)
    assert (result.judgements, result.pairs, result.completions, result.prompts) == (2312, 2312, 4624, 2310)
    assert lines_of(tmp_path / "again.jsonl.gz") == lines_of(path)


def lines_of(path: Path) -> list[Any]:
    import gzip

    return [json.loads(line) for line in gzip.open(path)]


@needs_data
def test_the_real_open_assistant_file(tmp_path: Path) -> None:
    """100 trees, 212 groups of at least two replies that people ranked, 754 pairs of different rank."""
    path = DATA / "oasst-en_100_tree.jsonl"
    result = formats.count_items(path)
    assert (result.format, result.rows, result.rejected) == ("oasst-trees", 100, 0)
    assert (result.judgements, result.pairs) == (212, 754)
    assert (result.prompts, result.completions) == (480, 687)
    items = list(formats.read_items(path))
    for name in ("oasst-trees", "oasst-messages"):
        formats.write_items(tmp_path / name, items, name, kinds=["all"])
        assert list(formats.read_items(tmp_path / name)) == items


@needs_data
@pytest.mark.parametrize(("name", "rows"), [("LLMBar_Natural", 100), ("LLMBar_Adversarial_Neighbor", 134)])
def test_the_real_llmbar_files(name: str, rows: int) -> None:
    path = DATA / f"llmbar-{name}.json"
    result = formats.count_items(path)
    assert (result.format, result.rows, result.rejected, result.pairs) == ("plain", rows, 0, rows)
    raw = json.loads(path.read_text())
    for row, item in zip(raw, formats.read_items(path), strict=True):
        assert (item.ranks[0] == 1) == (row["label"] == 1) and item.completions[0] == row["output_1"]


@pytest.mark.slow
@example("\n\nHuman: b\n\nAssistant: c")
@given(texts)
@settings(max_examples=5, deadline=None)
def test_a_megabyte_survives(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    long = (text or "x") * (2**20 // max(len(text), 1))
    item = Item(prompt=long, completions=(f"{long}1", f"{long}2"), ranks=(1, 2))
    for container in ("jsonl.gz", "csv", "parquet"):
        path = tmp_path_factory.mktemp("long") / f"x.{container}"
        formats.write_items(path, [item], "trl-preference")
        assert list(formats.read_items(path)) == [item]
