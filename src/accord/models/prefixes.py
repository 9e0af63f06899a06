"""What several sequences begin with runs once: the completions of one prompt share it in training as in sampling.

With causal attention a token's state depends on the tokens up to it alone. So where rows begin alike, their states are
the same, and one pass over the beginning gets the sum of their gradients.

Shapes: B sequences, T tokens, P = B * T places of their rectangle.
"""

from __future__ import annotations

import torch
from torch import Tensor

from accord.models.forward import Layout

LEAST_SHARE = 0.08  # of the tokens; below it, adding up gradients costs what is saved


def shared_prefixes(ids_BT: Tensor, length_B: Tensor) -> Layout | None:
    """Return where the tokens stand that must run, and which of them stands at each place.

    Whatever the order of the rows.

    None where running shared beginnings once would leave out less than ``LEAST_SHARE`` of the tokens.
    """
    B, T = ids_BT.shape
    if B == 1:
        return None
    lengths = length_B.tolist()
    # By the ids, so that no caller has to say what is a prompt: system prompts and a text with its beginning count too.
    rows = [row[:length] for row, length in zip(ids_BT.tolist(), lengths, strict=True)]
    order_B = torch.tensor(sorted(range(B), key=rows.__getitem__), device=ids_BT.device)
    # In sorted order a row has its longest known beginning in common with the row before it.
    ids_BT, length_B = ids_BT[order_B], length_B[order_B]
    # cumprod: 1 up to the first difference
    alike_B = (ids_BT[1:] == ids_BT[:-1]).long().cumprod(1).sum(1).minimum(length_B[1:]).minimum(length_B[:-1])
    if int(alike_B.sum()) < LEAST_SHARE * sum(lengths):
        return None
    position_T, row_B1 = torch.arange(T, device=ids_BT.device), torch.arange(B, device=ids_BT.device)[:, None]
    alike_B1 = torch.cat((alike_B.new_zeros(1), alike_B))[:, None]
    owner_BT = torch.where(position_T >= alike_B1, row_B1, 0).cummax(0).values  # the row that runs this token
    runs_BT = (owner_BT == row_B1) & (position_T < length_B[:, None])
    place_BT = order_B[:, None] * T + position_T
    layout = Layout.of(place_BT[runs_BT], B * T)
    assert layout.token_P is not None
    owner_P = torch.empty_like(place_BT).flatten()
    owner_P[place_BT.flatten()] = place_BT[owner_BT, position_T].flatten()
    return Layout(layout.place_N, layout.token_P[owner_P])
