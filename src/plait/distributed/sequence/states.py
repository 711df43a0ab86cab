"""The state that enters a piece, from what all pieces left (LASP-2, 2502.07563): one all-gather a layer and direction.

A piece turns the state ``S`` that enters into ``A S + L``: ``L`` is what it left from zeros, ``A`` its transition. So
the state that enters piece r is the fold of ``(A_j, L_j)`` over ``j < r``. Backward, with ``G_j`` the gradient of the
state that leaves piece j: ``G_{j-1} = dS_j + A_j^T G_j``, ``dL_j = G_j`` and ``dA_j = G_j S_j^T``. How much travels
does not depend on the number of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from plait.distributed.sequence.channel import INSTEAD, Channel
from plait.ops import Piece
from plait.ops.first_order import refuse_second_order

KIND = "states"


def entering_state(channel: Channel, piece: Piece, lengths: Sequence[int]) -> Tensor:
    """The state that enters this process's piece, of ``piece.state``'s shape.

    Transitions travel beside the states, unless the lengths of the pieces tell them (``piece.rate``).
    """
    return _Entering.apply(piece.state, piece.transition, channel, piece, lengths)


class _Entering(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, state: Tensor, transition: Tensor, channel: Channel, piece: Piece, lengths: Sequence[int]
    ) -> Tensor:
        if piece.rate is None:
            sizes = [state.numel(), transition.numel()]
            found = channel.gather(KIND, torch.cat([state.reshape(-1), transition.reshape(-1)]))
            states = [x.split(sizes)[0].view_as(state) for x in found]
            transitions = [x.split(sizes)[1].view(transition.shape) for x in found]
        else:
            states = channel.gather(KIND, state)
            transitions = [(length * piece.rate.detach()).exp() for length in lengths]
        entering = torch.zeros_like(state)
        for left, factor in zip(states[: channel.rank], transitions, strict=False):
            entering = _product(piece.dense, factor, entering) + left
        ctx.channel, ctx.dense, ctx.shape = channel, piece.dense, transition.shape
        ctx.save_for_backward(entering, *transitions[channel.rank + 1 :])
        return entering

    @staticmethod
    def backward(ctx: Any, d_entering: Tensor) -> tuple[Any, ...]:
        refuse_second_order("A state handed from process to process", INSTEAD)
        entering, *transitions = ctx.saved_tensors
        d_all = ctx.channel.gather(f"{KIND} gradient", d_entering)
        later = list(zip(d_all[ctx.channel.rank + 1 :], transitions, strict=True))
        d_left = torch.zeros_like(entering)
        for d_state, factor in reversed(later):
            d_left = d_state + _product(ctx.dense, factor.mT if ctx.dense else factor, d_left)
        d_transition = d_left @ entering.mT if ctx.dense else (d_left * entering).sum_to_size(ctx.shape)
        return d_left, d_transition, None, None, None


def _product(dense: bool, transition: Tensor, state: Tensor) -> Tensor:
    return transition @ state if dense else transition * state
