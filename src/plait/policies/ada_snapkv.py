"""Ada-SnapKV: SnapKV with a budget that the heads of a layer share (2407.11550, as in The Sparse Frontier, 2504.17768).

Each kv head keeps a minimum; the rest of the layer's budget goes to the best scores of all heads, so heads end with
different lengths. The paper's code differs from The Sparse Frontier's version: what a head would get if all scores
competed is mixed with an equal share (``floor="blended"``), weights are summed over the last queries
(``over_queries="sum"``), and pooling runs over the prefix (``pool_over="prefix"``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from plait.policies.importance import best, over_group
from plait.policies.scored import share_among_heads
from plait.policies.snapkv import SnapKV, SnapKVOptions
from plait.runtime.store import Keys


@dataclass(frozen=True)
class AdaSnapKVOptions(SnapKVOptions):
    """Options of Ada-SnapKV.

    Args:
        capacity: tokens kept per kv head, on average over the heads of a layer.
        last_queries: queries at the prompt's end whose attention decides.
        pool: neighbours over which scores are averaged; odd.
        sinks: first tokens that are always kept, within the capacity.
        recent: last tokens of the prompt that are always kept, within the capacity.
        pool_over, pooling: see :class:`~plait.policies.snapkv.SnapKVOptions`.
        least: share of ``capacity`` that every head keeps; never less than sinks and recent tokens.
        over_queries: a key's score is its largest (``max``) or its summed (``sum``) weight over the last queries; over
            the group's heads it is the largest or the mean, likewise.
        floor: how ``least`` acts. ``kept``: a head's own best are kept first, then the rest is shared out.
            ``blended``: with ``B`` unforced places a head and ``b`` of them won where the heads compete for all,
            ``round((1 - least) b + int(least B))`` stay; rounding may miss the layer's budget by a few.
    """

    method: ClassVar[str] = "ada_snapkv"
    least: float = 0.2
    over_queries: Literal["max", "sum"] = "max"
    floor: Literal["kept", "blended"] = "kept"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0 <= self.least <= 1, "least", "is a share: between 0 and 1")

    @property
    def minimum(self) -> int:
        """Tokens that every head keeps."""
        return max(int(self.least * self.capacity), self.sinks + self.recent)


class AdaSnapKV(SnapKV):
    """Scores are the largest attention over the last queries and the group's heads, pooled."""

    Options = AdaSnapKVOptions
    options: AdaSnapKVOptions

    def reduced(self, weights: Tensor, group: int) -> Tensor:
        if self.options.over_queries == "sum":
            return super().reduced(weights, group)
        return over_group(weights.amax(2), group, "amax")

    def select(self, scores: Tensor, keys: Keys) -> tuple[Tensor, Tensor | None]:
        if self.options.floor == "blended":
            return self._blended(scores)
        return share_among_heads(scores, self.options.capacity, self.options.minimum)

    def _blended(self, scores: Tensor) -> tuple[Tensor, Tensor | None]:
        heads = scores.shape[1]
        forced = scores == float("inf")
        places = self.options.capacity - forced.sum(-1)[:, :1]
        free = (scores > float("-inf")).sum(-1)[:, :1] - forced.sum(-1)[:, :1]
        places = places.minimum(free)
        rank = scores.masked_fill(forced, float("-inf")).flatten(1)
        rank = rank.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1).view_as(scores)
        won = (rank < heads * places[..., None]).sum(-1)
        equal = (self.options.least * places).to(torch.int64)
        sizes = torch.round(won * (1 - self.options.least) + equal).to(torch.int64) + forced.sum(-1)
        return best(scores, int(sizes.max()), sizes)
