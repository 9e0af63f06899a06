"""The algorithms as rows of a table: a row names its small functions, and what it needs follows from them.

Adding an algorithm is a function (or none), a golden test and a row; the loop does not change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from accord.algo import advantages as credit
from accord.algo import policy_loss as loss
from accord.algo import preference_loss as preference
from accord.algo.advantages import Rewarded
from accord.algo.ensemble import mean, uncertainty_weighted, worst_case
from accord.algo.kl import k3_naive, ratio_weighted_k3
from accord.algo.policy_loss import Tokens
from accord.algo.preference_loss import PreferenceSettings
from accord.algo.reward_loss import RewardLoss, best_of_k, binary, pairwise, per_token, plackett_luce, regression
from accord.algo.settings import PolicySettings

#: Where the KL to the reference lives: in the reward of each token, or in the loss as one of `KL_LOSSES`.
KlPlace = Literal["reward", "loss", "loss_k3_naive"]

Advantages = Callable[[Rewarded, PolicySettings], tuple[Tensor, Tensor | None]]
Surrogate = Callable[[Tokens, PolicySettings], Tensor]
Aggregate = Callable[[Tensor, PolicySettings], Tensor]


@dataclass(frozen=True)
class PolicyAlgorithm:
    """A way to improve a policy from scored samples.

    Attributes:
        advantages: Rewards of a rollout -> advantages ``(B, T)``, and returns for the critic or None.
        surrogate: Tokens of a micro-batch -> a loss a token ``(N,)``.
        aggregate: Lengths of a minibatch's sequences -> the weight of each one's tokens ``(B,)``.
        kl_in: Where the KL to the reference lives unless the settings say otherwise.
        critic: Whether it learns values.
        min_group: Fewest completions of a prompt.
        drop_flat: Whether prompts whose completions all score the same are replaced by others.
    """

    advantages: Advantages
    surrogate: Surrogate
    aggregate: Aggregate
    kl_in: KlPlace = "reward"
    critic: bool = False
    min_group: int = 1
    drop_flat: bool = False


POLICY_ALGORITHMS: dict[str, PolicyAlgorithm] = {
    "ppo": PolicyAlgorithm(credit.whitened_gae, loss.clipped, loss.token_mean, critic=True),
    "reinforce": PolicyAlgorithm(credit.whole_return, loss.policy_gradient, loss.sequence_sum),
    "reinforce_baseline": PolicyAlgorithm(credit.above_running_mean, loss.policy_gradient, loss.sequence_sum),
    "rloo": PolicyAlgorithm(credit.leave_one_out, loss.policy_gradient, loss.sequence_sum, min_group=2),
    "grpo": PolicyAlgorithm(credit.group_normalised, loss.clipped, loss.sequence_mean, "loss", min_group=2),
    "dr_grpo": PolicyAlgorithm(credit.group_centred, loss.clipped, loss.fixed_length, "loss", min_group=2),
    "dapo": PolicyAlgorithm(
        credit.group_normalised, loss.clipped, loss.token_mean, "loss", min_group=2, drop_flat=True
    ),
    "raft": PolicyAlgorithm(credit.best_of_group, loss.policy_gradient, loss.token_mean, "loss", min_group=2),
}

#: (logp, ref_logp, log_ratio) -> the KL to the reference a token, as a term of the loss.
KL_LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "loss": ratio_weighted_k3,
    "loss_k3_naive": k3_naive,
}

REWARD_LOSSES: dict[str, RewardLoss] = {
    "bradley_terry": RewardLoss(pairwise, reads="pairs"),
    "best_of_k": RewardLoss(best_of_k, reads="orders"),
    "plackett_luce": RewardLoss(plackett_luce, reads="orders"),
    "binary": RewardLoss(binary, reads="labels"),
    "regression": RewardLoss(regression, reads="ratings"),
    "per_token": RewardLoss(per_token, reads="pairs", all_positions=True),
}

#: (score_SM, variance_coef) -> score_S
EnsembleRule = Callable[[Tensor, float], Tensor]

ENSEMBLE_RULES: dict[str, EnsembleRule] = {"mean": mean, "min": worst_case, "uwo": uncertainty_weighted}

#: (better_N, worse_N, settings) -> loss_N, of the strengths of both sides of N comparisons
PreferenceLoss = Callable[[Tensor, Tensor, PreferenceSettings], Tensor]


@dataclass(frozen=True)
class PreferenceAlgorithm:
    """A way to improve a policy from comparisons of completions, without a reward model.

    Attributes:
        loss: Strengths of both sides -> a loss a comparison.
        needs_reference: Whether a strength is measured against the reference.
        length_normalized: Whether it is a mean over the completion's tokens, not a sum.
        paired: Whether completions are compared with each other; else each with the zero point, and thumbs will do.
    """

    loss: PreferenceLoss
    needs_reference: bool = True
    length_normalized: bool = False
    paired: bool = True

    def strength(self, logp_S: Tensor, ref_logp_S: Tensor | None, length_S: Tensor) -> Tensor:
        """What this row compares, one number a completion, as `preference_loss.strength` has it."""
        reference_S = ref_logp_S if self.needs_reference else None
        return preference.strength(logp_S, reference_S, length_S if self.length_normalized else None)


PREFERENCE_LOSSES: dict[str, PreferenceAlgorithm] = {
    "dpo": PreferenceAlgorithm(preference.dpo),
    "cdpo": PreferenceAlgorithm(preference.cdpo),
    "ipo": PreferenceAlgorithm(preference.ipo, length_normalized=True),
    "ipo_sum": PreferenceAlgorithm(preference.ipo),
    "kto": PreferenceAlgorithm(preference.kto, paired=False),
    "simpo": PreferenceAlgorithm(preference.simpo, needs_reference=False, length_normalized=True),
    "orpo": PreferenceAlgorithm(preference.orpo, needs_reference=False, length_normalized=True),
}
