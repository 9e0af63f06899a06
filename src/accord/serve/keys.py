"""Who may ask: keys with limits of their own, kept as hashes in a file that is read again when it changes."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from accord.errors import DataError, UsageError
from accord.files import read_json, write_text
from accord.people.desk.keys import hashed
from accord.records import AnnotatorKind

KEY_PREFIX = "sk-accord-"


@dataclass(frozen=True)
class ApiKey:
    """A key by the hash of its secret. ``operator``: it may also read the measures and rule the models.

    ``per_minute`` requests on average, and ``at_once`` being answered or waiting; 0: no limit. ``users`` says what kind
    of annotators its users are: what programs say is never counted as people's word.
    """

    name: str
    hash: str
    operator: bool = False
    per_minute: int = 600
    at_once: int = 64
    users: AnnotatorKind = "human"


#: Who asks where no key is wanted: whoever sits at this machine.
LOCAL = ApiKey("local", "", operator=True, per_minute=0, at_once=0)


class KeyRing:
    """The keys in a file, or in memory alone. ``required``: whether somebody without one is refused."""

    def __init__(self, file: Path | None = None, *, required: bool = True) -> None:
        self._file, self.required = file, required
        self._keys: dict[str, ApiKey] = {}
        self._read_at: tuple[int, int] | None = None
        self._refresh()

    @property
    def kept(self) -> bool:
        """Whether keys outlive the process."""
        return self._file is not None

    def __len__(self) -> int:
        self._refresh()
        return len(self._keys)

    def find(self, secret: str) -> ApiKey | None:
        """Return whose secret it is, None where it is nobody's; where none is required, everybody is local."""
        self._refresh()
        # By a hash of 256 random bits: a comparison that takes longer for a better guess tells nothing.
        found = self._keys.get(hashed(secret)) if secret else None
        return found if found is not None or self.required else LOCAL

    def add(self, name: str, **settings: Any) -> str:
        """Make a key and return its secret, which is kept nowhere. Raises UsageError where the name is taken.

        ``settings``: fields of `ApiKey`.
        """
        self._refresh()
        if not name or len(name) > 100 or any(key.name == name for key in self._keys.values()):
            raise UsageError(f"a key {name!r} cannot be made", why="the name is empty, too long or taken")
        secret = KEY_PREFIX + secrets.token_urlsafe(32)
        key = ApiKey(name, hashed(secret), **settings)
        self._write({**self._keys, key.hash: key})
        return secret

    def revoke(self, name: str) -> None:
        """Let a key be worth nothing from now on. Raises UsageError where there is none of this name."""
        self._refresh()
        left = {hash: key for hash, key in self._keys.items() if key.name != name}
        if len(left) == len(self._keys):
            there = ", ".join(key.name for key in self._keys.values()) or "none"
            raise UsageError(f"there is no key {name!r}", hint=f"there is {there}")
        self._write(left)

    def _write(self, keys: dict[str, ApiKey]) -> None:
        self._keys = keys
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_text(self._file, json.dumps([asdict(key) for key in keys.values()], indent=1) + "\n")
            self._file.chmod(0o600)

    def _refresh(self) -> None:
        if self._file is None:
            return
        try:
            seen = os.stat(self._file)
        except FileNotFoundError:
            self._keys, self._read_at = {}, None
            return
        if (seen.st_mtime_ns, seen.st_ino) == self._read_at:
            return
        try:
            rows = [replace(ApiKey("", ""), **row) for row in read_json(self._file)]
        except TypeError as error:
            raise DataError(
                "this is no file of keys", where=str(self._file), hint="make keys with --add-key"
            ) from error
        self._keys, self._read_at = {row.hash: row for row in rows}, (seen.st_mtime_ns, seen.st_ino)
