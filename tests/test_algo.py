"""Formulas against numbers worked out by hand, closed forms and torch's own autograd.

Shapes: B sequences, T tokens, N tokens or pairs, V vocabulary, D width.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from accord.algo import logprob
from accord.algo.advantages import Rewarded, gae, token_rewards, whitened_gae
from accord.algo.kl import AdaptiveKL, kl_k1, kl_k3
from accord.algo.length import LengthController
from accord.algo.logprob import token_logp, token_nll
from accord.algo.product import prepacked, product, sum_of_outer
from accord.algo.reductions import masked_mean, masked_whiten
from accord.algo.reward_loss import bradley_terry_loss, group_pairs, ranking_loss, self_distillation
from accord.algo.table import POLICY_ALGORITHMS, Named
from accord.config import RlConfig


def t64(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def near(got: Tensor | float, wanted: object, atol: float = 1e-6) -> None:
    got = torch.as_tensor(got)
    torch.testing.assert_close(got, torch.as_tensor(wanted, dtype=got.dtype), rtol=0.0, atol=atol)


# -- reward losses -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_bradley_terry_values() -> None:
    # log(1 + e^-D): D=0 log 2; D=1 log(1 + .367879) = .313262; D=-1 is one more; D=-50 is 50 up to e^-50
    gap = t64([0.0, 1.0, 2.0, -1.0, 50.0, -50.0])
    loss = bradley_terry_loss(gap, torch.zeros_like(gap))
    near(loss[:4], [0.693147, 0.313262, 0.126928, 1.313262])
    assert float(loss[4]) == pytest.approx(1.9287498e-22, rel=1e-6)
    assert float(loss[5]) == pytest.approx(50.0, abs=1e-12)
    assert bradley_terry_loss(torch.tensor([1e4]), torch.tensor([-1e4])).isfinite().all()
    assert bradley_terry_loss(torch.tensor([-1e4]), torch.tensor([1e4])).isfinite().all()


def test_bradley_terry_with_a_soft_label_is_a_cross_entropy() -> None:
    # sigmoid(ln 3) = 3/4; against a label of 2/3: -(2/3 ln 3/4 + 1/3 ln 1/4) = 0.653886
    chosen, rejected = t64([math.log(3.0)]).requires_grad_(), t64([0.0])
    loss = bradley_terry_loss(chosen, rejected, t64([2 / 3]))
    assert loss.item() == pytest.approx(0.653886, abs=1e-6)
    loss.backward()
    assert chosen.grad is not None
    assert chosen.grad.item() == pytest.approx(3 / 4 - 2 / 3)  # model minus label


def test_self_distillation_by_hand() -> None:
    # The first text reads ln 3 three times; the second ln 3 (its score), 0 and 0. So the teacher (the means) sees a gap
    # of 2/3 ln 3 and the score none.
    ln3 = math.log(3.0)
    reading = t64([[ln3, ln3, ln3], [ln3, 0.0, 0.0]]).requires_grad_()
    loss = self_distillation(reading, *group_pairs([(1, 2)], [3.0]), 6.0)
    assert loss.item() == pytest.approx(0.5 * math.log(2.0))  # any label, even odds: ln 2; weight 3 of 6
    loss.backward()
    teacher = 1 / (1 + 3 ** (-2 / 3))
    assert reading.grad is not None
    assert reading.grad.flatten().tolist() == pytest.approx([0.5 * (0.5 - teacher), 0, 0, 0.5 * (teacher - 0.5), 0, 0])


def test_bradley_terry_gradient() -> None:
    chosen, rejected = t64([1.5]).requires_grad_(), t64([0.5]).requires_grad_()
    bradley_terry_loss(chosen, rejected).sum().backward()
    # -sigmoid(-1) = -1 / (1 + e) = -1 / 3.718282
    near(chosen.grad, [-0.268941])
    near(rejected.grad, [0.268941])


def test_centring_adds_the_squared_sum() -> None:
    # gap 2 -> .126928; .01 * (1.5 - .5)^2 = .01
    loss, stats = ranking_loss(t64([1.5, -0.5]), *group_pairs([(1, 2)]), 1.0, 0.01)
    near(loss, 0.136928)
    near(stats["accuracy"], 1.0)
    near(stats["margin"], 2.0)


def test_all_pairs_of_a_group_of_four() -> None:
    score = t64([2.0, 1.0, 0.0, -1.0]).requires_grad_()
    chosen, rejected, weight = group_pairs([(1, 2, 3, 4)])
    # three gaps of 1, two of 2, one of 3: 3 * .313262 + 2 * .126928 + .048587 = 1.242228, over 6 pairs
    loss, stats = ranking_loss(score, chosen, rejected, weight, 1.0, 0.0)
    near(loss, 0.207038)
    loss.backward()
    # best: -(s(-1) + s(-2) + s(-3)) / 6 = -(.268941 + .119203 + .047426) / 6
    near(score.grad, [-0.072595, -0.019867, 0.019867, 0.072595])
    near(score.grad.sum(), 0.0, 1e-12)
    # gaps 1, 1, 1, 2, 2, 3
    near(stats["margin"], 10 / 6)
    assert len(weight) == 6


def test_a_group_of_nine_weighs_as_much_as_one_of_four() -> None:
    score = torch.cat([t64([2.0, 1.0, 0.0, -1.0]), torch.linspace(2, -2, 9, dtype=torch.float64)])
    pairs = group_pairs([tuple(range(1, 5)), tuple(range(1, 10))])
    loss, _ = ranking_loss(score, *pairs, 2.0, 0.0)
    # mean over prompts (.207038 + .232432) / 2; the mean over all 42 pairs would be .228804
    near(loss, 0.219735)
    assert len(pairs[0]) == 6 + 36
    near(pairs[2].sum(), 2.0)


def test_ties_give_no_pair_and_the_rest_share_the_weight() -> None:
    chosen, rejected, weight = group_pairs([(2, 1, 2, 3), (1, 1), (2, 1)], [1.0, 5.0, 0.5])
    # group 0: 1 beats 0, 2, 3; 0 and 2 beat 3: five pairs; group 1 is one tie; group 2 starts at completion 6
    assert set(zip(chosen.tolist(), rejected.tolist(), strict=True)) == {(1, 0), (1, 2), (1, 3), (0, 3), (2, 3), (7, 6)}
    near(weight, [0.2] * 5 + [0.5])


def test_equal_scores_count_half() -> None:
    # pairs: (0 beats 1) tie of scores, (0 beats 2) right, (1 beats 2) right
    _, stats = ranking_loss(t64([1.0, 1.0, 0.0]), *group_pairs([(1, 2, 3)]), 1.0, 0.0)
    near(stats["accuracy"], 2.5 / 3)
    _, stats = ranking_loss(t64([0.0, 1.0]), *group_pairs([(1, 2)]), 1.0, 0.0)
    near(stats["accuracy"], 0.0)


@given(
    groups=st.lists(st.lists(st.tuples(st.integers(1, 4), st.floats(-3, 3)), min_size=2, max_size=6), min_size=1),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_ranking_loss_is_the_sum_over_any_split_into_micro_batches(
    groups: list[list[tuple[int, float]]], data: st.DataObject
) -> None:
    ranks = [[rank for rank, _ in g] for g in groups]
    scores = [t64([score for _, score in g]) for g in groups]
    weights = [1.0 + i for i in range(len(groups))]
    whole, stats = ranking_loss(torch.cat(scores), *group_pairs(ranks, weights), sum(weights), 0.01)
    cut = data.draw(st.integers(0, len(groups)))
    parts = [
        ranking_loss(torch.cat(scores[part]), *group_pairs(ranks[part], weights[part]), sum(weights), 0.01)
        for part in (slice(0, cut), slice(cut, None))
        if scores[part]
    ]
    near(sum(loss for loss, _ in parts), whole)
    near(sum(s["accuracy"] for _, s in parts), stats["accuracy"])


# -- KL ----------------------------------------------------------------------------------------------------------------


def test_kl_estimators_on_three_tokens() -> None:
    pi, ref = t64([0.5, 0.3, 0.2]), t64([0.4, 0.4, 0.2])
    k1, k3 = kl_k1(pi.log(), ref.log()), kl_k3(pi.log(), ref.log())
    # k1 = log(pi / ref): log 1.25, log .75, 0; k3 = ref / pi - 1 + k1: .8 - 1 + .223144, 1.333333 - 1 - .287682, 0
    near(k1, [0.223144, -0.287682, 0.0])
    near(k3, [0.023144, 0.045651, 0.0])
    # KL(pi || ref) = .5 * .223144 - .3 * .287682 = .025267; the other direction would be .025815
    near((pi * k1).sum(), 0.0252672)
    near((pi * k3).sum(), 0.0252672)
    # logr = log ref - log pi: e^.5 - 1 - .5, e^-.5 - 1 + .5, e - 1 - 1
    near(kl_k3(t64([-0.5, 0.5, -1.0]), t64([0.0, 0.0, 0.0])), [0.148721, 0.106531, 0.718282])


def test_k3_as_a_loss_pulls_towards_the_other_kl() -> None:
    pi, ref = t64([0.5, 0.3, 0.2]), t64([0.4, 0.4, 0.2])
    logits = pi.log().requires_grad_()
    logp = torch.log_softmax(logits, 0)
    (pi * kl_k3(logp, ref.log())).sum().backward()
    # the gradient of KL(ref || pi) by the logits is pi - ref; that of KL(pi || ref) would be [.098938, -.093885, ...]
    near(logits.grad, [0.1, -0.1, 0.0])


@pytest.mark.parametrize(
    ("kl", "wanted"),
    # e = clip(kl / 6 - 1, +-.2), times .15 * (1 + e * 512 / 10000): 7.5 -> e .2; 6.3 -> .05; 3 -> -.2
    [(7.5, 0.151536), (6.3, 0.150384), (3.0, 0.148464), (6.0, 0.15)],
)
def test_adaptive_kl_one_step(kl: float, wanted: float) -> None:
    controller = AdaptiveKL(0.15, target=6.0, horizon=10_000)
    controller.update(kl, 512)
    assert controller.coef == pytest.approx(wanted, abs=1e-9)


def test_adaptive_kl_hundred_steps() -> None:
    controller = AdaptiveKL(0.15, target=6.0)
    for _ in range(100):
        controller.update(12.0, 512)
    # .15 * 1.01024^100 = .15 * e^(100 * .01018792)
    assert controller.coef == pytest.approx(0.415477, abs=1e-6)


def test_kl_coefficient_stays_without_a_target() -> None:
    controller = AdaptiveKL(0.05)
    controller.update(100.0, 1000)
    assert controller.coef == 0.05


def test_length_controller_by_hand() -> None:
    controller = LengthController(target=20.0, rate=0.02)
    near(controller.bonus(t64([5.0, 20.0, 60.0])), [0.0, 0.0, 0.0])
    controller.update(16.0)  # 1 - 16 / 20 = .2 too short: .02 * .2 = .004, and 5 * .02 * .2 = .02 on top
    assert controller.price == pytest.approx(0.024)
    # .024 * (tokens / 20 - 1): 10 -> -.012, 20 -> 0, 40 -> .024
    near(controller.bonus(t64([10.0, 20.0, 40.0])), [-0.012, 0.0, 0.024])
    controller.update(80.0)  # 1 - 4 = -3, held at -.5: .004 - .01 and 5 * .02 * -.5
    assert controller.price == pytest.approx(-0.006 - 0.05)
    near(controller.bonus(t64([10.0, 40.0])), [0.028, -0.056])
    controller.update(1.0)  # .95, held at .5: -.006 + .01 and .05
    assert controller.price == pytest.approx(0.004 + 0.05)


def test_length_controller_finds_the_price_that_holds_the_length() -> None:
    """A writer that follows the price slowly: 10 tokens at price 0, one more for each .01, a tenth of it at a time."""
    controller, length, longest = LengthController(target=20.0, rate=0.01), 10.0, 0.0
    for _ in range(600):
        controller.update(length)
        length += 0.1 * (10.0 + 100.0 * controller.price - length)
        longest = max(longest, length)
    assert length == pytest.approx(20.0, abs=0.01)
    assert controller.price == pytest.approx(0.1, abs=1e-4)
    assert longest < 22.0


# -- rewards and advantages --------------------------------------------------------------------------------------------

REWARD, VALUE = [-0.01, -0.02, 0.0, 1.0], [0.2, 0.3, 0.4, 0.5]


@pytest.mark.parametrize(
    ("discount", "lam", "advantage"),
    [
        # deltas: -.01 + .3 - .2 = .09; -.02 + .4 - .3 = .08; .5 - .4 = .1; 1 - .5 = .5
        (1.0, 0.0, [0.09, 0.08, 0.1, 0.5]),
        # their sums from the end
        (1.0, 1.0, [0.77, 0.68, 0.6, 0.5]),
        # .5; .1 + .95 * .5 = .575; .08 + .95 * .575 = .62625; .09 + .95 * .62625 = .6849375
        (1.0, 0.95, [0.6849375, 0.62625, 0.575, 0.5]),
        # deltas .06, .04, .05, .5; .72 each step: .05 + .36 = .41; .04 + .2952; .06 + .72 * .3352
        (0.9, 0.8, [0.301344, 0.3352, 0.41, 0.5]),
    ],
)
def test_gae_by_hand(discount: float, lam: float, advantage: list[float]) -> None:
    mask = torch.ones(1, 4, dtype=torch.bool)
    got, returns = gae(t64([REWARD]), t64([VALUE]), mask, discount, lam)
    near(got[0], advantage)
    near(returns[0], [a + v for a, v in zip(advantage, VALUE, strict=True)])


def test_gae_score_on_the_last_token() -> None:
    # r = [0, 0, 0, 1]: deltas .1, .1, .1, .5; the score one step later, as TRL has it, would give .690360 first
    mask = torch.ones(1, 4, dtype=torch.bool)
    got, _ = gae(t64([[0.0, 0.0, 0.0, 1.0]]), t64([VALUE]), mask, 1.0, 0.95)
    near(got[0], [0.713937, 0.646250, 0.575, 0.5])


def test_gae_with_no_critic_and_lam_one_is_the_reward_still_to_come() -> None:
    reward = torch.randn(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(reward, dtype=torch.bool)
    got, returns = gae(reward, torch.zeros_like(reward), mask, 1.0, 1.0)
    to_come = reward.flip(1).cumsum(1).flip(1)
    near(got, to_come)
    near(returns, to_come)


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    extra=st.integers(0, 3),
    junk=st.floats(-1e6, 1e6),
    lam=st.floats(0, 1),
    discount=st.floats(0.1, 1),
)
@settings(max_examples=60, deadline=None)
def test_padding_never_reaches_an_advantage(
    lengths: list[int], extra: int, junk: float, lam: float, discount: float
) -> None:
    generator = torch.Generator().manual_seed(len(lengths))
    width = max(lengths) + extra
    rows = [torch.randn(2, n, dtype=torch.float64, generator=generator) for n in lengths]
    reward, value = torch.full((2, len(lengths), width), junk, dtype=torch.float64)
    mask = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
    for i, row in enumerate(rows):
        reward[i, : lengths[i]], value[i, : lengths[i]] = row
    advantage, returns = gae(reward, value, mask, discount, lam)
    assert (advantage[~mask] == 0).all()
    assert (returns[~mask] == 0).all()
    for i, (r, v) in enumerate(rows):
        alone = torch.ones(1, lengths[i], dtype=torch.bool)
        a, ret = gae(r[None], v[None], alone, discount, lam)
        near(advantage[i, : lengths[i]], a[0], 1e-9)
        near(returns[i, : lengths[i]], ret[0], 1e-9)


def test_token_rewards_by_hand() -> None:
    mask = torch.tensor([[True, True, True], [True, True, False]])
    logp, ref = t64([[-1.0, -2.0, -3.0], [-1.0, -0.5, 9.0]]), t64([[-1.5, -1.0, -3.0], [-1.0, -1.5, -9.0]])
    got = token_rewards(t64([2.0, -1.0]), logp, ref, mask, 0.1)
    # row 0: -.1 * .5, -.1 * -1, 0 + 2; row 1: 0, -.1 * 1 - 1, nothing
    near(got, [[-0.05, 0.1, 2.0], [0.0, -1.1, 0.0]])
    # a row adds up to score - kl_coef * log(pi(y) / ref(y)): 2 + .05, -1 - .1
    near(got.sum(1), [2.05, -1.1])


def test_whitening_by_hand() -> None:
    everything = torch.ones(9, dtype=torch.bool)
    ramp = t64([1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0])
    # mean 1.6, biased variance .01 * 60 / 9: (1.2 - 1.6) / .258199 = -1.549193, and the mean back: .050807
    near(masked_whiten(ramp, everything)[[0, 4, 8]], [-1.549193, 0.0, 1.549193])
    near(masked_whiten(ramp, everything, shift_mean=False)[[0, 4, 8]], [0.050807, 1.6, 3.149193])
    advantage = t64([0.6849375, 0.62625, 0.575, 0.5])
    near(masked_whiten(advantage, everything[:4]), [1.300397, 0.436990, -0.316996, -1.420391])


def test_whitening_looks_at_counted_entries_only() -> None:
    x, mask = t64([1.0, 2.0, 3.0, 100.0]), torch.tensor([True, True, True, False])
    # mean 2, biased deviation sqrt(2 / 3) = .816497
    near(masked_whiten(x, mask), [-1.224745, 0.0, 1.224745, 0.0])
    near(masked_whiten(torch.where(mask, x, math.nan), mask), [-1.224745, 0.0, 1.224745, 0.0])
    near(masked_mean(torch.where(mask, x, math.inf), mask), 2.0)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=30), st.floats(-50, 50))
@settings(max_examples=60, deadline=None)
def test_whitened_has_mean_0_and_variance_1_or_is_flat(values: list[float], junk: float) -> None:
    x = t64([*values, junk])
    mask = torch.tensor([True] * len(values) + [False])
    got = masked_whiten(x, mask)[:-1]
    near(got.mean(), 0.0, 1e-5)
    if x[:-1].std() > 1e-2:
        near(got.var(unbiased=False), 1.0, 1e-3)
    assert got.isfinite().all()


def test_flat_advantages_stay_flat() -> None:
    got = masked_whiten(torch.full((2, 3), 0.7), torch.ones(2, 3, dtype=torch.bool))
    near(got, torch.zeros(2, 3), 1e-3)


def test_ppo_row_whitens_advantages_but_not_returns() -> None:
    mask = torch.ones(1, 4, dtype=torch.bool)
    advantage, returns = whitened_gae(Rewarded(t64([REWARD]), t64([VALUE]), mask), RlConfig())
    assert returns is not None
    near(advantage[0], [1.300397, 0.436990, -0.316996, -1.420391])
    near(returns[0], [0.8849375, 0.92625, 0.975, 1.0])
    assert POLICY_ALGORITHMS["ppo"].advantages == Named("accord.algo.advantages:whitened_gae")


# -- log-probabilities without all logits ------------------------------------------------------------------------------


def direct(hidden: Tensor, weight: Tensor, target: Tensor, temperature: float) -> Tensor:
    return torch.log_softmax(hidden @ weight.T / temperature, -1).gather(1, target[:, None]).squeeze(1)


def logp_inputs(N: int, V: int, D: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden, weight = (torch.randn(rows, D, generator=generator).requires_grad_() for rows in (N, V))
    return hidden, weight, torch.randint(V, (N,), generator=generator)


def test_token_logp_at_temperature_by_hand() -> None:
    # logits [2, 0, 0] at .7: [2.857143, 0, 0] - log(17.411708 + 2) = -.108734, -2.965876, -2.965876
    logits = torch.tensor([[2.0, 0.0, 0.0]]).expand(3, 3)
    got, entropy = token_logp(logits, torch.eye(3), torch.arange(3), 0.7)
    near(got, [-0.108734, -2.965876, -2.965876])
    assert (entropy == 0).all()


@pytest.mark.parametrize("chunk_entries", [1, 40, 2_097_152])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_logp_equals_log_softmax_and_so_do_its_gradients(
    chunk_entries: int, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprob, "CHUNK_ENTRIES", chunk_entries)
    hidden, weight, target = logp_inputs(N=17, V=11)
    pull = torch.randn(17, generator=torch.Generator().manual_seed(5))
    wanted = direct(hidden, weight, target, temperature)
    wanted_grads = torch.autograd.grad((wanted * pull).sum(), (hidden, weight))
    got, entropy = token_logp(hidden, weight, target, temperature, entropy=True)
    grads = torch.autograd.grad((got * pull).sum(), (hidden, weight))
    near(got, wanted.detach(), 1e-5)
    near(grads[0], wanted_grads[0], 1e-5)
    near(grads[1], wanted_grads[1], 1e-5)
    law = torch.distributions.Categorical(logits=(hidden @ weight.T / temperature).detach())
    near(entropy.detach(), law.entropy(), 1e-5)


@pytest.mark.parametrize("chunk_entries", [1, 40, 2_097_152])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_entropy_and_logp_together_have_the_gradients_that_autograd_finds(
    chunk_entries: int, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprob, "CHUNK_ENTRIES", chunk_entries)
    hidden, weight, target = logp_inputs(N=17, V=11)
    pull = torch.randn(2, 17, generator=torch.Generator().manual_seed(5))
    law = torch.distributions.Categorical(logits=hidden @ weight.T / temperature)
    wanted = torch.autograd.grad((law.log_prob(target) * pull[0] + law.entropy() * pull[1]).sum(), (hidden, weight))
    logp, entropy = token_logp(hidden, weight, target, temperature, entropy=True)
    both = torch.autograd.grad((logp * pull[0] + entropy * pull[1]).sum(), (hidden, weight), retain_graph=True)
    near(both[0], wanted[0], 1e-5)
    near(both[1], wanted[1], 1e-5)
    alone = torch.autograd.grad((entropy * pull[1]).sum(), hidden)
    law = torch.distributions.Categorical(logits=hidden @ weight.T / temperature)
    near(alone[0], torch.autograd.grad((law.entropy() * pull[1]).sum(), hidden)[0], 1e-5)


@pytest.mark.parametrize("rows", [1, 7, 300])
def test_token_nll_and_its_gradients_equal_cross_entropy(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprob, "CHUNK_ENTRIES", 64 * 11)  # 64 rows a chunk
    torch.manual_seed(rows)
    hidden, weight = torch.randn(rows, 5, requires_grad=True), torch.randn(11, 5, requires_grad=True)
    target = torch.randint(11, (rows,))
    found = token_nll(hidden, weight, target)
    expected = torch.nn.functional.cross_entropy(hidden.double() @ weight.double().T, target, reduction="sum")
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    ours = torch.autograd.grad(0.3 * found, (hidden, weight))
    theirs = torch.autograd.grad(0.3 * expected, (hidden, weight))
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, other.float(), atol=1e-5)


def test_token_logp_gradient_by_finite_differences() -> None:
    hidden, weight, target = logp_inputs(N=5, V=9, seed=3)
    direction = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1))
    (grad,) = torch.autograd.grad(token_logp(hidden, weight, target, 0.8)[0].sum(), hidden)
    step = 1e-2
    ends = [hidden.detach() + s * direction for s in (step, -step)]
    up, down = (float(token_logp(h, weight.detach(), target, 0.8)[0].double().sum()) for h in ends)
    assert float((grad * direction).sum()) == pytest.approx((up - down) / (2 * step), abs=2e-3)


def test_token_logp_survives_huge_logits() -> None:
    hidden = torch.tensor([[1e4, 0.0]], requires_grad=True)
    got, entropy = token_logp(hidden, torch.eye(2), torch.tensor([1]), entropy=True)
    got.sum().backward()
    near(got.detach(), [-1e4])
    near(entropy, [0.0])
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()


def test_token_logp_in_bf16_keeps_fp32_results() -> None:
    hidden, weight, target = logp_inputs(N=8, V=50)
    got, entropy = token_logp(hidden.bfloat16(), weight.bfloat16(), target, entropy=True)
    assert got.dtype == entropy.dtype == torch.float32
    # bf16 keeps 8 bits: logits of size about 2.4 are off by up to 1 %
    near(got.detach(), direct(hidden, weight, target, 1.0).detach(), 0.1)
    probabilities = torch.stack([token_logp(hidden, weight, torch.full((8,), v))[0] for v in range(50)]).exp()
    near(probabilities.sum(0).detach(), torch.ones(8), 1e-5)


# -- products ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 40, 300])
def test_a_product_of_bf16_is_the_exact_one_rounded_once(rows: int) -> None:
    """By hand: 8 bits hold a number to 2^-8 of itself. What is summed in bf16 would be off by more, or rounded twice.

    float64 holds each product of two bf16 numbers, and sums 512 of them to 1e-13.
    """
    draw = torch.Generator().manual_seed(rows)
    x, weight = (torch.randn(n, 512, generator=draw).bfloat16() for n in (rows, 96))
    for got, exact in (
        (product(x, weight), x.double() @ weight.double().T),
        (product(x, weight.T.contiguous().T), x.double() @ weight.double().T),
        (prepacked(weight, None)(x), x.double() @ weight.double().T),
        (sum_of_outer(x, x[:, :64].contiguous()), x.double().T @ x[:, :64].double()),
    ):
        assert got.dtype == torch.bfloat16 and got.shape == exact.shape
        # 1e-4: sums of 512 products in fp32.
        assert ((got.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-4).all()
