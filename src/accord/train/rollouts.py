"""Rollouts: samples with their scores, and everything about them that an update holds fixed.

Shapes: B samples of an iteration, K of them to a prompt and side by side, C completion tokens (a row's counted tokens
come first), N counted tokens.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from accord.algo.kl import kl_k1, kl_k3
from accord.algo.reductions import correlation
from accord.algo.shaping import overlong
from accord.config import RlConfig
from accord.errors import DataError
from accord.progress import Log, quiet
from accord.ranks import ONE_PROCESS, Ranks
from accord.rollout.engine import Sampling
from accord.rollout.generator import Generated, Generator, groups_as_done
from accord.scoring.scorer import Scorer
from accord.scoring.weighted import score_in_parts
from accord.text.batches import Batch, Example, collate, example_buckets
from accord.train.controllers import Controllers
from accord.train.learner import Learner
from accord.train.policy_models import Forward, PolicyModels

LARGEST_SCORE = 1e15  # fp32 ends at 3.4e38: the square of a larger one, summed over a batch, is infinite
SAME_SCORE = 1e-6  # scores nearer than this are one: fp32 rounds those of equal texts in different batches apart


@dataclass(frozen=True)
class Scored:
    """Samples and what the scorer said of them; those of a prompt side by side.

    ``num_scored`` counts the completions that were drawn and scored to get them. ``parts`` is what each part of the
    scorer said, not yet weighted (empty where it has none).
    """

    samples: tuple[Generated, ...]
    score_B: Tensor
    num_scored: int
    parts: Mapping[str, Tensor]

    def rows(self, chosen: Sequence[int]) -> Scored:
        """Return the samples named, in this order."""
        index = list(chosen)
        return Scored(
            tuple(self.samples[i] for i in index),
            self.score_B[index],
            self.num_scored,
            {name: part_B[index] for name, part_B in self.parts.items()},
        )

    def __add__(self, other: Scored) -> Scored:
        return Scored(
            self.samples + other.samples,
            torch.cat([self.score_B, other.score_B]),
            self.num_scored + other.num_scored,
            {name: torch.cat([part_B, other.parts[name]]) for name, part_B in self.parts.items()},
        )

    def zero_variance_P(self, group: int) -> Tensor:
        """Return which prompts' completions, ``group`` of each, all got the same score."""
        score_PK = self.score_B.view(-1, group)
        return score_PK.amax(1) - score_PK.amin(1) < SAME_SCORE


@dataclass(frozen=True)
class Rollout:
    """One iteration's samples and everything that is fixed while the policy is updated on them.

    ``score_B`` is what the optimiser sees (penalties in); that of ``scored`` what the scorer said. Where one
    micro-batch holds all samples, ``first`` keeps its forward pass with its graph, for the first update to take.
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
    first: list[Forward]

    @property
    def tokens_B(self) -> Tensor:
        """The number of tokens of each completion."""
        return self.mask_BC.sum(1).float()

    @property
    def last_value_B(self) -> Tensor:
        """The value of the state that chooses each completion's last token."""
        return self.value_BC[torch.arange(len(self.examples)), self.mask_BC.sum(1) - 1]

    def raised(self, shift: float) -> Rollout:
        """Return the same with this much added to all values."""
        return replace(self, value_BC=torch.where(self.mask_BC, self.value_BC + shift, 0.0))


@dataclass(frozen=True)
class Experience:
    """A rollout with the advantage of each token, and the return that a critic learns (None without one)."""

    rollout: Rollout
    advantage_BC: Tensor
    return_BC: Tensor | None


# -- samples and scores ------------------------------------------------------------------------------------------------


def shared_samples(
    generator: Generator, prompts: Sequence[str], sampling: Sampling, seed: int, learner: Learner, log: Log = quiet
) -> list[Generated]:
    """Return the completions of these prompts by a policy that the learner moves; each process draws its share."""
    ranks = learner.ranks
    skip = ranks.others(len(prompts))
    with learner.gathered():
        drawn = dict(groups_as_done(generator, prompts, sampling, seed=seed, skip=skip, log=log))
    groups = {place: group for one in ranks.gather(drawn) for place, group in one.items()}
    return [one for place in sorted(groups) for one in groups[place]]


def score_samples(scorer: Scorer, samples: Sequence[Generated], ranks: Ranks = ONE_PROCESS) -> Scored:
    """Return the samples with what the scorer says of their texts; each process has its share scored.

    Raises:
        DataError: A score is so large that its square is no number in fp32.
    """
    score_B, parts = shared_scores(scorer, [one.pair for one in samples], ranks)
    worst = int(score_B.abs().argmax())
    if float(score_B[worst].abs()) > LARGEST_SCORE:
        raise DataError(
            f"a score is {float(score_B[worst]):.3g}, out of range",
            where=f"of the completion {samples[worst].text[:60]!r}",
            why="losses square it, and the square is no number in fp32",
            hint="let the reward give numbers of ordinary size, such as -10 to 10",
        )
    return Scored(tuple(samples), score_B, len(samples), parts)


