"""Our side of every workload, through Accord's own public functions: what the stages call, nothing made for speed.

    python -m benchmarks.ours sample|sample-mixed|sft|reward|dpo|ppo MODEL f32|bf16 RUNS [option]

Prints one ``RESULT {json}`` line as the peer scripts do. ``sample-mixed`` takes the engine's ``max_rows`` as its
option, ``ppo`` takes ``none`` or ``eos``: whether a completion may end.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from accord.algo.table import POLICY_ALGORITHMS, PREFERENCE_LOSSES
from accord.config import DpoConfig, OptimConfig, RewardConfig, RlConfig, ShapingConfig
from accord.models.folder import load_policy, load_scalar, save_scalar
from accord.models.placement import PLAIN, Placement
from accord.models.precision import tune_allocator
from accord.rollout.engine import Engine, Sampling
from accord.rollout.generator import decoded
from accord.scoring.reward_model import RewardModel
from accord.text.batches import Example
from accord.text.tokenizer import Tokenizer, load_tokenizer
from accord.train.alarms import raised_alarms
from accord.train.controllers import Controllers
from accord.train.judged import EncodedGroup
from accord.train.learner import Learner, Metrics
from accord.train.policy_models import PolicyModels
from accord.train.policy_optimizer import PolicyOptimizer
from accord.train.preferences import ComparedGroup, Objective, Tally, bucketed_logp, compared_ranking, preference_losses
from accord.train.reward import group_losses
from accord.train.rollouts import score_samples
from accord.train.sft import sft_losses

PLACEMENTS = {"f32": PLAIN, "bf16": Placement("bf16", "cpu")}
CONFIG = {"f32": "fp32", "bf16": "bf16"}
PROMPT, NEW, ROWS = 32, 64, 32  # tokens, tokens, sequences an iteration
NEVER: tuple[int, ...] = ()  # no stop token: every completion has its full length
STILL = OptimConfig(lr=1e-9, schedule="constant", warmup_ratio=0.0)  # the weights stand, as in the peers' scripts

#: One timed run: how many items it did.
Run = Callable[[], float]


def text_ids(model: Path, words: Tokenizer) -> list[int]:
    """Ids of the text that stands beside the models: what the peers' scripts train on."""
    return words.encode((model.parent / "text.txt").read_text()[:400_000])


def slices(ids: list[int], length: int) -> Iterator[list[int]]:
    """Consecutive rows of the text, from its start again when it ends."""
    starts = range(0, len(ids) - length, length)
    for turn in count():
        start = starts[turn % len(starts)]
        yield ids[start : start + length]


def sample(
    model: Path, precision: str, max_rows: int = ROWS, prompts: int = ROWS, stop_ids: Collection[int] = NEVER
) -> Run:
    """Random prompts of 32 tokens, up to 64 new ones; counts the tokens of the completions, end token included."""
    policy, _ = load_policy(model, PLACEMENTS[precision])
    generator = torch.Generator().manual_seed(0)
    limit = min(policy.config.vocab_size, 8192)
    ids = torch.randint(3, limit, (prompts, PROMPT), generator=generator).tolist()
    engine, seeds = Engine(policy, stop_ids, max_rows=max_rows), count()

    def run() -> float:
        samples = engine.generate(ids, Sampling(NEW), seed=next(seeds))
        return float(sum(len(s.completion) for s in samples))

    return run


def sample_mixed(model: Path, precision: str, max_rows: str) -> Run:
    """128 prompts at once to a model whose completions end after a geometric number of tokens, 24 in the mean."""
    _, words = load_policy(model)
    return sample(model, precision, int(max_rows), 128, words.stop_ids)


def sft(model: Path, precision: str) -> Run:
    """One optimizer step on 32 rows of 96 tokens, all but the first predicted."""
    policy, words = load_policy(model, PLACEMENTS[precision])
    learner = Learner({"policy": policy}, {"policy": STILL}, 10**6)
    rows = slices(text_ids(model, words), PROMPT + NEW)
    policy.train()

    def run() -> float:
        batch = [Example(tuple(ids[:1]), tuple(ids[1:])) for ids in (next(rows) for _ in range(ROWS))]
        learner.update(sft_losses(policy, batch, words.pad_id, ROWS * (PROMPT + NEW)))
        return ROWS

    return run


