"""The reward stage: judgements in, a model that gives one score per completion out.

Shapes: S completions of a micro-batch, R readings or heads a text, H heads, T tokens, N real tokens.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import pad_sequence

from accord.algo.reductions import correlation
from accord.algo.reward_loss import Positions, score_penalty, self_distillation
from accord.algo.table import REWARD_LOSSES, RewardLoss
from accord.config import RewardConfig
from accord.errors import UsageError
from accord.extend import row
from accord.lock import writes_alone
from accord.models.backbone import recompute_activations
from accord.models.decoder import ScalarModel
from accord.models.folder import RewardScale, load_scalar, save_scalar
from accord.models.lora import add_lora
from accord.models.placement import Placement
from accord.models.spelling import fold_spellings, share_spellings
from accord.progress import Log, quiet
from accord.ranks import ONE_PROCESS, Ranks
from accord.scoring.reward_model import raw_scores
from accord.seeds import stream_seed
from accord.text.batches import Example, collate, example_buckets
from accord.text.tokenizer import Tokenizer
from accord.train.alarms import reward_alarms
from accord.train.held_out import HeldOut, every_nth, none_held_out, was_held_out
from accord.train.judged import (
    READERS,
    SCORED_ALIKE,
    EncodedGroup,
    GroupView,
    HeldOutFit,
    batch_elements,
    count_pairs,
    encode_groups,
    fitting,
    held_out_fit,
    read_groups,
    reward_batch,
    shared_texts,
    unread_margins,
)
from accord.train.learner import Learner
from accord.train.prompts import permutation
from accord.train.training_run import Steps, TrainingRun

BUCKET_TOKENS = 1024  # padded group by group, 58 % of the demo's tokens were padding; a step 0.19 s, so 0.15 s
TOLD_GROUPS = 400  # of those learnt, measured for the alarms: their share to 2.5 points
SCALE_TEXTS = 4000  # enough for mean and deviation to 2 %


@dataclass(frozen=True)
class RewardResult:
    """Where the reward model is, and how it fits held-out judgements (see `accord.train.judged.HeldOutFit`).

    ``valid_accuracy`` is the number that ``held_out`` states with its interval and a baseline; None of too few.
    ``num_groups`` are batch elements; ``num_skipped`` rankings of one single tie were left out, and
    ``num_too_long`` judgements whose prompt leaves no room for a completion, and ``num_equal`` whose completions are
    one text within ``max_tokens``, to which ``num_cut`` completions are cut. ``offset`` and ``scale`` are those of
    `reward.json`.
    """

    model: Path
    valid_accuracy: float | None
    num_held_out: int
    num_groups: int
    num_pairs: int
    num_steps: int
    offset: float | tuple[float, ...]
    scale: float | tuple[float, ...]
    num_skipped: int
    num_too_long: int
    num_cut: int
    num_equal: int
    max_tokens: int
    calibration_error: float | None
    length_correlation: float
    held_out: HeldOut


@writes_alone
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
    """Train a reward model from judgements, its trunk from ``model`` (a policy, or a reward model to go on with).

    All pairs of a group sit in one batch element: K forward passes serve C(K, 2) comparisons. So do all judgements that
    bear one group's name, whoever made them. Afterwards the mean
    score of the judged completions is measured and stored in ``reward.json``, with their spread, so that scores
    have mean 0 and standard deviation 1 there. Without ``valid_data`` every twentieth batch element is held out.
    """
    loss = reward_loss(config)
    scorer, tokenizer = _start(config, model, seed)
    train, valid, num_skipped = read_groups(config, loss, data, valid_data, tokenizer.chat)
    is_held_out = was_held_out(train, valid)
    if num_skipped:
        log(0.0, f"{num_skipped} rankings of one single tie say nothing and are left out")
    if unread := unread_margins(train, config.pairs.margin, "reward.pairs.margin"):
        log(0.0, unread)
    limit = min(config.max_tokens or scorer.config.max_positions, scorer.config.max_positions)
    learnt = fitting(train, tokenizer, limit, where=data)
    held_out = fitting(valid, tokenizer, limit, where=valid_data)
    # Of what the stage holds out by itself, one unit of few perhaps, nothing may be left.
    is_held_out = is_held_out and bool(held_out.groups)
    for name, found in (("to learn from", learnt), ("held out", held_out)):
        if not found.is_whole:
            log(0.0, f"{name}, {found}")
    train, valid = learnt.groups, held_out.groups or learnt.groups[:1]
    encoded = encode_groups(config, loss, tokenizer, train, limit, seed)
    elements = batch_elements(encoded)
    per_epoch = -(-len(elements) // config.groups_per_step)
    learner = Learner({"reward": scorer}, {"reward": config.optim}, per_epoch * config.epochs)

    def step_fn(step: int) -> dict[str, float]:
        epoch, position = divmod(step, per_epoch)
        start = position * config.groups_per_step
        chosen = epoch_order(len(elements), epoch, seed)[start : start + config.groups_per_step]
        stats: dict[str, float] = {}
        step_groups = [g for i in chosen for g in elements[i]]
        losses = group_losses(config, scorer, step_groups, tokenizer.pad_id, stats, learner.ranks)
        return learner.update(losses) | stats

    scorer.train()
    run = TrainingRun(output_dir, seed, resume, log)
    identity = run.identity({"model": model, "data": data}, config=config)
    run.train(learner, step_fn, Steps(learner.total_steps, config.checkpoint_every), identity=identity)
    scorer = learner.whole(scorer)
    scale = _finish(config, scorer, tokenizer, train, limit, output_dir / "model")
    for event in weak_reward(held_out_fit(scorer, tokenizer, loss, every_nth(train, TOLD_GROUPS), limit, train), scale):
        run.event(learner.total_steps - 1, event, done=1.0)
    agreed = held_out_fit(scorer, tokenizer, loss, valid, limit, train)
    told = agreed.told if is_held_out else none_held_out(SCORED_ALIKE)
    return RewardResult(
        model=output_dir / "model",
        valid_accuracy=told.value,
        num_held_out=len(batch_elements(valid)) if is_held_out else 0,
        num_groups=len(elements),
        num_pairs=count_pairs(config, encoded),
        num_steps=learner.step,
        offset=scale.offset,
        scale=scale.scale,
        num_skipped=num_skipped,
        num_too_long=learnt.num_too_long,
        num_cut=learnt.num_cut,
        num_equal=learnt.num_equal,
        max_tokens=limit,
        calibration_error=None if told.value is None else agreed.calibration_error,
        length_correlation=agreed.length_correlation,
        held_out=told,
    )


def reward_loss(config: RewardConfig) -> RewardLoss:
    """Return the row that the configuration names. Raises UsageError where a user's own is no row."""
    found = row(REWARD_LOSSES, config.loss)
    if not isinstance(found, RewardLoss) or found.reads not in READERS:
        raise UsageError(
            f"{config.loss!r} is no row of reward losses",
            hint=f"make it an accord.algo.table.RewardLoss(function, reads={' | '.join(map(repr, READERS))})",
        )
    return found


