"""The controller that holds the mean length of completions at a target."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

PROPORTIONAL_GAIN = 5.0  # over the integral's: the policy follows the price with a lag, and without it length swings


@dataclass
class LengthController:
    """Hold the mean length of completions at a target, by a price a token that a controller moves.

    The score gains ``price * (tokens / target - 1)``. The price is a Lagrange multiplier of the constraint
    "mean length = target": it rises while completions are too short and falls, also below 0, while they are too long
    (dual ascent, the integral part), plus a proportional part that damps the swings the lag of the policy causes.
    The mean is held without squeezing the spread: a penalty on each completion's own distance from the target would
    make all of one length.
    """

    target: float
    rate: float
    integral: float = 0.0
    error: float = 0.0

    @property
    def price(self) -> float:
        """The score that a completion of twice the target length gains."""
        return self.integral + PROPORTIONAL_GAIN * self.rate * self.error

    def bonus(self, tokens_B: Tensor) -> Tensor:
        """Return what to add to the score of completions of these lengths, ``(B,)``."""
        return self.price * (tokens_B / self.target - 1.0)

    def update(self, mean_tokens: float) -> None:
        """Take in the mean length of a batch. A batch beyond half or one and a half targets counts as there."""
        # Bounded, so that one odd batch moves the price by half a rate at most.
        self.error = max(-0.5, min(0.5, 1.0 - mean_tokens / self.target))
        self.integral += self.rate * self.error
