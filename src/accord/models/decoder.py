"""One decoder for the families of `accord.models.families`; and the two heads, which sit on any backbone.

Parameters carry Llama's Hugging Face names in every family.

Shapes: B sequences, T tokens, N real tokens of all sequences (row after row), M of them that are read, D width, V
vocabulary, H heads, C head width, F width of the feed-forward. How tokens run through it: `accord.models.forward`.
Rotary positions: Su et al. 2021 (arXiv:2104.09864); RMS norm: Zhang & Sennrich 2019 (arXiv:1910.07467).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from accord.algo.product import Product, prepacked
from accord.errors import DataError, UsageError
from accord.models.backbone import Backbone, Headed, Shape, without_context
from accord.models.forward import Cache, Layout, Pass, Step, Whole, real_tokens
from accord.models.fused import gated_linear, linear, rms_norm
from accord.models.lora import add_low_rank, is_adapted, merged_weight
from accord.models.lstm import LstmConfig, LstmTrunk
from accord.models.prefixes import shared_prefixes
from accord.models.shape import DecoderConfig, rotary_frequencies
from accord.models.transformers_adapter import ForeignConfig, ForeignTrunk
from accord.text.batches import Batch


class RMSNorm(nn.Module):
    """Root-mean-square norm in fp32, whatever the compute type."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # fp32: squares of bf16 summed over the width would keep two digits.
        return rms_norm(x.float(), self.weight, self.eps)


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


