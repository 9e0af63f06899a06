"""Reward losses against hand arithmetic, `choix`, TRL's own numbers, and finite differences.

Shapes: K completions of a group, S of a micro-batch, N pairs, T tokens.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, permutations

import pytest
import torch
from torch import Tensor

from accord.algo.reductions import correlation
from accord.algo.reward_loss import (
    MARGINS,
    Judgements,
    Positions,
    bradley_terry_loss,
    group_pairs,
    judgements,
    score_penalty,
)
from accord.algo.table import ENSEMBLE_RULES, REWARD_LOSSES
from accord.config import CombineConfig, RewardConfig
from accord.stats import bradley_terry as strengths


def t64(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def near(got: Tensor | float, wanted: object, atol: float = 1e-6) -> None:
    got = torch.as_tensor(got)
    torch.testing.assert_close(got, torch.as_tensor(wanted, dtype=got.dtype), rtol=0.0, atol=atol)


def loss_of(name: str, judged: Judgements, total: float = 1.0, center_coef: float = 0.0) -> Tensor:
    return REWARD_LOSSES[name].loss(judged, total, center_coef)[0]


FOUR = [2.0, 1.0, 0.0, -1.0]  # scores from best to worst


# -- values by hand ----------------------------------------------------------------------------------------------------


def test_margin_shifts_the_gap() -> None:
    # D = 1 with m = 1/3 is D = 2/3: ln(1 + e^-.666667) = ln 1.513417; with m = 1 it is D = 0: ln 2
    near(bradley_terry_loss(t64([1.0, 1.0]), t64([0.0, 0.0]), 1.0, t64([1 / 3, 1.0])), [0.414370, 0.693147])
    assert MARGINS["small"] == {"significantly": 1.0, "better": 2 / 3, "slightly": 1 / 3, "negligibly": 0.0}
    assert MARGINS["large"] == {"significantly": 3.0, "better": 2.0, "slightly": 1.0, "negligibly": 0.0}


def test_a_margin_and_a_soft_label_of_a_group_reach_its_pair_but_no_tie() -> None:
    judged = judgements(
        t64([0.0, 1.0, 0.0, 0.0]),
        [(2, 1), (1, 1)],
        [1.0, 1.0],
        probabilities=[0.8, 1.0],
        margins=[0.5, 9.0],
        half_ties=True,
    )
    # gap 1, margin .5: D = .5; .8 softplus(-.5) + .2 softplus(.5) = .8 * .474077 + .2 * .974077 = .574077; tie: ln 2
    near(loss_of("bradley_terry", judged, total=2.0), (0.574077 + math.log(2)) / 2)


def test_half_a_label_for_a_tie_pulls_the_two_together() -> None:
    score = t64([1.0, 0.0]).requires_grad_()
    loss = loss_of("bradley_terry", judgements(score, [(1, 1)], half_ties=True))
    # half each way: (softplus(-1) + softplus(1)) / 2 = (.313262 + 1.313262) / 2
    near(loss, 0.813262)
    loss.backward()
    near(score.grad, [0.5 * math.tanh(0.5), -0.5 * math.tanh(0.5)])
    near(loss_of("bradley_terry", judgements(t64([1.0, 0.0]), [(1, 1)])), 0.0)  # dropped


def test_smoothed_labels_have_a_finite_optimum() -> None:
    # one in ten judgements turned around: D* = ln(.9 / .1) = ln 9, where the loss is the entropy of .1
    gap = t64([math.log(9)]).requires_grad_()
    loss = bradley_terry_loss(gap, torch.zeros_like(gap), 0.9).sum()
    near(loss, -0.9 * math.log(0.9) - 0.1 * math.log(0.1))
    loss.backward()
    near(gap.grad, [0.0], 1e-12)


def test_best_of_four_is_a_cross_entropy() -> None:
    score = t64(FOUR).requires_grad_()
    loss = loss_of("best_of_k", judgements(score, [(1, 2, 3, 4)]))
    # e^2 / (e^2 + e + 1 + e^-1) = 7.389056 / 11.475217 = .643914; -ln = .440190
    near(loss, 0.440190)
    loss.backward()
    near(score.grad, [-0.356086, 0.236883, 0.087144, 0.032059])
    near(loss_of("best_of_k", judgements(t64(FOUR) + 7.0, [(1, 2, 3, 4)])), 0.440190)
    near(loss_of("best_of_k", judgements(t64(FOUR), [(1, 3, 2, 2)])), 0.440190)  # below the best nothing is read


def test_two_tied_for_best_are_each_chosen_among_those_below() -> None:
    # scores 2, 1, 0; ranks 1, 1, 2: (ln(1 + e^-2) + ln(1 + e^-1)) / 2 = (.126928 + .313262) / 2
    near(loss_of("best_of_k", judgements(t64(FOUR[:3]), [(1, 1, 2)])), 0.220095)


def test_groups_of_any_size_beside_each_other() -> None:
    # K = 4 as above with weight 2; K = 2 with gap 1, .313262, with weight 1; divided by 3
    judged = judgements(t64([*FOUR, 0.0, 1.0]), [(1, 2, 3, 4), (2, 1)], [2.0, 1.0])
    near(loss_of("best_of_k", judged, total=3.0), (2 * 0.440190 + 0.313262) / 3)


def test_plackett_luce_of_four() -> None:
    # ln(11.475217) - 2 = .440190; ln(4.086161) - 1 = .407606; ln(1.367879) = .313262
    near(loss_of("plackett_luce", judgements(t64(FOUR), [(1, 2, 3, 4)])), 1.161057)
    orders = [loss_of("plackett_luce", judgements(t64(FOUR), [order])) for order in permutations((1, 2, 3, 4))]
    near(sum(torch.exp(-nll) for nll in orders), 1.0, 1e-12)


def test_plackett_luce_of_the_best_two_of_four() -> None:
    """A tie of all others is the partial order: the two choices above it, and nothing of the tie."""
    near(loss_of("plackett_luce", judgements(t64(FOUR), [(1, 2, 3, 3)])), 0.440190 + 0.407606)
    full = [(1, 2, 3, 4), (1, 2, 4, 3)]  # the orders it leaves open; their chances add up to its own
    chances = [torch.exp(-loss_of("plackett_luce", judgements(t64(FOUR), [order]))) for order in full]
    near(-torch.log(sum(chances)), 0.440190 + 0.407606)


@pytest.mark.parametrize("name", ["best_of_k", "plackett_luce"])
@pytest.mark.parametrize("gap", [0.0, 1.0, 2.0, -1.0, 50.0, -50.0])
def test_of_two_every_order_is_a_pair(name: str, gap: float) -> None:
    judged = judgements(t64([0.0, gap]), [(2, 1)])
    near(loss_of(name, judged), bradley_terry_loss(t64(gap), t64(0.0)), 1e-12)
    near(loss_of(name, judged, center_coef=0.01), loss_of("bradley_terry", judged, center_coef=0.01), 1e-12)


def test_binary_is_the_cross_entropy_of_a_thumb() -> None:
    # good at 2: softplus(-2) = .126928; bad at 1: softplus(1) = 1.313262; weights 1 and 3 of 4
    score = t64([2.0, 1.0]).requires_grad_()
    judged = judgements(score, [(1,), (1,)], [1.0, 3.0], targets=[1.0, 0.0])
    loss, stats = REWARD_LOSSES["binary"].loss(judged, 4.0, 0.01)
    near(loss, (0.126928 + 3 * 1.313262) / 4)
    loss.backward()
    near(score.grad, [-0.119203 / 4, 3 * 0.731059 / 4])  # sigmoid(r) minus label
    near(stats["accuracy"], 0.25)
    near(stats["margin"], (2.0 - 3 * 1.0) / 4)


def test_labels_of_one_prompt_share_its_weight() -> None:
    judged = judgements(t64([2.0, 1.0, 2.0]), [(1, 1), (1,)], targets=[1.0, 0.0, 1.0])
    near(loss_of("binary", judged, total=2.0), ((0.126928 + 1.313262) / 2 + 0.126928) / 2)


def test_regression_is_a_squared_distance() -> None:
    judged = judgements(t64([2.0, 1.0]), [(1,), (1,)], [1.0, 3.0], targets=[0.5, 2.0])
    loss, stats = REWARD_LOSSES["regression"].loss(judged, 4.0, 0.01)
    near(loss, (1.5**2 + 3 * 1.0) / 4)
    near(stats["error"], (1.5 + 3 * 1.0) / 4)


def test_score_penalty_is_a_mean_square_over_groups() -> None:
    # ((4 + 1) / 2 * 1 + 9 * 3) / 4
    near(score_penalty(judgements(t64([2.0, -1.0, 3.0]), [(1, 2), (1,)], [1.0, 3.0]), 4.0), 29.5 / 4)


def test_stats_of_pairs() -> None:
    judged = judgements(t64([2.0, 1.0, 1.0]), [(1, 2, 2)], half_ties=True)
    _, stats = REWARD_LOSSES["bradley_terry"].loss(judged, 1.0, 0.0)
    # pairs (0, 1), (0, 2) right and a tie, which counts half whatever the scores
    near(stats["accuracy"], 2.5 / 3)
    near(stats["margin"], 2 / 3)
    near(stats["chosen_score"], (2 + 2 + 1) / 3)
    near(stats["rejected_score"], 1.0)


# -- every position ----------------------------------------------------------------------------------------------------

CHOSEN, REJECTED, PAD = [5, 5, 7, 8, 9], [5, 5, 7, 6], 0
CHOSEN_VALUES, REJECTED_VALUES = [0.1, 0.2, 0.3, 0.9, 1.5], [0.1, 0.2, 0.3, 0.4]


def positions(ids: Sequence[Sequence[int]], values: Sequence[Sequence[float]], junk: float = 0.0) -> Positions:
    """Padded on the right: ids with 0, values with ``junk``."""
    longest = max(map(len, ids))
    return Positions(
        torch.tensor([[*row, *[PAD] * (longest - len(row))] for row in ids]),
        t64([[*row, *[junk] * (longest - len(row))] for row in values]),
        torch.tensor([len(row) for row in ids]),
    )


def test_per_token_starts_at_the_first_difference_and_holds_the_end() -> None:
    at = positions([CHOSEN, REJECTED], [CHOSEN_VALUES, REJECTED_VALUES], junk=99.0)
    judged = judgements(t64([1.5, 0.4]), [(1, 2)], positions=at)
    # tokens 3 and 4; the shorter stays at .4: (softplus(-.5) + softplus(-1.1)) / 2 = (.474077 + .287335) / 2
    loss, stats = REWARD_LOSSES["per_token"].loss(judged, 1.0, 0.0)
    near(loss, 0.380706)
    near(stats["margin"], 1.1)  # of the scores, at the end
    near(loss_of("bradley_terry", judged), 0.287335)


def test_per_token_is_deepspeed_chats_loss_where_its_padding_counts() -> None:
    """Their loss reads the shorter text on a padding token; told that it is a real one, ours agrees."""
    at = positions([CHOSEN, [*REJECTED, PAD]], [CHOSEN_VALUES, [*REJECTED_VALUES, 0.6]])
    # (softplus(-.5) + softplus(-.9)) / 2 = (.474077 + .341154) / 2, what DeepSpeed-Chat's own code gives
    near(loss_of("per_token", judgements(t64([1.5, 0.4]), [(1, 2)], positions=at)), 0.407615)


def test_per_token_of_two_equal_texts_teaches_nothing() -> None:
    value = t64([[0.1, 0.7], [0.1, 0.7]]).requires_grad_()
    at = Positions(torch.tensor([[5, 9], [5, 9]]), value, torch.tensor([2, 2]))
    loss = loss_of("per_token", judgements(value[:, 1], [(1, 2)], positions=at))
    near(loss, math.log(2))  # at their last token
    loss.backward()
    assert value.grad is not None
    near(value.grad.sum(0), [0.0, 0.0], 1e-12)  # one forward pass of one text: what pulls one way pulls back


# -- optima ------------------------------------------------------------------------------------------------------------


def optimum(loss: Callable[[Tensor], Tensor], size: int = 3) -> tuple[Tensor, float]:
    """Centred minimiser of a convex loss, and its value there."""
    theta = torch.zeros(size, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [theta], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        solver.zero_grad()
        value = loss(theta)
        value.backward()
        return value

    solver.step(closure)
    return (theta - theta.mean()).detach(), float(loss(theta).detach())


def of_items(name: str, orders: Sequence[Sequence[int]]) -> Callable[[Tensor], Tensor]:
    """The loss of items' scores, given orders of items from best to worst."""
    items = torch.tensor([item for order in orders for item in order])
    ranks = [tuple(range(1, 1 + len(order))) for order in orders]
    return lambda theta: loss_of(name, judgements(theta[items], ranks), total=len(orders))


