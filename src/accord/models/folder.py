"""Checkpoints in Hugging Face's folder layout: `config.json`, `model.safetensors`, tokenizer, nothing pickled.

A policy opens with `AutoModelForCausalLM`, a reward model with `AutoModelForSequenceClassification` (one label a head,
raw score); an LSTM opens here alone. How raw scores become the score stands beside a reward model in `reward.json`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from accord.config import CombineConfig
from accord.errors import DataError, UsageError
from accord.files import read_json, write_folder, write_json
from accord.models import transformers_adapter
from accord.models.backbone import Shape
from accord.models.decoder import CausalLM, ScalarModel, init_score_head
from accord.models.families import FAMILIES, family_of
from accord.models.lora import plain_weights
from accord.models.lstm import LstmConfig
from accord.models.placement import PLAIN, Placement
from accord.models.shape import DecoderConfig
from accord.models.transformers_adapter import ForeignConfig
from accord.text.tokenizer import GENERATION, Tokenizer, load_tokenizer

WEIGHTS, INDEX, REWARD = "model.safetensors", "model.safetensors.index.json", "reward.json"


@dataclass(frozen=True)
class RewardScale:
    """How raw scores become the score.

    ``(raw - offset) * scale``, so that human completions score 0 on average; of several heads each has its own, and
    ``combine`` says how they become one. With ``transform`` "probability" it is sigmoid(raw) instead.
    """

    offset: float | tuple[float, ...] = 0.0
    scale: float | tuple[float, ...] = 1.0
    transform: Literal["logit", "probability"] = "logit"
    combine: CombineConfig = field(default_factory=CombineConfig)

    @property
    def num_heads(self) -> int:
        return len(self.scale) if isinstance(self.scale, tuple) else 1

    @property
    def gains(self) -> tuple[float, ...]:
        """What turns each head's numbers into those of the score, up to a constant; 0 where no factor does."""
        if self.transform == "probability":
            return (0.0,) * self.num_heads
        return self.scale if isinstance(self.scale, tuple) else (self.scale,)

    def apply(self, raw: Tensor) -> Tensor:
        """Put raw scores ``(S,)`` or ``(S, heads)`` each on its own scale."""
        if self.transform == "probability":
            return torch.sigmoid(raw)
        if isinstance(self.offset, tuple) or isinstance(self.scale, tuple):
            return (raw - torch.tensor(self.offset)) * torch.tensor(self.scale)
        return (raw - self.offset) * self.scale

    def to_json(self) -> dict[str, Any]:
        said: dict[str, Any] = {"offset": self.offset, "scale": self.scale}
        if self.transform != "logit":
            said["transform"] = self.transform
        if self.num_heads > 1:
            said["combine"] = self.combine.model_dump()
        return said


def _read_weights(folder: Path) -> dict[str, Tensor]:
    names = [WEIGHTS]
    if (folder / INDEX).exists():
        names = _shards(folder / INDEX)
    weights: dict[str, Tensor] = {}
    for name in names:
        path = folder / name
        if not path.is_file():
            raise DataError(
                f"no {name} in the folder",
                where=str(folder),
                hint="give a Hugging Face model folder with safetensors weights (pickled ones are refused)",
            )
        try:
            # safetensors alone: unpickling runs whatever code the file holds.
            weights |= load_file(path)
        except SafetensorError as error:
            raise DataError(f"the weights cannot be read ({error})", where=str(path)) from error
    return weights


def _shards(index: Path) -> list[str]:
    try:
        return sorted(set(read_json(index)["weight_map"].values()))
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError("no weight_map in the index", where=str(index), hint="copy the folder again, whole") from error


def _config(folder: Path) -> Shape:
    if not folder.is_dir():
        raise DataError("no such model folder", where=str(folder), hint="give the path of a Hugging Face folder")
    path = folder / "config.json"
    raw = read_json(path)
    try:
        family = family_of(raw)
        return family.read(raw) if family else transformers_adapter.read_config(raw, folder)
    except DataError as error:
        raise DataError(error.what, where=str(path), why=error.why, hint=error.hint) from error
    except KeyError as error:
        raise DataError(f"{error} is missing", where=str(path), hint="give a Hugging Face config.json") from error
    except (AttributeError, TypeError, ValueError, ZeroDivisionError) as error:
        raise DataError(
            f"an entry is malformed ({error})", where=str(path), hint="give a Hugging Face config.json"
        ) from error


def shape_of(folder: Path) -> Shape:
    """Return what the `config.json` of a folder says of its model. Raises DataError where it cannot be read."""
    return _config(folder)


