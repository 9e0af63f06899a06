"""One typed configuration per stage; YAML recipes with dotted overrides. Torch-free.

A recipe is built from four layers, each partial, the later winning: the defaults in this file, the project's
``accord.yaml``, the recipe's YAML (and the one it ``extends``), the overrides of the command line. Everything is
checked before any work starts: an unknown key, a wrong type or a size that does not fit is a `UsageError` that
names the file, the line, the key and a mend.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, ErrorDetails
from pydantic_core.core_schema import no_info_after_validator_function

from accord.errors import UsageError
from accord.extend import is_outside

Schedule = Literal["constant", "linear", "cosine"]
Precision = Literal["auto", "bf16", "fp32"]
Device = Literal["auto", "cpu", "cuda"]
ModelKind = Literal["llama", "lstm"]


S = TypeVar("S", bound="Section")


class Rows:
    """Mark of a key that names a row of a table, or ``module:name`` of a user's own."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def check(self, name: str) -> str:
        if name in self.names or is_outside(name):
            return name
        near = difflib.get_close_matches(name, self.names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"{name!r} is not known: {hint}rows are {', '.join(self.names)}; your own is module:name")

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"enum": list(self.names)}, {"type": "string", "pattern": "^[^:]+:[^:]+$"}]}


#: Names of the rows whose functions stand in `accord.algo.table`.
RewardLoss = Annotated[str, Rows("bradley_terry", "best_of_k", "plackett_luce", "binary", "regression", "per_token")]
EnsembleRule = Literal["mean", "min", "uwo"]  # not of a user's own: a reward model's folder names one
Algorithm = Annotated[str, Rows("ppo", "reinforce", "reinforce_baseline", "rloo", "grpo", "dr_grpo", "dapo", "raft")]
#: What an algorithm sets unless it is given: the usual values of its paper, at our sizes. Naming the algorithm in a
#: layer (an override, say) brings them along, over the layers below.
ALGORITHM_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "reinforce": {"ppo_epochs": 1},
    "reinforce_baseline": {"ppo_epochs": 1},
    "rloo": {"ppo_epochs": 1, "prompts_per_iteration": 16, "samples_per_prompt": 4},
    "grpo": {"ppo_epochs": 1, "prompts_per_iteration": 8, "samples_per_prompt": 8, "kl_coef": 0.04},
    "dr_grpo": {"ppo_epochs": 1, "prompts_per_iteration": 8, "samples_per_prompt": 8, "kl_coef": 0.0},
    "dapo": {
        "ppo_epochs": 1,
        "prompts_per_iteration": 8,
        "samples_per_prompt": 8,
        "kl_coef": 0.0,
        "missing_eos_penalty": 0.0,
        "trust": {"clip_high": 0.28},
        "shaping": {"overlong_tokens": 16},
    },
    "raft": {"ppo_epochs": 1, "prompts_per_iteration": 8, "samples_per_prompt": 8, "kl_coef": 0.0},
}
#: Rows that compare completions of one prompt, and those that learn values; a test compares them with the table.
COMPARING = frozenset({"rloo", "grpo", "dr_grpo", "dapo", "raft"})
WITH_CRITIC = frozenset({"ppo"})
PreferenceLoss = Annotated[str, Rows("dpo", "cdpo", "ipo", "ipo_sum", "kto", "simpo", "orpo")]
#: What a preference loss sets unless it is given: the usual values of its paper.
PREFERENCE_DEFAULTS: Mapping[str, Mapping[str, Any]] = {"simpo": {"dpo_beta": 2.0}}


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


def exact_div(total: int, parts: int, total_name: str, parts_name: str) -> int:
    """``total / parts``, refused with both names where it leaves a remainder."""
    if total % parts:
        raise ValueError(f"{total_name} {total} is not a multiple of {parts_name} {parts}")
    return total // parts


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with what ``over`` names replaced; mappings merge key by key, everything else as a whole."""
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        out[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return out


def layered(kind: type[Section], base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``over`` on top, both partial values of a section.

    Where ``over`` names another row of a table, the row's usual values come with the name: they win over ``base``, and
    those of the row that ``base`` had go. What stands beside the name wins over both.
    """
    row, values = kind.usual
    if row in over and over[row] != (old := base.get(row, kind.model_fields[row].default)):
        base = merged(_without(base, values.get(str(old), {})), values.get(str(over[row]), {}))
    out = merged(base, over)
    for key, section in _nested(kind).items():
        if isinstance(over.get(key), dict):
            out[key] = layered(section, base.get(key, {}), over[key])
    return out