WINS = [(0, 1)] * 8 + [(1, 0)] * 2 + [(1, 2)] * 7 + [(2, 1)] * 3 + [(0, 2)] * 9 + [(2, 0)]
RANKINGS = [(0, 1, 2)] * 6 + [(0, 2, 1)] * 3 + [(1, 0, 2)] * 3 + [(1, 2, 0), (2, 0, 1), (2, 1, 0)]


def test_bradley_terry_finds_the_maximum_likelihood_of_pairs() -> None:
    choix = pytest.importorskip("choix")
    found, value = optimum(of_items("bradley_terry", WINS))
    near(found, [1.197219, -0.178859, -1.018360])
    assert value == pytest.approx(0.478793, abs=1e-6)
    near(found, choix.ilsr_pairwise(3, WINS), 1e-6)
    # and our own statistics, another implementation
    near(found, strengths([[0, 8, 9], [2, 0, 7], [1, 3, 0]]).theta, 1e-6)
    near(optimum(of_items("bradley_terry", [(0, 1)] * 8 + [(1, 0)] * 2), 2)[0], [math.log(4) / 2, -math.log(4) / 2])


def test_three_losses_on_the_same_rankings_have_three_optima() -> None:
    choix = pytest.importorskip("choix")
    pairs = [pair for order in RANKINGS for pair in combinations(order, 2)]
    tops = [(order[0], list(order[1:])) for order in RANKINGS]
    wanted = {
        "plackett_luce": ([0.678200, 0.005345, -0.683544], choix.ilsr_rankings(3, RANKINGS)),
        "bradley_terry": ([math.log(2), 0.0, -math.log(2)], choix.ilsr_pairwise(3, pairs)),
        "best_of_k": ([0.771669, -0.039261, -0.732408], choix.ilsr_top1(3, tops)),
    }
    for name, (golden, oracle) in wanted.items():
        found, value = optimum(of_items(name, RANKINGS))
        near(found, golden)
        near(found, oracle, 1e-6)
        if name == "plackett_luce":
            assert value == pytest.approx(1.563320, abs=1e-6)


