"""Rules by which values fit a model and its data: small functions of facts, None where the default is as good.

What is called measured was so with SmolLM2-135M-Instruct, 134.5 million weights of width 576 (`recipes/smollm2.yaml`
and `docs/LOG.md`). The reasons stand in the table, `accord.config.fitting`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

from accord.algo.table import POLICY_ALGORITHMS
from accord.config.recipes import Recipe

TINY = 20_000_000  # weights: below are models made from scratch and those of tests, whose values the defaults are
LARGE = 1_000_000_000  # weights: from here on full training of the reward model's trunk takes tens of GB
MEASURED_WIDTH = 576
ADAPTER_LR = 4e-4  # measured at that width: policy and fine-tuning, rank 16
STEPS = 64  # optimiser steps of 16 measured iterations
MOST_ITERATIONS = 50
# Of SmolLM2's answers 64 % were cut at 80 tokens.
CHAT_ANSWER = 256
# Tokens of an answer where nothing shows how long they are. On a processor twice the length takes twice the hours.
UNKNOWN_COMPLETION, UNKNOWN_WITHOUT_GPU = 128, 64


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a given model.

    Its sizes, whether it is one of the decoder's families, which take adapters, and whether it answers in a chat.
    """

    weights: int
    width: int
    layers: int
    context: int
    vocabulary: int
    decoder: bool = True
    chat: bool = False


@dataclass(frozen=True)
class DataFacts:
    """How much there is to train on, and how long it is in tokens; 0 where there is nothing of the kind.

    Counts are of the train split, ``measured`` of the test split's prompts. ``usual`` is a median; 99 of 100 prompts,
    judged texts (a prompt with one completion) or demonstrations are no longer than a ``long`` one, and 90 of 100
    completions. The end token counts.
    """

    prompts: int = 0
    demonstrations: int = 0
    judgements: int = 0
    measured: int = 0
    usual_prompt: int = 0
    long_prompt: int = 0
    longest_prompt: int = 0
    long_completion: int = 0
    long_judgement: int = 0
    usual_demonstration: int = 0
    long_demonstration: int = 0

    @property
    def ends(self) -> str:
        """Within how many tokens answers end, in words."""
        if not self.long_completion:
            least = f"{UNKNOWN_COMPLETION} tokens, {UNKNOWN_WITHOUT_GPU} without a GPU"
            return f"nothing in the data shows how long answers are: {least}"
        return f"nine of ten answers in the data end within {self.long_completion} tokens"


@dataclass(frozen=True)
class MachineFacts:
    """Memory of the device in bytes, and whether it is a GPU."""

    memory: int
    gpu: bool = False


@dataclass(frozen=True)
class Case:
    """What rules look at: model, data, machine, and the recipe with what rules before them have ``chosen``."""

    model: ModelFacts
    data: DataFacts
    machine: MachineFacts
    recipe: Recipe
    chosen: Mapping[str, Any] = field(default_factory=dict)

    def value(self, key: str) -> Any:
        """Return the value of a dotted key as it stands now."""
        return self.chosen[key] if key in self.chosen else reduce(getattr, key.split("."), self.recipe)

    @property
    def is_tiny(self) -> bool:
        return self.model.weights < TINY

    @property
    def adapts(self) -> bool:
        """Whether the policy trains an adapter."""
        return self.model.decoder and not self.is_tiny


# ---- rules -----------------------------------------------------------------------------------------------------------


def adapter_lr(case: Case, measured: float = ADAPTER_LR) -> float | None:
    """Return a rate that falls as the width grows from the measured one on; a tenth where all weights train."""
    if case.is_tiny:
        return None
    rate = measured * min(1.0, MEASURED_WIDTH / case.model.width) * (1.0 if case.adapts else 0.1)
    return float(f"{rate:.1e}")


def reward_lr(case: Case) -> float | None:
    """Return the rate of a trunk that trains in full, which falls with the width; of an adapter always 1e-4."""
    if case.is_tiny:
        return None
    return (
        1e-4 if case.value("reward.lora.rank") else float(f"{1e-4 * min(1.0, MEASURED_WIDTH / case.model.width):.1e}")
    )


def cooler(case: Case) -> float | None:
    """Return the temperature that was measured, for small models."""
    return None if case.model.weights >= LARGE or case.is_tiny else 0.8


def reward_rank(case: Case) -> int | None:
    return 16 if case.adapts and case.model.weights >= LARGE else None


def trunk_layers(case: Case) -> int | None:
    """Return the share of the layers that was measured, 16 of 30."""
    cut = case.adapts and case.model.weights < LARGE and case.model.layers >= 12
    return round(case.model.layers * 16 / 30) if cut else None


def still_embeddings(case: Case) -> bool | None:
    return (
        True if not (case.is_tiny or case.value("reward.lora.rank") or case.value("reward.share_spellings")) else None
    )


