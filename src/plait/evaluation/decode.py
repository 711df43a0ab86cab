"""Speed and memory of decoding one sequence after contexts of several lengths."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from plait.models import PlaitCache
from plait.models.cache import CACHE_NAME

_PREFILL = 2048  # tokens per forward pass while the context is read
_WARM_UP, _STEPS, _REPEATS = 3, 12, 5


@torch.no_grad()
def decode_speed(model: nn.Module, contexts: Sequence[int], vocab_size: int) -> list[dict[str, Any]]:
    """Greedy decoding of a single sequence with a cache.

    The context is random tokens: speed and memory do not depend on which. Every repeat starts from a copy of the
    same cache; the median counts.

    Args:
        model: any causal language model of transformers, in evaluation mode.
        contexts: tokens in the cache before the first step.
        vocab_size: ids are drawn below this.

    Returns:
        per context ``context``, ``tokens_per_second`` and ``cache_bytes`` after the context.
    """
    return [_at(model, context, vocab_size) for context in contexts]


def _at(model: nn.Module, context: int, vocab_size: int) -> dict[str, Any]:
    device = next(model.parameters()).device
    ids = torch.randint(vocab_size, (1, context), generator=torch.Generator().manual_seed(context)).to(device)
    cache: Any = None
    for chunk in ids.split(_PREFILL, dim=1):
        cache = _forward(model, chunk, cache)[CACHE_NAME]
    token = ids[:, -1:]
    speeds = []
    for _ in range(_REPEATS):
        twin, newest = copy.deepcopy(cache), token
        for step in range(_WARM_UP + _STEPS):
            if step == _WARM_UP:
                _wait(device)
                start = time.perf_counter()
            newest = _forward(model, newest, twin).logits[:, -1:].argmax(-1)
        _wait(device)
        speeds.append(_STEPS / (time.perf_counter() - start))
    return {"context": context, "tokens_per_second": median(speeds), "cache_bytes": cache_bytes(cache)}


def cache_bytes(cache: Cache) -> int:
    """Bytes of payload that a cache holds: :meth:`PlaitCache.bytes`, or all tensors of another cache's layers."""
    if isinstance(cache, PlaitCache):
        return cache.bytes()
    seen: dict[int, int] = {}
    for layer in cache.layers:
        for value in vars(layer).values():
            for tensor in value if isinstance(value, list | tuple) else [value]:
                if isinstance(tensor, Tensor) and tensor.dim() > 1:
                    seen[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
    return sum(seen.values())


def _forward(model: nn.Module, ids: Tensor, cache: Any) -> Any:
    return model(input_ids=ids, use_cache=True, logits_to_keep=1, **{CACHE_NAME: cache})


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