# -- all rows ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """Everything that may be known of a group; values end with the scores."""

    values: list[list[float]]
    ids: list[list[int]]
    ranks: list[float]
    targets: list[float]
    weight: float = 1.0
    margin: float = 0.0
    probability: float = 1.0

    def turned(self, order: Sequence[int]) -> Group:
        """The same group with its completions in another order."""
        turn = {name: [getattr(self, name)[i] for i in order] for name in ("values", "ids", "ranks", "targets")}
        return replace(self, **turn)


def random_groups(seed: int, count: int = 5) -> list[Group]:
    draw = random.Random(seed)
    groups = []
    for _ in range(count):
        K = draw.randint(2, 5)
        ids = [[7, *(draw.randint(1, 3) for _ in range(draw.randint(0, 4))), 9] for _ in range(K)]
        groups.append(
            Group(
                values=[[draw.gauss(0, 1) for _ in row] for row in ids],
                ids=ids,
                ranks=[draw.randint(1, 3) for _ in range(K)],
                targets=[float(draw.random() < 0.5) for _ in range(K)],
                weight=draw.uniform(0.5, 2.0),
                margin=draw.uniform(0.0, 1.0),
                probability=draw.uniform(0.6, 1.0),
            )
        )
    return groups


def judged_of(groups: Sequence[Group], values: Tensor | None = None) -> Judgements:
    """A micro-batch of groups; ``values`` (S, T) stands in for theirs."""
    at = positions([ids for g in groups for ids in g.ids], [row for g in groups for row in g.values])
    at = at if values is None else replace(at, value_ST=values)
    return judgements(
        at.value_ST[torch.arange(len(at.length_S)), at.length_S - 1],
        [g.ranks for g in groups],
        [g.weight for g in groups],
        probabilities=[g.probability for g in groups],
        margins=[g.margin for g in groups],
        targets=[target for g in groups for target in g.targets],
        half_ties=True,
        positions=at,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", REWARD_LOSSES)
@pytest.mark.parametrize("seed", range(3))
def test_gradients_are_those_of_finite_differences(name: str, seed: int) -> None:
    groups = random_groups(seed, 3)
    values = judged_of(groups).positions.value_ST.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: loss_of(name, judged_of(groups, v), 2.0, 0.01), (values,))
    assert torch.autograd.gradcheck(lambda v: score_penalty(judged_of(groups, v), 2.0), (values,))


