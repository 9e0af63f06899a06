"""What a score goes through before it becomes a reward: penalties for no end and for length, clip and scale.

Shapes: B completions. Lengths in tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from accord.algo.shapes import shaped


@shaped
def overlong(length_B: Tensor, max_tokens: int, margin: int) -> Tensor:
    """Return a penalty that falls from 0 at ``max_tokens - margin`` to -1 at ``max_tokens``, and stays there.

    DAPO (arXiv:2503.14476, eq. 13). A margin of 0 takes nothing.
    """
    if margin == 0:
        return torch.zeros_like(length_B)
    # Linear, so that a little too long costs a little: a step would teach nothing to who is far beyond it.
    return ((max_tokens - margin - length_B) / margin).clamp(-1.0, 0.0)


@dataclass
class RunningMoments:
    """Mean and standard deviation of all numbers seen so far, merged batch by batch (Chan 1979)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def update(self, x_B: Tensor) -> None:
        """Take in a batch of numbers."""
        count, mean = len(x_B), float(x_B.double().mean())
        # Sums of squares around the means, not of the numbers: E[x^2] - E[x]^2 cancels where scores lie far from 0.
        total, gap = self.count + count, mean - self.mean
        self.squares += float(((x_B.double() - mean) ** 2).sum()) + gap * gap * self.count * count / total
        self.mean += gap * count / total
        self.count = total

    @property
    def deviation(self) -> float:
        """The unbiased standard deviation; 1 before two numbers were seen and where all were equal."""
        deviation = math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else 0.0
        # Equal up to rounding: dividing by that would make rounding errors of unit spread.
        return deviation if deviation > 1e-6 else 1.0
