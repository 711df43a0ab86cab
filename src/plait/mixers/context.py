"""What every layer of one forward pass is told, made once by the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from plait.errors import OptionError
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
        index: ``(B, T)`` int64, number of each token within its own document, from 0; padding holds 0. What counts
            tokens or blocks counts by it.
        positions: ``(B, T)`` int64, positions for rotary embeddings alone; the caller may shift them. None: ``index``.
        padding: ``(B,)`` int64, padding slots at the front of each row of this call, or None for none.
        cu_seqlens: ``(N + 1,)`` int64, borders of the N documents packed into the single row, or None.
        seen: ``(B,)`` int64, tokens of each row before this call. None: there were none.
        state: this layer's memory, read and updated in place, or None when nothing is cached.
        phase: ``train``, ``prefill`` (several tokens) or ``decode`` (one token on a filled cache).
        parameters: those that the model holds once for all layers of this type, by name.
        published: what layers hand to each other in this pass, see :meth:`publish`.
        losses: auxiliary losses by name, summed over layers, see :meth:`add_loss`.
        weighted: the same, each times its weight.
        pairs: products of a query with a key scored so far, summed over rows and query heads, by layer, when a
            meter is wanted; else None.
        attentions: weights of the softmax layers ``(B, H, T, S)`` of this pass, in their order, when wanted; else None.
        sequence: where other processes hold the rest of each row, the ways to them; else None.
        update_running_state: whether what a mixer learns without a gradient (averages, codebooks, counters of use) may
            change: False in evaluation and when a checkpointed block computes again.
        overwrite_state: whether the cache's tensors may be overwritten with what follows them.
        before: what was published before the block ran on this context, so that it finds the same when it computes
            again for the backward pass; None while it has not run.
        tables: rotary tables, made by the first layer that needs them.
    """

    index: Tensor
    positions: Tensor = None  # type: ignore[assignment]  # a tensor once it is made
    padding: Tensor | None = None
    cu_seqlens: Tensor | None = None
    seen: Tensor = None  # type: ignore[assignment]
    state: LayerState | None = None
    phase: Phase = "train"
    parameters: Mapping[str, Tensor] = field(default_factory=dict)
    published: dict[tuple[int, str], Any] = field(default_factory=dict)
    losses: dict[str, Tensor] = field(default_factory=dict)
    weighted: dict[str, Tensor] = field(default_factory=dict)
    pairs: dict[int, int] | None = None
    attentions: list[Tensor] | None = None
    sequence: SequenceShard | None = None
    update_running_state: bool = True
    overwrite_state: bool = True
    before: dict[tuple[int, str], Any] | None = None
    tables: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.positions is None:
            self.positions = self.index  # type: ignore[unreachable]
        if self.seen is None:
            self.seen = self.index.new_zeros(self.index.shape[0])  # type: ignore[unreachable]

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
        before = first if self.padding is None else (first - self.padding).clamp(min=0)
        return replace(
            self,
            index=self.index[:, first:last],
            positions=self.positions[:, first:last],
            padding=padding,
            seen=self.seen + before,
            published={},
            tables={},
            pairs=None,
            attentions=None,
        )

    def again(self) -> Context:
        """The pass for a block that computes again for the backward pass: it finds what it found, leaves no trace."""
        assert self.before is not None
        return replace(
            self,
            published=dict(self.before),
            losses={},
            weighted={},
            pairs=None,
            attentions=None if self.attentions is None else [],
            update_running_state=False,
            overwrite_state=False,
        )

    def publish(self, layer: int, name: str, x: Any) -> None:
        """Hand ``x`` (a tensor, or a tuple of them) to later layers of this pass.

        Args:
            layer: index of the layer that hands it on.
            name: under which the others find it.
            x: what they get; its gradients flow back to this layer.
        """
        self.published[layer, name] = x

    def of(self, layer: int, name: str) -> Any:
        """What a layer has published in this pass.

        Raises:
            OptionError: it has published nothing under this name.
        """
        if (layer, name) not in self.published:
            found = sorted({key for index, key in self.published if index == layer})
            raise OptionError(
                f"Layer {layer} has published no {name!r} in this pass, only {found}: the layer that needs it must "
                "stand behind one that makes it."
            )
        return self.published[layer, name]

    def publishers(self, name: str) -> list[int]:
        """Layers that have published under this name so far, in increasing order."""
        return sorted(layer for layer, key in self.published if key == name)

    def add_loss(self, name: str, value: Tensor, weight: float = 1.0) -> None:
        """Add an auxiliary loss to the model's in training; evaluation has none.

        Args:
            name: under which it is logged; layers that add to one name are summed.
            value: a scalar, the mean over the tokens of this call.
            weight: factor in the total.
        """
        if self.phase != "train":
            return
        for losses, x in ((self.losses, value), (self.weighted, weight * value)):
            losses[name] = losses[name] + x if name in losses else x

    @property
    def real(self) -> Tensor | None:
        """``(B, T)`` bool, True at real tokens, or None when there is no padding."""
        if self.padding is None:
            return None
        length = self.index.shape[1]
        return torch.arange(length, device=self.padding.device) >= self.padding[:, None]

    def zero_padding(self, x: Tensor) -> Tensor:
        """``x`` ``(B, T, ...)`` with zeros at padding slots."""
        real = self.real
        return x if real is None else x.masked_fill(~real.view(*real.shape, *[1] * (x.dim() - 2)), 0)

    def rotate(self, x: Tensor, base: float) -> Tensor:
        """``x`` ``(B, T, H, D)`` rotated by the positions; layers of one head dim and base share the table."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        key = f"{x.shape[-1]}/{base}/{dtype}"
        if key not in self.tables:
            self.tables[key] = rotary_table(self.positions, x.shape[-1], base, dtype)
        return rotate(x, *self.tables[key])
