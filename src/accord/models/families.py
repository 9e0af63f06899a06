"""The families of checkpoints that are read and written without `transformers`, as rows of a table.

A row says how ``config.json`` describes the shape, and how the family names and packs its weights. Inside, every family
has Llama's names; a row turns them into its own and back without changing a bit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from accord.errors import DataError
from accord.models.lstm import LSTM, LstmConfig
from accord.models.shape import Activation, DecoderConfig, RopeScaling

Weights = dict[str, Tensor]
Raw = Mapping[str, Any]

ACTIVATION_NAMES: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    # Three names in `transformers` for one formula; plain gelu is the exact one.
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


@dataclass(frozen=True)
class Family:
    """How one ``model_type`` is read and written.

    ``language_model`` and ``classifier`` are its `transformers` classes. ``to_ours`` and ``to_theirs`` translate the
    weights of either; a classifier's head is ``score.weight`` everywhere. ``joined`` are the projections that lie in
    one matrix there, and ``transposed`` says that matrices are kept as (in, out).
    """

    language_model: str
    classifier: str
    read: Callable[[Raw], DecoderConfig | LstmConfig]
    write: Callable[[Any], dict[str, Any]]
    to_ours: Callable[[Weights, Any], Weights]
    to_theirs: Callable[[Weights, Any], Weights]
    joined: tuple[str, ...] = ()
    transposed: bool = False


def family_of(raw: Raw) -> Family | None:
    """Return the row of a ``config.json``, None where the table has none. Raises DataError for what nobody can read."""
    kind = raw.get("model_type")
    _refuse(("quantization_config" in raw, "quantised weights"))
    if not isinstance(kind, str):
        raise DataError(f"model_type is {kind!r}, not the name of an architecture", hint="give a Hugging Face folder")
    return FAMILIES.get(kind)


def _refuse(*checks: tuple[bool, str]) -> None:
    """Raise DataError with every reason that holds: a setting that is ignored would give wrong numbers silently."""
    if reasons := [reason for bad, reason in checks if bad]:
        raise DataError(
            "this checkpoint uses what the decoder does not know: " + ", ".join(reasons),
            hint="use another checkpoint of the family",
        )


# ---- sizes -------------------------------------------------------------------------------------------------------

MOST_LAYERS = 10_000  # GPT-3 has 96; of so many a list alone would fill the memory
MOST_OF_A_SIZE = 1 << 31
MOST_TABLE = 1 << 28  # numbers of a rotary table: a million positions of heads of 256


def require_sane(raw: object) -> None:
    """Raise DataError for a number of layers in a ``config.json`` that no list of layers should be made for."""
    top = raw if isinstance(raw, dict) else {}
    # Models of several parts describe each in a section of its own.
    for section in (top, *(value for value in top.values() if isinstance(value, dict))):
        for key, value in section.items():
            # Beyond the last layer none has a window: that number may be any.
            if key.endswith(("layer", "layers")) and key != "max_window_layers" and not _few(value):
                raise DataError(f"{key} is {str(value)[:40]}", why=f"no model has more than {MOST_LAYERS:,} layers")


def _few(value: object) -> bool:
    if isinstance(value, str):
        return not value.strip().isdigit() or len(value) < 5
    return not isinstance(value, int | float) or value <= MOST_LAYERS


def checked_shape(config: DecoderConfig | LstmConfig) -> DecoderConfig | LstmConfig:
    """Return a shape whose sizes can be those of a model. Raises DataError where they cannot."""
    sizes = {name: value for name, value in asdict(config).items() if type(value) is int and name not in _MAY_BE_0}
    bad = [f"{name} is {value}" for name, value in sizes.items() if not 0 < value < MOST_OF_A_SIZE]
    if isinstance(config, DecoderConfig) and not bad:
        bad = [reason for wrong, reason in _contradictions(config) if wrong]
    if bad:
        raise DataError("the sizes are no model's: " + ", ".join(bad), hint="copy the folder again, whole")
    return config


_MAY_BE_0 = frozenset(("window", "rotary_width", "tied"))


def _contradictions(config: DecoderConfig) -> Sequence[tuple[bool, str]]:
    turned, layers, positions = config.turned_width, config.num_layers, config.max_positions
    rope = [config.rope_theta, *(v for v in asdict(config.rope_scaling or _PLAIN).values() if isinstance(v, float))]
    return (
        (config.num_heads % config.num_kv_heads != 0, f"{config.num_heads} heads share {config.num_kv_heads} keys"),
        (not 0 <= turned <= config.head_width or turned % 2 != 0, f"{turned} of {config.head_width} channels turn"),
        (len(config.windowed) not in (0, layers), f"{len(config.windowed)} kinds of layers for {layers} layers"),
        (any(config.windowed) and not 0 < config.window < MOST_OF_A_SIZE, f"a window of {config.window} tokens"),
        (not 0 <= config.norm_eps < 1, f"the norms' epsilon is {config.norm_eps}"),
        (not all(0 <= value < math.inf for value in rope), "rotary positions that are no numbers"),
        (config.rope_theta <= 1 or (config.rope_scaling or _PLAIN).factor <= 0, "rotary positions without a base"),
        (positions * turned > MOST_TABLE, f"positions is {positions}: lower max_position_embeddings"),
    )


_PLAIN = RopeScaling("default")


# ---- rotary positions ------------------------------------------------------------------------------------------


def _rope(raw: Raw) -> dict[str, Any]:
    """Return base, scaling and rotated share, from either of the places where `transformers` has kept them."""
    found = rope_entries(raw)
    kind = found.get("rope_type", found.get("type", "default"))
    _refuse((kind not in ("default", "linear", "llama3", "yarn"), f"rope scaling of type {kind!r}"))
    scaling = None
    if kind != "default":
        names = RopeScaling.__dataclass_fields__.keys() - {"kind"}
        scaling = RopeScaling(str(kind), **{name: float(found[name]) for name in names if found.get(name) is not None})
        _refuse(
            (bool(found.get("mscale") or found.get("mscale_all_dim")), "rope scaling with mscale"),
            (found.get("truncate") is False, "rope scaling without truncation"),
        )
    theta = found.get("rope_theta", raw.get("rope_theta", raw.get("rotary_emb_base", 10_000.0)))
    return {"rope_theta": float(str(theta)), "rope_scaling": scaling}


def rope_entries(raw: Raw) -> dict[str, Any]:
    """Return what a config says of rotary positions, as `transformers` 5 reads it."""
    # It writes rope_parameters, 4 wrote rope_scaling. Who adds the old key to a new config wants it obeyed, so it
    # stands for the whole of the new one.
    found = dict(raw.get("rope_scaling") or raw.get("rope_parameters") or {})
    _refuse((any(isinstance(value, dict) for value in found.values()), "rotary positions that differ by layer"))
    return found


def _write_rope(config: DecoderConfig) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_scaling is not None:
        rope |= config.rope_scaling.to_hf()
    written: dict[str, Any] = {"rope_parameters": rope, "rope_theta": config.rope_theta}
    if config.rope_scaling is not None:  # where transformers 4 looks
        written["rope_scaling"] = config.rope_scaling.to_hf()
    return written


# ---- Llama, Mistral, Qwen --------------------------------------------------------------------------------------


def _read_llama_like(raw: Raw, **extra: Any) -> DecoderConfig:
    turned = rope_entries(raw).get("partial_rotary_factor", raw.get("partial_rotary_factor"))
    _refuse((turned not in (None, 1), "heads turned in part"))
    heads = int(raw["num_attention_heads"])
    return DecoderConfig(
        family=str(raw["model_type"]),
        vocab_size=int(raw["vocab_size"]),
        width=int(raw["hidden_size"]),
        ffn=int(raw["intermediate_size"]),
        num_layers=int(raw["num_hidden_layers"]),
        num_heads=heads,
        num_kv_heads=int(raw.get("num_key_value_heads") or heads),
        head_width=int(raw.get("head_dim") or raw["hidden_size"] // heads),
        max_positions=int(raw.get("max_position_embeddings", 2048)),
        norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        tied=bool(raw.get("tie_word_embeddings", False)),
        activation=_activation(raw.get("hidden_act", "silu")),
        **_rope(raw),
        **extra,
    )


def _write_llama_like(config: DecoderConfig) -> dict[str, Any]:
    return {
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.ffn,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_width,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "hidden_act": _hf_activation(config),
        **_write_rope(config),
    }


def _activation(name: str) -> Activation:
    _refuse((name not in ACTIVATION_NAMES, f"the activation {name!r}"))
    return ACTIVATION_NAMES[name]


def _hf_activation(config: DecoderConfig) -> str:
    return {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}[config.activation]


def _read_llama(raw: Raw) -> DecoderConfig:
    # The decoder has none there, and leaving one out would give wrong numbers silently.
    _refuse((bool(raw.get("attention_bias") or raw.get("mlp_bias")), "projections with a bias"))
    return _read_llama_like(raw)


def _write_llama(config: DecoderConfig) -> dict[str, Any]:
    return _write_llama_like(config) | {"attention_bias": False, "mlp_bias": False}


USUAL_WINDOW = 4096  # where `transformers` finds none named


def _layer_kinds(raw: Raw) -> list[bool]:
    """Return which layers have a window where the config says it layer by layer; [] where it does not."""
    kinds: Sequence[str] = raw.get("layer_types") or ()
    unknown = sorted({str(kind) for kind in kinds} - {"sliding_attention", "full_attention"})
    _refuse((bool(unknown), f"layers of the kind {', '.join(unknown)}"))
    return [kind == "sliding_attention" for kind in kinds]


def _read_mistral(raw: Raw) -> DecoderConfig:
    window = int(raw.get("sliding_window", USUAL_WINDOW) or 0)
    chosen = _layer_kinds(raw) or [True] * int(raw["num_hidden_layers"])
    return _read_llama_like(raw, window=window, windowed=tuple(chosen) if window else ())


def _write_mistral(config: DecoderConfig) -> dict[str, Any]:
    # Only where layers differ: `transformers` takes any other folder with this key for a Ministral.
    mixed = {"layer_types": _layer_types(config)} if len(set(config.windowed)) > 1 else {}
    return _write_llama_like(config) | {"sliding_window": config.window or None} | mixed


def _layer_types(config: DecoderConfig) -> list[str]:
    return ["sliding_attention" if config.window_of(i) else "full_attention" for i in range(config.num_layers)]


def _qwen_windows(raw: Raw) -> dict[str, Any]:
    layers, window = int(raw["num_hidden_layers"]), raw.get("sliding_window", USUAL_WINDOW)
    if not raw.get("use_sliding_window") or not window:
        return {}
    # The first layers see everything, the others a window: Qwen's reading of the key.
    first = int(raw.get("max_window_layers", layers))
    chosen = _layer_kinds(raw) or [layer >= first for layer in range(layers)]
    return {"window": int(window), "windowed": tuple(chosen)}


def _write_qwen(config: DecoderConfig) -> dict[str, Any]:
    return _write_llama_like(config) | {
        "use_sliding_window": bool(config.window),
        "sliding_window": config.window or None,
        "layer_types": _layer_types(config),
        "max_window_layers": config.num_layers - sum(config.windowed),
    }


def _read_qwen2(raw: Raw) -> DecoderConfig:
    return _read_llama_like(raw, qkv_bias=True, **_qwen_windows(raw))


def _read_qwen3(raw: Raw) -> DecoderConfig:
    _refuse((bool(raw.get("attention_bias")), "attention with a bias"))
    return _read_llama_like(raw, qk_norm=True, **_qwen_windows(raw))


def _without_buffers(weights: Weights, config: DecoderConfig) -> Weights:
    return {name: tensor for name, tensor in weights.items() if not name.endswith(".rotary_emb.inv_freq")}


def _unchanged(weights: Weights, config: DecoderConfig) -> Weights:
    return weights


# ---- GPT-2 -------------------------------------------------------------------------------------------------------

_GPT2_NAMES = (
    ("wte", "embed_tokens"),
    ("wpe", "embed_positions"),
    ("ln_f", "norm"),
    ("h", "layers"),
    ("ln_1", "input_layernorm"),
    ("ln_2", "post_attention_layernorm"),
    ("attn.c_proj", "self_attn.o_proj"),
    ("mlp.c_fc", "mlp.up_proj"),
    ("mlp.c_proj", "mlp.down_proj"),
)
_QKV = ("q_proj", "k_proj", "v_proj")


def _read_gpt2(raw: Raw) -> DecoderConfig:
    _refuse(
        (not raw.get("scale_attn_weights", True), "unscaled attention"),
        (bool(raw.get("scale_attn_by_inverse_layer_idx")), "attention scaled by layer"),
        (bool(raw.get("add_cross_attention")), "cross attention"),
    )
    width, heads = int(raw["n_embd"]), int(raw["n_head"])
    return DecoderConfig(
        family="gpt2",
        vocab_size=int(raw["vocab_size"]),
        width=width,
        ffn=int(raw.get("n_inner") or 4 * width),
        num_layers=int(raw["n_layer"]),
        num_heads=heads,
        num_kv_heads=heads,
        head_width=width // heads,
        max_positions=int(raw.get("n_positions", 1024)),
        norm_eps=float(raw.get("layer_norm_epsilon", 1e-5)),
        # GPT-2's default, where the other families' is false.
        tied=bool(raw.get("tie_word_embeddings", True)),
        activation=_activation(raw.get("activation_function", "gelu_new")),
        gated=False,
        layer_norm=True,
        learned_positions=True,
        rotary_width=0,
        qkv_bias=True,
        out_bias=True,
    )


def _write_gpt2(config: DecoderConfig) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_embd": config.width,
        "n_inner": config.ffn,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_positions": config.max_positions,
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "activation_function": "gelu_new" if config.activation == "gelu_tanh" else _hf_activation(config),
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }


def _gpt2_to_ours(weights: Weights, config: DecoderConfig) -> Weights:
    ours: Weights = {}
    for name, tensor in weights.items():
        if re.search(r"\.attn\.(masked_)?bias$", name):  # buffers of old checkpoints
            continue
        bare = name.removeprefix("transformer.")
        if bare in ("lm_head.weight", "score.weight"):
            ours[bare] = tensor
            continue
        if bare.endswith(".weight") and re.search(r"\.c_(attn|proj|fc)\.", bare):
            tensor = tensor.T.contiguous()  # Conv1D keeps (in, out)
        if ".attn.c_attn." in bare:
            for part, piece in zip(_QKV, tensor.chunk(3), strict=True):
                ours["model." + _renamed(bare.replace("attn.c_attn", f"self_attn.{part}"), _GPT2_NAMES)] = piece
        else:
            ours["model." + _renamed(bare, _GPT2_NAMES)] = tensor
    return ours


def _gpt2_to_theirs(weights: Weights, config: DecoderConfig) -> Weights:
    theirs: Weights = {}
    back = [(ours, name) for name, ours in _GPT2_NAMES]
    for name, tensor in weights.items():
        if re.search(r"\.self_attn\.[kv]_proj\.", name):
            continue  # joined with q below
        if ".self_attn.q_proj." in name:
            tensor = torch.cat([weights[name.replace("q_proj", part)] for part in _QKV])
            name = name.replace("self_attn.q_proj", "attn.c_attn")
        bare = name.removeprefix("model.")
        renamed = bare if name == bare else f"transformer.{_renamed(bare, back)}"
        if renamed.endswith(".weight") and re.search(r"\.c_(attn|proj|fc)\.", renamed):
            tensor = tensor.T
        theirs[renamed] = tensor.contiguous()
    return theirs


def _renamed(name: str, pairs: Sequence[tuple[str, str]]) -> str:
    """Replace whole dotted parts of a name."""
    dotted = f".{name}."
    for old, new in pairs:
        dotted = dotted.replace(f".{old}.", f".{new}.", 1)
    return dotted[1:-1]


# ---- GPT-NeoX (Pythia) -------------------------------------------------------------------------------------------

_NEOX_NAMES = (
    ("embed_in", "embed_tokens"),
    ("final_layer_norm", "norm"),
    ("attention.dense", "self_attn.o_proj"),
    ("mlp.dense_h_to_4h", "mlp.up_proj"),
    ("mlp.dense_4h_to_h", "mlp.down_proj"),
)


def _read_neox(raw: Raw) -> DecoderConfig:
    _refuse((not raw.get("attention_bias", True), "attention without a bias"))
    width, heads = int(raw["hidden_size"]), int(raw["num_attention_heads"])
    # A quarter of each head turns in Pythia.
    share = rope_entries(raw).get("partial_rotary_factor", raw.get("rotary_pct", 0.25))
    return DecoderConfig(
        family="gpt_neox",
        vocab_size=int(raw["vocab_size"]),
        width=width,
        ffn=int(raw["intermediate_size"]),
        num_layers=int(raw["num_hidden_layers"]),
        num_heads=heads,
        num_kv_heads=heads,
        head_width=width // heads,
        max_positions=int(raw.get("max_position_embeddings", 2048)),
        norm_eps=float(raw.get("layer_norm_eps", 1e-5)),
        tied=bool(raw.get("tie_word_embeddings", False)),
        activation=_activation(raw.get("hidden_act", "gelu")),
        gated=False,
        layer_norm=True,
        rotary_width=int(width // heads * float(str(share))),
        qkv_bias=True,
        out_bias=True,
        parallel=bool(raw.get("use_parallel_residual", True)),
        **_rope(raw),
    )


def _write_neox(config: DecoderConfig) -> dict[str, Any]:
    return {
        "model_type": "gpt_neox",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.ffn,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "max_position_embeddings": config.max_positions,
        "layer_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "hidden_act": _hf_activation(config),
        "use_parallel_residual": config.parallel,
        "attention_bias": True,
        "rotary_pct": config.turned_width / config.head_width,  # where transformers 4 looks
        "rotary_emb_base": config.rope_theta,
        "rope_parameters": _write_rope(config)["rope_parameters"]
        | {"partial_rotary_factor": config.turned_width / config.head_width},
    }


def _neox_to_ours(weights: Weights, config: DecoderConfig) -> Weights:
    ours: Weights = {}
    for name, tensor in weights.items():
        if re.search(r"\.attention\.(masked_bias|bias|rotary_emb\.inv_freq)$", name):  # buffers of old checkpoints
            continue
        if name in ("embed_out.weight", "lm_head.weight"):
            ours["lm_head.weight"] = tensor
        elif name == "score.weight":
            ours[name] = tensor
        elif ".attention.query_key_value." in name:  # each head's q, k and v lie together
            heads = tensor.view(config.num_heads, 3, config.head_width, *tensor.shape[1:])
            for index, part in enumerate(_QKV):
                renamed = name.replace("attention.query_key_value", f"self_attn.{part}")
                ours[_of_neox(renamed)] = heads[:, index].reshape(-1, *tensor.shape[1:])
        else:
            ours[_of_neox(name)] = tensor
    return ours


def _of_neox(name: str) -> str:
    return "model." + _renamed(name.removeprefix("gpt_neox."), _NEOX_NAMES)


def _neox_to_theirs(weights: Weights, config: DecoderConfig) -> Weights:
    theirs: Weights = {}
    back = [(ours, name) for name, ours in _NEOX_NAMES]
    for name, tensor in weights.items():
        if re.search(r"\.self_attn\.[kv]_proj\.", name):
            continue  # joined with q below
        if ".self_attn.q_proj." in name:
            parts = [weights[name.replace("q_proj", part)] for part in _QKV]
            heads = [part.reshape(config.num_heads, 1, config.head_width, *part.shape[1:]) for part in parts]
            tensor = torch.cat(heads, dim=1).reshape(-1, *tensor.shape[1:])
            name = name.replace("self_attn.q_proj", "attention.query_key_value")
        bare = name.removeprefix("model.")
        renamed = {"lm_head.weight": "embed_out.weight"}.get(name, name)
        theirs[renamed if name == bare else f"gpt_neox.{_renamed(bare, back)}"] = tensor.contiguous()
    return theirs


# ---- the LSTM -------------------------------------------------------------------------------------------------------


def _read_lstm(raw: Raw) -> LstmConfig:
    return LstmConfig(
        vocab_size=int(raw["vocab_size"]),
        width=int(raw["width"]),
        num_layers=int(raw["num_layers"]),
        max_positions=int(raw["max_positions"]),
        tied=bool(raw["tied"]),
    )


def _write_lstm(config: LstmConfig) -> dict[str, Any]:
    values = asdict(config)
    return {"model_type": values.pop("family"), **values}


def _named(prefix: str) -> tuple[str, str]:
    return f"{prefix}ForCausalLM", f"{prefix}ForSequenceClassification"


_GPT2 = ("GPT2LMHeadModel", "GPT2ForSequenceClassification")

FAMILIES: dict[str, Family] = {
    "llama": Family(*_named("Llama"), _read_llama, _write_llama, _without_buffers, _unchanged),
    "mistral": Family(*_named("Mistral"), _read_mistral, _write_mistral, _without_buffers, _unchanged),
    "qwen2": Family(*_named("Qwen2"), _read_qwen2, _write_qwen, _without_buffers, _unchanged),
    "qwen3": Family(*_named("Qwen3"), _read_qwen3, _write_qwen, _without_buffers, _unchanged),
    "gpt2": Family(*_GPT2, _read_gpt2, _write_gpt2, _gpt2_to_ours, _gpt2_to_theirs, _QKV, True),
    "gpt_neox": Family(*_named("GPTNeoX"), _read_neox, _write_neox, _neox_to_ours, _neox_to_theirs, _QKV),
    LSTM: Family(*_named("AccordLstm"), _read_lstm, _write_lstm, _unchanged, _unchanged),
}
