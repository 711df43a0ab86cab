"""What layers and probes ask of softmax attention beside ``attention`` itself: its output alone, weights and scores.

Who needs no log of the sums gets the fastest way to the output: PyTorch's fused kernels on any device, also inside
compiled and exported programs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plait.ops import checks, native
from plait.ops.dispatch import overridden
from plait.ops.softmax import composite, dense
from plait.ops.softmax.operations import attention, lowered
from plait.ops.softmax.placed import attention_weights
from plait.ops.softmax.rows import Rows
from plait.ops.visibility import Causal, Full, Visibility, Window


def attention_output(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visibility: Visibility,
    *,
    scale: float | None = None,
    sink_logits: Tensor | None = None,
    lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """The output of :func:`plait.ops.softmax.attention`, with arguments of the same meaning.

    It also serves inside ``torch.compile``, ``torch.export`` and the transforms of ``torch.func``. Work is that of the
    visible pairs and no tensor has an entry for every pair, but in a program exported for any length.

    Args:
        q: queries ``(B, T, H, D)``, at the last T of the S slots.
        k, v: ``(B, S, N, D)`` and ``(B, S, N, Dv)``.
        visibility: the same for all heads.
        scale, sink_logits, lengths, cu_seqlens: as in :func:`plait.ops.softmax.attention`.

    Returns:
        ``(B, T, H, Dv)`` in v's dtype; at padding it is finite and has no meaning.

    Raises:
        OptionError: arguments that do not fit; the message names which.
    """
    if torch.is_autocast_enabled(q.device.type):
        with torch.autocast(q.device.type, enabled=False):
            q, k, v = lowered(q, k, v)
            return attention_output(
                q, k, v, visibility, scale=scale, sink_logits=sink_logits, lengths=lengths, cu_seqlens=cu_seqlens
            )
    length, stored = q.shape[1], k.shape[1]
    fixed = not composite.symbolic(length, stored)
    eager = fixed and not torch.compiler.is_compiling() and native.transform() is None
    if fixed and isinstance(visibility, Window) and visibility.window >= stored:
        visibility = Causal()
    causal = isinstance(visibility, Causal)
    square = length == stored
    alike = lengths is None and cu_seqlens is None and sink_logits is None
    whole = alike and (isinstance(visibility, Full) or (causal and (square or length == 1)))
    long = eager and (length > composite.FEW or cu_seqlens is not None)
    if eager and (overridden() or (q.is_cpu and long and not whole)):
        options = {"scale": scale, "sink_logits": sink_logits, "lengths": lengths, "cu_seqlens": cu_seqlens}
        return attention(q, k, v, visibility, **options)[0]  # type: ignore[arg-type]
    checks.softmax_inputs("attention_output", q, k, v, scale)
    if cu_seqlens is not None:
        documents = zip(*(x.split(cu_seqlens.diff().tolist(), dim=1) for x in (q, k, v)), strict=True)
        outputs = [
            attention_output(own_q, own_k, own_v, visibility, scale=scale, sink_logits=sink_logits)
            for own_q, own_k, own_v in documents
        ]
        return torch.cat(outputs, dim=1)
    scale = q.shape[3] ** -0.5 if scale is None else scale
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if whole:
        # a symbolic comparison is no bool
        o = composite.whole(q, k, v, True if causal and square else False, scale)  # noqa: SIM210
    else:
        rows = Rows(visibility, stored - length, None if lengths is None else stored - lengths)
        o = composite.by_blocks(q, k, v, rows, scale, sink_logits)
    return o.transpose(1, 2)


def attention_matrix(
    q: Tensor,
    k: Tensor,
    visibility: Visibility,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    sink_logits: Tensor | None = None,
    lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """The weights that :func:`plait.ops.softmax.attention` gives to values, as a matrix: for looking at them.

    Args:
        q: queries ``(B, T, H, D)``, at the last T of the S slots.
        k: ``(B, S, N, D)``.
        visibility: the same for all heads.
        scale, softcap, sink_logits, lengths, cu_seqlens: as in :func:`plait.ops.softmax.attention`.

    Returns:
        ``(B, H, T, S)`` in fp32 (fp64 for fp64); a row sums to 1, to less where there are sinks, and to 0 at padding.
    """
    checks.softmax_inputs("attention_matrix", q, k, k, scale)
    length, stored = q.shape[1], k.shape[1]
    slots = torch.arange(stored, device=q.device)
    borders = None if cu_seqlens is None else tuple(cu_seqlens.tolist())
    rows = Rows(visibility, stored - length, None if lengths is None else stored - lengths, borders)
    mask = rows.mask(slots[stored - length :], slots)
    return attention_weights(q, k, mask, scale=scale, softcap=softcap, sink_logits=sink_logits)


def scores(q: Tensor, k: Tensor, mask: Tensor, *, scale: float | None = None, softcap: float | None = None) -> Tensor:
    """Scores ``softcap tanh(scale q k / softcap)`` of queries, minus infinity where nothing is seen.

    Args:
        q: ``(B, T, H, D)``.
        k: ``(B, S, N, D)``.
        mask: bool, True where a query sees a key; broadcasts to ``(B, H, T, S)``.
        scale, softcap: as in :func:`plait.ops.softmax.attention`.

    Returns:
        ``(B, H, T, S)`` in fp32 (fp64 for fp64).
    """
    return dense.scores(q.transpose(1, 2), k.transpose(1, 2), mask, _scale(q, scale), softcap)


def log_sums(scores: Tensor) -> Tensor:
    """The log of each row's sum of exponentials, ``(..., T)`` of :func:`scores` ``(..., T, S)``."""
    return dense.normalised(scores)[1]


def _scale(q: Tensor, scale: float | None) -> float:
    return float(q.shape[3] ** -0.5 if scale is None else scale)
