from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from plait.models import PlaitConfig, PlaitForCausalLM

VOCABULARY = 61


@pytest.fixture
def build() -> Callable[..., PlaitForCausalLM]:
    """A tiny model in fp64 whose weights are large enough for every path to matter."""

    def make(*layer_types: str, dtype: torch.dtype = torch.float64, **options: Any) -> PlaitForCausalLM:
        sizes = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24}
        config = PlaitConfig(layer_types=list(layer_types), **{**sizes, **options})
        torch.manual_seed(0)
        model = PlaitForCausalLM(config).to(dtype).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
        return model

    return make


@pytest.fixture
def tokens() -> Callable[..., torch.Tensor]:
    """Random token ids ``(batch, length)`` from 1 up."""

    def make(batch: int, length: int, seed: int = 1) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(1, VOCABULARY, (batch, length), generator=generator)

    return make
