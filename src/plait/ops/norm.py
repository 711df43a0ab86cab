"""Norms over the last axis, computed in fp32 (fp64 for fp64 inputs) and returned in the input's dtype.

On CUDA with flash-linear-attention a norm is one kernel; inside a compiled graph the compiler makes one of it.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from plait.ops import checks
from plait.ops.dispatch import fused_kernels

#: Channels that fla's kernels normalise at once.
_WIDEST = 16384


def widen(x: Tensor) -> Tensor:
    """``x`` in fp32, or unchanged if it is wider: the precision of norms, gates and states."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def l2_norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    """``x * rsqrt(sum(x^2) + eps)``; ``eps`` stands inside the root, so zero maps to zero."""
    checks.norm("l2_norm", x)
    if _fused(x):
        from plait.ops import fla

        return fla.l2_norm(x, eps)
    wide = widen(x)
    return (wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + eps)).to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x * rsqrt(mean(x^2) + eps) * weight`` (1910.07467).

    Args:
        x: ``(..., D)``.
        weight: ``(D,)``.
        eps: added to the mean square.

    Raises:
        OptionError: arguments that do not fit.
    """
    checks.norm("rms_norm", x, weight=weight)
    if _fused(x):
        from plait.ops import fla

        return fla.rms_norm(x, weight, eps)
    return _normalised(x, weight, eps).to(x.dtype)


def gated_rms_norm(
    x: Tensor, gate: Tensor, weight: Tensor, eps: float, activation: Literal["silu", "sigmoid"] = "silu"
) -> Tensor:
    """``rms_norm(x) * activation(gate)``: the norm first, the gate after, rounded once.

    Args:
        x: ``(..., D)``.
        gate: of the same shape.
        weight: ``(D,)``.
        eps: added to the mean square.
        activation: of the gate.

    Raises:
        OptionError: arguments that do not fit.
    """
    checks.norm("gated_rms_norm", x, weight=weight, gate=gate)
    if _fused(x):
        from plait.ops import fla

        return fla.gated_rms_norm(x, gate, weight, eps, activation)
    gate = widen(gate)
    gate = F.silu(gate) if activation == "silu" else torch.sigmoid(gate)
    return (_normalised(x, weight, eps) * gate).to(x.dtype)


def _normalised(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = widen(x)
    return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * widen(weight)


def _fused(x: Tensor) -> bool:
    return x.shape[-1] <= _WIDEST and fused_kernels(x)
