"""The peer's half of agree-sft, agree-reward and agree-dpo: TRL's own trainers on the same batches, in the same order.

    .bench/trl/bin/python benchmarks/peer_losses.py sft|reward|dpo MODEL f32|bf16 FOLDER

FOLDER holds what `agreement.py` wrote. Prints ``RESULT {"losses": [...], "norms": []}``.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from datasets import Dataset
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

COLUMNS = {
    "sft": lambda row: {"input_ids": row},
    "reward": lambda row: {"chosen_ids": row[0], "rejected_ids": row[1]},
    "dpo": lambda row: dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), row, strict=True)),
}
RATES = {"sft": 1e-3, "reward": 1e-3, "dpo": 1e-4}  # as in `agreement.py`


def watched(trainer: type) -> type:
    """The trainer with its data in the order given, and the loss of each step kept as it is computed."""

    class Watched(trainer):  # type: ignore[misc]
        losses: list[float]

        def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
            """Rows of ids already; DPOTrainer would take them for text."""
            return (
                dataset if "prompt_ids" in dataset.column_names else super()._prepare_dataset(dataset, *args, **kwargs)
            )

        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss = super().training_step(*args, **kwargs)
            self.losses.append(float(loss))
            return loss

    return Watched


def main(work: str, model: str, precision: str, folder: str) -> None:
    """Train for as many steps as the folder has batches, with the optimizer that `agreement.py` names."""
    torch.set_num_threads(int(os.environ.get("BENCH_THREADS", "2")))
    steps = json.loads((Path(folder) / "steps.json").read_text())
    rows = [COLUMNS[work](row) for batch in steps for row in batch]
    settings = {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": len(steps[0]),
        "max_steps": len(steps),
        "max_length": 96,
        "learning_rate": RATES[work],
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "adam_epsilon": 1e-8,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "bf16": precision == "bf16",
        "use_cpu": True,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    if work in ("sft", "dpo"):
        network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        kind, options = {"sft": (SFTTrainer, SFTConfig), "dpo": (DPOTrainer, DPOConfig)}[work]
        trainer, config = watched(kind), options(**settings)
    else:
        path = Path(folder) / "model"
        network = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, dtype=torch.float32)
        trainer, config = watched(RewardTrainer), RewardConfig(**settings)
    words = AutoTokenizer.from_pretrained(model)
    run = trainer(model=network, args=config, train_dataset=Dataset.from_list(rows), processing_class=words)
    run.losses = []
    run.train()
    print("RESULT " + json.dumps({"losses": run.losses, "norms": []}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
