"""The reward stage on every kind of judgement: each loss finds a known utility; ensembles, tokenizers, bad data."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TEXTS, WriteRows, WriteSplit
from letters import rl_config
from safetensors.torch import load_file
from scipy.stats import spearmanr
from test_train import GROUPS, gradients, random_scalar, rows_of, utility, utility_rankings, word_texts

from accord.algo.table import REWARD_LOSSES
from accord.config import CombineConfig, OptimConfig, PairsConfig, RewardConfig
from accord.errors import AccordError, DataError, UsageError
from accord.files import read_json
from accord.models.decoder import CausalLM, ScalarModel, init_weights
from accord.models.folder import RewardScale, load_scalar, save_policy, save_scalar
from accord.models.placement import PLAIN
from accord.models.shape import DecoderConfig
from accord.records import JudgedGroup, RankedGroup
from accord.scoring import Ensemble, RewardModel
from accord.text.tokenizer import Tokenizer, train_tokenizer
from accord.train.alarms import reward_alarms
from accord.train.judged import EncodedGroup, encode_group, encode_groups, held_out_fit, read_groups, reward_batch
from accord.train.policy_models import load_policy_models
from accord.train.reward import RewardResult, group_losses, reward
from accord.train.rl import find_algorithm, rl

FAST: dict[str, Any] = {"precision": "fp32", "dropout": 0.0, "optim": OptimConfig(lr=5e-3)}


# -- every loss learns -------------------------------------------------------------------------------------------------


def labels(count: int, seed: int) -> list[dict[str, Any]]:
    """Thumbs of somebody who likes a text with the chance sigmoid(2 utility)."""
    draw = random.Random(seed)
    return [
        {"prompt": "Say:", "completion": text, "label": draw.random() < 1 / (1 + math.exp(-2 * utility(text)))}
        for text in word_texts(count, seed)
    ]


def ratings(count: int, seed: int) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    return [
        {"prompt": "Say:", "completion": text, "rating": 50 + 10 * utility(text) + draw.gauss(0, 3)}
        for text in word_texts(count, seed)
    ]


def graded_pairs(count: int, seed: int) -> list[dict[str, Any]]:
    """Pairs with the strength of the preference; a tie where two are alike."""
    texts, rows = word_texts(2 * count, seed), []
    for a, b in zip(texts[::2], texts[1::2], strict=True):
        better, worse = sorted((a, b), key=utility, reverse=True)
        gap = utility(better) - utility(worse)
        if gap < 0.5:
            rows.append({"prompt": "Say:", "completions": [a, b], "ranks": [1, 1]})
        elif a != b:
            strength = "slightly" if gap < 1.5 else "better" if gap < 3 else "much"
            rows.append({"prompt": "Say:", "chosen": better, "rejected": worse, "strength": strength})
    return rows


LESSONS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "best_of_k": ({"loss": "best_of_k", "epochs": 3}, utility_rankings(160, 5, 0)),
    "plackett_luce": ({"loss": "plackett_luce", "epochs": 3}, utility_rankings(120, 5, 0)),
    "per_token": ({"loss": "per_token", "epochs": 3}, utility_rankings(120, 5, 0)),
    "binary": ({"loss": "binary", "epochs": 3, "groups_per_step": 32}, labels(1200, 0)),
    "regression": ({"loss": "regression", "epochs": 3, "groups_per_step": 32}, ratings(800, 0)),
    "margins and ties": ({"pairs": PairsConfig(ties="half", margin="large"), "epochs": 3}, graded_pairs(500, 0)),
    "smoothed": ({"pairs": PairsConfig(label_smoothing=0.1), "epochs": 3, "l2_coef": 0.001}, graded_pairs(500, 0)),
    "ensemble": ({"heads": 3, "epochs": 3}, utility_rankings(160, 5, 0)),
}


@pytest.mark.slow
@pytest.mark.parametrize(("settings", "rows"), LESSONS.values(), ids=LESSONS.keys())
def test_each_loss_recovers_a_known_utility(
    settings: dict[str, Any], rows: list[dict[str, Any]], policy_folder: Path, write_split: WriteSplit, tmp_path: Path
) -> None:
    config = RewardConfig(**FAST | settings)
    result = reward(config, model=policy_folder, **write_split(rows), output_dir=tmp_path / "out")
    fresh = word_texts(200, 99)
    scores = RewardModel.load(result.model, PLAIN).score([("Say:", text) for text in fresh])
    assert spearmanr(scores.numpy(), [utility(text) for text in fresh]).statistic > 0.95
    assert result.valid_accuracy is not None and result.valid_accuracy > 0.7
    logged = rows_of(tmp_path / "out" / "metrics.jsonl")
    assert all(value is not None and math.isfinite(value) for row in logged for value in row.values())
    assert logged[-1]["loss"] < logged[0]["loss"]
    names = {"accuracy", "margin", "chosen_score", "rejected_score"}
    names = {"binary": {"accuracy", "margin"}, "regression": {"error"}}.get(config.loss, names)
    assert names | {"length_correlation"} <= logged[0].keys()


@pytest.mark.slow
def test_turned_rankings_teach_the_opposite(policy_folder: Path, write_rows: WriteRows, tmp_path: Path) -> None:
    rows = [{**row, "ranks": [6 - rank for rank in row["ranks"]]} for row in utility_rankings(120, 5, 0)]
    config = RewardConfig(**FAST, epochs=3)
    result = reward(config, model=policy_folder, data=write_rows("r.jsonl", rows), output_dir=tmp_path / "out")
    fresh = word_texts(100, 99)
    scores = RewardModel.load(result.model, PLAIN).score([("Say:", text) for text in fresh])
    assert spearmanr(scores.numpy(), [utility(text) for text in fresh]).statistic < -0.9


@pytest.mark.slow
def test_a_loss_from_outside_the_package(
    policy_folder: Path, write_split: WriteSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = (
        "from accord.algo.table import RewardLoss\n"
        "def hinge(judged, total_weight, center_coef):\n"
        "    pairs = judged.pairs\n"
        "    gap = judged.score_S[pairs.chosen_N] - judged.score_S[pairs.rejected_N]\n"
        "    return (pairs.weight_N / total_weight * (1 - gap).clamp_min(0)).sum(), {}\n"
        "HINGE = RewardLoss(hinge, reads='pairs')\n"
        "BLIND = RewardLoss(hinge, reads='stars')\n"
    )
    (tmp_path / "my_rows_of_rewards.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    data = write_split(utility_rankings(60, 4, 0))
    config = RewardConfig(**FAST, epochs=3, loss="my_rows_of_rewards:HINGE")
    result = reward(config, model=policy_folder, **data, output_dir=tmp_path / "out")
    assert result.valid_accuracy is not None and result.valid_accuracy > 0.7
    for name in ("hinge", "BLIND"):
        config = RewardConfig(**FAST, loss=f"my_rows_of_rewards:{name}")
        with pytest.raises(UsageError, match="no row of reward losses"):
            reward(config, model=policy_folder, **data, output_dir=tmp_path / "out")


# -- micro-batches -----------------------------------------------------------------------------------------------------

JUDGED = [
    JudgedGroup(prompt="A", completions=(" one fox", " two foxes crossed"), values=(1.0, 0.0), weight=2.0),
    JudgedGroup(prompt="Bread", completions=(" salt",), values=(1.0,)),
    JudgedGroup(prompt="C", completions=(" rain", " slow rain", " grey"), values=(0.0, 1.0, 0.0)),
]


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("name", REWARD_LOSSES)
def test_no_loss_depends_on_micro_batches(
    name: str, heads: int, tiny_config: DecoderConfig, words: Tokenizer, policy_folder: Path
) -> None:
    model = load_scalar(policy_folder, head_seed=1, heads=heads)[0].eval()
    ranked = REWARD_LOSSES[name].reads in ("pairs", "orders")
    groups: list[EncodedGroup] = [
        encode_group(words, group, 60, draws=(1.0, 2.0)[:heads] if heads > 1 else ())
        for group in (GROUPS if ranked else JUDGED)
    ]
    found = []
    for micro in (10_000, 1):
        config = RewardConfig(loss=name, heads=heads, l2_coef=0.1, micro_batch_tokens=micro)
        stats: dict[str, float] = {}
        found.append((*gradients(model, group_losses(config, model, groups, words.pad_id, stats)), stats))
    (whole, whole_grad, whole_stats), (split, split_grad, split_stats) = found
    assert split == pytest.approx(whole, abs=1e-6)
    assert split_stats == pytest.approx(whole_stats, abs=1e-5)
    torch.testing.assert_close(split_grad, whole_grad, rtol=0.0, atol=1e-6 * float(whole_grad.abs().max()) + 1e-6)


@pytest.mark.parametrize("micro_batch_tokens", [10_000, 1])
@pytest.mark.parametrize("name", REWARD_LOSSES)
def test_judgements_of_one_group_cost_its_texts_once_and_teach_the_same(
    name: str, micro_batch_tokens: int, tiny_config: DecoderConfig, words: Tokenizer
) -> None:
    """Three people on the same four texts, one of them pair by pair: the same loss and gradient as apart."""
    texts = (" one fox", " two foxes crossed", " rain", " slow rain")
    said: list[Any] = [JudgedGroup(prompt="A", completions=texts, values=(1.0, 0.0, 0.0, 1.0))]
    said += [JudgedGroup(prompt="A", completions=texts[1:], values=(0.0, 1.0, 1.0), weight=0.5)]
    if REWARD_LOSSES[name].reads in ("pairs", "orders"):
        said = [RankedGroup(prompt="A", completions=texts, ranks=(1, 2, 2, 4))]
        said += [RankedGroup(prompt="A", completions=texts[::-1], ranks=(2, 1, 3, 4), weight=0.5)]
        said += [
            RankedGroup(prompt="A", completions=(texts[i], texts[3]), ranks=(1, 2), weight=1 / 3) for i in (0, 1, 2)
        ]
    apart = [encode_group(words, group, 60) for group in said]
    model = random_scalar(tiny_config)
    config = RewardConfig(loss=name, micro_batch_tokens=micro_batch_tokens)
    found, num_texts = [], []
    forward = model.forward

    def counting(ids_BT: torch.Tensor, length_B: torch.Tensor, *more: Any) -> torch.Tensor:
        num_texts[-1] += len(length_B)
        return forward(ids_BT, length_B, *more)

    for groups in (apart, [replace(group, group="task 7") for group in apart]):
        num_texts.append(0)
        model.forward = counting  # type: ignore[method-assign]
        stats: dict[str, float] = {}
        found.append((*gradients(model, group_losses(config, model, groups, words.pad_id, stats)), stats))
    (plain, plain_grad, plain_stats), (shared, shared_grad, shared_stats) = found
    assert num_texts == [sum(len(group.examples) for group in apart), 4]
    assert shared == pytest.approx(plain, abs=1e-6)
    assert shared_stats == pytest.approx(plain_stats, abs=1e-5)
    torch.testing.assert_close(shared_grad, plain_grad, rtol=0.0, atol=1e-6 * float(plain_grad.abs().max()) + 1e-6)


def test_what_was_said_of_one_group_is_held_out_together(
    policy_folder: Path, write_rows: WriteRows, tmp_path: Path
) -> None:
    """Forty groups of three pairs: two are held out, and no text of theirs is learnt from."""
    rows = []
    for g in range(40):
        texts = [f" {word} {g}" for word in ("one", "two", "three")]
        pairs = [(0, 1), (1, 2), (0, 2)]
        rows += [{"prompt": f"Q{g}", "chosen": texts[a], "rejected": texts[b], "group": f"g{g}"} for a, b in pairs]
    data = write_rows("data.jsonl", rows[::2] + rows[1::2])
    train, valid, _ = read_groups(RewardConfig(), REWARD_LOSSES["bradley_terry"], data, None, None)
    assert (len(train), len(valid)) == (38 * 3, 2 * 3)
    assert not {t for g in train for t in g.completions} & {t for g in valid for t in g.completions}
    result = reward(RewardConfig(**FAST), model=policy_folder, data=data, output_dir=tmp_path / "out")
    assert (result.num_groups, result.num_pairs, result.num_steps) == (
        38,
        114,
        -(-38 // RewardConfig().groups_per_step),
    )


def test_per_token_reads_each_text_alone(tiny_config: DecoderConfig, words: Tokenizer) -> None:
    """The stage's loss against plain Python on texts that ran one by one."""
    model = random_scalar(tiny_config)
    group = RankedGroup(prompt="Bread", completions=(" wants time", " wants salt and time"), ranks=(1, 2))
    encoded = encode_group(words, group, 60)
    texts = [[*e.prompt, *e.completion] for e in encoded.examples]
    first, second = (model(torch.tensor([ids])).detach().tolist() for ids in texts)
    start = next(t for t, (a, b) in enumerate(zip(*texts, strict=False)) if a != b)
    terms = [
        math.log1p(math.exp(second[min(t, len(second) - 1)] - first[min(t, len(first) - 1)]))
        for t in range(start, max(map(len, texts)))
    ]
    config = RewardConfig(loss="per_token", center_coef=0.0)
    (loss,) = group_losses(config, model, [encoded], words.pad_id, {})
    assert len(texts[0]) != len(texts[1]) and len(encoded.examples[0].prompt) < start
    assert float(loss.detach()) == pytest.approx(sum(terms) / len(terms), abs=1e-5)


