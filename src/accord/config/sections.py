"""The sections of a recipe: one typed configuration per stage."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from accord.algo.table import (
    ENSEMBLE_RULES,
    KL_PLACES,
    POLICY_ALGORITHMS,
    PREFERENCE_LOSSES,
    REWARD_LOSSES,
    defaults_of,
)
from accord.config.base import Rows, Section, exact_div
from accord.extend import is_outside

Schedule = Literal["constant", "linear", "cosine"]
Precision = Literal["auto", "bf16", "fp32"]
Device = Literal["auto", "cpu", "cuda"]
ModelKind = Literal["llama", "lstm"]


#: Keys that name a row of one of the tables of `accord.algo.table`, or ``module:name`` of a user's own.
AlgorithmName = Annotated[str, Rows(POLICY_ALGORITHMS)]
RewardLossName = Annotated[str, Rows(REWARD_LOSSES)]
PreferenceLossName = Annotated[str, Rows(PREFERENCE_LOSSES)]
# The next two name no row of a user's own: a reward model's folder names its rule, and must load anywhere.
EnsembleRuleName = Annotated[str, Rows(ENSEMBLE_RULES, own=False)]
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
    warmup_ratio: float = Field(0.03, ge=0, le=1, description="Share of all steps over which the rate rises from 0.")
    schedule: Schedule = Field("cosine", description="How the rate falls after the warm-up, if it does.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay of the matrices; norms get none.")
    final_lr_ratio: float = Field(0.0, ge=0, le=1, description="The schedule ends at this share of the peak rate.")
    betas: tuple[float, float] = Field((0.9, 0.95), strict=False, description="Adam's decay of both averages.")
    eps: float = Field(1e-8, gt=0, description="Adam's floor of the denominator.")
    clip_norm: float = Field(1.0, gt=0, description="Largest global gradient norm; longer gradients are scaled down.")

    @model_validator(mode="after")
    def _betas_decay(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas {list(self.betas)} must lie in [0, 1)")
        return self


SHARE_SPELLINGS = "Tokens that share runs of letters learn together; helps where texts are few."


class Training(Section):
    """What all stages that train share."""

    precision: Precision = Field("auto", description="Matrix products: auto = bf16 where the device has it.")
    device: Device = Field("auto", description="Where models run: auto = on the GPU where CUDA finds one.")
    checkpoint_every: int = Field(100, ge=1, description="Steps between checkpoints; a killed run resumes from one.")
    activation_checkpointing: bool = Field(
        False, description="Keep each block's input only and compute the rest again: less memory, a third more time."
    )


Target = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class LoraConfig(Section):
    """A low-rank adapter on a frozen model. It wants a learning rate about ten times that of full training."""

    rank: int = Field(0, ge=0, description="Rank of the adapter; 0 = off, all weights train.")
    alpha: float = Field(16.0, gt=0, description="The adapter counts alpha / rank times.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of the adapter's inputs dropped while training.")
    targets: tuple[Target, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        strict=False,
        min_length=1,
        description="Which linear layers, by Llama's names in every family; those a family lacks are passed over.",
    )


class RlLoraConfig(LoraConfig):
    """The policy's adapter: switched off, it is the reference, which then needs no second model in memory."""

    dropout: float = Field(0.0, ge=0, le=0, description="Always 0 here: the ratios must compare the law sampled from.")
    critic_rank: int = Field(0, ge=0, description="Rank of the critic's adapter; 0 = all its weights train.")


class DpoLoraConfig(LoraConfig):
    """The policy's adapter: switched off, it is the reference, which then needs no second model in memory."""

    dropout: float = Field(0.0, ge=0, le=0, description="Always 0 here: policy and reference must differ by training.")


class BaseConfig(Section):
    """A model to start from. The recipe then trains no tokenizer and pretrains nothing."""

    model: str = Field("", description="A name (smollm2), a Hugging Face folder or a GGUF file; empty = pretrain one.")


class TokenizerConfig(Section):
    """Byte-level BPE, trained on the recipe's own texts."""

    vocab_size: int = Field(4096, ge=258, description="Entries, the 256 bytes and 2 special tokens among them.")


