"""Rotary position embedding (2104.09864) with half-split pairs: channel ``i`` turns with channel ``i + D/2``."""

from __future__ import annotations

import torch
from torch import Tensor

from plait.ops.dispatch import fused_kernels

#: Channels of a head that fla's kernel turns.
_WIDEST = 256


def rotary_table(
    positions: Tensor, size: int, base: float = 10000.0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of ``position * base^(-2i/size)``.

    Args:
        positions: ``(B, T)`` integers.
        size: head dim D, even.
        base: base of the geometric series of frequencies.
        dtype: precision of the angles; fp32 at least.

    Returns:
        cosine and sine, ``(B, T, 1, D/2)``.
    """
    channels = torch.arange(0, size, 2, device=positions.device, dtype=dtype)
    angles = positions[..., None].to(dtype) * base ** (-channels / size)
    return angles.cos().unsqueeze(2), angles.sin().unsqueeze(2)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn ``x`` ``(B, T, H, D)`` by a table of :func:`rotary_table`; computed in the table's precision."""
    if x.shape[1] > 1 and x.shape[-1] <= _WIDEST and fused_kernels(x):
        from plait.ops import fla

        return fla.rotate(x, cosine, sine)
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cosine - right * sine, right * cosine + left * sine], dim=-1).to(x.dtype)


def rotary(x: Tensor, positions: Tensor, base: float = 10000.0) -> Tensor:
    """Turn ``x`` ``(B, T, H, D)`` by its ``positions`` ``(B, T)``; angles are fp32 (fp64 for fp64 inputs)."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return rotate(x, *rotary_table(positions, x.shape[-1], base, dtype))
