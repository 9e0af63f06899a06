"""A whole file taken in: counted, converted, or added to a store, with its rejects and its manifest."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from accord import __version__
from accord.errors import UsageError
from accord.files import sha256_file, write_json
from accord.formats.facts import to_records
from accord.formats.format import Format
from accord.formats.item import Item
from accord.formats.reading import ReadAs, Reading, Rejects, read_items
from accord.formats.tally import ItemTally
from accord.formats.writing import rejects_path, write_items
from accord.records import Record

#: Bad rows after which an import gives up, unless the caller says otherwise.
# So many are no slips: the file is another format, or broken throughout.
MAX_REJECTS = 1_000
_BATCH_ITEMS = 2_000  # a commit each: a flush to disk costs milliseconds


@dataclass(frozen=True)
class Imported:
    """The counts of a file that was read, and what became of its items.

    ``kinds`` counts the items by kind; ``judged_by`` the judgements by whose they are; ``left_out`` those that were not
    taken, by reason; ``written`` the rows of the output (None: there is none), ``new`` the facts that the store had not
    (None: no store). ``formulas``: how many cells of the table written a spreadsheet would run (None: none).
    """

    format: str
    rows: int
    rejected: int
    prompts: int
    completions: int
    judgements: int
    pairs: int
    kinds: dict[str, int]
    judged_by: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    written: int | None = None
    new: int | None = None
    output: Path | None = None
    rejects: Path | None = None
    formulas: int | None = None


class Adds(Protocol):
    """What `add_to` needs of a store."""

    def add(self, records: Iterable[Record]) -> int: ...


def count_items(
    file: Path, format: str | Format | ReadAs | None = None, *, limit: int | None = None, max_rejects: int = MAX_REJECTS
) -> Imported:
    """Read a file to its end and write nothing.

    Raises:
        DataError: It cannot be read, or more than ``max_rejects`` of its rows are no good.
        UsageError: There is no format of that name.
    """
    tally = ItemTally()
    with Rejects(None, max_rejects) as rejects:
        reading = read_items(file, format, on_reject=rejects, limit=limit)
        for item in reading:
            tally.add(item)
    return _imported(reading, tally)


def convert_file(
    file: Path,
    output: Path,
    format: str | Format | ReadAs | None = None,
    *,
    to: str = "accord",
    only: Collection[str] = (),
    messages: bool = False,
    spreadsheet_safe: bool = False,
    limit: int | None = None,
    max_rejects: int = MAX_REJECTS,
) -> Imported:
    """Write the items of a file in another format, by default as rows for the stages; rejects and manifest beside it.

    Args:
        file, format: The file, and its format if it is not to be recognised by its rows.
        output, to: Where to, and in which format.
        only: Kinds of items to take, or "all"; by default those that people come to the file's format for.
        messages: Write prompts of text as messages.
        spreadsheet_safe: As `accord.formats.write_items` has it.
        limit: Read at most so many rows.
        max_rejects: Give up when more rows than that are no good.

    Raises:
        DataError: The file cannot be read, too many of its rows are no good, or nothing of it can be written.
        UsageError: There is no such format or kind.
        ResourceError: The disk does not take it, or a package is missing.
    """
    # By the file, not its name: a link would be read while it is overwritten.
    if output.exists() and output.samefile(file):
        raise UsageError("the output is the file that is read", where=str(output), hint="choose another -o")
    tally = ItemTally()
    with Rejects(rejects_path(output), max_rejects) as rejects:
        reading = read_items(file, format, on_reject=rejects, limit=limit)
        manifest = write_items(
            output,
            _counted(reading, tally),
            to,
            kinds=only or _main(reading),
            messages=messages,
            spreadsheet_safe=spreadsheet_safe,
            filters={"limit": limit},
            source=_described(reading),
        )
    left_out = dict(manifest.left_out)
    found = _imported(reading, tally, left_out=left_out, written=manifest.rows, output=output, rejects=rejects)
    return replace(found, formulas=None if spreadsheet_safe else manifest.formulas or None)


def add_to(
    store: Adds,
    file: Path,
    notes: Path,
    format: str | Format | ReadAs | None = None,
    *,
    source: str = "",
    scale: tuple[float, float] | None = None,
    limit: int | None = None,
    max_rejects: int = MAX_REJECTS,
) -> Imported:
    """Add what a file says to a store, as facts. Importing it again adds nothing.

    Args:
        store: Takes the facts, in batches: an import that is stopped can be run again.
        file, format: The file, and its format if it is not to be recognised by its rows.
        notes: Folder for ``manifest.json`` and ``rejects.jsonl``.
        source: The name of who wrote and judged, where the file does not say it; by default the file's.
        scale: (lowest, highest) of ratings that do not say it.
        limit: Read at most so many rows.
        max_rejects: Give up when more rows than that are no good.

    Raises:
        DataError: The file cannot be read, or too many of its rows are no good.
        UsageError: There is no such format.
    """
    tally, left_out, new = ItemTally(), Counter[str](), 0
    with Rejects(notes / "rejects.jsonl", max_rejects) as rejects:
        reading = read_items(file, format, on_reject=rejects, limit=limit)
        items = _counted(reading, tally)
        while batch := list(itertools.islice(items, _BATCH_ITEMS)):
            new += store.add(to_records(batch, source=source or file.name, scale=scale, left_out=left_out))
    found = _imported(reading, tally, left_out=dict(left_out), new=new, output=None, rejects=rejects)
    write_json(notes / "manifest.json", {**_manifest(reading, found), "filters": {"limit": limit}})
    return found


def _manifest(reading: Reading, found: Imported) -> dict[str, Any]:
    """Return the manifest without what depends on the store: the same file gives the same bytes."""
    kept = ("prompts", "completions", "judgements", "pairs", "kinds", "judged_by", "left_out")
    counts = {name: value for name, value in asdict(found).items() if name in kept}
    schema = {name: sum(held.values()) for name, held in sorted(reading.fields.items())}
    return {"source": _described(reading), "counts": counts, "schema": schema, "tool": f"accord {__version__}"}


def _described(reading: Reading) -> dict[str, Any]:
    read_as = reading.read_as
    said = {"ignored": sorted(read_as.ignored), "judged_by": read_as.judged_by, "axis": read_as.axis}
    return {
        "file": reading.path.name,
        "sha256": sha256_file(reading.path),
        "format": reading.detected.format,
        "container": str(reading.detected.container),
        **{name: value for name, value in said.items() if value},
    }


def _main(reading: Reading) -> tuple[str, ...]:
    return reading.format.main


def _counted(items: Iterable[Item], tally: ItemTally) -> Iterator[Item]:
    for item in items:
        tally.add(item)
        yield item


def _imported(
    reading: Reading,
    tally: ItemTally,
    *,
    left_out: dict[str, int] | None = None,
    written: int | None = None,
    new: int | None = None,
    output: Path | None = None,
    rejects: Rejects | None = None,
) -> Imported:
    return Imported(
        format=reading.detected.format,
        rows=reading.num_rows,
        rejected=reading.num_rejected,
        **tally.counts(),
        kinds=dict(tally.kinds.most_common()),
        judged_by=dict(tally.judges.most_common()),
        left_out=dict(reading.left_out) | (left_out or {}),
        written=written,
        new=new,
        output=output,
        rejects=rejects.path if rejects and rejects.count else None,
    )
