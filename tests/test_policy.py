"""Policy optimisation: formulas by hand, rows of the table on tasks whose optimum is known in closed form.

Shapes: B sequences, T tokens, N tokens, V actions.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from accord.algo import advantages as credit
from accord.algo.advantages import Rewarded, gae, token_rewards
from accord.algo.kl import TrustRegion, k3_naive, ratio_weighted_k3
from accord.algo.policy_loss import (
    Tokens,
    clipped,
    clipped_value_loss,
    explained_variance,
    fixed_length,
    policy_gradient,
    sequence_mean,
    sequence_sum,
    token_mean,
    trust_region,
    update_stats,
)
from accord.algo.shaping import RunningMoments, overlong
from accord.algo.table import KL_PLACES, POLICY_ALGORITHMS, PolicyAlgorithm
from accord.config import RlConfig
from accord.errors import UsageError
from accord.train.rl import find_algorithm

GROUPED = sorted(name for name, algorithm in POLICY_ALGORITHMS.items() if algorithm.min_group > 1)


def t64(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def near(got: Tensor | float, wanted: object, atol: float = 1e-6) -> None:
    got = torch.as_tensor(got)
    torch.testing.assert_close(got, torch.as_tensor(wanted, dtype=got.dtype), rtol=0.0, atol=atol)


def tokens(logp: Tensor, old: Tensor, advantage: Tensor) -> Tokens:
    return Tokens(logp, old, advantage, torch.zeros(len(logp), dtype=torch.long))


def kl_loss(place: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The term of the loss of one of the places where KL is paid."""
    loss = KL_PLACES[place].loss
    assert loss is not None
    return loss


# -- the table ---------------------------------------------------------------------------------------------------------


def test_configuration_and_table_know_the_same_rows() -> None:
    known = RlConfig.model_json_schema()["properties"]["algorithm"]["anyOf"][0]["enum"]
    assert known == list(POLICY_ALGORITHMS)
    assert RlConfig.model_json_schema()["properties"]["kl_in"]["enum"] == ["auto", *KL_PLACES]
    assert {algorithm.kl_in for algorithm in POLICY_ALGORITHMS.values()} <= KL_PLACES.keys()


@pytest.mark.parametrize("name", GROUPED)
def test_rows_that_compare_completions_get_several_by_default(name: str) -> None:
    assert RlConfig(algorithm=name).samples_per_prompt >= POLICY_ALGORITHMS[name].min_group


def test_what_is_given_wins_over_what_the_algorithm_has() -> None:
    assert RlConfig(algorithm="dapo").trust.clip_high == 0.28
    assert RlConfig(algorithm="dapo", trust={"clip_high": 0.4}).trust.clip_high == 0.4
    assert RlConfig(algorithm="grpo", samples_per_prompt=4).samples_per_prompt == 4


#: Two completions of one prompt, of 1 and of 3 tokens, score 1 and 3. Their tokens' log-probabilities are -1 and -2,
#: the ratios 1.1 and .9. Loss by hand, and where the KL to the reference lives. With a = 1 / (sqrt 2 + 1e-4) = .707057:
WHOLE_ROWS = {
    # returns 1 | 3, 3, 3: mean 2.5, deviation sqrt .75; (1.1 * 1.5 - 3 * .9 * .5) / .866025 / 4 tokens
    "ppo": (0.0866025, "reward"),
    # -A log pi: (1 * 1 + 3 * 6) / 2 completions
    "reinforce": (9.5, "reward"),
    # less the running mean 2.5: (-1.5 * 1 + .5 * 6) / 2
    "reinforce_baseline": (0.75, "reward"),
    # A = -2 | 2: (-2 * 1 + 2 * 6) / 2
    "rloo": (5.0, "reward"),
    # A = -a | a: (1.1 a - .9 a) / 2
    "grpo": (0.0707057, "loss"),
    # A = -1 | 1: (1.1 - 3 * .9) / 2 / 10 tokens of room
    "dr_grpo": (-0.08, "loss"),
    # A = -a | a: (1.1 a - 3 * .9 a) / 4 tokens
    "dapo": (-0.2828227, "loss"),
    # A = 0 | 1, and of the chosen one's tokens alone the mean: 2 * 3 / 3 tokens
    "raft": (2.0, "loss"),
}


@pytest.mark.parametrize("name", POLICY_ALGORITHMS)
def test_every_row_as_a_whole_by_hand(name: str) -> None:
    row = POLICY_ALGORITHMS[name]
    config = RlConfig(algorithm=name, max_new_tokens=10, **({"gae_lambda": 1.0} if row.critic else {}))
    mask = torch.tensor([[True, False, False, False], [True, True, True, False]])
    zero = torch.zeros(2, 4, dtype=torch.float64)
    reward = token_rewards(t64([1.0, 3.0]), zero, zero, mask, 0.0)
    advantage, _ = row.advantages(Rewarded(reward, zero, mask, 2, running_return=2.5), config)
    logp, ratio = t64([-1.0, -2.0, -2.0, -2.0]), t64([1.1, 0.9, 0.9, 0.9])
    loss_N = row.surrogate(Tokens(logp, logp - ratio.log(), advantage[mask], torch.tensor([0, 1, 1, 1])), config)
    weight_B = row.aggregate(t64([0.0 if row.only_chosen else 1.0, 3.0]), config)
    loss, place = WHOLE_ROWS[name]
    near((weight_B[[0, 1, 1, 1]] * loss_N).sum(), loss)
    assert row.kl_in == place
    assert row.drop_zero_variance == (name == "dapo")


