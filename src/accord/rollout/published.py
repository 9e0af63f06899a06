"""Completions from a copy of the policy that is kept elsewhere, in another process or on another machine.

A copy has a version, is asked for that version and refuses another. A sample is a function of (version, prompt, seed),
so work that is lost is asked for again. Publishing new weights ends with the canary: fixed prompts whose samples'
log-probabilities the policy itself computes too. That a copy says it has loaded weights proves nothing: vLLM's default
log-probabilities, its tied head on a CPU and its prefix cache each gave numbers of no policy at all, without an error.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from accord.errors import ResourceError, UsageError
from accord.models.folder import load_policy
from accord.models.placement import Placement
from accord.rollout.engine import Engine, Sample, Sampling
from accord.rollout.generator import ENGINE_ROWS, Generated, decoded
from accord.seeds import stream_seed
from accord.text.template import ChatTemplate
from accord.text.tokenizer import Tokenizer

CANARY_PROMPTS, CANARY_NEW = 8, 8
CANARY_TOKENS = 160  # of a prompt: longer than a block of a prefix cache, or what it remembers is never met
# Mean distance in nats, of samples whose law is the policy's: measured 6e-7 in fp32 and 0.0075 in bf16. A trap was
# never below 0.2.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.05}


class Patience:
    """How long an answer may take: ten times the median of its kind so far; the first of a kind 15 minutes."""

    FIRST_S, LEAST_S, TIMES = 900.0, 60.0, 10.0

    def __init__(self) -> None:
        self._taken: defaultdict[str, list[float]] = defaultdict(list)

    def limit(self, kind: str) -> float:
        """Return the seconds that an answer of this kind may take."""
        taken = self._taken[kind]
        return max(self.LEAST_S, self.TIMES * statistics.median(taken)) if taken else self.FIRST_S

    def took(self, kind: str, seconds: float) -> None:
        """Remember how long one took."""
        self._taken[kind].append(seconds)


class Copy(Protocol):
    """Holds a policy's weights elsewhere and draws with them. Nothing is held before the first `load`."""

    def load(self, version: int, folder: Path) -> None:
        """Take the weights of a model folder, which are of this version from then on."""

    def draw(
        self, version: int, prompts: Sequence[tuple[int, ...]], sampling: Sampling, seed: int, places: Sequence[int]
    ) -> list[Sample]:
        """Return K samples a prompt in order; each is named by its prompt's place and draws from a stream of its own.

        Raises:
            StaleWeights: It holds another version.
        """

    def close(self) -> None:
        """End what it started."""


class StaleWeights(ResourceError):
    """A copy holds another version of the weights than it was asked for."""


def require_version(holds: int, asked: int) -> None:
    """Refuse to draw with weights of another version. Raises StaleWeights."""
    if holds != asked:
        raise StaleWeights(f"a copy of the policy holds version {holds}, and was asked for {asked}")


def stream_seeds(seed: int, places: Sequence[int], samples_per_prompt: int) -> list[int]:
    """Return the seed of each sample of these prompts, whoever draws it."""
    return [stream_seed(seed, place, k) for place in places for k in range(samples_per_prompt)]


class EngineCopy:
    """Accord's own engine over weights of its own: in a worker, or here for who wants them to stand still."""

    def __init__(self, placement: Placement, *, max_rows: int = ENGINE_ROWS) -> None:
        self._placement, self._max_rows, self._version = placement, max_rows, -1
        self._engine: Engine | None = None

    def load(self, version: int, folder: Path) -> None:
        policy, tokenizer = load_policy(folder, self._placement)
        self._engine, self._version = Engine(policy, tokenizer.stop_ids, max_rows=self._max_rows), version

    def draw(
        self, version: int, prompts: Sequence[tuple[int, ...]], sampling: Sampling, seed: int, places: Sequence[int]
    ) -> list[Sample]:
        require_version(self._version, version)
        assert self._engine is not None
        drawn: list[Sample] = []
        with self._engine.session() as session:
            # As `Engine.generate` does, so that whoever draws all of them draws the same bits.
            for i in sorted(range(len(prompts)), key=lambda i: len(prompts[i])):
                session.submit(places[i], prompts[i], sampling, seed=seed)
            while session.busy:
                drawn += [token.sample for token in session.step() if token.sample is not None]
        return sorted(drawn, key=lambda one: (one.prompt_index, one.sample_index))

    def close(self) -> None:
        self._engine, self._version = None, -1


@dataclass
class PublishedGenerator:
    """A `Generator` over a copy of the policy, as of the version that was published last."""

    copy: Copy
    tokenizer: Tokenizer
    positions: int
    version: int = -1
    _canary: tuple[tuple[int, ...], ...] = field(init=False)

    def __post_init__(self) -> None:
        length = min(CANARY_TOKENS, self.positions - CANARY_NEW)
        draw = torch.Generator().manual_seed(0)
        # Random tokens: likely ones would all be near 0 nats, and hide what is wrong with the others. The same at each
        # publishing: a fresh prompt would not meet what is remembered of an older policy.
        ids_PT = torch.randint(self.tokenizer.vocab_size, (CANARY_PROMPTS, length), generator=draw)
        self._canary = tuple(tuple(ids) for ids in ids_PT.tolist())

    @property
    def chat(self) -> ChatTemplate | None:
        return self.tokenizer.chat

    def publish(self, version: int, folder: Path, temperature: float) -> list[Sample]:
        """Load a version and return the canary's samples; the version counts once `settle` has compared them."""
        self.version = -1
        self.copy.load(version, folder)
        sampling = Sampling(CANARY_NEW, 1, temperature)
        return self.copy.draw(version, self._canary, sampling, 0, range(CANARY_PROMPTS))

    def settle(self, version: int, samples: Sequence[Sample], own_N: torch.Tensor, dtype: torch.dtype) -> float:
        """Return how far the copy's log-probabilities are from the policy's own, in nats a token.

        Raises:
            ResourceError: Further than rounding goes: the copy draws from another distribution.
        """
        said_N = torch.tensor([logp for one in samples for logp in one.behaviour_logp])
        gap = float((said_N - own_N).abs().mean())
        if not gap <= TOLERANCES[dtype]:
            raise ResourceError(
                f"a copy of the policy draws from another distribution: {gap:.3g} nats a token from version {version}, "
                f"where rounding makes {TOLERANCES[dtype]:g}",
                why="keys and values of older weights (prefix cache), an old head where embeddings are tied, "
                "log-probabilities at another temperature, or another dtype",
                hint="scale.rollout=engine draws with the policy itself",
            )
        self.version = version
        return gap

    def generate(self, prompts: Sequence[str], sampling: Sampling, *, seed: int) -> list[Generated]:
        """Return K completions of each prompt side by side. Raises UsageError for what a copy cannot draw."""
        if sampling.shaping is not None or sampling.told is not None:
            raise UsageError("a copy of the policy draws without penalties and tells no likeliest tokens")
        ids = [tuple(one) for one in self.tokenizer.encode_prompts(prompts)]
        samples = self.copy.draw(self.version, ids, sampling, seed, range(len(ids)))
        return decoded(self.tokenizer, prompts, samples)
