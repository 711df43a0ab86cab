"""Linear attention chunk by chunk (GLA, 2312.06635, section 4; Mamba-2, 2405.21060, section 6)."""

from __future__ import annotations

from torch import Tensor

from plait.ops.chunks import chain
from plait.ops.decay import HeadDecay, channel_scores, head_scores
from plait.ops.packing import Borders


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor | None,
    own: Tensor | None = None,
    borders: Borders | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """``O = ((Q K^T) o D) V + e^G Q S_0``; ``S_C = e^{G_C} S_0 + (e^{G_C - G} K)^T V``.

    Args:
        q: scaled queries ``(B, H, n, C, K)``.
        k: keys ``(B, H, n, C, K)``.
        v: values ``(B, H, n, C, V)``.
        log_decay: ``(B or 1, H or 1, n, C)`` per head or ``(B, H, n, C, K)`` per channel.
        state: entering state ``(B, H, K, V)``, None for zeros.
        own: see :func:`plait.ops.chunks.chain`.
        borders: see :func:`plait.ops.chunks.chain`.

    Returns:
        Output ``(B, H, n, C, V)``, last state, states of the documents that ended.
    """
    if log_decay.dim() == 5:
        scores, entered, leaving, total = channel_scores(q, k, log_decay)
    else:
        scores, entered, leaving, total = head_scores(q, k, HeadDecay.of(log_decay))
    o = scores @ v
    written = leaving.mT @ v
    if state is None:
        if q.shape[2] == 1 and borders is None:
            return o, written[:, :, 0], None
        state = v.new_zeros(v.shape[0], v.shape[1], q.shape[4], v.shape[4])
    kept, added = total[..., None].unbind(2), written.unbind(2)
    states, state, finished = chain(lambda c, S: kept[c] * S + added[c], q.shape[2], state, own, borders)
    return o + entered @ states, state, finished
