"""Log-probabilities of chosen tokens without ever holding logits of all positions.

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
    """Forward keeps the log-normaliser only; backward rebuilds each chunk's softmax."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor, temperature: float, want_entropy: bool
    ) -> tuple[Tensor, Tensor]:
        N, V = hidden_ND.shape[0], weight_VD.shape[0]
        logp_N, entropy_N, norm_N = (hidden_ND.new_zeros(N, dtype=torch.float32) for _ in range(3))
        step = _chunks(N, V).step
        for start in _chunks(N, V):
            rows = slice(start, start + step)
            logits = (hidden_ND[rows] @ weight_VD.T).float().div_(temperature)
            norm = torch.logsumexp(logits, dim=-1)
            norm_N[rows] = norm
            logp_N[rows] = logits.gather(1, target_N[rows, None]).squeeze(1) - norm
            if want_entropy:
                log_probs = logits.sub_(norm[:, None])
                entropy_N[rows] = -(log_probs.exp().mul_(log_probs)).sum(-1)
        ctx.save_for_backward(hidden_ND, weight_VD, target_N, norm_N)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy_N)
        return logp_N, entropy_N

    @staticmethod
    def backward(ctx: Any, grad_logp_N: Tensor, _: Any) -> tuple[Tensor, Tensor, None, None, None]:
        hidden_ND, weight_VD, target_N, norm_N = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden_ND)
        grad_weight = torch.zeros(weight_VD.shape, dtype=torch.float32)
        N, V = hidden_ND.shape[0], weight_VD.shape[0]
        step = _chunks(N, V).step
        for start in _chunks(N, V):
            rows = slice(start, start + step)
            logits = (hidden_ND[rows] @ weight_VD.T).float().div_(ctx.temperature)
            grad = logits.sub_(norm_N[rows, None]).exp_().neg_()
            grad[torch.arange(grad.shape[0]), target_N[rows]] += 1.0
            grad.mul_(grad_logp_N[rows, None] / ctx.temperature)
            grad = grad.to(hidden_ND.dtype)
            grad_hidden[rows] = grad @ weight_VD
            grad_weight += grad.T @ hidden_ND[rows]
        return grad_hidden, grad_weight.to(weight_VD.dtype), None, None, None


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
