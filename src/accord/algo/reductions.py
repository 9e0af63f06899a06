"""Masked reductions. ``mask`` True = counts; nothing outside the mask ever reaches a number."""

from __future__ import annotations

import torch
from torch import Tensor

from accord.algo.shapes import elementwise, shaped


@elementwise
def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over the entries that count; 0 where none does."""
    return torch.where(mask, x, 0.0).sum() / mask.sum().clamp_min(1)


@elementwise
def masked_whiten(x: Tensor, mask: Tensor, *, shift_mean: bool = True, eps: float = 1e-8) -> Tensor:
    """Return ``(x - mean) / sqrt(var + eps)`` where the mask counts, 0 elsewhere; biased variance, as OpenAI's code.

    With ``shift_mean=False`` the mean is put back afterwards: only the spread changes.
    """
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean) ** 2, mask)
    whitened = (x - mean) * torch.rsqrt(variance + eps)
    # Masked again: a padded 0 lies far from the mean and would come out large.
    return torch.where(mask, whitened if shift_mean else whitened + mean, 0.0)


@shaped
def correlation(x_N: Tensor, y_N: Tensor) -> Tensor:
    """Return Pearson's correlation, in float64; 0 where either does not vary."""
    # float64: squares of lengths, summed over thousands, need more than the 24 bits of fp32.
    x_N, y_N = x_N.double() - x_N.double().mean(), y_N.double() - y_N.double().mean()
    spread = x_N.norm() * y_N.norm()
    return torch.where(spread > 0, (x_N * y_N).sum() / spread, 0.0)
