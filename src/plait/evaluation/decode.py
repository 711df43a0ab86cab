"""Speed and memory of decoding one sequence after a context, as a measurement."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from plait.errors import OptionError
from plait.evaluation.batching import Batches
from plait.evaluation.measurement import Advance, Measurement, silent
from plait.evaluation.score import Score
from plait.evaluation.subject import Subject
from plait.models import PlaitCache
from plait.models.cache import CACHE_NAME

#: Metrics of decoding.
SPEED, CACHE = "decoding speed", "cache"

_PREFILL = 2048  # tokens per forward pass while the context is read
_WARM_UP, _STEPS, _REPEATS = 3, 12, 5


@dataclass(frozen=True)
class DecodeMeasurement(Measurement):
    """Greedy decoding of a single sequence with a cache: tokens a second, and bytes of the cache.

    The context is random tokens: speed and memory do not depend on which. Every repeat starts from a copy of the same
    cache; the speed is the median of the repeats, its interval goes from the slowest to the fastest.

    Args:
        context: tokens in the cache before the first step.
    """

    context: int
    kind = "decode"
    unit = "repeats"
    repeatable = False

    @property
    def name(self) -> str:
        return f"decoding context={self.context}"

    @property
    def samples(self) -> int:
        return _REPEATS

    @property
    def settings(self) -> dict[str, Any]:
        return {"context": self.context}

    def check(self, subject: Subject) -> None:
        if subject.policy is not None:
            raise OptionError(
                f"{subject.name}: decoding is timed without a policy; plait bench policies times policies."
            )

    def scores(self, subject: Subject, batches: Batches, advance: Advance) -> list[Score]:
        speeds, held = decode_speed(subject.model, self.context, subject.vocab_size, advance)
        return [
            Score(SPEED, median(speeds), min(speeds), max(speeds), "range", len(speeds), "tokens/s"),
            Score(CACHE, held, held, held, unit="bytes"),
        ]


@torch.no_grad()
def decode_speed(model: nn.Module, context: int, vocab_size: int, advance: Advance = silent) -> tuple[list[float], int]:
    """Tokens a second of each repeat, and bytes of the cache after the context.

    Args:
        model: any causal language model of transformers, in evaluation mode.
        context: tokens in the cache before the first step.
        vocab_size: ids are drawn below this.
        advance: told how many repeats have been done since the last call.
    """
    device = next(model.parameters()).device
    ids = torch.randint(vocab_size, (1, context), generator=torch.Generator().manual_seed(context)).to(device)
    cache: Any = None
    for chunk in ids.split(_PREFILL, dim=1):
        cache = _forward(model, chunk, cache)[CACHE_NAME]
    token = ids[:, -1:]
    speeds = []
    for _ in range(_REPEATS):
        copied, newest = copy.deepcopy(cache), token
        for step in range(_WARM_UP + _STEPS):
            if step == _WARM_UP:
                _wait(device)
                start = time.perf_counter()
            newest = _forward(model, newest, copied).logits[:, -1:].argmax(-1)
        _wait(device)
        speeds.append(_STEPS / (time.perf_counter() - start))
        advance(1)
    return speeds, cache_bytes(cache)


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
