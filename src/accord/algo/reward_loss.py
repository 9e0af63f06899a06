"""Losses that make one score per completion out of judgements.

A loss sees a micro-batch of whole groups and is a sum over what counts, divided by the weight of the whole step: so
micro-batches add up.

Shapes: G groups, K completions of a group, S completions of a micro-batch (all groups one after the other), N pairs,
T tokens of the longest text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from accord.algo.shapes import check_fields, elementwise, shaped

#: Llama 2 (arXiv:2307.09288, appendix): how far apart two scores should lie, by what the annotator said of the pair.
MARGINS: Mapping[str, Mapping[str, float]] = {
    # By strength their reward model was right in 79.1, 66.9, 59.8 and 54.5 % without any margin.
    "small": {"significantly": 1.0, "better": 2 / 3, "slightly": 1 / 3, "negligibly": 0.0},
    "large": {"significantly": 3.0, "better": 2.0, "slightly": 1.0, "negligibly": 0.0},
}


@dataclass(frozen=True)
class Pairs:
    """The pairs that the groups' ranks make, as indices of completions.

    The chosen one is better with ``probability_N`` (a tie: 0.5), and should score ``margin_N`` more.
    """

    chosen_N: Tensor
    rejected_N: Tensor
    weight_N: Tensor
    probability_N: Tensor
    margin_N: Tensor

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Positions:
    """The texts and what the head says at each of their tokens, padded on the right; ``length_S`` counts real ones."""

    ids_ST: Tensor
    value_ST: Tensor
    length_S: Tensor

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Judgements:
    """A micro-batch: the scores of its completions, and what annotators said of them. See `judgements`.

    Attributes:
        score_S: What trains.
        group_S: Which group a completion belongs to.
        rank_S: 1 = best; equal ranks of one group are a tie.
        weight_G: How much each group counts.
        target_S: A label (1 good, 0 bad) or a rating; 0 where there is none.
        positions: For losses that read more than the end token.
    """

    score_S: Tensor
    group_S: Tensor
    rank_S: Tensor
    weight_G: Tensor
    pairs: Pairs
    target_S: Tensor
    positions: Positions | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def weight_S(self) -> Tensor:
        """The groups' weights, each shared equally by its completions."""
        size_G = torch.bincount(self.group_S, minlength=len(self.weight_G))
        return (self.weight_G / size_G)[self.group_S]


# -- judgements --------------------------------------------------------------------------------------------------------


