"""Which number type the matrix products run in, chosen once from what the machine can do."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from accord.errors import UsageError

Product = Callable[[Tensor], Tensor]

_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1


@cache
def cpu_flags() -> frozenset[str]:
    """Instruction-set flags of the first processor; empty where /proc does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((line.split(":", 1)[1] for line in lines if line.startswith("flags")), "")
    return frozenset(flags.split())


def compute_dtype(choice: str = "auto") -> torch.dtype:
    """bf16 where the processor multiplies it natively (AMX or AVX512-bf16), else fp32. Masters stay fp32."""
    if choice == "auto":
        return torch.bfloat16 if cpu_flags() & {"amx_bf16", "avx512_bf16"} else torch.float32
    named = {"bf16": torch.bfloat16, "fp32": torch.float32}
    if choice not in named:
        raise UsageError(f"unknown precision {choice!r}", mend="use auto, bf16 or fp32")
    return named[choice]


@cache
def tune_allocator() -> None:
    """Let glibc keep freed temporaries: by default it maps each one over 32 MB afresh and every page faults."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
            libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


PACKED_ROWS = 32  # a hint only: the layout serves any number of rows


def prepacked(weight: Tensor, bias: Tensor | None) -> Product:
    """``x -> x @ weight.T + bias`` for many small x, with the weight laid out once where oneDNN can.

    Its plain product lays the weight out anew in each call, which at 32 rows costs as much as the product itself.
    """
    operators = torch.ops.mkldnn
    if weight.is_cuda or not hasattr(operators, "_linear_pointwise"):
        return lambda x: F.linear(x, weight, bias)
    laid = operators._reorder_linear_weight(weight.contiguous(), PACKED_ROWS)

    def product(x: Tensor) -> Tensor:
        out: Tensor = operators._linear_pointwise(x, laid, bias, "none", [], "")
        return out

    return product
