"""A Llama in llama.cpp's GGUF format becomes a Hugging Face folder, which Accord and `transformers` open.

A GGUF file holds shape, tokenizer, chat template and weights, most of them quantised in blocks. The weights are
dequantised to fp32, exactly as they act in llama.cpp; what quantisation lost stays lost.

Known are the architecture ``llama`` and byte-level BPE. Whatever else a file says is refused: a setting that is left
out would give wrong numbers silently.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from gguf import GGUFReader, TokenType
from gguf.quants import dequantize
from safetensors.torch import save_file
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
from torch import Tensor

from accord.errors import DataError
from accord.files import sha256_file, write_folder, write_json
from accord.models.decoder import CausalLM
from accord.models.families import FAMILIES, checked_shape
from accord.models.gguf_layout import require_lengths
from accord.models.shape import DecoderConfig
from accord.progress import Log, quiet

Meta = Mapping[str, Any]

_SHAPE_KEYS = frozenset(
    "llama." + key
    for key in (
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.layer_norm_rms_epsilon",
        "attention.value_length",
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "rope.dimension_count",
        "rope.freq_base",
        "vocab_size",
    )
)
_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# How a text is cut before GPT-2's own cut into words, by llama.cpp's name of the rule.
_CUTS: dict[str, tuple[pre_tokenizers.PreTokenizer, ...]] = {
    "gpt-2": (),
    # As llama.cpp cuts. transformers 5.23 does not know this rule and cuts as GPT-2, which parts two spaces before a
    # digit: 6 of 2,030 paragraphs differ.
    "smollm": (pre_tokenizers.Digits(individual_digits=True),),
}
# Tokens that end a text or a turn wherever they are control tokens; llama.cpp stops at them too.
_ENDS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>")
_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def convert(
    source: Path,
    folder: Path,
    *,
    title: str = "",
    licence: str = "",
    origin: str = "",
    log: Log = quiet,
) -> None:
    """Write the model of a GGUF file as a Hugging Face folder, whole or not at all.

    All weights are in memory at once, in fp32: four bytes a weight.

    Args:
        source: The GGUF file.
        folder: Where the folder is written; an older one is replaced.
        title, licence, origin: What the model card says of the weights; by default what the file says of itself.

    Raises:
        DataError: The file is damaged, or uses what is not known here.
        ResourceError: The folder cannot be written.
    """
    reader = _open(source)
    try:
        meta = {name: field.contents() for name, field in reader.fields.items()}
        config = _shape(meta, tied=all(tensor.name != "output.weight" for tensor in reader.tensors))
        tokenizer = _tokenizer(meta)
        special = _special(meta)
        weights = _weights(reader, config, log)
    except DataError as error:
        raise DataError(error.what, where=str(source), why=error.why, hint=error.hint) from error
    except KeyError as error:
        raise DataError(f"{error} is missing", where=str(source), why="a language model must state it") from error
    except (ArithmeticError, AttributeError, IndexError, TypeError, ValueError) as error:
        raise DataError(f"an entry is malformed ({error})", where=str(source), hint="fetch the file again") from error
    card = _card(
        title or str(meta.get("general.name", source.stem)),
        licence or str(meta.get("general.license", "unknown")),
        origin or f"`{source.name}` (sha256 `{sha256_file(source)}`)",
        Counter(tensor.tensor_type.name for tensor in reader.tensors),
    )

    def fill(aside: Path) -> None:
        log(0.9, "writing the weights")
        save_file(weights, aside / "model.safetensors", metadata={"format": "pt"})
        tokenizer.save(str(aside / "tokenizer.json"))
        _write_settings(aside, meta, config, special)
        (aside / "README.md").write_text(card, encoding="utf-8")

    write_folder(folder, fill)
    log(1.0, "the model is written")


def _open(source: Path) -> GGUFReader:
    require_lengths(source)
    try:
        return GGUFReader(source)
    except FileNotFoundError as error:
        raise DataError("no such file", where=str(source)) from error
    except (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError) as error:
        raise DataError(
            f"cannot be read as GGUF ({error})",
            where=str(source),
            why="damaged, or no GGUF file",
            hint="fetch it again",
        ) from error


def _refuse(*checks: tuple[bool, str]) -> None:
    if reasons := [reason for bad, reason in checks if bad]:
        raise DataError(
            "this file uses what is not known here: " + ", ".join(reasons),
            why="only Llama models with byte-level BPE can be converted",
            hint="give the model as a Hugging Face folder",
        )


# ---- shape -----------------------------------------------------------------------------------------------------------


def _shape(meta: Meta, tied: bool) -> DecoderConfig:
    kind = meta["general.architecture"]
    _refuse((kind != "llama", f"the architecture {kind!r}"))
    # A setting that is passed over gives wrong numbers without a word.
    unknown = sorted(key for key in meta if key.startswith("llama.") and key not in _SHAPE_KEYS)
    width, heads = int(meta["llama.embedding_length"]), int(meta["llama.attention.head_count"])
    head_width = int(meta.get("llama.attention.key_length", width // heads))
    _refuse(
        (bool(unknown), "the setting " + ", ".join(unknown)),
        (meta.get("llama.attention.value_length", head_width) != head_width, "values of another width than keys"),
        (meta.get("llama.rope.dimension_count", head_width) != head_width, "heads rotated in part"),
    )
    shape = DecoderConfig(
        vocab_size=len(meta["tokenizer.ggml.tokens"]),
        width=width,
        ffn=int(meta["llama.feed_forward_length"]),
        num_layers=int(meta["llama.block_count"]),
        num_heads=heads,
        num_kv_heads=int(meta.get("llama.attention.head_count_kv", heads)),
        head_width=head_width,
        max_positions=int(meta["llama.context_length"]),
        rope_theta=_decimal(meta.get("llama.rope.freq_base", 10_000.0)),
        norm_eps=_decimal(meta["llama.attention.layer_norm_rms_epsilon"]),
        tied=tied,
    )
    checked_shape(shape)
    return shape


def _decimal(value: float) -> float:
    """Return the number that was rounded to the file's fp32: 1e-5, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


