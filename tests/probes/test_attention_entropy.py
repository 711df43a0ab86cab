"""Attention entropy against equal weights, hand-made weights and the matrices of eager attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from plait.errors import OptionError
from plait.probes import attention_entropy, probe
from plait.probes.attention_entropy import AttentionEntropy
from policies.tiny_models import decoder, left_padded, tokens

RANGES = [(1, 1), (2, 3), (4, 7), (8, 15), (16, 31)]


@pytest.fixture(scope="module")
def llama() -> Any:
    return decoder("llama")


def rows_of(measured: AttentionEntropy, layer: int, first: int) -> Any:
    return measured.table().query(f"layer == {layer} and first == {first}")


def test_equal_weights_have_the_logarithm_of_what_is_in_sight() -> None:
    """Four queries see 4, 5, 6 and 7 tokens: log(4 * 5 * 6 * 7) / 4."""
    model = decoder("llama")
    for layer in model.model.layers:  # type: ignore[union-attr]
        nn.init.zeros_(layer.self_attn.q_proj.weight)  # type: ignore[union-attr,arg-type]
    measured: Any = probe(model, "attention_entropy", block=5)
    measured.run(tokens(1, 12))
    rows = rows_of(measured, 1, 4)
    np.testing.assert_allclose(rows["entropy"], np.log(840) / 4, rtol=1e-6)
    np.testing.assert_allclose(rows["uniform"], np.log(840) / 4, rtol=1e-12)
    assert rows_of(measured, 0, 8)["queries"].tolist() == [5] * 4
    np.testing.assert_allclose(measured.shares(), 1.0, rtol=1e-6)


def test_entropy_of_weights_by_hand(monkeypatch: pytest.MonkeyPatch, llama: Any) -> None:
    """A half and two quarters: 1.5 bits; one token alone: nothing."""
    rows = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0.5, 0.25, 0.25]])
    monkeypatch.setattr(attention_entropy, "weights", lambda call, keys, q, *_: rows.expand(1, 4, 3, 3))
    measured: Any = probe(llama, "attention_entropy")
    measured.run(tokens(1, 3))
    np.testing.assert_allclose(rows_of(measured, 0, 2)["entropy"], 1.5 * np.log(2) / 2, rtol=1e-6)
    assert measured.shares()[0] == pytest.approx([1.5 * np.log(2) / np.log(6)] * 4)


@pytest.mark.parametrize("block", [1, 7, 64])
def test_entropy_is_that_of_the_eager_matrices(block: int, llama: Any) -> None:
    ids = tokens(2, 20)
    with torch.no_grad():
        matrices: list[Tensor] = llama(input_ids=ids, output_attentions=True, use_cache=False).attentions
    measured: Any = probe(llama, "attention_entropy", block=block)
    measured.run(ids)
    for layer, weights in enumerate(matrices):
        entropy = -(weights * weights.clamp(min=1e-30).log()).sum(-1)
        for first, last in RANGES:
            expected = entropy[:, :, first - 1 : last].mean((0, 2))
            np.testing.assert_allclose(rows_of(measured, layer, first)["entropy"], expected, rtol=1e-4, atol=1e-6)


def test_no_more_queries_than_a_block_are_held(monkeypatch: pytest.MonkeyPatch, llama: Any) -> None:
    widths, real = [], attention_entropy.weights

    def watched(*arguments: Any) -> Tensor:
        weights = real(*arguments)
        widths.append(weights.shape[2])
        return weights

    monkeypatch.setattr(attention_entropy, "weights", watched)
    probe(llama, "attention_entropy", block=8).run(tokens(1, 20))
    assert widths == [8, 8, 4] * 2


def test_padded_rows_count_as_rows_alone(llama: Any) -> None:
    texts = [tokens(1, 20)[0], tokens(1, 13, seed=5)[0]]
    alone, padded = probe(llama, "attention_entropy", block=6), probe(llama, "attention_entropy", block=6)
    for text in texts:
        alone.run(text[None])
    with padded, torch.no_grad():
        llama(**left_padded(texts))
    expected, found = alone.table(), padded.table()
    np.testing.assert_array_equal(found["queries"], expected["queries"])
    np.testing.assert_allclose(found["uniform"], expected["uniform"], rtol=1e-12)
    np.testing.assert_allclose(found["entropy"], expected["entropy"], rtol=1e-4, atol=1e-6)


def test_what_cannot_be_measured_is_refused(llama: Any) -> None:
    with pytest.raises(OptionError, match="block=0 must be at least 1"):
        probe(llama, "attention_entropy", block=0)
    measured = probe(llama, "attention_entropy")
    measured.run(tokens(1, 1))
    with pytest.raises(OptionError, match="two tokens or more"):
        measured.svg()
    with pytest.raises(OptionError, match="a sink without a key"):
        probe(decoder("gpt_oss"), "attention_entropy").run(tokens(1, 4))
