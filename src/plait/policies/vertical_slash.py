"""Vertical-Slash (the pattern of MInference, 2407.02490, in the version of The Sparse Frontier, 2504.17768).

The prompt's last queries show which columns (keys that all attend) and which diagonals (distances) of the attention
matrix carry its mass; only these are computed in prefill. Some are taken whatever they carry: MInference's own code
takes the first 30 columns and the 100 nearest diagonals, and asks the last 64 queries (``sinks=30, near=100,
last_queries=64``). Decoding is dense. The choice looks at the end of the prompt, so a text's own tokens leak into
earlier ones: do not measure perplexity in one pass with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from plait.options import Options
from plait.policies.importance import best, beyond, pattern_sums
from plait.runtime.call import Call
from plait.runtime.policy import Policy
from plait.runtime.products import attend_pages, list_keys
from plait.runtime.store import NEVER


@dataclass(frozen=True)
class VerticalSlashOptions(Options):
    """Options of Vertical-Slash.

    Args:
        vertical: columns per query head, the first ``sinks`` among them.
        slash: diagonals per query head, the nearest ``near`` among them.
        last_queries: queries at the prompt's end whose attention decides.
        sinks: first columns that are always taken.
        near: nearest diagonals that are always taken; None: ``block`` of them.
        block: queries that are computed together, and the length of the pieces of diagonals.
    """

    method: ClassVar[str] = "vertical_slash"
    vertical: int = 512
    slash: int = 512
    last_queries: int = 256
    sinks: int = 4
    near: int | None = None
    block: int = 64

    def __post_init__(self) -> None:
        self.require_at_least(1, "last_queries", "block")
        self.require_at_least(0, "sinks")
        self.require(self.vertical >= self.sinks, "vertical", f"must hold the {self.sinks} sinks; raise it")
        self.require(self.near is None or self.near >= 1, "near", "must be 1 or more: a query sees itself")
        self.require(self.slash >= self.forced, "slash", f"must hold the {self.forced} nearest diagonals; raise it")

    @property
    def forced(self) -> int:
        """Nearest diagonals that are always taken."""
        return self.block if self.near is None else self.near

    @classmethod
    def small(cls, dims: Any = None) -> Self:
        return cls(vertical=6, slash=10, last_queries=16, sinks=2, near=4, block=16)


class VerticalSlash(Policy):
    """``S = softmax(q_last K^T)``; the columns and diagonals with the largest sums are computed, by query head."""

    Options: ClassVar[type[Options]] = VerticalSlashOptions
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
        vertical, slash = pattern_sums(call, self.whole_keys(call), self.options.last_queries)
        lengths = call.last_positions + 1
        vertical[..., : self.options.sinks] = float("inf")
        slash[..., : self.options.forced] = float("inf")
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
    blocks = pattern(call, columns, offsets, block, keys.size)
    outputs = []
    for first, seen in zip(range(0, call.q.shape[2], block), blocks, strict=True):
        part = call.part(first, min(first + block, call.q.shape[2]))
        outputs.append(attend_pages(part, keys, *list_keys(seen), block=block))
    return torch.cat(outputs, dim=2)


def pattern(call: Call, columns: Chosen, offsets: Chosen, block: int, size: int) -> Iterator[Tensor]:
    """Which keys each block of queries computes, ``(B, H, E)`` bool, E the end of the last row's block.

    Args:
        call, columns, offsets, block: as of :func:`vertical_slash`.
        size: keys stored.
    """
    ends = call.positions[:, ::block] + block
    starts, covered = pieces(offsets, ends, block)
    index, exists = columns
    for number in range(ends.shape[1]):
        end = ends[:, None, number, None]
        seen = torch.zeros(*index.shape[:2], size + 1, dtype=torch.bool, device=index.device)  # the last is nobody's
        slots = starts[:, :, number, :, None] + torch.arange(block, device=index.device)
        slots = slots.where(covered[:, :, number, :, None], size).flatten(2)
        seen.scatter_(2, slots.clamp(max=size), True)
        alone = index < end if exists is None else (index < end) & exists
        seen.scatter_(2, index.where(alone, size), True)
        yield seen[..., : min(size, int(end.max()))]


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
        first keys ``(B, H, M, p)`` of the pieces, ascending where they exist, and which exist.
    """
    distance, exists = offsets
    distance = (distance if exists is None else distance.masked_fill(~exists, NEVER)).contiguous()
    end = ends[:, None].expand(-1, distance.shape[1], -1).contiguous()
    covered = torch.full_like(end, -block - 1)  # before any need
    starts, used = [], []
    while True:
        # the farthest diagonal whose need ends after the covered range; nearer ones have later needs
        nearest = torch.searchsorted(distance, end - covered.clamp(min=0)) - 1
        more = nearest >= 0
        if not bool(more.any()):
            break
        need = (end - distance.gather(2, nearest.clamp(min=0))).clamp(min=block)
        start = torch.where(need > covered + block, need - block, covered)
        starts.append(start)
        used.append(more)
        covered = torch.where(more, start + block, covered)
    return torch.stack(starts, dim=3), torch.stack(used, dim=3)
