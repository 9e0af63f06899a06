"""Training: what counts in a loss, what a checkpoint is worth, and that every stage learns something trivial."""

from __future__ import annotations

import json
import math
import random
import shutil
import signal
import string
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TEXTS, WriteRows, WriteSplit, random_policy
from safetensors.torch import load_file
from scipy.stats import spearmanr
from torch import Tensor, nn

from accord.algo.table import REWARD_LOSSES
from accord.config import (
    ModelConfig,
    OnAlarm,
    OptimConfig,
    PretrainConfig,
    RewardConfig,
    RlConfig,
    SftConfig,
    TokenizerConfig,
)
from accord.errors import DataError, Interrupted, PausedByAlarm
from accord.files import read_rows
from accord.models.decoder import CausalLM, ScalarModel, init_score_head
from accord.models.folder import load_policy, load_scalar, save_policy
from accord.models.placement import PLAIN
from accord.models.shape import DecoderConfig
from accord.progress import Log, Notice
from accord.records import RankedGroup
from accord.rollout.engine import Engine, Sampling
from accord.scoring.reward_model import RewardModel
from accord.text.batches import Example, collate
from accord.text.tokenizer import Tokenizer, load_tokenizer
from accord.train import held_out
from accord.train.finished import identity_of
from accord.train.judged import encode_group, held_out_fit
from accord.train.learner import Checkpoints, Learner, Metrics, schedule
from accord.train.likelihood import LmResult, logp_and_entropy, mean_nll
from accord.train.pretrain import pretrain
from accord.train.reward import bucketed_scores, group_losses, hide_tokens, measure_scale, reward
from accord.train.rl import rl
from accord.train.sft import sft, sft_losses
from accord.train.tokenizer import tokenizer
from accord.train.training_run import Steps, TrainingRun

EXAMPLES = [
    Example((5, 6, 7), (8, 9, 0)),
    Example((10,), (0,)),
    Example((11, 12), (13, 14, 15, 16, 17, 0)),
    Example((5,), (20, 21, 0)),
]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def gradients(module: nn.Module, losses: Any) -> tuple[float, Tensor]:
    module.zero_grad()
    total = 0.0
    for loss in losses:
        loss.backward()
        total += float(loss.detach())
    return total, torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


# -- what counts -------------------------------------------------------------------------------------------------------


def by_hand(policy: CausalLM, example: Example, temperature: float = 1.0) -> list[float]:
    """Log-probability of each completion token, from one unpadded row's full logits."""
    ids = [*example.prompt, *example.completion]
    law = torch.log_softmax(policy(torch.tensor([ids]))[0].detach().double() / temperature, -1)
    start = len(example.prompt)
    return [float(law[position - 1, ids[position]]) for position in range(start, len(ids))]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_loss_counts_the_completion_and_its_end_and_nothing_else(policy: CausalLM, temperature: float) -> None:
    got = logp_and_entropy(policy, collate(EXAMPLES, pad_id=1), temperature, entropy=False)[0].detach()
    wanted = [lp for e in EXAMPLES for lp in by_hand(policy, e, temperature)]
    assert len(wanted) == 3 + 1 + 6 + 3
    torch.testing.assert_close(got.double(), torch.tensor(wanted, dtype=torch.float64), rtol=0.0, atol=1e-4)
    assert mean_nll(policy, EXAMPLES, 1) == pytest.approx(
        -sum(lp for e in EXAMPLES for lp in by_hand(policy, e)) / 13, abs=1e-4
    )


def test_mean_nll_does_not_depend_on_batches(policy: CausalLM) -> None:
    assert mean_nll(policy, EXAMPLES, 1, batch_tokens=1) == pytest.approx(mean_nll(policy, EXAMPLES, 1), abs=3e-6)


def test_sft_loss_is_the_token_mean_however_it_is_split(policy: CausalLM) -> None:
    """1 x 8 = 8 x 1; the mean of micro-batch means would differ, as lengths do."""
    rows = EXAMPLES * 2
    whole, whole_grad = gradients(policy, sft_losses(policy, rows, 1, 10_000))
    assert whole == pytest.approx(-sum(lp for e in rows for lp in by_hand(policy, e)) / 26, abs=1e-5)
    for micro in (1, 18):
        split, split_grad = gradients(policy, sft_losses(policy, rows, 1, micro))
        assert split == pytest.approx(whole, abs=1e-6)
        torch.testing.assert_close(split_grad, whole_grad, rtol=0.0, atol=1e-6 * float(whole_grad.abs().max()) + 1e-6)


def random_scalar(config: DecoderConfig, seed: int = 0) -> ScalarModel:
    model = ScalarModel(config)
    model.model.load_state_dict(random_policy(config, seed, 0.1).model.state_dict())
    init_score_head(model, seed)
    return model.eval()


GROUPS = [
    RankedGroup(prompt="A", completions=(" one fox", " two foxes crossed", " x"), ranks=(1, 2, 3), weight=2.0),
    RankedGroup(prompt="Bread", completions=(" salt", " the corner of the kitchen"), ranks=(2, 1)),
    RankedGroup(prompt="C", completions=(" rain", " slow rain", " grey", " cheerful"), ranks=(1, 1, 2, 3)),
]


@pytest.mark.parametrize(
    "coefs",
    [
        {},
        {"pooled_coef": 0.5},
        {"pooled_coef": 0.3, "bag_coef": 0.7},
        {"pooled_coef": 0.3, "bag_coef": 0.7, "self_distill_coef": 2.0},
    ],
)
def test_reward_loss_is_the_same_however_it_is_split(
    tiny_config: DecoderConfig, words: Tokenizer, coefs: dict[str, float]
) -> None:
    model = random_scalar(tiny_config)
    groups = [encode_group(words, g, 60) for g in GROUPS]
    found = []
    for micro in (10_000, 1):
        config = RewardConfig(micro_batch_tokens=micro, **coefs)
        stats = {"accuracy": 0.0, "margin": 0.0}
        found.append((*gradients(model, group_losses(config, model, groups, words.pad_id, stats)), stats))
    (whole, whole_grad, whole_stats), (split, split_grad, split_stats) = found
    assert split == pytest.approx(whole, abs=1e-6)
    assert split_stats == pytest.approx(whole_stats, abs=1e-6)
    torch.testing.assert_close(split_grad, whole_grad, rtol=0.0, atol=2e-6)


def test_each_added_reading_and_the_distillation_change_the_loss(tiny_config: DecoderConfig, words: Tokenizer) -> None:
    model, groups = random_scalar(tiny_config), [encode_group(words, g, 60) for g in GROUPS]

    def loss(**coefs: float) -> float:
        stats = {"accuracy": 0.0, "margin": 0.0}
        return sum(float(x.detach()) for x in group_losses(RewardConfig(**coefs), model, groups, words.pad_id, stats))

    found = [loss(), loss(pooled_coef=1.0), loss(pooled_coef=1.0, bag_coef=1.0)]
    found.append(loss(pooled_coef=1.0, bag_coef=1.0, self_distill_coef=2.0))
    assert all(more > less + 0.01 for less, more in pairwise(found))
    with pytest.raises(ValueError, match="pooled_coef"):
        RewardConfig(self_distill_coef=1.0)


