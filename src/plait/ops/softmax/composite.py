"""Outputs through ``scaled_dot_product_attention``: what compilers, exporters and transforms of PyTorch see into.

PyTorch picks a fused kernel for the device. Where it has no argument for what is visible, blocks of queries take a
mask over the keys that some of them see, so that no mask has an entry for every pair.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from plait.ops.softmax import dense
from plait.ops.softmax.rows import Rows, slots, taken
from plait.ops.visibility import Ranges, Window

#: Fewest queries of a block, so that a narrow window does not end in many small products.
QUERIES = 64
#: Queries up to which one mask for all of them is cheaper than a call for each row or piece.
FEW = 256
#: Entries of the largest mask.
ENTRIES = 2**24


def whole(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Tensor:
    """Attention over every key, or causal with as many keys as queries.

    Args:
        q: ``(B, H, T, D)``.
        k, v: ``(B, N, S, D)`` and ``(B, N, S, Dv)``.
        causal: whether later keys are hidden.
        scale: factor on the scores.

    Returns:
        ``(B, H, T, Dv)``.
    """
    return _fused(q, k, v, None, causal, scale)


def by_blocks(q: Tensor, k: Tensor, v: Tensor, rows: Rows, scale: float, sink_logits: Tensor | None) -> Tensor:
    """Attention over what ``rows`` show, without documents; finite and of no meaning at padding.

    Args:
        q, k, v, scale: as for :func:`whole`.
        rows: slots of queries and keys.
        sink_logits: ``(H,)`` or ``(H, m)`` terms of each head's denominator without a value, or None.
    """
    outputs = []
    for first, last, ranges in _blocks(rows, q.shape, k.shape):
        keys = slots(ranges, q.device)
        queries = torch.arange(rows.first + first, rows.first + last, device=q.device)
        mask = rows.mask(queries, keys)
        near = q if last - first == q.shape[2] else q[:, :, first:last], taken(k, ranges), taken(v, ranges)
        if sink_logits is None:
            if rows.starts is not None:  # a row of the mask without any key would be NaN in some kernels
                mask = mask | (queries[:, None] == keys)
            outputs.append(_fused(*near, mask, False, scale))
        else:
            o, lse = dense.attention(*near, mask, scale, None, None)
            outputs.append((o * dense.share(lse, sink_logits)[..., None]).to(v.dtype))
    if not outputs:
        return v.new_empty(*q.shape[:3], v.shape[3])
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)


def symbolic(*sizes: object) -> bool:
    """Whether a size stands for any number, in a program that is being exported."""
    return any(isinstance(size, torch.SymInt) for size in sizes)


def _blocks(rows: Rows, q: torch.Size, k: torch.Size) -> Iterator[tuple[int, int, Ranges]]:
    """Blocks of queries: first and last + 1, and the slots of keys that some of them see, whatever the padding."""
    batch, length, stored = q[0], q[2], k[2]
    seen = rows.visibility
    if symbolic(length, stored):  # a program for any length has one block: a loop would fix their number
        yield 0, length, [(0, stored)]
        return
    fits = ENTRIES // (stored * (1 if rows.starts is None else batch))
    size = max(QUERIES, min(fits, seen.window) if isinstance(seen, Window) else fits)
    for first in range(0, length, size):
        last = min(first + size, length)
        if seen.shifts or rows.starts is None:
            yield first, last, seen.ranges(rows.first + first, rows.first + last, stored)
        else:  # a pattern that counts from each row's start
            yield first, last, [(0, rows.first + last if seen.causal else stored)]


def _fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    width, values = q.shape[3], v.shape[3]
    if q.is_cpu and width != values:
        # the fused kernel for CPUs knows one width: for two, PyTorch turns to a whole matrix of scores
        q, k, v = (F.pad(x, (0, max(width, values) - x.shape[3])) for x in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=grouped)
    return o if values >= width else o[..., :values]
