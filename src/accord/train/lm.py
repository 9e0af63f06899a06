"""Language-model stages: pretraining on plain text, and supervised fine-tuning on completions (SFT)."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from accord.algo.logprob import token_logp, token_nll
from accord.config import ModelConfig, ModelKind, PretrainConfig, SftConfig, TokenizerConfig
from accord.errors import DataError
from accord.formats.jsonl import Conversation, at_row, read_lessons, read_texts
from accord.models.backbone import Shape, recompute_activations
from accord.models.decoder import CausalLM, init_weights
from accord.models.folder import load_policy, save_policy
from accord.models.lora import add_lora, save_adapter
from accord.models.lstm import LstmConfig
from accord.models.placement import Placement
from accord.models.shape import DecoderConfig
from accord.models.spelling import fold_spellings, share_spellings
from accord.seeds import stream_seed
from accord.text.batches import Batch, Example, collate, example_buckets, length_buckets, pack_blocks
from accord.text.chat import encode_chat
from accord.text.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from accord.train.learner import Learner, Log
from accord.train.loop import identity_of, quiet, train_steps

NLL_ROWS = 400  # demonstrations that a likelihood is measured on after fine-tuning: enough for 2 %


@dataclass(frozen=True)
class LmResult:
    """Where the model is and how it did: mean negative log-likelihood in nats a counted token."""

    model: Path
    train_nll: float
    valid_nll: float
    num_tokens: int
    num_steps: int


def logp_and_entropy(
    model: CausalLM, batch: Batch, temperature: float = 1.0, *, entropy: bool = True
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the counted tokens of a batch, ``(N,)`` in row order; differentiable.

    With them the entropy of each of those positions; zeros unless asked for.
    """
    logp_N, entropy_N = token_logp(*model.predictions(batch), temperature, entropy=entropy)
    return logp_N.cpu(), entropy_N.cpu()


def completion_nll(model: CausalLM, batch: Batch) -> Tensor:
    """Negative log-likelihood summed over the counted tokens of a batch, in nats; differentiable."""
    return token_nll(*model.predictions(batch))


def demonstration_example(tokenizer: Tokenizer, prompt: str, completion: str) -> Example:
    """A prompt and a finished completion as ids, the end token among the completion's."""
    return Example(tuple(tokenizer.encode(prompt)), (*tokenizer.encode(completion), tokenizer.end_id))


def _example(words: Tokenizer, lesson: tuple[str, str] | Conversation) -> Example:
    if not isinstance(lesson, Conversation):
        return demonstration_example(words, *lesson)
    with at_row(lesson.where):
        return encode_chat(words, lesson.messages, lesson.counted_from)


@torch.no_grad()
def mean_nll(model: CausalLM, examples: Sequence[Example], pad_id: int, batch_tokens: int = 8192) -> float:
    """Mean negative log-likelihood of the tokens that count, in nats a token over all of them."""
    was_training = model.training
    model.eval()
    batches = [[examples[i] for i in b] for b in example_buckets(examples, batch_tokens)]
    total = sum(float(completion_nll(model, collate(batch, pad_id))) for batch in batches)
    model.train(was_training)
    return total / max(1, sum(e.num_counted for e in examples))


@dataclass(frozen=True)
class TokenizerResult:
    """Where the tokenizer is, and how many entries it has."""

    tokenizer: Path
    vocab_size: int


def tokenizer(config: TokenizerConfig, *, texts: Path, output_dir: Path) -> TokenizerResult:
    """Train a byte-level BPE tokenizer on a JSONL file of texts; writes ``tokenizer.json`` and its config."""
    words = train_tokenizer(read_texts(texts), config.vocab_size)
    output_dir.mkdir(parents=True, exist_ok=True)
    words.save(output_dir)
    return TokenizerResult(output_dir, words.vocab_size)


