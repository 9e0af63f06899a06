"""Files that are either whole or absent: write aside, flush to disk, rename. And their hashes."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path, PosixPath
from typing import Any, BinaryIO

from accord.errors import DataError, ResourceError, UsageError


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of one file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class InputFile(PosixPath):
    """A data file and the format that its user says it has, by name; a path in all else (`accord.formats.input_file`).

    A path derived from it names no format.
    """

    format: str | None = None


def format_said(path: Path | str) -> str | None:
    """Return the name of the format that the user says a file has, None where nobody says."""
    return path.format if isinstance(path, InputFile) else None


def sha256_tree(path: Path, *, without: Collection[str] = ()) -> str:
    """Return the SHA-256 over the names and contents of a file, or of all files below a folder.

    The same bytes read in another format are another input. Files called as ``without`` says do not count where they
    stand in the folder itself.
    """
    if path.is_file():
        said = format_said(path)
        return f"{said}:{sha256_file(path)}" if said else sha256_file(path)
    names = {p.relative_to(path).as_posix(): p for p in sorted(path.rglob("*")) if p.is_file()}
    rows = [f"{name} {sha256_file(p)}" for name, p in names.items() if name not in without]
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def child(folder: Path, name: str) -> Path:
    """Return the path of a name in a folder.

    Raises UsageError for what is no plain name, or a link out of the folder.
    """
    path = folder / name
    # Resolved too: a plain name may be a link that leads out.
    if not _NAME.fullmatch(name) or path.resolve().parent != folder.resolve():
        raise UsageError(
            f"{name!r} is no name for a file in {folder}", hint="use a-z, 0-9, dot, dash and underscore, at most 64"
        )
    return path


def name_from(text: str) -> str:
    """Return a name that `child` takes, like a text."""
    # Lower case: some file systems do not tell it from upper.
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).lstrip("._-")[:64] or "unnamed"


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def partial_name(path: Path) -> Path:
    """Return the name beside ``path`` to fill before renaming.

    What killed processes left under such names is removed.
    """
    # The name holds the process: what belongs to one that still runs is being written.
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        if not _runs(leftover.name.split(".")[-2]):
            with contextlib.suppress(OSError):
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def _runs(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:  # somebody else's process
        return True
    return True


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which a reader sees only when it is whole. Where the block fails, the old one stays.

    A link of that name is replaced, not followed.
    """
    aside = partial_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # before the name: a crash may otherwise leave the new name on an empty file
        aside.replace(path)
        _fsync(path.parent)
    except OSError as error:
        raise ResourceError(
            f"cannot write the file ({error.strerror})", where=str(path), hint="choose another --output-dir"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part."""
    with whole_file(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """JSON with two spaces of indent and sorted keys as given; not-a-number is refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


MOST_JSON = 256 << 20  # bytes; the tokenizers of a quarter of a million entries take 34 MB


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises DataError where it is missing, no plain file, too large, no JSON or nested too deeply.
    """
    try:
        if path.exists() and not path.is_file():
            raise DataError("is no plain file", where=str(path))
        if (size := path.stat().st_size) > MOST_JSON:
            raise DataError(f"holds {size:,} bytes, more than such a file can have", where=str(path))
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError("no such file", where=str(path)) from error
    except RecursionError as error:
        raise DataError("nested too deeply to be read as JSON", where=str(path)) from error
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read as JSON ({error})", where=str(path)) from error


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Fill a folder aside, flush every file, then put it in place of any older one."""
    aside = partial_name(path)
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        fill(aside)
        for file in aside.rglob("*"):
            _fsync(file)
        if path.exists():
            shutil.rmtree(path)
        aside.replace(path)
        _fsync(path.parent)
    except OSError as error:
        raise ResourceError(
            f"cannot write the folder ({error.strerror})", where=str(path), hint="choose another --output-dir"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