@pytest.mark.parametrize(
    ("said", "settings", "margin", "probability"),
    [
        ({}, {}, 0.0, 1.0),
        ({"strength": "better"}, {}, 0.0, 1.0),  # read only where it is asked for
        ({"strength": "better"}, {"margin": "small"}, 2 / 3, 1.0),
        ({"strength": "significantly", "margin": 0.3}, {"margin": "large"}, 3.0, 1.0),
        ({"strength": "significantly", "margin": 0.3}, {"margin": "given"}, 0.3, 1.0),
        ({}, {"margin": "large"}, 0.0, 1.0),
        ({"probability": 0.7}, {}, 0.0, 0.7),
        ({}, {"label_smoothing": 0.1}, 0.0, 0.9),
        ({"probability": 0.7}, {"label_smoothing": 0.1}, 0.0, 0.66),  # .9 * .7 + .1 * .3
    ],
)
def test_what_a_pair_says_reaches_its_loss(
    said: dict[str, Any], settings: dict[str, Any], margin: float, probability: float, words: Tokenizer
) -> None:
    pair = RankedGroup(prompt="A", completions=(" one", " two"), ranks=(2, 1), **said)
    encoded = encode_group(words, pair, 60, pairs=PairsConfig(**settings))
    assert (encoded.margin, encoded.probability) == (pytest.approx(margin), pytest.approx(probability))
    pairs = reward_batch(RewardConfig(), [encoded], torch.zeros(2)).pairs
    assert pairs.chosen_N.tolist() == [1]
    assert (float(pairs.margin_N), float(pairs.probability_N)) == (pytest.approx(margin), pytest.approx(probability))


