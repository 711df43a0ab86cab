"""Counting the products of queries and keys that a model scores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from plait.models.decoder import PlaitModel


@contextmanager
def count_pairs(model: nn.Module) -> Iterator[dict[int, int]]:
    """Count the products of a query with a key that the layers of a model score, in training as in evaluation.

    Each is counted once, also where gradient checkpointing computes a layer twice.

    Args:
        model: of plait, bare or wrapped.

    Yields:
        the products so far, summed over rows and query heads, by layer; layers without any have no entry.

    Example:
        >>> import torch
        >>> from plait.models import PlaitConfig, PlaitForCausalLM, count_pairs
        >>> model = PlaitForCausalLM(PlaitConfig(layer_types=["attention"], hidden_size=64))
        >>> with count_pairs(model) as pairs:
        ...     _ = model(torch.tensor([[1, 2, 3]]))
        >>> pairs
        {0: 12}
    """
    decoders = [module for module in model.modules() if isinstance(module, PlaitModel)]
    pairs: dict[int, int] = {}
    before = [decoder.pairs for decoder in decoders]
    for decoder in decoders:
        decoder.pairs = pairs
    try:
        yield pairs
    finally:
        for decoder, meter in zip(decoders, before, strict=True):
            decoder.pairs = meter


__all__ = ["count_pairs"]
