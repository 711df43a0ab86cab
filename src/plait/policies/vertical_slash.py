"""Vertical-Slash (the pattern of MInference, 2407.02490, in the version of The Sparse Frontier, 2504.17768).

The prompt's last queries show which columns (keys that all attend) and which diagonals (distances) of the attention
matrix carry its mass; only these are computed in prefill. Decoding is dense. The choice looks at the end of the
prompt, so a text's own tokens leak into earlier ones: do not measure perplexity in one pass with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from plait.policies.base import Policy, PolicyOptions
from plait.policies.call import Call
from plait.policies.importance import best, beyond, diagonal_sums, last_queries
from plait.policies.products import chosen, probabilities
from plait.policies.store import first_true


@dataclass(frozen=True)
class VerticalSlashOptions(PolicyOptions):
    """Options of Vertical-Slash.

    Args:
        vertical: columns per query head, the first ``sinks`` among them.
        slash: diagonals per query head, the ``block`` nearest among them.
        last_queries: queries at the prompt's end whose attention decides.
        sinks: first columns that are always taken.
        block: queries that are computed together, and the length of the pieces of diagonals.
    """

    policy: ClassVar[str] = "vertical_slash"
    vertical: int = 512
    slash: int = 512
    last_queries: int = 256
    sinks: int = 4
    block: int = 64

    def __post_init__(self) -> None:
        self.require_at_least(1, "last_queries", "block")
        self.require_at_least(0, "sinks")
        self.require(self.vertical >= self.sinks, "vertical", f"must hold the {self.sinks} sinks; raise it")
        self.require(self.slash >= self.block, "slash", f"must hold the {self.block} nearest diagonals; raise it")


class VerticalSlash(Policy):
    """``S = softmax(q_last K^T)``; the columns and diagonals with the largest sums are computed, by query head."""

    Options: ClassVar[type[PolicyOptions]] = VerticalSlashOptions
    options: VerticalSlashOptions
    reduces = ("prefill",)
    looks_ahead = True

    @classmethod
    def with_budget(cls, budget: int, length: int) -> dict[str, Any]:
        if budget >= length:
            return {"vertical": max(4, length), "slash": max(64, length)}
        block = max(1, min(64, budget // 4))
        return {"vertical": max(4, budget // 4), "slash": max(block, budget // 2), "block": block, "last_queries": 64}

    def prefill(self, call: Call) -> Tensor:
        columns, offsets = self.choose(call)
        return vertical_slash(call, columns, offsets, self.options.block)

    def choose(self, call: Call) -> tuple[Chosen, Chosen]:
        """Columns and diagonals of each query head."""
        q, positions, real = last_queries(call, self.options.last_queries)
        weights = probabilities(call, self.whole_keys(call), q, positions, real)
        lengths = call.last_positions + 1
        vertical = beyond(weights.sum(2), lengths)
        slash = beyond(diagonal_sums(weights, positions), lengths)
        vertical[..., : self.options.sinks] = float("inf")
        slash[..., : self.options.block] = float("inf")
        return best(beyond(vertical, lengths), self.options.vertical), best(beyond(slash, lengths), self.options.slash)


#: Indices ``(B, H, K)``, ascending, and their validity.
Chosen = tuple[Tensor, Tensor | None]


def vertical_slash(call: Call, columns: Chosen, offsets: Chosen, block: int) -> Tensor:
    """Attention over columns and diagonals, ``block`` queries at a time.

    Args:
        call: queries; slot and position of the stored keys agree.
        columns: key positions by query head.
        offsets: distances by query head; 0 is among them.
        block: queries per block.
    """
    keys = Policy.whole_keys(call)
    ends = call.positions[:, ::block] + block
    all_starts, all_covered = pieces(offsets, ends, block)
    outputs = []
    for number, first in enumerate(range(0, call.q.shape[2], block)):
        part = call.part(first, min(first + block, call.q.shape[2]))
        end, starts, covered = ends[:, number], all_starts[:, :, number], all_covered[:, :, number]
        alone = outside(columns, starts, covered, end, block)
        order, exists = first_true(covered, covered.shape[2])
        starts = starts.gather(2, order)
        covered = torch.ones_like(starts, dtype=torch.bool) if exists is None else exists
        slots = (starts[..., None] + torch.arange(block, device=end.device)).flatten(2)
        inside = covered.repeat_interleave(block, dim=2)
        index = torch.cat([slots, columns[0]], dim=2)
        valid = torch.cat([inside, alone], dim=2) & (index < keys.size)
        order, real = first_true(valid, index.shape[2])
        index = index.gather(2, order).clamp(0, keys.size - 1)
        valid_here = None if real is None else real[:, :, None]
        outputs.append(chosen(part, keys, index[:, :, None], valid_here, block=block))
    return torch.cat(outputs, dim=2)


def pieces(offsets: Chosen, ends: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Pieces of ``block`` keys that cover the diagonals for the queries ``[end - block, end)``.

    Offset o needs the keys ``[end - block - o, end - o)``, moved up where they would begin before 0. Going from the
    farthest diagonal to the nearest, a need that begins within one block after the covered range extends it by a whole
    block; a farther one begins a new range.

    Args:
        offsets: ascending, ``(B, H, n)``.
        ends: ``(B, M)``, one for each block of queries.
        block: keys per piece.

    Returns:
        first keys ``(B, H, M, n)`` of the pieces, ascending where they exist, and which exist.
    """
    distance, exists = offsets
    end = ends[:, None].expand(-1, distance.shape[1], -1)
    covered = torch.full_like(end, -(2**40))
    starts, used = [], []
    for i in reversed(range(distance.shape[2])):
        offset = distance[..., i : i + 1]
        need = (end - offset).clamp(min=block)
        counts = offset < end if exists is None else (offset < end) & exists[..., i : i + 1]
        fresh = counts & (need > covered + block)
        longer = counts & ~fresh & (need > covered)
        starts.append(torch.where(fresh, need - block, covered))
        used.append(fresh | longer)
        covered = torch.where(fresh, need, torch.where(longer, covered + block, covered))
    return torch.stack(starts, dim=3), torch.stack(used, dim=3)


def outside(columns: Chosen, starts: Tensor, covered: Tensor, end: Tensor, block: int) -> Tensor:
    """Which columns ``(B, H, K)`` lie before ``end`` and in none of the pieces."""
    index, valid = columns
    order = torch.where(covered, starts, 2**40).sort(dim=2).values
    before = torch.searchsorted(order, index.contiguous(), right=True) - 1
    begin = order.gather(2, before.clamp(min=0))
    alone = ((before < 0) | (index - begin >= block)) & (index < end[:, None, None])
    return alone if valid is None else alone & valid
