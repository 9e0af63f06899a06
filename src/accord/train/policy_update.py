"""The update of policy optimisation: all epochs and minibatches on one rollout, whatever the row of the table.

Shapes: B samples, C completion tokens, N counted tokens of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from accord.algo.advantages import Rewarded, token_rewards
from accord.algo.policy_loss import Tokens, clipped_value_loss, explained_variance, trust_region, update_stats
from accord.algo.table import KL_PLACES, PolicyAlgorithm
from accord.config import RlConfig
from accord.models.decoder import CausalLM, ScalarModel
from accord.seeds import stream_seed
from accord.train.controllers import Controllers
from accord.train.learner import Learner
from accord.train.lm import block_loss
from accord.train.policy_models import PolicyModels, ValueHead, token_values
from accord.train.prompts import permutation
from accord.train.rollouts import Rollout, micro_batches


@dataclass(frozen=True)
class PretrainingMix:
    """Blocks of plain text whose loss is added to every update (PPO-ptx: Ouyang 2022, arXiv:2203.02155, eq. 2)."""

    blocks_NT: Tensor
    blocks_per_update: int
    coef: float

    def loss(self, policy: CausalLM, seed: int) -> Tensor:
        """``coef`` times the mean nats a token of the blocks that this seed draws."""
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randint(len(self.blocks_NT), (self.blocks_per_update,), generator=generator)
        return self.coef * block_loss(policy, self.blocks_NT[rows])


def kl_place(config: RlConfig, algorithm: PolicyAlgorithm) -> str:
    """Return where this run pays for the KL to the reference: the name of a row of `KL_PLACES`."""
    return algorithm.kl_in if config.kl_in == "auto" else config.kl_in


@dataclass
class Update:
    """One iteration's update: the rollout with its advantages, which stay as they were before the first step."""

    config: RlConfig
    algorithm: PolicyAlgorithm
    actors: PolicyModels
    controllers: Controllers
    rollout: Rollout
    advantage_BC: Tensor
    return_BC: Tensor | None
    mix: PretrainingMix | None = None
    seen: dict[str, float] = field(default_factory=dict)

    def losses(self, rows: Sequence[int], seed: int) -> Iterator[Tensor]:
        """Losses of policy and critic, micro-batch by micro-batch, which add up to the minibatch's loss.

        They come one after the other, so that only one network's activations are held at a time, but for those that
        the rollout's own forward pass left. What is measured on the way is added up in ``seen``.
        """
        config, rollout, actors = self.config, self.rollout, self.actors
        num_tokens = float(rollout.mask_BC[list(rows)].sum())
        weight_B = torch.zeros(len(rollout.examples))
        weight_B[list(rows)] = self.algorithm.aggregate(rollout.tokens_B[list(rows)], config)
        for picked, batch in micro_batches(config, actors, rollout.examples, rows):
            if rollout.first:
                logp_N, entropy_N, value_N = rollout.first.pop()
            else:
                wanted = config.entropy_coef > 0
                logp_N, entropy_N, value_N = actors.look(batch, config.temperature, entropy=wanted, values=False)
            loss = self._policy_loss(picked, logp_N, entropy_N, weight_B, num_tokens)
            del logp_N, entropy_N
            if actors.critic is None:
                yield loss
                continue
            joint = isinstance(actors.critic, ValueHead)
            if not joint:
                yield loss
                del loss
            if value_N is None:
                assert isinstance(actors.critic, ScalarModel)
                value_N = token_values(actors.critic, batch)
            value_loss = config.values.coef * self._value_loss(picked, value_N, num_tokens)
            yield loss + value_loss if joint else value_loss
        if self.mix is not None:
            loss = self.mix.loss(actors.policy, seed)
            self._merge({"ptx_loss": loss.detach() / self.mix.coef})
            yield loss

    def _policy_loss(
        self, picked: Sequence[int], logp_N: Tensor, entropy_N: Tensor, weight_B: Tensor, num_tokens: float
    ) -> Tensor:
        config, rollout = self.config, self.rollout
        inside = rollout.mask_BC[picked]
        row_N = inside.nonzero()[:, 0]
        old_logp_N, advantage_N = rollout.old_logp_BC[picked][inside], self.advantage_BC[picked][inside]
        tokens = Tokens(logp_N, old_logp_N, advantage_N, row_N)
        loss_N = self.algorithm.surrogate(tokens, config)
        kl_loss, price = KL_PLACES[kl_place(config, self.algorithm)].loss, self.controllers.kl.coef
        if kl_loss is not None and price > 0:
            ref_logp_N = rollout.ref_logp_BC[picked][inside]
            loss_N = loss_N + price * kl_loss(logp_N, ref_logp_N, tokens.log_ratio_N)
        if self.controllers.trust.coef > 0:
            loss_N = loss_N + self.controllers.trust.coef * trust_region(tokens)
        if config.entropy_coef > 0:
            loss_N = loss_N - config.entropy_coef * entropy_N
        loss = (weight_B[picked][row_N] * loss_N).sum()
        stats = update_stats(tokens, config)
        self._merge({k: v if k in COMBINE else v / num_tokens for k, v in stats.items()})
        self._merge({"policy_loss": loss.detach()})
        return loss

    def _value_loss(self, picked: Sequence[int], value_N: Tensor, num_tokens: float) -> Tensor:
        assert self.return_BC is not None
        rollout, inside = self.rollout, self.rollout.mask_BC[picked]
        old_value_N, return_N = rollout.value_BC[picked][inside], self.return_BC[picked][inside]
        loss = clipped_value_loss(value_N, old_value_N, return_N, self.config.values.clip, num_tokens)
        self._merge({"value_loss": loss.detach()})
        return loss

    def _merge(self, stats: Mapping[str, Tensor | float]) -> None:
        for name, value in stats.items():
            new = float(value)
            self.seen[name] = COMBINE.get(name, float.__add__)(self.seen[name], new) if name in self.seen else new


