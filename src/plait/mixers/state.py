"""What a layer remembers between calls: typed segments, each with its own rule.

Everything a cache must do (count bytes, reorder for beams, repeat, copy, crop) is written once here, on
segments; a mixer only says which segments it has. Rows of a batch are kept *right-aligned*: padding, if any,
comes first, the newest token is last. So a query at slot ``t`` of ``T`` new ones stands at slot ``S - T + t``
of the ``S`` stored ones in every row, and ``start[b]`` is the first real slot of row ``b``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from plait.errors import CacheError, OptionError
from plait.mixers.growth import Growth


class Segment:
    """One piece of a layer's memory: named tensors with the batch in front."""

    #: Tensor attributes of the segment, in order; each is None until the first write.
    fields: tuple[str, ...] = ()
    #: Fields of a few integers a row, which do not count as bytes held.
    bookkeeping: tuple[str, ...] = ()
    #: Its other attributes, which never change.
    plain: tuple[str, ...] = ()
    #: Axis of the tokens, where it grows by them.
    axis = 1
    #: Whether it folds the past into a state, which stays in fp32 whatever the model's dtype is.
    recurrent = False
    #: Whether the newest tokens can be taken back now, without a snapshot.
    can_crop = False
    #: Whether they can be taken back at any length.
    always_crops = False
    #: Tokens to come until its sizes stand still, where they end at a bound.
    missing = 0

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors that exist now, by field name."""
        for field in self.fields:
            value = getattr(self, field)
            if value is not None:
                yield field, value

    def bytes(self) -> int:
        """Bytes held by the segment's payload, without its bookkeeping."""
        return sum(t.numel() * t.element_size() for name, t in self.tensors() if name not in self.bookkeeping)

    def carried(self) -> list[str]:
        """Fields that a decode step of unpadded rows hands to the next one."""
        return [field for field in self.fields if field not in self.bookkeeping]

    def grows(self, field: str) -> bool:
        """Whether a field gets longer with each token, without a bound."""
        return False

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


class Notes(Segment):
    """Small named tensors ``(B, ...)`` that a mixer reads and replaces as it likes.

    Args:
        names: of the tensors, which are attributes.
    """

    plain = ("fields",)

    def __init__(self, *names: str) -> None:
        self.fields = names
        self.clear()

    def __getattr__(self, name: str) -> Tensor | None:  # for type checkers: the constructor makes the attributes
        raise AttributeError(f"A {type(self).__name__} segment has no {name!r}.")


class States(Notes):
    """States of constant size in fp32, such as the matrix ``(B, H, K, V)`` of a linear mixer, or fast weights.

    What counts tokens or steps is a tensor ``(B,)`` among them.

    Args:
        names: of the states; ``value`` by default.
    """

    recurrent = True

    def __init__(self, *names: str) -> None:
        super().__init__(*(names or ("value",)))


class ConvTail(Notes):
    """The last ``kernel - 1`` inputs ``(B, kernel - 1, C)`` of a causal convolution, as ``value``."""

    def __init__(self) -> None:
        super().__init__("value")


