"""Several ways from one SFT policy to a better one, measured alike: which wins, how far it went, and what it cost.

The judge chooses each method's snapshot on validation films as it does for one run; test films are only reported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accord.config import EvalConfig
from accord.evals.evaluate import Bench, Policy, Scored, best_of_n_points, measure_snapshots, part_of, read_films
from accord.evals.judge import load_judge
from accord.evals.results import choose, plain
from accord.files import write_json
from accord.models.placement import AUTO, Placement
from accord.models.precision import tune_allocator
from accord.rollout.engine import Sampling
from accord.scoring.reward_model import RewardModel

Log = Callable[[float, str], None]


@dataclass(frozen=True)
class Method:
    """What one method left: its snapshots by step, or with ``best_of`` n none, and what it cost.

    ``num_scored`` counts the completions that were scored or labelled for it, ``seconds`` its own share of the run.
    """

    name: str
    snapshots: Mapping[int, Path]
    best_of: int
    num_scored: int
    seconds: float


def compare_policies(
    config: EvalConfig,
    *,
    sft: Path,
    methods: Sequence[Method],
    reward_model: Path,
    judge: Path,
    valid_prompts: Path,
    test_prompts: Path,
    max_new_tokens: int,
    temperature: float = 1.0,
    output_dir: Path,
    seed: int = 0,
    placement: Placement = AUTO,
    log: Log = lambda *_: None,
) -> dict[str, Any]:
    """Measure every method against the SFT policy it started from; writes ``output_dir/comparison.json``."""
    tune_allocator()
    reader, proxy, reference = load_judge(judge), RewardModel.load(reward_model, placement), Policy.load(sft, placement)
    sampling = Sampling(max_new_tokens, config.samples_per_prompt, temperature)

    def bench(name: str, path: Path) -> Bench:
        return Bench(name, *read_films(path), reference, proxy, reader, sampling, seed, config.bootstrap, placement)

    valid, test = bench("validation", valid_prompts), bench("test", test_prompts)
    widest = max([config.curve_samples, config.samples_per_prompt, *(one.best_of for one in methods)])
    pool = valid.sample("sft", sft, widest)
    against = pool.first(config.samples_per_prompt), test.sample("sft", sft)
    found = []
    for done, method in enumerate(methods):
        part = part_of(log, done / len(methods), (done + 1) / len(methods))
        found.append(_measured(config, method, valid, test, against, part))
    result = {
        "seed": seed,
        "judge_hash": reader.hash,
        "num_test_prompts": len(test.prompts),
        "num_valid_prompts": len(valid.prompts),
        "samples_per_prompt": config.samples_per_prompt,
        "reference": {"validation": valid.row("sft", *against[:1] * 2), "test": test.row("sft", *against[1:] * 2)},
        "methods": found,
        "best_of_n_curve": best_of_n_points(valid, pool),
    }
    written: dict[str, Any] = plain(result)
    write_json(output_dir / "comparison.json", written)
    return written


def _measured(
    config: EvalConfig, method: Method, valid: Bench, test: Bench, against: tuple[Scored, Scored], log: Log
) -> dict[str, Any]:
    """One method: its snapshots on validation films, the chosen one on test films."""
    cost = {"name": method.name, "num_scored": method.num_scored, "seconds": method.seconds}
    if method.best_of:
        drawn = test.sample(method.name, test.reference.folder, config.samples_per_prompt * method.best_of)
        row = test.row(method.name, drawn.best_by_proxy(method.best_of), against[1], best_of=method.best_of)
        return {**cost, "snapshots": [], "step": None, "held": True, "reason": "no training", "test": row}
    measured = measure_snapshots(config, valid, method.name, method.snapshots, against[0], log)
    best, reason = choose(measured)
    row = test.row(method.name, test.sample(method.name, method.snapshots[best.step]), against[1])
    return {
        **cost,
        "snapshots": [{"step": one.step, "held": one.held, "row": one.row} for one in measured],
        "step": best.step,
        "held": best.held,
        "reason": reason,
        "test": replace(row, note=f"step {best.step}"),
    }
