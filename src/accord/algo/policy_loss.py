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
    """Return ``-A log pi`` a token (Williams 1992): right for samples of the policy itself."""
    # Where the ratio is 1 PPO's gradient is this one exactly; after a step of its own it would be biased.
    return -tokens.advantage_N * tokens.logp_N


def clipped(tokens: Tokens, settings: PolicySettings) -> Tensor:
    """Return PPO's clipped loss a token, ``max(-rho A, -clip(rho, 1 - clip, 1 + clip_high) A)``, rho = pi / old.

    Schulman 2017 (arXiv:1707.06347, eq. 7). Without ``clip_high`` the upper bound is ``1 + clip``; without ``clip`` the
    ratio is free (then it wants a trust region). ``dual_clip`` c bounds the loss of bad tokens by ``-c A`` (Ye 2019,
    arXiv:1912.09729).
    """
    ratio_N, advantage_N = tokens.log_ratio_N.exp(), tokens.advantage_N
    loss_N = -ratio_N * advantage_N
    if settings.clip is not None:
        low, high = bounds(settings.clip, settings.trust.clip_high)
        # The worse of the two: past its bound a token that already moved as wanted has no gradient, one that moved the
        # wrong way keeps it.
        loss_N = torch.maximum(loss_N, -ratio_N.clamp(low, high) * advantage_N)
    if settings.trust.dual_clip is not None:
        # Only where A < 0: there the worse of the two grows with the ratio without end.
        loss_N = torch.where(advantage_N < 0, torch.minimum(loss_N, -settings.trust.dual_clip * advantage_N), loss_N)
    return loss_N


def bounds(clip: float, clip_high: float | None) -> tuple[float, float]:
    """Return the bounds between which the ratio of new to old probability moves the policy."""
    return 1.0 - clip, 1.0 + (clip if clip_high is None else clip_high)


def trust_region(tokens: Tokens) -> Tensor:
    """Return ``rho - 1 - log rho`` a token, an estimate of KL(old || new) from samples of old; never negative.

    The penalty of the PPO paper (Schulman 2017, eq. 8). It is not the KL to the reference.
    """
    log_ratio_N = tokens.log_ratio_N
    return torch.expm1(log_ratio_N) - log_ratio_N


@torch.no_grad()
def update_stats(tokens: Tokens, settings: PolicySettings) -> dict[str, Tensor]:
    """Return how far the policy has moved from the samples' own.

    Sums over tokens (`approx_kl`, numbers beyond each bound of the clip), and the extremes of the ratio.
    """
    log_ratio_N = tokens.log_ratio_N
    ratio_N = log_ratio_N.exp()
    stats = {
        # k3 of samples of old: never negative, where the mean log-ratio of few tokens may be.
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
    """Return the same weight for every token, ``1 / sum of lengths`` (PPO; DAPO, arXiv:2503.14476, eq. 8)."""
    # The sum of the whole minibatch: a mean of means of micro-batches would weigh short ones more (losses 1, 1, 1, 1
    # and 4 in two of them: 2.5 instead of 1.6).
    # Of length 0 is what takes no part; a minibatch may have nothing else.
    return (length_B > 0).to(length_B.dtype) / length_B.sum().clamp_min(1)


@shaped
def sequence_mean(length_B: Tensor, settings: PolicySettings) -> Tensor:
    """Return the same weight for every sequence, ``1 / (B * its length)`` a token (GRPO, arXiv:2402.03300, eq. 3)."""
    # A token of a long completion weighs less, so long bad ones are punished less: what Dr. GRPO takes out.
    return 1.0 / (len(length_B) * length_B)


@shaped
def sequence_sum(length_B: Tensor, settings: PolicySettings) -> Tensor:
    """Return ``1 / B`` a token: the completion is one action, its log-probability the sum of its tokens'.

    REINFORCE and RLOO.
    """
    return torch.full_like(length_B, 1.0 / len(length_B))


@shaped
def fixed_length(length_B: Tensor, settings: PolicySettings) -> Tensor:
    """Return ``1 / (B * max_new_tokens)`` a token: as the sum, on the scale of a mean (Dr. GRPO, arXiv:2503.20783)."""
    return torch.full_like(length_B, 1.0 / (len(length_B) * settings.max_new_tokens))


# -- the critic --------------------------------------------------------------------------------------------------------


@shaped
def clipped_value_loss(
    value_N: Tensor, old_value_N: Tensor, return_N: Tensor, clip: float, denominator: float
) -> Tensor:
    """Return ``0.5 * max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2)``, summed over tokens.

    OpenAI baselines' ppo2; Stiennon 2020. ``denominator`` is the number of tokens of the whole minibatch.
    """
    bounded_N = old_value_N + (value_N - old_value_N).clamp(-clip, clip)
    # The larger: a value that has left the clip towards its return gets no more gradient, one that has left it the
    # other way still does.
    squares_N = torch.maximum((value_N - return_N) ** 2, (bounded_N - return_N) ** 2)
    return 0.5 * squares_N.sum() / denominator


@shaped
def explained_variance(value_N: Tensor, return_N: Tensor) -> Tensor:
    """Return ``1 - Var(R - V) / Var(R)``: 1 = the critic knows the return, 0 = it knows no more than the mean."""
    # where all returns are alike there is nothing to explain: no 0 / 0
    return 1.0 - (return_N - value_N).var(unbiased=False) / return_N.var(unbiased=False).clamp_min(1e-8)
