"""What policy optimisation adapts from iteration to iteration, besides weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from accord.algo.kl import AdaptiveKL, TrustRegion
from accord.algo.length import LengthController
from accord.algo.shaping import RunningMoments
from accord.config import RlConfig
from accord.errors import DataError


@dataclass
class CriticLevel:
    """What is added to the numbers of a critic's network: its start may lie far from the scores it is to foresee.

    A reward model is free up to a constant, which `reward.json` takes from its scores and a critic made of it would
    keep: every completion then ended in a disappointment, or in a surprise, whatever it was worth.
    """

    shift: float = 0.0
    is_set: bool = False

    def start(self, gap_B: Tensor) -> None:
        """Set it once, by what the scores of the first rollout lie above the values of their last states."""
        if not self.is_set:
            # Measured, and not the reward model's own constant: other scores may be added, and penalties be taken.
            self.shift, self.is_set = float(gap_B.double().mean()), True


@dataclass
class Controllers:
    """The price of KL to the reference, of KL to the policy before the update and of length; running statistics."""

    kl: AdaptiveKL
    trust: TrustRegion
    length: LengthController
    scores: RunningMoments = field(default_factory=RunningMoments)
    returns: RunningMoments = field(default_factory=RunningMoments)
    level: CriticLevel = field(default_factory=CriticLevel)

    @classmethod
    def of(cls, config: RlConfig, reference_length: float) -> Controllers:
        """Return those of a run that starts."""
        return cls(
            AdaptiveKL(config.kl_coef, config.kl_target),
            TrustRegion(config.trust.coef, config.trust.target),
            LengthController(reference_length, config.length_coef),
        )

    def prices(self) -> dict[str, float]:
        """Return what is asked for in this iteration, by the names of the metrics."""
        found = {"kl_coef": self.kl.coef, "length_price": self.length.price}
        if self.kl.target is not None:
            found["kl_target"] = self.kl.target
        if self.trust.coef > 0:
            found["trust_coef"] = self.trust.coef
        return found

    def adapt(self, stats: Mapping[str, float], num_episodes: int) -> None:
        """Move the prices by what an iteration measured."""
        # After the update that this iteration's prices were charged in: the next one pays the new ones.
        self.kl.update(stats["kl"], num_episodes)
        self.trust.update(stats["approx_kl"])
        self.length.update(stats["length"])

    def state(self) -> dict[str, Any]:
        """Return all of it, as plain JSON."""
        return asdict(self)

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where a checkpoint was written."""
        for name, values in state.items():
            # A state that is passed over would go on with a price from nowhere.
            if not hasattr(self, name):
                raise DataError(
                    f"a checkpoint holds {name!r}, which this version does not know",
                    hint="it is of an earlier version of Accord: start the stage anew",
                )
            for key, value in values.items():
                setattr(getattr(self, name), key, value)
