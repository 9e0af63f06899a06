"""Writing JSON lines: one object a line, the whole file or nothing."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from accord.errors import DataError
from accord.files import write_bytes


def write_jsonl(path: Path | str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, gzipped where the name ends in ``.gz``.

    The file appears whole or not at all, and the same rows give the same bytes.

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
