from __future__ import annotations

from typing import Any

import pytest
import torch

import plait
from policies.driver import Driver
from policies.tiny_models import decoder, tokens


def streaming_mask(length: int, sinks: int, window: int) -> torch.Tensor:
    """Written out: j <= i and (j < sinks or i - j < window)."""
    return torch.tensor([[j <= i and (j < sinks or i - j < window) for j in range(length)] for i in range(length)])


@pytest.mark.parametrize("parts", [[23], [1] * 23, [9, 1, 8, 5], [2, 20, 1]])
def test_any_split_is_the_token_mask(parts: list[int]) -> None:
    driver = Driver("streaming", 23, sinks=3, window=5)
    found = torch.cat([driver.feed(n) for n in parts], dim=2)
    mask = streaming_mask(23, 3, 5)
    torch.testing.assert_close(found, driver.attention(mask))
    report = driver.applied.report()
    assert report.pairs == int(mask.sum()) * 4
    assert report.dense_pairs == 23 * 24 // 2 * 4


def test_the_model_under_a_prepared_mask() -> None:
    """The eager attention of transformers, given the same mask, makes the same logits."""
    model: Any = decoder("llama")
    ids = tokens(2, 18)
    mask = streaming_mask(18, 2, 6)
    additive = torch.zeros(2, 1, 18, 18).masked_fill(~mask, torch.finfo(torch.float32).min)
    with torch.no_grad():
        expected = model(ids, attention_mask=additive).logits
        with plait.policy(model, "streaming", sinks=2, window=6):
            torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=3e-5)


def test_memory_is_constant_and_holds_the_first_and_the_last() -> None:
    driver = Driver("streaming", 40, sinks=3, window=5)
    driver.feed(20)
    for seen in range(20, 40):
        assert driver.held() == [[0, 1, 2, *range(seen - 4, seen)]] * 2
        assert driver.state.bytes() == 2 * 2 * 7 * 8 * 8  # keys and values, heads, tokens, channels, bytes
        driver.feed()
    store = driver.state["kv"]
    torch.testing.assert_close(store.keys, driver.k[:, :, [0, 1, 2, 36, 37, 38, 39]], rtol=0, atol=0)
    assert driver.work("decode").pairs == 20 * 8 * 4


def test_sinks_are_the_first_real_tokens() -> None:
    padded = Driver("streaming", 20, rows=2, padding=[6, 0], sinks=2, window=4)
    out = torch.cat([padded.feed(12), *(padded.feed() for _ in range(8))], dim=2)
    alone = Driver("streaming", 14, sinks=2, window=4)
    alone.q, alone.k, alone.v = (x[:1, :, 6:] for x in (padded.q, padded.k, padded.v))
    torch.testing.assert_close(out[:1, :, 6:], alone.feed(14))
    assert not out[0, :, :6].any()
    assert padded.held(row=0) == [[0, 1, 11, 12, 13]] * 2
    assert padded.held(row=1) == [[0, 1, 17, 18, 19]] * 2
