"""The feed-forward half of a block."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


def swiglu_width(hidden_size: int, ratio: float = 4) -> int:
    """Inner width with about the parameters of a two-matrix block of width ``ratio * hidden_size``.

    Two thirds of it, rounded up to a multiple of 256: 2816 for 1024 and 5632 for 2048.
    """
    return 256 * -(-int(hidden_size * ratio * 2 / 3) // 256)


class SwiGLU(nn.Module):
    """``W_down(silu(W_gate x) * (W_up x))``, without biases (2002.05202).

    Args:
        hidden_size: width of the input and output.
        inner: width of the two inner projections.
    """

    def __init__(self, hidden_size: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, inner, bias=False)
        self.up_proj = nn.Linear(hidden_size, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., hidden_size)`` to ``(..., hidden_size)``."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
