"""Weights of the families that the decoder and the LSTM read: held to what `config.json` promises, filled in, written.

A folder comes from anyone. What it says of sizes is compared with the headers of its weights before anything of that
size is built, and what would be silently left out is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from accord.errors import DataError
from accord.files import write_json
from accord.models.backbone import Shape
from accord.models.decoder import CausalLM, ScalarModel
from accord.models.families import FAMILIES
from accord.models.lora import CONFIG as ADAPTER
from accord.models.lora import merge_adapter, plain_weights
from accord.models.weights import WEIGHTS, promised, read_tensors

EMBEDDING, SCORE = "model.embed_tokens.weight", "score.weight"


def require_promised(config: Shape, folder: Path, left_out: tuple[str, ...] = ()) -> None:
    """Compare a shape with the headers of the weights, before anything of that size is built.

    ``left_out`` are beginnings of our names that are not wanted. Raises DataError where they do not fit.
    """
    headers = promised(folder)
    # At least one tensor a layer: the outline below is then no larger than the headers.
    if config.num_layers > len(headers):
        raise _misfit(folder, f"config.json names {config.num_layers} layers, but there are {len(headers)} tensors")
    found = _ours({name: tensor.outline() for name, tensor in headers.items()}, config, folder, left_out)
    wanted = _outline(config, folder)
    # Of the trunk nothing may be left over; other heads (a critic's, a classifier's) may.
    unread = [name for name in found if name.startswith(("model.layers.", "model.lstm.")) and name not in wanted]
    if unread or any(not tensor.is_floating_point() for tensor in found.values()):
        raise DataError(
            f"weights that the decoder does not know, such as {(unread or list(found))[0]}",
            where=str(folder / WEIGHTS),
            why="leaving them out would give wrong numbers: is the checkpoint quantised?",
            hint="give a checkpoint in fp32, bf16 or fp16",
        )
    _require_fit(found, wanted, folder)


def _outline(config: Shape, folder: Path) -> dict[str, Tensor]:
    """Return the trunk's tensors as a shape has them, without their numbers."""
    try:
        with torch.device("meta"):
            whole = CausalLM(replace(config, tied=True)).state_dict()  # type: ignore[type-var]
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
        raise DataError(f"no model has these sizes ({error})", where=str(folder / "config.json")) from error
    return whole


def _require_fit(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], folder: Path) -> None:
    missing = [f"{name} is missing" for name in wanted if name not in found]
    wrong = [
        f"{name} has shape {tuple(found[name].shape)}, not {tuple(wanted[name].shape)}"
        for name in wanted
        if name in found and found[name].shape != wanted[name].shape
    ]
    if missing or wrong:
        raise _misfit(folder, "; ".join([*missing[:3], *wrong[:3]]))


def _misfit(folder: Path, what: str) -> DataError:
    return DataError(what, where=str(folder / WEIGHTS), why="the weights are not those that config.json describes")


def _ours(weights: dict[str, Tensor], config: Shape, folder: Path, left_out: tuple[str, ...]) -> dict[str, Tensor]:
    """Return weights by our names, without those that are not wanted."""
    try:
        named = FAMILIES[config.family].to_ours(weights, config)
    except (KeyError, RuntimeError, ValueError) as error:
        raise _misfit(folder, f"the weights cannot be arranged ({error})") from error
    return {name: tensor for name, tensor in named.items() if not name.startswith(left_out)}


def read_own(model: CausalLM | ScalarModel, folder: Path, left_out: tuple[str, ...] = ()) -> bool:
    """Fill a model from a folder; a score head may be missing. Returns whether the folder holds one."""
    weights = _ours(read_tensors(folder), model.config, folder, left_out)
    head = weights.get("lm_head.weight")
    # As `transformers`: a head that is there and differs is the model's, whatever config.json says of it.
    if head is not None and isinstance(model, CausalLM) and not torch.equal(head, weights[EMBEDDING]):
        model.untie()
    wanted = model.state_dict()
    _require_fit(weights, {name: wanted[name] for name in wanted if name in weights or name != SCORE}, folder)
    # Masters are fp32 whatever the file holds.
    model.load_state_dict({name: weights[name].float() for name in wanted if name in weights}, strict=False)
    # `transformers` applies an adapter that lies beside a whole model.
    if (folder / ADAPTER).is_file():
        merge_adapter(model, folder)
    return SCORE in weights


def write_own(model: CausalLM | ScalarModel, ids: Mapping[str, int | None], folder: Path) -> None:
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
