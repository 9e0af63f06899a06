"""A copy of the policy that draws in its place: given the weights, compared with it, asked, at most a step behind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from accord.config import RlConfig
from accord.errors import UsageError
from accord.files import remove
from accord.models.folder import save_policy
from accord.models.placement import Placement
from accord.ranks import Ranks
from accord.rollout.engine import Sample, Sampling
from accord.rollout.generator import Generated
from accord.rollout.published import Copy, PublishedGenerator
from accord.rollout.vllm import VllmCopy
from accord.text.batches import Example, collate
from accord.train.learner import Learner
from accord.train.policy_models import PolicyModels


@dataclass
class Publisher:
    """Keeps a copy of the policy in step with the learner.

    Of several processes the first has the copy, and the others hear what it drew. With ``max_staleness`` 1 the samples
    of the next step are drawn while this one is learnt from, by the weights from before it.

    Attributes:
        folder: Where weights are handed over, a folder each; the last one stays for a copy that is lost.
    """

    config: RlConfig
    models: PolicyModels
    learner: Learner
    folder: Path
    copy: Copy
    gap: float = 0.0
    _ahead: tuple[int, Future[list[Generated]]] | None = None
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    generator: PublishedGenerator = field(init=False)

    def __post_init__(self) -> None:
        policy, tokenizer = self.models.policy, self.models.tokenizer
        self.generator = PublishedGenerator(self.copy, tokenizer, policy.config.max_positions)

    @property
    def ranks(self) -> Ranks:
        return self.learner.ranks

    def publish(self) -> None:
        """Give the copy the policy's present weights, unless it has them, and compare the two.

        Raises ResourceError where they differ by more than rounding.
        """
        version = self.learner.step
        if self.generator.version == version:
            return
        folder = self.folder / f"version_{version:06d}"
        save_policy(folder, self.models.policy, self.models.tokenizer)
        temperature = self.config.temperature
        canary = self.ranks.by_first(lambda: self.generator.publish(version, folder, temperature))
        own_N = self._own(canary)
        dtype = self.models.policy.model.compute_dtype
        self.gap = self.ranks.by_first(lambda: self.generator.settle(version, canary, own_N, dtype))
        self.generator.version = version  # of a process that has no copy too
        if self.ranks.first:
            for older in self.folder.glob("version_*"):
                if older != folder:
                    remove(older)

    @torch.no_grad()
    def _own(self, samples: Sequence[Sample]) -> Tensor:
        """Return the policy's own log-probabilities of these samples' tokens, in order."""
        was_training = self.models.policy.training
        self.models.policy.eval()
        batch = collate([Example(one.prompt, one.completion) for one in samples], self.models.tokenizer.pad_id)
        found = self.models.forward_logps(batch, self.config.temperature, entropy=False, values=False)
        self.models.policy.train(was_training)
        return found.logp_N.float()

    def draw(self, prompts: Sequence[str], sampling: Sampling, seed: int) -> list[Generated]:
        """Return completions by the version that was published last; those drawn ahead, if they were asked for so."""
        if self._ahead is not None and self._ahead[0] == seed:
            _, future = self._ahead
            self._ahead = None
            return self.ranks.by_first(future.result)
        return self.ranks.by_first(lambda: self.generator.generate(prompts, sampling, seed=seed))

    def draw_ahead(self, prompts: Sequence[str], sampling: Sampling, seed: int) -> None:
        """Begin to draw what `draw` will be asked for next."""
        future: Future[list[Generated]] = Future()
        if self.ranks.first:
            future = self._thread.submit(self.generator.generate, prompts, sampling, seed=seed)
        self._ahead = (seed, future)

    # -- what a checkpoint keeps ---------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return what was drawn ahead, as JSON: its weights are gone when a run goes on."""
        if self._ahead is None:
            return {}
        seed, future = self._ahead
        drawn = self.ranks.by_first(future.result)
        return {"seed": seed, "drawn": [asdict(one) for one in drawn]}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on with what `state` gave."""
        if state:
            future: Future[list[Generated]] = Future()
            future.set_result([_generated(one) for one in state["drawn"]])
            self._ahead = (state["seed"], future)

    def close(self) -> None:
        """End the copy, and remove the weights that were handed over."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self.copy.close()
        if self.ranks.first:
            remove(self.folder)


def _generated(raw: dict[str, Any]) -> Generated:
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in raw.items()}
    return Generated(**values)


@contextmanager
def publishing(
    config: RlConfig, models: PolicyModels, learner: Learner, folder: Path, copy: Copy | None = None
) -> Iterator[Publisher | None]:
    """Inside, a copy draws, if one is to: the one given, or what ``rollout.use`` names. None where the policy does.

    Raises UsageError where samples are to be drawn ahead by the policy itself.
    """
    if copy is None and config.rollout.use == "vllm":
        copy = VllmCopy(models.tokenizer.stop_ids, Placement.of(config))
    if copy is None and config.rollout.max_staleness:
        raise UsageError(
            "rl.rollout.max_staleness is 1, and the policy itself draws",
            why="samples are drawn while its weights move",
            hint="set rl.rollout.use=vllm or scale.rollout_workers, or max_staleness=0",
        )
    publisher = None if copy is None else Publisher(config, models, learner, folder / "published", copy)
    try:
        yield publisher
    finally:
        if publisher is not None:
            publisher.close()
