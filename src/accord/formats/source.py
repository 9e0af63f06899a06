"""Files as rows, one at a time: JSON lines, one JSON array, CSV, Parquet; plain, gzip or zstd. Recognised by content.

Memory is bounded by one row: a line (or element, or record) above `MAX_ROW` bytes is skipped and reported.
"""

from __future__ import annotations

import csv
import io
import math
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from accord.errors import DataError, ResourceError
from accord.formats.rows import InputRow, OnReject, RowError, parse_json, parse_object, reject_of

# A conversation is thousands of characters; what is longer is a file without line ends, and would fill the memory.
MAX_ROW = 32 * 2**20
_CHUNK = 2**18
_HEAD = 2**16  # enough to see rows, and one read of a compressed file
_LOOKED_AT = 50  # lines: most of them must be objects, so that one that is damaged does not decide
# By content and not by name: published sets bear names like train.json that hold JSON lines, or lack the .gz.
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_PARQUET = b"PAR1"
_BATCH_ROWS = 256  # rows of Arrow at once, few enough for long conversations

INSTALL = 'pip install "accord[parquet]"'


@dataclass(frozen=True)
class Container:
    """How a file holds its rows: ``kind`` (jsonl, json, csv, parquet), ``compression`` ("", gzip, zstd)."""

    kind: str
    compression: str = ""
    delimiter: str = ","

    def __str__(self) -> str:
        return " ".join(filter(None, [self.compression, self.kind]))


def container_of(path: Path) -> Container:
    """Return how a file holds its rows, by its first 64 KiB.

    Raises:
        DataError: There is no such file, it is empty, or it is neither text nor Parquet.
    """
    with _readable(path), path.open("rb") as raw:
        if raw.read(4) == _PARQUET:
            return Container("parquet")
    with opened(path) as (file, compression):
        head = _head(file, path)
    # Spreadsheets save it so, and every second byte is 0: it would be taken for one long line.
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError("the file is UTF-16", where=str(path), hint="save it as UTF-8")
    lines = [line for line in head.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]
    if not lines:
        raise DataError("the file is empty", where=str(path), hint="check the path")
    first, others = lines[0].lstrip()[:1], lines[1:_LOOKED_AT]
    if first == b"{" or 2 * sum(map(_is_object, others)) > len(others):  # the first line may be damaged
        return Container("jsonl", compression)
    if first == b"[":
        return Container("json", compression)
    # The header of a single column holds no delimiter: there the name decides, as it does where such a file is written.
    delimiters = "\t,;" if delimiter_named(path) == "\t" else ",\t;"
    header = lines[0].decode("utf-8", "replace")
    return Container("csv", compression, max(delimiters, key=header.count))


