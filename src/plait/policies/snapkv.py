"""SnapKV: at the end of the prompt, keep the keys that its last queries attend (2404.14469).

In the version of The Sparse Frontier (2504.17768). Prefill is dense. The prompt counts as ended when single tokens
follow, so a prompt fed in chunks is compressed once, by its true last queries. After another chunk of several tokens,
all that is held is compressed again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from plait.mixers.state import LayerState
from plait.policies.base import Policy, PolicyOptions
from plait.policies.call import Call, LayerInfo
from plait.policies.importance import best, keep_last_queries, over_group, pooled
from plait.policies.products import probabilities
from plait.policies.store import Keys, Store


@dataclass(frozen=True)
class SnapKVOptions(PolicyOptions):
    """Options of SnapKV.

    Args:
        capacity: tokens kept per kv head.
        last_queries: queries at the prompt's end whose attention decides.
        pool: neighbours over which scores are averaged; odd.
        sinks: first tokens that are always kept, within the capacity.
        recent: last tokens of the prompt that are always kept, within the capacity.
    """

    policy: ClassVar[str] = "snapkv"
    capacity: int = 1024
    last_queries: int = 256
    pool: int = 21
    sinks: int = 4
    recent: int = 128

    def __post_init__(self) -> None:
        self.require_at_least(1, "last_queries", "pool")
        self.require_at_least(0, "sinks", "recent")
        self.require(self.pool % 2 == 1, "pool", "must be odd")
        forced = self.sinks + self.recent
        self.require(self.capacity >= forced, "capacity", f"must hold {forced} sinks and recent tokens; raise it")


class SnapKV(Policy):
    """Scores are attention summed over the last queries (mean over the group's query heads), pooled; the best stay."""

    Options: ClassVar[type[PolicyOptions]] = SnapKVOptions
    options: SnapKVOptions
    reduces = ("decode",)

    @classmethod
    def with_budget(cls, budget: int, length: int) -> dict[str, Any]:
        recent = max(1, budget // 4)
        sinks = min(4, budget - recent)
        return {"capacity": min(budget, length), "recent": recent, "sinks": sinks, "pool": 3, "last_queries": recent}

    def new_state(self, layer: LayerInfo) -> LayerState:
        return LayerState({"kv": Store(), "last_queries": Store()})

    def write(self, call: Call) -> None:
        queries = self.store(call, "last_queries")
        if call.phase != "decode":
            keep_last_queries(queries, call, self.options.last_queries)
        elif queries.size:
            self.compress(call)
            queries.clear()
        super().write(call)

    def compress(self, call: Call) -> None:
        """Keep the most attended tokens of the prompt, in their order."""
        keys = self.keys(call)
        if keys.size > self.options.capacity:
            self.store(call).keep(*self.select(self.scores(call, keys), keys))

    def scores(self, call: Call, keys: Keys) -> Tensor:
        """``(B, G, S)``: infinite at what is forced, ``-inf`` at empty slots."""
        queries = self.keys(call, "last_queries")
        positions, width = queries.places()[:, 0], queries.size
        real = None
        if queries.lengths is not None:
            real = torch.arange(width, device=positions.device) < queries.lengths[:, :1]
        weights = probabilities(call, keys, queries.keys, positions.expand(queries.keys.shape[0], -1), real)
        scores = self.forced(pooled(self.reduced(weights, call.layer.group), self.options.pool), keys)
        return scores.masked_fill(keys.places() > call.last_positions[:, None, None], float("-inf"))

    def reduced(self, weights: Tensor, group: int) -> Tensor:
        """``(B, H, W, S)`` to ``(B, G, S)``."""
        return over_group(weights, group, "mean").sum(2)

    def forced(self, scores: Tensor, keys: Keys) -> Tensor:
        """``scores`` with infinity at the first and the last tokens held."""
        slots = torch.arange(keys.size, device=scores.device)
        held = keys.size if keys.lengths is None else keys.lengths[..., None]
        return scores.masked_fill((slots < self.options.sinks) | (slots >= held - self.options.recent), float("inf"))

    def select(self, scores: Tensor, keys: Keys) -> tuple[Tensor, Tensor | None]:
        """Slots to keep, ``(B, G, K)``, and their validity."""
        return best(scores, self.options.capacity)
