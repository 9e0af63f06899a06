"""One decoder for the families of `accord.models.families`, and the scalar head on the same trunk.

Parameters carry Llama's Hugging Face names in every family.

Shapes: B sequences, T tokens, D width, V vocabulary, H heads, C head width, S cache slots.
Sequences are padded on the right. With causal attention a padded token never reaches a real one, so training
needs no attention mask; decoding hides unused cache slots by each row's own length.
Rotary positions: Su et al. 2021 (arXiv:2104.09864); RMS norm: Zhang & Sennrich 2019 (arXiv:1910.07467).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accord.errors import DataError
from accord.models.lora import add_low_rank, merged_weight
from accord.models.shape import DecoderConfig, rotary_frequencies


class Cache:
    """Preallocated keys and values of B rows, one pair of ``(B, H_kv, S, C)`` tensors a layer.

    ``length_B`` counts the filled slots of each row; rows differ because prompts do.
    """

    def __init__(self, config: DecoderConfig, rows: int, slots: int, dtype: torch.dtype) -> None:
        shape = (rows, config.num_kv_heads, slots, config.head_width)
        self.keys = [torch.zeros(shape, dtype=dtype) for _ in range(config.num_layers)]
        self.values = [torch.zeros(shape, dtype=dtype) for _ in range(config.num_layers)]
        self.length_B = torch.zeros(rows, dtype=torch.long)

    def write(self, layer: int, k_BHTC: Tensor, v_BHTC: Tensor, *, prefill: bool) -> None:
        """Store new keys and values: a whole prompt from slot 0, or one token at each row's length."""
        T = k_BHTC.shape[2]
        for store, new_BHTC in ((self.keys, k_BHTC), (self.values, v_BHTC)):
            if prefill:
                store[layer][:, :, :T] = new_BHTC
            else:
                store[layer][torch.arange(len(self.length_B)), :, self.length_B] = new_BHTC[:, :, 0]

    def keep(self, index_N: Tensor) -> None:
        """Keep (and repeat, where the index repeats) the rows named; their order is the index's."""
        self.keys = [k[index_N] for k in self.keys]
        self.values = [v[index_N] for v in self.values]
        self.length_B = self.length_B[index_N]


class RMSNorm(nn.Module):
    """Root-mean-square norm in fp32, whatever the compute type."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps)


class LayerNorm(nn.Module):
    """Mean and deviation norm in fp32, whatever the compute type."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), self.weight.shape, self.weight, self.bias, self.eps)


def norm_of(config: DecoderConfig) -> nn.Module:
    return (LayerNorm if config.layer_norm else RMSNorm)(config.width, config.norm_eps)


