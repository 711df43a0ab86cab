"""How many rows go through a model at once; halved where memory does not suffice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import torch

from plait.errors import OptionError

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Tokens of the first batch that ``auto`` tries.
_TOKENS = {"cpu": 1 << 14, "other": 1 << 18}


class Batches:
    """Cuts work into batches.

    Args:
        size: rows per batch; ``auto`` starts from a number of tokens that fits most machines.
        device: where the model is.

    Raises:
        OptionError: a size below 1.
    """

    def __init__(self, size: int | Literal["auto"], device: torch.device) -> None:
        if size != "auto" and size < 1:
            raise OptionError(f"The batch size {size} must be at least 1, or auto.")
        self.size = size
        self._tokens = _TOKENS.get(device.type, _TOKENS["other"])
        self._fits: int | None = None  # tokens of half of a batch that was too large

    def rows(self, tokens: int) -> int:
        """Rows of ``tokens`` tokens in one batch."""
        most = max(1, self._tokens // tokens) if self.size == "auto" else self.size
        return most if self._fits is None else max(1, min(most, self._fits // tokens))

    def run(
        self, function: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item], tokens: int
    ) -> list[Result]:
        """``function`` over all items, batch by batch; a batch that needs too much memory is halved and tried again.

        Args:
            function: results of a batch, one per item.
            items: all of one length.
            tokens: tokens of one item.

        Raises:
            torch.OutOfMemoryError, MemoryError, RuntimeError: a single item does not fit.
        """
        results: list[Result] = []
        while len(results) < len(items):
            batch = items[len(results) : len(results) + self.rows(tokens)]
            try:
                results += function(batch)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not _out_of_memory(error) or len(batch) == 1:
                    raise
                self._fits = len(batch) // 2 * tokens
        return results


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