class Tokens(Segment):
    """Tensors ``(B, S, ...)`` with an entry for each token, such as keys and values: of all tokens, or of those that a
    window can still see.

    Args:
        names: of the tensors, which are attributes.
        window: number of tokens a query sees, itself included; the segment then keeps ``window - 1``.
        sinks: first tokens of each row that are kept beside the window. A slot then no longer says which token it
            holds: keep the token's number (``context.index``) as a tensor of its own.
    """

    bookkeeping = ("start", "slots")
    plain = ("names", "fields", "window", "sinks")

    def __init__(self, *names: str, window: int | None = None, sinks: int = 0) -> None:
        self.names, self.window, self.sinks = names, window, sinks
        self.fields = (*names, *self.bookkeeping)
        self.clear()

    start: Tensor | None  #: ``(B,)`` first real slot of each row, or None while there is no padding
    slots: Tensor | None  #: ``(B,)`` slots appended so far, padding included, where a window drops some

    def __getattr__(self, name: str) -> Tensor | None:
        raise AttributeError(f"A {type(self).__name__} segment has no {name!r}.")

    @property
    def bound(self) -> int | None:
        """Most tokens that are kept; None for all."""
        return None if self.window is None else self.window - 1 + self.sinks

    @property
    def held(self) -> int:
        """Slots held."""
        first = getattr(self, self.names[0])
        return 0 if first is None else first.shape[1]

    @property
    def can_crop(self) -> bool:  # type: ignore[override]
        """A segment of all tokens can always forget; one with a window only while it has dropped nothing."""
        return self.bound is None or self.slots is None or int(self.slots[0]) <= self.bound

    @property
    def always_crops(self) -> bool:  # type: ignore[override]
        """Whether it keeps every token."""
        return self.bound is None

    @property
    def missing(self) -> int:  # type: ignore[override]
        """Tokens to come until the window is full."""
        return 0 if self.bound is None else self.bound - self.held

    def carried(self) -> list[str]:
        return [*self.names] if self.bound is None else [*self.names, "slots"]

    def grows(self, field: str) -> bool:
        return self.bound is None and field in self.names

    def append(self, *new: Tensor, padding: Tensor | None = None) -> tuple[list[Tensor], Tensor | None]:
        """Add new tokens and return all that the new queries may see.

        Args:
            new: ``(B, T, ...)``, one for each name, padding first in each row.
            padding: ``(B,)`` number of padding slots at the front of the new tokens, or None.

        Returns:
            one ``(B, S, ...)`` for each name, right-aligned, and ``start`` ``(B,)``: first real slot, or None.
        """
        rows, added = new[0].shape[:2]
        everything, start = list(new), padding
        if (old := self.held) or self.start is not None:
            joined = zip(self.names, new, strict=True)
            everything = [self.growth(name).join(getattr(self, name), x) for name, x in joined]
            if padding is not None and bool((padding > 0).any()):
                everything = [_close_gap(x, self.start, old, padding) for x in everything]
            start = padding if self.start is None else self.start if padding is None else self.start + padding
        if self.bound is not None:
            before = new[0].new_zeros(rows, dtype=torch.long) if self.slots is None else self.slots
            self.slots = before + added
        self._keep(everything, start)
        return everything, start

    def _keep(self, everything: list[Tensor], start: Tensor | None) -> None:
        size = everything[0].shape[1]
        kept = size if self.bound is None else min(size, self.bound)
        self.start = None if start is None else (start - (size - kept)).clamp(min=0)
        if self.sinks and kept < size:
            first = everything[0].new_zeros(1, dtype=torch.long) if start is None else start
            slots = torch.arange(kept, device=first.device)
            source = slots + size - kept  # the newest; a row's first tokens come in place of those before the window
            front = torch.minimum(first[:, None] + slots, source)
            source = torch.where(slots < self.sinks, front, source).expand(everything[0].shape[0], -1)
            for name, x in zip(self.names, everything, strict=True):
                setattr(self, name, x.gather(1, _expanded(source, x)))
        else:
            for name, x in zip(self.names, everything, strict=True):
                setattr(self, name, self.growth(name).last(x, kept))

    def crop(self, tokens: int) -> None:
        if tokens == 0 or self.held == 0:
            return
        if not self.can_crop:
            raise CacheError(
                f"A window of {self.window} tokens has dropped what it would need to forget the last {tokens}. "
                "Take cache.snapshot() before these tokens and cache.restore() it instead of cropping."
            )
        if tokens > self.held:
            raise CacheError(f"Cannot forget {tokens} tokens: the cache holds {self.held}.")
        kept = self.held - tokens
        for name in self.names:
            setattr(self, name, getattr(self, name)[:, :kept].clone())
        if self.slots is not None:
            self.slots = self.slots - tokens