def pretrain(
    config: PretrainConfig,
    shape: ModelConfig,
    *,
    texts: Path,
    valid_texts: Path,
    tokenizer: Path,
    output_dir: Path,
    seed: int = 0,
    resume: bool = True,
    log: Log = quiet,
) -> LmResult:
    """Train a model from scratch on a JSONL file of texts; next-token loss over every token.

    Writes ``output_dir/model`` (Hugging Face layout) and ``output_dir/metrics.jsonl``.
    """
    words = load_tokenizer(tokenizer)
    model = CausalLM(SHAPES[shape.kind](shape, words.vocab_size))
    init_weights(model, stream_seed(seed, "init"))
    placement = Placement.of(config)
    model.to(placement.device).model.compute_dtype = placement.dtype
    model.model.dropout = config.dropout
    if config.activation_checkpointing:
        recompute_activations(model.model)
    blocks_NT = pack_blocks(words.encode_batch(read_texts(texts)), words.end_id, config.block_tokens)
    per_epoch = len(blocks_NT) // config.batch_blocks
    if per_epoch == 0:
        raise DataError(
            f"the texts fill only {len(blocks_NT)} blocks of {config.block_tokens} tokens",
            where=str(texts),
            why=f"a batch needs {config.batch_blocks}",
            hint="give more text, or lower pretrain.batch_blocks or pretrain.block_tokens",
        )
    total = round(per_epoch * config.epochs)
    if config.share_spellings:
        share_spellings(model.model.embed_tokens, words)
    learner = Learner({"policy": model}, {"policy": config.optim}, total)

    def step_fn(step: int) -> dict[str, float]:
        epoch, position = divmod(step, per_epoch)
        generator = torch.Generator().manual_seed(stream_seed(seed, "order", epoch))
        order = torch.randperm(len(blocks_NT), generator=generator)
        rows = blocks_NT[order[position * config.batch_blocks : (position + 1) * config.batch_blocks]]
        with parametrize.cached():
            loss = block_loss(model, rows)
        return learner.update([loss])

    identity = identity_of(
        {"config": config.model_dump(), "shape": shape.model_dump(), "seed": seed},
        {"texts": texts, "tokenizer": tokenizer},
    )
    model.train()
    train_steps(
        learner,
        step_fn,
        total=total,
        seed=seed,
        output_dir=output_dir,
        identity=identity,
        checkpoint_every=config.checkpoint_every,
        resume=resume,
        log=log,
    )
    fold_spellings(model.model.embed_tokens)
    model.eval()
    held_out = [
        Example((words.end_id,), (*ids, words.end_id)[: shape.max_positions])
        for ids in words.encode_batch(read_texts(valid_texts))
    ]
    with torch.no_grad():
        train_nll = float(block_loss(model, blocks_NT[: config.batch_blocks]))
    save_policy(output_dir / "model", model, words)
    valid_nll = mean_nll(model, held_out, words.pad_id)
    return LmResult(output_dir / "model", train_nll, valid_nll, blocks_NT[:, 1:].numel(), total)


def block_loss(model: CausalLM, rows_BT: Tensor) -> Tensor:
    """Mean next-token loss over whole blocks, in nats a token."""
    mask_BT = torch.ones_like(rows_BT, dtype=torch.bool)
    mask_BT[:, 0] = False
    length_B = torch.full((len(rows_BT),), rows_BT.shape[1])
    return completion_nll(model, Batch(rows_BT, mask_BT, length_B)) / rows_BT[:, 1:].numel()


def decoder_config(shape: ModelConfig, vocab_size: int) -> DecoderConfig:
    """The decoder that a recipe's model section describes."""
    return DecoderConfig(
        vocab_size=vocab_size,
        width=shape.width,
        ffn=shape.ffn,
        num_layers=shape.layers,
        num_heads=shape.heads,
        num_kv_heads=shape.kv_heads,
        head_width=shape.width // shape.heads,
        max_positions=shape.max_positions,
    )


def lstm_config(shape: ModelConfig, vocab_size: int) -> LstmConfig:
    """The LSTM that a recipe's model section describes."""
    return LstmConfig(vocab_size, shape.width, shape.layers, shape.max_positions)


#: What each ``model.kind`` of a recipe means.
SHAPES: Mapping[ModelKind, Callable[[ModelConfig, int], Shape]] = {"llama": decoder_config, "lstm": lstm_config}


