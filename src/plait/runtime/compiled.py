"""The products of :mod:`plait.runtime.products` on plait's own kernel for CPUs: keys are multiplied where they lie."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from plait.ops.native import softmax
from plait.runtime.call import Call
from plait.runtime.store import Keys

#: Queries that share a tile of keys where every key is seen.
_BLOCK = 128


def simple(call: Call, keys: Keys) -> bool:
    """Rows without padding, nothing evicted, plain logits: a key's slot is its position."""
    aligned = call.start is not None and keys.lengths is None and keys.positions is None
    return aligned and call.scoring.plain and not call.reference


def serves(call: Call, keys: Keys) -> bool:
    """Whether the kernel can: a simple call in fp32 on a CPU, without gradient."""
    return simple(call, keys) and softmax.serves(call.q, keys.keys, keys.values)


def chosen(call: Call, keys: Keys, index: Tensor, valid: Tensor | None, block: int) -> Tensor:
    """See :func:`plait.runtime.products.chosen`."""
    length = call.q.shape[2]
    first = _start(call) + torch.arange(0, length, block)
    last = (first + block).clamp(max=_start(call) + length)
    seeing = (last[:, None] - index).clamp(min=0).minimum((last - first)[:, None])  # queries not before the key
    seeing = seeing if valid is None else seeing * valid
    call.count(pairs=seeing.sum() * (call.q.shape[1] // index.shape[1]), bytes_read=_bytes(keys, index.numel()))
    counts = None if valid is None else valid.sum(-1)
    return _attend(call, keys, index if valid is None else index[valid], counts, block)


def packed(call: Call, keys: Keys, seen: Iterable[Tensor], block: int) -> Tensor:
    """See :func:`plait.runtime.products.packed`."""
    batch, heads = call.q.shape[:2]
    outputs, first = [], 0
    for mask in seen:
        part = call.part(first, min(first + block, call.q.shape[2]))
        rows, counts = part.q.shape[2], mask.sum(-1, keepdim=True)
        chosen_keys = int(counts.sum())
        pairs = rows * chosen_keys - batch * heads * (rows * (rows - 1) // 2)
        call.count(pairs=pairs, bytes_read=_bytes(keys, chosen_keys))
        slots = torch.arange(mask.shape[2]).expand_as(mask)
        outputs.append(_attend(part, keys, slots[mask], counts, rows))
        first += rows
    return torch.cat(outputs, dim=2)


def paged(call: Call, keys: Keys, pages: Tensor, page: int) -> Tensor:
    """See :func:`plait.runtime.products.paged`."""
    return _attend(call, keys, pages, None, page, page)


def everything(call: Call, keys: Keys) -> Tensor:
    """Causal attention over all keys."""
    return _all(call, keys, sums=False)[0]


def with_sums(call: Call, keys: Keys) -> tuple[Tensor, Tensor]:
    """See :func:`plait.runtime.products.with_sums`."""
    o, sums = _all(call, keys, sums=True)
    assert sums is not None
    return o, sums


def _all(call: Call, keys: Keys, sums: bool) -> tuple[Tensor, Tensor | None]:
    batch, heads, length = call.q.shape[:3]
    seen = length * (_start(call) + 1) + length * (length - 1) // 2
    call.count(pairs=batch * heads * seen, bytes_read=_bytes(keys, batch * keys.keys.shape[1] * keys.size))
    scale, first = call.scoring.scale, _start(call)
    return softmax.attend(call.q, keys.keys, keys.values, scale=scale, first=first, block=_BLOCK, sums=sums)


def _attend(call: Call, keys: Keys, index: Tensor, counts: Tensor | None, block: int, page: int = 1) -> Tensor:
    scale, first = call.scoring.scale, _start(call)
    return softmax.attend(
        call.q, keys.keys, keys.values, index, counts, scale=scale, first=first, block=block, page=page
    )[0]


def _start(call: Call) -> int:
    assert call.start is not None
    return call.start


def _bytes(keys: Keys, slots: int) -> int:
    """Of so many keys and values of one head."""
    return slots * (keys.keys.shape[-1] + keys.values.shape[-1]) * keys.keys.element_size()
