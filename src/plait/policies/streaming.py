"""StreamingLLM: the first few tokens and the most recent ones, nothing else (2309.17453).

Keys keep the rotation of their original positions, as in DuoAttention. The paper counts positions within the cache
instead (``renumber=True``): after the window has moved on, a query stands ``sinks + window - 1`` tokens behind the
first one, however long the text is. The cache never holds more than ``sinks + window - 1`` tokens
between calls.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from plait.options import Options
from plait.runtime.call import Call, ModelInfo
from plait.runtime.meter import Meter
from plait.runtime.policy import Policy
from plait.runtime.products import attend_band
from plait.runtime.store import Keys


@dataclass(frozen=True)
class StreamingOptions(Options):
    """Options of StreamingLLM.

    Args:
        sinks: first tokens that every query sees.
        window: most recent tokens that a query sees, its own included.
        renumber: positions are those in the cache, not those in the text.
    """

    method: ClassVar[str] = "streaming"
    sinks: int = 4
    window: int = 1024
    renumber: bool = False

    def __post_init__(self) -> None:
        self.require_at_least(0, "sinks")
        self.require_at_least(1, "window")

    @classmethod
    def small(cls, dims: Any = None) -> Self:
        return cls(sinks=2, window=14)


class Streaming(Policy):
    """Query i sees key j iff ``j <= i`` and ``j < sinks or i - j < window``, in prefill and decoding alike."""

    Options = StreamingOptions
    options: StreamingOptions
    reduces = ("prefill", "decode")

    @classmethod
    def with_budget(cls, budget: int, length: int) -> dict[str, Any]:
        sinks = min(4, budget // 2)
        return {"sinks": sinks, "window": max(1, budget - sinks) if budget < length else length}

    def bind(self, model: ModelInfo) -> None:
        if self.options.renumber:
            model.require_rotation("streaming", "renumber=True")

    def prefill(self, call: Call) -> Tensor:
        keys, held = self.keys(call), self.options.sinks + self.options.window
        if self.options.renumber and self.options.sinks and int(call.last_positions.max()) >= held:
            return self._renumbered(call, keys)
        return attend_band(call, keys, window=self.options.window, sinks=self.options.sinks)

    def _renumbered(self, call: Call, keys: Keys) -> Tensor:
        """Recent keys keep their distance; to the sinks, a query is rotated back to its position in the cache.

        Both products are one of twice the width, in which each key leaves one half empty.
        """
        held = self.options.sinks + self.options.window
        offsets = (held - 1 - call.positions).clamp(max=0)
        first = (keys.places() < self.options.sinks)[..., None]
        k = torch.cat([keys.keys.masked_fill(first, 0), keys.keys.masked_fill(~first, 0)], dim=-1)
        q = torch.cat([call.q, call.shift(call.q, offsets)], dim=-1)
        meter = Meter()
        widened = replace(call, q=q, meter=meter)
        o = attend_band(widened, replace(keys, keys=k), window=self.options.window, sinks=self.options.sinks)
        real, wide = (d + call.v.shape[-1] for d in (call.q.shape[-1], q.shape[-1]))
        for work in meter.work.values():
            call.count(pairs=work.pairs, bytes_read=work.bytes_read * real // wide)
        return o

    decode = prefill

    def trim(self, call: Call) -> None:
        self.store(call).keep_band(self.options.sinks, self.options.window - 1)
