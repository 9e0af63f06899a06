"""One decoder of the Llama family, with Hugging Face's parameter names, and the scalar head on the same trunk.

Shapes: B sequences, T tokens, D width, V vocabulary, H heads, C head width, S cache slots.
Sequences are padded on the right. With causal attention a padded token never reaches a real one, so training
needs no attention mask; decoding hides unused cache slots by each row's own length.
Rotary positions: Su et al. 2021 (arXiv:2104.09864); RMS norm: Zhang & Sennrich 2019 (arXiv:1910.07467).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accord.errors import DataError


@dataclass(frozen=True)
class DecoderConfig:
    """Shape of a decoder. Field names are ours; `from_hf` and `to_hf` translate ``config.json``."""

    vocab_size: int
    width: int
    ffn: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    max_positions: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    tied: bool = True

    @classmethod
    def from_hf(cls, raw: dict[str, Any], *, where: str = "config.json") -> DecoderConfig:
        """Read a Hugging Face ``config.json`` of a plain Llama. Raises DataError for anything else."""
        rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
        unsupported = [
            reason
            for bad, reason in (
                (raw.get("model_type") != "llama", f"model_type is {raw.get('model_type')!r}"),
                (rope.get("rope_type", rope.get("type", "default")) != "default", "rope scaling is on"),
                (raw.get("hidden_act", "silu") != "silu", f"hidden_act is {raw.get('hidden_act')!r}"),
                (raw.get("attention_bias") or raw.get("mlp_bias"), "projections have a bias"),
            )
            if bad
        ]
        if unsupported:
            raise DataError(
                "this checkpoint's architecture is not supported: " + ", ".join(unsupported),
                where=where,
                why="the decoder implements the plain Llama layout (Llama, SmolLM2) so far",
                mend="use a Llama-layout checkpoint, for example SmolLM2, or one that `accord pretrain` wrote",
            )
        heads = int(raw["num_attention_heads"])
        return cls(
            vocab_size=int(raw["vocab_size"]),
            width=int(raw["hidden_size"]),
            ffn=int(raw["intermediate_size"]),
            num_layers=int(raw["num_hidden_layers"]),
            num_heads=heads,
            num_kv_heads=int(raw.get("num_key_value_heads") or heads),
            head_width=int(raw.get("head_dim") or raw["hidden_size"] // heads),
            max_positions=int(raw.get("max_position_embeddings", 2048)),
            rope_theta=float(rope.get("rope_theta", raw.get("rope_theta", 10_000.0))),
            norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
            tied=bool(raw.get("tie_word_embeddings", False)),
        )

    def to_hf(self) -> dict[str, Any]:
        """The same shape as ``config.json`` entries, without the architecture's name."""
        return {
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.width,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_width,
            "max_position_embeddings": self.max_positions,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": self.norm_eps,
            "tie_word_embeddings": self.tied,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
        }


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


