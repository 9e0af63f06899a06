"""What PPO minimises. Every loss is a sum over the counted tokens divided by a denominator the caller gives, so that
micro-batches that share the denominator add up to the loss of the whole batch.

Shapes: N counted tokens of a micro-batch, in any order.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOG_RATIO_BOUND = 20.0


def clipped_surrogate(
    logp_N: Tensor, old_logp_N: Tensor, advantage_N: Tensor, clip: float, denominator: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """``max(-rho A, -clip(rho, 1 - clip, 1 + clip) A)`` (Schulman 2017, arXiv:1707.06347, eq. 7), rho = pi / old.

    Returns:
        The loss and, detached and summed with the same denominator: ``approx_kl`` (k3 of old against new),
        ``clip_low`` and ``clip_high`` (share of tokens beyond each bound), and ``ratio_max``, ``ratio_min``.
    """
    log_ratio_N = (logp_N - old_logp_N).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    ratio_N = log_ratio_N.exp()
    bounded_N = ratio_N.clamp(1.0 - clip, 1.0 + clip)
    loss = torch.maximum(-ratio_N * advantage_N, -bounded_N * advantage_N).sum() / denominator
    with torch.no_grad():
        stats = {
            "approx_kl": (torch.expm1(log_ratio_N) - log_ratio_N).sum() / denominator,
            "clip_low": (ratio_N < 1.0 - clip).sum() / denominator,
            "clip_high": (ratio_N > 1.0 + clip).sum() / denominator,
            "ratio_max": ratio_N.max(),
            "ratio_min": ratio_N.min(),
        }
    return loss, stats


def clipped_value_loss(
    value_N: Tensor, old_value_N: Tensor, return_N: Tensor, clip: float, denominator: float
) -> Tensor:
    """``0.5 * max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2)`` (OpenAI baselines ppo2; Stiennon 2020)."""
    bounded_N = old_value_N + (value_N - old_value_N).clamp(-clip, clip)
    squares_N = torch.maximum((value_N - return_N) ** 2, (bounded_N - return_N) ** 2)
    return 0.5 * squares_N.sum() / denominator


def explained_variance(value_N: Tensor, return_N: Tensor) -> Tensor:
    """``1 - Var(R - V) / Var(R)``: 1 = the critic knows the return, 0 = it knows no more than the mean."""
    return 1.0 - (return_N - value_N).var(unbiased=False) / return_N.var(unbiased=False).clamp_min(1e-8)
