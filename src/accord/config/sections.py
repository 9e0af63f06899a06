"""Sections of a recipe about the model, its first training, its samples, its evaluation, and what people are asked."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from accord.config.base import Rows, Section, exact_div
from accord.config.enough import EnoughConfig
from accord.config.rewards import ScorerConfig
from accord.config.training import SHARE_SPELLINGS, LoraConfig, OptimConfig, Training

ModelKind = Literal["llama", "lstm"]


class BaseConfig(Section):
    """A model to start from. The recipe then trains no tokenizer and pretrains nothing."""

    model: str = Field("", description="A name (smollm2), a Hugging Face folder or a GGUF file; empty = pretrain one.")


class TokenizerConfig(Section):
    """Byte-level BPE, trained on the recipe's own texts."""

    # In the demo 8,192 entries ordered .006 more of the held-out pairs as people do: more sentiment words are whole
    # tokens.
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
    # 8/3 of the width, as Llama: three matrices of a gated unit then weigh what two of 4 widths do.
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
    # Few demonstrations, several passes: InstructGPT's baseline has 0.2; N+, with 117,000, has none.
    dropout: float = Field(0.1, ge=0, lt=1, description="Share of activations dropped while training.")
    lora: LoraConfig = Field(LoraConfig(), description="Train an adapter instead of all weights.")
    optim: OptimConfig = Field(OptimConfig(lr=5e-4, weight_decay=0.1), description="Optimiser.")


class SampleConfig(Section):
    """How completions are drawn from a policy."""

    # InstructGPT's smallest K (4 to 9): six pairs of four forward passes.
    samples_per_prompt: int = Field(4, ge=1, description="Completions per prompt (K).")
    max_new_tokens: int = Field(80, ge=1, description="Most tokens per completion, the end token included.")
    temperature: float = Field(1.0, gt=0, description="Divides the logits; 1.0 samples the policy's own distribution.")
    top_k: int = Field(0, ge=0, description="Draw from the k likeliest tokens only; 0 = from all.")
    top_p: float = Field(1.0, gt=0, le=1, description="Draw from the likeliest tokens that make up this probability.")
    best_of: int = Field(1, ge=1, description="Each completion is the best of so many, by a scorer; 1 = as drawn.")
    generator: Annotated[str, Rows(("engine", "vllm"))] = Field(
        "engine", description="What writes them: engine, vllm in a process of its own, or module:NAME of your own."
    )

    def drawing(self) -> dict[str, Any]:
        """Return how one completion is drawn: the keys of `accord.rollout.engine.Sampling`."""
        return self.model_dump(exclude={"best_of", "generator"})


class AskConfig(Section):
    """Who says which of the policy's samples are better."""

    who: Annotated[str, Rows(("nobody", "people", "panel", "simulated", "scorer"))] = Field(
        "nobody",
        description="nobody, people (the run waits for them), panel (simulated annotators), simulated (one), scorer, "
        "or module:NAME.",
    )
    prompts: int = Field(150, ge=1, description="Train prompts whose samples they rank, in each round.")
    choose: Annotated[str, Rows(("in_order", "random", "uncertain"))] = Field(
        "in_order",
        description="Which prompts: in_order, random, uncertain (where reward models disagree), or module:NAME.",
    )
    # Candidates cost samples, not people: with more the best are better, and each answer is dearer in machine time.
    pool: int = Field(
        4, ge=2, description="choose: uncertain; so many times as many prompts are sampled to choose from."
    )
    kind: Annotated[str, Rows(("ranking", "pair", "rating", "label"))] = Field(
        "ranking", description="What people are asked of a prompt's samples; pair: of every two of them."
    )
    overlap: int = Field(1, ge=1, le=1000, description="who: people, panel; how many of them answer each task.")
    annotators: int = Field(8, ge=1, le=1000, description="who: panel; simulated annotators, each with its own taste.")
    enough: EnoughConfig = Field(EnoughConfig(), description="who: people; what ends the waiting, or just a number.")
    simulated: bool = Field(False, description="who: people; also take what `accord simulate` answers in their place.")
    weight: float = Field(1.0, gt=0, description="Weight of one of their rankings against one that stands already.")
    scorer: ScorerConfig | None = Field(None, description="who: scorer; what ranks the samples.")
    queue: int = Field(24, ge=0, description="Train prompts whose samples of the new policy wait for people; 0: none.")

    @model_validator(mode="after")
    def _a_scorer_is_named(self) -> Self:
        if (self.who == "scorer") != (self.scorer is not None):
            raise ValueError("scorer says what ranks where who is scorer: give both or neither")
        if self.annotators != type(self).model_fields["annotators"].default and self.who != "panel":
            raise ValueError(f"annotators says how many the panel has, and who is {self.who}")
        return self

    @model_validator(mode="after")
    def _people_can_agree(self) -> Self:
        if self.enough.agreement and self.overlap < 2:
            raise ValueError("enough.agreement needs tasks that two people answer: give overlap 2 or more")
        return self

    @model_validator(mode="after")
    def _somebody_is_asked(self) -> Self:
        if self.who == "nobody" and self.choose != "in_order":
            raise ValueError(f"choose is {self.choose}, and who is nobody: say who is asked about the prompts")
        if self.pool != type(self).model_fields["pool"].default and self.choose in ("in_order", "random"):
            raise ValueError(f"pool is what choose: uncertain chooses from, and choose is {self.choose}")
        return self


