"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv:2106.09685) through `peft`, which needs the extra ``accord[lora]``.

A target's weight W stays frozen; what trains is A ``(r, in)`` and B ``(out, r)``, and the layer computes
``W x + scaling * B A x`` with scaling alpha / r. The decoder adds the second product itself while it trains; for a
rollout and for saving, B A is merged into W once. With the adapter off the model is what it was before.

An adapter's folder is PEFT's own (`adapter_config.json`, `adapter_model.safetensors`), with the family's own names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from accord.config import LoraConfig
from accord.errors import DataError, UsageError
from accord.files import read_json, write_folder, write_json
from accord.models.backbone import Adaptable, Headed
from accord.models.families import FAMILIES

NAME = "default"  # peft can hold several adapters at once; here it is one
PREFIX = "base_model.model."
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def require_peft() -> ModuleType:
    """Return the package that makes adapters. Raises UsageError where it is not installed."""
    try:
        import peft
    except ImportError as error:
        raise UsageError(
            "LoRA needs the package peft, which is not installed",
            hint="run `pip install 'accord[lora]'`, or train in full with lora.rank=0",
        ) from error
    module: ModuleType = peft
    return module


# ---- what the decoder computes -----------------------------------------------------------------------------------


def is_adapted(layer: nn.Module) -> bool:
    """Return whether an adapter that is on changes this layer's product."""
    return hasattr(layer, "lora_A") and not layer.disable_adapters


def add_low_rank(y: Tensor, layers: Sequence[Any], x: Tensor) -> Tensor:
    """Add what adapters say to the joined product of layers that read one input, in the input's type."""
    if not any(map(is_adapted, layers)):
        return y
    return y + torch.cat([_low_rank(layer, x) for layer in layers], dim=-1)


def _low_rank(layer: Any, x: Tensor) -> Tensor:
    if not is_adapted(layer):
        return x.new_zeros(()).expand(*x.shape[:-1], layer.out_features)
    # B A x, never B A: two thin products instead of one of full size.
    down, up = (part[NAME].weight.to(x.dtype) for part in (layer.lora_A, layer.lora_B))
    added: Tensor = F.linear(F.linear(layer.lora_dropout[NAME](x), down), up) * layer.scaling[NAME]
    return added


def merged_weight(layer: Any) -> Tensor:
    """Return the layer's weight ``(out, in)`` with its adapter in it, fp32."""
    weight: Tensor = layer.weight
    # Merged in fp32 and rounded once more by the cast: the sampler is 0.014 nats from the learner on average in bf16,
    # 0.009 without an adapter; the alarm rings at 0.05.
    return weight + layer.get_delta_weight(NAME) if is_adapted(layer) else weight


# ---- the adapter of a model ----------------------------------------------------------------------------------------


def add_lora(model: Headed, config: LoraConfig, seed: int) -> None:
    """Freeze the model and put an adapter on its trunk; a score head stays trainable. Rank 0: nothing happens.

    The new model computes what the old one did, as B starts at 0. Call it once compute type and device are set.
    """
    if config.rank == 0:
        return
    present = {name.rsplit(".", 1)[-1] for name, _ in _adaptable(model).layers.named_modules()}
    settings = {"r": config.rank, "lora_alpha": config.alpha, "lora_dropout": config.dropout}
    # peft draws A from the global stream: forked, so that no other draw depends on whether an adapter is there.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        _inject(model, [target for target in config.targets if target in present], settings)


def _adaptable(model: Headed) -> Adaptable:
    trunk = model.model
    if not isinstance(trunk, Adaptable):
        raise UsageError(
            f"LoRA is for the families the decoder reads, and this model is {model.config.family!r}",
            hint="train it in full with lora.rank=0",
        )
    return trunk


def _inject(model: Headed, targets: Sequence[str], settings: Mapping[str, Any]) -> None:
    peft = require_peft()
    if not targets:
        raise UsageError("no layer of the model is among lora.targets", hint="name q_proj or v_proj, for example")
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=list(targets), **settings), model.model, NAME)
    for name, parameter in model.named_parameters():
        # A reward model's head is new: frozen, it would stay random.
        parameter.requires_grad_(".lora_" in name or name == "score.weight")
    model.train(model.training)  # the adapter's dropout with it
    # The base stands still from here on: cast once instead of at each pass.
    _adaptable(model).hold_base()


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """Return the layers that carry an adapter, by name; none where the model has none."""
    return {name: layer for name, layer in model.named_modules() if hasattr(layer, "lora_A")}


@contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """Inside, the model is what it was before its adapter: the reference of policy optimisation, without a copy."""
    layers = adapted_layers(model).values()
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def plain_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict the model would have without an adapter: merged, under the usual names."""
    layers = adapted_layers(model)
    weights: dict[str, Tensor] = {}
    # The parameters as they stand: gathered from several processes, where a state dict holds a part of each.
    for name, tensor in model.named_parameters(remove_duplicate=False):
        if ".lora_" in name:
            continue
        owner = name.removesuffix(".base_layer.weight")
        weights[name.replace(".base_layer.", ".")] = merged_weight(layers[owner]) if owner in layers else tensor
    return {name: tensor.detach() for name, tensor in weights.items()}


# ---- PEFT folders --------------------------------------------------------------------------------------------------


def save_adapter(folder: Path, model: Headed, base: str = "") -> None:
    """Write the adapter alone, so that ``peft.PeftModel.from_pretrained(base model, folder)`` gives the policy.

    ``base`` is the path or name of the model it belongs to.
    """
    family, layers = FAMILIES[model.config.family], adapted_layers(model)
    if not layers:
        raise UsageError("the model has no adapter to save", hint="train with lora.rank above 0")
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    first = next(iter(layers.values()))
    rank, scaling = first.r[NAME], first.scaling[NAME]
    for name, (down, up) in _their_matrices(model, layers, scaling).items():
        ranks[name] = len(down)
        their_up = up.T if family.transposed else up  # peft keeps B as (out, r) in any case
        tensors |= {f"{PREFIX}{name}.lora_A.weight": down, f"{PREFIX}{name}.lora_B.weight": their_up}
    ranks = _without_blocks(ranks, model.config.num_layers)
    odd = {name: r for name, r in ranks.items() if r != rank}
    content = require_peft().LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base or None,
        r=rank,
        lora_alpha=scaling * rank,
        lora_dropout=getattr(first.lora_dropout[NAME], "p", 0.0),
        target_modules=sorted(ranks),
        fan_in_fan_out=family.transposed,
        rank_pattern=odd,
        alpha_pattern={name: scaling * r for name, r in odd.items()},
        inference_mode=True,
    )

    def fill(aside: Path) -> None:
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(plain, aside / WEIGHTS, metadata={"format": "pt"})
        raw = content.to_dict()
        write_json(aside / CONFIG, {k: sorted(v) if isinstance(v, set) else v for k, v in raw.items()})

    write_folder(folder, fill)


def _without_blocks(ranks: dict[str, int], num_layers: int) -> dict[str, int]:
    """Write ``self_attn.q_proj`` in place of one name a block, where all blocks are alike: as peft's users do."""
    short = {re.sub(r"^.*?\.\d+\.", "", name): rank for name, rank in ranks.items()}
    alike = all(short[re.sub(r"^.*?\.\d+\.", "", name)] == rank for name, rank in ranks.items())
    return short if alike and len(short) * num_layers == len(ranks) else ranks


def _their_matrices(model: Headed, layers: Mapping[str, Any], scaling: float) -> dict[str, tuple[Tensor, Tensor]]:
    """Return A and B by the family's own names, B laid out as the matrix itself is, for one scaling of all.

    Targets that lie in one matrix have one adapter of the summed rank there: A stacked, B block-diagonal.
    """
    family, matrices = FAMILIES[model.config.family], {}
    for block in range(model.config.num_layers):
        groups = [[f"model.layers.{block}.self_attn.{part}" for part in family.joined]] if family.joined else []
        joined = {name for group in groups for name in group}
        groups += [[name] for name in layers if name.startswith(f"model.layers.{block}.") and name not in joined]
        for group in groups:
            found = [name for name in group if name in layers]
            if not found:
                continue
            downs = [layers[name].lora_A[NAME].weight for name in found]
            ups = [layers[name].lora_B[NAME].weight * (layers[name].scaling[NAME] / scaling) for name in found]
            # GPT-2 and GPT-NeoX keep q, k and v in one matrix: three adapters are one of three times the rank.
            blocks: Tensor = torch.block_diag(*ups)  # type: ignore[no-untyped-call]
            columns = dict(zip(found, torch.split(blocks, [len(up) for up in ups]), strict=True))
            none = blocks.new_zeros(len(ups[0]), blocks.shape[1])
            wide = {f"{name}.weight": columns.get(name, none) for name in group}
            ((their, up),) = family.to_theirs(wide, model.config).items()
            matrices[their.removesuffix(".weight")] = torch.cat(downs), up
    return matrices


