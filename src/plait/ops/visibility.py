"""Which keys a query may see: one object a pattern, in every form that an operation needs.

Queries and keys are counted within their document from its first real token, so padding in front moves nothing.
``sees`` is the definition; every other form is derived from it or tested against it.

============  ======================================================================================
form          what it is
============  ======================================================================================
``sees``      the definition, elementwise over indices
``dense``     a boolean matrix, for small T
``ranges``    key ranges that some query of a block sees: what a gathered product reads
``blocks``    lists of key pages for each block of queries: what a sparse kernel reads
``degrees``   how many keys each query sees; ``pairs`` sums them over documents
``keeps``     keys that a later query may still see: what a cache must not forget
``flex``      the block mask of FlexAttention, for CUDA
============  ======================================================================================
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from plait.errors import OptionError

#: Half-open ranges of key indices, ascending and apart.
Ranges = list[tuple[int, int]]


class Visibility(ABC):
    """Which keys a query may see."""

    #: Whether no query sees a later key.
    causal: ClassVar[bool] = True

    @property
    def shifts(self) -> bool:
        """Whether the distance from query to key says all, so that both may be counted from anywhere."""
        return False

    @abstractmethod
    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether the query of one index sees the key of the other; indices that broadcast, bool."""

    @abstractmethod
    def ranges(self, first: int, last: int, length: int) -> Ranges:
        """Keys of a document of ``length`` tokens that at least one query of ``first`` to ``last - 1`` sees."""

    @abstractmethod
    def degrees(self, queries: Tensor, length: int) -> Tensor:
        """How many keys each query of these indices sees in a document of ``length`` tokens, int64."""

    def keeps(self, tokens: int) -> Tensor:
        """Bool ``(tokens,)``: which of the keys so far a query at index ``tokens`` or later may still see."""
        return torch.ones(tokens, dtype=torch.bool)

    def of_head(self, head: int, heads: int) -> Visibility:
        """What one of ``heads`` query heads sees."""
        return self

    def dense(self, length: int, first: int = 0, *, device: torch.device | str = "cpu") -> Tensor:
        """Bool ``(T - first, T)``: rows are the queries from ``first`` on."""
        keys = torch.arange(length, device=device)
        return self.sees(keys[first:, None], keys)

    def blocks(self, length: int, block: int, page: int, first: int = 0) -> Lists:
        """Pages of ``page`` keys that each block of ``block`` queries needs, the first query at index ``first``."""
        lists = [
            pages_of(self.ranges(start, min(start + block, length), length), page)
            for start in range(first, length, block)
        ]
        width = max((len(pages) for pages in lists), default=0)
        index = torch.tensor([pages + [0] * (width - len(pages)) for pages in lists], dtype=torch.int64)
        counts = torch.tensor([len(pages) for pages in lists], dtype=torch.int64)
        return Lists(index.view(1, 1, len(lists), width), counts.view(1, 1, len(lists)), block, page, first)

    def pairs(self, lengths: Iterable[int], first: int = 0) -> int:
        """Visible pairs of one head over documents of these lengths, with the queries from ``first`` on."""
        return sum(int(self.degrees(torch.arange(first, length), length).sum()) for length in lengths)

    def flex(self, length: int, first: int = 0, *, heads: int = 1, device: torch.device | str = "cuda") -> Any:
        """FlexAttention's block mask for queries from ``first`` on."""
        from torch.nn.attention.flex_attention import create_block_mask

        if all(self.of_head(head, heads) == self for head in range(heads)):
            return create_block_mask(
                lambda b, h, q, k: self.sees(q + first, k), None, None, length - first, length, device=str(device)
            )
        parts = [self.of_head(head, heads) for head in range(heads)]

        def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            seen = parts[0].sees(q + first, k) & (h == 0)
            for head, part in enumerate(parts[1:], start=1):
                seen = seen | (part.sees(q + first, k) & (h == head))
            return seen

        return create_block_mask(sees, None, heads, length - first, length, device=str(device))


