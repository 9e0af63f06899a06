"""The peer's half of agree-grpo and agree-rloo: TRL 1.16's own trainers, given our completions and our scores.

    .bench/trl/bin/python benchmarks/peer_group.py grpo|rloo MODEL f32 FOLDER

FOLDER holds what `agreement.py` wrote. Prints ``RESULT {"losses": [...], "norms": [...]}`` of the updates on the
rollout: GRPO's losses (RLOO's loss is another expression with the same gradient), and both one's gradient norms.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

GROUP, NEW = 4, 64
EXACT = {"loss_type": "grpo", "scale_rewards": "group", "use_bias_correction_kl": True}
#: Trainer, its configuration, what is set there, and how many updates are compared.
KINDS: dict[str, tuple[Any, Any, dict[str, Any], int]] = {
    "grpo": (GRPOTrainer, GRPOConfig, EXACT, 2),
    "rloo": (RLOOTrainer, RLOOConfig, {"normalize_advantages": False}, 1),
}


def main(work: str, model: str, precision: str, folder: str) -> None:
    """Two updates on the given rollout, each one's loss and gradient norm recorded."""
    torch.set_num_threads(int(os.environ.get("BENCH_THREADS", "2")))
    rollout = json.loads((Path(folder) / "rollout.json").read_text())
    trainer_class, config_class, extra, updates = KINDS[work]
    words = AutoTokenizer.from_pretrained(model)
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    policy.generation_config.eos_token_id = None
    losses: list[float] = []
    norms: list[float] = []

    class Given(trainer_class):  # type: ignore[misc]
        """The trainer, with completions handed to it."""

        def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
            ids = rollout["completions"]
            return (ids, None) if work == "grpo" else ids

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            losses.append(float(loss))
            return loss

    def reward(completions: Any, **kwargs: Any) -> list[float]:
        scores: list[float] = rollout["scores"]
        return scores

    class Norms(TrainerCallback):  # type: ignore[misc]
        def on_pre_optimizer_step(self, *args: Any, model: Any, **kwargs: Any) -> None:
            norms.append(float(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()))

    rows = len(rollout["scores"])
    config = config_class(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=1,
        num_generations=GROUP,
        max_completion_length=NEW,
        temperature=1.0,
        beta=0.05,
        num_iterations=updates,
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1e9,
        max_steps=updates,
        report_to="none",
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        disable_tqdm=True,
        gradient_checkpointing=False,
        shuffle_dataset=False,
        generation_kwargs={"eos_token_id": None},
        **extra,
    )
    data = Dataset.from_list([{"prompt": text} for text in rollout["prompts"]])
    trainer = Given(
        model=policy, reward_funcs=reward, args=config, train_dataset=data, processing_class=words, callbacks=[Norms()]
    )
    trainer.train()
    print("RESULT " + json.dumps({"losses": losses if work == "grpo" else [], "norms": norms}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
