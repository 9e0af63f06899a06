"""Preference losses against hand arithmetic, TRL's own numbers, finite differences and optima in closed form."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from accord.algo.preference_loss import PreferenceSettings, judged_ranks, log_odds, zero_point
from accord.algo.table import PREFERENCE_LOSSES, PreferenceAlgorithm
from accord.config import DpoConfig


def t64(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def loss_of(
    name: str, chosen: float, rejected: float, refs: tuple[float, float], lengths: tuple[int, int], **changes: Any
) -> float:
    """The loss of one pair, from sums of log-probabilities as a model would give them."""
    row = PREFERENCE_LOSSES[name]
    strength = row.strength(t64([chosen, rejected]), t64(refs), t64(lengths))
    return float(row.loss(strength[:1], strength[1:], DpoConfig(loss=name, **changes)))


# -- values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "wanted"),
    [
        # h = (-10 + 11) - (-12 + 11.5) = 1.5; log(1 + e^-.15)
        ("dpo", {}, 0.620957),
        # .620957 + .1 * .15
        ("cdpo", {"label_smoothing": 0.1}, 0.635957),
        # 1 / 5 + .5 / 6 = .283333; (.283333 - 5)^2
        ("ipo", {}, 22.246944),
        # (1.5 - 5)^2
        ("ipo_sum", {}, 12.25),
    ],
    ids=["dpo", "cdpo", "ipo", "ipo_sum"],
)
def test_pairs_against_a_reference_by_hand(name: str, changes: dict[str, float], wanted: float) -> None:
    assert loss_of(name, -10, -12, (-11, -11.5), (5, 6), **changes) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "means", "wanted"),
    [
        # log(1 + e^(.5 - 2 * .5)), log(1 + e^.5)
        ("simpo", (-2, -2.5), 0.474077),
        ("simpo", (-2, -2), 0.974077),
        # log odds -2 - log(1 - e^-2) = -1.854587 and -2.414350: gap .559763; 2 + .1 * log(1 + e^-.559763)
        ("orpo", (-2, -2.5), 2.045193),
        # 2 + .1 * log 2
        ("orpo", (-2, -2), 2.069315),
    ],
)
def test_losses_without_a_reference_by_hand(name: str, means: tuple[float, float], wanted: float) -> None:
    for lengths in ((1, 1), (5, 8)):
        sums = [mean * length for mean, length in zip(means, lengths, strict=True)]
        for refs in ((0, 0), (-7, 3)):  # which it does not look at
            assert loss_of(name, *sums, refs, lengths) == pytest.approx(wanted, abs=1e-6)


def test_kto_by_hand() -> None:
    """Gains 1 and -.5 over the reference, z0 = .3: 1 - sigmoid(.1 * .7) and 1 - sigmoid(.1 * .8)."""
    row = PREFERENCE_LOSSES["kto"]
    gain, zero = row.strength(t64([-10, -12]), t64([-11, -11.5]), t64([5, 6])), t64([0.3])
    assert float(row.loss(gain[:1], zero, DpoConfig())) == pytest.approx(0.482507, abs=1e-6)
    assert float(row.loss(zero, gain[1:], DpoConfig())) == pytest.approx(0.480011, abs=1e-6)


def test_the_zero_point_is_a_mean_that_is_never_negative_and_has_no_gradient() -> None:
    gain = t64([1.0, -0.25, 0.15]).requires_grad_()
    assert float(zero_point(gain)) == pytest.approx(0.3)
    assert not zero_point(gain).requires_grad
    assert float(zero_point(t64([1.0, -3.0]))) == 0.0
    assert float(zero_point(t64([]))) == 0.0


@pytest.mark.parametrize(
    ("name", "wanted"),
    # log 2; 1 / (4 * .1^2); sigmoid(0)
    [("dpo", math.log(2)), ("cdpo", math.log(2)), ("ipo", 25.0), ("ipo_sum", 25.0), ("kto", 0.5)],
)
def test_at_the_reference_each_loss_is_a_constant(name: str, wanted: float) -> None:
    assert loss_of(name, -10, -12, (-10, -12), (5, 6)) == pytest.approx(wanted)


def test_the_gradient_of_dpo_is_the_chance_of_being_wrong() -> None:
    strength = t64([1.0, -0.5]).requires_grad_()
    PREFERENCE_LOSSES["dpo"].loss(strength[:1], strength[1:], DpoConfig()).sum().backward()
    # .1 * sigmoid(-.15) = .1 * .462570
    assert strength.grad is not None
    assert strength.grad.tolist() == pytest.approx([-0.046257, 0.046257], abs=1e-6)


# What TRL 1.16.0 (transformers 5.23.0, torch 2.13.0) gives for these sums, its own methods run once in its own
# environment: `DPOTrainer._compute_loss` on a model that returns these log-probabilities, one token after the other,
# `KTOTrainer._compute_loss` likewise with mismatched gains of .3, `CPOTrainer.cpo_loss` on the gains with smoothing .1
# (cdpo) and on the means (simpo), `ORPOTrainer.odds_ratio_loss` on the means, less their mean as the likelihood (orpo).
TRL_CHOSEN, TRL_REJECTED = (-10.0, -21.5, -3.25), (-12.0, -18.0, -9.75)
TRL_REFERENCES = ((-11.0, -20.0, -5.0), (-11.5, -17.25, -8.0))
TRL_LENGTHS = ((5, 9, 2), (6, 7, 4))
TRL_MEANS = {
    "dpo": 0.6285632,
    "cdpo": 0.6427298,
    "ipo": 20.4811268,
    "kto": 0.4823188,
    "simpo": 0.6727028,
    "orpo": 2.0586722,
}


@pytest.mark.parametrize("name", sorted(TRL_MEANS))
def test_losses_are_those_of_trl(name: str) -> None:
    row, given = PREFERENCE_LOSSES[name], DpoConfig(loss=name)
    better, worse = (
        row.strength(t64(sums), t64(refs), t64(lengths))
        for sums, refs, lengths in zip((TRL_CHOSEN, TRL_REJECTED), TRL_REFERENCES, TRL_LENGTHS, strict=True)
    )
    zero = t64([0.3] * 3)
    sides = [(better, worse)] if row.paired else [(better, zero), (zero, worse)]
    losses = torch.cat([row.loss(*both, given) for both in sides])
    assert float(losses.mean()) == pytest.approx(TRL_MEANS[name], abs=1e-5)


# -- slopes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(PREFERENCE_LOSSES))
def test_gradients_by_finite_differences(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    better, worse = (-3 * torch.rand(6, generator=generator, dtype=torch.float64) - 0.05 for _ in range(2))
    row, given = PREFERENCE_LOSSES[name], DpoConfig(loss=name)
    assert torch.autograd.gradcheck(
        lambda a, b: row.loss(a, b, given), (better.requires_grad_(), worse.requires_grad_())
    )


@pytest.mark.parametrize("name", sorted(PREFERENCE_LOSSES))
@given(better=st.floats(-1e4, 0), worse=st.floats(-1e4, 0))
def test_no_strength_gives_nan(name: str, better: float, worse: float) -> None:
    sides = [torch.tensor([x]).requires_grad_() for x in (better, worse)]
    loss = PREFERENCE_LOSSES[name].loss(*sides, DpoConfig(loss=name))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert all(side.grad is not None and side.grad.isfinite().all() for side in sides)


@settings(max_examples=50)
@given(st.floats(-20, -1e-5))
def test_log_odds_are_those_of_the_probability(logp: float) -> None:
    p = math.exp(logp)
    assert float(log_odds(t64(logp))) == pytest.approx(math.log(p) - math.log(-math.expm1(logp)), rel=1e-9, abs=1e-9)


def test_odds_of_a_sure_token_are_finite_in_fp32() -> None:
    """log(1 - e^x) is -inf from x = -1e-8 on: there a plain formula ends in inf - inf."""
    x = torch.tensor([0.0, -1e-9, -1e-7, -200.0], requires_grad=True)
    odds = log_odds(x)
    odds.sum().backward()
    assert odds.isfinite().all() and x.grad is not None and x.grad.isfinite().all()
    assert (odds[:3] > 13).all()  # log(1e6) = 13.8


# -- optima ------------------------------------------------------------------------------------------------------------

REF, SCORE = t64([0.4, 0.3, 0.2, 0.1]), t64([0.0, 1.0, 2.0, 3.0])
# ref * e^score / Z, Z = 4.701850
OPTIMUM = REF * SCORE.exp() / (REF * SCORE.exp()).sum()
ORDERED = torch.tensor(list(permutations(range(4), 2)))
#: The chance that the first of an ordered pair wins.
WINS = torch.sigmoid(SCORE[ORDERED[:, 0]] - SCORE[ORDERED[:, 1]])


def kl(p: Tensor, q: Tensor) -> float:
    return float((p * (p / q).log()).sum())


def minimised(row: PreferenceAlgorithm, weight_N: Tensor, given: PreferenceSettings) -> tuple[float, Tensor]:
    """Least loss over all ordered pairs of four one-token completions, and the policy that has it."""
    logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([logits], lr=1.0)
    for _ in range(2000):
        strength = row.strength(torch.log_softmax(logits, 0), REF.log(), torch.ones(4, dtype=torch.float64))
        loss = (weight_N * row.loss(strength[ORDERED[:, 0]], strength[ORDERED[:, 1]], given)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach()), torch.softmax(logits.detach(), 0)


@pytest.mark.slow
def test_dpo_on_the_whole_population_reaches_the_optimum_of_the_bandit() -> None:
    """What RLHF with the same score and price of KL ends at. No policy has a loss below the entropy of the labels:
    three gaps of 1, two of 2, one of 3: (3 * .582203 + 2 * .365335 + .190865) / 6 = .444690.
    """
    floor, pi = minimised(PREFERENCE_LOSSES["dpo"], WINS / 6, DpoConfig(dpo_beta=1.0))
    assert kl(pi, OPTIMUM) < 1e-8
    # .4, .3 e, .2 e^2, .1 e^3 = .4, .815485, 1.477811, 2.008554 over their sum 4.701850
    assert OPTIMUM.tolist() == pytest.approx([0.085073, 0.173439, 0.314304, 0.427184], abs=1e-6)
    assert floor == pytest.approx(0.444690, abs=1e-6)


@pytest.mark.slow
def test_ipo_on_the_same_population_ends_elsewhere() -> None:
    """ref * exp(chance to beat the reference): its pairs are drawn from the reference."""
    drawn = 2 * REF[ORDERED[:, 0]] * REF[ORDERED[:, 1]] * WINS
    _, pi = minimised(PREFERENCE_LOSSES["ipo_sum"], drawn, DpoConfig(dpo_beta=1.0))
    assert pi.tolist() == pytest.approx([0.32482, 0.29721, 0.23970, 0.13827], abs=1e-5)
    assert kl(pi, OPTIMUM) > 0.1


def test_cdpo_settles_where_the_labels_are_as_wrong_as_it_believes() -> None:
    """Two completions, never reversed: beta h = log((1 - .1) / .1) = 2.197225; with beta .5, h = 4.394449."""
    gap = t64([4.3, 4.394449, 4.5]).requires_grad_()
    given = DpoConfig(dpo_beta=0.5, label_smoothing=0.1)
    PREFERENCE_LOSSES["cdpo"].loss(gap, torch.zeros(3, dtype=torch.float64), given).sum().backward()
    assert gap.grad is not None
    below, there, above = gap.grad.tolist()
    assert below < -1e-3 and there == pytest.approx(0.0, abs=1e-7) and above > 1e-3


@pytest.mark.slow
def test_online_dpo_reaches_the_optimum_when_labels_are_drawn_from_the_gap_of_scores() -> None:
    """1024 pairs a step from the policy of the moment; and two controls that must not."""

    def trained(noise: float) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        logits, row = REF.log().float().requires_grad_(), PREFERENCE_LOSSES["dpo"]
        optimizer = torch.optim.Adam([logits], lr=3e-2)
        for iteration in range(400):
            optimizer.param_groups[0]["lr"] = 3e-2 if iteration < 200 else 3e-3
            probs = torch.softmax(logits.detach(), 0)
            action_PK = torch.multinomial(probs, 2048, replacement=True, generator=generator).view(1024, 2)
            rank_PK = judged_ranks(SCORE[action_PK].float(), noise, generator)
            order = torch.argsort(rank_PK, dim=1)
            gain_PK = (torch.log_softmax(logits, 0) - REF.log().float())[action_PK.gather(1, order)]
            loss = row.loss(gain_PK[:, 0], gain_PK[:, 1], DpoConfig(dpo_beta=1.0))
            optimizer.zero_grad()
            (loss.sum() / 1024).backward()
            optimizer.step()
        return torch.softmax(logits.detach().double(), 0)

    assert kl(trained(1.0), OPTIMUM) < 1e-3
    assert kl(trained(0.0), OPTIMUM) > 0.05  # the higher score always wins: too sure
    assert kl(trained(3.0), OPTIMUM) > 0.05  # labels of a third of the gap: too shy


@pytest.mark.slow
def test_without_disagreement_dpo_runs_away_and_ipo_stays() -> None:
    """Two completions, the first always preferred, beta .5: IPO's h is 1 / (2 * .5) = 1, its chance 1 / (1 + e^-1)."""

    given, names, found = DpoConfig(dpo_beta=0.5), ("dpo", "ipo_sum"), []
    logits = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)  # a row for each loss: Adam mixes none
    optimizer = torch.optim.Adam([logits], lr=0.05)
    for step in range(1, 8001):
        optimizer.zero_grad()
        strength = torch.log_softmax(logits, 1) - math.log(0.5)
        sum(
            PREFERENCE_LOSSES[n].loss(s[:1], s[1:], given).sum() for n, s in zip(names, strength, strict=True)
        ).backward()
        optimizer.step()
        if step in (500, 2000, 8000):
            found.append((logits[:, 0] - logits[:, 1]).tolist())
    dpo, ipo = zip(*found, strict=True)
    assert dpo == pytest.approx([10.6, 15.2, 22.5], abs=0.05)
    assert ipo == pytest.approx([1.0, 1.0, 1.0], abs=1e-6)
    assert torch.softmax(logits.detach(), 1)[1, 0].item() == pytest.approx(0.731059, abs=1e-6)


