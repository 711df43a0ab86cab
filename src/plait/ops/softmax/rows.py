"""Which slots each query of one call sees: a visibility, counted from the first real token of a row or document."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from plait.ops.visibility import Ranges, Visibility, joined


@dataclass(frozen=True)
class Rows:
    """Queries at slots ``first`` to ``first + T - 1`` against keys at slots 0 to ``S - 1``.

    Args:
        visibility: the same for all heads.
        first: slot of the first query.
        starts: ``(B,)`` slot of each row's first real token; None where all slots are real.
        borders: borders of packed documents; then queries and keys stand at the same slots, and ``starts`` is None.
    """

    visibility: Visibility
    first: int = 0
    starts: Tensor | None = None
    borders: tuple[int, ...] | None = None

    def mask(self, queries: Tensor, keys: Tensor) -> Tensor:
        """What queries see of keys, given as slots: bool ``(T, S)``, or ``(B, 1, T, S)`` with ``starts``."""
        queries = queries[:, None]
        if self.borders is not None:
            borders = torch.tensor(self.borders, device=keys.device)
            of_query, of_key = (torch.searchsorted(borders, x, right=True) - 1 for x in (queries, keys))
            return self.visibility.sees(queries - borders[of_query], keys - borders[of_key]) & (of_query == of_key)
        if self.starts is None:
            return self.visibility.sees(queries, keys)
        start = self.starts[:, None, None, None]
        if self.visibility.shifts:
            seen = self.visibility.sees(queries, keys) & (keys >= start)
        else:
            seen = self.visibility.sees(queries - start, keys - start) & (keys >= start)
        return seen if self.visibility.causal else seen & (queries >= start)

    def blocks(self, length: int, stored: int, size: int) -> Iterator[tuple[int, int, Ranges]]:
        """Blocks of at most ``size`` of ``length`` queries: first and last + 1, and the slots that some of them see."""
        if self.borders is not None:
            for low, high in pairwise(self.borders):
                for x in range(low, high, size):
                    y = min(x + size, high)
                    seen = self.visibility.ranges(x - low, y - low, high - low)
                    yield x, y, [(a + low, b + low) for a, b in seen]
            return
        starts = [0] if self.starts is None else sorted(set(self.starts.tolist()))
        for x in range(0, length, size):
            y = min(x + size, length)
            seen = [
                (a + start, b + start)
                for start in starts
                if self.first + y > start
                for a, b in self.visibility.ranges(
                    max(0, self.first + x - start), self.first + y - start, stored - start
                )
            ]
            yield x, y, joined(sorted(seen))


def slots(ranges: Ranges, device: torch.device) -> Tensor:
    """All slots of some ranges, in order."""
    parts = [torch.arange(low, high, device=device) for low, high in ranges]
    return parts[0] if len(parts) == 1 else torch.cat([torch.arange(0, device=device), *parts])


def taken(x: Tensor, ranges: Ranges) -> Tensor:
    """The slots of some ranges of ``(B, N, S, D)``; a view where there is one range."""
    if len(ranges) == 1:
        return x[:, :, ranges[0][0] : ranges[0][1]]
    return torch.cat([x[:, :, low:high] for low, high in ranges] or [x[:, :, :0]], dim=2)
