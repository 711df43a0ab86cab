"""The compiled softmax attention over chosen keys equals its definition in fp64, at odd sizes and strides."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from plait import ops
from plait.ops import native
from plait.ops.native import softmax

pytestmark = pytest.mark.skipif(native.absent() is not None, reason="the kernels are not compiled")


@dataclass(frozen=True)
class Size:
    """Rows, query heads, choosing heads, kv heads, queries, keys, widths, queries of a block, keys of a page, pages."""

    B: int
    H: int
    X: int
    G: int
    T: int
    S: int
    D: int
    DV: int
    block: int
    page: int
    K: int


SIZES = [
    Size(1, 4, 4, 2, 70, 70, 64, 64, 16, 8, 4),
    Size(2, 4, 2, 2, 33, 50, 24, 40, 5, 3, 9),
    Size(2, 6, 3, 3, 1, 100, 32, 32, 1, 1, 30),
    Size(1, 2, 1, 1, 130, 130, 16, 7, 64, 16, 6),
    Size(1, 2, 2, 1, 300, 301, 8, 16, 200, 1, 250),
]


def made(size: Size) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values; heads and tokens lie as a model leaves them."""
    generator = torch.Generator().manual_seed(size.T)
    q = torch.randn(size.B, size.T, size.H, size.D, generator=generator).transpose(1, 2)
    k = 2 * torch.randn(size.B, size.G, size.S, size.D, generator=generator)
    v = torch.randn(size.B, size.S, size.G, size.DV, generator=generator).transpose(1, 2)
    return q, k, v


def pages(size: Size) -> tuple[Tensor, Tensor]:
    """For each block its own pages and some before them, ascending, and how many."""
    generator = torch.Generator().manual_seed(size.K)
    blocks, first = -(-size.T // size.block), size.S - size.T
    index = torch.full((size.B, size.X, blocks, size.K), 10**6)  # what is not counted must not be read
    counts = torch.zeros(size.B, size.X, blocks, dtype=torch.long)
    for row in range(size.B):
        for owner in range(size.X):
            for m in range(blocks):
                end = min(first + (m + 1) * size.block, size.S)
                own = set(range((first + m * size.block) // size.page, (end - 1) // size.page + 1))
                order = torch.randperm(max(own) + 1, generator=generator).tolist()
                taken = sorted(own | set(order[: size.K - len(own)]))[-size.K :]
                counts[row, owner, m] = len(taken)
                index[row, owner, m, : len(taken)] = torch.tensor(taken)
    return index, counts


def mask(size: Size, index: Tensor | None, counts: Tensor | None) -> Tensor:
    """What each query sees ``(B, H, T, S)``."""
    seen = torch.arange(size.S) <= (size.S - size.T + torch.arange(size.T))[:, None]
    seen = seen.expand(size.B, size.H, -1, -1)
    if index is None or counts is None:
        return seen
    blocks = index.shape[2]
    wanted = torch.zeros(size.B, size.X, blocks, -(-size.S // size.page), dtype=torch.bool)
    valid = torch.arange(size.K) < counts[..., None]
    wanted.scatter_(3, index.where(valid, index[..., :1]), True)
    tokens = wanted.repeat_interleave(size.page, 3)[..., : size.S].repeat_interleave(size.block, 2)[:, :, : size.T]
    return seen & tokens.repeat_interleave(size.H // size.X, 1)


def expected(size: Size, q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    k, v = (x.double().repeat_interleave(size.H // size.G, 1) for x in (k, v))
    weights = (0.3 * q.double() @ k.mT).masked_fill(~seen, -torch.inf).softmax(-1)
    return weights @ v, weights.sum(2)


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_chosen_pages(size: Size, threads: int) -> None:
    q, k, v = made(size)
    index, counts = pages(size)
    exact, _ = expected(size, q, k, v, mask(size, index, counts))
    options = {"scale": 0.3, "first": size.S - size.T, "block": size.block, "page": size.page}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        o, _ = softmax.attend(q, k, v, index, counts, **options)
        valid = torch.arange(size.K) < counts[..., None]
        flat, _ = softmax.attend(q, k, v, index[valid], counts, **options)
    finally:
        torch.set_num_threads(before)
    assert error(o, exact) < 1e-6
    assert torch.equal(o, flat)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_key_and_what_it_receives(size: Size) -> None:
    q, k, v = made(size)
    exact, received = expected(size, q, k, v, mask(size, None, None))
    o, sums = softmax.attend(q, k, v, scale=0.3, first=size.S - size.T, sums=True)
    assert sums is not None
    assert error(o, exact) < 1e-6
    assert error(sums, received) < 1e-6
    torch.testing.assert_close(sums.sum(-1), torch.full((size.B, size.H), float(size.T)), rtol=1e-5, atol=0)


def test_keys_that_nobody_chose_are_not_read() -> None:
    size = SIZES[2]
    q, k, v = made(size)
    index, counts = pages(size)
    unread = ~mask(size, index, counts).any(2).unflatten(1, (size.G, -1)).any(2)  # (B, G, S)
    assert unread.any()
    k[unread], v[unread] = torch.nan, torch.nan
    o, _ = softmax.attend(q, k, v, index, counts, scale=0.3, first=size.S - size.T, block=size.block, page=size.page)
    assert o.isfinite().all()


def test_large_scores_stay_finite() -> None:
    q, k, v = made(SIZES[0])
    o, _ = softmax.attend(1e3 * q, 1e3 * k, v, scale=1.0, first=0)
    best = (q.double() @ k.double().repeat_interleave(2, 1).mT).masked_fill(~mask(SIZES[0], None, None), -torch.inf)
    assert torch.allclose(o, v.repeat_interleave(2, 1).gather(2, best.argmax(-1)[..., None].expand_as(o)), atol=1e-5)


def test_what_it_leaves_to_pytorch() -> None:
    q, k, v = made(SIZES[0])
    assert softmax.serves(q, k, v)
    assert not softmax.serves(q.double(), k, v)
    assert not softmax.serves(q.bfloat16(), k, v)
    assert not softmax.serves(q, k.mT, v)
    leaf = v.clone().requires_grad_()
    assert not softmax.serves(q, k, leaf)
    with torch.no_grad():
        assert softmax.serves(q, k, leaf)
    with ops.backend("torch"):
        assert not softmax.serves(q, k, v)
