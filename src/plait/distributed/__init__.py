"""Many processes on one model."""

from plait.distributed.sequence import gather_sequence, reduce_gradients, sequence_parallel, shard_sequence

__all__ = ["gather_sequence", "reduce_gradients", "sequence_parallel", "shard_sequence"]