def delimiter_named(path: Path) -> str:
    """Return what parts the cells of a table of this name: a tab in ``.tsv`` and ``.tsv.gz``, else a comma."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    last = suffixes[-2:-1] if suffixes and suffixes[-1] in (".gz", ".zst") else suffixes[-1:]
    return "\t" if last == [".tsv"] else ","


def _head(file: io.BufferedReader, path: Path) -> bytes:
    """Return the first 64 KiB, or what there is before the file breaks off."""
    head = b""
    try:
        while len(head) < _HEAD and (more := file.read1(_HEAD)):
            head += more
    except EOFError as error:
        if not head:
            raise DataError(f"the file cannot be read: {error}", where=str(path), hint="fetch it again") from error
    return head


def _is_object(line: bytes) -> bool:
    try:
        return line.lstrip()[:1] == b"{" and bool(parse_object(line, ""))
    except RowError:
        return False


def rows(path: Path, container: Container, on_reject: OnReject) -> Iterator[InputRow]:
    """Return the rows of a file; what cannot be parsed goes to ``on_reject``. A file cut off is read up to the cut.

    Raises:
        DataError: The file cannot be opened.
        ResourceError: The package that opens it is missing.
    """
    if container.kind == "parquet":
        yield from _parquet_rows(path, on_reject)
        return
    with opened(path) as (file, _):
        lines = _Lines(file, path, on_reject)
        yield from _TEXT_ROWS[container.kind](lines, container)


@contextmanager
def opened(path: Path) -> Iterator[tuple[io.BufferedReader, str]]:
    """The bytes of a file without compression, and which compression it had."""
    with _readable(path), path.open("rb") as raw:
        magic = raw.read(4)
        raw.seek(0)
        compression = next((name for start, name in _MAGIC.items() if magic.startswith(start)), "")
        plain: Any = _Inflating(raw, _ENGINES[compression]) if compression else raw
        with io.BufferedReader(plain, _CHUNK) as file:
            yield file, compression


class _Inflating(io.RawIOBase):
    """Compressed bytes as plain ones, piece by piece: what stands before damage is given before the damage is reported.

    Pieces are small because a few bytes may stand for very many.
    """

    def __init__(self, raw: BinaryIO, engine: Callable[[], Any]) -> None:
        self.raw, self.start = raw, engine
        self.engine: Any = None
        self.ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.ready:
            ended = self.engine is None or self.engine.eof
            # Several gzip members one after the other are one file (as `cat a.gz b.gz` makes it).
            piece = (self.engine.unused_data if self.engine is not None and ended else b"") or self.raw.read(1024)
            if not piece and not ended:
                raise EOFError("the compressed data ends too early")
            if not piece:
                return 0
            if ended:
                self.engine = self.start()
            try:
                self.ready = memoryview(self.engine.decompress(piece))
            except Exception as error:  # zstandard's own class can be named only where it is installed
                raise EOFError(f"the compressed data is damaged: {error}") from error
        size = min(len(buffer), len(self.ready))
        buffer[:size], self.ready = self.ready[:size], self.ready[size:]
        return size


_ENGINES: Mapping[str, Callable[[], Any]] = {
    "gzip": lambda: zlib.decompressobj(wbits=31),
    "zstd": lambda: zstandard().ZstdDecompressor().decompressobj(),
}


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise DataError("there is no such file", where=str(path), hint="check the path") from error
    except IsADirectoryError as error:
        raise DataError("is a folder", where=str(path), hint="give a file in it") from error
    except OSError as error:
        raise DataError(f"the file cannot be read: {error}", where=str(path), hint="check the file") from error


def zstandard() -> Any:
    """Return the package that knows zstd. Raises ResourceError where it is not installed."""
    try:
        import zstandard
    except ImportError as error:
        raise ResourceError("zstd files need the package zstandard", hint=INSTALL) from error
    return zstandard


def pyarrow() -> tuple[Any, Any]:
    """Return pyarrow and pyarrow.parquet. Raises ResourceError where they are not installed."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ResourceError("Parquet files need the package pyarrow", hint=INSTALL) from error
    return pyarrow, pyarrow.parquet


class _Lines:
    """Numbered lines, ended by \\n alone (U+2028 may stand inside a string), each at most `MAX_ROW` bytes long."""

    def __init__(self, file: io.BufferedReader, path: Path, on_reject: OnReject) -> None:
        self.file, self.path, self.on_reject = file, path, on_reject
        self.number = 0

    def where(self, number: int) -> str:
        return f"{self.path}:{number}"

    def reject(self, error: DataError, number: int, raw: bytes = b"") -> None:
        self.on_reject(reject_of(error, self.where(number), raw))

    def __iter__(self) -> Iterator[bytes]:
        while line := self._pull(lambda: self.file.readline(MAX_ROW + 1)):
            self.number += 1
            if len(line) > MAX_ROW:
                size = len(line)
                # Read past, in pieces: the rows behind it are good, and it is not held.
                while line and not line.endswith(b"\n"):
                    line = self._pull(lambda: self.file.readline(_CHUNK))
                    size += len(line)
                self.reject(_too_long(size), self.number)
            else:
                # The mark that Windows' programs put before UTF-8.
                yield line.removeprefix(b"\xef\xbb\xbf") if self.number == 1 else line

    def chunks(self) -> Iterator[bytes]:
        while chunk := self._pull(lambda: self.file.read(_CHUNK)):
            yield chunk

    def _pull(self, read: Callable[[], bytes]) -> bytes:
        """Return the next bytes; where compressed data is damaged or cut off, report it and end the file there."""
        try:
            found: bytes = read()
        except EOFError as error:
            fault = RowError(f"the file breaks off here: {error}", hint="fetch it again; what stood before was read")
            self.reject(fault, self.number + 1)
            return b""
        return found


def _too_long(size: int) -> RowError:
    return RowError(f"{size:,} bytes in one row, more than {MAX_ROW:,}", hint="split it or remove it")


def _jsonl_rows(lines: _Lines, container: Container) -> Iterator[InputRow]:
    for line in lines:
        if line.strip():
            try:
                row = InputRow(parse_object(line, lines.where(lines.number)), lines.where(lines.number), line)
            except RowError as error:
                lines.reject(error, lines.number, line)
            else:
                yield row


# -- one JSON array ----------------------------------------------------------------------------------------------------

