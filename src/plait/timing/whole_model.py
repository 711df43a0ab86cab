"""A whole hybrid model against the all-attention model of the same size: training steps, and generation.

Both are plait's own decoder and differ in the layer plan alone, so the ratio is that of the mixers in their place.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from plait import ops
from plait.models import PlaitConfig, PlaitForCausalLM, layer_plan
from plait.models.cache import CACHE_NAME
from plait.timing.ratios import Ratio, ratio, take_turns

#: Tokens that a prompt is read in at a time.
_PIECE = 2048
#: Tokens of one decoding sample.
_DECODED = 8


@dataclass(frozen=True)
class Size:
    """The two models.

    Args:
        layers: depth.
        hidden_size: width d.
        mixer: the hybrid's linear mixer.
        ratio: linear layers per full layer of the hybrid.
        vocab_size: of both.
    """

    layers: int = 24
    hidden_size: int = 512
    mixer: str = "gated_deltanet"
    ratio: str = "3:1"
    vocab_size: int = 4096

    def models(self, device: str) -> dict[str, PlaitForCausalLM]:
        """``hybrid`` and ``all-attention``, with fresh weights."""
        plans = {"hybrid": self.ratio, "all-attention": "full"}
        with torch.device(device):
            return {name: self._model(plan) for name, plan in plans.items()}

    def _model(self, ratio: str) -> PlaitForCausalLM:
        config = PlaitConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            layer_types=layer_plan(self.mixer, ratio, self.layers),
        )
        return PlaitForCausalLM(config)


@dataclass(frozen=True)
class ModelTiming:
    """One thing that both models did.

    Args:
        what: ``training step``, ``prefill``, ``decode`` or ``generation``.
        tokens: of the batch, or of the context.
        backend: what the hybrid's recurrences ran on.
        tokens_per_second: the hybrid's median.
        attention_tokens_per_second: the all-attention model's median.
        ratio, ratio_low, ratio_high: the all-attention model's time over the hybrid's, median and quartiles.
        repeats: alternated turns.
    """

    what: str
    tokens: int
    backend: str
    tokens_per_second: float
    attention_tokens_per_second: float
    ratio: float
    ratio_low: float
    ratio_high: float
    repeats: int


def time_training(
    size: Size,
    lengths: Sequence[int],
    batch: int = 1,
    checkpointing: bool = False,
    device: str = "cpu",
    repeats: int = 7,
    announce: Callable[[str], None] = lambda line: None,
) -> list[ModelTiming]:
    """Time a training step: forward, backward, AdamW.

    Args:
        size: of the two models.
        lengths: tokens of a sequence.
        batch: sequences of a step.
        checkpointing: recompute each block in its backward pass instead of keeping what it made.
        device: ``cpu`` or ``cuda``; a GPU runs under bf16 autocast.
        repeats: alternated turns.
        announce: told in one line what is timed next.
    """
    models = size.models(device)
    steps = {}
    for name, model in models.items():
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        steps[name] = partial(_training_step, model, torch.optim.AdamW(model.parameters(), lr=1e-4), device)
    timings = []
    for length in lengths:
        announce(f"training step, {batch} x {length} tokens")
        ids = _ids(size, batch, length, device)
        seconds = take_turns({name: partial(step, ids) for name, step in steps.items()}, repeats, device)
        timings.append(_timing("training step", batch * length, batch * length, seconds, device))
    return timings


@torch.no_grad()
def time_generation(
    size: Size,
    context: int,
    new_tokens: int = 256,
    device: str = "cpu",
    repeats: int = 7,
    prefills: int = 2,
    announce: Callable[[str], None] = lambda line: None,
) -> list[ModelTiming]:
    """Time reading a prompt and greedy decoding after it, for one sequence.

    Args:
        size: of the two models.
        context: tokens of the prompt, read in pieces.
        new_tokens: decoded tokens of a generation, whose time is put together from the two measurements.
        device: ``cpu`` or ``cuda``.
        repeats: alternated turns of decoding, a few tokens each, with a growing cache.
        prefills: alternated readings of the whole prompt, at least 2: they take long where attention is full.
        announce: told in one line what is timed next.

    Returns:
        ``prefill``, ``decode`` and ``generation``.
    """
    models = {name: model.eval() for name, model in size.models(device).items()}
    ids = _ids(size, 1, context, device)
    announce(f"prefill of {context} tokens")
    for model in models.values():
        _read(model, ids[:, :_PIECE])  # loads libraries, starts threads
    prompts = {name: _Prompt(model, ids) for name, model in models.items()}
    reading = take_turns(prompts, prefills, device, warm_up=False)
    announce(f"decoding after {context} tokens")
    decoding = take_turns({name: _Decoding(prompt) for name, prompt in prompts.items()}, repeats, device)
    per_token = {name: [seconds / _DECODED for seconds in samples] for name, samples in decoding.items()}
    whole = {
        name: [statistics.median(reading[name]) + new_tokens * seconds for seconds in per_token[name]]
        for name in models
    }
    return [
        _timing("prefill", context, context, reading, device),
        _timing("decode", context, 1, per_token, device),
        _timing("generation", context, new_tokens, whole, device),
    ]


class _Prompt:
    """Reads a prompt each call, and keeps the cache after it."""

    def __init__(self, model: PlaitForCausalLM, ids: torch.Tensor) -> None:
        self.model, self.ids = model, ids
        self.cache: Any = None

    def __call__(self) -> None:
        self.cache = None  # frees that of the last call first
        self.cache = _read(self.model, self.ids)


class _Decoding:
    """Decodes a few greedy tokens each call, going on where the last call ended."""

    def __init__(self, prompt: _Prompt) -> None:
        self.model, self.cache, self.token = prompt.model, prompt.cache, prompt.ids[:, -1:]

    def __call__(self) -> None:
        for _ in range(_DECODED):
            output: Any = self.model(input_ids=self.token, logits_to_keep=1, **{CACHE_NAME: self.cache})
            self.token = output.logits[:, -1:].argmax(-1)


def _read(model: PlaitForCausalLM, ids: torch.Tensor) -> Any:
    """The cache after a prompt."""
    cache: Any = None
    for piece in ids.split(_PIECE, dim=1):
        output: Any = model(input_ids=piece, use_cache=True, logits_to_keep=1, **{CACHE_NAME: cache})
        cache = output[CACHE_NAME]
    return cache


def _training_step(model: PlaitForCausalLM, optimiser: torch.optim.Optimizer, device: str, ids: torch.Tensor) -> None:
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        output: Any = model(input_ids=ids, labels=ids)
    output.loss.backward()
    optimiser.step()
    optimiser.zero_grad()


def _ids(size: Size, batch: int, length: int, device: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(size.vocab_size, (batch, length), generator=generator).to(device)


def _timing(what: str, tokens: int, done: int, seconds: dict[str, list[float]], device: str) -> ModelTiming:
    """Both models' rates and their ratio, for a call that does ``done`` tokens."""
    hybrid, attention = seconds["hybrid"], seconds["all-attention"]
    compared: Ratio = ratio(hybrid, attention)
    return ModelTiming(
        what=what,
        tokens=tokens,
        backend=ops.choose(device)[0],
        tokens_per_second=done / statistics.median(hybrid),
        attention_tokens_per_second=done / statistics.median(attention),
        ratio=compared.median,
        ratio_low=compared.low,
        ratio_high=compared.high,
        repeats=len(hybrid),
    )
