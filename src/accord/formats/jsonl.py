"""A user's own data: one JSON object a line.

* demonstrations: ``{"prompt": "...", "completion": "..."}``
* prompts: ``{"prompt": "..."}``
* rankings: ``{"prompt": "...", "completions": ["...", "..."], "ranks": [1, 2]}``, 1 = best, equal = tie;
  or pairs: ``{"prompt": "...", "chosen": "...", "rejected": "..."}``
* texts: ``{"text": "..."}``

``topic`` (unit of splitting), ``weight`` (> 0) and ``origin`` may be added; other fields are ignored. The text is
UTF-8, with or without BOM and CRLF, plain or gzip (told by content, not by name). Empty lines are skipped. Every fault
is a ``DataError`` that names file, line and field.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from accord.errors import DataError
from accord.files import write_bytes
from accord.records import RankedGroup

T = TypeVar("T")

_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class PromptRow:
    """A prompt to complete; ``topic`` is the unit of splitting, "" where the file names none."""

    text: str
    topic: str = ""


def read_demonstrations(path: Path | str) -> list[tuple[str, str]]:
    """(prompt, completion) of every line. Spaces are kept: a completion after ``...:`` usually starts with one.

    Raises:
        DataError: The file or a line of it is not what it should be.
    """
    return _read(
        path, lambda row: (row.text("prompt"), row.text("completion")), '{"prompt": "...", "completion": "..."}'
    )


def read_prompts(path: Path | str) -> list[PromptRow]:
    """The prompts of a file; lines of demonstrations or rankings will do.

    Raises:
        DataError: The file or a line of it is not what it should be.
    """
    return _read(path, lambda row: PromptRow(row.text("prompt"), row.label("topic")), '{"prompt": "..."}')


def read_texts(path: Path | str) -> list[str]:
    """The texts of a file.

    Raises:
        DataError: The file or a line of it is not what it should be.
    """
    return _read(path, lambda row: row.text("text"), '{"text": "..."}')


def read_rankings(path: Path | str) -> list[RankedGroup]:
    """The ranked groups of a file; a pair is a group of two. ``origin`` is the file's name where a line names none.

    Raises:
        DataError: The file or a line of it is not what it should be.
    """
    return _read(path, _ranked_group, '{"prompt": "...", "chosen": "...", "rejected": "..."}')


def write_jsonl(path: Path | str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, gzipped where the name ends in ``.gz``. The file appears whole or not at all, and
    the same rows give the same bytes.

    Raises:
        DataError: A row is not JSON (not-a-number, half of a surrogate pair, an object of another kind).
        ResourceError: The disk does not take it.
    """
    target = Path(path)
    data = b"".join(_line(row, f"{target}:{number}") for number, row in enumerate(rows, 1))
    write_bytes(target, gzip.compress(data, mtime=0) if target.suffix == ".gz" else data)


def _line(row: Mapping[str, Any], where: str) -> bytes:
    try:
        text = json.dumps(dict(row), ensure_ascii=False, allow_nan=False)
        return text.encode("utf-8") + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"the row cannot be written as JSON: {error}", where=where) from error


# -- lines -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Row:
    """One parsed line and where it stands. Its getters check one field each."""

    fields: Mapping[str, Any]
    path: Path
    number: int
    form: str

    def fail(self, what: str, mend: str = "") -> NoReturn:
        raise DataError(what, where=f"{self.path}:{self.number}", mend=mend or f"write lines like {self.form}")

    def text(self, name: str) -> str:
        if name not in self.fields:
            self.fail(f'"{name}" is missing')
        return self.string(f'"{name}"', self.fields[name])

    def label(self, name: str, default: str = "") -> str:
        value = self.fields.get(name)
        return default if value is None or value == "" else self.string(f'"{name}"', value)

    def string(self, shown: str, value: Any) -> str:
        if not isinstance(value, str):
            self.fail(f"{shown} is {_kind(value)}, not a string")
        if not value.strip():
            self.fail(f"{shown} is empty", "write a text there or remove the line")
        if any("\ud800" <= char <= "\udfff" for char in value):
            self.fail(f"{shown} holds half of a surrogate pair", "write the file again as UTF-8")
        return value

    def number_at(self, shown: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fail(f"{shown} is {_kind(value)}, not a number", "write numbers without quotes, 1 = best")
        if not abs(value) <= 1e15:
            self.fail(f"{shown} is too large or not a number", "write a finite number, 1 = best")
        return float(value)

    def items(self, name: str) -> list[Any]:
        if name not in self.fields:
            self.fail(f'"{name}" is missing', 'a ranking needs "prompt", "completions" and "ranks"')
        value = self.fields[name]
        if not isinstance(value, list):
            self.fail(f'"{name}" is {_kind(value)}, not a list')
        return value


def _kind(value: Any) -> str:
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
        str: "a string",
    }
    return names.get(type(value), "null")


