"""AR hits: the tokens of real text that can be predicted by recall from the context.

Arora et al., "Zoology" (2312.04927, section 3) and "Simple linear attention language models balance the
recall-throughput tradeoff" (2402.18668): a token is an AR hit when the bigram that it completes already stands
earlier in the context; counting only bigrams that are rare in the training text leaves those that the weights
cannot know.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plait.data.bigrams import BigramCounts
from plait.data.packing import IGNORED


def ar_hits(
    input_ids: Tensor,
    targets: Tensor,
    *,
    cu_seqlens: Tensor | None = None,
    counts: BigramCounts | None = None,
    rare_below: int | None = None,
) -> Tensor:
    """Which targets complete a bigram that occurred earlier in the same window.

    Position t predicts ``targets[t]`` from ``input_ids[t]``; it is a hit iff some earlier position s < t has the same
    token and the same target. Overlapping occurrences count: in ``a a a`` the third ``a`` is a hit.

    Args:
        input_ids: ``(B, T)``.
        targets: ``(B, T)``, the next tokens; -100 is never a hit and completes nothing.
        cu_seqlens: ``(N + 1,)`` borders of documents in a single row; each document is a context of its own.
        counts: bigram counts of the training text, needed for ``rare_below``.
        rare_below: a hit only if the bigram occurs fewer times than this in the training text.

    Returns:
        ``(B, T)`` bool.
    """
    length = targets.shape[1]
    real = targets != IGNORED
    base = int(torch.maximum(input_ids.max(), targets.max())) + 1
    bigrams = input_ids * base + targets
    if cu_seqlens is not None:
        document = torch.searchsorted(cu_seqlens, torch.arange(length, device=targets.device), right=True)
        bigrams = torch.unique(bigrams, return_inverse=True)[1].view_as(bigrams) + document * bigrams.numel()
    unique = -1 - torch.arange(length, device=targets.device)  # ignored positions equal nothing
    bigrams = torch.where(real, bigrams, unique)
    ordered, place = torch.sort(bigrams, dim=1, stable=True)  # equal bigrams keep their order: the first is no hit
    repeated = torch.zeros_like(real)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    hits = torch.zeros_like(real).scatter(1, place, repeated)
    if rare_below is None:
        return hits
    if counts is None:
        raise ValueError("rare_below needs the bigram counts of the training text")
    return hits & (counts(input_ids, targets.clamp(min=0)) < rare_below)
