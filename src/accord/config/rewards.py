"""Settings of scores: the reward model, and scores of other kinds beside it or in its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from accord.config.base import Section, refuse_unread
from accord.config.training import (
    SHARE_SPELLINGS,
    EnsembleRuleName,
    LoraConfig,
    OptimConfig,
    OwnFunction,
    Regex,
    RewardLossName,
    Training,
)


class PairsConfig(Section):
    """How ordered pairs are read, by the losses that read pairs (bradley_terry, per_token)."""

    # Dropping is InstructGPT's, and what the demo was tuned with.
    ties: Literal["drop", "half"] = Field("drop", description="A tie is no pair, or one with a probability of a half.")
    # Llama 2: average accuracy 62.5 without, 63.0 with the small table, 62.9 with the large one; Llama 3 dropped it.
    margin: Literal["none", "small", "large", "given"] = Field(
        "none", description="Least gap: Llama 2's tables by strength (to 1 or to 3), or the pair's own number."
    )
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="Share of judgements taken for turned around.")


class CombineConfig(Section):
    """How the scores of several heads or models become one. Each is normalised on its own before."""

    rule: EnsembleRuleName = Field("mean", description="mean, min (the worst case) or uwo: mean minus variance.")
    # Coste's for best of n; for PPO they take 0.1.
    variance_coef: float = Field(0.5, ge=0, description="Weight of the variance between members in uwo.")


class RewardConfig(Training):
    """The reward model: one score per completion, learned from judgements."""

    loss: RewardLossName = Field("bradley_terry", description="Row of the table of reward losses: pairs, orders, ...")
    pairs: PairsConfig = Field(PairsConfig(), description="Ties, margins and noise of pairs.")
    # InstructGPT and N+: one. In the demo five deals instead of three lost .009 on validation films.
    epochs: int = Field(1, ge=1, description="Passes over the judgements; more than a few overfit.")
    groups_per_step: int = Field(8, ge=1, description="Rankings per optimiser step; each weighs the same, whatever K.")
    max_tokens: int = Field(
        0, ge=0, description="Longer texts lose their end, here and when scoring, and are counted; 0 = the context."
    )
    micro_batch_tokens: int = Field(8192, ge=1, description="Tokens per forward pass; changes memory, not the loss.")
    # Eisenstein's and TRL's: pairs alone leave the level free, and it drifts.
    center_coef: float = Field(0.01, ge=0, description="Pulls scores towards mean 0 (Eisenstein 2312.09244, eq. 2).")
    l2_coef: float = Field(0.0, ge=0, description="Weight of the mean squared score, which keeps scores small.")
    # As lm-human-preferences; zero is for who wants to see that nothing was known at the start.
    head_init: Literal["normal", "zero"] = Field("normal", description="A new head: N(0, 1 / sqrt(width + 1)), or 0.")
    heads: int = Field(1, ge=1, description="Heads on the one trunk; more than one are an ensemble.")
    combine: CombineConfig = Field(CombineConfig(), description="How several heads become one score.")
    # The logit, as Llama 2 takes it: a saturated probability tells the policy nothing.
    transform: Literal["logit", "probability"] = Field(
        "logit", description="Score of a binary model: the head's log-odds, normalised, or the chance of good."
    )
    token_dropout: float = Field(0.0, ge=0, lt=1, description="Share of a completion's tokens hidden while training.")
    pooled_coef: float = Field(0.0, ge=0, description="Weight of the same loss on the head's mean over positions.")
    bag_coef: float = Field(0.0, ge=0, description="Weight of the same loss on the head's mean over bare embeddings.")
    self_distill_coef: float = Field(
        0.0, ge=0, description="Weight of agreeing with the mean of the score and these two readings."
    )
    # In the demo .763 -> .768 on test films in the reward stage alone, and held-out 5.57 -> 5.44 nats in pretraining.
    share_spellings: bool = Field(False, description=SHARE_SPELLINGS)
    # 16 of SmolLM2's 30 layers and two deals ordered .911 of the test pairs, 12 layers and one deal .821.
    trunk_layers: int = Field(0, ge=0, description="Build on this many first layers of the given model; 0 = all.")
    freeze_embeddings: bool = Field(False, description="Leave the embeddings as they are in the given model.")
    lora: LoraConfig = Field(LoraConfig(), description="Train an adapter and the head instead of all weights.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Share of activations dropped while training.")
    optim: OptimConfig = Field(OptimConfig(lr=3e-4, weight_decay=0.1), description="Optimiser.")

    @model_validator(mode="after")
    def _a_text_has_room(self) -> Self:
        if self.max_tokens == 1:
            raise ValueError("max_tokens is 1: a text needs a token of its own and the end token")
        return self

    @model_validator(mode="after")
    def _several_heads_are_combined(self) -> Self:
        if self.heads == 1:
            refuse_unread(self, ("combine",), "heads is 1")
        return self

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


class ChatConfig(Section):
    """A chat model behind an OpenAI-compatible URL that says which of two completions is better, asked in both orders.

    Temperature is 0. What it is asked, word by word, stands in `accord.scoring.chat_prompts`.
    """

    url: str = Field(pattern=r"^https?://.+$", description="The API's address, like http://127.0.0.1:8000/v1.")
    model: str = Field(min_length=1, description="The model's name there.")
    # The name alone: a key in a recipe would be copied into every run's folder.
    key_env: str = Field(
        "",
        pattern=r"^([A-Z][A-Z0-9_]*)?$",
        description="Environment variable that holds the API key; empty = none is sent.",
    )
    criteria: str = Field("", description="What makes a completion better, in a sentence or two; empty = usual words.")
    # One line is asked for; a model that thinks before it needs room, and what it does not use costs nothing.
    max_tokens: int = Field(1024, ge=1, description="Most tokens of a reply.")
    concurrency: int = Field(4, ge=1, le=256, description="Requests at a time.")
    timeout_s: float = Field(60.0, gt=0, description="Seconds to wait for one reply.")


class ScorerConfig(Section):
    """One of several scores that are added up, and who compares completions: chat.

    It is one of six: model, ensemble, function, regex, http or chat.
    """

    KINDS: ClassVar[tuple[str, ...]] = ("model", "ensemble", "function", "regex", "http", "chat")
    NEEDS: ClassVar[Mapping[str, str]] = {
        "combine": "ensemble",
        "absent": "regex",
        "timeout_s": "http",
        "batch_size": "http",
    }

    name: str = Field("", pattern=r"^([a-z][a-z0-9_]*)?$", description="In metrics: part_NAME; empty = what it is.")
    # 0 too: watching a score then needs no second mechanism.
    weight: float = Field(1.0, description="Its score counts this much; below 0 it costs, 0 = only measured.")
    model: str = Field("", description="Folder of a reward model.")
    ensemble: tuple[str, ...] = Field((), strict=False, description="Folders of reward models that score as one.")
    combine: CombineConfig = Field(CombineConfig(), description="With ensemble: how its members' scores become one.")
    function: OwnFunction = Field("", description="module:function(prompts, completions), one number a completion.")
    regex: Regex = Field("", description="1 where this is found in the completion, else 0.")
    absent: bool = Field(False, description="With regex: 1 where it is not found.")
    http: str = Field("", pattern=r"^(https?://.+)?$", description="URL that answers a POST of texts with scores.")
    chat: ChatConfig | None = Field(None, description="A chat model that compares two completions; gives no scores.")
    timeout_s: float = Field(30.0, gt=0, description="With http: seconds to wait for one answer.")
    batch_size: int = Field(64, ge=1, description="With http: most completions in one request.")

    @model_validator(mode="after")
    def _is_one_kind(self) -> Self:
        given = [kind for kind in self.KINDS if getattr(self, kind)]
        if len(given) != 1:
            named = " and ".join(given) or "none"
            raise ValueError(f"a reward is exactly one of {', '.join(self.KINDS)}; given: {named}")
        fields = type(self).model_fields
        for option, kind in self.NEEDS.items():
            if getattr(self, option) != fields[option].default and kind != self.kind:
                raise ValueError(f"{option} has no effect without {kind}")
        return self

    @property
    def kind(self) -> str:
        """Which of the six it is."""
        return next(kind for kind in self.KINDS if getattr(self, kind))

    @property
    def label(self) -> str:
        """What it is called in metrics."""
        return self.name or self.kind
