"""The decoder's own backward passes, against autograd in double precision and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from accord.models.fused import rms_norm, rotate


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
