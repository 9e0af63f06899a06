"""Tokens that are spelt alike learn together: fastText's idea for the embedding table of a small model.

With little text most tokens are too rare to be learnt alone, and a byte-level vocabulary holds " Great", " great" and
"great" as strangers. While training, a token's embedding is its own row plus a normed sum of rows for the runs of
letters in its spelling, which other tokens share (Bojanowski et al. 2017, arXiv:1607.04606, section 3.2). Afterwards
the sum is folded into the table: the saved checkpoint is an ordinary one.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from accord.text.tokenizer import Tokenizer

#: Lengths of the runs of letters, in characters; the start of a word counts as one.
# fastText takes 3 to 6, of words; tokens are shorter.
RUN_LENGTHS = range(3, 6)


def letter_runs(token: str) -> set[str]:
    """Return what a token shares with others: its letters without case or space, and the runs of 3 to 5 among them."""
    spelling = token.lower().strip()
    # Digits and marks share nothing that means something.
    if not any(letter.isalpha() for letter in spelling):
        return set()
    marked = f"<{spelling}" if token[:1].isspace() else spelling
    runs = {marked[start : start + size] for size in RUN_LENGTHS for start in range(len(marked) - size + 1)}
    return runs | {f"={spelling}"}


def sharing_matrix(tokenizer: Tokenizer, num_rows: int) -> Tensor:
    """Return sparse ``(V, R)``: 1 / sqrt(number of its runs) where a token holds a run that at least two tokens hold.

    ``num_rows`` is V of the table, which may be longer than the tokenizer.
    """
    runs_of = [letter_runs(tokenizer.decode([token])) for token in range(tokenizer.vocab_size)]
    counts = Counter(run for runs in runs_of for run in runs)
    number = {run: i for i, run in enumerate(sorted(run for run, count in counts.items() if count > 1))}
    shared = [[number[run] for run in sorted(runs) if run in number] for runs in runs_of]
    places = [(token, run) for token, runs in enumerate(shared) for run in runs]
    # The sum of n rows of one size grows with the root of n: so long tokens are no louder than short ones.
    values = torch.tensor([len(shared[token]) ** -0.5 for token, _ in places])
    index = torch.tensor(places, dtype=torch.long).reshape(-1, 2).T
    shape = (num_rows, len(number))
    return torch.sparse_coo_tensor(index, values, shape, check_invariants=True).coalesce()


class _Shared(nn.Module):
    """The table as a parametrization: own rows plus the shared rows of each token's runs, which start at zero."""

    def __init__(self, sharing_VR: Tensor, width: int) -> None:
        super().__init__()
        self.register_buffer("sharing_VR", sharing_VR, persistent=False)
        # From zero: the model starts as it was, and only what is learnt is shared.
        self.rows_RD = nn.Parameter(torch.zeros(sharing_VR.shape[1], width, device=sharing_VR.device))

    def forward(self, own_VD: Tensor) -> Tensor:
        shared_VD: Tensor = torch.sparse.mm(self.get_buffer("sharing_VR"), self.rows_RD)
        return own_VD + shared_VD


def share_spellings(embedding: nn.Embedding, tokenizer: Tokenizer) -> None:
    """Tie the table's rows by spelling from here on. Training only; call it before the optimiser is made.

    Each read of the table builds the sum anew: put forward passes under ``parametrize.cached()``.
    """
    sharing_VR = sharing_matrix(tokenizer, embedding.num_embeddings).to(embedding.weight.device)
    parametrize.register_parametrization(embedding, "weight", _Shared(sharing_VR, embedding.embedding_dim))


def fold_spellings(embedding: nn.Embedding) -> None:
    """Make the table plain weights again, each row with its shared part added. Nothing to do where none is."""
    if parametrize.is_parametrized(embedding, "weight"):
        parametrize.remove_parametrizations(embedding, "weight", leave_parametrized=True)