def count_weights(folder: Path) -> int:
    """Return how many numbers the weights in a folder are, by the files' headers: nothing is loaded."""
    total = 0
    for name in _shards(folder / INDEX) if (folder / INDEX).exists() else [WEIGHTS]:
        try:
            with safe_open(folder / name, framework="pt") as file:
                total += sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise DataError(f"the weights cannot be read ({error})", where=str(folder / name)) from error
    return total


def _read(model: CausalLM | ScalarModel, folder: Path, left_out: tuple[str, ...] = ()) -> bool:
    """Fill a model from a folder; a score head may be missing. Returns whether the folder holds one.

    ``left_out`` are beginnings of our names that are not wanted.
    """
    try:
        weights = FAMILIES[model.config.family].to_ours(_read_weights(folder), model.config)
    except (KeyError, RuntimeError, ValueError) as error:
        raise DataError(
            f"the weights cannot be arranged ({error})",
            where=str(folder / WEIGHTS),
            why="the weights are not those that config.json describes",
        ) from error
    weights = {name: tensor for name, tensor in weights.items() if not name.startswith(left_out)}
    wanted = model.state_dict()
    # Of the trunk nothing may be left over; other heads (a critic's, a classifier's) may.
    unread = [name for name in weights if name.startswith(("model.layers.", "model.lstm.")) and name not in wanted]
    if unread or any(not tensor.is_floating_point() for tensor in weights.values()):
        raise DataError(
            f"weights that the decoder does not know, such as {(unread or list(weights))[0]}",
            where=str(folder / WEIGHTS),
            why="leaving them out would give wrong numbers: is the checkpoint quantised?",
            hint="give a checkpoint in fp32, bf16 or fp16",
        )
    missing = [name for name in wanted if name not in weights and name != "score.weight"]
    wrong = [
        f"{name} has shape {tuple(weights[name].shape)}, not {tuple(wanted[name].shape)}"
        for name in wanted
        if name in weights and weights[name].shape != wanted[name].shape
    ]
    if missing or wrong:
        raise DataError(
            "; ".join([f"{name} is missing" for name in missing[:3]] + wrong[:3]),
            where=str(folder / WEIGHTS),
            why="the weights are not those that config.json describes",
        )
    # Masters are fp32 whatever the file holds.
    model.load_state_dict({name: weights[name].float() for name in wanted if name in weights}, strict=False)
    return "score.weight" in weights


def _write(model: CausalLM | ScalarModel, ids: Mapping[str, int], folder: Path) -> None:
    """Write `config.json` and the weights under the family's own names."""
    family = FAMILIES[model.config.family]
    described: dict[str, Any] = {"architectures": [family.language_model]}
    if isinstance(model, ScalarModel):
        heads = model.score.out_features
        # transformers asks for a name a label; it shows them, nothing else.
        names = {str(head): "score" if heads == 1 else f"score_{head}" for head in range(heads)}
        described = {"architectures": [family.classifier], "num_labels": heads, "id2label": names}
    weights = family.to_theirs({name: t.cpu().contiguous() for name, t in plain_weights(model).items()}, model.config)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    write_json(folder / "config.json", {**described, **family.write(model.config), **ids, "dtype": "float32"})


@dataclass(frozen=True)
class FolderLayout:
    """How weights and config of a folder are read and written; what lies beside them is the same everywhere."""

    read: Callable[..., bool]
    write: Callable[[CausalLM | ScalarModel, Mapping[str, int], Path], None]


_OWN = FolderLayout(_read, _write)
LAYOUTS: Mapping[type, FolderLayout] = {
    DecoderConfig: _OWN,
    LstmConfig: _OWN,
    ForeignConfig: FolderLayout(transformers_adapter.read_weights, transformers_adapter.write_weights),
}


def _read_tokenizer(folder: Path, config: Shape) -> Tokenizer:
    tokenizer = load_tokenizer(folder)
    if tokenizer.vocab_size > config.vocab_size:
        raise DataError(
            f"the tokenizer has {tokenizer.vocab_size} entries but the model's vocabulary only {config.vocab_size}",
            where=str(folder),
            hint="give the folder the tokenizer that the model was trained with",
        )
    return tokenizer


def _scale(path: Path) -> RewardScale:
    if not path.exists():
        return RewardScale()
    raw = read_json(path)
    try:
        offset, scale = (_numbers(raw[name]) for name in ("offset", "scale"))
        if (isinstance(offset, tuple) and len(offset)) != (isinstance(scale, tuple) and len(scale)):
            raise ValueError("as many offsets as scales")
    except (KeyError, TypeError, ValueError) as error:
        raise DataError("offset and scale are not both numbers", where=str(path), hint="train it again") from error
    transform = raw.get("transform", "logit")
    if transform not in ("logit", "probability"):
        raise DataError(f"transform is {transform!r}", where=str(path), hint="write logit or probability")
    try:
        return RewardScale(offset, scale, transform, CombineConfig.model_validate(raw.get("combine", {})))
    except ValidationError as error:
        raise DataError(f"combine is not understood ({error.errors()[0]['msg']})", where=str(path)) from error


