"""What all stages that train share: optimiser, precision, adapters; names of rows, patterns and functions."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from accord.algo.table import (
    CORRECTIONS,
    ENSEMBLE_RULES,
    KL_PLACES,
    POLICY_ALGORITHMS,
    PREFERENCE_LOSSES,
    REWARD_LOSSES,
)
from accord.config.base import Rows, Section
from accord.extend import is_outside

Schedule = Literal["constant", "linear", "cosine"]
Precision = Literal["auto", "bf16", "fp32"]
Device = Literal["auto", "cpu", "cuda"]

#: Keys that name a row of one of the tables of `accord.algo.table`, or ``module:name`` of a user's own.
AlgorithmName = Annotated[str, Rows(POLICY_ALGORITHMS)]
RewardLossName = Annotated[str, Rows(REWARD_LOSSES)]
PreferenceLossName = Annotated[str, Rows(PREFERENCE_LOSSES)]
# The next two name no row of a user's own: a reward model's folder names its rule, and must load anywhere.
EnsembleRuleName = Annotated[str, Rows(ENSEMBLE_RULES, own=False)]
CorrectionName = Annotated[str, Rows(["auto", "none", *CORRECTIONS], own=False)]
KlPlaceName = Annotated[str, Rows(["auto", *KL_PLACES], own=False)]


def _regex(text: str) -> str:
    if "\b" in text:  # it would match nothing anybody writes
        raise ValueError(f"{text!r} holds a backspace: YAML reads \\b in double quotes as one, use single quotes")
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"{text!r} is no regular expression: {error}") from error
    return text


def _own_function(name: str) -> str:
    if name and not is_outside(name):
        raise ValueError(f"{name!r} does not name a function of yours: write module:function")
    return name


Regex = Annotated[str, AfterValidator(_regex)]
OwnFunction = Annotated[str, AfterValidator(_own_function)]


class OptimConfig(Section):
    """AdamW with a warm-up, a schedule and gradient clipping."""

    lr: float = Field(1e-3, gt=0, description="Peak learning rate.")
    # OpenRLHF's share.
    warmup_ratio: float = Field(0.03, ge=0, le=1, description="Share of all steps over which the rate rises from 0.")
    schedule: Schedule = Field("cosine", description="How the rate falls after the warm-up, if it does.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay of the matrices; norms get none.")
    final_lr_ratio: float = Field(0.0, ge=0, le=1, description="The schedule ends at this share of the peak rate.")
    # The second average over 20 steps, not 1,000, as GPT-3 and OpenRLHF have it.
    betas: tuple[float, float] = Field((0.9, 0.95), strict=False, description="Adam's decay of both averages.")
    eps: float = Field(1e-8, gt=0, description="Adam's floor of the denominator.")
    clip_norm: float = Field(1.0, gt=0, description="Largest global gradient norm; longer gradients are scaled down.")

    @model_validator(mode="after")
    def _betas_decay(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas {list(self.betas)} must lie in [0, 1)")
        return self


SHARE_SPELLINGS = "Tokens that share runs of letters learn together; helps where texts are few."


#: What a grave alarm does to a training.
OnAlarm = Literal["warn", "pause", "stop"]
ON_ALARM = (
    "When KL, length, entropy or variety leave their bounds: warn goes on; pause ends with a checkpoint, and the same "
    "command goes on past that alarm; stop keeps what has been learnt so far."
)


class Training(Section):
    """What all stages that train share."""

    # fp32 masters in either case (Stiennon found that it helps); bf16 is for products alone.
    precision: Precision = Field("auto", description="Matrix products: auto = bf16 where the device has it.")
    device: Device = Field("auto", description="Where models run: auto = on the GPU where CUDA finds one.")
    checkpoint_every: int = Field(100, ge=1, description="Steps between checkpoints; a killed run resumes from one.")
    # Forward, forward again, backward at twice a forward: 4 for 3.
    activation_checkpointing: bool = Field(
        False, description="Keep each block's input only and compute the rest again: less memory, a third more time."
    )


Target = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class LoraConfig(Section):
    """A low-rank adapter on a frozen model. It wants a learning rate about ten times that of full training."""

    rank: int = Field(0, ge=0, description="Rank of the adapter; 0 = off, all weights train.")
    alpha: float = Field(16.0, gt=0, description="The adapter counts alpha / rank times.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of the adapter's inputs dropped while training.")
    # All linear layers of a block; embeddings and heads stay.
    targets: tuple[Target, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        strict=False,
        min_length=1,
        description="Which linear layers, by Llama's names in every family; those a family lacks are passed over.",
    )


class RlLoraConfig(LoraConfig):
    """The policy's adapter: switched off, it is the reference, which then needs no second model in memory."""

    dropout: float = Field(0.0, ge=0, le=0, description="Always 0 here: ratios compare the distribution sampled from.")
    critic_rank: int = Field(0, ge=0, description="Rank of the critic's adapter; 0 = all its weights train.")


class DpoLoraConfig(LoraConfig):
    """The policy's adapter: switched off, it is the reference, which then needs no second model in memory."""

    dropout: float = Field(0.0, ge=0, le=0, description="Always 0 here: policy and reference must differ by training.")
