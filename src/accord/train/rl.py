"""The rl stage: prompts and what scores their completions in, a policy with more reward near its reference out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from accord.algo.table import POLICY_ALGORITHMS, PolicyAlgorithm
from accord.config import RlConfig, refuse_unread_policy_settings
from accord.errors import UsageError
from accord.extend import row
from accord.files import write_text
from accord.formats.stage_rows import read_prompts
from accord.lock import writes_alone
from accord.progress import Log, named_part, part_of, quiet
from accord.rollout.engine import Sampling
from accord.rollout.generator import EngineGenerator
from accord.rollout.published import Copy
from accord.scoring.room import rooms_for, short_enough
from accord.scoring.weighted import reward_models, scorer_inputs
from accord.seeds import stream_seed
from accord.train.alarms import NAIVE, raised_alarms, raised_trends, reward_alarms, watched_alarms
from accord.train.controllers import Controllers
from accord.train.learner import Learner
from accord.train.policy_models import PolicyModels, hold_to, load_policy_models
from accord.train.policy_optimizer import PolicyOptimizer
from accord.train.policy_update import PretrainingMix, kl_place, read_mix
from accord.train.prompts import Prompts, choose_prompts
from accord.train.publishing import publishing
from accord.train.rollouts import Scored, shared_samples
from accord.train.training_run import Steps, TrainingRun

# That show the length to hold: 256 know the mean to about 3 %, where lengths spread as widely as they are long by half.
# Eight batches know it three times as well as the batch whose mean is held to it.
LENGTH_SAMPLES, LENGTH_BATCHES = 256, 8
SHOWN_SAMPLES = 8  # of each iteration, for a person to read


@dataclass(frozen=True)
class RlResult:
    """Where the policies are: the last one, and the snapshots a judge may choose among (step -> folder).

    ``dropped_prompts`` counts what each filter of ``rl.prompts`` left out, and what a model's context has no room for.
    """

    model: Path
    snapshots: dict[int, Path]
    num_episodes: int
    final: dict[str, float]
    dropped_prompts: dict[str, int]


@writes_alone
def rl(
    config: RlConfig,
    *,
    model: Path,
    reward_model: Path | None = None,
    data: Path,
    output_dir: Path,
    ptx_data: Path | None = None,
    reference: Path | None = None,
    second_reference: Path | None = None,
    seed: int = 0,
    resume: bool = True,
    log: Log = quiet,
    copy: Copy | None = None,
) -> RlResult:
    """Optimise a policy on prompts ``{"prompt"}``, held near where it started by a price of KL.

    A reward model scores completions, or ``config.rewards``, or the sum of both. Without a reward model of
    the same tokens a critic starts from the policy, under a head of zeros.
    ``ptx_data`` are plain texts ``{"text"}`` that it is not to forget: with ``ptx.coef`` their loss is added.
    ``reference`` is another model that KL is paid to in place of ``model``; with ``second_reference`` half of the price
    is paid to that one. Both share the policy's tokenizer. ``copy`` draws the samples in the policy's place.

    Writes ``output_dir/model`` (the last policy), ``snapshots/step_N`` every ``eval_every`` iterations for a
    judge to choose from, ``metrics.jsonl`` (one row an iteration), ``events.jsonl`` (alarms) and ``samples/``.
    With an adapter all of these are merged, and ``output_dir/adapter`` holds the last adapter alone.
    """
    run = TrainingRun(output_dir, seed, resume, log)
    algorithm = find_algorithm(config)
    log(0.0, "reading the policy, its reference and what scores")
    models = load_policy_models(config, algorithm, model, reward_model, seed)
    models = hold_to(config, models, model, reference, second_reference)
    prompts, dropped = _read_prompts(config, models, data, log)
    mix = read_mix(config, models.tokenizer, ptx_data)
    optimizer = make_optimizer(config, algorithm, models, prompts, mix, seed, log)
    last: dict[str, float] = {}
    watched = [one.label for one in config.rewards if not one.weight]

    def step_fn(step: int) -> dict[str, float]:
        if step == 0 and kl_place(config, algorithm) == "loss_k3_naive":
            run.event(step, NAIVE)
        if step == 0:
            for one in reward_models(models.scorer):
                for event in reward_alarms({"gain": max(one.scale.gains)}):
                    run.event(step, event)
        # The first iteration of a start says what it does; from then on a line each tells how long they take.
        at = quiet if last else named_part(log, step, config.iterations, f"iteration {step + 1}/{config.iterations}")
        scored, stats = optimizer.step(prompts, step, at)
        _record(run, step, scored, stats, (step + 1) / config.iterations, watched)
        if (step + 1) % config.eval_every == 0 or step + 1 == config.iterations:
            run.save_snapshot(step, models.policy, models.tokenizer)
        last.update(stats)
        return stats

    given = {"ptx_data": ptx_data, "reference": reference, "second_reference": second_reference}
    inputs = {"model": model, "data": data, **scorer_inputs(config.rewards, reward_model)}
    inputs |= {name: path for name, path in given.items() if path is not None}
    updates = config.ppo_epochs * config.minibatches
    with publishing(config, models, optimizer.learner, output_dir, copy) as optimizer.publisher:
        taken = run.train(
            optimizer.learner,
            step_fn,
            Steps(config.iterations, config.checkpoint_every, updates, headline="score", on_alarm=config.on_alarm),
            identity=run.identity(inputs, config=config),
            carried=optimizer,
        )
    if taken % config.eval_every and taken < config.iterations:  # stopped between two snapshots
        run.save_snapshot(taken - 1, models.policy, models.tokenizer)
    saved = run.save_result(models.policy, models.tokenizer, adapter_on=model if config.lora.rank else None)
    final = last or last_metrics(run)  # who was stopped after the last iteration has none to do
    return RlResult(saved, run.snapshots(), taken * config.samples_per_iteration, final, dropped)


def last_metrics(run: TrainingRun) -> dict[str, float]:
    """Return the numbers of a run's last iteration, as they were written."""
    return {name: value for name, value in run.metrics.rows()[-1].items() if name not in ("step", "seconds")}


