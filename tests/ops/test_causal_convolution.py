"""The short convolution equals its sum, for any tail, padding, packing and split."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from plait.errors import OptionError
from plait.ops import causal_convolution


def made(B: int, T: int, C: int = 6, kernel: int = 4, tails: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(T)
    shapes = [(B, T, C), (C, kernel), (C,), (tails, kernel - 1, C)]
    return tuple(torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)  # type: ignore[return-value]


def by_sum(x: Tensor, weight: Tensor, bias: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
    past = weight.shape[1] - 1
    rows = torch.cat([tail, x], 1)
    y = torch.empty_like(x)
    for t in range(x.shape[1]):
        y[:, t] = bias + sum(weight[:, past - j] * rows[:, past + t - j] for j in range(past + 1))
    return y, rows[:, rows.shape[1] - past :]


@pytest.mark.parametrize("kernel", [1, 2, 4])
@pytest.mark.parametrize("T", [1, 2, 3, 4, 9])
def test_equals_its_sum(T: int, kernel: int) -> None:
    x, weight, bias, tail = made(2, T, kernel=kernel)
    for found, expected in zip(
        causal_convolution(x, weight, bias=bias, tail=tail), by_sum(x, weight, bias, tail), strict=True
    ):
        assert torch.allclose(found, expected, atol=1e-12)
    from_zero = causal_convolution(x, weight)
    zeros = by_sum(x, weight, torch.zeros_like(bias), torch.zeros_like(tail))
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(from_zero, zeros, strict=True))


def test_any_split_equals_one_pass() -> None:
    x, weight, bias, start = made(2, 12)
    whole, last = causal_convolution(x, weight, bias=bias, tail=start)
    for borders in ([0, 1, 12], [0, 5, 7, 12], list(range(13))):
        pieces, tail = [], start
        for a, b in itertools.pairwise(borders):
            y, tail = causal_convolution(x[:, a:b], weight, bias=bias, tail=tail)
            pieces.append(y)
        assert torch.allclose(torch.cat(pieces, 1), whole, atol=1e-12)
        assert torch.equal(tail, last)


@pytest.mark.parametrize("with_tail", [False, True])
def test_padding_is_skipped(with_tail: bool) -> None:
    x, weight, bias, tail = made(5, 6, tails=5)
    padding = torch.tensor([0, 1, 3, 5, 6])
    options = {"tail": tail} if with_tail else {}
    y, last = causal_convolution(x, weight, bias=bias, padding=padding, **options)
    for row, start in enumerate(padding.tolist()):
        before = tail[row : row + 1] if with_tail else torch.zeros_like(tail[:1])
        expected, expected_tail = by_sum(x[row : row + 1, start:], weight, bias, before)
        assert torch.allclose(y[row : row + 1, start:], expected, atol=1e-12)
        assert torch.equal(last[row : row + 1], expected_tail)
        assert not y[row, :start].any()
    poisoned = x.clone()
    for row, start in enumerate(padding.tolist()):
        poisoned[row, :start] = 1e9
    again, again_tail = causal_convolution(poisoned, weight, bias=bias, padding=padding, **options)
    assert torch.equal(again, y)
    assert torch.equal(again_tail, last)


@pytest.mark.parametrize("with_tail", [False, True])
def test_documents_restart(with_tail: bool) -> None:
    borders = [0, 1, 3, 4, 12, 14]
    x, weight, bias, tail = made(1, 14, tails=5)
    options = {"tail": tail} if with_tail else {}
    y, last = causal_convolution(x, weight, bias=bias, cu_seqlens=torch.tensor(borders), **options)
    for n, (a, b) in enumerate(itertools.pairwise(borders)):
        before = tail[n : n + 1] if with_tail else torch.zeros_like(tail[:1])
        expected, expected_tail = by_sum(x[:, a:b], weight, bias, before)
        assert torch.allclose(y[:, a:b], expected, atol=1e-12)
        assert torch.equal(last[n : n + 1], expected_tail)


def test_gradcheck() -> None:
    x, weight, bias, tail = (z.requires_grad_() for z in made(2, 5, C=2))

    def run(x: Tensor, weight: Tensor, bias: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
        return causal_convolution(x, weight, bias=bias, tail=tail, padding=torch.tensor([0, 2]))

    assert torch.autograd.gradcheck(run, (x, weight, bias, tail))
    row, both = x[:1].detach().requires_grad_(), tail.detach().requires_grad_()

    def packed(x: Tensor, weight: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
        return causal_convolution(x, weight, tail=tail, cu_seqlens=torch.tensor([0, 2, 5]))

    assert torch.autograd.gradcheck(packed, (row, weight, both))


def test_causal_bit_for_bit() -> None:
    x, weight, bias, tail = (z.float() for z in made(2, 70))
    y, _ = causal_convolution(x, weight, bias=bias, tail=tail)
    for t in (0, 1, 33, 69):
        changed = x.clone()
        changed[1, t:] += 1
        found, _ = causal_convolution(changed, weight, bias=bias, tail=tail)
        assert torch.equal(found[1, :t], y[1, :t])
        assert torch.equal(found[0], y[0])
        assert not torch.equal(found[1, t], y[1, t])


def test_half_precision_and_wrong_shapes() -> None:
    x, weight, bias, tail = made(2, 5)
    y, last = causal_convolution(x.bfloat16(), weight.float(), bias=bias.float(), tail=tail.float())
    assert y.dtype == last.dtype == torch.bfloat16
    with pytest.raises(OptionError, match=r"weight \(5, 4\)"):
        causal_convolution(x, weight[:5])
    with pytest.raises(OptionError, match=r"tail \(2, 2, 6\) must be .* \(2, 3, 6\)"):
        causal_convolution(x, weight, tail=tail[:, 1:])
    with pytest.raises(OptionError, match="one packed row"):
        causal_convolution(x, weight, cu_seqlens=torch.tensor([0, 5]))
