"""Completions of a file's prompts, with the log-probability each was drawn with; of each n the best, by a scorer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accord.config import SampleConfig, ScorerConfig
from accord.errors import UsageError
from accord.formats.jsonl import write_jsonl
from accord.formats.stage_rows import read_prompts
from accord.progress import Log, quiet
from accord.rollout.engine import Sampling
from accord.rollout.generator import Generated, open_generator
from accord.scoring.scorer import Scorer
from accord.scoring.weighted import load_scorer
from accord.stats import best_of_n_kl_bound


@dataclass(frozen=True)
class SampleResult:
    """Where the samples are, how many, and how long they are on average (tokens).

    ``mean_score`` is None where nothing scored them. ``kl_bound`` bounds, in nats from above, the KL between the best
    of ``best_of`` samples and one (`accord.stats.best_of_n_kl_bound`).
    """

    output: Path
    num_samples: int
    mean_tokens: float
    finished: float
    mean_score: float | None
    best_of: int
    kl_bound: float


def sample(
    config: SampleConfig,
    *,
    model: Path,
    data: Path,
    output: Path,
    reward_model: Path | None = None,
    rewards: Sequence[ScorerConfig] = (),
    seed: int = 0,
    log: Log = quiet,
) -> SampleResult:
    """Draw ``samples_per_prompt`` completions of each ``{"prompt"}`` row.

    Each line written holds prompt, completion, ``logp`` (sum over its tokens, nats), ``tokens`` and ``finish``
    ("stop" where it ended by itself, "length" where it was cut).

    A reward model or ``rewards`` (those of `accord.rl`) add ``score``, ``rank`` (1 = best of the prompt's lines, equal
    scores share one) and ``best_of``: with ``config.best_of`` n > 1 each line is the best of n samples of its own.

    Raises:
        UsageError: ``best_of`` is above 1 and there is nothing to choose by.
    """
    scorer = load_scorer(rewards, reward_model) if reward_model or rewards else None
    if scorer is None and config.best_of > 1:
        raise UsageError("sample.best_of needs something to choose by", hint="give --reward-model DIR, or rl.rewards")
    generator = open_generator(model, name=config.generator)
    prompts = [row.text for row in read_prompts(data, generator.chat)]
    log(0.0, f"{len(prompts)} prompts")
    drawn = config.drawing() | {"samples_per_prompt": config.samples_per_prompt * config.best_of}
    rows = [_as_row(one) for one in generator.generate(prompts, Sampling(**drawn), seed=seed)]
    if scorer is not None:
        log(0.9, "scoring")
        rows = best_rows(rows, scorer, config.best_of, config.samples_per_prompt)
    write_jsonl(output, rows)
    return SampleResult(
        output=output,
        num_samples=len(rows),
        mean_tokens=sum(row["tokens"] for row in rows) / len(rows),
        finished=sum(row["finish"] == "stop" for row in rows) / len(rows),
        mean_score=None if scorer is None else sum(row["score"] for row in rows) / len(rows),
        best_of=config.best_of,
        kl_bound=best_of_n_kl_bound(config.best_of),
    )


def _as_row(one: Generated) -> dict[str, Any]:
    """Return the line that a completion is written as."""
    return {
        "prompt": one.prompt,
        "completion": one.text,
        # A sum, as a sequence's probability is a product; six places are what fp32 holds of it.
        "logp": round(sum(one.behaviour_logp), 6),
        "tokens": len(one.completion_ids),
        "finish": one.finish,
    }


def best_rows(rows: Sequence[dict[str, Any]], scorer: Scorer, best_of: int, per_prompt: int) -> list[dict[str, Any]]:
    """Return the row with the highest score of each ``best_of`` in turn; of equals the earlier.

    ``per_prompt`` of those that remain belong to one prompt each, and are ranked among themselves.
    """
    # Rounded before they are compared: the file's ranks are those of the numbers that stand in it.
    scores = [round(s, 6) for s in scorer.score([(row["prompt"], row["completion"]) for row in rows]).tolist()]
    kept = [max(range(start, start + best_of), key=lambda i: (scores[i], -i)) for start in range(0, len(rows), best_of)]
    found = []
    for place, index in enumerate(kept):
        first = place - place % per_prompt
        rank = 1 + sum(scores[other] > scores[index] for other in kept[first : first + per_prompt])
        found.append({**rows[index], "score": scores[index], "rank": rank, "best_of": best_of})
    return found
