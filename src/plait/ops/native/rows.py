"""The first-order scan and the depthwise convolution through the compiled kernels, as operators of PyTorch."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from plait.ops.native import guards
from plait.ops.native.kernel import Operator, resolved
from plait.ops.native.library import Convolution, Scan, address, call, integers, pointer


def linear_scan(log_a: Tensor, u: Tensor, state: Tensor | None, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor]:
    """``h_t = exp(log_a_t) h_{t-1} + u_t``; shapes as in :func:`plait.ops.linear_scan`, checked there."""
    dtype = u.dtype
    log_a, u = _plain(log_a), _plain(u)
    state = None if state is None else _plain(state)
    h = _scan(log_a, u, state, cu_seqlens)
    last = h[:, -1].clone() if cu_seqlens is None else h[0, cu_seqlens.to(h.device)[1:] - 1]
    return h.to(dtype), last


def _plain(x: Tensor) -> Tensor:
    return resolved(x.float()).contiguous()


def _sequences(u: Tensor, cu_seqlens: Tensor | None) -> tuple[Any, Any, int]:
    """First row of each sequence in ``(B T, D)`` and its tokens, as C arrays, and how many there are."""
    batch, length, _ = u.shape
    borders = [b * length for b in range(batch + 1)] if cu_seqlens is None else cu_seqlens.tolist()
    return integers(borders[:-1]), integers([b - a for a, b in pairwise(borders)]), len(borders) - 1


def _forward_scan(log_a: Tensor, u: Tensor, state: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
    h = torch.empty_like(u)
    start, length, count = _sequences(u, cu_seqlens)
    arguments = Scan(
        log_a=pointer(log_a),
        u=pointer(u),
        state=pointer(state),
        h=pointer(h),
        start=address(start),
        length=address(length),
        sequences=count,
        D=u.shape[2],
    )
    call("scan_forward", arguments)
    return h


def _fake_scan(log_a: Tensor, u: Tensor, state: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
    return torch.empty_like(u)


def _gradients_of_scan(
    d_h: Tensor, log_a: Tensor, h: Tensor, state: Tensor | None, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of log_a, u and state (empty where there is none)."""
    d_log_a, d_u = torch.empty_like(h), torch.empty_like(h)
    d_state = h.new_empty(0) if state is None else torch.empty_like(state)
    start, length, count = _sequences(h, cu_seqlens)
    d_h = resolved(d_h).contiguous()
    arguments = Scan(
        log_a=pointer(log_a),
        state=pointer(state),
        h=pointer(h),
        d_h=pointer(d_h),
        d_log_a=pointer(d_log_a),
        d_u=pointer(d_u),
        d_state=None if state is None else pointer(d_state),
        start=address(start),
        length=address(length),
        sequences=count,
        D=h.shape[2],
    )
    call("scan_backward", arguments)
    return d_log_a, d_u, d_state


def _fake_gradients_of_scan(
    d_h: Tensor, log_a: Tensor, h: Tensor, state: Tensor | None, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    d_state = h.new_empty(0) if state is None else torch.empty_like(state)
    return torch.empty_like(h), torch.empty_like(h), d_state


def _setup_scan(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    log_a, _, state, cu_seqlens = inputs
    ctx.save_for_backward(log_a, output, state, cu_seqlens)


def _backward_scan(ctx: Any, d_h: Tensor) -> tuple[Tensor | None, ...]:
    log_a, h, state, cu_seqlens = ctx.saved_tensors
    d_log_a, d_u, d_state = _scan_backward(d_h, log_a, h, state, cu_seqlens)
    return d_log_a, d_u, None if state is None else d_state, None


_scan = Operator("scan", _forward_scan, guards.scan, _fake_scan, _setup_scan, _backward_scan)
_scan_backward = Operator("scan_backward", _gradients_of_scan, guards.scan_backward, _fake_gradients_of_scan)


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Valid depthwise convolution ``(B, T + kernel - 1, C) -> (B, T, C)`` with taps ``(C, kernel)``."""
    bias = None if bias is None else _plain(bias)
    return _convolution(_plain(x), _plain(weight.t()), bias).to(x.dtype)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    taps, C = weight.shape
    y = x.new_empty(x.shape[0], x.shape[1] - taps + 1, C)
    call("convolution_forward", _convolution_arguments(x, weight, bias, y=pointer(y)))
    return y


def _convolution_arguments(x: Tensor, weight: Tensor, bias: Tensor | None, **more: int | None) -> Convolution:
    taps, C = weight.shape
    return Convolution(
        x=pointer(x),
        weight=pointer(weight),
        bias=pointer(bias),
        B=x.shape[0],
        T=x.shape[1] - taps + 1,
        C=C,
        taps=taps,
        **more,
    )


def _fake_convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1] - weight.shape[0] + 1, weight.shape[1])


def _gradients_of_convolution(d_y: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    d_x, d_weight = torch.empty_like(x), x.new_empty(x.shape[0], *weight.shape)
    d_y = resolved(d_y).contiguous()
    arguments = _convolution_arguments(x, weight, None, d_y=pointer(d_y), d_x=pointer(d_x), d_weight=pointer(d_weight))
    call("convolution_backward", arguments)
    return d_x, d_weight.sum(0)


def _fake_gradients_of_convolution(d_y: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight)


def _setup_convolution(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias = inputs
    ctx.save_for_backward(x, weight)
    ctx.bias = bias is not None


def _backward_convolution(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:
    d_x, d_weight = _convolution_backward(d_y, *ctx.saved_tensors)
    return d_x, d_weight, d_y.sum((0, 1)) if ctx.bias else None


_convolution = Operator(
    "depthwise", _convolve, guards.depthwise, _fake_convolve, _setup_convolution, _backward_convolution
)
_convolution_backward = Operator(
    "depthwise_backward", _gradients_of_convolution, guards.depthwise_backward, _fake_gradients_of_convolution
)
