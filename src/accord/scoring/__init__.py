"""What gives a completion its score in training."""

from accord.scoring.reward_model import RewardModel, ScoreResult, score

__all__ = ["RewardModel", "ScoreResult", "score"]