class Summaries(Segment):
    """One entry for each closed block of tokens, such as a pooled key, and the tokens of blocks that are open.

    Block n of a row holds its tokens ``n * stride`` to ``n * stride + size``, counted from the row's first real one, so
    padding moves no block. Rows are left-aligned: entry n of ``values`` is block n.

    Args:
        size: tokens of a block.
        stride: tokens from one block's start to the next one's, at most ``size``; None: ``size``.
        reduce: from blocks ``(B, N, size, ...)`` to entries ``(B, N, ...)``, such as a mean over dim 2.
    """

    fields = ("values", "counts", "tail", "lengths")
    bookkeeping = ("counts", "lengths")
    plain = ("size", "stride", "reduce")

    def __init__(self, size: int, stride: int | None = None, *, reduce: Callable[[Tensor], Tensor]) -> None:
        self.size, self.stride, self.reduce = size, stride or size, reduce
        if self.stride > size:
            raise OptionError(f"Summaries: stride {stride} is above the block's size {size}; tokens would be left out.")
        self.clear()

    values: Tensor | None  #: ``(B, N, ...)`` entries of closed blocks
    counts: Tensor | None  #: ``(B,)`` closed blocks of each row
    tail: Tensor | None  #: ``(B, L, ...)`` tokens of the blocks that are open, left-aligned
    lengths: Tensor | None  #: ``(B,)`` tokens of each row in ``tail``

    def carried(self) -> list[str]:
        return [*self.fields]

    def append(self, x: Tensor, padding: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Add tokens and close the blocks that they fill.

        Args:
            x: ``(B, T, ...)``, padding first in each row.
            padding: ``(B,)`` padding slots at the front of the new tokens, or None.

        Returns:
            ``values`` ``(B, N, ...)`` and ``counts`` ``(B,)``; entries from ``counts[b]`` on are empty.
        """
        rows, added = x.shape[:2]
        skipped = torch.zeros(rows, dtype=torch.long, device=x.device) if padding is None else padding
        if self.tail is None or self.lengths is None:
            self.tail, self.lengths = x[:, :0], torch.zeros_like(skipped)
            self.counts = torch.zeros_like(skipped)
        open_tokens = self.tail.shape[1]
        slots = torch.arange(open_tokens + added, device=x.device)
        held = self.lengths[:, None]
        new = open_tokens + skipped[:, None] + slots - held
        source = torch.where(slots < held, slots, new).clamp(max=open_tokens + added - 1)
        joined = torch.cat([self.tail, x], dim=1)
        joined = joined.gather(1, _expanded(source, joined))
        total = self.lengths + added - skipped
        closed = ((total - self.size).div(self.stride, rounding_mode="floor") + 1).clamp(min=0)
        self._close(joined, closed)
        rest = total - closed * self.stride
        slots = torch.arange(int(rest.max()), device=x.device)
        source = (closed[:, None] * self.stride + slots).clamp(max=joined.shape[1] - 1)
        self.tail, self.lengths = joined.gather(1, _expanded(source, joined)), rest
        assert self.values is not None
        assert self.counts is not None
        return self.values, self.counts

    def _close(self, tokens: Tensor, closed: Tensor) -> None:
        """Write the entries of the first ``closed`` ``(B,)`` blocks of ``tokens`` behind those of each row."""
        most = int(closed.max())
        starts = self.stride * torch.arange(most, device=tokens.device)
        inside = starts[:, None] + torch.arange(self.size, device=tokens.device)
        entries = self.reduce(tokens[:, inside.clamp(max=tokens.shape[1] - 1)])
        assert self.counts is not None
        if self.values is None:
            self.values = entries[:, :0]
        counts = self.counts + closed
        size = max(self.values.shape[1], int(counts.max()))
        slots = torch.arange(size, device=tokens.device)
        joined = torch.cat([self.values, entries], dim=1)
        if joined.shape[1]:
            fresh = self.values.shape[1] + slots - self.counts[:, None]
            source = torch.where(slots < self.counts[:, None], slots, fresh).clamp(max=joined.shape[1] - 1)
            joined = joined.gather(1, _expanded(source, joined))
            empty = slots >= counts[:, None]
            joined = joined.masked_fill(empty.view(*empty.shape, *[1] * (joined.dim() - 2)), 0)
        self.values, self.counts = joined, counts


def _expanded(index: Tensor, x: Tensor) -> Tensor:
    """``index`` ``(B, S)`` for a gather along dim 1 of ``x`` ``(B, T, ...)``."""
    return index.view(*index.shape, *[1] * (x.dim() - 2)).expand(-1, -1, *x.shape[2:])


def _close_gap(joined: Tensor, start: Tensor | None, old: int, padding: Tensor) -> Tensor:
    """Move the padding that stands between old and new tokens to the front of each row."""
    slots = torch.arange(joined.shape[1], device=joined.device)
    first = torch.zeros_like(padding) if start is None else start
    real = (slots >= first[:, None]) & ((slots < old) | (slots >= old + padding[:, None]))
    order = torch.argsort(real.to(torch.int8), dim=1, stable=True)
    return joined.gather(1, _expanded(order, joined))


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
        """Whether every segment can take tokens back now."""
        return all(segment.can_crop for segment in self.segments.values())

    @property
    def always_crops(self) -> bool:
        """Whether every segment can take tokens back at any length."""
        return all(segment.always_crops for segment in self.segments.values())

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
