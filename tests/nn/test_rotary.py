"""Rotary embedding: pairs, angles and relative positions."""

from __future__ import annotations

import torch

from plait.nn import rotary


def test_pairs_are_complex_numbers_turned_by_their_angle() -> None:
    x = torch.randn(2, 5, 3, 8, dtype=torch.float64)
    positions = torch.tensor([[0, 1, 2, 3, 4], [7, 8, 9, 100, 0]])
    angles = positions[:, :, None, None] * 500.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    turned = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones_like(angles), angles)
    expected = torch.cat([turned.real, turned.imag], dim=-1)
    torch.testing.assert_close(rotary(x, positions, 500.0), expected, rtol=0, atol=1e-12)


def test_products_depend_on_the_distance_alone() -> None:
    q, k = torch.randn(1, 1, 1, 16, dtype=torch.float64), torch.randn(1, 1, 1, 16, dtype=torch.float64)

    def product(at: int, to: int) -> torch.Tensor:
        return (rotary(q, torch.tensor([[at]])) * rotary(k, torch.tensor([[to]]))).sum()

    torch.testing.assert_close(product(9, 4), product(1009, 1004), rtol=0, atol=1e-10)
    assert not torch.isclose(product(9, 4), product(9, 5))


def test_angles_stay_single_for_half_inputs() -> None:
    x = torch.randn(1, 1, 1, 8)
    positions = torch.tensor([[1001]])  # not a number of bf16
    torch.testing.assert_close(
        rotary(x.bfloat16(), positions).float(), rotary(x.bfloat16().float(), positions), rtol=1e-2, atol=1e-2
    )
