"""Loss on held-out text, in nats per token and bits per byte, split into recallable tokens and the rest."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sized
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from plait.data.bigrams import BigramCounts
from plait.data.packing import IGNORED, collate
from plait.evaluation.ar_hits import ar_hits

#: Logits of one forward pass: at most so many numbers.
MOST_LOGITS = 1 << 26


def language_modelling(
    model: nn.Module,
    dataset: Dataset,
    *,
    batch_size: int,
    vocab_size: int,
    bytes_per_token: float,
    split_ar_hits: bool = True,
    counts: BigramCounts | None = None,
    rare_below: int | None = None,
) -> dict[str, Any]:
    """Mean loss over all targets of a dataset.

    Args:
        model: any causal language model that returns ``logits``.
        dataset: rows of :class:`plait.data.packing.TokenDataset`.
        batch_size: rows per batch; the spread of the batches' means serves as an interval.
        vocab_size: width of the logits, to bound the memory.
        bytes_per_token: UTF-8 bytes of text per token.
        split_ar_hits: also give the loss on AR hits and on the other tokens.
        counts, rare_below: count only rare bigrams as hits, see :func:`plait.evaluation.ar_hits.ar_hits`.

    Returns:
        ``loss`` (nats per token), ``bits_per_byte``, ``batches`` (mean loss of each), ``tokens``, and with
        ``split_ar_hits`` the groups ``ar_hits`` and ``other``: ``loss`` (None without tokens), ``share``, ``tokens``
        and ``batches`` (means of those batches that have such tokens); else both are None.
    """
    every, hit, rest = _Group(), _Group(), _Group()
    for parts in _batches(dataset, batch_size, vocab_size):
        for group in (every, hit, rest):
            group.start_batch()
        for batch in parts:
            losses = token_losses(model, batch)
            real = batch["targets"] != IGNORED
            every.add(losses[real])
            if split_ar_hits:
                hits = ar_hits(
                    batch["input_ids"],
                    batch["targets"],
                    cu_seqlens=batch.get("cu_seqlens"),
                    counts=counts,
                    rare_below=rare_below,
                )
                hit.add(losses[hits])
                rest.add(losses[real & ~hits])
    loss = every.loss
    assert loss is not None
    return {
        "loss": loss,
        "bits_per_byte": loss / math.log(2) / bytes_per_token,
        "ar_hits": hit.summary(every.tokens) if split_ar_hits else None,
        "other": rest.summary(every.tokens) if split_ar_hits else None,
        "batches": every.batches,
        "tokens": every.tokens,
    }


@torch.no_grad()
def token_losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Loss of every target in nats, ``(B, T)`` fp32; 0 where the target is ignored.

    Args:
        model: in evaluation mode.
        batch: ``input_ids`` and ``targets`` ``(B, T)``, and ``cu_seqlens`` where documents are apart.
    """
    device = next(model.parameters()).device
    inputs = {key: value.to(device) for key, value in batch.items() if key != "targets"}
    logits = model(**inputs, use_cache=False).logits
    targets = batch["targets"].to(device)
    losses = nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses.view(targets.shape).cpu()


class _Group:
    """Losses of one kind of token, batch by batch."""

    def __init__(self) -> None:
        self.sums: list[float] = []
        self.counts: list[int] = []

    def start_batch(self) -> None:
        self.sums.append(0.0)
        self.counts.append(0)

    def add(self, losses: Tensor) -> None:
        self.sums[-1] += losses.double().sum().item()
        self.counts[-1] += losses.numel()

    @property
    def tokens(self) -> int:
        return sum(self.counts)

    @property
    def loss(self) -> float | None:
        return sum(self.sums) / self.tokens if self.tokens else None

    @property
    def batches(self) -> list[float]:
        return [total / count for total, count in zip(self.sums, self.counts, strict=True) if count]

    def summary(self, all_tokens: int) -> dict[str, Any]:
        return {"loss": self.loss, "share": self.tokens / all_tokens, "tokens": self.tokens, "batches": self.batches}


def _batches(dataset: Dataset, batch_size: int, vocab_size: int) -> Iterator[Iterator[dict[str, Tensor]]]:
    """Batches, each in parts whose logits fit into memory."""
    assert isinstance(dataset, Sized)
    length = len(dataset[0]["input_ids"])
    part = max(1, min(batch_size, MOST_LOGITS // (length * vocab_size)))
    for start in range(0, len(dataset), batch_size):
        end = min(start + batch_size, len(dataset))
        yield (
            collate([dataset[index] for index in range(first, min(first + part, end))])
            for first in range(start, end, part)
        )
