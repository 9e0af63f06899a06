"""The reward stage: rankings in, a model that gives one score per completion out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from accord.algo.reward_loss import group_pairs, ranking_loss, self_distillation
from accord.algo.table import REWARD_LOSSES
from accord.config import RewardConfig
from accord.errors import DataError
from accord.formats.jsonl import read_rankings
from accord.models.decoder import ScalarModel
from accord.models.door import recompute_activations
from accord.models.folder import RewardScale, load_scalar, save_scalar
from accord.models.lora import add_lora
from accord.models.precision import compute_dtype
from accord.models.spelling import fold_spellings, share_spellings
from accord.records import RankedGroup
from accord.scoring.reward_model import encode_scored, raw_scores
from accord.seeds import stream_seed
from accord.text.batches import Example, collate, length_buckets
from accord.text.tokenizer import Tokenizer
from accord.train.learner import Learner, Log
from accord.train.loop import identity_of, quiet, train_steps

BUCKET_TOKENS = 1024
SCALE_TEXTS = 4000  # enough for mean and deviation to 2 %


@dataclass(frozen=True)
class EncodedGroup:
    """A ranked group as ids: encoded once, used every epoch."""

    examples: tuple[Example, ...]
    ranks: tuple[float, ...]
    weight: float

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.examples))


@dataclass(frozen=True)
class RewardResult:
    """Where the reward model is, and its share of held-out pairs in the right order (ties of scores count half)."""

    model: Path
    valid_accuracy: float
    num_groups: int
    num_pairs: int
    num_steps: int
    offset: float
    scale: float


def reward(
    config: RewardConfig,
    *,
    model: Path,
    data: Path,
    output_dir: Path,
    valid_data: Path | None = None,
    seed: int = 0,
    resume: bool = True,
    log: Log = quiet,
) -> RewardResult:
    """Train a reward model from ranked groups, its trunk from ``model`` (a policy, or a reward model to go on with).

    All pairs of a group sit in one batch element: K forward passes serve C(K, 2) comparisons. Afterwards the mean
    score of the ranked completions is measured and stored in ``reward.json``, with their spread, so that scores
    have mean 0 and standard deviation 1 there. Without ``valid_data`` every twentieth group is held out.
    """
    scorer, words = _start(config, model, seed)
    groups = [g for g in read_rankings(data, words.chat) if len(set(g.ranks)) > 1]
    if not groups:
        raise DataError("every ranking is one single tie", where=str(data), mend="give rankings with some order")
    train, valid = groups, groups[::20]
    if valid_data is not None:
        valid = [g for g in read_rankings(valid_data, words.chat) if len(set(g.ranks)) > 1]
    elif len(groups) >= 20:
        train = [g for i, g in enumerate(groups) if i % 20]
    if not valid:
        raise DataError("every held-out ranking is one single tie", where=str(valid_data or data), mend="give others")
    limit = min(config.max_tokens, scorer.config.max_positions)
    encoded = [encode_group(words, g, limit) for g in train]
    per_epoch = -(-len(train) // config.groups_per_step)
    learner = Learner({"reward": scorer}, {"reward": config.optim}, per_epoch * config.epochs)

    def step_fn(step: int) -> dict[str, float]:
        epoch, position = divmod(step, per_epoch)
        generator = torch.Generator().manual_seed(stream_seed(seed, "order", epoch))
        order = torch.randperm(len(train), generator=generator).tolist()
        chosen = order[position * config.groups_per_step : (position + 1) * config.groups_per_step]
        stats: dict[str, float] = {"accuracy": 0.0, "margin": 0.0}
        losses = group_losses(config, scorer, [encoded[i] for i in chosen], words.pad_id, stats)
        return learner.update(losses) | stats

    scorer.train()
    train_steps(
        learner,
        step_fn,
        total=per_epoch * config.epochs,
        seed=seed,
        output_dir=output_dir,
        identity=identity_of({"config": config.model_dump(), "seed": seed}, {"model": model, "data": data}),
        checkpoint_every=config.checkpoint_every,
        resume=resume,
        log=log,
    )
    fold_spellings(scorer.model.embed_tokens)
    scorer.eval()
    scale = measure_scale(scorer, words, train, limit)
    save_scalar(output_dir / "model", scorer, words, scale)
    return RewardResult(
        model=output_dir / "model",
        valid_accuracy=ranking_accuracy(scorer, words, valid, limit),
        num_groups=len(train),
        num_pairs=sum(len(group_pairs([g.ranks])[0]) for g in train),
        num_steps=learner.step,
        offset=scale.offset,
        scale=scale.scale,
    )


def _start(config: RewardConfig, model: Path, seed: int) -> tuple[ScalarModel, Tokenizer]:
    """The reward model before its first step, with what trains of it."""
    scorer, words, _ = load_scalar(
        model,
        compute_dtype(config.precision),
        head_seed=stream_seed(seed, "head"),
        trunk_layers=config.trunk_layers,
    )
    scorer.model.dropout = config.dropout
    if config.activation_checkpointing:
        recompute_activations(scorer.model)
    if config.share_spellings:
        share_spellings(scorer.model.embed_tokens, words)
    if config.freeze_embeddings:
        scorer.model.freeze_embeddings()
    add_lora(scorer, config.lora, stream_seed(seed, "lora"))
    return scorer, words


def encode_group(words: Tokenizer, group: RankedGroup, max_tokens: int) -> EncodedGroup:
    """The texts of a group as ids, each closed by the end token."""
    examples = tuple(encode_scored(words, group.prompt, c, max_tokens) for c in group.completions)
    return EncodedGroup(examples, group.ranks, group.weight)


def group_losses(
    config: RewardConfig,
    scorer: ScalarModel,
    groups: Sequence[EncodedGroup],
    pad_id: int,
    stats: dict[str, float],
) -> Iterator[Tensor]:
    """Losses of micro-batches of whole groups, which add up to the step's loss; ``stats`` is added to on the way."""
    total_weight = sum(g.weight for g in groups)
    all_readings = config.pooled_coef > 0 or config.bag_coef > 0
    for micro in micro_groups(groups, config.micro_batch_tokens):
        examples = [hide_tokens(e, config.token_dropout, pad_id) for g in micro for e in g.examples]
        with parametrize.cached():
            readings_SR = bucketed_scores(scorer, examples, pad_id, all_readings=all_readings)
        pairs = group_pairs([g.ranks for g in micro], [g.weight for g in micro])
        loss_of = REWARD_LOSSES[config.loss]
        loss, found = loss_of(readings_SR[:, 0], *pairs, total_weight, config.center_coef)
        for reading, coef in ((1, config.pooled_coef), (2, config.bag_coef)):
            if coef > 0:
                loss = loss + coef * loss_of(readings_SR[:, reading], *pairs, total_weight, config.center_coef)[0]
        if config.self_distill_coef > 0:
            loss = loss + config.self_distill_coef * self_distillation(readings_SR, *pairs, total_weight)
        for name, value in found.items():
            stats[name] += float(value)
        yield loss


