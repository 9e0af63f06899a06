"""The models of policy optimisation: policy, reference, critic and what scores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accord.algo.logprob import token_logp
from accord.algo.table import PolicyAlgorithm
from accord.config import RlConfig
from accord.errors import DataError
from accord.models.backbone import recompute_activations
from accord.models.decoder import CausalLM, ScalarModel
from accord.models.folder import load_policy, load_scalar
from accord.models.lora import adapter_off, add_lora
from accord.models.placement import Placement
from accord.scoring.scorer import Scorer
from accord.scoring.weighted import load_scorer
from accord.seeds import stream_seed
from accord.text.batches import Batch
from accord.text.tokenizer import Tokenizer, tokenizer_hash
from accord.train.likelihood import logp_and_entropy


class ValueHead(nn.Module):
    """A critic without a trunk of its own: one linear D -> 1 on the policy's hidden states, 0 at the start."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1, bias=False)
        # At 0 its gradient leaves the policy's trunk alone until it knows something.
        nn.init.zeros_(self.score.weight)

    def forward(self, hidden_ND: Tensor) -> Tensor:
        return F.linear(hidden_ND.float(), self.score.weight).squeeze(-1).cpu()


class Forward(NamedTuple):
    """The numbers of one forward pass at each counted token of a batch, ``(N,)`` each, in row order."""

    logp_N: Tensor
    entropy_N: Tensor
    value_N: Tensor | None


@dataclass
class PolicyModels:
    """The models of policy optimisation.

    ``reference`` is a frozen copy of the policy as it started, or the policy itself where an adapter trains.
    ``critic`` is None where the algorithm learns no values, a `ValueHead` where it shares the policy's trunk.
    ``held_to`` are the models that KL is paid to, each its share, where that is not ``reference`` alone.
    """

    policy: CausalLM
    critic: ScalarModel | ValueHead | None
    reference: CausalLM
    scorer: Scorer
    tokenizer: Tokenizer
    held_to: tuple[CausalLM, ...] = ()

    @contextmanager
    def as_reference(self) -> Iterator[CausalLM]:
        """The policy before any update, for the length of a block."""
        with adapter_off(self.reference):
            yield self.reference

    def reference_logps(self, batch: Batch, temperature: float) -> Tensor:
        """Return the log-probability under the reference of each counted token, ``(N,)``; of several their mean.

        log pi - mean_i log ref_i is the mean of the KLs' integrands: a price on it is a price on the mean of the KLs.
        """
        said = []
        for model in self.held_to or (self.reference,):
            with adapter_off(model):
                said.append(logp_and_entropy(model, batch, temperature, entropy=False)[0])
        return said[0] if len(said) == 1 else torch.stack(said).mean(0)

    def trained(self) -> dict[str, nn.Module]:
        """Return what the learner moves, by the names that settings and metrics use."""
        return {"actor": self.policy} if self.critic is None else {"actor": self.policy, "critic": self.critic}

    def forward_logps(self, batch: Batch, temperature: float, *, entropy: bool, values: bool = True) -> Forward:
        """Run policy and critic over a batch.

        Entropies are zeros unless asked for. Values are None without a critic; those of a trunk of its own are also
        where they are not asked for, so that a caller can let go of the policy's activations first.
        """
        hidden_ND, head_VD, target_N = self.policy.predictions(batch)
        logp_N, entropy_N = (x.cpu() for x in token_logp(hidden_ND, head_VD, target_N, temperature, entropy=entropy))
        if isinstance(self.critic, ValueHead):
            return Forward(logp_N, entropy_N, self.critic(hidden_ND))
        return Forward(
            logp_N, entropy_N, token_values(self.critic, batch) if self.critic is not None and values else None
        )


def token_values(critic: ScalarModel, batch: Batch) -> Tensor:
    """Return the value of the state that chooses each counted token, ``(N,)``."""
    flat_N, _ = batch.predicting()
    values: Tensor = critic(*batch.inputs(), flat_N)
    return values


def load_policy_models(
    config: RlConfig, algorithm: PolicyAlgorithm, model: Path, reward_model: Path | None, seed: int = 0
) -> PolicyModels:
    """Read policy, reference (the same checkpoint, frozen) and scorers, and make the critic."""
    placement = Placement.of(config)
    scorer = load_scorer(config.rewards, reward_model, placement)
    policy, tokenizer = load_policy(model, placement)
    add_lora(policy, config.lora, stream_seed(seed, "lora"))
    # With an adapter the policy without it is the reference: no second model in memory.
    reference = policy if config.lora.rank else load_policy(model, placement)[0].eval().requires_grad_(False)
    if config.activation_checkpointing:
        recompute_activations(policy.model)
    critic: ScalarModel | ValueHead | None = None
    if algorithm.critic:
        shared = config.values.shared
        critic = ValueHead(policy.config.width) if shared else _own_critic(config, model, reward_model, seed)
        critic.to(policy.device)
    return PolicyModels(policy, critic, reference, scorer, tokenizer)


def hold_to(
    config: RlConfig, models: PolicyModels, model: Path, reference: Path | None, second: Path | None
) -> PolicyModels:
    """Return the models held to others than the one they started as: ``reference`` in its place, ``second`` beside it.

    Raises DataError where one has another tokenizer than ``model``.
    """
    placement, others = Placement.of(config), [path for path in (reference, second) if path is not None]
    for path in others:
        if tokenizer_hash(path) != tokenizer_hash(model):
            raise DataError(
                "policy and reference have different tokenizers",
                where=str(path),
                why="KL compares log-probabilities of the same tokens",
            )
    loaded = tuple(load_policy(path, placement)[0].eval().requires_grad_(False) for path in others)
    kept = () if reference is not None or not others else (models.reference,)
    return replace(models, held_to=(*kept, *loaded))


def _own_critic(config: RlConfig, model: Path, reward_model: Path | None, seed: int) -> ScalarModel:
    """Return a critic that starts from the reward model, or with other tokens from the policy under a zero head."""
    # Values stand on the policy's tokens: a reward model that cuts texts otherwise cannot be read there.
    start = reward_model if reward_model and tokenizer_hash(model) == tokenizer_hash(reward_model) else None
    critic, _, scale = load_scalar(start or model, Placement.of(config), head_seed=0)
    # On the score's own scale, as returns are; a random head would be noise to unlearn, so else it is 0.
    critic.merge_heads(scale.gains if start else [0.0])
    # A rank of its own: a critic learns a new thing, a policy stays near what it is.
    critic_lora = config.lora.model_copy(update={"rank": config.lora.critic_rank})
    add_lora(critic, critic_lora, stream_seed(seed, "critic lora"))
    if config.activation_checkpointing:
        recompute_activations(critic.model)
    return critic
