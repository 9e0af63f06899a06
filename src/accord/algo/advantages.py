"""From one score a completion to an advantage a token.

Shapes: B sequences, T completion positions. State t is the one that chooses token t; ``mask_BT`` True = a token of the
completion stands there. Every row's counted positions come first.
"""

from __future__ import annotations

import torch
from torch import Tensor


def token_rewards(score_B: Tensor, logp_BT: Tensor, ref_logp_BT: Tensor, mask_BT: Tensor, kl_coef: float) -> Tensor:
    """``r_t = -kl_coef * (log pi - log ref) + [t is last] * score`` (Ziegler 2019; Stiennon 2020).

    The score stands on the last real token itself, so that the value after it is 0.
    """
    reward_BT = torch.where(mask_BT, -kl_coef * (logp_BT - ref_logp_BT), 0.0)
    last_B = mask_BT.sum(1) - 1
    rows = torch.arange(len(score_B))
    reward_BT[rows, last_B] += score_B
    return reward_BT


def gae(reward_BT: Tensor, value_BT: Tensor, mask_BT: Tensor, discount: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman 2016, arXiv:1506.02438, eq. 16) and the returns.

    ``delta_t = r_t + discount * V_{t+1} - V_t``; ``A_t = sum_l (discount * lam)^l delta_{t+l}``; the value after the
    last counted token is 0. ``return = A + V``. lam = 1 is Monte Carlo, lam = 0 one-step temporal difference.
    """
    value_BT = torch.where(mask_BT, value_BT, 0.0)
    advantage_BT = torch.zeros_like(reward_BT)
    running_B = torch.zeros(len(reward_BT), dtype=reward_BT.dtype)
    next_value_B = torch.zeros_like(running_B)
    for t in range(reward_BT.shape[1] - 1, -1, -1):
        counts_B = mask_BT[:, t]
        delta_B = reward_BT[:, t] + discount * next_value_B - value_BT[:, t]
        running_B = torch.where(counts_B, delta_B + discount * lam * running_B, 0.0)
        next_value_B = value_BT[:, t]
        advantage_BT[:, t] = running_B
    return advantage_BT, torch.where(mask_BT, advantage_BT + value_BT, 0.0)
