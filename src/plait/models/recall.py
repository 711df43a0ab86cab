"""Taking tokens back from layers that fold them into a state, as drafts need it: a copy of the state, and a replay.

While a cache records, a layer that cannot forget keeps a copy of its state and the inputs that came after the copy. To
forget the newest of them, the copy is put back and the others are read again, by this layer's mixer alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from plait.errors import CacheError
from plait.mixers.context import Context
from plait.mixers.state import LayerState

#: Most inputs of one pass that can be taken back; of a longer one (a prompt) the last so many.
LONGEST = 256


@dataclass
class Recall:
    """What one layer needs to forget its newest tokens.

    Args:
        state: what the layer held before the inputs.
        read: runs the layer's mixer on its inputs ``(B, T, d)``; only what it does to the state counts.
        inputs: those after the copy, with the context of each pass.
    """

    state: LayerState
    read: Callable[[Tensor, Context], Tensor]
    inputs: list[tuple[Tensor, Context]] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """How many can be taken back."""
        return sum(x.shape[1] for x, _ in self.inputs)

    @torch.no_grad()
    def without(self, tokens: int) -> LayerState:
        """The state without the newest ``tokens`` tokens.

        Raises:
            CacheError: there are not so many.
        """
        left = self.tokens - tokens
        if left < 0:
            raise CacheError(f"Cannot forget {tokens} tokens: {self.tokens} were recorded since the last crop.")
        state = self.state.copy()
        for x, context in self.inputs:
            kept = min(left, x.shape[1])
            if kept:
                self.read(x[:, :kept], context.piece(0, kept).for_layer(state))
            left -= kept
        return state


__all__ = ["LONGEST", "Recall"]
