"""Softmax attention over what a policy keeps or chooses: keys are gathered, or read where they lie; nothing else is.

Each function takes the :class:`~plait.runtime.call.Call` and :class:`~plait.runtime.store.Keys`, returns
``(B, H, T, Dv)`` and adds its exact number of pairs to the meter. With ``call.reference`` the same selection is
computed as a boolean mask over all keys: slow, simple, and what the gathered form is held to.

The softmax itself is that of :mod:`plait.ops.softmax`. The new tokens' own keys are the last that a row holds, so a
query's slot is known, whatever was forgotten before it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plait.ops.softmax import attention, attention_weights, placed_attention, sparse_attention
from plait.ops.visibility import Causal, Full, Visibility, Window
from plait.runtime import compiled
from plait.runtime.call import Call
from plait.runtime.meter import Count
from plait.runtime.store import NEVER, Keys

#: Most numbers in one block of explicit weights or indices; larger work is done in parts.
ENTRIES = 2**22
#: Most numbers in a block that is written and read again at once, so that it stays in a processor's cache.
CACHED = 2**20


def attend_band(call: Call, keys: Keys, *, window: int | None = None, sinks: int = 0) -> Tensor:
    """Causal attention over the last ``window`` positions, the query's own included, and the first ``sinks``.

    Args:
        call: queries at ``call.positions``.
        keys: the new tokens' own included.
        window: None for every position up to the query's.
        sinks: positions that are always seen.
    """
    if keys.starts is not None and (window is not None or not compiled.serves(call, keys)):
        keys = keys.padded()
    if call.reference:
        return attend_masked(call, keys, band_mask(call, keys, window, sinks))
    first = sinks if window is None else _first_slots(keys, sinks)
    if first is None:
        return _by_positions(call, keys, Window(window, sinks) if window is not None else Causal())
    if window is not None and window + first >= keys.size:
        window = None
    alike, compiles = keys.lengths is None and call.lengths is None, compiled.serves(call, keys)
    if alike and not (compiles and window is None and call.q.shape[2] > 1):  # there the kernel is quicker than SDPA
        return _by_slots(call, keys, Causal() if window is None else Window(window, first))
    if not compiles:
        return _by_positions(call, keys, Causal() if window is None else Window(window, sinks))
    _count_held(call, keys, Causal() if window is None else Window(window, first))
    return compiled.held(call, keys, window, first)[0]


def attend_pages(
    call: Call, keys: Keys, index: Tensor, counts: Tensor | None = None, *, block: int = 1, page: int = 1
) -> Tensor:
    """Causal attention over chosen pages of keys: queries of one block share them.

    Args:
        call: T queries; query t belongs to block ``t // block``.
        keys: of every token seen, the new ones included.
        index: ``(B, X, M, K)`` pages, each at most once among the counted ones; X is the number of kv heads, or of
            query heads where they choose for themselves; ``M = ceil(T / block)``.
        counts: ``(B, X, M)`` how many of the K count, the first ones; None for all.
        block: queries of a block.
        page: keys of a page.
    """
    if call.reference:
        return attend_masked(call, keys, chosen_mask(call, keys, index, counts, block, page))
    _count_chosen(call, keys, index, counts, block, page)
    scoring = call.scoring

    def attend(part: Call, held: Keys, index: Tensor, counts: Tensor | None, first: int) -> Tensor:
        return sparse_attention(
            part.q.transpose(1, 2),
            held.keys.transpose(1, 2),
            held.values.transpose(1, 2),
            index,
            counts,
            block=block,
            page=page,
            scale=scoring.scale,
            softcap=scoring.softcap,
            sink_logits=scoring.sink_logits,
            first=first,
        )[0].transpose(1, 2)

    if call.start is not None and call.lengths is None:
        return attend(call, keys, index, counts, call.start)
    outputs = []
    for row, past in enumerate(call.forward.past.tolist()):
        new = call.q.shape[2] if call.lengths is None else int(call.lengths[row])
        part = call.rows(torch.tensor([row], device=call.q.device)).part(0, new)
        blocks, mine = -(-new // block), slice(row, row + 1)
        listed = index[mine, :, :blocks], None if counts is None else counts[mine, :, :blocks]
        o = attend(part, Keys(keys.keys[mine], keys.values[mine]), *listed, past)
        outputs.append(torch.nn.functional.pad(o, (0, 0, 0, call.q.shape[2] - new)))
    return torch.cat(outputs)


def list_keys(seen: Tensor) -> tuple[Tensor, Tensor]:
    """The true entries of each row, ascending.

    Args:
        seen: ``(B, X, S)`` bool.

    Returns:
        indices ``(B, X, 1, K)`` and their numbers ``(B, X, 1)``, as :func:`attend_pages` takes them for one block.
    """
    counts = seen.sum(-1)
    width = int(counts.max())
    slots = torch.arange(seen.shape[2], device=seen.device).expand_as(seen)
    place = torch.where(seen, seen.cumsum(-1) - 1, width)  # what is not seen goes behind the end
    index = slots.new_zeros(*seen.shape[:2], width + 1).scatter_(2, place, slots)
    return index[:, :, None, :width], counts[..., None]


def attend_with_sums(call: Call, keys: Keys) -> tuple[Tensor, Tensor]:
    """Causal attention over all keys, and what each key receives of it.

    Returns:
        ``(B, H, T, Dv)``, and the weights' sums over queries ``(B, H, S)`` in fp32, without gradient.
    """
    compiles = compiled.serves(call, keys) and call.q.shape[2] > 1  # one query's weights are a small matrix
    keys = keys if compiles else keys.padded()
    if compiles:
        _count_held(call, keys, Causal())
        o, sums = compiled.held(call, keys, None, 0, sums=True)
        assert sums is not None
        return o, sums
    batch, heads, length = call.q.shape[:3]
    kv_heads = keys.keys.shape[1]
    if kv_heads > 1 and heads * length * keys.size > CACHED:
        each = [torch.tensor([head], device=call.q.device) for head in range(kv_heads)]
        parts = [attend_with_sums(call.heads(head), keys.heads(head)) for head in each]
        return torch.cat([o for o, _ in parts], dim=1), torch.cat([sums for _, sums in parts], dim=1)
    step = max(1, CACHED // (batch * heads * keys.size))
    precise = torch.promote_types(call.q.dtype, torch.float32)
    outputs, sums = [], call.q.new_zeros(batch, heads, keys.size, dtype=precise)
    for first in range(0, length, step):
        part = call.part(first, min(first + step, length))
        near = keys
        if keys.positions is None and keys.lengths is None:  # keys after the last of these queries do nothing
            end = int(part.positions.max()) + 1
            near = Keys(keys.keys[:, :, :end], keys.values[:, :, :end])
        weights, pairs = _weights(part, near, part.q, part.positions, part.real)
        call.count(pairs=pairs, bytes_read=_bytes(near, batch * kv_heads * near.size))
        sums[..., : near.size] += weights.detach().sum(2)
        folded = weights.to(near.values.dtype).reshape(batch, near.values.shape[1], -1, near.size)
        outputs.append((folded @ near.values).view(batch, heads, weights.shape[2], -1))
    return torch.cat(outputs, dim=2), sums


def attend_masked(call: Call, keys: Keys, mask: Tensor) -> Tensor:
    """The definition: dense scores, ``mask`` ``(B, H, T, S)``, softmax in fp32, product."""
    real = call.real
    if real is not None:
        mask = mask & real[:, None, :, None]
    call.count(pairs=mask.sum(), bytes_read=_bytes(keys, keys.keys[..., 0].numel()))
    weights = _matrix(call, keys, call.q, mask)
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
    """What :func:`attend_band` sees, ``(B, H, T, S)`` bool."""
    visibility = Causal() if window is None else Window(window, sinks)
    mask = visibility.sees(call.positions[:, None, :, None], keys.places()[:, :, None, :])
    batch, heads, kv_heads = *call.q.shape[:2], keys.keys.shape[1]
    return mask.expand(batch, kv_heads, -1, -1).repeat_interleave(heads // kv_heads, dim=1)


def chosen_mask(call: Call, keys: Keys, index: Tensor, counts: Tensor | None, block: int, page: int = 1) -> Tensor:
    """What :func:`attend_pages` sees, ``(B, H, T, S)`` bool."""
    pages = -(-keys.size // page)
    if counts is not None:
        index = index.masked_fill(torch.arange(index.shape[3], device=index.device) >= counts[..., None], pages)
    seen = torch.zeros(*index.shape[:3], pages + 1, dtype=torch.bool, device=index.device)
    seen = seen.scatter(3, index, True)[..., :-1].repeat_interleave(page, dim=3)[..., : keys.size]
    seen = seen.repeat_interleave(block, dim=2)[:, :, : call.q.shape[2]]
    seen = seen.repeat_interleave(call.q.shape[1] // seen.shape[1], dim=1)
    return seen & band_mask(call, keys, None, 0)


def _first_slots(keys: Keys, sinks: int) -> int | None:
    """Leading slots whose positions lie before ``sinks``, where all behind them follow without a gap; else None."""
    if keys.positions is None:
        return sinks
    places = keys.places()
    counts = (places < sinks).sum(-1)
    first = int(counts.max())
    steps = (places.diff(dim=-1) == 1) | (places[..., 1:] == NEVER)
    return first if bool((counts == first).all()) and bool(steps[..., first:].all()) else None


def _by_slots(call: Call, keys: Keys, visibility: Visibility) -> Tensor:
    """Every row and head holds as many keys: a query's slot says what it sees."""
    length, size, scoring = call.q.shape[2], keys.size, call.scoring
    first = size - length
    heads, rows = call.q.shape[1], call.q.shape[0]
    seen = visibility.ranges(first, size, size)
    fetched = sum(high - low for low, high in seen) * rows * keys.keys.shape[1]
    call.count(pairs=visibility.pairs([size], first) * rows * heads, bytes_read=_bytes(keys, fetched))
    q, k, v = call.q, keys.keys, keys.values
    if length == 1:
        k, v = (_slots(x, seen) for x in (k, v))
        visibility = Full()
    folds = length == 1 and scoring.sink_logits is None
    if folds:  # a key head's query heads are queries of one product
        q = q.unflatten(1, (k.shape[1], -1)).squeeze(3)
    o, _ = attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        visibility,
        scale=scoring.scale,
        softcap=scoring.softcap,
        sink_logits=scoring.sink_logits,
        first=None if length == 1 else first,
    )
    o = o.transpose(1, 2)
    return o.flatten(1, 2)[:, :, None] if folds else o