class ModelConfig(Section):
    """Shape of the model trained from scratch. Policy, reward model and critic share it.

    The size of the vocabulary is the tokenizer's. To an LSTM, heads, kv_heads and ffn mean nothing.
    """

    kind: ModelKind = Field("llama", description="llama = a decoder in Llama's layout; lstm = a recurrent network.")
    width: int = Field(256, ge=8, description="Width of the hidden state.")
    layers: int = Field(6, ge=1, description="Blocks of attention and feed-forward, or layers of the LSTM.")
    heads: int = Field(8, ge=1, description="Attention heads; width must be a multiple of it.")
    kv_heads: int = Field(8, ge=1, description="Heads of keys and values; heads must be a multiple of it.")
    ffn: int = Field(688, ge=8, description="Inner width of the feed-forward.")
    max_positions: int = Field(512, ge=16, description="Longest sequence in tokens, prompt and completion together.")

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.kind == "llama":
            exact_div(self.width, 2 * self.heads, "width", "2 * heads")
            exact_div(self.heads, self.kv_heads, "heads", "kv_heads")
        return self

    @property
    def head_width(self) -> int:
        """Width of one attention head; even, because rotary positions turn pairs."""
        return self.width // self.heads


class PretrainConfig(Training):
    """Next-token prediction from scratch on plain texts, packed into blocks."""

    epochs: float = Field(4.0, gt=0, description="Passes over the texts; may be a fraction.")
    block_tokens: int = Field(256, ge=8, description="Tokens of one training sequence.")
    batch_blocks: int = Field(16, ge=1, description="Sequences per optimiser step.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of activations dropped while training.")
    share_spellings: bool = Field(False, description=SHARE_SPELLINGS)
    optim: OptimConfig = Field(OptimConfig(lr=1e-3, weight_decay=0.1), description="Optimiser.")


class SftConfig(Training):
    """Supervised fine-tuning: loss on the completion and its end token only."""

    epochs: float = Field(3.0, gt=0, description="Passes over the demonstrations; may be a fraction.")
    batch_tokens: int = Field(4096, ge=1, description="Tokens per optimiser step, prompts included.")
    micro_batch_tokens: int = Field(4096, ge=1, description="Tokens per forward pass; changes memory, not the loss.")
    max_tokens: int = Field(160, ge=2, description="Demonstrations longer than this are left out, and counted.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Share of activations dropped while training.")
    lora: LoraConfig = Field(LoraConfig(), description="Train an adapter instead of all weights.")
    optim: OptimConfig = Field(OptimConfig(lr=5e-4, weight_decay=0.1), description="Optimiser.")


class SampleConfig(Section):
    """How completions are drawn from a policy."""

    samples_per_prompt: int = Field(4, ge=1, description="Completions per prompt (K).")
    max_new_tokens: int = Field(80, ge=1, description="Most tokens per completion, the end token included.")
    temperature: float = Field(1.0, gt=0, description="Divides the logits; 1.0 samples the policy's own law.")
    top_k: int = Field(0, ge=0, description="Draw from the k likeliest tokens only; 0 = from all.")
    top_p: float = Field(1.0, gt=0, le=1, description="Draw from the likeliest tokens that make up this probability.")
    best_of: int = Field(1, ge=1, description="Each completion is the best of so many, by a scorer; 1 = as drawn.")


class PairsConfig(Section):
    """How ordered pairs are read, by the losses that read pairs (bradley_terry, per_token)."""

    ties: Literal["drop", "half"] = Field("drop", description="A tie is no pair, or one with a probability of a half.")
    margin: Literal["none", "small", "large", "given"] = Field(
        "none", description="Least gap: Llama 2's tables by strength (to 1 or to 3), or the pair's own number."
    )
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="Share of judgements taken for turned around.")


class CombineConfig(Section):
    """How the scores of several heads or models become one. Each is normalised on its own before."""

    rule: EnsembleRuleName = Field("mean", description="mean, min (the worst case) or uwo: mean minus variance.")
    variance_coef: float = Field(0.5, ge=0, description="Weight of the variance between members in uwo.")


