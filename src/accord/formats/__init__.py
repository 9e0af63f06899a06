"""Data of every kind in and out. Nothing here imports torch.

A file is one of the `FORMATS`, held as JSON lines, one JSON array, CSV or Parquet, plain, gzip or zstd: `detect` says
which, `read` gives its rows as `Item` objects, `write` writes items in any format, `to_records` makes
facts of them for the store and `to_jsonl` the rows that the stages read. A format of your own is a `Format`, given as
``module:name``.
"""

from accord.formats.facts import from_facts, to_records
from accord.formats.format import Format, item_by_item, row_by_row
from accord.formats.item import CannotSay, Item
from accord.formats.reading import Reading, Rejects, read
from accord.formats.rows import Reject, Row
from accord.formats.table import FAMILIES, FORMATS, Detected, detect
from accord.formats.tally import Tally
from accord.formats.writing import Manifest, manifest_path, rejects_path, to_jsonl, write

__all__ = [
    "FAMILIES",
    "FORMATS",
    "CannotSay",
    "Detected",
    "Format",
    "Item",
    "Manifest",
    "Reading",
    "Reject",
    "Rejects",
    "Row",
    "Tally",
    "detect",
    "from_facts",
    "item_by_item",
    "manifest_path",
    "read",
    "rejects_path",
    "row_by_row",
    "to_jsonl",
    "to_records",
    "write",
]
