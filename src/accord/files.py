"""Files that are either whole or absent: write aside, flush to disk, rename. And their hashes."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path, PosixPath
from typing import Any, BinaryIO

from accord.errors import AccordError, DataError, ResourceError, UsageError


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

    What killed processes left under such names is removed; the older folder that one had moved away goes back.
    """
    # The name holds the process: what belongs to one that still runs is being written.
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        if not _runs(leftover.name.split(".")[-2]):
            remove(leftover)
    for older in path.parent.glob(f".{glob.escape(path.name)}.*.older"):
        if not _runs(older.name.split(".")[-2]):
            remove(older) if path.exists() else older.replace(path)
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def remove(path: Path) -> None:
    """Remove a file, or a folder with all in it, as far as that can be done."""
    with contextlib.suppress(OSError):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _runs(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:  # somebody else's process
        return True
    return True


def create_private(path: Path) -> None:
    """Make an empty file that its owner alone can read, where there is none yet."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def writing(path: Path, what: str = "file") -> Iterator[None]:
    """Turn what the disk refuses inside into a ResourceError that names the path, and the free room where it is full.

    ``what`` is written there: a file, a folder.
    """
    try:
        yield
    except Exception as error:
        refused = error if isinstance(error, OSError) else _os_error_in(error)
        if refused is None:
            raise
        told, hint = refused.strerror or str(refused), "choose another --output-dir"
        if refused.errno not in _NO_ROOM:
            raise ResourceError(f"cannot write the {what} ({told})", where=str(path), hint=hint) from error
        hint = f"free some room, or {hint}; what stood there before is whole"
        raise ResourceError(f"the disk is full ({told})", where=str(path), why=_room(path), hint=hint) from error


def _os_error_in(error: Exception) -> OSError | None:
    """Return the operating system's error that safetensors and tokenizers tell in words alone; None for any other."""
    found = None if isinstance(error, AccordError) else re.search(r"([^:(]*) \(os error (\d+)\)", str(error))
    return None if found is None else OSError(int(found[2]), found[1].strip())


def _room(path: Path) -> str:
    """Say how much room there is where a path lies."""
    place = next(folder for folder in path.absolute().parents if folder.exists())
    free = shutil.disk_usage(place).free
    return f"{free / 1e6:,.1f} MB are free in {place}"


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which a reader sees only when it is whole. Where the block fails, the old one stays.

    A link of that name is replaced, not followed.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = partial_name(path)
        try:
            with aside.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())  # before the name: a crash may otherwise leave the new name on an empty file
            aside.replace(path)
            _fsync(path.parent)
        finally:
            remove(aside)


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


def object_in(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file that may be growing or damaged; an empty one where there is none to read."""
    try:
        found = read_json(path)
    except (DataError, OSError):
        return {}
    return found if isinstance(found, dict) else {}


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Add a line of JSON to a file of rows."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def row_in(line: str) -> dict[str, Any] | None:
    """Return the object that a line of JSON holds; None for a line that is damaged, blank, or holds something else."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the objects in a file of JSON lines that may be growing; lines that are none are left out.

    A file that is not there has none.
    """
    if not path.is_file():
        return []
    found = map(row_in, path.read_text(encoding="utf-8", errors="replace").split("\n"))
    return [row for row in found if row is not None]


class GrowingRows:
    """The objects in a file of JSON lines that grows: each look reads what was added since, and no line twice.

    A line that is still being written waits for its end. A file that was cut or replaced is read from its beginning.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._forget()

    def _forget(self) -> None:
        self._rows: list[dict[str, Any]] = []
        self._read, self._end = 0, b""  # how many bytes were read, and the last of them

    def rows(self) -> list[dict[str, Any]]:
        """Return all rows so far; none where there is no file."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._read - len(self._end))
                if file.read(len(self._end)) != self._end:
                    self._forget()
                    file.seek(0)
                whole, newline, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            self._forget()
            return []
        added = whole + newline
        self._read += len(added)
        self._end = (self._end + added)[-256:]
        found = map(row_in, whole.decode("utf-8", "replace").split("\n"))
        self._rows += [row for row in found if row is not None]
        return self._rows


def numbered(folder: Path, prefix: str = "step_") -> dict[int, Path]:
    """Return the folders ``step_N`` below a folder by their number, lowest first. What else lies there is no such."""
    found = {path.name.removeprefix(prefix): path for path in folder.glob(f"{glob.escape(prefix)}*") if path.is_dir()}
    # By number: the name of a million would sort before that of 999999.
    numbers = {int(name): path for name, path in found.items() if name.isascii() and name.isdigit()}
    return dict(sorted(numbers.items()))


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Fill a folder aside, flush every file, then put it in place of any older one.

    At any moment a whole folder stands there, the older or the new one, where the file system can exchange two names
    (Linux); elsewhere for an instant neither does, and the next write puts the older one back.
    """
    with writing(path, "folder"):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = partial_name(path)
        remove(aside)
        try:
            aside.mkdir()
            fill(aside)
            for file in aside.rglob("*"):
                _open_as_neighbours(file, aside)
                _fsync(file)
            _put_in_place(aside, path)
            _fsync(path.parent)
        finally:
            remove(aside)


def _open_as_neighbours(file: Path, folder: Path) -> None:
    """Let those read a file who may read its folder: safetensors writes files that only their owner can."""
    mode, wanted = file.stat().st_mode, folder.stat().st_mode & 0o666
    if file.is_file() and mode & wanted != wanted:
        file.chmod(mode | wanted)


def _put_in_place(new: Path, path: Path) -> None:
    """Give ``new`` the name ``path``, which another folder may have; that one is then removed."""
    if not path.exists() and not path.is_symlink():
        new.replace(path)
    elif not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "a file has this name", str(path))
    elif _exchange(new, path):
        remove(new)  # it bears the older one now
    else:
        older = path.with_name(f".{path.name}.{os.getpid()}.older")
        path.replace(older)
        new.replace(path)
        remove(older)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names at once. Returns False where the system or the file system cannot."""
    if sys.platform != "linux":
        return False
    at_cwd, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    return rename is not None and rename(at_cwd, os.fsencode(first), at_cwd, os.fsencode(second), exchange) == 0
