"""A second place for checkpoints and models, by an fsspec URL: whole and committed, or not there.

A folder goes up under a name of its own content, and a small object that names it goes last: that object is the commit.
So an object store, which cannot rename, shows the older folder or the newer one and never half of one.
``ACCORD_MIRROR`` names the URL; without it nothing is mirrored and nothing is imported.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accord.errors import DataError, ResourceError, UsageError
from accord.files import sha256_file, write_folder

MIRROR_URL = "ACCORD_MIRROR"
COMMIT = ".committed.json"


class Mirror:
    """What stands of one folder at a URL. ``place`` is that folder's name there."""

    def __init__(self, url: str, place: str) -> None:
        try:
            import fsspec
        except ImportError:
            raise UsageError(f"{MIRROR_URL} is set, and fsspec is not installed", hint="pip install fsspec") from None
        with _saying(url):
            self._files, root = fsspec.core.url_to_fs(url)
        self._root, self.url = f"{root.rstrip('/')}/{place}", url

    def put(self, folder: Path, name: str) -> None:
        """Keep a folder under a name, in place of what stood there. Raises ResourceError where it cannot."""
        sums = {str(one.relative_to(folder)): sha256_file(one) for one in sorted(folder.rglob("*")) if one.is_file()}
        # By its content: two versions of a folder never share an object.
        where = f"{name}.{hashlib.sha256(json.dumps(sums).encode()).hexdigest()[:16]}"
        with _saying(self.url):
            before = self._commit(name)
            for file in sums:
                self._files.makedirs(self._parent(f"{where}/{file}"), exist_ok=True)
                self._files.put_file(str(folder / file), self._at(f"{where}/{file}"))
            self._files.makedirs(self._parent(name), exist_ok=True)
            self._files.pipe_file(self._at(name + COMMIT), json.dumps({"where": where, "sha256": sums}).encode())
            if before is not None and before["where"] != where:
                self._files.rm(self._at(before["where"]), recursive=True)

    def names(self, below: str) -> list[str]:
        """Return the names of the folders that are kept below one."""
        with _saying(self.url):
            self._files.invalidate_cache()
            found = self._files.glob(self._at(f"{below}/*{COMMIT}"))
        return sorted(f"{below}/{Path(one).name.removesuffix(COMMIT)}" for one in found)

    def get(self, name: str, folder: Path) -> bool:
        """Fetch what is kept under a name into a folder, whole or not at all; whether there is anything.

        Raises:
            DataError: What is there is not what was put.
        """
        with _saying(self.url):
            commit = self._commit(name)
        if commit is None:
            return False

        def fill(aside: Path) -> None:
            for file, digest in commit["sha256"].items():
                (aside / file).parent.mkdir(parents=True, exist_ok=True)
                with _saying(self.url):
                    self._files.get_file(self._at(f"{commit['where']}/{file}"), str(aside / file))
                if sha256_file(aside / file) != digest:
                    raise DataError(f"{file} is not as it was put there", where=f"{name} at {self.url}")

        write_folder(folder, fill)
        return True

    def drop(self, name: str) -> None:
        """Let go of what is kept under a name: the commit first."""
        with _saying(self.url):
            commit = self._commit(name)
            if commit is not None:
                self._files.rm_file(self._at(name + COMMIT))
                self._files.rm(self._at(commit["where"]), recursive=True)

    def _commit(self, name: str) -> dict[str, Any] | None:
        self._files.invalidate_cache()
        if not self._files.exists(self._at(name + COMMIT)):
            return None
        commit: dict[str, Any] = json.loads(self._files.cat_file(self._at(name + COMMIT)))
        return commit

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _parent(self, name: str) -> str:
        return self._at(name).rpartition("/")[0]


@contextmanager
def _saying(url: str) -> Iterator[None]:
    """Let a failure of the store say which it is. What libraries of stores raise has no class in common."""
    try:
        yield
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise ResourceError(f"the mirror at {url} does not answer", why=why, hint=f"unset {MIRROR_URL}") from error


def mirror_of(folder: Path) -> Mirror | None:
    """Return the mirror of an output folder; None where no URL is named. Its place is its name and its parent's."""
    url = os.environ.get(MIRROR_URL)
    return Mirror(url, "/".join(folder.absolute().parts[-2:])) if url else None