def _without(given: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """What is given, less what it says just as ``values`` do."""
    kept = {key: value for key, value in given.items() if key not in values or value != values[key]}
    inner = {key: value for key, value in values.items() if isinstance(value, dict) and isinstance(kept.get(key), dict)}
    return kept | {key: _without(kept[key], value) for key, value in inner.items()}


def _nested(section: type[Section]) -> dict[str, type[Section]]:
    """The keys of a section that are sections themselves."""
    found = {key: field.annotation for key, field in section.model_fields.items()}
    return {key: kind for key, kind in found.items() if isinstance(kind, type) and issubclass(kind, Section)}


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys, no silent conversion of types, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True)
    refused: ClassVar[Mapping[str, str]] = {}  # keys that users of other tools look for, and why they are not here
    usual: ClassVar[tuple[str, Mapping[str, Mapping[str, Any]]]] = ("", {})  # a key that names a row; what rows set

    @model_validator(mode="before")
    @classmethod
    def _onto_defaults(cls, given: Any) -> Any:
        """A partial nested section changes only what it names; the rest stays what *this* section defaults to."""
        if not isinstance(given, dict):
            return given
        row, values = cls.usual
        given = merged(values.get(str(given.get(row)), {}), given)
        defaults = {key: cls.model_fields[key].get_default(call_default_factory=True) for key in _nested(cls)}
        return {
            key: merged(defaults[key].model_dump(exclude_unset=True), value)
            if key in defaults and isinstance(value, dict)
            else value
            for key, value in given.items()
        }


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


class DataConfig(Section):
    """Which rankings the loop learns from: real ratings turned into rankings, and simulated annotators."""

    group_size: int = Field(9, ge=2, le=64, description="Most texts in one ranking (K).")
    deals: int = Field(2, ge=1, description="Rankings that each rated review is dealt into.")
    tie_width: float = Field(0.5, gt=0, description="Mean ratings that round to the same step of this width tie.")
    other_corpora: tuple[Literal["amazon", "editorial", "tweet", "word"], ...] = Field(
        ("amazon", "tweet", "word"), strict=False, description="Rated texts besides film reviews that are ranked too."
    )
    annotators: int = Field(8, ge=1, description="Simulated annotators; each keeps a hidden taste of its own.")
    ranked_prompts: int = Field(150, ge=1, description="Groups of SFT samples that the simulated annotators rank.")
    annotators_per_group: int = Field(2, ge=1, description="Simulated annotators that rank the same group.")
    simulated_weight: float = Field(1.0, gt=0, description="Weight of a simulated ranking against a human one.")


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

    rule: EnsembleRule = Field("mean", description="mean, min (the worst case) or uwo: mean minus variance.")
    variance_coef: float = Field(0.5, ge=0, description="Weight of the variance between members in uwo.")


class RewardConfig(Training):
    """The reward model: one score per completion, learned from judgements."""

    loss: RewardLoss = Field("bradley_terry", description="Row of the table of reward losses: pairs, orders, labels...")
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
    usual = ("algorithm", ALGORITHM_DEFAULTS)
    checkpoint_every: int = Field(10, ge=1, description="Rounds between checkpoints; a killed run resumes from one.")
    algorithm: Algorithm = Field("ppo", description="Row of the table of algorithms.")
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
    kl_in: Literal["auto", "reward", "loss", "loss_k3_naive"] = Field(
        "auto", description="Where that price is paid: auto = where the algorithm has it."
    )
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
        if self.algorithm in COMPARING and self.samples_per_prompt < 2:
            raise ValueError(
                f"{self.algorithm} compares completions of one prompt, and samples_per_prompt is "
                f"{self.samples_per_prompt}: 4 to 8 are usual"
            )
        if self.values.shared and self.algorithm not in WITH_CRITIC and not is_outside(self.algorithm):
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

    usual = ("loss", PREFERENCE_DEFAULTS)
    loss: PreferenceLoss = Field("dpo", description="Row of the table of preference losses.")
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


