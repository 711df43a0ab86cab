"""Prompts read in chunks: what a policy does after a call, it does after every chunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from plait import catalog
from plait.mixers.state import LayerState
from plait.options import Options
from plait.policies.build import Spec, build
from plait.runtime.call import Call, LayerInfo, ModelInfo
from plait.runtime.policy import Policy


@dataclass(frozen=True)
class ChunkedOptions(Options):
    """Options of chunked prefill.

    Args:
        base: any policy, as a name or as a mapping with ``name`` and its options.
        chunk: tokens of a chunk.
    """

    method: ClassVar[str] = "chunked"
    base: Spec = "h2o"
    chunk: int = 1024

    def __post_init__(self) -> None:
        self.require_at_least(1, "chunk")

    @classmethod
    def small(cls, dims: Any = None) -> Self:
        return cls({"name": "h2o", "heavy": 8, "recent": 8}, chunk=16)


class Chunked(Policy):
    """A prompt is fed to another policy in chunks, layer by layer, so that its memory stays bounded while it is read.

    Each chunk sees what the policy kept of those before it, as with ``prefill_chunk_size`` of transformers, which
    feeds whole passes. A policy that never forgets gives the same output as on the whole prompt, if it looks at nothing
    beyond a chunk.

    Args:
        options: the policy as an option.
    """

    Options = ChunkedOptions
    options: ChunkedOptions
    reduces = ("prefill", "decode")

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.inner = build(self.options.base)
        self.looks_ahead = self.inner.looks_ahead

    @classmethod
    def with_budget(cls, budget: int, length: int) -> dict[str, Any]:
        kind: type[Policy] = catalog.get("h2o", "policy").load()
        inner = {"name": "h2o", **kind.with_budget(budget, length)}
        return {"base": inner, "chunk": max(1, min(budget, length) // 2)}

    def bind(self, model: ModelInfo) -> None:
        self.inner.bind(model)

    def serves(self, layer: LayerInfo) -> bool:
        return self.inner.serves(layer)

    def new_state(self, layer: LayerInfo) -> LayerState:
        return self.inner.new_state(layer)

    def attend(self, call: Call) -> Tensor:
        inner = self.inner.of(call.layer)
        return torch.cat([inner.attend(chunk) for chunk in self._chunks(call)], dim=2)

    def observe(self, call: Call) -> None:
        for chunk in self._chunks(call):
            self.inner.of(call.layer).observe(chunk)

    def _chunks(self, call: Call) -> list[Call]:
        length, size = call.q.shape[2], self.options.chunk
        if length <= size:
            return [call]
        return [call.chunk(first, min(first + size, length)) for first in range(0, length, size)]
