"""Checkpoints in parts, by DCP in safetensors: each process writes what it holds, and any number of them reads it.

Nothing is pickled: DCP's own format would be.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from accord.ranks import Ranks


def save_parts(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write named tensors, split or whole, into a folder that is there; all processes must ask."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(dict(tensors), storage_writer=writer)


def load_parts(tensors: Mapping[str, Tensor], folder: Path, ranks: Ranks) -> None:
    """Fill tensors, split or whole, from the safetensors of a folder, however many processes wrote them."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reader = HuggingFaceStorageReader(str(folder))
        load(dict(tensors), storage_reader=reader, no_dist=ranks.world == 1)


def names_of_parts(folder: Path) -> list[str]:
    """Return the names of the tensors that a folder holds, each once, by the files' headers."""
    names: dict[str, None] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            names |= dict.fromkeys(file.keys())
    return list(names)
