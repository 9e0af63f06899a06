"""What every backbone offers: what the heads, the engine and the stages may ask of one.

The decoder (`decoder.Trunk`), the LSTM (`lstm.LstmTrunk`) and the adapter over `transformers`
(`transformers_adapter.ForeignTrunk`) are the backbones there are; `decoder.BACKBONES` says which shape each is built
from.

Shapes: B rows, T tokens, N real tokens of all rows (row after row) or rows that enter, M of the N that are read, P
prompts, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from accord.errors import UsageError


class Shape(Protocol):
    """What is known of a backbone without its weights. ``family`` is the ``model_type`` of its `config.json`."""

    @property
    def family(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def max_positions(self) -> int: ...
    @property
    def tied(self) -> bool: ...


class DecodingState(Protocol):
    """What a backbone remembers of the sequences it continues; the rows in use are always the first ones."""

    def reserve(self, rows: int, slots: int) -> None:
        """Make room for so many sequences of this length; what is stored stays."""

    def keep(self, order: Sequence[int]) -> None:
        """Keep the rows named, in this order."""


class Backbone(Protocol):
    """Token ids to hidden states: the part that policy, reward model and critic share in shape; an `nn.Module`.

    ``dropout`` acts while training; ``compute_dtype`` is what matrix products run in, where the backbone has a choice.
    ``embed_tokens`` is the embedding, and the vocabulary head of a tied model.
    """

    dropout: float
    compute_dtype: torch.dtype

    @property
    def embed_tokens(self) -> nn.Embedding: ...

    def __call__(self, ids_BT: Tensor, length_B: Tensor | None = None, read_M: Tensor | None = None) -> Tensor:
        """Return hidden states of the real tokens in fp32, ``(N, D)``, or of those of them that are read, ``(M, D)``.

        Rows are padded on the right; without ``length_B`` all is real.
        """

    def decoding(self, rows: int, slots: int) -> Any:
        """Return a `DecodingState` with room for ``rows`` sequences of ``slots`` tokens.

        Only its own backbone reads it.
        """

    def prefill(self, state: Any, ids_PT: Tensor, length_P: Tensor, index_N: Tensor | None = None) -> Tensor:
        """Read prompts into new rows, each as often as the index names it (None: once).

        Returns the hidden state behind each new row's prompt, ``(N, D)``.
        """

    def step(self, state: Any, token_B: Tensor) -> Tensor:
        """Append one token to every row and return the hidden states behind them, ``(B, D)``."""

    def packed(self) -> AbstractContextManager[None]:
        """Prepare the weights for decoding: valid only while they stand still."""

    def freeze_embeddings(self) -> None:
        """Leave the embeddings as they are from now on."""

    def init_weights(self, generator: torch.Generator) -> None:
        """Draw the weights that training from scratch starts with."""


class Headed(nn.Module):
    """A backbone and a head on it, as `decoder.CausalLM` and `decoder.ScalarModel` are."""

    model: Backbone
    config: Shape


@runtime_checkable
class Adaptable(Protocol):
    """A backbone whose linear layers can carry the adapter of `accord.models.lora`."""

    layers: nn.ModuleList

    def hold_base(self) -> None:
        """Lay the frozen weights out once."""

    def release_base(self) -> None:
        """Undo that: where they are split over processes, each would hold all of them."""


@runtime_checkable
class ContextFree(Protocol):
    """A backbone with a way of its own to say what a token is without its neighbours; see `without_context`."""

    def context_free(self, ids_N: Tensor) -> Tensor:
        """Return the state of each token by itself, ``(N, D)``."""


@runtime_checkable
class Recomputing(Protocol):
    """A backbone that can trade a second forward pass for the memory of its activations."""

    checkpointing: bool


def without_context(trunk: Backbone, ids_N: Tensor) -> Tensor:
    """Return what each token is without its neighbours, ``(N, D)``: a head on it reads a bag of words.

    Of a backbone that is not `ContextFree` each token that occurs runs once, as a text of its own.
    """
    if isinstance(trunk, ContextFree):
        return trunk.context_free(ids_N)
    # Each token once: a batch repeats few of them often.
    token_V, index_N = torch.unique(ids_N, return_inverse=True)
    return trunk(token_V[:, None])[index_N]


def recompute_activations(trunk: Backbone) -> None:
    """Keep only each block's input for the backward pass. Raises UsageError where the backbone cannot."""
    if not isinstance(trunk, Recomputing):
        raise UsageError(
            "activation_checkpointing is for models that the decoder reads",
            hint="leave it out, and lower micro_batch_tokens where memory is short",
        )
    trunk.checkpointing = True
