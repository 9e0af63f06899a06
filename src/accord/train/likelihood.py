"""Likelihoods that training and its measures share: of completions, of blocks of text, of demonstrations."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from accord.algo.logprob import token_logp, token_nll
from accord.models.decoder import CausalLM
from accord.ranks import ONE_PROCESS, Ranks
from accord.text.batches import Batch, Example, collate, example_buckets
from accord.train.held_out import HeldOut, Measured

#: What each row shares with others.
SharedNames = Sequence[Iterable[Hashable]]


@dataclass(frozen=True)
class LmResult:
    """Where the model is and how it did: mean negative log-likelihood in nats a counted token.

    ``valid_nll`` is the number that ``held_out`` states with its interval and a baseline; None of too few texts, which
    ``num_held_out`` counts.
    """

    model: Path
    train_nll: float
    valid_nll: float | None
    num_tokens: int
    num_steps: int
    num_held_out: int
    held_out: HeldOut


def logp_and_entropy(
    model: CausalLM, batch: Batch, temperature: float = 1.0, *, entropy: bool = True
) -> tuple[Tensor, Tensor]:
    """Return log-probabilities of the counted tokens of a batch, ``(N,)`` in row order; differentiable.

    With them the entropy of each of those positions; zeros unless asked for.
    """
    logp_N, entropy_N = token_logp(*model.predictions(batch), temperature, entropy=entropy)
    return logp_N.cpu(), entropy_N.cpu()


def completion_nll(model: CausalLM, batch: Batch) -> Tensor:
    """Return the negative log-likelihood summed over the counted tokens of a batch, in nats; differentiable."""
    return token_nll(*model.predictions(batch))


def block_loss(model: CausalLM, rows_BT: Tensor) -> Tensor:
    """Return the mean next-token loss over whole blocks, in nats a token."""
    mask_BT = torch.ones_like(rows_BT, dtype=torch.bool)
    # Nothing predicts a block's first token: it was the last target of the block before.
    mask_BT[:, 0] = False
    length_B = torch.full((len(rows_BT),), rows_BT.shape[1])
    return completion_nll(model, Batch(rows_BT, mask_BT, length_B)) / rows_BT[:, 1:].numel()


def shared_block_losses(model: CausalLM, rows_BT: Tensor, ranks: Ranks = ONE_PROCESS) -> Iterator[Tensor]:
    """Yield what adds up to `block_loss` over the processes; of one process it is all of it."""
    for mine, counts in ranks.share(range(len(rows_BT)), lambda rows: [rows], lambda _: 1):
        part_BT = rows_BT if ranks.world == 1 else rows_BT[mine]
        yield block_loss(model, part_BT) * (counts * len(part_BT) / len(rows_BT))


def mean_nll(model: CausalLM, examples: Sequence[Example], pad_id: int, batch_tokens: int = 8192) -> float:
    """Return the mean negative log-likelihood of the tokens that count, in nats a token over all of them."""
    # By the number of all tokens: a mean of batches' means would weigh short batches more.
    return sum(nll_sums(model, examples, pad_id, batch_tokens)) / max(1, sum(e.num_counted for e in examples))


@torch.no_grad()
def nll_sums(model: CausalLM, examples: Sequence[Example], pad_id: int, batch_tokens: int = 8192) -> list[float]:
    """Return the negative log-likelihood of each example, summed over its tokens that count, in nats."""
    was_training = model.training
    model.eval()
    found = [0.0] * len(examples)
    for bucket in example_buckets(examples, batch_tokens):
        batch = [examples[i] for i in bucket]
        logp_N, _ = logp_and_entropy(model, collate(batch, pad_id), entropy=False)
        for i, part in zip(bucket, torch.split(logp_N, [e.num_counted for e in batch]), strict=True):
            found[i] = -float(part.sum())
    model.train(was_training)
    return found


LIKELY = "nats a token of held-out texts"


def told_nll(
    sums: Sequence[float], baseline: Sequence[float], baseline_is: str, rows: Sequence[Example], names: SharedNames
) -> HeldOut:
    """Return the NLL a token of rows from their sums, with its interval and that of a baseline."""
    counts = [max(1, row.num_counted) for row in rows]
    values, guesses = ([x / n for x, n in zip(xs, counts, strict=True)] for xs in (sums, baseline))
    return Measured(LIKELY, values, counts, guesses, baseline_is, names).told()
