"""Token-mixing cost by the accounting of 2507.06457, against the figures it gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from plait import catalog
from plait.mixers import Cost, Dims

WIDE = Dims(2048, 24)


def cost(mixer: str, T: int, dims: Dims = WIDE, dtype: torch.dtype = torch.bfloat16, **values: Any) -> Cost:
    cls = catalog.get(mixer).load()
    return cls.cost(dims, T, cls.Options.parse(mixer, values), cache_dtype=dtype)


@pytest.mark.parametrize(
    ("mixer", "T", "flops"),
    [
        ("attention", 4096, 1.649e12),
        ("attention", 32768, 1.056e14),
        ("hgrn", 4096, 1.007e9),
        ("hgrn", 32768, 8.05e9),
        ("gated_deltanet", 4096, 4.123e11),
        ("gated_deltanet", 32768, 3.299e12),
    ],
)
def test_forward_of_24_layers(mixer: str, T: int, flops: float) -> None:
    assert 24 * cost(mixer, T).flops_prefill == pytest.approx(flops, rel=5e-4)


@pytest.mark.parametrize(
    ("mixer", "per_element"),
    [("retnet", 5), ("hgrn", 5), ("gla", 7), ("hgrn2", 7), ("deltanet", 8), ("gated_deltanet", 8), ("kda", 8)],
)
def test_flops_per_state_element(mixer: str, per_element: int) -> None:
    cls = catalog.get(mixer).load()
    elements = cls.Options().heads(WIDE).state_size
    assert cost(mixer, 10).flops_prefill == 10 * per_element * elements
    assert cost(mixer, 10).flops_decode == per_element * elements


def test_attention_costs_as_much_as_gated_deltanet_at_1024_tokens() -> None:
    assert cost("attention", 1024).flops_prefill == cost("gated_deltanet", 1024).flops_prefill


def test_bytes() -> None:
    mebibyte = 2**20
    assert cost("attention", 4096).state_bytes == 32 * mebibyte
    assert cost("attention", 4096, num_kv_heads=8).state_bytes == 8 * mebibyte
    assert cost("attention", 4096, dtype=torch.float32).state_bytes == 64 * mebibyte
    assert cost("attention", 4096, window=1025).state_bytes == 8 * mebibyte
    assert cost("attention", 100, window=1025).state_bytes == 100 * 2 * 2048 * 2
    assert cost("gated_deltanet", 4096).state_bytes == 2 * mebibyte + 3 * 3 * 2048 * 2
    assert cost("gated_deltanet", 4096, use_short_conv=False).state_bytes == 2 * mebibyte
    assert cost("hgrn", 4096).state_bytes == 4 * 2048


def test_a_window_bounds_the_cost() -> None:
    """Every query of a long text scores the window; up to the window the cost is that of full attention."""
    full, narrow = cost("attention", 512), cost("attention", 512, window=512)
    assert narrow.flops_prefill == full.flops_prefill
    step = cost("attention", 9001, window=512).flops_prefill - cost("attention", 9000, window=512).flops_prefill
    assert step == cost("attention", 9000, window=512).flops_decode == 4 * 512 * 2048


def test_costs_add_up() -> None:
    assert Cost(1, 2, 3) + Cost(10, 20, 30) == Cost(11, 22, 33)
    assert Cost(1, 2, 3) + Cost(10, 20, 30, 4) == Cost(11, 22, 33, 7)  # what is read may be less than what is held
