"""Accord beside its peers on one GPU, with nothing but an installed Python: random weights in two Llama shapes.

    python3 -m benchmarks.gpu [--device cuda|cpu] [--tiny] [--runs N] [ROW ...]

Rows are ``sampling-135M``, ``sampling-1.1B``, ``ppo-135M``, ``update-1.1B`` and ``reload-135M``.
Prints one line of JSON a row, with the
keys of `benchmarks/results.json`; a peer that is not installed leaves its side null. ``--device cpu --tiny`` runs the
same code on a shape of nothing, to see that it works. Both sides draw or train in bf16 on a GPU, random weights, no
token ends a completion; medians of the runs after one that is not timed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from accord.algo.table import POLICY_ALGORITHMS
from accord.config import OptimConfig, RlConfig
from accord.models.decoder import CausalLM, init_weights
from accord.models.folder import load_policy, load_scalar, save_policy, save_scalar
from accord.models.placement import Placement
from accord.models.shape import DecoderConfig
from accord.rollout.engine import Engine, Sampling
from accord.rollout.generator import decoded
from accord.rollout.published import EngineCopy, PublishedGenerator
from accord.scoring.reward_model import RewardModel
from accord.text.batches import Example, collate
from accord.text.tokenizer import train_tokenizer
from accord.train.controllers import Controllers
from accord.train.learner import Learner
from accord.train.likelihood import logp_and_entropy
from accord.train.policy_models import PolicyModels
from accord.train.policy_optimizer import PolicyOptimizer
from accord.train.rollouts import score_samples
from accord.train.sft import sft_losses

SHAPES = {
    "135M": DecoderConfig(49152, 576, 1536, 30, 9, 3, 64, 2048),
    "1.1B": DecoderConfig(32000, 2048, 5632, 22, 32, 4, 64, 2048, tied=False),
    "tiny": DecoderConfig(512, 32, 48, 2, 4, 2, 8, 256),
}
STILL = OptimConfig(lr=1e-9, schedule="constant", warmup_ratio=0.0)  # the weights stand
#: bf16 products a second without sparsity, in 10^12 operations, as the maker states them.
PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0}


@dataclass(frozen=True)
class Setting:
    """What a row runs on, and how much of it."""

    model: str
    folder: Path
    placement: Placement
    runs: int
    tiny: bool

    @property
    def rows(self) -> int:
        return 4 if self.tiny else 64

    @property
    def tokens(self) -> int:
        """Of a prompt, and of a completion."""
        return 16 if self.tiny else 128

    @property
    def prompts(self) -> list[list[int]]:
        generator = torch.Generator().manual_seed(0)
        return torch.randint(10, 300, (self.rows, self.tokens), generator=generator).tolist()

    def per_second(self, run: Callable[[], float]) -> float:
        """Items a second, the median of the runs."""
        run()
        return statistics.median(self._rate(run) for _ in range(self.runs))

    def _rate(self, run: Callable[[], float]) -> float:
        self._wait()
        started = time.perf_counter()
        items = run()
        self._wait()
        return items / (time.perf_counter() - started)

    def _wait(self) -> None:
        if self.placement.device.type == "cuda":
            torch.cuda.synchronize()


def make_model(folder: Path, shape: DecoderConfig) -> None:
    """A policy with random weights, and a reward model on the same ones."""
    words = train_tokenizer([f"{n} apples and {n * n} pears" for n in range(500)], 320)
    policy = CausalLM(shape)
    init_weights(policy, 0)
    save_policy(folder / "policy", policy, words)
    del policy
    save_scalar(folder / "reward", load_scalar(folder / "policy", head_seed=0)[0], words)


# -- rows: our rate, the peer's rate or None, the peer, the unit, and what else there is to tell -----------------------

Found = tuple[float, float | None, str, str, dict[str, Any]]


def sampling(setting: Setting) -> Found:
    """Completions of full length for 64 prompts at once, against `transformers.generate`."""
    return _draw(setting), _generate(setting), "transformers", "tokens/s", {}


def _draw(setting: Setting) -> float:
    policy, _ = load_policy(setting.folder / "policy", setting.placement)
    engine, prompts = Engine(policy.eval(), (), max_rows=setting.rows), setting.prompts

    def ours() -> float:
        return float(sum(len(s.completion) for s in engine.generate(prompts, Sampling(setting.tokens), seed=0)))

    return setting.per_second(ours)


def _generate(setting: Setting) -> float | None:
    try:
        from transformers import AutoModelForCausalLM
    except ImportError:
        return None
    device, dtype = setting.placement.device, setting.placement.dtype
    peer = AutoModelForCausalLM.from_pretrained(setting.folder / "policy", dtype=dtype).to(device).eval()
    ids = torch.tensor(setting.prompts, device=device)
    settings = {"do_sample": True, "top_k": 0, "max_new_tokens": setting.tokens, "min_new_tokens": setting.tokens}

    @torch.inference_mode()
    def theirs() -> float:
        out = peer.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **settings)
        return float(out[:, ids.shape[1] :].numel())

    return setting.per_second(theirs)


def ppo(setting: Setting) -> Found:
    """An iteration of 64 episodes and four epochs of one minibatch, against TRL's PPO trainer."""
    return _iterate(setting), _trl_ppo(setting), "trl", "episodes/s", {}


