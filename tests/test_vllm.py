"""vLLM as a copy of the policy, in its own environment: our numbers, its traps, and learning with it.

They run where ``ACCORD_VLLM`` names an environment (`make vllm`), for each process of vLLM takes most of a minute to
start; what hangs on none is in `test_copy`.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from accord import config as c
from accord.errors import ResourceError
from accord.models.decoder import CausalLM, init_weights
from accord.models.folder import load_policy, save_policy
from accord.models.placement import PLAIN
from accord.models.shape import DecoderConfig
from accord.rollout.engine import Sample, Sampling
from accord.rollout.generator import GENERATORS
from accord.rollout.published import PublishedGenerator
from accord.rollout.vllm import VllmCopy
from accord.rollout.vllm_env import VARIABLE, VERSION, vllm_environment
from accord.text.batches import Example, collate
from accord.text.tokenizer import Tokenizer, train_tokenizer
from accord.train.likelihood import logp_and_entropy
from accord.train.rl import rl
from accord.train.sft import sft

pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.skipif(VARIABLE not in os.environ, reason=f"{VARIABLE} names no environment with vLLM"),
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([f"{n} apples and {n * n} pears" for n in range(500)], 320)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """Two policies of each kind, ``tied-0`` to ``untied-1``, whose distributions are not flat."""
    made = tmp_path_factory.mktemp("policies")
    for kind in ("tied", "untied"):
        for seed in (0, 1):
            shape = DecoderConfig(tokenizer.vocab_size, 64, 128, 2, 2, 1, 32, 256, tied=kind == "tied")
            policy = CausalLM(shape)
            init_weights(policy, seed)
            with torch.no_grad():
                for parameter in policy.parameters():
                    if parameter.dim() == 2:
                        parameter.mul_(3.0)
            save_policy(made / f"{kind}-{seed}", policy, tokenizer)
    return made


def own_logps(folder: Path, samples: Sequence[Sample], temperature: float) -> torch.Tensor:
    """The policy's own log-probabilities, one row at a time and so without padding."""
    policy = load_policy(folder, PLAIN)[0].eval()
    found = []
    with torch.no_grad():
        for one in samples:
            batch = collate([Example(one.prompt, one.completion)], 0)
            found.append(logp_and_entropy(policy, batch, temperature, entropy=False)[0])
    return torch.cat(found)


def gap(folder: Path, samples: Sequence[Sample], temperature: float) -> float:
    said = torch.tensor([logp for one in samples for logp in one.behaviour_logp])
    return float((said - own_logps(folder, samples, temperature)).abs().mean())


PROMPTS = [
    tuple(torch.randint(5, 300, (size,), generator=torch.Generator().manual_seed(size)).tolist())
    for size in range(20, 28)
]


@pytest.fixture(scope="module")
def untied(folder: Path, tokenizer: Tokenizer) -> Iterator[VllmCopy]:
    copy = VllmCopy(tokenizer.stop_ids, PLAIN)
    copy.load(0, folder / "untied-0")
    yield copy
    copy.close()


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_log_probabilities_are_those_of_the_sampled_distribution(
    untied: VllmCopy, folder: Path, temperature: float
) -> None:
    untied.load(0, folder / "untied-0")
    sampling = Sampling(24, 4, temperature)
    samples = untied.draw(0, PROMPTS, sampling, 7, range(8))
    assert [(one.prompt_index, one.sample_index) for one in samples] == [(p, k) for p in range(8) for k in range(4)]
    assert all(one.prompt == PROMPTS[one.prompt_index] for one in samples)
    assert gap(folder / "untied-0", samples, temperature) <= 1e-4
    # A sample is its name's, whoever is drawn beside it; another seed draws others.
    assert untied.draw(0, PROMPTS[3:5], sampling, 7, (3, 4)) == samples[12:20]
    others = untied.draw(0, PROMPTS, sampling, 8, range(8))
    assert sum(a.completion == b.completion for a, b in zip(others, samples, strict=True)) < 4
    assert len({one.completion for one in samples}) > 24


def test_a_stop_token_ends_a_completion_and_is_its_last(untied: VllmCopy, folder: Path) -> None:
    untied.load(0, folder / "untied-0")
    stops = tuple(range(40, 300))
    for one in untied.draw(0, PROMPTS, Sampling(24, 1, 1.0, stop_ids=stops), 1, range(8)):
        ended = one.completion[-1] in stops
        assert one.finish == ("stop" if ended else "length") and len(one.behaviour_logp) == len(one.completion)
        assert not any(token in stops for token in one.completion[:-1])


def publish(copy: VllmCopy, tokenizer: Tokenizer, folder: Path, version: int, temperature: float) -> float:
    """Publish as a training does; the distance that the canary found."""
    generator = PublishedGenerator(copy, tokenizer, 256)
    canary = generator.publish(version, folder, temperature)
    found = generator.settle(version, canary, own_logps(folder, canary, temperature), torch.float32)
    assert generator.version == version
    return found


