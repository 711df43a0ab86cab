"""Softmax attention by blocks of queries against the keys that they see; the backward makes each block's scores anew.

Memory is that of the inputs and of one block: no matrix over all queries and keys exists, in training or outside.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from plait.ops.first_order import first_order
from plait.ops.softmax.rows import Rows, slots, taken
from plait.ops.visibility import Ranges

#: Queries of a block: wide enough for quick products, narrow enough that a window is not read many times over.
_BLOCK = 64


def attention(
    q: Tensor, k: Tensor, v: Tensor, rows: Rows, scale: float, softcap: float | None, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As :func:`plait.ops.softmax.dense.attention`, with ``rows`` in place of a mask."""
    return _Attention.apply(q, k, v, bias, rows, scale, softcap)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        rows: Rows,
        scale: float,
        softcap: float | None,
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(q.dtype, torch.float32)
        o = v.new_empty(*q.shape[:3], v.shape[3])
        lse = torch.empty(q.shape[:3], dtype=dtype, device=q.device)
        for x, y, ranges in rows.blocks(q.shape[2], k.shape[2], _BLOCK):
            scores, _ = _scores(q[:, :, x:y], taken(k, ranges), bias, rows, x, y, ranges, scale, softcap)
            sums = _log_sum(scores)
            weights = _weights(scores, sums)
            lse[:, :, x:y] = sums
            o[:, :, x:y] = _of_heads(_by_owner(weights, k) @ taken(v, ranges).to(dtype), y - x).to(v.dtype)
        ctx.save_for_backward(q, k, v, bias, o, lse)
        ctx.rows, ctx.scale, ctx.softcap = rows, scale, softcap
        ctx.set_materialize_grads(False)
        return o, lse

    @staticmethod
    @first_order('The torch backend of "attention"')
    def backward(ctx: Any, d_o: Tensor | None, d_lse: Tensor | None) -> tuple[Any, ...]:
        q, k, v, bias, o, lse = ctx.saved_tensors
        d_o = torch.zeros_like(o) if d_o is None else d_o
        wanted = bias if ctx.needs_input_grad[3] else None
        found = gradients(q, k, v, bias, o, lse, d_o, d_lse, ctx.rows, ctx.scale, ctx.softcap, d_bias_of=wanted)
        return *found, None, None, None


def gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    o: Tensor,
    lse: Tensor,
    d_o: Tensor,
    d_lse: Tensor | None,
    rows: Rows,
    scale: float,
    softcap: float | None,
    *,
    d_bias_of: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of q, k, v and, where it is given once more, the bias; ``o`` and ``lse`` may be over further keys."""
    dtype = lse.dtype
    d_q = torch.empty_like(q)
    d_k, d_v = (torch.zeros(x.shape, dtype=dtype, device=x.device) for x in (k, v))
    d_bias = None if d_bias_of is None else torch.zeros_like(d_bias_of, dtype=dtype)
    for x, y, ranges in rows.blocks(q.shape[2], k.shape[2], _BLOCK):
        keys, values = taken(k, ranges).to(dtype), taken(v, ranges).to(dtype)
        scores, slope = _scores(q[:, :, x:y], keys, bias, rows, x, y, ranges, scale, softcap)
        weights = _by_owner(_weights(scores, lse[:, :, x:y]), k)
        given = _by_owner(d_o[:, :, x:y].to(dtype), k)
        _add(d_v, ranges, weights.mT @ given)
        rest = (d_o[:, :, x:y].to(dtype) * o[:, :, x:y].to(dtype)).sum(-1, keepdim=True)
        if d_lse is not None:
            rest = rest - d_lse[:, :, x:y, None]
        d_scores = weights * (given @ values.mT - _by_owner(rest, k))
        if d_bias is not None:
            _add_bias(d_bias, _of_heads(d_scores, y - x), x, y, ranges)
        if slope is not None:
            d_scores = d_scores * _by_owner(slope, k)
        d_q[:, :, x:y] = (_of_heads(d_scores @ keys, y - x) * scale).to(q.dtype)
        _add(d_k, ranges, d_scores.mT @ (_by_owner(q[:, :, x:y].to(dtype), k) * scale))
    d_bias = None if d_bias is None else d_bias.to(d_bias_of.dtype)  # type: ignore[union-attr]
    return d_q, d_k.to(k.dtype), d_v.to(v.dtype), d_bias


def _by_owner(x: Tensor, k: Tensor) -> Tensor:
    """``(B, H, n, C)`` as ``(B, N, (H / N) n, C)``: the queries of a key head in one matrix."""
    batch, heads, count, width = x.shape
    return x.reshape(batch, k.shape[1], heads // k.shape[1] * count, width)


def _of_heads(x: Tensor, count: int) -> Tensor:
    """The way back."""
    batch, owners, together, width = x.shape
    return x.reshape(batch, owners * together // count, count, width)


def _scores(
    q: Tensor,
    keys: Tensor,
    bias: Tensor | None,
    rows: Rows,
    x: int,
    y: int,
    ranges: Ranges,
    scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor | None]:
    """Scores ``(B, H, n, K)`` of a block, minus infinity where nothing is seen; and the slope of the cap."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    scores = _of_heads(_by_owner(q.to(dtype) * scale, keys) @ keys.to(dtype).mT, y - x)
    slope = None
    if softcap is not None:
        bent = torch.tanh(scores / softcap)
        scores, slope = softcap * bent, 1 - bent * bent
    if bias is not None:
        part = bias if bias.shape[2] == 1 else bias[:, :, x:y]
        scores = scores + (part if bias.shape[3] == 1 else part[..., slots(ranges, q.device)])
    queries = torch.arange(rows.first + x, rows.first + y, device=q.device)
    return scores.masked_fill_(~rows.mask(queries, slots(ranges, q.device)), float("-inf")), slope


def _log_sum(scores: Tensor) -> Tensor:
    """``logsumexp`` over the last axis, minus infinity for rows without keys."""
    if not scores.shape[-1]:
        return scores.new_full(scores.shape[:-1], float("-inf"))
    return scores.logsumexp(-1)


def _weights(scores: Tensor, lse: Tensor) -> Tensor:
    """``exp(scores - lse)``, zeros in rows without keys."""
    return (scores - lse.masked_fill(lse == float("-inf"), 0)[..., None]).exp_()


def _add(to: Tensor, ranges: Ranges, x: Tensor) -> None:
    """Add ``(B, N, K, D)`` at the slots of some ranges."""
    sizes = [high - low for low, high in ranges]
    for (low, high), part in zip(ranges, x.split(sizes, dim=2) if sizes else (), strict=True):
        to[:, :, low:high] += part


def _add_bias(to: Tensor, x: Tensor, first: int, last: int, ranges: Ranges) -> None:
    """Add the gradient of scores ``(B, H, n, K)`` to that of a bias, summed over the axes that it broadcasts."""
    axes = [axis for axis in (0, 1, 2, 3) if to.shape[axis] == 1]
    x = x.sum(axes, keepdim=True) if axes else x
    part = to if to.shape[2] == 1 else to[:, :, first:last]
    if to.shape[3] == 1:
        part += x
    else:
        part[..., slots(ranges, to.device)] += x
