"""Every algorithm as a row of a table: a row names its small functions and says what they need.

This is the one place where an algorithm's name, usual settings and needs are written down: the configuration, the
stages, the docs' test and the tests' test all read it. It imports no torch: a row holds its functions by name and
imports them when they are first called, so that ``accord --help`` can list the rows at once.

Adding an algorithm is a function (or none), a golden test, a heading in ``docs/algorithms.md`` and a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from accord.algo.advantages import Rewarded
    from accord.algo.policy_loss import Tokens
    from accord.algo.preference_loss import PreferenceSettings
    from accord.algo.reward_loss import Judgements
    from accord.algo.settings import PolicySettings

    Advantages = Callable[[Rewarded, PolicySettings], tuple[Tensor, Tensor | None]]
    Surrogate = Callable[[Tokens, PolicySettings], Tensor]
    #: (lengths of a minibatch's sequences, 0 = takes no part; settings) -> the weight of each one's tokens
    Aggregate = Callable[[Tensor, PolicySettings], Tensor]
    #: (logp, ref_logp, log_ratio) -> the KL to the reference a token, as a term of the loss
    KlLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
    #: (old_logp_BC, behaviour_logp_BC, mask_BC, cap) -> weight_BC
    CorrectionWeights = Callable[[Tensor, Tensor, Tensor, float], Tensor]
    #: (judgements, total_weight, center_coef) -> (loss, stats). ``total_weight`` is that of all groups of the step.
    #: Stats are detached and add up over micro-batches like the loss.
    JudgementLoss = Callable[[Judgements, float, float], tuple[Tensor, dict[str, Tensor]]]
    #: (better_N, worse_N, settings) -> loss_N, of the strengths of both sides of N comparisons
    ComparisonLoss = Callable[[Tensor, Tensor, PreferenceSettings], Tensor]
    #: (score_SM, variance_coef) -> score_S
    CombineScores = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class Named:
    """A function by its dotted name, ``package.module:function``, imported when it is first called."""

    name: str

    @cached_property
    def function(self) -> Callable[..., Any]:
        module, _, attribute = self.name.partition(":")
        # Only now: importing torch takes seconds, which `accord --help` has not.
        found: Callable[..., Any] = getattr(import_module(module), attribute)
        return found

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


@dataclass(frozen=True, kw_only=True)
class Row:
    """What every row of a table says of itself.

    Attributes:
        summary: What it is, in a line of a command's help.
        defaults: Settings that come with the row's name unless they are given: the usual values of its paper, at our
            sizes. Only rows of these tables have them; the configuration does not import a user's own row.
        heading: Where ``docs/algorithms.md`` explains it.
        golden: The test that holds its numbers against ones worked out elsewhere.
    """

    summary: str = ""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    heading: str = ""
    golden: str = ""


def defaults_of(table: Mapping[str, Row]) -> dict[str, Mapping[str, Any]]:
    """Return what each row of a table sets unless it is given, by the row's name."""
    return {name: row.defaults for name, row in table.items()}


# -- policy optimisation -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KlPlace(Row):
    """A place where the KL to the reference is paid: as a term of the loss, or (``loss`` None) in the reward."""

    loss: KlLoss | None = None


KL_PLACES: dict[str, KlPlace] = {
    "reward": KlPlace(
        summary="each token pays in its reward",
        heading="Reward with a price of KL (`rl.kl_in=reward`)",
        golden="test_algo.py::test_token_rewards_by_hand",
    ),
    "loss": KlPlace(
        Named("accord.algo.kl:ratio_weighted_k3"),
        summary="a term of the loss, with the right gradient",
        heading="KL in the loss (`rl.kl_in=loss`, `rl.kl_in=loss_k3_naive`)",
        golden="test_policy.py::test_gradient_of_the_kl_in_the_loss[loss]",
    ),
    "loss_k3_naive": KlPlace(
        Named("accord.algo.kl:k3_naive"),
        summary="k3 as GRPO's paper has it: the gradient of the other direction",
        heading="KL in the loss (`rl.kl_in=loss`, `rl.kl_in=loss_k3_naive`)",
        golden="test_policy.py::test_gradient_of_the_kl_in_the_loss[loss_k3_naive]",
    ),
}


