"""A local Ray cluster: the same samples whoever draws them, and a training that goes on whoever is killed."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import WriteRows
from safetensors.torch import load_file
from test_plan import ASKED, JUDGE, TINY

from accord import config as c
from accord.cluster.connect import connected
from accord.cluster.learners import carry_out_on_ray
from accord.cluster.workers import RayCopy
from accord.config import ScaleConfig, load_recipe
from accord.errors import DataError, ResourceError, UsageError
from accord.loop.layout import check_scale
from accord.loop.run import run
from accord.models.placement import PLAIN
from accord.rollout.engine import Sampling
from accord.rollout.published import EngineCopy, StaleWeights
from accord.train.launch import TrainingCall
from accord.train.rl import rl
from accord.train.sft import sft

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]
PROMPTS = [(5, 6, 7), (8,), (9, 10, 11, 12, 13), (14, 15), (16, 17, 18)]
FAST = c.OptimConfig(lr=1e-2, schedule="constant", warmup_ratio=0.0)


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    pytest.importorskip("ray")
    module = connected("auto")
    yield module
    module.shutdown()


@pytest.fixture(scope="module")
def three(ray: Any) -> Iterator[RayCopy]:
    copy = RayCopy(ray, 3, partial(EngineCopy, PLAIN))
    yield copy
    copy.close()


# -- rollout workers ---------------------------------------------------------------------------------------------------


def test_samples_do_not_depend_on_the_number_of_workers(three: RayCopy, chat_model: Path) -> None:
    own = EngineCopy(PLAIN)
    for copy in (own, three):
        copy.load(7, chat_model)
    one, many = (copy.draw(7, PROMPTS, Sampling(10, 2), 3, range(5)) for copy in (own, three))
    assert [(s.prompt_index, s.sample_index, s.completion, s.finish) for s in one] == [
        (s.prompt_index, s.sample_index, s.completion, s.finish) for s in many
    ]
    for ours, theirs in zip(many, one, strict=True):
        assert ours.behaviour_logp == pytest.approx(theirs.behaviour_logp, abs=1e-4)


def test_a_worker_refuses_another_version_than_it_holds(ray: Any, three: RayCopy, chat_model: Path) -> None:
    three.load(7, chat_model)
    with pytest.raises(StaleWeights, match="holds version 7, and was asked for 8"):
        three.draw(8, PROMPTS, Sampling(2), 3, range(5))
    three._version = 8  # the driver mistaken, or a worker that missed a publishing
    with pytest.raises(StaleWeights, match="holds version 7, and was asked for 8"):
        three.draw(8, PROMPTS, Sampling(2), 3, range(5))


def test_a_worker_killed_as_it_draws_is_replaced_and_the_samples_are_the_same(
    ray: Any, three: RayCopy, chat_model: Path
) -> None:
    three.load(9, chat_model)
    asked = (9, PROMPTS * 8, Sampling(300, 4), 3, range(40))
    before = three.draw(*asked)
    pid = ray.get(three.workers[1].pid.remote())
    killer = threading.Timer(0.3, os.kill, (pid, signal.SIGKILL))
    killer.start()
    assert three.draw(*asked) == before
    killer.join()
    assert ray.get(three.workers[1].pid.remote()) != pid


def test_what_a_worker_cannot_do_is_said(three: RayCopy, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such model folder"):
        three.load(1, tmp_path / "nowhere")


# -- the learner group -------------------------------------------------------------------------------------------------


def call_of(folder: Path, chat_model: Path, prompts: Path, **changes: Any) -> TrainingCall:
    settings = {
        "iterations": 3, "prompts_per_iteration": 4, "max_new_tokens": 6, "ppo_epochs": 2, "precision": "fp32",
        "rewards": [{"regex": "e"}], "actor": FAST, "critic": FAST, "checkpoint_every": 1, "eval_every": 100,
    }  # fmt: skip
    config = c.RlConfig(**settings | changes)
    return TrainingCall(rl, [config], {"model": chat_model, "data": prompts}, folder, 0, True)


@pytest.fixture
def prompts(write_rows: WriteRows) -> Path:
    return write_rows("prompts.jsonl", [{"prompt": p} for p in ("a", "b", "why", "what is it")])


def left(folder: Path) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """The metrics and the weights that a training left."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    own = ("seconds", "canary_gap", "weights_version")
    return [{k: v for k, v in row.items() if k not in own} for row in rows], load_file(
        folder / "model/model.safetensors"
    )


