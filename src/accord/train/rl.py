"""The rl stage: prompts and a reward model in, a policy with more reward near its reference out.

Shapes: B samples of an iteration, C completion tokens (a row's counted tokens come first), N counted tokens.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from accord.algo.advantages import token_rewards
from accord.algo.kl import AdaptiveKL, LengthLeash, kl_k1, kl_k3
from accord.algo.policy_loss import clipped_value_loss, explained_variance
from accord.algo.table import POLICY_ALGORITHMS
from accord.config import RlConfig
from accord.files import write_text
from accord.formats.jsonl import read_prompts
from accord.models.decoder import CausalLM, ScalarModel
from accord.models.door import recompute_activations
from accord.models.folder import load_policy, load_scalar, save_policy
from accord.models.lora import adapter_off, add_lora, save_adapter
from accord.models.precision import compute_dtype
from accord.rollout.engine import Engine, Sample, Sampling
from accord.scoring.scorer import Scorer
from accord.scoring.weighted import load_scorer, score_in_parts, scorer_inputs
from accord.seeds import stream_seed
from accord.text.batches import Batch, Example, collate, length_buckets
from accord.text.tokenizer import Tokenizer, tokenizer_hash
from accord.train.alarms import alarms
from accord.train.learner import Learner, Log
from accord.train.lm import logp_and_entropy
from accord.train.loop import append_event, identity_of, quiet, train_steps
from accord.train.prompts import choose_prompts, permutation, pick_prompts

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


@dataclass(frozen=True)
class Rollout:
    """One iteration's samples and everything that is fixed while the policy is updated on them.

    ``score_B`` is what the optimiser sees (penalties in); ``raw_score_B`` what the scorer said, ``part_B`` what each of
    its parts said, not yet weighted (empty where it has none). Where one micro-batch
    holds all samples, ``first`` keeps its log-probabilities and values with their graph, for the first update to take.
    """

    examples: tuple[Example, ...]
    texts: tuple[tuple[str, str], ...]
    mask_BC: Tensor
    raw_score_B: Tensor
    part_B: dict[str, Tensor]
    score_B: Tensor
    behaviour_logp_BC: Tensor
    old_logp_BC: Tensor
    ref_logp_BC: Tensor
    value_BC: Tensor
    entropy_BC: Tensor
    finished_B: Tensor
    first: list[tuple[Tensor, Tensor]]

    @property
    def tokens_B(self) -> Tensor:
        return self.mask_BC.sum(1).float()


@dataclass
class Actors:
    """The four models of PPO. The critic starts from the reward model, or from the policy under a zero head.

    ``reference`` is a frozen copy of the policy as it started, or the policy itself where an adapter trains.
    """

    policy: CausalLM
    critic: ScalarModel
    reference: CausalLM
    scorer: Scorer
    words: Tokenizer

    @contextmanager
    def as_reference(self) -> Iterator[CausalLM]:
        """The policy before any update, for the length of a block."""
        with adapter_off(self.reference):
            yield self.reference


def load_actors(config: RlConfig, model: Path, reward_model: Path | None, seed: int = 0) -> Actors:
    """Read policy, reference (the same checkpoint, frozen) and scorers, and make the critic."""
    scorer = load_scorer(config.rewards, reward_model, config.precision)
    dtype = compute_dtype(config.precision)
    policy, words = load_policy(model, dtype)
    add_lora(policy, config.lora, stream_seed(seed, "lora"))
    reference = policy if config.lora.rank else load_policy(model, dtype)[0].eval().requires_grad_(False)
    start = reward_model if reward_model and tokenizer_hash(model) == tokenizer_hash(reward_model) else None
    critic, _, scale = load_scalar(start or model, dtype, head_seed=0)
    with torch.no_grad():
        critic.score.weight.mul_(scale.scale if start else 0.0)
    critic_lora = config.lora.model_copy(update={"rank": config.lora.critic_rank})
    add_lora(critic, critic_lora, stream_seed(seed, "critic lora"))
    for trained in (policy, critic):
        if config.activation_checkpointing:
            recompute_activations(trained.model)
    return Actors(policy, critic, reference, scorer, words)


def rl(
    config: RlConfig,
    *,
    model: Path,
    reward_model: Path | None = None,
    data: Path,
    output_dir: Path,
    seed: int = 0,
    resume: bool = True,
    log: Log = quiet,
) -> RlResult:
    """Optimise a policy on prompts ``{"prompt"}``, under a KL leash to where it started.

    What a completion is worth says a reward model, or ``config.rewards``, or the sum of both. Without a reward model of
    the same tokens the critic starts from the policy, under a head of zeros.

    Writes ``output_dir/model`` (the last policy), ``snapshots/step_N`` every ``eval_every`` iterations for a
    judge to choose from, ``metrics.jsonl`` (one row an iteration), ``events.jsonl`` (alarms) and ``samples/``.
    With an adapter all of these are merged, and ``output_dir/adapter`` holds the last adapter alone.
    """
    actors = load_actors(config, model, reward_model, seed)
    rows, dropped = choose_prompts(config.prompts, read_prompts(data, actors.words.chat), actors.words.encode)
    prompts, weights = [row.text for row in rows], [row.weight for row in rows]
    if dropped:
        log(0.0, f"{len(prompts)} prompts; left out: " + ", ".join(f"{n} by {name}" for name, n in dropped.items()))
    updates = config.ppo_epochs * config.minibatches
    learner = Learner(
        {"actor": actors.policy, "critic": actors.critic},
        {"actor": config.actor, "critic": config.critic},
        config.iterations * updates,
    )
    engine = Engine(actors.policy, actors.words.stop_ids)
    kl = AdaptiveKL(config.kl_coef, config.kl_target)
    probe = pick_prompts(prompts, LENGTH_PROBE_SAMPLES, 0, stream_seed(seed, "length"), weights)
    leash = LengthLeash(_reference_length(config, actors, engine, probe, seed), config.length_coef)
    snapshots: dict[int, Path] = {}
    last: dict[str, float] = {}

    def step_fn(step: int) -> dict[str, float]:
        if step == 0:  # a fresh start: what an earlier run with other settings left must not be judged
            for old in ("snapshots", "samples", "adapter"):
                shutil.rmtree(output_dir / old, ignore_errors=True)
        chosen = pick_prompts(prompts, config.prompts_per_iteration, step, seed, weights)
        samples = engine.generate(
            [actors.words.encode(p) for p in chosen], _sampling(config), seed=stream_seed(seed, "rollout", step)
        )
        rollout = evaluate_rollout(config, actors, chosen, samples, leash)
        stats = rollout_stats(rollout, kl.coef, leash.price)
        stats |= update_policy(config, actors, learner, rollout, kl.coef, stream_seed(seed, "minibatch", step))
        kl.update(stats["kl"], len(samples))
        leash.update(float(rollout.tokens_B.mean()))
        _record(output_dir, step, rollout, stats)
        if (step + 1) % config.eval_every == 0 or step + 1 == config.iterations:
            save_policy(_snapshot(output_dir, step), actors.policy, actors.words)
        last.update(stats)
        return stats

    def restore(state: dict[str, Any]) -> None:
        kl.coef, leash.integral, leash.error = state["kl_coef"], state["length_integral"], state["length_error"]

    inputs = {"model": model, "data": data, **scorer_inputs(config.rewards, reward_model)}
    train_steps(
        learner,
        step_fn,
        total=config.iterations,
        updates_per_step=updates,
        seed=seed,
        output_dir=output_dir,
        identity=identity_of({"config": config.model_dump(), "seed": seed}, inputs),
        checkpoint_every=config.checkpoint_every,
        resume=resume,
        log=log,
        state=lambda: {"kl_coef": kl.coef, "length_integral": leash.integral, "length_error": leash.error},
        restore=restore,
        headline="score",
    )
    save_policy(output_dir / "model", actors.policy, actors.words)
    if config.lora.rank:
        save_adapter(output_dir / "adapter", actors.policy, str(model))
    for step in range(config.iterations):
        if _snapshot(output_dir, step).exists():
            snapshots[step + 1] = _snapshot(output_dir, step)
    return RlResult(output_dir / "model", snapshots, config.iterations * config.samples_per_iteration, last, dropped)


def _sampling(config: RlConfig) -> Sampling:
    return Sampling(config.max_new_tokens, config.samples_per_prompt, config.temperature)


def _snapshot(output_dir: Path, step: int) -> Path:
    return output_dir / "snapshots" / f"step_{step + 1:06d}"


def _reference_length(config: RlConfig, actors: Actors, engine: Engine, prompts: Sequence[str], seed: int) -> float:
    """Mean completion length of the policy before any update, in tokens: what the length leash holds on to."""
    sampling = Sampling(config.max_new_tokens, 1, config.temperature)
    ids = [actors.words.encode(p) for p in prompts]
    with actors.as_reference() as reference:
        samples = Engine(reference, engine.stop_ids).generate(ids, sampling, seed=stream_seed(seed, "length"))
    return sum(len(s.completion) for s in samples) / len(samples)


# -- what is measured once a rollout ----------------------------------------------------------------------------------


@torch.no_grad()
def evaluate_rollout(
    config: RlConfig, actors: Actors, prompts: Sequence[str], samples: Sequence[Sample], leash: LengthLeash
) -> Rollout:
    """Score the samples and run policy, reference and critic over them once, with the learner's own numerics.

    Where the first update will see all samples in one micro-batch, this pass is its forward pass too.
    """
    actors.policy.eval()
    actors.critic.eval()
    examples = tuple(Example(s.prompt, s.completion) for s in samples)
    texts = tuple((prompts[s.prompt_index], actors.words.decode(s.completion)) for s in samples)
    lengths = torch.tensor([len(s.completion) for s in samples])
    mask_BC = torch.arange(int(lengths.max()))[None] < lengths[:, None]
    finished_B = torch.tensor([s.finish == "stop" for s in samples])
    raw_score_B, part_B = score_in_parts(actors.scorer, texts)
    score_B = raw_score_B - config.missing_eos_penalty * (~finished_B).float() + leash.bonus(lengths.float())
    found = {name: torch.zeros(mask_BC.shape) for name in ("old", "ref", "value", "entropy")}
    batches = list(micro_batches(config, actors, examples))
    shared = len(batches) == config.minibatches == 1
    first: list[tuple[Tensor, Tensor]] = []
    for rows, batch in batches:
        inside = mask_BC[rows]
        with actors.as_reference() as reference:
            ref, _ = logp_and_entropy(reference, batch, config.temperature, entropy=False)
        with torch.set_grad_enabled(shared):
            old, entropy = logp_and_entropy(actors.policy, batch, config.temperature)
            value = token_values(actors.critic, batch)
        if shared:
            first.append((old, value))
        for name, x_N in (("old", old), ("ref", ref), ("entropy", entropy), ("value", value)):
            part = found[name][rows]
            part[inside] = x_N.detach()
            found[name][rows] = part
    behaviour_BC = torch.zeros(mask_BC.shape)
    behaviour_BC[mask_BC] = torch.tensor([lp for s in samples for lp in s.behaviour_logp])
    return Rollout(
        examples=examples,
        texts=texts,
        mask_BC=mask_BC,
        raw_score_B=raw_score_B,
        part_B=part_B,
        score_B=score_B,
        behaviour_logp_BC=behaviour_BC,
        old_logp_BC=found["old"],
        ref_logp_BC=found["ref"],
        value_BC=found["value"],
        entropy_BC=found["entropy"],
        finished_B=finished_B,
        first=first,
    )


def micro_batches(
    config: RlConfig, actors: Actors, examples: Sequence[Example], rows: Sequence[int] | None = None
) -> Iterator[tuple[list[int], Batch]]:
    """Buckets of like length over the given rows (all by default), as row indices and their batch."""
    chosen = list(range(len(examples))) if rows is None else list(rows)
    for bucket in length_buckets([len(examples[i]) for i in chosen], config.micro_batch_tokens, 0):
        picked = [chosen[i] for i in bucket]
        yield picked, collate([examples[i] for i in picked], actors.words.pad_id)


def token_values(critic: ScalarModel, batch: Batch) -> Tensor:
    """Values of the states that choose each counted token, ``(N,)``."""
    flat_N, _ = batch.predicting()
    values: Tensor = critic(*batch.inputs(), flat_N)
    return values


# -- the update -------------------------------------------------------------------------------------------------------


def update_policy(
    config: RlConfig, actors: Actors, learner: Learner, rollout: Rollout, kl_coef: float, seed: int
) -> dict[str, float]:
    """All epochs and minibatches on one rollout. Advantages and returns stay as they were before the first.

    The rollout's own forward pass serves the first of them once; it holds for weights that nothing has moved since.
    """
    algorithm = POLICY_ALGORITHMS[config.algorithm]
    reward_BC = token_rewards(rollout.score_B, rollout.old_logp_BC, rollout.ref_logp_BC, rollout.mask_BC, kl_coef)
    advantage_BC, return_BC = algorithm.advantages(
        reward_BC, rollout.value_BC, rollout.mask_BC, config.discount, config.gae_lambda
    )
    mask = rollout.mask_BC
    stats = {
        "return": float(reward_BC.sum(1).mean()),
        "explained_variance": float(explained_variance(rollout.value_BC[mask], return_BC[mask])),
        "advantage_mean": float((return_BC - rollout.value_BC)[mask].mean()),
        "advantage_std": float((return_BC - rollout.value_BC)[mask].std(unbiased=False)),
    }
    extremes: dict[str, float] = {}
    size = config.samples_per_iteration // config.minibatches
    for epoch in range(config.ppo_epochs):
        order = permutation(len(rollout.examples), stream_seed(seed, epoch))
        for start in range(0, len(order), size):
            rows = sorted(order[start : start + size])
            seen: dict[str, float] = {}
            losses = _minibatch_losses(config, actors, rollout, advantage_BC, return_BC, rows, seen)
            stats |= learner.update(losses) | seen
            _merge(extremes, {name: seen[name] for name in COMBINE if name in seen})
            if epoch == 0 and start == 0:
                stats |= {"first_ratio_max": seen["ratio_max"], "first_approx_kl": seen["approx_kl"]}
    return stats | extremes


def _minibatch_losses(
    config: RlConfig,
    actors: Actors,
    rollout: Rollout,
    advantage_BC: Tensor,
    return_BC: Tensor,
    rows: Sequence[int],
    seen: dict[str, float],
) -> Iterator[Tensor]:
    """Losses of policy and critic, micro-batch by micro-batch, which add up to the minibatch's token mean.

    They come one after the other, so that only one network's activations are held at a time, but for those that the
    rollout's own forward pass left.
    """
    denominator = float(rollout.mask_BC[list(rows)].sum())
    surrogate = POLICY_ALGORITHMS[config.algorithm].surrogate
    for picked, batch in micro_batches(config, actors, rollout.examples, rows):
        inside = rollout.mask_BC[picked]
        logp_N, value_N = rollout.first.pop() if rollout.first else (None, None)
        if logp_N is None:
            logp_N, _ = logp_and_entropy(actors.policy, batch, config.temperature, entropy=False)
        loss, stats = surrogate(
            logp_N, rollout.old_logp_BC[picked][inside], advantage_BC[picked][inside], config.clip, denominator
        )
        _merge(seen, stats | {"policy_loss": loss.detach()})
        del logp_N
        yield loss
        del loss
        if value_N is None:
            value_N = token_values(actors.critic, batch)
        value_loss = clipped_value_loss(
            value_N,
            rollout.value_BC[picked][inside],
            return_BC[picked][inside],
            config.value_clip,
            denominator,
        )
        _merge(seen, {"value_loss": value_loss.detach()})
        yield config.value_coef * value_loss


#: Statistics that are not sums over micro-batches.
COMBINE: dict[str, Callable[[float, float], float]] = {"ratio_max": max, "ratio_min": min}


def _merge(seen: dict[str, float], stats: Mapping[str, Tensor | float]) -> None:
    for name, value in stats.items():
        new = float(value)
        seen[name] = COMBINE.get(name, float.__add__)(seen[name], new) if name in seen else new


# -- what is logged ---------------------------------------------------------------------------------------------------


def rollout_stats(rollout: Rollout, kl_coef: float, length_price: float) -> dict[str, float]:
    """The diagnostics of a rollout before the update. KL per completion is the mean of sums over its tokens."""
    mask, old, ref = rollout.mask_BC, rollout.old_logp_BC, rollout.ref_logp_BC
    drift_N = (rollout.behaviour_logp_BC - old)[mask]
    weight_N = (-drift_N).exp()
    tokens_B = rollout.tokens_B
    texts = [" ".join(text.split()) for _, text in rollout.texts]
    return {
        "score": float(rollout.raw_score_B.mean()),
        "score_std": float(rollout.raw_score_B.std(unbiased=False)),
        **{f"part_{name}": float(score_B.mean()) for name, score_B in rollout.part_B.items()},
        "kl": float(torch.where(mask, kl_k1(old, ref), 0.0).sum(1).mean()),
        "kl_k3": float(torch.where(mask, kl_k3(old, ref), 0.0).sum(1).mean()),
        "kl_coef": kl_coef,
        "length_price": length_price,
        "entropy": float(rollout.entropy_BC[mask].mean()),
        "reference_nll": float(-ref[mask].mean()),
        "length": float(tokens_B.mean()),
        "length_p95": float(tokens_B.quantile(0.95)),
        "eos_rate": float(rollout.finished_B.float().mean()),
        "distinct": len(set(texts)) / len(texts),
        "value": float(rollout.value_BC[mask].mean()),
        "behaviour_gap": float(drift_N.abs().mean()),
        "behaviour_gap_max": float(drift_N.abs().max()),
        "behaviour_ess": float(weight_N.sum() ** 2 / (weight_N**2).sum() / len(weight_N)),
    }


def _record(output_dir: Path, step: int, rollout: Rollout, stats: dict[str, float]) -> None:
    """Alarms into ``events.jsonl``, and the first few samples of the iteration where a person can read them."""
    for event in alarms(stats):
        append_event(output_dir / "events.jsonl", step, event)
    shown = [
        f"[{score:+.2f}] {prompt!r}{text}"
        for (prompt, text), score in list(zip(rollout.texts, rollout.raw_score_B.tolist(), strict=True))[:8]
    ]
    write_text(output_dir / "samples" / f"step_{step + 1:06d}.txt", "\n".join(shown) + "\n")
