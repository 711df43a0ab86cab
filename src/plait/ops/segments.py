"""Long sequences in segments of several chunks, recomputed in backward.

Kept for backward: the inputs and one state per segment. The temporaries of a chunk (scores, solved values,
states) exist for one segment at a time, in forward and in backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from plait.ops.first_order import first_order
from plait.ops.packing import Borders


class Run(Protocol):
    """Computes one segment: token inputs ``(B, T, ...)``, entering state, states of documents that start in it."""

    def __call__(
        self, parts: Sequence[Tensor | None], state: Tensor | None, own: Tensor | None, borders: Borders | None
    ) -> tuple[Tensor, Tensor, Tensor | None]: ...


@dataclass(frozen=True)
class Segment:
    """Tokens ``[first, last)``, and the documents that start and that end among them."""

    first: int
    last: int
    borders: Borders | None
    starting: slice
    ending: slice


def cut(length: int, size: int, chunk: int, borders: Borders | None) -> list[Segment]:
    """Segments of ``size`` tokens, a multiple of the chunk size."""
    segments, started, ended = [], 0, 0
    for first in range(0, length, size):
        last = min(first + size, length)
        part = None if borders is None else borders[first // chunk : last // chunk]
        starting = slice(started, started + (0 if part is None else sum(part.starts)))
        ending = slice(ended, ended + (0 if part is None else sum(part.ends)))
        segments.append(Segment(first, last, part, starting, ending))
        started, ended = starting.stop, ending.stop
    return segments


def run_segments(
    run: Run, segments: Sequence[Segment], inputs: Sequence[Tensor | None], state: Tensor | None, own: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """``run`` over the whole sequence, segment by segment, with gradients by recomputation."""
    return _Segments.apply(run, segments, state, own, *inputs)


class _Segments(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        run: Run,
        segments: Sequence[Segment],
        state: Tensor | None,
        own: Tensor | None,
        *inputs: Tensor | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        ctx.set_materialize_grads(False)
        ctx.run, ctx.segments = run, segments
        outputs, entering, finished = [], [], []
        for segment in segments:
            entering.append(state)
            o, state, ended = run(_part(inputs, segment), state, _rows(own, segment.starting), segment.borders)
            outputs.append(o)
            if ended is not None:
                finished.append(ended)
        ctx.save_for_backward(*inputs, own, *entering)
        ctx.inputs = len(inputs)
        return torch.cat(outputs, 1), state, torch.cat(finished) if finished else None

    @staticmethod
    @first_order("The torch backend")
    def backward(ctx: Any, d_o: Tensor | None, d_state: Tensor | None, d_finished: Tensor | None) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        inputs, own, entering = saved[: ctx.inputs], saved[ctx.inputs], saved[ctx.inputs + 1 :]
        needed = ctx.needs_input_grad
        d_inputs = [
            torch.zeros_like(x, memory_format=torch.contiguous_format) if x is not None and need else None
            for x, need in zip(inputs, needed[4:], strict=True)
        ]
        d_own = torch.zeros_like(own) if own is not None and needed[3] else None
        for segment, before in zip(reversed(ctx.segments), reversed(entering), strict=True):
            leaves = [_leaf(x) for x in (*_part(inputs, segment), before, _rows(own, segment.starting))]
            with torch.enable_grad(), torch.autocast(inputs[0].device.type, enabled=False):
                o, after, ended = ctx.run(leaves[: ctx.inputs], leaves[-2], leaves[-1], segment.borders)
            pairs = [
                (o, None if d_o is None else d_o[:, segment.first : segment.last]),
                (after, d_state),
                (ended, _rows(d_finished, segment.ending)),
            ]
            pairs = [(y, d_y) for y, d_y in pairs if y is not None and d_y is not None and y.requires_grad]
            wanted = [leaf for leaf in leaves if leaf is not None]
            found = torch.autograd.grad([y for y, _ in pairs], wanted, [d_y for _, d_y in pairs], allow_unused=True)
            grads = iter(found)
            d_leaves = [None if leaf is None else next(grads) for leaf in leaves]
            targets = [*_part(d_inputs, segment), None, _rows(d_own, segment.starting)]
            for target, d_leaf in zip(targets, d_leaves, strict=True):
                if target is not None and d_leaf is not None:
                    target.copy_(d_leaf)
            d_state = d_leaves[-2]
        return None, None, d_state if needed[2] else None, d_own, *d_inputs


def _part(inputs: Sequence[Tensor | None], segment: Segment) -> list[Tensor | None]:
    return [None if x is None else x[:, segment.first : segment.last] for x in inputs]


def _rows(x: Tensor | None, rows: slice) -> Tensor | None:
    return None if x is None else x[rows]


def _leaf(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.detach().requires_grad_()
