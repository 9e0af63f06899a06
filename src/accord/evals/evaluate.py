"""The evaluation: samples of every policy on prompts that nothing was trained on, and what judges say of them.

The first judge chooses a snapshot of each candidate on validation prompts among those that hold the floors; the chosen
ones are reported on test prompts beside controls and baselines. Every random choice follows from the seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accord.config import EvalConfig
from accord.errors import UsageError
from accord.evals.bench import Bench, ScoredSamples, best_of_n_points
from accord.evals.contestants import Contestant, EvalPrompts, check_names
from accord.evals.results import EvalResults, PolicyRow, Selection, Snapshot, plain, policy_floors
from accord.evals.samples import LoadedPolicy
from accord.evals.select import measure_snapshots, select_snapshot
from accord.files import write_json
from accord.formats.jsonl import write_jsonl
from accord.models.placement import AUTO, Placement
from accord.models.precision import tune_allocator
from accord.progress import Log, part_of, quiet
from accord.rollout.engine import Sampling
from accord.scoring.scorer import Scorer


@dataclass(frozen=True)
class EvalRun:
    """How and where an evaluation runs: what is drawn (samples a prompt come from the settings), files, device."""

    output_dir: Path
    sampling: Sampling
    seed: int = 0
    placement: Placement = AUTO
    log: Log = quiet


def evaluate_policies(
    config: EvalConfig,
    contestants: Sequence[Contestant],
    *,
    reference: Contestant,
    proxy: Scorer,
    judges: Mapping[str, Scorer],
    prompts: EvalPrompts,
    run: EvalRun,
) -> EvalResults:
    """Choose a snapshot of each candidate on validation prompts, and report all policies on test prompts.

    Writes ``results.json`` and ``samples.jsonl`` (every completion on test prompts with its scores).

    Args:
        contestants: what is measured, in the order of the tables.
        reference: where the candidates started; win rates, KL and likelihood are against it.
        proxy: what was optimised; it picks in best-of-n.
        judges: scorers that trained nothing. The first one chooses; all are reported.
    """
    tune_allocator()
    check_judges(judges)
    check_names(reference, tuple(contestants))
    valid, test = _benches(config, reference, proxy, judges, prompts, run)
    pool = valid.sample(reference.random, valid.reference.folder, _widest(config, contestants))
    against = pool.first(config.samples_per_prompt)
    selections, controls = _on_validation(config, valid, contestants, against, part_of(run.log, 0.15, 0.65))
    chosen = [_with_note(one, selections) for one in contestants]
    rows, samples = _on_test(test, reference, chosen, part_of(run.log, 0.65, 0.97))
    results = EvalResults(
        seed=run.seed,
        judges={name: str(getattr(judge, "hash", "")) for name, judge in judges.items()},
        num_test_prompts=len(test.prompts),
        num_valid_prompts=len(valid.prompts),
        samples_per_prompt=config.samples_per_prompt,
        max_new_tokens=run.sampling.max_new_tokens,
        temperature=run.sampling.temperature,
        reference=reference.name,
        candidate=next((one.name for one in contestants if one.role == "candidate"), ""),
        policies=rows,
        floors={row.name: policy_floors(config, row) for row in rows if row.role == "candidate"},
        folders=_folders(chosen, run.output_dir.parent),
        start=valid.row(as_reference(reference), against, against),
        selections=selections,
        controls=controls,
        best_of_n_curve=best_of_n_points(valid, pool),
    )
    write_jsonl(run.output_dir / "samples.jsonl", _sample_rows(test, samples))
    write_json(run.output_dir / "results.json", results.to_json())
    run.log(1.0, "evaluated")
    return results


def check_judges(judges: Mapping[str, Scorer]) -> None:
    """Refuse to evaluate without a judge: the proxy cannot judge what was optimised against it."""
    if not judges:
        raise UsageError(
            "there is no judge",
            why="a policy cannot be judged by the score that it was optimised for",
            hint="name a scorer that trained nothing: a reward model of other judgements, a function, a URL",
        )


def as_reference(one: Contestant) -> Contestant:
    """Return the reference by its role, whatever role it was given with."""
    return replace(one, role="reference", best_of=1)


def _benches(
    config: EvalConfig,
    reference: Contestant,
    proxy: Scorer,
    judges: Mapping[str, Scorer],
    prompts: EvalPrompts,
    run: EvalRun,
) -> tuple[Bench, Bench]:
    """Return the bench of each split; on validation prompts only the judge that chooses is asked."""
    policy = LoadedPolicy.load(reference.snapshots[reference.last], run.placement)
    sampling = replace(run.sampling, samples_per_prompt=config.samples_per_prompt)
    bare = Bench("", (), (), policy, proxy, judges, sampling, run.seed, config.bootstrap, run.placement)
    leading = dict(list(judges.items())[:1])
    return bare.on("validation", prompts.valid, leading), bare.on("test", prompts.test, judges)


def _widest(config: EvalConfig, contestants: Sequence[Contestant]) -> int:
    """Samples a prompt of the reference on validation prompts: the curve of best-of-n reaches so far."""
    return max([config.curve_samples, config.samples_per_prompt, *(one.best_of for one in contestants)])


def _on_validation(
    config: EvalConfig, valid: Bench, contestants: Sequence[Contestant], against: ScoredSamples, log: Log
) -> tuple[dict[str, Selection], dict[str, tuple[Snapshot, ...]]]:
    """Return the choice of each candidate, and the snapshots of each control."""
    selections: dict[str, Selection] = {}
    controls: dict[str, tuple[Snapshot, ...]] = {}
    wanted = [one for one in contestants if one.chosen or one.role == "control"]
    for done, one in enumerate(wanted):
        part = part_of(log, done / len(wanted), (done + 1) / len(wanted))
        if one.chosen:
            selections[one.name] = select_snapshot(config, valid, one, against, part)
        else:
            controls[one.name] = measure_snapshots(config, valid, one, against, part)
    return selections, controls


def _with_note(one: Contestant, selections: Mapping[str, Selection]) -> Contestant:
    """Return the contestant with its chosen snapshot alone, and a note that says which it is."""
    if one.name not in selections:
        return replace(one, snapshots={one.last: one.snapshots[one.last]})
    step = selections[one.name].step
    told = f"step {step}, chosen by the judge on validation prompts" if len(one.snapshots) > 1 else ""
    return replace(one, snapshots={step: one.snapshots[step]}, note=", ".join(filter(None, [one.note, told])))


def _folders(contestants: Sequence[Contestant], root: Path) -> dict[str, str]:
    """Return where the one snapshot of each contestant lies, seen from the run's folder."""
    found = {one.name: one.snapshots[one.last] for one in contestants if one.best_of == 1}
    return {name: path.relative_to(root).as_posix() for name, path in found.items() if path.is_relative_to(root)}


