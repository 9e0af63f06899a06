"""Our side of the agreement rows: the sums of 20 steps, or of one PPO update, and the inputs for the peer.

    python -m benchmarks.agreement sft|reward|dpo|ppo MODEL f32|bf16 FOLDER

Writes what the peer needs into FOLDER and prints ``RESULT {"losses": [...], "norms": [...]}``. The peer's half is in
`peer_losses.py`, `peer_update.py` and `peer_group.py`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from accord.algo.table import POLICY_ALGORITHMS
from accord.config import OptimConfig, RewardConfig
from accord.models.folder import load_policy, load_scalar, save_scalar
from accord.rollout.engine import Engine, Sample, Sampling
from accord.rollout.generator import Generated, decoded
from accord.text.batches import Example
from accord.text.tokenizer import Tokenizer, load_tokenizer
from accord.train.controllers import Controllers
from accord.train.learner import Learner
from accord.train.policy_models import PolicyModels
from accord.train.policy_optimizer import PolicyOptimizer
from accord.train.preferences import Tally, preference_losses
from accord.train.reward import group_losses
from accord.train.rollouts import measure_rollout, score_samples
from accord.train.sft import sft_losses
from benchmarks.ours import (
    NEVER,
    NEW,
    PLACEMENTS,
    PROMPT,
    ROWS,
    dpo_objective,
    group_config,
    judged_pair,
    make_models,
    pair,
    ppo_config,
    ppo_prompts,
    slices,
    text_ids,
)

STEPS = 20
LENGTH = PROMPT + NEW
# Both sides: AdamW, constant rate, no warm-up, no weight decay. The peer's PPO does not clip gradients.
ADAM = {"schedule": "constant", "warmup_ratio": 0.0, "weight_decay": 0.0}
STEP = OptimConfig(lr=1e-3, betas=(0.9, 0.95), eps=1e-8, clip_norm=1.0, **ADAM)
DPO_STEP = OptimConfig(lr=1e-4, betas=(0.9, 0.95), eps=1e-8, clip_norm=1.0, **ADAM)
UPDATE = OptimConfig(lr=1e-4, betas=(0.9, 0.999), eps=1e-8, clip_norm=1e9, **ADAM)


def sft(model: Path, precision: str, folder: Path) -> dict[str, list[float]]:
    """Losses of 20 steps on 32 rows each."""
    policy, words = load_policy(model, PLACEMENTS[precision])
    rows = slices(text_ids(model, words), LENGTH)
    steps = [[next(rows) for _ in range(ROWS)] for _ in range(STEPS)]
    (folder / "steps.json").write_text(json.dumps(steps))
    learner = Learner({"policy": policy}, {"policy": STEP}, STEPS)
    policy.train()
    losses = []
    for batch in steps:
        examples = [Example(tuple(ids[:1]), tuple(ids[1:])) for ids in batch]
        losses.append(learner.update(sft_losses(policy, examples, words.pad_id, ROWS * LENGTH))["loss"])
    return {"losses": losses, "norms": []}


def reward(model: Path, precision: str, folder: Path) -> dict[str, list[float]]:
    """Losses of 20 steps on 32 pairs each, from a head that the peer reads too."""
    first, words, _ = load_scalar(model, head_seed=0)
    save_scalar(folder / "model", first, words)
    scorer, _, _ = load_scalar(folder / "model", PLACEMENTS[precision])
    rows = slices(text_ids(model, words), LENGTH)
    steps = [[(next(rows), next(rows)) for _ in range(ROWS)] for _ in range(STEPS)]
    (folder / "steps.json").write_text(json.dumps(steps))
    config = RewardConfig(center_coef=0.0, dropout=0.0, groups_per_step=ROWS)
    learner = Learner({"reward": scorer}, {"reward": STEP}, STEPS)
    scorer.train()
    losses = []
    for batch in steps:
        stats = {"accuracy": 0.0, "margin": 0.0}
        pairs = [pair(*both) for both in batch]
        losses.append(learner.update(group_losses(config, scorer, pairs, words.pad_id, stats))["loss"])
    return {"losses": losses, "norms": []}


def dpo(model: Path, precision: str, folder: Path) -> dict[str, list[float]]:
    """Losses of 20 steps on 32 pairs each."""
    objective = dpo_objective(model, precision)
    rows = slices(text_ids(model, load_tokenizer(model)), PROMPT + 2 * NEW)
    steps = [[next(rows) for _ in range(ROWS)] for _ in range(STEPS)]
    (folder / "steps.json").write_text(json.dumps([[_three(ids) for ids in step] for step in steps]))
    learner = Learner({"policy": objective.policy}, {"policy": DPO_STEP}, STEPS)
    losses = []
    for step in steps:
        groups = [judged_pair(ids) for ids in step]
        losses.append(learner.update(preference_losses(objective, groups, Tally()))["loss"])
    return {"losses": losses, "norms": []}


def _three(ids: list[int]) -> tuple[list[int], list[int], list[int]]:
    """Prompt, chosen, rejected."""
    return ids[:PROMPT], ids[PROMPT : PROMPT + NEW], ids[PROMPT + NEW :]


class Recorder(Learner):
    """A learner that remembers what each update said."""

    def update(self, losses: Iterable[Tensor]) -> dict[str, float]:
        stats = super().update(losses)
        self.said = [*getattr(self, "said", []), stats]
        return stats


@dataclass
class FixedScores:
    """A scorer that gives what it was told, so that both sides score alike."""

    score_B: Tensor

    def score(self, pairs: Sequence[tuple[str, str]]) -> Tensor:
        return self.score_B


def ppo(model: Path, precision: str, folder: Path) -> dict[str, list[float]]:
    """Losses and gradient norms of the four epochs on one rollout. The reference is another model: KL counts."""
    config = ppo_config(precision, UPDATE)
    models = make_models(model, model.with_name("tiny-eos"), folder / "model", precision)
    words = models.tokenizer
    candidates = ppo_prompts(model, words)
    prompts = [next(candidates) for _ in range(ROWS)]
    samples = _samples_without_padding(Engine(models.policy, NEVER, max_rows=ROWS), prompts, models.tokenizer)
    score_B = torch.randn(ROWS, generator=torch.Generator().manual_seed(0))
    models.scorer = FixedScores(score_B)
    ids_BT = torch.tensor([s.prompt + s.completion for s in samples])
    save_file({"ids_BT": ids_BT, "score_B": score_B}, folder / "rollout.safetensors")
    modules = models.trained()
    learner = Recorder(modules, {"actor": UPDATE, "critic": UPDATE}, config.ppo_epochs)
    optimizer = PolicyOptimizer(config, POLICY_ALGORITHMS["ppo"], models, learner, Controllers.of(config, float(NEW)))
    _update(optimizer, decoded(words, prompts, samples), score_B)
    return {
        "losses": [s["loss"] for s in learner.said],
        "norms": [s[f"{name}_grad_norm"] for s in learner.said for name in modules],
    }


def _update(optimizer: PolicyOptimizer, samples: Sequence[Generated], score_B: Tensor) -> None:
    """All updates on one rollout, whose scores are given."""
    scored = score_samples(optimizer.models.scorer, samples)
    rollout = measure_rollout(optimizer.config, optimizer.models, scored, score_B)
    optimizer.update(optimizer.advantages(rollout, optimizer.rewards(rollout)), seed=0)


def group(algorithm: str, epochs: int) -> Callable[[Path, str, Path], dict[str, list[float]]]:
    """Losses (of GRPO) and gradient norms of the first updates on one rollout of an algorithm without a critic."""

    def sums(model: Path, precision: str, folder: Path) -> dict[str, list[float]]:
        config = group_config(algorithm, precision, UPDATE).model_copy(update={"ppo_epochs": epochs})
        policy, words = load_policy(model, PLACEMENTS[precision])
        frozen = load_policy(model, PLACEMENTS[precision])[0].eval().requires_grad_(False)
        candidates = ppo_prompts(model, words)
        prompts = [next(candidates) for _ in range(config.prompts_per_iteration)]
        engine = Engine(policy, NEVER, max_rows=ROWS)
        samples = _samples_without_padding(engine, prompts, words, config.samples_per_prompt)
        score_B = torch.randn(ROWS, generator=torch.Generator().manual_seed(0))
        models = PolicyModels(policy, None, frozen, FixedScores(score_B), words)
        rollout = {
            "prompts": prompts,
            "completions": [list(s.completion) for s in samples],
            "scores": score_B.tolist(),
        }
        (folder / "rollout.json").write_text(json.dumps(rollout))
        learner = Recorder(models.trained(), {"actor": UPDATE}, epochs)
        row, controllers = POLICY_ALGORITHMS[algorithm], Controllers.of(config, float(NEW))
        optimizer = PolicyOptimizer(config, row, models, learner, controllers)
        _update(optimizer, decoded(words, prompts, samples), score_B)
        losses = [s["loss"] for s in learner.said] if algorithm == "grpo" else []
        return {"losses": losses, "norms": [s["actor_grad_norm"] for s in learner.said]}

    return sums


#: Each kind's half. A second pass of RLOO is left out: the peer clips a ratio there that we do not have.
KINDS: dict[str, Callable[[Path, str, Path], dict[str, list[float]]]] = {
    "sft": sft,
    "reward": reward,
    "dpo": dpo,
    "ppo": ppo,
    "grpo": group("grpo", 2),
    "rloo": group("rloo", 1),
}


def _samples_without_padding(engine: Engine, prompts: list[str], words: Tokenizer, each: int = 1) -> list[Sample]:
    """The peer takes the padding id for the end of a completion wherever it stands: draw until there is none."""
    ids = [words.encode(prompt) for prompt in prompts]
    for seed in count():
        samples = engine.generate(ids, Sampling(NEW, each), seed=seed)
        if not any(words.pad_id in s.prompt + s.completion for s in samples):
            return samples
    raise AssertionError


def main(work: str, model: str, precision: str, folder: str) -> None:
    """Run our half and print its sums."""
    torch.set_num_threads(int(os.environ.get("BENCH_THREADS", "2")))
    result = KINDS[work](Path(model), precision, Path(folder))
    print("RESULT " + json.dumps(result), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
