"""Files as rows, one at a time: JSON lines, one JSON array, CSV, Parquet; plain, gzip or zstd. Recognised by content.

Memory is bounded by one row: a line (or element, or record) above `MAX_ROW` bytes is skipped and reported. What
spreadsheets and libraries do to files is undone: other encodings than UTF-8, line ends of old Macs, ``sep=;``, an index
without a name, rows wrapped in an object (`accord.formats.wrapped`).
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from accord.errors import AccordError, DataError, ResourceError
from accord.formats import wrapped
from accord.formats.parquet import INSTALL, MOST_INFLATED, MOST_RATIO, letters_of, parquet_rows
from accord.formats.rows import InputRow, OnReject, RowError, parse_json, parse_object, reject_of, require_few

# A conversation is thousands of characters; what is longer is a file without line ends, and would fill the memory.
MAX_ROW = 32 * 2**20
_CHUNK = 2**18
_HEAD = 2**16  # enough to see rows, and one read of a compressed file
_LOOKED_AT = 50  # lines: most of them must be objects, so that one that is damaged does not decide
# By content and not by name: published sets bear names like train.json that hold JSON lines, or lack the .gz.
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_PARQUET = b"PAR1"


@dataclass(frozen=True)
class Container:
    """How a file holds its rows: ``kind`` (jsonl, json, objects, csv, parquet), ``compression`` ("", gzip, zstd).

    ``encoding``: of its text where that is not UTF-8. ``returns``: lines end with a carriage return alone.
    ``lower``: the names of its columns are read in lower case.
    """

    kind: str
    compression: str = ""
    delimiter: str = ","
    encoding: str = ""
    returns: bool = False
    lower: bool = False

    def __str__(self) -> str:
        lower = "columns in lower case" if self.lower else ""
        besides = ", ".join(filter(None, [self.encoding, lower]))
        return " ".join(filter(None, [self.compression, self.kind, besides and f"({besides})"]))


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
    encoding = "utf-16" if head.startswith(_UTF_16) else ""
    if encoding:
        with opened(path, encoding) as (file, _):
            head = _head(file, path)
    head = head.removeprefix(b"\xef\xbb\xbf")
    if not head.strip():
        raise DataError("the file is empty", where=str(path), hint="check the path")
    lines = [line for line in head.split(b"\n") if line.strip()]
    kind = _kind(lines)
    if kind != "csv":
        return Container(kind, compression, encoding=encoding)
    returns = b"\n" not in head and b"\r" in head
    header = (head.split(b"\r") if returns else lines)[0].decode("utf-8", "replace").strip("\r")
    delimiter = header[4:5] if header.lower().startswith(_SEP) else _delimiter(path, header)
    return Container(kind, compression, delimiter, encoding or _table_encoding(path), returns)


_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
# The first line of a table that tells a spreadsheet its delimiter.
_SEP = "sep="


def _kind(lines: list[bytes]) -> str:
    """Return the kind of a file by its first lines that are not blank."""
    first, others = lines[0].lstrip()[:1], lines[1:_LOOKED_AT]
    is_lines = 2 * sum(map(_is_object, others)) > len(others)  # the first line may be damaged
    if first == b"{":
        # Objects that are spread over lines, or one that holds all rows.
        spread = not is_lines and not _is_object(lines[0])
        return "objects" if spread or (not others and wrapped.holds_rows(lines[0])) else "jsonl"
    return "jsonl" if is_lines and others else "json" if first == b"[" else "csv"


def _delimiter(path: Path, header: str) -> str:
    # The header of a single column holds no delimiter: there the name decides, as it does where such a file is written.
    delimiters = "\t,;" if delimiter_named(path) == "\t" else ",\t;"
    return max(delimiters, key=header.count)


def _table_encoding(path: Path) -> str:
    """Return "cp1252" for a table whose bytes are no UTF-8 but what spreadsheets save in its place, else ""."""
    decoder, whole = codecs.getincrementaldecoder("utf-8")(), True
    with opened(path) as (file, _), contextlib.suppress(EOFError):
        while chunk := file.read(_CHUNK):
            if whole:
                try:
                    whole = decoder.decode(chunk) is not None
                except UnicodeDecodeError:
                    whole = False
            # A letter of UTF-8 beside a wrong byte: the file is damaged, and all its other letters would be lost.
            if not whole and (_UTF_8_LETTER.search(chunk) or _NO_CP1252.search(chunk)):
                return ""
    return "" if whole else "cp1252"


_UTF_8_LETTER = re.compile(rb"[\xc3-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}")
_NO_CP1252 = re.compile(rb"[\x81\x8d\x8f\x90\x9d]")


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
    found = _rows(path, container, on_reject)
    yield from map(_in_lower_case, found) if container.lower else found


def _in_lower_case(row: InputRow) -> InputRow:
    """Return a row whose columns are called as they would be in a file written by a program."""
    return replace(row, fields={_lowered(name): value for name, value in row.fields.items()})


def _lowered(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])|\s+", "_", name.strip()).lower()


def _rows(path: Path, container: Container, on_reject: OnReject) -> Iterator[InputRow]:
    if container.kind == "parquet":
        yield from _parquet_rows(path, on_reject)
        return
    with opened(path, container.encoding, container.returns) as (file, _):
        lines = _Lines(file, path, on_reject)
        yield from _TEXT_ROWS[container.kind](lines, container)


@contextmanager
def opened(path: Path, encoding: str = "", returns: bool = False) -> Iterator[tuple[io.BufferedReader, str]]:
    """The bytes of a file without compression, in UTF-8 with \\n at line ends, and which compression it had."""
    with _readable(path), path.open("rb") as raw:
        magic = raw.read(4)
        raw.seek(0)
        compression = next((name for start, name in _MAGIC.items() if magic.startswith(start)), "")
        plain: Any = _Inflating(raw, _ENGINES[compression], str(path)) if compression else raw
        if encoding or returns:
            plain = _Recoded(plain, encoding or "utf-8", returns)
        with io.BufferedReader(plain, _CHUNK) as file:
            yield file, compression


class _Recoded(io.RawIOBase):
    """Text of another encoding as UTF-8, piece by piece; with ``returns`` each carriage return is a line's end."""

    def __init__(self, raw: Any, encoding: str, returns: bool) -> None:
        # What cannot be decoded stays as it is, so that the row it stands in is refused and no other.
        self.raw, self.decoder = raw, codecs.getincrementaldecoder(encoding)("surrogateescape")
        self.returns, self.ready, self.ended = returns, memoryview(b""), False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.ready and not self.ended:
            piece = self.raw.read(len(buffer)) or b""
            self.ended = not piece
            try:
                text = self.decoder.decode(piece, final=self.ended)
            except UnicodeDecodeError as error:
                raise EOFError(f"the text is damaged: {error}") from error
            text = text.replace("\r", "\n") if self.returns else text
            self.ready = memoryview(text.encode("utf-8", "surrogateescape"))
        size = min(len(buffer), len(self.ready))
        buffer[:size], self.ready = self.ready[:size], self.ready[size:]
        return size


