"""Scores of a file's completions, each part of them beside the whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accord.config import ScorerConfig
from accord.formats.jsonl import write_jsonl
from accord.formats.stage_rows import read_completed
from accord.scoring.weighted import chat_of, load_scorer, score_in_parts


@dataclass(frozen=True)
class ScoreResult:
    """Where the scored rows are, how many, their mean score, and that of each part where there are several."""

    output: Path
    num_rows: int
    mean_score: float
    parts: dict[str, float]


def score(
    *, rows: Path, output: Path, reward_model: Path | None = None, rewards: Sequence[ScorerConfig] = ()
) -> ScoreResult:
    """Score every completion of a file; its rows are written with ``"score"`` added, whatever else they hold.

    A reward model's score of 0 is that of an average completion among those it was taught by; 1 is one standard
    deviation of theirs. With ``rewards`` it is the weighted sum that `accord.rl` would see, and ``"parts"`` holds each
    part's own score, not yet weighted.
    """
    scorer = load_scorer(rewards, reward_model)
    completed = read_completed(rows, chat_of(scorer))
    score_S, part_S = score_in_parts(scorer, [one.pair for one in completed])
    scores, parts = score_S.tolist(), {name: values.tolist() for name, values in part_S.items()}
    scored: list[dict[str, Any]] = []
    for place, one in enumerate(completed):
        # What an earlier scoring left would stand beside a score that is not its own.
        row = {name: value for name, value in one.row.items() if name not in ("score", "parts", "rank")}
        shown = {name: round(values[place], 6) for name, values in parts.items()}
        scored.append({**row, "score": round(scores[place], 6), **({"parts": shown} if shown else {})})
    write_jsonl(output, scored)
    means = {name: sum(values) / len(values) for name, values in parts.items()}
    return ScoreResult(output, len(completed), sum(scores) / len(scores), means)
