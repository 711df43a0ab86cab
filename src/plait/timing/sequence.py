"""Softmax attention with the sequence in pieces on several processes, against one process with all of it.

Every process has one thread, so that the processes together have what one process lacks. Two contenders run on one
process while the others wait: torch's fused attention, which is what every way runs inside, and the vanilla form that
holds all scores at once, against which papers state their largest factors.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from plait.distributed.sequence import shard_sequence
from plait.distributed.sequence.channel import Channel
from plait.distributed.sequence.softmax import WAYS
from plait.errors import OptionError
from plait.ops.softmax import attention_output
from plait.ops.visibility import Causal
from plait.timing.ratios import Ratio, ratio
from plait.timing.shapes import Shape

ALONE, VANILLA = "one process, fused", "one process, vanilla"
#: The vanilla form holds ``B H T^2`` scores twice, and four times in backward; it is left out above so many bytes.
VANILLA_BYTES = 12 * 2**30


@dataclass(frozen=True)
class SequenceTiming:
    """One way of softmax attention.

    Args:
        way: ``gather``, ``ring`` or ``heads``, or who runs on one process.
        processes: that share the sequence.
        milliseconds: median, until the last process is done.
        megabytes: what one process sent in a call, in 1e6 bytes; of all processes, the largest.
        over_fused, over_vanilla: how often longer one process takes, fused and vanilla; None where vanilla was left
            out.
    """

    way: str
    processes: int
    milliseconds: float
    megabytes: float
    over_fused: Ratio
    over_vanilla: Ratio | None


def time_sequence(
    shape: Shape, processes: int, repeats: int, backward: bool, announce: Callable[[str], None]
) -> list[SequenceTiming]:
    """Time each way on ``processes`` processes of one thread, in turns with the contenders on one.

    Args:
        shape: of the whole.
        processes: that share it, by gloo on this machine.
        repeats: turns, after one that warms up.
        backward: time forward and backward, else forward alone.
        announce: told what begins.

    Raises:
        OptionError: fewer than two processes, or more than heads or tokens can be shared among.
    """
    if processes < 2 or shape.heads % processes or shape.tokens < processes:
        raise OptionError(
            f"--processes {processes} must be 2 at least and divide the {shape.heads} heads; choose another number, or "
            "another --shape."
        )
    announce(f"{shape} on {processes} processes, {repeats} turns")
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_process, (processes, folder, shape, repeats, backward), nprocs=processes)
        found = [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(processes)]
    seconds = found[0]["seconds"]
    return [
        SequenceTiming(
            way,
            1 if way in (ALONE, VANILLA) else processes,
            1e3 * statistics.median(own),
            max(one["bytes"].get(way, 0) for one in found) / 1e6,
            ratio(own, seconds[ALONE]),
            ratio(own, seconds[VANILLA]) if VANILLA in seconds else None,
        )
        for way, own in seconds.items()
    ]


def vanilla(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention with all scores in memory, ``(B, T, H, D)``."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    future = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).triu(1)
    return (scores.masked_fill_(future, -torch.inf).softmax(-1) @ v).transpose(1, 2)


def _process(rank: int, size: int, folder: str, shape: Shape, repeats: int, backward: bool) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    generator = torch.Generator().manual_seed(0)
    size_of_all = (shape.batch, shape.tokens, shape.heads, shape.width)
    whole = [torch.randn(size_of_all, generator=generator) for _ in range(3)]
    pieces = [shard_sequence(x).clone() for x in whole]
    lengths = [len(piece) for piece in torch.arange(shape.tokens).tensor_split(size)]
    channels = {way: Channel() for way in WAYS}

    def on_pieces(way: str) -> Callable[[], object]:
        return lambda: _run(lambda q, k, v: WAYS[way](channels[way], q, k, v, lengths), pieces, backward)

    def on_one(function: Callable[..., Tensor]) -> Callable[[], object]:
        return lambda: _run(function, whole, backward) if rank == 0 else None

    contenders: dict[str, Callable[[], object]] = {ALONE: on_one(lambda q, k, v: attention_output(q, k, v, Causal()))}
    if shape.batch * shape.heads * shape.tokens**2 * 4 * (4 if backward else 2) <= VANILLA_BYTES:
        contenders[VANILLA] = on_one(vanilla)
    contenders |= {way: on_pieces(way) for way in WAYS}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for turn in range(repeats + 1):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            dist.barrier()
            began = time.perf_counter()
            contenders[name]()
            dist.barrier()
            if turn:  # the first one warms up
                seconds[name].append(time.perf_counter() - began)
    sent = {
        way: sum(traffic.bytes for traffic in channel.traffic.values()) // (repeats + 1)
        for way, channel in channels.items()
    }
    torch.save({"seconds": seconds, "bytes": sent}, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def _run(function: Callable[..., Tensor], inputs: list[Tensor], backward: bool) -> Any:
    if not backward:
        with torch.no_grad():
            return function(*inputs)
    leaves = [x.detach().requires_grad_() for x in inputs]
    return torch.autograd.grad(function(*leaves).sum(), leaves)