def epoch_order(count: int, epoch: int, seed: int) -> list[int]:
    """Return a fresh permutation of the groups for each epoch."""
    return permutation(count, stream_seed(seed, "order", epoch))


def _start(config: RewardConfig, model: Path, seed: int) -> tuple[ScalarModel, Tokenizer]:
    """Return the reward model before its first step, with what trains of it."""
    scorer, tokenizer, _ = load_scalar(
        model,
        Placement.of(config),
        head_seed=stream_seed(seed, "head"),
        zero_head=config.head_init == "zero",
        heads=config.heads,
        trunk_layers=config.trunk_layers,
    )
    if scorer.score.out_features != config.heads:
        raise UsageError(
            f"reward.heads is {config.heads}, but the reward model to go on with has {scorer.score.out_features}",
            where=str(model),
            hint=f"set reward.heads={scorer.score.out_features}, or start from a policy",
        )
    scorer.model.dropout = config.dropout
    if config.activation_checkpointing:
        recompute_activations(scorer.model)
    if config.share_spellings:
        share_spellings(scorer.model.embed_tokens, tokenizer)
    if config.freeze_embeddings:
        scorer.model.freeze_embeddings()
    add_lora(scorer, config.lora, stream_seed(seed, "lora"))
    return scorer, tokenizer


