"""Next-token cross entropy that never holds the fp32 logits of a large batch and vocabulary at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

#: Target value that is not counted.
IGNORED = -100
#: Logits that would take more bytes than this in fp32 are made piece by piece.
PLAIN_BYTES = 128 * 2**20
#: Bytes of the fp32 logits of one piece.
PIECE_BYTES = 32 * 2**20


def shifted(labels: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
    """Targets from labels: the target of position t is label t + 1; the last of a row or document has none.

    Args:
        labels: ``(B, T)``.
        cu_seqlens: borders of documents in the flattened rows, or None.
    """
    targets = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
    if cu_seqlens is not None:
        targets.view(-1)[cu_seqlens[1:] - 1] = IGNORED
    return targets


def fits(tokens: int, vocab_size: int) -> bool:
    """Whether the fp32 logits of so many tokens may exist at once."""
    return tokens * vocab_size * 4 <= PLAIN_BYTES


def cross_entropy(
    head: Callable[[Tensor], Tensor],
    hidden: Tensor,
    targets: Tensor,
    *,
    vocab_size: int,
    count: Tensor | int | None = None,
    logits: Tensor | None = None,
) -> Tensor:
    """Cross entropy of ``head(hidden)`` against ``targets``.

    Large logits are made (or, if they exist, widened) in pieces of at most ``PIECE_BYTES`` and once more for the
    backward pass.

    Args:
        head: the output head, ``(N, d) -> (N, vocab)``.
        hidden: ``(..., d)``.
        targets: ``(...)`` int64, aligned with ``hidden``; ``IGNORED`` is not counted.
        vocab_size: width of the logits, to choose the size of a piece.
        count: divide the sum by this (targets of a whole accumulated batch); None counts the targets here.
        logits: ``head(hidden)`` if it exists already.

    Returns:
        A scalar in fp32 (fp64 for fp64 inputs); 0 when no target counts.
    """
    if logits is not None:
        head, hidden = nn.Identity(), logits
    flat, targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    if fits(len(targets), vocab_size):
        total = _sum(head(flat), targets)
    else:
        rows = max(1, PIECE_BYTES // (4 * vocab_size))
        pieces = [
            checkpoint(lambda h, t: _sum(head(h), t), h, t, use_reentrant=False, preserve_rng_state=False)
            for h, t in zip(flat.split(rows), targets.split(rows), strict=True)
        ]
        total = torch.stack(pieces).sum()
    if count is None:
        count = (targets != IGNORED).sum().clamp(min=1)
    elif isinstance(count, Tensor):
        count = count.to(total.device)
    return total / count


def auxiliary_loss(weighted: Mapping[str, Tensor] | None, targets: Tensor, count: Tensor | int | None) -> Tensor | None:
    """What mixers add to the loss of a call, scaled so that the calls of one accumulated batch add up to their mean.

    Args:
        weighted: losses times their weights, by name, or None.
        targets: of this call; ``IGNORED`` is not counted.
        count: targets of the whole accumulated batch; None where this call is all of it.
    """
    if not weighted:
        return None
    total = torch.stack([x.reshape(()) for x in weighted.values()]).sum()
    return total if count is None else total * ((targets != IGNORED).sum() / count)


def _sum(logits: Tensor, targets: Tensor) -> Tensor:
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
