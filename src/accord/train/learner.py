"""The learner, which accumulates, clips, steps, checkpoints and resumes, and knows no stage and no algorithm.

Everything random in training is a function of (seed, step), so that the state to save is only weights, optimizer
moments, the step and what the stage itself carries (its controllers).
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from accord.config import OptimConfig
from accord.errors import DataError
from accord.files import read_json, sha256_file, write_folder, write_json, write_text

KEEP_CHECKPOINTS = 2  # should the newest be damaged


def schedule(config: OptimConfig, step: int, total: int) -> float:
    """Return the learning-rate factor at a step counted from 0.

    Linear warm-up, then constant, linear or cosine to the floor.
    """
    # PyTorch's Adam moves hard in its first steps (ratios to 1.81 in N)
    warmup = max(1, round(config.warmup_ratio * total))
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    shape = {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}
    return config.final_lr_ratio + (1 - config.final_lr_ratio) * shape[config.schedule]


class Learner:
    """AdamW over one or more named modules, each with its own settings, gradient clipping and schedule.

    Weight decay (Loshchilov & Hutter 2017) acts on matrices only.
    """

    def __init__(self, modules: Mapping[str, nn.Module], settings: Mapping[str, OptimConfig], total_steps: int) -> None:
        self.modules, self.settings, self.total_steps = dict(modules), dict(settings), total_steps
        self.step = 0
        self._optimizers = {name: _adamw(module, self.settings[name]) for name, module in self.modules.items()}

    def update(self, losses: Iterable[Tensor]) -> dict[str, float]:
        """Take one optimiser step over micro-batch losses whose sum is the loss; they are consumed one at a time.

        Returns the loss, and for each module its gradient norm before clipping and its learning rate.
        """
        total = 0.0
        for loss in losses:
            # Each micro-batch is freed before the next is built: gradients add up, activations do not.
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        self._require_finite("loss", total)
        # Each module by its own norm: a critic's large gradients must not shrink the policy's.
        norms = {name: _clip(module, self.settings[name].clip_norm) for name, module in self.modules.items()}
        for name, norm in norms.items():
            self._require_finite(f"gradient of {name}", norm)
        stats = {"loss": total}
        for name, optimizer in self._optimizers.items():
            settings = self.settings[name]
            lr = settings.lr * schedule(settings, self.step, self.total_steps)
            for group in optimizer.param_groups:
                # By the step, not by a scheduler's own state: nothing more to save and restore.
                group["lr"] = lr
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            stats |= {f"{name}_grad_norm": norms[name], f"{name}_lr": lr}
        self.step += 1
        return stats

    def _require_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise DataError(
                f"the {what} is {value} at step {self.step}",
                why="a step along it would ruin the weights",
                hint="lower the learning rate, or look at the data of this step; the last checkpoint is intact",
            )

    def tensors(self) -> dict[str, Tensor]:
        """Return weights that train and moments by name, for a checkpoint.

        What is frozen stands in the stage's input.
        """
        found: dict[str, Tensor] = {}
        for name, module in self.modules.items():
            frozen = _frozen(module)
            found |= {f"{name}.weights.{k}": value for k, value in module.state_dict().items() if k not in frozen}
            state = self._optimizers[name].state_dict()["state"]
            found |= {f"{name}.adam.{i}.{key}": t for i, slots in state.items() for key, t in slots.items()}
        return found

    def restore(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Take back what `tensors` gave."""
        self.step = step
        for name, module in self.modules.items():
            prefix, state_dict = f"{name}.weights.", module.state_dict()
            weights = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
            module.load_state_dict({key: state_dict[key] for key in _frozen(module)} | weights)
            state: dict[int, dict[str, Tensor]] = {}
            for key, tensor in tensors.items():
                if key.startswith(f"{name}.adam."):
                    _, _, index, slot = key.rsplit(".", 3)
                    state.setdefault(int(index), {})[slot] = tensor
            optimizer = self._optimizers[name]
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _clip(module: nn.Module, limit: float) -> float:
    """Scale the gradients down to the limit where their joint norm exceeds it, and return the norm before."""
    norm = nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])
    if float(norm) > limit:  # a pass over all gradients less where it does not
        nn.utils.clip_grads_with_norm_(module.parameters(), limit, norm)
    return float(norm)