class RewardConfig(Training):
    """The reward model: one score per completion, learned from judgements."""

    loss: RewardLossName = Field("bradley_terry", description="Row of the table of reward losses: pairs, orders, ...")
    pairs: PairsConfig = Field(PairsConfig(), description="Ties, margins and noise of pairs.")
    epochs: int = Field(1, ge=1, description="Passes over the judgements; more than a few overfit.")
    groups_per_step: int = Field(8, ge=1, description="Rankings per optimiser step; each weighs the same, whatever K.")
    max_tokens: int = Field(160, ge=2, description="Texts are cut to this many tokens, the end token kept.")
    micro_batch_tokens: int = Field(8192, ge=1, description="Tokens per forward pass; changes memory, not the loss.")
    center_coef: float = Field(0.01, ge=0, description="Pulls scores towards mean 0 (Eisenstein 2312.09244, eq. 2).")
    l2_coef: float = Field(0.0, ge=0, description="Weight of the mean squared score, which keeps scores small.")
    head_init: Literal["normal", "zero"] = Field("normal", description="A new head: N(0, 1 / sqrt(width + 1)), or 0.")
    heads: int = Field(1, ge=1, description="Heads on the one trunk; more than one are an ensemble.")
    combine: CombineConfig = Field(CombineConfig(), description="How several heads become one score.")
    transform: Literal["logit", "probability"] = Field(
        "logit", description="Score of a binary model: the head's log-odds, normalised, or the chance of good."
    )
    token_dropout: float = Field(0.0, ge=0, lt=1, description="Share of a completion's tokens hidden while training.")
    pooled_coef: float = Field(0.0, ge=0, description="Weight of the same loss on the head's mean over positions.")
    bag_coef: float = Field(0.0, ge=0, description="Weight of the same loss on the head's mean over bare embeddings.")
    self_distill_coef: float = Field(
        0.0, ge=0, description="Weight of agreeing with the mean of the score and these two readings."
    )
    share_spellings: bool = Field(False, description=SHARE_SPELLINGS)
    trunk_layers: int = Field(0, ge=0, description="Build on this many first layers of the given model; 0 = all.")
    freeze_embeddings: bool = Field(False, description="Leave the embeddings as they are in the given model.")
    lora: LoraConfig = Field(LoraConfig(), description="Train an adapter and the head instead of all weights.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Share of activations dropped while training.")
    optim: OptimConfig = Field(OptimConfig(lr=3e-4, weight_decay=0.1), description="Optimiser.")

    @model_validator(mode="after")
    def _all_readings_are_taught(self) -> Self:
        if self.self_distill_coef > 0 and not (self.pooled_coef > 0 and self.bag_coef > 0):
            raise ValueError("self_distill_coef needs pooled_coef and bag_coef above 0: it teaches from their readings")
        return self

    @model_validator(mode="after")
    def _one_head_has_readings(self) -> Self:
        if self.heads > 1 and (self.pooled_coef > 0 or self.bag_coef > 0):
            raise ValueError("pooled_coef and bag_coef are readings of one head, and heads asks for more")
        return self

    @model_validator(mode="after")
    def _only_labels_make_probabilities(self) -> Self:
        if self.transform == "probability" and self.loss != "binary":
            raise ValueError("transform: probability is for loss: binary; other scores are no log-odds of good")
        return self

    @model_validator(mode="after")
    def _spellings_need_embeddings_that_train(self) -> Self:
        if self.share_spellings and (self.freeze_embeddings or self.lora.rank):
            raise ValueError("share_spellings trains the embeddings, which freeze_embeddings and lora hold still")
        return self


TRUNCATED = (
    "the samples would follow another law than the one that is trained, and their KL comes out negative; "
    "use temperature to sharpen it"
)