def assert_same(one: Path, other: Path) -> None:
    (rows, weights), (rows_2, weights_2) = left(one), left(other)
    assert rows == rows_2
    assert max(float((weights[k] - weights_2[k]).abs().max()) for k in weights) == 0.0


def test_three_iterations_are_those_of_one_process(ray: Any, chat_model: Path, prompts: Path, tmp_path: Path) -> None:
    said: list[str] = []
    call_of(tmp_path / "own", chat_model, prompts).here(lambda fraction, text: None)
    call = call_of(tmp_path / "ray", chat_model, prompts)
    result = carry_out_on_ray(call, ScaleConfig(ray="auto", rollout_workers=1), lambda at, text: said.append(text))
    assert result["model"] == str(tmp_path / "ray/model") and any(text.startswith("step 3/3") for text in said)
    assert_same(tmp_path / "own", tmp_path / "ray")
    assert json.loads((tmp_path / "ray/metrics.jsonl").read_text().splitlines()[-1])["weights_version"] == 4.0


def test_a_learner_group_that_is_killed_is_replaced(
    ray: Any, chat_model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = call_of(tmp_path / "whole", chat_model, prompts, iterations=8)
    whole.here(lambda fraction, text: None)
    said: list[str] = []

    def kill() -> None:
        steps = tmp_path / "killed/steps.json"
        while not any((tmp_path / "killed/checkpoints").glob("step_*")):
            time.sleep(0.01)
        os.kill(json.loads(steps.read_text())["pid"], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    call = call_of(tmp_path / "killed", chat_model, prompts, iterations=8)
    carry_out_on_ray(call, ScaleConfig(ray="auto"), lambda fraction, text: said.append(text))
    killer.join()
    assert sum("a new one goes on from the last checkpoint" in text for text in said) == 1
    assert_same(tmp_path / "whole", tmp_path / "killed")


def test_two_learners_refuse_with_one_sentence(
    ray: Any, chat_model: Path, write_rows: WriteRows, tmp_path: Path
) -> None:
    data = write_rows("demos.jsonl", [{"prompt": "a", "completion": "word " * 4}] * 8)
    config = c.SftConfig(max_tokens=2)
    call = TrainingCall(sft, [config], {"model": chat_model, "data": data}, tmp_path / "out", 0, True)
    with pytest.raises(DataError, match="all demonstrations are longer than 2 tokens"):
        carry_out_on_ray(call, ScaleConfig(ray="auto", ranks=2), lambda fraction, text: None)


# -- a whole run -------------------------------------------------------------------------------------------------------


def test_a_whole_run_on_a_cluster(ray: Any, chat_model: Path, write_rows: WriteRows, tmp_path: Path) -> None:
    asked = write_rows("asked.jsonl", [{"prompt": one} for one in ASKED[:-1]])
    given = [f"base.model={chat_model}", f"task.prompts={asked}", "task.judge_share=0", *TINY, JUDGE]
    scale = ["scale.ray=auto", "scale.rollout_workers=1"]
    run(load_recipe(None, [*given, *scale]), output_dir=tmp_path / "run")
    assert (tmp_path / "run/report.html").exists()
    assert all("weights_version" in line for line in (tmp_path / "run/rl/metrics.jsonl").read_text().splitlines())


def test_what_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch, ray: Any) -> None:
    with pytest.raises(ValueError, match="rollout_workers are of a Ray cluster"):
        ScaleConfig(rollout_workers=2)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="Ray is not installed"):
        check_scale(load_recipe(None, ["scale.ray=auto"]))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: (_ for _ in ()).throw(ConnectionError))
    with pytest.raises(ResourceError, match="no Ray cluster answers at nowhere:1"):
        connected("nowhere:1")