def _iterate(setting: Setting) -> float:
    place, folder = setting.placement, setting.folder
    config = RlConfig(
        precision=place.precision, prompts_per_iteration=setting.rows, max_new_tokens=setting.tokens,
        missing_eos_penalty=0.0, micro_batch_tokens=setting.rows * 2 * setting.tokens, actor=STILL, critic=STILL,
    )  # fmt: skip
    policy, words = load_policy(folder / "policy", place)
    reference = load_policy(folder / "policy", place)[0].eval().requires_grad_(False)
    critic = load_scalar(folder / "reward", place)[0]
    models = PolicyModels(policy, critic, reference, RewardModel.load(folder / "reward", place), words)
    learner = Learner(models.trained(), {"actor": STILL, "critic": STILL}, 10**6)
    engine, controllers = Engine(policy, (), max_rows=setting.rows), Controllers.of(config, float(setting.tokens))
    texts = [words.decode(ids) for ids in setting.prompts]
    optimizer = PolicyOptimizer(config, POLICY_ALGORITHMS["ppo"], models, learner, controllers)

    def ours() -> float:
        samples = engine.generate(setting.prompts, Sampling(setting.tokens), seed=learner.step)
        optimizer.improve(score_samples(models.scorer, decoded(words, texts, samples)), learner.step)
        return float(setting.rows)

    return setting.per_second(ours)