class ScorerConfig(Section):
    """One of several scores that are added up. It is one of five: model, ensemble, function, regex or http."""

    KINDS: ClassVar[tuple[str, ...]] = ("model", "ensemble", "function", "regex", "http")
    NEEDS: ClassVar[Mapping[str, str]] = {
        "combine": "ensemble",
        "absent": "regex",
        "timeout_s": "http",
        "batch_size": "http",
    }

    name: str = Field("", pattern=r"^([a-z][a-z0-9_]*)?$", description="In metrics: part_NAME; empty = what it is.")
    weight: float = Field(1.0, description="Its score counts this much; below 0 it costs, 0 = only measured.")
    model: str = Field("", description="Folder of a reward model.")
    ensemble: tuple[str, ...] = Field((), strict=False, description="Folders of reward models that score as one.")
    combine: CombineConfig = Field(CombineConfig(), description="With ensemble: how its members' scores become one.")
    function: OwnFunction = Field("", description="module:function(prompts, completions), one number a completion.")
    regex: Regex = Field("", description="1 where this is found in the completion, else 0.")
    absent: bool = Field(False, description="With regex: 1 where it is not found.")
    http: str = Field("", pattern=r"^(https?://.+)?$", description="URL that answers a POST of texts with scores.")
    timeout_s: float = Field(30.0, gt=0, description="With http: seconds to wait for one answer.")
    batch_size: int = Field(64, ge=1, description="With http: most completions in one request.")

    @model_validator(mode="after")
    def _is_one_kind(self) -> Self:
        given = [kind for kind in self.KINDS if getattr(self, kind)]
        if len(given) != 1:
            told = " and ".join(given) or "none"
            raise ValueError(f"a reward is exactly one of {', '.join(self.KINDS)}; given: {told}")
        fields = type(self).model_fields
        for option, kind in self.NEEDS.items():
            if getattr(self, option) != fields[option].default and kind != self.kind:
                raise ValueError(f"{option} has no effect without {kind}")
        return self

    @property
    def kind(self) -> str:
        """Which of the five it is."""
        return next(kind for kind in self.KINDS if getattr(self, kind))

    @property
    def label(self) -> str:
        """What it is called in metrics."""
        return self.name or self.kind


class PromptsConfig(Section):
    """Which prompts of the file are used; those left out are counted."""

    max_tokens: int = Field(0, ge=0, description="Longer prompts are left out; 0 = none is.")
    regex: Regex = Field("", description="Prompts in which this is not found are left out.")
    function: OwnFunction = Field("", description="Prompts for which module:function(prompt) is false are left out.")


class TrustConfig(Section):
    """How far one update may move the policy, besides ``rl.clip``."""

    clip_high: float | None = Field(None, gt=0, description="Instead of clip above 1 (DAPO: 0.28); null = clip.")
    dual_clip: float | None = Field(None, gt=1, description="Bounds the loss of bad tokens at this many advantages.")
    coef: float = Field(0.0, ge=0, description="Price of KL(old || new) a token, besides or instead of the clip.")
    target: float | None = Field(None, gt=0, description="KL(old || new) a token to steer to; null: the price stays.")

    @model_validator(mode="after")
    def _a_target_has_a_price_to_move(self) -> Self:
        if self.target is not None and self.coef == 0:
            raise ValueError("target doubles and halves coef, which is 0: set coef above 0")
        return self


class ValuesConfig(Section):
    """The critic's values, for algorithms that learn some."""

    shared: bool = Field(False, description="A head on the policy's own trunk instead of a network of its own.")
    clip: float = Field(0.2, gt=0, description="A value may move this far from the rollout's; beyond, clipped.")
    coef: float = Field(0.1, gt=0, description="Weight of the value loss.")


class ShapingConfig(Section):
    """What a score goes through before it is a reward, besides ``rl.missing_eos_penalty`` and the length leash."""

    scale: bool = Field(False, description="Divide scores by the running deviation of all so far.")
    clip: float | None = Field(None, gt=0, description="Scores are held within +- this, before penalties.")
    length_penalty: float = Field(0.0, description="Taken from the score a token of the completion.")
    overlong_tokens: int = Field(0, ge=0, description="Over this many last tokens of the room the score falls by 1.")
    whiten: bool = Field(False, description="PPO: set the spread of rewards to 1; it shortens completions.")