# ---- weights ---------------------------------------------------------------------------------------------------------


def _weights(reader: GGUFReader, config: DecoderConfig, log: Log) -> dict[str, Tensor]:
    named = {_hf_name(tensor.name): tensor for tensor in reader.tensors}
    _check_shapes({name: tuple(map(int, reversed(tensor.shape))) for name, tensor in named.items()}, config)
    total, done = sum(int(tensor.n_elements) for tensor in reader.tensors), 0
    weights: dict[str, Tensor] = {}
    for name, tensor in named.items():
        try:
            # Once, into an ordinary folder: 538 MB on disk for 98 MB of 4 bits, and no other code knows the format.
            values = np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        except NotImplementedError as error:
            raise DataError(f"weights quantised as {tensor.tensor_type.name} cannot be read") from error
        if name.endswith("q_proj.weight"):
            values = _halves_from_pairs(values, config.num_heads)
        elif name.endswith("k_proj.weight"):
            values = _halves_from_pairs(values, config.num_kv_heads)
        weights[name] = torch.from_numpy(np.ascontiguousarray(values))
        done += int(tensor.n_elements)
        log(0.9 * done / total, f"dequantising {tensor.name}")
    return weights


def _check_shapes(found: Mapping[str, tuple[int, ...]], config: DecoderConfig) -> None:
    # At least one tensor a layer: the outline below is then no larger than the file.
    if config.num_layers > len(found):
        raise DataError(f"it names {config.num_layers} layers, but there are {len(found)} tensors")
    with torch.device("meta"):
        wanted = {name: tuple(tensor.shape) for name, tensor in CausalLM(config).state_dict().items()}
    missing = [f"{name} is missing" for name in wanted if name not in found]
    more = [f"{name} has no place" for name in found if name not in wanted]
    wrong = [
        f"{name} has shape {found[name]}, not {shape}"
        for name, shape in wanted.items()
        if found.get(name, shape) != shape
    ]
    if missing or more or wrong:
        raise DataError(
            "; ".join([*missing[:3], *more[:3], *wrong[:3]]),
            why="the weights are not those that the file's metadata describe, or it is one part of several",
            hint="fetch the file again, whole",
        )