def _ranked_group(row: _Row) -> RankedGroup:
    if "completions" in row.fields or "ranks" in row.fields:
        completions, ranks = _group(row)
    elif "chosen" in row.fields or "rejected" in row.fields:
        completions, ranks = _pair(row)
    else:
        row.fail(
            'neither "completions" and "ranks" nor "chosen" and "rejected" are there',
            f'write lines like {row.form} or {{"prompt": "...", "completions": ["...", "..."], "ranks": [1, 2]}}',
        )
    return RankedGroup(
        prompt=row.text("prompt"),
        completions=completions,
        ranks=ranks,
        origin=row.label("origin", row.path.name),
        topic=row.label("topic"),
        weight=_weight(row),
    )


def _pair(row: _Row) -> tuple[tuple[str, ...], tuple[float, ...]]:
    chosen, rejected = row.text("chosen"), row.text("rejected")
    if chosen == rejected:
        row.fail('"chosen" and "rejected" are the same text', "remove the line: it says nothing")
    return (chosen, rejected), (1.0, 2.0)


def _group(row: _Row) -> tuple[tuple[str, ...], tuple[float, ...]]:
    completions = tuple(row.string(f'"completions"[{i}]', text) for i, text in enumerate(row.items("completions")))
    ranks = tuple(row.number_at(f'"ranks"[{i}]', rank) for i, rank in enumerate(row.items("ranks")))
    if len(completions) < 2:
        row.fail(f'"completions" has {len(completions)} texts', "a ranking needs at least 2")
    if len(ranks) != len(completions):
        row.fail(f"{len(ranks)} ranks for {len(completions)} completions", "give one rank per completion, 1 = best")
    if min(ranks) < 1:
        row.fail(f'"ranks" holds {min(ranks):g}', "ranks start at 1 = best; equal ranks are a tie")
    return completions, ranks


def _weight(row: _Row) -> float:
    value = row.fields.get("weight")
    weight = 1.0 if value is None else row.number_at('"weight"', value)
    if weight <= 0:
        row.fail(f'"weight" is {weight:g}', "write a number above 0, or remove the line")
    return weight


# -- files -------------------------------------------------------------------------------------------------------------


def _read(path: Path | str, parse: Callable[[_Row], T], form: str) -> list[T]:
    found = [parse(row) for row in _rows(Path(path), form)]
    if not found:
        raise DataError("the file has no lines", where=str(path), mend=f"write lines like {form}")
    return found


def _rows(path: Path, form: str) -> Iterator[_Row]:
    # Lines end at \n alone: str.splitlines would also cut at U+2028, which may stand inside a JSON string.
    for number, line in enumerate(_content(path).split(b"\n"), 1):
        if line.strip():
            yield _Row(_object(line, f"{path}:{number}", form), path, number, form)


def _content(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data.startswith(_GZIP_MAGIC) else data
    except FileNotFoundError as error:
        raise DataError("there is no such file", where=str(path), mend="check the path") from error
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(f"the file cannot be read: {error}", where=str(path), mend="check the file") from error
    return data.removeprefix(b"\xef\xbb\xbf")


def _object(line: bytes, where: str, form: str) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8"), parse_constant=_refuse)
    except UnicodeDecodeError as error:
        raise DataError(
            f"byte {error.start + 1} of the line is not UTF-8", where=where, mend="save as UTF-8"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}", where=where, mend=f"write one object a line, like {form}") from error
    if not isinstance(value, dict):
        hint = "the file looks like one JSON array; " if isinstance(value, list) else ""
        raise DataError(
            f"the line is {_kind(value)}, not an object", where=where, mend=f"{hint}write lines like {form}"
        )
    return value


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number that JSON knows")