@pytest.mark.parametrize("name", REWARD_LOSSES)
@pytest.mark.parametrize("seed", range(5))
def test_no_loss_depends_on_order_or_split(name: str, seed: int) -> None:
    groups, draw, loss = random_groups(seed), random.Random(seed), REWARD_LOSSES[name].loss
    total = sum(g.weight for g in groups)
    whole, stats = loss(judged_of(groups), total, 0.01)
    shuffled = [g.turned(draw.sample(range(len(g.ranks)), len(g.ranks))) for g in draw.sample(groups, len(groups))]
    near(loss(judged_of(shuffled), total, 0.01)[0], whole)
    for cut in range(1, len(groups)):
        parts = [loss(judged_of(part), total, 0.01) for part in (groups[:cut], groups[cut:])]
        near(sum(part for part, _ in parts), whole)
        for key, value in stats.items():
            near(sum(found[key] for _, found in parts), value)


@pytest.mark.parametrize("name", REWARD_LOSSES)
def test_a_gradient_step_moves_scores_towards_the_judgement(name: str) -> None:
    """Two texts of one prompt, the second better: after a step its score leads by more."""
    group = Group([[0.3, 0.3], [0.3, 0.2]], [[7, 9], [7, 8]], [2, 1], [0.0, 1.0])
    values = judged_of([group]).positions.value_ST.requires_grad_()
    loss_of(name, judged_of([group], values)).backward()
    assert values.grad is not None
    moved = values - 0.1 * values.grad
    assert moved[1, 1] - moved[0, 1] > -0.1


