"""Scorers, which give completions their scores in training."""

from accord.scoring.chat_comparer import ChatComparer, Comparison, Preference
from accord.scoring.ensemble import Ensemble
from accord.scoring.http_scorer import HttpScorer
from accord.scoring.reward_model import RewardModel
from accord.scoring.rules import FunctionScorer, RegexScorer
from accord.scoring.sample_file import SampleResult, sample
from accord.scoring.score_file import ScoreResult, score
from accord.scoring.scorer import Scorer
from accord.scoring.weighted import Part, WeightedScorer, load_scorer

__all__ = [
    "ChatComparer",
    "Comparison",
    "Ensemble",
    "FunctionScorer",
    "HttpScorer",
    "Part",
    "Preference",
    "RegexScorer",
    "RewardModel",
    "SampleResult",
    "ScoreResult",
    "Scorer",
    "WeightedScorer",
    "load_scorer",
    "sample",
    "score",
]
