"""The decoder's own backward passes, against autograd in double precision and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from accord.algo.product import LEAST_WEIGHTS, prepacked, product
from accord.models.fused import gated_linear, linear, rms_norm, rotate


@pytest.mark.parametrize("shape", [(7, 6), (3, 5, 6)])
def test_rms_norm_against_torch_and_finite_differences(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(6, generator=generator, dtype=torch.float64).requires_grad_()
    torch.testing.assert_close(rms_norm(x, weight, 0.1), F.rms_norm(x, (6,), weight, 0.1))
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 0.1), (x, weight))
    with torch.no_grad():
        torch.testing.assert_close(rms_norm(x, weight, 0.1), F.rms_norm(x, (6,), weight, 0.1))


def test_a_frozen_weight_gets_no_gradient() -> None:
    x, weight = torch.randn(3, 4).requires_grad_(), torch.ones(4)
    rms_norm(x, weight, 1e-5).sum().backward()
    assert weight.grad is None
    assert x.grad is not None


def test_rotation_by_hand_and_by_finite_differences() -> None:
    """Channels 0 and 2 are one pair, 1 and 3 the other: (1, 0) turned by 90 degrees is (0, 1)."""
    x = torch.tensor([[[1.0, 3.0, 0.0, 4.0]]], dtype=torch.float64)
    angle = torch.tensor([math.pi / 2, math.pi], dtype=torch.float64)
    cos, sin = angle.cos().repeat(2)[None, None], torch.cat((-angle.sin(), angle.sin()))[None, None]
    wanted = torch.tensor([[[0.0, -3.0, 1.0, -4.0]]], dtype=torch.float64)
    torch.testing.assert_close(rotate(x, cos, sin), wanted, rtol=0.0, atol=1e-12)
    many = torch.randn(5, 2, 4, dtype=torch.float64).requires_grad_()
    angles = torch.randn(5, 1, 2, dtype=torch.float64)
    tables = torch.cat((angles, angles), -1).cos(), torch.cat((-angles.sin(), angles.sin()), -1)
    assert torch.autograd.gradcheck(lambda x: rotate(x, *tables), (many,))


ROUTINES = pytest.mark.parametrize("shape", [(96, 32), (160, 128)], ids=["by MKL", "by oneDNN"])


@ROUTINES
@pytest.mark.parametrize("rows", [1, 33, 200])
def test_products_of_either_routine_are_those_of_double_precision(shape: tuple[int, int], rows: int) -> None:
    """Plain, laid out before, of a transposed view, with a bias; and the gradients of the maps made of them."""
    generator = torch.Generator().manual_seed(rows)
    weight, bias = torch.randn(shape, generator=generator), torch.randn(shape[0], generator=generator)
    x, back = torch.randn(rows, shape[1], generator=generator), torch.randn(rows, shape[0], generator=generator)
    wanted = x.double() @ weight.double().T
    torch.testing.assert_close(product(x, weight).double(), wanted, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(product(back, weight.T).double(), back.double() @ weight.double(), rtol=1e-5, atol=1e-4)
    for run in (product(x, weight, bias), prepacked(weight, bias)(x)):
        torch.testing.assert_close(run.double(), wanted + bias.double(), rtol=1e-5, atol=1e-4)

    gate = torch.randn(rows, 2 * shape[1], generator=generator)
    for made, plain, given in (
        (linear, F.linear, x),
        (gated_linear, lambda x, w, b: F.linear(F.silu(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1], w, b), gate),
    ):
        mine, theirs = (
            [t.detach().to(kind, copy=True).requires_grad_() for t in (given, weight, bias)]
            for kind in (torch.float32, torch.float64)
        )
        (made(*mine) * back).sum().backward()
        (plain(*theirs) * back.double()).sum().backward()
        for a, b in zip(mine, theirs, strict=True):
            assert a.grad is not None and b.grad is not None
            torch.testing.assert_close(a.grad.double(), b.grad, rtol=1e-4, atol=1e-3)


def test_a_narrow_matrix_is_multiplied_as_torch_does() -> None:
    """To the bit: oneDNN would round a third of these differently, and compile a routine for each number of rows."""
    generator = torch.Generator().manual_seed(0)
    for rows in range(1, 300, 7):
        x, weight = torch.randn(rows, 48, generator=generator), torch.randn(320, 48, generator=generator)
        assert weight.numel() < LEAST_WEIGHTS
        assert torch.equal(product(x, weight), F.linear(x, weight))
        assert torch.equal(prepacked(weight, None)(x), F.linear(x, weight))
