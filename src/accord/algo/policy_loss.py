"""What policy optimisation minimises: a loss a token, and how much each token of a minibatch weighs.

Weights come from the whole minibatch, so that its micro-batches add up to its loss, however it is split.

Shapes: N counted tokens of a micro-batch, row after row; B sequences of a minibatch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from accord.algo.settings import PolicySettings
from accord.algo.shapes import check_fields, shaped

# Beyond e^20 a ratio says no more than "far away"; from e^88 on fp32 has no number for it, and a gradient becomes NaN.
LOG_RATIO_BOUND = 20.0


@dataclass(frozen=True)
class Tokens:
    """The counted tokens of a micro-batch. ``row_N`` says which of its sequences each belongs to."""

    logp_N: Tensor
    old_logp_N: Tensor
    advantage_N: Tensor
    row_N: Tensor

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def log_ratio_N(self) -> Tensor:
        """``log pi - log old``, held within +-20, where its exponential is still a number."""
        return (self.logp_N - self.old_logp_N).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)


# -- surrogates: a loss a token ----------------------------------------------------------------------------------------


def policy_gradient(tokens: Tokens, settings: PolicySettings) -> Tensor:
    """``-A log pi`` a token (Williams 1992): right for samples of the policy itself."""
    return -tokens.advantage_N * tokens.logp_N


def clipped(tokens: Tokens, settings: PolicySettings) -> Tensor:
    """``max(-rho A, -clip(rho, 1 - clip, 1 + clip_high) A)`` (Schulman 2017, arXiv:1707.06347, eq. 7), rho = pi / old.

    Without ``clip_high`` the upper bound is ``1 + clip``; without ``clip`` the ratio is free (then it wants a trust
    region). ``dual_clip`` c bounds the loss of bad tokens by ``-c A`` (Ye 2019, arXiv:1912.09729).
    """
    ratio_N, advantage_N = tokens.log_ratio_N.exp(), tokens.advantage_N
    loss_N = -ratio_N * advantage_N
    if settings.clip is not None:
        low, high = bounds(settings.clip, settings.trust.clip_high)
        loss_N = torch.maximum(loss_N, -ratio_N.clamp(low, high) * advantage_N)
    if settings.trust.dual_clip is not None:
        loss_N = torch.where(advantage_N < 0, torch.minimum(loss_N, -settings.trust.dual_clip * advantage_N), loss_N)
    return loss_N


def bounds(clip: float, clip_high: float | None) -> tuple[float, float]:
    """Between which the ratio of new to old probability moves the policy."""
    return 1.0 - clip, 1.0 + (clip if clip_high is None else clip_high)


def trust_region(tokens: Tokens) -> Tensor:
    """``rho - 1 - log rho`` a token: from samples of old, an estimate of KL(old || new) that is never negative.

    The penalty of the PPO paper (Schulman 2017, eq. 8). It is not the KL to the reference.
    """
    log_ratio_N = tokens.log_ratio_N
    return torch.expm1(log_ratio_N) - log_ratio_N


@torch.no_grad()
def update_stats(tokens: Tokens, settings: PolicySettings) -> dict[str, Tensor]:
    """How far the policy has moved from the samples' own: sums over tokens (`approx_kl`, shares beyond each bound of
    the clip), and the extremes of the ratio."""
    log_ratio_N = tokens.log_ratio_N
    ratio_N = log_ratio_N.exp()
    stats = {
        "approx_kl": (torch.expm1(log_ratio_N) - log_ratio_N).sum(),
        "ratio_max": ratio_N.max(),
        "ratio_min": ratio_N.min(),
    }
    if settings.clip is not None:
        low, high = bounds(settings.clip, settings.trust.clip_high)
        stats |= {"clip_low": (ratio_N < low).sum(), "clip_high": (ratio_N > high).sum()}
    return stats


# -- aggregates: the weight of each token of a sequence, from the lengths of the whole minibatch -----------------------


@shaped
def token_mean(length_B: Tensor, settings: PolicySettings) -> Tensor:
    """Every token weighs the same: ``1 / sum of lengths`` (PPO; DAPO, arXiv:2503.14476, eq. 8)."""
    return torch.ones_like(length_B) / length_B.sum()


@shaped
def sequence_mean(length_B: Tensor, settings: PolicySettings) -> Tensor:
    """Every sequence weighs the same: ``1 / (B * its length)`` (GRPO, arXiv:2402.03300, eq. 3)."""
    return 1.0 / (len(length_B) * length_B)


@shaped
def sequence_sum(length_B: Tensor, settings: PolicySettings) -> Tensor:
    """``1 / B``: the completion is one action, its log-probability the sum of its tokens' (REINFORCE, RLOO)."""
    return torch.full_like(length_B, 1.0 / len(length_B))


@shaped
def fixed_length(length_B: Tensor, settings: PolicySettings) -> Tensor:
    """``1 / (B * max_new_tokens)``: as the sum, on the scale of a mean (Dr. GRPO, arXiv:2503.20783)."""
    return torch.full_like(length_B, 1.0 / (len(length_B) * settings.max_new_tokens))


# -- the critic --------------------------------------------------------------------------------------------------------


@shaped
def clipped_value_loss(
    value_N: Tensor, old_value_N: Tensor, return_N: Tensor, clip: float, denominator: float
) -> Tensor:
    """``0.5 * max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2)`` (OpenAI baselines ppo2; Stiennon 2020)."""
    bounded_N = old_value_N + (value_N - old_value_N).clamp(-clip, clip)
    squares_N = torch.maximum((value_N - return_N) ** 2, (bounded_N - return_N) ** 2)
    return 0.5 * squares_N.sum() / denominator


@shaped
def explained_variance(value_N: Tensor, return_N: Tensor) -> Tensor:
    """``1 - Var(R - V) / Var(R)``: 1 = the critic knows the return, 0 = it knows no more than the mean."""
    return 1.0 - (return_N - value_N).var(unbiased=False) / return_N.var(unbiased=False).clamp_min(1e-8)
