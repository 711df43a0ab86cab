"""What a mixer with softmax attention says of itself, so that policies and probes can take the softmax's place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from plait.mixers.context import Context
from plait.ops.visibility import Visibility


@dataclass(frozen=True)
class Scoring:
    """How a product of a query with a key becomes a logit.

    Args:
        scale: factor.
        softcap: logits become ``softcap * tanh(logit / softcap)``; None for no cap.
        sink_logits: ``(H,)`` logit of a key without a value that every query of the head sees (gpt-oss), or None.
    """

    scale: float
    softcap: float | None = None
    sink_logits: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether a fused kernel computes it."""
        return self.softcap is None and self.sink_logits is None


@dataclass(frozen=True)
class Rotation:
    """Which channels of a head a layer rotates by the position (2104.09864).

    Args:
        base: of the geometric series of frequencies.
        first: channels before those.
        width: how many they are, in half-split pairs.
    """

    base: float
    first: int
    width: int


@runtime_checkable
class SoftmaxMixer(Protocol):
    """A mixer whose output is made of softmax attention over keys that it can show.

    ``finish(softmax(queries, keys, values), ...)`` is the mixer itself. Its memory of keys is the segment
    :attr:`keys_in`, which a policy's own memory replaces.
    """

    layer: int
    keys_in: str

    def head_sizes(self) -> tuple[int, int, int, int]:
        """Query heads H, key heads N, channels of a key D and of a value Dv."""

    def queries_keys_values(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Of the layer's input ``(B, T, d)``: ``(B, T, H, D)``, ``(B, T, N, D)`` and ``(B, T, N, Dv)``, rotated."""

    def scoring(self) -> Scoring:
        """How products become logits."""

    def visibility(self) -> Visibility | None:
        """What a query sees: ``Causal()`` or a ``Window``; None where the options leave no softmax."""

    def rotation(self) -> Rotation | None:
        """How queries and keys were rotated; None where they were not."""

    def finish(self, o: Tensor, x: Tensor, parts: tuple[Tensor, Tensor, Tensor], context: Context) -> Tensor:
        """The layer's output ``(B, T, d)``.

        Args:
            o: ``(B, T, H, Dv)`` attention.
            x: the layer's input.
            parts: queries, keys and values as made of it.
            context: of the pass.
        """
