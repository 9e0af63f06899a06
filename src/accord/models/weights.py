"""The safetensors of a model's folder: which files hold them, what their headers promise, and the tensors.

Nothing is unpickled, and no file outside the folder is named by its index.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from accord.errors import DataError
from accord.files import read_json

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
T = TypeVar("T")


@dataclass(frozen=True)
class Promised:
    """What a header says of one tensor: its size is that of the file, which the library checks."""

    shape: tuple[int, ...]
    is_float: bool

    def outline(self) -> Tensor:
        """Return a tensor of this shape that holds nothing."""
        return torch.empty(self.shape, device="meta", dtype=torch.float32 if self.is_float else torch.int8)


def promised(folder: Path) -> dict[str, Promised]:
    """Return the tensors of a folder by name, by the files' headers: nothing is loaded.

    Raises DataError where a file is missing or damaged, or a tensor stands in two files.
    """
    return _gathered(folder, _headers)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a folder by name. Raises DataError as `promised` does."""
    # safetensors alone: unpickling runs whatever code the file holds.
    return _gathered(folder, load_file)


def count_weights(folder: Path) -> int:
    """Return how many numbers the weights in a folder are, by the files' headers: nothing is loaded."""
    return sum(math.prod(tensor.shape) for tensor in promised(folder).values())


def _headers(path: Path) -> dict[str, Promised]:
    with safe_open(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {name: Promised(tuple(s.get_shape()), "F" in str(s.get_dtype())) for name, s in slices.items()}


def _gathered(folder: Path, read: Callable[[Path], dict[str, T]]) -> dict[str, T]:
    found: dict[str, T] = {}
    for path in _files(folder):
        try:
            held = read(path)
        except (OSError, SafetensorError) as error:
            raise DataError(
                f"the weights cannot be read ({error})", where=str(path), hint="fetch the file again, whole"
            ) from error
        if twice := sorted(held.keys() & found.keys()):
            # Which of them counts would depend on the order of reading.
            raise DataError(
                f"{twice[0]} stands in two files", where=str(path), hint="fetch the folder again, into an empty one"
            )
        found |= held
    return found


def _files(folder: Path) -> list[Path]:
    # The whole file first, as `transformers` reads: an index beside it is left from an older save.
    sharded = not (folder / WEIGHTS).exists() and (folder / INDEX).exists()
    names = _shards(folder / INDEX) if sharded else [WEIGHTS]
    for name in names:
        if not (folder / name).is_file():
            raise DataError(
                f"no {name} in the folder",
                where=str(folder),
                hint="give a Hugging Face model folder with safetensors weights (pickled ones are refused)",
            )
    return [folder / name for name in names]


def _shards(path: Path) -> list[str]:
    raw = read_json(path)
    listed = raw.get("weight_map") if isinstance(raw, dict) else None
    if not isinstance(listed, dict) or not listed or not all(isinstance(name, str) for name in listed.values()):
        raise DataError("no weight_map in the index", where=str(path), hint="copy the folder again, whole")
    names = sorted(set(listed.values()))
    # A model's folder comes from anyone: its index must not open other files of this machine.
    if outside := [name for name in names if PurePosixPath(name).name != name or name.startswith(".")]:
        raise DataError(
            f"the index names {outside[0][:80]!r}, which is no file of this folder",
            where=str(path),
            hint="fetch the model again from a source that you trust",
        )
    return names