class PtxConfig(Section):
    """Plain texts that are not to be forgotten: their loss is added to every update (PPO-ptx)."""

    coef: float = Field(0.0, ge=0, description="Weight of that loss; 0 = off.")
    blocks: int = Field(16, ge=1, description="Blocks of text an update.")
    block_tokens: int = Field(64, ge=8, description="Tokens of one block.")


class RlConfig(Training):
    """Optimise the policy against the reward model without drifting from the reference."""

    refused = dict.fromkeys(("top_k", "top_p"), TRUNCATED)
    usual = ("algorithm", defaults_of(POLICY_ALGORITHMS))
    checkpoint_every: int = Field(10, ge=1, description="Rounds between checkpoints; a killed run resumes from one.")
    algorithm: AlgorithmName = Field("ppo", description="Row of the table of algorithms.")
    iterations: int = Field(60, ge=1, description="Rounds of rollout and update.")
    prompts_per_iteration: int = Field(64, ge=1, description="Prompts per round.")
    rewards: tuple[ScorerConfig, ...] = Field(
        (),
        strict=False,
        description="Besides the reward model's: a list of {model | ensemble | function | regex | http, weight, name}.",
    )
    prompts: PromptsConfig = Field(PromptsConfig(), description="Which prompts of the file are used.")
    samples_per_prompt: int = Field(1, ge=1, description="Completions per prompt and round.")
    max_new_tokens: int = Field(80, ge=1, description="Most tokens per completion, the end token included.")
    temperature: float = Field(1.0, gt=0, description="Of the samples and of every log-probability alike.")
    ppo_epochs: int = Field(4, ge=1, description="Passes over one round's samples.")
    minibatches: int = Field(1, ge=1, description="Optimiser steps per pass; must divide the samples of a round.")
    micro_batch_tokens: int = Field(8192, ge=1, description="Tokens per forward pass; changes memory, not the loss.")
    clip: float | None = Field(
        0.2, gt=0, lt=1, description="The probability ratio is clipped to 1 - clip .. 1 + clip; null = free."
    )
    entropy_coef: float = Field(0.0, ge=0, description="Bonus a nat of entropy at each token; it can run away.")
    trust: TrustConfig = Field(TrustConfig(), description="How far one update may go.")
    values: ValuesConfig = Field(ValuesConfig(), description="The critic's values.")
    kl_coef: float = Field(0.05, ge=0, description="Price of one nat of KL to the reference, per token (start value).")
    kl_target: float | None = Field(None, gt=0, description="Nats per completion to steer to; null: kl_coef stays.")
    kl_in: KlPlaceName = Field("auto", description="Where that price is paid: auto = where the algorithm has it.")
    discount: float = Field(1.0, gt=0, le=1, description="Of later rewards; 1 because completions are finite.")
    gae_lambda: float = Field(0.95, ge=0, le=1, description="GAE: 0 trusts the critic, 1 trusts the samples.")
    missing_eos_penalty: float = Field(1.0, ge=0, description="Taken from the score of a completion that did not end.")
    shaping: ShapingConfig = Field(ShapingConfig(), description="From score to reward.")
    ptx: PtxConfig = Field(PtxConfig(), description="Texts not to be forgotten.")
    redraws: int = Field(3, ge=0, description="dapo: how often prompts whose scores are all equal are replaced.")
    length_coef: float = Field(
        0.0, ge=0, description="How fast the price of a token moves to hold the length; 0 = off."
    )
    eval_every: int = Field(10, ge=1, description="Rounds between evaluations on validation prompts.")
    lora: RlLoraConfig = Field(RlLoraConfig(), description="Train an adapter of the policy instead of all weights.")
    actor: OptimConfig = Field(
        OptimConfig(lr=1e-4, schedule="linear", eps=1e-5, warmup_ratio=0.1), description="Optimiser of the policy."
    )
    critic: OptimConfig = Field(
        OptimConfig(lr=3e-4, schedule="linear", eps=1e-5, warmup_ratio=0.1), description="Optimiser of the critic."
    )

    @model_validator(mode="after")
    def _fits_the_algorithm(self) -> Self:
        row = POLICY_ALGORITHMS.get(self.algorithm)  # a user's own is asked when the stage loads it
        if row is not None and self.samples_per_prompt < row.min_group:
            raise ValueError(
                f"{self.algorithm} compares completions of one prompt, and samples_per_prompt is "
                f"{self.samples_per_prompt}: 4 to 8 are usual"
            )
        if row is not None and self.values.shared and not row.critic:
            raise ValueError(f"values.shared says where values come from, and {self.algorithm} learns none")
        return self

    @model_validator(mode="after")
    def _targets_can_be_reached(self) -> Self:
        if self.kl_target is not None and self.kl_coef == 0:
            raise ValueError("kl_target moves kl_coef by a factor, and kl_coef is 0: set it above 0")
        if self.trust.target is not None and self.ppo_epochs * self.minibatches == 1:
            raise ValueError(
                "trust.target steers by what an update has moved before its last step, and ppo_epochs 1 of minibatches "
                "1 is a single step: raise one of them, or leave trust.target out"
            )
        return self

    @model_validator(mode="after")
    def _something_holds_the_ratio(self) -> Self:
        if self.clip is None and self.trust.coef == 0:
            raise ValueError("without clip the ratio is free: set trust.coef above 0, or leave clip as it is")
        return self

    @model_validator(mode="after")
    def _divides(self) -> Self:
        exact_div(
            self.samples_per_iteration, self.minibatches, "prompts_per_iteration * samples_per_prompt", "minibatches"
        )
        return self

    @model_validator(mode="after")
    def _rewards_have_names(self) -> Self:
        labels = [reward.label for reward in self.rewards]
        twice = [label for label in labels if labels.count(label) > 1 or label == "reward_model"]
        if twice:
            raise ValueError(f"{twice[0]!r} would name two scores: give each of rewards a name of its own")
        return self

    @property
    def samples_per_iteration(self) -> int:
        return self.prompts_per_iteration * self.samples_per_prompt


