"""What was computed of a conversation is not computed again at its next turn: keys and values of texts that were read.

Shapes: N tokens that are read, M of them that ask, S slots, H heads, C head width, D width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from accord.models.decoder import Trunk
from accord.models.forward import Cache, Pass

SHORTEST_KEPT = 16  # a shorter beginning is read as quickly as it is copied
Ids = tuple[int, ...]


@dataclass(frozen=True)
class KeptText:
    """Keys and values of a text's tokens, ``(H_kv, S, C)`` each, a pair a layer."""

    keys: list[Tensor]
    values: list[Tensor]


class PrefixCache:
    """A bounded memory of texts that went through one model: the least recently used ones leave first.

    ``max_tokens`` bounds what all of them hold together; 0 keeps nothing. Only the decoder's own cache is known: of
    other backbones nothing is kept. ``reused`` and ``read`` count prompt tokens that were found here, and all of them.
    """

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens, self.tokens = max_tokens, 0
        self.reused = self.read = 0
        self._held: OrderedDict[Ids, KeptText] = OrderedDict()

    def keep(self, ids: Ids, state: Any, row: int) -> None:
        """Remember what a row of a decoding state holds of a text: its tokens but those that were never fed."""
        if not isinstance(state, Cache):
            return
        length = int(state.length_B[row])
        ids = ids[:length]
        if not SHORTEST_KEPT <= length <= self.max_tokens or any(held[:length] == ids for held in self._held):
            return
        for shorter in [held for held in self._held if ids[: len(held)] == held]:  # earlier turns of the same one
            self._forget(shorter)
        while self.tokens + length > self.max_tokens:
            self._forget(next(iter(self._held)))
        pairs = (state.keys, state.values)
        self._held[ids] = KeptText(*([layer[row, :, :length].clone() for layer in side] for side in pairs))
        self.tokens += length

    def enter(self, trunk: Any, state: Any, prompt: Ids) -> Tensor | None:
        """Read a prompt into a new row behind what is known of it, and return the state behind it, ``(1, D)``.

        None where nothing of it is known; then the state is as it was.
        """
        self.read += len(prompt)
        found = self._longest(prompt)
        if found is None or not isinstance(trunk, Trunk):
            return None
        text, known = found
        self.reused += known
        row = state.num_rows
        state.enter(torch.tensor([len(prompt)], device=state.length_B.device), None)
        for layer, (keys, values) in enumerate(zip(text.keys, text.values, strict=True)):
            state.keys[layer][row, :, :known] = keys[:, :known]
            state.values[layer][row, :, :known] = values[:, :known]
        return read_behind(trunk, state, prompt[known:], known)

    def _longest(self, prompt: Ids) -> tuple[KeptText, int] | None:
        """Return the text that shares the longest beginning with a prompt, and how long it is."""
        # One token at least must run: its state says what comes next.
        shared = {held: _alike(held, prompt[:-1]) for held in self._held}
        best = max(shared, key=shared.__getitem__, default=None)
        if best is None or shared[best] < SHORTEST_KEPT:
            return None
        self._held.move_to_end(best)
        return self._held[best], shared[best]

    def _forget(self, ids: Ids) -> None:
        del self._held[ids]
        self.tokens -= len(ids)


def _alike(a: Ids, b: Ids) -> int:
    """Return how many tokens two texts begin with alike, by halving: comparing slices is quick."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[:middle] == b[:middle] else (low, middle - 1)
    return low


@dataclass(frozen=True)
class _Behind(Pass):
    """A pass over tokens of one row of a cache that stand behind what it holds already."""

    cache: Cache
    row: int
    start: int

    def attend(
        self, layer: int, q_MHC: Tensor, k_NHC: Tensor, v_NHC: Tensor, window: int, read_M: Tensor | None = None
    ) -> Tensor:
        end = self.start + len(k_NHC)
        keys_HSC, values_HSC = (side[layer][self.row] for side in (self.cache.keys, self.cache.values))
        keys_HSC[:, self.start : end] = k_NHC.transpose(0, 1)
        values_HSC[:, self.start : end] = v_NHC.transpose(0, 1)
        asks_M1 = (self.position_N if read_M is None else self.position_N[read_M])[:, None]
        slot_S = torch.arange(end, device=asks_M1.device)
        seen_MS = slot_S <= asks_M1
        if window:
            seen_MS &= slot_S > asks_M1 - window
        # In fp32, as decoding attends.
        q, k, v = (x[None].float() for x in (q_MHC.transpose(0, 1), keys_HSC[:, :end], values_HSC[:, :end]))
        y_HMC = F.scaled_dot_product_attention(q, k, v, seen_MS, enable_gqa=q.shape[1] != k.shape[1])[0]
        return y_HMC.transpose(0, 1).to(q_MHC.dtype)


def read_behind(trunk: Trunk, cache: Cache, ids: Sequence[int], start: int) -> Tensor:
    """Run the tokens of the last row that stand behind its first ``start``; return the last one's state, ``(1, D)``."""
    ids_N = torch.tensor(ids, device=cache.length_B.device)
    position_N, dtype = torch.arange(start, start + len(ids), device=ids_N.device), trunk.compute_dtype
    cos_N1C, sin_N1C = (trunk.get_buffer(name)[position_N, None].to(dtype) for name in ("cos_PC", "sin_PC"))
    run = _Behind(position_N, cos_N1C, sin_N1C, dtype, cache, cache.num_rows - 1, start)
    x = trunk.embed_tokens(ids_N)
    if trunk.config.learned_positions:
        x = x + trunk.embed_positions(position_N)
    *before, last = trunk.layers
    for layer in before:
        x = layer(x, run, 0.0)
    out: Tensor = trunk.norm(last(x, run, 0.0, torch.tensor([len(ids) - 1], device=ids_N.device)))
    return out
