"""Rows into files: JSON lines, one JSON array, CSV, Parquet; plain, gzip or zstd.

A file is whole or absent, and the same rows give the same bytes.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import itertools
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

from accord.errors import DataError, UsageError
from accord.files import whole_file
from accord.formats.format import Fields, Format
from accord.formats.item import CannotSay, cannot
from accord.formats.parquet import pyarrow
from accord.formats.source import Container, cell_value, delimiter_named, zstandard

_KINDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_BATCH_ROWS = 1_000
#: Files of columns: rows are kept aside until all columns are known, and what is no column of the format is folded.
_TABLES = ("csv", "parquet")


def container_named(path: Path) -> Container:
    """Return how a file of this name is to hold its rows: JSON lines unless the name says otherwise."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = _COMPRESSIONS.get(suffixes[-1], "") if suffixes else ""
    suffix = (suffixes[-2:-1] if compression else suffixes[-1:]) or [".jsonl"]
    container = Container(_KINDS.get(suffix[0], "jsonl"), compression, delimiter_named(path))
    if container.kind == "parquet" and compression:
        raise UsageError("Parquet compresses by itself", where=str(path), hint="leave out .gz or .zst")
    return container


def fitted(row: Fields, format: Format, container: Container) -> Fields:
    """Return a row as its file takes it.

    In a table what is no field of the format stands as JSON in one column ``extra``.

    Raises CannotSay where a cell would be read otherwise.
    """
    if container.kind not in _TABLES:
        return row
    others = {name: value for name, value in row.items() if name not in format.fields}
    own = {name: value for name, value in row.items() if name in format.fields and value is not None}
    whole = {**own, "extra": encoded(others)} if others else own
    if container.kind == "parquet":
        return whole
    return {
        name: "" if value == "" and name in format.optional else _cell(name, value) for name, value in whole.items()
    }


