"""Recycled Attention / RefreshKV: decode over the few tokens attended at the last full step (2411.05787).

All keys stay. Most steps read a small copy per layer and kv head; every ``stride`` steps, or when the query has drifted
from that of the last full step, one step reads everything and chooses the small copy anew. Prefill is dense; the
attention of the prompt's last token makes the first copy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from plait.mixers.state import LayerState, Segment
from plait.options import Options
from plait.policies.importance import best, last_queries, over_group
from plait.runtime.call import Call, LayerInfo, ModelInfo
from plait.runtime.policy import Policy
from plait.runtime.products import attend_band, probabilities
from plait.runtime.store import Keys, Store


@dataclass(frozen=True)
class RecycledOptions(Options):
    """Options of Recycled Attention.

    Args:
        capacity: tokens of the small copy, K.
        stride: full step every so many steps; None: when the query has drifted.
        check: without ``stride``, compare queries every so many steps.
        threshold: full step when the mean cosine over query heads of the query and that of the last full step is this
            or less; each layer and row decides for itself.
        similarity: compare queries as they are scored (``rotated``) or rotated back to no position (``raw``).
        pool: width of the max pooling of importance along positions; odd, 1 for none.
        refresh: choose the small copy anew at full steps; False for the ablation.
        full_attention: read everything at full steps; False for the ablation.
    """

    method: ClassVar[str] = "recycled"
    capacity: int = 2048
    stride: int | None = None
    check: int = 5
    threshold: float = 0.8
    similarity: Literal["rotated", "raw"] = "rotated"
    pool: int = 1
    refresh: bool = True
    full_attention: bool = True

    def __post_init__(self) -> None:
        self.require_at_least(1, "capacity", "check", "pool")
        self.require(self.stride is None or self.stride >= 1, "stride", "must be 1 or more")
        self.require(self.pool % 2 == 1, "pool", "must be odd")

    @classmethod
    def small(cls, dims: Any = None) -> Self:
        return cls(capacity=12, stride=4)


class LastFull(Segment):
    """What the last full step leaves: its queries ``(B, H, 1, D)``, and the number of steps decoded."""

    fields = ("query",)
    plain = ("step",)

    def __init__(self) -> None:
        self.query: Tensor | None = None
        self.step = 0

    def clear(self) -> None:
        super().clear()
        self.step = 0


class Recycled(Policy):
    """Full step: attend all; ``I = max over the group of softmax(q K^T)``; the small copy is the top K of I.

    Other steps attend the small copy only.

    A token decoded since the last full step has no importance yet; it stays until the next one, older ones make room.
    """

    Options = RecycledOptions
    options: RecycledOptions
    reduces = ("decode",)

    @classmethod
    def with_budget(cls, budget: int, length: int) -> dict[str, Any]:
        return {"capacity": min(budget, length), "stride": 4}

    def bind(self, model: ModelInfo) -> None:
        if self.options.similarity == "raw":
            model.require_rotation("recycled", "similarity='raw'")

    def new_state(self, layer: LayerInfo) -> LayerState:
        return LayerState({"kv": Store(), "small": Store(extras=("importance",)), "last_full": LastFull()})

    def write(self, call: Call) -> None:
        super().write(call)
        small, last = self.store(call, "small"), self.last_full(call)
        if call.phase != "decode" or not small.size:
            last.step = 0
            self.refresh(call, small)
            return
        last.step += 1
        # later than any attention weight, and the newest last
        importance = (call.positions + 1).to(torch.promote_types(call.k.dtype, torch.float32))
        small.add(call.k, call.v, call.positions, call.lengths, importance=importance[:, None].expand(call.k.shape[:3]))
        held: Any = small
        if small.size > self.options.capacity:
            small.keep(*best(_filled(held.importance, small.view()), self.options.capacity))

    def decode(self, call: Call) -> Tensor:
        small = self.store(call, "small")
        if self.last_full(call).step == 0:
            return attend_band(call, self.keys(call))
        full = self.drifted(call)
        if not bool(full.any()):
            return attend_band(call, small.view())
        rows, others = (mask.nonzero().flatten() for mask in (full, ~full))
        outputs = call.q.new_empty(*call.q.shape[:3], call.v.shape[-1])
        source = self.keys(call) if self.options.full_attention else small.view()
        outputs = outputs.index_copy(0, rows, attend_band(call.rows(rows), source.rows(rows)))
        if len(others):
            outputs = outputs.index_copy(0, others, attend_band(call.rows(others), small.view().rows(others)))
        self.refresh(call, small, rows if len(others) else None)
        return outputs

    def drifted(self, call: Call) -> Tensor:
        """Which rows do a full step, ``(B,)`` bool."""
        last, every = self.last_full(call), self.options.stride or self.options.check
        due = torch.full((call.q.shape[0],), last.step % every == 0, device=call.q.device)
        if self.options.stride is not None or last.step % every:
            return due
        assert last.query is not None
        return F.cosine_similarity(self.compared(call), last.query, dim=-1).mean((1, 2)) <= self.options.threshold

    def compared(self, call: Call) -> Tensor:
        """Queries in the space in which they are compared."""
        if self.options.similarity == "rotated":
            return call.q
        return call.raw()[0]

    def refresh(self, call: Call, small: Store, rows: Tensor | None = None) -> None:
        """Choose the small copy by the attention of each row's newest query; only in ``rows``, if given."""
        last = self.last_full(call)
        if rows is not None:
            call = call.rows(rows)
        keys = self.keys(call) if rows is None else self.keys(call).rows(rows)
        q, positions, real = last_queries(call, 1)
        query = last_queries(replace(call, q=self.compared(call)), 1)[0]
        last.query = query if rows is None or last.query is None else last.query.index_copy(0, rows, query)
        if small.size and not self.options.refresh and call.phase == "decode":
            return
        importance = over_group(probabilities(call, keys, q, positions, real).squeeze(2), call.layer.group, "amax")
        width = self.options.pool
        if width > 1:
            importance = F.max_pool1d(importance, width, stride=1, padding=width // 2)
        index, valid = best(_filled(importance, keys), self.options.capacity)
        chosen = small if rows is None else Store(extras=small.extras)
        chosen.take(keys, index, valid, importance=importance.gather(2, index))
        if rows is not None:
            small.replace_rows(rows, chosen)

    @staticmethod
    def last_full(call: Call) -> LastFull:
        """The layer's last full step."""
        last = call.state["last_full"]
        assert isinstance(last, LastFull)
        return last


def _filled(scores: Tensor, keys: Keys) -> Tensor:
    """``scores`` ``(B, G, S)`` with ``-inf`` at empty slots."""
    if keys.lengths is None:
        return scores
    slots = torch.arange(keys.size, device=scores.device)
    return scores.masked_fill(slots >= keys.lengths[..., None], float("-inf"))
