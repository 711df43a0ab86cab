"""Softmax attention over chosen keys: the keys are gathered and multiplied, nothing else is.

Each function takes the :class:`~plait.policies.call.Call` and :class:`~plait.policies.store.Keys`, returns
``(B, H, T, Dv)`` and adds its exact number of pairs to the meter. With ``call.reference`` the same selection is
computed as a boolean mask over all keys: slow, simple, and what the gathered form is held to.

Query heads of a group share their kv head's keys, which are never repeated in memory.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from plait.policies.call import Call, Scoring
from plait.policies.store import Keys

#: Most numbers in one gathered block of keys or of explicit scores; larger work is done in parts.
ENTRIES = 2**22
#: Fewest queries of a block, so that a narrow window does not end in many small products.
MIN_BLOCK = 64


def band(call: Call, keys: Keys, *, window: int | None = None, sinks: int = 0) -> Tensor:
    """Causal attention over the last ``window`` positions, the query's own included, and the first ``sinks``.

    Args:
        call: queries at ``call.positions``.
        keys: the new tokens' own included.
        window: None for every position up to the query's.
        sinks: positions that are always seen.
    """
    if call.reference:
        return masked(call, keys, band_mask(call, keys, window, sinks))
    length, size = call.q.shape[2], keys.size
    aligned = call.start is not None and keys.lengths is None
    whole = keys.positions is None
    if aligned and whole and window is not None and window < size and length == 1:
        recent = slice(max(sinks, size - window), size)
        keys, window = keys.slots([slice(0, sinks), recent] if recent.start > sinks else [slice(0, size)]), None
    fused = whole and length == size and (window or size) >= size and call.scoring.plain
    if aligned and ((length == 1 and window is None) or fused):
        _count(call, keys, keys.size if length == 1 else length * (length + 1) // 2)
        return _product(call, call.q, keys, None, causal=length > 1)
    outputs = []
    step = _block(call, size, window)
    for first in range(0, length, step):
        last = min(first + step, length)
        positions = call.positions[:, first:last]
        near = keys.slots(_near(call, keys, first, last, window, sinks))
        mask = _visible(positions[:, None, :, None], near.places()[:, :, None, :], window, sinks)
        real = call.real
        if real is not None:
            rows = real[:, None, first:last, None]
            counted = mask & rows
            mask = mask | ~rows  # a padded query sees anything, so that its unused output is finite
        else:
            counted = mask
        repeats = call.q.shape[0] * call.q.shape[1] // (counted.shape[0] * counted.shape[1])
        call.count(pairs=counted.sum() * repeats, bytes_read=_bytes(near))
        outputs.append(_product(call, call.q[:, :, first:last], near, mask))
    return torch.cat(outputs, dim=2)


def chosen(call: Call, keys: Keys, index: Tensor, valid: Tensor | None = None, *, block: int = 1) -> Tensor:
    """Causal attention over chosen slots: queries of one block share them.

    Args:
        call: T queries; query t belongs to block ``t // block``.
        keys: the new tokens' own included.
        index: ``(B, X, M, K)`` slots, each at most once among the valid ones; X is the number of kv heads, or of
            query heads where they choose for themselves. Every query must find at least one visible key.
        valid: ``(B, X, M, K)`` bool; None for all.
        block: queries per block, ``M = ceil(T / block)``.
    """
    if call.reference:
        return masked(call, keys, chosen_mask(call, keys, index, valid, block))
    batch, heads, length = call.q.shape[:3]
    owners, blocks, width = index.shape[1:]
    group, spare = heads // owners, blocks * block - length
    q = F.pad(call.q, (0, 0, 0, spare)).view(batch, owners, group, blocks, block, -1)
    positions = F.pad(call.positions, (0, spare)).view(batch, 1, blocks, block, 1)
    real = torch.arange(blocks * block, device=q.device) < (length if call.lengths is None else call.lengths[:, None])
    real = real.expand(batch, -1).view(batch, 1, blocks, block, 1)
    places = keys.places().expand(batch, keys.keys.shape[1], -1)
    per_owner = owners // keys.keys.shape[1]
    heads_of = torch.arange(owners, device=q.device) // per_owner
    base = (torch.arange(batch, device=q.device)[:, None] * keys.keys.shape[1] + heads_of) * keys.size
    step = max(1, ENTRIES // (batch * owners * width * max(keys.keys.shape[-1], block)))
    outputs = []
    for first in range(0, blocks, step):
        part = slice(first, first + step)
        flat = base[:, :, None, None] + index[:, :, part]
        picked = Keys(
            *(x.flatten(0, 2).index_select(0, flat.flatten()).view(*flat.shape, -1) for x in (keys.keys, keys.values))
        )
        key_places = places.flatten().index_select(0, flat.flatten()).view(flat.shape)
        mask = key_places[:, :, :, None] <= positions[:, :, part]
        if valid is not None:
            mask = mask & valid[:, :, part, None]
        counted = mask & real[:, :, part]
        call.count(pairs=counted.sum() * group, bytes_read=_bytes(picked))
        mask = mask | ~real[:, :, part]
        o = _fused(
            q[:, :, :, part].transpose(2, 3).flatten(0, 2),
            picked.keys.flatten(0, 2)[:, None],
            picked.values.flatten(0, 2)[:, None],
            mask.flatten(0, 2)[:, None],
            call.scoring,
            _sinks(call, owners, group, picked.keys.shape[2], batch),
        )
        outputs.append(o.view(batch, owners, -1, group, block, o.shape[-1]).transpose(2, 3))
    return torch.cat(outputs, dim=3).reshape(batch, heads, blocks * block, -1)[:, :, :length]


def masked(call: Call, keys: Keys, mask: Tensor) -> Tensor:
    """The definition: dense scores, ``mask`` ``(B, H, T, S)``, softmax in fp32, product."""
    real = call.real
    if real is not None:
        mask = mask & real[:, None, :, None]
    call.count(pairs=mask.sum(), bytes_read=_bytes(keys))
    weights = _softmax(_logits(call, call.q, keys), mask, call.scoring.sink_logits)
    values = keys.values.repeat_interleave(call.q.shape[1] // keys.values.shape[1], dim=1)
    return weights.to(values.dtype) @ values


def probabilities(call: Call, keys: Keys, q: Tensor, positions: Tensor, real: Tensor | None = None) -> Tensor:
    """Attention weights of some queries, for choosing keys.

    Args:
        call: for the scoring and the meter.
        keys: ``(B, G, S, D)``.
        q: ``(B, H, W, D)``.
        positions: ``(B, W)``.
        real: ``(B, W)`` bool; rows of other queries are zero.

    Returns:
        ``(B, H, W, S)`` in fp32.
    """
    mask = _visible(positions[:, None, :, None], keys.places()[:, :, None, :], None, 0)
    mask = mask if real is None else mask & real[:, None, :, None]
    mask = mask.expand(q.shape[0], keys.keys.shape[1], -1, -1).repeat_interleave(q.shape[1] // keys.keys.shape[1], 1)
    call.count(index_pairs=mask.sum())
    return _softmax(_logits(call, q, keys), mask, call.scoring.sink_logits)


def band_mask(call: Call, keys: Keys, window: int | None, sinks: int) -> Tensor:
    """What :func:`band` sees, ``(B, H, T, S)`` bool."""
    mask = _visible(call.positions[:, None, :, None], keys.places()[:, :, None, :], window, sinks)
    batch, heads, kv_heads = *call.q.shape[:2], keys.keys.shape[1]
    return mask.expand(batch, kv_heads, -1, -1).repeat_interleave(heads // kv_heads, dim=1)


def chosen_mask(call: Call, keys: Keys, index: Tensor, valid: Tensor | None, block: int) -> Tensor:
    """What :func:`chosen` sees, ``(B, H, T, S)`` bool."""
    if valid is not None:
        index = index.masked_fill(~valid, keys.size)
    seen = torch.zeros(*index.shape[:3], keys.size + 1, dtype=torch.bool, device=index.device)
    seen = seen.scatter(3, index, True)[..., :-1]
    seen = seen.repeat_interleave(block, dim=2)[:, :, : call.q.shape[2]]
    seen = seen.repeat_interleave(call.q.shape[1] // seen.shape[1], dim=1)
    return seen & band_mask(call, keys, None, 0)


def _visible(queries: Tensor, keys: Tensor, window: int | None, sinks: int) -> Tensor:
    """Which key positions a query position sees."""
    mask = keys <= queries
    if window is not None:
        near = keys > queries - window
        mask = mask & (near | (keys < sinks) if sinks else near)
    return mask


def _near(call: Call, keys: Keys, first: int, last: int, window: int | None, sinks: int) -> list[slice]:
    """Slots that any query of a block can see, as one or two ranges."""
    low, high = int(call.positions[:, first].min()), int(call.positions[:, last - 1].max())
    low = 0 if window is None else max(0, low - window + 1)
    if keys.positions is None:
        begin, end, lead = low, min(keys.size, high + 1), sinks
    else:
        places = keys.places()
        begin, end = int((places < low).sum(-1).min()), int((places <= high).sum(-1).max())
        lead = int((places < sinks).sum(-1).max())
    return [slice(0, lead), slice(begin, end)] if 0 < lead < begin else [slice(0 if lead else begin, end)]


def _block(call: Call, size: int, window: int | None) -> int:
    """Queries that are processed together, so that mask and scores stay small."""
    width = min(size, window or size)
    heads = call.q.shape[0] * (1 if call.scoring.plain and call.lengths is None else call.q.shape[1])
    return max(MIN_BLOCK, min(width, ENTRIES // (heads * width)) if width < size else ENTRIES // (heads * width))


def _product(call: Call, q: Tensor, keys: Keys, mask: Tensor | None, causal: bool = False) -> Tensor:
    """``q`` ``(B, H, t, D)`` with all ``keys``; ``mask`` ``(B or 1, G or 1, t, S)``."""
    batch, heads, length = q.shape[:3]
    kv_heads = keys.keys.shape[1]
    if mask is not None and mask.shape[:2] != (1, 1):
        mask = mask.expand(batch, kv_heads, -1, -1).flatten(0, 1)[:, None]
    o = _fused(
        q.reshape(batch * kv_heads, heads // kv_heads, length, -1),
        keys.keys.flatten(0, 1)[:, None],
        keys.values.flatten(0, 1)[:, None],
        mask,
        call.scoring,
        _sinks(call, kv_heads, heads // kv_heads, 1, batch),
        causal,
    )
    return o.reshape(batch, heads, length, -1)


def _sinks(call: Call, owners: int, group: int, blocks: int, batch: int) -> Tensor | None:
    """Logits of the sinks laid out as the products' batch, ``(B X m, group, 1, 1)``."""
    sinks = call.scoring.sink_logits
    if sinks is None:
        return None
    return sinks.view(1, owners, 1, group).expand(batch, owners, blocks, group).reshape(-1, group, 1, 1)


