"""Files as they come: damaged, huge, compressed, in odd encodings. Good rows are read, bad ones are told."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from accord import formats
from accord.cli.main import app
from accord.errors import AccordError, DataError, ResourceError, UsageError
from accord.files import child, name_from
from accord.formats import Item, Reject
from accord.formats.source import MAX_ROW

quickly = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))


def row(i: int) -> bytes:
    return b'{"prompt": "p%d", "chosen": "a", "rejected": "b"}' % i


def pair(i: int) -> Item:
    return Item(prompt=f"p{i}", completions=("a", "b"), ranks=(1, 2))


def taken(path: Path, format: str | None = None) -> tuple[list[Item], list[Reject], formats.Reading]:
    rejected: list[Reject] = []
    reading = formats.read_items(path, format, on_reject=rejected.append)
    return list(reading), rejected, reading


def file(tmp_path: Path, data: bytes, name: str = "data") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "change", [gzip.compress, bytes, lambda data: b"\xef\xbb\xbf" + data], ids=["gz", "plain", "bom"]
)
@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["lf", "crlf"])
def test_compression_bom_and_line_ends_are_told_by_content(
    tmp_path: Path, change: Callable[[bytes], bytes], end: bytes
) -> None:
    path = file(tmp_path, change(end.join([row(1), b"", row(2)])), "data.csv")  # the name does not matter
    items, rejected, reading = taken(path)
    assert items == [pair(1), pair(2)] and not rejected and reading.num_rows == 2


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"prompt": "p", "chosen": "a", "rejec', "not JSON"),
        (b'{"prompt": "p", "chosen": NaN, "rejected": "b"}', "is null"),
        (b'{"prompt": "p", "prompt": "q", "chosen": "a", "rejected": "b"}', 'the key "prompt" stands twice'),
        (b'{"prompt": "p", "chosen": "a", "rejected": "b", "margin": 1e999}', "1e999 is too large"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"prompt": "\xff", "chosen": "a", "rejected": "b"}', "byte 13 of the line is not UTF-8"),
        (rb'{"prompt": "\ud800", "chosen": "a", "rejected": "b"}', "half of a surrogate pair"),
        (b'{"prompt": "p", "chosen": "a", "rejected": "a"}', "is the same text as chosen"),
        (b'{"prompt": "p", "chosen": 3, "rejected": "a"}', "is a number, not a string"),
        (b'{"prompt": "p", "chosen": []}', "holds no messages"),
        (b'{"prompt": "p", "chosen": [[]], "rejected": "a"}', "is a list, not a message"),
        (b"17", "is a number, not an object"),
    ],
)
def test_a_bad_line_is_told_and_the_others_are_read(tmp_path: Path, line: bytes, problem: str) -> None:
    path = file(tmp_path, b"\n".join([row(1), line, row(3)]))
    items, [reject], reading = taken(path)
    assert items == [pair(1), pair(3)] and (reading.num_rows, reading.num_rejected) == (3, 1)
    assert reject.where == f"{path}:2" and problem in reject.problem and reject.hint
    assert reject.row.startswith(line[:5].decode("utf-8", "backslashreplace"))
    with pytest.raises(DataError, match=f"^{path}:2: "):
        list(formats.read_items(path))


def test_a_reject_of_a_parquet_file_shows_its_row(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"prompt": "p", "chosen": text, "rejected": "a"} for text in ("\u00e9\u2028", "a")]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet")
    items, [reject], _ = taken(tmp_path / "x.parquet")
    assert len(items) == 1 and json.loads(reject.row) == rows[1] and reject.where.endswith("x.parquet:2")


def test_a_time_that_is_none_is_told(tmp_path: Path) -> None:
    line = b'{"prompt": "p", "completions": ["a", "b"], "ranks": [1, 2], "created_at": "%s"}'
    said = [b"2026-01-02T03:04:05.5+00:00", b"2026-01-02", b"", b"yesterday"]
    items, [reject], _ = taken(file(tmp_path, b"\n".join(line % at for at in said)))
    assert [item.created_at for item in items] == [at.decode() for at in said[:3]]
    assert reject.field == "created_at" and reject.where.endswith(":4")


def test_u2028_inside_a_string_ends_no_line(tmp_path: Path) -> None:
    path = file(tmp_path, '{"prompt": "a\u2028b\x85c", "chosen": "a", "rejected": "b"}\n'.encode())
    assert taken(path)[0] == [Item(prompt="a\u2028b\x85c", completions=("a", "b"), ranks=(1, 2))]


@pytest.mark.slow
def test_a_line_of_100_megabytes_is_skipped_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    with path.open("wb") as out:
        out.write(row(1) + b'\n{"prompt": "')
        for _ in range(100):
            out.write(b"x" * 2**20)
        out.write(b'"}\n' + row(3))
    items, rejected, grown = in_another_process(path)
    assert (items, rejected) == (2, 1) and grown < 3 * MAX_ROW
    assert "bytes in one row, more than" in taken(path)[1][0].problem


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """25 MB of rows, compressed. Reading and writing them takes less than 12 MB more than a small file took."""
    path = tmp_path / "data.jsonl.gz"
    text = json.dumps("x" * 1000)[1:-1]
    with gzip.open(path, "wb", compresslevel=1) as out:
        for i in range(25_000):
            out.write(b'{"prompt": "%d %s", "chosen": "a", "rejected": "b"}\n' % (i, text.encode()))
    items, rejected, grown = in_another_process(path)
    assert (items, rejected) == (25_000, 0) and grown < 12 * 2**20


LOOK = """
import resource, sys
from pathlib import Path
from accord import formats
from accord.formats import Item
path, bad = Path(sys.argv[1]), []
formats.write_items(path.with_name("warm.jsonl"), [Item(prompt="p")] * 5_000, "accord")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
reading = formats.read_items(path, on_reject=bad.append)
formats.write_items(path.with_name("out.jsonl"), reading, "hh")
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(reading.num_rows - reading.num_rejected, len(bad), (after - before) * 1024)
"""


def in_another_process(path: Path) -> tuple[int, int, int]:
    """(good rows, rejects, growth of the peak of memory in bytes) of reading a file and writing it anew."""
    done = subprocess.run([sys.executable, "-c", LOOK, str(path)], capture_output=True, text=True, check=True)
    items, rejected, grown = map(int, done.stdout.split())
    return items, rejected, grown


@pytest.mark.slow
def test_what_stands_before_a_cut_is_read(tmp_path: Path) -> None:
    import zstandard

    draw = random.Random(0)
    whole = b"\n".join(row(draw.getrandbits(64)) for i in range(20_000))
    first = [json.loads(line)["prompt"] for line in whole.splitlines()]
    for packed in (zstandard.ZstdCompressor().compress(whole), gzip.compress(whole)):
        items, rejected, _ = taken(file(tmp_path, packed[: len(packed) * 2 // 3]))
        assert [item.prompt for item in items] == first[: len(items)] and len(items) > 6_000
        assert "breaks off" in rejected[-1].problem and len(rejected) <= 2
    damaged = bytearray(gzip.compress(whole))
    damaged[len(damaged) // 2] ^= 0xFF
    items, rejected, _ = taken(file(tmp_path, bytes(damaged)), "trl-preference")
    assert rejected and "breaks off" in rejected[-1].problem


def test_a_json_array_is_read_element_by_element(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "chosen": 'a ]}," \\', "rejected": "b"} for i in range(3_000)]
    path = file(tmp_path, json.dumps(rows, indent=1).encode(), "x.jsonl")
    items, rejected, reading = taken(path)
    assert len(items) == 3_000 and not rejected and reading.detected.container.kind == "json"
    bad = b'[\n {"prompt": "p1", "chosen": "a", "rejected": "b"},\n 7,\n {"prompt" "p"},\n' + row(2) + b"]\n"
    items, rejected, _ = taken(file(tmp_path, bad))
    assert items == [pair(1), pair(2)]
    assert [reject.where.rsplit(":", 1)[1] for reject in rejected] == ["3", "4"]
    items, rejected, _ = taken(file(tmp_path, b"[" + row(1) + b",\n" + row(2)[:20]))
    assert items == [pair(1)] and "the array does not end" in rejected[0].problem
    items, rejected, _ = taken(file(tmp_path, b"[" + row(1) + b"]\noops"))
    assert items == [pair(1)] and "behind the end" in rejected[0].problem


FORMULAS = ["=1+1", "+A1", "-2+3|cmd", "@SUM(A1)", " =x", "\t=x", "\r=x", "\n- item", "\uff1dx", "-", "+1 person"]
PLAIN = ["yes", "-1", "+1.5", "-1e5", "1,000", "a=b", "'=1", "(=1)", "\u2212 minus"]


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.csv.gz"])
def test_cells_that_a_spreadsheet_would_run_are_counted_and_made_safe(name: str, tmp_path: Path) -> None:
    items = [Item(prompt=f"p{i}", completions=(text,), demonstration=True) for i, text in enumerate(FORMULAS + PLAIN)]
    plain = formats.write_items(tmp_path / name, items, "csv")
    assert (plain.formulas, plain.spreadsheet_safe) == (len(FORMULAS), False)
    assert [item.completions[0] for item in formats.read_items(tmp_path / name)] == FORMULAS + PLAIN  # nothing changed
    safe = formats.write_items(tmp_path / f"safe-{name}", items, "csv", spreadsheet_safe=True)
    assert (safe.formulas, safe.spreadsheet_safe) == (len(FORMULAS), True)
    written = [item.completions[0] for item in formats.read_items(tmp_path / f"safe-{name}")]
    assert written == [f"'{text}" for text in FORMULAS] + PLAIN


def test_only_a_table_can_be_made_safe_for_spreadsheets(tmp_path: Path) -> None:
    items = [Item(prompt="p", completions=("=1",), demonstration=True)]
    with pytest.raises(UsageError, match="--spreadsheet-safe has no effect"):
        formats.write_items(tmp_path / "t.jsonl", items, "accord", spreadsheet_safe=True)
    assert formats.write_items(tmp_path / "t.jsonl", items, "accord").formulas == 0


def test_commands_warn_of_formulas(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "p", "completion": "=HYPERLINK(1)"}\n')
    for argv in (["export", "--format", "csv", "--data", str(rows)], ["import", str(rows)]):
        argv += ["-o", str(tmp_path / "t.csv")]
        told = CliRunner().invoke(app, argv)
        assert told.exit_code == 0 and "1 cells of" in told.stderr and "--spreadsheet-safe" in told.stderr, told.stderr
        safe = CliRunner().invoke(app, [*argv, "--spreadsheet-safe"])
        assert safe.exit_code == 0 and "warning" not in safe.stderr
        assert "'=HYPERLINK" in (tmp_path / "t.csv").read_text()


def test_a_stray_quote_costs_one_record_of_a_csv_file(tmp_path: Path) -> None:
    lines = [b"prompt,chosen,rejected", b"p1,a,b", b'"p2,a,b', b"p3,a,b", b'"p\n4",a,b', b"p5,a", b"p6,a,b"]
    items, rejected, _ = taken(file(tmp_path, b"\r\n".join(lines)))
    assert [item.prompt for item in items] == ["p1", "p3", "p\n4", "p6"]
    assert [reject.where.rsplit(":", 1)[1] for reject in rejected] == ["3", "7"]
    with pytest.raises(DataError, match="two of one name"):
        taken(file(tmp_path, b"prompt,prompt\na,b\n"), "accord")


def test_a_tab_parts_cells_also_where_they_are_blank(tmp_path: Path) -> None:
    lines = [b"prompt\tid", b"p1\t1", b" \t", b"", b"  ", b"p2\t2"]
    items, rejected, _ = taken(file(tmp_path, b"\n".join(lines)))
    assert [item.prompt for item in items] == ["p1", " ", "p2"] and not rejected


def test_files_that_are_no_data(tmp_path: Path) -> None:
    for data, what in ((b"", "empty"), (b"\n \n", "empty"), (b"\xff\xfea\0", "utf-16"), (b'{"x": 1}\n', "no format")):
        with pytest.raises(DataError, match=what):
            formats.detect(file(tmp_path, data))
    with pytest.raises(DataError, match="no such file"):
        formats.detect(tmp_path / "gone")
    with pytest.raises(DataError, match="is a folder"):
        formats.detect(tmp_path)
    with pytest.raises(DataError):
        taken(file(tmp_path, b"PAR1" + b"\0" * 100), None)


@quickly
@given(
    st.binary(max_size=400),
    st.sampled_from([b"", b"[", b"{", b"PAR1", b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"prompt,text\n"]),
)
def test_random_bytes_raise_nothing_but_our_errors(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, start: bytes
) -> None:
    path = file(tmp_path_factory.mktemp("fuzz"), start + data)
    for name in (None, "trl-preference", "oasst-messages"):
        try:
            taken(path, name)
        except AccordError:
            continue


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = sorted(
    {*(field for format in formats.FORMATS.values() for field in format.fields), "role", "content", "tools"}
)


@pytest.mark.slow
@quickly
@given(st.lists(st.dictionaries(st.sampled_from(FIELDS), values, max_size=5), min_size=1, max_size=4))
def test_rows_with_anything_in_their_fields_are_items_or_rejects(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]]
) -> None:
    path = file(tmp_path_factory.mktemp("fuzz"), "\n".join(map(json.dumps, rows)).encode())
    for name in formats.FORMATS.keys() - formats.FORMAT_FAMILIES.keys():
        try:
            items, rejected, reading = taken(path, name)
        except DataError as error:  # of an item whose row has a judgement that this format does not know
            assert "would be lost" in str(error)
            continue
        assert reading.num_rows == len(rows) and len(rejected) == reading.num_rejected
        list(formats.to_jsonl(items))
        list(formats.to_records(items, source="s"))


#: A file that begins so is another one altogether, not a damaged text.
MAGIC = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1", b"\xff\xfe", b"\xfe\xff")


@quickly
@given(
    st.binary(max_size=60).filter(lambda data: b"\n" not in data and not data.startswith(MAGIC)),
    st.integers(0, 4),
    st.booleans(),
)
def test_a_damaged_line_loses_no_good_one(
    tmp_path_factory: pytest.TempPathFactory, damage: bytes, at: int, csv: bool
) -> None:
    lines = [b"p%d,a,b" % i if csv else row(i) for i in range(5)]
    lines[at] = damage
    head = [b"prompt,chosen,rejected"] if csv else []
    path = file(tmp_path_factory.mktemp("fuzz"), b"\n".join([*head, *lines]))
    items, rejected, _ = taken(path, "trl-preference")
    assert [item for item in items if item in [pair(i) for i in range(5)]] == [pair(i) for i in range(5) if i != at]
    assert len(items) + len(rejected) <= 5


def test_a_missing_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, end in (("pyarrow", "parquet"), ("zstandard", "jsonl.zst")):
        formats.write_items(tmp_path / f"x.{end}", [pair(1)], "trl")
        monkeypatch.setitem(sys.modules, name, None)
        for use in (lambda p: taken(p), lambda p: formats.write_items(p, [pair(1)], "trl")):
            with pytest.raises(ResourceError, match=r"accord\[parquet\]"):
                use(tmp_path / f"x.{end}")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    formats.write_items(path, [pair(1)], "trl")
    before = path.read_bytes()
    mixed = [Item(prompt="p", completions=("a", "b"), ranks=(1, 2), extra={"x": 1}), pair(2)]
    formats.write_items(path, mixed, "trl")  # what a format has no column for is folded
    assert taken(path)[0] == mixed
    with pytest.raises(DataError, match="nothing to write"):
        formats.write_items(path, [], "trl")
    assert taken(path)[0] == mixed and before != path.read_bytes()
    assert {found.name for found in tmp_path.iterdir()} == {"x.parquet", "x.parquet.manifest.json"}


def test_names_stay_in_their_folder_and_links_are_not_followed(tmp_path: Path) -> None:
    inside, outside = tmp_path / "exports", tmp_path / "secret.jsonl"
    inside.mkdir()
    outside.write_text("keep")
    (inside / "link.jsonl").symlink_to(outside)
    for name in ("../x", "/etc/passwd", "a/b", ".hidden", "", "A", "x" * 65, "link.jsonl"):
        with pytest.raises(UsageError, match="is no name for a file"):
            child(inside, name)
    assert child(inside, "fine-1.jsonl") == inside / "fine-1.jsonl"
    assert name_from("../My File (1).jsonl") == "my-file-1-.jsonl" and name_from("...") == "unnamed"
    formats.write_items(inside / "link.jsonl", [pair(1)], "trl")
    assert outside.read_text() == "keep" and not (inside / "link.jsonl").is_symlink()
