"""Softmax attention over a sequence in pieces: three exact ways, and the window's, which needs none of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from plait.distributed.sequence.channel import Channel, offsets
from plait.distributed.sequence.moves import before, exchanged, gathered
from plait.distributed.sequence.ring import ring_attention
from plait.errors import OptionError
from plait.ops.softmax import attention_output
from plait.ops.visibility import Causal, Window


def gathered_attention(channel: Channel, q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
    """Every process gets all keys and values; those of later pieces are dropped. As LASP-2H (2502.07563) does."""
    end = offsets(lengths)[channel.rank + 1]
    both = gathered(channel, "keys and values", torch.cat([k, v], -1), lengths)[:, :end]
    k, v = both.split([k.shape[-1], v.shape[-1]], -1)
    return attention_output(q, k, v, Causal())


def head_attention(channel: Channel, q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
    """Every process takes some of the heads over all tokens: distributed multi-head attention (2302.06218).

    All-to-all from pieces to heads and, after attention, back. Key-value heads that are too few to share out are
    repeated.

    Raises:
        OptionError: the group's size does not divide the number of query heads.
    """
    size, heads = channel.size, q.shape[2]
    if heads % size:
        raise OptionError(
            f"attention='heads' cannot share {heads} query heads evenly among {size} processes: choose 'gather' or "
            "'ring', or a number of processes that divides the heads."
        )
    repeats = size // math.gcd(size, k.shape[2])
    k, v = (x.repeat_interleave(repeats, dim=2) for x in (k, v))
    # one call for all three: what goes to a process is the channels of its heads, of the tokens here
    shares = zip(*(x.chunk(size, dim=2) for x in (q, k, v)), strict=True)
    pieces = [torch.cat([x.flatten(2) for x in share], 2) for share in shares]
    found = exchanged(channel, "heads", pieces, [(len(q), length, pieces[0].shape[2]) for length in lengths])
    channels = [x.shape[2] // size * x.shape[3] for x in (q, k, v)]
    parts = torch.cat(found, 1).split(channels, 2)
    q, k, v = (part.unflatten(2, (-1, x.shape[3])) for part, x in zip(parts, (q, k, v), strict=True))
    o = attention_output(q, k, v, Causal())
    back = [(len(q), lengths[channel.rank], *o.shape[2:])] * size
    return torch.cat(exchanged(channel, "heads", o.split(list(lengths), dim=1), back), 2)


def window_attention(
    channel: Channel, q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], window: Window
) -> Tensor:
    """The keys within the window and values before a piece are all that its queries lack."""
    both = torch.cat([k, v], -1)
    both = torch.cat([before(channel, "halo", both, window.window - 1, lengths), both], 1)
    k, v = both.split([k.shape[-1], v.shape[-1]], -1)
    return attention_output(q, k, v, window)


#: What ``sequence_parallel(attention=...)`` may name.
WAYS: dict[str, Callable[[Channel, Tensor, Tensor, Tensor, Sequence[int]], Tensor]] = {
    "gather": gathered_attention,
    "ring": ring_attention,
    "heads": head_attention,
}
