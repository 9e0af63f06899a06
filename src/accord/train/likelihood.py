"""Likelihoods that training and its measures share: of completions, of blocks of text, of demonstrations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from accord.algo.logprob import token_logp, token_nll
from accord.models.decoder import CausalLM
from accord.text.batches import Batch, Example, collate, example_buckets


@dataclass(frozen=True)
class LmResult:
    """Where the model is and how it did: mean negative log-likelihood in nats a counted token.

    ``num_held_out`` counts the texts behind ``valid_nll``; 0 where there were too few to hold any out, and what was
    learnt from was measured.
    """

    model: Path
    train_nll: float
    valid_nll: float
    num_tokens: int
    num_steps: int
    num_held_out: int = 0


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


@torch.no_grad()
def mean_nll(model: CausalLM, examples: Sequence[Example], pad_id: int, batch_tokens: int = 8192) -> float:
    """Return the mean negative log-likelihood of the tokens that count, in nats a token over all of them."""
    was_training = model.training
    model.eval()
    batches = [[examples[i] for i in b] for b in example_buckets(examples, batch_tokens)]
    total = sum(float(completion_nll(model, collate(batch, pad_id))) for batch in batches)
    model.train(was_training)
    # By the number of all tokens: a mean of batches' means would weigh short batches more.
    return total / max(1, sum(e.num_counted for e in examples))
