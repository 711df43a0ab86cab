"""Softmax attention over keys that say where they stand, as after some were forgotten, by row and head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from plait.errors import OptionError
from plait.ops.softmax import blocks, dense
from plait.ops.softmax.operations import Result, with_sinks
from plait.ops.visibility import Ranges, Visibility, Window, joined

#: Position of a slot without a key: later than every query, so that none sees it.
NEVER = 2**62


@dataclass(frozen=True)
class Placed:
    """Queries and keys at given positions, in place of :class:`~plait.ops.softmax.rows.Rows`.

    Args:
        visibility: causal; decides by positions.
        queries: ``(B, T)`` positions.
        keys: ``(B, N, S)`` positions, ascending, :data:`NEVER` in empty slots; 1 on the first two axes where all agree.
        group: query heads of a key head.
        real: ``(B, T)`` bool, queries that see something; None for all.
    """

    visibility: Visibility
    queries: Tensor
    keys: Tensor
    group: int
    real: Tensor | None = None
    first: int = 0

    def mask(self, queries: Tensor, keys: Tensor) -> Tensor:
        """What these queries see of these slots, ``(B, H, t, s)``; 1 on an axis where all agree."""
        seen = self.visibility.sees(self.queries[:, None, queries, None], self.keys[:, :, None, keys])
        if self.real is not None:
            seen = seen & self.real[:, None, queries, None]
        return seen if seen.shape[1] == 1 else seen.repeat_interleave(self.group, dim=1)

    def blocks(self, length: int, stored: int, size: int) -> Iterator[tuple[int, int, Ranges]]:
        """Blocks of at most ``size`` queries: first and last + 1, and the slots that some of them see."""
        for x in range(0, length, size):
            y = min(x + size, length)
            yield x, y, self._slots(int(self.queries[:, x].min()), int(self.queries[:, y - 1].max()), stored)

    def _slots(self, low: int, high: int, stored: int) -> Ranges:
        """Slots that queries at positions ``low`` to ``high`` can see."""
        end = min(stored, int((self.keys <= high).sum(-1).max()))
        if not isinstance(self.visibility, Window):
            return joined([(0, end)])
        sinks = int((self.keys < self.visibility.sinks).sum(-1).max())
        begin = int((self.keys <= low - self.visibility.window).sum(-1).min())
        return joined([(0, min(sinks, end)), (begin, end)])


def placed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visibility: Visibility,
    positions: Tensor,
    places: Tensor,
    *,
    real: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sink_logits: Tensor | None = None,
    backend: str = "auto",
) -> Result:
    """Softmax attention where positions, not slots, decide which keys a query sees.

    Args:
        q: ``(B, T, H, D)``.
        k, v: ``(B, S, N, D)`` and ``(B, S, N, Dv)``.
        visibility: causal, one for all heads.
        positions: ``(B, T)`` int64 of the queries, ascending in each row; 1 in place of B where rows agree.
        places: ``(B, N, S)`` int64 of the keys, ascending, :data:`NEVER` in empty slots; 1 on the first two axes where
            all agree.
        real: ``(B, T)`` bool, False at queries that see nothing.
        scale, softcap, sink_logits: as in :func:`~plait.ops.softmax.attention`.
        backend: ``auto``, ``torch`` (blocks of queries) or ``reference`` (one dense matrix).

    Returns:
        As :func:`~plait.ops.softmax.attention`. Differentiable once.

    Raises:
        OptionError: shapes that do not fit, or a backend that does not exist.
    """
    batch, length, heads, width = q.shape
    stored, kv_heads = k.shape[1:3]
    fits = positions.shape in ((batch, length), (1, length)) and places.shape[-1] == stored
    if heads % kv_heads or v.shape[:3] != k.shape[:3] or not fits or places.shape[1] not in (1, kv_heads):
        raise OptionError(
            f"placed_attention: positions {tuple(positions.shape)} and places {tuple(places.shape)} must be (B, T) and "
            f"(B, N, S) for q {tuple(q.shape)} and k {tuple(k.shape)}."
        )
    scale = width**-0.5 if scale is None else scale
    rows = Placed(visibility, positions, places, heads // kv_heads, real)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if backend == "reference":
        every = [torch.arange(n, device=q.device) for n in (length, stored)]
        mask = rows.mask(*every).expand(batch, heads, -1, -1)
        o, lse = dense.attention(q, k, v, mask, scale, softcap, None)
    elif backend in ("auto", "torch"):
        o, lse = blocks.attention(q, k, v, rows, scale, softcap, None)  # type: ignore[arg-type]
    else:
        raise OptionError(f"placed_attention: backend {backend!r} is none of auto, torch and reference.")
    return with_sinks(o.transpose(1, 2), lse.transpose(1, 2), sink_logits)


def attention_weights(
    q: Tensor,
    k: Tensor,
    mask: Tensor | None,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    sink_logits: Tensor | None = None,
) -> Tensor:
    """Attention weights of some queries as a matrix: to look at them, or to choose keys by them.

    Args:
        q: ``(B, T, H, D)``.
        k: ``(B, S, N, D)``, N a divisor of H.
        mask: bool ``(B, H, T, s)``, 1 on any axis but the last: which of the last s keys each query sees; the others
            are seen by all. None: all are.
        scale, softcap, sink_logits: as in :func:`~plait.ops.softmax.attention`.

    Returns:
        ``(B, H, T, S)`` in fp32, or fp64 for fp64. Rows sum to one, or to less with sinks; those of queries that see
        nothing are zero.
    """
    batch, length, heads, width = q.shape
    stored, kv_heads = k.shape[1:3]
    keys = k.transpose(1, 2)
    # a key head's query heads are rows of one product
    folded = q.transpose(1, 2).reshape(batch, kv_heads, heads // kv_heads * length, width)
    scores = (folded * (width**-0.5 if scale is None else scale)) @ keys.mT
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).view(batch, heads, length, stored)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        last = scores[..., stored - mask.shape[-1] :]
        last.masked_fill_(~mask, float("-inf"))
    if sink_logits is None and (mask is None or mask.shape[-1] < stored):
        return scores.softmax(-1)
    lse = scores.logsumexp(-1, keepdim=True)
    if sink_logits is not None:
        sums = sink_logits.to(lse.dtype)
        sums = sums.logsumexp(-1) if sums.dim() == 2 else sums
        lse = torch.logaddexp(lse, sums.view(1, -1, 1, 1))
    return (scores - lse.masked_fill(lse == float("-inf"), 0)).exp()
