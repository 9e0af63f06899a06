"""Where models live: the choice, every stage on a device pretended on the CPU, and steps of fixed shapes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import random_policy
from stages import SCENARIOS

from accord.config import SftConfig
from accord.errors import UsageError
from accord.models.decoder import CausalLM
from accord.models.graphs import FEWEST_ROWS, FEWEST_SLOTS, FixedSteps, rounded
from accord.models.placement import AUTO, Placement
from accord.models.shape import DecoderConfig
from accord.train.finished import identity_of

ON_THE_CPU = torch.device("cpu")


# -- the choice --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_without_cuda_the_choice_is_the_cpu_and_cuda_is_refused() -> None:
    assert AUTO.device == ON_THE_CPU
    assert Placement.of(SftConfig(precision="bf16", device="cpu")).facts() == {"precision": "bfloat16", "device": "cpu"}
    with pytest.raises(UsageError, match="no CUDA here") as caught:
        Placement(where="cuda").device  # noqa: B018
    assert "device=cpu" in str(caught.value)


def test_a_run_may_go_on_elsewhere(tmp_path: Path) -> None:
    here, there, other = (SftConfig(**said) for said in ({"device": "cpu"}, {"device": "cuda"}, {"epochs": 9.0}))
    names = [identity_of({"config": config.model_dump()}, {}) for config in (here, there, other)]
    assert names[0] == names[1] != names[2]


# -- no tensor on another device ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pretended() -> dict[str, str | None]:
    """What went wrong in each scenario, or None. A process of its own, as torch learns a device for good."""
    script = Path(__file__).with_name("pretended.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [row["name"] for row in found] == [*SCENARIOS], done.stderr
    return {row["name"]: row["wrong"] for row in found}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_stage_runs_on_one_device_and_finds_the_numbers_of_the_cpu(
    name: str, pretended: dict[str, str | None]
) -> None:
    assert pretended[name] is None, pretended[name]


# -- steps of fixed shapes ---------------------------------------------------------------------------------------------


def test_shapes_are_few_and_never_too_small() -> None:
    assert [rounded(n, 8, 100) for n in (1, 8, 9, 16, 65, 100)] == [8, 8, 16, 16, 100, 100]
    assert len({rounded(n, 8, 512) for n in range(1, 513)}) == 7


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_kv_heads": 4},
        {"family": "mistral", "window": 5, "windowed": (True, False)},
        {"learned_positions": True},
    ],
    ids=["grouped", "all heads", "window", "learned positions"],
)
@torch.inference_mode()
def test_steps_of_fixed_shapes_equal_those_of_the_rows_in_use(
    changes: dict[str, Any], tiny_config: DecoderConfig
) -> None:
    """Rows enter, leave and enter again, and outgrow a number of slots; every hidden state is the same."""
    model = random_policy(replace(tiny_config, max_positions=300, **changes), 0, std=0.15)
    shapes = set()
    for B, T, steps, kept in ((3, 4, 3, [2, 1]), (9, 120, 12, [*range(10)]), (2, 7, 5, [0, 1, 5])):
        shapes |= _both_ways(model, B, T, steps, kept)
    assert {(8, 128), (16, 128), (16, 256)} <= shapes


def _both_ways(model: CausalLM, B: int, T: int, steps: int, kept: list[int]) -> set[tuple[int, int]]:
    """Two groups of rows one after the other, with and without fixed shapes; the shapes there were."""
    trunk, generator = model.model, torch.Generator().manual_seed(B)
    caches = [trunk.decoding(2 * B, 20) for _ in range(2)]
    caches[1].fixed = FixedSteps(2 * B, 20, ON_THE_CPU)
    found = set()

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randint(model.config.vocab_size, shape, generator=generator)

    for cache in caches:
        cache.reserve(2 * B + 20, 300)
    for rows in (B, B + 3):
        ids, lengths = drawn(rows, T), torch.randint(1, T + 1, (rows,), generator=generator)
        lengths[0] = T
        for cache in caches:
            trunk.prefill(cache, ids, lengths)
        for _ in range(steps):
            tokens = drawn(caches[0].num_rows)
            shape = rounded(len(tokens), FEWEST_ROWS, 10**6), rounded(caches[0].longest + 1, FEWEST_SLOTS, 10**6)
            found.add(shape)
            plain, fixed = (trunk.step(cache, tokens) for cache in caches)
            torch.testing.assert_close(fixed, plain, rtol=1e-5, atol=1e-5)
        order = [i for i in kept if i < caches[0].num_rows]
        for cache in caches:
            cache.keep(order)
    return found