@pytest.mark.parametrize("name", REWARD_LOSSES)
def test_extreme_scores_stay_finite(name: str) -> None:
    group = Group([[1e4, -1e4], [-1e4, 1e4]], [[7, 9], [7, 8]], [1, 2], [0.0, 1.0])
    for turned in (group, group.turned([1, 0])):
        values = judged_of([turned]).positions.value_ST.float().requires_grad_()
        loss = loss_of(name, judged_of([turned], values))
        loss.backward()
        assert loss.isfinite() and values.grad is not None and values.grad.isfinite().all()


@pytest.mark.parametrize("name", [name for name, row in REWARD_LOSSES.items() if row.reads in ("pairs", "orders")])
def test_a_tie_of_all_says_nothing_and_is_no_nan(name: str) -> None:
    tied = Group([[0.3], [0.1]], [[9], [8]], [1, 1], [0.0, 0.0])
    at = judged_of([tied]).positions
    judged = judgements(t64([0.3, 0.1]).requires_grad_(), [(1, 1)], positions=at)
    loss, stats = REWARD_LOSSES[name].loss(judged, 1.0, 0.01)
    near(loss, 0.0, 1e-12)
    assert all(value == 0 for value in stats.values())


def test_rows_and_their_names() -> None:
    assert all(RewardConfig(loss=name).loss == name for name in REWARD_LOSSES)
    assert all(CombineConfig(rule=name).rule == name for name in ENSEMBLE_RULES)
    with pytest.raises(ValueError, match="rows are mean, min, uwo "):
        CombineConfig(rule="mine:rule")  # a reward model's folder names it: it must load anywhere