def _frozen(module: nn.Module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if not parameter.requires_grad}


def _adamw(module: nn.Module, settings: OptimConfig) -> torch.optim.AdamW:
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": settings.weight_decay},
        # Norms and biases set a scale: pulling them to 0 regularises nothing.
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    # fused: one pass over weights and moments instead of a dozen.
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True)


class Checkpoints:
    """Checkpoints of one stage: `step_000100/` folders, each written aside, hashed and renamed."""

    def __init__(self, folder: Path, identity: str) -> None:
        """``identity`` is the hash of what the stage was given: checkpoints of other inputs are not continued."""
        self.folder, self.identity = folder, identity

    def save(self, learner: Learner, state: Mapping[str, Any]) -> None:
        """Write the learner and the stage's own JSON state; keep the newest two, and none of other inputs."""

        def fill(aside: Path) -> None:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in learner.tensors().items()}
            save_file(tensors, aside / "learner.safetensors")
            # Renaming is atomic, a disk is not: what does not hash is passed over for the one before.
            digest = sha256_file(aside / "learner.safetensors")
            content = {"identity": self.identity, "step": learner.step, "sha256": digest, "state": dict(state)}
            write_json(aside / "state.json", content)

        write_folder(self.folder / f"step_{learner.step:06d}", fill)
        # Of other inputs go first: they can never be continued here.
        mine = [path for path in self._newest_first() if _content(path).get("identity") == self.identity]
        for old in set(self._newest_first()) - set(mine[:KEEP_CHECKPOINTS]):
            shutil.rmtree(old)

    def restore(self, learner: Learner) -> dict[str, Any] | None:
        """Load the newest checkpoint that is whole and of the same inputs; None where there is none."""
        for leftover in self.folder.glob(".step_*.partial"):  # a kill amid a save
            shutil.rmtree(leftover)
        for path in self._newest_first():
            content = self._verified(path)
            if content is not None:
                learner.restore(load_file(path / "learner.safetensors"), int(content["step"]))
                state: dict[str, Any] = content["state"]
                return state
        return None

    def newest_step(self) -> int | None:
        """Return the step of the checkpoint that would be continued; None where there is none."""
        found = (self._verified(path) for path in self._newest_first())
        return next((int(content["step"]) for content in found if content is not None), None)

    def clear(self) -> None:
        """Remove all checkpoints: the stage's result stands."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _newest_first(self) -> list[Path]:
        return sorted(self.folder.glob("step_*"), reverse=True)

    def _verified(self, path: Path) -> dict[str, Any] | None:
        content, tensors = _content(path), path / "learner.safetensors"
        if content.get("identity") != self.identity or not tensors.is_file():
            return None
        return content if content["sha256"] == sha256_file(tensors) else None


def _content(checkpoint: Path) -> dict[str, Any]:
    """Return what a checkpoint says of itself; empty where that cannot be read."""
    try:
        content = read_json(checkpoint / "state.json")
    except DataError:
        return {}
    return content if isinstance(content, dict) else {}


class Metrics:
    """`metrics.jsonl`: one row a step. After a resume, rows of steps that are run again are dropped first."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rewind(self, step: int) -> None:
        """Keep the rows of steps before this one; a last row that a kill cut short goes too."""
        if self.path.exists():
            # What stands behind the last line break was cut short, or is nothing.
            *lines, _ = self.path.read_text().split("\n")
            write_text(self.path, "".join(line + "\n" for line in lines if json.loads(line)["step"] < step))

    def rows(self) -> list[dict[str, float]]:
        """Return what was written so far, oldest first; numbers that were not finite are left out."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return [{k: v for k, v in json.loads(line).items() if v is not None} for line in lines]

    def write(self, step: int, row: Mapping[str, float]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            # Seven digits are what fp32 holds; JSON has no NaN.
            clean = {k: float(f"{v:.7g}") if math.isfinite(v) else None for k, v in row.items()}
            file.write(json.dumps({"step": step, **clean}) + "\n")
