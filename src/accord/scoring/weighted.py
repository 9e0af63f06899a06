"""Several scores as one: a weighted sum whose parts stay visible."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from accord.config import ScorerConfig
from accord.errors import UsageError
from accord.models.placement import AUTO, Placement
from accord.scoring.ensemble import Ensemble
from accord.scoring.http_scorer import HttpScorer
from accord.scoring.reward_model import RewardModel
from accord.scoring.rules import FunctionScorer, RegexScorer
from accord.scoring.scorer import Scorer
from accord.text.template import ChatTemplate


@dataclass(frozen=True)
class Part:
    """One score of several: ``weight`` 0 is measured and not optimised."""

    name: str
    weight: float
    scorer: Scorer


class WeightedScorer:
    """The sum over parts of weight * score. Each name stands once, and some weight is not 0, else UsageError."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.each = tuple(parts)
        names = [part.name for part in parts]
        if len(set(names)) < len(names):
            raise UsageError(f"two scorers share a name: {', '.join(sorted(names))}", hint="give each its own")
        if not any(part.weight for part in parts):
            raise UsageError("no scorer has a weight above or below 0", why="nothing would be optimised")

    def parts(self, pairs: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
        """Return each part's own scores ``(S,)``, not yet weighted."""
        # Logged before its weight: a part's own mean can be compared between runs, a weighted one moves with the
        # weight.
        return {part.name: part.scorer.score(pairs) for part in self.each}

    def join(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum of such scores, ``(S,)``."""
        return torch.stack([part.weight * parts[part.name] for part in self.each]).sum(0)

    def score(self, pairs: Sequence[tuple[str, str]]) -> Tensor:
        return self.join(self.parts(pairs))


def score_in_parts(scorer: Scorer, pairs: Sequence[tuple[str, str]]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the scores ``(S,)``, and those of each part where the scorer has any; nothing is scored twice."""
    if not isinstance(scorer, WeightedScorer):
        return scorer.score(pairs), {}
    parts = scorer.parts(pairs)
    return scorer.join(parts), parts


def chat_of(scorer: Scorer) -> ChatTemplate | None:
    """Return the chat template of the reward model among the parts, of the first of several; None without one."""
    return next((one.tokenizer.chat for one in reward_models(scorer)), None)


def reward_models(scorer: Scorer) -> list[RewardModel]:
    """Return the reward models among the parts of a scorer; none where functions, patterns or servers score."""
    found = [part.scorer for part in scorer.each] if isinstance(scorer, WeightedScorer) else [scorer]
    models = [model for one in found for model in (one.models if isinstance(one, Ensemble) else [one])]
    return [one for one in models if isinstance(one, RewardModel)]


#: How a scorer is made of its configuration, and where its model goes.
SCORER_KINDS: dict[str, Callable[[ScorerConfig, Placement], Scorer]] = {
    "model": lambda config, placement: RewardModel.load(Path(config.model), placement),
    "ensemble": lambda config, placement: Ensemble.load([*map(Path, config.ensemble)], config.combine, placement),
    "function": lambda config, _: FunctionScorer(config.function),
    "regex": lambda config, _: RegexScorer(config.regex, absent=config.absent),
    "http": lambda config, _: HttpScorer(config.http, timeout_s=config.timeout_s, batch_size=config.batch_size),
    "chat": lambda config, _: refuse_score(config),
}
GIVEN = "reward_model"  # the name of the given reward model among the parts


def refuse_score(config: ScorerConfig) -> NoReturn:
    """Refuse a comparer where a number a completion is wanted. Raises UsageError."""
    raise UsageError(
        f"{config.label} compares two completions, and gives no score of one",
        hint="let it rank samples (ask.who: scorer), and train a reward model on that",
    )


def load_scorer(
    configs: Sequence[ScorerConfig] = (), reward_model: Path | None = None, placement: Placement = AUTO
) -> Scorer:
    """Return what ``rl.rewards`` and a given reward model describe together; the reward model counts once.

    Raises:
        UsageError: there is neither, two parts share a name, or all weights are 0.
    """
    if reward_model is None and not configs:
        raise UsageError(
            "nothing says what a completion is worth",
            hint="give --reward-model DIR, or rl.rewards in a recipe or on the command line",
        )
    # The given one counts 1 and the others are weighed against it: a weight of its own would say again what rl.kl_coef
    # and the other weights say.
    given = [] if reward_model is None else [Part(GIVEN, 1.0, RewardModel.load(reward_model, placement))]
    # A plain scorer has no parts: its score is logged once, not twice under two names.
    if not configs:
        return given[0].scorer
    made = [Part(config.label, config.weight, SCORER_KINDS[config.kind](config, placement)) for config in configs]
    return WeightedScorer([*given, *made])


def scorer_inputs(configs: Sequence[ScorerConfig], reward_model: Path | None = None) -> dict[str, Path]:
    """Return the folders that these scorers read, by name: a stage's result depends on their contents."""
    given = {} if reward_model is None else {GIVEN: reward_model}
    for config in configs:
        folders = (config.model,) if config.model else config.ensemble
        given |= {f"rewards.{config.label}.{i}": Path(folder) for i, folder in enumerate(folders)}
    return given