def _slots(x: Tensor, ranges: list[tuple[int, int]]) -> Tensor:
    """Some slots of ``(B, G, S, D)``; a view where they lie side by side."""
    parts = [x[:, :, low:high] for low, high in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _by_positions(call: Call, keys: Keys, visibility: Visibility) -> Tensor:
    """Rows and heads hold what they hold, in blocks of queries with masks."""
    places = keys.places()
    batch, heads, length = call.q.shape[:3]
    positions = call.positions.expand(batch, -1)
    pairs: Count = 0
    step = max(1, ENTRIES // (places.shape[0] * places.shape[1] * keys.size))
    for first in range(0, length, step):
        part = slice(first, first + step)
        mask = visibility.sees(positions[:, None, part, None], places[:, :, None])
        mask = mask if call.real is None else mask & call.real[:, None, part, None]
        pairs = pairs + mask.sum() * (batch * heads // (mask.shape[0] * mask.shape[1]))
    call.count(pairs=pairs, bytes_read=_bytes(keys, batch * keys.keys.shape[1] * keys.size))
    o, _ = placed_attention(
        call.q.transpose(1, 2),
        keys.keys.transpose(1, 2),
        keys.values.transpose(1, 2),
        visibility,
        positions,
        places,
        real=call.real,
        scale=call.scoring.scale,
        softcap=call.scoring.softcap,
        sink_logits=call.scoring.sink_logits,
    )
    return o.transpose(1, 2)


def _weights(call: Call, keys: Keys, q: Tensor, positions: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention weights ``(B, H, W, S)`` of queries at ``positions``, and the number of pairs."""
    heads = q.shape[1]
    if keys.positions is None and keys.lengths is None and real is None:
        first = int(positions.min()) + 1  # the keys before it are seen by all
        mask = torch.arange(first, keys.size, device=q.device) <= positions[:, None, :, None]
        return _matrix(call, keys, q, mask), (positions + 1).sum() * (heads * q.shape[0] // positions.shape[0])
    mask = keys.places()[:, :, None, :] <= positions[:, None, :, None]
    mask = mask if real is None else mask & real[:, None, :, None]
    mask = mask.expand(q.shape[0], keys.keys.shape[1], -1, -1).repeat_interleave(heads // keys.keys.shape[1], 1)
    return _matrix(call, keys, q, mask), mask.sum()


def _matrix(call: Call, keys: Keys, q: Tensor, mask: Tensor) -> Tensor:
    q, k = q.transpose(1, 2), keys.keys.transpose(1, 2)
    scoring = call.scoring
    return attention_weights(q, k, mask, scale=scoring.scale, softcap=scoring.softcap, sink_logits=scoring.sink_logits)


def _count_held(call: Call, keys: Keys, visibility: Visibility) -> None:
    """Pairs where each row and head holds its own number of keys and the row's new ones are the last."""
    held, new = keys.held(), call.q.shape[2] if call.lengths is None else call.lengths[:, None]
    slots = torch.arange(keys.size, device=held.device)
    seen = torch.nn.functional.pad(visibility.degrees(slots, keys.size).cumsum(0), (1, 0))
    pairs = (seen[held] - seen[held - new]).sum()
    call.count(pairs=pairs * (call.q.shape[1] // held.shape[1]), bytes_read=_bytes(keys, held.sum()))


def _count_chosen(call: Call, keys: Keys, index: Tensor, counts: Tensor | None, block: int, page: int) -> None:
    """Pairs of queries with the keys of their pages that are not later than they are."""
    past, length = call.forward.past[:, None], call.q.shape[2]
    begin = torch.arange(0, length, block, device=index.device)
    real = length if call.lengths is None else call.lengths[:, None]
    low, high = ((past + x.clamp(max=real))[:, None, :, None] for x in (begin, begin + block))
    first = index * page
    width = page if page == 1 else (keys.size - first).clamp(max=page)
    pairs = _triangle(high - first, width) - _triangle(low - first, width)
    fetched: Count = index.numel() if counts is None else counts.sum()
    if counts is not None:
        counted = torch.arange(index.shape[3], device=index.device) < counts[..., None]
        pairs, width = pairs * counted, width * counted if isinstance(width, Tensor) else width
    fetched = width.sum() if isinstance(width, Tensor) else fetched
    call.count(pairs=pairs.sum() * (call.q.shape[1] // index.shape[1]), bytes_read=_bytes(keys, fetched))


def _triangle(queries: Tensor, width: Tensor | int) -> Tensor:
    """Pairs of a text's first ``queries`` tokens with its first ``width`` keys, each seen from its own token on."""
    if isinstance(width, int) and width == 1:
        return queries.clamp(min=0)
    queries = queries.clamp(min=0)
    rows = torch.minimum(queries, width) if isinstance(width, Tensor) else queries.clamp(max=width)
    return rows * (rows + 1) // 2 + (queries - rows) * width


def _bytes(keys: Keys, slots: int | Tensor) -> int | Tensor:
    """Of so many keys and values of one head."""
    return slots * (keys.keys.shape[-1] + keys.values.shape[-1]) * keys.keys.element_size()


__all__ = [
    "attend_band",
    "attend_masked",
    "attend_pages",
    "attend_with_sums",
    "band_mask",
    "chosen_mask",
    "list_keys",
    "probabilities",
]