def test_the_canary_sees_a_prefix_cache_that_remembers(untied: VllmCopy, folder: Path, tokenizer: Tokenizer) -> None:
    assert publish(untied, tokenizer, folder / "untied-0", 1, 1.0) <= 1e-4
    untied._mends = ["head"]
    with pytest.raises(ResourceError, match="draws from another distribution"):
        publish(untied, tokenizer, folder / "untied-1", 2, 1.0)
    untied._mends = ["prefixes", "head"]
    assert publish(untied, tokenizer, folder / "untied-1", 3, 1.0) <= 1e-4


def test_the_canary_sees_a_tied_head_that_is_not_repacked(folder: Path, tokenizer: Tokenizer) -> None:
    copy = VllmCopy(tokenizer.stop_ids, PLAIN, mends=["prefixes"])
    try:
        assert publish(copy, tokenizer, folder / "tied-0", 1, 1.0) <= 1e-4
        with pytest.raises(ResourceError, match="draws from another distribution"):
            publish(copy, tokenizer, folder / "tied-1", 2, 1.0)
        copy._mends = ["prefixes", "head"]
        assert publish(copy, tokenizer, folder / "tied-1", 3, 1.0) <= 1e-4
    finally:
        copy.close()


def test_the_canary_sees_log_probabilities_at_another_temperature(folder: Path, tokenizer: Tokenizer) -> None:
    copy = VllmCopy(tokenizer.stop_ids, PLAIN, logprobs="raw_logprobs")
    try:
        with pytest.raises(ResourceError, match="draws from another distribution"):
            publish(copy, tokenizer, folder / "tied-0", 1, 0.7)
    finally:
        copy.close()


def test_a_process_that_is_killed_is_started_again_and_draws_the_same(untied: VllmCopy, folder: Path) -> None:
    untied.load(5, folder / "untied-1")
    sampling = Sampling(12, 2, 1.0)
    before = untied.draw(5, PROMPTS, sampling, 3, range(8))
    assert untied.pid is not None
    os.kill(untied.pid, signal.SIGKILL)
    time.sleep(0.5)
    assert untied.draw(5, PROMPTS, sampling, 3, range(8)) == before
    assert gap(folder / "untied-1", before, 1.0) <= 1e-4


@pytest.mark.parametrize("staleness", [0, 1])
def test_five_iterations_learn_to_end_with_a(staleness: int, tmp_path: Path) -> None:
    """A policy that says a, b, c or d by turns learns that ``a`` is worth 1."""
    tokenizer = train_tokenizer(["abcd bcda"] * 4, 280)
    policy = CausalLM(DecoderConfig(tokenizer.vocab_size, 64, 64, 2, 2, 1, 32, 64, tied=True))
    init_weights(policy, 0)
    save_policy(tmp_path / "raw", policy, tokenizer)
    rows = [{"prompt": p, "completion": letter} for p in "xyz" for letter in "abcd"] * 8
    (tmp_path / "demos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rate = c.OptimConfig(lr=1e-2, schedule="constant", warmup_ratio=0.0)
    slower = rate.model_copy(update={"lr": 3e-3})
    start = sft(
        c.SftConfig(epochs=4, batch_tokens=64, optim=rate, precision="fp32"),
        model=tmp_path / "raw", data=tmp_path / "demos.jsonl", output_dir=tmp_path / "sft",
    ).model  # fmt: skip
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in "xyz"))
    settings: dict[str, Any] = {
        "iterations": 5, "prompts_per_iteration": 64, "max_new_tokens": 2, "missing_eos_penalty": 0.0, "kl_coef": 0.0,
        "rewards": [{"regex": "a$"}], "actor": slower, "critic": slower, "precision": "fp32",
        "rollout": {"use": "vllm", "max_staleness": staleness},
    }  # fmt: skip
    rl(c.RlConfig(**settings), model=start, data=tmp_path / "prompts.jsonl", output_dir=tmp_path / "rl")
    rows = [json.loads(line) for line in (tmp_path / "rl/metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 5 and all(row["canary_gap"] <= 1e-4 for row in rows)
    assert rows[0]["score"] < 0.45 < 0.8 < rows[-1]["score"]
    assert all(row["behaviour_gap"] <= 1e-4 for row in rows) == (staleness == 0)
    assert not (tmp_path / "rl/published").exists()


def test_a_generator_by_its_name(folder: Path) -> None:
    generator = GENERATORS["vllm"](folder / "tied-0", PLAIN)
    assert isinstance(generator, PublishedGenerator)
    try:
        first = generator.generate(["3 apples", "4"], Sampling(6, 2), seed=1)
        assert [one.prompt for one in first] == ["3 apples"] * 2 + ["4"] * 2 and all(one.text for one in first)
        assert first == generator.generate(["3 apples", "4"], Sampling(6, 2), seed=1)
    finally:
        generator.copy.close()


def test_the_environment_says_its_version() -> None:
    assert vllm_environment().version() == VERSION
