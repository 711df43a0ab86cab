"""What a policy did: query-key pairs scored, bytes read and bytes held, exactly."""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

#: A count that may still be on a device; it is fetched when the report is made.
Count = int | Tensor


@dataclass
class Work:
    """Sums of one layer in one phase, over rows and query heads.

    Args:
        pairs: products of a query with a key that entered a softmax whose result was used.
        dense_pairs: the same for dense attention (within the layer's own window, if it has one).
        index_pairs: products made only to choose keys.
        bytes_read: bytes of keys and values that these products fetched.
    """

    pairs: Count = 0
    dense_pairs: Count = 0
    index_pairs: Count = 0
    bytes_read: Count = 0

    def fetched(self) -> Work:
        """The same with plain integers."""
        return Work(**{name: int(value) for name, value in vars(self).items()})

    def __add__(self, other: Work) -> Work:
        return Work(**{name: value + getattr(other, name) for name, value in vars(self).items()})


class Meter:
    """Counts work by layer and phase (``prefill`` or ``decode``)."""

    def __init__(self) -> None:
        self.work: dict[tuple[int, str], Work] = {}
        self.bytes_held: dict[int, int] = {}
        self.bytes_held_dense: dict[int, int] = {}
        self._lock = threading.Lock()

    def add(self, layer: int, phase: str, **counts: Count) -> None:
        """Add ``counts`` (fields of :class:`Work`) to a layer's sums."""
        with self._lock:
            work = self.work.setdefault((layer, phase), Work())
            for name, value in counts.items():
                setattr(work, name, getattr(work, name) + value)

    def pairs(self, layer: int) -> int:
        """Pairs scored in a layer so far."""
        return sum(int(work.pairs) for (index, _), work in self.work.items() if index == layer)


@dataclass(frozen=True)
class Report:
    """What a policy did since it was applied or since the last ``reset_report()``.

    Args:
        policy: its name.
        served: layers that the policy served; the others (those with a sliding window of their own, or that its options
            leave out) ran densely, within their window.
        prefill, decode: sums over layers; prefill means calls of several tokens.
        layers: the same by layer index, as ``{"prefill": Work, "decode": Work}``.
        bytes_held: memory of the last cache after its last call: keys, values and what else the policy keeps, of each
            head as many as it has kept. Positions, and the room for the next tokens, do not count.
        bytes_held_dense: what a cache of all keys and values (of the window's, in windowed layers) would hold.
    """

    policy: str
    served: tuple[int, ...]
    prefill: Work
    decode: Work
    layers: dict[int, dict[str, Work]] = field(repr=False)
    bytes_held: int = 0
    bytes_held_dense: int = 0

    @classmethod
    def of(cls, meter: Meter, policy: str, served: tuple[int, ...]) -> Report:
        """The report of a meter."""
        layers: dict[int, dict[str, Work]] = {}
        for (layer, phase), work in sorted(meter.work.items()):
            layers.setdefault(layer, {"prefill": Work(), "decode": Work()})[phase] = work.fetched()
        sums = {phase: sum((by[phase] for by in layers.values()), Work()) for phase in ("prefill", "decode")}
        return cls(
            policy=policy,
            served=served,
            **sums,
            layers=layers,
            bytes_held=sum(meter.bytes_held.values()),
            bytes_held_dense=sum(meter.bytes_held_dense.values()),
        )

    @property
    def pairs(self) -> int:
        """Pairs scored in all layers and phases."""
        return int(self.prefill.pairs + self.decode.pairs)

    @property
    def dense_pairs(self) -> int:
        """Pairs that dense attention would have scored."""
        return int(self.prefill.dense_pairs + self.decode.dense_pairs)

    @property
    def share(self) -> float:
        """Scored pairs per dense pair; 1 when nothing was scored."""
        return self.pairs / self.dense_pairs if self.dense_pairs else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return {**asdict(self), "pairs": self.pairs, "dense_pairs": self.dense_pairs, "share": self.share}