class _Inflating(io.RawIOBase):
    """Compressed bytes as plain ones, piece by piece: what stands before damage is given before the damage is reported.

    Pieces are small because a few bytes may stand for very many.

    Raises:
        DataError: They stand for more than texts that were compressed can have.
    """

    def __init__(self, raw: BinaryIO, engine: Callable[[], Any], where: str) -> None:
        self.raw, self.start, self.where = raw, engine, where
        self.engine: Any = None
        self.ready = memoryview(b"")
        self.read_in = self.made = 0

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
            self._count(len(piece), len(self.ready))
        size = min(len(buffer), len(self.ready))
        buffer[:size], self.ready = self.ready[:size], self.ready[size:]
        return size

    def _count(self, read: int, made: int) -> None:
        # Of a member that ended, what follows it is a piece again.
        self.read_in += read - len(self.engine.unused_data)
        self.made += made
        if self.made > MOST_INFLATED and self.made > MOST_RATIO * self.read_in:
            raise DataError(
                f"{self.read_in:,} compressed bytes stand for more than {self.made:,}",
                where=self.where,
                why="no texts are so much alike: it was made to fill a machine",
                hint="decompress it yourself if it is what you want to read",
            )


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
    """Cut the elements out of a JSON array that comes in chunks, by its brackets and quotes.

    ``objects``: cut objects that stand one after the other, in no array.
    """

    def __init__(self, objects: bool = False) -> None:
        self.objects = objects
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
                begin = at if self.depth == 1 and not self.objects else begin
            elif sign in _CLOSING:
                # A } too many ends an element's sense, not the array.
                closes = self.depth > 1 or (sign == b"]") != self.objects
                self.depth -= closes
                if self.depth == 0 and closes and self.objects:
                    yield from self._cut(chunk[begin:at])
                    begin = at
                elif self.depth == 0 and closes:
                    yield from self._cut(chunk[begin : at - 1])
                    begin, self.ended = at, True
                    break
            elif self.depth == 1 and not self.objects:
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


