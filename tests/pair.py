"""Checks that two processes make together, each against one process alone; `test_dist` asks for them.

The processes are forked from one that has loaded everything, and find each other as torchrun's do: by environment. A
check that fails ends both: what another process still waits for can never come.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from stages import Bench
from torch import Tensor, nn

from accord import config as c
from accord.algo.table import POLICY_ALGORITHMS
from accord.dist.mesh import TIMEOUT, joined_ranks
from accord.dist.shard import full_tensor
from accord.errors import DataError
from accord.files import write_text
from accord.models.backbone import recompute_activations
from accord.models.decoder import CausalLM, ScalarModel, init_score_head, init_weights
from accord.models.lora import add_lora
from accord.models.shape import DecoderConfig
from accord.ranks import ONE_PROCESS, Ranks
from accord.rollout.generator import Generated
from accord.text.batches import Example
from accord.train import learner as learning
from accord.train.controllers import Controllers
from accord.train.judged import EncodedGroup
from accord.train.learner import Checkpoints, Learner
from accord.train.policy_models import PolicyModels, ValueHead
from accord.train.policy_optimizer import PolicyOptimizer
from accord.train.preferences import Objective, Tally, compared_ranking, preference_losses
from accord.train.reward import group_losses
from accord.train.rollouts import Scored
from accord.train.sft import sft_losses

Found = dict[str, Any]
M = TypeVar("M", CausalLM, ScalarModel)
# No norm is clipped and no step is amplified: gradients are what is compared.
PLAIN = c.OptimConfig(lr=1e-3, schedule="constant", warmup_ratio=0.0, clip_norm=1e9)
LORA = c.LoraConfig(rank=2, alpha=4.0)
DEADLINE_S = 300.0  # of one call on a busy machine; alone it takes seconds


def shape(tied: bool) -> DecoderConfig:
    return DecoderConfig(120, 32, 48, 2, 4, 2, 8, 64, tied=tied)


def language_model(variant: str, seed: int = 0) -> CausalLM:
    """A policy: tied, untied, with an adapter (whose B is not 0), or one that recomputes activations."""
    model = CausalLM(shape(tied=variant != "untied"))
    init_weights(model, seed)
    return prepared(model, variant)


def scalar_model(variant: str, seed: int = 3, heads: int = 1) -> ScalarModel:
    model = ScalarModel(shape(tied=False), heads)
    init_weights(model, seed)
    init_score_head(model, seed)
    return prepared(model, variant)


def prepared(model: M, variant: str) -> M:
    if variant == "lora":
        add_lora(model, LORA, 7)
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    if variant == "recomputed":
        recompute_activations(model.model)
    return model.train()


def examples(count: int, *, prompts: int = 0, seed: int = 1) -> list[Example]:
    """Texts of very different lengths; of few prompts where so many are asked for."""
    generator = torch.Generator().manual_seed(seed)

    def ids(most: int) -> tuple[int, ...]:
        size = int(torch.randint(1, most, (1,), generator=generator))
        return tuple(torch.randint(4, 118, (size,), generator=generator).tolist())

    shared = [ids(12) for _ in range(prompts)]
    return [Example(shared[i * prompts // count] if prompts else ids(20), ids(30)) for i in range(count)]


@contextmanager
def alone() -> Iterator[None]:
    """Inside, a learner is made as one process makes it."""
    joined, learning.joined_ranks = learning.joined_ranks, lambda: ONE_PROCESS
    try:
        yield
    finally:
        learning.joined_ranks = joined


class Watched(Learner):
    """A learner that keeps the gradients of its first step, whole."""

    def update(self, losses: Any) -> dict[str, float]:
        def kept() -> Iterator[Tensor]:
            yield from losses

        before = learning._clip

        def clip(module: nn.Module, limit: float) -> float:
            if self.step == 0:  # later ones stand on weights that AdamW has moved, and it amplifies the last digits
                self.gradients |= {
                    f"{id(module)}.{name}": full_tensor(p.grad).clone()
                    for name, p in module.named_parameters()
                    if p.grad is not None
                }
            return before(module, limit)

        self.gradients: dict[str, Tensor] = getattr(self, "gradients", {})
        learning._clip = clip
        try:
            return super().update(kept())
        finally:
            learning._clip = before

    def named(self) -> dict[str, Tensor]:
        labels = {id(module): name for name, module in self.modules.items()}
        return {f"{labels[int(k.split('.', 1)[0])]}.{k.split('.', 1)[1]}": g for k, g in self.gradients.items()}


def gap(ours: Learner, theirs: Learner) -> float:
    """The largest difference of a gradient, in parts of its tensor's largest number."""
    one, other = theirs.named(), ours.named()
    assert one.keys() == other.keys() and one
    return max(float((other[k] - one[k]).abs().max() / one[k].abs().max().clamp_min(1e-30)) for k in one)


