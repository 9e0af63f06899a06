"""Over-optimisation measured: a proxy and gold along the distance from the start, for best of n and for checkpoints.

Samples of the start are drawn once; every proxy picks among the same ones, so that proxies taught by more or fewer
judgements, ensembles, or judgements of which a part is turned around can be laid side by side. The laws are those of
`accord.stats.over_optimisation`.

Shapes: P prompts, K samples a prompt, D distances.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from accord.config import EvalConfig, SampleConfig, ScorerConfig
from accord.errors import UsageError
from accord.evals.bench import Bench, ScoredSamples
from accord.evals.folders import own_sampling
from accord.evals.results import plain
from accord.evals.samples import LoadedPolicy
from accord.files import write_json
from accord.lock import writes_alone
from accord.models.placement import AUTO
from accord.progress import Log, part_of, quiet
from accord.report.goodhart_page import write_goodhart_page
from accord.report.run_folder import CURVES_FILE
from accord.report.run_page import write_report
from accord.scoring.weighted import SCORER_KINDS
from accord.stats import (
    FloatArray,
    GoldLaw,
    Interval,
    best_of_n_kl_bound,
    best_of_n_scores,
    bootstrap_by_cluster,
    fit_gold_law,
)
from accord.stats.over_optimisation import LEAST_DISTANCES

START = "start"


@dataclass(frozen=True)
class GoodhartPoint:
    """Gold and proxy at one distance, both above the start's, in standard deviations of the start's samples.

    ``kl`` is in nats: of best of n log n - (n - 1) / n, which is exact for scores without ties and else a bound.
    """

    name: str
    kl: Interval
    gold: Interval
    proxy: Interval


@dataclass(frozen=True)
class GoodhartCurve:
    """One proxy: its points, and the law that gold follows; ``left_out`` says why there is none."""

    proxy: str
    method: str
    points: tuple[GoodhartPoint, ...]
    law: GoldLaw | None
    left_out: str = ""


@dataclass(frozen=True)
class GoodhartResult:
    """Where the page is, and what each curve's law says: whether gold peaks, where, with intervals."""

    report: Path
    curves: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class GoodhartInputs:
    """What is optimised against what.

    Attributes:
        start: The policy that best of n draws from, and that checkpoints were trained from.
        data: Prompts that nothing was trained on.
        proxies: What was, or might be, optimised, by name; the first one is what the checkpoints were trained on.
        gold: What is truly wanted: it trained none of the proxies, or taught them, as in Gao's experiment.
        checkpoints: Policies along one training, by name, in its order.
    """

    start: Path
    data: Path
    proxies: Mapping[str, ScorerConfig]
    gold: ScorerConfig
    checkpoints: Mapping[str, Path] = field(default_factory=dict)


@writes_alone
def goodhart(
    config: EvalConfig,
    inputs: GoodhartInputs,
    *,
    output_dir: Path,
    sampling: SampleConfig | None = None,
    cache: Path | None = None,
    seed: int = 0,
    log: Log = quiet,
) -> GoodhartResult:
    """Measure how gold goes while a proxy is optimised, by best of n and along checkpoints, and fit Gao's laws.

    Writes ``report.html`` and ``goodhart/curves.json`` in ``output_dir``; in the folder of a run the figure becomes
    part of its report. Best of n reaches to n = ``eval.curve_samples``, a power of 2; checkpoints have
    ``eval.samples_per_prompt`` samples a prompt.

    Raises:
        UsageError: there is no proxy, or too few samples for a law.
    """
    if not inputs.proxies:
        raise UsageError("there is no proxy", hint="name what is optimised: --proxy DIR")
    if config.curve_samples < 2**LEAST_DISTANCES:
        raise UsageError(
            f"eval.curve_samples is {config.curve_samples}", hint="a law needs 8 samples a prompt at least"
        )
    first, *others = inputs.proxies
    scorers = {name: SCORER_KINDS[one.kind](one, AUTO) for name, one in inputs.proxies.items()}
    gold = {"gold": SCORER_KINDS[inputs.gold.kind](inputs.gold, AUTO)}
    judges = {**gold, **{name: scorers[name] for name in others}}
    start, drawn = LoadedPolicy.load(inputs.start), own_sampling(sampling)
    bare = Bench("", (), (), start, scorers[first], judges, drawn, seed, config.bootstrap, cache=cache)
    bench = bare.on("test", inputs.data, judges)
    bench.tell_left_out(log)
    pool = bench.sample(START, inputs.start, config.curve_samples)
    log(0.4, f"{pool.judge_PK.size:,} samples of the start scored by {len(scorers)} proxies and gold")
    curves = [_best_of_n(bench, pool, _proxy_of(pool, name, first), name) for name in inputs.proxies]
    curves += _along_checkpoints(config, bench, pool, inputs, part_of(log, 0.4, 0.95))
    written = {
        "start": str(inputs.start),
        "prompts": len(bench.prompts),
        "topics": len(set(bench.topics)),
        "seed": seed,
    }
    written |= {"samples_per_prompt": config.curve_samples, "curves": plain(tuple(curves))}
    write_json(output_dir / CURVES_FILE, written)
    return GoodhartResult(_pages(output_dir), {_title(one): _told(one) for one in curves})


