"""How tokens run through the layers: whole sequences, or one token behind each row of a cache.

Shapes: B sequences, T tokens, N real tokens of all sequences (row after row), M of them that are read, P prompts,
R rows of a cache, S its slots, H heads, C head width, G query heads a key head, J pairs of row and key head, D width.
Sequences are padded on the right, and only real tokens run through the layers. With causal attention a padded token
never reaches a real one, so training needs no attention mask; decoding hides unused slots by each row's own length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from accord.algo.product import rounds_by_hand
from accord.models.fused import rotate, softmax
from accord.models.graphs import FixedSteps
from accord.models.shape import DecoderConfig

# Longest sequence that a CPU attends to by plain products. The fused kernel's backward in bf16 is 2 to 4 times slower
# at such lengths: training step of 32 x 128 tokens, 256 wide, 4 layers, 0.45 s, without it 0.24 s.
SHORT_TOKENS = 256
FEW_SLOTS = 256  # of these a CPU casts all in every step, and gains: half the bytes come from memory


class Cache:
    """Keys and values, ``(R, H_kv, S, C)`` each, of up to R sequences, preallocated, a pair a layer.

    The rows in use are always the first ones, ``length_B`` long each: who leaves is replaced by the last row, so that
    a pass reads plain slices and never gathers. Numbers are kept in the type they come in; where a CPU has many slots
    to read, in fp32, in which `attend_one` reads them. ``fixed`` are its steps of fixed shapes, by which a GPU decodes.
    """

    def __init__(self, config: DecoderConfig, rows: int, slots: int, dtype: torch.dtype, device: torch.device) -> None:
        self._heads = config.num_kv_heads, config.head_width
        self._dtype, self._device = dtype, device
        pairs = [self._pair(rows, slots) for _ in range(config.num_layers)]
        self.keys, self.values = [k for k, _ in pairs], [v for _, v in pairs]
        self.length_B = torch.zeros(0, dtype=torch.long, device=device)
        self.longest = 0
        self.fixed = None if device.type == "cpu" else FixedSteps(rows, slots, device)
        self._entering: tuple[Tensor | None, slice] = (None, slice(0))

    def _pair(self, rows: int, slots: int) -> tuple[Tensor, Tensor]:
        """Return zeros, because a slot that is hidden still enters the weighted sum, and 0 * NaN is NaN."""
        H, C = self._heads
        dtype = torch.float32 if self._device.type == "cpu" and slots > FEW_SLOTS else self._dtype
        keys, values = (torch.zeros(rows, H, slots, C, dtype=dtype, device=self._device) for _ in range(2))
        return keys, values

    @property
    def num_rows(self) -> int:
        return len(self.length_B)

    def reserve(self, rows: int, slots: int) -> None:
        """Make room for so many sequences of this length, half as much again at least; what is stored stays."""
        had_rows, _, had_slots, _ = self.keys[0].shape
        if rows <= had_rows and slots <= had_slots:
            return
        # By half again: growing by one would copy the whole cache at every entry.
        rows = had_rows if rows <= had_rows else max(rows, had_rows * 3 // 2)
        slots = had_slots if slots <= had_slots else max(slots, had_slots * 3 // 2)
        B, used = self.num_rows, self.longest
        for layer, (old_k, old_v) in enumerate(zip(self.keys, self.values, strict=True)):
            k, v = self._pair(rows, slots)
            k[:B, :, :used], v[:B, :, :used] = old_k[:B, :, :used], old_v[:B, :, :used]
            self.keys[layer], self.values[layer] = k, v
        if self.fixed is not None:  # the old ones are recordings of memory that is gone
            self.fixed = FixedSteps(rows, slots, self.length_B.device)

    def enter(self, length_P: Tensor, index_N: Tensor | None) -> None:
        """Announce the prompts of the next pass, each once for every time the index names it (None: once each)."""
        new_N = length_P if index_N is None else length_P[index_N]
        self._entering = index_N, slice(self.num_rows, self.num_rows + len(new_N))
        self.length_B = torch.cat((self.length_B, new_N))
        self.longest = int(self.length_B.max())

    def fill(self, layer: int, k_PTHC: Tensor, v_PTHC: Tensor) -> None:
        """Store the keys and values of the prompts announced."""
        index_N, rows = self._entering
        if index_N is not None:
            k_PTHC, v_PTHC = k_PTHC[index_N], v_PTHC[index_N]
        T = k_PTHC.shape[1]
        # Heads before slots: a step's products over one head's slots read memory in a row.
        self.keys[layer][rows, :, :T] = k_PTHC.transpose(1, 2)
        self.values[layer][rows, :, :T] = v_PTHC.transpose(1, 2)

    def slots_behind(self, length_B: Tensor) -> Tensor:
        """Return where the first rows' next tokens go in keys and values laid flat, ``(B * H_kv,)``.

        Flat is ``(R * H_kv * S, C)``.
        """
        _, H, S, _ = self.keys[0].shape
        head_BH = torch.arange(len(length_B) * H, device=length_B.device).view(-1, H)
        return (head_BH * S + length_B[:, None]).flatten()

    def append(self, layer: int, slot_N: Tensor, k_BHC: Tensor, v_BHC: Tensor) -> None:
        """Store one token's keys and values behind each row, at the slots that `slots_behind` named."""
        for stored, new in ((self.keys[layer], k_BHC), (self.values[layer], v_BHC)):
            C = stored.shape[-1]
            stored.view(-1, C).index_copy_(0, slot_N, new.reshape(-1, C).to(stored.dtype))

    def grow(self) -> None:
        """Count the token that every row just got."""
        self.length_B += 1
        self.longest += 1

    def keep(self, order: Sequence[int]) -> None:
        """Keep the rows named, in this order; rows already in their place are not copied."""
        device, used = self.length_B.device, self.longest
        moves = [(to, source) for to, source in enumerate(order) if to != source]  # few: the last rows fill the gaps
        if moves:
            to_N, source_N = torch.tensor(moves, device=device).T
            for stored in (*self.keys, *self.values):
                stored[to_N, :, :used] = stored[source_N, :, :used]
        self.length_B = self.length_B[torch.tensor(order, dtype=torch.long, device=device)]
        self.longest = int(self.length_B.max()) if order else 0


