"""Rows of every format, damaged anywhere: a reject or a refusal that names what is wrong, never a raw exception.

`make fuzz TESTS=tests/test_formats_fuzz.py` draws new damage each round; ACCORD_FUZZ_S=600 gives each reader so many
seconds.
"""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Iterator
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
HINTS = settings(max_examples=100 if SECONDS else 25, deadline=None, suppress_health_check=list(HealthCheck))
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


@st.composite
def files(draw: st.DrawFn, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [damaged(draw, draw(st.sampled_from(rows))) if draw(st.booleans()) else row for row in rows * 2]


@pytest.mark.slow
@pytest.mark.hypothesis
@pytest.mark.parametrize("name", [*PUBLISHED, *SAYS])
def test_damage_is_told_and_never_a_raw_exception(tmp_path: Path, name: str) -> None:
    rows, until = rows_of(name, tmp_path), time.monotonic() + SECONDS
    path = tmp_path / "damaged.jsonl"

    @HINTS
    @given(found=files(rows))
    def run(found: list[dict[str, Any]]) -> None:
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

    run()
    while time.monotonic() < until:
        run()


@pytest.mark.parametrize("name", [*PUBLISHED, *(name for name in SAYS if not name.startswith("oasst"))])
@pytest.mark.parametrize("column", ["is_better", "human_score", "vote"])
def test_no_format_loses_a_judgement_that_it_does_not_know(tmp_path: Path, name: str, column: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({**row, column: 1}) + "\n" for row in rows_of(name, tmp_path)), encoding="utf-8")
    for how in (None, name):
        with pytest.raises(AccordError, match=column):
            list(formats.read_items(path, how, on_reject=lambda reject: None))