def _on_test(
    test: Bench, reference: Contestant, contestants: Sequence[Contestant], log: Log
) -> tuple[tuple[PolicyRow, ...], dict[str, ScoredSamples]]:
    """Return a row of the reference and of each contestant, which has one snapshot by now, and the samples by name."""
    against = test.sample(reference.random, test.reference.folder)
    note = reference.note or "the reference: where training started"
    rows, samples = [test.row(as_reference(reference), against, against, note=note)], {reference.name: against}
    for done, one in enumerate(contestants):
        log(done / len(contestants), f"{test.name} prompts: {one.name}")
        scored = test.sample(one.random, one.snapshots[one.last], test.sampling.samples_per_prompt * one.best_of)
        samples[one.name] = scored.best_by_proxy(one.best_of)
        rows.append(test.row(one, samples[one.name], against))
    return tuple(rows), samples


def _sample_rows(bench: Bench, samples: Mapping[str, ScoredSamples]) -> list[dict[str, Any]]:
    return [
        {
            "policy": name,
            "topic": bench.topics[p],
            "prompt": bench.prompts[p],
            "sample": k,
            "completion": text,
            "judge": plain(scored.judge_PK[p, k]),
            "proxy": plain(scored.proxy_PK[p, k]),
            "tokens": int(scored.samples.tokens_PK[p, k]),
            "finished": bool(scored.samples.finished_PK[p, k]),
            **{f"judge:{other}": plain(score_PK[p, k]) for other, score_PK in scored.others.items()},
        }
        for name, scored in samples.items()
        for p, row in enumerate(scored.samples.texts)
        for k, text in enumerate(row)
    ]
