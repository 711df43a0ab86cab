"""Norms over the last axis, computed in fp32 (fp64 for fp64 inputs) and returned in the input's dtype."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def widen(x: Tensor) -> Tensor:
    """``x`` in fp32, or unchanged if it is wider: the precision of norms, gates and states."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def l2_norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    """``x * rsqrt(sum(x^2) + eps)`` over the last axis; ``eps`` stands inside the root, so zero maps to zero."""
    wide = widen(x)
    return (wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + eps)).to(x.dtype)


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

    def _normalised(self, x: Tensor) -> Tensor:
        wide = widen(x)
        return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps) * widen(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` ``(..., size)``."""
        return self._normalised(x).to(x.dtype)

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
        self.activation = activation

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:  # type: ignore[override]
        """Normalise ``x`` ``(..., size)`` and gate it with ``gate`` of the same shape."""
        gate = widen(gate)
        gate = F.silu(gate) if self.activation == "silu" else torch.sigmoid(gate)
        return (self._normalised(x) * gate).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation={self.activation!r}"
