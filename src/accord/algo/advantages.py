"""From one score a completion to an advantage a token.

Shapes: P prompts, K completions of one prompt (they stand side by side), B = P * K sequences, T completion positions.
State t is the one that chooses token t; ``mask_BT`` True = a token of the completion stands there. Every row's counted
positions come first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from accord.algo.reductions import masked_whiten
from accord.algo.settings import PolicySettings
from accord.algo.shapes import check_fields, shaped

# As TRL has it: a group of nearly equal returns is not blown up to unit spread.
GROUP_EPS = 1e-4


@shaped
def token_rewards(score_B: Tensor, logp_BT: Tensor, ref_logp_BT: Tensor, mask_BT: Tensor, kl_coef: float) -> Tensor:
    """Return the reward of each token: the price of KL on all of them, and the score on the last.

    ``r_t = -kl_coef * (log pi - log ref) + [t is last] * score`` (Ziegler 2019; Stiennon 2020).

    The score stands on the last real token itself, so that the value after it is 0.
    """
    # The log-ratio of the token drawn (k1), not k3: its sum over the tokens is log(pi / ref) of the whole completion.
    reward_BT = torch.where(mask_BT, -kl_coef * (logp_BT - ref_logp_BT), 0.0)
    # Not one place further, on the first padding token, where N+ and TRL have it: there it would reach the end only
    # through one more lambda and the value of padding.
    last_B = mask_BT.sum(1) - 1
    rows = torch.arange(len(score_B))
    reward_BT[rows, last_B] += score_B
    return reward_BT


@dataclass(frozen=True)
class Rewarded:
    """A rollout with its rewards: what an advantage is made of.

    Attributes:
        reward_BT: Per token, with the price of KL where that lives in the reward.
        value_BT: The critic's, zeros where there is none.
        group: K, completions of one prompt.
        running_return: Mean return of the iterations before; 0 before the first.
    """

    reward_BT: Tensor
    value_BT: Tensor
    mask_BT: Tensor
    group: int = 1
    running_return: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def return_B(self) -> Tensor:
        """Sum of each completion's rewards."""
        return self.reward_BT.sum(1)

    @property
    def return_PK(self) -> Tensor:
        return self.return_B.view(-1, self.group)

    def spread(self, advantage: Tensor) -> Tensor:
        """Return one advantage a completion, ``(B,)`` or ``(P, K)``, on each of its tokens, ``(B, T)``."""
        if advantage.numel() != len(self.mask_BT):
            raise ValueError(
                f"spread wants an advantage a completion: advantage is {tuple(advantage.shape)}, "
                f"mask_BT is {tuple(self.mask_BT.shape)}"
            )
        return torch.where(self.mask_BT, advantage.reshape(-1, 1), 0.0)


@shaped
def gae(reward_BT: Tensor, value_BT: Tensor, mask_BT: Tensor, discount: float, lam: float) -> tuple[Tensor, Tensor]:
    """Return generalised advantage estimates (Schulman 2016, arXiv:1506.02438, eq. 16) and the returns.

    ``delta_t = r_t + discount * V_{t+1} - V_t``; ``A_t = sum_l (discount * lam)^l delta_{t+l}``; the value after the
    last counted token is 0. ``return = A + V``. lam = 1 is Monte Carlo, lam = 0 one-step temporal difference.
    """
    value_BT = torch.where(mask_BT, value_BT, 0.0)
    advantage_BT = torch.zeros_like(reward_BT)
    running_B = torch.zeros(len(reward_BT), dtype=reward_BT.dtype)
    next_value_B = torch.zeros_like(running_B)  # of the state behind the last token: nothing is to come
    # From the end, as A_t = delta_t + discount * lam * A_{t+1}.
    for t in range(reward_BT.shape[1] - 1, -1, -1):
        counts_B = mask_BT[:, t]
        delta_B = reward_BT[:, t] + discount * next_value_B - value_BT[:, t]
        running_B = torch.where(counts_B, delta_B + discount * lam * running_B, 0.0)
        next_value_B = value_BT[:, t]
        advantage_BT[:, t] = running_B
    # A + V of the rollout, before any whitening: a critic that regressed on rewards would not know what is to come.
    return advantage_BT, torch.where(mask_BT, advantage_BT + value_BT, 0.0)


