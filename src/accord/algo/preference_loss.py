"""What direct preference optimisation minimises: losses of comparisons between completions, without a reward model.

A loss compares *strengths*, one number a completion: its log-probability, against the reference where the row has one,
a token where the row says so (`strength`). The better side of a comparison should have the higher one. Thumbs compare a
completion with the zero point, which stands in for the completion it has not been compared with (`zero_point`).

Shapes: S completions of a micro-batch, N comparisons, M completions under prompts of others.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from accord.algo.shapes import shaped

ZERO_POINT = -1  # in place of a completion's index: the zero point
LARGEST_LOGP = -1e-6  # of a token on average: above it the odds leave fp32


class PreferenceSettings(Protocol):
    """What the losses may ask; `accord.config.DpoConfig` has it all."""

    @property
    def dpo_beta(self) -> float: ...
    @property
    def label_smoothing(self) -> float: ...
    @property
    def simpo_margin(self) -> float: ...
    @property
    def orpo_coef(self) -> float: ...


# -- strengths ---------------------------------------------------------------------------------------------------------


@shaped
def strength(logp_S: Tensor, ref_logp_S: Tensor | None, length_S: Tensor | None) -> Tensor:
    """Return ``log pi(y|x)`` of each completion in nats, less ``log ref(y|x)`` and over its length where given.

    Args:
        logp_S: Sums over the tokens of each completion, the end token among them. ``ref_logp_S`` likewise.
        length_S: Numbers of those tokens.
    """
    gain_S = logp_S if ref_logp_S is None else logp_S - ref_logp_S
    return gain_S if length_S is None else gain_S / length_S


@shaped
def zero_point(mismatched_M: Tensor) -> Tensor:
    """Return KTO's reference point z0, a scalar without gradient (Ethayarajh 2024, arXiv:2402.01306).

    The mean strength of completions under prompts that they do not answer, or 0 where that is negative or there are
    none.

    It estimates the KL to the reference, which every completion profits from whatever it says.
    """
    if not len(mismatched_M):
        return mismatched_M.new_zeros(())
    return mismatched_M.detach().mean().clamp_min(0.0)  # a KL is not negative; its estimate of few may be


# -- losses: strengths of both sides -> a loss a comparison ------------------------------------------------------------


@shaped
def dpo_loss(better_N: Tensor, worse_N: Tensor, settings: PreferenceSettings) -> Tensor:
    """Return ``-log sigmoid(beta h)``, h the gap of strengths (Rafailov 2023, arXiv:2305.18290, eq. 7).

    Bradley-Terry on the implicit rewards ``beta log(pi / ref)``. On preferences that are never reversed h has no bound.
    """
    # softplus(-x) = -log sigmoid(x), and stays a number for a gap of any size.
    return F.softplus(-settings.dpo_beta * (better_N - worse_N))


@shaped
def cdpo_loss(better_N: Tensor, worse_N: Tensor, settings: PreferenceSettings) -> Tensor:
    """Return ``-(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h)``, e the share of judgements that are wrong.

    Conservative DPO (Mitchell 2023, "A note on DPO with noisy preferences"): beta h settles at log((1 - e) / e).
    """
    gap_N = settings.dpo_beta * (better_N - worse_N)
    # -log sigmoid(-x) = -log sigmoid(x) + x, so the two terms are one and its line.
    return F.softplus(-gap_N) + settings.label_smoothing * gap_N


@shaped
def ipo_loss(better_N: Tensor, worse_N: Tensor, settings: PreferenceSettings) -> Tensor:
    """Return ``(h - 1 / (2 beta))^2``: the gap h has an optimum even where nobody disagrees.

    Azar 2023 (arXiv:2310.12036, eq. 17).
    """
    return (better_N - worse_N - 1.0 / (2.0 * settings.dpo_beta)) ** 2  # beta is the paper's tau


@shaped
def kto_loss(better_N: Tensor, worse_N: Tensor, settings: PreferenceSettings) -> Tensor:
    """Return ``1 - sigmoid(beta h)``, h the lead of a good completion over the zero point, or of that over a bad one.

    Ethayarajh 2024 (arXiv:2402.01306, eq. 7). It saturates: what is hopelessly wrong is let go.
    """
    return torch.sigmoid(-settings.dpo_beta * (better_N - worse_N))  # 1 - sigmoid(x) = sigmoid(-x)


@shaped
def simpo_loss(better_N: Tensor, worse_N: Tensor, settings: PreferenceSettings) -> Tensor:
    """Return ``-log sigmoid(beta h - margin)`` on mean log-probabilities (Meng 2024, arXiv:2405.14734, eq. 6)."""
    return F.softplus(settings.simpo_margin - settings.dpo_beta * (better_N - worse_N))


@shaped
def orpo_loss(better_N: Tensor, worse_N: Tensor, settings: PreferenceSettings) -> Tensor:
    """Return ``NLL of the better - orpo_coef log sigmoid(gap of log odds)``: fine-tuning and preference in one loss.

    On mean log-probabilities (Hong 2024, arXiv:2403.07691, eq. 6).
    """
    # The strengths are means of log-probabilities, so minus the better one is its NLL a token.
    return settings.orpo_coef * F.softplus(log_odds(worse_N) - log_odds(better_N)) - better_N


def log_odds(logp: Tensor) -> Tensor:
    """Return ``log(p / (1 - p))`` from log p, of any shape; finite also where p rounds to 1."""
    x = logp.clamp_max(LARGEST_LOGP)
    # log(1 - e^x) by the form that keeps its digits on either side of x = -log 2 (Maechler 2012).
    rest = torch.where(x > -math.log(2.0), torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))
    return x - rest


# -- labels of a scorer ------------------------------------------------------------------------------------------------


@shaped
def judged_ranks(score_PK: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Return the ranks of K completions by their scores, ``(P, K)``; 1 = highest, equal scores tie.

    With noise, completion i is ranked above j with probability ``sigmoid((score_i - score_j) / noise)``: what DPO takes
    judgements to be. Gumbel noise makes it so for every pair of a group at once (Plackett-Luce; Yellott 1977).
    """
    if noise > 0:
        # minus the log of an exponential is Gumbel
        gumbel_PK = -torch.empty_like(score_PK).exponential_(generator=generator).log()
        score_PK = score_PK + noise * gumbel_PK
    return 1 + (score_PK[:, None, :] > score_PK[:, :, None]).sum(2)
