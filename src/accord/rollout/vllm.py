"""vLLM as a copy of the policy: a process of its own, in an environment of its own, that draws on token ids.

Weights reach it as a model folder, in place; what its reload leaves behind is mended there
(`accord.rollout.vllm_process`). Its draws are its own: the same seed gives other completions than our engine's, and on
a GPU the same ones only as far as vLLM's kernels are deterministic.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accord.errors import ResourceError, UsageError
from accord.models.folder import shape_of
from accord.models.placement import Placement
from accord.rollout.engine import Sample, Sampling
from accord.rollout.published import Patience, PublishedGenerator, require_version, stream_seeds
from accord.rollout.vllm_env import vllm_environment
from accord.text.tokenizer import load_tokenizer

PROCESS = Path(__file__).with_name("vllm_process.py")
LAST_CHARACTERS = 600  # of what a process wrote that is gone
AFTER_A_LOAD = ("prefixes", "head")
# vLLM asks the network for nothing, tells nobody, and runs in the one process that is ended.
QUIETLY = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
CPU_CACHE_GB = 1  # for keys and values
GPU_SHARE = 0.3  # of a GPU's memory, beside a learner; no run on a GPU has been made


class LostProcess(ResourceError):
    """The process is gone, or was ended as it did not answer: what it was asked may be asked of another."""


class VllmProcess:
    """The process and its pipes: one request at a time, each with a deadline."""

    def __init__(self) -> None:
        environment = vllm_environment()
        if not environment.exists:
            raise ResourceError(
                "there is no environment with vLLM", where=str(environment.folder), hint="accord doctor --vllm --make"
            )
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - it lives as long as the process
        variables = {"VLLM_CPU_KVCACHE_SPACE": str(CPU_CACHE_GB), **os.environ, **QUIETLY}
        self._process = subprocess.Popen(
            [str(environment.python), "-I", str(PROCESS)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True, env=variables,
        )  # fmt: skip
        self._answers: queue.Queue[str] = queue.Queue()
        self._patience = Patience()
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")

    def ask(self, do: str, **asked: Any) -> Any:
        """Return the answer to a request.

        Raises:
            LostProcess: The process is gone, or missed its deadline and was ended.
            ResourceError: It says what is wrong.
        """
        assert self._process.stdin is not None
        deadline = self._patience.limit(do)
        began = time.monotonic()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"do": do, **asked}) + "\n")
            self._process.stdin.flush()
        try:
            line = self._answers.get(timeout=deadline)
        except queue.Empty:
            self.end()
            raise LostProcess(f"vLLM did not answer {do!r} in {deadline:.0f} s, and was ended") from None
        if not line:
            raise LostProcess("the process of vLLM has ended", why=self._last())
        answer = json.loads(line)
        if "error" in answer:
            raise ResourceError(f"vLLM could not {do}", why=answer["error"][-LAST_CHARACTERS:])
        self._patience.took(do, time.monotonic() - began)
        return answer["ok"]

    def _last(self) -> str:
        self._process.wait()
        self._said.seek(0)
        return self._said.read()[-LAST_CHARACTERS:].strip()

    def end(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):  # what was not written any more
                assert pipe is not None
                pipe.close()
        self._said.close()


class VllmCopy:
    """A copy of the policy in a vLLM process, which is started with the first weights and again where it was lost.

    ``logprobs`` and ``mends`` are what the tests take away, to see that the canary misses them.
    """

    def __init__(
        self,
        stop_ids: Sequence[int],
        placement: Placement,
        *,
        logprobs: str = "processed_logprobs",
        mends: Sequence[str] = AFTER_A_LOAD,
    ) -> None:
        self._stop_ids, self._placement = sorted(stop_ids), placement
        self._logprobs, self._mends = logprobs, list(mends)
        self._process: VllmProcess | None = None
        self._version, self._folder = -1, Path()

    @property
    def pid(self) -> int | None:
        """The process that runs, if one does."""
        return None if self._process is None else self._process.pid

    def load(self, version: int, folder: Path) -> None:
        self._version, self._folder = version, folder.absolute()
        if self._process is not None:
            try:
                self._process.ask("load", folder=str(self._folder), mends=self._mends)
                return
            except LostProcess:
                self.close()
        self._start()

    def _start(self) -> None:
        """Start a process; what it loads first are the weights that it is to hold, and there is nothing to mend."""
        dtype = str(self._placement.dtype).removeprefix("torch.")
        settings = {
            "dtype": dtype, "max_model_len": shape_of(self._folder).max_positions, "logprobs_mode": self._logprobs,
            "enforce_eager": self._placement.device.type == "cpu", "enable_prefix_caching": True, "seed": 0,
        }  # fmt: skip
        if self._placement.device.type == "cuda":
            settings["gpu_memory_utilization"] = GPU_SHARE
        self._process = VllmProcess()
        try:
            self._process.ask("start", folder=str(self._folder), settings=settings)
        except ResourceError:
            self.close()
            raise

    def draw(
        self, version: int, prompts: Sequence[tuple[int, ...]], sampling: Sampling, seed: int, places: Sequence[int]
    ) -> list[Sample]:
        require_version(self._version, version)
        each = [ids for ids in prompts for _ in range(sampling.samples_per_prompt)]
        shared = {
            "temperature": sampling.temperature, "max_tokens": sampling.max_new_tokens,
            "top_k": sampling.top_k or -1, "top_p": sampling.top_p,
            "stop_token_ids": sorted({*self._stop_ids, *sampling.stop_ids}),
        }  # fmt: skip
        seeds = stream_seeds(seed, places, sampling.samples_per_prompt)
        answer = self._again("draw", prompts=each, seeds=seeds, sampling=shared)
        names = [(place, k) for place in places for k in range(sampling.samples_per_prompt)]
        return [
            Sample(place, k, ids, tuple(drawn), tuple(logps), finish)
            for (place, k), ids, (drawn, logps, finish) in zip(names, each, answer["samples"], strict=True)
        ]

    def _again(self, do: str, **asked: Any) -> Any:
        """Ask, and where the process is lost once more of a new one: the same seeds draw the same samples."""
        if self._process is not None:
            try:
                return self._process.ask(do, **asked)
            except LostProcess:
                self.close()
        self._start()
        assert self._process is not None
        return self._process.ask(do, **asked)

    def close(self) -> None:
        if self._process is not None:
            self._process.end()
            self._process = None


def vllm_generator(policy: Path, placement: Placement) -> PublishedGenerator:
    """Return vLLM over the policy in a folder: what ``sample.generator=vllm`` opens.

    Raises UsageError where vLLM cannot read the family, ResourceError where it is not there.
    """
    tokenizer, shape = load_tokenizer(policy), shape_of(policy)
    if not hasattr(shape, "family"):
        raise UsageError("vLLM reads the families that the decoder reads", where=str(policy))
    generator = PublishedGenerator(VllmCopy(tokenizer.stop_ids, placement), tokenizer, shape.max_positions)
    generator.copy.load(0, policy)
    generator.version = 0
    return generator