@dataclass(frozen=True, kw_only=False)
class Correction(Row):
    """What a token counts in the policy's loss whose sampler was not the policy itself.

    ``weights``: log-probabilities of the tokens under the policy before the update and under the sampler, mask ``(B,
    C)`` and cap -> ``(B, C)``. A sequence whose tokens all count 0 takes no part, not even in a denominator.
    """

    weights: CorrectionWeights


_CORRECTED = "Samples of another distribution (`rl.rollout.correction=token`, `=sequence_mask`)"

CORRECTIONS: dict[str, Correction] = {
    "token": Correction(
        Named("accord.algo.correction:truncated_weights"),
        summary="each token by its ratio of policy to sampler, at most rl.rollout.cap",
        heading=_CORRECTED,
        golden="test_correction.py::test_tokens_count_their_ratio_up_to_the_cap",
    ),
    "sequence_mask": Correction(
        Named("accord.algo.correction:near_sequences"),
        summary="completions beyond rl.rollout.cap take no part",
        heading=_CORRECTED,
        golden="test_correction.py::test_far_sequences_count_nothing",
    ),
}


@dataclass(frozen=True)
class PolicyAlgorithm(Row):
    """A way to improve a policy from scored samples.

    Attributes:
        advantages: Rewards of a rollout -> advantages ``(B, T)``, and returns for the critic or None.
        surrogate: Tokens of a micro-batch -> a loss a token ``(N,)``.
        aggregate: Lengths of a minibatch's sequences -> the weight of each one's tokens ``(B,)``.
        kl_in: Where the KL to the reference is paid unless the settings say otherwise: a row of `KL_PLACES`.
        critic: Whether it learns values.
        min_group: Fewest completions of a prompt.
        drop_zero_variance: Whether prompts whose completions all score the same are replaced by others.
        has_ratio: Whether the loss weighs a token by new over old probability: what is clipped, and what makes several
            passes over one rollout right.
        only_chosen: Whether completions without an advantage take no part, not even in a denominator.
    """

    advantages: Advantages
    surrogate: Surrogate
    aggregate: Aggregate
    kl_in: str = "reward"
    critic: bool = False
    min_group: int = 1
    drop_zero_variance: bool = False
    has_ratio: bool = True
    only_chosen: bool = False


_CLIPPED = Named("accord.algo.policy_loss:clipped")
_GRADIENT = Named("accord.algo.policy_loss:policy_gradient")
_TOKEN_MEAN = Named("accord.algo.policy_loss:token_mean")
_SEQUENCE_SUM = Named("accord.algo.policy_loss:sequence_sum")
_WHOLE_ROWS = "test_policy.py::test_every_row_as_a_whole_by_hand"
# One pass: a surrogate without a ratio is right for samples of the policy itself only, and GRPO's paper, after which
# the others are set here, takes one update a rollout.
_ONE_PASS = {"ppo_epochs": 1}
# The papers take 8 to 64 completions a prompt; 8 of 8 are as many samples as PPO's 64 of 1.
_GROUPS_OF_8 = {**_ONE_PASS, "prompts_per_iteration": 8, "samples_per_prompt": 8}