def shared_scores(scorer: Scorer, pairs: list[tuple[str, str]], ranks: Ranks) -> tuple[Tensor, dict[str, Tensor]]:
    """Return `score_in_parts` of all pairs, every one scored by one process."""
    if ranks.world == 1:
        return score_in_parts(scorer, pairs)

    def work(mine: list[tuple[str, str]]) -> list[tuple[Tensor, dict[str, Tensor]]]:
        score_S, parts = score_in_parts(scorer, mine)
        return [(score, {name: part_S[i] for name, part_S in parts.items()}) for i, score in enumerate(score_S)]

    rows = ranks.by_row(pairs, work)
    names = rows[0][1]
    return torch.stack([row for row, _ in rows]), {n: torch.stack([parts[n] for _, parts in rows]) for n in names}


def shape_scores(config: RlConfig, scored: Scored, controllers: Controllers) -> Tensor:
    """Return the scores that the optimiser sees, ``(B,)``: scaled, clipped, less what a missing end and length cost."""
    score_B = scored.score_B
    # Scale, clip, then penalties: a clip after them would forgive a missing end to who already scores lowest.
    if config.shaping.scale:
        score_B = score_B / controllers.scores.deviation
    if config.shaping.clip is not None:
        score_B = score_B.clamp(-config.shaping.clip, config.shaping.clip)
    length_B = torch.tensor([float(len(one.completion_ids)) for one in scored.samples])
    cut_B = torch.tensor([not one.finished for one in scored.samples])
    score_B = score_B - config.missing_eos_penalty * cut_B.float() - config.shaping.length_penalty * length_B
    score_B = score_B + overlong(length_B, config.max_new_tokens, config.shaping.overlong_tokens)
    return score_B + controllers.length.bonus(length_B)


# -- what is measured once a rollout -----------------------------------------------------------------------------------


@torch.no_grad()
def measure_rollout(
    config: RlConfig, models: PolicyModels, scored: Scored, score_B: Tensor, ranks: Ranks = ONE_PROCESS
) -> Rollout:
    """Run policy, reference and critic over the samples once, with the learner's own numerics.

    Of several processes each runs its share, and all of them get the whole. Where the first update will see all samples
    in one micro-batch, this pass is its forward pass too.
    """
    for model in models.trained().values():
        model.eval()  # dropout would make the first ratio differ from 1
    examples = tuple(Example(one.prompt_ids, one.completion_ids) for one in scored.samples)
    lengths = torch.tensor([len(example.completion) for example in examples])
    mask_BC = torch.arange(int(lengths.max()))[None] < lengths[:, None]
    behaviour_BC = torch.zeros(mask_BC.shape)
    behaviour_BC[mask_BC] = torch.tensor([logp for one in scored.samples for logp in one.behaviour_logp])
    found, first = _forward_passes(config, models, examples, mask_BC, ranks)
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


def _forward_passes(
    config: RlConfig, models: PolicyModels, examples: Sequence[Example], mask_BC: Tensor, ranks: Ranks
) -> tuple[dict[str, Tensor], list[Forward]]:
    """Return what the models say at each counted token, by name, 0 elsewhere; and the pass that keeps its graph."""
    found = {name: torch.zeros(mask_BC.shape) for name in ("old", "ref", "value", "entropy")}
    batches = micro_batches(config, models, examples, ranks=ranks)
    # Nothing moves the weights in between, so of the 28 forward passes of an iteration (four epochs) two are spared.
    shared = len(batches) == config.minibatches == 1
    first: list[Forward] = []
    for rows, batch, _ in batches:
        # By the learner's numerics and at the sampling temperature, like the policy's own: else KL is not 0 at the
        # start.
        ref_N = models.reference_logps(batch, config.temperature)
        with torch.set_grad_enabled(shared):
            now = models.forward_logps(batch, config.temperature, entropy=True)
        if shared:
            first.append(now)
        said = {"old": now.logp_N, "ref": ref_N, "entropy": now.entropy_N, "value": now.value_N}
        for name, x_N in said.items():
            if x_N is not None:
                _store(found[name], rows, mask_BC[rows], x_N.detach())
    return _of_all(found, [i for rows, _, counts in batches if counts for i in rows], ranks), first


def _of_all(found: dict[str, Tensor], rows: list[int], ranks: Ranks) -> dict[str, Tensor]:
    """Fill in the rows that other processes ran."""
    for theirs, part in ranks.gather((rows, {name: all_BC[rows] for name, all_BC in found.items()})):
        for name, part_RC in part.items():
            found[name][theirs] = part_RC
    return found