# -- rows' ways to an advantage ----------------------------------------------------------------------------------------
# Each takes a rewarded rollout and the settings, and returns advantages and, where a critic learns, its returns.


def whitened_gae(rewarded: Rewarded, settings: PolicySettings) -> tuple[Tensor, Tensor]:
    """Return GAE with its advantages whitened over all counted tokens of the batch; the returns are taken before that.

    With ``shaping.whiten`` the rewards' spread is set to 1 first, their mean kept (Stiennon 2020): it shortens texts.
    """
    reward_BT, mask_BT = rewarded.reward_BT, rewarded.mask_BT
    if settings.shaping.whiten:
        # a shifted mean would pay each token for being there
        reward_BT = masked_whiten(reward_BT, mask_BT, shift_mean=False)
    advantage_BT, return_BT = gae(reward_BT, rewarded.value_BT, mask_BT, settings.discount, settings.gae_lambda)
    # Once over all that was drawn: per minibatch the loss would depend on how the rollout is cut.
    return masked_whiten(advantage_BT, mask_BT), return_BT


def whole_return(rewarded: Rewarded, settings: PolicySettings) -> tuple[Tensor, None]:
    """Return the whole return as advantage, ``A = R``: REINFORCE (Williams 1992) without a baseline.

    The completion is the action.
    """
    return rewarded.spread(rewarded.return_B), None


def above_running_mean(rewarded: Rewarded, settings: PolicySettings) -> tuple[Tensor, None]:
    """Return the return above a running mean, ``A = R - b``.

    b is the mean return of all iterations before (Ahmadian 2024, arXiv:2402.14740).
    """
    # Of iterations before, not of this one: a baseline that holds a sample's own return shrinks its advantage.
    return rewarded.spread(rewarded.return_B - rewarded.running_return), None


def leave_one_out(rewarded: Rewarded, settings: PolicySettings) -> tuple[Tensor, None]:
    """Return each return above the mean of the others of its prompt.

    RLOO: Kool 2019; Ahmadian 2024 (arXiv:2402.14740).
    """
    return_PK, group = rewarded.return_PK, rewarded.group
    # R_i - mean of the others = (R_i - mean of all) * K / (K - 1)
    return rewarded.spread((return_PK - return_PK.mean(1, keepdim=True)) * (group / (group - 1))), None


def group_normalised(rewarded: Rewarded, settings: PolicySettings) -> tuple[Tensor, None]:
    """Return returns as deviations within their prompt, ``A_i = (R_i - mean) / (std + 1e-4)``.

    The deviation is unbiased (GRPO: Shao 2024, arXiv:2402.03300).

    A group whose returns are all equal gets advantages of 0.
    """
    return_PK = rewarded.return_PK
    centred_PK = return_PK - return_PK.mean(1, keepdim=True)
    # The unbiased deviation, as verl has it; of a group of one it is NaN, so the row asks for two.
    return rewarded.spread(centred_PK / (return_PK.std(1, keepdim=True) + GROUP_EPS)), None


def group_centred(rewarded: Rewarded, settings: PolicySettings) -> tuple[Tensor, None]:
    """Return each return above the mean of its prompt, ``A_i = R_i - mean``.

    GRPO without the division (Dr. GRPO: Liu 2025, arXiv:2503.20783).
    """
    return_PK = rewarded.return_PK
    # Dividing by the spread would weigh prompts that nearly always go well, or never, above those in between.
    return rewarded.spread(return_PK - return_PK.mean(1, keepdim=True)), None


def best_of_group(rewarded: Rewarded, settings: PolicySettings) -> tuple[Tensor, None]:
    """Return 1 for the best completion of each prompt and 0 for the others.

    What is left is SFT on the best of K: RAFT (Dong 2023, arXiv:2304.06767). Of several that are equally good the first
    counts.
    """
    return_PK = rewarded.return_PK
    best_P = return_PK.argmax(1, keepdim=True)
    # Its row counts the chosen alone (`only_chosen`): K over the tokens of all K was right for equal lengths only.
    return rewarded.spread(torch.zeros_like(return_PK).scatter_(1, best_P, 1.0)), None