POLICY_ALGORITHMS: dict[str, PolicyAlgorithm] = {
    "ppo": PolicyAlgorithm(
        Named("accord.algo.advantages:whitened_gae"),
        _CLIPPED,
        _TOKEN_MEAN,
        critic=True,
        summary="a critic says what was to be expected; ratios are clipped, several passes a rollout",
        heading="PPO (`ppo`)",
        golden=f"{_WHOLE_ROWS}[ppo]",
    ),
    "reinforce": PolicyAlgorithm(
        Named("accord.algo.advantages:whole_return"),
        _GRADIENT,
        _SEQUENCE_SUM,
        has_ratio=False,
        defaults=_ONE_PASS,
        summary="the whole return times the gradient, no baseline",
        heading="REINFORCE (`reinforce`, `reinforce_baseline`)",
        golden=f"{_WHOLE_ROWS}[reinforce]",
    ),
    "reinforce_baseline": PolicyAlgorithm(
        Named("accord.algo.advantages:above_running_mean"),
        _GRADIENT,
        _SEQUENCE_SUM,
        has_ratio=False,
        defaults=_ONE_PASS,
        summary="REINFORCE less the running mean of returns",
        heading="REINFORCE (`reinforce`, `reinforce_baseline`)",
        golden=f"{_WHOLE_ROWS}[reinforce_baseline]",
    ),
    "rloo": PolicyAlgorithm(
        Named("accord.algo.advantages:leave_one_out"),
        _GRADIENT,
        _SEQUENCE_SUM,
        min_group=2,
        has_ratio=False,
        # The larger K of the paper's two, which won more (77.9 against 74.2 % on TL;DR); as many samples as PPO's 64 of
        # 1.
        defaults={**_ONE_PASS, "prompts_per_iteration": 16, "samples_per_prompt": 4},
        summary="REINFORCE less the mean of the prompt's other completions",
        heading="RLOO (`rloo`)",
        golden=f"{_WHOLE_ROWS}[rloo]",
    ),
    "grpo": PolicyAlgorithm(
        Named("accord.algo.advantages:group_normalised"),
        _CLIPPED,
        Named("accord.algo.policy_loss:sequence_mean"),
        kl_in="loss",
        min_group=2,
        defaults={**_GROUPS_OF_8, "kl_coef": 0.04},  # the paper's
        summary="a prompt's completions against their mean, in units of their deviation; clipped",
        heading="GRPO (`grpo`)",
        golden=f"{_WHOLE_ROWS}[grpo]",
    ),
    "dr_grpo": PolicyAlgorithm(
        Named("accord.algo.advantages:group_centred"),
        _CLIPPED,
        Named("accord.algo.policy_loss:fixed_length"),
        kl_in="loss",
        min_group=2,
        defaults={**_GROUPS_OF_8, "kl_coef": 0.0},
        summary="GRPO without the deviation and without the bias towards length",
        heading="Dr. GRPO (`dr_grpo`)",
        golden=f"{_WHOLE_ROWS}[dr_grpo]",
    ),
    "dapo": PolicyAlgorithm(
        Named("accord.algo.advantages:group_normalised"),
        _CLIPPED,
        _TOKEN_MEAN,
        kl_in="loss",
        min_group=2,
        drop_zero_variance=True,
        defaults={
            **_GROUPS_OF_8,
            "kl_coef": 0.0,
            "missing_eos_penalty": 0.0,  # the soft punishment of overlong completions stands in for it
            # Clip-higher, the paper's: rare tokens may gain more a step than likely ones lose, which keeps entropy up.
            "trust": {"clip_high": 0.28},
            "shaping": {"overlong_tokens": 16},  # a fifth of the room, as the paper's 4,096 of 20,480
        },
        summary="GRPO that clips higher, averages over tokens, and draws other prompts for those that teach nothing",
        heading="DAPO (`dapo`)",
        golden=f"{_WHOLE_ROWS}[dapo]",
    ),
    "raft": PolicyAlgorithm(
        Named("accord.algo.advantages:best_of_group"),
        _GRADIENT,
        _TOKEN_MEAN,
        kl_in="loss",
        min_group=2,
        has_ratio=False,
        only_chosen=True,
        defaults={**_GROUPS_OF_8, "kl_coef": 0.0},
        summary="learns the best completion of each prompt",
        heading="RAFT (`raft`)",
        golden=f"{_WHOLE_ROWS}[raft]",
    ),
}

# -- reward models -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RewardLoss(Row):
    """A way to learn scores from judgements.

    Attributes:
        loss: Judgements of a micro-batch -> its share of the step's loss.
        reads: Which judgements: pairs that ranks make, whole orders, labels (good or bad) or ratings.
        all_positions: Whether it asks for the head's number at every token.
    """

    loss: JudgementLoss
    reads: Literal["pairs", "orders", "labels", "ratings"]
    all_positions: bool = False