def _finish(
    config: RewardConfig,
    scorer: ScalarModel,
    tokenizer: Tokenizer,
    train: Sequence[GroupView],
    limit: int,
    folder: Path,
) -> RewardScale:
    """Put the trained model on its scale and write it."""
    fold_spellings(scorer.model.embed_tokens)
    scorer.eval()
    scale = replace(scale_of(config, scorer, tokenizer, train, limit), max_tokens=config.max_tokens and limit)
    save_scalar(folder, scorer, tokenizer, scale)
    return scale


def weak_reward(learnt: HeldOutFit, scale: RewardScale) -> list[dict[str, str]]:
    """Return the alarms that ring where a reward model knows next to nothing of what it learnt."""
    told = learnt.told
    level = 0.5 if told.baseline_is == "longer wins" else told.baseline or 0.5
    stats = {"gain": max(scale.gains)}
    if told.low is not None:
        stats["ahead"] = told.low - level
    return reward_alarms(stats)


def group_losses(
    config: RewardConfig,
    scorer: ScalarModel,
    groups: Sequence[EncodedGroup],
    pad_id: int,
    stats: dict[str, float],
    ranks: Ranks = ONE_PROCESS,
) -> Iterator[Tensor]:
    """Yield losses of micro-batches of whole groups, which add up to the step's loss; ``stats`` gets its metrics."""
    loss_of, total_weight = reward_loss(config), sum(g.weight for g in groups)
    seen: list[Tensor] = []
    lengths: list[int] = []
    sums: dict[str, float] = {}
    # Each process waits for the others in every pass: of a micro-batch they make one, not as many as its lengths ask.
    bucket_tokens = BUCKET_TOKENS if ranks.world == 1 else sys.maxsize
    for micro, counts in shared_groups(groups, config.micro_batch_tokens, ranks):
        texts, index = shared_texts(micro)
        examples = [hide_tokens(e, config.token_dropout, pad_id) for e in texts]
        with parametrize.cached():
            readings_SR, positions_H = _read(config, loss_of, scorer, examples, pad_id, bucket_tokens)
        if len(index) > len(texts):
            readings_SR, positions_H = _dealt(readings_SR, positions_H, torch.tensor(index))
        loss = readings_SR.new_zeros(())
        for head in range(config.heads):
            batch = reward_batch(config, micro, readings_SR[:, head], positions_H[head])
            part, found = loss_of.loss(batch, total_weight, config.center_coef)
            if config.heads > 1:  # it learns from what it drew; its stats are of all
                # Divided by the step's weight before the draws: so that micro-batches still add up.
                drawn = reward_batch(config, micro, readings_SR[:, head], positions_H[head], head=head)
                part, _ = loss_of.loss(drawn, total_weight, config.center_coef)
            if config.l2_coef > 0:
                part = part + config.l2_coef * score_penalty(batch, total_weight)
            loss = loss + part / config.heads
            for name, value in found.items():
                sums[name] = sums.get(name, 0.0) + counts * float(value) / config.heads
        for reading, coef in ((1, config.pooled_coef), (2, config.bag_coef)):
            if coef > 0:
                # Held-out pairs: .745 -> .765 with the mean over positions, .771 -> .775 with the bag of words.
                again = replace(batch, score_S=readings_SR[:, reading])
                loss = loss + coef * loss_of.loss(again, total_weight, config.center_coef)[0]
        if config.self_distill_coef > 0:
            pairs = batch.pairs.chosen_N, batch.pairs.rejected_N, batch.pairs.weight_N
            loss = loss + config.self_distill_coef * self_distillation(readings_SR, *pairs, total_weight)
        if counts:
            seen.append(readings_SR.detach()[:, : config.heads])
            lengths += [len(e.completion) for g in micro for e in g.examples]
        yield counts * loss
    stats |= ranks.sums(sums)
    told = ranks.gather((seen, lengths))
    score_SH = torch.cat([score for scores, _ in told for score in scores])
    length_S = torch.tensor([length for _, found in told for length in found])
    stats["length_correlation"] = float(correlation(score_SH.mean(1), length_S))
    if config.heads > 1:
        # Heads that differ more than before see texts unlike what they were taught: a sign that comes before judges
        # fall.
        stats["head_spread"] = float(score_SH.std(1).mean())


