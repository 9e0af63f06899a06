"""Rows inside one JSON object, as libraries and interfaces write whole tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accord.formats.rows import RowError, parse_json

# Under these names tools keep the rows of a file; "row" is what the rows' interface of data set hubs puts around each.
_HOLDERS = ("data", "rows", "examples", "instances", "records", "train", "test", "validation")
_AROUND = "row"


def holds_rows(line: bytes) -> bool:
    """Return whether a line is one object that holds the rows of a file."""
    try:
        found = parse_json(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and rows_within(found) is not None


def rows_within(found: Mapping[str, Any], where: str = "") -> list[Mapping[str, Any]] | None:
    """Return the rows that an object holds, None where it is a row itself.

    Known are a list of objects under a name like ``data``, the rows' interface of data set hubs, and what pandas writes
    (by column, or split into columns and data).

    Raises:
        RowError: It describes a data set and holds none, or two lists of rows, of which one would be lost.
    """
    if _is_split(found):
        return [dict(zip(found["columns"], values, strict=True)) for values in found["data"]]
    if (columns := _by_column(found)) is not None:
        return columns
    lists = [name for name, value in found.items() if name in _HOLDERS and _are_objects(value)]
    if not lists:
        _refuse_description(found, where)
        return None
    if len(lists) > 1:
        what = f"the object holds {len(lists)} lists of rows: {', '.join(lists)}"
        raise RowError(what, where=where, hint="write each into a file of its own")
    return [dict(row[_AROUND]) if isinstance(row.get(_AROUND), dict) else row for row in found[lists[0]]]


def _refuse_description(found: Mapping[str, Any], where: str) -> None:
    """Refuse what LLaMA-Factory calls dataset_info.json: where its files lie, and how their columns are called."""
    files = [value["file_name"] for value in found.values() if isinstance(value, dict) and "file_name" in value]
    if files:
        hint = f"import {', '.join(files[:5])}"
        raise RowError("the file describes data sets and holds none", where=where, hint=hint)


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _is_split(found: Mapping[str, Any]) -> bool:
    """Return whether pandas wrote a table with ``orient="split"``."""
    columns, data = found.get("columns"), found.get("data")
    width = len(columns) if isinstance(columns, list) else -1
    return isinstance(data, list) and width > 0 and all(isinstance(row, list) and len(row) == width for row in data)


def _by_column(found: Mapping[str, Any]) -> list[Mapping[str, Any]] | None:
    """Return the rows of a table that pandas wrote column by column, ``{"prompt": {"0": ".."}, ..}``."""
    columns = list(found.values())
    first = columns[0] if columns else None
    if not isinstance(first, dict) or not first or not all(key.isdigit() for key in first):
        return None
    if not all(isinstance(column, dict) and column.keys() == first.keys() for column in columns):
        return None
    return [{name: column[key] for name, column in found.items() if column[key] is not None} for key in first]
