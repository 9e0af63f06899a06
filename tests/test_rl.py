"""The rl stage: what its loop logs and learns, whatever the row of the table."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TEXTS, WriteRows
from letters import PROMPTS, LastLetter, models_of, optimise, optimizer_of, rl_config
from safetensors.torch import load_file
from torch import Tensor

from accord.algo.policy_loss import Tokens
from accord.algo.table import POLICY_ALGORITHMS
from accord.config import OptimConfig, RewardConfig, RlConfig
from accord.errors import AccordError, PausedByAlarm, UsageError
from accord.models.decoder import CausalLM, ScalarModel
from accord.models.folder import RewardScale, load_scalar, save_policy, save_scalar
from accord.models.shape import DecoderConfig
from accord.rollout.engine import Sampling
from accord.rollout.generator import EngineGenerator, Generated
from accord.text.tokenizer import Tokenizer, train_tokenizer
from accord.train.alarms import raised_alarms, raised_trends, watched_alarms
from accord.train.controllers import Controllers
from accord.train.policy_models import PolicyModels, load_policy_models
from accord.train.policy_optimizer import experience_stats
from accord.train.policy_update import PretrainingMix, Update
from accord.train.prompts import Prompts, pick_prompts
from accord.train.reward import reward
from accord.train.rl import reference_length, rl
from accord.train.rollouts import Rollout, clustered_error, measure_rollout, rollout_stats, score_samples, shape_scores

PPO = POLICY_ALGORITHMS["ppo"]
#: What it takes to learn in two seconds; 48 completions an iteration all of them.
QUICK = OptimConfig(lr=6e-3, schedule="constant", eps=1e-5)
LEARNS: dict[str, Any] = {"iterations": 10, "actor": QUICK, "critic": QUICK}
SLOWER: dict[str, dict[str, Any]] = {"rloo": {"iterations": 20}}  # nothing clips it, and larger steps throw it off


def replace_stops(words: Tokenizer) -> Tokenizer:
    """The same tokenizer without a token that ends a completion."""
    words.stop_ids = ()
    return words


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def by_hand(policy: CausalLM, prompt: Sequence[int], completion: Sequence[int]) -> list[float]:
    """Log-probability of each token of a completion, from all logits of this one text."""
    with torch.no_grad():
        logp = torch.log_softmax(policy(torch.tensor([[*prompt, *completion]]))[0], -1)
    return [float(logp[len(prompt) + i - 1, token]) for i, token in enumerate(completion)]


@pytest.mark.slow
def test_a_high_price_of_kl_keeps_the_policy_at_home(letters_folder: Path) -> None:
    free, held = (
        optimise(rl_config(**LEARNS | {"iterations": 4, "kl_coef": price}), models_of(letters_folder, LastLetter()))
        for price in (0.0, 1.0)
    )
    assert held[-1]["kl"] < 0.5 * free[-1]["kl"]


@pytest.mark.slow
def test_the_length_controller_holds_the_length_against_a_taste_for_short_texts(letters_folder: Path) -> None:
    class Brief:
        def score(self, pairs: Sequence[tuple[str, str]]) -> Tensor:
            return torch.tensor([-0.3 * len(text) for _, text in pairs])

    config = rl_config(**LEARNS | {"iterations": 8, "kl_coef": 0.0})
    loose = optimise(config, models_of(letters_folder, Brief()))
    held = optimise(config.model_copy(update={"length_coef": 2.0}), models_of(letters_folder, Brief()))
    assert loose[-1]["length"] < 0.75 * loose[0]["length"]
    assert held[-1]["length"] > loose[-1]["length"] + 0.7
    assert held[-1]["length_price"] > 0


def test_the_length_to_hold_is_measured_on_eight_batches(letters_folder: Path) -> None:
    """A mean of n whole numbers is a multiple of 1/n: of 8 x 37 = 296 samples, and of 256 where batches are small."""
    models, prompts = models_of(letters_folder, LastLetter()), Prompts(["a", "b"])
    for batch, count in ((37, 296), (5, 256)):
        config = rl_config(prompts_per_iteration=batch, samples_per_prompt=1, minibatches=1)
        learner = optimizer_of(config, models).learner
        length = reference_length(config, models, prompts, learner, 1)
        assert count * length == pytest.approx(round(count * length), abs=1e-9)
        assert (count - 1) * length != pytest.approx(round((count - 1) * length), abs=1e-9)


def test_it_says_what_it_does_before_the_first_iteration_ends(
    letters_folder: Path, write_rows: WriteRows, tmp_path: Path
) -> None:
    said: list[tuple[float, str]] = []
    config = rl_config(iterations=2, length_coef=0.3, rewards=[{"regex": "a"}], precision="fp32")
    data = write_rows("p.jsonl", [{"prompt": prompt} for prompt in PROMPTS])
    rl(config, model=letters_folder, data=data, output_dir=tmp_path, log=lambda *told: said.append(told))
    first = next(i for i, (_, text) in enumerate(said) if text.startswith("step 1/2"))
    before, after = [text for _, text in said[:first]], [text for _, text in said[first:]]
    assert before[0].startswith("reading the policy")
    count = config.samples_per_iteration
    drawing = [text for text in before if "drawing" in text]
    assert drawing == ["the length to hold: drawing 384 samples", f"iteration 1/2: drawing {count} samples"]
    assert f"iteration 1/2: scoring {count} samples" in before
    assert sum("iteration 1/2: update " in text for text in before) == config.ppo_epochs * config.minibatches
    assert not any("iteration" in text for text in after)  # the others are a line each
    assert [done for done, _ in said] == sorted(done for done, _ in said) and said[first][0] == 0.5


def test_first_batch_is_where_the_reference_is(letters_folder: Path) -> None:
    stats = optimise(rl_config(iterations=1, temperature=0.8), models_of(letters_folder, LastLetter()))[0]
    assert stats["kl"] == 0.0
    assert stats["kl_k3"] == 0.0
    assert stats["behaviour_gap_max"] < 1e-4
    assert stats["first_ratio_max"] == pytest.approx(1.0, abs=1e-5)
    assert stats["first_approx_kl"] == pytest.approx(0.0, abs=1e-7)
    assert stats["behaviour_ess"] == pytest.approx(1.0, abs=1e-6)
    # no KL yet, so the return is the score (every completion of this policy that does not end costs 1 more)
    assert stats["return"] == pytest.approx(stats["score"] - (1 - stats["eos_rate"]), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("minibatches", [1, 2])
def test_ppo_update_does_not_depend_on_micro_batches(letters_folder: Path, minibatches: int) -> None:
    """With Adam's eps at 1 a step is smooth in the gradient, so weights may be compared.

    With one minibatch in one micro-batch the rollout's own forward pass is the first update's.
    """
    optim = OptimConfig(lr=1e-2, schedule="constant", eps=1.0, warmup_ratio=0.0)
    found = []
    for micro in (10_000, 1):
        models = models_of(letters_folder, LastLetter())
        shared = {"iterations": 1, "prompts_per_iteration": 24, "actor": optim, "critic": optim}
        config = rl_config(**shared, micro_batch_tokens=micro, minibatches=minibatches)
        stats = optimise(config, models)[0]
        found.append((stats, torch.cat([p.detach().flatten() for p in models.policy.parameters()])))
    (whole, whole_weights), (split, split_weights) = found
    torch.testing.assert_close(split_weights, whole_weights, rtol=0.0, atol=1e-6)
    for name in ("policy_loss", "value_loss", "approx_kl", "clip_low", "clip_high", "ratio_max", "entropy", "kl"):
        assert split[name] == pytest.approx(whole[name], abs=1e-5), name


def test_the_largest_ratio_is_that_of_all_minibatches(letters_folder: Path) -> None:
    """Each example is a minibatch of its own, and the steps are far too large: the last ratio is not the largest."""
    optim = OptimConfig(lr=0.05, schedule="constant", warmup_ratio=0.0)
    config = rl_config(iterations=1, prompts_per_iteration=8, minibatches=8, actor=optim, critic=optim)
    ratios: list[float] = []
    row = POLICY_ALGORITHMS["ppo"]

    def watched(tokens: Tokens, settings: Any) -> Tensor:
        ratios.append(float((tokens.logp_N.detach() - tokens.old_logp_N).exp().max()))
        return row.surrogate(tokens, settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(POLICY_ALGORITHMS, "ppo", replace(row, surrogate=watched))
        stats = optimise(config, models_of(letters_folder, LastLetter()))[0]
    assert len(ratios) == 16
    assert stats["ratio_max"] == pytest.approx(max(ratios))
    assert max(ratios) > ratios[-1]


def test_rollout_scores_carry_penalty_and_price(letters_folder: Path) -> None:
    models, config = models_of(letters_folder, LastLetter()), rl_config(missing_eos_penalty=0.75)
    controllers = Controllers.of(config, 4.0)
    controllers.length.integral = 0.5
    prompts = PROMPTS[:2]
    samples = EngineGenerator(models.policy, models.tokenizer).generate(prompts, Sampling(4, 16), seed=1)
    scored = score_samples(models.scorer, samples)
    rollout = measure_rollout(config, models, scored, shape_scores(config, scored, controllers))
    assert {s.finish for s in samples} == {"stop", "length"}
    for row, sample in enumerate(samples):
        text = models.tokenizer.decode(sample.completion_ids)
        assert sample.pair == (prompts[row // 16], text)
        raw = float(text.endswith("a"))
        wanted = raw - (0.75 if sample.finish == "length" else 0.0) + 0.5 * (len(sample.completion_ids) / 4 - 1)
        assert float(scored.score_B[row]) == raw
        assert float(rollout.score_B[row]) == pytest.approx(wanted)
        assert rollout.mask_BC[row].sum() == len(sample.completion_ids)
        learner = by_hand(models.policy, sample.prompt_ids, sample.completion_ids)
        assert rollout.old_logp_BC[row][rollout.mask_BC[row]].tolist() == pytest.approx(learner, abs=1e-4)
        state = torch.tensor([[*sample.prompt_ids, *sample.completion_ids]])
        values = models.critic(state)[len(sample.prompt_ids) - 1 : -1].detach()
        assert rollout.value_BC[row][rollout.mask_BC[row]].tolist() == pytest.approx(values.tolist(), abs=1e-4)
    assert (rollout.old_logp_BC[~rollout.mask_BC] == 0).all()


def test_every_prompt_is_picked_once_a_pass() -> None:
    prompts = [str(i) for i in range(10)]
    picked = [p for step in range(5) for p in pick_prompts(prompts, 6, step, 0)]
    for epoch in range(3):
        assert sorted(picked[10 * epoch : 10 * epoch + 10]) == prompts
    assert picked[:10] != picked[10:20]
    assert pick_prompts(prompts, 6, 0, 0) != pick_prompts(prompts, 6, 0, 1)


@pytest.mark.slow
def test_rl_stage_end_to_end(letters_folder: Path, write_rows: WriteRows, tmp_path: Path) -> None:
    rows = [{"prompt": "Say:", "chosen": f" {'ba' * n}", "rejected": f" {'ab' * n}"} for n in range(1, 13)]
    rankings = write_rows("rankings.jsonl", rows)
    judge = reward(
        RewardConfig(precision="fp32", epochs=1), model=letters_folder, data=rankings, output_dir=tmp_path / "reward"
    )
    prompts = write_rows("prompts.jsonl", [{"prompt": p} for p in PROMPTS])
    config = rl_config(iterations=5, prompts_per_iteration=8, samples_per_prompt=2, eval_every=2, kl_target=0.5)
    out = tmp_path / "rl"
    result = rl(config, model=letters_folder, reward_model=judge.model, data=prompts, output_dir=out)
    rows = rows_of(out / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(5))
    first = rows[0]
    assert (first["kl"], first["kl_k3"]) == (0.0, 0.0)
    assert first["first_ratio_max"] == pytest.approx(1.0, abs=1e-5)
    assert first["behaviour_gap_max"] < 1e-4
    assert first["kl_coef"] == 0.02
    assert rows[1]["kl_coef"] < 0.02  # KL 0 was below the target
    assert sorted(result.snapshots) == [2, 4, 5]
    assert result.num_episodes == 80
    last = load_file(result.model / "model.safetensors")
    assert all(torch.equal(t, last[name]) for name, t in load_file(result.snapshots[5] / "model.safetensors").items())
    start = load_file(letters_folder / "model.safetensors")
    assert not torch.equal(start["model.norm.weight"], last["model.norm.weight"])
    assert len((out / "samples" / "step_000001.txt").read_text().splitlines()) == 8
    for event in rows_of(out / "events.jsonl") if (out / "events.jsonl").exists() else []:
        assert event.keys() == {"step", "alarm", "cause", "grave"}


@pytest.mark.slow
@pytest.mark.parametrize("lora", [0, 2])
def test_half_of_the_price_is_paid_to_a_second_reference(
    letters_folder: Path, policy_folder: Path, reward_folder: Path, write_rows: WriteRows, tmp_path: Path, lora: int
) -> None:
    """Before any update KL to the start is 0, so that to both is half of that to the other one: on the same samples."""
    data = write_rows("prompts.jsonl", [{"prompt": prompt} for prompt in PROMPTS])
    found = {}
    given = {"alone": {}, "other": {"reference": policy_folder}, "both": {"second_reference": policy_folder}}
    for name, references in given.items():
        rl(
            rl_config(iterations=1, lora={"rank": lora}), model=letters_folder, reward_model=reward_folder, data=data,
            output_dir=tmp_path / name, **references,
        )  # fmt: skip
        found[name] = rows_of(tmp_path / name / "metrics.jsonl")[0]
    assert found["alone"]["kl"] == pytest.approx(0, abs=1e-4) and found["other"]["kl"] > 1
    assert found["both"]["kl"] == pytest.approx(found["other"]["kl"] / 2, rel=1e-4)
    assert found["both"]["score"] == found["alone"]["score"]  # the samples are the same
    assert found["both"]["return"] == pytest.approx((found["alone"]["return"] + found["other"]["return"]) / 2, abs=1e-4)


def test_a_reference_of_other_tokens_is_refused(
    policy_folder: Path, reward_folder: Path, write_rows: WriteRows, tiny_config: DecoderConfig, tmp_path: Path
) -> None:
    strange = train_tokenizer(["zebra zebra quartz quartz"], 290)
    save_policy(tmp_path / "strange", CausalLM(replace(tiny_config, vocab_size=290, num_layers=1)), strange)
    data = write_rows("prompts.jsonl", [{"prompt": "Bread"}])
    given = {"model": policy_folder, "reward_model": reward_folder, "data": data, "output_dir": tmp_path / "out"}
    for name in ("reference", "second_reference"):
        with pytest.raises(AccordError, match="different tokenizers"):
            rl(rl_config(), **given, **{name: tmp_path / "strange"})


def test_critic_starts_from_the_reward_model(policy_folder: Path, reward_folder: Path) -> None:
    models = load_policy_models(rl_config(), PPO, policy_folder, reward_folder)
    raw = load_file(reward_folder / "model.safetensors")["score.weight"]
    assert torch.equal(models.critic.score.weight, 2.0 * raw)  # in calibrated units: reward.json says scale 2
    assert not any(p.requires_grad for p in models.reference.parameters())
    assert not models.reference.training
    assert models.policy.head_weight_VD is not models.reference.head_weight_VD


class Raised(LastLetter):
    """The same taste at another level."""

    def __init__(self, level: float) -> None:
        super().__init__()
        self.level = level

    def score(self, pairs: Sequence[tuple[str, str]]) -> Tensor:
        return super().score(pairs) + self.level


@pytest.mark.parametrize("shared", [False, True])
def test_a_constant_added_to_all_scores_changes_nothing(letters_folder: Path, shared: bool) -> None:
    """Three iterations, with a critic that says something from the start; Adam's eps of 1 makes steps comparable."""
    found = []
    for level in (0.0, 16.0, -64.0):
        config = rl_config(
            iterations=3, prompts_per_iteration=16, values={"shared": shared}, actor=SMOOTH, critic=SMOOTH
        )
        models = models_of(letters_folder, Raised(level), config)
        models.critic.score.weight.data.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(1))
        rows = optimise(config, models)
        assert rows[0]["value_gap"] == pytest.approx(0.0, abs=1e-4)
        weights = [*models.policy.parameters(), *models.critic.parameters()]
        found.append((rows, torch.cat([p.detach().flatten() for p in weights])))
    (plain, plain_weights), *others = found
    for level, (rows, weights) in zip((16.0, -64.0), others, strict=True):
        torch.testing.assert_close(weights, plain_weights, rtol=0.0, atol=2e-5)
        for row, wanted in zip(rows, plain, strict=True):
            for name in ("value_loss", "policy_loss", "advantage_mean", "advantage_std", "explained_variance"):
                assert row[name] == pytest.approx(wanted[name], abs=1e-3), name
            assert row["return"] == pytest.approx(wanted["return"] + level, abs=1e-4)


