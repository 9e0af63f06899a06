"""Judgements as comparisons of completions, their loss and their metrics: what offline and online steps share.

Shapes: S completions of a micro-batch, N comparisons.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from accord.algo.preference_loss import ZERO_POINT, zero_point
from accord.algo.reward_loss import group_pairs
from accord.algo.table import PreferenceAlgorithm
from accord.config import DpoConfig
from accord.errors import DataError
from accord.models.decoder import CausalLM
from accord.ranks import ONE_PROCESS, Ranks
from accord.text.batches import Example, collate, example_buckets, length_buckets
from accord.train.likelihood import logp_and_entropy

#: Log-probabilities of completions under the reference, ``(S,)``; None where the loss has no reference.
Reference = Callable[[Sequence[Example]], Tensor] | None


@dataclass(frozen=True)
class Objective:
    """What a policy is trained by: a row of the table, its settings, and the reference it is held to."""

    config: DpoConfig
    row: PreferenceAlgorithm
    policy: CausalLM
    pad_id: int
    reference: Reference


@dataclass(frozen=True)
class ComparedGroup:
    """Completions of one prompt, and what was said of them.

    Comparison i says that completion ``better[i]`` is better than ``worse[i]``, either of which may be the zero point,
    and counts ``shares[i]`` in the loss. ``weight`` is what the group counts in the denominator. All of them hold with
    ``probability``, and the better one should lead by ``lead`` in strength.
    """

    examples: tuple[Example, ...]
    better: tuple[int, ...]
    worse: tuple[int, ...]
    shares: tuple[float, ...]
    weight: float
    probability: float = 1.0
    lead: float = 0.0

    @property
    def num_tokens(self) -> int:
        """Tokens of a forward pass, padding included."""
        return len(self.examples) * max(map(len, self.examples))


# -- judgements as comparisons -----------------------------------------------------------------------------------------


def compared_ranking(
    config: DpoConfig, row: PreferenceAlgorithm, examples: Sequence[Example], ranks: Sequence[float], weight: float
) -> ComparedGroup:
    """Return all strict pairs of a ranking, which share its weight equally.

    Each one a good and a bad completion where the loss compares with the zero point.
    """
    better_N, worse_N, share_N = group_pairs([ranks], [weight])
    better, worse, shares = better_N.tolist(), worse_N.tolist(), share_N.tolist()
    if not row.paired:
        good, bad = (len(shares) * [ZERO_POINT] for _ in range(2))
        better, worse = better + good, bad + worse
        # Halved: a pair makes two comparisons with the zero point, and must not count twice.
        shares = [coef * s / 2 for coef in (config.desirable_weight, config.undesirable_weight) for s in shares]
    return ComparedGroup(tuple(examples), tuple(better), tuple(worse), tuple(shares), weight)


def compared_labels(
    config: DpoConfig, examples: Sequence[Example], goods: Sequence[float], weight: float
) -> ComparedGroup:
    """Compare each completion with the zero point, 1 = good; they share the group's weight."""
    index = range(len(examples))
    better = tuple(i if good else ZERO_POINT for i, good in zip(index, goods, strict=True))
    worse = tuple(ZERO_POINT if good else i for i, good in zip(index, goods, strict=True))
    coefs = (config.desirable_weight if good else config.undesirable_weight for good in goods)
    shares = tuple(coef * weight / len(examples) for coef in coefs)
    return ComparedGroup(tuple(examples), better, worse, shares, weight)


def mismatched(groups: Sequence[ComparedGroup], max_tokens: int) -> list[Example]:
    """Return each group's prompt with the completions of the group after it, the first one's after the last.

    None where that one has the same prompt. What is too long loses its end.
    """
    found = []
    for group, other in pairwise([*groups, *groups[:1]]):
        prompt = group.examples[0].prompt
        # Under its own prompt a completion would be an answer, not the mismatch that the KL is estimated by.
        if prompt != other.examples[0].prompt:
            found += [Example(prompt, e.completion[: max_tokens - len(prompt)]) for e in other.examples]
    return found


# -- log-probabilities -------------------------------------------------------------------------------------------------


def completion_logp(policy: CausalLM, examples: Sequence[Example], pad_id: int, temperature: float = 1.0) -> Tensor:
    """Return the log-probability of each completion, the sum over its tokens and the end token, ``(S,)``.

    Differentiable.
    """
    logp_N, _ = logp_and_entropy(policy, collate(examples, pad_id), temperature, entropy=False)
    return torch.stack([part.sum() for part in torch.split(logp_N, [e.num_counted for e in examples])])


@torch.no_grad()
def bucketed_logp(
    policy: CausalLM, examples: Sequence[Example], pad_id: int, batch_tokens: int, temperature: float = 1.0
) -> Tensor:
    """Return the same of any number of completions, without gradient, in buckets of like length."""
    logp_S = torch.empty(len(examples))
    for bucket in example_buckets(examples, batch_tokens):
        logp_S[bucket] = completion_logp(policy, [examples[i] for i in bucket], pad_id, temperature)
    return logp_S


