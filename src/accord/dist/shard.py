"""Weights split over the processes of a run, by FSDP2: each holds a part of every block, and all of one while it runs.

What is done before: weights are loaded, an adapter is added. What is done after: the optimiser is made. A model that
was never split passes through every function here as it is.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from accord.dist.mesh import Mesh
from accord.errors import UsageError

# What is called from outside and reads weights: only `forward` is known to FSDP by itself.
ENTRANCES = ("predictions", "bag_of_words")


def shard_model(model: nn.Module, mesh: Mesh) -> None:
    """Split a model's weights over the processes, block by block, in place.

    Raises UsageError where its blocks cannot be told apart.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    trunk = getattr(model, "model", None)
    blocks = [] if trunk is None else getattr(trunk, "layers", None)
    if blocks is None:
        raise UsageError(
            f"several processes train the families that the decoder reads, and this model is {type(trunk).__name__}",
            hint="train it in one process: without torchrun, and with scale.ranks=1",
        )
    _same_everywhere(model)
    # It warns of what nobody does here: to change in place what a forward pass has returned.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    for block in blocks:
        fully_shard(block, mesh=mesh.sharded)
    # The root's own (embeddings, last norm, head) stay whole until the step is over: the loss reads the head outside.
    fully_shard(model, mesh=mesh.sharded, reshard_after_forward=False)
    for name in ENTRANCES:
        if hasattr(model, name):
            register_fsdp_forward_method(model, name)
    # The root is whose forward runs first, and samples are drawn before any: then a block would be it. torch has no
    # other name for this.
    cast(Any, model)._get_fsdp_state()._lazy_init()


@torch.no_grad()
def _same_everywhere(model: nn.Module) -> None:
    """Take the first process's weights, should a random start have differed between machines."""
    import torch.distributed as dist

    for parameter in model.parameters():
        dist.broadcast(parameter, 0)


def full_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor that may be split over the processes as a whole one; all of them must ask."""
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole


def put_back(model: nn.Module) -> None:
    """Let go of what is gathered of other processes' weights: a step is about to move them."""
    for module in _sharded(model):
        module.reshard()


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Inside, every process holds all weights as plain tensors: for drawing samples and for writing files."""
    modules = _sharded(model)
    for module in modules:
        # Blocks run one by one while samples are drawn, and each would let go of its weights behind itself.
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in modules:
            module.set_reshard_after_forward(module is not model, recurse=False)
            module.reshard()


def _sharded(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "reshard")]


def hollow_copy(model: nn.Module) -> nn.Module:
    """Return the same model without its weights, for `filled_copy` once they are trained."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        for p in model.parameters()
    }
    return copy.deepcopy(model, memo)


def filled_copy(hollow: nn.Module, trained: nn.Module) -> nn.Module:
    """Fill a hollow copy with the weights of the split model, all of them on every process."""
    weights = {name: full_tensor(tensor).detach() for name, tensor in trained.state_dict().items()}
    hollow.load_state_dict(weights, assign=True)
    return hollow.train(trained.training)
