"""StreamingLLM: the first few tokens and the most recent ones, nothing else (2309.17453).

Keys keep the rotation of their original positions. The cache never holds more than ``sinks + window - 1`` tokens
between calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from plait.policies.base import Policy, PolicyOptions
from plait.policies.call import Call
from plait.policies.products import band


@dataclass(frozen=True)
class StreamingOptions(PolicyOptions):
    """Options of StreamingLLM.

    Args:
        sinks: first tokens that every query sees.
        window: most recent tokens that a query sees, its own included.
    """

    policy: ClassVar[str] = "streaming"
    sinks: int = 4
    window: int = 1024

    def __post_init__(self) -> None:
        self.require_at_least(0, "sinks")
        self.require_at_least(1, "window")


class Streaming(Policy):
    """Query i sees key j iff ``j <= i`` and ``j < sinks or i - j < window``, in prefill and decoding alike."""

    Options = StreamingOptions
    options: StreamingOptions
    reduces = ("prefill", "decode")

    @classmethod
    def with_budget(cls, budget: int, length: int) -> dict[str, Any]:
        sinks = min(4, budget // 2)
        return {"sinks": sinks, "window": max(1, budget - sinks) if budget < length else length}

    def prefill(self, call: Call) -> Tensor:
        return band(call, self.keys(call), window=self.options.window, sinks=self.options.sinks)

    decode = prefill

    def trim(self, call: Call) -> None:
        self.store(call).keep_band(self.options.sinks, self.options.window - 1)