def test_the_critic_of_a_weak_reward_model_starts_at_its_scores(
    letters_folder: Path, write_rows: WriteRows, tmp_path: Path
) -> None:
    """Raw scores around 3 that spread by 1/154: on the score's scale the level was 462 deviations off, now it is 0."""
    scorer, words, _ = load_scalar(letters_folder, head_seed=1)
    save_scalar(tmp_path / "weak", scorer, words, RewardScale(3.0, 154.0))
    data = write_rows("prompts.jsonl", [{"prompt": p} for p in PROMPTS])
    given = {"model": letters_folder, "data": data, "reward_model": tmp_path / "weak"}
    rl(rl_config(iterations=1), **given, output_dir=tmp_path / "out")
    (row,) = rows_of(tmp_path / "out/metrics.jsonl")
    assert abs(row["score"]) > 10 and row["value_gap"] == pytest.approx(0.0, abs=0.01)


def test_the_level_of_the_critic_is_set_once_and_kept_by_checkpoints() -> None:
    controllers = Controllers.of(rl_config(), 6.0)
    controllers.level.start(torch.tensor([1.0, 3.0]))
    controllers.level.start(torch.tensor([100.0]))
    again = Controllers.of(rl_config(), 6.0)
    again.restore(json.loads(json.dumps(controllers.state())))
    again.level.start(torch.tensor([50.0]))
    assert controllers.level.shift == again.level.shift == 2.0