@dataclass(frozen=True)
class Full(Visibility):
    """Every key, later ones too."""

    causal: ClassVar[bool] = False
    shifts: ClassVar[bool] = True  # type: ignore[misc]

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        return torch.ones_like(query - key, dtype=torch.bool)

    def ranges(self, first: int, last: int, length: int) -> Ranges:
        return [(0, length)]

    def degrees(self, queries: Tensor, length: int) -> Tensor:
        return torch.full_like(queries, length)


@dataclass(frozen=True)
class Causal(Visibility):
    """Every key up to the query's own."""

    shifts: ClassVar[bool] = True  # type: ignore[misc]

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        return key <= query

    def ranges(self, first: int, last: int, length: int) -> Ranges:
        return [(0, last)]

    def degrees(self, queries: Tensor, length: int) -> Tensor:
        return queries + 1


@dataclass(frozen=True)
class Window(Visibility):
    """The last ``window`` keys, the query's own included, and the first ``sinks`` of the document.

    Args:
        window: 1 at least.
        sinks: 0 at least.
    """

    window: int
    sinks: int = 0

    def __post_init__(self) -> None:
        _at_least("Window", window=(self.window, 1), sinks=(self.sinks, 0))

    @property
    def shifts(self) -> bool:
        return not self.sinks

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        distance = query - key
        return (distance >= 0) & ((distance < self.window) | (key < self.sinks))

    def ranges(self, first: int, last: int, length: int) -> Ranges:
        return joined([(0, min(self.sinks, last)), (max(0, first - self.window + 1), last)])

    def degrees(self, queries: Tensor, length: int) -> Tensor:
        before = (queries + 1 - self.window).clamp(min=0)
        return queries + 1 - before + before.clamp(max=self.sinks)

    def keeps(self, tokens: int) -> Tensor:
        keys = torch.arange(tokens)
        return (keys > tokens - self.window) | (keys < self.sinks)


