"""Log-probabilities of chosen tokens without ever holding logits of all positions.

A vocabulary head that is frozen costs no gradient of its own.

Shapes: N positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from accord.algo.product import product, sum_of_outer
from accord.algo.shapes import shaped

CHUNK_ENTRIES = 4_194_304  # logits at once, or 256 rows of a large vocabulary
PIECE_ENTRIES = 1_048_576  # logits that are exponentiated at once: 4 MB stay in a cache
GPU_ENTRIES = 67_108_864  # both on a GPU, which wants few large kernels: 256 MB in fp32


def _chunks(hidden_ND: Tensor, weight_VD: Tensor) -> Iterator[slice]:
    """Yield the rows to work on at once.

    256 or more, else adding up the weight's gradient would cost more than computing it.
    """
    entries = CHUNK_ENTRIES if weight_VD.device.type == "cpu" else GPU_ENTRIES
    step = max(entries // weight_VD.shape[0], 256)
    for start in range(0, hidden_ND.shape[0], step):
        yield slice(start, start + step)


def _pieces(logits_NV: Tensor) -> Iterator[slice]:
    """Yield the rows of a chunk to exponentiate at once."""
    entries = PIECE_ENTRIES if logits_NV.device.type == "cpu" else GPU_ENTRIES
    step = max(1, entries // logits_NV.shape[1])
    for start in range(0, len(logits_NV), step):
        yield slice(start, start + step)


def _softmax_gap(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    target_N: Tensor,
    temperature: float,
    entropy_N: Tensor | None = None,
    *,
    keep: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return softmax minus one-hot targets, ``(N, V)``, and the targets' log-probabilities in fp32.

    It runs in fp32, over a few rows at a time that stay in the cache, and takes the place of the logits, in their type.
    Unless it is kept, only the log-probabilities mean anything.
    The log of the sum comes from the likeliest token, whose probability is at least 1/V: nothing underflows.
    """
    out_NV = product(hidden_ND, weight_VD)
    logp_N = torch.empty(len(target_N), device=out_NV.device)
    for rows in _pieces(out_NV):
        # fp32 whatever the product ran in: rounded to bf16, ratios of sampler and learner spread by .05, and PPO clips
        # 3 % of the tokens before it has learnt anything (Hugging Face's RLOO notes).
        logits, target = out_NV[rows].float(), target_N[rows, None]
        if temperature != 1.0:
            logits.div_(temperature)
        at, top = logits.gather(1, target).squeeze(1), logits.amax(-1)
        probs = torch.softmax(logits, -1, out=None if entropy_N is not None else logits)
        # log z = x_top - log p_top: no second pass over the vocabulary.
        log_sum = top - probs.amax(-1).log_()
        logp_N[rows] = at - log_sum
        if entropy_N is not None:  # -sum p log p = log z - sum p x
            entropy_N[rows] = log_sum - torch.linalg.vecdot(probs, logits)
        if not keep:
            continue
        # The gradient of -log p by the logits.
        probs.scatter_add_(1, target, probs.new_full(target.shape, -1.0))
        if probs.dtype != out_NV.dtype or entropy_N is not None:  # else they stand there already
            out_NV[rows] = probs
    return out_NV, logp_N


def _logits_gradient(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    target_N: Tensor,
    temperature: float,
    grad_logp_N: Tensor,
    grad_entropy_N: Tensor,
) -> Tensor:
    """Return the gradient by the logits, ``(N, V)``, of ``sum(grad_logp * logp + grad_entropy * entropy)``.

    With p the softmax and H its entropy: ``grad_logp * (one-hot - p) - grad_entropy * p * (log p + H)``, over the
    temperature.
    """
    out_NV = product(hidden_ND, weight_VD)
    for rows in _pieces(out_NV):
        logp = torch.log_softmax(out_NV[rows].float() / temperature, -1)
        probs = logp.exp()
        entropy = -torch.linalg.vecdot(probs, logp)
        by_entropy, by_logp = grad_entropy_N[rows, None], grad_logp_N[rows, None]
        gradient = probs * (-by_entropy * (logp + entropy[:, None]) - by_logp)
        gradient.scatter_add_(1, target_N[rows, None], by_logp)
        out_NV[rows] = gradient / temperature
    return out_NV