# -- the loss of a step ------------------------------------------------------------------------------------------------


class Tally:
    """Weighted sums over the comparisons of a step, micro-batch by micro-batch, for its metrics.

    ``facts`` are numbers of the whole step, reported with the rest.
    """

    def __init__(self) -> None:
        self._sums: dict[str, float] = defaultdict(float)
        self.facts: dict[str, float] = {}
        #: Of each group that was looked at: what of its weight is right, and its weight.
        self.by_group: dict[int, tuple[float, float]] = {}

    def add_group(self, number: int, right: float, weight: float) -> None:
        """Remember how much of a group's comparisons is right."""
        self.by_group[number] = right, weight

    def add(
        self, strength_S1: Tensor, better_N: Tensor, worse_N: Tensor, weight_N: Tensor, known: dict[str, Tensor]
    ) -> Tensor:
        """Count comparisons whose better side is stronger; a tie counts half.

        And of both sides add up what is ``known`` of their completions, ``(S,)`` each. The last strength is that of
        the zero point. Returns how right each comparison is, ``(N,)``.
        """
        gap_N = strength_S1[better_N] - strength_S1[worse_N]
        right_N = (gap_N > 0).float() + 0.5 * (gap_N == 0).float()
        self._sums["weight"] += float(weight_N.sum())
        self._sums["right"] += float((weight_N * right_N).sum())
        for side, index_N in (("chosen", better_N), ("rejected", worse_N)):
            real_N = index_N != ZERO_POINT
            # Of completions alone: the zero point has no length and no likelihood.
            self._sums[f"{side} weight"] += float(weight_N[real_N].sum())
            for name, x_S in known.items():
                self._sums[f"{side}_{name}"] += float((weight_N[real_N] * x_S[index_N[real_N]]).sum())
        return right_N

    def join(self, ranks: Ranks) -> None:
        """Take in what the other processes counted."""
        self._sums = defaultdict(float, ranks.sums(self._sums))

    def means(self) -> dict[str, float]:
        """Return accuracy, margin of the implicit rewards, and means of both sides, without those that had no part."""
        sums, found = self._sums, dict(self.facts)
        if sums["weight"] > 0:
            found["accuracy"] = sums["right"] / sums["weight"]
        for side in ("chosen", "rejected"):
            if sums[f"{side} weight"] > 0:
                names = [name for name in sums if name.startswith(f"{side}_")]
                found |= {name: sums[name] / sums[f"{side} weight"] for name in names}
        if "chosen_reward" in found and "rejected_reward" in found:
            found["margin"] = found["chosen_reward"] - found["rejected_reward"]
        return found


def preference_losses(
    objective: Objective, groups: Sequence[ComparedGroup], tally: Tally, ranks: Ranks = ONE_PROCESS
) -> Iterator[Tensor]:
    """Yield losses of micro-batches of whole groups, which add up to the step's mean over groups.

    Each completion runs through the policy once, however many comparisons it stands in; ``tally`` counts along.
    """
    config, row, reference = objective.config, objective.row, objective.reference
    total_weight = sum(g.weight for g in groups)
    zero = torch.zeros(())
    if not row.paired:
        # Once a step and without gradient: a zero point of each micro-batch would depend on memory.
        zero = _zero_point(objective, groups)
        tally.facts["zero_point"] = float(zero)
    # Whole groups: each completion runs once, however many pairs it stands in.
    sizes_G = [g.num_tokens for g in groups]
    pack = partial(_packed, sizes_G, max_tokens=config.micro_batch_tokens)
    for micro, counts in ranks.share(range(len(groups)), pack, sizes_G.__getitem__):
        chosen = [groups[i] for i in micro]
        examples, better_N, worse_N, weight_N = _joined(chosen)
        length_S = _lengths(examples)
        logp_S = completion_logp(objective.policy, examples, objective.pad_id)
        ref_logp_S = reference(examples) if reference else None
        strength_S = row.strength(logp_S, ref_logp_S, length_S)
        # Index -1, ZERO_POINT, then is the zero point: thumbs are comparisons like any other.
        strength_S1 = torch.cat([strength_S, zero[None]])
        loss_N = _comparison_loss(objective, chosen, strength_S1[better_N], strength_S1[worse_N])
        seen = {"reward": config.dpo_beta * strength_S.detach(), "logp": logp_S.detach(), "length": length_S}
        if ref_logp_S is not None:
            seen["drift"] = logp_S.detach() - ref_logp_S
        right_N = tally.add(strength_S1.detach(), better_N, worse_N, counts * weight_N, seen)
        sizes = [len(group.shares) for group in chosen]
        for i, right, weight in zip(micro, torch.split(right_N, sizes), torch.split(weight_N, sizes), strict=True):
            tally.add_group(i, float((right * weight).sum()), float(weight.sum()))
        # By the weight of the whole step, so that micro-batches add up to its mean over groups.
        yield counts * (weight_N * loss_N).sum() / total_weight
    tally.join(ranks)


