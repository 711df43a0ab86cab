"""What every layer of one forward pass is told, made once by the model."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from plait.mixers.shard import SequenceShard
from plait.mixers.state import LayerState
from plait.nn.rotary import rotary_table, rotate

Phase = Literal["train", "prefill", "decode"]


@dataclass
class Context:
    """One forward pass as a layer sees it.

    Padding is always at the front of a row when a mixer runs: the model moves right and interior padding there
    and moves the outputs back. A batch is either padded or packed, never both.

    Args:
        positions: ``(B, T)`` int64, index of each token in its own document; padding holds 0.
        padding: ``(B,)`` int64, padding slots at the front of each row of this call, or None for none.
        cu_seqlens: ``(N + 1,)`` int64, borders of the N documents packed into the single row, or None.
        state: this layer's memory, read and updated in place, or None when nothing is cached.
        phase: ``train``, ``prefill`` (several tokens) or ``decode`` (one token on a filled cache).
        shared: what layers of this forward hand to each other (lower bounds, rotary tables, reused indices).
        losses: auxiliary losses by name, summed by the model with their weights.
        pairs: products of a query with a key scored so far, summed over rows and query heads, by layer, when a
            meter is wanted; else None.
        attentions: weights of the softmax layers ``(B, H, T, S)`` of this pass, in their order, when wanted; else None.
        sequence: where other processes hold the rest of each row, the ways to them; else None.
        update_running_state: False when nothing but the output may change (evaluation, recomputation).
        before: what was shared before a checkpointed block ran on this context, so that it finds the same when it
            computes again; None while it has not run.
    """

    positions: Tensor
    padding: Tensor | None = None
    cu_seqlens: Tensor | None = None
    state: LayerState | None = None
    phase: Phase = "train"
    shared: dict[str, Any] = field(default_factory=dict)
    losses: dict[str, Tensor] = field(default_factory=dict)
    pairs: dict[int, int] | None = None
    attentions: list[Tensor] | None = None
    sequence: SequenceShard | None = None
    update_running_state: bool = True
    before: dict[str, Any] | None = None

    @classmethod
    def plain(cls, x: Tensor, **options: Any) -> Context:
        """The context of a whole, unpadded, uncached batch ``x`` ``(B, T, ...)``."""
        batch, length = x.shape[:2]
        return cls(torch.arange(length, device=x.device).expand(batch, length), **options)

    def for_layer(self, state: LayerState | None) -> Context:
        """The same pass with another layer's memory; everything shared stays shared."""
        return replace(self, state=state, before=None)

    def piece(self, first: int, last: int) -> Context:
        """The same pass for the slots from ``first`` up to ``last`` alone; layers share nothing with the whole pass."""
        padding = None if self.padding is None else (self.padding - first).clamp(0, last - first)
        return replace(
            self, positions=self.positions[:, first:last], padding=padding, shared={}, pairs=None, attentions=None
        )

    @property
    def real(self) -> Tensor | None:
        """``(B, T)`` bool, True at real tokens, or None when there is no padding."""
        if self.padding is None:
            return None
        length = self.positions.shape[1]
        return torch.arange(length, device=self.padding.device) >= self.padding[:, None]

    def zero_padding(self, x: Tensor) -> Tensor:
        """``x`` ``(B, T, ...)`` with zeros at padding slots."""
        real = self.real
        return x if real is None else x.masked_fill(~real.view(*real.shape, *[1] * (x.dim() - 2)), 0)

    def rotate(self, x: Tensor, base: float) -> Tensor:
        """``x`` ``(B, T, H, D)`` rotated by the positions; layers of one head dim and base share the table."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        key = f"rotary/{x.shape[-1]}/{base}/{dtype}"
        if key not in self.shared:
            self.shared[key] = rotary_table(self.positions, x.shape[-1], base, dtype)
        return rotate(x, *self.shared[key])