def make_optimizer(
    config: RlConfig,
    algorithm: PolicyAlgorithm,
    models: PolicyModels,
    prompts: Prompts,
    mix: PretrainingMix | None = None,
    seed: int = 0,
    log: Log = quiet,
) -> PolicyOptimizer:
    """Return what runs the iterations, before the first one."""
    # The schedule counts optimiser steps, not iterations: the rate reaches 0 at the last of them.
    updates = config.iterations * config.ppo_epochs * config.minibatches
    learner = Learner(models.trained(), {"actor": config.actor, "critic": config.critic}, updates)
    # Measured only where a price holds it: it costs samples.
    length = reference_length(config, models, prompts, learner, seed, log) if config.length_coef > 0 else 1.0
    return PolicyOptimizer(config, algorithm, models, learner, Controllers.of(config, length), mix, seed)


def find_algorithm(config: RlConfig) -> PolicyAlgorithm:
    """Return the row that the settings name. Raises UsageError where they do not fit it."""
    algorithm = row(POLICY_ALGORITHMS, config.algorithm)
    if not isinstance(algorithm, PolicyAlgorithm):
        raise UsageError(
            f"{config.algorithm!r} is no row of algorithms", hint="make it an accord.algo.table.PolicyAlgorithm(...)"
        )
    if config.samples_per_prompt < algorithm.min_group:
        raise UsageError(
            f"{config.algorithm} compares completions of one prompt, and rl.samples_per_prompt is "
            f"{config.samples_per_prompt}",
            hint=f"set rl.samples_per_prompt to {algorithm.min_group} or more; 4 to 8 are usual",
        )
    try:  # of a row of the user's own the configuration knew nothing
        refuse_unread_policy_settings(config, algorithm)
    except ValueError as error:
        raise UsageError(f"rl: {error}") from error
    return algorithm


def _read_prompts(config: RlConfig, models: PolicyModels, data: Path, log: Log) -> tuple[Prompts, dict[str, int]]:
    """Return the prompts that all filters keep and that are short enough.

    Also how many each filter left out, and each model had no room for, which the log says too.
    """
    tokenizer = models.tokenizer
    rows, dropped = choose_prompts(config.prompts, read_prompts(data, tokenizer.chat), tokenizer.encode_prompt)
    rows, too_long = short_enough(rows, rooms_for(models.policy, tokenizer, config.max_new_tokens, models.scorer))
    dropped |= {f"{whose} context": count for whose, count in too_long.items()}
    if dropped:
        log(0.0, f"{len(rows)} prompts; left out: " + ", ".join(f"{n} by {name}" for name, n in dropped.items()))
    return Prompts([one.text for one in rows], [one.weight for one in rows]), dropped


def reference_length(
    config: RlConfig, models: PolicyModels, prompts: Prompts, learner: Learner, seed: int, log: Log = quiet
) -> float:
    """Return the mean completion length of the policy before any update, in tokens: the length controller's target."""
    count = max(LENGTH_SAMPLES, LENGTH_BATCHES * config.samples_per_iteration)
    chosen = prompts.pick(count, 0, stream_seed(seed, "length"))
    sampling = Sampling(config.max_new_tokens, 1, config.temperature)
    with models.as_reference() as reference:
        generator = EngineGenerator(reference, models.tokenizer)
        # No part of the iterations: it moves the words alone.
        told = named_part(part_of(log, 0.0, 0.0), 0, 1, "the length to hold")
        samples = shared_samples(generator, chosen, sampling, stream_seed(seed, "length"), learner, told)
    return sum(len(one.completion_ids) for one in samples) / len(samples)


def _record(
    run: TrainingRun, step: int, scored: Scored, stats: dict[str, float], done: float, watched: Sequence[str]
) -> None:
    """Write alarms into ``events.jsonl``, and the first few samples of the iteration where a person can read them.

    ``watched`` are the rewards that are measured and not optimised.
    """
    if not run.ranks.first:
        return
    earlier = run.metrics.rows()
    for event in (*raised_alarms(stats), *raised_trends(stats, earlier), *watched_alarms(watched, stats, earlier)):
        run.event(step, event, done=done)
    some = list(zip(scored.samples, scored.score_B.tolist(), strict=True))[:SHOWN_SAMPLES]
    # Numbers do not show a policy that writes lists of one word; texts do.
    shown = [f"[{score:+.2f}] {one.prompt!r}{one.text}" for one, score in some]
    write_text(run.folder / "samples" / f"step_{step + 1:06d}.txt", "\n".join(shown) + "\n")
