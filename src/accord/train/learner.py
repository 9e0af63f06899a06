"""The learner, which accumulates, clips, steps, checkpoints and resumes, and knows no stage and no algorithm.

Everything random in training is a function of (seed, step), so that the state to save is only weights, optimizer
moments, the step and what the stage itself carries (its controllers).
"""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from accord.config import OptimConfig
from accord.dist.mesh import Mesh, joined_ranks
from accord.dist.save import load_parts, names_of_parts, save_parts
from accord.dist.shard import filled_copy, full_tensor, gathered, hollow_copy, put_back, shard_model
from accord.errors import DataError
from accord.files import (
    append_row,
    numbered,
    read_json,
    read_rows,
    remove,
    row_in,
    sha256_file,
    write_folder,
    write_json,
    write_text,
)
from accord.mirror import Mirror
from accord.models.backbone import Adaptable
from accord.progress import Log, Notice, quiet

_Module = TypeVar("_Module", bound=nn.Module)

MIRRORED = "checkpoints"  # the name below which a mirror keeps them
KEEP_CHECKPOINTS = 2  # should the newest be damaged
STATE, TENSORS, SUMS = (
    "state.json",
    "learner.safetensors",
    "SHA256SUMS",
)  # of a checkpoint; several processes write other tensors


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

    Weight decay (Loshchilov & Hutter 2017) acts on matrices only. Of several processes (``ranks``) each holds a part of
    weights and moments, and brings its share of the losses.
    """

    def __init__(self, modules: Mapping[str, nn.Module], settings: Mapping[str, OptimConfig], total_steps: int) -> None:
        self.modules, self.settings, self.total_steps = dict(modules), dict(settings), total_steps
        self.step = 0
        self.ranks = joined_ranks()
        self._hollow = self._sharded(self.ranks) if isinstance(self.ranks, Mesh) else {}
        self._optimizers = {name: _adamw(module, self.settings[name]) for name, module in self.modules.items()}

    def update(self, losses: Iterable[Tensor]) -> dict[str, float]:
        """Take one optimiser step over micro-batch losses whose sum is the loss; they are consumed one at a time.

        Of several processes each gives its share of them, as many as every other: the sum is over all.
        Returns the loss, and for each module its gradient norm before clipping and its learning rate.
        """
        total = 0.0
        for loss in losses:
            # Each micro-batch is freed before the next is built: gradients add up, activations do not. Several
            # processes average their gradients, and the loss is a sum.
            (loss if self.ranks.world == 1 else loss * self.ranks.world).backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        for module in self.modules.values():
            put_back(module)
        # Decided on numbers of all processes: one that stopped alone would leave the others waiting.
        total = sum(self.ranks.gather(total))
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

    def _sharded(self, mesh: Mesh) -> dict[str, nn.Module]:
        """Split the modules over the processes; returns for each what `whole` fills."""
        hollow = {}
        for name, module in self.modules.items():
            # An adapter's base is split too: what is held of it joined and cast would be all of it.
            if isinstance(trunk := getattr(module, "model", None), Adaptable):
                trunk.release_base()
            hollow[name] = hollow_copy(module)
            shard_model(module, mesh)
        return hollow

    def gathered(self) -> ExitStack[bool | None]:
        """Inside, every process holds all weights whole: for samples. Nothing to do for one process."""
        stack = ExitStack()
        for module in self.modules.values():
            stack.enter_context(gathered(module))
        return stack

    def whole(self, module: _Module) -> _Module:
        """Return a trained module with all of its weights on every process; of one process the module itself."""
        hollow = self._hollow.get(next(name for name, one in self.modules.items() if one is module))
        return module if hollow is None else cast(_Module, filled_copy(hollow, module))

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

    def write(self, folder: Path | None) -> None:
        """Write `tensors` into a folder that is there; of several processes each its part, where the first one says."""
        folder = self.ranks.said(folder)
        assert folder is not None
        if self.ranks.world > 1:
            save_parts(self.tensors(), folder)
            return
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors().items()}
        save_file(tensors, folder / TENSORS)

    def read(self, folder: Path, step: int) -> None:
        """Take back what `write` wrote, by however many processes."""
        if self.ranks.world == 1 and (folder / TENSORS).exists():
            self.restore(load_file(folder / TENSORS), step)
            return
        tensors = self.tensors() | self._moments(names_of_parts(folder))
        load_parts(tensors, folder, self.ranks)
        self.restore(tensors, step)

    def _moments(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return room for the moments that have these names, each split as its weights are."""
        room = {}
        for name in names:
            module, kind, index, *slot = name.split(".")
            if kind == "adam":
                parameters = [p for group in self._optimizers[module].param_groups for p in group["params"]]
                like = parameters[int(index)].detach()
                room[name] = torch.zeros(()) if slot == ["step"] else torch.zeros_like(like)
        return room

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
    norm = full_tensor(nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None]))
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
    """Checkpoints of one stage: `step_000100/` folders, each written aside, hashed and renamed.

    Each holds `SHA256SUMS` over all of its files, which `sha256sum -c` reads. One that does not hold is set aside, as
    `damaged_step_000100`, and the one before serves.
    """

    def __init__(self, folder: Path, identity: str, log: Log = quiet, mirror: Mirror | None = None) -> None:
        """``identity`` is the hash of what the stage was given: checkpoints of other inputs are not continued.

        ``mirror`` keeps them a second time, and gives back those that are not here any more.
        """
        self.folder, self.identity, self.log, self.mirror = folder, identity, log, mirror

    def save(self, learner: Learner, state: Mapping[str, Any]) -> None:
        """Write the learner and the stage's own JSON state; keep the newest two, and none of other inputs."""

        def fill(aside: Path) -> None:
            learner.write(aside)
            write_json(aside / STATE, {"identity": self.identity, "step": learner.step, "state": dict(state)})
            # Renaming is atomic, a disk is not: what does not hash is passed over for the one before.
            sums = "".join(f"{sha256_file(aside / name)}  {name}\n" for name in (STATE, *_tensor_files(aside)))
            write_text(aside / SUMS, sums)

        if not learner.ranks.first:
            learner.write(None)
            return
        write_folder(self.folder / f"step_{learner.step:06d}", fill)
        found = self._newest_first()
        # Of other inputs go first: they can never be continued here.
        mine = [step for step, path in found.items() if _identity(path) == self.identity]
        for step in set(found) - set(mine[:KEEP_CHECKPOINTS]):
            shutil.rmtree(found[step])
        if self.mirror is not None:
            newest = self.folder / f"step_{learner.step:06d}"
            self.mirror.put(newest, f"{MIRRORED}/{newest.name}")
            for name in self.mirror.names(MIRRORED):
                if not (self.folder / Path(name).name).is_dir():
                    self.mirror.drop(name)

    def _fetch(self) -> None:
        """Bring back what only the mirror still has: another machine goes on."""
        if self.mirror is None:
            return
        for name in self.mirror.names(MIRRORED):
            path = self.folder / Path(name).name
            if not path.is_dir() and self.mirror.get(name, path):
                self.log(0.0, Notice(f"checkpoint {path.name} is fetched from {self.mirror.url}"))

    def restore(self, learner: Learner) -> dict[str, Any] | None:
        """Load the newest checkpoint that is whole and of the same inputs; None where there is none."""
        # The first process looks for all: one that found another checkpoint would train another model.
        found = learner.ranks.said(self._newest_whole() if learner.ranks.first else None)
        if found is None:
            return None
        step, path, state = found
        learner.read(path, step)
        return state

    def _newest_whole(self) -> tuple[int, Path, dict[str, Any]] | None:
        """Return step, folder and the stage's state of the checkpoint to go on from; set aside what is damaged."""
        self._tidy()
        self._fetch()
        for step, path in self._newest_first().items():
            try:
                content, is_mine = self._verified(step, path)
            except _Damaged as reason:
                self._set_aside(path, str(reason))
                continue
            if is_mine:
                return step, path, content["state"]
        return None

    def newest_step(self) -> int | None:
        """Return the step of the checkpoint that would be continued; None where there is none."""
        for step, path in self._newest_first().items():
            with contextlib.suppress(_Damaged):
                if self._verified(step, path)[1]:
                    return step
        return None

    def clear(self) -> None:
        """Remove all checkpoints: the stage's result stands."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.mirror is not None:
            for name in self.mirror.names(MIRRORED):
                self.mirror.drop(name)

    def _newest_first(self) -> dict[int, Path]:
        return dict(reversed(numbered(self.folder).items()))

    def _verified(self, step: int, path: Path) -> tuple[dict[str, Any], bool]:
        """Return what a whole checkpoint says, and whether it is of these inputs; of others no tensors are read."""
        sums = dict(_sums(path / SUMS))
        tensors = _tensor_files(path)
        _require(len(sums) > 1 and sums.keys() == {STATE, *tensors}, f"{SUMS} is missing or damaged")
        _require(sums[STATE] == _sha256(path / STATE), f"{STATE} is not as it was written")
        content: dict[str, Any] = read_json(path / STATE)
        if content["identity"] != self.identity:
            return content, False
        _require(content["step"] == step, f"it is that of step {content['step']}, under another name")
        for name in tensors:
            _require(sums[name] == _sha256(path / name), f"{name} is not as it was written")
        return content, True

    def _set_aside(self, path: Path, why: str) -> None:
        aside = path.with_name(f"damaged_{path.name}")
        remove(aside)
        path.replace(aside)
        self.log(0.0, Notice(f"checkpoint {path} is damaged: {why}; set aside as {aside.name}, the one before serves"))

    def _tidy(self) -> None:
        """Remove what a kill amid a save left, and tell of what is no checkpoint; it stays where it is."""
        known = {path.name for path in numbered(self.folder).values()}
        for path in sorted(self.folder.glob("*")) if self.folder.is_dir() else []:
            if path.name.startswith(".step_") and path.name.endswith(".partial"):
                remove(path)
            elif path.name not in known and not path.name.startswith("damaged_"):
                self.log(0.0, Notice(f"{path} is no checkpoint, and is passed over"))


def _tensor_files(checkpoint: Path) -> list[str]:
    """Return the names of the files that hold a checkpoint's tensors: one, or a part from each process."""
    return sorted(path.name for path in checkpoint.glob("*.safetensors"))