def _read(
    config: RewardConfig,
    loss: RewardLoss,
    scorer: ScalarModel,
    examples: Sequence[Example],
    pad_id: int,
    bucket_tokens: int = BUCKET_TOKENS,
) -> tuple[Tensor, Sequence[Positions | None]]:
    """Return readings of each text, ``(S, R)``, the scores first, and all positions for each head where they count."""
    if not loss.all_positions:
        all_readings = config.pooled_coef > 0 or config.bag_coef > 0
        read_SR = bucketed_scores(scorer, examples, pad_id, all_readings=all_readings, bucket_tokens=bucket_tokens)
        return read_SR, [None] * config.heads
    texts, value_STH = collate(examples, pad_id), bucketed_values(scorer, examples, pad_id, bucket_tokens)
    # At the last real token: the last of the row may be padding.
    score_SH = value_STH[torch.arange(len(examples)), texts.length_B - 1]
    return score_SH, [Positions(texts.ids_BT, value_ST, texts.length_B) for value_ST in value_STH.unbind(2)]


def _dealt(
    readings_SR: Tensor, positions_H: Sequence[Positions | None], index_S: Tensor
) -> tuple[Tensor, Sequence[Positions | None]]:
    """Give the readings of shared texts to every group that holds them."""
    dealt = [p and Positions(p.ids_ST[index_S], p.value_ST[index_S], p.length_S[index_S]) for p in positions_H]
    return readings_SR[index_S], dealt


def hide_tokens(example: Example, rate: float, pad_id: int) -> Example:
    """Replace a random share of the completion's tokens, the end token excepted, by the padding token."""
    if rate == 0:
        return example
    *tokens, end = example.completion
    # By the global stream, which each step reseeds: a resumed run hides the same tokens.
    hidden = (torch.rand(len(tokens)) < rate).tolist()
    # The end token stays, since the score is read there.
    kept = (pad_id if hide else token for token, hide in zip(tokens, hidden, strict=True))
    return Example(example.prompt, (*kept, end))


def bucketed_scores(
    scorer: ScalarModel,
    examples: Sequence[Example],
    pad_id: int,
    *,
    all_readings: bool = True,
    bucket_tokens: int = BUCKET_TOKENS,
) -> Tensor:
    """Return three readings of the head a text, ``(S, 3)``, the first the score; or the scores alone, ``(S, H)``.

    0. at the last real token; 1. its mean over the completion's positions; 2. the mean of the head on the bare token
    embeddings, a bag of words. The last two are taught beside the score where few rankings must teach much: they reach
    every token directly, and the residual stream carries what they learn to the last one.
    Texts run in buckets of like length, since groups mix lengths: padding each group to its longest text would
    more than double the work.
    """
    buckets = example_buckets(examples, bucket_tokens)
    readings = []
    for bucket in buckets:
        batch = collate([examples[i] for i in bucket], pad_id)
        if not all_readings:
            readings.append(scorer(batch.ids_BT, batch.length_B, batch.last_B).reshape(len(bucket), -1))
            continue
        value_N, bag_N = scorer(batch.ids_BT, batch.length_B), scorer.bag_of_words(batch.ids_BT[batch.real_BT])
        means = [batch.completion_means(x_N) for x_N in (value_N, bag_N)]
        readings.append(torch.stack([value_N[batch.last_B], *means], dim=1))
    position = torch.argsort(torch.tensor([i for bucket in buckets for i in bucket]))
    return torch.cat(readings)[position]