def _numbers(value: Any) -> float | tuple[float, ...]:
    """Return one number, or one a head."""
    return tuple(map(float, value)) if isinstance(value, list) and value else float(value)


def load_policy(folder: Path, placement: Placement = PLAIN) -> tuple[CausalLM, Tokenizer]:
    """Read a policy and its tokenizer. ``placement``: its device, and what its matrix products run in."""
    model = CausalLM(_config(folder))
    LAYOUTS[type(model.config)].read(model, folder)
    model.model.compute_dtype = placement.dtype
    return model.to(placement.device), _read_tokenizer(folder, model.config)


def load_scalar(
    folder: Path,
    placement: Placement = PLAIN,
    *,
    head_seed: int | None = None,
    zero_head: bool = False,
    heads: int = 1,
    trunk_layers: int = 0,
) -> tuple[ScalarModel, Tokenizer, RewardScale]:
    """Read a reward model; with ``head_seed`` also a policy's trunk, under so many fresh heads, random or zero.

    With ``trunk_layers`` only that many of the first layers are read; a head that sat on others is not.
    """
    config, scale = _config(folder), _scale(folder / REWARD)
    above: tuple[str, ...] = ()
    if trunk_layers and trunk_layers != config.num_layers:
        config, above = _first_layers(config, trunk_layers, folder)
    # A head that sat on other layers says nothing of these: it starts anew.
    model = ScalarModel(config, heads if above else max(heads, scale.num_heads))
    if not LAYOUTS[type(config)].read(model, folder, above):
        if head_seed is None:
            raise DataError(
                "the folder holds a language model, not a reward model (no score.weight)",
                where=str(folder),
                hint="train one with `accord reward --model FOLDER --data FILE.jsonl -o OUT`",
            )
        init_score_head(model, head_seed)
        if zero_head:
            torch.nn.init.zeros_(model.score.weight)
    model.model.compute_dtype = placement.dtype
    return model.to(placement.device), _read_tokenizer(folder, model.config), scale


def _first_layers(config: Shape, count: int, folder: Path) -> tuple[DecoderConfig, tuple[str, ...]]:
    """Return the shape with that many layers, and the beginnings of the names of what then lies above."""
    if not isinstance(config, DecoderConfig):
        raise UsageError(
            f"a model of type {config.family!r} cannot be cut to its first layers",
            where=str(folder),
            hint="leave reward.trunk_layers at 0, which takes all",
        )
    if count > config.num_layers:
        raise UsageError(
            f"{count} layers are asked of a model that has {config.num_layers}",
            where=str(folder),
            hint="lower reward.trunk_layers; 0 takes all",
        )
    above = tuple(f"model.layers.{layer}." for layer in range(count, config.num_layers))
    return replace(config, num_layers=count, windowed=config.windowed[:count]), ("score.weight", *above)


def save_policy(folder: Path, model: CausalLM, tokenizer: Tokenizer, card: str = "") -> None:
    """Write a policy whole or not at all."""
    _save(folder, model, tokenizer, card)


def save_scalar(
    folder: Path, model: ScalarModel, tokenizer: Tokenizer, scale: RewardScale | None = None, card: str = ""
) -> None:
    """Write a reward model (or a critic, which has no scale) whole or not at all."""
    _save(folder, model, tokenizer, card, scale)


def _save(
    folder: Path, model: CausalLM | ScalarModel, tokenizer: Tokenizer, card: str, scale: RewardScale | None = None
) -> None:
    ids = {"eos_token_id": tokenizer.end_id, "pad_token_id": tokenizer.pad_id}
    apart = tokenizer.padding_apart()
    if isinstance(model, ScalarModel) and apart:
        # `transformers` reads the score at the last token that is not padding: that must be the end token.
        ids["pad_token_id"] = apart[0]

    def fill(aside: Path) -> None:
        LAYOUTS[type(model.config)].write(model, ids, aside)
        if isinstance(model, CausalLM):
            stops = [*tokenizer.stop_ids]
            # All of them: whoever samples with another engine must stop where training ended.
            ends = {"eos_token_id": stops if len(stops) > 1 else tokenizer.end_id}
            write_json(aside / GENERATION, {**ids, **ends, "do_sample": True, "temperature": 1.0})
        tokenizer.save(aside)
        if ids["pad_token_id"] != tokenizer.pad_id and apart:
            settings = aside / "tokenizer_config.json"
            write_json(settings, {**read_json(settings), "pad_token": apart[1]})
        if scale is not None:
            write_json(aside / REWARD, scale.to_json())
        if card:
            (aside / "README.md").write_text(card, encoding="utf-8")

    write_folder(folder, fill)
