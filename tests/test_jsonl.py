"""Users' JSON lines: what is read, and that every fault is a DataError that names file, line and field."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from accord.errors import DataError, ResourceError
from accord.formats import stage_rows
from accord.formats.jsonl import write_jsonl
from accord.formats.stage_rows import (
    PromptRow,
    read_demonstrations,
    read_judged,
    read_judgements,
    read_prompts,
    read_rankings,
    read_texts,
)

read_labels, read_ratings = partial(read_judged, what="label"), partial(read_judged, what="rating")
READERS: list[Callable[[Path], list[Any]]] = [
    read_demonstrations,
    read_rankings,
    read_prompts,
    read_texts,
    read_labels,
    read_ratings,
]


def _file(tmp_path: Path, content: str | bytes, name: str = "data.jsonl") -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_each_form_is_read(tmp_path: Path) -> None:
    demo = _file(tmp_path, '{"prompt": "Q:", "completion": " A ", "extra": 1}\n\n{"prompt": "R:", "completion": " B"}')
    assert read_demonstrations(demo) == [("Q:", " A "), ("R:", " B")]
    assert read_prompts(_file(tmp_path, '{"prompt": "Q:", "topic": "t"}\n{"prompt": "R:"}\n')) == [
        PromptRow("Q:", "t"),
        PromptRow("R:", ""),
    ]
    assert read_texts(_file(tmp_path, '{"text": "one"}\r\n{"text": "two"}\r\n')) == ["one", "two"]


def test_rankings_and_pairs_are_groups(tmp_path: Path) -> None:
    path = _file(
        tmp_path,
        '{"prompt": "Q", "completions": ["a", "b", "c"], "ranks": [2, 1, 2.0], '
        '"topic": "t", "weight": 0.5, "origin": "o"}\n'
        '{"prompt": "R", "chosen": "x", "rejected": "y"}\n',
        "prefs.jsonl",
    )
    group, pair = read_rankings(path)
    assert (group.prompt, group.completions, group.ranks) == ("Q", ("a", "b", "c"), (2.0, 1.0, 2.0))
    assert (group.topic, group.weight, group.origin) == ("t", 0.5, "o")
    assert (pair.completions, pair.ranks, pair.origin, pair.weight) == (("x", "y"), (1.0, 2.0), "prefs.jsonl", 1.0)


def test_a_completion_without_a_rank_was_not_judged(tmp_path: Path) -> None:
    path = _file(tmp_path, '{"prompt": "Q", "completions": ["a", "b", "c"], "ranks": [2, null, 1]}')
    (group,) = read_rankings(path)
    assert (group.completions, group.ranks) == (("a", "c"), (2.0, 1.0))


def test_pairs_say_how_clear_they_were(tmp_path: Path) -> None:
    path = _file(
        tmp_path,
        '{"prompt": "p", "chosen": "x", "rejected": "y", "strength": "much", "margin": 2, "probability": 0.75}\n'
        '{"prompt": "p", "completions": ["x", "y"], "ranks": [2, 1], "strength": "barely"}\n'
        '{"prompt": "p", "completions": ["x", "y"], "ranks": [1, 1], "strength": 2}\n'
        '{"prompt": "p", "completions": ["x", "y", "z"], "ranks": [1, 2, 3], "margin": "wide"}\n'
        '{"prompt": "p", "chosen": "x", "rejected": "y", "strength": null, "margin": null}\n',
    )
    found = [(group.strength, group.margin, group.probability) for group in read_rankings(path)]
    nothing = (None, None, None)  # of ties and longer rankings they are not read
    assert found == [("significantly", 2.0, 0.75), ("negligibly", None, None), nothing, nothing, nothing]
    write_jsonl(tmp_path / "again.jsonl", [group.to_json() for group in read_rankings(path)])
    assert read_rankings(tmp_path / "again.jsonl") == read_rankings(path)


def test_labels_among_rankings(tmp_path: Path) -> None:
    label = b'{"prompt": "Q", "completion": "a", "label": true}'
    pair = b'{"prompt": "R", "chosen": "x", "rejected": "y"}'
    found = read_judgements(_file(tmp_path, pair + b"\n" + label))
    (ranked,), (labelled,) = read_rankings(_file(tmp_path, pair)), read_judged(_file(tmp_path, label), "label")
    assert found == [ranked, labelled]


def test_labels_and_ratings_are_groups_with_values(tmp_path: Path) -> None:
    path = _file(
        tmp_path,
        '{"prompt": "Q", "completion": "a", "label": true, "rating": 4, "topic": "t", "weight": 0.5}\n'
        '{"prompt": "Q", "completion": "b", "label": false, "rating": -1.5, "origin": "o"}\n',
    )
    good, bad = read_judged(path, "label")
    assert (good.prompt, good.completions, good.values, good.topic, good.weight) == ("Q", ("a",), (1.0,), "t", 0.5)
    assert (bad.values, bad.origin, bad.weight) == ((0.0,), "o", 1.0)
    assert [group.values for group in read_judged(path, "rating")] == [(4.0,), (-1.5,)]
    flagged = _file(tmp_path, '{"prompt": "Q", "completions": ["a", "b"], "unacceptable": [true, false]}')
    (group,) = read_judged(flagged, "label")
    assert (group.completions, group.values) == (("a", "b"), (0.0, 1.0))


def test_bom_gzip_and_line_separators_inside_text(tmp_path: Path) -> None:
    line = json.dumps({"text": "a\u2028b\x85c"}, ensure_ascii=False).encode()
    assert read_texts(_file(tmp_path, b"\xef\xbb\xbf" + line)) == ["a\u2028b\x85c"]
    assert read_texts(_file(tmp_path, gzip.compress(line), "data.bin")) == ["a\u2028b\x85c"]


@pytest.mark.parametrize(
    ("reader", "line", "says"),
    [
        (read_rankings, '{"prompt": "p", "chosen": " ", "rejected": "y"}', '"chosen" is empty'),
        (read_rankings, '{"prompt": "p", "chosen": "x"}', '"rejected" is missing'),
        (read_rankings, '{"prompt": "p", "chosen": "x", "rejected": "x"}', "same text"),
        (read_rankings, '{"prompt": "p"}', 'neither "completions"'),
        (read_rankings, '{"prompt": "p", "completions": ["a", "b"]}', '"ranks" is missing'),
        (
            read_rankings,
            '{"prompt": "p", "completions": "ab", "ranks": [1, 2]}',
            '"completions" is a string, not a list',
        ),
        (read_rankings, '{"prompt": "p", "completions": ["a", 3], "ranks": [1, 2]}', r'"completions\[1\]" is a number'),
        (read_rankings, '{"prompt": "p", "completions": ["a"], "ranks": [1]}', "has 1 texts"),
        (read_rankings, '{"prompt": "p", "completions": ["a", "b"], "ranks": [1]}', '"ranks" are 1 for 2 completions'),
        (read_rankings, '{"prompt": "p", "completions": ["a", "b"], "ranks": [1, NaN]}', "ranks 1 of 2"),
        (
            read_rankings,
            '{"prompt": "p", "completions": ["a", "b"], "ranks": [1, 1e999]}',
            "1e999 is too large a number",
        ),
        (read_rankings, '{"prompt": "p", "completions": ["a", "b"], "ranks": [1, true]}', r'"ranks\[1\]" is true or'),
        (read_rankings, '{"prompt": "p", "completions": ["a", "b"], "ranks": [0, 1]}', '"ranks" holds 0'),
        (read_rankings, '{"prompt": "p", "completions": ["a", "b"], "ranks": [1, null]}', "ranks 1 of 2"),
        (read_rankings, '{"prompt": "p", "chosen": "x", "rejected": "y", "strength": "very"}', "is 'very'"),
        (read_rankings, '{"prompt": "p", "chosen": "x", "rejected": "y", "margin": "1"}', '"margin" is a string'),
        (read_rankings, '{"prompt": "p", "chosen": "x", "rejected": "y", "probability": 0.2}', '"probability" is 0.2'),
        (read_labels, '{"prompt": "p", "completion": "x"}', '"label" is missing'),
        (read_labels, '{"prompt": "p", "completion": "x", "label": 3}', '"label" is a number, not true or false'),
        (read_labels, '{"prompt": "p", "completions": ["x"], "unacceptable": []}', '"unacceptable" are 0 for 1'),
        (read_labels, '{"prompt": "p", "completions": ["x"], "unacceptable": ["no"]}', "not true or false"),
        (read_ratings, '{"prompt": "p", "completion": "x", "rating": true}', '"rating" is true or false, not a number'),
        (read_ratings, '{"prompt": "p", "completion": "x", "rating": "4"}', '"rating" is a string, not a number'),
        (read_rankings, '{"prompt": "p", "chosen": "x", "rejected": "y", "weight": 0}', '"weight" is 0'),
        (read_rankings, '{"prompt": "p", "chosen": "x", "rejected": "y", "weight": "2"}', '"weight" is a string'),
        (read_rankings, '{"prompt": "p", "chosen": "x", "rejected": "y", "topic": 2}', '"topic" is a number'),
        (read_labels, '{"prompt": "p", "completion": "c"}', '"label" is missing'),
        (read_labels, '{"prompt": "p", "completion": "c", "label": "so"}', "\"label\" is 'so', not true or false"),
        (read_judgements, '{"prompt": "p", "completion": "c", "label": null}', '"label" is null'),
        (read_judgements, '{"prompt": "p", "label": true}', '"completion" is missing'),
        (read_demonstrations, '{"prompt": "p", "completion": null}', '"completion" is null, not a string'),
        (read_demonstrations, '{"prompt": ["p"], "completion": "c"}', r'"prompt\[0\]" is a string, not a message'),
        (read_demonstrations, '{"completion": "c"}', '"prompt" is missing'),
        (read_texts, r'{"text": "\ud800"}', "surrogate"),
        (read_texts, '["text"]', "a list, not an object"),
        (read_texts, '{"text": "a"', "not JSON"),
        (read_texts, "[" * 100_000, "not JSON"),
        (read_texts, b'{"text": "\xe9"}', "byte 11 of the line is not UTF-8"),
    ],
)
def test_a_fault_names_file_line_field_and_cure(
    tmp_path: Path, reader: Callable[[Path], list[Any]], line: str | bytes, says: str
) -> None:
    judged = b"" if reader is read_demonstrations else b', "chosen": "x", "rejected": "y", "label": true, "rating": 3'
    fine = b'{"prompt": "p", "completion": "c", "text": "t"' + judged + b"}\n\n"
    path = _file(tmp_path, fine + (line if isinstance(line, bytes) else line.encode()))
    with pytest.raises(DataError, match=says) as caught:
        reader(path)
    assert caught.value.where == f"{path}:3"
    assert caught.value.hint


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "the file is empty"),
        (b"\n \n", "the file is empty"),
        (gzip.compress(b"{}" * 999, mtime=0)[:-9], "breaks off here: the compressed data ends too early"),
        (b"\x1f\x8b", "read"),
    ],
)
def test_empty_and_cut_files(tmp_path: Path, reader: Callable[[Path], list[Any]], content: bytes, says: str) -> None:
    with pytest.raises(DataError, match=says):
        reader(_file(tmp_path, content))


@pytest.mark.parametrize("reader", READERS)
def test_missing_file_and_folder(tmp_path: Path, reader: Callable[[Path], list[Any]]) -> None:
    with pytest.raises(DataError, match="no such file"):
        reader(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="is a folder"):
        reader(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)
FIELDS = ("prompt", "completion", "completions", "ranks", "chosen", "rejected", "text", "weight", "label", "rating")
ROWS = st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, JSON))
LINES = ROWS.map(lambda row: json.dumps(row).encode())


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(st.binary(max_size=60), st.lists(st.one_of(LINES, st.binary(max_size=20)), max_size=4).map(b"\n".join))
)
@example(b'{"prompt": "p", "completions": ["a", "b"], "ranks": [1, 1' + b"0" * 400 + b"]}")
@example(b'{"prompt": "p", "chosen": "a", "rejected": "b", "weight": ' + b"9" * 5000 + b"}")
def test_any_bytes_give_rows_or_a_data_error(tmp_path: Path, content: bytes) -> None:
    path = _file(tmp_path, content)
    for reader in READERS:
        try:
            assert reader(path)
        except DataError as error:
            assert str(path) in str(error)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(str.strip)
GROUPS = st.lists(st.tuples(TEXT, st.integers(1, 9)), min_size=2, max_size=9)


@pytest.mark.slow
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(TEXT, GROUPS, st.floats(1e-3, 1e3)), min_size=1, max_size=4),
    st.sampled_from(["a.jsonl", "a.gz"]),
)
def test_written_rankings_read_back_the_same(tmp_path: Path, groups: list[Any], name: str) -> None:
    rows = [
        {"prompt": p, "completions": [c for c, _ in g], "ranks": [r for _, r in g], "weight": w} for p, g, w in groups
    ]
    write_jsonl(tmp_path / name, rows)
    first = (tmp_path / name).read_bytes()
    found = [
        {"prompt": g.prompt, "completions": list(g.completions), "ranks": list(g.ranks), "weight": g.weight}
        for g in read_rankings(tmp_path / name)
    ]
    assert found == rows
    write_jsonl(tmp_path / name, rows)
    assert (tmp_path / name).read_bytes() == first
    assert not name.endswith(".gz") or first[4:8] == bytes(4)  # gzip's time stamp


@pytest.mark.parametrize("bad", [{"text": float("nan")}, {"text": "\ud800"}, {"text": object()}])
def test_a_row_that_is_no_json_leaves_the_old_file(tmp_path: Path, bad: dict[str, Any]) -> None:
    path = _file(tmp_path, '{"text": "old"}\n')
    with pytest.raises(DataError, match=r"data\.jsonl:2: the row cannot be written"):
        write_jsonl(path, [{"text": "fine"}, bad])
    assert read_texts(path) == ["old"]
    assert [p.name for p in tmp_path.iterdir()] == ["data.jsonl"]


def test_a_folder_in_the_way_is_a_resource_error(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl" / "inside").mkdir(parents=True)
    with pytest.raises(ResourceError):
        write_jsonl(tmp_path / "data.jsonl", [{"text": "a"}])
    assert [p.name for p in tmp_path.iterdir()] == ["data.jsonl"]


def test_a_large_text_survives(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "big.jsonl", [{"text": "é" * 1_000_000}])
    assert stage_rows.read_texts(tmp_path / "big.jsonl") == ["é" * 1_000_000]