def hide_tokens(example: Example, rate: float, pad_id: int) -> Example:
    """Replace a random share of the completion's tokens, the end token excepted, by the padding token."""
    if rate == 0:
        return example
    *tokens, end = example.completion
    hidden = (torch.rand(len(tokens)) < rate).tolist()
    kept = (pad_id if hide else token for token, hide in zip(tokens, hidden, strict=True))
    return Example(example.prompt, (*kept, end))


def bucketed_scores(
    scorer: ScalarModel, examples: Sequence[Example], pad_id: int, *, all_readings: bool = True
) -> Tensor:
    """Three readings of the head a text, ``(S, 3)``, differentiable; the first is the score. Or that one, ``(S, 1)``.

    0. at the last real token; 1. its mean over the completion's positions; 2. the mean of the head on the bare token
    embeddings, a bag of words. The last two are taught beside the score where few rankings must teach much: they reach
    every token directly, and the residual stream carries what they learn to the last one.
    Texts run in buckets of like length, since groups mix lengths: padding each group to its longest text would
    more than double the work.
    """
    buckets = length_buckets([len(e) for e in examples], BUCKET_TOKENS, 0)
    readings = []
    for bucket in buckets:
        batch = collate([examples[i] for i in bucket], pad_id)
        if not all_readings:
            readings.append(scorer(batch.ids_BT, batch.length_B, batch.last_B)[:, None])
            continue
        value_N, bag_N = scorer(batch.ids_BT, batch.length_B), scorer.bag_of_words(batch.ids_BT[batch.real_BT])
        means = [batch.completion_means(x_N) for x_N in (value_N, bag_N)]
        readings.append(torch.stack([value_N[batch.last_B], *means], dim=1))
    position = torch.argsort(torch.tensor([i for bucket in buckets for i in bucket]))
    return torch.cat(readings)[position]


def micro_groups(groups: Sequence[EncodedGroup], max_tokens: int) -> Iterator[list[EncodedGroup]]:
    """Groups packed so that a backward pass covers at most ``max_tokens`` tokens (or one group)."""
    pending: list[EncodedGroup] = []
    for group in groups:
        if pending and sum(g.num_tokens for g in (*pending, group)) > max_tokens:
            yield pending
            pending = []
        pending.append(group)
    yield pending


def measure_scale(scorer: ScalarModel, words: Tokenizer, groups: Sequence[RankedGroup], max_tokens: int) -> RewardScale:
    """Offset and scale that give the human completions of the groups mean 0 and standard deviation 1.

    Where no group says that its completions are people's, all of them count; of very many, every n-th.
    """
    humans = [g for g in groups if g.origin.startswith("human")] or groups
    pairs = sorted({(g.prompt, c) for g in humans for c in g.completions})
    pairs = pairs[:: -(-len(pairs) // SCALE_TEXTS)]
    score_S = raw_scores(scorer, words, pairs, max_tokens)
    return RewardScale(float(score_S.mean()), 1.0 / max(1e-3, float(score_S.std())))


def ranking_accuracy(scorer: ScalarModel, words: Tokenizer, groups: Sequence[RankedGroup], max_tokens: int) -> float:
    """Share of strict pairs in the right order, each group weighing the same; ties of scores count half."""
    score_S = raw_scores(scorer, words, [(g.prompt, c) for g in groups for c in g.completions], max_tokens)
    _, stats = ranking_loss(score_S, *group_pairs([g.ranks for g in groups]), float(len(groups)), 0.0)
    return float(stats["accuracy"])