def group_pairs(
    ranks: Sequence[Sequence[float]], weights: Sequence[float] | None = None, *, half_ties: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Return all strict pairs of each group, as indices into the groups' completions laid end to end.

    Each group's pairs share its weight equally, so that a group of K = 9 counts as much as one of K = 4
    (InstructGPT, arXiv:2203.02155, eq. 1). Ties give no pair, and a group that is one single tie weighs nothing; with
    ``half_ties`` a tie is a pair too, in the order of its places.

    Returns:
        ``chosen_N``, ``rejected_N`` (int64) and ``weight_N``, which sums to the weight of the groups with pairs.
    """
    chosen: list[int] = []
    rejected: list[int] = []
    weight: list[float] = []
    start = 0
    for index, group in enumerate(ranks):
        pairs = [
            (i, j)
            for i in range(len(group))
            for j in range(len(group))
            if group[i] < group[j] or (half_ties and group[i] == group[j] and i < j)
        ]
        chosen += [start + i for i, _ in pairs]
        rejected += [start + j for _, j in pairs]
        # A mean over the group's pairs: K completions stand in K - 1 pairs each, and a sum would let rankings of 9 (36
        # pairs) drown those of 4 (6).
        weight += [(weights[index] if weights else 1.0) / max(1, len(pairs))] * len(pairs)
        start += len(group)
    return torch.tensor(chosen, dtype=torch.long), torch.tensor(rejected, dtype=torch.long), torch.tensor(weight)


@shaped
def judgements(
    score_S: Tensor,
    ranks: Sequence[Sequence[float]],
    weights: Sequence[float] | None = None,
    *,
    probabilities: Sequence[float] | None = None,
    margins: Sequence[float] | None = None,
    targets: Sequence[float] | None = None,
    half_ties: bool = False,
    positions: Positions | None = None,
) -> Judgements:
    """Make a micro-batch of judgements out of plain numbers.

    Args:
        ranks: One list a group; a completion that was judged alone is a group of one.
        weights: One a group; None: 1.
        probabilities: One a group: how sure it is that its better completions are better (soft labels); None: 1.
        margins: One a group: how much more they should score; None: 0.
        targets: Labels or ratings, one a completion.
        half_ties: Whether a tie is a pair with probability 0.5 and margin 0, or none.
    """
    ones = [1.0] * len(ranks)
    size_G = torch.tensor([len(group) for group in ranks])
    group_S = torch.arange(len(ranks)).repeat_interleave(size_G)
    rank_S = torch.tensor([rank for group in ranks for rank in group], dtype=torch.float64)
    chosen_N, rejected_N, weight_N = group_pairs(ranks, weights, half_ties=half_ties)
    tied_N, group_N = rank_S[chosen_N] == rank_S[rejected_N], group_S[chosen_N]
    # A half-label pulls two equals together. Davidson's gradient on a tie is the same, weakened by a parameter of its
    # own.
    probability_N = torch.tensor(probabilities or ones)[group_N].masked_fill(tied_N, 0.5)
    margin_N = torch.tensor(margins or [0.0] * len(ranks))[group_N].masked_fill(tied_N, 0.0)
    return Judgements(
        score_S=score_S,
        group_S=group_S,
        rank_S=rank_S,
        weight_G=torch.tensor(weights or ones),
        pairs=Pairs(chosen_N, rejected_N, weight_N, probability_N, margin_N),
        target_S=torch.zeros(len(group_S)) if targets is None else torch.tensor(targets),
        positions=positions,
    )


# -- pairs -------------------------------------------------------------------------------------------------------------


@elementwise
def bradley_terry_loss(
    chosen: Tensor, rejected: Tensor, probability: Tensor | float = 1.0, margin: Tensor | float = 0.0
) -> Tensor:
    """Return ``-log sigmoid(chosen - rejected - margin)`` per pair.

    Bradley & Terry 1952; Stiennon 2020 (arXiv:2009.01325). Of any shape, the same for all. With a probability below 1
    (a soft label) it is the cross-entropy between that and the model's own. Margins: Llama 2 (arXiv:2307.09288, eq. 2).
    Computed as softplus, so that large gaps of either sign stay finite.
    """
    # -p log sigmoid(x) - (1 - p) log sigmoid(-x) = softplus(-x) + (1 - p) x with x = chosen - rejected - margin
    behind = rejected + margin
    return F.softplus(behind - chosen) + (1.0 - probability) * (chosen - behind)


@shaped
def ranking_loss(
    score_S: Tensor,
    chosen_N: Tensor,
    rejected_N: Tensor,
    weight_N: Tensor,
    total_weight: float,
    center_coef: float,
    probability_N: Tensor | float = 1.0,
    margin_N: Tensor | float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return weighted Bradley-Terry over all pairs, plus ``center_coef * (r_w + r_l)^2`` on the same pairs.

    The second term keeps scores near 0, which pairs alone leave free (Eisenstein 2023, arXiv:2312.09244, eq. 2).

    Args:
        total_weight: Sum of weights over the whole step: micro-batches divided by it add up to the step's loss.

    Returns:
        The loss and what `pair_stats` says.
    """
    chosen, rejected = score_S[chosen_N], score_S[rejected_N]
    terms = bradley_terry_loss(chosen, rejected, probability_N, margin_N) + center_coef * (chosen + rejected) ** 2
    share_N = weight_N / total_weight
    return (share_N * terms).sum(), pair_stats(chosen, rejected, share_N, probability_N)


@shaped
def pair_stats(
    chosen_N: Tensor, rejected_N: Tensor, share_N: Tensor, probability_N: Tensor | float = 1.0
) -> dict[str, Tensor]:
    """Return weighted means over the pairs, detached: share in the right order, gap, both scores.

    A tie of either kind counts half. As sums of shares, so that micro-batches add up.
    """
    gap_N = (chosen_N - rejected_N).detach()
    right_N = (gap_N > 0).float() + 0.5 * (gap_N == 0).float()
    # said to be equal: either order is half right
    right_N = torch.where(torch.as_tensor(probability_N) == 0.5, 0.5, right_N)
    return {
        "accuracy": (share_N * right_N).sum(),
        "margin": (share_N * gap_N).sum(),
        "chosen_score": (share_N * chosen_N.detach()).sum(),
        "rejected_score": (share_N * rejected_N.detach()).sum(),
    }


def pairwise(judged: Judgements, total_weight: float, center_coef: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Return `ranking_loss` on the pairs of a micro-batch, with their soft labels and margins."""
    pairs = judged.pairs
    return ranking_loss(
        judged.score_S,
        pairs.chosen_N,
        pairs.rejected_N,
        pairs.weight_N,
        total_weight,
        center_coef,
        pairs.probability_N,
        pairs.margin_N,
    )


def per_token(judged: Judgements, total_weight: float, center_coef: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Return Bradley-Terry at each token from a pair's first difference on, its mean over them (DeepSpeed-Chat 2023).

    Where one text is longer, the shorter one keeps the value of its end token: a finished text's worth does not change.
    DeepSpeed-Chat reads it on padding there. Texts that do not differ count at their last token, with no gradient.
    """
    pairs, at = judged.pairs, judged.positions
    if at is None:
        raise ValueError("this loss needs the values of all positions")
    place_T = torch.arange(at.value_ST.shape[1], device=at.value_ST.device)
    real_ST = place_T < at.length_S[:, None]
    held_ST = at.value_ST.gather(1, torch.minimum(place_T, at.length_S[:, None] - 1))
    first, second = pairs.chosen_N, pairs.rejected_N
    # To the end of the longer: stopping at the shorter's would leave the longer's end token untaught, where its score
    # is read.
    end_N = torch.maximum(at.length_S[first], at.length_S[second])
    # Before it both are one text with one value a token: a constant, which no weight moves.
    differs_NT = (at.ids_ST[first] != at.ids_ST[second]) | (real_ST[first] != real_ST[second])
    start_N = torch.where(differs_NT.any(1), differs_NT.int().argmax(1), end_N - 1)
    counts_NT = (place_T >= start_N[:, None]) & (place_T < end_N[:, None])
    label_NT, margin_NT = (x_N[:, None].expand(counts_NT.shape) for x_N in (pairs.probability_N, pairs.margin_N))
    term_NT = bradley_terry_loss(held_ST[first], held_ST[second], label_NT, margin_NT).masked_fill(~counts_NT, 0.0)
    chosen, rejected = judged.score_S[first], judged.score_S[second]
    share_N = pairs.weight_N / total_weight
    terms = term_NT.sum(1) / counts_NT.sum(1) + center_coef * (chosen + rejected) ** 2
    return (share_N * terms).sum(), pair_stats(chosen, rejected, share_N, pairs.probability_N)


@shaped
def self_distillation(
    reading_SR: Tensor, chosen_N: Tensor, rejected_N: Tensor, weight_N: Tensor, total_weight: float
) -> Tensor:
    """Teach the first of R readings of each text what the mean of all of them says, as soft labels of the pairs.

    The mean errs less than any one of them; it is detached. Hinton 2015 (arXiv:1503.02531), with the ensemble inside
    one network (Zhang 2019, arXiv:1905.08094).
    """
    # On the demo's test films the mean of the three ordered .774 of the pairs, each alone .753, .769 and .755.
    teacher_S, student_S = reading_SR.detach().mean(1), reading_SR[:, 0]
    probability_N = torch.sigmoid(teacher_S[chosen_N] - teacher_S[rejected_N])
    terms_N = bradley_terry_loss(student_S[chosen_N], student_S[rejected_N], probability_N)
    return (weight_N / total_weight * terms_N).sum()


# -- whole orders ------------------------------------------------------------------------------------------------------


def best_of_k(judged: Judgements, total_weight: float, center_coef: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Return ``-log softmax(r)[best]`` of each group, whatever its K (Ziegler 2019, arXiv:1909.08593, eq. 1).

    The order below the best is not read. Where several tie for best, each is chosen among itself and those below, and
    the group's loss is their mean.
    """
    nll_S, beaten_SS = _choices(judged)
    best_S = ~beaten_SS.any(0)
    num_best_G = torch.zeros_like(judged.weight_G).index_add(0, judged.group_S, best_S.to(judged.weight_G.dtype))
    share_S = (judged.weight_G / num_best_G / total_weight)[judged.group_S]
    return _with_pairs((share_S * nll_S)[best_S].sum(), judged, total_weight, center_coef)


def plackett_luce(judged: Judgements, total_weight: float, center_coef: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Return ``-log P(order)``: choose the best of all, then the best of the rest, and so on.

    Plackett 1975; Luce 1959. For reward models: Zhu 2023 (arXiv:2301.11270). The sum of K - 1 choices, so that a long
    order weighs more, as its likelihood does. Of tied completions each is chosen among itself and those below; so the
    last tie says nothing, and an order of the best few above a tie of all others is the exact likelihood of that
    partial order.
    """
    nll_S, _ = _choices(judged)
    share_S = (judged.weight_G / total_weight)[judged.group_S]
    # A sum over the K - 1 choices and not their mean: it is the log-likelihood of the order.
    return _with_pairs((share_S * nll_S).sum(), judged, total_weight, center_coef)


def _choices(judged: Judgements) -> tuple[Tensor, Tensor]:
    """Return -log of the chance that each completion is chosen among itself and those ranked below it, ``(S,)``.

    And which those are, ``(S, S)``: row beats column.
    """
    group_S, rank_S, score_S = judged.group_S, judged.rank_S, judged.score_S
    beaten_SS = (group_S[:, None] == group_S) & (rank_S[:, None] < rank_S)
    chosen_among_SS = beaten_SS | torch.eye(len(group_S), dtype=torch.bool, device=group_S.device)
    # Who is not in the choice has chance 0.
    logit_SS = score_S.expand(len(group_S), -1).masked_fill(~chosen_among_SS, -torch.inf)
    return logit_SS.logsumexp(1) - score_S, beaten_SS


def _with_pairs(
    loss: Tensor, judged: Judgements, total_weight: float, center_coef: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss with the centring term of `ranking_loss`, and that function's stats."""
    chosen, rejected = judged.score_S[judged.pairs.chosen_N], judged.score_S[judged.pairs.rejected_N]
    share_N = judged.pairs.weight_N / total_weight
    centring_N = center_coef * (chosen + rejected) ** 2
    return loss + (share_N * centring_N).sum(), pair_stats(chosen, rejected, share_N)


# -- completions one by one --------------------------------------------------------------------------------------------


def binary(judged: Judgements, total_weight: float, center_coef: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the cross-entropy of sigmoid(score) with good = 1, bad = 0 (Cobbe 2021, arXiv:2110.14168).

    It is Bradley-Terry against a text of score 0. Labels fix the level of the scores: ``center_coef`` has no part.
    """
    sign_S = 2 * judged.target_S - 1
    signed_S = (sign_S * judged.score_S).detach()
    share_S = judged.weight_S / total_weight
    # The logit is the score: a probability saturates, and its gradient with it.
    terms_S = bradley_terry_loss(judged.score_S, torch.zeros_like(judged.score_S), judged.target_S)
    right_S = (signed_S > 0).float() + 0.5 * (signed_S == 0).float()
    return (share_S * terms_S).sum(), {"accuracy": (share_S * right_S).sum(), "margin": (share_S * signed_S).sum()}


def regression(judged: Judgements, total_weight: float, center_coef: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Return ``(score - rating)^2``, as in the code of Ziegler 2019.

    Ratings fix the level: ``center_coef`` has no part.
    """
    error_S = judged.score_S - judged.target_S
    share_S = judged.weight_S / total_weight
    return (share_S * error_S**2).sum(), {"error": (share_S * error_S.detach().abs()).sum()}


def score_penalty(judged: Judgements, total_weight: float) -> Tensor:
    """Return the mean squared score, each group weighing the same: scores stay small (Coste 2023, arXiv:2310.02743)."""
    return (judged.weight_S / total_weight * judged.score_S**2).sum()