class DpoConfig(Training):
    """Direct preference: improve a policy from judgements of completions, without a reward model."""

    usual = ("loss", defaults_of(PREFERENCE_LOSSES))
    loss: PreferenceLossName = Field("dpo", description="Row of the table of preference losses.")
    epochs: int = Field(1, ge=1, description="Passes over the judgements, or over the prompts when online.")
    groups_per_step: int = Field(32, ge=1, description="Prompts per optimiser step; each weighs the same, whatever K.")
    max_tokens: int = Field(160, ge=2, description="Prompt and completion longer than this are left out, and counted.")
    micro_batch_tokens: int = Field(8192, ge=1, description="Tokens per forward pass; changes memory, not the loss.")
    dpo_beta: float = Field(0.1, gt=0, description="Scale of the gap; small = far from the reference. SimPO: 2.")
    label_smoothing: float = Field(0.1, ge=0, lt=0.5, description="cdpo: share of the judgements taken to be wrong.")
    simpo_margin: float = Field(0.5, ge=0, description="simpo: lead that the better completion must have.")
    orpo_coef: float = Field(0.1, ge=0, description="orpo: weight of the odds ratio against the likelihood.")
    desirable_weight: float = Field(1.0, gt=0, description="kto: weight of good completions.")
    undesirable_weight: float = Field(1.0, gt=0, description="kto: weight of bad completions.")
    online: bool = Field(False, description="Draw the completions from the policy itself; scores rank them.")
    rewards: tuple[ScorerConfig, ...] = Field(
        (), strict=False, description="Online: scores, added to the reward model's where one is given."
    )
    samples_per_prompt: int = Field(2, ge=2, description="Online: completions per prompt (K).")
    max_new_tokens: int = Field(80, ge=1, description="Online: most tokens per completion, the end token included.")
    temperature: float = Field(1.0, gt=0, description="Online: divides the logits while sampling.")
    label_noise: float = Field(
        0.0, ge=0, description="Online: 0 = the higher score wins; 1 = with probability sigmoid of the gap of scores."
    )
    missing_eos_penalty: float = Field(
        1.0, ge=0, description="Online: taken from the score of a completion that did not end."
    )
    eval_every: int = Field(100, ge=1, description="Steps between snapshots, and between looks at held-out rows.")
    lora: DpoLoraConfig = Field(DpoLoraConfig(), description="Train an adapter instead of all weights.")
    optim: OptimConfig = Field(OptimConfig(lr=5e-5, schedule="linear", warmup_ratio=0.1), description="Optimiser.")


