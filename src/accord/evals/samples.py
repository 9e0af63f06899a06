"""Samples of a policy and their log-probabilities under it and under the reference.

Shapes: P prompts, K samples a prompt, B = P*K samples, N counted tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from accord.algo.logprob import token_logp
from accord.errors import DataError
from accord.models.decoder import CausalLM
from accord.models.folder import load_policy
from accord.models.placement import AUTO, Placement
from accord.rollout.engine import Sampling
from accord.rollout.generator import EngineGenerator, by_prompt
from accord.stats import FloatArray, IntArray
from accord.text.batches import Example, collate, example_buckets
from accord.text.tokenizer import Tokenizer, tokenizer_hash

BoolArray = npt.NDArray[np.bool_]

EVAL_ROWS = 256  # samples drawn at once: bounds the cache
BATCH_TOKENS = 8192  # of a forward pass for log-probabilities: bounds its logits


@dataclass(frozen=True, eq=False)
class PolicySamples:
    """K completions of each of P prompts. ``tokens_PK`` counts the end token.

    ``logp_PK`` and ``ref_logp_PK`` are log-probabilities of the whole completion in nats under the policy itself and
    under the reference, both recomputed by one and the same function, so that a policy's KL to itself is exactly 0.
    ``first_logp_PK`` is that under where the first of several rounds started, if that was asked for. ``entropy_PK`` is
    the sum over a completion's tokens of the entropy of what the policy might have said instead, in nats.
    """

    texts: tuple[tuple[str, ...], ...]
    finished_PK: BoolArray
    tokens_PK: IntArray
    logp_PK: FloatArray
    ref_logp_PK: FloatArray
    first_logp_PK: FloatArray | None = None
    entropy_PK: FloatArray | None = None

    @property
    def flat(self) -> list[str]:
        """The texts prompt by prompt."""
        return [text for row in self.texts for text in row]

    @property
    def kl_PK(self) -> FloatArray:
        """log pi - log ref of each completion: its mean estimates KL(pi || ref) without bias (k1)."""
        return self.logp_PK - self.ref_logp_PK

    @property
    def first_kl_PK(self) -> FloatArray:
        """The same against where the first of several rounds started. Raises DataError where that was not measured."""
        if self.first_logp_PK is None:
            raise DataError("these samples were not measured against the first start")
        return self.logp_PK - self.first_logp_PK

    def pick(self, index_PK: IntArray) -> PolicySamples:
        """For each prompt only the samples with these indices, in this order."""

        def taken(values_PK: npt.NDArray[Any] | None) -> Any:
            return None if values_PK is None else np.take_along_axis(values_PK, index_PK, axis=1)

        return PolicySamples(
            texts=tuple(tuple(row[k] for k in index) for row, index in zip(self.texts, index_PK, strict=True)),
            finished_PK=taken(self.finished_PK),
            tokens_PK=taken(self.tokens_PK),
            logp_PK=taken(self.logp_PK),
            ref_logp_PK=taken(self.ref_logp_PK),
            first_logp_PK=taken(self.first_logp_PK),
            entropy_PK=taken(self.entropy_PK),
        )


@dataclass(frozen=True, eq=False)
class LoadedPolicy:
    """A policy in memory, and the folder it came from."""

    folder: Path
    model: CausalLM
    tokenizer: Tokenizer

    @classmethod
    def load(cls, folder: Path, placement: Placement = AUTO) -> LoadedPolicy:
        model, tokenizer = load_policy(folder, placement)
        return cls(folder, model.eval().requires_grad_(False), tokenizer)


def sample_policy(
    folder: Path, prompts: Sequence[str], sampling: Sampling, *, reference: Path, seed: int, placement: Placement = AUTO
) -> PolicySamples:
    """Draw K completions a prompt from the policy in ``folder`` and find their log-probabilities there and in
    ``reference``, at the temperature they were drawn with.

    Raises:
        DataError: the two folders hold different tokenizers, so that their log-probabilities cannot be compared.
    """
    return draw_samples(
        LoadedPolicy.load(folder, placement), LoadedPolicy.load(reference, placement), prompts, sampling, seed=seed
    )


def draw_samples(
    policy: LoadedPolicy,
    reference: LoadedPolicy,
    prompts: Sequence[str],
    sampling: Sampling,
    *,
    seed: int,
    first: LoadedPolicy | None = None,
) -> PolicySamples:
    """`sample_policy` with the models in memory; with ``first`` also the log-probabilities under that one."""
    if policy is not reference and tokenizer_hash(policy.folder) != tokenizer_hash(reference.folder):
        raise DataError(
            "policy and reference have different tokenizers",
            where=str(policy.folder),
            why="KL and likelihood compare log-probabilities of the same tokens",
            hint=f"evaluate against the checkpoint the policy started from, not {reference.folder}",
        )
    generator = EngineGenerator(policy.model, policy.tokenizer, max_rows=EVAL_ROWS)
    drawn = generator.generate(prompts, sampling, seed=seed)
    examples = [Example(one.prompt_ids, one.completion_ids) for one in drawn]

    def logps(of: LoadedPolicy) -> FloatArray:
        return completion_logps(of.model, examples, policy.tokenizer.pad_id, sampling.temperature)

    logp_B, entropy_B = completion_sums(policy.model, examples, policy.tokenizer.pad_id, sampling.temperature)
    ref_logp_B = logp_B if policy is reference else logps(reference)
    shape = (len(prompts), sampling.samples_per_prompt)
    return PolicySamples(
        texts=tuple(tuple(one.text for one in group) for group in by_prompt(drawn, shape[1])),
        finished_PK=np.array([one.finished for one in drawn]).reshape(shape),
        tokens_PK=np.array([len(one.completion_ids) for one in drawn], dtype=np.int64).reshape(shape),
        logp_PK=logp_B.reshape(shape),
        ref_logp_PK=ref_logp_B.reshape(shape),
        first_logp_PK=None if first is None else logps(first).reshape(shape),
        entropy_PK=entropy_B.reshape(shape),
    )


def completion_logps(model: CausalLM, examples: Sequence[Example], pad_id: int, temperature: float) -> FloatArray:
    """(B,) log-probability of each completion given its prompt, in nats, the end token among its tokens."""
    return completion_sums(model, examples, pad_id, temperature)[0]


@torch.no_grad()
def completion_sums(
    model: CausalLM, examples: Sequence[Example], pad_id: int, temperature: float
) -> tuple[FloatArray, FloatArray]:
    """Return (B,) log-probability of each completion, and (B,) the entropy of its tokens' distributions, both summed.

    In nats, the end token among the tokens. One function for both, so that the log-probabilities of a policy and of its
    reference come from the same kernels: a policy's KL to itself is exactly 0.
    """
    sums_2B = torch.zeros(2, len(examples), dtype=torch.float64)
    for bucket in example_buckets(examples, BATCH_TOKENS):
        batch = collate([examples[i] for i in bucket], pad_id)
        found_2N = torch.stack(token_logp(*model.predictions(batch), temperature, entropy=True)).cpu().double()
        row_N = torch.tensor(bucket).repeat_interleave(batch.mask_BT.sum(1))
        sums_2B.index_add_(1, row_N, found_2N)
    logp_B, entropy_B = sums_2B.numpy()
    return np.asarray(logp_B), np.asarray(entropy_B)
