"""Which process learns from which rows, so that a step sees the same rows however many processes share it."""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import Sampler

from plait.errors import TrainingError


def share(rows: int, processes: int, batch_size: int) -> tuple[int, int]:
    """Batch size and accumulation of one process.

    Args:
        rows: sequences per optimiser step, over all processes.
        processes: how many share them.
        batch_size: the largest batch.

    Returns:
        The largest batch of at most ``batch_size`` rows that cuts a process's share evenly, and the number of them.

    Raises:
        TrainingError: the processes cannot share the rows evenly.
    """
    each, left = divmod(rows, processes)
    if left:
        raise TrainingError(
            f"A step of this run has {rows} sequences, which {processes} processes cannot share evenly; use a number "
            f"of processes that divides {rows}, or start a run in a new folder."
        )
    batch = next(size for size in range(min(batch_size, each), 0, -1) if each % size == 0)
    return batch, each // batch


class DealtSampler(Sampler[int]):
    """Rows in the order in which batches are handed to the processes in turn: row ``i`` goes to process ``i mod W``.

    accelerate gives the ``j``-th batch to process ``j mod W``. With one process the order is that of the rows; with
    more, the ``W`` batches of one round hold the same rows, dealt out like cards.

    Args:
        rows: number of rows, a multiple of ``batch_size * processes``.
        batch_size: rows of one process.
        processes: W.
    """

    def __init__(self, rows: int, batch_size: int, processes: int) -> None:
        self.rows = rows
        self.batch_size = batch_size
        self.processes = processes

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        for start in range(0, self.rows, self.batch_size * self.processes):
            for process in range(self.processes):
                first = start + process
                yield from range(first, first + self.batch_size * self.processes, self.processes)