def test_while_the_critic_warms_up_the_policy_is_held_and_no_price_moves(letters_folder: Path) -> None:
    prices = {"kl_target": 0.5, "trust": {"coef": 1.0, "target": 0.5}, "length_coef": 0.5}
    config = rl_config(iterations=4, prompts_per_iteration=16, values={"warmup": 2}, **prices)
    models = models_of(letters_folder, LastLetter(), config)
    optimizer = optimizer_of(config, models)
    blocks = torch.randint(4, 100, (6, 9), generator=torch.Generator().manual_seed(0))
    optimizer.mix = PretrainingMix(blocks, 3, 1.0)

    def weights() -> tuple[Tensor, Tensor]:
        policy, critic = (torch.cat([p.detach().flatten() for p in m.parameters()]) for m in models.trained().values())
        return policy, critic

    before, adapted = weights(), optimizer.controllers.prices()
    rows = []
    for step in range(2):
        rows.append(optimizer.step(Prompts(PROMPTS), step)[1])
        now = weights()
        assert torch.equal(now[0], before[0]) and not torch.equal(now[1], before[1])
        assert optimizer.controllers.prices() == adapted
        before = now
    assert all((row["actor_grad_norm"], row["kl"], row["approx_kl"]) == (0.0, 0.0, 0.0) for row in rows)
    assert all("ptx_loss" not in row and math.isfinite(row["policy_loss"]) for row in rows)
    rows.append(optimizer.step(Prompts(PROMPTS), 2)[1])
    assert not torch.equal(weights()[0], before[0]) and optimizer.controllers.prices() != adapted
    assert rows[2]["ptx_loss"] > 0 and rows[2]["actor_grad_norm"] > 0


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"iterations": 3, "values": {"warmup": 3}}, "leaves the policy none"),
        ({"values": {"warmup": 1, "shared": True}}, "on its trunk"),
    ],
)
def test_a_warm_up_that_cannot_be_is_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        RlConfig(**given)


def test_critic_of_a_reward_model_with_other_tokens_starts_from_the_policy(
    policy_folder: Path, tiny_config: DecoderConfig, tmp_path: Path
) -> None:
    other = train_tokenizer(TEXTS[:3], 290)
    foreign = ScalarModel(replace(tiny_config, vocab_size=290, num_layers=1))
    save_scalar(tmp_path / "m", foreign, other)
    models = load_policy_models(rl_config(), PPO, policy_folder, tmp_path / "m")
    assert models.critic.config == models.policy.config
    assert torch.equal(models.critic.model.embed_tokens.weight, models.policy.model.embed_tokens.weight)
    assert bool((models.critic.score.weight == 0).all())


