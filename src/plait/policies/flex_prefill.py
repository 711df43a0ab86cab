"""FlexPrefill: Vertical-Slash with budgets that follow each head (2502.20766, as in The Sparse Frontier, 2504.17768).

A head takes as many columns, and as many diagonals, as it needs to cover the share ``coverage`` of its attention. The
original's other pattern (blocks chosen by mean queries and keys) and its switch between patterns, by the
Jensen-Shannon divergence of an estimated from a true distribution over blocks, are left out there and here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import Tensor

from plait.options import Options
from plait.policies.importance import best, beyond, pattern_sums
from plait.policies.vertical_slash import Chosen, vertical_slash
from plait.runtime.call import Call
from plait.runtime.policy import Policy


@dataclass(frozen=True)
class FlexPrefillOptions(Options):
    """Options of FlexPrefill.

    Args:
        coverage: share of a head's attention that its columns, and its diagonals, must reach (alpha of the paper).
        least: fewest columns and fewest diagonals.
        last_queries: queries at the prompt's end whose attention decides.
        sinks: first columns that are always taken, within the budget.
        block: queries that are computed together; so many nearest diagonals are always taken, within the budget.
    """

    method: ClassVar[str] = "flex_prefill"
    coverage: float = 0.65
    least: int = 512
    last_queries: int = 512
    sinks: int = 4
    block: int = 64

    def __post_init__(self) -> None:
        self.require(0 <= self.coverage <= 1, "coverage", "is a share: between 0 and 1")
        self.require_at_least(1, "last_queries", "block")
        self.require_at_least(0, "sinks")
        self.require(
            self.least >= max(self.sinks, self.block),
            "least",
            f"must hold {self.sinks} sinks and {self.block} nearest diagonals; raise it",
        )

    @classmethod
    def small(cls, dims: Any = None) -> Self:
        return cls(coverage=0.3, least=10, last_queries=16, sinks=2, block=8)


class FlexPrefill(Policy):
    """``size = max(least, 1 + #{cumulated sorted weights <= coverage})`` by query head, for columns and diagonals."""

    Options = FlexPrefillOptions
    options: FlexPrefillOptions
    reduces = ("prefill",)
    looks_ahead = True

    @classmethod
    def with_budget(cls, budget: int, length: int) -> dict[str, Any]:
        if budget >= length:
            return {"least": max(64, length)}
        least = max(4, budget // 2)
        return {"least": least, "block": max(1, min(64, least // 2)), "coverage": 0.3, "last_queries": 64}

    def prefill(self, call: Call) -> Tensor:
        columns, offsets = self.choose(call)
        return vertical_slash(call, columns, offsets, self.options.block)

    def choose(self, call: Call) -> tuple[Chosen, Chosen]:
        """Columns and diagonals of each query head."""
        columns, diagonals = pattern_sums(call, self.whole_keys(call), self.options.last_queries)
        new: int | Tensor = call.q.shape[2] if call.lengths is None else call.lengths[:, None, None]
        rows = min(new, self.options.last_queries) if isinstance(new, int) else new.clamp(max=self.options.last_queries)
        return (
            self._largest(columns / rows, call, self.options.sinks),
            self._largest(diagonals / rows, call, self.options.block),
        )

    def _largest(self, shares: Tensor, call: Call, forced: int) -> Chosen:
        """The largest ``shares`` ``(B, H, S)``, the first ``forced`` before all others."""
        lengths = call.last_positions + 1
        sizes = self.sizes(shares)
        shares = shares.clone()
        shares[..., :forced] = float("inf")
        return best(beyond(shares, lengths), int(sizes.max()), sizes)

    def sizes(self, shares: Tensor) -> Tensor:
        """How many entries each head takes, ``(B, H)``, of ``shares`` ``(B, H, S)`` that sum to 1."""
        cumulated = shares.sort(dim=-1, descending=True).values.cumsum(-1)
        return ((cumulated <= self.options.coverage).sum(-1) + 1).clamp(min=self.options.least, max=shares.shape[-1])