def _packed(sizes: Sequence[int], chosen: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Return some of all groups, whose sizes are given, in buckets of like length."""
    buckets = length_buckets([sizes[i] for i in chosen], max_tokens, 0)
    return [[chosen[i] for i in bucket] for bucket in buckets]


def _comparison_loss(
    objective: Objective, groups: Sequence[ComparedGroup], better_N: Tensor, worse_N: Tensor
) -> Tensor:
    """Return the loss of each comparison, its expectation where it is not sure which side is better, ``(N,)``."""
    loss, config = objective.row.loss, objective.config
    lead_N, sure_N = (
        torch.tensor([x for g, x in zip(groups, values, strict=True) for _ in g.shares])
        for values in ([g.lead for g in groups], [g.probability for g in groups])
    )
    if (lead_N > 0).any():
        better_N = better_N - lead_N
    loss_N: Tensor = loss(better_N, worse_N, config)
    # A soft label is the chance of the pair as it stands against that of the pair turned around: for DPO the
    # cross-entropy, as the reward stage has it.
    return loss_N if (sure_N == 1).all() else sure_N * loss_N + (1 - sure_N) * loss(worse_N, better_N, config)


def _joined(groups: Sequence[ComparedGroup]) -> tuple[list[Example], Tensor, Tensor, Tensor]:
    """Return the completions of groups end to end; their comparisons as indices into them; the weights of these."""
    examples: list[Example] = []
    sides: tuple[list[int], list[int]] = ([], [])
    for group in groups:
        for side, places in zip(sides, (group.better, group.worse), strict=True):
            side += [place if place == ZERO_POINT else len(examples) + place for place in places]
        examples += group.examples
    better_N, worse_N = (torch.tensor(side, dtype=torch.long) for side in sides)
    return examples, better_N, worse_N, torch.tensor([share for g in groups for share in g.shares])


def _lengths(examples: Sequence[Example]) -> Tensor:
    return torch.tensor([float(e.num_counted) for e in examples])


def _zero_point(objective: Objective, groups: Sequence[ComparedGroup]) -> Tensor:
    """Return what thumbs are compared with: one number for the whole step, so that its micro-batches share it."""
    policy, reference = objective.policy, objective.reference
    examples = mismatched(groups, policy.config.max_positions)
    logp_M = bucketed_logp(policy, examples, objective.pad_id, objective.config.micro_batch_tokens)
    ref_logp_M = reference(examples) if reference else None
    return zero_point(objective.row.strength(logp_M, ref_logp_M, _lengths(examples)))


@torch.no_grad()
def held_out(objective: Objective, groups: Sequence[ComparedGroup]) -> dict[str, float]:
    """Return loss and metrics of judgements that are only looked at."""
    tally = Tally()
    loss = sum(float(x) for x in preference_losses(objective, groups, tally))
    return {"loss": loss, **tally.means()}


def held_out_shares(objective: Objective, groups: Sequence[ComparedGroup]) -> tuple[list[float], list[float]]:
    """Return how much of each group's comparisons goes as it says, 0 to 1, and what the group weighs."""
    tally = Tally()
    with torch.no_grad():
        for _ in preference_losses(objective, groups, tally):
            pass
    found = [tally.by_group[i] for i in range(len(groups))]
    return [right / weight if weight else 0.0 for right, weight in found], [weight for _, weight in found]


def guessed_shares(groups: Sequence[ComparedGroup], *, mostly_good: bool) -> tuple[list[float], str]:
    """Return the same of who has read nothing, and what that is.

    Of completions that are compared the longer one wins; of thumbs every one is the commoner kind.
    """
    kind = "good" if mostly_good else "bad"
    pairs = any(ZERO_POINT not in (*group.better, *group.worse) for group in groups)
    return [_guessed(group, mostly_good) for group in groups], "longer wins" if pairs else f"every one is {kind}"


def _guessed(group: ComparedGroup, mostly_good: bool) -> float:
    strength = [float(e.num_counted) for e in group.examples]
    if ZERO_POINT in (*group.better, *group.worse):
        strength = [1.0 if mostly_good else -1.0] * len(strength)
    strength.append(0.0)  # the zero point's
    gaps = [strength[b] - strength[w] for b, w in zip(group.better, group.worse, strict=True)]
    right = sum(s * ((g > 0) + 0.5 * (g == 0)) for s, g in zip(group.shares, gaps, strict=True))
    return right / sum(group.shares)


def are_mostly_good(groups: Sequence[ComparedGroup]) -> bool:
    """Return whether of thumbs more are up than down."""
    return 2 * sum(place != ZERO_POINT for g in groups for place in g.better) > sum(len(g.better) for g in groups)


def require_both_classes(groups: Sequence[ComparedGroup], where: str) -> None:
    """Refuse comparisons that all have the same side at the zero point: no preference is in them. Raises DataError."""
    places = {"good": (p for g in groups for p in g.better), "bad": (p for g in groups for p in g.worse)}
    for kind, found in places.items():
        if all(place == ZERO_POINT for place in found):
            raise DataError(
                f"no completion is {kind}",
                where=where,
                why="with one kind alone all completions move together",
                hint=f"add rows of {kind} ones, or use accord sft on good ones alone",
            )
