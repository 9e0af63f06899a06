"""The generator: texts in, texts out, exactly what the engine draws of their ids."""

from __future__ import annotations

from pathlib import Path

import pytest

from accord.config import SampleConfig
from accord.errors import UsageError
from accord.models.folder import load_policy
from accord.rollout.engine import Engine, Sampling
from accord.rollout.generator import GENERATORS, EngineGenerator, Generator, by_prompt, open_generator

PROMPTS = ["Say:", "The village:", "He wrote:"]


def test_it_writes_what_the_engine_draws(policy_folder: Path) -> None:
    policy, tokenizer = load_policy(policy_folder)
    ids = [tokenizer.encode(prompt) for prompt in PROMPTS]
    samples = Engine(policy, tokenizer.stop_ids).generate(ids, Sampling(6, 2), seed=4)
    drawn = open_generator(policy_folder).generate(PROMPTS, Sampling(6, 2), seed=4)
    assert [one.prompt for one in drawn] == [prompt for prompt in PROMPTS for _ in range(2)]
    assert [(s.prompt, s.completion, s.behaviour_logp, s.finish) for s in samples] == [
        (one.prompt_ids, one.completion_ids, one.behaviour_logp, one.finish) for one in drawn
    ]
    assert [one.text for one in drawn] == [tokenizer.decode(s.completion) for s in samples]
    assert all(one.finished == (one.finish == "stop") and one.pair == (one.prompt, one.text) for one in drawn)
    assert [[one.prompt for one in group] for group in by_prompt(drawn, 2)] == [[prompt] * 2 for prompt in PROMPTS]


def test_it_uses_the_present_weights(policy_folder: Path) -> None:
    policy, tokenizer = load_policy(policy_folder)
    generator: Generator = EngineGenerator(policy, tokenizer)
    before = generator.generate(PROMPTS, Sampling(6, 2), seed=4)
    assert generator.generate(PROMPTS, Sampling(6, 2), seed=4) == before
    policy.requires_grad_(False)
    for parameter in policy.parameters():
        parameter.mul_(1.5)
    assert generator.generate(PROMPTS, Sampling(6, 2), seed=4) != before


def test_the_names_a_recipe_knows_are_those_there_are(policy_folder: Path) -> None:
    for name in GENERATORS:
        assert SampleConfig(generator=name).generator == name
        if name != "vllm":  # tests/test_vllm.py
            assert open_generator(policy_folder, name=name).generate(PROMPTS, Sampling(2), seed=0)
    with pytest.raises(ValueError, match="rows are engine, vllm; your own is module:name"):
        SampleConfig(generator="vlm")
    with pytest.raises(UsageError, match="no module 'nowhere'"):
        open_generator(policy_folder, name="nowhere:Writer")