def test_prompts_that_leave_no_room_are_refused(
    policy_folder: Path, reward_folder: Path, write_rows: WriteRows, tmp_path: Path
) -> None:
    data = write_rows("prompts.jsonl", [{"prompt": "fog " * 40}])
    with pytest.raises(AccordError, match="short enough"):
        rl(rl_config(), model=policy_folder, reward_model=reward_folder, data=data, output_dir=tmp_path / "out")


def test_alarms_name_symptom_and_cause() -> None:
    fine = {
        "kl": -0.2,
        "kl_error": 0.1,
        "first_ratio_max": 1.0,
        "behaviour_gap": 1e-5,
        "ratio_max": 1.4,
        "entropy": 2.0,
        "eos_rate": 1.0,
        "distinct": 1.0,
    }
    assert raised_alarms(fine) == []
    assert raised_alarms(fine | {"kl": 11.9, "kl_target": 4.0}) == []
    assert [event["alarm"] for event in raised_alarms(fine | {"kl": 12.1, "kl_target": 4.0})] == [
        "KL far above its target"
    ]
    spoilt = {
        "kl": -0.31,
        "first_ratio_max": 1.2,
        "behaviour_gap": 0.2,
        "ratio_max": 20.0,
        "clip_high": 0.4,
        "behaviour_ess": 0.2,
        "entropy": 0.01,
        "eos_rate": 0.5,
        "distinct": 0.2,
    }
    for name, value in spoilt.items():
        (event,) = raised_alarms(fine | {name: value})
        assert event["alarm"]
        assert event["cause"]


def test_alarms_that_look_back_name_what_changed() -> None:
    first = {"length": 20.0, "entropy": 2.0, "value_loss": 0.5, "length_correlation": 0.0}
    earlier = [first, *[first | {"value_loss": 1.0, "length": 50.0}] * 4]
    assert raised_trends(first, []) == [] == raised_trends(first, earlier)
    changed = {
        "value loss spike": {"value_loss": 10.1},
        "length grows with the score": {"length": 30.1, "length_correlation": 0.51},
        "length collapses": {"length": 9.9},
        "entropy falls": {"entropy": 0.39},
        "entropy rises": {"entropy": 2.61},
    }
    for name, values in changed.items():
        assert [event["alarm"] for event in raised_trends(first | values, earlier)] == [name]
    quiet = [{"value_loss": 9.9}, {"length": 30.1}, {"length": 29.9, "length_correlation": 0.51}, {"length": 10.1}]
    for values in [*quiet, {"entropy": 0.41}, {"entropy": 2.59}]:
        assert raised_trends(first | values, earlier) == []
    assert raised_trends(first | {"value_loss": 10.1}, earlier[:4]) == []  # too early to tell
    without_critic = {name: value for name, value in first.items() if name != "value_loss"}
    assert raised_trends(without_critic, [without_critic] * 9) == []


