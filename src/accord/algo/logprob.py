"""Log-probabilities of chosen tokens without ever holding logits of all positions.

A vocabulary head that is frozen costs no gradient of its own.

Shapes: N positions, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# 256 rows of an 8k vocabulary in fp32 are 8 MB: the chunk stays in the cache of one core.
CHUNK_ENTRIES = 2_097_152


def _chunks(num_rows: int, vocabulary: int) -> range:
    return range(0, num_rows, max(1, CHUNK_ENTRIES // vocabulary))


class _TokenLogp(torch.autograd.Function):
    """Forward keeps the inputs only; backward rebuilds each chunk's softmax."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor, temperature: float, want_entropy: bool
    ) -> tuple[Tensor, Tensor]:
        N, V = hidden_ND.shape[0], weight_VD.shape[0]
        logp_N, entropy_N = (hidden_ND.new_zeros(N, dtype=torch.float32) for _ in range(2))
        step = _chunks(N, V).step
        for start in _chunks(N, V):
            rows = slice(start, start + step)
            log_probs = torch.log_softmax(_logits(hidden_ND[rows], weight_VD, temperature), dim=-1)
            logp_N[rows] = log_probs.gather(1, target_N[rows, None]).squeeze(1)
            if want_entropy:
                entropy_N[rows] = -(log_probs.exp().mul_(log_probs)).sum(-1)
        ctx.save_for_backward(hidden_ND, weight_VD, target_N)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy_N)
        return logp_N, entropy_N

    @staticmethod
    def backward(ctx: Any, grad_logp_N: Tensor, _: Any) -> tuple[Tensor, Tensor | None, None, None, None]:
        hidden_ND, weight_VD, target_N = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden_ND)
        grad_weight = torch.zeros(weight_VD.shape, device=hidden_ND.device) if ctx.needs_input_grad[1] else None
        N, V = hidden_ND.shape[0], weight_VD.shape[0]
        step = _chunks(N, V).step
        for start in _chunks(N, V):
            rows = slice(start, start + step)
            scale = grad_logp_N[rows] / ctx.temperature
            grad = torch.softmax(_logits(hidden_ND[rows], weight_VD, ctx.temperature), dim=-1).mul_(-scale[:, None])
            grad[torch.arange(grad.shape[0]), target_N[rows]] += scale
            grad = grad.to(hidden_ND.dtype)
            grad_hidden[rows] = grad @ weight_VD
            if grad_weight is not None:
                grad_weight += grad.T @ hidden_ND[rows]
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight_VD.dtype), None, None, None


class _TokenNll(torch.autograd.Function):
    """Forward turns each chunk's logits into their gradient at once: backward need not build them again."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> Tensor:
        N, V = hidden_ND.shape[0], weight_VD.shape[0]
        device = hidden_ND.device
        grad_hidden = torch.empty_like(hidden_ND)
        grad_weight = torch.zeros(weight_VD.shape, device=device) if ctx.needs_input_grad[1] else None
        total = torch.zeros((), device=device)
        step = _chunks(N, V).step
        for start in _chunks(N, V):
            rows = slice(start, start + step)
            log_probs = torch.log_softmax(_logits(hidden_ND[rows], weight_VD, 1.0), dim=-1)
            total -= log_probs.gather(1, target_N[rows, None]).sum()
            grad = log_probs.exp_()
            grad[torch.arange(grad.shape[0]), target_N[rows]] -= 1.0
            grad = grad.to(hidden_ND.dtype)
            grad_hidden[rows] = grad @ weight_VD
            if grad_weight is not None:
                grad_weight += grad.T @ hidden_ND[rows]
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight.to(weight_VD.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad, None if grad_weight is None else grad_weight * grad, None


def _logits(hidden_ND: Tensor, weight_VD: Tensor, temperature: float) -> Tensor:
    logits_NV = (hidden_ND @ weight_VD.T).float()
    return logits_NV if temperature == 1.0 else logits_NV.div_(temperature)


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
