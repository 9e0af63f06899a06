"""The same numbers on a GPU as on the CPU: ``pytest -m gpu``. Not yet run on one."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import random_policy
from stages import SCENARIOS, Bench, trained_lstm
from torch import Tensor

from accord.config import OptimConfig
from accord.models.decoder import CausalLM
from accord.models.shape import DecoderConfig
from accord.rollout.engine import Engine, Sampling
from accord.text.batches import Example, collate
from accord.train.learner import Checkpoints, Learner
from accord.train.likelihood import completion_nll, logp_and_entropy
from accord.train.sft import sft_losses

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")]

EXAMPLES = [Example((5, 9, 3), (7, 8, 2)), Example((4,), (6, 6)), Example((11, 4, 8, 13, 2), (1, 3, 3, 7, 9, 0))]


@pytest.fixture(params=["grouped", "window"])
def config(request: pytest.FixtureRequest, tiny_config: DecoderConfig) -> DecoderConfig:
    window = {"family": "mistral", "window": 4, "windowed": (True, False)}
    return replace(tiny_config, max_positions=300, **(window if request.param == "window" else {}))


@pytest.fixture
def both(config: DecoderConfig) -> tuple[CausalLM, CausalLM]:
    """One policy here and there, in fp32."""
    model = random_policy(config, 0)
    return model, copy.deepcopy(model).to("cuda")


def test_logits_are_the_same(both: tuple[CausalLM, CausalLM]) -> None:
    ids_BT = torch.randint(both[0].config.vocab_size, (3, 280), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        here, there = (model(ids_BT) for model in both)
    assert there.device.type == "cuda"
    torch.testing.assert_close(there.cpu(), here, rtol=0.0, atol=1e-4)


def test_token_log_probabilities_and_gradients_are_the_same(both: tuple[CausalLM, CausalLM]) -> None:
    batch, found = collate(EXAMPLES, 1), []
    for model in both:
        logp_N, entropy_N = logp_and_entropy(model, batch, 0.7)
        assert logp_N.device.type == "cpu"
        (logp_N.sum() + 0.1 * entropy_N.sum() - completion_nll(model, batch).cpu()).backward()  # type: ignore[no-untyped-call]
        gradients = {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
        found.append((logp_N.detach(), entropy_N.detach(), gradients))
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_bf16_is_near(config: DecoderConfig) -> None:
    model = random_policy(config, 0, std=0.1).to("cuda")
    exact_N = logp_and_entropy(model, collate(EXAMPLES, 1), entropy=False)[0]
    model.model.compute_dtype = torch.bfloat16
    near_N = logp_and_entropy(model, collate(EXAMPLES, 1), entropy=False)[0]
    assert 0 < float((near_N - exact_N).abs().max()) < 0.1


def test_the_engine_draws_the_same_tokens(both: tuple[CausalLM, CausalLM]) -> None:
    prompts, often = [[5, 9, 3], [7], [11, 4, 8, 13, 2]], range(30)
    here, there = (Engine(m, often, max_rows=10).generate(prompts, Sampling(200, 8, 0.9), seed=3) for m in both)
    assert [s.completion for s in there] == [s.completion for s in here]
    logps = [torch.tensor([x for s in samples for x in s.behaviour_logp]) for samples in (here, there)]
    torch.testing.assert_close(logps[1], logps[0], rtol=0.0, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_a_recorded_step_equals_one_that_is_not(dtype: torch.dtype, config: DecoderConfig) -> None:
    """Three rows, of which one leaves; so many steps that the slots double."""
    model = random_policy(config, 0, std=0.15).to("cuda")
    trunk, generator = model.model, torch.Generator().manual_seed(0)
    trunk.compute_dtype = dtype
    ids_PT, length_P = torch.randint(300, (3, 100), generator=generator), torch.tensor([100, 40, 7])
    with trunk.packed():
        caches = [trunk.decoding(4, 300) for _ in range(2)]
        caches[0].fixed = None
        for cache in caches:
            trunk.prefill(cache, ids_PT.cuda(), length_P.cuda())
        for step in range(60):
            if step == 20:
                for cache in caches:
                    cache.keep([2, 1])
            token_B = torch.randint(300, (caches[0].num_rows,), generator=generator).cuda()
            plain, recorded = (trunk.step(cache, token_B) for cache in caches)
            torch.testing.assert_close(recorded, plain, rtol=0.0, atol=1e-4 if dtype == torch.float32 else 0.1)


@pytest.mark.parametrize("stages", [*SCENARIOS.values(), trained_lstm], ids=lambda f: f.__name__)
def test_every_stage_runs(stages, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    numbers: Tensor = torch.tensor(stages(Bench(tmp_path, "cuda")), dtype=torch.float64)
    assert len(numbers) > 10 and bool(numbers.isfinite().all())


def test_a_checkpoint_of_the_cpu_goes_on_on_a_gpu(both: tuple[CausalLM, CausalLM], tmp_path: Path) -> None:
    learners = [Learner({"policy": model}, {"policy": OptimConfig(lr=1e-3)}, 4) for model in both]
    for _ in range(2):
        learners[0].update(sft_losses(both[0], EXAMPLES, 1, 100))
    Checkpoints(tmp_path, "x").save(learners[0], {})
    assert Checkpoints(tmp_path, "x").restore(learners[1]) == {} and learners[1].step == 2
    for learner, model in zip(learners, both, strict=True):
        learner.update(sft_losses(model, EXAMPLES, 1, 100))
    there = {name: tensor.cpu() for name, tensor in both[1].state_dict().items()}
    torch.testing.assert_close(there, both[0].state_dict(), rtol=0.0, atol=1e-4)
