"""Decoding steps of few fixed shapes, so that a GPU can record each once and replay it without Python.

One step of a small model is hundreds of tiny kernels, and starting them takes longer than running them. A CUDA graph
starts them all at once, but holds for one shape and for the very memory it was recorded on. So rows and slots are
rounded up: a row too many writes where no row in use reads, and a slot too many is hidden like any that is unused.

Shapes: B rows in use, R rows of a step, S slots that it sees, D width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: Tokens, lengths and the number of slots seen in, hidden states out: ``(R,), (R,), S -> (R, D)``.
Run = Callable[[Tensor, Tensor, int], Tensor]

FEWEST_ROWS, FEWEST_SLOTS = 8, 128  # few shapes: each recording costs a pass or three, and its memory
WARM_UP = 2  # passes before a recording, in which libraries choose their routines and take their workspace


def rounded(count: int, fewest: int, most: int) -> int:
    """Return the next power of two, at least ``fewest``, at most ``most``."""
    return min(max(fewest, 1 << (count - 1).bit_length()), most)


class FixedSteps:
    """The steps of one cache, and their recordings. Both are worth nothing once its memory or the weights change.

    Without CUDA the same steps run unrecorded.
    """

    def __init__(self, rows: int, slots: int, device: torch.device) -> None:
        self._rows, self._slots = rows, slots
        self._token_R, self._length_R = (torch.zeros(rows, dtype=torch.long, device=device) for _ in range(2))
        self._graphs: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    def __call__(self, run: Run, token_B: Tensor, length_B: Tensor, longest: int) -> Tensor:
        """Return hidden states behind one token more a row, ``(B, D)``; ``longest`` is the largest length before it."""
        B = len(token_B)
        R, S = rounded(B, FEWEST_ROWS, self._rows), rounded(longest + 1, FEWEST_SLOTS, self._slots)
        token_R, length_R = self._token_R[:R], self._length_R[:R]
        for held_R, given_B in ((token_R, token_B), (length_R, length_B)):
            held_R[:B] = given_B
            held_R[B:] = 0  # rows too many: length 0, so they write where no row in use reads
        if self._pool is None:
            return run(token_R, length_R, S)[:B]
        if (R, S) not in self._graphs:
            self._graphs[R, S] = self._recorded(run, token_R, length_R, S)
        graph, hidden_RD = self._graphs[R, S]
        graph.replay()
        return hidden_RD[:B].clone()  # the next replay writes there again

    def _recorded(self, run: Run, token_R: Tensor, length_R: Tensor, S: int) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """Return a recording of the step.

        What runs before it is this very step: it writes what the replay will write.
        """
        aside = torch.cuda.Stream(token_R.device)  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream(token_R.device))
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                run(token_R, length_R, S)
        torch.cuda.current_stream(token_R.device).wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            hidden_RD = run(token_R, length_R, S)
        return graph, hidden_RD