def test_half_ties_keep_the_order_of_places() -> None:
    chosen, rejected, weight = group_pairs([(2, 1, 2)], [3.0], half_ties=True)
    assert set(zip(chosen.tolist(), rejected.tolist(), strict=True)) == {(1, 0), (1, 2), (0, 2)}
    near(weight, [1.0] * 3)


# -- ensembles ---------------------------------------------------------------------------------------------------------


def test_rules_of_an_ensemble_of_five() -> None:
    score = t64([[1.0, 2.0, 3.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    near(ENSEMBLE_RULES["mean"].combine(score, 0.5), [2.0, 0.0])
    near(ENSEMBLE_RULES["min"].combine(score, 0.5), [1.0, 0.0])
    # variance (1 + 0 + 1 + 0 + 0) / 5 = .4: 2 - .5 * .4; the unbiased one (.5) is 5/4 of it
    near(ENSEMBLE_RULES["uwo"].combine(score, 0.5), [1.8, 0.0])
    near(ENSEMBLE_RULES["uwo"].combine(score, 0.5 * 5 / 4), [1.75, 0.0])
    near(ENSEMBLE_RULES["uwo"].combine(score[:, :1], 0.5), [1.0, 0.0])  # alone: no disagreement, no NaN


def test_correlation_by_hand() -> None:
    # x - mean = -1, 0, 1; y - mean = -4/3, -1/3, 5/3: (4/3 + 5/3) / sqrt(2 * 42/9)
    near(correlation(t64([1.0, 2.0, 3.0]), t64([0.0, 1.0, 3.0])), 3 / math.sqrt(2 * 42 / 9))
    near(correlation(t64([1.0, 1.0]), t64([0.0, 1.0])), 0.0)


# -- parity ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("margin", "center_coef", "wanted"),
    [(False, 0.0, 0.52148229), (True, 0.0, 0.75542963), (False, 0.01, 0.53613228)],
)
def test_pairs_agree_with_trl(margin: bool, center_coef: float, wanted: float) -> None:
    """TRL 1.16.0: `RewardTrainer.compute_loss` was run on these logits, margins and coefficient, in fp32."""
    chosen, rejected = [1.5, -0.3, 2.0, 0.7], [0.2, 0.4, -1.0, 0.7]
    scores = torch.tensor([score for pair in zip(chosen, rejected, strict=True) for score in pair])
    margins = [1.0, 1 / 3, 0.0, 2 / 3] if margin else None
    judged = judgements(scores, [(1, 2)] * 4, margins=margins)
    near(loss_of("bradley_terry", judged, 4.0, center_coef), wanted)