@dataclass(frozen=True)
class Pass:
    """What all layers of one pass over N tokens share: where each stands, its rotation, and the compute type."""

    position_N: Tensor
    cos_N1C: Tensor
    sin_N1C: Tensor
    dtype: torch.dtype

    def rotate(self, x_NHC: Tensor, read_M: Tensor | None = None) -> Tensor:
        """Turn the first channels of each head, as many as the tables have. ``read_M``: x has only these tokens."""
        cos, sin = self.cos_N1C, self.sin_N1C
        if read_M is not None:
            cos, sin = cos[read_M], sin[read_M]
        width = cos.shape[-1]
        if width == 0:
            return x_NHC
        if width < x_NHC.shape[-1]:
            turned, rest = x_NHC.tensor_split((width,), dim=-1)
            return torch.cat((rotate(turned, cos, sin), rest), dim=-1)
        return rotate(x_NHC, cos, sin)

    def attend(
        self, layer: int, q_MHC: Tensor, k_NHC: Tensor, v_NHC: Tensor, window: int, read_M: Tensor | None = None
    ) -> Tensor:
        """Return what each of the M tokens read takes from those it sees, ``(M, H, C)``."""
        raise NotImplementedError

    def drop(self, x_MD: Tensor, rate: float, read_M: Tensor | None = None) -> Tensor:
        """Apply dropout, where the pass has any."""
        return x_MD


@dataclass(frozen=True)
class Layout:
    """Where N tokens stand in a rectangle of ``P = B * T`` places, and which of them stands at each place.

    Several places may show one token, and those that are not real show any. Both None: token i stands at place i.
    By `index_select`, whose backward pass adds rows up where that of an index in brackets sorts them first: 0.2 ms for
    5 (bf16, 2,200 rows of 256 numbers).
    """

    place_N: Tensor | None = None
    token_P: Tensor | None = None

    @classmethod
    def of(cls, place_N: Tensor, size: int) -> Layout:
        """Return each token at one place of a rectangle of so many."""
        index_N = torch.arange(len(place_N), device=place_N.device)
        return cls(place_N, place_N.new_zeros(size).index_copy(0, place_N, index_N))

    def places(self, token_M: Tensor) -> Tensor:
        """Return the places of some of the tokens."""
        return token_M if self.place_N is None else self.place_N[token_M]

    def spread(self, x_NHC: Tensor) -> Tensor:
        """Return the rectangle, ``(P, H, C)``."""
        return x_NHC if self.token_P is None else x_NHC.index_select(0, self.token_P)

    def collect(self, y_PHC: Tensor) -> Tensor:
        """Return the tokens out of the rectangle, ``(N, H, C)``."""
        return y_PHC if self.place_N is None else y_PHC.index_select(0, self.place_N)


