"""What the stages of a run cost: tokens, seconds, memory and disk. Estimates, from sizes and counts alone.

Times are products: a forward pass takes two operations a weight and token, learning six (four where an adapter leaves
the weights alone; Kaplan et al. 2020, arXiv:2001.08361, section 2.1). How fast this machine multiplies is measured.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from accord.config import DpoConfig, LoraConfig, Recipe, RlConfig
from accord.models.placement import Placement
from accord.train.rl import find_algorithm

# What stages reach of the fastest square product, of the rows of docs/performance.md: learning .40 to .71 (SFT, reward,
# DPO, PPO), writing one token after the other .14 to .59. SmolLM2-135M in fp32 on one thread: .64 and .33.
LEARNING_SHARE, WRITING_SHARE = 0.5, 0.25
UNSURE = 2.0  # of an estimated time: half of it, twice it
# Fitted to the peaks of ppo-full-small-f32 (8.9 GB) and ppo-full-tiny-f32 (1.3 GB) there, which it meets within 20 %.
ACTIVATION_BYTES = 150  # a token, layer and unit of width
FROZEN_BYTES, TRAINED_BYTES = 4, 16  # a weight; that it trains adds its gradient and Adam's two averages
SAVED_BYTES = 4  # a weight in a folder
CHECKPOINT_BYTES = 12  # a weight that trains, with Adam's averages
CHECKPOINTS = 2
SQUARE = 1024  # rows of the product that is timed: far above what a processor's cache holds back
MEASURE_S, FEWEST_PRODUCTS = 0.1, 8  # of a machine that does other things too, one of a few is undisturbed


@dataclass(frozen=True)
class ModelSize:
    """How large a model is: its weights in all, its shape, and the longest text it takes, in tokens."""

    weights: int
    width: int
    layers: int
    positions: int


@dataclass(frozen=True)
class Amounts:
    """What there is to be worked on, in rows and tokens. ``prompt``: mean tokens of a prompt.

    ``demonstrations``, ``judged`` and ``judge_judged`` are tokens of all that train policy, reward model and judge.
    """

    prompt: float
    train_prompts: int = 0
    valid_prompts: int = 0
    test_prompts: int = 0
    demonstrations: int = 0
    judged: int = 0
    judge_judged: int = 0


@dataclass(frozen=True)
class StageWork:
    """The tokens that a stage reads, writes one by one, and learns from: each once a pass and model.

    ``memory`` and ``disk`` are bytes: its peak, and what it leaves (checkpoints while it runs included). ``share`` of
    the model's weights are at work; ``adapter``: only an adapter learns.
    """

    read: float = 0.0
    written: float = 0.0
    learnt: float = 0.0
    share: float = 1.0
    adapter: bool = False
    memory: float = 0.0
    disk: float = 0.0

    @property
    def tokens(self) -> int:
        return round(self.read + self.written + self.learnt)

    def seconds(self, size: ModelSize, operations_per_s: float) -> float:
        """How long it takes at that rate of the fastest product."""
        weights = size.weights * self.share
        learning = (4 if self.adapter else 6) * weights * self.learnt / LEARNING_SHARE
        reading = 2 * weights * self.read / LEARNING_SHARE
        return (learning + reading + 2 * weights * self.written / WRITING_SHARE) / operations_per_s


@dataclass(frozen=True)
class Estimator:
    """The work of each stage of a recipe, by the stage's name."""

    recipe: Recipe
    size: ModelSize
    amounts: Amounts

    @cached_property
    def of_stage(self) -> Mapping[str, Callable[[int], StageWork]]:
        """What a stage does in a round of this number, by its name."""
        recipe = self.recipe
        own: dict[str, Callable[[int], StageWork]] = {
            "base": lambda _: StageWork(disk=self._saved()),
            "sft": lambda _: self._sft(),
            # Where some of the candidates are chosen, `sample` draws nothing: it is counted as the first of them.
            "candidates": lambda _: self._samples(recipe.ask.prompts * (recipe.ask.pool - 1)),
            "sample": lambda _: self._samples(recipe.ask.prompts),
            "queued": lambda _: self._samples(recipe.ask.queue),
            "reward": lambda number: self._reward(self.amounts.judged + number * self._asked()),
            "eval": lambda _: self._eval(),
            "rl": lambda _: self._rl(recipe.rl),
            "dpo": lambda number: self._dpo(recipe.dpo, number),
            "model": lambda _: StageWork(disk=self._saved()),
        }
        own |= {f"{recipe.optimise}_{name}": self._optimisation(recipe.control(name)) for name in recipe.controls}
        methods = {name: recipe.method(name) for name in recipe.compare.methods}
        return own | {name: self._optimisation(one) for name, one in methods.items() if not isinstance(one, int)}

    def work(self, stage: str, number: int) -> StageWork:
        """Return what a stage of a round does; nothing where it only moves files, or waits for people."""
        if stage.startswith("judge_"):
            return self._reward(self.amounts.judge_judged) if self.amounts.judge_judged else StageWork()
        return self.of_stage[stage](number) if stage in self.of_stage else StageWork()

    def _optimisation(self, config: RlConfig | DpoConfig) -> Callable[[int], StageWork]:
        return lambda number: self._rl(config) if isinstance(config, RlConfig) else self._dpo(config, number)

    # ---- the stages --------------------------------------------------------------------------------------------------

    def _sft(self) -> StageWork:
        config = self.recipe.sft
        learnt = self.amounts.demonstrations * config.epochs
        memory = self._training(config.lora) + self._activations(min(config.micro_batch_tokens, learnt))
        left = self._saved() + self._checkpoints(config.lora)
        return StageWork(learnt=learnt, adapter=bool(config.lora.rank), memory=memory, disk=left)

    def _samples(self, prompts: int) -> StageWork:
        config = self.recipe.sample
        read, written = prompts * self.amounts.prompt, prompts * config.samples_per_prompt * config.max_new_tokens
        return StageWork(read=read, written=written, memory=FROZEN_BYTES * self.size.weights)

    def _asked(self) -> float:
        """Tokens of what a round asks, each answer's once: prompt and completion."""
        recipe = self.recipe
        if recipe.ask.who == "nobody":
            return 0.0
        rankings = recipe.ask.prompts * recipe.ask.overlap
        return rankings * recipe.sample.samples_per_prompt * (self.amounts.prompt + recipe.sample.max_new_tokens)

    def _reward(self, judged: float) -> StageWork:
        config = self.recipe.reward
        share = min(1.0, config.trunk_layers / self.size.layers) if config.trunk_layers else 1.0
        learnt = judged * config.epochs
        memory = share * (self._training(config.lora) + self._activations(min(config.micro_batch_tokens, learnt)))
        left = share * (self._saved() + self._checkpoints(config.lora))
        return StageWork(learnt=learnt, share=share, adapter=bool(config.lora.rank), memory=memory, disk=left)

    def _rl(self, config: RlConfig) -> StageWork:
        episodes = config.samples_per_iteration * config.iterations
        whole, critic = self.amounts.prompt + config.max_new_tokens, self._has_critic(config)
        # Scored, under the reference, and under the policy itself before its update; the critic reads them too.
        read = episodes * (self.amounts.prompt + whole * (3 + critic))
        learnt = episodes * whole * config.ppo_epochs * (1 + critic)
        models = self._training(config.lora) + FROZEN_BYTES * self.size.weights  # and the reward model
        models += 0 if config.lora.rank else FROZEN_BYTES * self.size.weights  # the reference
        trained = LoraConfig(rank=config.lora.critic_rank)
        models += self._training(trained) if critic else 0
        memory = models + self._activations(min(config.micro_batch_tokens, config.samples_per_iteration * whole))
        left = (1 + self._snapshots(config)) * self._saved() + self._checkpoints(config.lora)
        left += self._checkpoints(trained) if critic else 0
        adapter = bool(config.lora.rank)
        return StageWork(read, episodes * config.max_new_tokens, learnt, 1.0, adapter, memory, left)

    def _dpo(self, config: DpoConfig, number: int) -> StageWork:
        learnt, written = (self.amounts.judged + number * self._asked()) * config.epochs, 0.0
        if config.online:
            drawn = self.amounts.train_prompts * config.samples_per_prompt * config.epochs
            learnt, written = drawn * (self.amounts.prompt + config.max_new_tokens), drawn * config.max_new_tokens
        models = self._training(config.lora) + (0 if config.lora.rank else FROZEN_BYTES * self.size.weights)
        memory = models + self._activations(min(config.micro_batch_tokens, learnt))
        left = 2 * self._saved() + self._checkpoints(config.lora)
        return StageWork(learnt, written, learnt, 1.0, bool(config.lora.rank), memory, left)

    def _eval(self) -> StageWork:
        recipe, config = self.recipe, self.recipe.eval
        new, candidates = recipe.rl.max_new_tokens, 1 + len(recipe.controls)
        drawn = max(config.curve_samples, config.samples_per_prompt, config.best_of)
        drawn += config.samples_per_prompt * self._snapshots(recipe.rl) * candidates
        samples = self.amounts.valid_prompts * drawn
        # The reference, the policy before it, the candidates; and each of best of n.
        samples += self.amounts.test_prompts * config.samples_per_prompt * (2 + candidates + config.best_of)
        # Scored by the reward model and a judge, and their likelihood under the reference.
        read = samples * (self.amounts.prompt + 3 * (self.amounts.prompt + new))
        return StageWork(read=read, written=samples * new, memory=3 * FROZEN_BYTES * self.size.weights)

    # ---- parts -------------------------------------------------------------------------------------------------------

    def _snapshots(self, config: RlConfig) -> int:
        return math.ceil(config.iterations / config.eval_every)

    def _has_critic(self, config: RlConfig) -> int:
        return int(find_algorithm(config).critic and not config.values.shared)

    def _saved(self) -> float:
        return SAVED_BYTES * self.size.weights

    def _training(self, lora: LoraConfig) -> float:
        """Bytes of a model that trains; an adapter's own are few beside the weights that it leaves alone."""
        return (FROZEN_BYTES if lora.rank else TRAINED_BYTES) * self.size.weights

    def _checkpoints(self, lora: LoraConfig) -> float:
        return 0.0 if lora.rank else CHECKPOINTS * CHECKPOINT_BYTES * self.size.weights

    def _activations(self, tokens: float) -> float:
        return tokens * self.size.layers * self.size.width * ACTIVATION_BYTES


def measure_products(placement: Placement) -> float:
    """Return the operations a second that this machine makes in a square product, the best of a tenth of a second."""
    device, dtype = placement.device, placement.dtype
    a = torch.ones(SQUARE, SQUARE, dtype=dtype, device=device)
    taken: list[float] = []
    while len(taken) < FEWEST_PRODUCTS or sum(taken) < MEASURE_S:
        before = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for a GPU to have finished
        taken.append(time.perf_counter() - before)
    return 2 * SQUARE**3 / min(taken)
