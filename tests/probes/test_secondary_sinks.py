"""The eleven oracles of secondary sinks: detection on planted states, labels, scores, steering and the MLP's part."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from plait.errors import OptionError
from plait.probes import probe
from plait.probes.secondary_sinks import (
    Level,
    active_layers,
    effective_components,
    label,
    matched_inputs,
    matrix_entropy,
    rescaled,
    sink_levels,
)

LAYERS, TOKENS, SIZE = 12, 9, 16


def planted(factor: float = 1.0, token: int = 5, layers: range = range(5, 9)) -> Tensor:
    """States ``(L, T, d)``: token 0 is long in layers 3 to 9, ``token`` equals it in ``layers``."""
    states = torch.randn(LAYERS, TOKENS, SIZE, generator=torch.Generator().manual_seed(0))
    states[3:10, 0] *= 100
    for layer in layers:
        states[layer, token] = factor * states[layer, 0]
    return states


def levels_of(states: Tensor, threshold: float = 0.9) -> tuple[tuple[int, int], list[Level]]:
    active = active_layers(states[:, 0].norm(dim=-1))
    cosines = F.cosine_similarity(states, states[:, :1], dim=-1)
    return active, sink_levels(cosines, 0, active, threshold)


@pytest.mark.parametrize("factor", [1.0, -2.0, 0.01])
def test_planted_sinks_are_found(factor: float) -> None:
    """Oracle 1: start, end and level; with the other sign too."""
    assert levels_of(planted(factor)) == ((3, 10), [Level(5, 5, 4, 4)])


def test_lengths_of_other_tokens_change_nothing() -> None:
    """Oracle 2."""
    states = planted()
    longer = states.clone()
    longer[:, 1:] *= torch.rand(LAYERS, TOKENS - 1, 1) * 50 + 0.01
    assert levels_of(longer) == levels_of(states)


def test_the_threshold_is_passed_not_reached() -> None:
    """Oracle 3: 0.9 itself is off; layers outside the primary sink's life are never reported; a gap is in the span."""
    cosines = torch.zeros(LAYERS, 4, dtype=torch.float64)
    cosines[4, 1], cosines[4, 2] = 0.9, 0.901
    assert sink_levels(cosines, 0, (3, 10)) == [Level(2, 4, 1, 1)]
    cosines[:, 3] = 1
    assert sink_levels(cosines, 0, (3, 10))[1] == Level(3, 3, 7, 7)
    cosines[5, 3] = 0
    assert sink_levels(cosines, 0, (3, 10))[1] == Level(3, 3, 6, 7)


def test_labels_at_their_bounds() -> None:
    """Oracle 4."""
    found = [label(lifetime, 48, absolute=True) for lifetime in (4, 5, 32, 33)]
    assert found == ["noise", "secondary", "secondary", "primary"]
    assert [label(lifetime, 10) for lifetime in (1, 2, 6, 7)] == ["noise", "secondary", "secondary", "primary"]


def test_short_models_have_a_life_to_their_end() -> None:
    assert active_layers(torch.tensor([1.0, 9.0])) == (1, 2)
    assert active_layers(torch.tensor([1.0])) == (0, 1)
    assert active_layers(torch.tensor([1.0, 9.0, 8.0, 2.0, 1.0])) == (1, 3)


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": SIZE, "intermediate_size": 32, "num_hidden_layers": 6}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads)).eval()


def with_scores(kind: str, length: int) -> Tensor:
    """Sink scores of a layer whose attention is all of one kind, by a model made for it."""
    model = llama()
    for layer in model.model.layers:
        nn.init.zeros_(layer.self_attn.q_proj.weight)
        nn.init.zeros_(layer.self_attn.k_proj.weight)
    measured = probe(model, "attention_sinks", candidates=length, block=5)
    if kind != "uniform":
        from plait.probes import attention_sinks

        rows = torch.eye(length)
        if kind == "first":
            rows = torch.zeros(length, length)
            rows[:, 0] = 1
        original = attention_sinks.weights
        attention_sinks.weights = lambda call, keys, q, positions, real=None: rows[positions[0]].expand(  # type: ignore
            1, q.shape[1], -1, -1
        )
        try:
            measured.run(torch.zeros(1, length, dtype=torch.long))
        finally:
            attention_sinks.weights = original
    else:
        measured.run(torch.zeros(1, length, dtype=torch.long))
    return measured.scores()[0, 0].double()  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("kind", ["uniform", "identity", "first"])
def test_scores_of_known_attention(kind: str) -> None:
    """Oracles 5 and 6: uniform, identity and all-to-first; weights of all keys sum to T."""
    T = 12
    expected = {
        "uniform": [sum(1 / i for i in range(k, T + 1)) / (T - k + 1) for k in range(1, T + 1)],
        "identity": [1 / (T - k + 1) for k in range(1, T + 1)],
        "first": [1.0] + [0.0] * (T - 1),
    }[kind]
    found = with_scores(kind, T)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-6)
    assert float((found * torch.arange(T, 0, -1)).sum()) == pytest.approx(T)


