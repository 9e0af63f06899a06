"""The rl stage: prompts and what scores their completions in, a policy with more reward near its reference out."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from accord.algo.table import POLICY_ALGORITHMS, PolicyAlgorithm
from accord.config import RlConfig
from accord.errors import DataError, UsageError
from accord.extend import row
from accord.files import write_text
from accord.formats.jsonl import read_prompts, read_texts
from accord.models.folder import save_policy
from accord.models.lora import save_adapter
from accord.rollout.engine import Engine, Sampling
from accord.scoring.weighted import scorer_inputs
from accord.seeds import stream_seed
from accord.text.batches import pack_blocks
from accord.text.tokenizer import Tokenizer
from accord.train.alarms import NAIVE, alarms, trends
from accord.train.controllers import Controllers
from accord.train.learner import Learner, Log, Metrics
from accord.train.loop import append_event, identity_of, quiet, snapshot_folder, snapshots_of, train_steps
from accord.train.policy_models import PolicyModels, load_policy_models
from accord.train.policy_update import PretrainingMix, kl_place, update_policy
from accord.train.prompts import Prompts, choose_prompts
from accord.train.rollouts import Scored, draw, evaluate_rollout, rollout_stats, shape_scores

LENGTH_PROBE_SAMPLES = 256


@dataclass(frozen=True)
class RlResult:
    """Where the policies are: the last one, and the snapshots a judge may choose among (step -> folder).

    ``dropped_prompts`` counts what each filter of ``rl.prompts`` left out.
    """

    model: Path
    snapshots: dict[int, Path]
    num_episodes: int
    final: dict[str, float]
    dropped_prompts: dict[str, int]


def rl(
    config: RlConfig,
    *,
    model: Path,
    reward_model: Path | None = None,
    data: Path,
    output_dir: Path,
    ptx_data: Path | None = None,
    seed: int = 0,
    resume: bool = True,
    log: Log = quiet,
) -> RlResult:
    """Optimise a policy on prompts ``{"prompt"}``, under a KL leash to where it started.

    What a completion is worth says a reward model, or ``config.rewards``, or the sum of both. Without a reward model of
    the same tokens a critic starts from the policy, under a head of zeros.
    ``ptx_data`` are plain texts ``{"text"}`` that it is not to forget: with ``ptx.coef`` their loss is added.

    Writes ``output_dir/model`` (the last policy), ``snapshots/step_N`` every ``eval_every`` iterations for a
    judge to choose from, ``metrics.jsonl`` (one row an iteration), ``events.jsonl`` (alarms) and ``samples/``.
    With an adapter all of these are merged, and ``output_dir/adapter`` holds the last adapter alone.
    """
    algorithm = find_algorithm(config)
    actors = load_policy_models(config, algorithm, model, reward_model, seed)
    rows, dropped = choose_prompts(config.prompts, read_prompts(data, actors.words.chat), actors.words.encode)
    if dropped:
        log(0.0, f"{len(rows)} prompts; left out: " + ", ".join(f"{n} by {name}" for name, n in dropped.items()))
    prompts = Prompts([one.text for one in rows], [one.weight for one in rows])
    mix = read_mix(config, actors.words, ptx_data)
    updates = config.ppo_epochs * config.minibatches
    learner = Learner(actors.trained(), {"actor": config.actor, "critic": config.critic}, config.iterations * updates)
    engine = Engine(actors.policy, actors.words.stop_ids)
    length = _reference_length(config, actors, engine, prompts, seed) if config.length_coef > 0 else 1.0
    controllers = Controllers.of(config, length)
    last: dict[str, float] = {}

    def step_fn(step: int) -> dict[str, float]:
        if step == 0:  # a fresh start: what an earlier run with other settings left must not be judged
            for old in ("snapshots", "samples", "adapter"):
                shutil.rmtree(output_dir / old, ignore_errors=True)
            if kl_place(config, algorithm) == "loss_k3_naive":
                append_event(output_dir / "events.jsonl", step, NAIVE)
        scored = draw(config, algorithm, actors, engine, prompts, step, seed)
        stats = rl_step(
            config, algorithm, actors, learner, controllers, scored, stream_seed(seed, "minibatch", step), mix
        )
        _record(output_dir, step, scored, stats)
        if (step + 1) % config.eval_every == 0 or step + 1 == config.iterations:
            save_policy(snapshot_folder(output_dir, step), actors.policy, actors.words)
        last.update(stats)
        return stats

    inputs = {"model": model, "data": data, **scorer_inputs(config.rewards, reward_model)}
    train_steps(
        learner,
        step_fn,
        total=config.iterations,
        updates_per_step=updates,
        seed=seed,
        output_dir=output_dir,
        identity=identity_of(
            {"config": config.model_dump(), "seed": seed}, inputs | ({"ptx_data": ptx_data} if ptx_data else {})
        ),
        checkpoint_every=config.checkpoint_every,
        resume=resume,
        log=log,
        state=controllers.state,
        restore=controllers.restore,
        headline="score",
    )
    save_policy(output_dir / "model", actors.policy, actors.words)
    if config.lora.rank:
        save_adapter(output_dir / "adapter", actors.policy, str(model))
    snapshots = snapshots_of(output_dir / "snapshots")
    return RlResult(output_dir / "model", snapshots, config.iterations * config.samples_per_iteration, last, dropped)


def find_algorithm(config: RlConfig) -> PolicyAlgorithm:
    """The row that the settings name. Raises UsageError where they do not fit it."""
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
    if config.values.shared and not algorithm.critic:
        raise UsageError(
            f"rl.values.shared says where values come from, and {config.algorithm} learns none", hint="leave it out"
        )
    return algorithm


def read_mix(config: RlConfig, words: Tokenizer, ptx_data: Path | None) -> PretrainingMix | None:
    """The texts whose loss is added to every update, as blocks; None where ``ptx.coef`` is 0.

    Raises UsageError where one of coefficient and texts is given without the other, DataError for too few texts.
    """
    if (config.ptx.coef > 0) != (ptx_data is not None):
        raise UsageError(
            f"rl.ptx.coef is {config.ptx.coef} and texts to remember are {'not ' if ptx_data is None else ''}given",
            hint="give both --ptx-data FILE and rl.ptx.coef above 0, or neither",
        )
    if ptx_data is None:
        return None
    blocks_NT = pack_blocks(words.encode_batch(read_texts(ptx_data)), words.end_id, config.ptx.block_tokens)
    if not len(blocks_NT):
        raise DataError(
            f"the texts do not fill one block of {config.ptx.block_tokens} tokens",
            where=str(ptx_data),
            hint="give more text, or lower rl.ptx.block_tokens",
        )
    return PretrainingMix(blocks_NT, config.ptx.blocks, config.ptx.coef)


def rl_step(
    config: RlConfig,
    algorithm: PolicyAlgorithm,
    actors: PolicyModels,
    learner: Learner,
    controllers: Controllers,
    scored: Scored,
    seed: int,
    mix: PretrainingMix | None = None,
) -> dict[str, float]:
    """One iteration from scored samples on: shape the scores, measure, update, adapt. Returns its metrics."""
    controllers.scores.update(scored.score_B)
    rollout = evaluate_rollout(config, actors, scored, shape_scores(config, scored, controllers))
    stats = rollout_stats(rollout, config.samples_per_prompt)
    stats |= {"kl_coef": controllers.kl.coef, "length_price": controllers.leash.price}
    if config.kl_target is not None:
        stats["kl_target"] = config.kl_target
    if controllers.trust.coef > 0:
        stats["trust_coef"] = controllers.trust.coef
    stats |= update_policy(config, algorithm, actors, learner, controllers, rollout, seed, mix)
    controllers.kl.update(stats["kl"], len(scored.samples))
    controllers.trust.update(stats["approx_kl"])
    controllers.leash.update(stats["length"])
    return stats


def _reference_length(config: RlConfig, actors: PolicyModels, engine: Engine, prompts: Prompts, seed: int) -> float:
    """Mean completion length of the policy before any update, in tokens: what the length leash holds on to."""
    chosen = prompts.pick(LENGTH_PROBE_SAMPLES, 0, stream_seed(seed, "length"))
    sampling = Sampling(config.max_new_tokens, 1, config.temperature)
    ids = [actors.words.encode(p) for p in chosen]
    with actors.as_reference() as reference:
        samples = Engine(reference, engine.stop_ids).generate(ids, sampling, seed=stream_seed(seed, "length"))
    return sum(len(s.completion) for s in samples) / len(samples)


def _record(output_dir: Path, step: int, scored: Scored, stats: dict[str, float]) -> None:
    """Alarms into ``events.jsonl``, and the first few samples of the iteration where a person can read them."""
    earlier = Metrics(output_dir / "metrics.jsonl").rows()
    for event in alarms(stats) + trends(stats, earlier):
        append_event(output_dir / "events.jsonl", step, event)
    shown = [
        f"[{score:+.2f}] {prompt!r}{text}"
        for (prompt, text), score in list(zip(scored.texts, scored.score_B.tolist(), strict=True))[:8]
    ]
    write_text(output_dir / "samples" / f"step_{step + 1:06d}.txt", "\n".join(shown) + "\n")