class _Damaged(Exception):
    """A checkpoint is not as it was written; says how."""


def _require(holds: bool, why: str) -> None:
    if not holds:
        raise _Damaged(why)


def _sums(path: Path) -> Iterable[tuple[str, str]]:
    """Yield the name and the hash of each file that a list of `sha256sum` names; nothing where it cannot be read."""
    try:
        *lines, rest = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError):
        return
    for line in [*lines, *([rest] if rest else [])]:
        digest, _, name = line.partition("  ")
        yield name, digest


def _sha256(path: Path) -> str:
    """Return a file's hash; "" where it cannot be read."""
    try:
        return sha256_file(path)
    except OSError:
        return ""


def _identity(checkpoint: Path) -> str:
    """Return what a checkpoint says that it is of; "" where that cannot be read."""
    try:
        content = read_json(checkpoint / STATE)
    except DataError:
        return ""
    return str(content.get("identity")) if isinstance(content, dict) else ""


class Metrics:
    """A file of rows that each have their step, such as `metrics.jsonl`: one row a step.

    After a resume, rows of steps that are run again are dropped first. A line that is no such row is set aside, in a
    file of the same name with `.damaged`.
    """

    def __init__(self, path: Path, log: Log = quiet) -> None:
        self.path, self.log = path, log

    def rewind(self, step: int) -> None:
        """Keep the rows of steps before this one; a last row that a kill cut short goes too."""
        if not self.path.exists():
            return
        # What stands behind the last line break was cut short, or is nothing.
        *lines, _ = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        steps = [(row_in(line) or {}).get("step") for line in lines]
        kept = [line for line, its in zip(lines, steps, strict=True) if isinstance(its, int) and its < step]
        write_text(self.path, "".join(line + "\n" for line in kept))
        if damaged := [line for line, its in zip(lines, steps, strict=True) if not isinstance(its, int)]:
            self._set_aside(damaged)

    def _set_aside(self, lines: Sequence[str]) -> None:
        aside = self.path.with_name(f"{self.path.name}.damaged")
        before = aside.read_text(encoding="utf-8") if aside.exists() else ""
        write_text(aside, before + "".join(line + "\n" for line in lines))
        said = f"{len(lines)} line{'s' * (len(lines) > 1)} of {self.path} cannot be read"
        self.log(0.0, Notice(f"{said}; set aside in {aside.name}"))

    def rows(self) -> list[dict[str, float]]:
        """Return what was written so far, oldest first; numbers that were not finite are left out."""
        return [{k: v for k, v in row.items() if v is not None} for row in read_rows(self.path)]

    def write(self, step: int, row: Mapping[str, float]) -> None:
        # Seven digits are what fp32 holds; JSON has no NaN.
        clean = {k: float(f"{v:.7g}") if math.isfinite(v) else None for k, v in row.items()}
        append_row(self.path, {"step": step, **clean})
