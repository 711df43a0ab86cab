"""Norms over the last axis as modules: :mod:`plait.ops.norm` with a weight."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from plait.ops.norm import gated_rms_norm, l2_norm, rms_norm, widen

__all__ = ["GatedRMSNorm", "RMSNorm", "l2_norm", "widen"]


class RMSNorm(nn.Module):
    """``x * rsqrt(mean(x^2) + eps) * weight`` over the last axis (1910.07467).

    Args:
        size: width of the last axis.
        eps: added to the mean square.
    """

    def __init__(self, size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` ``(..., size)``."""
        return rms_norm(x, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"


class GatedRMSNorm(RMSNorm):
    """``RMSNorm(x) * activation(gate)``: the norm first, the gate after.

    Args:
        size: width of the last axis.
        eps: added to the mean square.
        activation: ``silu``, or ``sigmoid`` as in Kimi Delta Attention.
    """

    def __init__(self, size: int, eps: float = 1e-6, activation: Literal["silu", "sigmoid"] = "silu") -> None:
        super().__init__(size, eps)
        self.activation: Literal["silu", "sigmoid"] = activation

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:  # type: ignore[override]
        """Normalise ``x`` ``(..., size)`` and gate it with ``gate`` of the same shape."""
        return gated_rms_norm(x, gate, self.weight, self.eps, self.activation)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation={self.activation!r}"
