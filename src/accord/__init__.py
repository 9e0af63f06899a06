"""Accord: the whole loop of reinforcement learning from human feedback.

Each command of the shell is one function here: ``accord.sft(...)``, ``accord.reward(...)``, ``accord.rl(...)``.
They load on first use, so that ``import accord`` and labelling never wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Public name -> the module that defines it.
_DOORS = {
    "run": "accord.loop",
    "run_seeds": "accord.loop",
    "compare": "accord.loop",
    "sweep": "accord.loop",
    "sweep_stage": "accord.loop",
    "WaitingForPeople": "accord.loop",
    "tokenizer": "accord.train.tokenizer",
    "pretrain": "accord.train.pretrain",
    "sft": "accord.train.sft",
    "sample": "accord.scoring",
    "reward": "accord.train.reward",
    "rl": "accord.train.rl",
    "dpo": "accord.train.dpo",
    "score": "accord.scoring",
    "evaluate": "accord.evals.folders",
    "evaluate_reward": "accord.evals.reward_eval",
    "goodhart": "accord.evals.goodhart",
    "redraw": "accord.report.redraw",
    "side_by_side": "accord.report.side_by_side",
    "load_recipe": "accord.config",
}

__all__ = ["__version__", *_DOORS]


def __getattr__(name: str) -> Any:
    if name in _DOORS:
        return getattr(import_module(_DOORS[name]), name)
    raise AttributeError(f"module 'accord' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
