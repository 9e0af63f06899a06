"""What samples count that another engine drew, or weights of a step before: those of another distribution.

Shapes: B sequences, C tokens of the longest one; what ``mask`` leaves out counts 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from accord.algo.policy_loss import LOG_RATIO_BOUND
from accord.algo.shapes import shaped


@shaped
def truncated_weights(old_logp_BC: Tensor, behaviour_logp_BC: Tensor, mask_BC: Tensor, cap: float) -> Tensor:
    """Return ``min(old / behaviour, cap)`` a token (truncated importance sampling: Ionides 2008; IMPALA's rho).

    Without the cap it would be unbiased a token, and a single unlikely token could outweigh a batch.
    """
    log_ratio_BC = (old_logp_BC - behaviour_logp_BC).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    return torch.where(mask_BC, log_ratio_BC.exp().clamp(max=cap), 0.0)


@shaped
def near_sequences(old_logp_BC: Tensor, behaviour_logp_BC: Tensor, mask_BC: Tensor, cap: float) -> Tensor:
    """Return 1 for the tokens of sequences whose ratio a token, in the geometric mean, lies in ``1 / cap .. cap``.

    Those of the others count 0: whole sequences leave (masked importance sampling, as slime and TRL have it).
    """
    length_B = mask_BC.sum(1).clamp_min(1)
    mean_B = torch.where(mask_BC, old_logp_BC - behaviour_logp_BC, 0.0).sum(1) / length_B
    kept_B = mean_B.abs() <= math.log(cap)
    return (mask_BC & kept_B[:, None]).to(old_logp_BC.dtype)
