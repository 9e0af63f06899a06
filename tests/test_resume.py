"""Training survives SIGKILL: a run killed at many points ends with the weights of one that never stopped, bit for bit.

Each start is a process of its own, forked from a server that has the imports ready. A child kills itself at a named
point, or the parent kills it at a moment of its own choice.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TEXTS, WriteRows
from safetensors.torch import load_file

from accord.algo.table import POLICY_ALGORITHMS
from accord.config import DpoConfig, ModelConfig, OptimConfig, PretrainConfig, RewardConfig, RlConfig, SftConfig
from accord.errors import Interrupted
from accord.text.tokenizer import Tokenizer
from accord.train import learner
from accord.train.dpo import dpo
from accord.train.learner import Learner, Metrics
from accord.train.pretrain import pretrain
from accord.train.reward import reward
from accord.train.rl import rl
from accord.train.sft import sft

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["pytest", "peft", "accord.train.dpo", "accord.train.pretrain", "accord.train.sft", "accord.train.reward"]
)
DEADLINE_S = 300.0

STAGES: dict[str, Callable[..., Any]] = {"pretrain": pretrain, "sft": sft, "reward": reward, "rl": rl, "dpo": dpo}


@dataclass(frozen=True)
class Job:
    """A stage with everything it is given."""

    stage: str
    args: tuple[Any, ...]
    inputs: dict[str, Path]
    total: int


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def after_calls(owner: Any, name: str, calls: int, instead: Callable[..., Any]) -> None:
    """Let the first calls of a function pass, then do something else."""
    original, left = getattr(owner, name), [calls]

    def counted(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        return original(*args, **kwargs) if left[0] >= 0 else instead(*args, **kwargs)

    setattr(owner, name, counted)


def half_a_file(tensors: Any, path: Path) -> None:
    path.write_bytes(b"\x40" * 100)
    die()


def half_a_row(metrics: Metrics, step: int, row: Any) -> None:
    with metrics.path.open("a") as file:
        file.write(f'{{"step": {step}, "lo')
        file.flush()
        die()


def child(job: Job, output_dir: Path, point: str, count: int) -> None:
    """Run a stage, with death waiting at the ``count``-th event of a kind (never, for the point "end")."""

    def log(fraction: float, text: str) -> None:
        if point == "row" and round(fraction * job.total) == count:
            die()

    if point == "save":
        after_calls(learner, "save_file", count, half_a_file)
    elif point == "update":
        after_calls(Learner, "update", count, lambda *_: die())
    elif point == "torn row":
        after_calls(Metrics, "write", count, half_a_row)
    STAGES[job.stage](*job.args, **job.inputs, output_dir=output_dir, seed=3, log=log)


def start(job: Job, output_dir: Path, point: str, count: int = 0) -> multiprocessing.process.BaseProcess:
    process = PROCESSES.Process(target=child, args=(job, output_dir, point, count))
    process.start()
    return process


def run_until(job: Job, output_dir: Path, point: str, count: int = 0) -> None:
    """Start the stage and see it die at the point, or end well."""
    process = start(job, output_dir, point, count)
    process.join(DEADLINE_S)
    assert process.exitcode == (0 if point == "end" else -signal.SIGKILL), f"{point} {count}"


def kill_from_outside(job: Job, output_dir: Path, delay_s: float) -> None:
    """Kill a start some time after it has written a row that was not there before."""
    path = output_dir / "metrics.jsonl"
    before = path.stat().st_mtime_ns if path.exists() else 0
    process, began = start(job, output_dir, "end"), time.monotonic()
    while process.is_alive() and time.monotonic() - began < DEADLINE_S:
        if path.exists() and path.stat().st_mtime_ns != before:
            break
        time.sleep(0.001)
    time.sleep(delay_s)
    process.kill()
    process.join(DEADLINE_S)
    assert process.exitcode in (0, -signal.SIGKILL)


def rows_of(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def assert_the_same(first: Path, second: Path, total: int) -> None:
    models = sorted(path.relative_to(first) for path in first.rglob("model/model.safetensors"))
    assert Path("model/model.safetensors") in models
    for path in models:
        a, b = load_file(first / path), load_file(second / path)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a), path
    assert [row["step"] for row in rows_of(second / "metrics.jsonl")] == list(range(total))
    for name in ("metrics.jsonl", "events.jsonl"):
        if (first / name).exists():
            assert rows_of(first / name) == rows_of(second / name)
    assert not list(second.rglob(".*.partial"))


@pytest.fixture
def texts(write_rows: WriteRows) -> Path:
    return write_rows("texts.jsonl", [{"text": t} for t in TEXTS])


@pytest.fixture
def pretraining(texts: Path, words: Tokenizer, tmp_path: Path) -> Job:
    """20 steps of 2 blocks, with dropout, two and a half passes over the texts."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    words.save(folder)
    config = PretrainConfig(
        precision="fp32",
        epochs=2.5,
        block_tokens=16,
        batch_blocks=2,
        dropout=0.2,
        checkpoint_every=2,
        share_spellings=True,
    )
    shape = ModelConfig(width=32, layers=2, heads=4, kv_heads=2, ffn=48, max_positions=64)
    inputs = {"texts": texts, "valid_texts": texts, "tokenizer": folder}
    return Job("pretrain", (config, shape), inputs, total=20)


