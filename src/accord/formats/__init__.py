"""Data of every kind in and out. Nothing here imports torch.

A file is one of the `FORMATS`, held as JSON lines, one JSON array, CSV or Parquet, plain, gzip or zstd: `detect` says
which, `read_items` gives its rows as `Item` objects, `write_items` writes items in any format, `to_records` makes
facts of them for the store and `to_jsonl` the rows that the stages read. A format of your own is a `Format`, given as
``module:name``.

The modules load on first use: every command passes here on its way to the artefacts, and ``--help`` must not wait.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accord.formats.columns import Columns, named_table
    from accord.formats.facts import to_records
    from accord.formats.format import Format, item_by_item, row_by_row
    from accord.formats.from_store import View, Weighed, as_said, from_facts
    from accord.formats.importing import Imported, add_to, convert_file, count_items
    from accord.formats.inspecting import Inspection, inspect_files
    from accord.formats.item import CannotSay, Item
    from accord.formats.reading import ReadAs, Reading, Rejects, read_items
    from accord.formats.rows import InputRow, Reject
    from accord.formats.table import FORMAT_FAMILIES, FORMATS, Detected, detect, input_file, members, suffix_of
    from accord.formats.tally import NOT_SAID, ItemTally
    from accord.formats.writing import Manifest, manifest_path, rejects_path, to_jsonl, write_items

_DOORS = {
    "columns": ("Columns", "named_table"),
    "facts": ("to_records",),
    "format": ("Format", "item_by_item", "row_by_row"),
    "from_store": ("View", "Weighed", "as_said", "from_facts"),
    "importing": ("Imported", "add_to", "convert_file", "count_items"),
    "inspecting": ("Inspection", "inspect_files"),
    "item": ("CannotSay", "Item"),
    "reading": ("ReadAs", "Reading", "Rejects", "read_items"),
    "rows": ("Reject", "InputRow"),
    "table": ("FORMAT_FAMILIES", "FORMATS", "Detected", "detect", "input_file", "members", "suffix_of"),
    "tally": ("NOT_SAID", "ItemTally"),
    "writing": ("Manifest", "manifest_path", "rejects_path", "to_jsonl", "write_items"),
}


__all__ = [
    "FORMATS",
    "FORMAT_FAMILIES",
    "NOT_SAID",
    "CannotSay",
    "Columns",
    "Detected",
    "Format",
    "Imported",
    "InputRow",
    "Inspection",
    "Item",
    "ItemTally",
    "Manifest",
    "ReadAs",
    "Reading",
    "Reject",
    "Rejects",
    "View",
    "Weighed",
    "add_to",
    "as_said",
    "convert_file",
    "count_items",
    "detect",
    "from_facts",
    "input_file",
    "inspect_files",
    "item_by_item",
    "manifest_path",
    "members",
    "named_table",
    "read_items",
    "rejects_path",
    "row_by_row",
    "suffix_of",
    "to_jsonl",
    "to_records",
    "write_items",
]


def __getattr__(name: str) -> Any:
    for module, names in _DOORS.items():
        if name in names:
            return getattr(import_module(f"accord.formats.{module}"), name)
    raise AttributeError(f"module 'accord.formats' has no attribute {name!r}")
