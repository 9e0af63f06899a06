"""Whether what a GGUF file says of its own lengths can be true, before a reader believes it.

The reader of the package `gguf` makes an object for each element that an array says it has, however short the file.
Layout: ggml's docs/gguf.md; all numbers little-endian.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from accord.errors import DataError

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of the plain types
_STRING, _ARRAY = 8, 9
MOST_NAMES = 1_000_000  # of settings and of tensors; the largest files have some thousand
MOST_ELEMENTS = 4_000_000  # of all arrays: merges of a quarter of a million entries are half a million


def require_lengths(path: Path) -> None:
    """Raise DataError where a GGUF file promises more than it holds, or than can be read."""
    if not path.is_file():
        raise DataError("no such file", where=str(path))
    if path.stat().st_size < 24:
        raise _refused(path, "it is too short")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            _Walk(data).whole()
        except (struct.error, ValueError, OverflowError) as error:
            raise _refused(path, str(error)) from error


def _refused(path: Path, why: str) -> DataError:
    return DataError(
        f"cannot be read as GGUF ({why})", where=str(path), why="damaged, or no GGUF file", hint="fetch it again"
    )


class _Walk:
    """A place in the file that only moves forward, and never past its end."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.place, self.elements = data, 4, 0

    def whole(self) -> None:
        if self.data[:4] != b"GGUF":
            raise ValueError("its first bytes are others")
        self.number("<I")
        tensors, settings = self.number("<Q"), self.number("<Q")
        if max(tensors, settings) > MOST_NAMES:
            raise ValueError(f"it promises {max(tensors, settings)} names")
        for _ in range(settings):
            self.text()
            self.value(self.number("<I"))
        for _ in range(tensors):
            self.tensor()

    def tensor(self) -> None:
        self.text()
        dims = self.number("<I")
        if not 0 < dims <= 8:
            raise ValueError(f"a tensor has {dims} dimensions")
        elements = 1
        for _ in range(dims):
            elements *= self.number("<Q")
        # The smallest kind takes more than a bit for each.
        if elements > 8 * len(self.data):
            raise ValueError(f"a tensor of {elements} numbers in {len(self.data)} bytes")
        self.skip(12)  # its type and where it stands

    def value(self, kind: int) -> None:
        if kind == _STRING:
            self.text()
        elif kind == _ARRAY:
            inner, length = self.number("<I"), self.number("<Q")
            self.elements += length
            if self.elements > MOST_ELEMENTS or inner == _ARRAY:
                raise ValueError(f"an array of {length} elements of type {inner}")
            if inner == _STRING:
                for _ in range(length):
                    self.text()
            else:
                self.skip(length * self.size(inner))
        else:
            self.skip(self.size(kind))

    def size(self, kind: int) -> int:
        if kind not in _SIZES:
            raise ValueError(f"a value of type {kind}")
        return _SIZES[kind]

    def text(self) -> None:
        self.skip(self.number("<Q"))

    def number(self, form: str) -> int:
        start = self.place
        self.skip(struct.calcsize(form))
        return int(struct.unpack_from(form, self.data, start)[0])

    def skip(self, size: int) -> None:
        self.place += size
        if self.place > len(self.data):
            raise ValueError("it ends too early")
