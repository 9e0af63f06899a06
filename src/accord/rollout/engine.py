"""The engine: prompts in, samples with the exact log-probabilities they were drawn with out.

Shapes: B rows alive, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from accord.errors import UsageError
from accord.models.decoder import Cache, CausalLM
from accord.seeds import stream_seed

BLOCK = 64  # entries a block in the two-level draw


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn. ``samples_per_prompt`` is K; ``temperature`` divides the logits."""

    max_new_tokens: int
    samples_per_prompt: int = 1
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise UsageError(f"temperature {self.temperature} is not above 0", mend="use 1.0 for the model's own law")
        if self.max_new_tokens < 1 or self.samples_per_prompt < 1:
            raise UsageError("max_new_tokens and samples_per_prompt must be at least 1")


@dataclass(frozen=True)
class Sample:
    """One completion with its provenance.

    ``completion`` ends with the end token where ``finish`` is "stop"; ``behaviour_logp`` holds one
    log-probability a completion token, under the law it was drawn from (temperature included).
    """

    prompt_index: int
    sample_index: int
    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    behaviour_logp: tuple[float, ...]
    finish: Literal["stop", "length"]


def draw(logits_BV: Tensor, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """One token a row by inverse CDF in two levels (sum blocks, pick a block, then inside it), and its log-prob.

    Exact for the softmax of the logits up to fp32 rounding; needs one uniform a row.
    """
    B, V = logits_BV.shape
    norm_B = torch.logsumexp(logits_BV, dim=-1)
    probs = F.pad((logits_BV - norm_B[:, None]).exp_(), (0, -V % BLOCK)).view(B, -1, BLOCK)
    rows = torch.arange(B)
    block_B, rest_B = _pick(probs.sum(-1), uniform_B)
    inside_B, _ = _pick(probs[rows, block_B], rest_B)
    token_B = (block_B * BLOCK + inside_B).clamp_(max=V - 1)
    return token_B, logits_BV[rows, token_B] - norm_B


def _pick(weight_BN: Tensor, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """Index whose share of the row's weight holds the uniform, and the uniform rescaled inside that share."""
    edge_BN = weight_BN.cumsum(-1)
    point_B = uniform_B * edge_BN[:, -1]
    index_B = (edge_BN <= point_B[:, None]).sum(-1).clamp_(max=weight_BN.shape[1] - 1)
    width_B = weight_BN.gather(1, index_B[:, None]).squeeze(1)
    start_B = edge_BN.gather(1, index_B[:, None]).squeeze(1) - width_B
    return index_B, ((point_B - start_B) / width_B.clamp_min(1e-30)).clamp_(0.0, 1.0 - 1e-7)


class Engine:
    """Samples from a policy whose weights are the learner's own tensors: nothing is copied or synchronised.

    Finished rows leave the batch; the samples of one prompt share its prefill.
    """

    def __init__(self, model: CausalLM, end_id: int, *, max_rows: int = 128) -> None:
        self.model, self.end_id, self.max_rows = model, end_id, max_rows

    @torch.no_grad()
    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, seed: int) -> list[Sample]:
        """K samples a prompt, in the order of the prompts.

        Each sample has its own random stream, named by seed, prompt index and sample index, so that the same
        call gives the same samples whatever ``max_rows`` is (up to padding's rounding).
        """
        if not prompts or min(map(len, prompts)) == 0:
            raise UsageError("the engine was given no prompts, or an empty one", mend="give at least one token each")
        self._check_room(max(map(len, prompts)), sampling.max_new_tokens)
        K = sampling.samples_per_prompt
        per_wave = max(1, self.max_rows // K)
        # Like lengths together: less padding in the prefill.
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        was_training = self.model.training
        self.model.eval()
        samples: list[Sample] = []
        with self.model.model.packed():
            head_VD = self.model.head_weight_VD.to(self.model.model.compute_dtype)
            for start in range(0, len(order), per_wave):
                wave = order[start : start + per_wave]
                samples += self._wave({i: tuple(prompts[i]) for i in wave}, sampling, seed, head_VD)
        self.model.train(was_training)
        return sorted(samples, key=lambda s: (s.prompt_index, s.sample_index))

    def _check_room(self, prompt_tokens: int, new_tokens: int) -> None:
        positions = self.model.config.max_positions
        if prompt_tokens + new_tokens - 1 > positions:  # the last token is never fed back
            raise UsageError(
                f"{prompt_tokens} prompt tokens and {new_tokens} new ones exceed its {positions} positions",
                mend="shorten the prompts, lower max_new_tokens or use a model with a longer context",
            )

    def _wave(
        self, prompts: dict[int, tuple[int, ...]], sampling: Sampling, seed: int, head_VD: Tensor
    ) -> list[Sample]:
        K, limit = sampling.samples_per_prompt, sampling.max_new_tokens
        names = [(i, k) for i in prompts for k in range(K)]
        uniform_BL = torch.stack([_uniforms(limit, stream_seed(seed, i, k)) for i, k in names])
        hidden_BD, cache = self._prefill(list(prompts.values()), K, limit)
        tokens: list[list[int]] = [[] for _ in names]
        logps: list[list[float]] = [[] for _ in names]
        alive = torch.arange(len(names))
        for step in range(limit):
            logits_BV = F.linear(hidden_BD.to(head_VD.dtype), head_VD).float() / sampling.temperature
            token_B, logp_B = draw(logits_BV, uniform_BL[alive, step])
            for row, token, logp in zip(alive.tolist(), token_B.tolist(), logp_B.tolist(), strict=True):
                tokens[row].append(token)
                logps[row].append(logp)
            going = (token_B != self.end_id).nonzero().squeeze(1)
            if step + 1 == limit or len(going) == 0:
                break
            if len(going) < len(alive):
                alive, token_B = alive[going], token_B[going]
                cache.keep(going)
            hidden_BD = self.model.model(token_B[:, None], cache)[:, 0]
            cache.length_B += 1
        return [
            Sample(i, k, prompts[i], tuple(t), tuple(lp), "stop" if t[-1] == self.end_id else "length")
            for (i, k), t, lp in zip(names, tokens, logps, strict=True)
        ]

    def _prefill(self, prompts: list[tuple[int, ...]], K: int, limit: int) -> tuple[Tensor, Cache]:
        """Run each prompt once; return its last hidden state and its cache rows, both repeated K times."""
        length_P = torch.tensor([len(p) for p in prompts])
        T = int(length_P.max())
        ids_PT = torch.zeros(len(prompts), T, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids_PT[row, : len(prompt)] = torch.tensor(prompt)
        cache = Cache(self.model.config, len(prompts), T + limit, self.model.model.compute_dtype)
        hidden_PTD = self.model.model(ids_PT, cache)
        cache.length_B = length_P
        repeat = torch.arange(len(prompts)).repeat_interleave(K)
        last_PD = hidden_PTD[torch.arange(len(prompts)), length_P - 1]
        if K > 1:
            cache.keep(repeat)
        return last_PD[repeat], cache


def _uniforms(count: int, seed: int) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed))