# -- surrogates --------------------------------------------------------------------------------------------------------

CASES = [
    # ratio, advantage, clip .2, clip-higher .28, dual clip 3
    (1.0, 1.0, -1.0, -1.0, -1.0),
    (1.5, 1.0, -1.2, -1.28, -1.2),  # min(1.5, 1.2)
    (0.5, 1.0, -0.5, -0.5, -0.5),  # min(.5, .8)
    (1.5, -1.0, 1.5, 1.5, 1.5),  # min(-1.5, -1.2)
    (0.5, -1.0, 0.8, 0.8, 0.8),  # min(-.5, -.8)
    (5.0, -1.0, 5.0, 5.0, 3.0),  # max(-5, -3)
]


@pytest.mark.parametrize(("ratio", "advantage", "plain", "higher", "dual"), CASES)
def test_clipped_surrogate_by_hand(ratio: float, advantage: float, plain: float, higher: float, dual: float) -> None:
    one = tokens(t64([ratio]).log(), t64([0.0]), t64([advantage]))
    near(clipped(one, RlConfig()), [plain])
    near(clipped(one, RlConfig(trust={"clip_high": 0.28})), [higher])
    near(clipped(one, RlConfig(trust={"dual_clip": 3.0})), [dual])
    near(clipped(one, RlConfig(clip=None, trust={"coef": 1.0})), [-ratio * advantage])


def test_clipped_surrogate_token_by_token() -> None:
    ratio, advantage = t64([0.6, 0.9, 1.1, 1.7]), t64([2.0, -1.0, 0.5, -3.0])
    # min(.6 * 2, .8 * 2), min(-.9, -.9), min(.55, .55), min(-5.1, -3.6), each with the sign turned
    near(clipped(tokens(ratio.log(), torch.zeros(4), advantage), RlConfig()), [-1.2, 0.9, -0.55, 5.1])


def test_what_an_update_moved_is_counted() -> None:
    log_ratio = t64([-0.3, 0.0, 0.1, 0.3]).requires_grad_()
    moved = tokens(log_ratio, torch.zeros(4), torch.ones(4))
    stats = update_stats(moved, RlConfig())
    # e^x - 1 - x: .040818, 0, .005171, .049859, sum 4 * .023962; e^-.3 = .740818 < .8 and e^.3 = 1.349859 > 1.2
    near(stats["approx_kl"], 4 * 0.023962, 4e-6)
    near(stats["clip_low"], 1)
    near(stats["clip_high"], 1)
    near(stats["ratio_max"], 1.349859)
    near(stats["ratio_min"], 0.740818)
    (clipped(moved, RlConfig()) / 4).sum().backward()
    # with A = +1 only the token above 1.2 loses its gradient; the others keep -rho / 4
    near(log_ratio.grad, [-0.740818 / 4, -0.25, -1.105171 / 4, 0.0])


@pytest.mark.parametrize("surrogate", [clipped, policy_gradient])
def test_extreme_ratios_stay_finite(surrogate: Any) -> None:
    extreme = tokens(torch.tensor([0.0, -900.0]), torch.tensor([-900.0, 0.0]), -torch.ones(2))
    assert surrogate(extreme, RlConfig()).isfinite().all()
    assert trust_region(extreme).isfinite().all()
    assert all(value.isfinite() for value in update_stats(extreme, RlConfig()).values())


def test_gradient_at_ratio_one_is_reinforce() -> None:
    for surrogate in (clipped, policy_gradient):
        logits = t64([1.0, 2.0, 1.0, 1.0]).requires_grad_()
        logp = torch.log_softmax(logits, 0)[1:2]
        surrogate(tokens(logp, logp.detach(), t64([1.0])), RlConfig()).sum().backward()
        # d log p(1) = onehot - softmax: e / (e^2 + 3 e) = .174878, 1 - .475367
        near(-logits.grad, [-0.174878, 0.524633, -0.174878, -0.174878])


def test_trust_region_by_hand() -> None:
    # e^x - 1 - x at .5 and -.5: .148721, .106531; nothing where nothing moved
    near(trust_region(tokens(t64([0.5, -0.5, 0.0]), t64([0.0, 0.0, 0.0]), t64([0.0] * 3))), [0.148721, 0.106531, 0.0])


def test_trust_region_has_the_gradient_of_kl_from_old_to_new() -> None:
    old = t64([0.5, 0.3, 0.2])
    logits = t64([0.1, 0.4, -0.2]).requires_grad_()
    logp = torch.log_softmax(logits, 0)
    (old * trust_region(tokens(logp, old.log(), torch.zeros(3)))).sum().backward()
    near(logits.grad, torch.softmax(logits.detach(), 0) - old)  # of -sum old log pi by the logits


def test_trust_region_price_halves_and_doubles() -> None:
    price = TrustRegion(1.0, target=0.01)
    for kl, wanted in [(0.01, 1.0), (0.0151, 2.0), (0.0149, 2.0), (0.0066, 1.0), (0.0068, 1.0)]:
        price.update(kl)
        assert price.coef == wanted
    fixed = TrustRegion(1.0)
    fixed.update(9.0)
    assert fixed.coef == 1.0


