"""What a policy is told: the model once, then each layer's queries, keys and values of each call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from plait.errors import OptionError
from plait.mixers.softmax_mixer import Scoring
from plait.mixers.state import LayerState
from plait.runtime.meter import Count, Meter

if TYPE_CHECKING:
    from plait.runtime.rope import Rope

Phase = Literal["prefill", "chunk", "decode"]


@dataclass(frozen=True)
class LayerInfo:
    """One softmax layer of the model.

    Args:
        index: depth, from 0.
        query_heads: H.
        kv_heads: G; query head h reads kv head ``h // (H // G)``.
        key_dim, value_dim: channels of a head.
        window: tokens that the layer itself lets a query see, its own included; None for all.
    """

    index: int
    query_heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    window: int | None = None

    @property
    def group(self) -> int:
        """Query heads per kv head."""
        return self.query_heads // self.kv_heads


@dataclass(frozen=True)
class ModelInfo:
    """What a policy may know of a model before it runs.

    Args:
        name: class of the model.
        layers: its softmax layers, by depth.
        fingerprint: names the architecture (class, layers, heads), for tables of calibration.
        rotation: why positions cannot be rotated to others (:attr:`Call.rope`); None where they can.
        weigh: makes the fingerprint of the weights; None where there are none.
    """

    name: str
    layers: tuple[LayerInfo, ...]
    fingerprint: str
    rotation: str | None = None
    weigh: Callable[[], str] | None = field(default=None, compare=False, repr=False)

    @property
    def weights(self) -> str | None:
        """Fingerprint of the weights, for artefacts that hold for these alone."""
        return None if self.weigh is None else self.weigh()

    def require_rotation(self, policy: str, option: str) -> None:
        """Refuse an option that needs keys or queries rotated to other positions, where they cannot be.

        Raises:
            OptionError: they cannot; says why.
        """
        if self.rotation is not None:
            raise OptionError(f"Policy {policy!r}, option {option} cannot serve this {self.name}: {self.rotation}")


@dataclass
class Forward:
    """One forward pass: which tokens are real, and where they stand.

    Policies see rows without padding: real tokens come first, and token t of a row stands at position
    ``past + t``.

    Args:
        phase: ``prefill`` (nothing was seen), ``chunk`` (several more tokens) or ``decode`` (one more token).
        past: ``(B,)`` real tokens of each row before this call.
        start: ``past`` where all rows agree and none is padded, else None.
        order: ``(B, T)`` slot of the caller's token for each of ours; None when nothing moves.
        lengths: ``(B,)`` real tokens of this call in each row; None for all.
        shared: what layers of this pass hand to each other.
        spans: named parts of the prompt, ``(B, 2)`` first position and last + 1 in each row.
    """

    phase: Phase
    past: Tensor
    start: int | None = None
    order: Tensor | None = None
    lengths: Tensor | None = None
    shared: dict[str, Any] = field(default_factory=dict)
    spans: dict[str, Tensor] = field(default_factory=dict)
    _kept: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    def positions(self, new: int) -> Tensor:
        """``(B, new)`` position of each new token among the real tokens of its row."""
        return self._once(("positions", new), lambda: self.past[:, None] + torch.arange(new, device=self.past.device))

    def last(self, new: int) -> int:
        """Largest position of a new token in any row."""
        return self._once(
            ("last", new), lambda: int((self.past + (new if self.lengths is None else self.lengths)).max()) - 1
        )

    def dense_pairs(self, new: int, window: int | None) -> Tensor:
        """Pairs of one query head under dense attention, over all rows."""

        def count() -> Tensor:
            seen = self.positions(new) + 1
            seen = seen if window is None else seen.clamp(max=window)
            if self.lengths is not None:
                seen = seen * (torch.arange(new, device=seen.device) < self.lengths[:, None])
            return seen.sum()

        return self._once(("dense", new, window), count)

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What all layers of the pass would compute alike."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    @classmethod
    def begin(cls, length: int, seen: int, past: Tensor, same: bool, real: Tensor | None) -> Forward:
        """The arrangement of ``length`` new tokens.

        Args:
            length: T.
            seen: tokens of each row before, padding included.
            past: ``(B,)`` real ones among them.
            same: whether all rows have the same ``past``.
            real: ``(B, T)`` bool, False at padding, or None.
        """
        phase: Phase = "prefill" if seen == 0 else "decode" if length == 1 else "chunk"
        if real is None or bool(real.all()):
            return cls(phase, past, start=int(past[0]) if same else None)
        order = torch.argsort((~real).to(torch.int8), dim=1, stable=True)
        return cls(phase, past, order=order, lengths=real.sum(1))

    def inward(self, x: Tensor) -> Tensor:
        """``x`` ``(B, heads, T, D)`` with the real tokens first; what is padding in every row is cut off."""
        if self.order is None:
            return x
        assert self.lengths is not None
        order = self.order[:, : int(self.lengths.max())]
        return x.gather(2, order[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[-1]))

    def outward(self, x: Tensor, length: int) -> Tensor:
        """``x`` ``(B, heads, T', D)`` back in the caller's order, with zeros at padding."""
        if self.order is None:
            return x
        assert self.lengths is not None
        real = torch.arange(x.shape[2], device=x.device) < self.lengths[:, None]
        x = torch.where(real[:, None, :, None], x, 0)
        order = self.order[:, : x.shape[2], None].expand(-1, -1, x.shape[-1])[:, None].expand_as(x)
        return x.new_zeros(*x.shape[:2], length, x.shape[-1]).scatter(2, order, x)


@dataclass(frozen=True)
class Call:
    """One layer's part of a forward pass.

    Args:
        layer: the layer.
        q: ``(B, H, T, D)`` queries of the new tokens, rotated at their positions.
        k: ``(B, G, T, D)`` their keys.
        v: ``(B, G, T, Dv)`` their values.
        positions: ``(B, T)`` position of each new token among the real tokens of its row.
        scoring: how logits are made.
        state: this layer's memory.
        forward: the pass; :attr:`phase`, :attr:`lengths` and :attr:`start` are short for its fields.
        meter: where work is counted.
        reference: compute the same selection with a dense mask.
        hidden: ``(B, T, d)`` input of the attention module at the new tokens, or None.
        rope: turns keys and queries back or to other positions, or None.
    """

    layer: LayerInfo
    q: Tensor
    k: Tensor
    v: Tensor
    positions: Tensor
    scoring: Scoring
    state: LayerState
    forward: Forward
    meter: Meter
    reference: bool = False
    hidden: Tensor | None = None
    rope: Rope | None = None

    @property
    def phase(self) -> Phase:
        """See :class:`Forward`."""
        return self.forward.phase

    @property
    def lengths(self) -> Tensor | None:
        """See :class:`Forward`."""
        return self.forward.lengths

    @property
    def start(self) -> int | None:
        """See :class:`Forward`."""
        return self.forward.start

    @property
    def real(self) -> Tensor | None:
        """``(B, T)`` bool, False behind the end of a row; None when all are real."""
        if self.lengths is None:
            return None
        return torch.arange(self.q.shape[2], device=self.q.device) < self.lengths[:, None]

    @property
    def last_positions(self) -> Tensor:
        """``(B,)`` position of each row's newest token."""
        new = self.q.shape[2] if self.lengths is None else self.lengths
        return self.forward.past + new - 1

    def raw(self) -> tuple[Tensor, Tensor]:
        """Queries and keys of the new tokens before the rotary embedding, ``(B, H, T, D)`` and ``(B, G, T, D)``.

        Raises:
            OptionError: the rotation cannot be undone (see :attr:`ModelInfo.rotation`).
        """
        return self._rope.unrotate(self.q), self._rope.unrotate(self.k)

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """Raw queries or keys ``(B, heads, T, D)`` rotated to ``positions`` ``(B, T)``.

        Raises:
            OptionError: they cannot be.
        """
        return self._rope.rotate(x, positions)

    def shift(self, x: Tensor, offsets: Tensor) -> Tensor:
        """Queries or keys ``(B, heads, T, D)``, rotated already, by ``offsets`` ``(B, T)`` positions more.

        Raises:
            OptionError: they cannot be.
        """
        return self._rope.shift(x, offsets)

    @property
    def _rope(self) -> Rope:
        if self.rope is None:
            raise OptionError(f"Layer {self.layer.index} has no rotary positions, so there is nothing to rotate.")
        return self.rope

    def span(self, name: str) -> tuple[Tensor, Tensor]:
        """Where a named part of the prompt stands (see :meth:`~plait.runtime.running.Running.mark`).

        Returns:
            ``(B,)`` first position in each row, and last + 1.

        Raises:
            OptionError: no part has this name.
        """
        spans = self.forward.spans
        if name not in spans:
            raise OptionError(
                f"The prompt has no part named {name!r}, only {sorted(spans)}: name it with "
                f"applied.mark({name}=(first, last))."
            )
        first, last = spans[name].unbind(1)
        return first, last

    def count(self, **counts: Count) -> None:
        """Add to the meter (fields of :class:`~plait.runtime.meter.Work`)."""
        self.meter.add(self.layer.index, "decode" if self.phase == "decode" else "prefill", **counts)

    def heads(self, heads: Tensor) -> Call:
        """The same call for these kv heads and their query heads only."""
        group = self.layer.group
        mine = (heads[:, None] * group + torch.arange(group, device=heads.device)).flatten()
        sinks = self.scoring.sink_logits
        return replace(
            self,
            layer=replace(self.layer, query_heads=len(mine), kv_heads=len(heads)),
            q=self.q.index_select(1, mine),
            k=self.k.index_select(1, heads),
            v=self.v.index_select(1, heads),
            scoring=replace(self.scoring, sink_logits=None if sinks is None else sinks[mine]),
        )

    def part(self, first: int, last: int) -> Call:
        """The same call for the new tokens' queries ``first`` to ``last - 1`` only; keys and values stay."""
        lengths = None if self.lengths is None else (self.lengths - first).clamp(0, last - first)
        start = None if self.start is None else self.start + first
        forward = replace(self.forward, past=self.forward.past + first, start=start, lengths=lengths)
        return replace(
            self,
            q=self.q[:, :, first:last],
            positions=self.positions[:, first:last],
            forward=forward,
            hidden=None if self.hidden is None else self.hidden[:, first:last],
            rope=None if self.rope is None else self.rope.part(first, last),
        )

    def chunk(self, first: int, last: int) -> Call:
        """The call that the new tokens ``first`` to ``last - 1`` alone would make after those before them."""
        part = self.part(first, last)
        phase: Phase = "chunk" if first else part.phase
        k, v = (x[:, :, first:last] for x in (self.k, self.v))
        return replace(part, k=k, v=v, forward=replace(part.forward, phase=phase))

    def rows(self, rows: Tensor) -> Call:
        """The same call for these rows of the batch only."""
        forward = replace(
            self.forward,
            past=self.forward.past[rows],
            order=None if self.forward.order is None else self.forward.order[rows],
            lengths=None if self.lengths is None else self.lengths[rows],
            spans={name: span[rows] for name, span in self.forward.spans.items()},
        )
        q, k, v, positions = (x.index_select(0, rows) for x in (self.q, self.k, self.v, self.positions))
        hidden = None if self.hidden is None else self.hidden.index_select(0, rows)
        rope = None if self.rope is None else self.rope.rows(rows)
        return replace(self, q=q, k=k, v=v, positions=positions, forward=forward, hidden=hidden, rope=rope)