def _store(all_BC: Tensor, rows: Sequence[int], mask_RC: Tensor, x_N: Tensor) -> None:
    """Write what stands at the counted tokens of some rows."""
    part = all_BC[rows]
    part[mask_RC] = x_N
    all_BC[rows] = part


def micro_batches(
    config: RlConfig,
    models: PolicyModels,
    examples: Sequence[Example],
    rows: Sequence[int] | None = None,
    ranks: Ranks = ONE_PROCESS,
) -> list[tuple[list[int], Batch, float]]:
    """Return buckets of like length over the given rows (all by default): row indices, their batch, what they count.

    Of several processes each gets its share.
    """

    def pack(chosen: list[int]) -> list[list[int]]:
        buckets = example_buckets([examples[i] for i in chosen], config.micro_batch_tokens)
        return [[chosen[i] for i in bucket] for bucket in buckets]

    wanted = range(len(examples)) if rows is None else rows
    # Completions of a prompt stay together: what they begin with runs once.
    shares = ranks.share(list(wanted), pack, lambda i: len(examples[i]), lambda i: examples[i].prompt)
    pad_id = models.tokenizer.pad_id
    return [(picked, collate([examples[i] for i in picked], pad_id), counts) for picked, counts in shares]


def clustered_error(x_B: Tensor, clusters: Sequence[Hashable]) -> float:
    """Return the standard error of the mean of ``x_B`` where those of one cluster are no independent draws.

    Samples of one cluster alone say nothing of others: then it is that of independent samples.
    """
    number = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    if len(number) in (1, len(x_B)):
        return float(x_B.std(unbiased=False)) / math.sqrt(len(x_B))
    cluster_B = torch.tensor([number[name] for name in clusters])
    # Sums of deviations a cluster: K alike of each prompt are one draw, so the error is sqrt(K) times that of B draws.
    sum_P = torch.zeros(len(number)).index_add_(0, cluster_B, x_B - x_B.mean())
    return float(sum_P.norm()) / len(x_B)


def _part_stats(scored: Scored, prompts: Sequence[Hashable]) -> dict[str, float]:
    """Return the mean of each part's scores, before its weight, and the standard error of that mean, by prompts."""
    found: dict[str, float] = {}
    for name, part_B in scored.parts.items():
        found |= {f"part_{name}": float(part_B.mean()), f"error_{name}": clustered_error(part_B, prompts)}
    return found


def rollout_stats(rollout: Rollout, group: int) -> dict[str, float]:
    """Return the diagnostics of a rollout before the update. KL per completion is the mean of sums over its tokens.

    ``kl_error`` is the standard error of that mean, by prompts.
    """
    mask, old, ref, scored = rollout.mask_BC, rollout.old_logp_BC, rollout.ref_logp_BC, rollout.scored
    drift_N = (rollout.behaviour_logp_BC - old)[mask]
    # pi of the learner / pi of the sampler, token by token: their effective share says whether the samples are still
    # its own.
    weight_N = (-drift_N).exp()
    tokens_B, kl_B = rollout.tokens_B, torch.where(mask, kl_k1(old, ref), 0.0).sum(1)
    texts = [" ".join(one.text.split()) for one in scored.samples]
    prompts = [one.prompt_ids for one in scored.samples]
    stats = {
        "score": float(scored.score_B.mean()),
        "score_std": float(scored.score_B.std(unbiased=False)),
        **_part_stats(scored, prompts),
        "kl": float(kl_B.mean()),
        # A KL of 0 is estimated below 0 half the time; its error says whether that is chance.
        "kl_error": clustered_error(kl_B, prompts),
        "kl_k3": float(torch.where(mask, kl_k3(old, ref), 0.0).sum(1).mean()),
        "entropy": float(rollout.entropy_BC[mask].mean()),
        "reference_nll": float(-ref[mask].mean()),
        "length": float(tokens_B.mean()),
        "length_p95": float(tokens_B.quantile(0.95)),
        # With the score and not the reward: it is the scorer that is suspected of liking length.
        "length_correlation": float(correlation(tokens_B, scored.score_B)),
        "eos_rate": sum(one.finished for one in scored.samples) / len(texts),
        "distinct": len(set(texts)) / len(texts),
        "scored": float(scored.num_scored),
        # Engine against learner: the two compute the same numbers by different products.
        "behaviour_gap": float(drift_N.abs().mean()),
        "behaviour_gap_max": float(drift_N.abs().max()),
        "behaviour_ess": float(weight_N.sum() ** 2 / (weight_N**2).sum() / len(weight_N)),
    }
    if group > 1:
        stats["group_std"] = float(scored.score_B.view(-1, group).std(1).mean())
        stats["zero_variance_groups"] = float(scored.zero_variance_P(group).float().mean())
    return stats
