"""Policy optimisation, one iteration a step: sample, score, reward, update, adapt.

Shapes: B samples of an iteration, C completion tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from accord.algo.advantages import Rewarded, token_rewards
from accord.algo.policy_loss import explained_variance
from accord.algo.table import KL_PLACES, PolicyAlgorithm
from accord.config import RlConfig
from accord.progress import Log, part_of, quiet
from accord.rollout.engine import Sampling
from accord.rollout.generator import EngineGenerator, Generator
from accord.scoring.reward_model import RewardModel
from accord.scoring.weighted import reward_models
from accord.seeds import stream_seed
from accord.train.controllers import Controllers
from accord.train.learner import Learner
from accord.train.policy_models import PolicyModels
from accord.train.policy_update import COMBINE, PretrainingMix, Update, kl_place
from accord.train.prompts import Prompts, permutation
from accord.train.publishing import Publisher
from accord.train.rollouts import (
    Experience,
    Rollout,
    Scored,
    measure_rollout,
    rollout_stats,
    score_samples,
    shape_scores,
    shared_samples,
)

AHEAD = "ahead"  # in a checkpoint's state
DRAWING = 0.6  # of an iteration, about: what progress makes of it before one has been measured


@dataclass
class PolicyOptimizer:
    """A policy with what improves it on prompts, whatever the row of the table.

    Attributes:
        algorithm: the row.
        learner: moves the weights of ``models.trained()``.
        controllers: what adapts from iteration to iteration besides weights; with the learner all state there is.
        publisher: keeps a copy of the policy that draws in its place, or None.
        mix: plain texts whose loss is added to every update, or None.
        seed: all samples and orders are functions of it and of the step.
    """

    config: RlConfig
    algorithm: PolicyAlgorithm
    models: PolicyModels
    learner: Learner
    controllers: Controllers
    mix: PretrainingMix | None = None
    seed: int = 0
    publisher: Publisher | None = None
    generator: Generator = field(init=False)

    def __post_init__(self) -> None:
        self.generator = EngineGenerator(self.models.policy, self.models.tokenizer)

    def step(self, prompts: Prompts, step: int, log: Log = quiet) -> tuple[Scored, dict[str, float]]:
        """Run one iteration, whose parts it reports. Returns its scored samples and its metrics."""
        if self.publisher is not None:
            self.publisher.publish()
        scored = self.sample(prompts, step, part_of(log, 0.0, DRAWING))
        self._draw_ahead(prompts, step + 1)
        return scored, self.improve(scored, stream_seed(self.seed, "minibatch", step), part_of(log, DRAWING, 1.0))

    def improve(self, scored: Scored, seed: int, log: Log = quiet) -> dict[str, float]:
        """Run an iteration from its scored samples on; ``seed`` decides the minibatches. Returns its metrics."""
        # Before shaping: it is the scorer's deviation that scores are divided by.
        self.controllers.scores.update(scored.score_B)
        score_B = shape_scores(self.config, scored, self.controllers)
        log(0.0, "log-probabilities of the samples under policy and reference")
        ranks = self.learner.ranks
        rollout = self._levelled(measure_rollout(self.config, self.models, scored, score_B, ranks))
        rewarded = self.rewards(rollout)
        experience = self.advantages(rollout, rewarded)
        stats = rollout_stats(rollout, self.config.samples_per_prompt) | self.controllers.prices()
        stats |= experience_stats(experience, rewarded)
        if self.publisher is not None:
            stats |= {"canary_gap": self.publisher.gap, "weights_version": float(self.publisher.generator.version)}
        stats |= reward_cut(reward_models(self.models.scorer), scored)
        warms_up = self.warms_up
        stats |= self.update(experience, seed, log)
        if not warms_up:  # a policy that is held still answers no price
            self.controllers.adapt(stats, len(scored.samples))
        return stats

    @property
    def warms_up(self) -> bool:
        """Whether the critic learns alone in this iteration."""
        updates = self.config.values.warmup * self.config.ppo_epochs * self.config.minibatches
        return self.algorithm.critic and self.learner.step < updates

    def _levelled(self, rollout: Rollout) -> Rollout:
        """Return the rollout with its values on the level of the scores."""
        if self.models.critic is None:
            return rollout
        self.controllers.level.start(rollout.score_B - rollout.last_value_B)
        return rollout.raised(self.controllers.level.shift)

    # -- samples and scores --------------------------------------------------------------------------------------------

    def sample(self, prompts: Prompts, step: int, log: Log = quiet) -> Scored:
        """Return the scored samples of an iteration.

        Where the algorithm drops zero-variance groups, other prompts are drawn in their place, ``redraws`` times at
        most; what is missing then is filled up with zero-variance groups, whose advantages are 0.
        """
        wanted, group = self.config.prompts_per_iteration, self.config.samples_per_prompt
        scored = self._draw(prompts.pick(wanted, step, self.seed), step, log=log)
        for attempt in range(self.config.redraws if self.algorithm.drop_zero_variance else 0):
            useless = int(scored.zero_variance_P(group).sum())
            missing = wanted - (len(scored.samples) // group - useless)
            if missing <= 0:
                break
            others = prompts.pick(missing, step, stream_seed(self.seed, "redraw", attempt))
            scored = scored + self._draw(others, step, attempt)
        if len(scored.samples) == wanted * group:
            return scored
        # Always as many prompts: each iteration has the same number of updates, and a resumed run knows which is its
        # next. Stable, so that prompts keep their order.
        order = torch.argsort(scored.zero_variance_P(group).long(), stable=True)[:wanted].tolist()
        return scored.rows([p * group + i for p in order for i in range(group)])

    def _draw(self, prompts: Sequence[str], *stream: int, log: Log = quiet) -> Scored:
        """Return scored completions of these prompts, from a random stream of their own."""
        seed = stream_seed(self.seed, "rollout", *stream)
        if self.publisher is not None:
            log(0.0, f"{len(prompts) * self._sampling.samples_per_prompt} samples by a copy of the policy")
            samples = self.publisher.draw(prompts, self._sampling, seed)
        else:
            samples = shared_samples(self.generator, prompts, self._sampling, seed, self.learner, log)
        log(1.0, f"scoring {len(samples)} samples")
        return score_samples(self.models.scorer, samples, self.learner.ranks)

    @property
    def _sampling(self) -> Sampling:
        return Sampling(self.config.max_new_tokens, self.config.samples_per_prompt, self.config.temperature)

    def _draw_ahead(self, prompts: Prompts, step: int) -> None:
        """Let the copy begin with the samples of the next step, where they may be of weights from before this one."""
        if self.publisher is not None and self.config.rollout.max_staleness and step < self.config.iterations:
            chosen = prompts.pick(self.config.prompts_per_iteration, step, self.seed)
            self.publisher.draw_ahead(chosen, self._sampling, stream_seed(self.seed, "rollout", step))

    # -- what a checkpoint keeps besides the learner -------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return the controllers', and what a copy has drawn ahead."""
        ahead = self.publisher.state() if self.publisher is not None else {}
        return self.controllers.state() | ({AHEAD: ahead} if ahead else {})

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where a checkpoint was written."""
        state = dict(state)
        ahead = state.pop(AHEAD, {})
        self.controllers.restore(state)
        if self.publisher is not None:
            self.publisher.restore(ahead)

    # -- rewards and advantages ----------------------------------------------------------------------------------------

    def rewards(self, rollout: Rollout) -> Rewarded:
        """Return the reward of each token: the score at the end, less the price of KL where it lives in the reward."""
        in_reward = KL_PLACES[kl_place(self.config, self.algorithm)].loss is None
        price = self.controllers.kl.coef if in_reward else 0.0
        reward_BC = token_rewards(rollout.score_B, rollout.old_logp_BC, rollout.ref_logp_BC, rollout.mask_BC, price)
        group, baseline = self.config.samples_per_prompt, self.controllers.returns.mean
        return Rewarded(reward_BC, rollout.value_BC, rollout.mask_BC, group, baseline)

    def advantages(self, rollout: Rollout, rewarded: Rewarded) -> Experience:
        """Return the advantages by the algorithm's rule; the running mean of returns takes these in afterwards."""
        advantage_BC, return_BC = self.algorithm.advantages(rewarded, self.config)
        if self.algorithm.drop_zero_variance:
            # Only filled up with: penalties and the price of KL would part what the scorer could not tell apart, and
            # divided by their own small deviation those advantages were as large as any.
            useless_P = rollout.scored.zero_variance_P(rewarded.group)
            advantage_BC = advantage_BC.masked_fill(useless_P.repeat_interleave(rewarded.group)[:, None], 0.0)
        # Afterwards: a baseline that contains a sample's own return would be biased by it.
        self.controllers.returns.update(rewarded.return_B)
        return Experience(rollout, advantage_BC, return_BC)

    # -- the update ----------------------------------------------------------------------------------------------------

    def update(self, experience: Experience, seed: int, log: Log = quiet) -> dict[str, float]:
        """Take all epochs and minibatches on one rollout.

        Returns what was measured, of the last step unless its name says otherwise. The rollout's own forward pass
        serves the first step; it holds for weights that nothing has moved since.
        """
        held, ranks = self.warms_up, self.learner.ranks
        update = Update(
            self.config, self.algorithm, self.models, self.controllers, experience, self.mix, held=held, ranks=ranks
        )
        stats: dict[str, float] = {}
        extremes: dict[str, float] = {}
        batches = self._minibatches(len(experience.rollout.examples), seed)
        for number, (rows, step_seed) in enumerate(batches):
            log(number / len(batches), f"update {number + 1} of {len(batches)}")
            update.seen = {}
            first = not stats
            stats |= self.learner.update(update.losses(rows, step_seed)) | update.seen
            for name, combine in COMBINE.items():
                extremes[name] = combine(extremes.get(name, update.seen[name]), update.seen[name])
            # Before any step of this rollout: anything but 1 and 0 is rounding, dropout or a stale weight, and the
            # alarms look.
            if first:
                stats |= {"first_ratio_max": stats["ratio_max"], "first_approx_kl": stats["approx_kl"]}
        return stats | extremes

    def _minibatches(self, count: int, seed: int) -> list[tuple[list[int], int]]:
        """Return the rows of every optimizer step, each epoch in an order of its own, and the step's seed."""
        size, found = count // self.config.minibatches, []
        # A fresh permutation each epoch; advantages and returns stay those of the rollout.
        for epoch in range(self.config.ppo_epochs):
            order = permutation(count, stream_seed(seed, epoch))
            for start in range(0, count, size):
                found.append((sorted(order[start : start + size]), stream_seed(seed, "mix", epoch, start)))
        return found


def experience_stats(experience: Experience, rewarded: Rewarded) -> dict[str, float]:
    """Return what returns, advantages (before whitening) and values look like before the update."""
    rollout, return_BC, mask_BC = experience.rollout, experience.return_BC, experience.rollout.mask_BC
    plain_N = (experience.advantage_BC if return_BC is None else return_BC - rollout.value_BC)[mask_BC]
    stats = {
        "return": float(rewarded.return_B.mean()),
        "advantage_mean": float(plain_N.mean()),
        "advantage_std": float(plain_N.std(unbiased=False)),
    }
    if return_BC is not None:
        stats["value"] = float(rollout.value_BC[mask_BC].mean())
        stats["value_gap"] = float((rollout.last_value_B - rollout.score_B).mean())
        stats["explained_variance"] = float(explained_variance(rollout.value_BC[mask_BC], return_BC[mask_BC]))
    return stats


def reward_cut(models: Sequence[RewardModel], scored: Scored) -> dict[str, float]:
    """Return the share of samples whose end a reward model does not read; nothing where none scores."""
    unread = [cut for one in models for cut in one.cut([sample.pair for sample in scored.samples])]
    return {"reward_cut": sum(unread) / len(unread)} if unread else {}