class Fused(nn.Module):
    """Linear maps under their Hugging Face names; those that read one input run as one product.

    Products run in the compute type while the masters stay fp32: their joined, cast weights are built each pass, or
    held in ``packed`` while the masters stand still. ``merged`` says that adapters are in what is held.
    """

    products: tuple[tuple[str, ...], ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.packed: dict[tuple[str, ...], tuple[Tensor, Tensor | None]] = {}
        self.merged = False

    def product(self, x: Tensor, dtype: torch.dtype, parts: tuple[str, ...]) -> Tensor:
        """The product of the parts, side by side, with what their adapters add."""
        x = x.to(dtype)
        y = F.linear(x, *(self.packed.get(parts) or self._join(parts, dtype, merge=False)))
        return y if self.merged else add_low_rank(y, [getattr(self, part) for part in parts], x)

    def pack(self, dtype: torch.dtype, *, merge: bool) -> None:
        with torch.no_grad():
            self.packed = {parts: self._join(parts, dtype, merge=merge) for parts in self.products}
        self.merged = merge

    def unpack(self) -> None:
        self.packed, self.merged = {}, False

    def _join(self, parts: tuple[str, ...], dtype: torch.dtype, *, merge: bool) -> tuple[Tensor, Tensor | None]:
        layers = [getattr(self, part) for part in parts]
        weights = [(merged_weight(layer) if merge else layer.weight).to(dtype) for layer in layers]
        biases = [layer.bias.to(dtype) for layer in layers if layer.bias is not None]
        if len(parts) == 1:
            return weights[0], biases[0] if biases else None
        return torch.cat(weights), torch.cat(biases) if biases else None


def attend(q_BHTC: Tensor, k_BHTC: Tensor, v_BHTC: Tensor, window: int = 0) -> Tensor:
    """Causal attention, over the last ``window`` positions where one is given.

    On CPU short batches by plain products: the backward of the fused kernel is slower there.
    """
    T = q_BHTC.shape[2]
    grouped = q_BHTC.shape[1] != k_BHTC.shape[1]
    if T > 256 or q_BHTC.is_cuda:
        if not window or window >= T:
            return F.scaled_dot_product_attention(q_BHTC, k_BHTC, v_BHTC, is_causal=True, enable_gqa=grouped)
        seen_TT = torch.ones(T, T, dtype=torch.bool, device=q_BHTC.device).tril().triu(1 - window)
        return F.scaled_dot_product_attention(q_BHTC, k_BHTC, v_BHTC, seen_TT, enable_gqa=grouped)
    if grouped:
        repeats = q_BHTC.shape[1] // k_BHTC.shape[1]
        k_BHTC, v_BHTC = (x.repeat_interleave(repeats, dim=1) for x in (k_BHTC, v_BHTC))
    hidden_TT = torch.full((T, T), float("-inf"), dtype=q_BHTC.dtype).triu(1)
    if window:
        hidden_TT += torch.full((T, T), float("-inf"), dtype=q_BHTC.dtype).tril(-window)
    logits_BHTT = (q_BHTC * q_BHTC.shape[-1] ** -0.5) @ k_BHTC.transpose(-1, -2) + hidden_TT
    return torch.softmax(logits_BHTT, dim=-1) @ v_BHTC


class Attention(Fused):
    products = (("q_proj", "k_proj", "v_proj"), ("o_proj",))

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        q_width, kv_width = config.num_heads * config.head_width, config.num_kv_heads * config.head_width
        self.head_width, self.num_heads, self.num_kv_heads = config.head_width, config.num_heads, config.num_kv_heads
        self.window = config.window_of(layer)
        self.q_proj = nn.Linear(config.width, q_width, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.width, kv_width, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.width, kv_width, bias=config.qkv_bias)
        self.o_proj = nn.Linear(q_width, config.width, bias=config.out_bias)
        if config.qk_norm:
            self.q_norm, self.k_norm = (RMSNorm(config.head_width, config.norm_eps) for _ in range(2))
        self.qk_norm = config.qk_norm

    def forward(self, x_BTD: Tensor, rope: Rope, layer: int, cache: Cache | None) -> Tensor:
        B, T, _ = x_BTD.shape
        qkv_BHTC = self.product(x_BTD, rope.dtype, self.products[0]).view(B, T, -1, self.head_width).transpose(1, 2)
        rotated_BHTC, v_BHTC = qkv_BHTC.tensor_split((self.num_heads + self.num_kv_heads,), dim=1)
        if self.qk_norm:
            q_BHTC, k_BHTC = rotated_BHTC.tensor_split((self.num_heads,), dim=1)
            rotated_BHTC = torch.cat((self.q_norm(q_BHTC), self.k_norm(k_BHTC)), dim=1).to(rope.dtype)
        q_BHTC, k_BHTC = rope.rotate(rotated_BHTC).tensor_split((self.num_heads,), dim=1)
        if cache is not None:
            cache.write(layer, k_BHTC, v_BHTC, prefill=rope.position_B is None)
        if rope.position_B is None:
            y_BHTC = attend(q_BHTC, k_BHTC, v_BHTC, self.window)
        else:
            assert cache is not None
            mask_B11S = rope.mask(self.window)
            used = mask_B11S.shape[-1]
            keys, values = cache.keys[layer][:, :, :used], cache.values[layer][:, :, :used]
            grouped = self.num_heads != self.num_kv_heads
            y_BHTC = F.scaled_dot_product_attention(q_BHTC, keys, values, mask_B11S, enable_gqa=grouped)
        return self.product(y_BHTC.transpose(1, 2).reshape(B, T, -1), rope.dtype, ("o_proj",))


@dataclass(frozen=True)
class Rope:
    """What all layers of one pass share: rotation tables, compute type and, while decoding, each row's position."""

    cos: Tensor
    sin: Tensor
    dtype: torch.dtype
    position_B: Tensor | None = None
    masks: dict[int, Tensor] = field(default_factory=dict)

    def rotate(self, x_BHTC: Tensor) -> Tensor:
        """Turn the first channels of each head, as many as the tables have."""
        width = self.cos.shape[-1]
        if width == 0:
            return x_BHTC
        if width < x_BHTC.shape[-1]:
            turned, rest = x_BHTC.tensor_split((width,), dim=-1)
            return torch.cat((self.rotate(turned), rest), dim=-1)
        half = width // 2
        turned = torch.cat((-x_BHTC[..., half:], x_BHTC[..., :half]), dim=-1)
        return x_BHTC * self.cos + turned * self.sin

    def mask(self, window: int) -> Tensor:
        """Which cache slots a decoding step sees, ``(B, 1, 1, S)``; built once a pass and window."""
        assert self.position_B is not None
        if window not in self.masks:
            slot_S, last_B1 = torch.arange(int(self.position_B.max()) + 1), self.position_B[:, None]
            seen_BS = slot_S <= last_B1
            if window:
                seen_BS &= slot_S > last_B1 - window
            self.masks[window] = seen_BS[:, None, None]
        return self.masks[window]


GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


class FeedForward(Fused):
    """Two layers, or the gated unit of Shazeer 2020 (arXiv:2002.05202): down(act(gate(x)) * up(x))."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        opening = ("gate_proj", "up_proj") if config.gated else ("up_proj",)
        self.products = (opening, ("down_proj",))
        self.activation = GATES[config.activation]
        for part in opening:
            self.add_module(part, nn.Linear(config.width, config.ffn, bias=config.out_bias))
        self.down_proj = nn.Linear(config.ffn, config.width, bias=config.out_bias)

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        opening, closing = self.products
        inner = self.product(x, dtype, opening)
        if len(opening) == 1:
            return self.product(self.activation(inner), dtype, closing)
        gate, up = inner.chunk(2, dim=-1)
        return self.product(self.activation(gate) * up, dtype, closing)


def drop(x_BTD: Tensor, rate: float) -> Tensor:
    """Dropout with one mask a sequence, the same at every position (Gal & Ghahramani 2016, arXiv:1512.05287).

    Regularises as well as a mask a token here, and drawing T times fewer random numbers saves a seventh of a step.
    """
    if rate == 0:
        return x_BTD
    keep_B1D = torch.rand(x_BTD.shape[0], 1, x_BTD.shape[2]) >= rate
    return x_BTD * (keep_B1D.to(x_BTD.dtype) / (1 - rate))


class Block(nn.Module):
    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = FeedForward(config)
        self.input_layernorm, self.post_attention_layernorm = norm_of(config), norm_of(config)
        self.parallel = config.parallel

    def forward(self, x: Tensor, rope: Rope, layer: int, cache: Cache | None, dropout: float) -> Tensor:
        attended = x + drop(self.self_attn(self.input_layernorm(x), rope, layer, cache), dropout)
        read = x if self.parallel else attended
        return attended + drop(self.mlp(self.post_attention_layernorm(read), rope.dtype), dropout)


class Trunk(nn.Module):
    """Token ids to hidden states: the part that policy, reward model and critic share in shape."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        if config.learned_positions:
            self.embed_positions = nn.Embedding(config.max_positions, config.width)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = norm_of(config)
        self.dropout = 0.0
        self.compute_dtype = torch.float32
        self.base_stands = False
        frequency, gain = rotary_frequencies(config)
        angle = torch.outer(torch.arange(config.max_positions, dtype=torch.float32), frequency)
        table = torch.cat((angle, angle), dim=-1)
        self.register_buffer("cos_PC", table.cos() * gain, persistent=False)
        self.register_buffer("sin_PC", table.sin() * gain, persistent=False)

    def _rope(self, T: int, cache: Cache | None) -> Rope:
        dtype = self.compute_dtype
        cos, sin = self.get_buffer("cos_PC").to(dtype), self.get_buffer("sin_PC").to(dtype)
        if cache is None or int(cache.length_B.max()) == 0:
            return Rope(cos[:T], sin[:T], dtype)
        position_B = cache.length_B.clone()
        return Rope(cos[position_B][:, None, None], sin[position_B][:, None, None], dtype, position_B)

    @contextmanager
    def packed(self) -> Iterator[None]:
        """Hold joined, cast weights, adapters merged, while decoding: valid only while the weights stand still."""
        fused = [m for m in self.modules() if isinstance(m, Fused)]
        for module in fused:
            module.pack(self.compute_dtype, merge=True)
        try:
            yield
        finally:
            for module in fused:
                module.unpack()
            if self.base_stands:
                self.hold_base()

    def freeze_embeddings(self) -> None:
        """Leave the tables of tokens and positions as they are from now on."""
        for name, parameter in self.named_parameters():
            if name.startswith("embed_"):
                parameter.requires_grad_(False)

    def hold_base(self) -> None:
        """Join and cast the weights once, as they stand still from now on under an adapter.

        A training pass keeps these very tensors for its backward anyway, so its peak of memory does not rise.
        """
        self.base_stands = True
        for module in self.modules():
            if isinstance(module, Fused):
                module.pack(self.compute_dtype, merge=False)

    def forward(self, ids_BT: Tensor, cache: Cache | None = None) -> Tensor:
        """Hidden states ``(B, T, D)`` in fp32, after the last norm.

        With a cache, either the first call (prefill; set ``cache.length_B`` afterwards to the prompts' lengths)
        or one token a row, written at ``cache.length_B``.
        """
        if ids_BT.shape[1] > self.config.max_positions:
            raise DataError(
                f"a sequence has {ids_BT.shape[1]} tokens but the model has {self.config.max_positions} positions",
                mend="shorten the text or use a model with a longer context",
            )
        rope = self._rope(ids_BT.shape[1], cache)
        dropout = self.dropout if self.training else 0.0
        x = self.embed_tokens(ids_BT)
        if self.config.learned_positions:
            T = ids_BT.shape[1]
            x = x + self.embed_positions(torch.arange(T) if rope.position_B is None else rope.position_B[:, None])
        x = drop(x, dropout)
        for index, layer in enumerate(self.layers):
            x = layer(x, rope, index, cache, dropout)
        out: Tensor = self.norm(x)
        return out


class CausalLM(nn.Module):
    """A policy: trunk and vocabulary head. ``head_weight`` is the embedding itself when tied."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Trunk(config)
        if not config.tied:
            self.lm_head = nn.Linear(config.width, config.vocab_size, bias=False)

    @property
    def head_weight_VD(self) -> Tensor:
        return self.model.embed_tokens.weight if self.config.tied else self.lm_head.weight

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Logits ``(B, T, V)``: for small inputs and tests. Training goes through `algo.logprob.token_logp`."""
        return F.linear(self.model(ids_BT), self.head_weight_VD)


class ScalarModel(nn.Module):
    """Trunk and one linear D -> 1 over every position: the reward model and the critic.

    Read at the last real token it is the score of the text; read at every position it is the value.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Trunk(config)
        self.score = nn.Linear(config.width, 1, bias=False)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """One number a position, ``(B, T)``."""
        hidden_BTD = self.model(ids_BT)
        return F.linear(hidden_BTD.float(), self.score.weight).squeeze(-1)

    def bag_of_words(self, ids_BT: Tensor) -> Tensor:
        """The head on the normed token embeddings alone, ``(B, T)``: what each token says by itself."""
        bare_BTD = self.model.norm(self.model.embed_tokens(ids_BT))
        return F.linear(bare_BTD.float(), self.score.weight).squeeze(-1)


def init_weights(model: nn.Module, seed: int) -> None:
    """GPT-2-style start: N(0, 0.02), residual projections scaled down by sqrt(2 * layers); ones for norms."""
    generator = torch.Generator().manual_seed(seed)
    layers = next(m.config.num_layers for m in model.modules() if isinstance(m, Trunk))
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            if name.endswith(".bias"):
                nn.init.zeros_(parameter)
            continue
        residual = name.endswith(("o_proj.weight", "down_proj.weight"))
        std = 0.02 / math.sqrt(2 * layers) if residual else 0.02
        with torch.no_grad():
            parameter.normal_(0.0, std, generator=generator)


def init_score_head(model: ScalarModel, seed: int) -> None:
    """N(0, 1/sqrt(D+1)), as lm-human-preferences starts its reward head."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        model.score.weight.normal_(0.0, 1 / math.sqrt(model.config.width + 1), generator=generator)
