"""The evaluation: samples of every policy on prompts that nothing was trained on, and what judges say of them.

The first judge chooses a snapshot of each candidate on validation prompts among those that hold the floors; the chosen
ones are reported on test prompts beside controls and baselines. Every random choice follows from the seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from accord.config import EvalConfig
from accord.errors import UsageError
from accord.evals.bench import Bench, ScoredSamples, best_of_n_points
from accord.evals.contestants import Contestant, EvalPrompts, check_names
from accord.evals.judges import Judge
from accord.evals.results import (
    CurvePoint,
    EvalResults,
    PolicyRow,
    Selection,
    Snapshot,
    plain,
    policy_floors,
    snapshot_floors,
)
from accord.evals.samples import LoadedPolicy
from accord.evals.select import measure_snapshots, select_snapshot
from accord.evals.trust import JudgeSaid, deciding, judge_said, told_in_order
from accord.files import write_json
from accord.formats.jsonl import write_jsonl
from accord.models.placement import AUTO, Placement
from accord.models.precision import tune_allocator
from accord.progress import Log, part_of, quiet
from accord.rollout.engine import Sampling
from accord.scoring.scorer import Scorer


@dataclass(frozen=True)
class EvalRun:
    """How and where an evaluation runs: what is drawn (samples a prompt come from the settings), files, device.

    ``cache`` is a folder that keeps samples by what decides them.
    """

    output_dir: Path
    sampling: Sampling
    seed: int = 0
    placement: Placement = AUTO
    log: Log = quiet
    cache: Path | None = None


def evaluate_policies(
    config: EvalConfig,
    contestants: Sequence[Contestant],
    *,
    reference: Contestant,
    proxy: Scorer,
    judges: Mapping[str, Judge],
    prompts: EvalPrompts,
    run: EvalRun,
) -> EvalResults:
    """Choose a snapshot of each candidate on validation prompts, and report all policies on test prompts.

    Where every policy has one snapshot nothing is chosen, and validation prompts serve the curve of best-of-n alone.
    Writes ``results.json`` and ``samples.jsonl`` (every completion on test prompts with its scores).

    Args:
        contestants: what is measured, in the order of the tables.
        reference: where the candidates started; win rates, KL and likelihood are against it.
        proxy: what was optimised; it picks in best-of-n.
        judges: what trained nothing. The first one chooses; all are reported, and the most trusted one that has enough
            to say decides.
    """
    tune_allocator()
    check_judges(judges)
    check_names(reference, tuple(contestants))
    valid, test = _benches(config, reference, proxy, judges, prompts, run)
    for bench in (valid, test):
        bench.tell_left_out(run.log)
    validation = _on_validation(config, valid, reference, contestants, part_of(run.log, 0.15, 0.65))
    chosen = [_with_note(one, validation.selections) for one in contestants]
    rows, samples = _on_test(test, reference, chosen, part_of(run.log, 0.65, 0.97))
    said = {row.name: _said(judges, row) for row in rows if row.role == "candidate"}
    results = EvalResults(
        seed=run.seed,
        judges={name: str(getattr(judge.scorer, "hash", "")) for name, judge in judges.items()},
        num_test_prompts=len(test.prompts),
        num_valid_prompts=validation.num_prompts,
        left_out={bench.name: dict(bench.left_out) for bench in (valid, test) if bench.left_out},
        samples_per_prompt=config.samples_per_prompt,
        max_new_tokens=run.sampling.max_new_tokens,
        temperature=run.sampling.temperature,
        reference=reference.name,
        candidate=next((one.name for one in contestants if one.role == "candidate"), ""),
        policies=rows,
        floors={
            row.name: policy_floors(config, row, deciding(said[row.name]).win_rate) for row in rows if row.name in said
        },
        folders=_folders(chosen, run.output_dir.parent),
        start=validation.start or rows[0],
        selections=validation.selections or _only_snapshots(config, chosen, rows),
        controls=validation.controls,
        best_of_n_curve=validation.curve,
        judged={name: told_in_order(of) for name, of in said.items()},
    )
    write_jsonl(run.output_dir / "samples.jsonl", _sample_rows(test, samples))
    write_json(run.output_dir / "results.json", results.to_json())
    run.log(1.0, "evaluated")
    return results


def _said(judges: Mapping[str, Judge], row: PolicyRow) -> list[JudgeSaid]:
    """Return what each judge says of a candidate against the reference."""
    wins = [row.win_rate, *(one.win_rate for one in row.other_judges.values())]
    return [
        judge_said(name, one.kind, win, note=one.note) for (name, one), win in zip(judges.items(), wins, strict=True)
    ]


def check_judges(judges: Mapping[str, Judge]) -> None:
    """Refuse to evaluate without a judge: the proxy cannot judge what was optimised against it."""
    if not judges:
        raise UsageError(
            "there is no judge",
            why="a policy cannot be judged by the score that it was optimised for",
            hint="name a scorer that trained nothing: a reward model of other judgements, a function, a URL; "
            "people and chat models compare pairs, and something must choose among snapshots",
        )


def as_reference(one: Contestant) -> Contestant:
    """Return the reference by its role, whatever role it was given with."""
    return replace(one, role="reference", best_of=1)


def _benches(
    config: EvalConfig,
    reference: Contestant,
    proxy: Scorer,
    judges: Mapping[str, Judge],
    prompts: EvalPrompts,
    run: EvalRun,
) -> tuple[Bench, Bench]:
    """Return the bench of each split; on validation prompts only the judge that chooses is asked."""
    policy = LoadedPolicy.load(reference.snapshots[reference.last], run.placement)
    sampling = replace(run.sampling, samples_per_prompt=config.samples_per_prompt)
    scorers = {name: judge.scorer for name, judge in judges.items()}
    bare = Bench(
        "", (), (), policy, proxy, scorers, sampling, run.seed, config.bootstrap, run.placement, None, run.cache
    )
    leading = dict(list(scorers.items())[:1])
    return bare.on("validation", prompts.valid, leading), bare.on("test", prompts.test, scorers)


def _widest(config: EvalConfig, contestants: Sequence[Contestant]) -> int:
    """Samples a prompt of the reference on validation prompts: the curve of best-of-n reaches so far."""
    return max([config.curve_samples, config.samples_per_prompt, *(one.best_of for one in contestants)])


@dataclass(frozen=True)
class _Validation:
    """What is known from validation prompts; nothing where nothing was drawn for them."""

    num_prompts: int = 0
    start: PolicyRow | None = None
    selections: Mapping[str, Selection] = field(default_factory=dict)
    controls: Mapping[str, tuple[Snapshot, ...]] = field(default_factory=dict)
    curve: tuple[CurvePoint, ...] = ()


def _on_validation(
    config: EvalConfig, valid: Bench, reference: Contestant, contestants: Sequence[Contestant], log: Log
) -> _Validation:
    """Return the choices, where there is something to choose, and the curve of best-of-n, where one is wanted."""
    choice = any(len(one.snapshots) > 1 for one in contestants)
    if not choice and config.curve_samples < 2:
        return _Validation()
    pool = valid.sample(reference.random, valid.reference.folder, _widest(config, contestants))
    against = pool.first(config.samples_per_prompt)
    start, curve = valid.row(as_reference(reference), against, against), best_of_n_points(valid, pool)
    selections, controls = _choices(config, valid, contestants, against, log) if choice else ({}, {})
    return _Validation(len(valid.prompts), start, selections, controls, curve)


def _choices(
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


def _only_snapshots(
    config: EvalConfig, contestants: Sequence[Contestant], rows: Sequence[PolicyRow]
) -> dict[str, Selection]:
    """Return candidates of one snapshot as they are: what a snapshot must hold is looked at on test prompts."""
    row_of = {row.name: row for row in rows}
    found = {}
    for one in (one for one in contestants if one.chosen):
        broken = [floor for floor in snapshot_floors(config, row_of[one.name]) if not floor.held]
        told = "; ".join(f"{floor.name} is {floor.value:.3g}, must be {floor.bound}" for floor in broken)
        reason = f"step {one.last} is the only snapshot, and on test prompts it holds " + (
            f"not every floor: {told}" if told else "every floor"
        )
        found[one.name] = Selection(one.last, not broken, reason, ())
    return found


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
    first = next((one for one in contestants if one.is_first), None)
    if first is not None:
        test = replace(test, first=LoadedPolicy.load(first.snapshots[first.last], test.placement))
    against = test.sample(reference.random, test.reference.folder)
    note = reference.note or "the reference: where training started"
    rows, samples = [test.row(as_reference(reference), against, against, note=note)], {reference.name: against}
    for done, one in enumerate(contestants):
        log(done / len(contestants), f"{test.name} prompts: {one.name}")
        scored = test.sample(one.random, one.snapshots[one.last], test.sampling.samples_per_prompt * one.best_of)
        samples[one.name] = scored.best_by_proxy(one.best_of)
        rows.append(test.row(one, samples[one.name], against))
    return _with_first(test, first, rows, samples), samples


def _with_first(
    test: Bench, first: Contestant | None, rows: Sequence[PolicyRow], samples: Mapping[str, ScoredSamples]
) -> tuple[PolicyRow, ...]:
    """Return the rows with what is told against the first start too; best-of-n has no KL of its own."""
    if first is None:
        return tuple(rows)
    return tuple(
        row
        if row.name == first.name or row.best_of > 1
        else replace(row, first=test.against_first(samples[row.name], samples[first.name]))
        for row in rows
    )


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