def test_each_head_counts_a_group_as_often_as_it_drew_it(policy_folder: Path, words: Tokenizer) -> None:
    model = load_scalar(policy_folder, head_seed=1, heads=2)[0].eval()
    groups = [encode_group(words, GROUPS[i], 60, draws=draws) for i, draws in ((0, (0.0, 3.0)), (1, (2.0, 0.0)))]
    alone = []
    for index, head in ((1, 0), (0, 1)):
        scores = torch.stack([model(torch.tensor([[*e.prompt, *e.completion]]))[-1] for e in groups[index].examples])
        plain = reward_batch(RewardConfig(), [groups[index]], scores[:, head])
        alone.append(float(REWARD_LOSSES["bradley_terry"].loss(plain, 3.0, 0.01)[0].detach()))  # weights 2 and 1
    stats: dict[str, float] = {}
    (loss,) = group_losses(RewardConfig(heads=2), model, groups, words.pad_id, stats)
    assert float(loss.detach()) == pytest.approx((2 * alone[0] + 3 * alone[1]) / 2, abs=1e-6)
    again: dict[str, float] = {}
    once = [replace(group, draws=(1.0, 1.0)) for group in groups]
    list(group_losses(RewardConfig(heads=2), model, once, words.pad_id, again))
    assert stats == again  # metrics are of all groups, whatever was drawn