_OPENING, _CLOSING = b"{[", b"}]"
_OUTSIDE, _INSIDE = re.compile(rb'["\[\]{},]'), re.compile(rb'["\\]')


class _Cutter:
    """Cut the elements out of a JSON array that comes in chunks, by its brackets and quotes."""

    def __init__(self) -> None:
        self.depth, self.in_string, self.ended, self.skip = 0, False, False, 0
        self.parts: list[bytes] = []
        self.size = 0
        self.number = self.start = 1

    def feed(self, chunk: bytes) -> Iterator[tuple[int, bytes, int]]:
        """Yield (line, element, size) of each element that ends in this chunk; one that is too long comes as b""."""
        if self.ended:
            self._keep(chunk)
            return
        begin, at = 0, self.skip
        self.skip = 0
        while found := (_INSIDE if self.in_string else _OUTSIDE).search(chunk, at):
            at, sign = found.end(), found.group()
            if self.in_string:
                at, self.in_string = (at + 1, True) if sign == b"\\" else (at, False)
            elif sign == b'"':
                self.in_string = True
            elif sign in _OPENING:
                self.depth += 1
                begin = at if self.depth == 1 else begin
            elif sign in _CLOSING:
                closes = self.depth > 1 or sign == b"]"  # a } too many ends an element's sense, not the array
                self.depth -= closes
                if self.depth == 0 and closes:
                    yield from self._cut(chunk[begin : at - 1])
                    begin, self.ended = at, True
                    break
            elif self.depth == 1:
                yield from self._cut(chunk[begin : at - 1])
                begin = at
        self.skip = max(at - len(chunk), 0)
        self._keep(chunk[begin:])

    def rest(self) -> bytes:
        return b"".join(self.parts)

    def _keep(self, part: bytes) -> None:
        if not self.size and part.strip():
            blank = part[: len(part) - len(part.lstrip())]
            self.start = self.number + blank.count(b"\n")
            self.number, part = self.start, part.lstrip()
        elif not self.size:
            self.number += part.count(b"\n")
            return
        self.size += len(part)
        self.number += part.count(b"\n")
        # Joined now and then: a long element in many chunks would otherwise be copied once a chunk.
        self.parts = [*self.parts, part] if self.size <= MAX_ROW and len(self.parts) < 64 else self._joined(part)

    def _joined(self, part: bytes) -> list[bytes]:
        return [b"".join([*self.parts, part])] if self.size <= MAX_ROW else []

    def _cut(self, part: bytes) -> Iterator[tuple[int, bytes, int]]:
        self._keep(part)
        element, size = b"".join(self.parts), self.size
        self.parts, self.size = [], 0
        if size:
            yield self.start, element, size


def _array_rows(lines: _Lines, container: Container) -> Iterator[InputRow]:
    cutter = _Cutter()
    for chunk in lines.chunks():
        chunk = chunk.removeprefix(b"\xef\xbb\xbf") if cutter.depth == 0 else chunk
        for number, element, size in cutter.feed(chunk):
            try:
                if size > MAX_ROW:
                    raise _too_long(size)
                row = InputRow(parse_object(element, lines.where(number), _ELEMENT), lines.where(number), element)
            except RowError as error:
                lines.reject(error, number, element)
            else:
                yield row
    if cutter.size or not cutter.ended:
        what = "something stands behind the end of the array" if cutter.ended else "the array does not end"
        fault = RowError(what, hint="the file is cut off, or a bracket or quote is missing or too many")
        lines.reject(fault, cutter.start if cutter.size else cutter.number, cutter.rest())


_ELEMENT = "write an array of objects, [{...}, {...}]"


# -- CSV ---------------------------------------------------------------------------------------------------------------

_NO_TEXTS = {
    *("ranks", "labels", "unacceptable", "ratings", "scale", "label", "rating", "margin", "probability", "weight"),
    *("messages", "completions", "conversations", "history", "thread", "kto_tag", "preference", "rank", "deleted"),
    *("winner", "choice", "review_result", "synthetic", "preferred_output", "non_preferred_output"),
}
_TRUTHS = {"True": True, "False": False, "TRUE": True, "FALSE": False}


