"""The short convolution against PyTorch's own, and its tail."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from plait.nn import ShortConvolution


@pytest.mark.parametrize("kernel", [1, 4])
@pytest.mark.parametrize("activation", [True, False])
def test_it_is_a_causal_depthwise_convolution(kernel: int, activation: bool) -> None:
    convolution = ShortConvolution(6, kernel, activation).double()
    assert convolution.weight.shape == (6, 1, kernel)
    x = torch.randn(2, 9, 6, dtype=torch.float64)
    y, tail = convolution(x)
    expected = F.conv1d(F.pad(x.mT, (kernel - 1, 0)), convolution.weight, groups=6).mT
    torch.testing.assert_close(y, F.silu(expected) if activation else expected, rtol=0, atol=1e-14)
    assert torch.equal(tail, x[:, 9 - kernel + 1 :])


def test_the_last_tap_meets_the_current_token() -> None:
    convolution = ShortConvolution(1, 4, activation=False)
    with torch.no_grad():
        convolution.weight.copy_(torch.tensor([[[0.0, 0.0, 0.0, 2.0]]]))
    x = torch.randn(1, 5, 1)
    torch.testing.assert_close(convolution(x)[0], 2 * x)


def test_the_tail_continues_the_sequence() -> None:
    convolution = ShortConvolution(3).double()
    x = torch.randn(2, 11, 3, dtype=torch.float64)
    whole, _ = convolution(x)
    tail, parts = None, []
    for part in x.split([1, 2, 5, 3], dim=1):
        y, tail = convolution(part, tail)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-14)
