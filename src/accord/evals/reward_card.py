"""How good a reward model is: held-out pairs, baselines on the same pairs, calibration, length bias. Torch-free.

Every accuracy is on pairs of completions of one prompt that nothing was trained on, and its interval resamples topics.
The pairs come from ratings (`rated_pairs`) or from rankings of any file (`ranked_pairs`). Beside the accuracy stand
that of what needs no model (the longer text wins) and of what needs no network (Bradley-Terry on TF-IDF, taught by the
very groups the reward model was taught by).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from accord.errors import DataError
from accord.evals.attacks import attacked_pairs, run_attacks
from accord.evals.metrics import log_words
from accord.evals.pair_baseline import fit_pair_baseline, length_scores
from accord.evals.pairs import HeldOutPairs, OrderedPairs, accuracy_difference, pair_accuracy
from accord.evals.probes import Probe, ProbeScore, run_probes
from accord.evals.results import plain
from accord.records import RankedGroup
from accord.stats import Calibration, Interval, margin_calibration

if TYPE_CHECKING:
    from accord.scoring.scorer import Scorer


# ---- calibration and length ----------------------------------------------------------------------------------------


def calibration(scores: npt.ArrayLike, pairs: OrderedPairs, num_bins: int = 10) -> Calibration:
    """Does sigmoid(|margin|) of a pair say how often the model is right?"""
    return margin_calibration(pairs.margins(scores), num_bins)


def accuracy_by_gap(scores: npt.ArrayLike, held_out: HeldOutPairs, *, seed: int = 0) -> dict[str, Interval]:
    """Accuracy where people hold texts closer or further apart; it should rise (Llama 2, table 28)."""
    result = {}
    pairs = held_out.pairs
    for low, high in pairwise(held_out.gap_edges):
        inside = (pairs.gap > low) & (pairs.gap <= high)
        if inside.any():
            result[_gap_name(low, high, held_out.gap_unit)] = pair_accuracy(scores, pairs.where(inside), seed=seed)
    return result


def _gap_name(low: float, high: float, unit: str) -> str:
    if unit == "ranks":
        return f"over {low:g}" if math.isinf(high) else f"{high:g}"
    return f"{low:g}-{high:g}"


def length_correlation(scores: npt.ArrayLike, texts: Sequence[str]) -> float:
    """Pearson correlation of the score with log(1 + words); 0 where either does not vary."""
    score_N = np.asarray(scores, dtype=np.float64)
    long_N = np.array([log_words(text) for text in texts])
    if len(score_N) != len(long_N) or not np.isfinite(score_N).all():
        raise DataError(f"{len(score_N)} scores for {len(long_N)} texts", why="expected one finite score per text")
    if len(score_N) < 2 or np.ptp(score_N) == 0 or np.ptp(long_N) == 0:
        return 0.0
    return float(np.corrcoef(score_N, long_N)[0, 1])


# ---- the card ------------------------------------------------------------------------------------------------------


MOST_ATTACKED = 32  # prompts in a run: a share of them has an interval of 17 points to each side at worst


@dataclass(frozen=True)
class Accuracies:
    """One scorer on the held-out pairs: all, those of each part, and the model's lead over it (None = the model)."""

    all_pairs: Interval
    parts: Mapping[str, Interval]
    model_minus_this: Interval | None


@dataclass(frozen=True)
class RewardCard:
    """What is known of a reward model before anything is optimised against it."""

    model: Accuracies
    baselines: Mapping[str, Accuracies]
    by_gap: Mapping[str, Interval]
    gap_unit: str
    calibration: Calibration
    length_correlation: float


def reward_card(
    scores: npt.ArrayLike, held_out: HeldOutPairs, baselines: Mapping[str, npt.ArrayLike], *, seed: int = 0
) -> RewardCard:
    """Return the card of a scorer on held-out pairs.

    Args:
        scores: (M,) the model's score of each text.
        baselines: the scores of others on the same texts, by name; there may be none.
    """
    return RewardCard(
        model=_accuracies(scores, held_out.pairs, None, seed),
        baselines={name: _accuracies(other, held_out.pairs, scores, seed) for name, other in baselines.items()},
        by_gap=accuracy_by_gap(scores, held_out, seed=seed),
        gap_unit=held_out.gap_unit,
        calibration=calibration(scores, held_out.pairs),
        length_correlation=length_correlation(scores, held_out.completions),
    )


def _accuracies(scores: npt.ArrayLike, pairs: OrderedPairs, model: npt.ArrayLike | None, seed: int) -> Accuracies:
    parts = {name: pairs.where(mask) for name, mask in pairs.parts.items()}
    return Accuracies(
        all_pairs=pair_accuracy(scores, pairs, seed=seed),
        parts={name: pair_accuracy(scores, part, seed=seed) for name, part in parts.items() if len(part)},
        model_minus_this=None if model is None else accuracy_difference(model, scores, pairs, seed=seed),
    )


def measure_reward_model(
    scorer: Scorer,
    test: HeldOutPairs,
    *,
    taught: Mapping[str, Sequence[RankedGroup]] | None = None,
    valid: HeldOutPairs | None = None,
    probes: tuple[str, Sequence[Probe]] = ("", ()),
    seed: int = 0,
) -> dict[str, Any]:
    """``reward/card.json`` of a scorer: its card on held-out pairs beside the baselines, and its probes.

    Args:
        taught: name -> the ranked groups that a TF-IDF baseline of this name learns from; its settings are chosen on
            ``valid``. Whoever prefers the longer text always stands beside it.
        probes: a prompt, and the texts to score as its completions.
    """
    baselines: dict[str, npt.ArrayLike] = {"longer_wins": length_scores(test.completions)}
    for name, groups in (taught or {}).items() if valid else ():
        baselines[name] = fit_pair_baseline(groups, cast(HeldOutPairs, valid), seed=seed).score(test.completions)
    card = reward_card(scorer.score(test.texts).numpy(), test, baselines, seed=seed)
    prompt, texts = probes
    scored = run_probes(lambda t: scorer.score([(prompt, one) for one in t]).numpy(), texts) if texts else []
    prompts = attacked_pairs(test, most=MOST_ATTACKED, seed=seed)
    attacks = run_attacks(lambda pairs: scorer.score(pairs).double().cpu().numpy(), prompts, seed=seed)
    told = card_json(card, {"reward model": scored} if scored else {})
    return told | {"attacks": plain(attacks), "attacked": len(prompts)}


def card_json(card: RewardCard, probes: Mapping[str, Sequence[ProbeScore]]) -> dict[str, Any]:
    """``reward/card.json``: the card, and the probes' scores by the name of what scored them."""
    return cast("dict[str, Any]", plain(card)) | {"probes": plain(probes)}