def reward(model: Path, precision: str) -> Run:
    """One optimizer step on 32 pairs of 96-token rows."""
    scorer, words, _ = load_scalar(model, PLACEMENTS[precision], head_seed=0)
    learner = Learner({"reward": scorer}, {"reward": STILL}, 10**6)
    config = RewardConfig(center_coef=0.0, dropout=0.0, groups_per_step=ROWS)
    rows = slices(text_ids(model, words), PROMPT + NEW)
    scorer.train()

    def run() -> float:
        groups = [pair(next(rows), next(rows)) for _ in range(ROWS)]
        stats = {"accuracy": 0.0, "margin": 0.0}
        learner.update(group_losses(config, scorer, groups, words.pad_id, stats))
        return ROWS

    return run


def pair(chosen: list[int], rejected: list[int]) -> EncodedGroup:
    """A group of two, the first ranked above the second."""
    examples = tuple(Example(tuple(ids[:PROMPT]), tuple(ids[PROMPT:])) for ids in (chosen, rejected))
    return EncodedGroup(examples, (1.0, 2.0), 1.0)


def dpo(model: Path, precision: str) -> Run:
    """One optimizer step on 32 pairs of 32 + 64 tokens, and their log-probabilities under the reference.

    A run of one epoch computes those once before it; here they are part of each step, as in the peer's.
    """
    objective = dpo_objective(model, precision)
    learner = Learner({"policy": objective.policy}, {"policy": STILL}, 10**6)
    rows = slices(text_ids(model, load_tokenizer(model)), PROMPT + 2 * NEW)

    def run() -> float:
        learner.update(preference_losses(objective, [judged_pair(next(rows)) for _ in range(ROWS)], Tally()))
        return ROWS

    return run


def dpo_objective(model: Path, precision: str) -> Objective:
    """DPO of a policy; the reference is a copy that is read whenever it is asked."""
    config = DpoConfig(groups_per_step=ROWS)
    (policy, words), (copy, _) = (load_policy(model, PLACEMENTS[precision]) for _ in range(2))
    copy.eval().requires_grad_(False)

    def reference(examples: Sequence[Example]) -> Tensor:
        return bucketed_logp(copy, examples, words.pad_id, config.micro_batch_tokens)

    return Objective(config, PREFERENCE_LOSSES["dpo"], policy.eval(), words.pad_id, reference)


def judged_pair(ids: list[int]) -> ComparedGroup:
    """A prompt, a completion and a worse one, end to end."""
    prompt, completions = tuple(ids[:PROMPT]), (ids[PROMPT : PROMPT + NEW], ids[PROMPT + NEW :])
    examples = [Example(prompt, tuple(completion)) for completion in completions]
    return compared_ranking(DpoConfig(), PREFERENCE_LOSSES["dpo"], examples, (1.0, 2.0), 1.0)


def ppo_config(precision: str, optim: OptimConfig) -> RlConfig:
    """An iteration of 32 episodes of 64 tokens, four epochs of one minibatch."""
    return RlConfig(
        precision=CONFIG[precision],
        prompts_per_iteration=ROWS,
        max_new_tokens=NEW,
        missing_eos_penalty=0.0,
        actor=optim,
        critic=optim,
    )


def ppo_prompts(model: Path, words: Tokenizer) -> Iterator[str]:
    """Pieces of the text that are 32 tokens long as texts, too."""
    texts = (words.decode(ids) for ids in slices(text_ids(model, words), PROMPT))
    return (text for text in texts if len(words.encode(text)) == PROMPT)


def ppo(model: Path, precision: str, stop: str) -> Run:
    """One iteration: 32 rollouts, reference, values and scores, 4 epochs of one minibatch, statistics and metrics."""
    with TemporaryDirectory() as folder:
        models = make_models(model, model, Path(folder) / "reward", precision)
    return iteration(ppo_config(precision, STILL), models, model, stop)


