"""Prompts in, completions out, as texts: the one place where a policy is asked to write.

Whoever wants completions calls a `Generator`. Ours runs the `Engine` on a policy in memory; another (a server, say)
needs only the one method and the chat template, and is opened by `open_generator` where ``sample.generator`` names it.
What trains or measures log-probabilities uses ours, on the weights as they stand.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from accord.extend import row
from accord.models.decoder import CausalLM
from accord.models.folder import load_policy
from accord.models.placement import AUTO, Placement
from accord.progress import Log, quiet
from accord.rollout.engine import Engine, Finish, Sample, Sampling
from accord.text.template import ChatTemplate
from accord.text.tokenizer import Tokenizer

TOLD_EVERY = 32  # tokens between two words of progress: seconds on a slow machine, and nothing beside drawing
ENGINE_ROWS = 128  # samples alive at once unless a caller says otherwise; more is faster where memory allows


@dataclass(frozen=True)
class Generated:
    """One completion, as text and as tokens.

    ``completion_ids`` end with a stop token where ``finish`` is "stop"; ``behaviour_logp`` holds one log-probability
    (nats) for each of them, under the distribution it was drawn from.
    """

    prompt: str
    text: str
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    behaviour_logp: tuple[float, ...]
    finish: Finish

    @property
    def pair(self) -> tuple[str, str]:
        """Prompt and completion, as scorers read them."""
        return self.prompt, self.text

    @property
    def finished(self) -> bool:
        """Whether it ended by itself."""
        return self.finish == "stop"


class Generator(Protocol):
    """A writer of completions. ``chat`` lays out prompts of several turns; None for a policy that has no template."""

    @property
    def chat(self) -> ChatTemplate | None: ...

    def generate(self, prompts: Sequence[str], sampling: Sampling, *, seed: int) -> list[Generated]:
        """Return K = ``sampling.samples_per_prompt`` completions of each prompt side by side, in prompt order.

        The same seed, prompts and sampling give the same completions.
        """


@runtime_checkable
class GroupGenerator(Protocol):
    """A `Generator` that hands out each prompt's completions as soon as they are there, and can leave prompts out."""

    def generate_groups(
        self, prompts: Sequence[str], sampling: Sampling, *, seed: int, skip: Collection[int] = (), log: Log = quiet
    ) -> Iterator[tuple[int, list[Generated]]]:
        """Yield the place of a prompt with its K completions, in the order in which they are done.

        They are those of `Generator.generate`, up to padding's rounding where some are left out (``skip``).
        """


class EngineGenerator:
    """A `Generator` over a policy in memory, always with its present weights."""

    def __init__(self, policy: CausalLM, tokenizer: Tokenizer, *, max_rows: int = ENGINE_ROWS) -> None:
        self.tokenizer = tokenizer
        self._engine = Engine(policy, tokenizer.stop_ids, max_rows=max_rows)

    @property
    def chat(self) -> ChatTemplate | None:
        return self.tokenizer.chat

    def generate(self, prompts: Sequence[str], sampling: Sampling, *, seed: int) -> list[Generated]:
        ids = self.tokenizer.encode_prompts(prompts)
        samples = self._engine.generate(ids, sampling, seed=seed)
        return decoded(self.tokenizer, prompts, samples)

    def generate_groups(
        self, prompts: Sequence[str], sampling: Sampling, *, seed: int, skip: Collection[int] = (), log: Log = quiet
    ) -> Iterator[tuple[int, list[Generated]]]:
        ids = self.tokenizer.encode_prompts(prompts)
        wanted, limit = (len(prompts) - len(frozenset(skip))) * sampling.samples_per_prompt, sampling.max_new_tokens
        groups: defaultdict[int, list[Sample]] = defaultdict(list)
        drawn = finished = work = 0
        log(0.0, f"drawing {wanted} samples")
        for drawn, token in enumerate(self._engine.stream(ids, sampling, seed=seed, skip=skip), 1):
            work += 1
            if drawn % TOLD_EVERY == 0:
                log(work / (wanted * limit), f"{finished} of {wanted} samples")
            if token.sample is None:
                continue
            # What it did not use of its room is no work that is left.
            finished, work = finished + 1, work + limit - len(token.sample.completion)
            group = groups[token.prompt_index]
            group.append(token.sample)
            if len(group) == sampling.samples_per_prompt:
                ordered = sorted(groups.pop(token.prompt_index), key=lambda sample: sample.sample_index)
                yield token.prompt_index, decoded(self.tokenizer, prompts, ordered)


def decoded(tokenizer: Tokenizer, prompts: Sequence[str], samples: Sequence[Sample]) -> list[Generated]:
    """Return the engine's samples with their texts; ``prompts`` are those that their ``prompt_index`` counts."""
    return [
        Generated(
            prompt=prompts[sample.prompt_index],
            text=tokenizer.decode_after(sample.prompt, sample.completion),
            prompt_ids=sample.prompt,
            completion_ids=sample.completion,
            behaviour_logp=sample.behaviour_logp,
            finish=sample.finish,
        )
        for sample in samples
    ]


def _vllm(policy: Path, placement: Placement) -> Generator:
    from accord.rollout.vllm import vllm_generator  # it is a generator too

    return vllm_generator(policy, placement)


#: What ``sample.generator`` may name, or ``module:name`` of a user's own: called with a policy's folder and placement.
GENERATORS: Mapping[str, Callable[[Path, Placement], Generator]] = {
    "engine": lambda policy, placement: EngineGenerator(*load_policy(policy, placement)),
    "vllm": _vllm,
}


def open_generator(policy: Path, placement: Placement = AUTO, name: str = "engine") -> Generator:
    """Return what writes completions with the policy in a folder. Raises UsageError where nothing has that name."""
    return row(GENERATORS, name)(policy, placement)


def groups_as_done(
    generator: Generator,
    prompts: Sequence[str],
    sampling: Sampling,
    *,
    seed: int,
    skip: Collection[int] = (),
    log: Log = quiet,
) -> Iterator[tuple[int, list[Generated]]]:
    """Yield places of prompts with their completions: as they are done, or all at the end where a generator must."""
    if isinstance(generator, GroupGenerator):
        yield from generator.generate_groups(prompts, sampling, seed=seed, skip=skip, log=log)
        return
    # What another generator draws may depend on all of its prompts: it is asked for the whole again.
    whole = by_prompt(generator.generate(prompts, sampling, seed=seed), sampling.samples_per_prompt)
    yield from ((place, group) for place, group in enumerate(whole) if place not in skip)


def by_prompt(generated: Sequence[Generated], samples_per_prompt: int) -> list[list[Generated]]:
    """Return the completions of each prompt as a list of their own, in prompt order."""
    starts = range(0, len(generated), samples_per_prompt)
    return [list(generated[start : start + samples_per_prompt]) for start in starts]
