"""What a layer remembers between calls: typed segments, each with its own rule.

Everything a cache must do (count bytes, reorder for beams, repeat, copy, crop) is written once here, on
segments; a mixer only says which segments it has. Rows of a batch are kept *right-aligned*: padding, if any,
comes first, the newest token is last. So a query at slot ``t`` of ``T`` new ones stands at slot ``S - T + t``
of the ``S`` stored ones in every row, and ``start[b]`` is the first real slot of row ``b``.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from plait.errors import CacheError
from plait.mixers.growth import Growth


class Segment:
    """One piece of a layer's memory: named tensors with the batch in front."""

    #: Tensor attributes of the segment, in order; each is None until the first write.
    fields: tuple[str, ...] = ()
    #: Its other attributes.
    plain: tuple[str, ...] = ()
    #: Axis of the tokens, where it grows by them.
    axis = 1
    #: Whether the newest tokens can be taken back without a snapshot.
    can_crop = False

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors that exist now, by field name."""
        for field in self.fields:
            value = getattr(self, field)
            if value is not None:
                yield field, value

    def bytes(self) -> int:
        """Bytes held by the segment's payload (bookkeeping such as ``start`` is not payload)."""
        return sum(t.numel() * t.element_size() for name, t in self.tensors() if name != "start")

    def growth(self, name: str) -> Growth:
        """What joins new tokens to the tensor of this name; not part of a copy."""
        growths: dict[str, Growth] = self.__dict__.setdefault("_growths", {})
        return growths.setdefault(name, Growth(self.axis))

    def select_rows(self, indices: Tensor) -> None:
        """Keep (or reorder, or repeat) the rows named by ``indices``."""
        for name, tensor in list(self.tensors()):
            setattr(self, name, tensor.index_select(0, indices.to(tensor.device)))

    def copy(self) -> Segment:
        """An independent copy."""
        twin = type(self).__new__(type(self))
        for name in (*self.plain, *self.fields):
            value = getattr(self, name)
            setattr(twin, name, value.clone() if isinstance(value, Tensor) else value)
        return twin

    def crop(self, tokens: int) -> None:
        """Forget the newest ``tokens`` tokens.

        Raises:
            CacheError: the segment has folded them into a state and cannot.
        """
        if tokens:
            raise CacheError(
                f"A {type(self).__name__} segment cannot forget its last {tokens} tokens: they are folded into its "
                "state. Take cache.snapshot() before these tokens and cache.restore() it instead of cropping."
            )

    def clear(self) -> None:
        """Back to empty."""
        self.__dict__.pop("_growths", None)
        for name in self.fields:
            setattr(self, name, None)


class Recurrent(Segment):
    """A state of constant size, for instance the matrix ``(B, H, K, V)`` of a linear mixer, in fp32."""

    fields = ("value",)

    def __init__(self) -> None:
        self.value: Tensor | None = None


class ConvTail(Segment):
    """The last ``kernel - 1`` inputs ``(B, kernel - 1, C)`` of a causal convolution."""

    fields = ("value",)

    def __init__(self) -> None:
        self.value: Tensor | None = None


class KeyValues(Segment):
    """Keys and values ``(B, S, H, D)`` of softmax attention, all of them or those a window can still see.

    Args:
        window: number of tokens a query sees, itself included; the segment then keeps ``window - 1``.
    """

    fields = ("keys", "values", "start")
    plain = ("window", "seen")

    def __init__(self, window: int | None = None) -> None:
        self.window = window
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.start: Tensor | None = None
        self.seen = 0

    @property
    def can_crop(self) -> bool:  # type: ignore[override]
        """A full segment can always forget; a window only while it has dropped nothing."""
        return self.window is None or self.seen <= max(self.window - 1, 0)

    def append(self, keys: Tensor, values: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Add new tokens and return all that the new queries may see.

        Args:
            keys, values: ``(B, T, H, D)``, padding first in each row.
            padding: ``(B,)`` number of padding slots at the front of the new tokens, or None.

        Returns:
            keys and values ``(B, S, H, D)`` right-aligned, and ``start`` ``(B,)``: first real slot, or None.
        """
        added = keys.shape[1]
        start = padding
        if self.keys is not None and self.values is not None:
            old = self.keys.shape[1]
            keys, values = self.growth("keys").join(self.keys, keys), self.growth("values").join(self.values, values)
            if padding is not None and bool((padding > 0).any()):
                keys, values = (_close_gap(x, self.start, old, padding) for x in (keys, values))
            start = padding if self.start is None else self.start if padding is None else self.start + padding
        self.seen += added
        kept = keys.shape[1] if self.window is None else min(keys.shape[1], self.window - 1)
        dropped = keys.shape[1] - kept
        self.keys, self.values = self.growth("keys").last(keys, kept), self.growth("values").last(values, kept)
        self.start = None if start is None else (start - dropped).clamp(min=0)
        return keys, values, start

    def crop(self, tokens: int) -> None:
        if tokens == 0 or self.keys is None or self.values is None:
            return
        if not self.can_crop:
            raise CacheError(
                f"A window of {self.window} tokens has dropped what it would need to forget the last {tokens}. "
                "Take cache.snapshot() before these tokens and cache.restore() it instead of cropping."
            )
        if tokens > self.keys.shape[1]:
            raise CacheError(f"Cannot forget {tokens} tokens: the cache holds {self.keys.shape[1]}.")
        kept = self.keys.shape[1] - tokens
        self.keys, self.values = self.keys[:, :kept].clone(), self.values[:, :kept].clone()
        self.seen -= tokens

    def clear(self) -> None:
        super().clear()
        self.seen = 0


def _close_gap(joined: Tensor, start: Tensor | None, old: int, padding: Tensor) -> Tensor:
    """Move the padding that stands between old and new tokens to the front of each row."""
    slots = torch.arange(joined.shape[1], device=joined.device)
    first = torch.zeros_like(padding) if start is None else start
    real = (slots >= first[:, None]) & ((slots < old) | (slots >= old + padding[:, None]))
    order = torch.argsort(real.to(torch.int8), dim=1, stable=True)
    return joined.gather(1, order[:, :, None, None].expand_as(joined))


class LayerState:
    """All segments of one layer, by name."""

    def __init__(self, segments: dict[str, Segment]) -> None:
        self.segments = segments

    def __getitem__(self, name: str) -> Segment:
        return self.segments[name]

    def bytes(self) -> int:
        """Bytes held by all segments."""
        return sum(segment.bytes() for segment in self.segments.values())

    @property
    def can_crop(self) -> bool:
        """Whether every segment can take tokens back."""
        return all(segment.can_crop for segment in self.segments.values())

    def select_rows(self, indices: Tensor) -> None:
        """Keep, reorder or repeat rows in every segment."""
        for segment in self.segments.values():
            segment.select_rows(indices)

    def crop(self, tokens: int) -> None:
        """Forget the newest tokens in every segment; nothing changes if one of them cannot."""
        for segment in self.segments.values():
            if not segment.can_crop:
                segment.crop(tokens)
        for segment in self.segments.values():
            segment.crop(tokens)

    def copy(self) -> LayerState:
        """An independent copy."""
        return LayerState({name: segment.copy() for name, segment in self.segments.items()})

    def clear(self) -> None:
        """Back to empty."""
        for segment in self.segments.values():
            segment.clear()