class DistinctTokens:
    """The cheap score that the peer's script has: how many different tokens a completion is made of."""

    def __init__(self, words: Tokenizer) -> None:
        self.words = words

    def score(self, pairs: Sequence[tuple[str, str]]) -> Tensor:
        return torch.tensor([float(len(set(self.words.encode(text)))) for _, text in pairs])


def group_config(algorithm: str, precision: str, optim: OptimConfig) -> RlConfig:
    """An iteration of 8 prompts with 4 completions each, one pass."""
    return RlConfig(
        algorithm=algorithm,
        precision=CONFIG[precision],
        prompts_per_iteration=ROWS // 4,
        samples_per_prompt=4,
        max_new_tokens=NEW,
        missing_eos_penalty=0.0,
        shaping=ShapingConfig(),
        kl_coef=0.05,
        ppo_epochs=1,
        actor=optim,
    )


def group(model: Path, precision: str, algorithm: str, stop: str) -> Run:
    """One iteration of an algorithm without a critic: 8 prompts x 4 rollouts, reference, one update, statistics."""
    policy, words = load_policy(model, PLACEMENTS[precision])
    frozen = load_policy(model, PLACEMENTS[precision])[0].eval().requires_grad_(False)
    models = PolicyModels(policy, None, frozen, DistinctTokens(words), words)
    return iteration(group_config(algorithm, precision, STILL), models, model, stop)


def iteration(config: RlConfig, models: PolicyModels, model: Path, stop: str) -> Run:
    """What an iteration of the stage does, from the prompts to the row of metrics."""
    words, algorithm = models.tokenizer, POLICY_ALGORITHMS[config.algorithm]
    learner = Learner(models.trained(), {"actor": config.actor, "critic": config.critic}, 10**6)
    engine = Engine(models.policy, words.stop_ids if stop == "eos" else NEVER, max_rows=ROWS)
    optimizer = PolicyOptimizer(config, algorithm, models, learner, Controllers.of(config, float(NEW)))
    metrics, steps = Metrics(Path(os.devnull)), count()
    prompts = ppo_prompts(model, words)

    def run() -> float:
        step, chosen = next(steps), [next(prompts) for _ in range(config.prompts_per_iteration)]
        sampling = Sampling(NEW, config.samples_per_prompt)
        samples = engine.generate([words.encode(p) for p in chosen], sampling, seed=step)
        stats = optimizer.improve(score_samples(models.scorer, decoded(words, chosen, samples)), step)
        list(raised_alarms(stats))
        metrics.write(step, stats)
        return ROWS

    return run


def make_models(model: Path, reference: Path, reward_folder: Path, precision: str) -> PolicyModels:
    """Policy, reference, a critic and a reward model of the policy's size, the last two from one folder."""
    policy, words = load_policy(model, PLACEMENTS[precision])
    scalar, _, _ = load_scalar(model, PLACEMENTS[precision], head_seed=0)
    save_scalar(reward_folder, scalar, words)
    critic, _, _ = load_scalar(reward_folder, PLACEMENTS[precision])
    frozen = load_policy(reference, PLACEMENTS[precision])[0].eval().requires_grad_(False)
    return PolicyModels(policy, critic, frozen, RewardModel.load(reward_folder, PLACEMENTS[precision]), words)


WORKLOADS: dict[str, Callable[..., Run]] = {
    "sample": sample,
    "sample-mixed": sample_mixed,
    "sft": sft,
    "reward": reward,
    "dpo": dpo,
    "ppo": ppo,
    "group": group,
}


def rates(run: Run, runs: int) -> list[float]:
    """Items a second of each timed run, after one that is not timed."""
    run()
    found = []
    for _ in range(runs):
        start = time.perf_counter()
        items = run()
        found.append(items / (time.perf_counter() - start))
    return found


def main(work: str, model: str, precision: str, runs: str, *options: str) -> None:
    """Run one workload and print its result."""
    torch.set_num_threads(int(os.environ.get("BENCH_THREADS", "2")))
    tune_allocator()
    found = rates(WORKLOADS[work](Path(model), precision, *options), int(runs))
    result = {"median": statistics.median(found), "min": min(found), "max": max(found), "n": len(found)}
    print("RESULT " + json.dumps(result), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