@torch.no_grad()
def merge_adapter(model: Headed, folder: Path) -> None:
    """Add the adapter of a PEFT folder to the weights of a model that carries none: it then is an ordinary model.

    Raises DataError where the folder holds another kind of adapter, or one of another model.
    """
    for name, (down, up, scaling) in _our_matrices(model, _readable_config(folder), folder).items():
        model.get_parameter(f"{name}.weight").add_((up @ down) * scaling)


def _readable_config(folder: Path) -> dict[str, Any]:
    raw = read_json(folder / CONFIG)
    if not isinstance(raw, dict) or raw.get("peft_type") != "LORA":
        raise DataError("not the adapter of a LoRA", where=str(folder / CONFIG), hint="give a folder that PEFT wrote")
    beyond = [key for key in ("use_dora", "modules_to_save", "lora_bias", "trainable_token_indices") if raw.get(key)]
    beyond += ["bias"] if raw.get("bias", "none") != "none" else []
    if raw.get("init_lora_weights", True) not in (True, False, "gaussian", "eva", "orthogonal"):  # changed the base too
        beyond.append("init_lora_weights")
    if beyond:
        raise DataError(
            f"the adapter uses {', '.join(beyond)}",
            where=str(folder / CONFIG),
            why="leaving it out would give wrong numbers",
            hint="merge it into its model with peft, and give the merged folder",
        )
    return raw


# What a file of somebody else's may do to the lines that read it.
_SPOILT = (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, SafetensorError, TypeError, ValueError)


def _our_matrices(model: Headed, raw: Mapping[str, Any], folder: Path) -> dict[str, tuple[Tensor, Tensor, float]]:
    """Return A, B and scaling by our names.

    The adapter of a joined matrix becomes one a target, all with the same A.
    """
    family = FAMILIES[model.config.family]
    found: dict[str, tuple[Tensor, Tensor, float]] = {}
    try:
        tensors = {key.removeprefix(PREFIX): tensor.float() for key, tensor in load_file(folder / WEIGHTS).items()}
        for key, down in tensors.items():
            their, _, kind = key.partition(".lora_")
            if kind == "B.weight":
                continue
            up = tensors[f"{their}.lora_B.weight"]
            scaling = _scaling(raw, their, len(down))
            ours = family.to_ours({f"{their}.weight": up.T if family.transposed else up}, model.config)
            found |= {name.removesuffix(".weight"): (down, part, scaling) for name, part in ours.items()}
        for name, (down, up, _) in found.items():
            if model.get_submodule(name).weight.shape != (len(up), down.shape[1]) or len(down) != up.shape[1]:
                raise ValueError(f"{name} has another shape")
    except (
        ArithmeticError,
        LookupError,
        AttributeError,
        OSError,
        RuntimeError,
        SafetensorError,
        TypeError,
        ValueError,
    ) as error:
        raise _misfit(folder, error) from error
    return found


def _misfit(folder: Path, error: Exception) -> DataError:
    return DataError(
        f"the adapter does not fit the model ({error})",
        where=str(folder / WEIGHTS),
        hint="give the model that the adapter was trained on",
    )


def _scaling(raw: Mapping[str, Any], name: str, rank: int) -> float:
    """Return what the product of A and B is multiplied by, as peft reads its config."""
    patterns = (raw.get("alpha_pattern") or {}).items()
    alpha = next((a for key, a in patterns if re.match(rf"(.*\.)?({key})$", name)), raw["lora_alpha"])
    return float(alpha) / (math.sqrt(rank) if raw.get("use_rslora") else rank)
