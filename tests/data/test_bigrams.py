"""Bigram counts against counting by hand."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch

from plait.data import bigrams
from plait.data.bigrams import BigramCounts


@pytest.mark.parametrize("vocab_size", [7, 50_000], ids=["dense", "sparse"])
@pytest.mark.parametrize("chunk", [1, 3, 64, 1 << 24])
def test_counts_equal_a_counter(vocab_size: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bigrams, "_CHUNK", chunk)
    tokens = np.random.default_rng(0).integers(0, 7, 100, dtype=np.uint16) * (vocab_size // 7)
    counts = BigramCounts(tokens, vocab_size)
    expected = Counter(pairwise(tokens.tolist()))
    previous, following = torch.meshgrid(torch.arange(7), torch.arange(7), indexing="ij")
    scale = vocab_size // 7
    found = counts(previous * scale, following * scale)
    assert found.tolist() == [[expected[a * scale, b * scale] for b in range(7)] for a in range(7)]
    assert counts(torch.tensor(1 if scale > 1 else 6), torch.tensor(vocab_size - 1)).item() == (
        0 if scale > 1 else expected[6, 6]
    )


def test_one_token_has_no_bigram() -> None:
    assert BigramCounts(np.array([3]), 7)(torch.tensor([3]), torch.tensor([3])).tolist() == [0]