def bucketed_values(
    scorer: ScalarModel, examples: Sequence[Example], pad_id: int, bucket_tokens: int = BUCKET_TOKENS
) -> Tensor:
    """Return the heads at every token of each text, ``(S, T, H)``, 0 on padding, differentiable.

    In buckets of like length.
    """
    rows: dict[int, Tensor] = {}
    for bucket in example_buckets(examples, bucket_tokens):
        batch = collate([examples[i] for i in bucket], pad_id)
        value_NH = scorer(batch.ids_BT, batch.length_B).reshape(int(batch.length_B.sum()), -1)
        rows.update(zip(bucket, value_NH.split(batch.length_B.tolist()), strict=True))
    return pad_sequence([rows[i] for i in range(len(examples))], batch_first=True)


def shared_groups(
    groups: Sequence[EncodedGroup], max_tokens: int, ranks: Ranks
) -> list[tuple[list[EncodedGroup], float]]:
    """Return this process's micro-batches of whole batch elements, each with what it counts."""

    def pack(elements: list[list[EncodedGroup]]) -> Iterator[list[EncodedGroup]]:
        return micro_groups([g for element in elements for g in element], max_tokens)

    elements = [list(groups)] if ranks.world == 1 else batch_elements(groups)
    return ranks.share(elements, pack, lambda element: sum(len(e) for g in element for e in g.examples))


def micro_groups(groups: Sequence[EncodedGroup], max_tokens: int) -> Iterator[list[EncodedGroup]]:
    """Pack whole batch elements so that a backward pass covers at most ``max_tokens`` tokens (or one element)."""
    pending: list[EncodedGroup] = []
    size = 0
    for element in batch_elements(groups):
        texts, _ = shared_texts(element)
        num_tokens = sum(map(len, texts))
        if pending and size + num_tokens > max_tokens:
            yield pending
            pending, size = [], 0
        pending = [*pending, *element]
        size += num_tokens
    yield pending


def scale_of(
    config: RewardConfig, scorer: ScalarModel, tokenizer: Tokenizer, groups: Sequence[GroupView], max_tokens: int
) -> RewardScale:
    """Return how the trained heads' numbers become the score: as measured, or as chances, which need no scale."""
    if config.transform == "probability":
        plain = RewardScale() if config.heads == 1 else RewardScale((0.0,) * config.heads, (1.0,) * config.heads)
        return replace(plain, transform="probability", combine=config.combine)
    return replace(measure_scale(scorer, tokenizer, groups, max_tokens), combine=config.combine)


def measure_scale(
    scorer: ScalarModel, tokenizer: Tokenizer, groups: Sequence[GroupView], max_tokens: int
) -> RewardScale:
    """Measure offset and scale that give human completions mean 0 and standard deviation 1, head by head.

    Where no group says that its completions are people's, all of them count; of very many, every n-th.
    """
    # People's texts, as N+ and InstructGPT have it: 0 then means as good as what people wrote, for any policy.
    humans = [g for g in groups if g.origin.startswith("human")] or groups
    pairs = sorted({(g.prompt, c) for g in humans for c in g.completions})
    pairs = pairs[:: -(-len(pairs) // SCALE_TEXTS)]
    heads = raw_scores(scorer, tokenizer, pairs, max_tokens).reshape(len(pairs), -1).unbind(1)
    offsets = tuple(float(score_S.mean()) for score_S in heads)
    # Where all scores are equal, the scale stays a number.
    scales = tuple(1.0 / max(1e-3, float(score_S.std()) if len(pairs) > 1 else 0.0) for score_S in heads)
    return RewardScale(offsets[0], scales[0]) if len(heads) == 1 else RewardScale(offsets, scales)