class _Gradients:
    """Gradients of ``sum(scale_N * -logp_N)`` for hidden states and head, summed up chunk by chunk."""

    def __init__(self, hidden_ND: Tensor, weight_VD: Tensor, *, of_weight: bool) -> None:
        self.hidden_ND, self.weight_VD = hidden_ND, weight_VD
        self.of_hidden = torch.empty_like(hidden_ND)
        # fp32: chunk after chunk is added, and in bf16 each sum would lose what is below 1/256 of it.
        self.of_weight = torch.zeros(weight_VD.shape, device=hidden_ND.device) if of_weight else None

    def add(self, rows: slice, gap_NV: Tensor, scale_N1: Tensor | None = None) -> None:
        """Take in a chunk. The scale is applied to the narrow side of each product."""
        grad_ND, hidden_ND = product(gap_NV, self.weight_VD.T), self.hidden_ND[rows]
        if scale_N1 is not None:
            # N x D numbers, where scaling the gap would pass over N x V.
            grad_ND, hidden_ND = grad_ND * scale_N1, (hidden_ND * scale_N1).to(hidden_ND.dtype)
        self.of_hidden[rows] = grad_ND
        if self.of_weight is None:
            return
        if gap_NV.dtype == self.of_weight.dtype:
            self.of_weight.addmm_(gap_NV.T, hidden_ND)
        else:
            self.of_weight += sum_of_outer(gap_NV, hidden_ND)

    def weight_as(self, dtype: torch.dtype) -> Tensor | None:
        return None if self.of_weight is None else self.of_weight.to(dtype)


class _TokenLogp(torch.autograd.Function):
    """Forward keeps the inputs only; backward rebuilds each chunk's softmax."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor, temperature: float, want_entropy: bool
    ) -> tuple[Tensor, Tensor]:
        logp_N, entropy_N = (hidden_ND.new_zeros(hidden_ND.shape[0], dtype=torch.float32) for _ in range(2))
        for rows in _chunks(hidden_ND, weight_VD):
            wanted = entropy_N[rows] if want_entropy else None
            _, logp_N[rows] = _softmax_gap(hidden_ND[rows], weight_VD, target_N[rows], temperature, wanted, keep=False)
        ctx.save_for_backward(hidden_ND, weight_VD, target_N)
        ctx.temperature = temperature
        # None instead of zeros for an output that nobody used: only a real gradient of the entropy is worth its pass.
        ctx.set_materialize_grads(False)
        return logp_N, entropy_N

    @staticmethod
    def backward(
        ctx: Any, grad_logp_N: Tensor | None, grad_entropy_N: Tensor | None
    ) -> tuple[Tensor, Tensor | None, None, None, None]:
        hidden_ND, weight_VD, target_N = ctx.saved_tensors
        grad_logp_N = target_N.new_zeros(len(target_N), dtype=torch.float32) if grad_logp_N is None else grad_logp_N
        sums = _Gradients(hidden_ND, weight_VD, of_weight=ctx.needs_input_grad[1])
        for rows in _chunks(hidden_ND, weight_VD):
            inputs = hidden_ND[rows], weight_VD, target_N[rows], ctx.temperature
            if grad_entropy_N is None:
                gap, _ = _softmax_gap(*inputs)
                sums.add(rows, gap, -grad_logp_N[rows, None] / ctx.temperature)
            else:
                sums.add(rows, _logits_gradient(*inputs, grad_logp_N[rows], grad_entropy_N[rows]))
        return sums.of_hidden, sums.weight_as(weight_VD.dtype), None, None, None


class _TokenNll(torch.autograd.Function):
    """Forward turns each chunk's logits into their gradient at once: backward need not build them again."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> Tensor:
        sums = _Gradients(hidden_ND, weight_VD, of_weight=ctx.needs_input_grad[1])
        total = torch.zeros((), device=hidden_ND.device)
        for rows in _chunks(hidden_ND, weight_VD):
            gap, logp_N = _softmax_gap(hidden_ND[rows], weight_VD, target_N[rows], 1.0)
            total -= logp_N.sum()
            sums.add(rows, gap)
        ctx.save_for_backward(sums.of_hidden, sums.weight_as(weight_VD.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad, None if grad_weight is None else grad_weight * grad, None


@shaped
def token_logp(
    hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor, temperature: float = 1.0, *, entropy: bool = False
) -> tuple[Tensor, Tensor]:
    """Return log softmax(hidden @ weight.T / temperature) at the target tokens, and the entropy of each position.

    Computed in chunks with its own backward pass: no ``N x V`` tensor exists for more than one chunk.

    Returns:
        ``logp_N`` and ``entropy_N`` in nats, fp32 and differentiable; the latter zeros unless asked for.
    """
    logp_N, entropy_N = _TokenLogp.apply(hidden_ND, weight_VD, target_N, temperature, entropy)  # type: ignore[no-untyped-call]
    return logp_N, entropy_N


@shaped
def token_nll(hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> Tensor:
    """Return the sum of -log softmax(hidden @ weight.T) at the target tokens, in nats, fp32 and differentiable.

    As ``-token_logp(...)[0].sum()`` at temperature 1, with three products of logits size instead of four: where all
    tokens weigh the same, the gradient is known before the backward pass (Hsu et al. 2024, arXiv:2410.10989, 3.2).
    """
    if not torch.is_grad_enabled():
        # The other way prepares gradients, here for nobody.
        return -token_logp(hidden_ND, weight_VD, target_N)[0].sum()
    total: Tensor = _TokenNll.apply(hidden_ND, weight_VD, target_N)  # type: ignore[no-untyped-call]
    return total