def test_steering_sets_the_length_and_nothing_else() -> None:
    """Oracle 7."""
    direction = torch.randn(SIZE, generator=torch.Generator().manual_seed(1))
    outputs = torch.randn(TOKENS, SIZE, generator=torch.Generator().manual_seed(2))
    outputs[0], outputs[6] = 3 * direction, 50 * direction
    found = rescaled(outputs, direction, 100.0)
    assert float(found[6].norm()) == pytest.approx(100, rel=1e-5)
    assert float(F.cosine_similarity(found[6], direction, dim=0)) == pytest.approx(1)
    others = [place for place in range(TOKENS) if place != 6]
    assert torch.equal(found[others], outputs[others]), "the first positions and other directions stay"
    torch.testing.assert_close(rescaled(outputs, direction, float(outputs[6].norm())), outputs, rtol=1e-5, atol=1e-5)


class HalfSpace(nn.Module):
    """Writes one direction wherever the input's first channel is large."""

    def __init__(self, direction: Tensor) -> None:
        super().__init__()
        self.direction = direction

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(20 * x[..., :1]) * self.direction + 0.01 * x


def test_components_that_trigger_the_sink_are_found() -> None:
    """Oracle 8: the half space's own direction, with either sign, and no other."""
    direction = torch.zeros(SIZE).index_fill(0, torch.tensor([3]), 1.0)
    components = torch.eye(SIZE)
    components[0] *= -1
    found = effective_components(HalfSpace(direction), components, torch.full((SIZE,), 4.0), direction)
    assert found == [0, 3], "the trigger, and the direction itself, which passes through"
    assert effective_components(HalfSpace(direction), components[4:], torch.full((SIZE - 4,), 4.0), direction) == []


def test_matched_sets_have_the_same_ids_and_numbers() -> None:
    """Oracle 9: and labels drawn at random cannot be told apart."""
    ids = torch.randint(0, 6, (400,), generator=torch.Generator().manual_seed(3))
    sinks = [place for place in range(20, 400, 13)]
    chosen, others = matched_inputs(ids, sinks)
    assert sorted(ids[chosen].tolist()) == sorted(ids[others].tolist())
    assert not set(chosen) & set(others)
    assert set(chosen) <= set(sinks)
    assert len(chosen) == len(others) > 20
    assert matched_inputs(ids, sinks) == (chosen, others)
    assert matched_inputs(torch.tensor([1, 2, 3, 2]), [0, 1]) == ([1], [3])
    states = torch.randn(400, SIZE, generator=torch.Generator().manual_seed(4))
    states[sinks, 0] += 20
    assert accuracy(states[chosen], states[others]) > 0.95
    mixed = torch.cat([states[chosen], states[others]])[torch.randperm(2 * len(chosen))]
    assert accuracy(mixed[: len(chosen)], mixed[len(chosen) :]) < 0.75


def accuracy(one: Tensor, two: Tensor) -> float:
    """Of two clusters by K-means against the labels, under the better naming."""
    points = torch.cat([one, two])
    centres = points[[int(points[:, 0].argmin()), int(points[:, 0].argmax())]]
    for _ in range(10):
        nearest = torch.cdist(points, centres).argmin(1)
        centres = torch.stack([points[nearest == c].mean(0) for c in range(2)])
    right = float(((nearest == 1) == (torch.arange(len(points)) < len(one))).double().mean())
    return max(right, 1 - right)


def test_watching_layer_by_layer_is_the_stored_states() -> None:
    """Oracle 10: cosines while running equal those of stored states; one row a pass."""
    model = llama()
    ids = torch.randint(0, 32, (1, 14), generator=torch.Generator().manual_seed(5))
    stored: list[Tensor] = []

    def write(module: nn.Module, args: object, outputs: Tensor) -> Tensor:
        """A middle MLP writes one direction for the first and one later token, as the paper says of secondary sinks."""
        return outputs.index_add(1, torch.tensor([0, 8]), 400 * outputs[:, :1].expand(-1, 2, -1))

    def store(module: nn.Module, args: object, outputs: object) -> None:
        stored.append(outputs[0] if isinstance(outputs, tuple) else outputs)  # type: ignore[arg-type]

    model.model.layers[2].mlp.register_forward_hook(write)
    handles = [layer.register_forward_hook(store) for layer in model.model.layers]
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    states = torch.stack([state[0].float() for state in stored])
    primary = int(states[:, :2].norm(dim=-1).mean(0).argmax())
    active = active_layers(states[:, primary].norm(dim=-1))
    cosines = F.cosine_similarity(states, states[:, primary : primary + 1], dim=-1)
    expected = sink_levels(cosines, primary, active)
    measured = probe(model, "secondary_sinks")
    measured.run(ids)
    rows = measured.records()
    assert (rows[0]["token"], rows[0]["start"], rows[0]["lifetime"]) == (primary, active[0], active[1] - active[0])
    found = [Level(row["token"], row["start"], row["lifetime"], row["span"]) for row in rows[1:]]
    assert found == expected
    assert any(level.token == 8 for level in found), "the planted one"
    with pytest.raises(OptionError, match="one row"), measured:
        model(input_ids=ids.repeat(2, 1))


def test_entropy_of_a_matrix() -> None:
    """Oracle 11."""
    assert matrix_entropy(torch.eye(8)[:5]) == pytest.approx(math.log(5))
    assert matrix_entropy(torch.ones(5, 8)) == pytest.approx(0, abs=1e-9)