class Fused(nn.Module):
    """Several linear maps of one input as one product, kept under their Hugging Face names.

    `packed` holds the joined, cast weight for the length of one rollout; while training it is built each pass.
    """

    parts: tuple[str, ...] = ()
    packed: Tensor | None = None

    def fused(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return F.linear(x.to(dtype), self.packed if self.packed is not None else self.pack(dtype))

    def pack(self, dtype: torch.dtype) -> Tensor:
        return torch.cat([self.get_parameter(f"{part}.weight").to(dtype) for part in self.parts])


def attend(q_BHTC: Tensor, k_BHTC: Tensor, v_BHTC: Tensor) -> Tensor:
    """Causal attention. On CPU short batches by plain products: the backward of the fused kernel is slower there."""
    T = q_BHTC.shape[2]
    if T > 256 or q_BHTC.is_cuda:
        grouped = q_BHTC.shape[1] != k_BHTC.shape[1]
        return F.scaled_dot_product_attention(q_BHTC, k_BHTC, v_BHTC, is_causal=True, enable_gqa=grouped)
    repeats = q_BHTC.shape[1] // k_BHTC.shape[1]
    if repeats > 1:
        k_BHTC, v_BHTC = (x.repeat_interleave(repeats, dim=1) for x in (k_BHTC, v_BHTC))
    hidden_TT = torch.full((T, T), float("-inf"), dtype=q_BHTC.dtype).triu(1)
    logits_BHTT = (q_BHTC * q_BHTC.shape[-1] ** -0.5) @ k_BHTC.transpose(-1, -2) + hidden_TT
    return torch.softmax(logits_BHTT, dim=-1) @ v_BHTC


class Attention(Fused):
    parts = ("q_proj", "k_proj", "v_proj")

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        q_width, kv_width = config.num_heads * config.head_width, config.num_kv_heads * config.head_width
        self.head_width, self.num_heads, self.num_kv_heads = config.head_width, config.num_heads, config.num_kv_heads
        self.q_proj = nn.Linear(config.width, q_width, bias=False)
        self.k_proj = nn.Linear(config.width, kv_width, bias=False)
        self.v_proj = nn.Linear(config.width, kv_width, bias=False)
        self.o_proj = nn.Linear(q_width, config.width, bias=False)

    def forward(self, x_BTD: Tensor, rope: Rope, layer: int, cache: Cache | None) -> Tensor:
        B, T, _ = x_BTD.shape
        qkv_BHTC = self.fused(x_BTD, rope.dtype).view(B, T, -1, self.head_width).transpose(1, 2)
        rotated_BHTC, v_BHTC = qkv_BHTC.tensor_split((self.num_heads + self.num_kv_heads,), dim=1)
        q_BHTC, k_BHTC = rope.rotate(rotated_BHTC).tensor_split((self.num_heads,), dim=1)
        if cache is not None:
            cache.write(layer, k_BHTC, v_BHTC, prefill=rope.mask_B11S is None)
        if rope.mask_B11S is None:
            y_BHTC = attend(q_BHTC, k_BHTC, v_BHTC)
        else:
            assert cache is not None
            used = rope.mask_B11S.shape[-1]
            keys, values = cache.keys[layer][:, :, :used], cache.values[layer][:, :, :used]
            grouped = self.num_heads != self.num_kv_heads
            y_BHTC = F.scaled_dot_product_attention(q_BHTC, keys, values, rope.mask_B11S, enable_gqa=grouped)
        return F.linear(y_BHTC.transpose(1, 2).reshape(B, T, -1), self.o_proj.weight.to(rope.dtype))


@dataclass(frozen=True)
class Rope:
    """What all layers of one pass share: rotation tables, compute type and, while decoding, which slots count."""

    cos: Tensor
    sin: Tensor
    dtype: torch.dtype
    mask_B11S: Tensor | None = None

    def rotate(self, x_BHTC: Tensor) -> Tensor:
        half = x_BHTC.shape[-1] // 2
        turned = torch.cat((-x_BHTC[..., half:], x_BHTC[..., :half]), dim=-1)
        return x_BHTC * self.cos + turned * self.sin


class FeedForward(Fused):
    """Gated unit (Shazeer 2020, arXiv:2002.05202): down(silu(gate(x)) * up(x))."""

    parts = ("gate_proj", "up_proj")

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.ffn, bias=False)
        self.up_proj = nn.Linear(config.width, config.ffn, bias=False)
        self.down_proj = nn.Linear(config.ffn, config.width, bias=False)

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        gate, up = self.fused(x, dtype).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, self.down_proj.weight.to(dtype))


def drop(x_BTD: Tensor, rate: float) -> Tensor:
    """Dropout with one mask a sequence, the same at every position (Gal & Ghahramani 2016, arXiv:1512.05287).

    Regularises as well as a mask a token here, and drawing T times fewer random numbers saves a seventh of a step.
    """
    if rate == 0:
        return x_BTD
    keep_B1D = torch.rand(x_BTD.shape[0], 1, x_BTD.shape[2]) >= rate
    return x_BTD * (keep_B1D.to(x_BTD.dtype) / (1 - rate))


class Block(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = FeedForward(config)
        self.input_layernorm = RMSNorm(config.width, config.norm_eps)
        self.post_attention_layernorm = RMSNorm(config.width, config.norm_eps)

    def forward(self, x: Tensor, rope: Rope, layer: int, cache: Cache | None, dropout: float) -> Tensor:
        x = x + drop(self.self_attn(self.input_layernorm(x), rope, layer, cache), dropout)
        return x + drop(self.mlp(self.post_attention_layernorm(x), rope.dtype), dropout)


class Trunk(nn.Module):
    """Token ids to hidden states: the part that policy, reward model and critic share in shape."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.dropout = 0.0
        self.compute_dtype = torch.float32
        half = torch.arange(0, config.head_width, 2, dtype=torch.float32)
        angle = torch.outer(
            torch.arange(config.max_positions, dtype=torch.float32),
            config.rope_theta ** (-half / config.head_width),
        )
        table = torch.cat((angle, angle), dim=-1)
        self.register_buffer("cos_PC", table.cos(), persistent=False)
        self.register_buffer("sin_PC", table.sin(), persistent=False)

    def _rope(self, T: int, cache: Cache | None) -> Rope:
        dtype = self.compute_dtype
        cos, sin = self.get_buffer("cos_PC").to(dtype), self.get_buffer("sin_PC").to(dtype)
        if cache is None or int(cache.length_B.max()) == 0:
            return Rope(cos[:T], sin[:T], dtype)
        position_B = cache.length_B
        mask_BS = torch.arange(int(position_B.max()) + 1)[None] <= position_B[:, None]
        return Rope(cos[position_B][:, None, None], sin[position_B][:, None, None], dtype, mask_BS[:, None, None])

    @contextmanager
    def packed(self) -> Iterator[None]:
        """Hold joined, cast weights while decoding: valid only while the weights stand still."""
        fused = [m for m in self.modules() if isinstance(m, Fused)]
        for module in fused:
            module.packed = module.pack(self.compute_dtype).detach()
        try:
            yield
        finally:
            for module in fused:
                module.packed = None

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
        x = drop(self.embed_tokens(ids_BT), dropout)
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
