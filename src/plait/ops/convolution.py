"""Short causal depthwise convolution with a carried tail, padding and packed documents."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from plait.ops import checks, native
from plait.ops.dispatch import fused_kernels, resolve


def causal_convolution(
    x: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    tail: Tensor | None = None,
    padding: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    silu: bool = False,
) -> tuple[Tensor, Tensor]:
    """Depthwise causal convolution ``y_t = bias + sum_j weight[:, kernel-1-j] x_{t-j}``; the last tap is the present.

    Args:
        x: input ``(B, T, C)``.
        weight: taps ``(C, kernel)``.
        bias: ``(C,)`` or None.
        tail: the ``kernel - 1`` inputs before ``x``, oldest first ``(B, kernel - 1, C)``, or ``(N, kernel - 1, C)``
            with ``cu_seqlens``; None for zeros.
        padding: ``(B,)`` int64, slots at the front of each row that are padding: they are skipped, so the tail
            stands directly before the first real token; the output there is zero.
        cu_seqlens: ``(N + 1,)`` int64 borders of documents packed into the single row; each starts from its own tail.
        silu: apply it to ``y``.

    Returns:
        ``y`` ``(B, T, C)`` and the new tail, the last ``kernel - 1`` inputs of each row or document, in ``x``'s dtype.

    Raises:
        OptionError: arguments that do not fit (the message names which), or padding together with ``cu_seqlens``.
        BackendUnavailable: a second derivative was asked of the compiled kernel.
    """
    cu_seqlens = checks.causal_convolution(x, weight, bias, tail, padding, cu_seqlens, native.tracing())
    past = weight.shape[1] - 1
    if padding is None and x.shape[1] > 1 and fused_kernels(x):
        from plait.ops import fla

        y = fla.convolution(x, weight, bias, tail, silu, cu_seqlens)
        return y, _last(x, past, tail) if cu_seqlens is None else _last_packed(x[0], past, tail, cu_seqlens)
    y, tail = _by_tap(x, weight, bias, tail, padding, cu_seqlens)
    return (F.silu(y) if silu else y), tail


def _by_tap(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tail: Tensor | None,
    padding: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The convolution of what is laid out behind the tails, and the new tails."""
    if cu_seqlens is not None:
        return _packed(x, weight, bias, tail, cu_seqlens)
    batch, _, channels = x.shape
    past = weight.shape[1] - 1
    before = x.new_zeros(batch, past, channels) if tail is None else tail.to(x.dtype)
    extended = torch.cat([before, x], 1)
    if padding is not None:
        extended = _slide_tail(extended, padding, past)
    y = _convolve(extended, weight, bias)
    if padding is not None:
        y = y * (torch.arange(y.shape[1], device=x.device) >= padding[:, None])[..., None].to(y.dtype)
    return y, extended[:, extended.shape[1] - past :]


def _last(x: Tensor, past: int, tail: Tensor | None) -> Tensor:
    """The last ``past`` inputs of every row ``(B, past, C)``, those before it included."""
    if x.shape[1] >= past:
        return x[:, x.shape[1] - past :]
    before = x.new_zeros(x.shape[0], past, x.shape[2]) if tail is None else tail.to(x.dtype)
    return torch.cat([before, x], 1)[:, x.shape[1] :]


def _last_packed(x: Tensor, past: int, tail: Tensor | None, cu_seqlens: Tensor) -> Tensor:
    """The last ``past`` inputs of every document ``(N, past, C)`` of a packed row ``(T, C)``."""
    borders = cu_seqlens.to(x.device)
    first, slot = borders[:-1, None], borders[1:, None] + torch.arange(-past, 0, device=x.device)
    inside = x[slot.clamp(min=0)]
    row = torch.arange(len(first), device=x.device)[:, None]
    before = torch.zeros_like(inside) if tail is None else tail.to(x.dtype)[row, (slot - first).clamp(max=-1) + past]
    return torch.where((slot >= first)[..., None], inside, before)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Valid convolution ``(B, T + kernel - 1, C) -> (B, T, C)``."""
    if not x.numel() or x.shape[1] < weight.shape[1]:  # nothing to compute
        return x[:, weight.shape[1] - 1 :]
    if resolve("auto", x.device.type) == "native" and native.refuses(x, weight, bias) is None:
        return native.depthwise(x, weight, bias)
    y = F.conv1d(x.transpose(1, 2), weight.to(x.dtype)[:, None], _cast(bias, x.dtype), groups=x.shape[2])
    return y.transpose(1, 2)


def _slide_tail(extended: Tensor, padding: Tensor, past: int) -> Tensor:
    """Move each row's tail over the padding that separates it from the first real token; zeros before it."""
    slot = torch.arange(extended.shape[1], device=extended.device)
    source = slot - padding[:, None]
    source = torch.where(source < past, source, slot)
    moved = extended.gather(
        1, source.clamp(0, max(extended.shape[1] - 1, 0))[..., None].expand(-1, -1, extended.shape[2])
    )
    return moved.masked_fill((source < 0)[..., None], 0)


def _packed(
    x: Tensor, weight: Tensor, bias: Tensor | None, tail: Tensor | None, cu_seqlens: Tensor
) -> tuple[Tensor, Tensor]:
    """Each document is laid out behind its own tail; all are convolved at once."""
    past = weight.shape[1] - 1
    lengths = cu_seqlens.diff()
    documents, length = len(lengths), x.shape[1]
    number = torch.repeat_interleave(torch.arange(documents, device=x.device), lengths.to(x.device))
    token = torch.arange(length, device=x.device) + (number + 1) * past
    first = cu_seqlens[:-1].to(x.device) + torch.arange(documents, device=x.device) * past
    laid = x.new_zeros(length + documents * past, x.shape[2]).index_copy(0, token, x[0])
    offsets = torch.arange(past, device=x.device)
    if tail is not None:
        laid = laid.index_copy(0, (first[:, None] + offsets).flatten(), tail.to(x.dtype).flatten(0, 1))
    y = _convolve(laid[None], weight, bias)[:, token - past]
    last = first + lengths.to(x.device)
    return y, laid[last[:, None] + offsets]


def _cast(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if x is None else x.to(dtype)
