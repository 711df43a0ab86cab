"""What a mixer asks for when other processes hold the rest of its sequence.

``plait.distributed.sequence_parallel`` makes such a shard; here is only what a mixer sees of it, and which is active.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Protocol

from torch import Tensor

from plait.ops import Piece
from plait.ops.dispatch import constant_when_compiled
from plait.ops.visibility import Visibility


class SequenceShard(Protocol):
    """The piece of each row that this process holds in one forward pass, and the ways to the others.

    Every process of the group calls the same methods in the same order; gradients flow between them.
    """

    @property
    def offset(self) -> int:
        """Tokens of a row that stand before this piece."""

    def before(self, x: Tensor, tokens: int) -> Tensor:
        """The last ``tokens`` entries that stand before ``x`` ``(B, n, ...)``, or as many as there are.

        They may be held by several processes.
        """

    def continued(self, piece: Piece) -> Tensor:
        """The output of a recurrence whose state comes from the pieces before."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visibility: Visibility) -> Tensor:
        """Softmax attention over the tokens of all pieces.

        Args:
            q: ``(B, n, H, D)``.
            k: ``(B, n, N, D)``.
            v: ``(B, n, N, V)``.
            visibility: which keys a query sees: ``Causal`` or ``Window``.

        Returns:
            ``(B, n, H, V)``.
        """

    def following(self, labels: Tensor, fill: int) -> Tensor:
        """The label after the last of each row ``(B, n)``, ``(B, 1)``; ``fill`` where the sequence ends."""

    def total(self, x: Tensor) -> Tensor:
        """``x`` summed over the group; each process's gradient is that of its own term."""


class Shards(Protocol):
    """Makes the shard of a forward pass from what this process gives it."""

    def enter(self, x: Tensor, refusal: str | None) -> SequenceShard | None:
        """Agree with the other processes on the pieces of this pass.

        Args:
            x: embeddings ``(B, n, d)`` of this process.
            refusal: why this process cannot take part, or None.

        Returns:
            The shard; None in a group of one, which has nobody to ask.

        Raises:
            OptionError: some process cannot take part; all of them raise.
        """


#: The group whose processes share each sequence, or None.
active: ContextVar[Shards | None] = ContextVar("plait_sequence_shards", default=None)


@constant_when_compiled
def active_shards() -> Shards | None:
    """The group whose processes share each sequence, or None."""
    return active.get()