def _object_rows(lines: _Lines, container: Container) -> Iterator[InputRow]:
    """Yield objects that stand one after the other over several lines, and the rows of one that holds them all."""
    cutter = _Cutter(objects=True)
    for chunk in lines.chunks():
        for number, element, size in cutter.feed(chunk):
            try:
                if size > MAX_ROW:
                    raise _too_long(size)
                found = parse_object(element, lines.where(number), _OBJECTS)
                inner = wrapped.rows_within(found, lines.where(number))
                if inner is None:
                    yield InputRow(found, lines.where(number), element)
                else:
                    yield from (InputRow(row, f"{lines.where(number)} [{i}]") for i, row in enumerate(inner))
            except RowError as error:
                lines.reject(error, number, element)
    if cutter.rest().strip():
        fault = RowError("the last object does not end", hint="the file is cut off, or a bracket or quote is missing")
        lines.reject(fault, cutter.start, cutter.rest())


_OBJECTS = "write one JSON object a line"
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
            row = InputRow(_unfolded(fields), lines.where(first[0]), raw)
            if NAMELESS in fields:
                fault = RowError("a cell stands below no column's name", hint="name its column in the first line")
                lines.reject(fault, first[0], raw)
            else:
                yield row
        elif not _tells_delimiter(cells, raw):
            header = _header(cells, lines.where(first[0]))


_HEADER = "the first line of a CSV file names its columns, like prompt,chosen,rejected"


#: What stands in place of the names of columns that have none, at a table's end.
NAMELESS = ""


def _tells_delimiter(cells: list[str], raw: bytes) -> bool:
    return raw.lstrip(b"\xef\xbb\xbf").lower().startswith(_SEP.encode()) and len("".join(cells)) <= len(_SEP) + 1


def _header(cells: list[str], where: str) -> list[str]:
    names = [name.strip() for name in cells]
    # Where pandas writes the numbers of its rows.
    names[0] = names[0] or (INDEX if any(names) else "")
    named = [name for name in names if name]
    if len(set(named)) < len(named) or not named:
        raise DataError("columns without a name, or two of one name", where=where, hint=_HEADER)
    return names


#: The name of a table's first column where it has none.
INDEX = "index"


def _cells(raw: bytes, delimiter: str, width: int) -> list[str]:
    hint = "put texts with commas, quotes or line ends into quotes, and double the quotes in them"
    require_few(raw, delimiter.encode())
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
    number = 0
    with _readable(path):
        try:
            for fields in parquet_rows(path):
                number += 1
                where = f"{path}:{number}"
                if (size := letters_of(fields)) > MAX_ROW:
                    on_reject(reject_of(_too_long(size), where))
                else:
                    yield InputRow(_unfolded(fields), where)
        except (AccordError, OSError):
            raise
        except Exception as error:  # pyarrow's errors are of many classes, KeyError and ValueError among them
            fault = RowError(f"the file breaks off here: {error}", hint="fetch it again; what stood before was read")
            on_reject(reject_of(fault, f"{path}:{number + 1}"))


_TEXT_ROWS = {"jsonl": _jsonl_rows, "json": _array_rows, "objects": _object_rows, "csv": _csv_rows}
