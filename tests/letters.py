"""A task that any algorithm can learn in seconds: end with the letter a. Policies of letters, and the loop on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from accord.algo.table import POLICY_ALGORITHMS
from accord.config import OptimConfig, RlConfig
from accord.models.decoder import ScalarModel
from accord.models.folder import load_policy, load_scalar
from accord.train.controllers import Controllers
from accord.train.learner import Learner
from accord.train.policy_models import PolicyModels, ValueHead
from accord.train.policy_optimizer import PolicyOptimizer
from accord.train.prompts import Prompts
from accord.train.rl import find_algorithm

PROMPTS = ["Say:", "The village:", "He wrote:"]


class LastLetter:
    """A scorer by function: 1 for a text that ends with "a", else 0; ``sign`` turns the taste around."""

    def __init__(self, sign: float = 1.0) -> None:
        self.sign = sign

    def score(self, pairs: Sequence[tuple[str, str]]) -> Tensor:
        return self.sign * torch.tensor([float(text.endswith("a")) for _, text in pairs])


def rl_config(**changes: Any) -> RlConfig:
    settings: dict[str, Any] = {
        "precision": "fp32",
        "iterations": 15,
        "prompts_per_iteration": 48,
        "max_new_tokens": 12,
        "ppo_epochs": 2,
        "minibatches": 2,
        "kl_coef": 0.02,
        "eval_every": 5,
        "actor": OptimConfig(lr=3e-3, schedule="constant", eps=1e-5),
        "critic": OptimConfig(lr=3e-3, schedule="constant", eps=1e-5),
    } | changes
    row = POLICY_ALGORITHMS.get(settings.get("algorithm", "ppo"))
    if row is not None and not row.has_ratio:  # one pass, in as many steps
        settings |= {"ppo_epochs": 1, "minibatches": settings["ppo_epochs"] * settings["minibatches"]}
    return RlConfig(**settings)


def models_of(folder: Path, scorer: Any, config: RlConfig | None = None) -> PolicyModels:
    """The models of policy optimisation; a critic of the kind that the settings ask for, by default a trunk's own."""
    policy, words = load_policy(folder)
    reference, _ = load_policy(folder)
    critic: ScalarModel | ValueHead | None = load_scalar(folder, head_seed=0)[0]
    with torch.no_grad():
        critic.score.weight.zero_()
    if config is not None and not find_algorithm(config).critic:
        critic = None
    elif config is not None and config.values.shared:
        critic = ValueHead(policy.config.width)
    return PolicyModels(policy, critic, reference.eval().requires_grad_(False), scorer, words)


def optimizer_of(config: RlConfig, models: PolicyModels) -> PolicyOptimizer:
    """What improves these models, with a target of 6 tokens for the mean length."""
    updates = config.iterations * config.ppo_epochs * config.minibatches
    learner = Learner(models.trained(), {"actor": config.actor, "critic": config.critic}, updates)
    return PolicyOptimizer(config, find_algorithm(config), models, learner, Controllers.of(config, 6.0))


def optimise(config: RlConfig, models: PolicyModels) -> list[dict[str, float]]:
    """The loop of the stage, with a scorer that is a function."""
    optimizer = optimizer_of(config, models)
    return [optimizer.step(Prompts(PROMPTS), step)[1] for step in range(config.iterations)]