def completion_tokens(case: Case) -> int:
    """Return room for nine of ten answers and their end, in steps of 16 between 32 and 256, within the context."""
    shown = case.data.long_completion or (UNKNOWN_COMPLETION if case.machine.gpu else UNKNOWN_WITHOUT_GPU)
    return min(max(32, up_to(shown, 16)), 256, max(1, case.model.context // 2))


def answer_tokens(case: Case) -> int | None:
    """Return room for the answers of a chat model; of others nothing shows where a text would end."""
    if case.is_tiny or not case.model.chat:
        return None
    return min(CHAT_ANSWER, max(1, case.model.context // 2))


def same_room(key: str) -> Callable[[Case], int]:
    """Return the rule of a second place where completions are drawn: what the user says of the first holds there."""
    return lambda case: int(case.value(key)) if key in case.recipe.given() else completion_tokens(case)


def judged_tokens(case: Case) -> int:
    """Return room for 99 of 100 judgements, and for what the policy will write, within the context."""
    written = case.data.long_prompt + int(case.value("rl.max_new_tokens"))
    return min(up_to(max(case.data.long_judgement, written), 32), case.model.context)


def demonstration_tokens(case: Case) -> int | None:
    longest = case.data.long_demonstration
    return min(up_to(longest, 32), case.model.context) if longest else None


def step_tokens(case: Case) -> int | None:
    """Return about 16 demonstrations a step, as a power of two between 1,024 and 16,384 tokens."""
    usual = case.data.usual_demonstration
    return None if case.is_tiny or not usual else min(max(1024, power_of_two(16 * usual)), 16384)


def sft_epochs(case: Case) -> float | None:
    count = case.data.demonstrations
    return None if case.is_tiny or not count else 3.0 if count < 1000 else 2.0 if count < 5000 else 1.0


def micro_batch_tokens(case: Case) -> int | None:
    """Return tokens whose logits and activations take an eighth of the memory; on a processor at most 1,024."""
    if case.is_tiny:
        return None
    # A logit, its probability and its gradient in fp32; 34 numbers a layer and width (Korthikanti 2022) in fp32.
    bytes_a_token = 12 * case.model.vocabulary + 136 * case.model.layers * case.model.width
    most = 16384 if case.machine.gpu else 1024
    return min(max(256, power_of_two(case.machine.memory / 8 / bytes_a_token)), most)


def reward_epochs(case: Case) -> int | None:
    """Return as many passes as make 100 steps, three at most."""
    if not case.data.judgements:
        return None
    steps = -(-case.data.judgements // int(case.value("reward.groups_per_step")))
    return min(3, -(-100 // steps))


def iterations(case: Case) -> int | None:
    """Return rounds enough to go as far as 64 steps at the measured rate went, 16 to 50 of them."""
    if case.is_tiny:
        return None
    steps = STEPS * max(1.0, ADAPTER_LR / float(case.value("rl.actor.lr")))
    a_round = int(case.value("rl.ppo_epochs")) * int(case.value("rl.minibatches"))
    return min(max(16, round(steps / a_round)), MOST_ITERATIONS)


def prompts_a_round(case: Case) -> int | None:
    """Return prompts whose samples are about 8,192 tokens, 2,048 without a GPU: a power of two from 16 to 64.

    No more than there are.
    """
    room, group = int(case.value("rl.max_new_tokens")), int(case.value("rl.samples_per_prompt"))
    tokens = (case.data.usual_prompt + room) * group
    wanted = min(max(16, power_of_two((8192 if case.machine.gpu else 2048) / tokens)), 64)
    return None if case.is_tiny else min(wanted, max(1, power_of_two(case.data.prompts)))


def is_clipped(case: Case) -> bool:
    """Whether several steps on one rollout are held by a clipped ratio and a critic, as PPO's are."""
    row = POLICY_ALGORITHMS.get(case.value("rl.algorithm"))
    return row is not None and row.critic and not case.is_tiny


def minibatches(case: Case) -> int | None:
    samples = int(case.value("rl.prompts_per_iteration")) * int(case.value("rl.samples_per_prompt"))
    return math.gcd(2, samples) if is_clipped(case) else None


def half_of_all(case: Case) -> int | None:
    return None if case.is_tiny else max(1, int(case.value("rl.iterations")) // 2)


def prompt_limit(case: Case) -> int | None:
    """Return the longest prompt that leaves room for a completion, where there are longer ones."""
    room = case.model.context - int(case.value("rl.max_new_tokens")) - 1
    return room if case.data.longest_prompt > room > 0 else None


def evaluated_samples(case: Case) -> int | None:
    return min(4, max(1, round(128 / case.data.measured))) if case.data.measured else None


def best_of(case: Case) -> int | None:
    return None if case.machine.gpu or case.is_tiny else 2


def curve_samples(case: Case) -> int | None:
    return min(16, max(2, round(128 / case.data.measured))) if case.data.measured else None


def no_more_than_prompts(key: str) -> Callable[[Case], int | None]:
    """Return the rule that lowers a count of prompts to those there are."""
    return lambda case: case.data.prompts if 0 < case.data.prompts < int(case.value(key)) else None


def on_adapters(value: Any) -> Callable[[Case], Any]:
    """Return the rule that gives a value where the policy trains an adapter."""
    return lambda case: value if case.adapts else None


def on_given(value: Any) -> Callable[[Case], Any]:
    """Return the rule that gives a value for every model but a tiny one."""
    return lambda case: None if case.is_tiny else value


def up_to(count: int, step: int) -> int:
    """Return the next multiple of ``step``."""
    return -(-count // step) * step


def power_of_two(number: float) -> int:
    """Return the largest power of two that is not above a number, 1 at least."""
    return 1 << max(0, math.floor(math.log2(max(1.0, number))))
