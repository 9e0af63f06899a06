"""Log-probabilities of chosen tokens without ever holding logits of all positions.

A vocabulary head that is frozen costs no gradient of its own.

Shapes: N positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from accord.algo.product import product

CHUNK_ENTRIES = 4_194_304  # 16 MB of fp32: the products are long enough, and a chunk stays in a large cache


def _chunks(hidden_ND: Tensor, weight_VD: Tensor) -> Iterator[slice]:
    """Rows to work on at once; never so few that adding up the weight's gradient costs more than computing it."""
    V, D = weight_VD.shape
    step = max(CHUNK_ENTRIES // V, D)
    for start in range(0, hidden_ND.shape[0], step):
        yield slice(start, start + step)


def _logits(hidden_ND: Tensor, weight_VD: Tensor, temperature: float) -> Tensor:
    logits_NV = product(hidden_ND, weight_VD).float()
    return logits_NV if temperature == 1.0 else logits_NV.div_(temperature)


def _logp(logits_NV: Tensor, probs_NV: Tensor | None, target_N: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities, in place of the logits unless a tensor is given, and the log-probabilities of the targets.

    The log of the sum comes from the likeliest token, whose probability is at least 1/V: nothing underflows.
    """
    at_N, top_N = logits_NV.gather(1, target_N[:, None]).squeeze(1), logits_NV.amax(-1)
    probs_NV = torch.softmax(logits_NV, -1, out=logits_NV if probs_NV is None else probs_NV)
    return probs_NV, at_N - top_N + probs_NV.amax(-1).log_()


class _Gradients:
    """Gradients of ``sum(scale_N * -logp_N)`` for hidden states and head, summed up chunk by chunk."""

    def __init__(self, hidden_ND: Tensor, weight_VD: Tensor, *, of_weight: bool) -> None:
        self.hidden_ND, self.weight_VD = hidden_ND, weight_VD
        self.of_hidden = torch.empty_like(hidden_ND)
        self.of_weight = torch.zeros(weight_VD.shape, device=hidden_ND.device) if of_weight else None

    def add(self, rows: slice, probs_NV: Tensor, target_N: Tensor, scale_N1: Tensor | None = None) -> None:
        """Take in a chunk; overwrites the probabilities. The scale is applied to the narrow side of each product."""
        probs_NV[torch.arange(len(target_N), device=target_N.device), target_N] -= 1.0
        away_NV, hidden_ND = probs_NV.to(self.hidden_ND.dtype), self.hidden_ND[rows]
        grad_ND = product(away_NV, self.weight_VD.T)
        if scale_N1 is not None:
            grad_ND, hidden_ND = grad_ND * scale_N1, (hidden_ND * scale_N1).to(hidden_ND.dtype)
        self.of_hidden[rows] = grad_ND
        if self.of_weight is None:
            return
        if away_NV.dtype == self.of_weight.dtype:
            self.of_weight.addmm_(away_NV.T, hidden_ND)
        else:
            self.of_weight += away_NV.T @ hidden_ND

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
            logits, target = _logits(hidden_ND[rows], weight_VD, temperature), target_N[rows]
            probs, logp_N[rows] = _logp(logits, torch.empty_like(logits) if want_entropy else None, target)
            if want_entropy:  # -sum p (x - log z), and log z = x - log p at the target
                at_target = logits.gather(1, target[:, None]).squeeze(1)
                entropy_N[rows] = at_target - logp_N[rows] - torch.linalg.vecdot(probs, logits)
        ctx.save_for_backward(hidden_ND, weight_VD, target_N)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy_N)
        return logp_N, entropy_N

    @staticmethod
    def backward(ctx: Any, grad_logp_N: Tensor, _: Any) -> tuple[Tensor, Tensor | None, None, None, None]:
        hidden_ND, weight_VD, target_N = ctx.saved_tensors
        sums = _Gradients(hidden_ND, weight_VD, of_weight=ctx.needs_input_grad[1])
        for rows in _chunks(hidden_ND, weight_VD):
            probs, _unused = _logp(_logits(hidden_ND[rows], weight_VD, ctx.temperature), None, target_N[rows])
            sums.add(rows, probs, target_N[rows], -grad_logp_N[rows, None] / ctx.temperature)
        return sums.of_hidden, sums.weight_as(weight_VD.dtype), None, None, None


class _TokenNll(torch.autograd.Function):
    """Forward turns each chunk's logits into their gradient at once: backward need not build them again."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> Tensor:
        sums = _Gradients(hidden_ND, weight_VD, of_weight=ctx.needs_input_grad[1])
        total = torch.zeros((), device=hidden_ND.device)
        for rows in _chunks(hidden_ND, weight_VD):
            probs, logp_N = _logp(_logits(hidden_ND[rows], weight_VD, 1.0), None, target_N[rows])
            total -= logp_N.sum()
            sums.add(rows, probs, target_N[rows])
        ctx.save_for_backward(sums.of_hidden, sums.weight_as(weight_VD.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad, None if grad_weight is None else grad_weight * grad, None


def token_logp(
    hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor, temperature: float = 1.0, *, entropy: bool = False
) -> tuple[Tensor, Tensor]:
    """log softmax(hidden @ weight.T / temperature) at the target tokens, and the entropy of each position.

    Computed in chunks with its own backward pass: no ``N x V`` tensor exists for more than one chunk.

    Returns:
        ``logp_N`` in nats, differentiable; ``entropy_N`` in nats, detached, zeros unless asked for. Both fp32.
    """
    logp_N, entropy_N = _TokenLogp.apply(hidden_ND, weight_VD, target_N, temperature, entropy)  # type: ignore[no-untyped-call]
    return logp_N, entropy_N


def token_nll(hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> Tensor:
    """The sum of -log softmax(hidden @ weight.T) at the target tokens: a scalar in nats, fp32, differentiable.

    As ``-token_logp(...)[0].sum()`` at temperature 1, with three products of logits size instead of four: where all
    tokens weigh the same, the gradient is known before the backward pass (Hsu et al. 2024, arXiv:2410.10989, 3.2).
    """
    if not torch.is_grad_enabled():
        return -token_logp(hidden_ND, weight_VD, target_N)[0].sum()
    total: Tensor = _TokenNll.apply(hidden_ND, weight_VD, target_N)  # type: ignore[no-untyped-call]
    return total
