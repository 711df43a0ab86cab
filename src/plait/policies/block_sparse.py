"""Block-sparse prefill: blocks of queries meet the blocks of keys whose means fit (MInference, 2407.02490).

In the version of The Sparse Frontier (2504.17768). Decoding is dense.

A block's mean query includes queries after a row's own, so within one block later tokens influence what is chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from plait.options import Options
from plait.policies.importance import best, counted
from plait.runtime.call import Call
from plait.runtime.policy import Policy
from plait.runtime.products import ENTRIES, attend_band, attend_pages
from plait.runtime.store import Keys

#: Far above any score: what is forced comes first, by rank.
FORCED = 1e30


@dataclass(frozen=True)
class BlockSparseOptions(Options):
    """Options of block-sparse prefill.

    Args:
        block: tokens of a block, of queries and of keys.
        top: key blocks of a query block, its own, the one before and the first among them.
    """

    method: ClassVar[str] = "block_sparse"
    block: int = 16
    top: int = 64

    def __post_init__(self) -> None:
        self.require_at_least(1, "block")
        self.require_at_least(3, "top")

    @classmethod
    def small(cls, dims: Any = None) -> Self:
        return cls(block=8, top=3)


class BlockSparse(Policy):
    """Block scores are products of mean query and mean key, without scale; each row computes its ``top`` best."""

    Options = BlockSparseOptions
    options: BlockSparseOptions
    reduces = ("prefill",)
    looks_ahead = True

    @classmethod
    def with_budget(cls, budget: int, length: int) -> dict[str, Any]:
        block = max(1, min(16, budget // 4))
        return {"block": block, "top": max(3, -(-(length if budget >= length else budget) // block) + 1)}

    def prefill(self, call: Call) -> Tensor:
        keys, size = self.whole_keys(call), self.options.block
        means = block_means(keys, call, size)
        heads, blocks = call.q.shape[1], means.shape[2]
        outputs, begin = [], 0
        if call.start is not None:  # the first queries see every block before them
            begin = min(max(0, self.options.top * size - call.start) // size * size, call.q.shape[2])
        if begin:
            end = (call.start or 0) + begin
            seen = Keys(keys.keys[:, :, :end], keys.values[:, :, :end])
            outputs.append(attend_band(call.part(0, begin), seen))
        # so many query blocks at once that neither their scores nor their indices become large
        step = size * max(1, ENTRIES // (call.q.shape[0] * heads * max(blocks, self.options.top * size)))
        for first in range(begin, call.q.shape[2], step):
            part = call.part(first, min(first + step, call.q.shape[2]))
            index, counts = counted(*self.choose(part, means))
            outputs.append(attend_pages(part, keys, index, counts, block=size, page=size))
        return torch.cat(outputs, dim=2)

    def choose(self, call: Call, means: Tensor) -> tuple[Tensor, Tensor | None]:
        """Key blocks ``(B, H, M, K)`` of each query block, ascending, and their validity.

        Args:
            call: the queries.
            means: ``(B, G, N, D)`` mean keys.
        """
        size, blocks = self.options.block, means.shape[2]
        q = call.q if call.real is None else call.q * call.real[:, None, :, None]
        q = F.pad(q, (0, 0, 0, -q.shape[2] % size)).unflatten(2, (-1, size)).mean(3)
        means = means.repeat_interleave(q.shape[1] // means.shape[1], dim=1)
        scores = q @ means.mT
        call.count(index_pairs=scores.numel())
        number = torch.arange(blocks, device=q.device)
        first = call.positions[:, ::size]
        last = (first + size - 1).clamp(max=(call.last_positions)[:, None])
        own_first, own_last = (p[:, None, :, None] // size for p in (first, last))
        rank = (number == 0).to(scores.dtype)
        rank = torch.where(number == own_first - 1, 2.0, rank)
        rank = torch.where((number >= own_first) & (number <= own_last), 3.0, rank)
        scores = torch.where(rank > 0, rank * FORCED, scores)
        scores = scores.masked_fill(number > own_last.maximum(own_first), float("-inf"))
        return best(scores, self.options.top)


def block_means(keys: Keys, call: Call, size: int) -> Tensor:
    """Mean key ``(B, G, N, D)`` of each block of ``size``; what a ragged last block lacks counts as zeros."""
    k = keys.keys
    if keys.lengths is not None:
        k = k * (torch.arange(keys.size, device=k.device) < keys.lengths[..., None])[..., None]
    return F.pad(k, (0, 0, 0, -keys.size % size)).unflatten(2, (-1, size)).mean(3)