def real_tokens(length_B: Tensor, T: int) -> Layout:
    """Return where the tokens of right-padded rows stand that are no padding."""
    # Nothing is padded: no index, no copy.
    if int(length_B.min()) == T:
        return Layout()
    position_T = torch.arange(T, device=length_B.device)
    return Layout.of((position_T < length_B[:, None]).flatten().nonzero().squeeze(1), len(length_B) * T)


@dataclass(frozen=True)
class Whole(Pass):
    """A pass over whole sequences: only real tokens run through the layers, attention alone sees them padded.

    ``run`` is where the tokens stand that run, ``read`` where those do that are read.
    """

    B: int
    T: int
    run: Layout
    read: Layout
    cache: Cache | None

    def attend(
        self, layer: int, q_MHC: Tensor, k_NHC: Tensor, v_NHC: Tensor, window: int, read_M: Tensor | None = None
    ) -> Tensor:
        asking = self.run if read_M is None else self.read
        k_BTHC, v_BTHC = (self._rows(self.run.spread(x)) for x in (k_NHC, v_NHC))
        if self.cache is not None:
            self.cache.fill(layer, k_BTHC, v_BTHC)
        q_BTHC = self._rows(asking.spread(q_MHC))
        y_BHTC = attend(q_BTHC.transpose(1, 2), k_BTHC.transpose(1, 2), v_BTHC.transpose(1, 2), window)
        return asking.collect(y_BHTC.transpose(1, 2).flatten(0, 1))

    def drop(self, x_MD: Tensor, rate: float, read_M: Tensor | None = None) -> Tensor:
        """Apply dropout with one mask a sequence, the same at every position (Gal & Ghahramani 2016, arXiv:1512.05287).

        Regularises as well as a mask a token here, and drawing T times fewer random numbers saves a seventh of a step.
        """
        if rate == 0:
            return x_MD
        # A mask a token took 14 % of a reward model's step in random numbers alone.
        keep_BD = torch.rand(self.B, x_MD.shape[1], device=x_MD.device) >= rate
        scale_BD, place_M = keep_BD.to(x_MD.dtype) / (1 - rate), (self.run if read_M is None else self.read).place_N
        if place_M is None:
            return (x_MD.view(self.B, self.T, -1) * scale_BD[:, None]).flatten(0, 1)
        # Place // T is the row: each token by its own sequence's mask.
        return x_MD * scale_BD[place_M // self.T]

    def _rows(self, x_PHC: Tensor) -> Tensor:
        return x_PHC.view(self.B, self.T, *x_PHC.shape[1:])


@dataclass(frozen=True)
class Step(Pass):
    """A decoding pass: one token behind each of the first rows of the cache, which sees its first ``used`` slots."""

    cache: Cache
    slot_N: Tensor
    used: int
    masks: dict[int, Tensor] = field(default_factory=dict)

    def attend(
        self, layer: int, q_MHC: Tensor, k_NHC: Tensor, v_NHC: Tensor, window: int, read_M: Tensor | None = None
    ) -> Tensor:
        cache, used = self.cache, self.used
        cache.append(layer, self.slot_N, k_NHC, v_NHC)
        (N, H, C), H_kv = q_MHC.shape, k_NHC.shape[1]
        keys_JSC, values_JSC = (stored[layer][:N].flatten(0, 1)[:, :used] for stored in (cache.keys, cache.values))
        # Query heads of one key head side by side: the cache is read once for all of them, never repeated.
        q_JGC = q_MHC.reshape(N * H_kv, H // H_kv, C)
        return attend_one(q_JGC, keys_JSC, values_JSC, self._mask(window, H_kv, keys_JSC.dtype)).reshape(N, H, C)

    def _mask(self, window: int, heads: int, dtype: torch.dtype) -> Tensor:
        """Return 0 at the cache slots that each row sees, -inf elsewhere, ``(J, 1, S)``.

        Built once a pass and window.
        """
        if window not in self.masks:
            slot_S, last_N1 = torch.arange(self.used, device=self.position_N.device), self.position_N[:, None]
            hidden_NS = slot_S > last_N1
            if window:
                hidden_NS |= slot_S <= last_N1 - window
            mask_NS = torch.zeros(hidden_NS.shape, dtype=dtype, device=hidden_NS.device)
            self.masks[window] = mask_NS.masked_fill_(hidden_NS, float("-inf")).repeat_interleave(heads, 0)[:, None]
        return self.masks[window]


def attend_one(q_JGC: Tensor, keys_JSC: Tensor, values_JSC: Tensor, mask_J1S: Tensor) -> Tensor:
    """Return what one token takes from a cache, ``(J, G, C)``.

    A key head's G query heads stand where tokens do elsewhere.

    The logits are fp32 whatever the type of the cache. On CPU by plain products in fp32: those in bf16 of so few rows
    take twice as long, and reading half as many bytes pays for the cast.
    """
    if q_JGC.device.type != "cpu":
        mask_JGS = mask_J1S.expand(-1, q_JGC.shape[1], -1)
        q, k, v, mask = (x[:, None] for x in (q_JGC, keys_JSC, values_JSC, mask_JGS))
        return F.scaled_dot_product_attention(q, k, v, mask)[:, 0]
    # The two products take 110 to 220 us (32 rows, 8 heads, 40 to 95 tokens), the fused kernel 150 to 280.
    q_JGC, keys_JSC, values_JSC, mask_J1S = (x.float() for x in (q_JGC, keys_JSC, values_JSC, mask_J1S))
    logits_JGS = torch.baddbmm(mask_J1S, q_JGC, keys_JSC.transpose(1, 2), alpha=q_JGC.shape[-1] ** -0.5)
    return torch.bmm(torch.softmax(logits_JGS, dim=-1), values_JSC)


def attend(q_BHTC: Tensor, k_BHTC: Tensor, v_BHTC: Tensor, window: int = 0) -> Tensor:
    """Return causal attention, over the last ``window`` positions where one is given.

    On CPU short batches by plain products: the backward of the fused kernel is slower there.
    """
    if rounds_by_hand(q_BHTC):
        return attend(q_BHTC.float(), k_BHTC.float(), v_BHTC.float(), window).to(q_BHTC.dtype)
    B, H, T, C = q_BHTC.shape
    grouped = k_BHTC.shape[1] != H
    if T > SHORT_TOKENS or q_BHTC.device.type != "cpu":
        if not window or window >= T:
            return F.scaled_dot_product_attention(q_BHTC, k_BHTC, v_BHTC, is_causal=True, enable_gqa=grouped)
        seen_TT = torch.ones(T, T, dtype=torch.bool, device=q_BHTC.device).tril().triu(1 - window)
        return F.scaled_dot_product_attention(q_BHTC, k_BHTC, v_BHTC, seen_TT, enable_gqa=grouped)
    if grouped:
        k_BHTC, v_BHTC = (x.repeat_interleave(H // k_BHTC.shape[1], dim=1) for x in (k_BHTC, v_BHTC))
    # The whole rectangle: leaving the masked half out, block by block, lost more in small products than it saved.
    hidden_TT = torch.full((T, T), float("-inf"), dtype=q_BHTC.dtype).triu(1)
    if window:
        hidden_TT += torch.full((T, T), float("-inf"), dtype=q_BHTC.dtype).tril(-window)
    # The scale on the queries, T x C numbers, not on the logits, T x T.
    q_NTC, k_NTC, v_NTC = (x.reshape(B * H, T, C) for x in (q_BHTC * C**-0.5, k_BHTC, v_BHTC))
    logits_NTT = torch.baddbmm(hidden_TT.expand(B * H, T, T), q_NTC, k_NTC.transpose(1, 2))
    return (softmax(logits_NTT) @ v_NTC).view(B, H, T, C)