# -- labels of a scorer ------------------------------------------------------------------------------------------------


def test_noisy_ranks_win_with_the_sigmoid_of_the_gap() -> None:
    scores = t64([0.0, 1.0, 2.5]).expand(40_000, 3)
    rank = judged_ranks(scores, 0.5, torch.Generator().manual_seed(0))
    for i, j in ((0, 1), (1, 2), (0, 2)):
        wanted = 1 / (1 + math.exp(-(scores[0, j] - scores[0, i]) / 0.5))
        got = float((rank[:, j] < rank[:, i]).double().mean())
        assert got == pytest.approx(wanted, abs=4 * math.sqrt(wanted * (1 - wanted) / 40_000))
    assert (rank.sort(1).values == torch.tensor([1, 2, 3])).all()


def test_plain_ranks_follow_the_scores_and_tie() -> None:
    scores = t64([[0.3, 2.0, 0.3, -1.0], [1.0, 1.0, 1.0, 1.0]])
    assert judged_ranks(scores, 0.0, torch.Generator()).tolist() == [[2, 1, 2, 4], [1, 1, 1, 1]]


# -- the table ---------------------------------------------------------------------------------------------------------


def test_the_names_in_the_config_are_those_of_the_table() -> None:
    known = DpoConfig.model_json_schema()["properties"]["loss"]["anyOf"][0]["enum"]
    assert known == list(PREFERENCE_LOSSES)


def test_a_row_has_its_own_defaults_unless_told_otherwise() -> None:
    assert (DpoConfig().dpo_beta, DpoConfig(loss="simpo").dpo_beta) == (0.1, 2.0)
    assert DpoConfig(loss="simpo", dpo_beta=2.5).dpo_beta == 2.5


def test_another_row_is_one_function() -> None:
    """SLiC's hinge (arXiv:2305.10425): max(0, 1 - .1 * 1.5); and DPO with mean log-probabilities, as Tulu 3 has it."""

    def hinge(better_N: Tensor, worse_N: Tensor, given: PreferenceSettings) -> Tensor:
        return torch.relu(1 - given.dpo_beta * (better_N - worse_N))

    sums = (t64([-10, -12]), t64([-11, -11.5]), t64([5, 6]))
    rows = (PreferenceAlgorithm(hinge), replace(PREFERENCE_LOSSES["dpo"], length_normalized=True))
    for row, wanted in zip(rows, (0.85, 0.679081), strict=True):
        strength = row.strength(*sums)
        assert float(row.loss(strength[:1], strength[1:], DpoConfig())) == pytest.approx(wanted, abs=1e-6)
