"""What gives a completion its score in training."""

from accord.scoring.ensemble import Ensemble
from accord.scoring.reward_model import RewardModel, ScoreResult, score

__all__ = ["Ensemble", "RewardModel", "ScoreResult", "score"]
