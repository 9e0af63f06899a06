"""Divergence from the reference: estimators from samples, and the controllers that hold a quantity at a target.

All estimators are of KL(pi || ref) from samples of pi, with ``logr = log ref - log pi`` (Schulman, "Approximating
KL Divergence", 2020). In nats.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from accord.algo.shapes import elementwise


@elementwise
def kl_k1(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """Return ``-logr`` (k1): unbiased, may be negative for a single sample."""
    # Of pi = .5, .3, .2 and ref = .4, .4, .2 (KL .0253) a single sample spreads by .222, that of k3 by .016.
    return logp - ref_logp


@elementwise
def kl_k3(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """Return ``exp(logr) - 1 - logr`` (k3): unbiased, never negative.

    A metric here: as a loss it pulls in the wrong direction.
    """
    logr = ref_logp - logp
    # expm1: near 0 the value is about logr^2 / 2, which exp(logr) - 1 would round away in fp32.
    return torch.expm1(logr) - logr


@elementwise
def ratio_weighted_k3(logp: Tensor, ref_logp: Tensor, log_ratio: Tensor) -> Tensor:
    """Return ``rho * k3``, which as a loss has the gradient of KL(pi || ref) at each state.

    rho = pi / old, with its gradient. k3 alone has another, see `k3_naive` (DeepSeek-V3.2, 2025). What a token does to
    the states after it is not in it; in the reward it is.
    """
    # k1 would need the ratio too: alone its expected gradient is 0. In the reward, where nothing is differentiated,
    # each estimator will do.
    return log_ratio.exp() * kl_k3(logp, ref_logp)


@elementwise
def k3_naive(logp: Tensor, ref_logp: Tensor, log_ratio: Tensor) -> Tensor:
    """Return k3 as GRPO's paper has it in the loss, where its gradient is that of KL(ref || pi).

    arXiv:2402.03300, eq. 4.
    """
    return kl_k3(logp, ref_logp)


@dataclass
class TrustRegion:
    """The PPO paper's rule for the price of KL(old || new) (arXiv:1707.06347, section 4).

    After an update that moved further than 1.5 targets it doubles, below 1 / 1.5 it halves. Without a target it stays.
    """

    coef: float
    target: float | None = None

    def update(self, kl: float) -> None:
        """Take in the mean KL a token between the policies before and after."""
        if self.target is not None:
            # 1.5 and 2 are the paper's, which calls them chosen heuristically and the result not sensitive to them.
            if kl > 1.5 * self.target:
                self.coef *= 2.0
            elif kl < self.target / 1.5:
                self.coef /= 2.0


@dataclass
class AdaptiveKL:
    """Proportional controller of the KL coefficient (Ziegler 2019, arXiv:1909.08593, section 2.2).

    ``e = clip(KL / target - 1, -0.2, 0.2)``, ``coef <- coef * (1 + e * episodes / horizon)``.
    With ``target`` None the coefficient stays as it is.
    """

    coef: float
    target: float | None = None
    horizon: int = 10_000  # episodes, as in Ziegler's code; the paper's text writes K_beta = 0.1 for the same rule

    def update(self, kl: float, num_episodes: int) -> None:
        """Move the coefficient after a batch with this mean KL per completion."""
        if self.target is not None:
            # Held to a fifth: the KL of one batch is noisy, and a KL of 100 targets is no reason for 100 times the
            # step.
            error = max(-0.2, min(0.2, kl / self.target - 1.0))
            self.coef *= 1.0 + error * num_episodes / self.horizon