def test_l2_adds_the_mean_square_of_the_scores(tiny_config: DecoderConfig, words: Tokenizer) -> None:
    model = random_scalar(tiny_config)
    group = encode_group(words, GROUPS[0], 60)
    plain, small = (
        float(next(group_losses(RewardConfig(l2_coef=coef), model, [group], words.pad_id, {})).detach())
        for coef in (0.0, 0.5)
    )
    scores = [float(model(torch.tensor([[*e.prompt, *e.completion]]))[-1].detach()) for e in group.examples]
    assert small - plain == pytest.approx(0.5 * sum(score**2 for score in scores) / 3, abs=1e-5)


def test_draws_of_a_bootstrap_are_one_on_average(words: Tokenizer) -> None:
    group = RankedGroup(prompt="A", completions=(" one", " two"), ranks=(2, 1))
    config, loss = RewardConfig(heads=4), REWARD_LOSSES["bradley_terry"]
    draws = torch.tensor([g.draws for g in encode_groups(config, loss, words, [group] * 1000, 60, 0)])
    assert draws.shape == (1000, 4)
    assert float(draws.mean()) == pytest.approx(1.0, abs=0.07)  # four standard errors are .063
    assert float(draws.var()) == pytest.approx(1.0, abs=0.12)
    assert not torch.equal(draws[:, 0], draws[:, 1])
    assert encode_groups(RewardConfig(), loss, words, [group], 60, 0)[0].draws == ()


def test_ratings_are_standardised(words: Tokenizer) -> None:
    groups = [JudgedGroup(prompt="A", completions=(" x",), values=(value,)) for value in (2.0, 4.0, 6.0)]
    encoded = encode_groups(RewardConfig(loss="regression"), REWARD_LOSSES["regression"], words, groups, 60, 0)
    # mean 4, deviation sqrt(8 / 3)
    assert [g.targets[0] for g in encoded] == pytest.approx([-math.sqrt(1.5), 0.0, math.sqrt(1.5)])


# -- heads and ensembles -----------------------------------------------------------------------------------------------


def train_small(model: Path, data: Path, output_dir: Path, **settings: Any) -> RewardResult:
    return reward(RewardConfig(**FAST | settings), model=model, data=data, output_dir=output_dir)


PAIRS = [("Say:", text) for text in word_texts(30, 7)]


