"""Attention over stores whose rows and heads hold different numbers of keys, on plait's own kernel for CPUs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from plait.ops.native import softmax
from plait.runtime.call import Call
from plait.runtime.store import Keys


def serves(call: Call, keys: Keys) -> bool:
    """Whether the kernel can: plain logits in fp32 on a CPU, without gradient."""
    return call.scoring.plain and not call.reference and softmax.serves(call.q, keys.keys, keys.values)


def held(call: Call, keys: Keys, window: int | None, sinks: int, sums: bool = False) -> tuple[Tensor, Tensor | None]:
    """Causal attention by slots: the last keys of each row and head are those of the row's new tokens.

    Args:
        call: queries.
        keys: what is held.
        window: slots that a query sees, its own included; None for all.
        sinks: first slots that are always seen.
        sums: also return what each key receives.

    Returns:
        ``(B, H, T, Dv)`` and the sums ``(B, H, S)`` or None.
    """
    batch, _, length = call.q.shape[:3]
    new = call.lengths
    o, _, received = softmax.attend_held(
        call.q,
        keys.keys,
        keys.values,
        keys.held(),
        torch.full((batch,), length) if new is None else new,
        keys.starts,
        scale=call.scoring.scale,
        window=window or 0,
        sinks=sinks,
        sums=sums,
    )
    return o, None if received is None else F.pad(received, (0, keys.size - received.shape[2]))