class UncuredConfig(Section):
    """A second optimisation without what keeps the first in bounds, for the report to show what then happens."""

    iterations: int = Field(0, ge=0, description="Rounds without the cure; 0 = no such run.")
    eval_every: int = Field(10, ge=1, description="Rounds between evaluations on validation prompts.")
    kl_coef: float = Field(0.0, ge=0, description="There: price of one nat of KL to the reference.")
    length_coef: float = Field(0.0, ge=0, description="There: how fast the price of a token moves.")
    max_new_tokens: int = Field(40, ge=1, description="There: room for the end; too little teaches to be short.")
    missing_eos_penalty: float = Field(1.0, ge=0, description="There: taken from the score of what did not end.")
    actor: OptimConfig = Field(OptimConfig(lr=1e-3, schedule="linear", eps=1e-5), description="There: optimiser.")


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


class QueueConfig(Section):
    """What waits for people at the end of a run."""

    prompts: int = Field(24, ge=0, description="Train prompts whose samples `accord label` then shows; 0: none.")


#: Folders of a seed of a comparison that are not those of its methods.
SHARED_STAGES = frozenset(
    {"data", "base", "tokenizer", "pretrain", "sft", "rankings", "reward", "labelled", "eval", "downloads"}
)


class CompareConfig(Section):
    """Several ways from one SFT policy and one reward model to a better policy, side by side."""

    seeds: tuple[int, ...] = Field((0, 1, 2), strict=False, min_length=1, description="One whole comparison per seed.")
    methods: dict[str, dict[str, Any]] = Field(
        {}, description="Name to {rl: ...}, {dpo: ...} (what differs from the recipe's own) or {best_of: n}."
    )
    labelled_prompts: int = Field(320, ge=1, description="Prompts whose SFT samples are labelled for the dpo methods.")
    labelled_per_prompt: int = Field(4, ge=2, description="Samples of each of them; the reward model ranks them.")


