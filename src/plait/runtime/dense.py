"""Dense attention as a policy: the reference of the others, and what serves the layers that they leave alone."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from plait.runtime.call import Call, LayerInfo
from plait.runtime.policy import Policy
from plait.runtime.products import attend_band


class Dense(Policy):
    """Dense causal attention; in layers with a window, attention within it and a cache of no more than it."""

    any_split = True

    @classmethod
    def with_budget(cls, budget: int, length: int) -> dict[str, Any]:
        return {}

    def serves(self, layer: LayerInfo) -> bool:
        return True

    def prefill(self, call: Call) -> Tensor:
        return attend_band(call, self.keys(call), window=call.layer.window)

    decode = prefill

    def trim(self, call: Call) -> None:
        if call.layer.window is not None:
            self.store(call).keep_band(0, call.layer.window - 1)