def _fused(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scoring: Scoring, sinks: Tensor | None, causal: bool = False
) -> Tensor:
    """``q`` ``(N, r, t, D)``, ``k, v`` ``(N, 1, K, D)`` shared by the r heads, ``mask`` ``(N or 1, 1, t, K)``."""
    heads, length = q.shape[1:3]
    if length == 1 and sinks is None:  # one product per kv head: its query heads are the rows
        o = _fused_rows(q.transpose(1, 2), k, v, mask, scoring, None, False)
        return o.transpose(1, 2)
    return _fused_rows(q, k.expand(-1, heads, -1, -1), v.expand(-1, heads, -1, -1), mask, scoring, sinks, causal)


def _fused_rows(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scoring: Scoring, sinks: Tensor | None, causal: bool
) -> Tensor:
    if scoring.plain:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scoring.scale)
    if causal:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    return _softmax(_capped(q @ k.mT, scoring), mask, sinks).to(v.dtype) @ v


def _logits(call: Call, q: Tensor, keys: Keys) -> Tensor:
    """Dense logits ``(B, H, t, S)``."""
    repeated = keys.keys.repeat_interleave(q.shape[1] // keys.keys.shape[1], dim=1)
    return _capped(q @ repeated.mT, call.scoring)


def _capped(products: Tensor, scoring: Scoring) -> Tensor:
    logits = products.to(torch.promote_types(products.dtype, torch.float32)) * scoring.scale
    return logits if scoring.softcap is None else torch.tanh(logits / scoring.softcap) * scoring.softcap


def _softmax(logits: Tensor, mask: Tensor | None, sinks: Tensor | None) -> Tensor:
    """Softmax over visible keys; a row that sees nothing is zero."""
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf"))
    if sinks is not None:
        column = sinks if sinks.dim() == 4 else sinks.view(1, -1, 1, 1)
        logits = torch.cat([logits, column.to(logits.dtype).expand(*logits.shape[:-1], 1)], dim=-1)
    largest = logits.amax(-1, keepdim=True).clamp(min=torch.finfo(logits.dtype).min)
    weights = (logits - largest).exp()
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(logits.dtype).tiny)
    return weights if sinks is None else weights[..., :-1]


def _count(call: Call, keys: Keys, pairs_of_head: int) -> None:
    call.count(pairs=pairs_of_head * call.q.shape[0] * call.q.shape[1], bytes_read=_bytes(keys))


def _bytes(keys: Keys) -> int:
    return sum(x.numel() * x.element_size() for x in (keys.keys, keys.values))


__all__ = ["band", "band_mask", "chosen", "chosen_mask", "masked", "probabilities"]
