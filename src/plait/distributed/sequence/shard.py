"""One forward pass on one process's piece of the sequence: what :class:`plait.mixers.shard.SequenceShard` promises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from plait.distributed.sequence import moves
from plait.distributed.sequence.channel import Channel, offsets
from plait.distributed.sequence.softmax import WAYS, window_attention
from plait.distributed.sequence.states import entering_state
from plait.ops import Piece
from plait.ops.visibility import Visibility, Window


@dataclass(frozen=True)
class Shard:
    """The piece of each row that this process holds, and the ways to the others.

    Args:
        channel: the processes.
        lengths: tokens of each piece.
        attention: way of softmax attention, a key of ``softmax.WAYS``.
    """

    channel: Channel
    lengths: Sequence[int]
    attention: str = "gather"

    @property
    def offset(self) -> int:
        """Tokens of a row that stand before this piece."""
        return offsets(self.lengths)[self.channel.rank]

    def before(self, x: Tensor, tokens: int) -> Tensor:
        """The last ``tokens`` entries before ``x`` ``(B, n, ...)``, or as many as there are."""
        return moves.before(self.channel, "halo", x, tokens, self.lengths)

    def continued(self, piece: Piece) -> Tensor:
        """The output of a recurrence whose state comes from the pieces before."""
        return piece.continued(entering_state(self.channel, piece, self.lengths))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visibility: Visibility) -> Tensor:
        """Softmax attention of ``q`` ``(B, n, H, D)`` over the tokens of all pieces, causal or within a window."""
        if isinstance(visibility, Window):
            return window_attention(self.channel, q, k, v, self.lengths, visibility)
        return WAYS[self.attention](self.channel, q, k, v, self.lengths)

    def following(self, labels: Tensor, fill: int) -> Tensor:
        """The label after the last of each row ``(B, n)``, ``(B, 1)``; ``fill`` in the last piece."""
        rank, size = self.channel.rank, self.channel.size
        pieces = [labels[:, : int(other == rank - 1)] for other in range(size)]
        shapes = [(len(labels), int(other == rank + 1)) for other in range(size)]
        found = torch.cat(self.channel.exchange("labels", pieces, shapes), 1)
        return F.pad(found, (0, 1 - found.shape[1]), value=fill)

    def total(self, x: Tensor) -> Tensor:
        """``x`` summed over the group; the gradient is that of this process's own term."""
        return moves.total(self.channel, "loss", x)