def test_a_zero_head_starts_at_a_coin(policy_folder: Path, write_rows: WriteRows, tmp_path: Path) -> None:
    data = write_rows("data.jsonl", utility_rankings(20, 4, 0))
    train_small(policy_folder, data, tmp_path / "zero", head_init="zero")
    train_small(policy_folder, data, tmp_path / "normal")
    zero, normal = (rows_of(tmp_path / name / "metrics.jsonl")[0] for name in ("zero", "normal"))
    assert zero["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert zero["margin"] == 0.0
    assert normal["margin"] != 0.0


def test_heads_of_one_trunk_are_an_ensemble(policy_folder: Path, write_rows: WriteRows, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    rows = utility_rankings(60, 4, 0)
    data = write_rows("data.jsonl", rows)
    result = train_small(policy_folder, data, tmp_path / "out", heads=3, combine=CombineConfig(rule="min"))
    scorer = RewardModel.load(result.model, PLAIN)
    members = scorer.member_scores(PAIRS)
    assert members.shape == (30, 3)
    assert float(members.std(1).min()) > 0.0  # they differ
    torch.testing.assert_close(scorer.score(PAIRS), members.amin(1))
    ranked = sorted({text for row in rows for text in row["completions"]})  # of one prompt, so none is held out
    taught = scorer.member_scores([("Say:", text) for text in ranked])
    torch.testing.assert_close(taught.mean(0), torch.zeros(3), rtol=0.0, atol=1e-3)  # each head on its own scale
    torch.testing.assert_close(taught.std(0), torch.ones(3), rtol=0.0, atol=1e-3)
    opened = AutoModelForSequenceClassification.from_pretrained(result.model).eval()
    assert opened.config.num_labels == 3
    ids = torch.tensor(
        [[*scorer.tokenizer.encode("Say:"), *scorer.tokenizer.encode(PAIRS[0][1]), scorer.tokenizer.end_id]]
    )
    theirs = opened(ids).logits.detach()[0]
    offset, scale = torch.tensor(result.offset), torch.tensor(result.scale)
    torch.testing.assert_close((theirs - offset) * scale, members[0], rtol=0.0, atol=1e-4)


def test_the_rule_of_an_ensemble_stands_in_its_folder(
    policy_folder: Path, write_rows: WriteRows, tmp_path: Path
) -> None:
    data = write_rows("data.jsonl", utility_rankings(20, 3, 0))
    folder = train_small(policy_folder, data, tmp_path / "out", heads=2).model
    said = read_json(folder / "reward.json")
    members = RewardModel.load(folder, PLAIN).member_scores(PAIRS)
    by_rule = {
        "mean": members.mean(1),
        "min": members.amin(1),
        "uwo": members.mean(1) - 0.7 * ((members[:, 0] - members[:, 1]) / 2) ** 2,  # of two: the squared half distance
    }
    for rule, wanted in by_rule.items():
        (folder / "reward.json").write_text(json.dumps(said | {"combine": {"rule": rule, "variance_coef": 0.7}}))
        torch.testing.assert_close(RewardModel.load(folder, PLAIN).score(PAIRS), wanted)
    for bad in ({"combine": {"rule": "os:remove"}}, {"transform": "cube"}, {"scale": [1.0]}):
        (folder / "reward.json").write_text(json.dumps(said | bad))
        with pytest.raises(DataError, match=r"reward\.json"):
            RewardModel.load(folder, PLAIN)


def test_heads_are_kept_where_training_goes_on(policy_folder: Path, write_rows: WriteRows, tmp_path: Path) -> None:
    data = write_rows("data.jsonl", utility_rankings(20, 3, 0))
    folder = train_small(policy_folder, data, tmp_path / "first", heads=2).model
    again = train_small(folder, data, tmp_path / "again", heads=2, optim=OptimConfig(lr=1e-9))
    for name, tensor in load_file(folder / "model.safetensors").items():
        torch.testing.assert_close(load_file(again.model / "model.safetensors")[name], tensor, rtol=0.0, atol=1e-6)
    with pytest.raises(UsageError, match="has 2"):
        train_small(folder, data, tmp_path / "other")


def critic_of(policy: Path, reward_model: Path) -> ScalarModel:
    config = rl_config()
    critic = load_policy_models(config, find_algorithm(config), policy, reward_model).critic
    assert isinstance(critic, ScalarModel)
    return critic


def test_the_critic_of_an_ensemble_starts_from_its_mean_head(
    policy_folder: Path, tiny_config: DecoderConfig, words: Tokenizer, tmp_path: Path
) -> None:
    model, _, _ = load_scalar(policy_folder, head_seed=3, heads=2)
    save_scalar(tmp_path / "m", model, words, RewardScale((0.5, 0.0), (2.0, 4.0)))
    critic = critic_of(policy_folder, tmp_path / "m")
    torch.testing.assert_close(critic.score.weight, (2.0 * model.score.weight[:1] + 4.0 * model.score.weight[1:]) / 2)
    assert critic(torch.tensor([[5, 6, 7]])).shape == (3,)


def test_an_ensemble_of_models_with_their_own_tokenizers(
    policy_folder: Path, reward_folder: Path, tiny_config: DecoderConfig, write_rows: WriteRows, tmp_path: Path
) -> None:
    data = write_rows("data.jsonl", utility_rankings(20, 3, 0))
    two = train_small(other_policy(tiny_config, tmp_path), data, tmp_path / "two", heads=2).model
    one, several = RewardModel.load(reward_folder, PLAIN), RewardModel.load(two, PLAIN)
    together = Ensemble.load([reward_folder, two], placement=PLAIN)
    members = torch.cat([one.score(PAIRS)[:, None], several.member_scores(PAIRS)], 1)
    torch.testing.assert_close(together.member_scores(PAIRS), members)
    torch.testing.assert_close(together.score(PAIRS), members.mean(1))
    worst = Ensemble([one, several], CombineConfig(rule="min"))
    torch.testing.assert_close(worst.score(PAIRS), members.amin(1))
    with pytest.raises(UsageError, match="no reward model"):
        Ensemble.load([])


def test_models_of_two_seeds_differ(policy_folder: Path, write_rows: WriteRows, tmp_path: Path) -> None:
    data = write_rows("data.jsonl", utility_rankings(20, 3, 0))
    config = RewardConfig(**FAST, heads=2)
    first, again, other = (
        reward(config, model=policy_folder, data=data, output_dir=tmp_path / name, seed=seed).model
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    scores = [RewardModel.load(folder, PLAIN).score(PAIRS) for folder in (first, again, other)]
    assert torch.equal(scores[0], scores[1])
    assert not torch.allclose(scores[0], scores[2], atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"heads": 2}, {"loss": "per_token"}], ids=["heads", "per_token"])
def test_an_interrupted_run_goes_on_bit_for_bit(
    settings: dict[str, Any], policy_folder: Path, write_rows: WriteRows, tmp_path: Path
) -> None:
    data = write_rows("data.jsonl", utility_rankings(24, 3, 0))
    config = RewardConfig(precision="fp32", groups_per_step=4, epochs=2, checkpoint_every=3, **settings)

    def stop(fraction: float, text: str) -> None:
        if fraction > 0.6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reward(config, model=policy_folder, data=data, output_dir=tmp_path / "cut", log=stop)
    made = [reward(config, model=policy_folder, data=data, output_dir=tmp_path / name) for name in ("whole", "cut")]
    whole, cut = (load_file(result.model / "model.safetensors") for result in made)
    assert all(torch.equal(tensor, cut[name]) for name, tensor in whole.items())


# -- labels as chances, other tokenizers -------------------------------------------------------------------------------


def test_a_binary_model_may_score_with_the_chance_of_good(
    policy_folder: Path, write_rows: WriteRows, tmp_path: Path
) -> None:
    data = write_rows("data.jsonl", labels(200, 0))
    settings: dict[str, Any] = {"loss": "binary", "groups_per_step": 32}
    logit = RewardModel.load(train_small(policy_folder, data, tmp_path / "l", **settings).model, PLAIN)
    folder = train_small(policy_folder, data, tmp_path / "p", transform="probability", **settings).model
    chance = RewardModel.load(folder, PLAIN).score(PAIRS)
    raw = logit.score(PAIRS) / logit.scale.scale + logit.scale.offset
    torch.testing.assert_close(chance, torch.sigmoid(raw), rtol=0.0, atol=1e-5)
    assert bool((critic_of(policy_folder, folder).score.weight == 0).all())  # no factor turns the one into the other
    with pytest.raises(ValueError, match="probability is for loss: binary"):
        RewardConfig(transform="probability")


def other_policy(config: DecoderConfig, folder: Path) -> Path:
    """A policy of one layer with another tokenizer."""
    words = train_tokenizer(TEXTS[:3], 290)
    model = CausalLM(replace(config, vocab_size=290, num_layers=1))
    init_weights(model, 4)
    save_policy(folder / "other", model, words)
    return folder / "other"


@pytest.mark.slow
def test_a_reward_model_with_another_tokenizer_trains_and_serves_a_policy(
    policy_folder: Path, tiny_config: DecoderConfig, write_rows: WriteRows, write_split: WriteSplit, tmp_path: Path
) -> None:
    data = write_split(utility_rankings(60, 4, 0))
    config = RewardConfig(**FAST, epochs=2)
    judge = reward(config, model=other_policy(tiny_config, tmp_path), **data, output_dir=tmp_path / "reward")
    assert judge.valid_accuracy is not None and judge.valid_accuracy > 0.6
    prompts = write_rows("prompts.jsonl", [{"prompt": "Say:"}, {"prompt": "He wrote:"}])
    asking = rl_config(iterations=2, prompts_per_iteration=8, eval_every=2)
    result = rl(asking, model=policy_folder, reward_model=judge.model, data=prompts, output_dir=tmp_path / "rl")
    rows = rows_of(tmp_path / "rl" / "metrics.jsonl")
    # The critic starts from the policy under a head of zeros, on the level of the scores.
    assert rows[0]["value_gap"] == pytest.approx(0, abs=1e-6)
    assert math.isfinite(rows[-1]["score"]) and (result.model / "model.safetensors").exists()


# -- data that says too little -----------------------------------------------------------------------------------------

PAIR = {"prompt": "Q", "chosen": " a", "rejected": " b"}
ONE_TIE = {"prompt": "Q", "completions": [" a", " b"], "ranks": [1, 1]}
THUMB = {"prompt": "Q", "completion": " a", "label": True}


@pytest.mark.parametrize(
    ("settings", "rows", "told"),
    [
        ({"loss": "binary"}, [THUMB, {**THUMB, "completion": " b"}], "every label is good"),
        ({"loss": "binary"}, [{**THUMB, "label": False}], "every label is bad"),
        ({"loss": "regression"}, [{"prompt": "Q", "completion": " a", "rating": 3}], "every rating is 3"),
        ({"loss": "binary"}, [PAIR], '"label" is missing'),
        ({"loss": "plackett_luce"}, [ONE_TIE], "one single tie"),
        ({"loss": "best_of_k"}, [THUMB], 'neither "completions"'),
        ({"pairs": PairsConfig(margin="large")}, [PAIR], 'no pair has a "strength"'),
        ({"pairs": PairsConfig(margin="given")}, [PAIR], 'no pair has a "margin"'),
        ({"loss": "plackett_luce"}, [{**PAIR, "probability": 0.7}], 'does not read "probability"'),
        ({"loss": "binary", "pairs": PairsConfig(ties="half")}, [THUMB], "pairs has no effect"),
        ({"loss": "per_token", "pooled_coef": 1.0}, [PAIR], "pooled_coef and bag_coef have no effect"),
        ({"loss": "regression", "bag_coef": 1.0}, [PAIR], "pooled_coef and bag_coef have no effect"),
    ],
)
def test_what_cannot_teach_is_refused(
    settings: dict[str, Any],
    rows: list[dict[str, Any]],
    told: str,
    policy_folder: Path,
    write_rows: WriteRows,
    tmp_path: Path,
) -> None:
    with pytest.raises(AccordError, match=told) as caught:
        train_small(policy_folder, write_rows("data.jsonl", rows), tmp_path / "out", **settings)
    assert caught.value.hint or caught.value.why
    assert not (tmp_path / "out" / "model").exists()


def test_heads_have_no_other_readings() -> None:
    with pytest.raises(ValueError, match="readings of one head"):
        RewardConfig(heads=2, pooled_coef=1.0)


def test_ties_are_left_out_and_counted_or_read_as_halves(
    policy_folder: Path, write_rows: WriteRows, tmp_path: Path
) -> None:
    data = write_rows("data.jsonl", [PAIR, ONE_TIE, ONE_TIE, {**PAIR, "prompt": "R"}])
    told: list[str] = []
    result = reward(
        RewardConfig(**FAST),
        model=policy_folder,
        data=data,
        output_dir=tmp_path / "drop",
        log=lambda _, text: told.append(text),
    )
    assert (result.num_groups, result.num_pairs, result.num_skipped) == (2, 2, 2)
    assert "2 rankings of one single tie" in told[0]
    half = train_small(policy_folder, data, tmp_path / "half", pairs=PairsConfig(ties="half"))
    assert (half.num_groups, half.num_pairs, half.num_skipped) == (4, 4, 0)
    assert rows_of(tmp_path / "half" / "metrics.jsonl")[0]["accuracy"] in (0.25, 0.5, 0.75)  # two ties of four


def test_what_is_too_long_is_left_out_or_cut_and_counted(
    policy_folder: Path, write_rows: WriteRows, tmp_path: Path
) -> None:
    _, words, _ = load_scalar(policy_folder, head_seed=0)
    room = len(words.encode(PAIR["prompt"])) + 2  # a place for one token of the completion, and the end
    long = {**PAIR, "prompt": PAIR["prompt"] * room}
    told: list[str] = []
    data = write_rows("data.jsonl", [PAIR, long, {**PAIR, "topic": "b"}])
    config = RewardConfig(**{**FAST, "max_tokens": room})
    result = reward(
        config, model=policy_folder, data=data, output_dir=tmp_path / "cut", log=lambda _, text: told.append(text)
    )
    assert (result.num_groups, result.num_too_long) == (2, 1)
    assert any("of 3 judgements left out: 1 whose prompts" in text and "lose their end" in text for text in told)
    with pytest.raises(DataError, match="no prompt leaves room for a completion"):
        reward(config, model=policy_folder, data=write_rows("long.jsonl", [long]), output_dir=tmp_path / "none")


# -- agreement on what is held out -------------------------------------------------------------------------------------


def test_agreement_by_hand(reward_folder: Path) -> None:
    model, words, _ = load_scalar(reward_folder)
    texts = (" fog", " salt and rain", " kite")
    ids = [[*words.encode("Q"), *words.encode(text), words.end_id] for text in texts]
    score = [float(model.eval()(torch.tensor([row]))[-1].detach()) for row in ids]

    def agreed(name: str, *groups: Any) -> Any:
        return held_out_fit(model, words, REWARD_LOSSES[name], groups, 64)

    def judged(*values: float) -> list[JudgedGroup]:
        return [JudgedGroup(prompt="Q", completions=(t,), values=(v,)) for t, v in zip(texts, values, strict=True)]

    right = [float(value > 0) for value in score]
    assert agreed("binary", *judged(*right)).accuracy == 1.0
    assert agreed("binary", *judged(1 - right[0], *right[1:])).accuracy == pytest.approx(2 / 3)
    confident = [1 / (1 + math.exp(-abs(value))) for value in score]
    found = agreed("binary", judged(*right)[0])
    assert found.calibration_error == pytest.approx(1 - confident[0], abs=1e-5)
    assert agreed("regression", *judged(*score)).accuracy == 1.0
    assert agreed("regression", *judged(*(-value for value in score))).accuracy == 0.0
    assert agreed("regression", *judged(*score)).calibration_error is None
    assert agreed("regression", *judged(3, 3, 3)).accuracy is None
    lengths = torch.tensor([float(len(words.encode(text))) for text in texts])
    wanted = float(torch.corrcoef(torch.stack([torch.tensor(score), lengths]))[0, 1])
    assert agreed("binary", *judged(*right)).length_correlation == pytest.approx(wanted, abs=1e-4)


# -- how much of a text is read, and what a weak model is told ---------------------------------------------------------


def long_pairs(count: int) -> list[dict[str, Any]]:
    """Pairs that differ in their last word alone."""
    return [
        {"prompt": f"{i}:", "chosen": " fog" * 20 + " kite", "rejected": " fog" * 20 + " soup"} for i in range(count)
    ]


def test_one_length_is_read_in_training_and_scoring(policy_folder: Path, write_rows: WriteRows, tmp_path: Path) -> None:
    data = write_rows("p.jsonl", [*long_pairs(4), {"prompt": "A:", "chosen": " a", "rejected": " b"}])
    said: list[str] = []
    given: dict[str, Any] = {"model": policy_folder, "data": data, "log": lambda _, text: said.append(str(text))}
    whole = reward(RewardConfig(precision="fp32"), **given, output_dir=tmp_path / "whole")
    assert (whole.num_cut, whole.num_equal, whole.num_groups, whole.max_tokens) == (0, 0, 5, 64)
    short = reward(RewardConfig(precision="fp32", max_tokens=12), **given, output_dir=tmp_path / "short")
    assert (short.num_cut, short.num_equal, short.num_groups, short.max_tokens) == (0, 4, 1, 12)
    assert any("4 whose completions are all the same as they are read" in text for text in said)
    text = " fog" * 20
    for result, same in ((whole, False), (short, True)):
        scorer = RewardModel.load(result.model, PLAIN)
        kite, soup = scorer.score([("A:", text + " kite"), ("A:", text + " soup")]).tolist()
        assert (abs(kite - soup) < 1e-4) is same  # scoring reads as far as training did
        assert scorer.cut([("A:", text), ("A:", " a")]) == [same, False]
        assert scorer.longest_prompt == result.max_tokens - 2


def test_rankings_of_one_text_alone_are_refused_where_nothing_else_is(
    policy_folder: Path, write_rows: WriteRows, tmp_path: Path
) -> None:
    config = RewardConfig(precision="fp32", max_tokens=12)
    with pytest.raises(DataError, match="the same in 12 tokens"):
        reward(config, model=policy_folder, data=write_rows("p.jsonl", long_pairs(3)), output_dir=tmp_path / "out")


def test_a_model_that_learnt_nothing_says_so(policy_folder: Path, write_rows: WriteRows, tmp_path: Path) -> None:
    """A coin's pairs, and a rate at which nothing moves: a head of zeros and its raw scores hardly differ."""
    coin = random.Random(0)
    pairs = [(f" {coin.choice('abcd')}x", f" {coin.choice('efgh')}x") for _ in range(60)]
    rows = [{"prompt": f"{i}:", "chosen": one, "rejected": other} for i, (one, other) in enumerate(pairs)]
    for row in rows:
        if coin.random() < 0.5:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    config = RewardConfig(precision="fp32", head_init="zero", dropout=0.0, optim=OptimConfig(lr=1e-7))
    reward(config, model=policy_folder, data=write_rows("p.jsonl", rows), output_dir=tmp_path / "out")
    events = [json.loads(line) for line in (tmp_path / "out/events.jsonl").read_text().splitlines()]
    assert {event["alarm"] for event in events} == {"learnt nothing", "scores hardly differ"}
    assert reward_alarms({"gain": 29.0, "ahead": 0.01}) == [] == reward_alarms({"gain": 1.0})


@pytest.mark.parametrize("heads", [1, 2])
def test_a_rule_that_combines_nothing_is_refused(heads: int) -> None:
    given = {"heads": heads, "combine": {"rule": "min"}}
    if heads > 1:
        assert RewardConfig(**given).combine.rule == "min"
    else:
        with pytest.raises(ValueError, match="combine has no effect: heads is 1"):
            RewardConfig(**given)