class PeopleJudgeConfig(Section):
    """People as judges: blind pairs of a champion's and a candidate's completions for test prompts."""

    prompts: int = Field(0, ge=0, description="Test prompts whose pairs people judge in each round; 0 = none.")
    overlap: int = Field(1, ge=1, le=1000, description="People who judge each pair.")
    enough: EnoughConfig = Field(EnoughConfig(), description="What ends the waiting, as ask.enough says it.")
    simulated: bool = Field(False, description="Also take what `accord simulate` answers; pages then call it that.")

    @model_validator(mode="after")
    def _judges_can_agree(self) -> Self:
        if self.enough.agreement and self.overlap < 2:
            raise ValueError("enough.agreement needs pairs that two people judge: give overlap 2 or more")
        return self


class EvalConfig(Section):
    """What is measured on prompts that nothing was trained on, and the floors that must hold."""

    judges: dict[str, ScorerConfig] = Field(
        {}, description="Name to {model | function | regex | http ...}: judges besides the task's own."
    )
    people: PeopleJudgeConfig = Field(PeopleJudgeConfig(), description="People who judge, before all programs.")
    # The more samples a prompt, the less of the interval is luck of the draw; prompts (topics) are what there are few
    # of.
    samples_per_prompt: int = Field(4, ge=1, description="Completions per test prompt and policy.")
    best_of: int = Field(4, ge=2, description="n of the best-of-n baseline: the reward model picks one of n.")
    bootstrap: int = Field(2000, ge=100, description="Resamples (by topic) behind each 95 % interval.")
    curve_samples: int = Field(
        16, ge=1, description="The reference's samples per validation prompt behind the best-of-n curve."
    )
    # At 37 nats the demo's texts were lists ("funny, funny, funny"), and the linear judge liked them.
    kl_ceiling: float = Field(15.0, gt=0, description="A snapshot further from the reference (nats) is not chosen.")
    # Part of many a published win rate is length: N+'s completions grew from 30 to 40 tokens and more in every run.
    length_low: float = Field(0.8, ge=0, description="Floor: least mean length, as a share of the reference's.")
    length_high: float = Field(1.25, gt=0, description="Floor: largest mean length, as a share of the reference's.")
    nll_excess: float = Field(0.5, gt=0, description="Floor: most nats a token above the reference's own, under it.")
    distinct_share: float = Field(0.95, ge=0, le=1, description="Floor: least share of distinct completions.")
    gate_attacks: Literal["warn", "refuse"] = Field(
        "warn", description="What a run's gate says where texts that say nothing fool the reward model."
    )
    gate_overrule: bool = Field(
        False, description="Optimise although the reward model's gate says refuse; the report says so."
    )


#: What people are asked to do with the completions of a prompt; how is said in `accord.people.desk.answers`.


class AxisConfig(Section):
    """One question on a scale of whole numbers."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}$", description="Names the axis.")
    low: int = Field(1, description="Worst value.")
    # 1 to 7: the scale of summarize-from-feedback and of InstructGPT.
    high: int = Field(7, description="Best value.")
    question: str = Field("", description="What is asked.")

    @model_validator(mode="after")
    def _is_a_scale(self) -> Self:
        if not 1 <= self.high - self.low <= 10:
            raise ValueError(f"a scale from {self.low} to {self.high} has not 2 to 11 values")
        return self


#: Names of `accord.people.desk.kinds.FEEDBACK_KINDS` (a test holds them equal): a wrong one is refused with its line.
FEEDBACK_NAMES = ("pair", "ranking", "rating", "label", "demonstration")


class LabelConfig(Section):
    """What annotators are asked, and how long they may take: the key ``label`` of a project's accord.yaml."""

    kind: Annotated[str, Rows(FEEDBACK_NAMES)] = Field(
        "ranking", description="What is asked where a task does not say it; yours is module:NAME."
    )
    own_kinds: tuple[str, ...] = Field(
        (), strict=False, description="Kinds of feedback of your own, module:NAME, that tasks may ask for."
    )
    overlap: int = Field(1, ge=1, le=1000, description="People who answer a task, where it does not say how many.")
    # InstructGPT's three.
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
    # A reason each: a skip that explains itself shows which prompts to mend and which people to help.
    skip_reasons: tuple[str, ...] = Field(
        ("unclear prompt", "not my field", "cannot decide", "upsetting", "technical problem"),
        strict=False,
        min_length=1,
        description="Why a task may be skipped.",
    )
    min_seconds: float = Field(0.0, ge=0, le=3600, description="Least time with a task in view before it is answered.")
    # A task that nobody comes back to must return to the others: expired locks are what users of other tools complain
    # of.
    lease_minutes: float = Field(20.0, gt=0, le=1440, description="How long a task is kept for who claimed it.")
    # Slips are seen at once; later, an answer may stand in somebody's training data.
    undo_minutes: float = Field(10.0, ge=0, description="How long an answer can be taken back.")

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        for key, names in (("axes", [axis.name for axis in self.axes]), ("flags", self.flags)):
            if len(set(names)) < len(names):
                raise ValueError(f"one of the {key} stands there twice: {', '.join(names)}")
        return self


class CompareConfig(Section):
    """Several ways from one policy and one reward model to a better one, side by side."""

    seeds: tuple[int, ...] = Field((0, 1, 2), strict=False, min_length=1, description="One whole comparison per seed.")
    methods: dict[str, dict[str, Any]] = Field(
        {}, description="Name to {rl: ...}, {dpo: ...} (what differs from the recipe's own) or {best_of: n}."
    )
    labelled_prompts: int = Field(
        320, ge=1, description="Prompts whose samples of that policy are labelled for the dpo methods."
    )
    labelled_per_prompt: int = Field(4, ge=2, description="Samples of each of them; the reward model ranks them.")
