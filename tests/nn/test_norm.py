"""Norms against their formulas, at the precision that they promise."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from plait.nn import GatedRMSNorm, RMSNorm, l2_norm


def test_rms_norm_is_its_formula() -> None:
    norm = RMSNorm(5, eps=0.1).double()
    x = torch.randn(3, 7, 5, dtype=torch.float64)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, 3.0, -1.0, 0.5]))
    expected = x / (x.pow(2).mean(-1, keepdim=True) + 0.1).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("activation", ["silu", "sigmoid"])
def test_the_gate_comes_after_the_norm(activation: str) -> None:
    norm = GatedRMSNorm(6, eps=1e-6, activation=activation).double()  # type: ignore[arg-type]
    x, gate = torch.randn(2, 4, 6, dtype=torch.float64), torch.randn(2, 4, 6, dtype=torch.float64)
    factor = F.silu(gate) if activation == "silu" else torch.sigmoid(gate)
    expected = F.rms_norm(x, (6,), eps=1e-6) * factor
    torch.testing.assert_close(norm(x, gate), expected, rtol=0, atol=1e-14)


def test_epsilon_stands_inside_the_root_of_the_l2_norm() -> None:
    x = torch.full((1, 4), 1e-3, dtype=torch.float64)  # sum of squares 4e-6
    torch.testing.assert_close(l2_norm(x), x / (5e-6**0.5), rtol=1e-12, atol=0)
    assert torch.equal(l2_norm(torch.zeros(2, 3)), torch.zeros(2, 3))


def test_half_precision_is_normalised_in_single() -> None:
    x = torch.full((1, 64), 300.0, dtype=torch.float16)  # the square overflows fp16
    for y in (RMSNorm(64).half()(x), l2_norm(x) * 8):
        assert y.dtype == torch.float16
        torch.testing.assert_close(y, torch.ones_like(x), rtol=1e-3, atol=0)