def encoded(value: Any) -> str:
    """Return JSON in one line. Raises CannotSay for what JSON does not know."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise CannotSay(f"the row cannot be written as JSON: {error}") from error
    return text


def _cell(name: str, value: Any) -> str:
    if not isinstance(value, str):
        cell = encoded(value)
        return cell if cell_value(name, cell) != cell else cannot(f"in CSV {name} would be read as a text")
    # An empty cell is read as no value: better left out, and counted, than changed.
    if not value:
        raise CannotSay("CSV cannot tell an empty text from none")
    if name != "extra" and cell_value(name, value) != value:
        raise CannotSay("in CSV a text would be read as messages")
    return value


#: A spreadsheet runs a cell that begins so; some take the wide signs of East Asian keyboards for the narrow ones.
_FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"\s*[-+]?[\d.,]+([eE][-+]?\d+)?\s*")


def formulas_in(row: Fields) -> list[str]:
    """Return the columns of a row of CSV whose texts a spreadsheet would take for formulas; a number is none."""
    texts = {name: value for name, value in row.items() if isinstance(value, str)}
    return [name for name, text in texts.items() if _FORMULA.match(text) and not _NUMBER.fullmatch(text)]


def write_rows(path: Path, container: Container, rows: Iterable[Fields], left_out: Mapping[str, int]) -> int:
    """Write the rows and return how many there were. Memory holds one row, of a table a batch of them.

    ``left_out`` counts by reason what makes no row: reported if there are none.

    Raises:
        DataError: There are no rows, or (Parquet) a column holds values of several kinds.
        ResourceError: The disk does not take them, or a package is missing.
    """
    counted = _Counted(rows)
    with whole_file(path) as raw:
        with _COMPRESSORS[container.compression](raw) as file:
            _WRITERS[container.kind](file, counted, path, container)
        if not counted.count:
            why = ", ".join(f"{reason} ({count})" for reason, count in left_out.items())
            raise DataError("there is nothing to write", where=str(path), why=why and f"left out: {why}")
    return counted.count


class _Counted:
    def __init__(self, rows: Iterable[Fields]) -> None:
        self.rows, self.count = rows, 0

    def __iter__(self) -> Iterator[Fields]:
        for row in self.rows:
            self.count += 1
            yield row


@contextlib.contextmanager
def _gzipped(raw: BinaryIO) -> Iterator[BinaryIO]:
    # no name, no time: the same rows, the same bytes
    with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as file:
        yield cast(BinaryIO, file)


@contextlib.contextmanager
def _zstandard(raw: BinaryIO) -> Iterator[BinaryIO]:
    with zstandard().ZstdCompressor(level=3).stream_writer(raw, closefd=False) as file:
        yield file


_COMPRESSORS: Mapping[str, Callable[[BinaryIO], contextlib.AbstractContextManager[BinaryIO]]] = {
    "": contextlib.nullcontext,
    "gzip": _gzipped,
    "zstd": _zstandard,
}


def _write_jsonl(file: BinaryIO, rows: Iterable[Fields], path: Path, container: Container) -> None:
    for row in rows:
        file.write(encoded(row).encode() + b"\n")


def _write_json(file: BinaryIO, rows: Iterable[Fields], path: Path, container: Container) -> None:
    before = b"[\n"
    for row in rows:
        file.write(before + encoded(row).encode())
        before = b",\n"
    file.write(b"\n]\n")


def _write_csv(file: BinaryIO, rows: Iterable[Fields], path: Path, container: Container) -> None:
    columns: dict[str, None] = {}

    def seen() -> Iterator[Fields]:
        for row in rows:
            columns.update(dict.fromkeys(row))
            yield row

    with _set_aside(seen(), path.parent) as again:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        # RFC 4180's line ends, whatever the machine.
        table = csv.DictWriter(text, list(columns), delimiter=container.delimiter, lineterminator="\r\n")
        table.writeheader()
        table.writerows(again)
        text.detach()


def _write_parquet(file: BinaryIO, rows: Iterable[Fields], path: Path, container: Container) -> None:
    arrow, parquet = pyarrow()
    schema = arrow.schema([])

    def seen() -> Iterator[Fields]:
        nonlocal schema
        for batch in _batches(rows):
            schema = _widened(arrow, schema, batch, path)
            yield from batch

    with _set_aside(seen(), path.parent) as again, parquet.ParquetWriter(file, schema) as table:
        for batch in _batches(again):
            table.write_table(arrow.Table.from_pylist(batch, schema=schema))


def _batches(rows: Iterable[Fields]) -> Iterator[list[Fields]]:
    source = iter(rows)
    while batch := list(itertools.islice(source, _BATCH_ROWS)):
        yield batch


def _widened(arrow: Any, schema: Any, batch: list[Fields], path: Path) -> Any:
    """Return the schema with the columns of a batch. Arrow's own guess would look at the first row only."""
    names = dict.fromkeys(name for row in batch for name in row)
    for name in names:
        try:
            column = arrow.schema([(name, arrow.array([row.get(name) for row in batch]).type)])
            # Whole numbers in one batch and fractions in the next are one column of fractions.
            schema = arrow.unify_schemas([schema, column], promote_options="permissive")
        except (arrow.ArrowException, OverflowError) as error:
            raise DataError(
                f'column "{name}" holds values of several kinds',
                where=str(path),
                why=f"Parquet wants one kind a column: {error}",
                hint="write JSON lines, or rows of one form (all text, or all messages)",
            ) from error
    return schema


@contextlib.contextmanager
def _set_aside(rows: Iterable[Fields], folder: Path) -> Iterator[Iterator[dict[str, Any]]]:
    """The rows once more, after all have been seen: they wait in a file."""
    # Beside the output, where there must be room anyway; /tmp may be memory.
    with tempfile.TemporaryFile(dir=folder) as aside:
        for row in rows:
            aside.write(encoded(row).encode() + b"\n")
        aside.seek(0)
        yield map(json.loads, aside)


_WRITERS: Mapping[str, Callable[[BinaryIO, Iterable[Fields], Path, Container], None]] = {
    "jsonl": _write_jsonl,
    "json": _write_json,
    "csv": _write_csv,
    "parquet": _write_parquet,
}
