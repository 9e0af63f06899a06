"""The process group of a run: joined once where torchrun started several processes, and never where it did not."""

from __future__ import annotations

import atexit
import os
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from accord.ranks import ONE_PROCESS, Ranks, launched_ranks

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

_Thing = TypeVar("_Thing")

# One process draws, scores or writes while others wait for it: torch's own half hour. `TIMEOUT` names a variable that
# says it otherwise, in seconds.
PATIENCE_S, TIMEOUT = 1800.0, "ACCORD_RANKS_TIMEOUT_S"


class Mesh(Ranks):
    """One process of several, with what connects it to the others: ``sharded``, over which weights are split."""

    def __init__(self, sharded: DeviceMesh) -> None:
        import torch.distributed as dist

        super().__init__(dist.get_rank(), dist.get_world_size())
        self.sharded = sharded

    def gather(self, mine: _Thing) -> list[_Thing]:
        import torch.distributed as dist

        everyone: list[_Thing] = [mine] * self.world
        dist.all_gather_object(everyone, mine)
        return everyone


@cache
def joined_ranks() -> Ranks:
    """Return the ranks of this run: alone, or one of those that torchrun started, which are joined at the first call.

    Each process takes the GPU of its number on this machine, where there is one.
    """
    _, world = launched_ranks()
    if world == 1:
        return ONE_PROCESS
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if not dist.is_initialized():
        # Numbers and texts travel between CPUs, weights between GPUs.
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        patience = timedelta(seconds=float(os.environ.get(TIMEOUT, PATIENCE_S)))
        dist.init_process_group(backend, timeout=patience)
        atexit.register(_leave)
    return Mesh(init_device_mesh("cuda" if cuda else "cpu", (world,)))


def _leave() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
