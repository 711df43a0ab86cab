"""What users call: the context under which a model runs on pieces, and the ways in and out of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from plait.distributed.sequence.channel import Channel, Traffic, offsets
from plait.distributed.sequence.moves import gathered
from plait.distributed.sequence.shard import Shard
from plait.distributed.sequence.softmax import WAYS
from plait.errors import OptionError, nearest
from plait.mixers import shard as mixers


class SequenceParallel:
    """A group of processes that share each sequence; :func:`sequence_parallel` makes one.

    Args:
        group: None for all processes.
        attention: way of softmax attention.

    Attributes:
        rank: this process's place in the group, and of its piece in the sequence.
        size: processes in the group.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, attention: str = "gather") -> None:
        if attention not in WAYS:
            raise OptionError(f"sequence_parallel has no attention={attention!r}.{nearest(attention, WAYS)}")
        self.attention = attention
        self.channel = Channel(group)
        self.rank, self.size = self.channel.rank, self.channel.size

    @property
    def traffic(self) -> dict[str, Traffic]:
        """What this process has sent so far, by purpose; what backward sends ends in ``gradient``."""
        return self.channel.traffic

    def enter(self, x: Tensor, refusal: str | None) -> Shard | None:
        """See :meth:`plait.mixers.shard.Shards.enter`."""
        if self.size == 1:
            return None
        batch, length = x.shape[:2]
        problem = refusal or ("this process has no tokens" if length == 0 else None)
        told = torch.tensor([batch, length, int(problem is not None)], device=x.device)
        batches, lengths, problems = torch.stack(self.channel.gather("lengths", told)).T.tolist()
        if any(problems):
            elsewhere = f"process {problems.index(1)} of the group cannot take part; its own error says why"
            raise OptionError(f"Sequence parallelism: {problem or elsewhere}.")
        if len(set(batches)) > 1:
            raise OptionError(
                f"Sequence parallelism: the processes hold {batches} rows; each must hold a piece of every row."
            )
        return Shard(self.channel, lengths, self.attention)


@contextmanager
def sequence_parallel(
    group: dist.ProcessGroup | None = None, *, attention: str = "gather"
) -> Iterator[SequenceParallel]:
    """Run plait models on sequences whose pieces the processes of ``group`` hold, in the order of their ranks.

    Inside, each process calls the model on its own piece (see :func:`shard_sequence`), whose length may differ from
    the others', and gets the outputs of its piece. The loss is the mean over all targets, the same in each process.
    After ``backward`` each process has its piece's share of the parameters' gradients: :func:`reduce_gradients` sums
    them.

    Recurrences send their states once (LASP-2, 2502.07563), convolutions and windows the tokens before a border,
    softmax attention what ``attention`` says; see docs/sequence-parallelism.md for how much.

    Args:
        group: processes, one piece each; None for all.
        attention: ``gather`` (every process gets all keys and values), ``ring`` (they pass around, one piece at a
            time) or ``heads`` (all-to-all: every process takes some heads over all tokens).

    Yields:
        The group, with the traffic of this process.

    Raises:
        OptionError: no processes, or an unknown ``attention``; when the model runs, on every process: a cache,
            padding, packed documents or position ids, an empty piece, or a mixer that cannot.
    """
    parallel = SequenceParallel(group, attention)
    token = mixers.active.set(parallel)
    try:
        yield parallel
    finally:
        mixers.active.reset(token)


def shard_sequence(
    x: Tensor, group: dist.ProcessGroup | None = None, dim: int = 1, lengths: Sequence[int] | None = None
) -> Tensor:
    """This process's piece of ``x``, which every process has whole; nothing is sent.

    Args:
        x: any tensor.
        group: processes, one piece each; None for all.
        dim: the sequence.
        lengths: tokens of each piece; None for pieces that differ by one at most, the longer ones first.

    Raises:
        OptionError: lengths that do not add up, or fewer tokens than processes.
    """
    channel = Channel(group)
    length = x.shape[dim]
    if lengths is None:
        lengths = [length // channel.size + (rank < length % channel.size) for rank in range(channel.size)]
    if len(lengths) != channel.size or sum(lengths) != length or min(lengths) < 1:
        raise OptionError(
            f"lengths={list(lengths)} must be {channel.size} numbers from 1 that sum to {length}, the size of "
            f"dimension {dim}."
        )
    return x.narrow(dim, offsets(lengths)[channel.rank], lengths[channel.rank])


def gather_sequence(x: Tensor, group: dist.ProcessGroup | None = None, dim: int = 1) -> Tensor:
    """The whole of which every process holds a piece, on every process. Gradients are summed over the processes.

    Args:
        x: this process's piece; pieces may differ in ``dim`` only.
        group: processes, one piece each; None for all.
        dim: the sequence.
    """
    channel = Channel(group)
    if channel.size == 1:
        return x
    lengths = [int(n) for n in channel.gather("lengths", torch.tensor([x.shape[dim]], device=x.device))]
    moved = x.movedim(dim, 0)[None]
    return gathered(channel, "sequence", moved, lengths)[0].movedim(0, dim)


def reduce_gradients(model: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Sum the parameters' gradients over the processes, in place: those of the whole sequence, on every process.

    DistributedDataParallel and FSDP over the same group do this too, but divide by its size: multiply the loss by it.
    """
    channel = Channel(group)
    if channel.size == 1:
        return
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for gradient in _gradients(model.parameters()):
        by_dtype.setdefault(gradient.dtype, []).append(gradient)
    for gradients in by_dtype.values():
        summed = channel.sum("gradients", torch.cat([gradient.reshape(-1) for gradient in gradients]))
        for gradient, new in zip(gradients, summed.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(new.view_as(gradient))


def _gradients(parameters: Iterable[nn.Parameter]) -> Iterator[Tensor]:
    for parameter in parameters:
        if parameter.grad is not None:
            yield parameter.grad