def _csv_rows(lines: _Lines, container: Container) -> Iterator[InputRow]:
    # The library's limit is 128 KiB a cell, less than a long conversation.
    csv.field_size_limit(MAX_ROW)
    source, again = iter(lines), deque[tuple[int, bytes]]()

    def pull() -> tuple[int, bytes] | None:
        return again.popleft() if again else next(((lines.number, line) for line in source), None)

    header: list[str] = []
    while (first := pull()) is not None:
        # A tab may part two cells, and spaces may be all that a single column says.
        if not first[1].strip(b"\r\n" if len(header) == 1 else b"\r\n " if container.delimiter == "\t" else None):
            continue
        taken, odd, size = [first], first[1].count(b'"') % 2, len(first[1])
        while odd and size <= MAX_ROW and (more := pull()) is not None:  # a quote is open: the record goes on
            taken.append(more)
            odd, size = (odd + more[1].count(b'"')) % 2, size + len(more[1])
        raw = b"".join(line for _, line in taken)
        try:
            cells = _cells(raw, container.delimiter, len(header))
        except RowError as error:
            if not header:
                raise DataError(error.problem, where=lines.where(1), hint=_HEADER) from error
            # Give up the first line only and read the others afresh: a stray quote costs one record.
            lines.reject(error, *first)
            again.extendleft(reversed(taken[1:]))
            continue
        if header:
            fields = {name: cell_value(name, cell) for name, cell in zip(header, cells, strict=True) if cell}
            yield InputRow(_unfolded(fields), lines.where(first[0]), raw)
        else:
            header = _header(cells, lines.where(first[0]))


_HEADER = "the first line of a CSV file names its columns, like prompt,chosen,rejected"


def _header(cells: list[str], where: str) -> list[str]:
    names = [name.strip() for name in cells]
    if len(set(names)) < len(names) or not all(names):
        raise DataError("columns without a name, or two of one name", where=where, hint=_HEADER)
    return names


def _cells(raw: bytes, delimiter: str, width: int) -> list[str]:
    hint = "put texts with commas, quotes or line ends into quotes, and double the quotes in them"
    try:
        # Record by record, which the library would not give: so a fault has a line, and its text can be kept.
        cells = next(csv.reader([raw.decode("utf-8").rstrip("\r\n")], delimiter=delimiter, strict=True))
    except UnicodeDecodeError as error:
        raise RowError(f"byte {error.start + 1} of the row is not UTF-8", hint="save as UTF-8") from error
    except csv.Error as error:
        raise RowError(f"not CSV: {error}", hint=hint) from error
    if width and len(cells) != width:
        raise RowError(f"{len(cells)} cells for {width} columns", hint=hint)
    return cells


def cell_value(name: str, cell: str) -> Any:
    """Return what a cell says: JSON in columns that hold no text, messages where they are written so, else its text."""
    if name not in _NO_TEXTS and not cell.startswith(_STRUCTURES):
        return cell
    # As spreadsheets and pandas write them.
    if cell in _TRUTHS:
        return _TRUTHS[cell]
    try:
        return parse_json(cell)
    except (ValueError, RecursionError):
        return cell


#: How a cell of a text column begins that holds messages.
_STRUCTURES = ('{"messages":', '[{"role":', '[{"from":', '{"from":', '[{"content":', '[{"value":')


def _unfolded(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return fields with those that a table keeps as JSON in its column ``extra``."""
    folded = fields.get("extra")
    if isinstance(folded, str) and folded.startswith("{"):
        try:
            found = parse_json(folded)
        except (ValueError, RecursionError):
            return fields
        return {**found, **{name: value for name, value in fields.items() if name != "extra"}}
    return fields


# -- Parquet -----------------------------------------------------------------------------------------------------------


def _parquet_rows(path: Path, on_reject: OnReject) -> Iterator[InputRow]:
    _, parquet = pyarrow()
    number = 0
    with _readable(path), path.open("rb") as raw:
        try:
            with parquet.ParquetFile(raw) as file:
                for batch in file.iter_batches(_BATCH_ROWS):
                    for fields in batch.to_pylist():
                        number += 1
                        yield InputRow(_unfolded(_plain(fields)), f"{path}:{number}")
        except Exception as error:  # pyarrow's errors are of many classes, KeyError and ValueError among them
            fault = RowError(f"the file breaks off here: {error}", hint="fetch it again; what stood before was read")
            on_reject(reject_of(fault, f"{path}:{number + 1}"))


def _plain(value: Any) -> Any:
    """Return values of Arrow as JSON has them. What is null is left out: a column has it for want of a value."""
    if isinstance(value, dict):
        # A table has every column in every row: null says only that another row had it.
        return {key: _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    # Times and decimals, which JSON has no form for.
    return value if isinstance(value, str | int | None) else str(value)


_TEXT_ROWS = {"jsonl": _jsonl_rows, "json": _array_rows, "csv": _csv_rows}
