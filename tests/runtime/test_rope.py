"""Oracle 9: keys are turned back to no position and to others, for the families that the library names."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import plait
from plait.errors import OptionError
from plait.policies import Call, Dense
from plait.runtime.rope import PlaitRope
from policies.tiny_models import decoder, left_padded, tokens

FAMILIES = [
    "plait",
    "llama",
    "qwen3",
    "gemma2",
    "gemma3_text",
    "mistral",
    "phi3",
    "gpt_neox",
    "olmo2",
    "gpt_oss",
    "starcoder2",
]


class Listening(Dense):
    """Dense attention that keeps its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def attend(self, call: Call) -> torch.Tensor:
        self.calls.append(call)
        return super().attend(call)


@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip_and_other_positions(family: str) -> None:
    model: Any = decoder(family)
    listening = Listening()
    ids = tokens(1, 9)
    with plait.policy(model, listening), torch.no_grad():
        model(ids)
        model(ids, position_ids=torch.arange(9)[None] + 5)
    for call, later in zip(listening.calls[:1], listening.calls[2:3], strict=True):
        rope = call.rope
        assert rope is not None
        raw = rope.unrotate(call.k)
        torch.testing.assert_close(call.raw()[1], raw)
        torch.testing.assert_close(call.rotate(call.raw()[0], call.positions), call.q, rtol=1e-5, atol=2e-6)
        torch.testing.assert_close(rope.rotate(raw, call.positions), call.k, rtol=1e-5, atol=2e-6)
        torch.testing.assert_close(rope.unrotate(call.k, call.positions), raw, rtol=1e-5, atol=2e-6)
        # keys of the first layer depend on the position through the rotation alone
        torch.testing.assert_close(rope.rotate(raw, call.positions + 5), later.k, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(raw, call.k)
        torch.testing.assert_close(raw[:, :, 0] * _norm(rope), call.k[:, :, 0], rtol=1e-5, atol=2e-6)


def _norm(rope: Any) -> float:
    """The factor that YaRN puts on cosine and sine."""
    if isinstance(rope, PlaitRope):
        return 1.0
    return float((rope.tables[0][0, 0, 0].square() + rope.tables[1][0, 0, 0].square()).sqrt())


def test_hidden_states_reach_the_policy() -> None:
    model: Any = decoder("llama")
    listening = Listening()
    with plait.policy(model, listening), torch.no_grad():
        model(tokens(2, 7))
    call = listening.calls[0]
    assert call.hidden is not None
    k = model.model.layers[0].self_attn.k_proj(call.hidden).view(2, 7, 2, 8).transpose(1, 2)
    torch.testing.assert_close(call.rope.unrotate(call.k), k, rtol=1e-5, atol=2e-6)  # type: ignore[union-attr]


@pytest.mark.parametrize("factor", [0.5, 1.0])
def test_raw_keys_of_a_plait_layer_are_those_of_its_projection(factor: float) -> None:
    """With padding, and with positions of the caller's own; only some channels are rotated."""
    model: Any = decoder("plait", partial_rotary_factor=factor)
    listening = Listening()
    batch = left_padded([tokens(1, 5)[0], tokens(1, 7, seed=4)[0]])
    with plait.policy(model, listening), torch.no_grad():
        model(**batch)
        model(batch["input_ids"][1:], position_ids=torch.arange(7)[None] + 5)
    for call, real in ((listening.calls[0], [5, 7]), (listening.calls[2], [7])):
        assert call.hidden is not None
        k = model.model.layers[0].attn.k_proj(call.hidden).unflatten(-1, (2, 8)).transpose(1, 2)
        for row, length in enumerate(real):
            torch.testing.assert_close(call.raw()[1][row, :, :length], k[row, :, :length], rtol=1e-5, atol=2e-6)


def test_a_layer_without_rotation_says_so() -> None:
    listening = Listening()
    with plait.policy(decoder("plait", rope_base=None), listening) as applied, torch.no_grad():
        applied.model(tokens(1, 5))
    with pytest.raises(OptionError, match="no rotary positions"):
        listening.calls[0].raw()


def test_complex_rotations_are_refused() -> None:
    from plait.runtime.rope import TransformersRope

    table = torch.ones(1, 4, 4, dtype=torch.complex64)
    rope = TransformersRope(lambda q, k, c, s: (q, k), (table, table), None, None, "SomeAttention")
    with pytest.raises(OptionError, match="SomeAttention"):
        rope.unrotate(torch.ones(1, 2, 4, 8))
    with pytest.raises(OptionError, match="no rotary module"):
        rope.rotate(torch.ones(1, 2, 4, 8), torch.arange(4)[None])
