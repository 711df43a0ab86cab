"""Parts of ring attention that need no other process: merging, blocks of any size, their gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from plait.distributed.sequence import ring


def parts(generator: torch.Generator, keys: list[int]) -> list[tuple[Tensor, Tensor]]:
    """Scores and values of the same queries over several sets of keys."""
    return [
        (
            torch.randn(2, 3, n, dtype=torch.float64, generator=generator),
            torch.randn(2, n, 4, dtype=torch.float64, generator=generator),
        )
        for n in keys
    ]


def attended(scores: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    return scores.softmax(-1) @ values, scores.logsumexp(-1)


def test_merging_is_attention_over_all_in_any_order(generator: torch.Generator) -> None:
    found = parts(generator, [2, 5, 1])
    o, lse = attended(torch.cat([s for s, _ in found], -1), torch.cat([v for _, v in found], -2))
    one, two, three = (attended(*part) for part in found)
    for first, second, third in ((one, two, three), (three, one, two)):
        left = ring.merged(*ring.merged(*first, *second), *third)
        right = ring.merged(*first, *ring.merged(*second, *third))
        for merged in (left, right):
            torch.testing.assert_close(merged, (o, lse), rtol=1e-12, atol=1e-12)


def test_merging_with_no_keys(generator: torch.Generator) -> None:
    o, lse = attended(*parts(generator, [3])[0])
    nothing = torch.zeros_like(o), torch.full_like(lse, -torch.inf)
    assert torch.equal(ring.merged(o, lse, *nothing)[0], o)
    assert torch.equal(ring.merged(*nothing, o, lse)[0], o)
    assert torch.equal(ring.merged(*nothing, *nothing)[0], nothing[0])


@pytest.mark.parametrize("scores", [1, 70, 2**22])
@pytest.mark.parametrize("causal", [False, True])
def test_tiles_of_any_size(causal: bool, scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Output and gradients are those of torch's attention, for tiles of one query and of all."""
    monkeypatch.setattr(ring, "SCORES", scores)
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 2, 3, 7, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    k, v = (
        torch.randn(2, 2, 7, width, dtype=torch.float64, generator=generator, requires_grad=True) for width in (4, 5)
    )
    expected = F.scaled_dot_product_attention(q, k[:, :, None], v[:, :, None], is_causal=causal)
    d_o = torch.randn(expected.shape, dtype=torch.float64, generator=generator)
    gradients = torch.autograd.grad(expected, (q, k, v), d_o)
    with torch.no_grad():
        o, lse = ring._block(q, k, v, causal)
        torch.testing.assert_close(o, expected, rtol=1e-12, atol=1e-12)
        found = ring._block_gradients(q, k, v, lse, d_o, (d_o * o).sum(-1), causal)
    torch.testing.assert_close(found, gradients, rtol=1e-12, atol=1e-12)