def compared(step: Callable[[Ranks, bool], tuple[Watched, dict[str, float]]]) -> Found:
    """What a step of both processes is beside the same step of one."""
    with alone():
        theirs, expected = step(ONE_PROCESS, False)
    ours, found = step(joined_ranks(), True)
    assert expected.keys() == found.keys(), sorted(expected.keys() ^ found.keys())
    off = {k: abs(found[k] - expected[k]) / max(1e-3, abs(expected[k])) for k in expected}
    worst = max(off, key=off.__getitem__)
    return {"gap": gap(ours, theirs), "stats": off[worst], "worst": worst, "found": found, "expected": expected}


# -- gradients of the stages -------------------------------------------------------------------------------------------


def sft_step(variant: str, count: int = 13, tokens: int = 96) -> Found:
    rows = examples(count)

    def step(ranks: Ranks, _: bool) -> tuple[Watched, dict[str, float]]:
        model = language_model(variant)
        learner = Watched({"policy": model}, {"policy": PLAIN}, 10)
        return learner, learner.update(sft_losses(model, rows, 0, tokens, ranks))

    return compared(step)


def reward_step(variant: str, groups: int = 5, **settings: Any) -> Found:
    texts, config = examples(3 * groups, prompts=groups), c.RewardConfig(micro_batch_tokens=128, **settings)
    made = [
        EncodedGroup(
            tuple(texts[3 * g : 3 * g + 3]), (1.0, 2.0, 2.0 + g % 2), 1.0 + g % 3, draws=(1.0, 2.0, float(g % 2))
        )
        for g in range(groups)
    ]

    def step(ranks: Ranks, _: bool) -> tuple[Watched, dict[str, float]]:
        model, stats = scalar_model(variant, heads=config.heads), dict[str, float]()
        learner = Watched({"reward": model}, {"reward": PLAIN}, 10)
        return learner, learner.update(group_losses(config, model, made, 0, stats, ranks)) | stats

    return compared(step)


def dpo_step(variant: str, groups: int = 5, **settings: Any) -> Found:
    from accord.algo.table import PREFERENCE_LOSSES
    from accord.extend import row

    config = c.DpoConfig(micro_batch_tokens=128, **settings)
    algorithm = row(PREFERENCE_LOSSES, config.loss)
    texts = examples(3 * groups, prompts=groups)
    made = [
        compared_ranking(config, algorithm, texts[3 * g : 3 * g + 3], [1.0, 2.0, 2.0 + g % 2], 1.0)
        for g in range(groups)
    ]

    def reference(wanted: Any) -> Tensor:
        return torch.tensor([-3.0 * len(e.completion) - 0.1 * e.completion[0] for e in wanted])

    def step(ranks: Ranks, _: bool) -> tuple[Watched, dict[str, float]]:
        model = language_model(variant).eval()
        learner = Watched({"policy": model}, {"policy": PLAIN}, 10)
        tally = Tally()
        known = reference if algorithm.needs_reference else None
        losses = preference_losses(Objective(config, algorithm, model, 0, known), made, tally, ranks)
        return learner, learner.update(losses) | tally.means()

    return compared(step)


