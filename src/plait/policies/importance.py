"""Which keys matter: attention of a prompt's last queries, as sums over columns, diagonals and heads."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from plait.policies.call import Call
from plait.policies.store import Store, first_true


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


def diagonal_sums(weights: Tensor, positions: Tensor) -> Tensor:
    """Sums of weights over queries at equal distance from the key.

    Args:
        weights: ``(B, H, W, S)``, zero for keys after the query; slot and position agree.
        positions: ``(B, W)``.

    Returns:
        ``(B, H, S)``: entry o is the sum over the diagonal ``query position - key position = o``.
    """
    batch, heads, rows, size = weights.shape
    offsets = positions[..., None] - torch.arange(size, device=weights.device)
    offsets = offsets.clamp(0, size - 1)[:, None].expand(batch, heads, rows, size).flatten(2)
    return weights.new_zeros(batch, heads, size).scatter_add(2, offsets, weights.flatten(2))


def over_group(weights: Tensor, group: int, how: str) -> Tensor:
    """``(B, H, ...)`` to ``(B, G, ...)``: ``mean``, ``sum`` or ``amax`` over the query heads of a kv head."""
    return getattr(weights.unflatten(1, (-1, group)), how)(dim=2)


def pooled(scores: Tensor, width: int) -> Tensor:
    """Average over ``width`` neighbours along the last dimension; beyond the ends stand zeros, which count."""
    return F.avg_pool1d(scores.flatten(0, -2)[:, None], width, stride=1, padding=width // 2).view(scores.shape)


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
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, top.indices, wanted)
    return first_true(chosen, scores.shape[-1])


def beyond(scores: Tensor, lengths: Tensor | int) -> Tensor:
    """``scores`` ``(B, ..., S)`` with ``-inf`` at slots from ``lengths`` ``(B,)`` on."""
    slots = torch.arange(scores.shape[-1], device=scores.device)
    if isinstance(lengths, Tensor):
        lengths = lengths.view(-1, *[1] * (scores.dim() - 1))
    return scores.masked_fill(slots >= lengths, float("-inf"))
