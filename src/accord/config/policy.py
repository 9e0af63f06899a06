"""How a policy is improved: against scores (``rl``), or on judgements directly (``dpo``)."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from accord.algo.table import POLICY_ALGORITHMS, PREFERENCE_LOSSES, PolicyAlgorithm, defaults_of
from accord.config.base import Section, exact_div, refuse_unread
from accord.config.rewards import ScorerConfig
from accord.config.rollout import RolloutConfig
from accord.config.training import (
    ON_ALARM,
    AlgorithmName,
    DpoLoraConfig,
    KlPlaceName,
    OnAlarm,
    OptimConfig,
    OwnFunction,
    PreferenceLossName,
    Regex,
    RlLoraConfig,
    Training,
)

# pi = .30, .28, .22, .20 against ref = .40, .35, .15, .10: KL .074. From samples of pi's top two it comes out at -.257.
TRUNCATED = (
    "the samples would follow another distribution than the one that is trained, and their KL comes out negative; "
    "use temperature to sharpen it"
)


class PromptsConfig(Section):
    """Which prompts of the file are used; those left out are counted."""

    max_tokens: int = Field(0, ge=0, description="Longer prompts are left out; 0 = none is.")
    regex: Regex = Field("", description="Prompts in which this is not found are left out.")
    function: OwnFunction = Field("", description="Prompts for which module:function(prompt) is false are left out.")


class TrustConfig(Section):
    """How far one update may move the policy, besides ``rl.clip``."""

    clip_high: float | None = Field(None, gt=0, description="Instead of clip above 1 (DAPO: 0.28); null = clip.")
    # verl's is 3.
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

    # Two networks since Stiennon: through a shared trunk, value gradients bend the policy.
    shared: bool = Field(False, description="A head on the policy's own trunk instead of a network of its own.")
    clip: float = Field(0.2, gt=0, description="A value may move this far from the rollout's; beyond, clipped.")
    # OpenAI's vf_coef. Above it a shared trunk's policy is bent by its values.
    coef: float = Field(0.1, gt=0, description="Weight of the value loss.")
    warmup: int = Field(0, ge=0, description="First rounds in which the critic learns alone, the policy held still.")

    @model_validator(mode="after")
    def _a_critic_alone_has_weights_of_its_own(self) -> Self:
        if self.warmup and self.shared:
            raise ValueError("warmup holds the policy still, and shared values learn on its trunk: leave one out")
        return self


class ShapingConfig(Section):
    """What a score goes through before it is a reward, besides ``rl.missing_eos_penalty`` and the length controller."""

    scale: bool = Field(False, description="Divide scores by the running deviation of all so far.")
    # DeepSpeed-Chat 5, trlx and OpenRLHF 10.
    clip: float | None = Field(None, gt=0, description="Scores are held within +- this, before penalties.")
    length_penalty: float = Field(0.0, description="Taken from the score a token of the completion.")
    overlong_tokens: int = Field(0, ge=0, description="Over this many last tokens of the room the score falls by 1.")
    whiten: bool = Field(False, description="PPO: set the spread of rewards to 1; it shortens completions.")


class PtxConfig(Section):
    """Plain texts that are not to be forgotten: their loss is added to every update (PPO-ptx)."""

    # InstructGPT's 27.8 belongs to its own averaging; 0.1 to 1 is where to start.
    coef: float = Field(0.0, ge=0, description="Weight of that loss; 0 = off.")
    blocks: int = Field(16, ge=1, description="Blocks of text an update.")
    block_tokens: int = Field(64, ge=8, description="Tokens of one block.")


class RlConfig(Training):
    """Optimise the policy against the reward model without drifting from the reference."""

    refused = dict.fromkeys(("top_k", "top_p"), TRUNCATED)
    usual = ("algorithm", defaults_of(POLICY_ALGORITHMS))
    checkpoint_every: int = Field(10, ge=1, description="Rounds between checkpoints; a killed run resumes from one.")
    # Defaults are those of N+ (arXiv:2403.17031, PPO on TL;DR) where nothing else is said: 4 passes of one minibatch,
    # clip .2, lambda .95, KL .05, Adam's eps 1e-5, rates linearly to 0.
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
    # One for both: with logits divided in the samples alone, KL climbs faster (N).
    temperature: float = Field(1.0, gt=0, description="Of the samples and of every log-probability alike.")
    ppo_epochs: int = Field(4, ge=1, description="Passes over one round's samples.")
    # N+: 4 passes of 1; InstructGPT: 1 pass of 8. Both make several steps on one rollout.
    minibatches: int = Field(1, ge=1, description="Optimiser steps per pass; must divide the samples of a round.")
    # Where all samples fit, the rollout's forward pass is the first update's.
    micro_batch_tokens: int = Field(8192, ge=1, description="Tokens per forward pass; changes memory, not the loss.")
    clip: float | None = Field(
        0.2, gt=0, lt=1, description="The probability ratio is clipped to 1 - clip .. 1 + clip; null = free."
    )
    # 0 in all of OpenAI's work on language models and in 85 of 93 of verl's example scripts.
    entropy_coef: float = Field(0.0, ge=0, description="Bonus a nat of entropy at each token; it can run away.")
    trust: TrustConfig = Field(TrustConfig(), description="How far one update may go.")
    values: ValuesConfig = Field(ValuesConfig(), description="The critic's values.")
    kl_coef: float = Field(0.05, ge=0, description="Price of one nat of KL to the reference, per token (start value).")
    # Ziegler's is 6 nats from 0.15 on, over 10,000 episodes.
    kl_target: float | None = Field(None, gt=0, description="Nats per completion to steer to; null: kl_coef stays.")
    kl_in: KlPlaceName = Field("auto", description="Where that price is paid: auto = where the algorithm has it.")
    discount: float = Field(1.0, gt=0, le=1, description="Of later rewards; 1 because completions are finite.")
    # OpenAI's and TRL's; OpenRLHF and verl take 1.
    gae_lambda: float = Field(0.95, ge=0, le=1, description="GAE: 0 trusts the critic, 1 trusts the samples.")
    # TRL's in its TL;DR example; N+ sets the whole score to -1 instead, which forgets how good the text was.
    missing_eos_penalty: float = Field(1.0, ge=0, description="Taken from the score of a completion that did not end.")
    shaping: ShapingConfig = Field(ShapingConfig(), description="From score to reward.")
    ptx: PtxConfig = Field(PtxConfig(), description="Texts not to be forgotten.")
    # What is still missing then stays, with advantages of 0: every iteration has the same number of updates.
    redraws: int = Field(3, ge=0, description="dapo: how often prompts whose scores are all equal are replaced.")
    length_coef: float = Field(
        0.0, ge=0, description="How fast the price of a token moves to hold the length; 0 = off."
    )
    eval_every: int = Field(10, ge=1, description="Rounds between evaluations on validation prompts.")
    rollout: RolloutConfig = Field(RolloutConfig(), description="Who draws the samples.")
    on_alarm: OnAlarm = Field("warn", description=ON_ALARM)
    lora: RlLoraConfig = Field(RlLoraConfig(), description="Train an adapter of the policy instead of all weights.")
    actor: OptimConfig = Field(
        # A warm-up, as PyTorch's Adam moves harder at first than TensorFlow's did: first ratios to 1.81 against 1.23.
        # The critic's rate is 2 to 3 times the actor's.
        OptimConfig(lr=1e-4, schedule="linear", eps=1e-5, warmup_ratio=0.1),
        description="Optimiser of the policy.",
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
        if row is not None:
            refuse_unread_policy_settings(self, row)
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
    def _the_policy_learns_too(self) -> Self:
        if self.values.warmup >= self.iterations:
            of_all = f"values.warmup {self.values.warmup} of {self.iterations} iterations"
            raise ValueError(f"{of_all} leaves the policy none")
        return self

    @model_validator(mode="after")
    def _something_holds_the_ratio(self) -> Self:
        # Several passes with a free ratio leave the samples' distribution without a word.
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


#: What only a critic, or advantages made with one, read. Not its optimiser and adapter: `accord run RECIPE
#: rl.algorithm=grpo` leaves those of the recipe's PPO without a critic to train, and nothing is lost.
WITH_CRITIC = ("values", "gae_lambda", "discount", "shaping.whiten")
WITH_RATIO = ("clip", "trust.clip_high", "trust.dual_clip")


def refuse_unread_policy_settings(config: RlConfig, row: PolicyAlgorithm) -> None:
    """Refuse settings that this row does not read, and several passes over samples that it holds for its own.

    Raises ValueError.
    """
    if not row.critic:
        refuse_unread(config, WITH_CRITIC, f"{config.algorithm} learns no values")
    if not row.drop_zero_variance:
        refuse_unread(config, ("redraws",), f"{config.algorithm} keeps prompts whose scores are all equal")
    if not config.ptx.coef:
        refuse_unread(config, ("ptx",), "ptx.coef is 0")
    if row.has_ratio:
        return
    refuse_unread(config, WITH_RATIO, f"{config.algorithm} has no ratio of new to old probability to clip")
    if config.ppo_epochs > 1:
        raise ValueError(
            f"ppo_epochs is {config.ppo_epochs}, and {config.algorithm} has no ratio of new to old probability: after "
            "its first pass the samples are not the policy's own any more; set ppo_epochs to 1"
        )


class DpoConfig(Training):
    """Direct preference: improve a policy from judgements of completions, without a reward model."""

    usual = ("loss", defaults_of(PREFERENCE_LOSSES))
    loss: PreferenceLossName = Field("dpo", description="Row of the table of preference losses.")
    epochs: int = Field(1, ge=1, description="Passes over the judgements, or over the prompts when online.")
    groups_per_step: int = Field(32, ge=1, description="Prompts per optimiser step; each weighs the same, whatever K.")
    max_tokens: int = Field(160, ge=2, description="Prompt and completion longer than this are left out, and counted.")
    micro_batch_tokens: int = Field(8192, ge=1, description="Tokens per forward pass; changes memory, not the loss.")
    # The paper's; .05 to .5 are worth a sweep.
    dpo_beta: float = Field(0.1, gt=0, description="Scale of the gap; small = far from the reference. SimPO: 2.")
    label_smoothing: float = Field(0.1, ge=0, lt=0.5, description="cdpo: share of the judgements taken to be wrong.")
    # The paper's, with its beta of 2. On a tiny model both left the language within 32 steps: nothing holds it.
    simpo_margin: float = Field(0.5, ge=0, description="simpo: lead that the better completion must have.")
    # The paper's lambda.
    orpo_coef: float = Field(0.1, ge=0, description="orpo: weight of the odds ratio against the likelihood.")
    # With three thumbs of four down, 4 here: at equal weights both log-ratios fell below -9 nats, and a tenth of the
    # samples ended.
    desirable_weight: float = Field(1.0, gt=0, description="kto: weight of good completions.")
    undesirable_weight: float = Field(1.0, gt=0, description="kto: weight of bad completions.")
    margin: Literal["none", "small", "large", "given"] = Field(
        "none",
        description="Least lead of a pair's reward: Llama 2's tables by strength (to 1 or to 3), or its own number.",
    )
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
    eval_every: int = Field(
        100, ge=1, description="Steps between snapshots, and between measurements on held-out rows."
    )
    on_alarm: OnAlarm = Field("warn", description=ON_ALARM)
    lora: DpoLoraConfig = Field(DpoLoraConfig(), description="Train an adapter instead of all weights.")
    # A tenth to warm up; the DPO repository takes 150 steps.
    optim: OptimConfig = Field(OptimConfig(lr=5e-5, schedule="linear", warmup_ratio=0.1), description="Optimiser.")

    @model_validator(mode="after")
    def _what_is_given_is_read(self) -> Self:
        row = PREFERENCE_LOSSES.get(self.loss)  # a user's own reads what it likes
        if row is not None:
            unread = [key for other in PREFERENCE_LOSSES.values() for key in other.reads if key not in row.reads]
            refuse_unread(self, unread, f"not read by loss {self.loss}")
            if not row.takes_margin:
                refuse_unread(self, ("margin",), f"loss {self.loss} has no lead to ask for")
        if self.online:
            refuse_unread(self, ("margin",), "scores rank what is drawn, and say no margin")
        else:
            refuse_unread(self, ONLINE, "only dpo.online draws completions")
        return self


#: What is about completions that are drawn. Not their length: recipes give one to all that draw.
ONLINE = ("samples_per_prompt", "temperature", "label_noise", "missing_eos_penalty")
