"""The algorithms as rows of a table: a row names its small functions, and what it needs follows from them.

Adding an algorithm is a function (or none), a golden test and a row; the loop does not change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from accord.algo.advantages import gae
from accord.algo.ensemble import mean, uncertainty_weighted, worst_case
from accord.algo.policy_loss import clipped_surrogate
from accord.algo.reductions import masked_whiten
from accord.algo.reward_loss import RewardLoss, best_of_k, binary, pairwise, per_token, plackett_luce, regression

#: (reward_BT, value_BT, mask_BT, discount, lam) -> (advantage_BT, return_BT)
Advantages = Callable[[Tensor, Tensor, Tensor, float, float], tuple[Tensor, Tensor]]
#: (logp_N, old_logp_N, advantage_N, clip, denominator) -> (loss, stats)
Surrogate = Callable[[Tensor, Tensor, Tensor, float, float], tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True)
class PolicyAlgorithm:
    """A way to improve a policy from scored samples. The KL to the reference is part of the per-token reward."""

    advantages: Advantages
    surrogate: Surrogate


def whitened_gae(
    reward_BT: Tensor, value_BT: Tensor, mask_BT: Tensor, discount: float, lam: float
) -> tuple[Tensor, Tensor]:
    """GAE, its advantages whitened over all counted tokens of the batch; the returns are taken before that."""
    advantage_BT, return_BT = gae(reward_BT, value_BT, mask_BT, discount, lam)
    return masked_whiten(advantage_BT, mask_BT), return_BT


POLICY_ALGORITHMS: dict[str, PolicyAlgorithm] = {
    "ppo": PolicyAlgorithm(advantages=whitened_gae, surrogate=clipped_surrogate),
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
