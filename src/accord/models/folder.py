"""Checkpoints in Hugging Face's folder layout: `config.json`, `model.safetensors`, tokenizer, nothing pickled.

A policy opens with `AutoModelForCausalLM`, a reward model with `AutoModelForSequenceClassification` (one label a head,
raw score); an LSTM opens here alone. How raw scores become the score stands beside a reward model in `reward.json`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor

from accord.config import CombineConfig
from accord.dist.mesh import joined_ranks
from accord.dist.shard import gathered
from accord.errors import DataError, UsageError
from accord.files import read_json, write_folder, write_json
from accord.models import transformers_adapter
from accord.models.backbone import Shape
from accord.models.decoder import CausalLM, ScalarModel, init_score_head
from accord.models.families import checked_shape, family_of, require_sane
from accord.models.lora import CONFIG as ADAPTER
from accord.models.lora import WEIGHTS as ADAPTER_WEIGHTS
from accord.models.lstm import LstmConfig
from accord.models.own_folder import read_own, require_promised, write_own
from accord.models.placement import PLAIN, Placement
from accord.models.shape import DecoderConfig
from accord.models.transformers_adapter import ForeignConfig
from accord.text.tokenizer import GENERATION, Tokenizer, load_tokenizer

REWARD = "reward.json"


@dataclass(frozen=True)
class RewardScale:
    """How raw scores become the score.

    ``(raw - offset) * scale``, so that human completions score 0 on average; of several heads each has its own, and
    ``combine`` says how they become one. With ``transform`` "probability" it is sigmoid(raw) instead. ``max_tokens`` is
    how much of a text it was taught to read; 0 = all that its context holds.
    """

    offset: float | tuple[float, ...] = 0.0
    scale: float | tuple[float, ...] = 1.0
    transform: Literal["logit", "probability"] = "logit"
    combine: CombineConfig = field(default_factory=CombineConfig)
    max_tokens: int = 0

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
        if self.max_tokens:
            said["max_tokens"] = self.max_tokens
        if self.num_heads > 1:
            said["combine"] = self.combine.model_dump()
        return said


def _config(folder: Path) -> Shape:
    if not folder.is_dir():
        raise DataError("no such model folder", where=str(folder), hint="give the path of a Hugging Face folder")
    path = folder / "config.json"
    if not path.exists() and (folder / ADAPTER).is_file():
        raise _adapter_alone(folder)
    raw = read_json(path)
    try:
        require_sane(raw)
        family = family_of(raw)
        return checked_shape(family.read(raw)) if family else transformers_adapter.read_config(raw, folder)
    except DataError as error:
        raise DataError(error.what, where=str(path), why=error.why, hint=error.hint) from error
    except KeyError as error:
        raise DataError(f"{error} is missing", where=str(path), hint="give a Hugging Face config.json") from error
    except (ArithmeticError, AttributeError, TypeError, ValueError) as error:
        raise DataError(
            f"an entry is malformed ({error})", where=str(path), hint="give a Hugging Face config.json"
        ) from error


def _adapter_alone(folder: Path) -> DataError:
    raw = read_json(folder / ADAPTER)
    base = raw.get("base_model_name_or_path") if isinstance(raw, dict) else None
    return DataError(
        "the folder holds an adapter, not a whole model",
        where=str(folder),
        why=f"an adapter only changes its base model, {f'which is {base!r}' if base else 'which it does not name'}",
        hint=f"copy {ADAPTER} and {ADAPTER_WEIGHTS} into a copy of the base model's folder, and give that: it is "
        "applied there",
    )


def shape_of(folder: Path) -> Shape:
    """Return what the `config.json` of a folder says of its model. Raises DataError where it cannot be read."""
    return _config(folder)


@dataclass(frozen=True)
class FolderLayout:
    """How weights and config of a folder are read and written; what lies beside them is the same everywhere."""

    require: Callable[..., None]
    read: Callable[..., bool]
    write: Callable[[CausalLM | ScalarModel, Mapping[str, int | None], Path], None]


_OWN = FolderLayout(require_promised, read_own, write_own)
LAYOUTS: Mapping[type, FolderLayout] = {
    DecoderConfig: _OWN,
    LstmConfig: _OWN,
    ForeignConfig: FolderLayout(
        transformers_adapter.require_room, transformers_adapter.read_weights, transformers_adapter.write_weights
    ),
}


def _read_tokenizer(folder: Path, config: Shape) -> Tokenizer:
    tokenizer, room = load_tokenizer(folder), config.vocab_size
    if tokenizer.vocab_size > room:
        raise DataError(
            f"the tokenizer's highest id is {tokenizer.vocab_size - 1}, but the model's vocabulary has {room} entries",
            where=str(folder),
            hint="give the folder the tokenizer that the model was trained with",
        )
    if beyond := [one for one in tokenizer.stop_ids if one >= room]:
        raise DataError(
            f"eos_token_id {beyond[0]} is beyond the {room} entries of the model's vocabulary",
            where=str(folder),
            why="what samples would never stop at it",
            hint="correct eos_token_id in generation_config.json and config.json",
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
        combine = CombineConfig.model_validate(raw.get("combine", {}))
    except ValidationError as error:
        raise DataError(f"combine is not understood ({error.errors()[0]['msg']})", where=str(path)) from error
    most = raw.get("max_tokens", 0)
    if not isinstance(most, int) or most < 0:
        raise DataError(f"max_tokens is {most!r}", where=str(path), hint="write a number of tokens, or leave it out")
    return RewardScale(offset, scale, transform, combine, most)


def _numbers(value: Any) -> float | tuple[float, ...]:
    """Return one number, or one a head."""
    return tuple(map(float, value)) if isinstance(value, list) and value else float(value)


def load_policy(folder: Path, placement: Placement = PLAIN) -> tuple[CausalLM, Tokenizer]:
    """Read a policy and its tokenizer. ``placement``: its device, and what its matrix products run in."""
    joined_ranks()  # of several processes each has a GPU of its own
    config = _config(folder)
    layout = LAYOUTS[type(config)]
    layout.require(config, folder)
    model = CausalLM(config)
    layout.read(model, folder)
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
    joined_ranks()
    config, scale = _config(folder), _scale(folder / REWARD)
    above: tuple[str, ...] = ()
    if trunk_layers and trunk_layers != config.num_layers:
        config, above = _first_layers(config, trunk_layers, folder)
    layout = LAYOUTS[type(config)]
    layout.require(config, folder, above)
    # A head that sat on other layers says nothing of these: it starts anew.
    model = ScalarModel(config, heads if above else max(heads, scale.num_heads))
    if not layout.read(model, folder, above):
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
    bos_id = tokenizer.sayings.bos_id
    # None is written too: transformers takes its architecture's usual id where none is, here any word's.
    first = bos_id if bos_id is not None and bos_id < model.config.vocab_size else None
    ids = {"bos_token_id": first, "eos_token_id": tokenizer.end_id, "pad_token_id": tokenizer.pad_id}
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
            usual = {"do_sample": True, "temperature": 1.0}
            write_json(aside / GENERATION, {**ids, **ends, **usual, **tokenizer.sayings.generation})
        tokenizer.save(aside)
        if ids["pad_token_id"] != tokenizer.pad_id and apart:
            settings = aside / "tokenizer_config.json"
            write_json(settings, {**read_json(settings), "pad_token": apart[1]})
        if scale is not None:
            write_json(aside / REWARD, scale.to_json())
        if card:
            (aside / "README.md").write_text(card, encoding="utf-8")

    # Of several processes all hold the weights whole meanwhile, and the first writes.
    with gathered(model):
        if joined_ranks().first:
            write_folder(folder, fill)
        joined_ranks().said(None)
