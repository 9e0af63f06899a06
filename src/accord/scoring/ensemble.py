"""Several reward models, or several heads, as one scorer.

Shapes: S completions, M members.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from accord.config import CombineConfig
from accord.errors import UsageError
from accord.models.placement import AUTO, Placement
from accord.scoring.reward_model import RewardModel, combined


class Ensemble:
    """Reward models that score as one: their heads are its members, each on its own scale.

    Each model is reached by text, so tokenizers and sizes may differ.
    """

    def __init__(self, models: Sequence[RewardModel], combine: CombineConfig) -> None:
        if not models:
            raise UsageError("an ensemble of no reward model", hint="give at least one folder")
        self.models, self.combine = tuple(models), combine

    @classmethod
    def load(
        cls, folders: Sequence[Path], combine: CombineConfig | None = None, placement: Placement = AUTO
    ) -> Ensemble:
        """Read reward models from their Hugging Face folders."""
        return cls([RewardModel.load(folder, placement) for folder in folders], combine or CombineConfig())

    def member_scores(self, pairs: Sequence[tuple[str, str]]) -> Tensor:
        """Return what each member says, ``(S, M)``: all heads of the first model, then those of the next."""
        return torch.cat([model.member_scores(pairs) for model in self.models], dim=1)

    def score(self, pairs: Sequence[tuple[str, str]]) -> Tensor:
        """Return the scores of (prompt, completion) pairs, ``(S,)``."""
        return combined(self.member_scores(pairs), self.combine)
