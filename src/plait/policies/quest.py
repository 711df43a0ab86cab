"""Quest: decoding over the pages whose keys could score highest (2406.10774, as in The Sparse Frontier, 2504.17768).

Every key stays. Per page and channel the smallest and the largest key are kept; they bound the product of a query with
any key of the page. The current page and those with the largest bounds are read. Prefill is dense. The paper leaves
the first two layers dense (``dense_layers=2``) and lets each query head choose (``share_pages=False``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from plait.mixers.state import LayerState, Segment
from plait.options import Options
from plait.policies.importance import best, counted, over_group
from plait.runtime.call import Call, LayerInfo
from plait.runtime.policy import Policy
from plait.runtime.products import attend_band, attend_pages
from plait.runtime.store import Keys, Store


@dataclass(frozen=True)
class QuestOptions(Options):
    """Options of Quest.

    Args:
        page: tokens of a page.
        budget: tokens read beside the current page; a multiple of ``page``.
        dense_layers: first layers that read everything; 2 in the paper, none in The Sparse Frontier.
        share_pages: query heads of one kv head read the same pages, chosen by the sum of their bounds.
    """

    method: ClassVar[str] = "quest"
    page: int = 16
    budget: int = 1024
    dense_layers: int = 0
    share_pages: bool = True

    def __post_init__(self) -> None:
        self.require_at_least(1, "page")
        self.require_at_least(0, "dense_layers")
        self.require(
            self.budget >= self.page and self.budget % self.page == 0,
            "budget",
            f"must be a multiple of the page's {self.page} tokens",
        )

    @classmethod
    def small(cls, dims: Any = None) -> Self:
        return cls(page=4, budget=12)


class Pages(Segment):
    """Smallest and largest key of each page by channel, ``(B, G, P, D)``."""

    fields = ("low", "high")
    can_crop = True

    def __init__(self) -> None:
        self.low: Tensor | None = None
        self.high: Tensor | None = None

    def crop(self, tokens: int) -> None:
        """Nothing to do: the next update begins at the page of its first token and writes stale pages anew."""

    def update(self, keys: Keys, first: int, size: int) -> None:
        """Compute the pages from the one that holds position ``first`` on."""
        page = first // size
        k = keys.keys[:, :, page * size :]
        spare, ends = (0, 0, 0, -k.shape[2] % size), (float("inf"), float("-inf"))
        if keys.lengths is None:
            low, high = (F.pad(k, spare, value=end) for end in ends)
        else:
            empty = torch.arange(page * size, keys.size, device=k.device) >= keys.lengths[..., None]
            low, high = (F.pad(k.masked_fill(empty[..., None], end), spare, value=end) for end in ends)
        low, high = low.unflatten(2, (-1, size)).amin(3), high.unflatten(2, (-1, size)).amax(3)
        if self.low is not None and self.high is not None and page:
            low = torch.cat([self.low[:, :, :page], low], dim=2)
            high = torch.cat([self.high[:, :, :page], high], dim=2)
        self.low, self.high = low, high


class Quest(Policy):
    """``u_page = sum_d max(q_d low_d, q_d high_d)``; the pages with the largest u, and the current one, are read."""

    Options = QuestOptions
    options: QuestOptions
    reduces = ("decode",)

    @classmethod
    def with_budget(cls, budget: int, length: int) -> dict[str, Any]:
        page = max(1, min(16, budget // 4))
        budget = max(page, (min(budget, length) - 1) // page * page)
        return {"page": page, "budget": budget}

    def serves(self, layer: LayerInfo) -> bool:
        return super().serves(layer) and layer.index >= self.options.dense_layers

    def new_state(self, layer: LayerInfo) -> LayerState:
        return LayerState({"kv": Store(), "pages": Pages()})

    def write(self, call: Call) -> None:
        super().write(call)
        self.pages(call).update(self.keys(call), int(call.forward.past.min()), self.options.page)

    def decode(self, call: Call) -> Tensor:
        keys, size = self.whole_keys(call), self.options.page
        pages = -(-keys.size // size)
        if pages <= self.options.budget // size + 1:
            return attend_band(call, keys)
        current = call.last_positions // size
        bounds = self.bounds(call)
        number = torch.arange(pages, device=bounds.device)
        bounds = bounds.masked_fill(number >= current[:, None, None], float("-inf"))
        bounds = bounds.masked_fill(number == current[:, None, None], float("inf"))
        index, counts = counted(*best(bounds[:, :, None], self.options.budget // size + 1))
        return attend_pages(call, keys, index, counts, page=size)

    def bounds(self, call: Call) -> Tensor:
        """Upper bound of the query's product with any key of each page, ``(B, G or H, P)``."""
        pages, group = self.pages(call), call.layer.group
        assert pages.low is not None
        assert pages.high is not None
        low, high = pages.low, pages.high
        if self.keys(call).lengths is not None:  # pages without a token in a row are infinite and never chosen
            low, high = (x.masked_fill(x.isinf(), 0) for x in (low, high))
        # max(q l, q h) = relu(q) h - relu(-q) l
        q = call.q.unflatten(1, (-1, group)).squeeze(3)
        u = (q.clamp(min=0) @ high.mT + q.clamp(max=0) @ low.mT).flatten(1, 2)
        call.count(index_pairs=u.numel(), bytes_read=pages.bytes())
        return over_group(u, group, "sum") if self.options.share_pages else u

    @staticmethod
    def pages(call: Call) -> Pages:
        """The layer's pages."""
        pages = call.state["pages"]
        assert isinstance(pages, Pages)
        return pages
