"""Budgets that differ by head or by layer, for any policy that evicts by a score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from plait import catalog
from plait.errors import OptionError
from plait.mixers.state import LayerState
from plait.options import Options
from plait.policies.build import Spec, build
from plait.policies.scored import ScoredPolicy, share_among_heads
from plait.runtime.call import Call, LayerInfo, ModelInfo
from plait.runtime.policy import Policy
from plait.runtime.store import Keys


@dataclass(frozen=True)
class HeadBudgetsOptions(Options):
    """Options of budgets by head.

    Args:
        base: a policy that evicts by a score, as a name or as a mapping with ``name`` and its options; its capacity
            is that of a head on average.
        least: share of the capacity that every head keeps; never less than what the policy always keeps.
    """

    method: ClassVar[str] = "head_budgets"
    base: Spec = "snapkv"
    least: float = 0.2

    def __post_init__(self) -> None:
        self.require(0 <= self.least <= 1, "least", "is a share: between 0 and 1")

    @classmethod
    def small(cls, dims: Any = None) -> Self:
        return cls({"name": "tova", "capacity": 16})


class Delegate(Policy):
    """A policy that leaves everything to another one, which evicts by a score.

    Args:
        options: name that policy in ``base``.
    """

    reduces = ("decode",)

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.inner = scored(self.options)
        self.looks_ahead = self.inner.looks_ahead

    def bind(self, model: ModelInfo) -> None:
        self.inner.bind(model)

    def of(self, layer: LayerInfo) -> Policy:
        return self.inner

    def serves(self, layer: LayerInfo) -> bool:
        return self.inner.serves(layer)

    def new_state(self, layer: LayerInfo) -> LayerState:
        return self.of(layer).new_state(layer)

    def attend(self, call: Call) -> Tensor:
        return self.of(call.layer).attend(call)

    def observe(self, call: Call) -> None:
        self.of(call.layer).observe(call)


class HeadBudgets(Delegate):
    """The heads of a layer share its budget, as in Ada-KV (2407.11550), whatever the score is.

    Every head keeps a minimum of its own best; the rest goes to the best scores of all heads, so heads end with
    different lengths. ``ada_snapkv`` is this over SnapKV's scores with the paper's own reductions.
    """

    Options = HeadBudgetsOptions
    options: HeadBudgetsOptions

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.inner.select = self.select  # type: ignore[method-assign]  # an object of its own, made by build

    @classmethod
    def with_budget(cls, budget: int, length: int) -> dict[str, Any]:
        return {"base": _spec("snapkv", budget, length)}

    def select(self, scores: Tensor, keys: Keys) -> tuple[Tensor, Tensor | None]:
        """See :meth:`~plait.policies.scored.ScoredPolicy.select`."""
        least = max(int(self.options.least * self.inner.capacity), sum(self.inner.always))
        return share_among_heads(scores, self.inner.capacity, least)


@dataclass(frozen=True)
class LayerBudgetsOptions(Options):
    """Options of budgets by layer.

    Args:
        base: a policy that evicts by a score, as a name or as a mapping with ``name`` and its options; its capacity
            is that of a layer on average.
        spread: the first layer that the policy serves has ``1 + spread`` times the capacity, the last one
            ``1 - spread`` times, those between lie on a line; below 0 the last has the most.
    """

    method: ClassVar[str] = "layer_budgets"
    base: Spec = "snapkv"
    spread: float = 0.5

    def __post_init__(self) -> None:
        self.require(-1 < self.spread < 1, "spread", "is a share of the capacity: above -1 and below 1")

    @classmethod
    def small(cls, dims: Any = None) -> Self:
        return cls({"name": "tova", "capacity": 16})


class LayerBudgets(Delegate):
    """A capacity for each layer, falling with depth as in PyramidKV (2406.02069): early layers attend widely.

    The paper's line ends at a fixed small budget in the last layer, with a window of 8 tokens always kept; ``spread``
    states the same line by its slope (reconstruction).
    """

    Options = LayerBudgetsOptions
    options: LayerBudgetsOptions

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self._layers: dict[int, Policy] = {}

    @classmethod
    def with_budget(cls, budget: int, length: int) -> dict[str, Any]:
        return {"base": _spec("snapkv", budget, length), "spread": 0.0 if budget >= length else 0.5}

    def bind(self, model: ModelInfo) -> None:
        super().bind(model)
        served = [layer.index for layer in model.layers if self.inner.serves(layer)]
        shares = torch.linspace(1 + self.options.spread, 1 - self.options.spread, len(served)).tolist()
        for index, share in zip(served, shares if len(served) > 1 else [1.0], strict=True):
            options = self.inner.options.resized(round(share * self.inner.capacity))
            self._layers[index] = type(self.inner)(options)
            self._layers[index].bind(model)

    def of(self, layer: LayerInfo) -> Policy:
        return self._layers[layer.index]


def scored(options: Any) -> ScoredPolicy:
    """The policy of the option ``base``, newly made.

    Raises:
        OptionError: it does not evict by a score.
    """
    policy = build(options.base)
    if not isinstance(policy, ScoredPolicy):
        kinds = {name: catalog.get(name, "policy").load() for name in catalog.names("policy")}
        others = [name for name, kind in kinds.items() if issubclass(kind, ScoredPolicy)]
        raise OptionError(
            f"Policy {options.method!r}, option base={options.base!r}: it evicts nothing by a score, so it has no "
            f"budget to share out. Take one of {', '.join(others)}."
        )
    return policy


def _spec(name: str, budget: int, length: int) -> Spec:
    kind: type[Policy] = catalog.get(name, "policy").load()
    return {"name": name, **kind.with_budget(budget, length)}