def _hf_name(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    first, _, rest = stem.partition(".")
    renamed = _NAMES.get(stem)
    if first == "blk":
        layer, _, part = rest.partition(".")
        renamed = f"model.layers.{layer}.{_LAYER_NAMES[part]}" if part in _LAYER_NAMES else None
    _refuse((renamed is None or kind != "weight", f"the weights {name!r}"))
    return f"{renamed}.weight"


def _halves_from_pairs(rows: np.ndarray, heads: int) -> np.ndarray:
    """Bring rows of a query or key projection from llama.cpp's order into Hugging Face's.

    Rotary positions turn channels two by two. llama.cpp keeps the two beside each other (2c and 2c + 1 of a head of
    width d), Hugging Face half a head apart (c and c + d/2). So each head is read as ``(d/2, 2)`` and written as
    ``(2, d/2)``.
    """
    return rows.reshape(heads, -1, 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


# ---- tokenizer -------------------------------------------------------------------------------------------------------


def _of_type(meta: Meta, kind: TokenType) -> list[str]:
    types = meta.get("tokenizer.ggml.token_type", ())
    return [token for token, its in zip(meta["tokenizer.ggml.tokens"], types, strict=False) if its == kind]


def _tokenizer(meta: Meta) -> tokenizers.Tokenizer:
    model, cut = meta["tokenizer.ggml.model"], str(meta.get("tokenizer.ggml.pre"))
    _refuse(
        (model != "gpt2", f"the tokenizer {model!r}"),
        (cut not in _CUTS, f"the pre-tokenizer {cut!r}"),
        (bool(meta.get("tokenizer.ggml.add_space_prefix")), "a space put before each text"),
        (bool(meta.get("tokenizer.ggml.add_eos_token")), "an end token put after each text"),
    )
    vocab = {token: index for index, token in enumerate(meta["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in meta["tokenizer.ggml.merges"]]
    try:
        inner = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    except Exception as error:  # the library raises nothing narrower
        raise DataError(f"the tokenizer cannot be built ({error})", hint="fetch the file again") from error
    inner.pre_tokenizer = pre_tokenizers.Sequence([*_CUTS[cut], pre_tokenizers.ByteLevel(add_prefix_space=False)])
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(t, normalized=False) for t in _of_type(meta, TokenType.CONTROL)])
    inner.add_tokens([AddedToken(t, normalized=False) for t in _of_type(meta, TokenType.USER_DEFINED)])
    if meta.get("tokenizer.ggml.add_bos_token"):
        index = int(meta["tokenizer.ggml.bos_token_id"])
        begin = meta["tokenizer.ggml.tokens"][index]
        inner.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", pair=f"{begin} $A {begin} $B", special_tokens=[(begin, index)]
        )
    return inner


def _special(meta: Meta) -> dict[str, int]:
    """Return ids of the special tokens the file names, by Hugging Face's word for them: bos, eos, unk, pad."""
    named = {role: meta.get(f"tokenizer.ggml.{word}_token_id") for role, word in _ROLES.items()}
    special = {role: int(index) for role, index in named.items() if index is not None}
    if "eos" not in special:
        raise DataError("the tokenizer names no end token", why="completions must be able to end")
    if any(not 0 <= index < len(meta["tokenizer.ggml.tokens"]) for index in special.values()):
        raise DataError(f"ids of special tokens lie outside the vocabulary: {special}")
    return special


def _end_ids(meta: Meta, special: Mapping[str, int]) -> list[int]:
    """Return the tokens a completion ends at, the file's own end token first."""
    controls = set(_of_type(meta, TokenType.CONTROL))
    # What follows the end of a document is another document, though the file names <|im_end|> alone.
    others = [index for index, token in enumerate(meta["tokenizer.ggml.tokens"]) if token in controls & set(_ENDS)]
    return list(dict.fromkeys([special["eos"], *others]))


# ---- the other files -------------------------------------------------------------------------------------------------


def _write_settings(folder: Path, meta: Meta, config: DecoderConfig, special: Mapping[str, int]) -> None:
    family, tokens = FAMILIES["llama"], meta["tokenizer.ggml.tokens"]
    ids = {f"{role}_token_id": special[role] for role in ("bos", "eos", "pad") if role in special}
    settings = {"architectures": [family.language_model], **family.write(config), **ids, "dtype": "float32"}
    write_json(folder / "config.json", settings)
    write_json(folder / "generation_config.json", ids | {"eos_token_id": _end_ids(meta, special)})
    named = {f"{role}_token": tokens[index] for role, index in special.items()}
    extra = [token for token in _of_type(meta, TokenType.CONTROL) if token not in named.values()]
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **named,
            "additional_special_tokens": extra,
            "model_max_length": config.max_positions,
            "clean_up_tokenization_spaces": False,
        },
    )
    if template := meta.get("tokenizer.chat_template"):
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def _card(title: str, licence: str, origin: str, kinds: Counter[str]) -> str:
    """Return the model card; ``kinds`` counts the tensors of each type in the file."""
    stored = ", ".join(f"{kind} ({count})" for kind, count in kinds.most_common())
    return f"""\
---
license: {licence.lower()}
---

# {title}

Licence: {licence}.

The weights come from {origin}.

There they are stored as {stored}, with the number of tensors of each type in brackets.
Accord dequantised them to fp32 and put the rows of queries and keys into Hugging Face's order. They compute what the
quantised file computes. They are not the original weights: what quantisation lost stays lost.
"""