#: Statistics that are not sums over micro-batches.
COMBINE: dict[str, Callable[[float, float], float]] = {"ratio_max": max, "ratio_min": min}


def update_policy(
    config: RlConfig,
    algorithm: PolicyAlgorithm,
    actors: PolicyModels,
    learner: Learner,
    controllers: Controllers,
    rollout: Rollout,
    seed: int,
    mix: PretrainingMix | None = None,
) -> dict[str, float]:
    """All epochs and minibatches on one rollout; what was measured, of the last step unless its name says otherwise.

    The rollout's own forward pass serves the first of them once; it holds for weights that nothing has moved since.
    """
    update, stats = prepare_update(config, algorithm, actors, controllers, rollout, mix)
    extremes: dict[str, float] = {}
    size = len(rollout.examples) // config.minibatches
    for epoch in range(config.ppo_epochs):
        order = permutation(len(rollout.examples), stream_seed(seed, epoch))
        for start in range(0, len(order), size):
            update.seen = {}
            losses = update.losses(sorted(order[start : start + size]), stream_seed(seed, "mix", epoch, start))
            stats |= learner.update(losses) | update.seen
            for name in COMBINE:
                new = update.seen[name]
                extremes[name] = COMBINE[name](extremes.get(name, new), new)
            if epoch == 0 and start == 0:
                stats |= {"first_ratio_max": stats["ratio_max"], "first_approx_kl": stats["approx_kl"]}
    return stats | extremes


def prepare_update(
    config: RlConfig,
    algorithm: PolicyAlgorithm,
    actors: PolicyModels,
    controllers: Controllers,
    rollout: Rollout,
    mix: PretrainingMix | None = None,
) -> tuple[Update, dict[str, float]]:
    """Rewards, advantages and returns of a rollout, and what they look like."""
    mask = rollout.mask_BC
    price = controllers.kl.coef if KL_PLACES[kl_place(config, algorithm)].loss is None else 0.0
    reward_BC = token_rewards(rollout.score_B, rollout.old_logp_BC, rollout.ref_logp_BC, mask, price)
    rewarded = Rewarded(reward_BC, rollout.value_BC, mask, config.samples_per_prompt, controllers.returns.mean)
    advantage_BC, return_BC = algorithm.advantages(rewarded, config)
    controllers.returns.update(rewarded.return_B)
    bare_N = (advantage_BC if return_BC is None else return_BC - rollout.value_BC)[mask]
    stats = {
        "return": float(rewarded.return_B.mean()),
        "advantage_mean": float(bare_N.mean()),
        "advantage_std": float(bare_N.std(unbiased=False)),
    }
    if return_BC is not None:
        stats["value"] = float(rollout.value_BC[mask].mean())
        stats["explained_variance"] = float(explained_variance(rollout.value_BC[mask], return_BC[mask]))
    return Update(config, algorithm, actors, controllers, rollout, advantage_BC, return_BC, mix), stats
