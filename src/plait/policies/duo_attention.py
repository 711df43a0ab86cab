"""DuoAttention: retrieval heads keep everything, the others sinks and recent tokens only (2410.10819).

A table says how much each kv head needs full attention; the largest values, over all layers together, make the full
heads. Each layer has two caches. The streaming heads' part is constant in the length of the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from plait.errors import OptionError
from plait.mixers.state import LayerState
from plait.options import Options
from plait.policies.duo_optimise import FindHeadsOptions, find_heads
from plait.policies.head_table import HeadTable
from plait.runtime.artefact import Artefact
from plait.runtime.call import Call, LayerInfo, ModelInfo
from plait.runtime.policy import CalibrationRow, Policy
from plait.runtime.products import attend_band
from plait.runtime.store import Store

#: Tables that need no file.
NAMED = {"full": 1.0, "streaming": 0.0}


@dataclass(frozen=True)
class DuoAttentionOptions(Options):
    """Options of DuoAttention.

    Args:
        heads: the table: rows of numbers in [0, 1] by layer and kv head, the path of a file (see
            :meth:`~plait.policies.head_table.HeadTable.load`), ``"full"`` or ``"streaming"`` for all heads alike.
        sparsity: share of heads that stream, over all layers; None: those below ``threshold``.
        threshold: without ``sparsity``, heads with at least this value are full.
        sinks: first tokens that streaming heads keep.
        recent: last tokens that streaming heads keep.
        window_includes_self: whether a decoded token counts among its ``recent`` ones. As published, the cache holds
            ``recent`` tokens beside it.
        chunk: streaming heads take a prompt in chunks of so many tokens: within a chunk they see all before them, and
            the sinks and recent tokens of the chunks before. The first chunk is dense.
        strict: apply the window within chunks too, so that their size changes nothing.
    """

    method: ClassVar[str] = "duo_attention"
    heads: list[list[float]] | str | None = None
    sparsity: float | None = 0.5
    threshold: float = 0.5
    sinks: int = 64
    recent: int = 256
    window_includes_self: bool = False
    chunk: int = 4096
    strict: bool = False

    def __post_init__(self) -> None:
        self.require_at_least(0, "sinks")
        self.require_at_least(1, "recent", "chunk")
        self.require(self.sparsity is None or 0 <= self.sparsity <= 1, "sparsity", "is a share: between 0 and 1")

    @property
    def held(self) -> int:
        """Recent tokens that a streaming head keeps between calls."""
        return self.recent - 1 if self.window_includes_self else self.recent

    @classmethod
    def small(cls, dims: Any = None) -> Self:
        return cls(heads="streaming", sparsity=None, sinks=2, recent=12, chunk=16)


class DuoAttention(Policy):
    """Full heads attend all; streaming heads attend ``sinks`` and ``recent`` cached tokens and the new ones."""

    Options = DuoAttentionOptions
    options: DuoAttentionOptions
    Calibration = FindHeadsOptions
    calibrated = "heads"
    reduces = ("prefill", "decode")

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self._full: dict[int, list[bool]] = {}

    @classmethod
    def with_budget(cls, budget: int, length: int) -> dict[str, Any]:
        """All heads stream: a table is needed for more."""
        if budget >= length:
            return {"heads": "streaming", "recent": length, "chunk": length}
        sinks, chunk = min(4, budget // 4), max(1, budget // 3)
        return {"heads": "streaming", "sinks": sinks, "recent": max(1, budget - sinks - chunk), "chunk": chunk}

    @classmethod
    def calibrate(
        cls,
        model: Any,
        rows: Iterable[CalibrationRow],
        options: FindHeadsOptions,
        announce: Callable[[str], None] = lambda line: None,
    ) -> Artefact:
        """The table of :func:`~plait.policies.find_heads`."""
        return find_heads(model, rows, options, announce=announce).artefact()

    def bind(self, model: ModelInfo) -> None:
        heads = self.options.heads
        if heads is None:
            raise OptionError(
                "Policy 'duo_attention' needs option heads: a table of this model by layer and kv head, its file, "
                "or 'streaming' to let every head stream."
            )
        served = [layer for layer in model.layers if self.serves(layer)]
        if isinstance(heads, str) and heads in NAMED:
            self._full = {layer.index: [heads == "full"] * layer.kv_heads for layer in served}
            return
        table = HeadTable.load(heads) if isinstance(heads, str) else HeadTable(tuple(map(tuple, heads)))
        table.check(model)
        # windowed layers stream already: they take no part in the ranking
        rows = [row for layer, row in zip(model.layers, table.values, strict=True) if self.serves(layer)]
        if self.options.sparsity is None:
            least = self.options.threshold
            self._full = {layer.index: [v >= least for v in row] for layer, row in zip(served, rows, strict=True)}
        else:
            self._full = replace(table, values=tuple(rows)).largest(1 - self.options.sparsity, served)

    def full_heads(self, layer: LayerInfo) -> list[bool]:
        """Which kv heads of a layer attend everything."""
        return self._full[layer.index]

    def new_state(self, layer: LayerInfo) -> LayerState:
        full = self.full_heads(layer)
        stores = {"full": any(full), "streaming": not all(full)}
        return LayerState({name: Store() for name, wanted in stores.items() if wanted})

    def attend(self, call: Call) -> Tensor:
        full, streaming = self._parts(call)
        if streaming is None:
            return self._attend_full(call)
        if full is None:
            return self._attend_streaming(call)
        o = call.q.new_empty(*call.q.shape[:3], call.v.shape[-1]).unflatten(1, (-1, call.layer.group))
        for heads, attend in ((full, self._attend_full), (streaming, self._attend_streaming)):
            o = o.index_copy(1, heads, attend(call.heads(heads)).unflatten(1, (-1, call.layer.group)))
        return o.flatten(1, 2)

    def observe(self, call: Call) -> None:
        full, streaming = self._parts(call)
        for name, heads, others in (("full", full, streaming), ("streaming", streaming, full)):
            if heads is not None:
                part = call if others is None else call.heads(heads)
                self.store(call, name).add(part.k, part.v, part.positions, part.lengths)
        if streaming is not None:
            self.store(call, "streaming").keep_band(self.options.sinks, self.options.held)

    def _parts(self, call: Call) -> tuple[Tensor | None, Tensor | None]:
        """Full and streaming kv heads; None where there are none."""
        full = torch.tensor(self.full_heads(call.layer), device=call.q.device)
        parts = (mask.nonzero().flatten() if bool(mask.any()) else None for mask in (full, ~full))
        return next(parts), next(parts)

    def _attend_full(self, call: Call) -> Tensor:
        self.store(call, "full").add(call.k, call.v, call.positions, call.lengths)
        return attend_band(call, self.keys(call, "full"))

    def _attend_streaming(self, call: Call) -> Tensor:
        store, outputs, length = self.store(call, "streaming"), [], call.q.shape[2]
        window = self.options.held + 1 if self.options.strict else None
        for first in range(0, length, self.options.chunk):
            last = min(first + self.options.chunk, length)
            part = call.part(first, last)
            store.add(call.k[:, :, first:last], call.v[:, :, first:last], part.positions, part.lengths)
            outputs.append(attend_band(part, store.view(), window=window, sinks=self.options.sinks))
            store.keep_band(self.options.sinks, self.options.held)
        return torch.cat(outputs, dim=2)
