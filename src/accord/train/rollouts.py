"""Rollouts: samples with their scores, and everything about them that an update holds fixed.

Shapes: B samples of an iteration, K of them to a prompt and side by side, C completion tokens (a row's counted tokens
come first), N counted tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from accord.algo.kl import kl_k1, kl_k3
from accord.algo.reductions import correlation
from accord.algo.shaping import overlong
from accord.algo.table import PolicyAlgorithm
from accord.config import RlConfig
from accord.rollout.engine import Engine, Sample, Sampling
from accord.scoring.weighted import score_in_parts
from accord.seeds import stream_seed
from accord.text.batches import Batch, Example, collate, example_buckets
from accord.train.controllers import Controllers
from accord.train.lm import logp_and_entropy
from accord.train.policy_models import PolicyModels
from accord.train.prompts import Prompts

FLAT = 1e-6


@dataclass(frozen=True)
class Scored:
    """Samples, their texts (prompt and completion) and what the scorer said of them; those of a prompt side by side.

    ``num_scored`` counts the completions that were drawn and scored to get them. ``parts`` is what each part of the
    scorer said, not yet weighted (empty where it has none).
    """

    samples: tuple[Sample, ...]
    texts: tuple[tuple[str, str], ...]
    score_B: Tensor
    num_scored: int
    parts: Mapping[str, Tensor]

    def rows(self, chosen: Sequence[int]) -> Scored:
        """The samples named, in this order."""
        index = list(chosen)
        return Scored(
            tuple(self.samples[i] for i in index),
            tuple(self.texts[i] for i in index),
            self.score_B[index],
            self.num_scored,
            {name: part_B[index] for name, part_B in self.parts.items()},
        )

    def __add__(self, other: Scored) -> Scored:
        return Scored(
            self.samples + other.samples,
            self.texts + other.texts,
            torch.cat([self.score_B, other.score_B]),
            self.num_scored + other.num_scored,
            {name: torch.cat([part_B, other.parts[name]]) for name, part_B in self.parts.items()},
        )

    def flat_P(self, group: int) -> Tensor:
        """Which groups' completions all got the same score."""
        score_PK = self.score_B.view(-1, group)
        return score_PK.amax(1) - score_PK.amin(1) < FLAT


@dataclass(frozen=True)
class Rollout:
    """One iteration's samples and everything that is fixed while the policy is updated on them.

    ``score_B`` is what the optimiser sees (penalties in); that of ``scored`` what the scorer said. Where one
    micro-batch holds all samples, ``first`` keeps its log-probabilities, entropies and values with their graph, for the
    first update to take.
    """

    scored: Scored
    examples: tuple[Example, ...]
    mask_BC: Tensor
    score_B: Tensor
    behaviour_logp_BC: Tensor
    old_logp_BC: Tensor
    ref_logp_BC: Tensor
    value_BC: Tensor
    entropy_BC: Tensor
    first: list[tuple[Tensor, Tensor, Tensor | None]]

    @property
    def tokens_B(self) -> Tensor:
        return self.mask_BC.sum(1).float()


# -- samples and scores ------------------------------------------------------------------------------------------------


