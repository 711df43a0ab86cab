"""Ada-SnapKV: SnapKV with a budget that the heads of a layer share (2407.11550, as in The Sparse Frontier, 2504.17768).

Each kv head keeps a minimum; the rest of the layer's budget goes to the best scores of all heads, so heads end with
different lengths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from plait.policies.importance import over_group
from plait.policies.snapkv import SnapKV, SnapKVOptions
from plait.policies.store import Keys, first_true


@dataclass(frozen=True)
class AdaSnapKVOptions(SnapKVOptions):
    """Options of Ada-SnapKV.

    Args:
        capacity: tokens kept per kv head, on average over the heads of a layer.
        last_queries: queries at the prompt's end whose attention decides.
        pool: neighbours over which scores are averaged; odd.
        sinks: first tokens that are always kept, within the capacity.
        recent: last tokens of the prompt that are always kept, within the capacity.
        least: share of ``capacity`` that every head keeps; never less than sinks and recent tokens.
    """

    policy: ClassVar[str] = "ada_snapkv"
    least: float = 0.2

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
        return over_group(weights.amax(2), group, "amax")

    def select(self, scores: Tensor, keys: Keys) -> tuple[Tensor, Tensor | None]:
        batch, heads, size = scores.shape
        real = (scores > float("-inf")).sum(-1)
        capacity, least = (real.clamp(max=n)[:, :1] for n in (self.options.capacity, self.options.minimum))
        rank = scores.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        first = rank < least[..., None]
        rest = scores.masked_fill(first, float("-inf")).flatten(1)
        rank = rest.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        rest_wanted = (rank < heads * (capacity - least)) & (rest > float("-inf"))
        return first_true(first | rest_wanted.view(batch, heads, size), size)
