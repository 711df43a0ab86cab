"""TOVA: when the cache is full, the token that the newest query attends least leaves it (2401.06104).

Token Omission Via Attention. Weights are averaged over all query heads of the layer, so that all heads keep the same
tokens; no token is safe, neither the first ones nor the newest. A prompt given in one call is attended densely and then
cut by its last query; in chunks, each chunk sees what the calls before it left.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from torch import Tensor

from plait.options import Options
from plait.policies.importance import last_queries
from plait.policies.scored import ScoredPolicy
from plait.runtime.call import Call
from plait.runtime.products import probabilities
from plait.runtime.store import Keys


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

    def resized(self, capacity: int) -> Self:
        """See :meth:`~plait.policies.scored.ScoredOptions.resized`."""
        return replace(self, capacity=max(1, capacity))


class Tova(ScoredPolicy):
    """``score_j = mean over heads of a_j`` for the newest query; the ``capacity`` best stay."""

    Options = TovaOptions
    options: TovaOptions

    @property
    def always(self) -> tuple[int, int]:
        return 0, 0

    def score(self, call: Call, keys: Keys) -> Tensor:
        weights = probabilities(call, keys, *last_queries(call, 1))
        return weights.mean(1).expand(-1, call.layer.kv_heads, -1)