class EvalConfig(Section):
    """The judge's side: what is measured on prompts that nothing was trained on."""

    samples_per_prompt: int = Field(4, ge=1, description="Completions per test prompt and policy.")
    best_of: int = Field(4, ge=2, description="n of the best-of-n baseline: the reward model picks one of n.")
    bootstrap: int = Field(2000, ge=100, description="Resamples (by film) behind each 95 % interval.")
    curve_samples: int = Field(16, ge=1, description="SFT samples per validation prompt behind the best-of-n curve.")
    kl_ceiling: float = Field(15.0, gt=0, description="A snapshot further from SFT (nats) is not chosen.")
    length_low: float = Field(0.8, ge=0, description="Floor: least mean length, as a share of SFT's.")
    length_high: float = Field(1.25, gt=0, description="Floor: largest mean length, as a share of SFT's.")
    nll_excess: float = Field(0.5, gt=0, description="Floor: most nats per token above SFT's own, under SFT.")
    distinct_share: float = Field(0.95, ge=0, le=1, description="Floor: least share of distinct completions.")


#: What people are asked to do with the completions of a prompt; how is said in `accord.people.desk.answers`.
TaskKindName = Literal["pair", "ranking", "rating", "label", "demonstration"]


class AxisConfig(Section):
    """One question on a scale of whole numbers."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}$", description="Names the axis.")
    low: int = Field(1, description="Worst value.")
    high: int = Field(7, description="Best value.")
    question: str = Field("", description="What is asked.")

    @model_validator(mode="after")
    def _is_a_scale(self) -> Self:
        if not 1 <= self.high - self.low <= 10:
            raise ValueError(f"a scale from {self.low} to {self.high} has not 2 to 11 values")
        return self


class LabelConfig(Section):
    """What annotators are asked, and how long they may take: the key ``label`` of a project's accord.yaml."""

    kind: TaskKindName = Field("ranking", description="What is asked where a task does not say it.")
    overlap: int = Field(1, ge=1, le=1000, description="People who answer a task, where it does not say how many.")
    axes: tuple[AxisConfig, ...] = Field(
        (
            AxisConfig(name="helpfulness", question="Does it do what was asked?"),
            AxisConfig(name="harmlessness", question="Is it free of harm?"),
            AxisConfig(name="truthfulness", question="Is what it says true?"),
        ),
        strict=False,
        min_length=1,
        max_length=9,
        description="Scales of a rating, each with name, low, high and question.",
    )
    flags: tuple[str, ...] = Field(
        ("off-topic", "made up", "unsafe", "rude", "personal data", "cut off"),
        strict=False,
        description="What can be ticked on a completion.",
    )
    skip_reasons: tuple[str, ...] = Field(
        ("unclear prompt", "not my field", "cannot decide", "upsetting", "technical problem"),
        strict=False,
        min_length=1,
        description="Why a task may be skipped.",
    )
    min_seconds: float = Field(0.0, ge=0, le=3600, description="Least time with a task in view before it is answered.")
    lease_minutes: float = Field(20.0, gt=0, le=1440, description="How long a task is kept for who claimed it.")
    undo_minutes: float = Field(10.0, ge=0, description="How long an answer can be taken back.")

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        for key, names in (("axes", [axis.name for axis in self.axes]), ("flags", self.flags)):
            if len(set(names)) < len(names):
                raise ValueError(f"one of the {key} stands there twice: {', '.join(names)}")
        return self
