"""Reading a file of any format as items, and the rows that had to be left out."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from accord.errors import DataError, UsageError
from accord.extend import blaming, is_outside
from accord.files import whole_file
from accord.formats.facts import ORIGINS
from accord.formats.format import Format
from accord.formats.item import Item
from accord.formats.rows import InputRow, OnReject, Reject, json_kind, refuse
from accord.formats.source import rows
from accord.formats.table import Detected, detect, format_named, sample_of, with_columns, without
from accord.formats.unreadable import left_unread

MOST_FIELDS = 500  # names to count: a file of keys that never repeat must not fill the memory


@dataclass(frozen=True)
class ReadAs:
    """How a file is read where its rows do not say it themselves.

    ``format``: a name of `FORMATS` or a family, ``module:name`` or a `Format`; recognised by the first rows without it.
    ``ignored``: columns that mean nothing, although they look like judgements; they are left out of the items.
    ``judged_by``: who judged where rows do not say it: people, models or simulated, and after a colon a name. ``axis``:
    of sets that judge several things (helpfulness, safety) this one alone.

    Raises UsageError where ``judged_by`` names nobody of a kind.
    """

    format: str | Format | None = None
    ignored: frozenset[str] = frozenset()
    judged_by: str = ""
    axis: str = ""

    def __post_init__(self) -> None:
        kind, _, _ = self.judged_by.partition(":")
        if kind and kind not in _JUDGES:
            hint = f"write people:{kind} or models:{kind}" if kind else ""
            raise UsageError(f"{self.judged_by!r} may be a person or a model", hint=hint)

    @classmethod
    def of(cls, said: str | Format | ReadAs | None) -> ReadAs:
        """Return how to read by what a caller gives: all of it, or a format alone."""
        return said if isinstance(said, ReadAs) else cls(said)

    def judged(self, item: Item) -> Item:
        """Return an item with who judged it, where it does not say that itself."""
        kind, _, name = self.judged_by.partition(":")
        if not kind or item.origin or not item.num_judgements:
            return item
        return replace(item, origin=_JUDGES[kind], annotator=item.annotator or name)


#: Who can have judged, and the origin of what they say.
_JUDGES: Mapping[str, str] = {
    "people": ORIGINS["human"],
    "models": ORIGINS["model"],
    "simulated": ORIGINS["simulated"],
}


class Reading(Iterator[Item]):
    """The items of a file, one by one.

    ``num_rows`` counts the rows met so far, ``num_rejected`` those left out; ``fields`` counts for each field what it
    held (of the first `MOST_FIELDS` names); ``left_out`` counts by reason the items that were not asked for.
    """

    def __init__(
        self, path: Path, detected: Detected, on_reject: OnReject, limit: int | None, read_as: ReadAs | None = None
    ) -> None:
        self.path, self.detected, self.read_as = path, detected, read_as or ReadAs()
        said = self.read_as.format
        self.format = said if isinstance(said, Format) else format_named(detected.format)
        self.num_rows = self.num_rejected = 0
        self.fields: dict[str, Counter[str]] = {}
        self.left_out = Counter[str]()
        self._on_reject, self._limit = on_reject, limit
        self._known: set[str] = set()
        self._items = self._read()

    def __next__(self) -> Item:
        return next(self._items)

    def _read(self) -> Iterator[Item]:
        name, format = self.detected.format, self.format
        if format.read is None:
            raise UsageError(f"{name} can be written only", hint="name the format that the file has")
        self._settle()
        checked: Mapping[str, Any] = {}
        items = iter(format.read(itertools.islice(self._rows(), self._limit), self._reject))
        while True:
            # Around each step alone: who stops reading early is not the format's fault.
            with blaming(name) if is_outside(name) else contextlib.nullcontext():
                item = next(items, None)
            if item is None:
                return
            if item.row is not checked:
                self._require_all_read(item)
                checked = item.row
            if self.read_as.axis and item.num_judgements and item.axis != self.read_as.axis:
                self.left_out[f"a {item.kind} of the axis {item.axis or '(none)'}"] += 1
            else:
                yield self.read_as.judged(item)

    def _settle(self) -> None:
        """Refuse a file whose first rows can be read in two ways."""
        if self.format.settled is not None:
            try:
                self.format.settled(sample_of(self.path, self.detected.container, self.read_as.ignored))
            except DataError as error:
                raise DataError(error.what, where=str(self.path), hint=error.hint) from error

    def _rows(self) -> Iterator[InputRow]:
        for row in rows(self.path, self.detected.container, self._reject_row):
            self.num_rows += 1
            for name, value in row.fields.items():
                if name in self.fields or len(self.fields) < MOST_FIELDS:
                    self.fields.setdefault(name, Counter())[json_kind(value)] += 1
            ignored = self.read_as.ignored
            yield replace(row, fields=without(row.fields, ignored)) if ignored else row

    def _require_all_read(self, item: Item) -> None:
        """Refuse a file with a column that looks like a judgement, or a part of the prompt, and that nothing reads."""
        new = {name for name, value in item.row.items() if value not in (None, "") and name not in self._known}
        # A user's own format knows best what its columns mean.
        if not (new or self.format.used) or is_outside(self.detected.format):
            return
        if lost := self.format.unused(item.row):
            raise left_unread(item.where, lost, self.detected.format, item.row)
        self._known |= new

    def _reject_row(self, reject: Reject) -> None:
        self.num_rows += 1
        self._reject(reject)

    def _reject(self, reject: Reject) -> None:
        self.num_rejected += 1
        self._on_reject(reject)


def read_items(
    path: Path | str,
    format: str | Format | ReadAs | None = None,
    *,
    on_reject: OnReject = refuse,
    limit: int | None = None,
) -> Reading:
    """Return the items of a file of any known format, streamed: memory holds one row (of oasst, one tree).

    Args:
        path: JSON lines, one JSON array, CSV or Parquet; plain, gzip or zstd. All recognised by content.
        format: A name of `FORMATS`, ``module:name``, a `Format`, or all that `ReadAs` can say; recognised by the first
            rows without it.
        on_reject: Called with each row that is no good, which is then left out. Without it the first one is an error.
        limit: Read at most so many good rows.

    Raises:
        DataError: The file cannot be read, has no known format, a column that looks like a judgement would be lost, or
            (without ``on_reject``) a row is no good.
        UsageError: There is no format of that name.
        ResourceError: A package for this kind of file is missing.
    """
    read_as = ReadAs.of(format)
    if isinstance(read_as.format, Format):
        return Reading(Path(path), with_columns(Path(path), read_as.format), on_reject, limit, read_as)
    return Reading(Path(path), detect(path, read_as.format, read_as.ignored), on_reject, limit, read_as)


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
        row = {("fix" if name == "hint" else name): value for name, value in asdict(reject).items()}
        self._file.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")

    def __enter__(self) -> Self:
        if self.path is not None:
            self.path.unlink(missing_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._open.close()
