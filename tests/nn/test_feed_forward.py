"""The feed-forward block and its width."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from plait.nn import SwiGLU, swiglu_width


@pytest.mark.parametrize(
    ("hidden_size", "ratio", "width"),
    [(1024, 4, 2816), (2048, 4, 5632), (1024, 2, 1536), (64, 4, 256), (96, 4, 256), (100, 4, 512)],
)
def test_width(hidden_size: int, ratio: int, width: int) -> None:
    assert swiglu_width(hidden_size, ratio) == width


def test_formula() -> None:
    block = SwiGLU(4, 6)
    x = torch.randn(2, 3, 4)
    gate, up, down = (m.weight for m in (block.gate_proj, block.up_proj, block.down_proj))
    torch.testing.assert_close(block(x), (F.silu(x @ gate.T) * (x @ up.T)) @ down.T)