class NoWords:
    """What policy optimisation asks of a tokenizer when the samples are given."""

    pad_id, stop_ids, chat = 0, (1,), None


def policy_step(algorithm: str, variant: str, prompts: int = 4, shared: bool = False, **settings: Any) -> Found:
    """One iteration from given samples and scores on: measured, whitened, two epochs."""
    row = POLICY_ALGORITHMS[algorithm]
    usual = {"samples_per_prompt": 3, "prompts_per_iteration": prompts, "micro_batch_tokens": 128, "ppo_epochs": 2}
    config = c.RlConfig(algorithm=algorithm, actor=PLAIN, critic=PLAIN, **usual | settings)
    texts = examples(3 * prompts, prompts=prompts)
    samples = [
        Generated(f"p{i // 3}", f"t{i}", e.prompt, e.completion, (-4.5,) * len(e.completion), "stop")
        for i, e in enumerate(texts)
    ]
    scored = Scored(tuple(samples), torch.arange(3.0 * prompts).sin(), 3 * prompts, {})

    def step(ranks: Ranks, _: bool) -> tuple[Watched, dict[str, float]]:
        policy = language_model(variant)
        reference = policy if variant == "lora" else language_model("tied", seed=5).eval().requires_grad_(False)
        critic = (ValueHead(32) if shared else scalar_model(variant)) if row.critic else None
        models = PolicyModels(policy, critic, reference, None, NoWords())  # type: ignore[arg-type]
        learner = Watched(models.trained(), {"actor": PLAIN, "critic": PLAIN}, 10)
        optimizer = PolicyOptimizer(config, row, models, learner, Controllers.of(config, 8.0))
        return learner, optimizer.improve(scored, 5)

    return compared(step)


# -- checkpoints, and numbers that are none ----------------------------------------------------------------------------


