"""SnapKV: at the end of the prompt, keep the keys that its last queries attend (2404.14469).

In the version of The Sparse Frontier (2504.17768): a kv head's query heads choose together, sinks are kept, and scores
are averaged over the whole prompt. The paper's code lets every query head choose and pools over the prefix alone
(``pool_over="prefix"``). Prefill is dense. The prompt counts as ended when single tokens
follow, so a prompt fed in chunks is compressed once, by its true last queries. After another chunk of several tokens,
all that is held is compressed again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from plait.mixers.state import LayerState
from plait.options import Options
from plait.policies.importance import keep_last_queries, over_group, pooled
from plait.policies.scored import ScoredPolicy
from plait.runtime.call import Call, LayerInfo
from plait.runtime.products import probabilities
from plait.runtime.store import Keys, Store


@dataclass(frozen=True)
class SnapKVOptions(Options):
    """Options of SnapKV.

    Args:
        capacity: tokens kept per kv head.
        last_queries: queries at the prompt's end whose attention decides.
        pool: neighbours over which scores are averaged; odd.
        sinks: first tokens that are always kept, within the capacity.
        recent: last tokens of the prompt that are always kept, within the capacity.
        pool_over: what the average over neighbours runs over: the whole ``prompt`` (The Sparse Frontier), or the
            ``prefix`` before the last queries (the paper's code, where ``recent`` is ``last_queries`` and ``sinks`` is
            0): at the prefix's end the last queries' own keys then count as zeros.
        pooling: ``mean`` or ``max`` of the neighbours; the paper's code has both.
    """

    method: ClassVar[str] = "snapkv"
    capacity: int = 1024
    last_queries: int = 256
    pool: int = 21
    sinks: int = 4
    recent: int = 128
    pool_over: Literal["prompt", "prefix"] = "prompt"
    pooling: Literal["mean", "max"] = "mean"

    def __post_init__(self) -> None:
        self.require_at_least(1, "last_queries", "pool")
        self.require_at_least(0, "sinks", "recent")
        self.require(self.pool % 2 == 1, "pool", "must be odd")
        self.require(
            self.pool_over == "prompt" or self.recent >= self.last_queries,
            "recent",
            f"with pool_over='prefix' the {self.last_queries} last queries are kept unscored; raise it",
        )
        forced = self.sinks + self.recent
        self.require(self.capacity >= forced, "capacity", f"must hold {forced} sinks and recent tokens; raise it")

    @classmethod
    def small(cls, dims: Any = None) -> Self:
        return cls(capacity=16, last_queries=8, pool=3, sinks=2, recent=4)

    def resized(self, capacity: int) -> Self:
        """See :meth:`~plait.policies.scored.ScoredOptions.resized`."""
        return replace(self, capacity=max(self.sinks + self.recent, capacity))


class SnapKV(ScoredPolicy):
    """Scores are attention summed over the last queries (mean over the group's query heads), pooled; the best stay."""

    Options: ClassVar[type[Options]] = SnapKVOptions
    options: SnapKVOptions
    evicts_after = "prompt"

    @classmethod
    def with_budget(cls, budget: int, length: int) -> dict[str, Any]:
        budget = min(budget, length)
        recent = max(1, budget // 4)
        sinks = min(4, budget - recent)
        return {"capacity": budget, "recent": recent, "sinks": sinks, "pool": 3, "last_queries": recent}

    def new_state(self, layer: LayerInfo) -> LayerState:
        return LayerState({**super().new_state(layer).segments, "last_queries": Store()})

    def write(self, call: Call) -> None:
        if call.phase != "decode":
            keep_last_queries(self.store(call, "last_queries"), call, self.options.last_queries)
        super().write(call)

    def evict(self, call: Call) -> None:
        super().evict(call)
        self.store(call, "last_queries").clear()

    def score(self, call: Call, keys: Keys) -> Tensor:
        queries = self.keys(call, "last_queries")
        positions, width = queries.places()[:, 0], queries.size
        real = None
        if queries.lengths is not None:
            real = torch.arange(width, device=positions.device) < queries.lengths[:, :1]
        weights = probabilities(call, keys, queries.keys, positions.expand(queries.keys.shape[0], -1), real)
        sums = self.reduced(weights, call.layer.group)
        if self.options.pool_over == "prefix":
            held = keys.held()[..., None]
            asking = width if queries.lengths is None else queries.lengths[:, :1, None]
            sums = sums.masked_fill(torch.arange(keys.size, device=sums.device) >= held - asking, 0)
        return pooled(sums, self.options.pool, self.options.pooling)

    def reduced(self, weights: Tensor, group: int) -> Tensor:
        """``(B, H, W, S)`` to ``(B, G, S)``."""
        return over_group(weights, group, "mean").sum(2)
