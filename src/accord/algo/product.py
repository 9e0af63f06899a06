"""Matrix products by the quickest routine that the machine has."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Product = Callable[[Tensor], Tensor]

PACKED_ROWS = 32  # a hint only: the layout serves any number of rows


def _has_onednn(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _packs(weight: Tensor) -> bool:
    """Return whether oneDNN lays this weight out.

    In bf16 it refuses on processors without AVX512, which `F.linear` serves.
    """
    if not _has_onednn(weight):
        return False
    return weight.dtype != torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x @ weight.T + bias`` of matrices, not differentiable; the weight may be a transposed view.

    In fp32 on CPU by oneDNN, as bf16 is anyway: PyTorch would take MKL there, which is up to 1.7x slower off Intel.
    """
    # 256 rows of a 256 x 8192 head, two cores of Zen 4: 136 GFLOP/s by MKL, 207 by oneDNN.
    if x.dtype != torch.float32 or not _has_onednn(weight):
        return F.linear(x, weight, bias)
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


def prepacked(weight: Tensor, bias: Tensor | None) -> Product:
    """Return ``x -> x @ weight.T + bias`` for many small x, with the weight laid out once where oneDNN can.

    Its plain product lays the weight out anew in each call, which at 32 rows costs as much as the product itself.
    """
    if not _packs(weight):
        return lambda x: F.linear(x, weight, bias)
    laid = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), PACKED_ROWS)

    def run(x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, laid, bias, "none", [], "")
        return out

    return run