SMOOTH = RlConfig(trust={"dual_clip": 3.0, "clip_high": 0.28})


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, a: clipped(tokens(x, torch.zeros(5), a), SMOOTH),
        lambda x, a: policy_gradient(tokens(x, torch.zeros(5), a), SMOOTH),
        lambda x, a: trust_region(tokens(x, torch.zeros(5), a)),
        lambda x, a: ratio_weighted_k3(x, a, x),
        lambda x, a: k3_naive(x, a, x),
        lambda x, a: clipped_value_loss(x, a, a + 1.0, 0.2, 5.0),
    ],
)
def test_gradients_agree_with_finite_differences(loss: Any) -> None:
    x = t64([-0.5, -0.1, 0.05, 0.15, 1.7]).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, t64([1.0, -1.0, 2.0, -0.5, -1.0])), (x,))


# -- aggregates --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("aggregate", "wanted"),
    # [1, 1, 1, 1, 10] and [1 x 9, 10]: (14 / 5 + 19 / 10) / 2; 33 / 15; (14 + 19) / 2; over 10 tokens: 1.4 and 1.9
    [(sequence_mean, 2.35), (token_mean, 2.2), (sequence_sum, 16.5), (fixed_length, 1.65)],
)
def test_aggregates_by_hand(aggregate: Any, wanted: float) -> None:
    losses = [t64([1.0] * 4 + [10.0]), t64([1.0] * 9 + [10.0])]
    weight_B = aggregate(t64([5.0, 10.0]), RlConfig(max_new_tokens=10))
    near(sum(w * row.sum() for w, row in zip(weight_B, losses, strict=True)), wanted)


def test_token_mean_over_micro_batches_of_unequal_size() -> None:
    # losses [1, 1, 1, 1] and [4] of one minibatch: 8 / 5 = 1.6; the mean of the two means would be 2.5
    weight = token_mean(t64([4.0, 1.0]), RlConfig())
    near(weight[0] * t64([1.0] * 4).sum() + weight[1] * 4.0, 1.6)
    zero = torch.zeros(5)
    parts = [
        clipped_value_loss(zero[s], zero[s], torch.tensor([1.0, 1, 1, 1, 2])[s], 9.0, 5.0) for s in (slice(4), [4])
    ]
    near(sum(parts), 0.8)  # squared errors halved: (4 * .5 + 2) / 5


# -- advantages of groups ----------------------------------------------------------------------------------------------


def rewarded(returns: list[float], group: int, running: float = 0.0) -> Rewarded:
    """Completions of two tokens, the second of which carries the reward; a padded third."""
    reward = torch.zeros(len(returns), 3, dtype=torch.float64)
    reward[:, 1] = t64(returns)
    mask = torch.tensor([True, True, False]).expand(len(returns), 3)
    return Rewarded(reward, torch.zeros_like(reward), mask, group, running)


@pytest.mark.parametrize(
    ("advantages", "wanted"),
    [
        # mean 3; of the others 11/3, 10/3, 3, 2
        (credit.leave_one_out, [-2.666667, -1.333333, 0.0, 4.0]),
        # deviations -2, -1, 0, 3 over sqrt(14 / 3) = 2.160247, to which 1e-4 is added
        (credit.group_normalised, [-0.925777, -0.462889, 0.0, 1.388666]),
        (credit.group_centred, [-2.0, -1.0, 0.0, 3.0]),
        (credit.best_of_group, [0.0, 0.0, 0.0, 1.0]),
        (credit.whole_return, [1.0, 2.0, 3.0, 6.0]),
        (credit.above_running_mean, [-1.5, -0.5, 0.5, 3.5]),
    ],
)
def test_group_advantages_by_hand(advantages: Any, wanted: list[float]) -> None:
    advantage_BT, returns = advantages(rewarded([1.0, 2.0, 3.0, 6.0], 4, running=2.5), RlConfig())
    near(advantage_BT[:, 0], wanted)
    near(advantage_BT[:, 1], wanted)
    assert (advantage_BT[:, 2] == 0).all()
    assert returns is None


def test_two_of_eight_right() -> None:
    returns = rewarded([1.0, 1.0] + [0.0] * 6, 8)
    # mean .25, unbiased deviation sqrt(8 * .25 * .75 / 7) = .462910
    near(credit.group_centred(returns, RlConfig())[0][:3, 0], [0.75, 0.75, -0.25])
    near(credit.leave_one_out(returns, RlConfig())[0][:3, 0], [0.857143, 0.857143, -0.285714])
    near(credit.group_normalised(returns, RlConfig())[0][:3, 0], [1.620185, 1.620185, -0.540062], 4e-4)


@pytest.mark.parametrize("name", [name for name in GROUPED if name != "raft"])
def test_a_group_whose_scores_are_all_equal_teaches_nothing(name: str) -> None:
    advantage, _ = POLICY_ALGORITHMS[name].advantages(rewarded([2.0] * 4 + [1.0, 2.0, 3.0, 4.0], 4), RlConfig())
    assert (advantage[:4] == 0).all()
    assert advantage[4:, :2].abs().min() > 0


