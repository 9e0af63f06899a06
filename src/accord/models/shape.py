"""The shape of a decoder: sizes, and the few choices by which the families differ."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Activation = Literal["silu", "gelu", "gelu_tanh"]


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched for contexts longer than those of pretraining. Names are Hugging Face's.

    ``linear``: all by ``factor`` (Chen 2023, arXiv:2306.15595). ``llama3``: only long waves, blended between
    ``low_freq_factor`` and ``high_freq_factor``. ``yarn``: by the number of turns within the old context, and the
    logits are sharpened (Peng 2023, arXiv:2309.00071).
    """

    kind: str
    factor: float = 1.0
    original_max_position_embeddings: float = 0.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 0.0

    def to_hf(self) -> dict[str, Any]:
        """Return the entries of ``rope_parameters`` that this kind has."""
        names = {
            "linear": (),
            "llama3": ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
            "yarn": ("original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor"),
        }[self.kind]
        values = {name: value for name, value in asdict(self).items() if name in names and value}
        if "original_max_position_embeddings" in values:
            values["original_max_position_embeddings"] = int(self.original_max_position_embeddings)
        return {"rope_type": self.kind, "factor": self.factor, **values}


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of a decoder and what sets its family apart; the defaults are Llama's.

    ``rotary_width`` is the rotated part of each head (None: all; 0: none). Layers marked in ``windowed`` look back
    over the last ``window`` positions only.
    """

    vocab_size: int
    width: int
    ffn: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    max_positions: int
    family: str = "llama"
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    rotary_width: int | None = None
    learned_positions: bool = False
    norm_eps: float = 1e-5
    layer_norm: bool = False
    tied: bool = True
    activation: Activation = "silu"
    gated: bool = True
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    parallel: bool = False
    window: int = 0
    windowed: tuple[bool, ...] = ()

    @property
    def turned_width(self) -> int:
        """Channels of each head that rotary positions turn."""
        return self.head_width if self.rotary_width is None else self.rotary_width

    def window_of(self, layer: int) -> int:
        """Return how far back a layer looks, 0 = over everything."""
        return self.window if self.windowed and self.windowed[layer] else 0


def rotary_frequencies(config: DecoderConfig) -> tuple[Tensor, float]:
    """Return the radians that a position turns each pair of channels, ``(rotary_width / 2,)``, and the tables' gain."""
    channel = torch.arange(0, config.turned_width, 2, dtype=torch.float32)
    plain = config.rope_theta ** (-channel / max(1, config.turned_width))
    scaling = config.rope_scaling
    if scaling is None:
        return plain, 1.0
    if scaling.kind == "linear":
        return plain / scaling.factor, 1.0
    old = scaling.original_max_position_embeddings or config.max_positions
    if scaling.kind == "llama3":
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        # By how often a wave turns within the old context: often stays as it is, less than once is stretched whole.
        kept = ((old * plain / (2 * math.pi) - low) / (high - low)).clamp(0, 1)
        return kept * plain + (1 - kept) * plain / scaling.factor, 1.0
    first, last = (
        config.turned_width * math.log(old / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))
        for turns in (scaling.beta_fast, scaling.beta_slow)
    )
    first, last = max(math.floor(first), 0), min(math.ceil(last), config.turned_width - 1)
    ramp = (torch.arange(config.turned_width // 2) - first) / max(last - first, 0.001)  # never 0 / 0
    kept = 1 - ramp.clamp(0, 1)
    # Both queries and keys carry it, so logits are sharpened by its square (YaRN).
    gain = scaling.attention_factor or 0.1 * math.log(max(scaling.factor, 1.0)) + 1.0
    return kept * plain + (1 - kept) * plain / scaling.factor, gain