def draw(
    config: RlConfig,
    algorithm: PolicyAlgorithm,
    actors: PolicyModels,
    engine: Engine,
    prompts: Prompts,
    step: int,
    seed: int,
) -> Scored:
    """The scored samples of an iteration.

    Where the algorithm drops flat groups, other prompts are drawn in their place, ``redraws`` times at most; what is
    missing then is filled up with flat groups, whose advantages are 0.
    """
    wanted, group = config.prompts_per_iteration, config.samples_per_prompt
    scored = _draw_once(config, actors, engine, prompts.pick(wanted, step, seed), seed, step)
    for attempt in range(config.redraws if algorithm.drop_zero_variance else 0):
        flat = int(scored.flat_P(group).sum())
        missing = wanted - (len(scored.samples) // group - flat)
        if missing <= 0:
            break
        others = prompts.pick(missing, step, stream_seed(seed, "redraw", attempt))
        scored = scored + _draw_once(config, actors, engine, others, seed, step, attempt)
    if len(scored.samples) == wanted * group:
        return scored
    order = torch.argsort(scored.flat_P(group).long(), stable=True)[:wanted].tolist()
    return scored.rows([p * group + i for p in order for i in range(group)])


def _draw_once(
    config: RlConfig, actors: PolicyModels, engine: Engine, prompts: Sequence[str], seed: int, *stream: int
) -> Scored:
    sampling = Sampling(config.max_new_tokens, config.samples_per_prompt, config.temperature)
    ids = [actors.words.encode(p) for p in prompts]
    return score_samples(actors, prompts, engine.generate(ids, sampling, seed=stream_seed(seed, "rollout", *stream)))


def score_samples(actors: PolicyModels, prompts: Sequence[str], samples: Sequence[Sample]) -> Scored:
    """Decode samples and have them scored, by text."""
    texts = tuple((prompts[s.prompt_index], actors.words.decode(s.completion)) for s in samples)
    score_B, parts = score_in_parts(actors.scorer, texts)
    return Scored(tuple(samples), texts, score_B, len(texts), parts)


def shape_scores(config: RlConfig, scored: Scored, controllers: Controllers) -> Tensor:
    """The scores that the optimiser sees, ``(B,)``: scaled and clipped, less what a missing end and length cost."""
    score_B = scored.score_B
    if config.shaping.scale:
        score_B = score_B / controllers.scores.deviation
    if config.shaping.clip is not None:
        score_B = score_B.clamp(-config.shaping.clip, config.shaping.clip)
    length_B = torch.tensor([float(len(s.completion)) for s in scored.samples])
    cut_B = torch.tensor([s.finish != "stop" for s in scored.samples])
    score_B = score_B - config.missing_eos_penalty * cut_B.float() - config.shaping.length_penalty * length_B
    score_B = score_B + overlong(length_B, config.max_new_tokens, config.shaping.overlong_tokens)
    return score_B + controllers.leash.bonus(length_B)


# -- what is measured once a rollout -----------------------------------------------------------------------------------


@torch.no_grad()
def evaluate_rollout(config: RlConfig, actors: PolicyModels, scored: Scored, score_B: Tensor) -> Rollout:
    """Run policy, reference and critic over the samples once, with the learner's own numerics.

    Where the first update will see all samples in one micro-batch, this pass is its forward pass too.
    """
    for model in actors.trained().values():
        model.eval()
    samples = scored.samples
    examples = tuple(Example(s.prompt, s.completion) for s in samples)
    lengths = torch.tensor([len(s.completion) for s in samples])
    mask_BC = torch.arange(int(lengths.max()))[None] < lengths[:, None]
    found = {name: torch.zeros(mask_BC.shape) for name in ("old", "ref", "value", "entropy")}
    batches = list(micro_batches(config, actors, examples))
    shared = len(batches) == config.minibatches == 1
    first: list[tuple[Tensor, Tensor, Tensor | None]] = []
    for rows, batch in batches:
        inside = mask_BC[rows]
        with actors.as_reference() as reference:
            ref_N, _ = logp_and_entropy(reference, batch, config.temperature, entropy=False)
        with torch.set_grad_enabled(shared):
            old_N, entropy_N, value_N = actors.look(batch, config.temperature, entropy=True)
        if shared:
            first.append((old_N, entropy_N, value_N))
        for name, x_N in (("old", old_N), ("ref", ref_N), ("entropy", entropy_N), ("value", value_N)):
            if x_N is not None:
                part = found[name][rows]
                part[inside] = x_N.detach()
                found[name][rows] = part
    behaviour_BC = torch.zeros(mask_BC.shape)
    behaviour_BC[mask_BC] = torch.tensor([lp for s in samples for lp in s.behaviour_logp])
    return Rollout(
        scored=scored,
        examples=examples,
        mask_BC=mask_BC,
        score_B=score_B,
        behaviour_logp_BC=behaviour_BC,
        old_logp_BC=found["old"],
        ref_logp_BC=found["ref"],
        value_BC=found["value"],
        entropy_BC=found["entropy"],
        first=first,
    )


def micro_batches(
    config: RlConfig, actors: PolicyModels, examples: Sequence[Example], rows: Sequence[int] | None = None
) -> Iterator[tuple[list[int], Batch]]:
    """Buckets of like length over the given rows (all by default), as row indices and their batch."""
    chosen = list(range(len(examples))) if rows is None else list(rows)
    for bucket in example_buckets([examples[i] for i in chosen], config.micro_batch_tokens):
        picked = [chosen[i] for i in bucket]
        yield picked, collate([examples[i] for i in picked], actors.words.pad_id)


def rollout_stats(rollout: Rollout, group: int) -> dict[str, float]:
    """The diagnostics of a rollout before the update. KL per completion is the mean of sums over its tokens.

    ``kl_error`` is the standard error of that mean.
    """
    mask, old, ref, scored = rollout.mask_BC, rollout.old_logp_BC, rollout.ref_logp_BC, rollout.scored
    drift_N = (rollout.behaviour_logp_BC - old)[mask]
    weight_N = (-drift_N).exp()
    tokens_B, kl_B = rollout.tokens_B, torch.where(mask, kl_k1(old, ref), 0.0).sum(1)
    texts = [" ".join(text.split()) for _, text in scored.texts]
    stats = {
        "score": float(scored.score_B.mean()),
        "score_std": float(scored.score_B.std(unbiased=False)),
        **{f"part_{name}": float(part_B.mean()) for name, part_B in scored.parts.items()},
        "kl": float(kl_B.mean()),
        "kl_error": float(kl_B.std(unbiased=False)) / len(kl_B) ** 0.5,
        "kl_k3": float(torch.where(mask, kl_k3(old, ref), 0.0).sum(1).mean()),
        "entropy": float(rollout.entropy_BC[mask].mean()),
        "reference_nll": float(-ref[mask].mean()),
        "length": float(tokens_B.mean()),
        "length_p95": float(tokens_B.quantile(0.95)),
        "length_correlation": float(correlation(tokens_B, scored.score_B)),
        "eos_rate": sum(s.finish == "stop" for s in scored.samples) / len(texts),
        "distinct": len(set(texts)) / len(texts),
        "scored": float(scored.num_scored),
        "behaviour_gap": float(drift_N.abs().mean()),
        "behaviour_gap_max": float(drift_N.abs().max()),
        "behaviour_ess": float(weight_N.sum() ** 2 / (weight_N**2).sum() / len(weight_N)),
    }
    if group > 1:
        stats["group_std"] = float(scored.score_B.view(-1, group).std(1).mean())
        stats["flat_groups"] = float(scored.flat_P(group).float().mean())
    return stats