@given(st.lists(st.floats(-5, 5), min_size=4, max_size=4), st.lists(st.floats(-5, 5), min_size=4, max_size=4))
@settings(max_examples=50, deadline=None)
def test_groups_do_not_see_each_other(first: list[float], second: list[float]) -> None:
    for name in GROUPED:
        both, _ = POLICY_ALGORITHMS[name].advantages(rewarded(first + second, 4), RlConfig())
        alone, _ = POLICY_ALGORITHMS[name].advantages(rewarded(second, 4), RlConfig())
        near(both[4:], alone)


@pytest.mark.parametrize("name", POLICY_ALGORITHMS)
@pytest.mark.parametrize("extra", [1, 5])
def test_padding_and_the_order_of_prompts_change_no_advantage(name: str, extra: int) -> None:
    generator = torch.Generator().manual_seed(extra)
    logp, ref, value = torch.randn(3, 8, 4, dtype=torch.float64, generator=generator)
    score = torch.randn(8, dtype=torch.float64, generator=generator)
    mask = torch.arange(4) < torch.randint(1, 5, (8, 1), generator=generator)

    def advantages(rows: Tensor, pad: int) -> Tensor:
        def wide(x: Tensor, junk: float) -> Tensor:
            return torch.nn.functional.pad(torch.where(mask, x, junk)[rows], (0, pad), value=junk)

        counts = torch.nn.functional.pad(mask[rows], (0, pad))
        reward = token_rewards(score[rows], wide(logp, 7.0), wide(ref, -9.0), counts, 0.3)
        found = Rewarded(reward, wide(value, 50.0), counts, 4, 0.5)
        return POLICY_ALGORITHMS[name].advantages(found, RlConfig())[0]

    plain, turned = torch.arange(8), torch.tensor([4, 5, 6, 7, 0, 1, 2, 3])
    wanted = advantages(plain, 0)
    got = advantages(turned, extra)
    near(got[:, :4][turned], wanted, 1e-12)
    assert (got[:, 4:] == 0).all()


def test_whitened_rewards_keep_their_mean() -> None:
    # 1.2 ... 2.0: mean 1.6, biased deviation sqrt(.8 / 12) = .258199; the first becomes 1.6 - .4 / .258199 = .050807
    reward = t64([[1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0]])
    given_, mask = torch.zeros_like(reward), torch.ones(1, 9, dtype=torch.bool)
    config = RlConfig(shaping={"whiten": True}, gae_lambda=0.0, discount=0.999999999)
    _, returns = credit.whitened_gae(Rewarded(reward, given_, mask), config)
    assert returns is not None
    near(returns[0, [0, 8]], [0.050807, 3.149193])


# -- shaping of scores -------------------------------------------------------------------------------------------------


def test_overlong_by_hand() -> None:
    near(overlong(t64([80.0, 85.0, 90.0, 100.0, 101.0]), 100, 20), [0.0, -0.25, -0.5, -1.0, -1.0])
    near(overlong(t64([100.0]), 100, 0), [0.0])