REWARD_LOSSES: dict[str, RewardLoss] = {
    "bradley_terry": RewardLoss(
        Named("accord.algo.reward_loss:pairwise"),
        reads="pairs",
        summary="pairs: the better one scores higher (the usual one)",
        heading="Bradley-Terry on all pairs of a ranking (`bradley_terry`)",
        golden="test_reward_losses.py::test_a_margin_and_a_soft_label_of_a_group_reach_its_pair_but_no_tie",
    ),
    "best_of_k": RewardLoss(
        Named("accord.algo.reward_loss:best_of_k"),
        reads="orders",
        summary="the best of K against all others at once",
        heading="Best of K (`best_of_k`)",
        golden="test_reward_losses.py::test_best_of_four_is_a_cross_entropy",
    ),
    "plackett_luce": RewardLoss(
        Named("accord.algo.reward_loss:plackett_luce"),
        reads="orders",
        summary="the likelihood of the whole order",
        heading="Plackett-Luce (`plackett_luce`)",
        golden="test_reward_losses.py::test_plackett_luce_of_four",
    ),
    "binary": RewardLoss(
        Named("accord.algo.reward_loss:binary"),
        reads="labels",
        summary="thumbs: good or bad",
        heading="Good or bad (`binary`)",
        golden="test_reward_losses.py::test_binary_is_the_cross_entropy_of_a_thumb",
    ),
    "regression": RewardLoss(
        Named("accord.algo.reward_loss:regression"),
        reads="ratings",
        summary="ratings on a scale",
        heading="Ratings (`regression`)",
        golden="test_reward_losses.py::test_regression_is_a_squared_distance",
    ),
    "per_token": RewardLoss(
        Named("accord.algo.reward_loss:per_token"),
        reads="pairs",
        all_positions=True,
        summary="pairs, at every token from where they differ on",
        heading="Every token (`per_token`)",
        golden="test_reward_losses.py::test_per_token_starts_at_the_first_difference_and_holds_the_end",
    ),
}


@dataclass(frozen=True)
class EnsembleRule(Row):
    """A way to make one score out of those of several members."""

    combine: CombineScores


_ENSEMBLES = "Ensembles (`mean`, `min`, `uwo`)"
_RULES_BY_HAND = "test_reward_losses.py::test_rules_of_an_ensemble_of_five"

ENSEMBLE_RULES: dict[str, EnsembleRule] = {
    "mean": EnsembleRule(
        Named("accord.algo.ensemble:mean"), summary="the mean of the members", heading=_ENSEMBLES, golden=_RULES_BY_HAND
    ),
    "min": EnsembleRule(
        Named("accord.algo.ensemble:worst_case"),
        summary="the lowest of them",
        heading=_ENSEMBLES,
        golden=_RULES_BY_HAND,
    ),
    "uwo": EnsembleRule(
        Named("accord.algo.ensemble:uncertainty_weighted"),
        summary="the mean less a price of their disagreement",
        heading=_ENSEMBLES,
        golden=_RULES_BY_HAND,
    ),
}

# -- direct preference -------------------------------------------------------------------------------------------------

_strength = Named("accord.algo.preference_loss:strength")


@dataclass(frozen=True)
class PreferenceAlgorithm(Row):
    """A way to improve a policy from comparisons of completions, without a reward model.

    Attributes:
        loss: Strengths of both sides -> a loss a comparison.
        needs_reference: Whether a strength is measured against the reference.
        length_normalized: Whether it is a mean over the completion's tokens, not a sum.
        paired: Whether completions are compared with each other; else each with the zero point, and thumbs will do.
        reads: Which settings of its own it reads, beside those of every row: keys of ``dpo``.
        takes_margin: Whether a pair's margin can be asked of it: a lead in strength, in units of ``1 / dpo_beta``.
    """

    loss: ComparisonLoss
    needs_reference: bool = True
    length_normalized: bool = False
    paired: bool = True
    reads: tuple[str, ...] = ()
    takes_margin: bool = True

    def strength(self, logp_S: Tensor, ref_logp_S: Tensor | None, length_S: Tensor) -> Tensor:
        """Return what this row compares, one number a completion, as `preference_loss.strength` has it."""
        reference_S = ref_logp_S if self.needs_reference else None
        found: Tensor = _strength(logp_S, reference_S, length_S if self.length_normalized else None)
        return found


