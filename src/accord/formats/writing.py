"""Writing items in any format, and the manifest that says what was written from what."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from accord import __version__
from accord.errors import UsageError
from accord.files import sha256_file, write_json
from accord.formats.format import Fields, Format, uniform
from accord.formats.item import ITEM_KINDS, CannotSay, Item, turns_of
from accord.formats.own import ACCORD
from accord.formats.sink import container_named, fitted, formulas_in, write_rows
from accord.formats.source import Container
from accord.formats.table import PLAIN_FILES, members
from accord.formats.tally import ItemTally


@dataclass(frozen=True)
class Manifest:
    """What stands in a file that was written, and where it came from. The same input gives the same manifest.

    ``counts`` are of the items that were written whole, and so are ``origins``: how many are of each origin that is
    said (people, simulated annotators), for formats that have no word for it. ``schema`` are the fields with how many
    rows have each; ``left_out`` counts the items that the format has no words for, by reason; ``source`` is what the
    caller said of the input. ``formulas`` counts the cells of CSV that a spreadsheet would take for formulas; where it
    is ``spreadsheet_safe`` these begin with an apostrophe, which is no part of the text.
    """

    file: str
    format: str
    container: str
    sha256: str
    rows: int
    counts: Mapping[str, int]
    origins: Mapping[str, int]
    schema: Mapping[str, int]
    left_out: Mapping[str, int]
    filters: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)
    formulas: int = 0
    spreadsheet_safe: bool = False
    tool: str = f"accord {__version__}"


def manifest_path(path: Path) -> Path:
    """Return where the manifest of a file stands: beside it."""
    return path.with_name(f"{path.name}.manifest.json")


def rejects_path(path: Path) -> Path:
    """Return where the rejected rows of a file stand: beside it."""
    return path.with_name(f"{path.name}.rejects.jsonl")


def write_items(
    path: Path | str,
    items: Iterable[Item],
    format: str,
    *,
    kinds: Iterable[str] = (),
    messages: bool = False,
    spreadsheet_safe: bool = False,
    filters: Mapping[str, Any] | None = None,
    source: Mapping[str, Any] | None = None,
) -> Manifest:
    """Write items in a format, streamed, and a manifest beside the file. Both appear whole or not at all.

    How the file holds its rows follows from its name (``.jsonl``, ``.json``, ``.csv``, ``.tsv``, ``.parquet``, with
    ``.gz`` or ``.zst``). Items that the format has no words for are left out and counted by reason. The same items give
    the same bytes.

    Args:
        path: The file; a link of that name is replaced, not followed.
        items: What to write.
        format: A name of `FORMATS` or `FORMAT_FAMILIES`, ``jsonl``, ``csv``, ``parquet``, or ``module:name``.
        kinds: Kinds of items to take (`accord.formats.item.ITEM_KINDS`), or "all"; by default all but samples, which
            nobody judged and which would look like demonstrations.
        messages: Write prompts of text as messages, one turn of the user's.
        spreadsheet_safe: Begin cells of CSV that a spreadsheet would run as formulas with an apostrophe.
        filters, source: For the manifest: what else was chosen of the input, and what the input was.

    Raises:
        UsageError: There is no such format or kind, or the format is only read.
        DataError: There is nothing to write, or what cannot stand in such a file.
        ResourceError: The disk does not take it, or a package is missing.
    """
    path = Path(path)
    container = replace(container_named(path), kind=format) if format in PLAIN_FILES else container_named(path)
    if spreadsheet_safe and container.kind != "csv":
        raise UsageError(
            "--spreadsheet-safe has no effect here",
            where=str(path),
            why="it is about tables in CSV",
            hint="leave it out",
        )
    wanted, left_out = wanted_kinds(kinds), Counter[str]()
    stream = _of_kinds(items, wanted, left_out)
    if messages:
        stream = map(_as_messages, stream)
    chosen, stream = _choose(members(format), stream)
    if chosen.joined and container.kind == "csv":
        raise UsageError(
            f"{chosen.name} cannot be CSV",
            where=str(path),
            why="CSV has no words for some texts, and a tree cannot do without one of its messages",
            hint="write .jsonl or .parquet",
        )
    written = _Written(chosen, container, left_out, spreadsheet_safe)
    num_rows = write_rows(path, container, written.rows(stream), left_out)
    manifest = Manifest(
        file=path.name,
        format=chosen.name,
        container=str(container),
        sha256=sha256_file(path),
        rows=num_rows,
        counts=written.tally.counts(),
        origins=dict(sorted(written.origins.items())),
        schema=dict(sorted(written.schema.items())),
        left_out=dict(sorted(left_out.items())),
        filters={"kinds": sorted(wanted), **(filters or {})},
        source=source or {},
        formulas=written.num_formulas,
        spreadsheet_safe=spreadsheet_safe,
    )
    write_json(manifest_path(path), asdict(manifest))
    return manifest


def to_jsonl(items: Iterable[Item], leave_out: Callable[[str], None] = lambda reason: None) -> Iterator[Fields]:
    """Return items as Accord's own rows. What the stages would refuse is left out (empty texts, steps).

    Args:
        leave_out: Called with the reason of each item that is left out.
    """
    assert ACCORD.write is not None
    return ACCORD.write(items, leave_out)


def wanted_kinds(named: Iterable[str]) -> frozenset[str]:
    """Return the kinds of items that are taken. Raises UsageError for one that there is not."""
    kinds = frozenset(named)
    if unknown := kinds - {*ITEM_KINDS, "all"}:
        raise UsageError(f"there is no kind {min(unknown)!r}", hint=f"give all, or some of {', '.join(ITEM_KINDS)}")
    # A sample written as a row reads as a demonstration: it would be imitated, though nobody judged it.
    return frozenset(ITEM_KINDS) if "all" in kinds else kinds or frozenset(ITEM_KINDS) - {"sample"}


def _of_kinds(items: Iterable[Item], kinds: frozenset[str], left_out: Counter[str]) -> Iterator[Item]:
    for item in items:
        if item.kind in kinds:
            yield item
        else:
            left_out[f"a {item.kind} was not asked for (--only {item.kind})"] += 1


def _as_messages(item: Item) -> Item:
    return replace(item, prompt=turns_of(item.prompt)) if isinstance(item.prompt, str) and not item.steps else item


def _choose(formats: tuple[Format, ...], items: Iterator[Item]) -> tuple[Format, Iterator[Item]]:
    """Return the one of these formats that the first item of all can be written in, and the items."""
    writable = [format for format in formats if format.write is not None]
    if not writable:
        raise UsageError(f"{formats[0].name} can be read only", hint="choose another format to write")
    if len(writable) == 1:
        return writable[0], items
    skipped: list[Item] = []
    for item in items:
        skipped.append(item)
        found = next((format for format in writable if _says(format, item)), None)
        # Not the whole file: that would have to be held until a format is chosen.
        if found is not None or len(skipped) >= 1_000:
            return found or writable[0], itertools.chain(skipped, items)
    return writable[0], iter(skipped)


def _says(format: Format, item: Item) -> bool:
    assert format.write is not None
    return next(format.write([item], lambda reason: None), None) is not None


class _Written:
    """What passes on its way into a file: the rows, and what is counted of them."""

    def __init__(
        self, format: Format, container: Container, left_out: Counter[str], spreadsheet_safe: bool = False
    ) -> None:
        self.format, self.container, self.left_out = format, container, left_out
        self.spreadsheet_safe, self.num_formulas = spreadsheet_safe, 0
        self.tally, self.origins, self.schema = ItemTally(), Counter[str](), Counter[str]()
        self.is_whole = True

    def rows(self, items: Iterable[Item]) -> Iterator[Fields]:
        assert self.format.write is not None
        seen = self._seen(items)
        if self.format is ACCORD and self.container.kind == "parquet":  # a column holds values of one kind
            seen = uniform(seen, self._leave_out)
        for row in self.format.write(seen, self._leave_out):
            try:
                row = fitted(row, self.format, self.container)
            except CannotSay as reason:
                self._leave_out(str(reason))
            else:
                self.schema.update(row.keys())
                yield self._as_a_table(row) if self.container.kind == "csv" else row

    def _as_a_table(self, row: Fields) -> Fields:
        """Count what a spreadsheet would take for formulas, and put an apostrophe before it where that is wanted."""
        names = formulas_in(row)
        self.num_formulas += len(names)
        return {**row, **{name: f"'{row[name]}" for name in names}} if self.spreadsheet_safe else row

    def _seen(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items as they go to be written.

        Each is counted when the next one is asked for, and was not left out.
        """
        for item in items:
            self.is_whole = True
            yield item
            if self.is_whole:
                self.tally.add(item)
                self.origins.update([item.origin] if item.origin else [])

    def _leave_out(self, reason: str) -> None:
        self.left_out[reason] += 1
        self.is_whole = False
