"""Scores of a file's completions, each part of them beside the whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accord.config import ScorerConfig
from accord.formats.jsonl import write_jsonl
from accord.formats.stage_rows import read_completions
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
    """Score every completion of a file; rows of ``{"prompt", "completion", "score"}`` are written.

    A reward model's score of 0 is that of an average completion among those it was taught by; 1 is one standard
    deviation of theirs. With ``rewards`` it is the weighted sum that `accord.rl` would see, and ``"parts"`` holds each
    part's own score, not yet weighted.
    """
    scorer = load_scorer(rewards, reward_model)
    pairs = read_completions(rows, chat_of(scorer))
    score_S, part_S = score_in_parts(scorer, pairs)
    scores, parts = score_S.tolist(), {name: values.tolist() for name, values in part_S.items()}
    scored: list[dict[str, Any]] = []
    for place, (prompt, completion) in enumerate(pairs):
        row = {"prompt": prompt, "completion": completion, "score": round(scores[place], 6)}
        shown = {name: round(values[place], 6) for name, values in parts.items()}
        scored.append({**row, "parts": shown} if shown else row)
    write_jsonl(output, scored)
    means = {name: sum(values) / len(values) for name, values in parts.items()}
    return ScoreResult(output, len(pairs), sum(scores) / len(scores), means)
