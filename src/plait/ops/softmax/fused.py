"""Full and causal attention through PyTorch's fused kernel for CPUs, with the log of each query's sum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from plait.ops.first_order import first_order

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """As :func:`plait.ops.softmax.dense.attention`; ``causal`` counts queries and keys from 0.

    The kernel knows one width for keys and values. The narrower of them gets channels of zeros: PyTorch itself would
    turn to a product with a whole matrix of scores.
    """
    width, values = q.shape[3], v.shape[3]
    q, k, v = (_widened(x, max(width, values)) for x in (q, k, v))
    o, lse = _Attention.apply(q, k, v, causal, scale)
    return o[..., :values], lse


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        q, k, v = map(_side_by_side, (q, k, v))
        o, lse = _forward(q, k, v, 0.0, causal, scale=scale)
        ctx.save_for_backward(q, k, v, o, lse)
        ctx.causal, ctx.scale = causal, scale
        ctx.set_materialize_grads(False)
        return o, lse

    @staticmethod
    @first_order("The fused kernel of attention")
    def backward(ctx: Any, d_o: Tensor | None, d_lse: Tensor | None) -> tuple[Any, ...]:
        q, k, v, o, lse = ctx.saved_tensors
        d_o = torch.zeros_like(o) if d_o is None else d_o
        width = v.shape[3]
        if d_lse is not None:
            # the kernel's gradient of a score is p (d_o v - d_o o): one more channel with a value of 1, an output of 0
            # and a gradient of d_lse adds p d_lse, the gradient through the log of the sum
            q, k, o = (_widened(x, width + 1) for x in (q, k, o))
            v = torch.cat([v, torch.ones_like(v[..., :1])], dim=-1)
            d_o = torch.cat([d_o, d_lse[..., None].to(d_o.dtype)], dim=-1)
        found = gradients(q, k, v, o, lse, d_o, ctx.causal, ctx.scale)
        d_q, d_k, d_v = (x[..., :width] for x in found)
        return d_q, d_k, d_v, None, None


def gradients(
    q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, d_o: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v from that of the output; ``o`` and ``lse`` may be those over further keys as well."""
    width, values = q.shape[3], v.shape[3]
    q, k, v, o, d_o = (_widened(x, max(width, values)) for x in (q, k, v, o, d_o))
    d_o, q, k, v, o = map(_side_by_side, (d_o, q, k, v, o))
    d_q, d_k, d_v = _backward(d_o, q, k, v, o, lse, 0.0, causal, scale=scale)
    return d_q[..., :width], d_k[..., :width], d_v[..., :values]


def _widened(x: Tensor, width: int) -> Tensor:
    return x if x.shape[-1] == width else F.pad(x, (0, width - x.shape[-1]))


def _side_by_side(x: Tensor) -> Tensor:
    """Channels next to each other: the kernel reads them so without asking, whatever a product or a pad has left."""
    return x if x.stride(-1) == 1 else x.contiguous(memory_format=torch.contiguous_format)
