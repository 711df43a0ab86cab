"""Communication inside one group of processes, counted.

Only calls that gloo and NCCL do alike: all-gather and reduce-scatter of equal pieces, all-to-all of unequal ones,
all-reduce, and paired sends and receives. Nothing here has a gradient; see :mod:`plait.distributed.sequence.moves`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor

from plait.errors import OptionError

#: What to do where a second derivative is wanted, which nothing here has.
INSTEAD = 'run in one process with backend "reference"'


@dataclass
class Traffic:
    """What one process has sent for one purpose.

    Args:
        calls: collective calls, or rounds of a ring.
        elements: numbers sent to other processes, by the ring form of each collective.
        bytes: their size.
    """

    calls: int = 0
    elements: int = 0
    bytes: int = 0


class Channel:
    """The processes that share each sequence, in the order of its pieces.

    Args:
        group: None for all processes.

    Raises:
        OptionError: there are no processes yet.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        if not dist.is_available() or not dist.is_initialized():
            raise OptionError(
                "Sequence parallelism needs processes: start the program with torchrun and call "
                "torch.distributed.init_process_group() before it."
            )
        self.group = group
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        if self.rank < 0:
            raise OptionError("This process is not in the group: give each process the group that it belongs to.")
        self.traffic: dict[str, Traffic] = {}

    def gather(self, kind: str, x: Tensor) -> list[Tensor]:
        """``x`` of every process, all of one shape."""
        x = x.contiguous()
        found = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(found, x, self.group)
        self._count(kind, (self.size - 1) * x.numel(), x)
        return found

    def reduce_scatter(self, kind: str, pieces: Sequence[Tensor]) -> Tensor:
        """The sum over processes of the piece that each of them has for this one, all of one shape."""
        pieces = [piece.contiguous() for piece in pieces]
        found = torch.empty_like(pieces[0])
        dist.reduce_scatter(found, pieces, group=self.group)
        self._count(kind, (self.size - 1) * found.numel(), found)
        return found

    def exchange(self, kind: str, pieces: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        """Piece j to process j, and from process j what it has for this one, of ``shapes[j]``; empty pieces cost
        nothing."""
        sent = [piece.numel() for piece in pieces]
        sizes = [torch.Size(shape).numel() for shape in shapes]
        outgoing = torch.cat([piece.reshape(-1) for piece in pieces])
        incoming = outgoing.new_empty(sum(sizes))
        dist.all_to_all_single(incoming, outgoing, sizes, sent, group=self.group)
        self._count(kind, sum(sent) - sent[self.rank], outgoing)
        return [x.view(shape) for x, shape in zip(incoming.split(sizes), map(tuple, shapes), strict=True)]

    def rotate(self, kind: str, x: Tensor, shape: Sequence[int]) -> Tensor:
        """``x`` to the next process of the ring; what the one before sends, of this ``shape``."""
        x, found = x.contiguous(), x.new_empty(tuple(shape))
        after, before = (self.rank + 1) % self.size, (self.rank - 1) % self.size
        pair = [
            dist.P2POp(dist.isend, x, group=self.group, group_peer=after),
            dist.P2POp(dist.irecv, found, group=self.group, group_peer=before),
        ]
        for work in dist.batch_isend_irecv(pair):
            work.wait()
        self._count(kind, x.numel(), x)
        return found

    def sum(self, kind: str, x: Tensor) -> Tensor:
        """``x`` summed over the processes."""
        found = x.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(found, group=self.group)
        self._count(kind, 2 * (self.size - 1) * found.numel() // self.size, found)
        return found

    def _count(self, kind: str, elements: int, like: Tensor) -> None:
        traffic = self.traffic.setdefault(kind, Traffic())
        traffic.calls += 1
        traffic.elements += elements
        traffic.bytes += elements * like.element_size()


def offsets(lengths: Sequence[int]) -> list[int]:
    """Where each piece begins, and where the last ends."""
    return list(accumulate(lengths, initial=0))