@dataclass(frozen=True)
class Blocks(Visibility):
    """Keys up to the query's own in its block of ``size`` tokens, in the ``back`` blocks before, and in the sinks.

    Args:
        size: tokens of a block.
        back: earlier blocks that are seen whole.
        sinks: first keys of the document that are always seen.
        offset: how many tokens the first block is shorter; its rest would lie before the document.
    """

    size: int
    back: int = 0
    sinks: int = 0
    offset: int = 0

    def __post_init__(self) -> None:
        _at_least("Blocks", size=(self.size, 1), back=(self.back, 0), sinks=(self.sinks, 0), offset=(self.offset, 0))

    def _start(self, query: Any) -> Any:
        """First key of the oldest block that a query sees; below 0 where there are fewer blocks."""
        return ((query + self.offset) // self.size - self.back) * self.size - self.offset

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & ((key >= self._start(query)) | (key < self.sinks))

    def ranges(self, first: int, last: int, length: int) -> Ranges:
        return joined([(0, min(self.sinks, last)), (max(0, self._start(first)), last)])

    def degrees(self, queries: Tensor, length: int) -> Tensor:
        before = self._start(queries).clamp(min=0)
        return queries + 1 - before + before.clamp(max=self.sinks)

    def keeps(self, tokens: int) -> Tensor:
        keys = torch.arange(tokens)
        return (keys >= self._start(tokens)) | (keys < self.sinks)


@dataclass(frozen=True)
class Power(Visibility):
    """Blocks at a distance below ``window`` or equal to a power of two, and the first block (2503.03588).

    Args:
        size: tokens of a block.
        window: nearest blocks, the query's own included.
        sink: whether the document's first block is always seen.
    """

    size: int
    window: int = 1
    sink: bool = True

    def __post_init__(self) -> None:
        _at_least("Power", size=(self.size, 1), window=(self.window, 1))

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        distance = query // self.size - key // self.size
        near = (distance < self.window) | ((distance & (distance - 1)) == 0)
        return (key <= query) & (near | (key < self.size)) if self.sink else (key <= query) & near

    def key_blocks(self, block: int) -> list[int]:
        """Blocks of keys that a block of queries sees, ascending."""
        seen = {block - distance for distance in range(min(self.window, block + 1))}
        seen |= {block - 2**power for power in range(block.bit_length()) if 2**power <= block}
        return sorted(seen | {0} if self.sink else seen)

    def ranges(self, first: int, last: int, length: int) -> Ranges:
        blocks = {
            key for block in range(first // self.size, (last - 1) // self.size + 1) for key in self.key_blocks(block)
        }
        return joined([(block * self.size, min((block + 1) * self.size, last)) for block in sorted(blocks)])

    def degrees(self, queries: Tensor, length: int) -> Tensor:
        own = queries // self.size
        earlier = torch.tensor(
            [len(self.key_blocks(block)) - 1 for block in range(int(own.max()) + 1)] if own.numel() else [0]
        )
        return earlier.to(own.device)[own] * self.size + queries % self.size + 1


@dataclass(frozen=True)
class Disc(Visibility):
    """Tokens of an image see those nearer than ``radius`` and the text before the image; the text sees everything.

    Not causal. Tokens ``0`` to ``text - 1`` are text, the image's follow row by row (CLEAR, 2412.16112).

    Args:
        height, width: of the image, in tokens.
        radius: distances below it are seen, not those equal to it.
        text: tokens of text.
    """

    causal: ClassVar[bool] = False
    height: int
    width: int
    radius: float
    text: int = 0

    def __post_init__(self) -> None:
        _at_least("Disc", height=(self.height, 1), width=(self.width, 1), text=(self.text, 0))
        if not self.radius > 0:
            raise OptionError(f"Disc: radius = {self.radius} must be above 0.")

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        q, k = query - self.text, key - self.text
        rows, columns = q // self.width - k // self.width, q % self.width - k % self.width
        return (q < 0) | (k < 0) | (rows * rows + columns * columns < self.radius**2)

    def ranges(self, first: int, last: int, length: int) -> Ranges:
        if first < self.text:
            return [(0, length)]
        keys = torch.arange(length)
        seen = self.sees(torch.arange(first, last)[:, None], keys).any(0)
        return runs(seen)

    def degrees(self, queries: Tensor, length: int) -> Tensor:
        keys = torch.arange(length, device=queries.device)
        step = max(1, 2**22 // max(1, length))
        return torch.cat([self.sees(part[:, None], keys).sum(1) for part in queries.split(step)])


@dataclass(frozen=True)
class PerHead(Visibility):
    """Each query head its own: the heads in order, cut into one part for each member.

    Args:
        parts: members with the share of heads that each has; the shares sum to 1.
    """

    parts: tuple[tuple[Visibility, float], ...]

    def __post_init__(self) -> None:
        total = sum(share for _, share in self.parts)
        if abs(total - 1) > 1e-9:
            raise OptionError(f"PerHead: the shares of heads sum to {total:g}, not to 1.")

    def of_head(self, head: int, heads: int) -> Visibility:
        end = 0.0
        for part, share in self.parts:
            end += share * heads
            if head < round(end):
                return part
        return self.parts[-1][0]

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether some head sees the key."""
        seen = self.parts[0][0].sees(query, key)
        for part, _ in self.parts[1:]:
            seen = seen | part.sees(query, key)
        return seen

    def ranges(self, first: int, last: int, length: int) -> Ranges:
        return joined(sorted(piece for part, _ in self.parts for piece in part.ranges(first, last, length)))

    def degrees(self, queries: Tensor, length: int) -> Tensor:
        raise OptionError("PerHead: heads see different numbers of keys; count each with of_head(head, heads).")

    def keeps(self, tokens: int) -> Tensor:
        """Keys that some head may still see."""
        return torch.stack([part.keeps(tokens) for part, _ in self.parts]).any(0)


def shifted(group: int, fraction: float = 0.5, sinks: int = 0) -> Visibility:
    """Groups of tokens, moved by half a group in the last ``fraction`` of the heads (LongLoRA, 2309.12307).

    This is the causal reading: the group that the published roll joins around the document's ends is cut in two there.
    With sinks and a fraction of 1/4 it is SinkLoRA's (2406.05678).

    Args:
        group: tokens of a group, an even number.
        fraction: share of heads with moved groups, 0 to 1.
        sinks: first keys of the document that are always seen.
    """
    if group < 2 or group % 2:
        raise OptionError(f"shifted: group = {group} must be even, so that half a group is a whole number of tokens.")
    if not 0 <= fraction <= 1:
        raise OptionError(f"shifted: fraction = {fraction:g} must lie in 0 to 1.")
    plain, moved = Blocks(group, sinks=sinks), Blocks(group, sinks=sinks, offset=group // 2)
    if fraction in (0, 1):
        return moved if fraction else plain
    return PerHead(((plain, 1 - fraction), (moved, fraction)))


@dataclass(frozen=True, eq=False)
class Lists(Visibility):
    """Chosen pages of keys for each block of queries, of them the keys up to the query's own.

    Args:
        index: ``(B, X, M, K)`` pages, each at most once among the counted ones; X divides the number of query heads.
        counts: ``(B, X, M)`` how many of the K count.
        block: queries of a block.
        page: keys of a page.
        first: index of the first query.
    """

    index: Tensor
    counts: Tensor
    block: int
    page: int
    first: int = 0

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        raise OptionError("Lists: rows and heads choose for themselves; mask(length) gives what each sees.")

    def ranges(self, first: int, last: int, length: int) -> Ranges:
        raise OptionError("Lists: rows and heads choose for themselves; their pages are in index and counts.")

    def degrees(self, queries: Tensor, length: int) -> Tensor:
        return self.mask(length).sum(-1)

    def mask(self, length: int) -> Tensor:
        """Bool ``(B, X, T - first, T)``: what each row and owner of a list sees."""
        pages = -(-length // self.page)
        valid = torch.arange(self.index.shape[3], device=self.index.device) < self.counts[..., None]
        seen = torch.zeros(*self.index.shape[:3], pages + 1, dtype=torch.bool, device=self.index.device)
        seen = seen.scatter(3, self.index.masked_fill(~valid, pages), True)[..., :pages]
        seen = seen.repeat_interleave(self.page, dim=3)[..., :length].repeat_interleave(self.block, dim=2)
        keys = torch.arange(length, device=self.index.device)
        return seen[:, :, : length - self.first] & (keys <= keys[self.first :, None])


def pages_of(ranges: Ranges, page: int) -> list[int]:
    """Pages that hold at least one key of these ranges, ascending."""
    return sorted({number for low, high in ranges for number in range(low // page, -(-high // page))})


def joined(ranges: Sequence[tuple[int, int]]) -> Ranges:
    """Ascending ranges without the empty ones; those that touch or overlap are one."""
    result: Ranges = []
    for low, high in ranges:
        if low >= high:
            continue
        if result and low <= result[-1][1]:
            result[-1] = (result[-1][0], max(result[-1][1], high))
        else:
            result.append((low, high))
    return result


def runs(mask: Tensor) -> Ranges:
    """Ranges where a bool vector is True."""
    edges = torch.nn.functional.pad(mask.to(torch.int8), (1, 1)).diff().nonzero().flatten().tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def _at_least(name: str, **values: tuple[int, int]) -> None:
    for field, (value, least) in values.items():
        if value < least:
            raise OptionError(f"{name}: {field} = {value} must be {least} or more.")
