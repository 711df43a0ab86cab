"""Decoding is measured with the right context, and the cache's bytes are those that ``cost`` states."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from plait import catalog
from plait.evaluation import decode
from plait.evaluation.decode import DecodeMeasurement, decode_speed
from plait.evaluation.subject import Subject
from plait.models import PlaitConfig, PlaitForCausalLM, plan_cost


@pytest.mark.parametrize("mixer", catalog.names("mixer"))
def test_bytes_are_those_of_the_cost_model(mixer: str) -> None:
    config = PlaitConfig(vocab_size=16, hidden_size=32, layer_types=[mixer, "attention"])
    subject = Subject.of(PlaitForCausalLM(config).eval(), None)
    for context in (9, 70):
        speed, cache = DecodeMeasurement(context).measure(subject)
        assert cache.score == plan_cost(config, context, cache_dtype=torch.float32).state_bytes
        assert 0 < speed.low <= speed.score <= speed.high
        assert (speed.n, speed.interval, speed.unit, cache.unit) == (decode._REPEATS, "range", "tokens/s", "bytes")


def test_a_long_context_is_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    config = PlaitConfig(vocab_size=16, hidden_size=32, layer_types=["gated_deltanet", "attention"])
    model = PlaitForCausalLM(config).eval()
    lengths: list[int] = []
    model.model.embeddings.register_forward_hook(lambda _, inputs, __: lengths.append(inputs[0].shape[1]))
    monkeypatch.setattr(decode, "_PREFILL", 16)
    decode_speed(model, 40, 16)
    assert lengths[:3] == [16, 16, 8]
    assert set(lengths[3:]) == {1}
    assert len(lengths) == 3 + decode._REPEATS * (decode._WARM_UP + decode._STEPS)


def test_every_repeat_starts_from_the_same_context(monkeypatch: pytest.MonkeyPatch) -> None:
    config = PlaitConfig(vocab_size=16, hidden_size=32, layer_types=["attention"])
    model = PlaitForCausalLM(config).eval()
    seen: list[int] = []
    forward = decode._forward

    def spy(model: torch.nn.Module, ids: torch.Tensor, cache: object) -> object:
        seen.append(0 if cache is None else cache.get_seq_length())  # type: ignore[attr-defined]
        return forward(model, ids, cache)

    monkeypatch.setattr(decode, "_forward", spy)
    decode_speed(model, 20, 16)
    steps = decode._WARM_UP + decode._STEPS
    assert seen == [0, *list(range(20, 20 + steps)) * decode._REPEATS]


def test_other_models_of_transformers_are_measured_too() -> None:
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    _, held = decode_speed(LlamaForCausalLM(config).eval(), 30, 16)
    assert held == 3 * 2 * 30 * 2 * 8 * 4  # layers, keys and values, tokens, heads, width, fp32
