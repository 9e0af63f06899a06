"""The loss of policy optimisation on one rollout, micro-batch by micro-batch, whatever the row of the table.

Shapes: B samples, C completion tokens, N counted tokens of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from accord.algo.policy_loss import Tokens, clipped_value_loss, trust_region, update_stats
from accord.algo.table import CORRECTIONS, KL_PLACES, PolicyAlgorithm
from accord.config import RlConfig
from accord.errors import DataError, UsageError
from accord.formats.stage_rows import read_texts
from accord.models.decoder import CausalLM, ScalarModel
from accord.ranks import ONE_PROCESS, Ranks
from accord.text.batches import Batch, pack_blocks
from accord.text.tokenizer import Tokenizer
from accord.train.controllers import Controllers
from accord.train.likelihood import shared_block_losses
from accord.train.policy_models import Forward, PolicyModels, ValueHead, token_values
from accord.train.rollouts import Experience, Rollout, micro_batches


@dataclass(frozen=True)
class PretrainingMix:
    """Blocks of plain text whose loss is added to every update (PPO-ptx: Ouyang 2022, arXiv:2203.02155, eq. 2)."""

    blocks_NT: Tensor
    blocks_per_update: int
    coef: float

    def losses(self, policy: CausalLM, seed: int, ranks: Ranks = ONE_PROCESS) -> Iterator[Tensor]:
        """Yield what adds up to ``coef`` times the mean nats a token of the blocks that this seed draws."""
        generator = torch.Generator().manual_seed(seed)
        # With replacement: an update's blocks are a function of its seed alone.
        rows = torch.randint(len(self.blocks_NT), (self.blocks_per_update,), generator=generator)
        for loss in shared_block_losses(policy, self.blocks_NT[rows], ranks):
            yield self.coef * loss


def read_mix(config: RlConfig, tokenizer: Tokenizer, ptx_data: Path | None) -> PretrainingMix | None:
    """Return the texts whose loss is added to every update, as blocks; None where ``ptx.coef`` is 0.

    Raises UsageError where one of coefficient and texts is given without the other, DataError for too few texts.
    """
    if (config.ptx.coef > 0) != (ptx_data is not None):
        raise UsageError(
            f"rl.ptx.coef is {config.ptx.coef} and texts to remember are {'not ' if ptx_data is None else ''}given",
            hint="give both --ptx-data FILE and rl.ptx.coef above 0, or neither",
        )
    if ptx_data is None:
        return None
    blocks_NT = pack_blocks(tokenizer.encode_prompts(read_texts(ptx_data)), tokenizer.end_id, config.ptx.block_tokens)
    if not len(blocks_NT):
        raise DataError(
            f"the texts do not fill one block of {config.ptx.block_tokens} tokens",
            where=str(ptx_data),
            hint="give more text, or lower rl.ptx.block_tokens",
        )
    return PretrainingMix(blocks_NT, config.ptx.blocks, config.ptx.coef)


def kl_place(config: RlConfig, algorithm: PolicyAlgorithm) -> str:
    """Return where this run pays for the KL to the reference: the name of a row of `KL_PLACES`."""
    return algorithm.kl_in if config.kl_in == "auto" else config.kl_in


def correction_weights(config: RlConfig, rollout: Rollout) -> Tensor | None:
    """Return what each token of a rollout counts, ``(B, C)``, by who drew it; None where all count 1."""
    name = config.rollout.correction
    if name == "auto":
        name = "token" if config.rollout.use != "engine" or config.rollout.max_staleness else "none"
    if name == "none":
        return None
    return CORRECTIONS[name].weights(
        rollout.old_logp_BC, rollout.behaviour_logp_BC, rollout.mask_BC, config.rollout.cap
    )


@dataclass
class Update:
    """One iteration's update, on experience that stays as it was before the first step.

    ``held``: the policy is only looked at, and the critic learns alone.
    """

    config: RlConfig
    algorithm: PolicyAlgorithm
    models: PolicyModels
    controllers: Controllers
    experience: Experience
    mix: PretrainingMix | None = None
    held: bool = False
    ranks: Ranks = ONE_PROCESS
    seen: dict[str, float] = field(default_factory=dict)

    def losses(self, rows: Sequence[int], seed: int) -> Iterator[Tensor]:
        """Yield losses of policy and critic, micro-batch by micro-batch, which add up to the minibatch's loss.

        They come one after the other, so that only one network's activations are held at a time, but for those that
        the rollout's own forward pass left. What is measured on the way is added up in ``seen``.
        """
        rollout = self.experience.rollout
        # Of the whole minibatch: how it is split changes memory, not the loss.
        num_tokens = float(rollout.mask_BC[list(rows)].sum())
        weight_B, counted = torch.zeros(len(rollout.examples)), self._counted(rows)
        if counted:
            weight_B[counted] = self.algorithm.aggregate(self._counted_lengths()[counted], self.config)
        for picked, batch, counts in micro_batches(self.config, self.models, rollout.examples, rows, self.ranks):
            seen = dict(self.seen)
            for loss in self._micro_losses(picked, batch, weight_B, num_tokens):
                yield counts * loss
            # What only fills up is in no statistic.
            self.seen = self.seen if counts else seen
        if self.mix is not None and not self.held:
            for loss in self.mix.losses(self.models.policy, seed, self.ranks):
                self._merge({"ptx_loss": loss.detach() / self.mix.coef})
                yield loss
        of_all, self.seen = self.ranks.gather(self.seen), {}
        for seen in of_all:
            self._merge(seen)

    def _counted(self, rows: Sequence[int]) -> list[int]:
        """Return the rows that take part, in numbers too: those whose tokens the correction does not all leave out."""
        if self.correction_BC is None:
            return list(rows)
        # A sequence that leaves but stays in the denominator would weaken the others (slime's 657th change).
        return [row for row in rows if bool(self.correction_BC[row].any())]

    @cached_property
    def correction_BC(self) -> Tensor | None:
        """What each token counts, by who drew it; None where all count 1."""
        return correction_weights(self.config, self.experience.rollout)

    def _counted_lengths(self) -> Tensor:
        """Return the tokens of each sample that denominators count, ``(B,)``; 0 where it takes no part."""
        length_B = self.experience.rollout.tokens_B
        if not self.algorithm.only_chosen:
            return length_B
        return torch.where((self.experience.advantage_BC != 0).any(1), length_B, 0.0)

    def _micro_losses(
        self, picked: Sequence[int], batch: Batch, weight_B: Tensor, num_tokens: float
    ) -> Iterator[Tensor]:
        """Yield the loss of the policy, then that of a critic; both as one where they share a trunk."""
        with torch.set_grad_enabled(not self.held):
            logp_N, entropy_N, value_N = self._forward(batch)
            loss = self._policy_loss(picked, logp_N, entropy_N, weight_B, num_tokens)
        del logp_N, entropy_N
        critic = self.models.critic
        if critic is None:
            yield loss
            return
        joint = isinstance(critic, ValueHead)
        if not joint:
            if not self.held:
                yield loss
            del loss  # lets go of the policy's activations before the critic runs
        if value_N is None:
            assert isinstance(critic, ScalarModel)
            value_N = token_values(critic, batch)
        value_loss = self.config.values.coef * self._value_loss(picked, value_N, num_tokens)
        # One trunk, one backward pass; values.coef keeps the critic's gradient from leading it.
        yield loss + value_loss if joint else value_loss

    def _forward(self, batch: Batch) -> Forward:
        """Return the rollout's own forward pass where it is still to be used, else a new one."""
        if self.experience.rollout.first:
            # Once: after a step the weights have moved, and its graph is freed.
            return self.experience.rollout.first.pop()
        wanted = self.config.entropy_coef > 0
        return self.models.forward_logps(batch, self.config.temperature, entropy=wanted, values=False)

    def _policy_loss(
        self, picked: Sequence[int], logp_N: Tensor, entropy_N: Tensor, weight_B: Tensor, num_tokens: float
    ) -> Tensor:
        config, rollout = self.config, self.experience.rollout
        inside = rollout.mask_BC[picked]
        row_N = inside.nonzero()[:, 0]
        old_logp_N, advantage_N = rollout.old_logp_BC[picked][inside], self.experience.advantage_BC[picked][inside]
        tokens = Tokens(logp_N, old_logp_N, advantage_N, row_N)
        loss_N = self.algorithm.surrogate(tokens, config)
        if self.correction_BC is not None:
            loss_N = self.correction_BC[picked][inside] * loss_N
        kl_loss, price = KL_PLACES[kl_place(config, self.algorithm)].loss, self.controllers.kl.coef
        if kl_loss is not None and price > 0:
            ref_logp_N = rollout.ref_logp_BC[picked][inside]
            loss_N = loss_N + price * kl_loss(logp_N, ref_logp_N, tokens.log_ratio_N)
        if self.controllers.trust.coef > 0:
            loss_N = loss_N + self.controllers.trust.coef * trust_region(tokens)
        if config.entropy_coef > 0:
            # Exact for each position, from the whole softmax, not -log p of the token drawn.
            loss_N = loss_N - config.entropy_coef * entropy_N
        # A sum: the aggregate has the denominator in its weights, from the lengths of the whole minibatch.
        loss = (weight_B[picked][row_N] * loss_N).sum()
        stats = update_stats(tokens, config)
        self._merge({k: v if k in COMBINE else v / num_tokens for k, v in stats.items()})
        self._merge({"policy_loss": loss.detach()})
        return loss

    def _value_loss(self, picked: Sequence[int], value_N: Tensor, num_tokens: float) -> Tensor:
        rollout, return_BC = self.experience.rollout, self.experience.return_BC
        assert return_BC is not None
        inside = rollout.mask_BC[picked]
        old_value_N, return_N = rollout.value_BC[picked][inside], return_BC[picked][inside]
        # The rollout's values have it too: the network itself never moves for a constant.
        value_N = value_N + self.controllers.level.shift
        loss = clipped_value_loss(value_N, old_value_N, return_N, self.config.values.clip, num_tokens)
        self._merge({"value_loss": loss.detach()})
        return loss

    def _merge(self, stats: Mapping[str, Tensor | float]) -> None:
        for name, value in stats.items():
            new = float(value)
            self.seen[name] = COMBINE.get(name, float.__add__)(self.seen[name], new) if name in self.seen else new


#: Statistics that are not sums over micro-batches.
COMBINE: dict[str, Callable[[float, float], float]] = {"ratio_max": max, "ratio_min": min}
