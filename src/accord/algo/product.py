"""Matrix products by the quickest routine that the machine has."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Product = Callable[[Tensor], Tensor]

PACKED_ROWS = 32  # a hint only: the layout serves any number of rows
# oneDNN compiles a routine for each new number of rows, and batches of real tokens have another number each time: a
# millisecond, in which MKL multiplies 600 rows by a matrix narrower than 128 x 128 several times.
LEAST_WEIGHTS = 1 << 14


def _has_onednn(x: Tensor) -> bool:
    return x.device.type == "cpu" and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _suits_onednn(weight: Tensor) -> bool:
    return _has_onednn(weight) and weight.numel() >= LEAST_WEIGHTS


def rounds_by_hand(x: Tensor) -> bool:
    """Return whether products of bf16 are done in fp32 and rounded here: on processors without AVX512.

    oneDNN does not serve bf16 there, and PyTorch's own routine takes 7 to 12 times as long as a product in fp32. The
    numbers are the same up to the order of sums: a product of two bf16 numbers is exact in fp32, and is summed there.
    """
    if x.dtype != torch.bfloat16 or not _has_onednn(x):
        return False
    return not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x @ weight.T + bias`` of matrices, not differentiable; the weight may be a transposed view.

    In fp32 on CPU by oneDNN, as bf16 is anyway: PyTorch would take MKL there, which is up to 1.7x slower off Intel.
    """
    if rounds_by_hand(x):
        return product(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)
    # 256 rows of a 256 x 8192 head, two cores of Zen 4: 136 GFLOP/s by MKL, 207 by oneDNN.
    if x.dtype != torch.float32 or not _suits_onednn(weight):
        return F.linear(x, weight, bias)
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


def sum_of_outer(left_NA: Tensor, right_NB: Tensor) -> Tensor:
    """Return ``left.T @ right``, the sum of the rows' outer products: a weight's gradient. Not differentiable."""
    if rounds_by_hand(left_NA):
        return (left_NA.float().T @ right_NB.float()).to(left_NA.dtype)
    # Left to MKL, which is quicker at this shape.
    return left_NA.T @ right_NB


def prepacked(weight: Tensor, bias: Tensor | None) -> Product:
    """Return ``x -> x @ weight.T + bias`` for many small x, with the weight laid out once where oneDNN can.

    Its plain product lays the weight out anew in each call, which at 32 rows costs as much as the product itself.
    """
    if rounds_by_hand(weight):
        exact = prepacked(weight.float(), None if bias is None else bias.float())
        return lambda x: exact(x.float()).to(x.dtype)
    if not _suits_onednn(weight):
        return lambda x: F.linear(x, weight, bias)
    laid = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), PACKED_ROWS)

    def run(x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, laid, bias, "none", [], "")
        return out

    return run
