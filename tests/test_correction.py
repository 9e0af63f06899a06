"""What samples of another distribution count: by hand, by the expectation that they stand for, and in an update."""

from __future__ import annotations

import math

import pair
import pytest
import torch
from pair import PLAIN, NoWords, Watched, examples, language_model

from accord import config as c
from accord.algo.correction import near_sequences, truncated_weights
from accord.algo.table import POLICY_ALGORITHMS
from accord.ranks import ONE_PROCESS
from accord.rollout.generator import Generated
from accord.train.controllers import Controllers
from accord.train.policy_models import PolicyModels
from accord.train.policy_optimizer import PolicyOptimizer
from accord.train.policy_update import correction_weights
from accord.train.rollouts import Scored, measure_rollout

MASK = torch.tensor([[True, True, True], [True, False, False]])


def test_tokens_count_their_ratio_up_to_the_cap() -> None:
    """By hand: .5 / .25 = 2, .1 / .2 = .5, and .9 / .1 = 9 is cut to 3; what does not count is 0."""
    old_BC = torch.tensor([[0.5, 0.1, 0.9], [0.3, 1.0, 1.0]]).log()
    behaviour_BC = torch.tensor([[0.25, 0.2, 0.1], [0.3, 1.0, 1.0]]).log()
    found = truncated_weights(old_BC, behaviour_BC, MASK, 3.0)
    torch.testing.assert_close(found, torch.tensor([[2.0, 0.5, 3.0], [1.0, 0.0, 0.0]]))


def test_without_reaching_the_cap_the_weighted_mean_is_the_policy_s_own() -> None:
    """The exact expectation over a sampler's four tokens, each weighed, is the expectation over the policy's."""
    pi_V, mu_V = torch.tensor([0.4, 0.3, 0.2, 0.1]), torch.tensor([0.25, 0.25, 0.25, 0.25])
    value_V = torch.tensor([1.0, -2.0, 5.0, 0.5])
    weight_V = truncated_weights(pi_V.log()[None], mu_V.log()[None], torch.ones(1, 4, dtype=torch.bool), 10.0)[0]
    assert float((mu_V * weight_V * value_V).sum()) == pytest.approx(float((pi_V * value_V).sum()), rel=1e-5)


def test_far_sequences_count_nothing() -> None:
    """By hand: log-ratios log 3, 0, 0 have the mean ratio 3^(1/3) = 1.44; log 3 alone has 3, beyond a cap of 2."""
    old_BC = torch.tensor([[math.log(3), 0.0, 0.0], [math.log(3), 9.0, 9.0]])
    found = near_sequences(old_BC, torch.zeros(2, 3), MASK, 2.0)
    assert found.tolist() == [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]
    assert near_sequences(-old_BC, torch.zeros(2, 3), MASK, 2.0).tolist() == found.tolist()
    assert near_sequences(old_BC, torch.zeros(2, 3), MASK, 1.4).sum() == 0.0


def stepped(rows: range, shift: dict[int, float], algorithm: str = "reinforce", **rollout: object) -> Watched:
    """A learner after one update on these samples, whose sampler was off by ``shift`` nats a token on some rows."""
    texts = examples(4)
    config = c.RlConfig(
        algorithm=algorithm, actor=PLAIN, critic=PLAIN, kl_coef=0.0, missing_eos_penalty=0.0, ppo_epochs=1,
        prompts_per_iteration=len(rows), rollout=rollout,
    )  # fmt: skip
    models = PolicyModels(language_model("tied"), None, language_model("tied", 5).eval(), None, NoWords())  # type: ignore[arg-type]
    learner = Watched(models.trained(), {"actor": PLAIN}, 10)
    optimizer = PolicyOptimizer(config, POLICY_ALGORITHMS[algorithm], models, learner, Controllers.of(config, 8.0))
    optimizer.controllers.returns.update = lambda x_B: None  # type: ignore[method-assign]
    blank = [Generated("p", "t", t.prompt, t.completion, (0.0,) * len(t.completion), "stop") for t in texts]
    score_B = torch.tensor([1.0, -0.5, 2.0, 0.25])
    own = measure_rollout(config, models, Scored(tuple(blank), score_B, 4, {}), score_B, ONE_PROCESS)
    logps = [own.old_logp_BC[i][own.mask_BC[i]].tolist() for i in range(4)]
    drawn = [
        Generated("p", f"t{i}", t.prompt, t.completion, tuple(x - shift.get(i, 0.0) for x in logps[i]), "stop")
        for i, t in enumerate(texts)
    ]
    optimizer.improve(Scored(tuple(drawn[i] for i in rows), score_B[list(rows)], len(rows), {}), 5)
    return learner


def test_a_sequence_that_leaves_is_in_no_denominator() -> None:
    """With the last row far off and masked, the gradient is that of the first three alone."""
    masked = stepped(range(4), {3: 2.0}, correction="sequence_mask")
    alone = stepped(range(3), {}, correction="none")
    assert pair.gap(masked, alone) < 1e-6
    assert pair.gap(stepped(range(4), {3: 2.0}, correction="none"), alone) > 0.01


def test_an_even_ratio_scales_the_gradient_and_no_more() -> None:
    """Every token half as likely for the sampler: twice the gradient, or up to the cap of 1.5 one and a half times."""
    plain = stepped(range(4), {}, correction="none").named()
    for cap, factor in ((3.0, 2.0), (1.5, 1.5)):
        shifts = dict.fromkeys(range(4), math.log(2.0))
        found = stepped(range(4), shifts, correction="token", cap=cap).named()
        for name, grad in plain.items():
            torch.testing.assert_close(found[name], factor * grad, rtol=1e-4, atol=1e-7)


def test_who_draws_says_what_is_corrected() -> None:
    rollout = type("R", (), {"old_logp_BC": torch.zeros(1, 1), "behaviour_logp_BC": torch.zeros(1, 1)})
    rollout.mask_BC = torch.ones(1, 1, dtype=torch.bool)  # type: ignore[attr-defined]
    for given, corrects in (({}, False), ({"use": "vllm"}, True), ({"max_staleness": 1}, True)):
        config = c.RlConfig(rollout=given)
        assert (correction_weights(config, rollout) is not None) == corrects  # type: ignore[arg-type]
    assert correction_weights(c.RlConfig(rollout={"use": "vllm", "correction": "none"}), rollout) is None  # type: ignore[arg-type]