def checkpoint(variant: str, folder: Path) -> Found:
    """Saved by two processes and read by two and by one; saved by one and read by two; a step further each time."""
    rows, ranks = examples(9), joined_ranks()

    def learner(seed: int) -> Learner:
        return Learner({"policy": language_model(variant, seed)}, {"policy": c.OptimConfig(lr=1e-3)}, 10)

    def step(made: Learner) -> None:
        made.update(sft_losses(made.modules["policy"], rows, 0, 96, made.ranks))  # type: ignore[arg-type]

    def whole(made: Learner) -> dict[str, Tensor]:
        return {name: full_tensor(tensor).detach().clone() for name, tensor in made.tensors().items()}

    def worst(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
        assert one.keys() == other.keys() and len(one) > 20
        return max(float((one[k] - other[k]).abs().max()) for k in one)

    def resumed(store: Checkpoints, seed: int = 9) -> tuple[dict[str, Tensor], dict[str, Tensor], Any]:
        made = learner(seed if variant != "lora" else 0)  # an adapter's base is no part of a checkpoint
        state = store.restore(made)
        read = whole(made)
        step(made)
        return read, whole(made), state

    both, one = (Checkpoints(folder / name, "same") for name in ("both", "one"))
    made = learner(0)
    step(made), step(made)
    both.save(made, {"kept": 0.25})
    saved = whole(made)
    step(made)
    after = whole(made)
    read, again, state = resumed(both)
    with alone():
        read_by_one, again_by_one, state_of_one = resumed(both)
        made = learner(0)
        step(made), step(made)
        if ranks.first:
            one.save(made, {"kept": 0.5})
        saved_by_one = whole(made)
        step(made)
        after_one = whole(made)
    ranks.said(None)
    read_by_both, again_by_both, state_of_both = resumed(one)
    return {
        "two to two": worst(saved, read) + worst(after, again),
        "two to one, read": worst(saved, read_by_one),
        "two to one, stepped": worst(after, again_by_one),
        "one to two, read": worst(saved_by_one, read_by_both),
        "one to two, stepped": worst(after_one, again_by_both),
        "states": [state, state_of_one, state_of_both],
        "files": sorted(path.name for path in (folder / "both").rglob("*") if path.is_file()),
        "other inputs": Checkpoints(folder / "both", "other").restore(learner(0)),
    }


def not_a_number(bad_rank: int) -> Found:
    """One process meets a loss that is no number; what each says."""
    ranks, rows, model = joined_ranks(), examples(6), language_model("tied")
    learner = Learner({"policy": model}, {"policy": PLAIN}, 10)
    scale = float("nan") if ranks.rank == bad_rank else 1.0
    before = {name: full_tensor(t).clone() for name, t in learner.tensors().items()}
    try:
        learner.update(scale * loss for loss in sft_losses(model, rows, 0, 96, ranks))
        said = "nothing"
    except DataError as error:
        said = str(error)
    moved = any(not torch.equal(full_tensor(t), before[name]) for name, t in learner.tensors().items())
    return {"said": ranks.gather(said), "moved": moved}


# -- whole stages ------------------------------------------------------------------------------------------------------


PTX = {"coef": 0.5, "blocks": 3, "block_tokens": 16}
SMALL_LORA = {"rank": 2, "alpha": 4.0}
ONLINE = {"online": True, "samples_per_prompt": 4, "max_new_tokens": 8}
LONG = {"rewards": [{"regex": "a"}], "iterations": 10, "checkpoint_every": 2, "kl_target": 0.1}
READINGS = {"pooled_coef": 0.5, "bag_coef": 0.5, "share_spellings": True}
GROUPED = {"algorithm": "grpo", "samples_per_prompt": 4, "minibatches": 1}


def scorer_of(bench: Bench) -> Path:
    """The same one for both: theirs are not alike, as each process drops its own."""
    return bench.folder.parent / "one" / "reward" / "model"


STAGES: dict[str, Callable[[Bench], Any]] = {
    "pretrain": lambda bench: bench.pretrain("llama"),
    "sft": lambda bench: bench.sft(bench.start, checkpoint_every=2, micro_batch_tokens=64),
    "sft_lora": lambda bench: bench.sft(bench.start, lora=SMALL_LORA),
    "reward": lambda bench: bench.reward(bench.start, **READINGS),
    "rl": lambda bench: bench.rl(bench.start, scorer_of(bench), ptx=PTX, length_coef=0.1),
    "rl_lora": lambda bench: bench.rl(bench.start, scorer_of(bench), "rl_lora", lora=SMALL_LORA, **GROUPED),
    "dpo": lambda bench: bench.dpo(bench.start, "ranks"),
    "kto": lambda bench: bench.dpo(bench.start, "thumbs", loss="kto"),
    "online": lambda bench: bench.dpo(bench.start, "prompts", scorer_of(bench), **ONLINE),
    "long": lambda bench: bench.rl(bench.start, None, "long", **LONG),
}
#: Where a stage works, where the bench gives it another name.
FOLDERS = {"dpo": "dpo_ranks", "kto": "dpo_thumbs", "online": "dpo_prompts"}


def stages(folder: Path, names: Sequence[str]) -> None:
    """Carry out stages in the folder of a bench that is there, as one process or several."""
    bench = Bench.opened(folder)
    for name in names:
        STAGES[name](bench)
        if name == "sft_lora":  # both write into one place
            keep(bench.folder / "sft", bench.folder / name)


def keep(folder: Path, place: Path) -> None:
    """Move what a stage wrote, once."""
    if joined_ranks().first:
        folder.rename(place)
    joined_ranks().said(None)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def one_dies(*, output_dir: Path, seed: int, resume: bool, log: Any) -> None:
    """A stage whose second process is killed while the first waits for it."""
    ranks = joined_ranks()
    if not ranks.first:
        os.kill(os.getpid(), signal.SIGKILL)
    ranks.gather(0)


def wait_until(is_so: Callable[[], bool], deadline_s: float = DEADLINE_S) -> None:
    end = time.monotonic() + deadline_s
    while not is_so():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


VARIANTS = ("tied", "untied", "lora", "recomputed")
CHECKS: dict[str, Callable[[], Found]] = {
    **{f"sft {v}": partial(sft_step, v) for v in VARIANTS},
    **{f"reward {v}": partial(reward_step, v) for v in ("untied", "lora", "recomputed")},
    "reward readings": lambda: reward_step("untied", pooled_coef=0.3, bag_coef=0.3),
    "reward heads": lambda: reward_step("untied", heads=3),
    "reward positions": lambda: reward_step("untied", loss="per_token"),
    **{f"dpo {v}": partial(dpo_step, v) for v in VARIANTS},
    "dpo kto": lambda: dpo_step("tied", loss="kto"),
    **{f"{a} {v}": partial(policy_step, a, v) for a in ("ppo", "grpo") for v in VARIANTS},
    # It has no ratio of new to old probability: one pass is all it may make.
    **{f"rloo {v}": partial(policy_step, "rloo", v, ppo_epochs=1, minibatches=1) for v in VARIANTS},
    "ppo one pass": lambda: policy_step("ppo", "tied", micro_batch_tokens=4096, minibatches=1),
    "ppo shared trunk": lambda: policy_step("ppo", "tied", shared=True, values={"shared": True}),
    # Unequal work: one row, one group or one prompt is all there is, and one micro-batch against many.
    "sft one row": lambda: sft_step("tied", count=1),
    "sft odd": lambda: sft_step("tied", count=3, tokens=16),
    "reward one group": lambda: reward_step("untied", groups=1),
    "dpo one group": lambda: dpo_step("tied", groups=1),
    "ppo one prompt": lambda: policy_step("ppo", "tied", prompts=1, minibatches=1),
    "grpo odd": lambda: policy_step("grpo", "tied", prompts=3, micro_batch_tokens=40, minibatches=3),
}


# -- processes ---------------------------------------------------------------------------------------------------------

FORKS = multiprocessing.get_context("forkserver")
PRELOADED = ["pair", "torch._dynamo", "torch.distributed.fsdp", "torch.distributed.checkpoint", "peft"]


def _be_one(rank: int, world: int, port: int, out: Path, work: Callable[[], Any]) -> None:
    """Be one of the processes that torchrun would start, and write down what the work returns, or why it failed."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), TIMEOUT: "60"}
    torch.set_num_threads(1)
    try:
        found = {"found": work()}
    except BaseException:
        found = {"failed": traceback.format_exc()}
    write_text(out / f"{rank}.json", json.dumps(found))
    # At once: another process may be gone, and leaving politely would wait for it.
    os._exit("failed" in found)


def started(out: Path, work: Callable[[], Any], world: int = 2) -> list[Any]:
    """Start processes that do the same work together, or one by itself."""
    FORKS.set_forkserver_preload(PRELOADED)
    out.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    made = [FORKS.Process(target=_be_one, args=(rank, world, port, out, work)) for rank in range(world)]
    for process in made:
        process.start()
    return made


def ended(processes: Sequence[Any], deadline_s: float = DEADLINE_S) -> list[int | None]:
    """Wait for processes and return their exit codes; what is left at the deadline is killed, and the wait fails."""
    end = time.monotonic() + deadline_s
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    late = [process for process in processes if process.is_alive()]
    for process in late:
        process.kill()
    assert not late, f"{len(late)} of {len(processes)} processes hang"
    return [process.exitcode for process in processes]


def together(out: Path, work: Callable[[], Any], world: int = 2) -> Any:
    """Return what the first of several processes finds; a failure of any is one of the test."""
    codes = ended(started(out, work, world))
    told = [json.loads((out / f"{rank}.json").read_text()) for rank in range(world) if (out / f"{rank}.json").exists()]
    failed = [one["failed"] for one in told if "failed" in one]
    assert codes == [0] * world, "\n".join(failed) or codes
    return told[0]["found"]


def all_checks(wanted: Sequence[str], out: Path) -> dict[str, Found]:
    """Every check in one pair: to start processes takes longer than to ask them."""
    found = {}
    for name in wanted:
        found[name] = CHECKS[name]()
        if joined_ranks().first:
            write_text(out / "last.txt", name)
    return found
