"""Our losses beside those that TRL 1.16 computes on the same tensors, by its own methods."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from accord.algo.reward_loss import judgements
from accord.algo.table import PREFERENCE_LOSSES, REWARD_LOSSES
from accord.config import DpoConfig

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

CHOSEN, REJECTED = (-10.0, -21.5, -3.25), (-12.0, -18.0, -9.75)
REFERENCES = ((-11.0, -20.0, -5.0), (-11.5, -17.25, -8.0))
LENGTHS = ((5, 9, 2), (6, 7, 4))
ACCELERATOR = SimpleNamespace(
    device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x, unwrap_model=lambda model: model
)


def spread_out() -> tuple[Tensor, Tensor]:
    """Log-probabilities a token that sum up to ours, and the mask of the completions that they belong to."""
    lengths, sums = LENGTHS[0] + LENGTHS[1], CHOSEN + REJECTED
    mask_BT = torch.zeros(6, max(lengths) + 1, dtype=torch.long)
    logp_BT = torch.zeros(6, max(lengths))
    for row, (length, total) in enumerate(zip(lengths, sums, strict=True)):
        mask_BT[row, 1 : 1 + length] = 1
        logp_BT[row, :length] = total / length
    return logp_BT, mask_BT


@pytest.mark.parametrize(("name", "theirs"), [("dpo", "sigmoid"), ("ipo", "ipo")])
def test_preference_losses_are_those_of_its_dpo_trainer(name: str, theirs: str) -> None:
    from trl import DPOTrainer

    logp_BT, mask_BT = spread_out()
    shape = logp_BT.shape
    out = SimpleNamespace(
        log_probs=logp_BT,
        entropy=torch.zeros(shape),
        mean_logits=torch.zeros(shape),
        is_top1=torch.zeros(shape, dtype=torch.bool),
    )
    ids = torch.ones_like(mask_BT)
    inputs = {
        "input_ids": ids,
        "attention_mask": ids,
        "completion_mask": mask_BT,
        "ref_chosen_logps": torch.tensor(REFERENCES[0]),
        "ref_rejected_logps": torch.tensor(REFERENCES[1]),
    }
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=ACCELERATOR,
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[theirs],
        loss_weights=[1.0],
        beta=0.1,
        label_smoothing=0.0,
        use_weighting=False,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
        args=SimpleNamespace(),
    )
    wanted = float(DPOTrainer._compute_loss(trainer, lambda **_: out, inputs, False))
    row, sides = PREFERENCE_LOSSES[name], []
    for sums, references, lengths in zip((CHOSEN, REJECTED), REFERENCES, LENGTHS, strict=True):
        sides.append(row.strength(*(torch.tensor(x) for x in (sums, references, lengths))))
    ours = row.loss(*sides, DpoConfig(loss=name, dpo_beta=0.1))
    assert float(ours.mean()) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("margins", "center_coef"), [(None, 0.0), ([1.0, 1 / 3, 0.0, 2 / 3], 0.0), (None, 0.01)], ids=str
)
def test_bradley_terry_is_that_of_its_reward_trainer(margins: list[float] | None, center_coef: float) -> None:
    from trl.trainer.reward_trainer import RewardTrainer

    chosen, rejected = [1.5, -0.3, 2.0, 0.7], [0.2, 0.4, -1.0, 0.7]
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        args=SimpleNamespace(center_rewards_coefficient=center_coef or None),
        accelerator=ACCELERATOR,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    inputs: dict[str, Any] = {"attention_mask": torch.ones(8, 3)}
    if margins:
        inputs["margin"] = torch.tensor(margins)
    out = SimpleNamespace(logits=torch.tensor(chosen + rejected)[:, None])
    wanted = float(RewardTrainer.compute_loss(trainer, lambda **_: out, inputs))
    scores = torch.tensor([score for pair in zip(chosen, rejected, strict=True) for score in pair])
    judged = judgements(scores, [(1, 2)] * 4, margins=margins)
    ours, _ = REWARD_LOSSES["bradley_terry"].loss(judged, 4.0, center_coef)
    assert float(ours) == pytest.approx(wanted, rel=1e-6)
