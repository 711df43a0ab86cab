"""Which keys matter: attention of a prompt's last queries, as sums over columns, diagonals and heads."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from plait.runtime.call import Call
from plait.runtime.products import CACHED, probabilities
from plait.runtime.store import Keys, Store


def last_queries(call: Call, most: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """The last ``most`` queries of each row of a call.

    Returns:
        queries ``(B, H, W, D)``, their positions ``(B, W)``, and which are real ``(B, W)`` or None for all.
    """
    width = min(most, call.q.shape[2])
    if call.lengths is None:
        return call.q[:, :, -width:], call.positions[:, -width:], None
    index = call.lengths[:, None] - width + torch.arange(width, device=call.q.device)
    real, index = index >= 0, index.clamp(min=0)
    q = call.q.gather(2, index[:, None, :, None].expand(-1, call.q.shape[1], -1, call.q.shape[-1]))
    return q, call.positions.gather(1, index), real


def keep_last_queries(store: Store, call: Call, most: int) -> None:
    """Append a call's queries to a store of queries, which keeps the last ``most`` of each row."""
    store.add(call.q, call.q[..., :0], call.positions, call.lengths)
    store.keep_band(0, most)


@torch.no_grad()
def pattern_sums(call: Call, keys: Keys, most: int) -> tuple[Tensor, Tensor]:
    """Attention of the last ``most`` queries, summed over columns and over diagonals.

    Returns:
        both ``(B, H, S)``: by key, and by distance from the query to the key. Slot and position agree.
    """
    q, positions, real = last_queries(call, most)
    step = max(1, CACHED // (q.shape[0] * q.shape[1] * keys.size))
    columns = diagonals = torch.zeros((), device=q.device)
    for first in range(0, q.shape[2], step):
        part = slice(first, first + step)
        weights = probabilities(call, keys, q[:, :, part], positions[:, part], None if real is None else real[:, part])
        columns = columns + weights.sum(2)
        diagonals = diagonals + diagonal_sums(weights, positions[:, part])
    return columns, diagonals


def diagonal_sums(weights: Tensor, positions: Tensor) -> Tensor:
    """Sums of weights over queries at equal distance from the key.

    Args:
        weights: ``(B, H, W, S)``, zero for keys after the query; slot and position agree.
        positions: ``(B, W)``, consecutive, except where all weights are zero.

    Returns:
        ``(B, H, S)``: entry o is the sum over the diagonal ``query position - key position = o``.
    """
    batch, heads, rows, size = weights.shape
    # each row one place further left than the one before: a diagonal becomes a column, counted from its lowest key
    skewed = weights.new_zeros(batch, heads, size + rows - 1)
    for row in range(rows):
        skewed[..., rows - 1 - row : rows - 1 - row + size] += weights[:, :, row]
    place = (positions[:, -1:] - torch.arange(size, device=weights.device))[:, None]
    return skewed.gather(2, place.clamp(min=0).expand(-1, heads, -1)).masked_fill(place < 0, 0)


def over_group(weights: Tensor, group: int, how: str) -> Tensor:
    """``(B, H, ...)`` to ``(B, G, ...)``: ``mean``, ``sum`` or ``amax`` over the query heads of a kv head."""
    return getattr(weights.unflatten(1, (-1, group)), how)(dim=2)


def pooled(scores: Tensor, width: int, how: Literal["mean", "max"] = "mean") -> Tensor:
    """Mean or maximum of ``width`` neighbours along the last dimension; in a mean, zeros beyond the ends count."""
    pool = F.avg_pool1d if how == "mean" else F.max_pool1d
    return pool(scores.flatten(0, -2)[:, None], width, stride=1, padding=width // 2).view(scores.shape)


def best(scores: Tensor, most: int, count: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Indices of the largest scores of each row, ascending, valid ones first.

    Args:
        scores: ``(..., S)``, ``-inf`` at what must not be taken.
        most: how many at most.
        count: ``(...)`` how many in each row, if not ``most``.

    Returns:
        indices ``(..., K)`` and their validity, None when all are valid.
    """
    top = scores.topk(min(most, scores.shape[-1]), dim=-1)
    wanted = top.values > float("-inf")
    if count is not None:
        wanted = wanted & (torch.arange(wanted.shape[-1], device=scores.device) < count[..., None])
    index = top.indices.masked_fill(~wanted, scores.shape[-1]).sort(dim=-1).values
    width = int(wanted.sum(-1).max())
    index, valid = index[..., :width], index[..., :width] < scores.shape[-1]
    return (index, None) if bool(valid.all()) else (index.masked_fill(~valid, 0), valid)


def counted(index: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The result of :func:`best` with the number of valid indices in place of their validity."""
    return index, None if valid is None else valid.sum(-1)


def beyond(scores: Tensor, lengths: Tensor | int) -> Tensor:
    """``scores`` ``(B, ..., S)`` with ``-inf`` at slots from ``lengths`` ``(B,)`` on."""
    slots = torch.arange(scores.shape[-1], device=scores.device)
    if isinstance(lengths, Tensor):
        lengths = lengths.view(-1, *[1] * (scores.dim() - 1))
    return scores.masked_fill(slots >= lengths, float("-inf"))
