"""Sequence parallelism: each process holds a piece of every sequence, the result is that of one process."""

from plait.distributed.sequence.channel import Traffic
from plait.distributed.sequence.parallel import (
    SequenceParallel,
    gather_sequence,
    reduce_gradients,
    sequence_parallel,
    shard_sequence,
)

__all__ = [
    "SequenceParallel",
    "Traffic",
    "gather_sequence",
    "reduce_gradients",
    "sequence_parallel",
    "shard_sequence",
]
