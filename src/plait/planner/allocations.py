"""Counts the bytes of tensors that are alive, operation by operation; with fake tensors it needs no memory itself."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocations(TorchDispatchMode):
    """Bytes of the storages that were made under this mode and are still alive, and the most there ever were.

    What a compiled kernel takes and gives back within one operation is not seen. Tensors from outside count nothing.

    Example:
        >>> with Allocations() as counted:
        ...     x = torch.zeros(8)
        ...     y = x.view(2, 4)  # shares the memory of x
        >>> counted.live
        32
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._counting = True
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(x.untyped_storage()) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage(), given)
        return result

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Tensors that are made inside count nothing."""
        self._counting = False
        try:
            yield
        finally:
            self._counting = True

    def restart(self) -> None:
        """Let the peak begin at what is alive now."""
        self.peak = self.live

    def _add(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        if not self._counting or id(storage) in given or storage in self._known:
            return  # a view, or written in place
        size = storage.nbytes()
        self._known.add(storage)
        weakref.finalize(storage, self._remove, size)
        self.live += size
        self.peak = max(self.peak, self.live)

    def _remove(self, size: int) -> None:
        self.live -= size
