"""The learner group: a training stage in processes that Ray places, lost and replaced as a whole."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

from accord.cluster.connect import START_S, connected, place
from accord.cluster.workers import RayCopy
from accord.config import RlConfig, ScaleConfig
from accord.errors import ResourceError
from accord.models.placement import Placement
from accord.progress import Log, Notice
from accord.rollout.published import Copy, EngineCopy
from accord.rollout.vllm import VllmCopy
from accord.text.tokenizer import load_tokenizer
from accord.train.launch import TrainingCall, carried_out, heard_by, result_of

GROUPS = 3  # in all: what ends three groups is no accident
LOOK_S, ANSWER_S = 0.2, 600.0  # between two looks at how far a group is; a look may wait for a long product


class LearnerRank:
    """One process of the group."""

    def __init__(self) -> None:
        self._said: list[Mapping[str, Any]] = []

    def address(self) -> tuple[str, int]:
        """Return this process's machine, and a port that is free there."""
        import ray

        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def pid(self) -> int:
        return os.getpid()

    def carry_out(self, call: dict[str, Any], names: Mapping[str, str], scale: Mapping[str, Any]) -> dict[str, Any]:
        """Carry out a call as one of several processes, which find each other by environment, as torchrun's do."""
        os.environ.update(names)
        rank, wanted = int(names["RANK"]), TrainingCall.of(call)
        more = {"copy": _workers(wanted, ScaleConfig(**scale))} if _draws(wanted, scale) and rank == 0 else {}
        return carried_out(wanted, rank, self._said.append, **more)

    def heard(self) -> list[Mapping[str, Any]]:
        """Return what has been said since this was asked last."""
        said, self._said[:] = list(self._said), []
        return said


def _draws(call: TrainingCall, scale: Mapping[str, Any]) -> bool:
    return scale["rollout_workers"] > 0 and "copy" in signature(call.train).parameters


def _workers(call: TrainingCall, scale: ScaleConfig) -> Copy:
    import ray

    config, model = call.configs[0], Path(call.inputs["model"])
    assert isinstance(config, RlConfig)
    placement = Placement.of(config)
    vllm = config.rollout.use == "vllm"
    make = partial(VllmCopy, load_tokenizer(model).stop_ids, placement) if vllm else partial(EngineCopy, placement)
    return RayCopy(ray, scale.rollout_workers, make)


def carry_out_on_ray(call: TrainingCall, scale: ScaleConfig, log: Log) -> Any:
    """Carry a stage out on a cluster, and return its result as JSON; a new group goes on where one was lost.

    Raises:
        AccordError: What the processes refused.
        ResourceError: Several groups were lost.
    """
    ray = connected(scale.ray)
    problem = ""
    for _ in range(GROUPS):
        group = [ray.remote(max_concurrency=2, **place(ray))(LearnerRank).remote() for _ in range(scale.ranks)]
        try:
            return result_of(_together(ray, group, call, scale, log))
        except ray.exceptions.RayError as error:
            problem = str(error).strip().splitlines()[-1]
            call = replace(call, resume=True)
            log(0.0, Notice(f"the learner group was lost ({problem}); a new one goes on from the last checkpoint"))
        finally:
            for one in group:
                ray.kill(one, no_restart=True)
    raise ResourceError(
        f"{GROUPS} learner groups were lost",
        where=str(call.output_dir),
        why=problem,
        hint="the same command again goes on from the last checkpoint",
    )


def _together(ray: Any, group: list[Any], call: TrainingCall, scale: ScaleConfig, log: Log) -> dict[str, Any]:
    """Have a group carry a call out; the answer of the first that refuses it, or of its first process."""
    host, port = ray.get(group[0].address.remote(), timeout=START_S)
    shared = {"MASTER_ADDR": host, "MASTER_PORT": str(port), "WORLD_SIZE": str(len(group)), "LOCAL_RANK": "0"}
    raw, asked = call.to_json(), scale.model_dump()
    refs = [one.carry_out.remote(raw, {**shared, "RANK": str(rank)}, asked) for rank, one in enumerate(group)]
    waiting = list(refs)
    while True:
        done, waiting = ray.wait(waiting, timeout=LOOK_S)
        for line in ray.get(group[0].heard.remote(), timeout=ANSWER_S):
            heard_by(log, line)
        for ref in done:
            answer: dict[str, Any] = ray.get(ref)
            if "error" in answer or ref == refs[0]:
                return answer