@pytest.fixture
def ppo(policy_folder: Path, reward_folder: Path, write_rows: WriteRows) -> Job:
    """10 iterations of 2 epochs of 2 minibatches, with both controllers at work."""
    optim = OptimConfig(lr=3e-3, eps=1e-5)
    config = RlConfig(
        precision="fp32",
        iterations=10,
        prompts_per_iteration=6,
        max_new_tokens=10,
        ppo_epochs=2,
        minibatches=2,
        kl_target=0.1,
        length_coef=0.5,
        eval_every=4,
        checkpoint_every=2,
        actor=optim,
        critic=optim,
    )
    prompts = write_rows("prompts.jsonl", [{"prompt": t.split()[0]} for t in TEXTS])
    inputs = {"model": policy_folder, "reward_model": reward_folder, "data": prompts}
    return Job("rl", (config,), inputs, total=10)


@pytest.mark.slow
def test_pretraining_killed_again_and_again_ends_the_same(pretraining: Job, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_until(pretraining, whole, "end")
    run_until(pretraining, killed, "row", 1)  # before there is any checkpoint
    run_until(pretraining, killed, "save", 0)  # amid the first one
    run_until(pretraining, killed, "row", 4)  # after the row, before its checkpoint
    run_until(pretraining, killed, "save", 2)
    for row in sorted(random.Random(0).sample(range(8, 20), 3)):
        run_until(pretraining, killed, "row", row)
    run_until(pretraining, killed, "torn row", 1)
    run_until(pretraining, killed, "end")
    assert_the_same(whole, killed, 20)


@pytest.mark.slow
def test_pretraining_killed_from_outside_ends_the_same(pretraining: Job, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_until(pretraining, whole, "end")
    delays = random.Random(1)
    for _ in range(4):
        kill_from_outside(pretraining, killed, delays.uniform(0.0, 0.1))
    run_until(pretraining, killed, "end")
    assert_the_same(whole, killed, 20)


@pytest.mark.slow
def test_ppo_killed_again_and_again_ends_the_same(ppo: Job, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_until(ppo, whole, "end")
    controls = {(row["kl_coef"], row["length_price"]) for row in rows_of(whole / "metrics.jsonl")}
    assert len(controls) == 10  # both controllers move, so that losing their state would show
    assert (whole / "events.jsonl").exists()
    run_until(ppo, killed, "update", 2)  # amid the updates of the first iteration
    run_until(ppo, killed, "save", 0)
    run_until(ppo, killed, "row", 3)
    run_until(ppo, killed, "update", 7)
    run_until(ppo, killed, "torn row", 1)
    for row in sorted(random.Random(2).sample(range(5, 10), 2)):
        run_until(ppo, killed, "row", row)
    kill_from_outside(ppo, killed, 0.02)
    run_until(ppo, killed, "end")
    assert_the_same(whole, killed, 10)
    assert sorted(p.name for p in (killed / "snapshots").iterdir()) == ["step_000004", "step_000008", "step_000010"]


@pytest.mark.slow
def test_ppo_asked_to_stop_again_and_again_ends_the_same(ppo: Job, tmp_path: Path) -> None:
    """By SIGTERM in this process, the last time after the last iteration: it then has only its result to write."""
    whole = rl(*ppo.args, **ppo.inputs, output_dir=tmp_path / "whole", seed=3)
    for step in (1, 2, 7, 10):

        def log(done: float, text: str, step: int = step) -> None:
            if text.startswith(f"step {step}/"):
                signal.raise_signal(signal.SIGTERM)

        with pytest.raises(Interrupted):
            rl(*ppo.args, **ppo.inputs, output_dir=tmp_path / "asked", seed=3, log=log)
    asked = rl(*ppo.args, **ppo.inputs, output_dir=tmp_path / "asked", seed=3)
    assert_the_same(tmp_path / "whole", tmp_path / "asked", 10)
    assert asked.final == pytest.approx(whole.final, rel=1e-6, nan_ok=True)


#: Each with a state of its own between iterations, beside the price of KL and the leash.
POLICY_STATES: dict[str, dict[str, Any]] = {
    "dapo": {
        "samples_per_prompt": 3,
        "shaping": {"scale": True, "overlong_tokens": 4},
        "trust": {"coef": 0.5, "target": 1e-4},
    },
    "reinforce_baseline": {"samples_per_prompt": 1, "shaping": {"scale": True}, "kl_coef": 0.05, "kl_target": 0.1},
    "ppo": {
        "samples_per_prompt": 2,
        "values": {"shared": True},
        "shaping": {"scale": True, "clip": 1.0},
        "trust": {"coef": 0.5, "target": 1e-4},
        "entropy_coef": 0.01,
        "ptx": {"coef": 0.5, "blocks": 2, "block_tokens": 16},
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", POLICY_STATES)
def test_policy_optimisation_killed_again_and_again_ends_the_same(
    name: str, policy_folder: Path, texts: Path, write_rows: WriteRows, tmp_path: Path
) -> None:
    """Running deviation and baseline, the trust region's price, redrawn prompts, a value head, the mix of texts."""
    optim = OptimConfig(lr=3e-3, eps=1e-5)
    passes = 2 if POLICY_ALGORITHMS[name].has_ratio else 1
    config = RlConfig(
        algorithm=name,
        precision="fp32",
        iterations=8,
        prompts_per_iteration=4,
        max_new_tokens=8,
        ppo_epochs=passes,
        minibatches=4 // passes,
        eval_every=4,
        checkpoint_every=2,
        rewards=[{"regex": "[aeiou]"}, {"regex": "t", "weight": 0.5, "name": "tees"}],
        prompts={"max_tokens": 20},
        actor=optim,
        critic=optim,
        **POLICY_STATES[name],
    )
    prompts = write_rows("prompts.jsonl", [{"prompt": t.split()[0], "weight": 1 + i % 2} for i, t in enumerate(TEXTS)])
    inputs = {"model": policy_folder, "data": prompts} | ({"ptx_data": texts} if config.ptx.coef else {})
    job = Job("rl", (config,), inputs, total=8)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_until(job, whole, "end")
    rows = rows_of(whole / "metrics.jsonl")
    if name == "dapo":
        assert any(row["scored"] > 12 for row in rows)  # prompts were drawn again
    if config.trust.target:
        assert len({row["trust_coef"] for row in rows}) > 3
    run_until(job, killed, "update", 2)
    run_until(job, killed, "save", 0)
    run_until(job, killed, "row", 3)
    run_until(job, killed, "update", 6)
    run_until(job, killed, "torn row", 1)
    kill_from_outside(job, killed, 0.02)
    run_until(job, killed, "end")
    assert_the_same(whole, killed, 8)


@pytest.mark.slow
def test_sft_and_reward_killed_once_end_the_same(policy_folder: Path, write_rows: WriteRows, tmp_path: Path) -> None:
    demos = [{"prompt": t.split()[0], "completion": " " + " ".join(t.split()[1:4])} for t in TEXTS]
    pairs = [{"prompt": "A", "chosen": f" {t.split()[-1]}", "rejected": f" {t.split()[1]}"} for t in TEXTS]
    small: dict[str, Any] = {"precision": "fp32", "epochs": 2, "dropout": 0.2, "checkpoint_every": 2}
    jobs = [
        (SftConfig(batch_tokens=30, **small), write_rows("demos.jsonl", demos)),
        (RewardConfig(groups_per_step=2, token_dropout=0.2, **small), write_rows("pairs.jsonl", pairs)),
    ]
    for stage, (config, data) in zip(("sft", "reward"), jobs, strict=True):
        whole, killed = tmp_path / f"{stage} whole", tmp_path / f"{stage} killed"
        job = Job(stage, (config,), {"model": policy_folder, "data": data}, total=8)
        run_until(job, whole, "end")
        total = len(rows_of(whole / "metrics.jsonl"))
        run_until(job, killed, "update", 5)
        run_until(job, killed, "end")
        assert total >= 6
        assert_the_same(whole, killed, total)


def dpo_job(model: Path, data: Path, **changes: Any) -> Job:
    small: dict[str, Any] = {"precision": "fp32", "groups_per_step": 3, "epochs": 3, "eval_every": 2}
    config = DpoConfig(checkpoint_every=2, max_new_tokens=8, optim=OptimConfig(lr=3e-3), **small | changes)
    inputs = {"model": model, "data": data}
    return Job("dpo", (config,), inputs, total=9)


@pytest.mark.slow
def test_dpo_killed_again_and_again_ends_the_same(policy_folder: Path, write_rows: WriteRows, tmp_path: Path) -> None:
    """The reference's log-probabilities are those of the first start: at the last, the policy is another one."""
    pairs = [{"prompt": t.split()[0], "chosen": f" {t.split()[-1]}", "rejected": f" {t.split()[1]}"} for t in TEXTS]
    job = dpo_job(policy_folder, write_rows("pairs.jsonl", pairs))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_until(job, whole, "end")
    run_until(job, killed, "update", 0)  # the reference is stored, nothing else
    stored = (killed / "reference.safetensors").read_bytes()
    run_until(job, killed, "save", 0)
    run_until(job, killed, "row", 3)
    run_until(job, killed, "torn row", 1)
    (killed / "reference.safetensors").write_bytes(stored[:-3])  # half a file is not read
    run_until(job, killed, "update", 2)
    kill_from_outside(job, killed, 0.02)
    run_until(job, killed, "end")
    assert_the_same(whole, killed, 9)
    assert (killed / "reference.safetensors").read_bytes() == stored
    assert sorted(p.name for p in (killed / "snapshots").iterdir())[-2:] == ["step_000008", "step_000009"]


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_online_dpo_killed_ends_the_same(
    loss: str, policy_folder: Path, reward_folder: Path, write_rows: WriteRows, tmp_path: Path
) -> None:
    prompts = write_rows("prompts.jsonl", [{"prompt": t.split()[0]} for t in TEXTS])
    job = dpo_job(policy_folder, prompts, loss=loss, online=True, label_noise=1.0)
    job.inputs["reward_model"] = reward_folder
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_until(job, whole, "end")
    run_until(job, killed, "row", 3)
    run_until(job, killed, "update", 4)
    run_until(job, killed, "end")
    assert_the_same(whole, killed, 9)


def test_a_finished_stage_started_again_gives_the_same_model(pretraining: Job, tmp_path: Path) -> None:
    run_until(pretraining, tmp_path / "out", "end")
    first = (tmp_path / "out" / "model" / "model.safetensors").read_bytes()
    run_until(pretraining, tmp_path / "out", "end")
    assert (tmp_path / "out" / "model" / "model.safetensors").read_bytes() == first
