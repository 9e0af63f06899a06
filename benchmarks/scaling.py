"""GRPO by one process and by two, ours beside TRL's: seconds an iteration, and what the second process brings.

    python -m benchmarks.scaling [--tiny] [--iterations N] [ours|trl ...]

Ours is started by torchrun, TRL's trainer by ``accelerate launch``, each process with one thread. Both draw and
train on the same shape with random weights, as many prompts, samples and tokens, in fp32. Prints a line of JSON a side:
medians of the iterations after the first, and the efficiency ``seconds of one / (2 * seconds of two)``: 1 where two
processes are twice as fast. Two processes on two cores that others use too say little.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

PROMPTS, GROUP = 16, 4
STARTS = [f"{n} apples and" for n in range(200)]


def prepare(folder: Path, tiny: bool) -> None:
    """Write the model and the prompts that both sides read."""
    from accord.models.decoder import CausalLM, init_weights
    from accord.models.folder import save_policy
    from accord.models.shape import DecoderConfig
    from accord.text.tokenizer import train_tokenizer

    tokenizer = train_tokenizer([f"{n} apples and {n * n} pears" for n in range(500)], 512)
    shape = DecoderConfig(512, 32, 48, 2, 4, 2, 8, 256) if tiny else DecoderConfig(8192, 256, 688, 6, 8, 4, 32, 256)
    policy = CausalLM(shape)
    init_weights(policy, 0)
    save_policy(folder / "model", policy, tokenizer)
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": start}) + "\n" for start in STARTS))


def ours(folder: Path, iterations: int, new: int) -> list[float]:
    """Return the seconds of each iteration."""
    from accord.config import OptimConfig, RlConfig
    from accord.train.rl import rl

    still = OptimConfig(lr=1e-6, schedule="constant", warmup_ratio=0.0)
    config = RlConfig(
        algorithm="grpo", iterations=iterations, prompts_per_iteration=PROMPTS, samples_per_prompt=GROUP,
        max_new_tokens=new, ppo_epochs=1, rewards=[{"regex": "a"}], precision="fp32", actor=still,
        eval_every=10**6, checkpoint_every=10**6,
    )  # fmt: skip
    world = os.environ["WORLD_SIZE"]
    rl(config, model=folder / "model", data=folder / "prompts.jsonl", output_dir=folder / f"ours-{world}")
    rows = [json.loads(line) for line in (folder / f"ours-{world}/metrics.jsonl").read_text().splitlines()]
    ends = [0.0, *(row["seconds"] for row in rows)]
    return [after - before for before, after in itertools.pairwise(ends)]


def trl(folder: Path, iterations: int, new: int) -> list[float]:
    """Return the seconds of each iteration."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    ends = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.monotonic())

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.monotonic())

    def reward(completions: Sequence[str], **_: Any) -> list[float]:
        return [float("a" in one) for one in completions]

    policy = AutoModelForCausalLM.from_pretrained(folder / "model")
    policy.generation_config.eos_token_id = None
    world = int(os.environ.get("WORLD_SIZE", "1"))
    config = GRPOConfig(
        output_dir=str(folder / f"trl-{world}"), per_device_train_batch_size=PROMPTS * GROUP // world,
        num_generations=GROUP, max_completion_length=new, beta=0.05, learning_rate=1e-6, max_steps=iterations,
        use_cpu=True, bf16=False, report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True,
        gradient_checkpointing=False,
    )  # fmt: skip
    GRPOTrainer(
        policy, reward, config, Dataset.from_list([{"prompt": start} for start in STARTS]),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"), callbacks=[Clock()],
    ).train()  # fmt: skip
    return [after - before for before, after in itertools.pairwise(ends)]


SIDES: Mapping[str, Callable[[Path, int, int], list[float]]] = {"ours": ours, "trl": trl}


def launched(side: str, world: int, folder: Path, iterations: int, new: int) -> float:
    """Start one side in so many processes; the median seconds of an iteration after the first."""
    rest = ["-m", "benchmarks.scaling", "--one", side, "--folder", str(folder), "--iterations", str(iterations)]
    rest += ["--new", str(new)]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    accelerate = ["-m", "accelerate.commands.launch", "--cpu", "--num_machines=1", "--mixed_precision=no"]
    accelerate += ["--dynamo_backend=no", f"--num_processes={world}", "--num_cpu_threads_per_process=1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    argv = [sys.executable, *(torchrun if side == "ours" else accelerate), *rest]
    said = subprocess.run(argv, capture_output=True, text=True, env=environment, check=False)
    found = [line for line in said.stdout.splitlines() if line.startswith("SECONDS ")]
    if not found:
        raise SystemExit(f"{side} by {world} processes failed:\n{said.stderr[-2000:]}")
    seconds: list[float] = json.loads(found[-1].removeprefix("SECONDS "))
    return statistics.median(seconds[1:])


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the sides that are asked for, or be one process of one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sides", nargs="*", choices=[[], *SIDES], default=[])
    parser.add_argument("--tiny", action="store_true", help="a shape of nothing, to see that it works")
    parser.add_argument("--iterations", type=int, default=6)
    parser.add_argument("--new", type=int, default=32, help="tokens of a completion")
    parser.add_argument("--one", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.one:
        seconds = SIDES[given.one](given.folder, given.iterations, given.new)
        if os.environ.get("RANK", "0") == "0":
            print("SECONDS " + json.dumps(seconds), flush=True)
        return
    with tempfile.TemporaryDirectory() as made:
        prepare(Path(made), given.tiny)
        for side in given.sides or SIDES:
            one, two = (launched(side, world, Path(made), given.iterations, given.new) for world in (1, 2))
            row = {"name": "scaling-grpo", "side": side, "tiny": given.tiny, "seconds_of_one": round(one, 3)}
            row |= {"seconds_of_two": round(two, 3), "efficiency": round(one / (2 * two), 3)}
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
