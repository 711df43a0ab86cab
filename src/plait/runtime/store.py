"""Where a policy keeps keys and values: rows are left-aligned, and each kv head may hold another number of tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from plait.errors import CacheError
from plait.mixers.state import Segment
from plait.ops.softmax.placed import NEVER

#: Least room of a packed head, and the share of the longest one that it has.
_ROOM = 16


@dataclass(frozen=True)
class Keys:
    """What queries may be scored against.

    Args:
        keys: ``(B, G, S, D)``, rotated at their own positions.
        values: ``(B, G, S, Dv)``.
        positions: ``(B, G, S)`` position of each slot's token, ascending; None where slot and position agree.
        lengths: ``(B, G)`` filled slots, which come first; None for all S.
        starts: ``(B, G)`` where the keys of each row and head begin, if ``keys`` ``(P, D)`` and ``values`` ``(P, Dv)``
            are packed; then there are positions and lengths.
    """

    keys: Tensor
    values: Tensor
    positions: Tensor | None = None
    lengths: Tensor | None = None
    starts: Tensor | None = None

    @property
    def size(self) -> int:
        """Slots S."""
        return self.keys.shape[2] if self.starts is None else self.positions.shape[2]  # type: ignore[union-attr]

    @property
    def kv_heads(self) -> int:
        """Heads G."""
        return (self.keys if self.starts is None else self.starts).shape[1]

    def padded(self) -> Keys:
        """The same with keys ``(B, G, S, D)``, zeros in empty slots."""
        if self.starts is None or self.lengths is None:
            return self
        slots = torch.arange(self.size, device=self.keys.device)
        filled = slots < self.lengths[..., None]
        index = torch.where(filled, self.starts[..., None] + slots, self.starts[..., None])
        keys, values = (x[index] * filled[..., None] for x in (self.keys, self.values))
        return Keys(keys, values, self.positions, self.lengths)

    def places(self) -> Tensor:
        """Positions ``(B, G, S)``, or ``(1, 1, S)`` where all rows agree; empty slots are at :data:`NEVER`."""
        slots = torch.arange(self.size, device=self.keys.device)
        places = slots[None, None] if self.positions is None else self.positions
        return places if self.lengths is None else places.masked_fill(slots >= self.lengths[..., None], NEVER)

    def held(self) -> Tensor:
        """Filled slots of each row and head, ``(B, G)``."""
        if self.lengths is not None:
            return self.lengths
        return torch.full(self.keys.shape[:2], self.size, device=self.keys.device)

    def heads(self, heads: Tensor) -> Keys:
        """Only these kv heads."""
        return Keys(*(x if x is None else x.index_select(1, heads) for x in vars(self).values()))  # type: ignore[arg-type]

    def rows(self, rows: Tensor) -> Keys:
        """Only these rows."""
        return Keys(*(x if x is None else x.index_select(0, rows) for x in vars(self).values()))  # type: ignore[arg-type]


def _take(x: Tensor, parts: list[slice]) -> Tensor:
    return x[:, :, parts[0]] if len(parts) == 1 else torch.cat([x[:, :, part] for part in parts], dim=2)


class Store(Segment):
    """Keys and values of the tokens that a policy has kept, by row and kv head.

    Slot i holds the token at position i until something is evicted; from then on positions are kept as well.

    Args:
        extras: names of further ``(B, G, S)`` numbers kept for every token, such as an accumulated score.
    """

    fields: tuple[str, ...] = ("keys", "values", "positions", "lengths")
    bookkeeping = ("positions", "lengths")
    plain: tuple[str, ...] = ("fields", "extras")
    axis = 2

    def __init__(self, extras: tuple[str, ...] = ()) -> None:
        self.extras = extras
        self.fields = (*type(self).fields, *extras)
        for name in self.fields:
            setattr(self, name, None)

    keys: Tensor | None
    values: Tensor | None
    positions: Tensor | None
    lengths: Tensor | None

    @property
    def size(self) -> int:
        """Slots held."""
        return 0 if self.keys is None else self.keys.shape[2]

    @property
    def can_crop(self) -> bool:  # type: ignore[override]
        """Whether every token seen is still held."""
        return self.positions is None

    def view(self) -> Keys:
        """What is held, for scoring."""
        assert self.keys is not None
        assert self.values is not None
        return Keys(self.keys, self.values, self.positions, self.lengths)

    def stored(self) -> Keys:
        """What is held, as it lies in memory: for attention that takes packed keys too."""
        return self.view()

    def append(self, *args: object, **kwargs: object) -> None:
        """Refuses: a model without its policy must not go on with the policy's memory."""
        raise CacheError(
            "This cache was filled under a policy that is not applied here: go on inside its `with` block and in its "
            "thread, or start with a new cache."
        )

    def add(self, keys: Tensor, values: Tensor, positions: Tensor, lengths: Tensor | None, **extras: Tensor) -> None:
        """Append new tokens.

        Args:
            keys, values: ``(B, G, T, D)`` and ``(B, G, T, Dv)``, left-aligned.
            positions: ``(B, T)``.
            lengths: ``(B,)`` real tokens of each row, or None for all T.
            extras: ``(B, G, T)`` values of the extras.
        """
        batch, heads, added = keys.shape[:3]
        new: dict[str, Tensor] = {"keys": keys, "values": values, **extras}
        new_lengths = None if lengths is None else lengths[:, None].expand(batch, heads)
        if self.keys is None:
            self._set(new, None, new_lengths)
            return
        old = {name: getattr(self, name) for name in new}
        if self.positions is not None:
            old["positions"] = self.positions
            new["positions"] = positions[:, None].expand(batch, heads, added)
        if self.lengths is None and new_lengths is None:
            joined = {name: self.growth(name).join(old[name], new[name]) for name in new}
            self._set(joined, joined.pop("positions", None), None)
            return
        held = _lengths(self)
        total = held + (added if new_lengths is None else new_lengths)
        width = int(total.max())
        # Row by row: what was held, then what is new; a token's slot in the joined row says where it comes from.
        slots = torch.arange(width, device=keys.device).expand(batch, heads, width)
        source = torch.where(slots < held[..., None], slots, slots - held[..., None] + self.size)
        source = source.clamp(max=self.size + added - 1)
        joined = {name: _gather(torch.cat([old[name], new[name]], dim=2), source) for name in new}
        self._set(joined, joined.pop("positions", None), total)

    def keep(self, index: Tensor, valid: Tensor | None = None) -> None:
        """Keep only these slots and free the rest.

        Args:
            index: ``(B, G, K)`` slots, ascending, the valid ones first.
            valid: ``(B, G, K)`` bool, or None for all.
        """
        extras = {name: _gather(getattr(self, name), index) for name in self.extras}
        self.take(self.view(), index, valid, **extras)

    def take(self, source: Keys, index: Tensor, valid: Tensor | None, **extras: Tensor) -> None:
        """Become a copy of slots of ``source``; arguments as of :meth:`keep`, extras are ``(B, G, K)``."""
        places = source.places().expand(*index.shape[:2], -1)
        lengths = None if valid is None else valid.sum(-1)
        taken = {"keys": _gather(source.keys, index), "values": _gather(source.values, index), **extras}
        self._set(taken, places.gather(2, index), lengths)

    def keep_band(self, sinks: int, recent: int) -> None:
        """Keep the first ``sinks`` positions and the last ``recent`` slots."""
        assert self.keys is not None
        if self.size <= sinks + recent:
            return
        if self.lengths is None and self.positions is None:
            parts = [slice(0, sinks), slice(self.size - recent, self.size)]
            slots = torch.arange(self.size, device=self.keys.device)[None, None]
            kept = {n: _take(getattr(self, n), parts).clone() for n in ("keys", "values", *self.extras)}
            self._set(kept, _take(slots, parts).expand(*self.keys.shape[:2], -1).clone(), None)
            return
        places = self.view().places().expand(*self.keys.shape[:2], -1)
        held = self.lengths if self.lengths is not None else torch.full_like(places[..., 0], self.size)
        slots = torch.arange(self.size, device=self.keys.device)
        wanted = ((places < sinks) | (slots >= held[..., None] - recent)) & (slots < held[..., None])
        index, valid = first_true(wanted, min(self.size, sinks + recent))
        self.keep(index, valid)

    def replace_rows(self, rows: Tensor, other: Store) -> None:
        """Rows ``rows`` become the rows of ``other``."""
        width = max(self.size, other.size)
        lengths = [_lengths(store) for store in (self, other)]
        places = [_widen(store.view().places().expand(*store.keys.shape[:3]), width) for store in (self, other)]  # type: ignore[union-attr]
        joined = {
            name: _widen(getattr(self, name), width).index_copy(0, rows, _widen(getattr(other, name), width))
            for name in ("keys", "values", *self.extras)
        }
        total = lengths[0].index_copy(0, rows, lengths[1])
        width = int(total.max())
        self._set(
            {name: x[:, :, :width] for name, x in joined.items()},
            places[0].index_copy(0, rows, places[1])[:, :, :width],
            None if bool((total == width).all()) else total,
        )

    def crop(self, tokens: int) -> None:
        if tokens == 0 or self.keys is None:
            return
        if not self.can_crop:
            raise CacheError(
                f"A policy has evicted tokens, so the last {tokens} cannot be taken back. Take cache.snapshot() "
                "before these tokens and cache.restore() it instead of cropping."
            )
        if tokens > self.size:
            raise CacheError(f"Cannot forget {tokens} tokens: the cache holds {self.size}.")
        kept = slice(0, self.size - tokens)
        if self.lengths is not None:
            self.lengths = (self.lengths - tokens).clamp(min=0)
        for name in ("keys", "values", *self.extras):
            setattr(self, name, getattr(self, name)[:, :, kept].clone())

    def _set(self, tensors: dict[str, Tensor], positions: Tensor | None, lengths: Tensor | None) -> None:
        for name, tensor in tensors.items():
            setattr(self, name, tensor)
        self.positions, self.lengths = positions, lengths


