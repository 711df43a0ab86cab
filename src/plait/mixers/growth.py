"""Growing the tensors of a cache in place: joining a token must not copy all that came before it."""

from __future__ import annotations

import torch
from torch import Tensor

#: Room behind a tensor that has to move: this share of its size, and at least so many slots.
_SHARE, _LEAST = 16, 16


class Growth:
    """Joins tensors along one axis, in place while there is room behind what was joined last.

    What it returns is read and kept by one owner: a second tensor joined to the same one would overwrite the first.

    Args:
        dim: the axis.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._buffer: Tensor | None = None
        self._view: Tensor | None = None  # what was returned last; it ends at slot self._end of the buffer
        self._end = 0

    def join(self, old: Tensor, new: Tensor) -> Tensor:
        """``torch.cat([old, new], dim)``, without copying ``old`` where it was returned by the last call."""
        graph = torch.is_grad_enabled() and (old.requires_grad or new.requires_grad)
        if graph or old.dtype != new.dtype or torch.compiler.is_compiling():
            self.forget()
            return torch.cat([old, new], dim=self.dim)
        size, added = old.shape[self.dim], new.shape[self.dim]
        if not self._fits(old, added):
            shape = list(old.shape)
            shape[self.dim] = size + added + max(_LEAST, (size + added) // _SHARE)
            self._buffer = old.new_empty(shape)
            self._buffer.narrow(self.dim, 0, size).copy_(old)
            self._end = size
        assert self._buffer is not None
        self._buffer.narrow(self.dim, self._end, added).copy_(new)
        self._end += added
        self._view = self._buffer.narrow(self.dim, self._end - size - added, size + added)
        return self._view

    def last(self, x: Tensor, count: int) -> Tensor:
        """The last ``count`` slots of ``x``, without the memory of the others where they are many."""
        kept = x.narrow(self.dim, x.shape[self.dim] - count, count)
        if torch.compiler.is_compiling():
            return kept
        room = max(_LEAST, count // _SHARE) if x is self._view else 0
        slot = x.nbytes // max(1, x.shape[self.dim])
        if x.untyped_storage().nbytes() > (count + room) * slot:
            self.forget()
            return kept.clone()
        self._view = kept if x is self._view else None
        return kept

    def forget(self) -> None:
        """Let go of the buffer."""
        self._buffer = self._view = None

    def _fits(self, old: Tensor, added: int) -> bool:
        buffer = self._buffer
        if buffer is None or old is not self._view or self._end + added > buffer.shape[self.dim]:
            return False
        return not buffer.is_inference() or torch.is_inference_mode_enabled()
