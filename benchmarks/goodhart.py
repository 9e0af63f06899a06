"""Does gold peak? ``python -m benchmarks.goodhart RUN -o DIR [--samples 64] [--snapshots rl]``.

RUN is a run of the film demo (`accord demo`). Gold is its judge, a ridge regression on people's mean ratings, which
trained nothing there; as Gao et al. 2022 do with their larger reward model, it also labels pairs of reviews, and small
proxies learn from its labels: of few pairs and of many, of pairs of which a quarter is turned around, and an ensemble
of the same. They are Bradley-Terry on TF-IDF, fitted in seconds. Beside them stands the run's own reward model, taught
by people, and the snapshots of a policy that was optimised against it. What comes out is the page of
`accord eval goodhart`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

import accord
import benchmarks.goodhart as here
from accord.config import EvalConfig, SampleConfig, ScorerConfig
from accord.evals.goodhart import GoodhartInputs, checkpoints_in
from accord.evals.judges import TextJudge, load_text_judge
from accord.evals.pair_ensemble import fit_pair_ensemble
from accord.formats.stage_rows import read_rankings
from accord.records import RankedGroup
from accord.seeds import stream_seed
from accord.stats import FloatArray

FLIPPED = 0.25  # AlpacaFarm's and Coste's: without noise over-optimisation hardly shows
#: Name: number of labelled pairs, share turned around, members.
PROXIES = {
    "pairs_200": (200, 0.0, 1),
    "pairs_2000": (2_000, 0.0, 1),
    "pairs_10000": (10_000, 0.0, 1),
    "flipped_2000": (2_000, FLIPPED, 1),
    "ensemble_of_flipped_2000": (2_000, FLIPPED, 10),
}
Scored = Callable[[Sequence[str], Sequence[str]], list[float]]


def labelled(
    judge: TextJudge, groups: Sequence[RankedGroup], count: int, flipped: float, seed: int
) -> list[RankedGroup]:
    """Pairs of reviews of one film, each ordered by the judge; a share of the orders is turned around."""
    rng = np.random.default_rng(stream_seed(seed, "pairs", count))
    found = []
    while len(found) < count:
        group = groups[int(rng.integers(len(groups)))]
        pair = tuple(group.completions[int(i)] for i in rng.choice(len(group.completions), 2, replace=False))
        first, second = judge.score_texts([text.strip() for text in pair])
        ranks = (1, 2) if (first > second) != (rng.random() < flipped) else (2, 1)
        found.append(RankedGroup(prompt=group.prompt, completions=pair, ranks=ranks))
    return found


def proxy_of(pairs: Sequence[RankedGroup], members: int, seed: int) -> Scored:
    """A scorer of the mean over members, each on the scale of its own deviation on the pairs' texts."""
    texts = [text for group in pairs for text in group.completions]
    ensemble = fit_pair_ensemble(pairs, texts, members=members, seed=seed)
    deviation_M: FloatArray = ensemble.score(texts).std(axis=1, keepdims=True)

    def score(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        found: list[float] = (ensemble.score(completions) / deviation_M).mean(0).tolist()
        return found

    return score


def main(argv: Sequence[str] | None = None) -> int:
    """Fit the proxies, measure, and say where the page is."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.goodhart", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("-o", "--output-dir", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=64, help="of the start a prompt: best of n reaches so far")
    parser.add_argument("--snapshots", default="rl", help="which training of the run")
    given = parser.parse_args(argv)
    judge = load_text_judge(given.run / "judge_ratings")
    groups = [group for group in read_rankings(given.run / "data/rankings.jsonl") if group.topic]
    functions = {"gold": lambda prompts, texts: judge.score_texts([text.strip() for text in texts]).tolist()}
    for name, (count, flipped, members) in PROXIES.items():
        functions[name] = proxy_of(labelled(judge, groups, count, flipped, 0), members, 0)
    for name, function in functions.items():
        setattr(here, name, function)  # where a recipe's `function` finds it
    proxies = {"reward_model": ScorerConfig(model=str(given.run / "reward/model"))}
    proxies |= {name: ScorerConfig(function=f"benchmarks.goodhart:{name}") for name in PROXIES}
    made = accord.goodhart(
        EvalConfig(curve_samples=given.samples, samples_per_prompt=8, bootstrap=1000),
        GoodhartInputs(
            given.run / "sft/model",
            given.run / "data/prompts_test.jsonl",
            proxies,
            ScorerConfig(function="benchmarks.goodhart:gold"),
            checkpoints_in(given.run / given.snapshots),
        ),
        output_dir=given.output_dir,
        sampling=SampleConfig(max_new_tokens=80, temperature=1.0),
        cache=given.output_dir / "cache",
        log=lambda share, told: print(f"{share:.0%} {told}", file=sys.stderr),
    )
    print(made.report)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