@given(st.lists(st.lists(st.floats(-100, 100), min_size=1, max_size=5), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_running_moments_are_those_of_all_batches_together(batches: list[list[float]]) -> None:
    moments = RunningMoments()
    for batch in batches:
        moments.update(t64(batch))
    everything = t64([x for batch in batches for x in batch])
    assert moments.mean == pytest.approx(float(everything.mean()), abs=1e-9)
    deviation = float(everything.std()) if len(everything) > 1 else 0.0
    assert moments.deviation == pytest.approx(deviation if deviation > 1e-6 else 1.0, rel=1e-6, abs=1e-9)


# -- the critic --------------------------------------------------------------------------------------------------------


def test_clipped_value_loss_by_hand() -> None:
    one, old = t64([1.0]), t64([0.5])
    # v clipped to .7: R = .6: max(.16, .01) / 2; R = 2: max(1, 1.69) / 2
    near(clipped_value_loss(one, old, t64([0.6]), 0.2, 1.0), 0.08)
    near(clipped_value_loss(one, old, t64([2.0]), 0.2, 1.0), 0.845)
    # inside the clip it is half the squared error
    near(clipped_value_loss(t64([0.6]), old, t64([1.0]), 0.2, 1.0), 0.08)


def test_clipped_value_loss_stops_pulling_beyond_the_clip() -> None:
    value = t64([1.0, 0.6]).requires_grad_()
    clipped_value_loss(value, t64([0.5, 0.5]), t64([2.0, 2.0]), 0.2, 1.0).backward()
    near(value.grad, [0.0, -1.4])


def test_explained_variance() -> None:
    returns = t64([1.0, 2.0, 3.0, 4.0])
    near(explained_variance(returns + 5.0, returns), 1.0)  # a constant error does not count
    near(explained_variance(torch.zeros(4, dtype=torch.float64), returns), 0.0)
    # R - V = [0, 0, 0, 4]: variance 16 / 4 - 1 = 3; Var(R) = 1.25
    near(explained_variance(t64([1.0, 2.0, 3.0, 0.0]), returns), 1 - 3 / 1.25)
    assert explained_variance(torch.ones(3), torch.ones(3)).isfinite()


@given(
    st.lists(st.tuples(st.floats(-1, 1), st.floats(-2, 2), st.floats(-2, 2)), min_size=1, max_size=20),
    st.randoms(use_true_random=False),
    st.data(),
)
@settings(max_examples=60, deadline=None)
def test_losses_do_not_depend_on_order_or_split(
    rows: list[tuple[float, float, float]], random: Any, data: st.DataObject
) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)
    cut = data.draw(st.integers(0, len(rows)))
    total = float(len(rows))

    def losses(part: list[tuple[float, float, float]]) -> tuple[Tensor, Tensor]:
        a, b, c = t64(part).reshape(-1, 3).unbind(1)
        surrogate = clipped(tokens(a, torch.zeros_like(a), b), RlConfig()).sum() / total
        return surrogate, clipped_value_loss(a, b, c, 0.3, total)

    whole = losses(rows)
    parts = [losses(part) for part in (shuffled[:cut], shuffled[cut:]) if part]
    for i in range(2):
        near(sum(p[i] for p in parts), whole[i], 1e-9)


# -- the KL to the reference in the loss -------------------------------------------------------------------------------

PI, REF = t64([0.5, 0.3, 0.2]), t64([0.4, 0.4, 0.2])


@pytest.mark.parametrize(
    ("place", "wanted"),
    # KL(pi || ref) by the logits: pi * (log(pi / ref) - KL) = .5 * (.223144 - .025267), ...; KL(ref || pi): pi - ref
    [("loss", [0.098938, -0.093885, -0.005053]), ("loss_k3_naive", [0.1, -0.1, 0.0])],
    ids=["loss", "loss_k3_naive"],
)
def test_gradient_of_the_kl_in_the_loss(place: str, wanted: list[float]) -> None:
    logits = PI.log().requires_grad_()
    logp = torch.log_softmax(logits, 0)
    # an expectation over samples of pi, whose own probabilities carry no gradient
    (PI * kl_loss(place)(logp, REF.log(), logp - PI.log())).sum().backward()
    near(logits.grad, wanted)


# -- whole algorithms with known optima --------------------------------------------------------------------------------

PLAIN, STEPS = RlConfig(), 500  # as many steps as take exact gradients to their optimum within 1e-8 of KL
BANDIT_REF, BANDIT_SCORE = t64([0.4, 0.3, 0.2, 0.1]), t64([0.0, 1.0, 2.0, 3.0])
# pi* = ref * e^score / Z: .4, .815485, 1.477811, 2.008554 over their sum Z = 4.701850 = e^1.547956
BANDIT_OPTIMUM = t64([0.085075, 0.173443, 0.314300, 0.427182])


def kl(p: Tensor, q: Tensor) -> float:
    return float((p * (p / q).log()).sum())


def bandit_rollout(logits: Tensor, generator: torch.Generator, num: int) -> tuple[Tensor, Tensor, Tensor]:
    """Actions, their log-probabilities and the shaped reward of one-token completions, each ``(B, 1)``."""
    logp_V = torch.log_softmax(logits.detach(), 0)
    action = torch.multinomial(logp_V.exp(), num, replacement=True, generator=generator)
    mask = torch.ones(num, 1, dtype=torch.bool)
    old = logp_V[action][:, None]
    return action, old, token_rewards(BANDIT_SCORE[action], old, BANDIT_REF.log()[action][:, None], mask, 1.0)


def test_half_the_price_of_kl_is_flat_at_its_own_optimum() -> None:
    # beta .5: pi* = ref * e^(2 score) / Z, and J* = .5 log Z = .5 log(.4 + .3 e^2 + .2 e^4 + .1 e^6) = 1.993372
    pi = t64([0.00742, 0.04114, 0.20267, 0.74877])
    mask = torch.ones(4, 1, dtype=torch.bool)
    reward = token_rewards(BANDIT_SCORE, pi.log()[:, None], BANDIT_REF.log()[:, None], mask, 0.5)
    near(reward[:, 0], torch.full((4,), 1.993372), 5e-4)  # pi* is given to 5 digits


def exact_groups(name: str) -> Tensor:
    """The bandit with the KL in the loss and a row's own advantages: exact over all groups of three completions."""
    row, config = POLICY_ALGORITHMS[name], RlConfig(algorithm="grpo", max_new_tokens=1, samples_per_prompt=3)
    action = torch.cartesian_prod(*[torch.arange(4)] * 3)  # 64 groups
    mask = torch.ones(192, 1, dtype=torch.bool)
    found = Rewarded(BANDIT_SCORE[action].reshape(-1, 1), torch.zeros(192, 1), mask, 3)
    advantage = row.advantages(found, config)[0][:, 0]
    logits = BANDIT_REF.log().clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.05)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / STEPS)
        logp = torch.log_softmax(logits, 0)
        pi = logp.detach().exp()
        chance = pi[action].prod(1).repeat_interleave(3) / 3
        here = tokens(logp[action].flatten(), logp.detach()[action].flatten(), advantage)
        exact = kl_loss("loss")(logp, BANDIT_REF.log(), logp - logp.detach())
        loss = (chance * row.surrogate(here, config)).sum() + (pi * exact).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return torch.softmax(logits.detach(), 0)


