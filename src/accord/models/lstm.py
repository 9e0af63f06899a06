"""The LSTM behind the door of `accord.models.backbone`: embedding, `nn.LSTM`, and its recurrent state as the cache.

Its folder has a format of its own (``model_type`` "accord_lstm"), in the layout of every other.
Long short-term memory: Hochreiter & Schmidhuber 1997.

Shapes: B rows, T tokens, N real tokens of all rows (row after row) or rows that enter, M of the N that are read, P
prompts, L layers, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

LSTM = "accord_lstm"


@dataclass(frozen=True)
class LstmConfig:
    """Sizes of an LSTM. Embedding and state are equally wide, so that the embedding can serve as the head.

    ``max_positions`` is how long the stages let a sequence become: the recurrence itself has no limit.
    """

    vocab_size: int
    width: int
    num_layers: int
    max_positions: int
    tied: bool = True
    family: str = LSTM


class LstmState:
    """The state of each layer behind each row's last token: ``(L, B, D)`` twice, of any length of sequence alike."""

    def __init__(self, hidden_LBD: Tensor) -> None:
        # Both empty: rows come with a state of their own.
        self.hidden_LBD, self.cell_LBD = hidden_LBD, hidden_LBD

    def reserve(self, rows: int, slots: int) -> None:
        """Nothing to do: a state does not grow with its sequence."""

    def keep(self, order: Sequence[int]) -> None:
        index = torch.tensor(order, dtype=torch.long, device=self.hidden_LBD.device)
        self.hidden_LBD, self.cell_LBD = self.hidden_LBD[:, index], self.cell_LBD[:, index]

    def enter(self, hidden_LND: Tensor, cell_LND: Tensor) -> None:
        """Append rows."""
        self.hidden_LBD = torch.cat((self.hidden_LBD, hidden_LND), dim=1)
        self.cell_LBD = torch.cat((self.cell_LBD, cell_LND), dim=1)


class LstmTrunk(nn.Module):
    """Token ids to the top layer's outputs.

    Runs in fp32 whatever ``compute_dtype`` says, which then holds for the vocabulary head alone: `nn.LSTM` has no
    mixed precision, and rounded states would drift over the steps.
    """

    def __init__(self, config: LstmConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.lstm = nn.LSTM(config.width, config.width, config.num_layers, batch_first=True)
        self.dropout = 0.0
        self.compute_dtype = torch.float32

    def forward(self, ids_BT: Tensor, length_B: Tensor | None = None, read_M: Tensor | None = None) -> Tensor:
        """Return outputs of the real tokens, ``(N, D)``, row after row, or of those read, ``(M, D)``.

        Padding does not run.
        """
        y_ND = self._run(ids_BT, length_B)[0]
        return y_ND if read_M is None else y_ND[read_M]

    def context_free(self, ids_N: Tensor) -> Tensor:
        """Return each token as a text of its own."""
        return self._run(ids_N[:, None], None)[0]

    def decoding(self, rows: int, slots: int) -> LstmState:
        weight = self.embed_tokens.weight
        return LstmState(weight.new_zeros(self.config.num_layers, 0, self.config.width))

    def prefill(self, state: LstmState, ids_PT: Tensor, length_P: Tensor, index_N: Tensor | None = None) -> Tensor:
        _, hidden_LPD, cell_LPD = self._run(ids_PT, length_P)
        if index_N is not None:
            hidden_LPD, cell_LPD = hidden_LPD[:, index_N], cell_LPD[:, index_N]
        state.enter(hidden_LPD, cell_LPD)
        return hidden_LPD[-1]

    def step(self, state: LstmState, token_B: Tensor) -> Tensor:
        before = state.hidden_LBD.contiguous(), state.cell_LBD.contiguous()
        _, (state.hidden_LBD, state.cell_LBD) = self.lstm(self.embed_tokens(token_B)[:, None], before)
        return state.hidden_LBD[-1]

    @contextmanager
    def packed(self) -> Iterator[None]:
        """Nothing to lay out: `nn.LSTM` keeps its weights as it needs them."""
        yield

    def freeze_embeddings(self) -> None:
        self.embed_tokens.requires_grad_(False)

    def init_weights(self, generator: torch.Generator) -> None:
        """N(0, 1/D) for every matrix, which keeps the gates' inputs of order 1; the forget gate starts open.

        Bias 1 there: Jozefowicz 2015 (An empirical exploration of recurrent network architectures).
        """
        D = self.config.width
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0.0, D**-0.5, generator=generator)
                else:
                    parameter.zero_()
                    if "bias_ih" in name:  # gates in the order input, forget, cell, output
                        parameter[D : 2 * D] = 1.0

    def _run(self, ids_BT: Tensor, length_B: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return outputs of the real tokens, ``(N, D)``, and both states behind each row's last, ``(L, B, D)``."""
        rate = self.dropout if self.training else 0.0
        self.lstm.dropout = rate  # between layers
        self.lstm.train(torch.is_grad_enabled())  # cuDNN has a backward pass in this mode only
        x_BTD = F.dropout(self.embed_tokens(ids_BT), rate, self.training)
        if length_B is None:
            y_BTD, (hidden_LBD, cell_LBD) = self.lstm(x_BTD)
            y_ND = y_BTD.flatten(0, 1)
        else:
            # Packed, so that padding is neither computed nor read into the state behind the last token.
            packed: PackedSequence = pack_padded_sequence(x_BTD, length_B.cpu(), batch_first=True, enforce_sorted=False)
            packed, (hidden_LBD, cell_LBD) = self.lstm(packed)
            y_BTD, _ = pad_packed_sequence(packed, batch_first=True)
            y_ND = y_BTD[torch.arange(y_BTD.shape[1], device=y_BTD.device) < length_B[:, None]]
        return F.dropout(y_ND, rate, self.training), hidden_LBD, cell_LBD
