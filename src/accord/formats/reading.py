"""Reading a file of any format as items, and the rows that had to be left out."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from accord.errors import DataError, UsageError
from accord.extend import blaming, is_outside
from accord.files import whole_file
from accord.formats.format import Format
from accord.formats.item import Item
from accord.formats.rows import InputRow, OnReject, Reject, json_kind, refuse
from accord.formats.source import rows
from accord.formats.table import Detected, detect, format_named, with_columns

MOST_FIELDS = 500  # names to count: a file of keys that never repeat must not fill the memory


class Reading(Iterator[Item]):
    """The items of a file, one by one.

    ``num_rows`` counts the rows met so far, ``num_rejected`` those left out; ``fields`` counts for each field what it
    held (of the first `MOST_FIELDS` names).
    """

    def __init__(
        self, path: Path, detected: Detected, on_reject: OnReject, limit: int | None, format: Format | None = None
    ) -> None:
        self.path, self.detected = path, detected
        self.format = format_named(detected.format) if format is None else format
        self.num_rows = self.num_rejected = 0
        self.fields: dict[str, Counter[str]] = {}
        self._on_reject, self._limit = on_reject, limit
        self._items = self._read()

    def __next__(self) -> Item:
        return next(self._items)

    def _read(self) -> Iterator[Item]:
        name, format = self.detected.format, self.format
        if format.read is None:
            raise UsageError(f"{name} can be written only", hint="name the format that the file has")
        with blaming(name) if is_outside(name) else contextlib.nullcontext():
            yield from format.read(itertools.islice(self._rows(), self._limit), self._reject)

    def _rows(self) -> Iterator[InputRow]:
        for row in rows(self.path, self.detected.container, self._reject_row):
            self.num_rows += 1
            for name, value in row.fields.items():
                if name in self.fields or len(self.fields) < MOST_FIELDS:
                    self.fields.setdefault(name, Counter())[json_kind(value)] += 1
            yield row

    def _reject_row(self, reject: Reject) -> None:
        self.num_rows += 1
        self._reject(reject)

    def _reject(self, reject: Reject) -> None:
        self.num_rejected += 1
        self._on_reject(reject)


def read_items(
    path: Path | str, format: str | Format | None = None, *, on_reject: OnReject = refuse, limit: int | None = None
) -> Reading:
    """Return the items of a file of any known format, streamed: memory holds one row (of oasst, one tree).

    Args:
        path: JSON lines, one JSON array, CSV or Parquet; plain, gzip or zstd. All recognised by content.
        format: A name of `FORMATS`, ``module:name`` or a `Format`; recognised by the first rows without it.
        on_reject: Called with each row that is no good, which is then left out. Without it the first one is an error.
        limit: Read at most so many good rows.

    Raises:
        DataError: The file cannot be read, has no known format, or (without ``on_reject``) a row is no good.
        UsageError: There is no format of that name.
        ResourceError: A package for this kind of file is missing.
    """
    if isinstance(format, Format):
        return Reading(Path(path), with_columns(Path(path), format), on_reject, limit, format)
    return Reading(Path(path), detect(path, format), on_reject, limit)


class Rejects:
    """The file of rejected rows: one JSON object each, ``{"where", "field", "problem", "fix", "row"}``.

    It is there only when there are rejects; one of an earlier import is removed. Without a path they are only counted.
    """

    def __init__(self, path: Path | None, most: int) -> None:
        self.path, self.most, self.count = path, most, 0
        self._open = contextlib.ExitStack()
        self._file: Any = None

    def __call__(self, reject: Reject) -> None:
        self.count += 1
        if self.path is not None:
            self._write(reject, self.path)
        if self.count > self.most:
            raise DataError(
                f"more than {self.most} rows are no good, the last because: {reject.problem}",
                where=reject.where,
                hint=f"{f'see {self.path}; ' if self.path else ''}is it the right --format? --max-rejects allows more",
            )

    def _write(self, reject: Reject, path: Path) -> None:
        if self._file is None:
            self._file = self._open.enter_context(whole_file(path))
        row = {("fix" if name == "hint" else name): value for name, value in dataclasses.asdict(reject).items()}
        self._file.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")

    def __enter__(self) -> Self:
        if self.path is not None:
            self.path.unlink(missing_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._open.close()