@pytest.mark.slow
def test_only_rloo_keeps_the_optimum_where_the_kl_is_in_the_loss() -> None:
    """Two controls that must fail: what a row does to the size of advantages, it does to the price of KL."""
    assert kl(exact_groups("rloo"), BANDIT_OPTIMUM) < 1e-8
    # the mean over 3 counts the completion itself: 2/3 of the gap, so pi = ref e^(2/3 score) / Z:
    # .4, .584320, .758734, .738906 over 2.481960
    dr_grpo = exact_groups("dr_grpo")
    near(dr_grpo, [0.161163, 0.235427, 0.305700, 0.297711], 1e-4)
    # in units of the group's deviation all gaps count alike: neither of the two
    grpo = exact_groups("grpo")
    assert kl(grpo, BANDIT_OPTIMUM) > 0.01 and kl(grpo, dr_grpo) > 0.001


def exact_bandit(place: str) -> Tensor:
    """Exact gradient of E score less the KL in the loss: every action, weighed by its probability."""
    logits = BANDIT_REF.log().clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.05)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / STEPS)
        logp = torch.log_softmax(logits, 0)
        pi = logp.detach().exp()
        here = tokens(logp, logp.detach(), BANDIT_SCORE)
        loss = (pi * (clipped(here, PLAIN) + kl_loss(place)(logp, BANDIT_REF.log(), here.log_ratio_N))).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return torch.softmax(logits.detach(), 0)


@pytest.mark.slow
def test_ratio_weighted_kl_in_the_loss_reaches_the_optimum() -> None:
    assert kl(exact_bandit("loss"), BANDIT_OPTIMUM) < 1e-8


@pytest.mark.slow
def test_naive_k3_in_the_loss_ends_at_another_policy() -> None:
    """A control that must fail: argmax of E score - KL(ref || pi), where J is 1.4753, below 1.547956."""
    pi = exact_bandit("loss_k3_naive")
    near(pi, [0.126, 0.138, 0.170, 0.566], 1e-3)
    assert float((pi * BANDIT_SCORE).sum()) - kl(pi, BANDIT_REF) == pytest.approx(1.4753, abs=1e-3)


def test_shaped_reward_is_flat_at_the_optimum_of_the_bandit() -> None:
    _, _, reward = bandit_rollout(BANDIT_OPTIMUM.log(), torch.Generator().manual_seed(1), 256)
    near(reward, torch.full((256, 1), 1.547956), 5e-5)  # pi* is given to 6 digits


TREE_SCORE, TREE_OPTIMUM = t64([0.0, 1.0, 1.0, 3.0]), t64([0.037704, 0.102491, 0.102491, 0.757313])


