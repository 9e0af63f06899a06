"""The pretrain stage: plain texts in, a language model trained from scratch out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from accord.config import ModelConfig, ModelKind, PretrainConfig
from accord.errors import DataError
from accord.formats.stage_rows import read_texts
from accord.lock import writes_alone
from accord.models.backbone import Shape, recompute_activations
from accord.models.decoder import CausalLM, init_weights
from accord.models.lstm import LstmConfig
from accord.models.placement import Placement
from accord.models.shape import DecoderConfig
from accord.models.spelling import fold_spellings, share_spellings
from accord.progress import Log, quiet
from accord.seeds import stream_seed
from accord.text.batches import Example, pack_blocks
from accord.text.tokenizer import Tokenizer, load_tokenizer
from accord.train.held_out import leaked
from accord.train.learner import Learner
from accord.train.likelihood import LmResult, block_loss, nll_sums, shared_block_losses, told_nll
from accord.train.prompts import permutation
from accord.train.training_run import Steps, TrainingRun


@writes_alone
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

    Writes ``output_dir/model`` (Hugging Face layout) and ``output_dir/metrics.jsonl``. Held-out texts that stand among
    the training texts, whole or for the most part (`leaked`), are not measured, and counted in a message.
    """
    run = TrainingRun(output_dir, seed, resume, log)
    loaded = load_tokenizer(tokenizer)
    model = _start(config, shape, loaded, seed)
    blocks_NT = _read_blocks(config, loaded, texts)
    per_epoch = len(blocks_NT) // config.batch_blocks
    total = round(per_epoch * config.epochs)
    learner = Learner({"policy": model}, {"policy": config.optim}, total)

    def step_fn(step: int) -> dict[str, float]:
        epoch, position = divmod(step, per_epoch)
        order = permutation(len(blocks_NT), stream_seed(seed, "order", epoch))
        rows = blocks_NT[order[position * config.batch_blocks : (position + 1) * config.batch_blocks]]
        # The summed embedding table is built once a step, not once for input and once for the tied head.
        with parametrize.cached():
            losses = list(shared_block_losses(model, rows, learner.ranks))
        return learner.update(losses)

    model.train()
    identity = run.identity({"texts": texts, "tokenizer": tokenizer}, config=config, shape=shape)
    run.train(learner, step_fn, Steps(total, config.checkpoint_every), identity=identity)
    # The saved model is an ordinary one: nobody who opens it needs to know how it was trained.
    model = learner.whole(model)
    fold_spellings(model.model.embed_tokens)
    model.eval()
    with torch.no_grad():
        train_nll = float(block_loss(model, blocks_NT[: config.batch_blocks]))
    saved = run.save_result(model, loaded, adapter_on=None)
    rows = _held_out(loaded, valid_texts, shape.max_positions)
    rows = _new_to(blocks_NT, rows, valid_texts, log)
    sums, guesses = nll_sums(model, rows, loaded.pad_id), token_shares_nll(blocks_NT, rows, loaded.vocab_size)
    told = told_nll(sums, guesses, "shares of tokens", rows, [(row.completion,) for row in rows])
    return LmResult(saved, train_nll, told.value, blocks_NT[:, 1:].numel(), total, told.n, told)


def _new_to(blocks_NT: Tensor, rows: Sequence[Example], texts: Path, log: Log) -> list[Example]:
    """Return the held-out texts that the training texts do not hold, and say how many they do."""
    # As the blocks were cut from one stream, a text that two of them share is found as well.
    seen = leaked(blocks_NT.flatten().numpy(), [row.completion for row in rows])
    if any(seen):
        log(
            1.0,
            f"{texts}: {sum(seen)} of {len(rows)} held-out texts stand among the training texts, whole or for the most "
            "part: they are not measured",
        )
    return [row for row, was_seen in zip(rows, seen, strict=True) if not was_seen]


def token_shares_nll(blocks_NT: Tensor, rows: Sequence[Example], vocab_size: int) -> list[float]:
    """Return the NLL of each row's completion, summed, by who knows how common each token is and no more.

    Every token counts once more than it was seen.
    """
    count_V = torch.bincount(blocks_NT.flatten(), minlength=vocab_size).double() + 1
    nll_V = -(count_V / count_V.sum()).log()
    return [float(nll_V[list(row.completion)].sum()) for row in rows]


def _start(config: PretrainConfig, shape: ModelConfig, tokenizer: Tokenizer, seed: int) -> CausalLM:
    """Return the model before its first step, on its device."""
    model = CausalLM(SHAPES[shape.kind](shape, tokenizer.vocab_size))
    init_weights(model, stream_seed(seed, "init"))
    placement = Placement.of(config)
    model.to(placement.device).model.compute_dtype = placement.dtype
    model.model.dropout = config.dropout
    if config.activation_checkpointing:
        recompute_activations(model.model)
    if config.share_spellings:
        share_spellings(model.model.embed_tokens, tokenizer)
    return model


def _read_blocks(config: PretrainConfig, tokenizer: Tokenizer, texts: Path) -> Tensor:
    """Return the texts as blocks of tokens ``(N, T)``. Raises DataError where they do not fill one batch."""
    blocks_NT = pack_blocks(tokenizer.encode_prompts(read_texts(texts)), tokenizer.end_id, config.block_tokens)
    if len(blocks_NT) < config.batch_blocks:
        raise DataError(
            f"the texts fill only {len(blocks_NT)} blocks of {config.block_tokens} tokens",
            where=str(texts),
            why=f"a batch needs {config.batch_blocks}",
            hint="give more text, or lower pretrain.batch_blocks or pretrain.block_tokens",
        )
    return blocks_NT


def _held_out(tokenizer: Tokenizer, texts: Path, max_positions: int) -> list[Example]:
    """Return the texts whose likelihood is measured, each cut to the model's context."""
    end = tokenizer.end_id
    # Behind an end token, as each text stands in the blocks: its first token counts too.
    return [Example((end,), (*ids, end)[:max_positions]) for ids in tokenizer.encode_prompts(read_texts(texts))]


def decoder_config(shape: ModelConfig, vocab_size: int) -> DecoderConfig:
    """Return the decoder that a recipe's model section describes."""
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
    """Return the LSTM that a recipe's model section describes."""
    return LstmConfig(vocab_size, shape.width, shape.layers, shape.max_positions)


#: What each ``model.kind`` of a recipe means.
SHAPES: Mapping[ModelKind, Callable[[ModelConfig, int], Shape]] = {
    "llama": decoder_config,
    "lstm": lstm_config,
}