@pytest.mark.slow
def test_a_run_tells_the_alarms_that_look_back(
    policy_folder: Path, reward_folder: Path, write_rows: WriteRows, tmp_path: Path
) -> None:
    """A price on every token of a policy that has just begun: it learns to say nothing, and the run says so."""
    data = write_rows("prompts.jsonl", [{"prompt": "Say:"}])
    config = rl_config(iterations=30, kl_coef=0.0, length_coef=0.0, shaping={"length_penalty": 3.0})
    rl(config, model=policy_folder, reward_model=reward_folder, data=data, output_dir=tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    short = [row["step"] for row in rows if row["length"] < rows[0]["length"] / 2]
    events = [json.loads(line) for line in (tmp_path / "out" / "events.jsonl").read_text().splitlines()]
    assert short
    assert [event["step"] for event in events if event["alarm"] == "length collapses"] == short


@pytest.mark.slow
def test_a_run_that_leaves_its_bounds_stops_or_pauses(
    policy_folder: Path, reward_folder: Path, write_rows: WriteRows, tmp_path: Path
) -> None:
    """The same policy that learns to say nothing: stopped, it is the policy of that step, with a snapshot of it."""
    inputs = {"model": policy_folder, "reward_model": reward_folder}
    inputs |= {"data": write_rows("prompts.jsonl", [{"prompt": "Say:"}])}
    changes = {"iterations": 30, "kl_coef": 0.0, "length_coef": 0.0, "shaping": {"length_penalty": 3.0}}
    with pytest.raises(PausedByAlarm, match="length collapses") as paused:
        rl(rl_config(**changes, on_alarm="pause"), **inputs, output_dir=tmp_path / "pause")
    at = len((tmp_path / "pause/metrics.jsonl").read_text().splitlines())
    assert f"at step {at} of 30" in paused.value.what and 1 < at < 30
    made = rl(rl_config(**changes, on_alarm="stop"), **inputs, output_dir=tmp_path / "stop")
    assert made.num_episodes == 48 * at
    assert max(made.snapshots) == at
    assert made.snapshots.keys() == {*range(5, at, 5), at}
    last, kept = (load_file(path / "model.safetensors") for path in (made.snapshots[at], made.model))
    assert all(torch.equal(last[name], kept[name]) for name in kept)


def gold_row(gold: float, score: float, error: float = 0.1) -> dict[str, float]:
    return {"part_gold": gold, "error_gold": error, "score": score}


#: Two errors of .1 make .141; two standard errors are .283.
PEAK = gold_row(1.0, 5.0)
FALLEN, LESS = gold_row(0.7, 6.0), gold_row(0.75, 6.0)


@pytest.mark.parametrize(
    ("earlier", "now", "rings"),
    [
        ([PEAK, FALLEN, FALLEN], FALLEN, True),
        ([gold_row(0.2, 4.0), PEAK, gold_row(0.9, 5.5), FALLEN, FALLEN], FALLEN, True),  # from its best, not its last
        ([PEAK, FALLEN], FALLEN, False),  # for two steps only
        ([PEAK, FALLEN, LESS], FALLEN, False),  # one of the three is within two standard errors
        ([PEAK, FALLEN, FALLEN], gold_row(0.7, 4.9), False),  # the score fell too: no over-optimisation
        ([PEAK, FALLEN, FALLEN], gold_row(0.7, 6.0, error=0.2), False),  # too little is known of this step
        ([gold_row(0.0, 1.0)], gold_row(0.1, 2.0), False),
        ([], FALLEN, False),
    ],
)
def test_a_reward_that_is_only_watched_tells_of_over_optimisation(
    earlier: list[dict[str, float]], now: dict[str, float], rings: bool
) -> None:
    found = watched_alarms(["gold"], now, earlier)
    assert [(row["alarm"], row["grave"]) for row in found] == [("over-optimised by gold", True)] * rings
    assert watched_alarms(["other"], now, earlier) == []


@pytest.mark.slow
def test_a_run_against_its_judge_is_stopped(policy_folder: Path, write_rows: WriteRows, tmp_path: Path) -> None:
    """Paid for texts without e, watched by one who likes e: the judge ends it, and no one who likes what is paid."""
    data = write_rows("prompts.jsonl", [{"prompt": "Say:"}])
    paid = {"regex": "e", "weight": -1.0, "name": "paid"}
    for name, judge in (("against", {"regex": "e"}), ("with", {"regex": "^[^e]*$"})):
        rewards = (paid, judge | {"weight": 0.0, "name": "gold"})
        config = rl_config(iterations=20, kl_coef=0.0, rewards=rewards, on_alarm="stop")
        made = rl(config, model=policy_folder, data=data, output_dir=tmp_path / name)
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        assert rows[-1]["score"] > rows[0]["score"]
        assert made.final["error_gold"] == pytest.approx(rows[-1]["error_gold"], abs=1e-6)
        events = tmp_path / name / "events.jsonl"
        rang = "over-optimised by gold" in events.read_text() if events.exists() else False
        assert rang is (name == "against")


# -- every row of the table --------------------------------------------------------------------------------------------

#: What a row is given beside the settings of all.
ROWS: dict[str, dict[str, Any]] = {"reinforce": {"kl_coef": 0.0}, "dapo": {"shaping": {"overlong_tokens": 0}}}


def row_config(name: str, **changes: Any) -> RlConfig:
    group = 1 if POLICY_ALGORITHMS[name].min_group == 1 else 6
    shared = {"algorithm": name, "samples_per_prompt": group, "prompts_per_iteration": 48 // group}
    return rl_config(**shared | ROWS.get(name, {}) | changes)


@pytest.mark.slow
@pytest.mark.parametrize("name", POLICY_ALGORITHMS)
def test_every_row_learns_to_end_with_a_letter(letters_folder: Path, name: str) -> None:
    config = row_config(name, **SLOWER.get(name, LEARNS))
    stats = optimise(config, models_of(letters_folder, LastLetter(), config))
    assert 0.05 < stats[0]["score"] < 0.6
    assert sum(s["score"] for s in stats[-3:]) / 3 > 0.8
    assert stats[-1]["kl"] > 0.1
    # the first batch is where the reference is, and the first update's ratios are 1
    assert (stats[0]["kl"], stats[0]["kl_k3"]) == (0.0, 0.0)
    assert all(s["first_ratio_max"] == pytest.approx(1.0, abs=1e-4) for s in stats)
    assert all(s["first_approx_kl"] == pytest.approx(0.0, abs=1e-6) for s in stats)


VARIANTS: dict[str, dict[str, Any]] = {
    "shared critic": {"values": {"shared": True}},
    "trust region instead of the clip": {"clip": None, "trust": {"coef": 1.0}},
    "trust region that adapts": {"trust": {"coef": 0.1, "target": 0.01}},
    "dual clip": {"trust": {"dual_clip": 3.0}},
    "kl in the loss": {"kl_in": "loss"},
    "entropy bonus": {"entropy_coef": 0.01},
    "monte carlo": {"gae_lambda": 1.0},
    "temporal difference": {"gae_lambda": 0.0, "iterations": 14},
    "scaled and clipped scores": {"shaping": {"scale": True, "clip": 2.0}},
    "whitened rewards": {"shaping": {"whiten": True}},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_of_ppo_learns_to_end_with_a_letter(letters_folder: Path, name: str) -> None:
    config = rl_config(**LEARNS | VARIANTS[name])
    stats = optimise(config, models_of(letters_folder, LastLetter(), config))
    assert stats[0]["score"] < 0.6
    assert sum(s["score"] for s in stats[-3:]) / 3 > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ppo", "rloo", "grpo"])
def test_the_sign_of_the_score_decides_where_it_goes(letters_folder: Path, name: str) -> None:
    config = row_config(name, **SLOWER.get(name, LEARNS))
    stats = optimise(config, models_of(letters_folder, LastLetter(-1.0), config))
    assert 0.05 < -stats[0]["score"] < 0.6
    assert -sum(s["score"] for s in stats[-3:]) / 3 < 0.05
    assert stats[-1]["kl"] > 0.1
    assert all(s["first_ratio_max"] == pytest.approx(1.0, abs=1e-4) for s in stats)


SMOOTH = OptimConfig(lr=1e-2, schedule="constant", eps=1.0, warmup_ratio=0.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [*({"name": name} for name in POLICY_ALGORITHMS), {"values": {"shared": True}}, {"entropy_coef": 0.1}],
    ids=str,
)
def test_an_update_does_not_depend_on_micro_batches(letters_folder: Path, settings: dict[str, Any]) -> None:
    """With Adam's eps at 1 a step is smooth in the gradient, so weights may be compared."""
    found = []
    for micro in (10_000, 1):
        changes = {"iterations": 1, "micro_batch_tokens": micro, "actor": SMOOTH, "critic": SMOOTH, "kl_coef": 0.1}
        config = row_config(**{"name": "ppo", **changes, **settings})
        config = config.model_copy(update={"prompts_per_iteration": config.prompts_per_iteration // 2})
        models = models_of(letters_folder, LastLetter(), config)
        stats = optimise(config, models)[0]
        found.append((stats, torch.cat([p.detach().flatten() for p in models.policy.parameters()])))
    (whole, whole_weights), (split, split_weights) = found
    torch.testing.assert_close(split_weights, whole_weights, rtol=0.0, atol=1e-6)
    assert split["policy_loss"] == pytest.approx(whole["policy_loss"], abs=1e-5)


def some_rollout(models: PolicyModels, config: RlConfig, completions: Sequence[str]) -> Rollout:
    """A rollout of given completions of the first prompt; the first two end, the others are cut."""
    prompt = tuple(models.tokenizer.encode(PROMPTS[0]))
    samples = []
    for i, text in enumerate(completions):
        ids = (*models.tokenizer.encode(text), *((models.tokenizer.end_id,) if i < 2 else ()))
        behaviour = (-1.0,) * len(ids)
        written = models.tokenizer.decode(ids)
        samples.append(Generated(PROMPTS[0], written, prompt, ids, behaviour, "stop" if i < 2 else "length"))
    scored = score_samples(models.scorer, samples)
    return measure_rollout(config, models, scored, scored.score_B)


@pytest.mark.parametrize("micro_batch_tokens", [10_000, 1])
@pytest.mark.parametrize("shared", [False, True])
def test_the_whole_loss_against_all_logits(letters_folder: Path, shared: bool, micro_batch_tokens: int) -> None:
    """Every term at once, on two of three completions, after the policy has moved: loss and gradient by plain torch."""
    config = rl_config(
        temperature=0.8,
        clip=0.1,
        kl_in="loss",
        kl_coef=0.3,
        entropy_coef=0.2,
        values={"shared": shared, "coef": 0.5, "clip": 0.05},
        trust={"coef": 0.4},
        micro_batch_tokens=micro_batch_tokens,
    )
    models = models_of(letters_folder, LastLetter(), config)
    models.critic.score.weight.data.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(1))
    rollout = some_rollout(models, config, [" abcd", " d", " dca"])
    generator = torch.Generator().manual_seed(2)
    for parameter in models.policy.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    if not shared:
        models.critic.score.weight.data += 0.3
    optimizer = optimizer_of(config, models)
    controllers = optimizer.controllers
    controllers.kl.coef, controllers.trust.coef = 0.7, 0.9  # both have moved since the start
    experience = optimizer.advantages(rollout, optimizer.rewards(rollout))
    update = Update(config, PPO, models, controllers, experience)
    rows = [0, 2]
    found = sum(update.losses(rows, 0))
    num_tokens = int(rollout.mask_BC[rows].sum())

    wanted = torch.zeros(())
    for row in rows:
        prompt, completion = rollout.examples[row].prompt, rollout.examples[row].completion
        ids, start, length = torch.tensor([[*prompt, *completion]]), len(prompt) - 1, len(completion)
        law = torch.log_softmax(models.policy(ids)[0, start : start + length] / 0.8, -1)
        logp, entropy = law[torch.arange(length), list(completion)], -(law.exp() * law).sum(-1)
        ref_law = torch.log_softmax(models.reference(ids)[0, start : start + length] / 0.8, -1)
        logr = ref_law[torch.arange(length), list(completion)] - logp
        trunk = models.policy if shared else models.critic
        hidden = trunk.model(ids[:, :-1], torch.tensor([ids.shape[1] - 1]))[start:]
        value = (hidden @ models.critic.score.weight.T).squeeze(-1)
        old_logp, old_value = rollout.old_logp_BC[row, :length], rollout.value_BC[row, :length]
        advantage, returned = experience.advantage_BC[row, :length], experience.return_BC[row, :length]
        ratio = (logp - old_logp).exp()
        loss = -torch.minimum(ratio * advantage, ratio.clamp(0.9, 1.1) * advantage)
        loss = loss + 0.7 * ratio * (logr.exp() - 1 - logr) + 0.9 * (ratio - 1 - ratio.log()) - 0.2 * entropy
        bounded = torch.minimum(torch.maximum(value, old_value - 0.05), old_value + 0.05)
        loss = loss + 0.5 * 0.5 * torch.maximum((value - returned) ** 2, (bounded - returned) ** 2)
        wanted = wanted + loss.sum() / num_tokens
    assert found.item() == pytest.approx(wanted.item(), abs=1e-5)
    parameters = [*models.policy.parameters(), *models.critic.parameters()]
    ours, theirs = (torch.autograd.grad(loss, parameters, allow_unused=True) for loss in (found, wanted))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)
    assert update.seen["approx_kl"] > 1e-4  # the policy has moved, else the terms would be 0


def test_scores_are_shaped_in_order(letters_folder: Path) -> None:
    config = rl_config(
        max_new_tokens=8,
        missing_eos_penalty=0.75,
        shaping={"scale": True, "clip": 1.5, "length_penalty": 0.1, "overlong_tokens": 4},
    )
    models = models_of(letters_folder, LastLetter(), config)
    samples = [Generated("", "", (5,), (7,) * n, (-1.0,) * n, "stop") for n in (2, 6)]
    samples.append(Generated("", "", (5,), (7,) * 8, (-1.0,) * 8, "length"))
    scored = replace(score_samples(models.scorer, samples), score_B=torch.tensor([1.0, 4.0, -8.0]))
    controllers = Controllers.of(config, 4.0)
    controllers.scores.update(torch.tensor([-2.0, 2.0, 0.0]))  # unbiased deviation 2
    got = shape_scores(config, scored, controllers)
    # over 2, held within 1.5: .5, 1.5, -1.5; .1 a token: -.2, -.6, -.8; (8 - 4 - tokens) / 4: 0, -.5, -1; no end: -.75
    assert got.tolist() == pytest.approx([0.3, 0.4, -4.05])


def test_what_a_rollout_shows_by_hand(letters_folder: Path) -> None:
    config = rl_config(samples_per_prompt=2)
    models = models_of(letters_folder, LastLetter(), config)
    rollout = some_rollout(models, config, [" a", " a"])
    (length,) = {len(e.completion) for e in rollout.examples}
    shape = (2, length)
    old = torch.full(shape, -2.0)
    old[1] = -1.0
    rollout = replace(
        rollout,
        mask_BC=torch.ones(shape, dtype=torch.bool),
        old_logp_BC=old,
        ref_logp_BC=torch.full(shape, -1.5),
        behaviour_logp_BC=torch.full(shape, -2.0),
    )
    stats = rollout_stats(rollout, 2)
    # log pi - log ref: -.5 a token and .5 a token
    assert stats["kl"] == pytest.approx(0.0, abs=1e-6)
    # e^.5 - 1.5 = .148721 and e^-.5 - .5 = .106531 a token
    assert stats["kl_k3"] == pytest.approx(length * (0.148721 + 0.106531) / 2, abs=1e-5)
    assert stats["reference_nll"] == pytest.approx(1.5)
    # the sampler said -2 to all; half the tokens are off by 1, their weight old / behaviour is e:
    # (1 + e)^2 / (1 + e^2) / 2 = .824027
    assert stats["behaviour_gap"] == pytest.approx(0.5)
    assert stats["behaviour_gap_max"] == pytest.approx(1.0)
    assert stats["behaviour_ess"] == pytest.approx(0.824027, abs=1e-5)
    assert (stats["length"], stats["eos_rate"], stats["distinct"], stats["zero_variance_groups"]) == (
        length,
        1.0,
        0.5,
        1.0,
    )
    one = torch.full(shape, -2.0)
    one[0, 0] = -1.0  # a single token of n: (n - 1 + e)^2 / (n (n - 1 + e^2)); were it 1 / e, another number
    n, e = 2 * length, math.e
    wanted = (n - 1 + e) ** 2 / (n * (n - 1 + e**2))
    assert rollout_stats(replace(rollout, old_logp_BC=one), 2)["behaviour_ess"] == pytest.approx(wanted, abs=1e-5)
    moved = rollout_stats(replace(rollout, ref_logp_BC=torch.full(shape, -2.5)), 2)
    assert moved["kl"] == pytest.approx(length * (0.5 + 1.5) / 2)  # sums over tokens, means over completions


@pytest.mark.parametrize("name", POLICY_ALGORITHMS)
def test_completions_of_the_end_alone_harm_nothing(letters_folder: Path, name: str) -> None:
    """Whatever is drawn first ends the text: one token, no letters in half of the cases."""
    config = row_config(name, iterations=2, prompts_per_iteration=2, samples_per_prompt=6, missing_eos_penalty=0.0)
    models = models_of(letters_folder, LastLetter(), config)
    models.tokenizer.stop_ids = tuple(range(models.tokenizer.vocab_size))
    for stats in optimise(config, models):
        assert (stats["length"], stats["eos_rate"]) == (1.0, 1.0)
        assert all(torch.tensor(list(stats.values())).isfinite())


def test_the_mix_of_texts_by_hand(policy: CausalLM) -> None:
    blocks = torch.randint(4, 100, (6, 9), generator=torch.Generator().manual_seed(0))
    whole = torch.nn.functional.cross_entropy(policy(blocks)[:, :-1].flatten(0, 1), blocks[:, 1:].flatten())
    same = PretrainingMix(blocks[:1].expand(6, -1), 3, 0.25)
    one = torch.nn.functional.cross_entropy(policy(blocks[:1])[0, :-1], blocks[0, 1:])
    assert sum(same.losses(policy, 0)).item() == pytest.approx(0.25 * one.item(), abs=1e-5)
    many = PretrainingMix(blocks, 3, 1.0)
    drawn = [sum(many.losses(policy, seed)).item() for seed in range(40)]
    assert drawn[0] == sum(many.losses(policy, 0)).item() and len(set(drawn)) > 20
    assert sum(drawn) / 40 == pytest.approx(whole.item(), abs=0.2)


def test_an_iteration_moves_all_that_adapts(letters_folder: Path) -> None:
    config = rl_config(
        iterations=1,
        kl_target=0.5,
        length_coef=0.1,
        trust={"coef": 1.0, "target": 100.0},
        shaping={"scale": True},
        prompts_per_iteration=24,
    )
    optimizer = optimizer_of(config, models_of(letters_folder, LastLetter(), config))
    _, stats = optimizer.step(Prompts(PROMPTS), 0)
    controllers = optimizer.controllers
    assert controllers.kl.coef == pytest.approx(0.02 * (1 - 0.2 * 24 / 10_000))  # KL 0: e = -.2, of 24 completions
    assert controllers.trust.coef == 0.5  # far below its target
    assert controllers.length.error == pytest.approx(max(-0.5, min(0.5, 1 - stats["length"] / 6.0)))
    assert (controllers.scores.count, controllers.returns.count) == (24, 24)
    assert controllers.scores.mean == pytest.approx(stats["score"])
    assert controllers.returns.mean == pytest.approx(stats["return"])


def test_all_samples_are_seen_once_an_epoch_in_an_order_of_its_own(letters_folder: Path) -> None:
    config = rl_config(prompts_per_iteration=8, ppo_epochs=3, minibatches=4, iterations=1)
    seen: list[list[int]] = []
    seeds: set[int] = set()
    original = Update.losses

    def watched(self: Update, rows: Sequence[int], seed: int) -> Any:
        seen.append(list(rows))
        seeds.add(seed)
        return original(self, rows, seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Update, "losses", watched)
        optimise(config, models_of(letters_folder, LastLetter(), config))
    epochs = [seen[i : i + 4] for i in (0, 4, 8)]
    assert all(sorted(row for rows in epoch for row in rows) == list(range(8)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert len(seeds) == 12  # each update mixes in blocks of its own


@pytest.mark.parametrize(("place", "price"), [("reward", 0.7), ("loss", 0.0), ("loss_k3_naive", 0.0)])
def test_the_price_of_kl_is_paid_once(letters_folder: Path, place: str, price: float) -> None:
    """In the return where it lives in the reward, at what the controller asks by now; else not there."""
    config = rl_config(algorithm="reinforce", kl_in=place, kl_coef=0.2)
    models = models_of(letters_folder, LastLetter(), config)
    optimizer = optimizer_of(config, models)
    optimizer.controllers.kl.coef = 0.7
    rollout = some_rollout(models, config, [" a", " b", " ab"])
    rollout = replace(rollout, ref_logp_BC=torch.where(rollout.mask_BC, rollout.old_logp_BC - 0.5, 0.0))
    rewarded = optimizer.rewards(rollout)
    experience = optimizer.advantages(rollout, rewarded)
    wanted = rollout.score_B - price * 0.5 * rollout.tokens_B  # log pi - log ref is .5 a token
    torch.testing.assert_close(experience.advantage_BC[:, 0], wanted)
    assert experience_stats(experience, rewarded)["return"] == pytest.approx(wanted.mean().item())


def test_the_running_baseline_is_that_of_the_rollouts_before(letters_folder: Path) -> None:
    config = rl_config(algorithm="reinforce_baseline", kl_coef=0.0)
    models = models_of(letters_folder, LastLetter(), config)
    rollout, optimizer = some_rollout(models, config, [" a", " b", " b"]), optimizer_of(config, models)
    found = []
    for score in ([4.0, 1.0, 1.0], [0.0, 0.0, 6.0], [1.0, 1.0, 1.0]):
        moved = replace(rollout, score_B=torch.tensor(score))
        found.append(optimizer.advantages(moved, optimizer.rewards(moved)).advantage_BC[:, 0].tolist())
    # baselines: none yet; (4 + 1 + 1) / 3 = 2; (6 + 6) / 6 = 2
    assert found == [[4.0, 1.0, 1.0], [-2.0, -2.0, 4.0], [-1.0, -1.0, -1.0]]


@pytest.mark.slow
def test_an_entropy_bonus_holds_entropy_up(letters_folder: Path) -> None:
    plain, bonus = (
        optimise(config, models_of(letters_folder, LastLetter(), config))
        for config in (rl_config(**LEARNS | {"iterations": 5, "entropy_coef": bonus}) for bonus in (0.0, 0.3))
    )
    assert bonus[-1]["entropy"] > plain[-1]["entropy"] + 0.3


class ZeroVariance:
    """A scorer that likes prompts, not completions, but for those to the first prompt."""

    def score(self, pairs: Sequence[tuple[str, str]]) -> Tensor:
        return torch.tensor([float(len(text) % 3) if prompt == PROMPTS[0] else 1.0 for prompt, text in pairs])


@pytest.mark.slow
def test_dapo_draws_other_prompts_for_zero_variance_groups(letters_folder: Path) -> None:
    config = row_config("dapo", iterations=2, redraws=8)
    stats = optimise(config, models_of(letters_folder, ZeroVariance(), config))
    assert all(s["zero_variance_groups"] == 0 and s["scored"] > 48 for s in stats)
    none = config.model_copy(update={"redraws": 0})
    stats = optimise(none, models_of(letters_folder, ZeroVariance(), none))
    assert all(s["zero_variance_groups"] > 0.4 and s["scored"] == 48 for s in stats)


@pytest.mark.parametrize("name", [n for n in POLICY_ALGORITHMS if POLICY_ALGORITHMS[n].min_group > 1])
def test_scores_that_are_all_equal_are_counted_and_harm_nothing(letters_folder: Path, name: str) -> None:
    class Same:
        def score(self, pairs: Sequence[tuple[str, str]]) -> Tensor:
            return torch.full((len(pairs),), 3.0)

    config = row_config(name, iterations=1, missing_eos_penalty=0.0, shaping={"overlong_tokens": 0}, kl_coef=0.0)
    stats = optimise(config, models_of(letters_folder, Same(), config))[0]
    assert stats["zero_variance_groups"] == 1.0
    assert any(event["alarm"] == "zero-variance groups" for event in raised_alarms(stats))
    if name != "raft":
        assert stats["actor_grad_norm"] == 0.0


def test_prompts_that_dapo_fills_up_with_have_no_advantage(letters_folder: Path) -> None:
    """Six completions score alike and do not end alike: the penalty is no reason for one above the others."""
    config = row_config("dapo", prompts_per_iteration=2, samples_per_prompt=3, missing_eos_penalty=1.0, kl_coef=0.5)
    models = models_of(letters_folder, LastLetter(), config)
    rollout = some_rollout(models, config, [" a", " b", " b", " b", " b", " bc"])
    rollout = replace(rollout, score_B=torch.tensor([1.0, 0.0, -1.0, 0.0, -1.0, -1.0]))
    optimizer = optimizer_of(config, models)
    advantage_BC = optimizer.advantages(rollout, optimizer.rewards(rollout)).advantage_BC
    assert (advantage_BC[3:] == 0).all()  # by the scorer alone they are equal
    # 1, 0, -1 over their deviation of 1, to which 1e-4 is added
    assert advantage_BC[:3, 0].tolist() == pytest.approx([0.9999, 0.0, -0.9999], abs=1e-5)
    assert (POLICY_ALGORITHMS["grpo"].advantages(optimizer.rewards(rollout), config)[0][3:, 0] != 0).all()


@pytest.mark.parametrize("lengths", [(1, 5, 1, 5), (5, 1, 1, 5)])
def test_raft_is_fine_tuning_on_the_chosen_whatever_the_length_of_the_others(
    letters_folder: Path, lengths: tuple[int, ...]
) -> None:
    """Two groups of two, the first of each the best: the mean over the tokens of these alone is what SFT minimises."""
    config = row_config("raft", prompts_per_iteration=2, samples_per_prompt=2, minibatches=1)
    models = models_of(letters_folder, LastLetter(), config)
    rollout = some_rollout(models, config, [" " + "b" * n for n in lengths])
    rollout = replace(rollout, score_B=torch.tensor([1.0, 0.0, 1.0, 0.0]))
    optimizer = optimizer_of(config, models)
    experience = optimizer.advantages(rollout, optimizer.rewards(rollout))
    update = Update(config, POLICY_ALGORITHMS["raft"], models, optimizer.controllers, experience)
    loss = float(sum(update.losses(range(4), 0)).detach())
    logps = [by_hand(models.policy, rollout.examples[i].prompt, rollout.examples[i].completion) for i in (0, 2)]
    assert loss == pytest.approx(-sum(map(sum, logps)) / sum(map(len, logps)), abs=1e-5)
    assert sum(update.losses([1, 3], 0)) == 0  # nothing was chosen there


def test_the_error_of_kl_counts_prompts_and_not_their_samples() -> None:
    """Sixteen samples of each of 50 prompts, and only prompts vary: their 50 draws say how far the mean is off."""
    draw = torch.Generator().manual_seed(0)
    errors, means = [], []
    for _ in range(400):
        x_P = torch.randn(50, generator=draw)
        x_B = x_P.repeat_interleave(16)
        means.append(float(x_B.mean()))
        errors.append(clustered_error(x_B, [(i // 16,) for i in range(800)]))
    true = torch.tensor(means).std().item()
    assert sum(errors) / 400 == pytest.approx(true, rel=0.1)  # by samples it was a quarter of that
    assert clustered_error(torch.arange(4.0), list("abcd")) == pytest.approx(math.sqrt(1.25 / 4))
    # deviations -1.5, -.5, .5, 1.5 in clusters a, a, b, b: sqrt(2^2 + 2^2) / 4
    assert clustered_error(torch.arange(4.0), list("aabb")) == pytest.approx(math.sqrt(8) / 4)
    assert clustered_error(torch.arange(4.0), list("aaaa")) == pytest.approx(math.sqrt(1.25 / 4))


@pytest.mark.parametrize("name", POLICY_ALGORITHMS)
def test_a_policy_that_never_ends_gets_an_alarm_and_no_nan(policy_folder: Path, name: str) -> None:
    config = row_config(name, iterations=1, max_new_tokens=2)
    models = models_of(policy_folder, LastLetter(), config)
    models.tokenizer = replace_stops(models.tokenizer)
    stats = optimise(config, models)[0]
    assert stats["eos_rate"] == 0.0
    assert all(torch.tensor(list(stats.values())).isfinite())
    assert any(event["alarm"] == "no end" for event in raised_alarms(stats))


@pytest.mark.slow
def test_pretraining_texts_are_not_forgotten(letters_folder: Path, write_rows: WriteRows, tmp_path: Path) -> None:
    texts = write_rows("texts.jsonl", [{"text": text} for text in TEXTS])
    prompts = write_rows("prompts.jsonl", [{"prompt": p} for p in PROMPTS])
    inputs = {"model": letters_folder, "reward_model": other_reward(letters_folder, tmp_path), "data": prompts}
    config = rl_config(iterations=4, ptx={"coef": 1.0, "blocks": 8, "block_tokens": 16})
    rl(config, **inputs, ptx_data=texts, output_dir=tmp_path / "ptx")
    losses = [row["ptx_loss"] for row in rows_of(tmp_path / "ptx/metrics.jsonl")]
    assert losses[-1] < losses[0] - 0.5
    with pytest.raises(UsageError, match=r"ptx\.coef"):
        rl(config, **inputs, output_dir=tmp_path / "x")
    with pytest.raises(UsageError, match=r"ptx\.coef"):
        rl(rl_config(), **inputs, ptx_data=texts, output_dir=tmp_path / "x")


def other_reward(folder: Path, tmp_path: Path) -> Path:
    scorer, words, _ = load_scalar(folder, head_seed=1)
    save_scalar(tmp_path / "scorer", scorer, words)
    return tmp_path / "scorer"


def test_naive_k3_is_told_once_with_its_reason(letters_folder: Path, write_rows: WriteRows, tmp_path: Path) -> None:
    prompts = write_rows("prompts.jsonl", [{"prompt": p} for p in PROMPTS])
    config = row_config("grpo", iterations=2, kl_in="loss_k3_naive")
    rl(
        config,
        model=letters_folder,
        reward_model=other_reward(letters_folder, tmp_path),
        data=prompts,
        output_dir=tmp_path / "out",
    )
    (event,) = [e for e in rows_of(tmp_path / "out/events.jsonl") if e["alarm"] == "k3 in the loss"]
    assert event["step"] == 0 and "other direction" in event["cause"]


@pytest.mark.slow
def test_an_algorithm_from_outside_the_package(
    letters_folder: Path, write_rows: WriteRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The example of docs/algorithms.md, as it stands there: one function and one row in a file of one's own."""
    page = (Path(__file__).parents[1] / "docs/algorithms.md").read_text()
    (example,) = [block for block in page.split("```python\n")[1:] if block.startswith("# mine.py")]
    (tmp_path / "mine.py").write_text(example.split("```")[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    config = rl_config(algorithm="mine:ranked", ppo_epochs=1, **LEARNS | {"iterations": 12})
    stats = optimise(config, models_of(letters_folder, LastLetter(), config))
    assert sum(s["score"] for s in stats[-3:]) / 3 > 0.8
    with pytest.raises(UsageError, match="nothing"):
        optimise(rl_config(algorithm="mine:nothing"), models_of(letters_folder, LastLetter()))