class Projections(nn.Module):
    """Linear maps under their Hugging Face names; maps of one input are one product.

    Products run in the compute type while the masters stay fp32: their joined, cast weights are built each pass, or
    held where they stand still under an adapter. `pack` lays them out for small products, the adapter merged, for the
    length of one rollout.
    """

    products: tuple[tuple[str, ...], ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self._packed: dict[tuple[str, ...], Product] = {}
        self._held: dict[tuple[str, ...], tuple[Tensor, Tensor | None]] = {}

    def product(self, parts: tuple[str, ...], x: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the maps named, side by side, of one input, with what their adapters add."""
        x, packed = x.to(dtype), self._packed.get(parts)
        if packed is not None:
            return packed(x)
        y = linear(x, *self.weights(parts, dtype))
        return add_low_rank(y, [getattr(self, part) for part in parts], x)

    def weights(self, parts: tuple[str, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Return joined, cast weights and biases of the maps named, without their adapters."""
        # Masters are fp32 (small steps vanish in bf16's 8 bits), products are not: cast anew each pass unless nothing
        # trains.
        return self._held.get(parts) or self._joined(parts, dtype)

    def pack(self, dtype: torch.dtype) -> None:
        """Lay out all products for decoding: valid only while the weights stand still."""
        # 1.6 times as quick at decoding's shapes (the head of 124 million weights, 32 rows).
        self._packed = {parts: prepacked(*self._joined(parts, dtype, merge=True)) for parts in self.products}

    def unpack(self) -> None:
        self._packed = {}

    def hold(self, dtype: torch.dtype) -> None:
        """Join and cast the weights once, as they stand still from now on under an adapter."""
        self._held = {parts: self._joined(parts, dtype) for parts in self.products}

    def release(self) -> None:
        """Undo `hold`."""
        self._held = {}

    def _joined(
        self, parts: tuple[str, ...], dtype: torch.dtype, *, merge: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        # Side by side in one matrix: one product reads its input once.
        layers: list[nn.Linear] = [getattr(self, part) for part in parts]
        weights = [(merged_weight(layer) if merge else layer.weight).to(dtype) for layer in layers]
        biases = [layer.bias.to(dtype) for layer in layers if layer.bias is not None]
        if len(parts) == 1:
            return weights[0], biases[0] if biases else None
        return torch.cat(weights), torch.cat(biases) if biases else None


class Attention(Projections):
    QKV, Q, KV, OUT = ("q_proj", "k_proj", "v_proj"), ("q_proj",), ("k_proj", "v_proj"), ("o_proj",)

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        q_width, kv_width = config.num_heads * config.head_width, config.num_kv_heads * config.head_width
        self.head_width, self.num_heads, self.num_kv_heads = config.head_width, config.num_heads, config.num_kv_heads
        self.layer, self.window = layer, config.window_of(layer)
        self.q_proj = nn.Linear(config.width, q_width, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.width, kv_width, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.width, kv_width, bias=config.qkv_bias)
        self.o_proj = nn.Linear(q_width, config.width, bias=config.out_bias)
        if config.qk_norm:
            self.q_norm, self.k_norm = (RMSNorm(config.head_width, config.norm_eps) for _ in range(2))
        self.qk_norm = config.qk_norm
        self.products = (self.QKV, self.OUT)

    def forward(self, x_ND: Tensor, run: Pass, read_M: Tensor | None = None) -> Tensor:
        """Return what the tokens read (None: all) take from the others, ``(M, D)``."""
        if read_M is None:
            qk_NHC, v_NHC = self._heads(self.QKV, x_ND, run).tensor_split((self.num_heads + self.num_kv_heads,), dim=1)
            if self.qk_norm:
                q_NHC, k_NHC = qk_NHC.tensor_split((self.num_heads,), dim=1)
                qk_NHC = torch.cat((self.q_norm(q_NHC), self.k_norm(k_NHC)), dim=1).to(run.dtype)
            q_MHC, k_NHC = run.rotate(qk_NHC).tensor_split((self.num_heads,), dim=1)
        else:
            k_NHC, v_NHC = self._heads(self.KV, x_ND, run).tensor_split((self.num_kv_heads,), dim=1)
            # The last block: keys and values of all tokens, but queries only of those that are read. A policy's loss
            # reads completions alone, a reward model's one token a text.
            q_MHC = self._heads(self.Q, x_ND.index_select(0, read_M), run)
            if self.qk_norm:
                q_MHC, k_NHC = self.q_norm(q_MHC).to(run.dtype), self.k_norm(k_NHC).to(run.dtype)
            q_MHC, k_NHC = run.rotate(q_MHC, read_M), run.rotate(k_NHC)
        y_MHC = run.attend(self.layer, q_MHC, k_NHC, v_NHC, self.window, read_M)
        return self.product(self.OUT, y_MHC.flatten(1), run.dtype)

    def _heads(self, parts: tuple[str, ...], x_ND: Tensor, run: Pass) -> Tensor:
        return self.product(parts, x_ND, run.dtype).view(len(x_ND), -1, self.head_width)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


def _nonlinearity(config: DecoderConfig) -> Callable[[Tensor], Tensor]:
    """Return what stands between the two layers of a feed-forward; a gated one gets gate and up side by side."""
    activation = ACTIVATIONS[config.activation]

    def gated(inner_NF: Tensor) -> Tensor:
        gate_NF, up_NF = inner_NF.chunk(2, dim=-1)
        return activation(gate_NF) * up_NF

    return gated if config.gated else activation


class FeedForward(Projections):
    """Two layers, or the gated unit of Shazeer 2020 (arXiv:2002.05202): down(act(gate(x)) * up(x))."""

    OUT = ("down_proj",)

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.inner = ("gate_proj", "up_proj") if config.gated else ("up_proj",)
        self.nonlinearity = _nonlinearity(config)
        self.swiglu = config.gated and config.activation == "silu"
        for part in self.inner:
            self.add_module(part, nn.Linear(config.width, config.ffn, bias=config.out_bias))
        self.down_proj = nn.Linear(config.ffn, config.width, bias=config.out_bias)
        self.products = (self.inner, self.OUT)

    def forward(self, x_ND: Tensor, dtype: torch.dtype) -> Tensor:
        inner_NF = self.product(self.inner, x_ND, dtype)
        # Its own backward keeps gate and up only; under an adapter the product of down_proj is not a plain one.
        if self.swiglu and torch.is_grad_enabled() and not is_adapted(self.down_proj):
            return gated_linear(inner_NF, *self.weights(self.OUT, dtype))
        return self.product(self.OUT, self.nonlinearity(inner_NF), dtype)


class Block(nn.Module):
    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = FeedForward(config)
        self.input_layernorm, self.post_attention_layernorm = norm_of(config), norm_of(config)
        self.parallel = config.parallel

    def forward(self, x_ND: Tensor, run: Pass, dropout: float, read_M: Tensor | None = None) -> Tensor:
        """Return the stream behind the block, of all tokens or only of those that are read."""
        x_MD = x_ND if read_M is None else x_ND.index_select(0, read_M)
        attended_MD = x_MD + run.drop(self.self_attn(self.input_layernorm(x_ND), run, read_M), dropout, read_M)
        # GPT-NeoX: both halves of a block read the same stream.
        seen_MD = self.post_attention_layernorm(x_MD if self.parallel else attended_MD)
        return attended_MD + run.drop(self.mlp(seen_MD, run.dtype), dropout, read_M)


class Trunk(nn.Module):
    """Token ids to hidden states: the backbone that is read most, behind the door of `accord.models.backbone`.

    ``checkpointing`` trades a second forward pass for the memory of the activations: only each block's input is kept
    (Chen 2016, arXiv:1604.06174).
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        if config.learned_positions:
            self.embed_positions = nn.Embedding(config.max_positions, config.width)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = norm_of(config)
        self.dropout = 0.0
        self.checkpointing = False
        self.compute_dtype = torch.float32
        frequency, gain = rotary_frequencies(config)
        angle = torch.outer(torch.arange(config.max_positions, dtype=torch.float32), frequency)
        # Angles in fp32: in bf16 that of position 400 would be off by up to a radian.
        cos, sin = angle.cos() * gain, angle.sin() * gain
        self.register_buffer("cos_PC", torch.cat((cos, cos), dim=-1), persistent=False)
        # The minus of rotate_half stands in the table: a turn is then one product and one fused add.
        self.register_buffer("sin_PC", torch.cat((-sin, sin), dim=-1), persistent=False)

    def forward(self, ids_BT: Tensor, length_B: Tensor | None = None, read_M: Tensor | None = None) -> Tensor:
        """Return hidden states in fp32, after the last norm, of the real tokens: ``(N, D)``, row after row.

        ``length_B`` says how many tokens of each row are real (None: all). ``read_M`` names those of the N that are
        wanted, ``(M, D)``: the last block computes no more. Padding costs nothing but attention, and what several rows
        begin with runs once (not under dropout, whose masks differ by row; that of an adapter draws one for a token).
        """
        return self._whole(ids_BT, length_B, read_M)

    def context_free(self, ids_N: Tensor) -> Tensor:
        """Return the normed embeddings: what the last norm would get if no block added anything."""
        out: Tensor = self.norm(self.embed_tokens(ids_N))
        return out

    def decoding(self, rows: int, slots: int) -> Cache:
        """Return room for ``rows`` sequences of ``slots`` tokens to be continued."""
        return Cache(self.config, rows, slots, self.compute_dtype, self.embed_tokens.weight.device)

    def prefill(self, cache: Cache, ids_PT: Tensor, length_P: Tensor, index_N: Tensor | None = None) -> Tensor:
        """Read prompts into new rows of the cache, each as often as the index names it (None: once).

        Returns the hidden state behind each new row's prompt, ``(N, D)``.
        """
        cache.enter(length_P, index_N)
        # Each prompt once, however many samples it gets: only its last state is read.
        last_PD = self._whole(ids_PT, length_P, length_P.cumsum(0) - 1, cache)
        return last_PD if index_N is None else last_PD[index_N]

    def step(self, cache: Cache, token_B: Tensor) -> Tensor:
        """Append one token to every row of the cache and return the hidden states behind them, ``(B, D)``."""

        def run(token_R: Tensor, length_R: Tensor, used: int) -> Tensor:
            slot_N = cache.slots_behind(length_R)
            return self._layers(token_R, Step(*self._rotation(length_R), self.compute_dtype, cache, slot_N, used))

        # A GPU decodes by recordings of few shapes: starting hundreds of small kernels takes longer than running them.
        if cache.fixed is not None and not torch.is_grad_enabled():
            hidden_BD = cache.fixed(run, token_B, cache.length_B, cache.longest)
        else:
            hidden_BD = run(token_B, cache.length_B, cache.longest + 1)
        cache.grow()
        return hidden_BD

    @contextmanager
    def packed(self) -> Iterator[None]:
        """Hold joined, cast weights, adapters merged, while decoding: valid only while the weights stand still."""
        with torch.no_grad():
            for module in self._projections():
                module.pack(self.compute_dtype)
        try:
            yield
        finally:
            for module in self._projections():
                module.unpack()

    def hold_base(self) -> None:
        """Join and cast the weights once, as they stand still from now on under an adapter.

        A training pass keeps these very tensors for its backward anyway, so its peak of memory does not rise.
        """
        with torch.no_grad():
            for module in self._projections():
                module.hold(self.compute_dtype)

    def release_base(self) -> None:
        """Let go of the weights that `hold_base` laid out; they are joined and cast in each pass again."""
        for module in self._projections():
            module.release()

    def freeze_embeddings(self) -> None:
        """Leave the tables of tokens and positions as they are from now on."""
        for name, parameter in self.named_parameters():
            if name.startswith("embed_"):
                parameter.requires_grad_(False)

    def init_weights(self, generator: torch.Generator) -> None:
        """GPT-2-style: N(0, 0.02), residual projections scaled down by sqrt(2 * layers); ones for norms."""
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                if name.endswith(".bias"):
                    nn.init.zeros_(parameter)
                continue
            residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            # 2 sums into the stream a block: so its variance at the end does not grow with depth.
            std = 0.02 / math.sqrt(2 * self.config.num_layers) if residual else 0.02
            with torch.no_grad():
                parameter.normal_(0.0, std, generator=generator)

    def _projections(self) -> list[Projections]:
        return [module for module in self.modules() if isinstance(module, Projections)]

    def _whole(
        self, ids_BT: Tensor, length_B: Tensor | None, read_M: Tensor | None, cache: Cache | None = None
    ) -> Tensor:
        (B, T), positions = ids_BT.shape, self.config.max_positions
        if positions < T:
            raise DataError(
                f"a sequence has {T} tokens but the model has {positions} positions",
                hint="shorten the text or use a model with a longer context",
            )
        length_B = ids_BT.new_full((B,), T) if length_B is None else length_B
        real = real_tokens(length_B, T)
        # Under dropout rows that begin alike have different masks, so nothing of them is the same.
        shared = None if self.training and self.dropout else shared_prefixes(ids_BT, length_B)
        run, read, token_M = shared or real, None, read_M
        if read_M is not None:
            place_M = real.places(read_M)
            read = Layout.of(place_M, B * T)
            token_M = place_M if run.token_P is None else run.token_P[place_M]
        ids_N, position_N = run.collect(ids_BT.flatten()), run.collect(torch.arange(T, device=ids_BT.device).repeat(B))
        rows = Whole(*self._rotation(position_N), self.compute_dtype, B, T, run, read or run, cache)
        out = self._layers(ids_N, rows, token_M)
        return out if shared is None or read_M is not None else real.collect(run.spread(out))

    def _rotation(self, position_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        cos_PC, sin_PC = self.get_buffer("cos_PC"), self.get_buffer("sin_PC")
        dtype = self.compute_dtype
        return position_N, cos_PC[position_N, None].to(dtype), sin_PC[position_N, None].to(dtype)

    def _layers(self, ids_N: Tensor, run: Pass, read_M: Tensor | None = None) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        x = self.embed_tokens(ids_N)
        if self.config.learned_positions:
            x = x + self.embed_positions(run.position_N)
        x = run.drop(x, dropout)
        *before, last = self.layers
        for layer, read in (*((layer, None) for layer in before), (last, read_M)):
            if self.checkpointing and torch.is_grad_enabled():
                # torch keeps the state of the random stream, so that the second pass drops the same.
                x = checkpoint(layer, x, run, dropout, read, use_reentrant=False)
            else:
                x = layer(x, run, dropout, read)
        out: Tensor = self.norm(x)
        return out


#: The backbone of each kind of shape.
BACKBONES: Mapping[type, Callable[[Any], Backbone]] = {
    DecoderConfig: Trunk,
    LstmConfig: LstmTrunk,
    ForeignConfig: ForeignTrunk,
}


class CausalLM(Headed):
    """A policy: backbone and vocabulary head. ``head_weight`` is the embedding itself when tied."""

    def __init__(self, config: Shape) -> None:
        super().__init__()
        self.config = config
        self.model = BACKBONES[type(config)](config)
        if not config.tied:
            self.lm_head = nn.Linear(config.width, config.vocab_size, bias=False)
        self._decoding = False

    def untie(self) -> None:
        """Give a model whose head is its embedding a head of its own, still to be filled."""
        if self.config.tied:
            self.config = replace(self.config, tied=False)  # type: ignore[type-var]
            self.lm_head = nn.Linear(self.config.width, self.config.vocab_size, bias=False)

    @property
    def head_weight_VD(self) -> Tensor:
        return self.model.embed_tokens.weight if self.config.tied else self.lm_head.weight

    @property
    def device(self) -> torch.device:
        return self.head_weight_VD.device

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Return logits ``(B, T, V)``, on its device: for small inputs and tests.

        Training goes through `predictions`.
        """
        return F.linear(self.model(ids_BT.to(self.device)), self.head_weight_VD).view(*ids_BT.shape, -1)

    def predictions(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return hidden states that predict a counted token, ``(N, D)``, the head ``(V, D)``, and those tokens.

        Both in the compute type: what `algo.logprob` turns into log-probabilities. All on its device, wherever the
        batch is.
        """
        dtype, device = self.model.compute_dtype, self.device
        flat_N, target_N = batch.predicting()
        hidden_ND = self.model(*(x.to(device) for x in (*batch.inputs(), flat_N)))
        return hidden_ND.to(dtype), self.head_weight_VD.to(dtype), target_N.to(device)

    @contextmanager
    def packed(self) -> Iterator[Product]:
        """Hold weights laid out for decoding; yields the map from hidden states to logits in the compute type.

        Raises UsageError where they are held already: who closes first would take them from the other.
        """
        dtype = self.model.compute_dtype
        if self._decoding:
            raise UsageError("another session is open on this model", hint="close it first: read its stream to the end")
        self._decoding = True
        try:
            with self.model.packed():
                head = prepacked(self.head_weight_VD.detach().to(dtype), None)
                yield lambda hidden_BD: head(hidden_BD.to(dtype))
        finally:
            self._decoding = False


class ScalarModel(Headed):
    """Backbone and one linear D -> 1 over every position: the reward model and the critic.

    Read at the last real token it is the score of the text; read at every position it is the value. A reward model may
    have several heads, an ensemble on one trunk. It takes ids from any device, and its numbers are on the CPU.
    """

    model: Backbone

    def __init__(self, config: Shape, heads: int = 1) -> None:
        super().__init__()
        self.config = config
        self.model = BACKBONES[type(config)](config)
        # No bias: comparisons leave the level free, and `reward.json` sets it.
        self.score = nn.Linear(config.width, heads, bias=False)

    def forward(self, ids_BT: Tensor, length_B: Tensor | None = None, read_M: Tensor | None = None) -> Tensor:
        """Return one number a real token, ``(N,)``, row after row, or for those read, ``(M,)``: as the backbone's.

        Of several heads one each, ``(N, heads)``.
        """
        length_B, read_M = (None if x is None else x.to(self.device) for x in (length_B, read_M))
        return self._numbers(self.model(ids_BT.to(self.device), length_B, read_M))

    def bag_of_words(self, ids_N: Tensor) -> Tensor:
        """Return the head on each token without its neighbours, ``(N,)``: what it says by itself."""
        return self._numbers(without_context(self.model, ids_N.to(self.device)))

    @property
    def device(self) -> torch.device:
        return self.score.weight.device

    def _numbers(self, hidden_MD: Tensor) -> Tensor:
        # On the CPU: losses, advantages and statistics over one number a token know no device.
        return F.linear(hidden_MD.float(), self.score.weight).squeeze(-1).cpu()

    @torch.no_grad()
    def merge_heads(self, gains: Sequence[float]) -> None:
        """Put one head in the place of all: their mean, each times its gain."""
        # A critic has one head, on the scale of the score; what level that is shows in its first rollout.
        gain_H1 = torch.tensor(gains, device=self.device)[:, None]
        self.score.weight = nn.Parameter((gain_H1 * self.score.weight).mean(0, keepdim=True))
        self.score.out_features = 1


def init_weights(model: CausalLM | ScalarModel, seed: int) -> None:
    """The start of training from scratch: what the backbone asks for, and N(0, 0.02) for the head."""
    generator = torch.Generator().manual_seed(seed)
    model.model.init_weights(generator)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("model."):
                # By a generator of its own: the start does not depend on what drew random numbers before.
                parameter.normal_(0.0, 0.02, generator=generator)


def init_score_head(model: ScalarModel, seed: int) -> None:
    """N(0, 1/sqrt(D+1)), as lm-human-preferences starts its reward head."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        # Stiennon's text says 1 / (D + 1); the code, and all that reproduced it, take the root.
        model.score.weight.normal_(0.0, 1 / math.sqrt(model.config.width + 1), generator=generator)
