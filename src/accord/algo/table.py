"""The algorithms as rows of a table: a row names its small functions, and what it needs follows from them.

Adding an algorithm is a function (or none), a golden test and a row; the loop does not change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from accord.algo import preference_loss as preference
from accord.algo.advantages import gae
from accord.algo.policy_loss import clipped_surrogate
from accord.algo.preference_loss import PreferenceSettings
from accord.algo.reductions import masked_whiten
from accord.algo.reward_loss import ranking_loss

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

#: (score_S, chosen_N, rejected_N, weight_N, total_weight, center_coef) -> (loss, stats)
RewardLoss = Callable[[Tensor, Tensor, Tensor, Tensor, float, float], tuple[Tensor, dict[str, Tensor]]]

REWARD_LOSSES: dict[str, RewardLoss] = {"bradley_terry": ranking_loss}

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