def _pages(folder: Path) -> Path:
    """Write the page, and the report of a run anew that it now belongs to; return where a reader begins."""
    page = write_goodhart_page(folder)
    return write_report(folder) if (folder / "resolved.json").exists() else page


def _title(curve: GoodhartCurve) -> str:
    return f"{curve.method} by {curve.proxy}"


def _told(curve: GoodhartCurve) -> dict[str, Any]:
    """Return what a reader at the shell wants of a curve."""
    if curve.law is None:
        return {"left_out": curve.left_out}
    law = curve.law
    numbers = {name: plain(getattr(law, name)) for name in ("alpha", "beta", "peak_kl", "peak_gold")}
    return {"says": law.says, **numbers, "largest_kl": law.largest_kl}


def _proxy_of(scored: ScoredSamples, name: str, first: str) -> FloatArray:
    return scored.proxy_PK if name == first else scored.others[name]


def _best_of_n(bench: Bench, pool: ScoredSamples, proxy_PK: FloatArray, name: str) -> GoodhartCurve:
    """Return the curve of best of n by one proxy over the pool, unbiased at each n."""
    gold_PK, proxy_PK = _in_deviations(pool.judge_PK, pool.judge_PK), _in_deviations(proxy_PK, proxy_PK)
    ns = [2**i for i in range(1, proxy_PK.shape[1].bit_length())]
    gold_DP = np.stack([best_of_n_scores(gold_PK, proxy_PK, n) for n in ns])
    proxy_DP = np.stack([best_of_n_scores(proxy_PK, proxy_PK, n) for n in ns])
    kl_D = np.array([best_of_n_kl_bound(n) for n in ns])
    kl_DP = np.repeat(kl_D[:, None], len(gold_PK), axis=1)
    names = [f"n = {n}" for n in ns]
    return _curve(bench, ("best_of_n", name, names), gold_DP - gold_PK.mean(1), proxy_DP - proxy_PK.mean(1), kl_DP)


def _along_checkpoints(
    config: EvalConfig, bench: Bench, pool: ScoredSamples, inputs: GoodhartInputs, log: Log
) -> Sequence[GoodhartCurve]:
    """Return the curve of the checkpoints, against the start's samples of the same prompts; none without any."""
    if not inputs.checkpoints:
        return ()
    gold, proxy, kl = [], [], []
    for done, (name, folder) in enumerate(inputs.checkpoints.items()):
        log(done / len(inputs.checkpoints), f"samples of {name}")
        scored = bench.sample(name, folder, config.samples_per_prompt)
        gold.append(_in_deviations(scored.judge_PK, pool.judge_PK).mean(1))
        proxy.append(_in_deviations(scored.proxy_PK, pool.proxy_PK).mean(1))
        kl.append(scored.samples.kl_PK.mean(1))
    start_gold = _in_deviations(pool.judge_PK, pool.judge_PK).mean(1)
    start_proxy = _in_deviations(pool.proxy_PK, pool.proxy_PK).mean(1)
    what = ("rl", next(iter(inputs.proxies)), list(inputs.checkpoints))
    return [_curve(bench, what, np.stack(gold) - start_gold, np.stack(proxy) - start_proxy, np.stack(kl))]


def _in_deviations(score_PK: FloatArray, start_PK: FloatArray) -> FloatArray:
    """Return scores in standard deviations of the start's samples around their prompt's mean."""
    deviation = float(np.sqrt(np.mean((start_PK - start_PK.mean(1, keepdims=True)) ** 2)))
    return np.asarray(score_PK / (deviation or 1.0))


def _curve(
    bench: Bench, what: tuple[str, str, Sequence[str]], gold_DP: FloatArray, proxy_DP: FloatArray, kl_DP: FloatArray
) -> GoodhartCurve:
    method, proxy, names = what

    def mean(value_P: FloatArray) -> Interval:
        return bootstrap_by_cluster(value_P, bench.topics, resamples=bench.resamples, seed=bench.seed)

    rows = zip(names, kl_DP, gold_DP, proxy_DP, strict=True)
    points = tuple(GoodhartPoint(name, mean(kl), mean(gold), mean(by)) for name, kl, gold, by in rows)
    far = int((kl_DP.mean(1) > 0).sum())
    if far < LEAST_DISTANCES:
        return GoodhartCurve(
            proxy, method, points, None, f"a law needs {LEAST_DISTANCES} distances, and there are {far}"
        )
    law = fit_gold_law(method, gold_DP, kl_DP, bench.topics, resamples=min(1000, bench.resamples), seed=bench.seed)
    return GoodhartCurve(proxy, method, points, law)


def checkpoints_in(folder: Path) -> dict[str, Path]:
    """Return the policies along a training, by name: a stage's ``snapshots``, wherever ``folder`` holds it.

    Raises UsageError where there is none.
    """
    found = next(
        (there for there in (folder, folder / "snapshots", folder / "rl/snapshots") if any(there.glob("step_*"))), None
    )
    if found is None:
        raise UsageError(
            "no snapshot is here", where=str(folder), hint="give the folder that holds step_000010 and so on"
        )
    return {f"step {int(path.name.removeprefix('step_'))}": path for path in sorted(found.glob("step_*"))}
