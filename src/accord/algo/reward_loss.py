"""Losses that make one score per completion out of judgements.

Shapes: N pairs, K completions of a group, S completions of a step (all groups one after the other).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def bradley_terry(chosen_N: Tensor, rejected_N: Tensor, probability_N: Tensor | float = 1.0) -> Tensor:
    """``-log sigmoid(chosen - rejected)`` per pair (Bradley & Terry 1952; Stiennon 2020, arXiv:2009.01325).

    With a probability below 1 (a soft label) it is the cross-entropy between that and the model's own.
    Computed as softplus, so that large gaps of either sign stay finite.
    """
    return F.softplus(rejected_N - chosen_N) + (1.0 - probability_N) * (chosen_N - rejected_N)


def group_pairs(
    ranks: Sequence[Sequence[float]], weights: Sequence[float] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """All strict pairs of each group, as indices into the groups' completions laid end to end.

    Each group's pairs share its weight equally, so that a group of K = 9 counts as much as one of K = 4
    (InstructGPT, arXiv:2203.02155, eq. 1). Ties give no pair; a group that is one single tie weighs nothing.

    Returns:
        ``chosen_N``, ``rejected_N`` (int64) and ``weight_N``, which sums to the weight of the groups with pairs.
    """
    chosen: list[int] = []
    rejected: list[int] = []
    weight: list[float] = []
    start = 0
    for index, group in enumerate(ranks):
        pairs = [(i, j) for i in range(len(group)) for j in range(len(group)) if group[i] < group[j]]
        chosen += [start + i for i, _ in pairs]
        rejected += [start + j for _, j in pairs]
        weight += [(weights[index] if weights else 1.0) / max(1, len(pairs))] * len(pairs)
        start += len(group)
    return torch.tensor(chosen, dtype=torch.long), torch.tensor(rejected, dtype=torch.long), torch.tensor(weight)


def ranking_loss(
    score_S: Tensor, chosen_N: Tensor, rejected_N: Tensor, weight_N: Tensor, total_weight: float, center_coef: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted Bradley-Terry over all pairs of the groups, plus ``center_coef * (r_w + r_l)^2`` on the same pairs.

    The second term keeps scores near 0, which pairs alone leave free (Eisenstein 2023, arXiv:2312.09244, eq. 2).

    Args:
        total_weight: Sum of weights over the whole step: micro-batches divided by it add up to the step's loss.

    Returns:
        The loss and, detached, pair accuracy and mean margin summed with the same weights.
    """
    chosen, rejected = score_S[chosen_N], score_S[rejected_N]
    terms = bradley_terry(chosen, rejected) + center_coef * (chosen + rejected) ** 2
    share_N = weight_N / total_weight
    gap = (chosen - rejected).detach()
    right = (gap > 0).float() + 0.5 * (gap == 0).float()
    return (share_N * terms).sum(), {"accuracy": (share_N * right).sum(), "margin": (share_N * gap).sum()}


def self_distillation(
    reading_SR: Tensor, chosen_N: Tensor, rejected_N: Tensor, weight_N: Tensor, total_weight: float
) -> Tensor:
    """Teaches the first of R readings of each text what the mean of all of them says, as soft labels of the pairs.

    The mean errs less than any one of them; it is detached. Hinton 2015 (arXiv:1503.02531), with the ensemble inside
    one network (Zhang 2019, arXiv:1905.08094).
    """
    teacher_S, student_S = reading_SR.detach().mean(1), reading_SR[:, 0]
    probability_N = torch.sigmoid(teacher_S[chosen_N] - teacher_S[rejected_N])
    terms_N = bradley_terry(student_S[chosen_N], student_S[rejected_N], probability_N)
    return (weight_N / total_weight * terms_N).sum()
