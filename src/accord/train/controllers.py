"""What policy optimisation adapts from iteration to iteration, besides weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from accord.algo.kl import AdaptiveKL, LengthLeash, TrustRegion
from accord.algo.shaping import RunningMoments
from accord.config import RlConfig


@dataclass
class Controllers:
    """The price of KL to the reference, of KL to the policy before the update and of length; running statistics."""

    kl: AdaptiveKL
    trust: TrustRegion
    leash: LengthLeash
    scores: RunningMoments = field(default_factory=RunningMoments)
    returns: RunningMoments = field(default_factory=RunningMoments)

    @classmethod
    def of(cls, config: RlConfig, reference_length: float) -> Controllers:
        """Those of a run that starts."""
        return cls(
            AdaptiveKL(config.kl_coef, config.kl_target),
            TrustRegion(config.trust.coef, config.trust.target),
            LengthLeash(reference_length, config.length_coef),
        )

    def state(self) -> dict[str, Any]:
        """All of it, as plain JSON."""
        return asdict(self)

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where a checkpoint was written."""
        for name, values in state.items():
            for key, value in values.items():
                setattr(getattr(self, name), key, value)
