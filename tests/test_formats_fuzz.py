"""Rows of every format and files of every kind, damaged anywhere: told or refused, never a raw exception.

`make fuzz TESTS=tests/test_formats_fuzz.py` draws new damage each round; ACCORD_FUZZ_S=600 gives each reader so many
seconds of new damage, and ``-s`` prints how many examples that were.
"""

from __future__ import annotations

import copy
import csv
import gzip
import io
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_formats import SAYS, easy_item
from test_published import PUBLISHED

from accord import formats
from accord.errors import AccordError
from accord.formats.facts import to_records

SECONDS = float(os.environ.get("ACCORD_FUZZ_S", "0"))
# The suite's profile draws the same examples each time: a long run would be the same hundred again and again.
NEW: dict[str, Any] = {"max_examples": 100, "derandomize": False} if SECONDS else {"max_examples": 25}
HINTS = settings(deadline=None, suppress_health_check=list(HealthCheck), **NEW)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["", " ", "0", "1", "tie", "response_1", "[]", "{", "\n\nHuman:", "\x00", "\u2028", "\ud83e"]),
    st.text(max_size=8),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
)


def rows_of(name: str, folder: Path) -> list[dict[str, Any]]:
    """Return good rows of a format: by hand where it is only read, else as Accord writes them."""
    if name in PUBLISHED:
        return [dict(row) for row in PUBLISHED[name][0]]
    path = folder / f"{name}.jsonl"
    formats.write_items(path, [easy_item(name)], name, kinds=["all"])
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every value inside a row."""
    if path:
        yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from places(one, (*path, key))


def damaged(draw: st.DrawFn, row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of which one value, anywhere, is another, is gone, or stands under another name."""
    found: dict[str, Any] = copy.deepcopy(row)
    for _ in range(draw(st.integers(1, 2))):
        *way, last = draw(st.sampled_from(list(places(found)) or [("x",)]))
        holder: Any = found
        for key in way:
            holder = holder[key]
        what = draw(st.sampled_from(["change", "remove", "rename"]))
        if what == "change" or isinstance(holder, list):
            holder[last] = draw(values)
        else:
            moved = holder.pop(last, None)
            if what == "rename":
                holder[draw(st.text(min_size=1, max_size=6))] = moved
    return found


def drawing(name: str, run: Callable[[], None], tried: Counter[str]) -> None:
    """Run the examples once, and again as long as the time lasts; say how many there were."""
    begun = time.monotonic()
    run()
    while time.monotonic() < begun + SECONDS:
        run()
    print(f"\nfuzz: {name}: {tried[name]} examples in {time.monotonic() - begun:.0f} s")


@st.composite
def files(draw: st.DrawFn, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [damaged(draw, draw(st.sampled_from(rows))) if draw(st.booleans()) else row for row in rows * 2]


@pytest.mark.slow
@pytest.mark.hypothesis
@pytest.mark.parametrize("name", [*PUBLISHED, *SAYS])
def test_damage_is_told_and_never_a_raw_exception(tmp_path: Path, name: str) -> None:
    rows, tried = rows_of(name, tmp_path), Counter[str]()
    path = tmp_path / "damaged.jsonl"

    @HINTS
    @given(found=files(rows))
    def run(found: list[dict[str, Any]]) -> None:
        tried[name] += 1
        text = "".join(json.dumps(row) + "\n" for row in found)
        path.write_text(text.encode("utf-8", "replace").decode(), encoding="utf-8")
        for how in (None, name):
            rejects: list[formats.Reject] = []
            try:
                reading = formats.read_items(path, how, on_reject=rejects.append)
                list(to_records(reading, source="x", scale=(-10, 10)))
            except AccordError as error:
                assert str(error)
            else:
                assert reading.num_rows == len(found) and all(reject.problem for reject in rejects)

    drawing(name, run, tried)


ROWS = [
    {"prompt": "Wer?", "chosen": "Der Bär", "rejected": "BAD", "annotator": 7, "margin": 0.5},
    {"prompt": 'Which, "this"?', "chosen": "GOOD\n2", "rejected": "BAD, 2", "annotator": 8, "margin": 1.5},
    {"prompt": "\u4e2d?", "chosen": "GOOD 3", "rejected": "BAD 3", "annotator": 9, "margin": None},
]
# What means something in one of the kinds of files, put anywhere.
SIGNS = [
    *(b'"', b"'", b",", b";", b"\t", b"\n", b"\r", b"\r\n", b"\0", b"[", b"]", b"{", b"}", b":", b"\\", b"sep=;\n"),
    *(b"\xef\xbb\xbf", b"\xff\xfe", b"\xff", b"\xc3", b"\x1f\x8b", b"PAR1", b"null", b"1e999", b"NaN", b"9" * 5000),
]


def as_csv(rows: list[dict[str, Any]], **how: Any) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), restval="", **how)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", "replace")


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    found: bytes = sink.getvalue().to_pybytes()
    return found


