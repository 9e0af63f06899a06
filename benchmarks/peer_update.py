"""The peer's half of agree-ppo: TRL 1.12's own PPO code, given our rollout and our scores.

    PYTHONPATH=.bench/trl-1.12.0 .bench/trl/bin/python benchmarks/peer_update.py ppo MODEL f32|bf16 FOLDER

FOLDER holds what `agreement.py` wrote. Prints ``RESULT {"losses": [...], "norms": [...]}``: each epoch's loss, and
the gradient norms of policy and critic.
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
import trl.experimental.ppo.ppo_trainer as theirs
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl.experimental.ppo import PPOConfig, PPOTrainer

PROMPT, NEW = 32, 64


def norm(module: torch.nn.Module) -> float:
    """Global norm of a module's gradients."""
    return float(torch.stack([p.grad.norm() for p in module.parameters() if p.grad is not None]).norm())


def main(work: str, model: str, precision: str, folder: str) -> None:
    """One iteration on the given rollout, its sums recorded at each call of the trainer's backward."""
    torch.set_num_threads(int(os.environ.get("BENCH_THREADS", "2")))
    rollout = load_file(Path(folder) / "rollout.safetensors")
    ids_BT, score_B = rollout["ids_BT"], rollout["score_B"]
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    reference = AutoModelForCausalLM.from_pretrained(Path(model).with_name("tiny-eos"), dtype=torch.float32)
    critic, scorer = (
        AutoModelForSequenceClassification.from_pretrained(Path(folder) / "model", num_labels=1, dtype=torch.float32)
        for _ in range(2)
    )

    def generation(network: Any, queries: Any, batch: int, pad_id: int, config: Any) -> tuple[Any, Any]:
        return ids_BT, network(ids_BT).logits[:, PROMPT - 1 : -1] / config.temperature

    def scored(network: Any, *args: Any) -> tuple[Any, Any, Any]:
        return (None, score_B.clone(), None) if network is scorer else own_get_reward(network, *args)

    own_get_reward = theirs.get_reward
    theirs.batch_generation, theirs.get_reward = generation, scored
    rows = len(ids_BT)
    config = PPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=1,
        num_mini_batches=1,
        num_ppo_epochs=4,
        total_episodes=rows,
        response_length=NEW,
        local_rollout_forward_batch_size=rows,
        kl_coef=0.05,
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        temperature=1.0,
        num_sample_generations=0,
        report_to="none",
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        disable_tqdm=True,
        gradient_checkpointing=False,
    )
    data = Dataset.from_list([{"input_ids": row[:PROMPT]} for row in ids_BT.tolist()])
    words = AutoTokenizer.from_pretrained(model)
    run = PPOTrainer(config, words, policy, reference, scorer, data, value_model=critic)
    losses: list[float] = []
    norms: list[float] = []
    own_backward = run.accelerator.backward

    def backward(loss: torch.Tensor, **options: Any) -> None:
        own_backward(loss, **options)
        losses.append(float(loss))
        norms.extend((norm(policy), norm(critic)))

    run.accelerator.backward = backward
    run.train()
    print("RESULT " + json.dumps({"losses": losses, "norms": norms}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
