"""Alarms on planted faults: each rings in a training that has it, and three healthy trainings are silent.

A fault is put into the loop itself, as it would be there by mistake, and never into the numbers that alarms read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from letters import PROMPTS, LastLetter, models_of, optimizer_of, rl_config
from torch import Tensor

import accord.train.rollouts as rollouts
from accord.evals.gate import gate_of
from accord.evals.pairs import ranked_pairs
from accord.evals.results import plain
from accord.evals.reward_card import card_json, reward_card
from accord.models.folder import load_policy
from accord.records import RankedGroup
from accord.rollout.generator import EngineGenerator
from accord.text.batches import Batch
from accord.train.alarms import raised_alarms, raised_trends
from accord.train.policy_optimizer import PolicyOptimizer
from accord.train.prompts import Prompts

#: More than a handful, as the error of KL is by prompts: of three it would be too small.
MANY = [f"{prompt} {word}:" for prompt in PROMPTS for word in ("fog", "bread", "ships", "time", "the keeper", "wants")]
QUIET = {"iterations": 6, "prompts_per_iteration": 32}


class ByLength:
    """A scorer that likes length and nothing else."""

    def score(self, pairs: Sequence[tuple[str, str]]) -> Tensor:
        return torch.tensor([float(len(text)) for _, text in pairs])


class Saturated:
    """A scorer that gives everything its highest score."""

    def score(self, pairs: Sequence[tuple[str, str]]) -> Tensor:
        return torch.full((len(pairs),), 5.0)


def rang(optimizer: PolicyOptimizer) -> list[list[str]]:
    """The names of the alarms of each step of a training."""
    found, earlier = [], list[dict[str, float]]()
    for step in range(optimizer.config.iterations):
        stats = optimizer.step(Prompts(MANY), step)[1]
        found.append([one["alarm"] for one in (*raised_alarms(stats), *raised_trends(stats, earlier))])
        earlier.append(stats)
    return found


def training(folder: Path, scorer: Any = None, **changes: Any) -> PolicyOptimizer:
    config = rl_config(**QUIET | changes)
    return optimizer_of(config, models_of(folder, scorer or LastLetter(), config))


GROUPED = {"samples_per_prompt": 4, "prompts_per_iteration": 8}


@pytest.mark.parametrize("changes", [{}, {"algorithm": "grpo", **GROUPED}, {"algorithm": "rloo", **GROUPED}])
def test_a_healthy_training_is_silent(letters_folder: Path, changes: dict[str, Any]) -> None:
    """PPO with its critic, GRPO and RLOO, each a few steps of a task that they learn, by a gentle learning rate.

    Of four completions a prompt all may score alike by chance: that alone, on half of the prompts, may be told.
    """
    gentle = rl_config().actor.model_copy(update={"lr": 3e-4})
    found = rang(training(letters_folder, actor=gentle, **changes))
    assert [[name for name in names if name != "zero-variance groups"] for names in found] == [[]] * QUIET["iterations"]


def wrong_temperature(optimizer: PolicyOptimizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples are drawn at another temperature than the one they are scored at."""
    right = PolicyOptimizer._sampling.fget  # type: ignore[attr-defined]
    monkeypatch.setattr(PolicyOptimizer, "_sampling", property(lambda self: replace(right(self), temperature=2.0)))


def with_dropout(optimizer: PolicyOptimizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden states of the policy lose a tenth of their width whenever they are computed for learning."""
    policy, seed = optimizer.models.policy, torch.Generator().manual_seed(0)
    plain_predictions = policy.predictions

    def dropped(batch: Batch) -> Any:
        hidden, *rest = plain_predictions(batch)
        return (hidden * (torch.rand(hidden.shape, generator=seed) > 0.1) / 0.9, *rest)

    monkeypatch.setattr(policy, "predictions", dropped)


def shifted_mask(optimizer: PolicyOptimizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts begins one token too early, and ends before the end token."""
    whole = rollouts.collate

    def shifted(*args: Any, **more: Any) -> Batch:
        batch = whole(*args, **more)
        return replace(batch, mask_BT=batch.mask_BT.roll(-1, dims=1))

    monkeypatch.setattr(rollouts, "collate", shifted)


def turned_sign(optimizer: PolicyOptimizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Advantages have the wrong sign: Ziegler's bug."""
    right = PolicyOptimizer.advantages

    def wrong(self: PolicyOptimizer, *args: Any) -> Any:
        experience = right(self, *args)
        return replace(experience, advantage_BC=-experience.advantage_BC)

    monkeypatch.setattr(PolicyOptimizer, "advantages", wrong)


def stale_rollouts(folder: Path) -> Callable[[PolicyOptimizer, pytest.MonkeyPatch], None]:
    def plant(optimizer: PolicyOptimizer, monkeypatch: pytest.MonkeyPatch) -> None:
        """Samples come from weights of long ago: those before the policy had learnt to write letters."""
        model, tokenizer = load_policy(folder)
        optimizer.generator = EngineGenerator(model.eval(), tokenizer)

    return plant


@pytest.mark.parametrize(
    ("fault", "alarm"),
    [
        (wrong_temperature, "rollout drift"),
        (with_dropout, "rollout drift"),
        (shifted_mask, "rollout drift"),
        ("stale", "stale samples"),
    ],
)
def test_a_planted_fault_rings_at_the_first_step(
    letters_folder: Path, policy_folder: Path, monkeypatch: pytest.MonkeyPatch, fault: Any, alarm: str
) -> None:
    optimizer = training(letters_folder, iterations=1)
    plant = stale_rollouts(policy_folder) if fault == "stale" else fault
    plant(optimizer, monkeypatch)
    assert alarm in rang(optimizer)[0]


@pytest.mark.slow
def test_a_turned_sign_rings_as_a_score_that_falls(letters_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"iterations": 8, "prompts_per_iteration": 128, "kl_coef": 0.0}
    optimizer = training(letters_folder, **changes)
    turned_sign(optimizer, monkeypatch)
    assert "score falls" in rang(optimizer)[-1]


@pytest.mark.slow
def test_length_that_is_paid_for_rings(letters_folder: Path) -> None:
    changes = {"iterations": 14, "prompts_per_iteration": 48, "kl_coef": 0.0, "length_coef": 0.0}
    found = rang(training(letters_folder, ByLength(), **changes))
    assert any("length grows with the score" in names for names in found)


@pytest.mark.parametrize("changes", [{}, {"algorithm": "grpo", **GROUPED}])
def test_a_saturated_reward_rings(letters_folder: Path, changes: dict[str, Any]) -> None:
    names = rang(training(letters_folder, Saturated(), iterations=1, **changes))[0]
    assert "scores all alike" in names and ("zero-variance groups" in names) == bool(changes)


def test_a_reward_model_of_the_wrong_sign_is_refused_before_any_step() -> None:
    """Of 60 topics: it gives the worse text the higher score nine times of ten."""
    rng = np.random.default_rng(0)
    groups = [RankedGroup(prompt=f"p{i}", completions=(f"good {i}", f"bad {i}"), ranks=(1, 2)) for i in range(60)]
    held_out = ranked_pairs(groups)
    right = np.array([float(text.startswith("good")) for text in held_out.completions])
    scores = np.where(np.repeat(rng.random(60) < 0.9, 2), -right, right)
    found = gate_of(plain(card_json(reward_card(scores, held_out, {}), {})))
    assert found.says == "refuse" and "is the sign wrong" in found.sentence
    assert gate_of(plain(card_json(reward_card(-scores, held_out, {}), {}))).says != "refuse"