def sft(
    config: SftConfig,
    *,
    model: Path,
    data: Path,
    output_dir: Path,
    valid_data: Path | None = None,
    seed: int = 0,
    resume: bool = True,
    log: Log = quiet,
) -> LmResult:
    """Fine-tune a policy on demonstrations ``{"prompt", "completion"}``: loss on completion and end token only. Of
    conversations ``{"messages"}`` the assistant's turns count.

    Without ``valid_data`` every twentieth row is held out. Writes ``output_dir/model`` and ``metrics.jsonl``; with an
    adapter the model is merged, and ``output_dir/adapter`` holds the adapter alone.
    """
    policy, words = load_policy(model, Placement.of(config))
    policy.model.dropout = config.dropout
    if config.activation_checkpointing:
        recompute_activations(policy.model)
    add_lora(policy, config.lora, stream_seed(seed, "lora"))
    limit = min(config.max_tokens, policy.config.max_positions)
    rows = _demonstrations(words, data, limit, log)
    train, valid = rows, rows[::20]
    if valid_data is not None:
        valid = _demonstrations(words, valid_data, limit, log)
    elif len(rows) >= 20:
        train = [row for i, row in enumerate(rows) if i % 20]
    lengths = [len(e) for e in train]
    batches = [
        batch
        for epoch in range(math.ceil(config.epochs))
        for batch in length_buckets(lengths, config.batch_tokens, stream_seed(seed, "order", epoch))
    ]
    batches = batches[: max(1, round(len(batches) * config.epochs / math.ceil(config.epochs)))]
    learner = Learner({"policy": policy}, {"policy": config.optim}, len(batches))

    def step_fn(step: int) -> dict[str, float]:
        batch = [train[i] for i in batches[step]]
        return learner.update(sft_losses(policy, batch, words.pad_id, config.micro_batch_tokens))

    policy.train()
    train_steps(
        learner,
        step_fn,
        total=len(batches),
        seed=seed,
        output_dir=output_dir,
        identity=identity_of({"config": config.model_dump(), "seed": seed}, {"model": model, "data": data}),
        checkpoint_every=config.checkpoint_every,
        resume=resume,
        log=log,
    )
    policy.eval()
    save_policy(output_dir / "model", policy, words)
    if config.lora.rank:
        save_adapter(output_dir / "adapter", policy, str(model))
    else:  # what an earlier run with other settings left
        shutil.rmtree(output_dir / "adapter", ignore_errors=True)
    train_nll, valid_nll = (mean_nll(policy, spread(rows, NLL_ROWS), words.pad_id) for rows in (train, valid))
    num_tokens = sum(train[i].num_counted for batch in batches for i in batch)
    return LmResult(output_dir / "model", train_nll, valid_nll, num_tokens, len(batches))


def spread(rows: Sequence[Example], most: int) -> Sequence[Example]:
    """All rows, or of very many every n-th."""
    return rows[:: max(1, -(-len(rows) // most))]


def _demonstrations(words: Tokenizer, path: Path, max_tokens: int, log: Log) -> list[Example]:
    """The demonstrations of a file that are no longer than the limit; the log says how many were left out."""
    rows = [_example(words, lesson) for lesson in read_lessons(path)]
    kept = [row for row in rows if len(row) <= max_tokens]
    if not kept:
        raise DataError(
            f"all demonstrations are longer than {max_tokens} tokens",
            where=str(path),
            hint="raise sft.max_tokens, use a model with a longer context, or shorten the texts",
        )
    if len(kept) < len(rows):
        log(0.0, f"{len(rows) - len(kept)} of {len(rows)} demonstrations left out: longer than {max_tokens} tokens")
    return kept


def sft_losses(policy: CausalLM, rows: Sequence[Example], pad_id: int, micro_batch_tokens: int) -> Iterator[Tensor]:
    """Micro-batch losses that sum to the mean over all counted tokens of the step, however it is split."""
    num_counted = sum(e.num_counted for e in rows)
    for micro in example_buckets(rows, micro_batch_tokens):
        yield completion_nll(policy, collate([rows[i] for i in micro], pad_id)) / num_counted