def test_reward_loss_by_hand(tiny_config: DecoderConfig, words: Tokenizer) -> None:
    """Each text alone through the model; softplus of the gaps added up in plain Python."""
    model = random_scalar(tiny_config)

    def score(group: int, completion: int) -> float:
        text = words.encode(GROUPS[group].prompt) + words.encode(GROUPS[group].completions[completion])
        return float(model(torch.tensor([[*text, words.end_id]]))[-1].detach())

    def mean_loss(group: int, pairs: list[tuple[int, int]]) -> float:
        gaps = [score(group, w) - score(group, lo) for w, lo in pairs]
        sums = [score(group, w) + score(group, lo) for w, lo in pairs]
        return sum(math.log1p(math.exp(-g)) + 0.01 * s**2 for g, s in zip(gaps, sums, strict=True)) / len(pairs)

    wanted = 2 * mean_loss(0, [(0, 1), (0, 2), (1, 2)]) + mean_loss(1, [(1, 0)])
    wanted += mean_loss(2, [(0, 2), (0, 3), (1, 2), (1, 3), (2, 3)])
    stats = {"accuracy": 0.0, "margin": 0.0}
    groups = [encode_group(words, g, 60) for g in GROUPS]
    losses = group_losses(RewardConfig(), model, groups, words.pad_id, stats)
    assert sum(float(loss.detach()) for loss in losses) == pytest.approx(wanted / 4, abs=1e-5)


@torch.no_grad()
def test_three_readings_of_the_head_each_text_alone(
    tiny_config: DecoderConfig, words: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accord.train.reward.BUCKET_TOKENS", 30)
    model = random_scalar(tiny_config)
    examples = [e for g in GROUPS for e in encode_group(words, g, 60).examples]
    got = bucketed_scores(model, examples, words.pad_id)
    assert got.shape == (len(examples), 3)
    for row, example in zip(got, examples, strict=True):
        ids = torch.tensor([[*example.prompt, *example.completion]])
        values, count = model(ids), len(example.completion)
        # a token's bare embedding, normed: x / sqrt(mean(x^2) + eps) * weight
        x = model.model.embed_tokens.weight[ids[0, -count:]]
        normed = x / (x.pow(2).mean(1, keepdim=True) + 1e-5).sqrt() * model.model.norm.weight
        bag = (normed @ model.score.weight[0]).mean()
        wanted = torch.stack([values[-1], values[-count:].mean(), bag])
        torch.testing.assert_close(row, wanted, rtol=0.0, atol=1e-4)


def test_hidden_tokens_are_of_the_completion_and_never_its_end() -> None:
    torch.manual_seed(0)
    example = Example((5, 6), (*range(10, 1010), 0))
    hidden = hide_tokens(example, 0.25, pad_id=1)
    assert hidden.prompt == example.prompt
    assert hidden.completion[-1] == 0
    kept = [new == old for new, old in zip(hidden.completion[:-1], example.completion[:-1], strict=True)]
    assert all(same or token == 1 for same, token in zip(kept, hidden.completion[:-1], strict=True))
    assert 0.2 < 1 - sum(kept) / 1000 < 0.3  # four standard errors of .0137 are .055
    assert hide_tokens(example, 0.0, pad_id=1) == example


# -- the learner -------------------------------------------------------------------------------------------------------


def test_schedule_by_hand() -> None:
    def factors(steps: Sequence[int], **settings: Any) -> list[float]:
        return [schedule(OptimConfig(**settings), step, 110) for step in steps]

    # 110 steps, 10 of warm-up: 1/10 ... 10/10, then 100 steps down
    linear = factors([0, 4, 9, 10, 60, 109], schedule="linear", warmup_ratio=10 / 110)
    assert linear == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.5, 0.01])
    cosine = factors([10, 60, 85], schedule="cosine", warmup_ratio=10 / 110)
    assert cosine == pytest.approx([1.0, 0.5, (1 - math.sqrt(0.5)) / 2])  # cos(3 pi / 4) = -.7071
    floored = factors([10, 60], schedule="linear", warmup_ratio=10 / 110, final_lr_ratio=0.2)
    assert floored == pytest.approx([1.0, 0.6])
    assert factors([10, 109], schedule="constant", warmup_ratio=10 / 110) == pytest.approx([1.0, 1.0])
    assert factors([0], warmup_ratio=0.0) == [1.0]
    assert schedule(OptimConfig(schedule="linear"), 500, 110) == 0.0


