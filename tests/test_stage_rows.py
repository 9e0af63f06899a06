"""What the stages read of files of every known format: the same as of Accord's own rows that say the same."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from accord import formats
from accord.errors import DataError
from accord.formats.stage_rows import (
    Conversation,
    read_completions,
    read_demonstrations,
    read_judged,
    read_judgements,
    read_lessons,
    read_prompts,
    read_rankings,
    read_texts,
)
from accord.records import RankedGroup

DATA = next((up / "shared/data" for up in Path(__file__).parents if (up / "shared/data").is_dir()), Path("shared/data"))


class Template:
    """A chat template that anyone can read."""

    def prompt(self, messages: Sequence[dict[str, Any]]) -> str:
        return "".join(f"<{m['role']}>{m['content']}</>" for m in messages) + "<assistant>"

    def reply(self, messages: Sequence[dict[str, Any]], content: str) -> str:
        return content


CHAT = Template()


def said(*texts: str) -> list[dict[str, str]]:
    """Messages: the user's and the assistant's in turn."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def shared(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def message(text: str, role: str, *replies: dict[str, Any], **others: Any) -> dict[str, Any]:
    return {"message_id": text, "text": text, "role": role, "replies": list(replies), **others}


def lines(*rows: dict[str, Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def table(delimiter: str, *rows: dict[str, Any]) -> bytes:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def file_of(folder: Path, content: bytes, name: str = "data") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


#: Two dialogues in which the same is preferred, in every format that says preferences of dialogues.
DIALOGUES = {
    "accord": lines(
        {"prompt": said("hi", "hello", "why?"), "chosen": "because", "rejected": "dunno"},
        {"prompt": said("two"), "completions": ["b", "a"], "ranks": [2, 1]},
    ),
    "hh": lines(
        {
            "chosen": "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: why?\n\nAssistant: because",
            "rejected": "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: why?\n\nAssistant: dunno",
        },
        {"chosen": "\n\nHuman: two\n\nAssistant: a", "rejected": "\n\nHuman: two\n\nAssistant: b"},
    ),
    "oasst-trees": lines(
        {
            "message_tree_id": "t",
            "tree_state": "ready_for_export",
            "prompt": message(
                "hi",
                "prompter",
                message(
                    "hello",
                    "assistant",
                    message(
                        "why?",
                        "prompter",
                        message("because", "assistant", rank=0),
                        message("dunno", "assistant", rank=1),
                        message("spam", "assistant", rank=2, deleted=True),
                    ),
                ),
            ),
        },
        {
            "message_tree_id": "u",
            "tree_state": "ready_for_export",
            "prompt": message("two", "prompter", message("b", "assistant", rank=1), message("a", "assistant", rank=0)),
        },
    ),
    "trl-preference": lines(
        {
            "prompt": said("hi", "hello", "why?"),
            "chosen": [{"role": "assistant", "content": "because"}],
            "rejected": [{"role": "assistant", "content": "dunno"}],
        },
        {
            "prompt": said("two"),
            "chosen": [{"role": "assistant", "content": "a"}],
            "rejected": [{"role": "assistant", "content": "b"}],
        },
    ),
    "trl-implicit": lines(
        {"chosen": said("hi", "hello", "why?", "because"), "rejected": said("hi", "hello", "why?", "dunno")},
        {"chosen": said("two", "a"), "rejected": said("two", "b")},
    ),
    "binarized": lines(
        {
            "prompt": "hi",
            "chosen": said("hi", "hello", "why?", "because"),
            "rejected": said("hi", "hello", "why?", "dunno"),
        },
        {"prompt": "two", "chosen": said("two", "a"), "rejected": said("two", "b")},
    ),
    "openai-preference": lines(
        *(
            {
                "input": {"messages": prompt},
                "preferred_output": [{"role": "assistant", "content": better}],
                "non_preferred_output": [{"role": "assistant", "content": worse}],
            }
            for prompt, better, worse in (
                (said("hi", "hello", "why?"), "because", "dunno"),
                (said("two"), "a", "b"),
            )
        )
    ),
    "sharegpt-preference": lines(
        *(
            {
                "conversations": prompt,
                "chosen": {"from": "gpt", "value": better},
                "rejected": {"from": "gpt", "value": worse},
            }
            for prompt, better, worse in (
                (shared("hi", "hello", "why?"), "because", "dunno"),
                (shared("two"), "a", "b"),
            )
        )
    ),
}


@pytest.mark.parametrize("name", DIALOGUES)
def test_preferences_of_dialogues_are_the_same_rows_from_every_format(tmp_path: Path, name: str) -> None:
    path = file_of(tmp_path, DIALOGUES[name])
    first, second = read_rankings(path, CHAT)
    assert first.prompt == "<user>hi</><assistant>hello</><user>why?</><assistant>"
    assert (first.completions, first.ranks, first.weight) == (("because", "dunno"), (1.0, 2.0), 1.0)
    best = second.completions[second.ranks.index(1.0)]
    assert (second.prompt, best, sorted(second.completions)) == ("<user>two</><assistant>", "a", ["a", "b"])
    assert read_judgements(path, CHAT) == [first, second] and first.origin == "data"
    if name != "binarized":  # which has a prompt of its own, in plain text
        assert {first.prompt, second.prompt} <= {row.text for row in read_prompts(path, CHAT)}


#: One demonstration and another, of plain text.
DEMONSTRATIONS = {
    "accord": lines({"prompt": "Q", "completion": "A", "topic": "t"}, {"prompt": "R", "completion": "B"}),
    "alpaca": json.dumps(
        [{"instruction": "Q", "input": "", "output": "A"}, {"instruction": "R", "input": "", "output": "B"}]
    ).encode(),
    "csv": table(",", {"prompt": "Q", "completion": "A"}, {"prompt": "R", "completion": "B"}),
    "tsv": table("\t", {"question": "Q", "answer": "A"}, {"question": "R", "answer": "B"}),
    "gzip": gzip.compress(lines({"prompt": "Q", "completion": "A"}, {"prompt": "R", "completion": "B"})),
}


@pytest.mark.parametrize("name", DEMONSTRATIONS)
def test_demonstrations_are_the_same_rows_from_every_format(tmp_path: Path, name: str) -> None:
    path = file_of(tmp_path, DEMONSTRATIONS[name])
    pairs = [("Q", "A"), ("R", "B")]
    assert read_demonstrations(path) == read_lessons(path) == read_completions(path) == pairs
    assert [row.text for row in read_prompts(path)] == ["Q", "R"]
    assert read_texts(path) == ["QA", "RB"]


CONVERSATIONS = {
    "accord": lines({"messages": said("hi", "hello", "why?", "because")}),
    "openai-sft": lines({"messages": said("hi", "hello", "why?", "because"), "parallel_tool_calls": True}),
    "sharegpt": lines({"conversations": shared("hi", "hello", "why?", "because")}),
    "oasst-threads": lines(
        {
            "thread_id": "t",
            "thread": [
                {"text": text, "role": ("prompter", "assistant")[i % 2]}
                for i, text in enumerate(("hi", "hello", "why?", "because"))
            ],
        }
    ),
    "alpaca": lines({"instruction": "why?", "input": "", "output": "because", "history": [["hi", "hello"]]}),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_conversations_are_lessons_and_their_last_words_answer_a_prompt(tmp_path: Path, name: str) -> None:
    path = file_of(tmp_path, CONVERSATIONS[name])
    assert read_lessons(path) == [Conversation(said("hi", "hello", "why?", "because"), f"{path}:1")]
    asked = "<user>hi</><assistant>hello</><user>why?</><assistant>"
    assert [row.text for row in read_prompts(path, CHAT)] == [asked]
    assert read_completions(path, CHAT) == read_demonstrations(path, CHAT) == [(asked, "because")]
    with pytest.raises(DataError, match="no chat template"):
        read_prompts(path)


def test_labels_and_ratings_from_other_formats(tmp_path: Path) -> None:
    own = file_of(
        tmp_path,
        lines({"prompt": "Q", "completion": "a", "label": True}, {"prompt": "Q", "completion": "b", "label": False}),
    )
    expected = [(group.prompt, group.completions, group.values) for group in read_judged(own, "label")]
    assert expected == [("Q", ("a",), (1.0,)), ("Q", ("b",), (0.0,))]
    others = {
        "kto": lines(
            {"instruction": "Q", "output": "a", "kto_tag": True}, {"instruction": "Q", "output": "b", "kto_tag": False}
        ),
        "csv": table(
            ";",
            {"prompt": "Q", "completion": "a", "label": "True"},
            {"prompt": "Q", "completion": "b", "label": "False"},
        ),
    }
    for name, content in others.items():
        path = file_of(tmp_path, content, name)
        assert [(g.prompt, g.completions, g.values) for g in read_judged(path, "label")] == expected
        assert [(g.prompt, g.completions, g.values) for g in read_judgements(path)] == expected
    rated = file_of(tmp_path, table(",", {"prompt": "Q", "completion": "a", "rating": "4.5", "topic": "t"}))
    assert [(g.values, g.topic) for g in read_judged(rated, "rating")] == [((4.5,), "t")]


def test_a_parquet_file_is_read_as_its_rows(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    rows = [{"prompt": "Q", "chosen": "a", "rejected": "b", "topic": "t", "margin": 0.5}]
    formats.write_items(tmp_path / "rows.parquet", formats.read_items(file_of(tmp_path, lines(*rows))), "accord")
    (found,), (expected,) = read_rankings(tmp_path / "rows.parquet"), read_rankings(tmp_path / "data")
    assert (found.prompt, found.completions, found.margin, found.topic) == ("Q", ("a", "b"), 0.5, "t")
    assert found.to_json() | {"origin": ""} == expected.to_json() | {"origin": ""}


def test_a_tree_is_the_topic_of_its_prompts_and_only_what_was_ranked_is_a_ranking(tmp_path: Path) -> None:
    path = file_of(tmp_path, DIALOGUES["oasst-trees"])
    assert [(row.text.count("<user>"), row.topic) for row in read_prompts(path, CHAT)] == [(1, "t"), (2, "t"), (1, "u")]
    assert [group.topic for group in read_rankings(path, CHAT)] == ["t", "u"]  # "hello" alone was ranked by nobody


def test_own_columns_win_over_a_likeness(tmp_path: Path) -> None:
    """A verifiable prompt with its answer beside it keeps topic and weight; it is no plain table of demonstrations."""
    path = file_of(tmp_path, lines({"prompt": "2 + 2 =", "answer": "4", "topic": "sums", "weight": 2}))
    (row,) = read_prompts(path)
    assert (row.text, row.topic, row.weight) == ("2 + 2 =", "sums", 2.0)


PAIR = lines({"prompt": "Q", "chosen": "a", "rejected": "b"})
LABEL = lines({"prompt": "Q", "completion": "a", "label": True})


@pytest.mark.parametrize(
    ("reader", "content", "says"),
    [
        (read_demonstrations, DIALOGUES["hh"], 'not among demonstrations.*"chosen", "rejected", read as hh'),
        (read_lessons, DIALOGUES["hh"], "a ranking is not among lessons"),
        (read_texts, DIALOGUES["hh"], "a ranking is not among texts"),
        (read_lessons, PAIR, '"completion" is missing.*chosen, rejected'),
        (read_rankings, DEMONSTRATIONS["alpaca"], 'a demonstration is not among rankings.*"instruction", "input"'),
        (read_rankings, DEMONSTRATIONS["accord"], 'neither "completions" and "ranks" nor "chosen"'),
        (partial(read_judged, what="label"), PAIR, '"label" is missing.*chosen, rejected'),
        (partial(read_judged, what="rating"), LABEL, '"rating" is missing'),
        (read_rankings, LABEL, 'neither "completions" and "ranks" nor "chosen" and "rejected" are there'),
        (read_prompts, lines({"foo": 1}), '"prompt" is missing.*foo'),
        (read_rankings, CONVERSATIONS["sharegpt"], 'a conversation is not among rankings.*"conversations"'),
        (read_rankings, lines({"prompt": "Q", "completions": ["a"], "labels": [True]}), '"ranks" is missing|has 1'),
    ],
)
def test_a_file_of_the_wrong_kind_is_refused_by_row_and_column(
    tmp_path: Path, reader: Callable[[Path], list[Any]], content: bytes, says: str
) -> None:
    path = file_of(tmp_path, content)
    with pytest.raises(DataError, match=f"(?s){says}") as caught:
        reader(path)
    assert caught.value.where == f"{path}:1" and caught.value.hint


def test_a_bad_row_stops_a_stage_whatever_the_format(tmp_path: Path) -> None:
    path = file_of(tmp_path, DIALOGUES["hh"] + lines({"chosen": "\n\nHuman: hi\n\nAssistant: x", "rejected": "?"}))
    with pytest.raises(DataError, match='"rejected" does not begin') as caught:
        read_rankings(path, CHAT)
    assert caught.value.where == f"{path}:3"
    empty = file_of(tmp_path, table(",", {"question": "Q", "answer": "a"}, {"question": "R", "answer": " "}))
    with pytest.raises(DataError, match='"answer" is empty') as caught:
        read_demonstrations(empty)
    assert caught.value.where == f"{empty}:3"


def test_published_trees_read_as_the_rows_that_import_writes_of_them(tmp_path: Path) -> None:
    path = published("oasst-en_100_tree.jsonl")
    formats.convert_file(path, tmp_path / "rows.jsonl")
    assert_same_rankings(read_rankings(path, CHAT), read_rankings(tmp_path / "rows.jsonl", CHAT), at_least=100)


def test_published_dialogues_read_as_the_rows_that_import_writes_of_them(tmp_path: Path) -> None:
    """Four of them prefer silence: an empty text, which import leaves out and counts. A stage names it and stops."""
    path = published("hh-harmless-base-test.jsonl.gz")
    found = formats.convert_file(path, tmp_path / "rows.jsonl")
    assert found.left_out == {"a text is empty": 4}
    with pytest.raises(DataError, match="is empty") as caught:
        read_rankings(path, CHAT)
    assert caught.value.where == f"{path}:87" and "accord import" in caught.value.hint
    whole = [line for line in gzip.decompress(path.read_bytes()).splitlines(True) if not silent(line)]
    mine = read_rankings(file_of(tmp_path, gzip.compress(b"".join(whole))), CHAT)
    assert_same_rankings(mine, read_rankings(tmp_path / "rows.jsonl", CHAT), at_least=2308)


def silent(line: bytes) -> bool:
    return any(
        text.endswith("\n\nAssistant: ") or text.endswith("\n\nAssistant:") for text in json.loads(line).values()
    )


def published(name: str) -> Path:
    if not (DATA / name).exists():
        pytest.skip(f"{name} is not here")
    return DATA / name


def assert_same_rankings(mine: Sequence[RankedGroup], theirs: Sequence[RankedGroup], at_least: int) -> None:
    shown = [[(group.prompt, group.completions, group.ranks) for group in groups] for groups in (mine, theirs)]
    assert shown[0] == shown[1] and len(mine) >= at_least
