"""Rows of Parquet files, which may make gigabytes of a few bytes: looked through in a process of its own first."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from accord.errors import DataError, ResourceError
from accord.isolated import OutOfBounds, OutOfTime, work_apart

# Bytes, or characters, that a file may stand for in any case, and more only where each of its bytes stands for no more
# than so many: texts shrink to a tenth, logs that repeat themselves to a fiftieth; what was made to fill a machine, to
# a thousandth.
MOST_INFLATED, MOST_RATIO = 2**30, 200

INSTALL = 'pip install "accord[parquet]"'
# Rows at once: few enough for long conversations; fewer where these do not fit.
_BATCHES = (256, 16, 1)
_BUFFER = 2**20  # bytes of a column read at once, whatever its row group has
MOST_MEGABYTES = 1024  # of memory that a batch of rows may take while it is read
# Seconds of the processor to look a file through, and so many bytes of it get another one (measured: 20 times that).
_SECONDS, _BYTES_A_SECOND = 60, 2**18


def pyarrow() -> tuple[Any, Any]:
    """Return pyarrow and pyarrow.parquet. Raises ResourceError where they are not installed."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ResourceError("Parquet files need the package pyarrow", hint=INSTALL) from error
    return pyarrow, pyarrow.parquet


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Return the rows of a Parquet file, as JSON has them; what is null is left out.

    Raises:
        DataError: A row alone takes more memory than it may.
        Exception: Whatever pyarrow raises at damage, once the rows before it were given.
    """
    _, parquet = pyarrow()
    stat = path.stat()
    batch = _fitting_batch(path, stat.st_size, stat.st_mtime_ns)
    with path.open("rb") as raw, parquet.ParquetFile(raw, buffer_size=_BUFFER) as file:
        for found in file.iter_batches(batch, use_threads=False):
            yield from map(json_value, found.to_pylist())


@lru_cache(maxsize=256)
def _fitting_batch(path: Path, size: int, changed: int) -> int:
    """Return how many rows of a file can be read at once."""
    most = max(MOST_INFLATED, MOST_RATIO * size)
    arguments = (f"{__name__}:look_through", str(path), str(most))
    for rows in _BATCHES:
        try:
            letters: int = work_apart(
                *arguments,
                str(rows),
                library="pyarrow.parquet",
                megabytes=MOST_MEGABYTES,
                seconds=_SECONDS + size / _BYTES_A_SECOND,
            )
        except OutOfBounds as error:
            fault = str(error)
            if isinstance(error, OutOfTime):
                break
        else:
            if letters <= most:
                return rows
            fault = f"it holds more than {letters:,} characters and values"
            break
    raise DataError(
        f"the file cannot be read within bounds: {fault}",
        where=str(path),
        why=f"its {size:,} bytes stand for more than texts have, or are damaged",
        hint="fetch it again, or write it as JSON lines",
    )


def look_through(path: str, most: str, rows: str) -> int:
    """Make all rows of a file, some at once, and forget them; in the process that `parquet_rows` starts.

    Damage that pyarrow tells ends the looking: who reads the file is told of it there.

    Returns:
        How many characters and other values they hold, which is more than ``most`` where it stopped there.
    """
    _, parquet = pyarrow()
    count = 0
    try:
        with open(path, "rb") as raw, parquet.ParquetFile(raw, buffer_size=_BUFFER) as file:
            for found in file.iter_batches(int(rows), use_threads=False):
                for row in found.to_pylist():
                    count += letters_of(row)
                    if count > int(most):
                        return count
    except MemoryError:
        raise
    except Exception:
        return count
    return count


def letters_of(value: Any) -> int:
    """Return how many characters the texts of a value have, and how many other values it holds."""
    if isinstance(value, dict):
        return sum(map(letters_of, value.values()))
    return sum(map(letters_of, value)) if isinstance(value, list) else len(value) if isinstance(value, str) else 1


def json_value(value: Any) -> Any:
    """Return values of Arrow as JSON has them. What is null is left out: a column has it for want of a value."""
    if isinstance(value, dict):
        # A table has every column in every row: null says only that another row had it.
        return {key: json_value(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    # Times and decimals, which JSON has no form for.
    return value if isinstance(value, str | int | None) else str(value)
