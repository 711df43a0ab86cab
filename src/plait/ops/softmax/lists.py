"""Softmax attention of blocks of queries over listed pages of keys, in PyTorch.

Pages are gathered, some blocks of queries at a time, and once more in the backward: memory is that of the inputs and of
the blocks at work.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from plait.ops.first_order import first_order
from plait.ops.visibility import Lists

#: Entries of the largest gathered tensor.
_ENTRIES = 2**21


def attention(
    q: Tensor, k: Tensor, v: Tensor, lists: Lists, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """As :func:`plait.ops.softmax.dense.attention`, with lists in place of a mask.

    Their owners divide the query heads, and the key heads divide the owners.
    """
    return _Attention.apply(q, k, v, lists, scale, softcap)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, lists: Lists, scale: float, softcap: float | None
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(q.dtype, torch.float32)
        o = v.new_empty(*q.shape[:3], v.shape[3])
        lse = torch.empty(q.shape[:3], dtype=dtype, device=q.device)
        for part in _parts(q, k, v, lists):
            scores, _ = part.scores(part.queries(q, dtype) * scale, part.keys(k, dtype), softcap)
            sums = scores.logsumexp(-1) if scores.shape[-1] else scores.new_full(scores.shape[:-1], float("-inf"))
            part.put(o, _weights(scores, sums) @ part.keys(v, dtype))
            part.put(lse[..., None], sums[..., None])
        ctx.save_for_backward(q, k, v, o, lse)
        ctx.lists, ctx.scale, ctx.softcap = lists, scale, softcap
        ctx.set_materialize_grads(False)
        return o, lse

    @staticmethod
    @first_order('The torch backend of "sparse_attention"')
    def backward(ctx: Any, d_o: Tensor | None, d_lse: Tensor | None) -> tuple[Any, ...]:
        q, k, v, o, lse = ctx.saved_tensors
        dtype = lse.dtype
        d_o = torch.zeros_like(o) if d_o is None else d_o
        rest = (d_o.to(dtype) * o.to(dtype)).sum(-1) - (0 if d_lse is None else d_lse)
        d_q = torch.empty_like(q)
        d_k, d_v = (torch.zeros(x.shape, dtype=dtype, device=x.device) for x in (k, v))
        for part in _parts(q, k, v, ctx.lists):
            queries, keys = part.queries(q, dtype) * ctx.scale, part.keys(k, dtype)
            scores, slope = part.scores(queries, keys, ctx.softcap)
            weights = _weights(scores, part.queries(lse[..., None], dtype)[..., 0])
            given = part.queries(d_o, dtype)
            part.add(d_v, weights.mT @ given)
            d_scores = weights * (given @ part.keys(v, dtype).mT - part.queries(rest[..., None], dtype))
            if slope is not None:
                d_scores = d_scores * slope
            part.put(d_q, d_scores @ keys * ctx.scale)
            part.add(d_k, d_scores.mT @ queries)
        return d_q, d_k.to(k.dtype), d_v.to(v.dtype), None, None, None


def _weights(scores: Tensor, lse: Tensor) -> Tensor:
    return (scores - lse.masked_fill(lse == float("-inf"), 0)[..., None]).exp()


class _Part:
    """Some blocks of queries, ``m`` of them from number ``low`` on, with the keys of their lists.

    Matrices are ``(B, X, m, rows, columns)``, a row for each query of each head of the owner.
    """

    def __init__(self, q: Tensor, k: Tensor, lists: Lists, low: int, high: int) -> None:
        index, counts = lists.index[:, :, low:high], lists.counts[:, :, low:high]
        batch, owners, blocks, most = index.shape
        self.block, self.owners, self.blocks = lists.block, owners, blocks
        self.first, self.last = low * lists.block, min(high * lists.block, q.shape[2])
        pages = index * lists.page
        keys = (pages[..., None] + torch.arange(lists.page, device=q.device)).flatten(3)
        counted = (torch.arange(most, device=q.device) < counts[..., None]).repeat_interleave(lists.page, dim=3)
        query = lists.first + self.first + torch.arange(blocks * lists.block, device=q.device)
        query = query.view(blocks, 1, lists.block).expand(-1, q.shape[1] // owners, -1).flatten(1)
        limit = torch.where(counted, keys, keys.new_full((), torch.iinfo(torch.int64).max))
        self.mask = limit[..., None, :] <= query[..., None]
        head = torch.arange(owners, device=q.device) // (owners // k.shape[1])
        row = torch.arange(batch, device=q.device)[:, None] * k.shape[1] + head
        self.flat = row[..., None, None] * k.shape[2] + keys.clamp(max=k.shape[2] - 1)

    def queries(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """``(B, H, T, C)`` -> the rows of these blocks; zeros behind the last query."""
        x = x[:, :, self.first : self.last].to(dtype)
        missing = self.blocks * self.block - x.shape[2]
        x = torch.nn.functional.pad(x, (0, 0, 0, missing)) if missing else x
        x = x.reshape(x.shape[0], self.owners, -1, self.blocks, self.block, x.shape[3])
        return x.transpose(2, 3).flatten(3, 4)

    def put(self, to: Tensor, x: Tensor) -> None:
        """Write rows to their places in ``(B, H, T, C)``."""
        batch, owners, blocks, rows, width = x.shape
        x = x.view(batch, owners, blocks, rows // self.block, self.block, width).transpose(2, 3)
        x = x.reshape(batch, -1, blocks * self.block, width)
        to[:, :, self.first : self.last] = x[:, :, : self.last - self.first].to(to.dtype)

    def keys(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """``(B, N, S, C)`` -> the keys of these lists ``(B, X, m, K page, C)``."""
        return x.flatten(0, 2)[self.flat].to(dtype)

    def add(self, to: Tensor, x: Tensor) -> None:
        """Add what listed keys receive to ``(B, N, S, C)``, which is contiguous."""
        to.view(-1, to.shape[3]).index_add_(0, self.flat.flatten(), x.flatten(0, 3))

    def scores(self, queries: Tensor, keys: Tensor, softcap: float | None) -> tuple[Tensor, Tensor | None]:
        """Scores, minus infinity where nothing is seen, and the slope of the cap."""
        scores, slope = queries @ keys.mT, None
        if softcap is not None:
            bent = torch.tanh(scores / softcap)
            scores, slope = softcap * bent, 1 - bent * bent
        return scores.masked_fill_(~self.mask, float("-inf")), slope


def _parts(q: Tensor, k: Tensor, v: Tensor, lists: Lists) -> Iterator[_Part]:
    batch, owners, blocks, most = lists.index.shape
    rows = q.shape[1] // owners * lists.block
    of_block = batch * owners * max(1, most) * lists.page * max(rows, k.shape[3], v.shape[3])
    step = max(1, _ENTRIES // of_block)
    for low in range(0, blocks, step):
        yield _Part(q, k, lists, low, min(low + step, blocks))