class RaggedStore(Store):
    """A store that packs keys and values where rows or heads have kept different numbers of tokens.

    A head then holds what it has kept and some room for the next tokens, not as many slots as the longest one.
    """

    packed: tuple[str, ...] = ("flat_keys", "flat_values", "starts")
    plain: tuple[str, ...] = ("fields", "extras", "room")

    def __init__(self, extras: tuple[str, ...] = ()) -> None:
        super().__init__(extras)
        self.fields = (*self.fields, *self.packed)
        for name in self.packed:
            setattr(self, name, None)
        #: Slots behind each head's last one.
        self.room = 0

    flat_keys: Tensor | None
    flat_values: Tensor | None
    starts: Tensor | None

    @property
    def size(self) -> int:
        return super().size if self.positions is None else self.positions.shape[2]

    def bytes(self) -> int:
        if self.flat_keys is None or self.flat_values is None or self.lengths is None:
            return super().bytes()
        slot = sum(x.shape[-1] * x.element_size() for x in (self.flat_keys, self.flat_values))
        extras = sum(getattr(self, name).element_size() for name in self.extras)
        return int(self.lengths.sum()) * (slot + extras)

    def view(self) -> Keys:
        return self.stored().padded()

    def stored(self) -> Keys:
        if self.starts is None:
            return super().view()
        assert self.flat_keys is not None
        assert self.flat_values is not None
        return Keys(self.flat_keys, self.flat_values, self.positions, self.lengths, self.starts)

    def add(self, keys: Tensor, values: Tensor, positions: Tensor, lengths: Tensor | None, **extras: Tensor) -> None:
        if self.starts is None or self.lengths is None or self.positions is None:
            super().add(keys, values, positions, lengths, **extras)
            return
        added, graph = keys.shape[2], torch.is_grad_enabled() and (keys.requires_grad or values.requires_grad)
        if lengths is not None or added > self.room or graph:
            self._unpack()
            super().add(keys, values, positions, lengths, **extras)
            return
        own = self.lengths[..., None] + torch.arange(added, device=keys.device)
        for flat, new in ((self.flat_keys, keys), (self.flat_values, values)):
            assert flat is not None
            flat[self.starts[..., None] + own] = new
        new_positions = positions[:, None].expand(*self.lengths.shape, -1)
        wide = max(0, int(self.lengths.max()) + added - self.size)
        self.positions = F.pad(self.positions, (0, wide)).scatter(2, own, new_positions)
        for name, new in extras.items():
            setattr(self, name, F.pad(getattr(self, name), (0, wide)).scatter(2, own, new))
        self.lengths, self.room = self.lengths + added, self.room - added

    def select_rows(self, indices: Tensor) -> None:
        if self.starts is None:
            super().select_rows(indices)
            return
        self._unpack()
        super().select_rows(indices)
        assert self.lengths is not None
        self._pack(self.lengths)

    def _set(self, tensors: dict[str, Tensor], positions: Tensor | None, lengths: Tensor | None) -> None:
        super()._set(tensors, positions, lengths)
        for name in self.packed:
            setattr(self, name, None)
        if positions is not None and lengths is not None and bool((lengths != self.size).any()):
            self._pack(lengths)

    def _pack(self, lengths: Tensor) -> None:
        assert self.keys is not None
        assert self.values is not None
        self.room = max(_ROOM, self.size // _ROOM)
        sizes = (lengths + self.room).flatten()
        self.starts = (sizes.cumsum(0) - sizes).view_as(lengths)
        filled = torch.arange(self.size, device=lengths.device) < lengths[..., None]
        index = (self.starts[..., None] + torch.arange(self.size, device=lengths.device))[filled]
        total = int(sizes.sum())
        self.flat_keys, self.flat_values = (
            x.new_zeros(total, x.shape[-1]).index_copy(0, index, x[filled]) for x in (self.keys, self.values)
        )
        self.keys = self.values = None
        self.__dict__.pop("_growths", None)

    def _unpack(self) -> None:
        padded = self.view()
        self.keys, self.values = padded.keys, padded.values
        for name in self.packed:
            setattr(self, name, None)


def first_true(wanted: Tensor, most: int) -> tuple[Tensor, Tensor | None]:
    """Indices of the true entries of each row, ascending, valid ones first.

    Args:
        wanted: ``(..., S)`` bool.
        most: an upper bound of the number of true entries of a row.

    Returns:
        indices ``(..., K)`` and which of them are valid, None when all are; K is the largest number in a row.
    """
    order = torch.argsort((~wanted).to(torch.int8), dim=-1, stable=True)[..., :most]
    valid = wanted.gather(-1, order)
    width = int(valid.sum(-1).max())
    order, valid = order[..., :width], valid[..., :width]
    return order, None if bool(valid.all()) else valid


def _gather(x: Tensor, index: Tensor) -> Tensor:
    """Slots ``index`` ``(B, G, K)`` of ``x`` ``(B, G, S, ...)``."""
    return x.gather(2, index) if x.dim() == 3 else x.gather(2, index[..., None].expand(*index.shape, x.shape[-1]))


def _widen(x: Tensor, width: int) -> Tensor:
    """``x`` ``(B, G, S, ...)`` with zeros behind, up to ``width`` slots."""
    return F.pad(x, (0, width - x.shape[2]) if x.dim() == 3 else (0, 0, 0, width - x.shape[2]))


def _lengths(store: Store) -> Tensor:
    if store.lengths is not None:
        return store.lengths
    assert store.keys is not None
    return torch.full(store.keys.shape[:2], store.size, device=store.keys.device)


__all__ = ["NEVER", "Keys", "RaggedStore", "Store", "first_true"]
