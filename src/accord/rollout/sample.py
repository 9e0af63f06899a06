"""Completions of a file's prompts, with the log-probability each was drawn with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from accord.config import SampleConfig
from accord.formats.jsonl import read_prompts, write_jsonl
from accord.models.folder import load_policy
from accord.models.precision import compute_dtype
from accord.rollout.engine import Engine, Sampling


@dataclass(frozen=True)
class SampleResult:
    """Where the samples are, how many, and how long they are on average (tokens)."""

    output: Path
    num_samples: int
    mean_tokens: float
    finished: float


def sample(
    config: SampleConfig,
    *,
    model: Path,
    data: Path,
    output: Path,
    seed: int = 0,
    log: Callable[[float, str], None] = lambda fraction, text: None,
) -> SampleResult:
    """Draw ``samples_per_prompt`` completions of each ``{"prompt"}`` row.

    Each line written holds prompt, completion, ``logp`` (sum over its tokens, nats), ``tokens`` and ``finish``
    ("stop" where it ended by itself, "length" where it was cut).
    """
    policy, words = load_policy(model, compute_dtype())
    prompts = [row.text for row in read_prompts(data, words.chat)]
    log(0.0, f"{len(prompts)} prompts")
    sampling = Sampling(**config.model_dump())
    samples = Engine(policy, words.stop_ids).generate([words.encode(p) for p in prompts], sampling, seed=seed)
    rows = [
        {
            "prompt": prompts[s.prompt_index],
            "completion": words.decode(s.completion),
            "logp": round(sum(s.behaviour_logp), 6),
            "tokens": len(s.completion),
            "finish": s.finish,
        }
        for s in samples
    ]
    write_jsonl(output, rows)
    finished = sum(s.finish == "stop" for s in samples) / len(samples)
    return SampleResult(output, len(samples), sum(len(s.completion) for s in samples) / len(samples), finished)