def _trl_ppo(setting: Setting) -> float | None:
    """TRL's last PPO trainer (1.12), where such a TRL is installed: the mean rate of the iterations after the first."""
    try:
        from datasets import Dataset
        from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
        from trl.experimental.ppo import PPOConfig, PPOTrainer
    except ImportError:
        return None
    ends: list[float] = []

    class Timed(PPOTrainer):  # type: ignore[misc]
        def log(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

    on_cpu, iterations = setting.placement.device.type == "cpu", setting.runs + 1
    words = AutoTokenizer.from_pretrained(setting.folder / "policy")
    policy, reference = (AutoModelForCausalLM.from_pretrained(setting.folder / "policy") for _ in range(2))
    value, scorer = (AutoModelForSequenceClassification.from_pretrained(setting.folder / "reward") for _ in range(2))
    data = Dataset.from_list([{"input_ids": ids} for ids in setting.prompts * iterations])
    with TemporaryDirectory() as folder:
        args = PPOConfig(
            output_dir=folder, per_device_train_batch_size=setting.rows, gradient_accumulation_steps=1,
            num_mini_batches=1, num_ppo_epochs=4, total_episodes=setting.rows * iterations,
            response_length=setting.tokens, local_rollout_forward_batch_size=setting.rows, learning_rate=1e-9,
            num_sample_generations=0, report_to="none", save_strategy="no", logging_steps=1, use_cpu=on_cpu,
            bf16=setting.placement.dtype == torch.bfloat16, gradient_checkpointing=False,
        )  # fmt: skip
        Timed(args=args, processing_class=words, model=policy, ref_model=reference, reward_model=scorer,
              value_model=value, train_dataset=data, eval_dataset=data).train()  # fmt: skip
    return setting.rows * (len(ends) - 1) / (ends[-1] - ends[0])


def update(setting: Setting) -> Found:
    """A step on rows of 512 tokens, every token predicted: the share of the GPU's peak that its products reach."""
    policy, words = load_policy(setting.folder / "policy", setting.placement)
    learner = Learner({"policy": policy.train()}, {"policy": STILL}, 10**6)
    length, rows = 4 * setting.tokens, setting.rows // 2
    ids = torch.randint(10, 300, (rows, length), generator=torch.Generator().manual_seed(0)).tolist()
    examples = [Example(tuple(row[:1]), tuple(row[1:])) for row in ids]

    def ours() -> float:
        learner.update(sft_losses(policy, examples, words.pad_id, 16 * length))
        return float(rows * (length - 1))

    rate = setting.per_second(ours)
    matrices = sum(p.numel() for name, p in policy.named_parameters() if p.dim() == 2 and "embed" not in name)
    matrices += policy.head_weight_VD.numel() if policy.config.tied else 0
    tflops = 6e-12 * matrices * rate
    name = setting.placement.facts()["device"]
    peak = next((peak for key, peak in PEAK_TFLOPS.items() if key in name), None)
    return rate, None, "", "tokens/s", {"tflops": round(tflops, 1), "share_of_peak": peak and round(tflops / peak, 3)}


@torch.no_grad()
def reload(setting: Setting) -> Found:
    """How far a copy's log-probabilities are from the policy's own, after its weights were replaced by others.

    The canary of a handing-over: with recorded graphs and bf16 as they are on a GPU. ``first`` is before the reload.
    """
    shape = load_policy(setting.folder / "policy", setting.placement)[0].config
    other, words = CausalLM(shape), load_policy(setting.folder / "policy")[1]
    init_weights(other, 1)
    save_policy(setting.folder / "other", other, words)
    generator = PublishedGenerator(EngineCopy(setting.placement), words, shape.max_positions)
    gaps = []
    for version, name in enumerate(("policy", "other")):
        canary = generator.publish(version, setting.folder / name, 0.7)
        policy = load_policy(setting.folder / name, setting.placement)[0].eval()
        batch = collate([Example(one.prompt, one.completion) for one in canary], words.pad_id)
        own_N = logp_and_entropy(policy, batch, 0.7, entropy=False)[0]
        said_N = torch.tensor([logp for one in canary for logp in one.behaviour_logp])
        gaps.append(float((own_N - said_N).abs().mean()))
    return gaps[1], None, "", "nats a token", {"first": gaps[0]}


ROWS: dict[str, tuple[Callable[[Setting], Found], str, float]] = {
    "sampling-135M": (sampling, "135M", 8.0),
    "sampling-1.1B": (sampling, "1.1B", 8.0),
    "ppo-135M": (ppo, "135M", 4.0),
    "update-1.1B": (update, "1.1B", 0.4),
    "reload-135M": (reload, "135M", 0.05),
}


def line(name: str, setting: Setting) -> dict[str, Any]:
    """One row, with the keys of the results."""
    work, _, goal = ROWS[name]
    ours, theirs, peer, unit, more = work(setting)
    version = metadata.version(peer) if theirs is not None else ""
    ratio = round(ours / theirs, 2) if theirs is not None else more.get("share_of_peak")
    return {
        "name": name, "work": work.__name__, "model": setting.model,
        **setting.placement.facts(), "peer": peer, "peer_version": version,
        "ours": round(ours, 2) if ours > 1 else ours,
        "theirs": theirs and round(theirs, 2), "ratio": ratio, "unit": unit, "goal": goal, **more,
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Run the rows named, by default all, and print a line of JSON for each."""
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.gpu", description=__doc__.split("\n\n")[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="a model of nothing, a dry run")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args(argv)
    if unknown := set(options.rows) - set(ROWS):
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    for name in options.rows or ROWS:
        model = "tiny" if options.tiny else ROWS[name][1]
        with TemporaryDirectory() as folder:
            make_model(Path(folder), SHAPES[model])
            setting = Setting(model, Path(folder), Placement("auto", options.device), options.runs, options.tiny)
            print(json.dumps(line(name, setting)), flush=True)


if __name__ == "__main__":
    main()
