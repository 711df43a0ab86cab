"""Softmax attention over chosen keys: the keys are gathered and multiplied, nothing else is.

Each function takes the :class:`~plait.runtime.call.Call` and :class:`~plait.runtime.store.Keys`, returns
``(B, H, T, Dv)`` and adds its exact number of pairs to the meter. With ``call.reference`` the same selection is
computed as a boolean mask over all keys: slow, simple, and what the gathered form is held to.

Query heads of a group share their kv head's keys, which are never repeated in memory.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from plait.runtime import compiled
from plait.runtime.call import Call, Scoring
from plait.runtime.store import Keys

#: Most numbers in one gathered block of keys or of explicit scores; larger work is done in parts.
ENTRIES = 2**22
#: Fewest queries of a block, so that a narrow window does not end in many small products.
MIN_BLOCK = 64
#: Most numbers in a block that is written and read again at once, so that it stays in a processor's cache.
CACHED = 2**20


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
    if length > 1 and window is None and compiled.serves(call, keys):
        return compiled.everything(call, keys)
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
    if compiled.serves(call, keys):
        return compiled.chosen(call, keys, index, valid, block)
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


def packs(call: Call, keys: Keys) -> bool:
    """Whether :func:`packed` and :func:`paged` can serve a call: on a CPU, where heads may be taken one by one."""
    return compiled.simple(call, keys) and call.q.device.type == "cpu"


def packed(call: Call, keys: Keys, seen: Iterable[Tensor], block: int) -> Tensor:
    """Causal attention of blocks of queries, each query head over its own number of keys.

    A head's keys lie without gaps, the block's own last: nothing is computed in vain, and one triangle masks all.

    Args:
        call: queries of rows without padding; see :func:`packs`.
        keys: of every token seen.
        seen: for each block ``(B, H, E)`` bool, E the position after its last query: the keys that its queries see
            if they are not later; True at the block's own.
        block: queries per block; the last may be shorter.
    """
    if compiled.serves(call, keys):
        return compiled.packed(call, keys, seen, block)
    batch, heads = call.q.shape[:2]
    group = heads // keys.keys.shape[1]
    triangle = _triangle(call.q, block, keys.size + block)
    outputs, first = [], 0
    for mask in seen:
        q = call.q[:, :, first : first + block]
        rows, end = q.shape[2], mask.shape[2]
        limit, pairs, fetched, o = triangle[:rows, : triangle.shape[1] - block + rows], 0, 0, []
        for row in range(batch):
            for head in range(heads):
                k, v = keys.keys[row, head // group, :end], keys.values[row, head // group, :end]
                index = mask[row, head].nonzero().flatten()
                if len(index) < end:
                    k, v = k.index_select(0, index), v.index_select(0, index)
                pairs += rows * len(index) - rows * (rows - 1) // 2
                fetched += (k.numel() + v.numel()) * k.element_size()
                one, k, v = (x[None, None] for x in (q[row, head], k, v))
                o.append(_fused_rows(one, k, v, limit[:, -len(index) :], call.scoring, None, False))
        call.count(pairs=pairs, bytes_read=fetched)
        outputs.append(torch.cat(o).view(batch, heads, rows, -1))
        first += rows
    return torch.cat(outputs, dim=2)


def paged(call: Call, keys: Keys, pages: Tensor, page: int) -> Tensor:
    """Causal attention of pages of queries over chosen pages of keys, each query head over the same number.

    Args:
        call: queries of rows without padding, the first at the beginning of a page; see :func:`packs`.
        keys: of every token seen.
        pages: ``(B, H, M, K)`` ascending, the queries' own page last.
        page: tokens of a page.
    """
    batch, heads, length = call.q.shape[:3]
    kv_heads, number, width = keys.keys.shape[1], pages.shape[2], pages.shape[3] * page
    spare = number * page - length
    unused = spare * width - spare * (spare - 1) // 2  # pairs of the queries that the last page lacks
    pairs = number * (page * width - page * (page - 1) // 2) - unused
    fetched = batch * heads * number * width * (keys.keys.shape[-1] + keys.values.shape[-1])
    call.count(pairs=batch * heads * pairs, bytes_read=fetched * keys.keys.element_size())
    if compiled.serves(call, keys):
        return compiled.paged(call, keys, pages, page)
    padded = (F.pad(x, (0, 0, 0, -keys.size % page)) for x in (keys.keys, keys.values))
    k, v = (x.reshape(-1, page * x.shape[-1]) for x in padded)
    q = F.pad(call.q, (0, 0, 0, number * page - length)).unflatten(2, (number, page))
    of_head = torch.arange(batch * heads, device=q.device).view(batch, heads, 1, 1) // (heads // kv_heads)
    index = (of_head * (k.shape[0] // (batch * kv_heads)) + pages).flatten(0, 2)
    limit, q = _triangle(q, page, width), q.flatten(0, 2)[:, None]
    step = max(1, CACHED // (width * keys.keys.shape[-1]))
    outputs = []
    for part in (slice(first, first + step) for first in range(0, len(q), step)):
        own = index[part].flatten()
        near, values = (x.index_select(0, own).view(-1, 1, width, x.shape[1] // page) for x in (k, v))
        outputs.append(_fused_rows(q[part], near, values, limit, call.scoring, None, False))
    return torch.cat(outputs).view(batch, heads, number * page, -1)[:, :, :length]


def with_sums(call: Call, keys: Keys) -> tuple[Tensor, Tensor]:
    """Causal attention over all keys, and what each key receives of it.

    Returns:
        ``(B, H, T, Dv)``, and the weights' sums over queries ``(B, H, S)`` in fp32, without gradient.
    """
    if compiled.serves(call, keys):
        return compiled.with_sums(call, keys)
    batch, heads, length = call.q.shape[:3]
    kv_heads = keys.keys.shape[1]
    if kv_heads > 1 and heads * length * keys.size > CACHED:
        each = [torch.tensor([head], device=call.q.device) for head in range(kv_heads)]
        o, received = zip(*(with_sums(call.heads(head), keys.heads(head)) for head in each), strict=True)
        return torch.cat(o, dim=1), torch.cat(received, dim=1)
    step = max(1, CACHED // (batch * heads * keys.size))
    outputs, sums = [], call.q.new_zeros(batch, heads, keys.size, dtype=_precise(call.q))
    for first in range(0, length, step):
        part = call.part(first, min(first + step, length))
        near = keys
        if keys.positions is None and keys.lengths is None:  # keys after the last of these queries do nothing
            end = int(part.positions.max()) + 1
            near = Keys(keys.keys[:, :, :end], keys.values[:, :, :end])
        weights, pairs = _weights(part, near, part.q, part.positions, part.real)
        call.count(pairs=pairs, bytes_read=_bytes(near))
        sums[..., : near.size] += weights.detach().sum(2)
        folded = weights.to(near.values.dtype).reshape(batch, near.values.shape[1], -1, near.size)
        outputs.append((folded @ near.values).view(batch, heads, weights.shape[2], -1))
    return torch.cat(outputs, dim=2), sums


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
    weights, pairs = _weights(call, keys, q, positions, real)
    call.count(index_pairs=pairs)
    return weights


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


def _weights(call: Call, keys: Keys, q: Tensor, positions: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention weights ``(B, H, W, S)`` of queries at ``positions``, and the number of pairs."""
    logits = _logits(call, q, keys)
    if keys.positions is None and keys.lengths is None and real is None and call.scoring.sink_logits is None:
        first = int(positions.min()) + 1  # the keys before it are seen by all
        later = torch.arange(first, keys.size, device=q.device) > positions[:, None, :, None]
        logits[..., first:].masked_fill_(later, float("-inf"))
        return logits.softmax(-1), (positions + 1).sum() * q.shape[1]
    mask = _visible(positions[:, None, :, None], keys.places()[:, :, None, :], None, 0)
    mask = mask if real is None else mask & real[:, None, :, None]
    mask = mask.expand(q.shape[0], keys.keys.shape[1], -1, -1).repeat_interleave(q.shape[1] // keys.keys.shape[1], 1)
    return _softmax(logits, mask, call.scoring.sink_logits), mask.sum()


def _triangle(like: Tensor, rows: int, width: int) -> Tensor:
    """``(rows, width)`` to be added to logits: row i does not see the last ``rows - 1 - i`` keys."""
    return like.new_full((rows, width), float("-inf")).triu(width - rows + 1)


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
    fits = ENTRIES // (heads * width)
    # a block of a window's quarter scores a quarter more than the window
    return max(MIN_BLOCK, min(-(-width // 4), fits) if width < size else fits)


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
    k = keys.keys.flatten(0, 1)
    folded = q.reshape(len(k), -1, q.shape[-1])  # a kv head's query heads are rows of one product
    logits = torch.baddbmm(q.new_zeros(()), folded, k.mT, beta=0, alpha=call.scoring.scale)
    return _limited(logits.to(_precise(q)), call.scoring).view(*q.shape[:3], keys.size)


def _capped(products: Tensor, scoring: Scoring) -> Tensor:
    return _limited(products.to(_precise(products)) * scoring.scale, scoring)


def _limited(logits: Tensor, scoring: Scoring) -> Tensor:
    return logits if scoring.softcap is None else torch.tanh(logits / scoring.softcap) * scoring.softcap


def _precise(x: Tensor) -> torch.dtype:
    """The type of logits and weights: fp32, or fp64 where ``x`` is."""
    return torch.promote_types(x.dtype, torch.float32)


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
