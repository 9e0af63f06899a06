"""What serving does to a distribution before a token is drawn from it, and what it tells of the one before.

Shapes: V vocabulary, T tokens, B rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shaping:
    """Changes of the logits, in this order: penalties, then biases, then ``min_p``.

    ``logit_bias`` adds to single tokens. ``presence`` and ``frequency`` are OpenAI's: taken off once, and once for each
    time, from tokens of the completion so far. ``repetition`` divides what is above 0 and multiplies what is below, of
    tokens of prompt and completion (Keskar 2019, arXiv:1909.05858). ``min_p`` leaves out what is less likely than this
    share of the likeliest (Nguyen 2024, arXiv:2407.01082), at temperature 1.
    """

    logit_bias: tuple[tuple[int, float], ...] = ()
    presence: float = 0.0
    frequency: float = 0.0
    repetition: float = 1.0
    min_p: float = 0.0


@dataclass(frozen=True)
class Told:
    """What the model itself says of a token: at temperature 1, before anything is changed or cut. In nats.

    ``top`` holds the likeliest tokens with theirs, the likeliest first.
    """

    logp: float
    top: tuple[tuple[int, float], ...] = ()


def shape_logits(logits_V: Tensor, shaping: Shaping, prompt: Sequence[int], drawn: Sequence[int]) -> Tensor:
    """Return changed logits, ``(V,)``; those given stay as they are."""
    out_V = logits_V.clone()
    if shaping.repetition != 1.0:
        seen = torch.tensor(sorted({*prompt, *drawn}), device=out_V.device)
        now = out_V[seen]
        out_V[seen] = torch.where(now > 0, now / shaping.repetition, now * shaping.repetition)
    if drawn and (shaping.presence or shaping.frequency):
        times = Counter(drawn)
        counts = torch.tensor([*times.values()], device=out_V.device, dtype=out_V.dtype)
        out_V[[*times]] -= shaping.presence + shaping.frequency * counts
    if shaping.logit_bias:
        ids, biases = zip(*shaping.logit_bias, strict=True)
        out_V[[*ids]] += torch.tensor(biases, device=out_V.device, dtype=out_V.dtype)
    if shaping.min_p > 0:
        out_V[out_V < out_V.max() + torch.tensor(shaping.min_p).log()] = float("-inf")
    return out_V


def told_of(logits_BV: Tensor, token_B: Tensor, most: int) -> list[Told]:
    """Return what logits say of one token a row, and of the ``most`` likeliest ones."""
    logp_BV = torch.log_softmax(logits_BV, dim=-1)
    own = logp_BV.gather(1, token_B[:, None]).squeeze(1).tolist()
    top_BM, id_BM = logp_BV.topk(most, dim=-1)
    likeliest = [
        tuple(zip(ids, logps, strict=True)) for ids, logps in zip(id_BM.tolist(), top_BM.tolist(), strict=True)
    ]
    return [Told(logp, top) for logp, top in zip(own, likeliest, strict=True)]