def exact_tree(loss_of: Any) -> Tensor:
    """Probabilities of (00, 01, 10, 11) after exact gradient steps; ``loss_of(logp (4, 2)) -> (4,)``, summed by pi."""
    first, second = (torch.zeros(*shape, dtype=torch.float64).requires_grad_() for shape in ((2,), (2, 2)))
    optimizer = torch.optim.Adam([first, second], lr=0.05)

    def logp_BT() -> Tensor:
        root, below = torch.log_softmax(first, 0), torch.log_softmax(second, 1)
        return torch.stack([root.repeat_interleave(2), below.flatten()], 1)

    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / STEPS)
        logp = logp_BT()
        loss = (logp.detach().sum(1).exp() * loss_of(logp)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return logp_BT().detach().sum(1).exp()


def shipped(name: str, depth: int, iterations: int = 150, sign: float = 1.0) -> tuple[Tensor, Tensor]:
    """What a row makes of bandit (depth 1) or tree (2) as it is: its advantages, surrogate, weights, passes and groups.

    The KL is in the reward, and a critic knows the mean return. Returns the policy over actions or leaves, and its
    optimum.
    """
    row, config = POLICY_ALGORITHMS[name], RlConfig(algorithm=name, max_new_tokens=depth)
    score, optimum = (BANDIT_SCORE, BANDIT_OPTIMUM) if depth == 1 else (TREE_SCORE, TREE_OPTIMUM)
    ref = BANDIT_REF.log()[:, None] if depth == 1 else torch.full((4, 2), math.log(0.5), dtype=torch.float64)
    below = torch.zeros(2, 2, dtype=torch.float64)
    first = (ref[:, 0].clone() if depth == 1 else torch.zeros(2, dtype=torch.float64)).requires_grad_()
    learnt = [first, below.requires_grad_()]
    optimizer = torch.optim.Adam(learnt, lr=4e-2)

    def logp_LT() -> Tensor:
        top = torch.log_softmax(first, 0)
        if depth == 1:
            return top[:, None]
        return torch.stack([top.repeat_interleave(2), torch.log_softmax(below, 1).flatten()], 1)

    generator, running, num = torch.Generator().manual_seed(0), RunningMoments(), 1024
    mask = torch.ones(num, depth, dtype=torch.bool)
    group = config.samples_per_prompt if row.min_group > 1 else 1
    for iteration in range(iterations):
        optimizer.param_groups[0]["lr"] = 4e-2 * (1 - iteration / iterations)
        old_LT = logp_LT().detach()
        leaf = torch.multinomial(old_LT.sum(1).exp(), num, replacement=True, generator=generator)
        reward = token_rewards(sign * score[leaf], old_LT[leaf], ref[leaf], mask, 1.0)
        value = reward.sum(1).mean().expand(num, depth) if row.critic else torch.zeros(num, depth)
        found = Rewarded(reward, value, mask, group, running.mean)
        advantage, _ = row.advantages(found, config)
        running.update(found.return_B)
        length = torch.full((num,), float(depth), dtype=torch.float64)
        if row.only_chosen:
            length = torch.where((advantage != 0).any(1), length, 0.0)
        weight = row.aggregate(length, config).repeat_interleave(depth)
        number = torch.arange(num).repeat_interleave(depth)
        for _ in range(config.ppo_epochs):
            logp = logp_LT()[leaf]
            tokens_N = Tokens(logp.flatten(), old_LT[leaf].flatten(), advantage.flatten(), number)
            optimizer.zero_grad()
            (weight * row.surrogate(tokens_N, config)).sum().backward()
            optimizer.step()
    return logp_LT().detach().sum(1).exp(), optimum / optimum.sum()


@pytest.mark.slow
@pytest.mark.parametrize("depth", [1, 2], ids=["bandit", "tree"])
@pytest.mark.parametrize("name", POLICY_ALGORITHMS)
def test_every_row_as_shipped_reaches_the_optimum(name: str, depth: int) -> None:
    """The start is .55 and .64 nats away from it."""
    pi, optimum = shipped(name, depth)
    assert kl(pi, optimum) < 2e-3
    # E score less KL: J* = log Z = 1.547956 of the bandit, V*(root) = 1.891684 of the tree
    score, ref = (BANDIT_SCORE, BANDIT_REF) if depth == 1 else (TREE_SCORE, torch.full((4,), 0.25, dtype=torch.float64))
    assert float((pi * score).sum()) - kl(pi, ref) == pytest.approx((1.547956, 1.891684)[depth - 1], abs=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", POLICY_ALGORITHMS)
def test_a_row_whose_advantages_or_score_are_turned_round_does_not(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Controls that must fail: the score's sign, the advantages' sign, and an advantage of 1 whatever is drawn."""
    row = POLICY_ALGORITHMS[name]
    assert kl(*shipped(name, 2, iterations=40, sign=-1.0)) > 1.0

    def broken(of: Callable[[Tensor], Tensor]) -> PolicyAlgorithm:
        return replace(row, advantages=lambda found, config: (of(row.advantages(found, config)[0]), None))

    for of in (torch.neg, torch.ones_like):
        monkeypatch.setitem(POLICY_ALGORITHMS, name, broken(of))
        assert kl(*shipped(name, 1, iterations=40)) > 0.1


@pytest.mark.slow
def test_kl_of_each_state_alone_in_the_loss_misses_the_optimum_of_the_tree() -> None:
    """A control that must fail: k2 a token drops what a choice does to the states after it."""

    def loss_of(logp: Tensor) -> Tensor:
        k2 = (logp - math.log(0.5)) ** 2 / 2
        rows = [tokens(logp[i], logp[i].detach(), TREE_SCORE[i].expand(2)) for i in range(4)]
        return torch.stack([clipped(row, PLAIN).sum() for row in rows]) + k2.sum(1)

    assert float(exact_tree(loss_of)[2:].sum()) == pytest.approx(0.8840, abs=1e-4)


def test_two_token_tree_has_no_advantage_at_its_optimum() -> None:
    """ref uniform, scores (00, 01, 10, 11) = 0, 1, 1, 3, kl_coef 1: every token's advantage is 0 under V*."""
    # V*(0) = log((1 + e) / 2), V*(1) = log((e + e^3) / 2), V*(root) = log((1 + 2 e + e^3) / 4)
    v0, v1, root = 0.620115, 2.433781, 1.891684
    first = t64([1 - 0.859804, 1 - 0.859804, 0.859804, 0.859804])
    joint = t64([0.037704, 0.102491, 0.102491, 0.757313])
    junk = torch.full((4, 1), 7.0, dtype=torch.float64)  # a padded third position
    logp = torch.cat([torch.stack([first.log(), (joint / first).log()], 1), junk], 1)
    ref = torch.cat([torch.full((4, 2), math.log(0.5), dtype=torch.float64), -junk], 1)
    value = torch.cat([t64([[root, v0], [root, v0], [root, v1], [root, v1]]), junk], 1)
    mask = torch.tensor([True, True, False]).expand(4, 3)
    reward = token_rewards(t64([0.0, 1.0, 1.0, 3.0]), logp, ref, mask, 1.0)
    for lam in (0.0, 0.95, 1.0):
        advantage, returns = gae(reward, value, mask, 1.0, lam)
        near(advantage, torch.zeros(4, 3), 2e-5)
        near(returns, torch.where(mask, value, 0.0), 2e-5)
    # E score - KL = 2.476922 - .585238 = V*(root)
    near((joint * reward.sum(1)).sum(), root, 1e-5)


# -- reductions --------------------------------------------------------------------------------------------------------


def test_dapo_with_equal_clips_and_lengths_is_grpo() -> None:
    generator = torch.Generator().manual_seed(0)
    logp, old = (torch.randn(8, generator=generator, dtype=torch.float64) for _ in range(2))
    found = rewarded([1.0, 2.0, 3.0, 7.0], 4)
    losses = []
    for name, config in (("dapo", RlConfig(trust={"clip_high": 0.2})), ("grpo", RlConfig())):
        algorithm = POLICY_ALGORITHMS[name]
        advantage = algorithm.advantages(found, config)[0][:, :2].flatten()
        weight = algorithm.aggregate(t64([2.0] * 4), config).repeat_interleave(2)
        losses.append((weight * algorithm.surrogate(tokens(logp, old, advantage), config)).sum())
    near(losses[0], losses[1], 1e-12)


def test_rloo_is_dr_grpo_up_to_a_factor() -> None:
    found = rewarded([1.0, 2.0, 3.0, 6.0], 4)
    first, second = (POLICY_ALGORITHMS[name].advantages(found, RlConfig())[0] for name in ("rloo", "dr_grpo"))
    near(first, second * 4 / 3)


# -- settings that do not fit ------------------------------------------------------------------------------------------


def test_a_free_ratio_is_refused() -> None:
    with pytest.raises(ValueError, match="the ratio is free"):
        RlConfig(clip=None)


def test_an_unknown_row_is_named_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'rloo'"):
        RlConfig(algorithm="rlo")


@pytest.mark.parametrize("name", GROUPED)
def test_one_completion_a_prompt_is_refused_where_completions_are_compared(name: str) -> None:
    with pytest.raises(ValueError, match=r"samples_per_prompt is 1"):
        RlConfig(algorithm=name, samples_per_prompt=1)
    unchecked = RlConfig(algorithm=name).model_copy(update={"samples_per_prompt": 1})  # as for a row from outside
    with pytest.raises(UsageError, match=r"samples_per_prompt is 1"):
        find_algorithm(unchecked)


NO_CRITIC = sorted(name for name, row in POLICY_ALGORITHMS.items() if not row.critic)
NO_RATIO = sorted(name for name, row in POLICY_ALGORITHMS.items() if not row.has_ratio)


def test_which_rows_have_a_critic_and_which_a_ratio() -> None:
    assert set(POLICY_ALGORITHMS) - set(NO_CRITIC) == {"ppo"}
    assert NO_RATIO == ["raft", "reinforce", "reinforce_baseline", "rloo"]


#: What only some rows read, and a value that is not the usual one.
NEEDS_CRITIC: list[dict[str, Any]] = [
    {"values": {"shared": True}}, {"values": {"clip": 0.3}}, {"values": {"coef": 1.0}}, {"gae_lambda": 0.9},
    {"discount": 0.9}, {"shaping": {"whiten": True}},
]  # fmt: skip
NEEDS_RATIO: list[dict[str, Any]] = [{"clip": 0.1}, {"trust": {"clip_high": 0.3}}, {"trust": {"dual_clip": 3.0}}]


@pytest.mark.parametrize("given", NEEDS_CRITIC, ids=str)
@pytest.mark.parametrize("name", NO_CRITIC)
def test_what_only_a_critic_reads_is_refused_without_one(name: str, given: dict[str, Any]) -> None:
    assert RlConfig(**given)
    with pytest.raises(ValueError, match=f"no effect: {name} learns no values"):
        RlConfig(algorithm=name, **given)
    unchecked = RlConfig(**given).model_copy(update={"algorithm": name, "samples_per_prompt": 2, "ppo_epochs": 1})
    with pytest.raises(UsageError, match="no effect"):  # as for a row from outside
        find_algorithm(unchecked)


@pytest.mark.parametrize("given", NEEDS_RATIO, ids=str)
@pytest.mark.parametrize("name", NO_RATIO)
def test_a_clip_is_refused_where_there_is_no_ratio(name: str, given: dict[str, Any]) -> None:
    assert RlConfig(algorithm="grpo", **given)
    with pytest.raises(ValueError, match=f"no effect: {name} has no ratio"):
        RlConfig(algorithm=name, **given)


@pytest.mark.parametrize("name", NO_RATIO)
def test_several_passes_are_refused_where_there_is_no_ratio(name: str) -> None:
    assert RlConfig(algorithm=name).ppo_epochs == 1
    with pytest.raises(ValueError, match="ppo_epochs is 2"):
        RlConfig(algorithm=name, ppo_epochs=2)


@pytest.mark.parametrize(
    ("given", "told"), [({"redraws": 5}, "keeps prompts"), ({"ptx": {"blocks": 4}}, "ptx.coef is 0")]
)
def test_other_settings_without_effect_are_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        RlConfig(**given)
    assert RlConfig(algorithm="dapo", redraws=5).redraws == 5 and RlConfig(ptx={"coef": 0.1, "blocks": 4})


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"kl_coef": 0.0, "kl_target": 6.0}, "kl_target moves kl_coef by a factor"),
        ({"algorithm": "dapo", "kl_target": 6.0}, "kl_target moves kl_coef by a factor"),
        ({"trust": {"target": 0.01}}, "set coef above 0"),
        ({"algorithm": "grpo", "trust": {"coef": 1.0, "target": 0.01}}, "is a single step"),
    ],
)
def test_a_target_that_nothing_can_reach_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        RlConfig(**settings)


def test_what_is_no_row_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "no_row.py").write_text("def surrogate(tokens, settings):\n    return tokens.logp_N\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    with pytest.raises(UsageError, match="is no row of algorithms"):
        find_algorithm(RlConfig(algorithm="no_row:surrogate"))
