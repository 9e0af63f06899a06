"""A copy of the policy that draws in its place: versions, the canary, drawing ahead; our own engine is the copy."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import WriteRows

from accord import config as c
from accord.errors import ResourceError, UsageError
from accord.models.folder import load_policy
from accord.models.placement import PLAIN
from accord.rollout.engine import Engine, Sample, Sampling
from accord.rollout.published import EngineCopy, PublishedGenerator, StaleWeights
from accord.train.rl import rl

PROMPTS = [(5, 6, 7), (8,), (9, 10, 11, 12, 13), (14, 15)]
RATE = c.OptimConfig(lr=1e-2, schedule="constant", warmup_ratio=0.0)


class Wrong(EngineCopy):
    """A copy whose log-probabilities are off, or whose second weights never arrive, as vLLM's traps have it."""

    def __init__(self, *, factor: float = 1.0, deaf: bool = False) -> None:
        super().__init__(PLAIN)
        self.factor, self.deaf, self.loads = factor, deaf, 0

    def load(self, version: int, folder: Path) -> None:
        self.loads += 1
        if self.deaf and self.loads > 1:
            self._version = version
            return
        super().load(version, folder)

    def draw(self, *asked: Any) -> list[Sample]:
        drawn = super().draw(*asked)
        return [replace(s, behaviour_logp=tuple(x * self.factor for x in s.behaviour_logp)) for s in drawn]


def test_a_sample_is_its_name_s_whoever_draws_it(chat_model: Path) -> None:
    policy, tokenizer = load_policy(chat_model, PLAIN)
    copy, sampling = EngineCopy(PLAIN), Sampling(8, 2)
    copy.load(3, chat_model)
    whole = copy.draw(3, PROMPTS, sampling, 1, range(4))
    assert whole == Engine(policy, tokenizer.stop_ids).generate(PROMPTS, sampling, seed=1)
    parts = [copy.draw(3, PROMPTS[i::3], sampling, 1, range(i, 4, 3)) for i in range(3)]
    ordered = sorted((one for part in parts for one in part), key=lambda s: (s.prompt_index, s.sample_index))
    assert [one.completion for one in ordered] == [one.completion for one in whole]
    for ours, theirs in zip(ordered, whole, strict=True):
        assert ours.behaviour_logp == pytest.approx(theirs.behaviour_logp, abs=1e-4)


def test_a_copy_refuses_another_version(chat_model: Path) -> None:
    copy = EngineCopy(PLAIN)
    with pytest.raises(StaleWeights, match="holds version -1, and was asked for 0"):
        copy.draw(0, PROMPTS, Sampling(2), 1, range(4))
    copy.load(2, chat_model)
    with pytest.raises(StaleWeights, match="holds version 2, and was asked for 3"):
        copy.draw(3, PROMPTS, Sampling(2), 1, range(4))


def test_a_version_counts_only_once_the_canary_has_compared_it(chat_model: Path) -> None:
    generator = PublishedGenerator(EngineCopy(PLAIN), load_policy(chat_model, PLAIN)[1], 640)
    canary = generator.publish(4, chat_model, 0.7)
    assert len({len(one.prompt) for one in canary}) == 1 and len(canary[0].prompt) == 160
    assert canary == generator.publish(4, chat_model, 0.7)  # the same prompts each time
    with pytest.raises(StaleWeights):
        generator.generate(["a"], Sampling(2), seed=1)
    said = torch.tensor([logp for one in canary for logp in one.behaviour_logp])
    with pytest.raises(ResourceError, match=r"draws from another distribution: 0\.01 nats"):
        generator.settle(4, canary, said + 0.01, torch.float32)
    with pytest.raises(ResourceError, match="nan"):
        generator.settle(4, canary, said * math.nan, torch.float32)
    assert generator.settle(4, canary, said + 0.01, torch.bfloat16) == pytest.approx(0.01, rel=1e-3)
    assert generator.generate(["a"], Sampling(2), seed=1)
    with pytest.raises(UsageError, match="tells no likeliest"):
        generator.generate(["a"], Sampling(2, told=1), seed=1)


# -- in a training -----------------------------------------------------------------------------------------------------


@pytest.fixture
def start(chat_model: Path, write_rows: WriteRows) -> Any:
    prompts = write_rows("prompts.jsonl", [{"prompt": p} for p in ("a", "b", "why", "what is it")])

    def train(folder: Path, **changes: Any) -> list[dict[str, float]]:
        outside = {name: changes.pop(name) for name in ("copy", "resume", "log") if name in changes}
        settings = {
            "iterations": 4, "prompts_per_iteration": 4, "max_new_tokens": 6, "ppo_epochs": 1, "precision": "fp32",
            "rewards": [{"regex": "e"}], "actor": RATE, "critic": RATE, "checkpoint_every": 1,
        }  # fmt: skip
        rl(c.RlConfig(**settings | changes), model=chat_model, data=prompts, output_dir=folder, **outside)
        return numbers(folder)

    return train


def numbers(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    own = ("seconds", "canary_gap", "weights_version")
    return [{key: value for key, value in row.items() if key not in own} for row in rows]


@pytest.mark.slow
def test_a_training_whose_samples_a_copy_draws_is_the_same(start: Any, tmp_path: Path) -> None:
    assert start(tmp_path / "copy", copy=EngineCopy(PLAIN)) == start(tmp_path / "own")
    last = json.loads((tmp_path / "copy/metrics.jsonl").read_text().splitlines()[-1])
    assert last["weights_version"] == 3.0 and last["canary_gap"] < 1e-5
    assert not (tmp_path / "copy/published").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("copy", "temperature", "stops"),
    [(Wrong(), 0.7, False), (Wrong(factor=0.7), 0.7, True), (Wrong(deaf=True), 1.0, True)],
)
def test_a_copy_that_draws_from_another_distribution_ends_the_training(
    start: Any, copy: Wrong, temperature: float, stops: bool, tmp_path: Path
) -> None:
    if not stops:
        start(tmp_path, copy=copy, temperature=temperature)
        return
    with pytest.raises(ResourceError, match="draws from another distribution"):
        start(tmp_path, copy=copy, temperature=temperature)


class Stop(Exception):
    pass


@pytest.mark.slow
def test_samples_drawn_ahead_are_a_step_old_and_a_resumed_run_has_them_again(start: Any, tmp_path: Path) -> None:
    ahead = {"rollout": {"max_staleness": 1}}
    whole = start(tmp_path / "whole", copy=EngineCopy(PLAIN), **ahead)
    own = start(tmp_path / "own")
    gaps = [row["behaviour_gap"] for row in whole]
    assert gaps[0] < 1e-5 < 1e-4 < min(gaps[1:]) and max(row["behaviour_gap"] for row in own) < 1e-5
    assert whole[0]["score"] == own[0]["score"]

    def stop_at_the_third(fraction: float, text: str) -> None:
        if text.startswith("step 2/4"):
            raise Stop

    with pytest.raises(Stop):
        start(tmp_path / "killed", copy=EngineCopy(PLAIN), log=stop_at_the_third, **ahead)
    assert 0 < len(numbers(tmp_path / "killed")) < 4
    assert start(tmp_path / "killed", copy=EngineCopy(PLAIN), **ahead) == whole


def test_nobody_draws_ahead_with_the_policy_itself(start: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the policy itself draws"):
        start(tmp_path, rollout={"max_staleness": 1})
