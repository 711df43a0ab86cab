"""The fold of states over many pieces, with threads for processes."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from ops.cases import DECAYS, Inputs, inputs
from plait import ops
from plait.distributed.sequence.states import entering_state
from plait.ops import Piece

LENGTHS = [3, 1, 7, 5]


class Threads:
    """What one thread sees of a channel whose processes are threads."""

    def __init__(self, rank: int, posted: dict[int, Tensor], barrier: threading.Barrier) -> None:
        self.rank, self.size, self.posted, self.barrier = rank, len(LENGTHS), posted, barrier

    def gather(self, kind: str, x: Tensor) -> list[Tensor]:
        self.posted[self.rank] = x.detach().clone()
        self.barrier.wait(30)
        found = [self.posted[rank] for rank in range(self.size)]
        self.barrier.wait(30)
        return found


def piece_of(x: Inputs) -> Piece:
    if x.beta is None:
        return ops.attention_piece(x.q, x.k, x.v, x.log_decay)
    return ops.delta_piece(x.q, x.k, x.v, x.beta, x.log_decay)


@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("decay", DECAYS)
def test_four_pieces_make_the_whole(decay: str, delta: bool) -> None:
    """Outputs, and gradients of the inputs; one piece has a single token."""
    whole = inputs(16, decay=decay, delta=delta, states=None).leaves()
    o, _ = whole.run(backend="reference")
    weights = torch.randn(o.shape, dtype=o.dtype, generator=torch.Generator().manual_seed(1))
    expected = torch.autograd.grad((o * weights).sum(), whole.tensors())
    posted: dict[int, Tensor] = {}
    barrier = threading.Barrier(len(LENGTHS))

    def process(rank: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        first, last = sum(LENGTHS[:rank]), sum(LENGTHS[: rank + 1])
        own: Any = whole.part(first, last, None).leaves()
        channel: Any = Threads(rank, posted, barrier)
        piece = piece_of(own)
        output = piece.continued(entering_state(channel, piece, LENGTHS))
        gradients = torch.autograd.grad((output * weights[:, first:last]).sum(), own.tensors())
        return output.detach(), gradients

    with ThreadPoolExecutor(len(LENGTHS)) as pool:
        outputs, gradients = zip(*pool.map(process, range(len(LENGTHS))), strict=True)
    torch.testing.assert_close(torch.cat(outputs, 1), o, rtol=1e-10, atol=1e-10)
    for parts, gradient in zip(zip(*gradients, strict=True), expected, strict=True):
        # a decay that all tokens share is a parameter: its gradients add up
        found = sum(parts) if gradient.dim() == 1 else torch.cat(parts, 1)
        torch.testing.assert_close(found, gradient, rtol=1e-9, atol=1e-9)