def as_lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


KINDS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "csv": as_csv,
    "csv; cp1252": lambda rows: as_csv(rows[:2], delimiter=";").decode().encode("cp1252", "replace"),
    "csv utf-16": lambda rows: as_csv(rows).decode().encode("utf-16"),
    "jsonl": as_lines,
    "json": lambda rows: json.dumps(rows).encode(),
    "objects": lambda rows: json.dumps({"data": rows}, indent=2).encode(),
    "parquet": as_parquet,
    "gzip": lambda rows: gzip.compress(as_lines(rows)),
    "zstd": lambda rows: pytest.importorskip("zstandard").compress(as_lines(rows)),
}


@st.composite
def other_bytes(draw: st.DrawFn, whole: bytes) -> bytes:
    """Return a file of which parts are other bytes, are gone, stand twice or elsewhere."""
    found = whole
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.integers(0, len(found)))
        end = min(len(found), begin + draw(st.sampled_from([0, 0, 1, 1, 3, 20, 400])))
        piece = draw(st.one_of(st.sampled_from(SIGNS), st.binary(max_size=3), st.just(found[begin:end] * 2)))
        found = found[:begin] + piece + found[end:]
    return found


def all_read(path: Path) -> None:
    """Read a file as items and as records; what is refused or left out has words."""
    rejects: list[formats.Reject] = []
    try:
        reading = formats.read_items(path, on_reject=rejects.append)
        list(to_records(reading, source="x", scale=(-10, 10)))
    except AccordError as error:
        assert str(error) and error.exit_code in (2, 3)
    else:
        assert len(rejects) == reading.num_rejected and all(reject.problem for reject in rejects)


@pytest.mark.slow
@pytest.mark.hypothesis
@pytest.mark.parametrize("name", KINDS)
def test_files_with_other_bytes_are_told_and_never_a_raw_exception(name: str, tmp_path: Path) -> None:
    whole, path, tried = KINDS[name](ROWS), tmp_path / "data", Counter[str]()
    path.write_bytes(whole)
    assert len(list(formats.read_items(path))) == (2 if "cp1252" in name else 3)

    @HINTS
    @given(found=other_bytes(whole))
    def run(found: bytes) -> None:
        tried[name] += 1
        path.write_bytes(found)
        all_read(path)

    drawing(name, run, tried)


@pytest.mark.parametrize("name", [*PUBLISHED, *(name for name in SAYS if not name.startswith("oasst"))])
@pytest.mark.parametrize("column", ["is_better", "human_score", "vote"])
def test_no_format_loses_a_judgement_that_it_does_not_know(tmp_path: Path, name: str, column: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({**row, column: 1}) + "\n" for row in rows_of(name, tmp_path)), encoding="utf-8")
    for how in (None, name):
        with pytest.raises(AccordError, match=column):
            list(formats.read_items(path, how, on_reject=lambda reject: None))
