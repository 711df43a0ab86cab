"""H2O: keep the tokens that have received most attention so far, and the recent ones (2306.14048).

Attention is summed over all queries that saw a token and over the query heads of its kv head. After every call each kv
head is cut to ``heavy + recent`` tokens. A prompt given in one call is attended densely; in chunks, each chunk sees
what the calls before it left.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from plait.mixers.state import LayerState
from plait.options import Options
from plait.policies.importance import over_group
from plait.policies.scored import ScoredPolicy
from plait.runtime.call import Call, LayerInfo
from plait.runtime.meter import Meter
from plait.runtime.products import attend_band, attend_with_sums, probabilities
from plait.runtime.store import Keys, RaggedStore


@dataclass(frozen=True)
class H2OOptions(Options):
    """Options of H2O.

    Args:
        heavy: tokens kept for the attention they received.
        recent: last tokens, always kept.
    """

    method: ClassVar[str] = "h2o"
    heavy: int = 512
    recent: int = 512

    def __post_init__(self) -> None:
        self.require_at_least(0, "heavy")
        self.require_at_least(1, "recent")

    @classmethod
    def small(cls, dims: Any = None) -> Self:
        return cls(heavy=8, recent=8)

    def resized(self, capacity: int) -> Self:
        """See :meth:`~plait.policies.scored.ScoredOptions.resized`: both parts grow or shrink alike."""
        recent = max(1, round(self.recent * capacity / (self.heavy + self.recent)))
        return replace(self, heavy=max(0, capacity - recent), recent=recent)


class H2O(ScoredPolicy):
    """``score_j = sum_i a_ij``; the ``heavy`` best of what is not recent stay, by kv head."""

    Options = H2OOptions
    options: H2OOptions

    @classmethod
    def with_budget(cls, budget: int, length: int) -> dict[str, Any]:
        budget = min(budget, length)
        return {"heavy": budget // 2, "recent": max(1, budget - budget // 2)}

    @property
    def always(self) -> tuple[int, int]:
        return 0, self.options.recent

    @property
    def capacity(self) -> int:
        return self.options.heavy + self.options.recent

    def new_state(self, layer: LayerInfo) -> LayerState:
        return LayerState({"kv": RaggedStore(extras=("score",))})

    def write(self, call: Call) -> None:
        score = call.k.new_zeros(call.k.shape[:3], dtype=torch.promote_types(call.k.dtype, torch.float32))
        self.store(call).add(call.k, call.v, call.positions, call.lengths, score=score)

    def prefill(self, call: Call) -> Tensor:
        store: Any = self.store(call)
        keys = store.view() if call.reference else store.stored()
        if call.reference:
            o, sums = attend_band(call, keys), probabilities(call, keys, call.q, call.positions, call.real).sum(2)
        else:
            o, sums = attend_with_sums(call, keys)
        store.score = store.score + over_group(sums, call.layer.group, "sum")
        return o

    def watch(self, call: Call) -> None:
        """Dense attention, for what each token receives of it."""
        meter = Meter()
        self.prefill(replace(call, meter=meter))
        for work in meter.work.values():
            call.count(index_pairs=work.pairs + work.index_pairs, bytes_read=work.bytes_read)

    decode = prefill

    def score(self, call: Call, keys: Keys) -> Tensor:
        store: Any = self.store(call)
        return store.score