class Weights(nn.Module):
    """A matrix and a vector to pull at."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.tensor([list(values)]))
        self.vector = nn.Parameter(torch.tensor(list(values)))


def plain(**changes: Any) -> OptimConfig:
    settings: dict[str, Any] = {"lr": 1.0, "warmup_ratio": 0.0, "schedule": "constant", "clip_norm": 1e9}
    return OptimConfig(**settings | changes)


def test_first_adam_step() -> None:
    module = Weights(0.0)
    learner = Learner({"m": module}, {"m": plain(eps=1e-5)}, 10)
    learner.update([1e-4 * module.matrix.sum()])
    # bias-corrected averages are g and g^2: 1e-4 / (1e-4 + 1e-5) = .909091
    assert float(module.matrix.detach()) == pytest.approx(-0.909091, abs=1e-5)
    assert learner.step == 1


def test_clipping_reports_the_norm_before_it() -> None:
    module = Weights(0.0, 0.0)
    learner = Learner({"m": module}, {"m": plain(eps=1.0, clip_norm=1.0)}, 10)
    stats = learner.update([(module.matrix * torch.tensor([3.0, 4.0])).sum()])
    assert stats["m_grad_norm"] == pytest.approx(5.0)
    assert (stats["loss"], stats["m_lr"]) == (0.0, 1.0)
    # gradient .6, .8 after clipping: -.6 / 1.6, -.8 / 1.8
    assert module.matrix.detach().tolist()[0] == pytest.approx([-0.375, -0.444444], abs=1e-5)


def test_weight_decay_spares_vectors() -> None:
    module = Weights(2.0)
    learner = Learner({"m": module}, {"m": plain(lr=0.1, weight_decay=0.5)}, 10)
    learner.update([0.0 * (module.matrix.sum() + module.vector.sum())])
    assert float(module.matrix.detach()) == pytest.approx(2.0 * (1 - 0.1 * 0.5))
    assert float(module.vector.detach()) == 2.0


def test_micro_losses_are_summed_and_taken_one_at_a_time() -> None:
    module, alive = Weights(1.0), []

    def losses() -> Any:
        for scale in (1.0, 2.0):
            alive.append(module.matrix.grad is None)
            yield scale * module.matrix.sum()

    learner = Learner({"m": module}, {"m": plain(eps=1.0)}, 10)
    stats = learner.update(losses())
    assert stats["loss"] == 3.0
    assert stats["m_grad_norm"] == 3.0
    assert alive == [True, False]  # the first backward pass was over before the second loss was made
    assert module.matrix.grad is None


def test_two_modules_have_their_own_rates() -> None:
    first, second = Weights(0.0), Weights(0.0)
    settings = {"a": plain(lr=0.1), "b": plain(lr=0.2, schedule="linear")}
    learner = Learner({"a": first, "b": second}, settings, 2)
    stats = learner.update([first.matrix.sum() + second.matrix.sum()])
    assert (stats["a_lr"], stats["b_lr"]) == (0.1, 0.2)
    assert float(first.matrix.detach()) == pytest.approx(-0.1)
    assert float(second.matrix.detach()) == pytest.approx(-0.2)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_before_the_weights(bad: float) -> None:
    module = Weights(1.0)
    learner = Learner({"m": module}, {"m": plain()}, 10)
    with pytest.raises(DataError, match=f"loss is {bad} at step 0") as caught:
        learner.update([bad * module.matrix.sum()])
    assert "learning rate" in str(caught.value)
    assert float(module.matrix.detach()) == 1.0
    assert learner.step == 0


def test_a_gradient_that_is_no_number_stops_before_the_weights() -> None:
    """The square root at 0 has value 0 and slope infinity: a finite loss whose gradient ruins the weights."""
    first, second = Weights(1.0), Weights(0.0)
    learner = Learner({"a": first, "b": second}, {"a": plain(), "b": plain()}, 10)
    with pytest.raises(DataError, match=r"gradient of b is \w+ at step 0"):
        learner.update([first.matrix.sum() + second.matrix.sqrt().sum()])
    assert float(first.matrix.detach()) == 1.0
    assert float(second.matrix.detach()) == 0.0


# -- checkpoints -------------------------------------------------------------------------------------------------------


def small_learner(seed: int = 0) -> Learner:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    settings = OptimConfig(lr=0.05, schedule="linear", weight_decay=0.1)
    return Learner({"a": module, "b": nn.Linear(2, 1)}, {"a": settings, "b": settings}, 50)


def small_step(learner: Learner, step: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(step)
    x, y = torch.randn(8, 3, generator=generator), torch.randn(8, 2, generator=generator)
    return learner.update([(learner.modules["a"](x) ** 2).mean(), (learner.modules["b"](y) - 1).abs().mean()])


def weights_of(learner: Learner) -> list[Tensor]:
    return [p.detach().clone() for module in learner.modules.values() for p in module.parameters()]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.fixture
def saved(tmp_path: Path) -> Checkpoints:
    """Checkpoints at steps 2, 4 and 6 (of which two are kept), with what the stage carried."""
    learner, checkpoints = small_learner(), Checkpoints(tmp_path / "checkpoints", "this run")
    for step in range(6):
        small_step(learner, step)
        if step % 2:
            checkpoints.save(learner, {"price": 0.1 * (step + 1)})
    return checkpoints


def test_a_restored_learner_goes_on_bit_for_bit(saved: Checkpoints) -> None:
    whole = small_learner()
    for step in range(9):
        small_step(whole, step)
    resumed = small_learner(seed=7)
    assert saved.restore(resumed) == {"price": pytest.approx(0.6)}
    assert resumed.step == 6
    for step in range(6, 9):
        small_step(resumed, step)
    assert same(weights_of(whole), weights_of(resumed))
    assert all(torch.equal(t, resumed.tensors()[name]) for name, t in whole.tensors().items())


def test_the_newest_two_are_kept(saved: Checkpoints) -> None:
    assert sorted(p.name for p in saved.folder.iterdir()) == ["step_000004", "step_000006"]


def cut_short(folder: Path) -> None:
    path = folder / "learner.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


def flip_a_bit(folder: Path) -> None:
    path = folder / "learner.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))


SPOILS: dict[str, Callable[[Path], object]] = {
    "cut short": cut_short,
    "a bit flipped": flip_a_bit,
    "no tensors": lambda folder: (folder / "learner.safetensors").unlink(),
    "no state": lambda folder: (folder / "state.json").unlink(),
    "empty state": lambda folder: (folder / "state.json").write_text(""),
    "state without hash": lambda folder: (folder / "state.json").write_text("{}"),
    "state is a list": lambda folder: (folder / "state.json").write_text("[]"),
    "another price": lambda folder: rewrite(folder / "state.json", "0.6", "0.7", "0.4", "0.3"),
    "another step": lambda folder: rewrite(folder / "state.json", '"step": 6', '"step": 5', '"step": 4', '"step": 3'),
    "state no text": lambda folder: (folder / "state.json").write_bytes(b"\xff\xfe\x00"),
    "state a folder": lambda folder: swap_for_folder(folder / "state.json"),
    "no sums": lambda folder: (folder / "SHA256SUMS").unlink(),
    "empty sums": lambda folder: (folder / "SHA256SUMS").write_text(""),
    "sums of one file": lambda folder: cut_lines(folder / "SHA256SUMS", 1),
    "sums no text": lambda folder: (folder / "SHA256SUMS").write_bytes(b"\xff\x00"),
}


def rewrite(path: Path, *pairs: str) -> None:
    text = path.read_text()
    for old, new in zip(pairs[::2], pairs[1::2], strict=True):
        text = text.replace(old, new)
    assert text != path.read_text()
    path.write_text(text)


def swap_for_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def cut_lines(path: Path, count: int) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:count]))


@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS.keys())
def test_a_spoilt_checkpoint_gives_way_to_the_one_before(saved: Checkpoints, spoil: Callable[[Path], object]) -> None:
    heard: list[str] = []
    saved.log = lambda done, text: heard.append(text)
    spoil(saved.folder / "step_000006")
    learner = small_learner()
    assert saved.newest_step() == 4
    assert saved.restore(learner) == {"price": pytest.approx(0.4)}
    assert learner.step == 4
    assert len(heard) == 1 and "step_000006 is damaged" in heard[0] and isinstance(heard[0], Notice)
    spoil(saved.folder / "step_000004")
    assert saved.restore(small_learner()) is None
    assert sorted(p.name for p in saved.folder.iterdir()) == ["damaged_step_000004", "damaged_step_000006"]


def test_one_changed_byte_of_anything_and_a_checkpoint_is_not_continued(saved: Checkpoints) -> None:
    for path in (saved.folder / "step_000006").iterdir():
        content = path.read_bytes()
        for place in range(0, len(content), max(1, len(content) // 150)):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            assert saved.newest_step() == 4, (path.name, place)
        path.write_bytes(content)
    assert saved.newest_step() == 6
    # The common tool agrees about what is whole.
    assert (
        subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=saved.folder / "step_000006", check=False).returncode == 0
    )


def test_what_is_no_checkpoint_is_told_and_left_alone(saved: Checkpoints) -> None:
    heard: list[str] = []
    saved.log = lambda done, text: heard.append(text)
    (saved.folder / "step_000009").write_text("a file")
    (saved.folder / "step_best").mkdir()
    (saved.folder / ".DS_Store").write_text("x")
    (saved.folder / ".step_000011.1.partial").write_text("a file too")
    learner = small_learner()
    assert saved.restore(learner) == {"price": pytest.approx(0.6)}
    assert [text.split(" ")[0].rsplit("/")[-1] for text in heard] == [".DS_Store", "step_000009", "step_best"]
    small_step(learner, 6)
    saved.save(learner, {})
    left = {".DS_Store", "step_000009", "step_best", "step_000006", "step_000007"}
    assert {p.name for p in saved.folder.iterdir()} == left


def test_a_checkpoint_under_another_number_is_not_taken_for_it(saved: Checkpoints) -> None:
    shutil.copytree(saved.folder / "step_000004", saved.folder / "step_000008")
    learner = small_learner()
    assert saved.restore(learner) == {"price": pytest.approx(0.6)} and learner.step == 6


def test_at_a_million_steps_the_newest_stay(tmp_path: Path) -> None:
    learner, checkpoints = small_learner(), Checkpoints(tmp_path, "x")
    for learner.step in (999_998, 999_999, 1_000_000, 1_000_001):
        checkpoints.save(learner, {"at": learner.step})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_1000000", "step_1000001"]
    assert checkpoints.restore(small_learner()) == {"at": 1_000_001}


def test_checkpoints_of_other_inputs_are_not_continued(saved: Checkpoints) -> None:
    assert Checkpoints(saved.folder, "another run").restore(small_learner()) is None


def test_checkpoints_of_other_inputs_do_not_push_out_new_ones(saved: Checkpoints) -> None:
    """A first run stopped at step 6; the second, with other settings, has only reached step 1."""
    other, learner = Checkpoints(saved.folder, "another run"), small_learner()
    other.restore(learner)
    small_step(learner, 0)
    other.save(learner, {})
    again = small_learner()
    assert other.restore(again) == {}
    assert again.step == 1


def test_what_a_killed_save_left_behind_is_swept_up(saved: Checkpoints) -> None:
    (saved.folder / ".step_000008.4242.partial").mkdir()
    saved.restore(small_learner())
    assert sorted(p.name for p in saved.folder.iterdir()) == ["step_000004", "step_000006"]


def test_clear_removes_them_all(saved: Checkpoints) -> None:
    saved.clear()
    assert saved.restore(small_learner()) is None


def test_identity_is_of_settings_and_contents(tmp_path: Path) -> None:
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_text("one")
    second.write_text("one")
    base = identity_of({"lr": 1.0}, {"data": first})
    assert base == identity_of({"lr": 1.0}, {"data": second})
    assert base != identity_of({"lr": 2.0}, {"data": first})
    second.write_text("two")
    assert base != identity_of({"lr": 1.0}, {"data": second})


# -- metrics and the loop ----------------------------------------------------------------------------------------------


def test_rewind_keeps_rows_before_the_step(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "deep" / "metrics.jsonl")
    metrics.rewind(3)
    for step in range(5):
        metrics.write(step, {"loss": step / 3, "bad": math.nan, "lr": 3e-9})
    metrics.rewind(3)
    rows = rows_of(metrics.path)
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert rows[1]["loss"] == pytest.approx(1 / 3, abs=1e-6)
    assert rows[1]["bad"] is None
    assert rows[1]["lr"] == pytest.approx(3e-9)  # a small number is not rounded to nothing


def test_rewind_survives_a_row_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "loss": 1.0}\n{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
    Metrics(path).rewind(9)
    assert [row["step"] for row in rows_of(path)] == [0, 1]


DAMAGES = ["", "   ", "\x00\x00\x00", '{"step": 1, "lo', "null", "[1]", '{"loss": 1}', '{"step": "1"}', "[" * 100_000]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda text: repr(text)[:16])
def test_a_damaged_row_is_set_aside_and_the_run_goes_on(damage: str, tmp_path: Path) -> None:
    whole, _ = run_steps(tmp_path / "whole")
    run_steps(tmp_path / "cut", stop=5)
    heard: list[str] = []
    for name in ("metrics.jsonl", "events.jsonl"):
        path = tmp_path / "cut" / name
        lines = path.read_text().splitlines() if path.exists() else ['{"step": 0, "alarm": "a", "cause": "b"}']
        path.write_text("\n".join([*lines[:1], damage, *lines[1:]]) + "\n")
    resumed, seen = run_steps(tmp_path / "cut", log=lambda done, text: heard.append(text))
    assert seen == [4, 5, 6] and same(weights_of(whole), weights_of(resumed))
    assert [row["step"] for row in rows_of(tmp_path / "cut" / "metrics.jsonl")] == list(range(7))
    for name in ("metrics.jsonl", "events.jsonl"):
        assert (tmp_path / "cut" / f"{name}.damaged").read_text() == damage + "\n"
        assert any(f"1 line of {tmp_path}/cut/{name} cannot be read" in text for text in heard)


def test_bytes_that_are_no_text_do_not_end_a_run(tmp_path: Path) -> None:
    run_steps(tmp_path, stop=5)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\xff\xfe\x80\n" + path.read_bytes())
    assert run_steps(tmp_path)[1] == [4, 5, 6]


def test_an_alarm_after_a_damaged_one_is_written(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text('{"step": 0, "al\n\n[]\n')
    TrainingRun(tmp_path, 0).event(2, {"alarm": "copies", "cause": "mode collapse"})
    assert read_rows(tmp_path / "events.jsonl") == [{"step": 2, "alarm": "copies", "cause": "mode collapse"}]


def test_what_is_no_snapshot_is_told_and_passed_over(tmp_path: Path) -> None:
    for name in ("step_999999", "step_1000000", "step_best", "notes"):
        (tmp_path / "snapshots" / name).mkdir(parents=True)
    (tmp_path / "snapshots" / "step_000007").write_text("a file")
    heard: list[str] = []
    assert list(TrainingRun(tmp_path, 0, log=lambda done, text: heard.append(text)).snapshots()) == [999_999, 1_000_000]
    assert len(heard) == 3


# -- asked to stop -----------------------------------------------------------------------------------------------------


def ask(number: int, at: float, times: int = 1) -> Log:
    """Return a reporter that sends this process a signal when so much of the run is done."""

    def log(done: float, text: str) -> None:
        for _ in range(times if done == at else 0):
            signal.raise_signal(number)

    return log


@pytest.fixture
def hears_ctrl_c() -> Iterator[None]:
    """The suite may run in the background of a shell, which starts it deaf to Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("hears_ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [1, 4, 7])
def test_who_is_asked_to_stop_ends_the_step_and_loses_nothing(number: int, step: int, tmp_path: Path) -> None:
    whole, _ = run_steps(tmp_path / "whole", steps=Steps(7, 100))
    heard = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    with pytest.raises(Interrupted) as stopped:
        run_steps(tmp_path / "cut", steps=Steps(7, 100), log=ask(number, step / 7))
    assert stopped.value.signum == number
    assert f"goes on after step {step} of 7" in stopped.value.__notes__[0]
    assert {one: signal.getsignal(one) for one in heard} == heard
    resumed, seen = run_steps(tmp_path / "cut", steps=Steps(7, 100))
    assert seen == list(range(step, 7)) and same(weights_of(whole), weights_of(resumed))
    assert [row["step"] for row in rows_of(tmp_path / "cut" / "metrics.jsonl")] == list(range(7))


@pytest.mark.usefixtures("hears_ctrl_c")
def test_who_is_asked_twice_stops_at_once(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt) as stopped:
        run_steps(tmp_path, steps=Steps(7, 100), log=ask(signal.SIGINT, 4 / 7, times=2))
    assert not isinstance(stopped.value, Interrupted) and "nothing is kept" in stopped.value.__notes__[0]
    assert not (tmp_path / "checkpoints").exists()


def test_what_runs_in_the_background_stays_deaf_to_ctrl_c(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert len(run_steps(tmp_path, log=ask(signal.SIGINT, 4 / 7))[1]) == 7
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_another_thread_it_trains_as_ever(tmp_path: Path) -> None:
    seen: list[list[int]] = []
    thread = threading.Thread(target=lambda: seen.append(run_steps(tmp_path)[1]))
    thread.start()
    thread.join()
    assert seen == [list(range(7))]


def run_steps(
    folder: Path,
    *,
    stop: int | None = None,
    steps: Steps = Steps(7, 2),  # noqa: B008
    identity: str = "x",
    **settings: Any,
) -> tuple[Learner, list[int]]:
    """Train `small_learner` with dropout-like noise from the global stream; ``stop`` raises inside that step."""
    learner, seen = small_learner(), []

    def step_fn(step: int) -> dict[str, float]:
        if step == stop:
            raise KeyboardInterrupt
        seen.append(step)
        stats = learner.update([((learner.modules["a"](torch.randn(4, 3))) ** 2).mean() * torch.rand(())])
        return stats | {"draw": float(torch.rand(()))}

    try:
        TrainingRun(folder, 3, **settings).train(learner, step_fn, steps, identity=identity)
    except KeyboardInterrupt:
        if stop is None:
            raise
    return learner, seen


def test_an_interrupted_loop_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    whole, _ = run_steps(tmp_path / "whole")
    run_steps(tmp_path / "cut", stop=5)
    resumed, seen = run_steps(tmp_path / "cut")
    assert seen == [4, 5, 6]
    assert same(weights_of(whole), weights_of(resumed))
    first, second = (rows_of(tmp_path / name / "metrics.jsonl") for name in ("whole", "cut"))
    assert [row["step"] for row in second] == list(range(7))
    assert [row["draw"] for row in second] == [row["draw"] for row in first]
    assert len({row["draw"] for row in first}) == 7


def test_a_loop_told_not_to_resume_starts_again(tmp_path: Path) -> None:
    run_steps(tmp_path, stop=5)
    _, seen = run_steps(tmp_path, resume=False)
    assert seen == list(range(7))
    assert [row["step"] for row in rows_of(tmp_path / "metrics.jsonl")] == list(range(7))


def test_a_loop_with_other_inputs_starts_again(tmp_path: Path) -> None:
    run_steps(tmp_path, stop=5)
    _, seen = run_steps(tmp_path, identity="y", stop=3)
    assert seen == [0, 1, 2]
    _, seen = run_steps(tmp_path, identity="y")
    assert seen == [2, 3, 4, 5, 6]


def test_progress_names_step_and_headline(tmp_path: Path) -> None:
    heard: list[tuple[float, str]] = []
    run_steps(tmp_path, steps=Steps(4, 2, headline="draw"), log=lambda fraction, text: heard.append((fraction, text)))
    assert [fraction for fraction, _ in heard] == [0.25, 0.5, 0.75, 1.0]
    assert heard[3][1].startswith("step 4/4, draw 0.")


def run_with_alarms(folder: Path, on_alarm: OnAlarm, **settings: Any) -> tuple[Learner, int]:
    """Train 7 steps in which a light alarm rings at once, and a grave one from the third step on."""
    learner, run = small_learner(), TrainingRun(folder, 3, **settings)
    rings = {0: ("light", False), 2: ("far", True), 4: ("far", True), 5: ("long", True)}

    def step_fn(step: int) -> dict[str, float]:
        if step in rings:
            run.event(step, {"alarm": rings[step][0], "cause": "planted", "grave": rings[step][1]})
        return learner.update([((learner.modules["a"](torch.randn(4, 3))) ** 2).mean()])

    return learner, run.train(learner, step_fn, Steps(7, 100, on_alarm=on_alarm), identity="x")


def test_a_grave_alarm_pauses_a_training_once_for_each_kind(tmp_path: Path) -> None:
    whole, taken = run_with_alarms(tmp_path / "warn", "warn")
    assert taken == 7
    cut = tmp_path / "pause"
    for step, name in ((3, "far"), (6, "long")):
        with pytest.raises(PausedByAlarm, match=f"at step {step} of 7: {name}") as paused:
            run_with_alarms(cut, "pause")
        assert (paused.value.exit_code, paused.value.why) == (6, "planted")
        assert [row["step"] for row in rows_of(cut / "metrics.jsonl")] == list(range(step))
    learner, taken = run_with_alarms(cut, "pause")
    assert taken == 7
    assert same(weights_of(whole), weights_of(learner))  # nothing was done twice or otherwise
    assert rows_of(cut / "events.jsonl") == rows_of(tmp_path / "warn" / "events.jsonl")


def test_who_is_content_with_an_alarm_goes_on_past_it(tmp_path: Path) -> None:
    with pytest.raises(PausedByAlarm):
        run_with_alarms(tmp_path, "pause")
    _, taken = run_with_alarms(tmp_path, "warn")
    assert taken == 7
    assert [row["step"] for row in rows_of(tmp_path / "metrics.jsonl")] == list(range(7))


def test_a_grave_alarm_stops_a_training_with_what_it_has_learnt(tmp_path: Path) -> None:
    said: list[str] = []
    whole, _ = run_with_alarms(tmp_path / "three", "warn")
    learner, taken = run_with_alarms(tmp_path / "stop", "stop", log=lambda done, text: said.append(text))
    assert (taken, learner.step) == (3, 3)
    assert "stopped by an alarm at step 3 of 7: far; what has been learnt is kept" in said
    assert not same(weights_of(whole), weights_of(learner))


@pytest.mark.parametrize(("first", "second", "alike"), [("warn", "pause", True), ("warn", "stop", False)])
def test_only_a_stop_makes_another_run(first: OnAlarm, second: OnAlarm, alike: bool) -> None:
    one, other = (identity_of({"rl": RlConfig(on_alarm=choice).model_dump()}, {}) for choice in (first, second))
    assert (one == other) is alike


# -- stages: pretraining and SFT ---------------------------------------------------------------------------------------

SHAPE = ModelConfig(width=32, layers=2, heads=4, kv_heads=2, ffn=48, max_positions=64)
FAST = OptimConfig(lr=1e-2, weight_decay=0.0)


@pytest.fixture
def text_files(write_rows: WriteRows, words: Tokenizer, tmp_path: Path) -> dict[str, Path]:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    words.save(folder)
    texts = write_rows("texts.jsonl", [{"text": t} for t in TEXTS])
    # like the texts, and not the same
    valid = write_rows(
        "valid.jsonl", [{"text": " ".join([*t.split()[::-1], str(i)])} for i in range(7) for t in TEXTS[:3]]
    )
    return {"texts": texts, "valid_texts": valid, "tokenizer": folder}


@pytest.mark.slow
def test_pretraining_learns_its_texts(text_files: dict[str, Path], tmp_path: Path) -> None:
    config = PretrainConfig(precision="fp32", epochs=30.0, block_tokens=16, batch_blocks=4, optim=FAST)
    result = pretrain(config, SHAPE, **text_files, output_dir=tmp_path / "out")
    rows = rows_of(tmp_path / "out" / "metrics.jsonl")
    # the start is uniform over 320 tokens: log 320 = 5.77
    assert rows[0]["loss"] == pytest.approx(math.log(320), abs=0.1)
    assert result.train_nll < 1.0
    assert result.valid_nll is not None and result.train_nll < result.valid_nll
    assert len(rows) == result.num_steps
    model, _ = load_policy(result.model)
    assert model.config.num_kv_heads == 2
    assert (model.config.vocab_size, model.config.max_positions) == (320, 64)


def test_sharing_spellings_is_wired_in_and_folded_away(text_files: dict[str, Path], tmp_path: Path) -> None:
    shape = ModelConfig(width=16, layers=1, heads=2, kv_heads=2, ffn=16, max_positions=64)
    for shared in (True, False):
        config = PretrainConfig(precision="fp32", epochs=1, block_tokens=16, batch_blocks=2, share_spellings=shared)
        pretrain(config, shape, **text_files, output_dir=tmp_path / str(shared))
    one, other = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("True", "False"))
    assert one.keys() == other.keys()
    assert not torch.equal(one["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_a_tokenizer_is_trained_and_read_back(text_files: dict[str, Path], tmp_path: Path) -> None:
    made = tokenizer(TokenizerConfig(vocab_size=280), texts=text_files["texts"], output_dir=tmp_path / "tok")
    words = load_tokenizer(made.tokenizer)
    assert made.vocab_size == words.vocab_size <= 280
    assert words.decode(words.encode("Bread wants time.")) == "Bread wants time."


def test_held_out_rankings_of_one_own_file(policy_folder: Path, write_rows: WriteRows, tmp_path: Path) -> None:
    data = write_rows("train.jsonl", utility_rankings(8, 3, 0))
    tied = write_rows("tied.jsonl", [{"prompt": "A", "completions": [" b", " c"], "ranks": [1, 1]}])
    config = RewardConfig(precision="fp32", epochs=1)
    with pytest.raises(DataError, match=r"tied\.jsonl.*held-out"):
        reward(config, model=policy_folder, data=data, valid_data=tied, output_dir=tmp_path / "r")
    made = reward(config, model=policy_folder, data=data, valid_data=data, output_dir=tmp_path / "r")
    assert made.num_groups == 8  # nothing of the training file is held out then


@pytest.mark.slow
def test_held_out_texts_of_pretraining_that_leak_are_not_measured(
    write_rows: WriteRows, text_files: dict[str, Path], tmp_path: Path
) -> None:
    """Of 55 texts 25 are new, ten stand among the training texts, ten but for one word, and ten are half of one."""
    coin = random.Random(0)
    word = lambda: "".join(coin.choices(string.ascii_lowercase, k=5))  # noqa: E731
    texts = [[word() for _ in range(16)] for _ in range(30)]
    new = [[word() for _ in range(16)] for _ in range(25)]
    near = [[*text[:14], word(), text[15]] for text in texts[10:20]]
    held_out = [*new, *texts[:10], *near, *(text[8:] for text in texts[20:])]
    files = text_files | {
        name: write_rows(f"{name}.jsonl", [{"text": " ".join(text)} for text in found])
        for name, found in (("texts", texts), ("valid_texts", held_out))
    }
    config = PretrainConfig(precision="fp32", epochs=12.0, block_tokens=32, batch_blocks=4, optim=FAST)
    lines: list[str] = []
    result = pretrain(
        config, SHAPE, **files, output_dir=tmp_path / "out", log=lambda *said: lines.append(str(said[-1]))
    )
    (line,) = [line for line in lines if "held-out texts stand among the training texts" in line]
    left_out = int(line.rpartition(": ")[0].rpartition(": ")[2].split()[0])
    told = result.held_out
    assert 20 <= left_out <= 30 and told.n == told.units == 55 - left_out
    assert told.low > result.train_nll


@pytest.mark.parametrize("chunk", [7, 1 << 20])
def test_leaked_texts_by_brute_force(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    monkeypatch.setattr(held_out, "CHUNK", chunk)
    train = rng.integers(0, 3, 400)
    starts = rng.integers(0, 360, 30)
    texts = [
        np.where(rng.random(n := int(rng.integers(1, 40))) < rate, 3, train[start : start + n]).tolist()
        for start in starts
        for rate in (0.0, 0.03, 0.5)
    ]
    stream = train.tolist()
    for text, found in zip(texts, held_out.leaked(train, texts), strict=True):
        run = min(len(text), 13)
        whole = {tuple(stream[i : i + run]) for i in range(len(stream) - run + 1)}
        runs = [tuple(text[i : i + run]) in whole for i in range(len(text) - run + 1)]
        assert found == (2 * sum(runs) >= len(runs))
    assert held_out.leaked(train, []) == [] and held_out.leaked(train[:0], [[1]]) == [False]


def test_pretraining_is_the_same_twice_and_differs_by_seed(text_files: dict[str, Path], tmp_path: Path) -> None:
    config = PretrainConfig(precision="fp32", epochs=2.0, block_tokens=16, batch_blocks=4, dropout=0.1, optim=FAST)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        pretrain(config, SHAPE, **text_files, output_dir=tmp_path / name, seed=seed)
    a, b, c = (load_file(tmp_path / name / "model" / "model.safetensors") for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["model.embed_tokens.weight"], c["model.embed_tokens.weight"])


def test_a_held_out_text_longer_than_the_model_does_not_undo_the_training(
    text_files: dict[str, Path], write_rows: WriteRows, tmp_path: Path
) -> None:
    config = PretrainConfig(precision="fp32", epochs=1.0, block_tokens=16, batch_blocks=4)
    inputs = text_files | {
        "valid_texts": write_rows("long.jsonl", [{"text": " ".join(" ".join(TEXTS).split()[::-1])}] * 20)
    }
    result = pretrain(config, SHAPE, **inputs, output_dir=tmp_path / "out")
    told = result.held_out
    assert told.low <= told.value == result.valid_nll <= told.high and (told.n, told.units) == (20, 1)
    # by who knows the shares of tokens alone: more than an even chance of those that occur, less than of all 320
    assert told.baseline_is == "shares of tokens" and 3 < told.baseline < math.log(320)


def test_of_few_held_out_texts_no_number_is_stated(
    text_files: dict[str, Path], write_rows: WriteRows, tmp_path: Path
) -> None:
    config = PretrainConfig(precision="fp32", epochs=1.0, block_tokens=16, batch_blocks=4)
    inputs = text_files | {"valid_texts": write_rows("few.jsonl", [{"text": text} for text in TEXTS])}
    result = pretrain(config, SHAPE, **inputs, output_dir=tmp_path / "out")
    assert result.valid_nll is None and "8 held out, and fewer than 20" in result.held_out.why


def test_too_little_text_for_a_batch(text_files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="fill only 1 blocks of 256 tokens") as caught:
        pretrain(PretrainConfig(precision="fp32"), SHAPE, **text_files, output_dir=tmp_path / "out")
    assert "texts.jsonl" in str(caught.value)
    assert "batch_blocks" in str(caught.value)


def demonstrations(count: int = 4) -> list[dict[str, str]]:
    return [{"prompt": f"{t.split()[0]}:", "completion": f" {' '.join(t.split()[1:5])}"} for t in TEXTS[:count]]


def run_sft(model: Path, data: Path, output_dir: Path, **settings: Any) -> LmResult:
    config: dict[str, Any] = {"precision": "fp32", "dropout": 0.0, "batch_tokens": 64, "optim": FAST}
    return sft(SftConfig(**config | settings), model=model, data=data, output_dir=output_dir)


@pytest.mark.slow
def test_sft_memorises_and_learns_to_end(policy_folder: Path, write_rows: WriteRows, tmp_path: Path) -> None:
    data = write_rows("demos.jsonl", demonstrations())
    result = run_sft(policy_folder, data, tmp_path / "out", epochs=60)
    assert result.train_nll < 0.05
    model, words = load_policy(result.model)
    prompts = [words.encode(row["prompt"]) for row in demonstrations()]
    samples = Engine(model.eval(), words.stop_ids).generate(prompts, Sampling(30, temperature=0.05), seed=0)
    assert [words.decode(s.completion) for s in samples] == [row["completion"] for row in demonstrations()]
    assert {s.finish for s in samples} == {"stop"}


PINNED = [5.809748, 5.75871, 5.742653, 5.399472, 5.529971, 5.440423, 5.372915, 5.321189, 5.106445, 5.076488]


def test_sft_loss_curve(policy_folder: Path, write_rows: WriteRows, tmp_path: Path) -> None:
    """Pinned: a change that should not move numbers must leave it as it is."""
    data = write_rows("demos.jsonl", demonstrations(8))
    gentle = OptimConfig(lr=3e-3, eps=1e-4)  # Adam doubles rounding where gradients are tiny: not with this eps
    run_sft(policy_folder, data, tmp_path / "out", epochs=4, batch_tokens=80, micro_batch_tokens=40, optim=gentle)
    got = [row["loss"] for row in rows_of(tmp_path / "out" / "metrics.jsonl")][:10]
    assert got == pytest.approx(PINNED, abs=1e-4)


def test_sft_leaves_out_what_is_too_long_and_says_so(
    policy_folder: Path, write_rows: WriteRows, tmp_path: Path
) -> None:
    rows = [*demonstrations(), {"prompt": "Two", "completion": " foxes crossed" * 30}]
    heard: list[str] = []
    config = SftConfig(precision="fp32", epochs=1, max_tokens=40, optim=FAST)
    data = write_rows("demos.jsonl", rows)
    out = tmp_path / "out"
    result = sft(config, model=policy_folder, data=data, output_dir=out, log=lambda _, text: heard.append(text))
    assert math.isfinite(result.train_nll)
    assert result.num_tokens < 100  # the long one alone has more
    assert "1 of 5 demonstrations left out: longer than 40 tokens" in heard
    with pytest.raises(DataError, match="longer than 2 tokens") as caught:
        sft(config.model_copy(update={"max_tokens": 2}), model=policy_folder, data=data, output_dir=out)
    assert "demos.jsonl" in str(caught.value)


def test_every_twentieth_row_is_held_out_of_a_long_file(
    policy_folder: Path, write_rows: WriteRows, tmp_path: Path, words: Tokenizer
) -> None:
    rows = [{"prompt": f"A{i}:", "completion": f" {i}"} for i in range(40)]
    result = run_sft(policy_folder, write_rows("demos.jsonl", rows), tmp_path / "out", epochs=1)
    counted = [len(words.encode(f" {i}")) + 1 for i in range(40) if i % 20]
    assert result.num_tokens == sum(counted)


def test_sft_may_pass_over_a_part_of_the_demonstrations(
    policy_folder: Path, write_rows: WriteRows, tmp_path: Path, words: Tokenizer
) -> None:
    """Every row is a batch of its own here: 8 rows, 2.5 passes, 20 steps."""
    data = write_rows("demos.jsonl", demonstrations(8))
    half, two, more = (run_sft(policy_folder, data, tmp_path / f"{n}", epochs=n, batch_tokens=1) for n in (0.5, 2, 2.5))
    assert (half.num_steps, two.num_steps, more.num_steps) == (4, 16, 20)
    once = sum(len(words.encode(row["completion"])) + 1 for row in demonstrations(8))
    assert 0 < half.num_tokens < once and two.num_tokens == 2 * once < more.num_tokens < 3 * once


def test_a_diverging_run_stops_with_its_last_checkpoint_intact(
    policy_folder: Path, write_rows: WriteRows, tmp_path: Path
) -> None:
    data = write_rows("demos.jsonl", demonstrations(8))
    wild = OptimConfig(lr=1e30, warmup_ratio=0.0, clip_norm=1e30)
    with pytest.raises(DataError, match="at step") as caught:
        run_sft(policy_folder, data, tmp_path / "out", epochs=8, checkpoint_every=1, optim=wild)
    assert "checkpoint is intact" in str(caught.value)
    newest = max((tmp_path / "out" / "checkpoints").glob("step_*"))
    tensors = load_file(newest / "learner.safetensors")
    assert all(t.isfinite().all() for name, t in tensors.items() if ".weights." in name)


@pytest.mark.parametrize(
    ("stage", "row", "says"),
    [
        ("sft", {"prompt": "Q"}, '"completion" is missing'),
        ("sft", {"prompt": "Q", "completion": " "}, '"completion" is empty'),
        ("reward", {"prompt": "Q", "chosen": "a"}, '"rejected" is missing'),
        ("reward", {"prompt": "Q", "completions": ["a", "b"], "ranks": [1]}, '"ranks" are 1 for 2 completions'),
        ("rl", {"text": "Q"}, '"prompt" is missing'),
    ],
)
def test_a_bad_row_is_named_with_file_and_line(
    stage: str,
    row: dict[str, Any],
    says: str,
    policy_folder: Path,
    reward_folder: Path,
    write_rows: WriteRows,
    tmp_path: Path,
) -> None:
    good = {"prompt": "Q", "completion": "a"} | ({} if stage == "sft" else {"chosen": "a", "rejected": "b"})
    data = write_rows("rows.jsonl", [good, row])
    out = tmp_path / "out"
    with pytest.raises(DataError, match=says) as caught:
        if stage == "sft":
            run_sft(policy_folder, data, out)
        elif stage == "reward":
            reward(RewardConfig(precision="fp32"), model=policy_folder, data=data, output_dir=out)
        else:
            rl(RlConfig(precision="fp32"), model=policy_folder, reward_model=reward_folder, data=data, output_dir=out)
    assert "rows.jsonl:2" in str(caught.value)
    assert not (out / "model").exists()


# -- stages: reward ----------------------------------------------------------------------------------------------------

UTILITY = {" fog": -2.0, " salt": -1.0, " rain": -0.5, " soup": 0.0, " kite": 0.5, " ships": 1.0, " corner": 2.0}


def word_texts(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(list(UTILITY), k=draw.randint(2, 5))) for _ in range(count)]


def utility(text: str) -> float:
    return sum(UTILITY[f" {word}"] for word in text.split())


def utility_rankings(count: int, K: int, seed: int) -> list[dict[str, Any]]:
    texts = word_texts(count * K, seed)
    groups = [texts[i : i + K] for i in range(0, count * K, K)]
    return [
        {"prompt": "Say:", "completions": g, "ranks": [1 + sum(utility(o) > utility(t) for o in g) for t in g]}
        for g in groups
    ]


@pytest.mark.slow
def test_reward_model_recovers_a_known_utility(policy_folder: Path, write_split: WriteSplit, tmp_path: Path) -> None:
    data = write_split(utility_rankings(120, 5, 0))
    config = RewardConfig(precision="fp32", epochs=3, dropout=0.0, optim=OptimConfig(lr=5e-3))
    result = reward(config, model=policy_folder, **data, output_dir=tmp_path / "out")
    scorer = RewardModel.load(result.model, PLAIN)
    fresh = word_texts(200, 99)
    scores = scorer.score([("Say:", t) for t in fresh])
    assert spearmanr(scores.numpy(), [utility(t) for t in fresh]).statistic > 0.95
    assert result.valid_accuracy > 0.9
    assert result.num_groups == 114
    # scores of the ranked completions have mean 0 and deviation 1
    ranked = {t for i, row in enumerate(utility_rankings(120, 5, 0)) if i % 20 for t in row["completions"]}
    on_training = scorer.score([("Say:", t) for t in sorted(ranked)])
    assert float(on_training.mean()) == pytest.approx(0.0, abs=1e-3)
    assert float(on_training.std()) == pytest.approx(1.0, abs=1e-3)
    rows = rows_of(tmp_path / "out" / "metrics.jsonl")
    assert len(rows) == result.num_steps == 45  # 3 epochs of ceil(114 / 8)
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=0.3)
    assert rows[-1]["accuracy"] > rows[0]["accuracy"]


def test_rankings_of_one_single_tie_teach_nothing(policy_folder: Path, write_rows: WriteRows, tmp_path: Path) -> None:
    data = write_rows("ties.jsonl", [{"prompt": "Q", "completions": ["a", "b"], "ranks": [1, 1]}])
    with pytest.raises(DataError, match=r"one single tie") as caught:
        reward(RewardConfig(precision="fp32"), model=policy_folder, data=data, output_dir=tmp_path / "out")
    assert "ties.jsonl" in str(caught.value)


def test_scale_is_of_the_human_completions_where_there_are_any(reward_folder: Path) -> None:
    model, words, _ = load_scalar(reward_folder)
    model.eval()
    human = replace(GROUPS[0], origin="human ratings")
    alone = measure_scale(model, words, [human], 60)
    assert measure_scale(model, words, [human, GROUPS[1]], 60) == alone
    assert measure_scale(model, words, [GROUPS[0], GROUPS[1]], 60) != alone


def test_held_out_accuracy_weighs_groups_alike(reward_folder: Path) -> None:
    model, words, _ = load_scalar(reward_folder)
    scorer = RewardModel(model, words, load_scalar(reward_folder)[2])

    def order(group: RankedGroup) -> list[int]:
        scores = scorer.score([(group.prompt, c) for c in group.completions])
        return [1 + int((scores > s).sum()) for s in scores]

    right = replace(GROUPS[0], ranks=tuple(order(GROUPS[0])))  # 3 pairs, all right
    wrong = replace(GROUPS[1], ranks=tuple(3 - r for r in order(GROUPS[1])))  # 1 pair, wrong
    loss = REWARD_LOSSES["bradley_terry"]
    assert held_out_fit(model, words, loss, [right], 60).accuracy == pytest.approx(1.0)
    assert held_out_fit(model, words, loss, [right, wrong], 60).accuracy == pytest.approx(0.5)


def test_save_policy_of_a_trained_model_keeps_its_law(letters_folder: Path, tmp_path: Path) -> None:
    model, words = load_policy(letters_folder)
    save_policy(tmp_path / "m", model, words)
    again, _ = load_policy(tmp_path / "m")
    assert mean_nll(again.eval(), EXAMPLES, 1) == mean_nll(model.eval(), EXAMPLES, 1)
