"""Batches of tokens: right padding, buckets of like length, loss masks (True = counts)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Prompts of 200 and completions of 20 to 60 tokens: 8.2 CPU seconds by length alone, 5.7 with prompts together.
REPEATED_SHARE = 0.125  # of all tokens: from here on prompts are kept together
# Whatever their length together, seven completions of 20 tokens and one of 500 took 8.8 s (6.7 by length alone); so
# 5.5.
LIKE = 0.75  # a completion this share of its longest sister's length or more is padded to it


@dataclass(frozen=True)
class Example:
    """A prompt and its completion as ids; the completion ends with the end token where it is finished.

    ``mask`` says which tokens of the completion count, where not all do: a conversation's later prompts.
    """

    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    mask: tuple[bool, ...] | None = None

    @property
    def num_counted(self) -> int:
        return len(self.completion) if self.mask is None else sum(self.mask)

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


@dataclass(frozen=True)
class Batch:
    """B examples padded on the right to T tokens.

    ``mask_BT`` is True on completion tokens that count. ``length_B`` counts real tokens.
    """

    ids_BT: Tensor
    mask_BT: Tensor
    length_B: Tensor

    @property
    def num_counted(self) -> int:
        return int(self.mask_BT.sum())

    @property
    def real_BT(self) -> Tensor:
        """True on real tokens."""
        return torch.arange(self.ids_BT.shape[1], device=self.ids_BT.device) < self.length_B[:, None]

    @property
    def last_B(self) -> Tensor:
        """Where each row's last token stands among the N real ones."""
        return self.length_B.cumsum(0) - 1

    def inputs(self) -> tuple[Tensor, Tensor]:
        """Return each row without its last token, which predicts nothing, and how long that is."""
        return self.ids_BT[:, :-1], self.length_B - 1

    def predicting(self) -> tuple[Tensor, Tensor]:
        """Return which of the real tokens of `inputs` predict a counted token, and those tokens' ids.

        Both in row order.
        """
        # Token t is predicted at t - 1, so masks and targets are shifted by one.
        counts_N = self.mask_BT[:, 1:][self.real_BT[:, 1:]]
        return counts_N.nonzero().squeeze(1), self.ids_BT[self.mask_BT]

    def completion_means(self, x_N: Tensor) -> Tensor:
        """Return the mean of a number a real token over each row's counted tokens, ``(B,)``."""
        counted_N = self.mask_BT[self.real_BT]
        row_N = torch.arange(len(self.length_B), device=x_N.device).repeat_interleave(self.length_B)[counted_N]
        sum_B = x_N.new_zeros(len(self.length_B)).index_add(0, row_N, x_N[counted_N])
        return sum_B / self.mask_BT.sum(1)


def collate(examples: Sequence[Example], pad_id: int) -> Batch:
    """Pad examples on the right into one batch."""
    lengths = [len(e) for e in examples]
    ids_BT = torch.full((len(examples), max(lengths)), pad_id, dtype=torch.long)
    mask_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    for row, example in enumerate(examples):
        ids_BT[row, : len(example)] = torch.tensor(example.prompt + example.completion)
        mask_BT[row, len(example.prompt) : len(example)] = True if example.mask is None else torch.tensor(example.mask)
    return Batch(ids_BT, mask_BT, torch.tensor(lengths))


def pack_blocks(texts: Iterable[Sequence[int]], end_id: int, block_tokens: int) -> Tensor:
    """Join texts, each closed by the end token, and cut the stream into ``(N, block_tokens + 1)`` blocks.

    Neighbouring blocks share one token: the last target of one is the first input of the next.
    """
    stream = [token for text in texts for token in (*text, end_id)]
    # Whole blocks alone, across texts: no padding in pretraining, and the end token says where a text ends.
    num_blocks = (len(stream) - 1) // block_tokens
    starts = range(0, num_blocks * block_tokens, block_tokens)
    return torch.tensor([stream[s : s + block_tokens + 1] for s in starts], dtype=torch.long)


def length_buckets(
    lengths: Sequence[int], max_tokens: int, seed: int, pieces: Sequence[Sequence[int]] | None = None
) -> list[list[int]]:
    """Return indices in batches of like length: at most ``max_tokens`` after padding (one item may exceed it alone).

    Items of equal length and the order of the batches are shuffled by the seed. ``pieces`` stay whole (default: one
    item each).
    """
    pieces = [[i] for i in range(len(lengths))] if pieces is None else pieces
    generator = torch.Generator().manual_seed(seed)
    longest = [max(lengths[i] for i in piece) for piece in pieces]
    batches: list[list[int]] = []
    room = 0
    for p in sorted(torch.randperm(len(pieces), generator=generator).tolist(), key=longest.__getitem__, reverse=True):
        # Longest first: a batch's first piece decides how many fit, and no later one is longer.
        if batches and len(batches[-1]) + len(pieces[p]) <= room:
            batches[-1] += pieces[p]
        else:
            batches.append([*pieces[p]])
            room = max_tokens // max(1, longest[p])
    # Mixed again: sorted by length, training would see all long texts first.
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def example_buckets(examples: Sequence[Example], max_tokens: int, seed: int = 0) -> list[list[int]]:
    """Return `length_buckets` of examples, those of one prompt side by side: a model runs what rows begin with once.

    Only like lengths stay together, since attention sees the padding; and where repeated prompts are few of the tokens,
    like lengths alone spare more.
    """
    lengths = [len(e) for e in examples]
    same: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, example in enumerate(examples):
        same[example.prompt].append(i)
    if sum(len(prompt) * (len(rows) - 1) for prompt, rows in same.items()) < REPEATED_SHARE * sum(lengths):
        return length_buckets(lengths, max_tokens, seed)
    pieces: list[list[int]] = []
    for rows in same.values():
        rows = sorted(rows, key=lengths.__getitem__, reverse=True)
        while rows:
            longest = lengths[rows[0]]
            fitting = rows[: max(1, max_tokens // max(1, longest))]
            pieces.append([i for i in fitting if lengths[i] >= LIKE * longest])
            rows = rows[len(pieces[-1]) :]
    return length_buckets(lengths, max_tokens, seed, pieces)


def bucketed(examples: Sequence[Example], max_tokens: int) -> list[list[Example]]:
    """Return the examples in the buckets of `example_buckets`."""
    return [[examples[i] for i in bucket] for bucket in example_buckets(examples, max_tokens)]
