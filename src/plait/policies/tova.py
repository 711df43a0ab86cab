"""TOVA: when the cache is full, the token that the newest query attends least leaves it (2401.06104).

Token Omission Via Attention. Weights are averaged over all query heads of the layer, so that all heads keep the same
tokens; no token is safe, neither the first ones nor the newest. A prompt given in one call is attended densely and then
cut by its last query; in chunks, each chunk sees what the calls before it left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from plait.options import Options
from plait.policies.importance import best, last_queries
from plait.runtime.call import Call
from plait.runtime.policy import Policy
from plait.runtime.products import probabilities


@dataclass(frozen=True)
class TovaOptions(Options):
    """Options of TOVA.

    Args:
        capacity: tokens that a layer keeps.
    """

    method: ClassVar[str] = "tova"
    capacity: int = 1024

    def __post_init__(self) -> None:
        self.require_at_least(1, "capacity")

    @classmethod
    def small(cls, dims: Any = None) -> Self:
        return cls(capacity=16)


class Tova(Policy):
    """``score_j = mean over heads of a_j`` for the newest query; the ``capacity`` best stay."""

    Options = TovaOptions
    options: TovaOptions
    reduces = ("decode",)

    @classmethod
    def with_budget(cls, budget: int, length: int) -> dict[str, Any]:
        return {"capacity": min(budget, length)}

    def trim(self, call: Call) -> None:
        keys = self.keys(call)
        if keys.size <= self.options.capacity:
            return
        scores = probabilities(call, keys, *last_queries(call, 1)).mean(1)[:, 0]
        scores = scores[:, None].expand(-1, call.layer.kv_heads, -1)
        slots_seen = keys.places() <= call.last_positions[:, None, None]
        self.store(call).keep(*best(scores.masked_fill(~slots_seen, float("-inf")), self.options.capacity))