_PAIRS_BY_HAND = "test_preference.py::test_pairs_against_a_reference_by_hand"
_AS_TRL = "test_preference.py::test_losses_are_those_of_trl"

PREFERENCE_LOSSES: dict[str, PreferenceAlgorithm] = {
    "dpo": PreferenceAlgorithm(
        Named("accord.algo.preference_loss:dpo_loss"),
        summary="the usual one: log-sigmoid of the gap to the reference",
        heading="DPO (`dpo.loss=dpo`)",
        golden=f"{_PAIRS_BY_HAND}[dpo]",
    ),
    "cdpo": PreferenceAlgorithm(
        Named("accord.algo.preference_loss:cdpo_loss"),
        reads=("label_smoothing",),
        summary="DPO where some labels are wrong (dpo.label_smoothing)",
        heading="Conservative DPO (`dpo.loss=cdpo`)",
        golden=f"{_PAIRS_BY_HAND}[cdpo]",
    ),
    "ipo": PreferenceAlgorithm(
        Named("accord.algo.preference_loss:ipo_loss"),
        length_normalized=True,
        summary="a squared distance, a mean over tokens: no drift where all agree",
        heading="IPO (`dpo.loss=ipo`, `dpo.loss=ipo_sum`)",
        golden=f"{_PAIRS_BY_HAND}[ipo]",
    ),
    "ipo_sum": PreferenceAlgorithm(
        Named("accord.algo.preference_loss:ipo_loss"),
        summary="IPO on sums over tokens, as its paper",
        heading="IPO (`dpo.loss=ipo`, `dpo.loss=ipo_sum`)",
        golden=f"{_PAIRS_BY_HAND}[ipo_sum]",
    ),
    "kto": PreferenceAlgorithm(
        Named("accord.algo.preference_loss:kto_loss"),
        paired=False,
        takes_margin=False,
        reads=("desirable_weight", "undesirable_weight"),
        summary="thumbs alone will do: good and bad need not be pairs",
        heading="KTO (`dpo.loss=kto`)",
        golden="test_preference.py::test_kto_by_hand",
    ),
    "simpo": PreferenceAlgorithm(
        Named("accord.algo.preference_loss:simpo_loss"),
        reads=("simpo_margin",),
        needs_reference=False,
        length_normalized=True,
        defaults={"dpo_beta": 2.0},  # of a mean over tokens, which is small: the paper takes 2 to 2.5
        summary="no reference: mean log-probabilities and a margin",
        heading="SimPO (`dpo.loss=simpo`)",
        golden=f"{_AS_TRL}[simpo]",
    ),
    "orpo": PreferenceAlgorithm(
        Named("accord.algo.preference_loss:orpo_loss"),
        reads=("orpo_coef",),
        takes_margin=False,  # the better one's strength is its likelihood too, which no lead belongs to
        needs_reference=False,
        length_normalized=True,
        summary="no reference: odds ratio beside the likelihood of the better one",
        heading="ORPO (`dpo.loss=orpo`)",
        golden=f"{_AS_TRL}[orpo]",
    ),
}

TABLES: dict[str, Mapping[str, Row]] = {
    "rl.algorithm": POLICY_ALGORITHMS,
    "rl.kl_in": KL_PLACES,
    "rl.rollout.correction": CORRECTIONS,
    "reward.loss": REWARD_LOSSES,
    "reward.combine.rule": ENSEMBLE_RULES,
    "dpo.loss": PREFERENCE_LOSSES,
}
