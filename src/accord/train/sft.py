"""The sft stage: demonstrations in, a policy that writes completions like theirs out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from accord.config import SftConfig
from accord.errors import DataError
from accord.formats.stage_rows import Conversation, at_row, read_lessons
from accord.lock import writes_alone
from accord.models.backbone import recompute_activations
from accord.models.decoder import CausalLM
from accord.models.folder import load_policy
from accord.models.lora import add_lora
from accord.models.placement import Placement
from accord.progress import Log, quiet
from accord.ranks import ONE_PROCESS, Ranks
from accord.seeds import stream_seed
from accord.text.batches import Example, bucketed, collate, length_buckets
from accord.text.chat import encode_chat
from accord.text.tokenizer import Tokenizer
from accord.train.held_out import every_nth, hold_out, none_held_out, was_held_out
from accord.train.learner import Learner
from accord.train.likelihood import LIKELY, LmResult, completion_nll, mean_nll, nll_sums, told_nll
from accord.train.training_run import Steps, TrainingRun

NLL_ROWS = 400  # demonstrations that a likelihood is measured on after fine-tuning: enough for 2 %


@writes_alone
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
    """Fine-tune a policy on demonstrations ``{"prompt", "completion"}``: loss on completion and end token only.

    Of conversations ``{"messages"}`` the assistant's turns count.

    Without ``valid_data`` every twentieth row is held out. Writes ``output_dir/model`` and ``metrics.jsonl``; with an
    adapter the model is merged, and ``output_dir/adapter`` holds the adapter alone.
    """
    run = TrainingRun(output_dir, seed, resume, log)
    policy, tokenizer = _start(config, model, seed)
    train, valid = _read_split(config, policy, tokenizer, data, valid_data, log)
    batches = _batches(config, train, seed)
    learner = Learner({"policy": policy}, {"policy": config.optim}, len(batches))

    def step_fn(step: int) -> dict[str, float]:
        batch = [train[i] for i in batches[step]]
        return learner.update(sft_losses(policy, batch, tokenizer.pad_id, config.micro_batch_tokens, learner.ranks))

    apart = every_nth(valid, NLL_ROWS)
    # Before a checkpoint is restored: this is the model that was given.
    start = nll_sums(policy, apart, tokenizer.pad_id)
    policy.train()
    identity = run.identity({"model": model, "data": data}, config=config)
    run.train(learner, step_fn, Steps(len(batches), config.checkpoint_every), identity=identity)
    policy.eval()
    saved = run.save_result(policy, tokenizer, adapter_on=model if config.lora.rank else None)
    train_nll = mean_nll(policy, every_nth(train, NLL_ROWS), tokenizer.pad_id)
    num_tokens = sum(train[i].num_counted for batch in batches for i in batch)
    told = none_held_out(LIKELY)
    if was_held_out(train, valid):
        sums = nll_sums(policy, apart, tokenizer.pad_id)
        told = told_nll(sums, start, "the model that was given", apart, _names(apart))
    return LmResult(saved, train_nll, told.value, num_tokens, len(batches), told.n, told)


def _start(config: SftConfig, model: Path, seed: int) -> tuple[CausalLM, Tokenizer]:
    """Return the policy before its first step, with what trains of it, and its tokenizer."""
    policy, tokenizer = load_policy(model, Placement.of(config))
    policy.model.dropout = config.dropout
    if config.activation_checkpointing:
        recompute_activations(policy.model)
    add_lora(policy, config.lora, stream_seed(seed, "lora"))
    return policy, tokenizer


def _read_split(
    config: SftConfig, policy: CausalLM, tokenizer: Tokenizer, data: Path, valid_data: Path | None, log: Log
) -> tuple[Sequence[Example], Sequence[Example]]:
    """Return the demonstrations to learn from and the held-out ones; of very few the first serves for both."""
    limit = min(config.max_tokens, policy.config.max_positions)
    rows = _demonstrations(tokenizer, data, limit, log)
    if valid_data is not None:
        return rows, _demonstrations(tokenizer, valid_data, limit, log)
    # What comes before the first words to learn: the prompt, of a conversation its beginning.
    return hold_out(rows, _names(rows))


def _names(rows: Sequence[Example]) -> list[tuple[tuple[int, ...], ...]]:
    """Return what each demonstration shares with others: its prompt, where it has one."""
    return [(row.prompt,) if row.prompt else () for row in rows]


def _batches(config: SftConfig, rows: Sequence[Example], seed: int) -> list[list[int]]:
    """Return the rows of every step; of a last epoch that is not whole, its first steps."""
    lengths, whole = [len(row) for row in rows], math.ceil(config.epochs)
    batches = [
        batch
        for epoch in range(whole)
        for batch in length_buckets(lengths, config.batch_tokens, stream_seed(seed, "order", epoch))
    ]
    # Cut by steps, so that the schedule ends where the training does.
    return batches[: max(1, round(len(batches) * config.epochs / whole))]


def _demonstrations(tokenizer: Tokenizer, path: Path, max_tokens: int, log: Log) -> list[Example]:
    """Return the demonstrations of a file that are no longer than the limit; the log says how many were left out."""
    rows = [lesson_example(tokenizer, lesson) for lesson in read_lessons(path)]
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


def lesson_example(tokenizer: Tokenizer, lesson: tuple[str, str] | Conversation) -> Example:
    """Return a demonstration as ids, with the mask of what counts."""
    if not isinstance(lesson, Conversation):
        return demonstration_example(tokenizer, *lesson)
    # A template's complaint names the row that it was given.
    with at_row(lesson.where):
        return encode_chat(tokenizer, lesson.messages, lesson.counted_from)


def demonstration_example(tokenizer: Tokenizer, prompt: str, completion: str) -> Example:
    """Return a prompt and a finished completion as ids, the end token among the completion's."""
    head, tail = tokenizer.encode_pair(prompt, completion)
    return Example(tuple(head), (*tail, tokenizer.end_id))


def sft_losses(
    policy: CausalLM, rows: Sequence[Example], pad_id: int, micro_batch_tokens: int, ranks: Ranks = ONE_PROCESS
) -> Iterator[Tensor]:
    """Yield micro-batch losses that sum to the mean over all counted tokens of the step, however it is split."""
    num_counted = sum(e.num_counted for e in rows)
    for micro, counts in ranks.share(rows, partial(bucketed, max_tokens=micro_batch_tokens), len):
        # By the step's own count: a mean of micro-batches' means would weigh short texts' tokens more.
        yield counts * completion_nll(policy, collate(micro, pad_id)) / num_counted