class Recipe(Section):
    """A whole run."""

    name: str = Field("recipe", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Names the run's folder.")
    seed: int = Field(0, ge=0, description="Decides every random choice of the run.")
    data: DataConfig = Field(DataConfig(), description="Rankings.")
    base: BaseConfig = Field(BaseConfig(), description="A given model in place of a pretrained one.")
    tokenizer: TokenizerConfig = Field(TokenizerConfig(), description="Tokenizer.")
    model: ModelConfig = Field(ModelConfig(), description="Shape of the backbone.")
    pretrain: PretrainConfig = Field(PretrainConfig(), description="Pretraining.")
    sft: SftConfig = Field(SftConfig(), description="Supervised fine-tuning.")
    sample: SampleConfig = Field(SampleConfig(), description="Samples that are ranked.")
    reward: RewardConfig = Field(RewardConfig(), description="Reward model.")
    rl: RlConfig = Field(RlConfig(), description="Policy optimisation.")
    dpo: DpoConfig = Field(DpoConfig(), description="Direct preference, in place of a reward model and rl.")
    uncured: UncuredConfig = Field(UncuredConfig(), description="The same optimisation without its cure.")
    eval: EvalConfig = Field(EvalConfig(), description="Evaluation.")
    queue: QueueConfig = Field(QueueConfig(), description="What waits for people at the end.")
    compare: CompareConfig = Field(CompareConfig(), description="A comparison of methods instead of one optimisation.")

    @model_validator(mode="after")
    def _methods_can_be_run(self) -> Self:
        for name in self.compare.methods:
            self.method(name)
        return self

    def method(self, name: str) -> RlConfig | DpoConfig | int:
        """The settings of one of the compared methods: the recipe's own section with what the method changes; n of
        best-of-n. Raises ValueError where they cannot be understood."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or name in SHARED_STAGES:
            raise ValueError(f"compare.methods.{name}: a method's folder cannot be called so; give it another name")
        given = self.compare.methods[name]
        if len(given) != 1 or not given.keys() <= {"rl", "dpo", "best_of"}:
            raise ValueError(
                f"compare.methods.{name} has {', '.join(given) or 'nothing'}: give one of rl, dpo, best_of"
            )
        ((stage, change),) = given.items()
        if stage == "best_of":
            if not isinstance(change, int) or change < 2:
                raise ValueError(f"compare.methods.{name}.best_of is {change!r}, not a number from 2 on")
            return change
        own: RlConfig | DpoConfig = getattr(self, stage)
        if not isinstance(change, dict):
            raise ValueError(f"compare.methods.{name}.{stage} is {_yaml_word(change)}: write `key: value` lines")
        try:
            made = type(own)(**layered(type(own), own.model_dump(exclude_unset=True), change))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(map(str, (name, stage, *first["loc"])))
            raise ValueError(f"compare.methods.{key}: {first['msg'].removeprefix('Value error, ')}") from error
        if isinstance(made, DpoConfig) and made.online:
            raise ValueError(
                f"compare.methods.{name}.dpo.online: the dpo methods of a comparison share labelled samples"
            )
        return made

    def check_lengths(self) -> None:
        """Refuse texts longer than the recipe's own model has positions; a given model is asked once it is there.

        Raises UsageError.
        """
        if self.base.model:
            return
        lengths = {
            "pretrain.block_tokens": self.pretrain.block_tokens,
            "sft.max_tokens": self.sft.max_tokens,
            "sample.max_new_tokens": self.sample.max_new_tokens,
            "reward.max_tokens": self.reward.max_tokens,
            "rl.max_new_tokens": self.rl.max_new_tokens,
            "rl.ptx.block_tokens": self.rl.ptx.block_tokens if self.rl.ptx.coef > 0 else 0,
            "uncured.max_new_tokens": self.uncured.max_new_tokens,
        }
        for key, length in lengths.items():
            if length > self.model.max_positions:
                raise UsageError(
                    f"{key} {length} is above model.max_positions {self.model.max_positions}",
                    where=f"recipe {self.name}",
                    mend=f"raise model.max_positions or lower {key}",
                )

    def resolved(self) -> dict[str, Any]:
        """Every key with its final value, ready for JSON: the run's ``resolved.json``."""
        return self.model_dump(mode="json")


# ---- YAML ------------------------------------------------------------------------------------------------------


class _Yaml(yaml.SafeLoader):
    """PyYAML's safe loader, but ``1e-4`` is a number (as in YAML 1.2) and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def _parse_yaml(text: str, where: str) -> tuple[Any, dict[tuple[str, ...], int]]:
    """The value of a YAML text and the line of each of its keys."""
    loader = _Yaml(text)
    try:
        node = loader.get_single_node()
        value = None if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise UsageError(
            f"not valid YAML: {getattr(error, 'problem', None) or error}",
            where=f"{where}:{mark.line + 1}" if mark else where,
            mend="a recipe is `key: value` lines, indented by two spaces below each section",
        ) from error
    finally:
        loader.dispose()
    return value, dict(_key_lines(node, ()))


def _key_lines(node: yaml.Node | None, path: tuple[str, ...]) -> Iterable[tuple[tuple[str, ...], int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, str(key.value))
            yield here, key.start_mark.line + 1
            yield from _key_lines(value, here)


# ---- layers of a recipe ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """Part of a configuration, and where each of its keys was given (for errors)."""

    values: dict[str, Any]
    name: str
    lines: Mapping[tuple[str, ...], int]

    def where(self, path: tuple[str, ...]) -> str:
        """``recipes/demo.yaml:12`` for the key or the nearest section above it."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.lines:
                return f"{self.name}:{self.lines[path[:end]]}"
        return self.name

    def holds(self, path: tuple[str, ...]) -> bool:
        value: Any = self.values
        for key in path:
            if not isinstance(value, dict) or key not in value:
                return False
            value = value[key]
        return True


def read_layer(path: Path) -> Layer:
    """Read a YAML mapping. Raises UsageError for a file that is missing, unreadable or not a mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot be read ({error})", where=str(path)) from error
    value, lines = _parse_yaml(text, str(path))
    if not isinstance(value, dict | None):
        raise UsageError(
            f"holds {_yaml_word(value)}, not a mapping",
            where=str(path),
            mend="write `key: value` lines",
        )
    return Layer(value or {}, str(path), lines)


def _override_layer(override: str) -> Layer:
    """``rl.kl_coef=0.02`` as a layer; the value is read as YAML."""
    key, equals, text = override.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(path):
        raise UsageError(
            f"{override!r} is not key=value", where="overrides", mend="write it like rl.kl_coef=0.02, without spaces"
        )
    value, _ = _parse_yaml(text, f"override {override}")
    for part in reversed(path):
        value = {part: value}
    return Layer(value, f"override {override}", {})


def _names_row(kind: type[Section], values: Mapping[str, Any]) -> bool:
    """Whether a row of a table is named: overrides that name one go first, so that the others win over its values."""
    inner = [(section, values[key]) for key, section in _nested(kind).items() if isinstance(values.get(key), dict)]
    return kind.usual[0] in values or any(_names_row(section, value) for section, value in inner)


def build(kind: type[S], layers: Sequence[Layer]) -> S:
    """The section that the layers describe together, the later winning. Raises UsageError at the first bad key."""
    known = _dotted(kind)
    for layer in layers:
        _check_keys(kind, layer, layer.values, (), known)
    values: dict[str, Any] = {}
    for layer in layers:
        values = layered(kind, values, layer.values)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        details = error.errors(include_url=False)
        told = "\n".join(_told(detail, layers) for detail in details)
        raise UsageError(told, mend=_meaning(kind, details[0]) if len(details) == 1 else "") from error


def _dotted(kind: type[Section]) -> list[str]:
    """Every dotted key below a section."""
    nested = _nested(kind)
    return [
        name
        for key in kind.model_fields
        for name in ([f"{key}.{inner}" for inner in _dotted(nested[key])] if key in nested else [key])
    ]


def _check_keys(kind: type[Section], layer: Layer, values: Any, path: tuple[str, ...], known: list[str]) -> None:
    """Refuse unknown keys (``known`` feeds the suggestion), and anything but a mapping where a section stands."""
    if not isinstance(values, dict):
        raise UsageError(
            f"{'.'.join(path)} is a section, got {_yaml_word(values)}",
            where=layer.where(path),
            mend=f"set keys below it, for example {'.'.join(path)}.{next(iter(kind.model_fields))}",
        )
    nested = _nested(kind)
    for key, value in values.items():
        here = (*path, str(key))
        if key in kind.refused:
            raise UsageError(f"{'.'.join(here)} is refused", where=layer.where(here), why=kind.refused[key])
        if key not in kind.model_fields:
            raise UsageError(
                f"unknown key {'.'.join(here)!r}",
                where=layer.where(here),
                mend=_suggestion(kind, path, str(key), known),
            )
        if key in nested:
            _check_keys(nested[key], layer, value, here, known)


def _suggestion(kind: type[Section], path: tuple[str, ...], key: str, known: list[str]) -> str:
    """Did you mean: the same key elsewhere, else a key of this section spelt nearly so, else one elsewhere."""
    leaves = {name.rsplit(".", 1)[-1] for name in known}
    near = difflib.get_close_matches(key, kind.model_fields, n=1, cutoff=0.6)
    if near and key not in leaves:
        return f"did you mean {'.'.join((*path, near[0]))!r}?"
    leaf = difflib.get_close_matches(key, leaves, n=1, cutoff=0.8)
    places = [name for name in known if leaf and name.rsplit(".", 1)[-1] == leaf[0]]
    places.sort(key=lambda name: not name.startswith(".".join(path)))
    if places:
        return "did you mean " + " or ".join(repr(place) for place in places[:4]) + "?"
    return "keys here: " + ", ".join(kind.model_fields)


def _told(detail: ErrorDetails, layers: Sequence[Layer]) -> str:
    path = tuple(str(part) for part in detail["loc"])
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] != "value_error":
        message = f"{message[0].lower()}{message[1:]}, got {detail['input']!r}"
    for end in range(len(path), 0, -1):
        giver = next((layer for layer in reversed(layers) if layer.holds(path[:end])), None)
        if giver:
            return f"{giver.where(path[:end])}: {'.'.join(path)}: {message}"
    return f"{'.'.join(path) or layers[-1].name}: {message}"


def _meaning(kind: type[Section], detail: ErrorDetails) -> str:
    """What the offending key is for."""
    field: FieldInfo | None = None
    fields: Mapping[str, FieldInfo] = kind.model_fields
    for part in detail["loc"]:
        if str(part) not in fields:
            break
        field = fields[str(part)]
        inner = field.annotation
        fields = inner.model_fields if isinstance(inner, type) and issubclass(inner, Section) else {}
    return f"this key means: {field.description}" if field is not None and field.description else ""


def _yaml_word(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: f"the text {value!r}", type(None): "nothing"}
    return names.get(type(value), repr(value))


# ---- doors -----------------------------------------------------------------------------------------------------


def shipped_recipes() -> dict[str, Path]:
    """Name and path of the recipes that come with Accord: inside the wheel, or the repository's own folder."""
    here = Path(__file__).resolve()
    folders = (here.parent / "recipes", here.parents[2] / "recipes")
    folder = next((folder for folder in folders if folder.is_dir()), folders[0])
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(recipe: str | Path) -> Path:
    """A path as it stands, or the name of a shipped recipe."""
    path = Path(recipe)
    if path.is_file():
        return path
    shipped = shipped_recipes()
    if str(recipe) in shipped:
        return shipped[str(recipe)]
    near = difflib.get_close_matches(path.stem, shipped, n=1)
    raise UsageError(
        f"no recipe {str(recipe)!r}",
        why="it is neither a file nor one of the shipped recipes",
        mend=f"did you mean {near[0]!r}?" if near else "give a YAML file or one of: " + ", ".join(shipped),
    )


def recipe_layers(recipe: str | Path) -> list[Layer]:
    """The recipe's own layer, above those of the recipe that it ``extends`` (a name, or a path beside it)."""
    layers: list[Layer] = []
    path: Path | None = find_recipe(recipe)
    while path is not None:
        layer = read_layer(path)
        if any(layer.name == seen.name for seen in layers):
            raise UsageError("recipes extend each other in a circle", where=layer.where(("extends",)))
        layers.insert(0, Layer({k: v for k, v in layer.values.items() if k != "extends"}, layer.name, layer.lines))
        base = layer.values.get("extends")
        path = None if base is None else _base_recipe(layer, base)
    return layers


def _base_recipe(layer: Layer, base: Any) -> Path:
    if not isinstance(base, str):
        raise UsageError(f"extends is {_yaml_word(base)}, not the name of a recipe", where=layer.where(("extends",)))
    beside = Path(layer.name).parent / base
    try:
        return find_recipe(beside if beside.is_file() else base)
    except UsageError as error:
        raise UsageError(error.what, where=layer.where(("extends",)), why=error.why, mend=error.mend) from error


def load_recipe(recipe: str | Path | None, overrides: Sequence[str] = (), *, defaults: Layer | None = None) -> Recipe:
    """Read a recipe by path or shipped name and apply ``key=value`` overrides.

    Args:
        recipe: A YAML file, or the name of a recipe that comes with Accord ("demo"); None for the defaults alone,
            as a single stage on a user's own model needs them (the recipe's ``model`` section then says nothing).
        overrides: Dotted, typed by YAML: ``rl.kl_coef=0.02``.
        defaults: A project's own defaults; the recipe wins over them.

    Raises:
        UsageError: For anything that cannot be understood, with file, line, key and a suggestion.
    """
    layers = [defaults] if defaults else []
    if recipe is not None:
        own = recipe_layers(recipe)
        named_by_file = Layer({"name": Path(own[-1].name).stem}, own[-1].name, {})
        layers += [*own[:-1], named_by_file, own[-1]]
    given = sorted(map(_override_layer, overrides), key=lambda layer: not _names_row(Recipe, layer.values))
    made = build(Recipe, [*layers, *given])
    if recipe is not None:
        made.check_lengths()
    return made


def load_label(overrides: Sequence[str] = (), *, defaults: Layer | None = None) -> LabelConfig:
    """A project's settings of labelling (its key ``label``), with ``key=value`` overrides on top.

    Raises:
        UsageError: For anything that cannot be understood, with file, line, key and a suggestion.
    """
    return build(LabelConfig, [*([defaults] if defaults else []), *map(_override_layer, overrides)])


def describe(section: Section) -> list[tuple[str, Any, str]]:
    """Every dotted key below a section with its value and its meaning: what --help and the docs show."""
    rows: list[tuple[str, Any, str]] = []
    for key, field in type(section).model_fields.items():
        value = getattr(section, key)
        if isinstance(value, Section):
            rows += [(f"{key}.{inner}", *rest) for inner, *rest in describe(value)]
        else:
            rows.append((key, value, field.description or ""))
    return rows


def recipe_schema() -> dict[str, Any]:
    """JSON Schema of a recipe's YAML, for editors: keys complete and explain themselves."""
    schema = Recipe.model_json_schema()
    schema["properties"]["extends"] = {"type": "string", "description": "A recipe whose keys hold unless given here."}
    return schema


def without_device(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, nested as they are, without any key ``device``: it does not make two runs different."""
    return {
        key: without_device(value) if isinstance(value, Mapping) else value
        for key, value in settings.items()
        if key != "device"
    }
