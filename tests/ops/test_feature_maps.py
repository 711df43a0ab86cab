"""Attention kernels that are linear attention on other features, without approximation."""

from __future__ import annotations

import math

import pytest
import torch

from plait.ops import linear_attention


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_cosformer_is_relu_attention_weighted_by_a_cosine(backend: str) -> None:
    """``relu(q_i) . relu(k_j) cos(pi (i - j) / 2M)`` splits into cosine and sine features (2202.08791, section 3.3)."""
    T, M = 70, 75
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, T, 3, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    angle = math.pi / (2 * M) * torch.arange(T, dtype=torch.float64)

    def features(x: torch.Tensor) -> torch.Tensor:
        x, turn = x.relu(), angle[:, None, None]
        return torch.cat([x * turn.cos(), x * turn.sin()], dim=-1)

    ones = torch.ones_like(v[..., :1])
    o, _ = linear_attention(features(q), features(k), torch.cat([v, ones], -1), scale=1.0, backend=backend)
    found = o[..., :-1] / (o[..., -1:] + 1e-10)

    weights = torch.einsum("bthd,bshd->bhts", q.relu(), k.relu()) * (angle[:, None] - angle).cos().tril()
    expected = torch.einsum("bhts,bshd->bthd", weights, v) / (weights.sum(-1).mT[..., None] + 1e-10)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
