"""From logits to tokens: exact draws by inverse CDF, and the truncations that serving offers.

Shapes: B rows alive, V vocabulary, N blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

# `torch.multinomial` draws an exponential for each entry of the vocabulary: 5.3 of the 14.6 ms of a step (32 rows of
# 8,192). Two levels with one uniform a row take 0.12 ms.
BLOCK = 64  # entries a block in the two-level draw


def draw_tokens(logits_BV: Tensor, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return one token a row by inverse CDF in two levels (sum blocks, pick a block, then inside it), and its log-prob.

    Exact for the softmax of the logits up to fp32 rounding; needs one uniform a row.
    """
    B, V = logits_BV.shape
    # What the blocks leave of the vocabulary is a shorter one at the end.
    weight_BV, whole = torch.softmax(logits_BV, -1), V // BLOCK * BLOCK
    sum_BN = weight_BV[:, :whole].view(B, -1, BLOCK).sum(-1)
    if whole < V:
        sum_BN = torch.cat((sum_BN, weight_BV[:, whole:].sum(-1, keepdim=True)), dim=1)
    block_B, rest_B = _pick(sum_BN, uniform_B)
    column_BM = block_B[:, None] * BLOCK + torch.arange(BLOCK, device=logits_BV.device)
    weight_BM = weight_BV.gather(1, column_BM.clamp(max=V - 1)).masked_fill_(column_BM >= V, 0.0)
    inside_B, _ = _pick(weight_BM, rest_B)
    # The last block may be short, and rounding may carry a uniform past its end.
    token_B = (block_B * BLOCK + inside_B).clamp_(max=V - 1)
    # By the sum that was drawn from, not by 1: so the log-probability is that of the draw.
    return token_B, (weight_BV.gather(1, token_B[:, None]).squeeze(1) / sum_BN.sum(-1)).log()


def _pick(weight_BN: Tensor, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return the index whose share of the row's weight holds the uniform, and the uniform rescaled inside it."""
    edge_BN = weight_BN.cumsum(-1)
    point_B = uniform_B * edge_BN[:, -1]
    index_B = (edge_BN <= point_B[:, None]).sum(-1).clamp_(max=weight_BN.shape[1] - 1)
    width_B = weight_BN.gather(1, index_B[:, None]).squeeze(1)
    start_B = edge_BN.gather(1, index_B[:, None]).squeeze(1) - width_B
    # Below 1, so that the next level cannot fall off the end of its block; of a width of 0 nothing is drawn.
    return index_B, ((point_B - start_B) / width_B.clamp_min(1e-30)).clamp_(0.0, 1.0 - 1e-7)


def truncate(logits_BV: Tensor, top_k: int, top_p: float) -> Tensor:
    """Return the logits with all but the k likeliest tokens at -inf, and of those all outside the nucleus.

    The nucleus is the smallest set of likeliest tokens whose probability reaches ``top_p`` (Holtzman 2019,
    arXiv:1904.09751); it holds at least one. ``top_k`` 0 and ``top_p`` 1 leave all.
    """
    V = logits_BV.shape[1]
    if top_k == 1:  # the likeliest, of equal ones the first, as below; sorting 49,152 logits takes milliseconds a row
        kept_B1 = logits_BV.argmax(dim=-1, keepdim=True)
        return torch.full_like(logits_BV, float("-inf")).scatter(1, kept_B1, logits_BV.gather(1, kept_B1))
    # stable: equal logits fall out alike on every machine
    sorted_BV, order_BV = logits_BV.sort(dim=-1, descending=True, stable=True)
    dropped_BV = torch.zeros_like(sorted_BV, dtype=torch.bool)
    if 0 < top_k < V:
        dropped_BV[:, top_k:] = True
    if top_p < 1:
        probs_BV = sorted_BV.masked_fill(dropped_BV, float("-inf")).softmax(-1)
        # The sum before each token: the one that reaches top_p stays in, so at least one does.
        dropped_BV |= probs_BV.cumsum(-1) - probs_BV >= top_p
    return logits_BV.masked_fill(torch.zeros_like(dropped_BV).scatter(1, order_BV, dropped_BV), float("-inf"))
