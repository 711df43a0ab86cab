"""First-order scan in two levels: about ``2 sqrt(T)`` vector steps in place of ``T``, no power of a decay formed."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from plait.ops.first_order import first_order


def linear_scan(log_a: Tensor, u: Tensor, state: Tensor | None, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor]:
    """``h_t = exp(log_a_t) h_{t-1} + u_t``; shapes as in :func:`plait.ops.linear_scan`."""
    a = log_a.exp()
    if cu_seqlens is None:
        h = _Scan.apply(a, u, u.new_zeros(u.shape[0], u.shape[2]) if state is None else state)
        return h, h[:, -1].clone()  # a view would keep the whole row
    borders = cu_seqlens.to(u.device)
    first = borders[:-1]
    if state is not None:  # a document's own state enters with its first token
        u = u.index_add(1, first, a[:, first] * state)
    h = _Scan.apply(a.index_fill(1, first, 0), u, u.new_zeros(1, u.shape[2]))
    return h, h[0, borders[1:] - 1]


class _Scan(torch.autograd.Function):
    """The adjoint of a scan is a scan from the other end, so only ``a`` and ``h`` are kept."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, u: Tensor, state: Tensor) -> Tensor:
        h = _scan(a, u, state)
        ctx.save_for_backward(a, h, state)
        return h

    @staticmethod
    @first_order("The torch backend of linear_scan")
    def backward(ctx: Any, d_h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, h, state = ctx.saved_tensors
        onward = F.pad(a[:, 1:], (0, 0, 0, 1)).flip(1)  # what decays gradient t + 1 into t; nothing into the last
        d_u = _scan(onward, d_h.flip(1), torch.zeros_like(state)).flip(1)
        before = torch.cat([state[:, None], h[:, :-1]], 1)
        return d_u * before, d_u, d_u[:, 0] * a[:, 0]


def _scan(a: Tensor, u: Tensor, state: Tensor) -> Tensor:
    """``h_t = a_t h_{t-1} + u_t``: inside all blocks at once, then across blocks."""
    batch, length, width = u.shape
    if length == 1:
        return torch.addcmul(u, a, state[:, None])
    size = math.isqrt(length - 1) + 1
    count = -(-length // size)
    missing = count * size - length
    a, u = (F.pad(x, (0, 0, 0, missing)).view(batch, count, size, width) for x in (a, u))
    h, carried = torch.empty_like(u), torch.empty_like(u)  # from a zero start; what a unit at the start becomes
    h[:, :, 0], carried[:, :, 0] = u[:, :, 0], a[:, :, 0]
    for t in range(1, size):
        h[:, :, t] = torch.addcmul(u[:, :, t], a[:, :, t], h[:, :, t - 1])
        torch.mul(carried[:, :, t - 1], a[:, :, t], out=carried[:, :, t])
    entering = [state]
    for block in range(count - 1):
        entering.append(torch.addcmul(h[:, block, -1], carried[:, block, -1], entering[-1]))
    h.addcmul_(carried, torch.stack(entering, 1)[:, :, None])
    return h.view(batch, count * size, width)[:, :length]
