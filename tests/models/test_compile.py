"""Graphs of whole models: ``torch.compile`` of forward and training step, ``torch.export`` of the decode step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from contracts.checks import VARIANTS, cases, close, tiny_model, tokens
from plait import catalog, ops
from plait.errors import CacheError
from plait.models import DecodeStep, PlaitCache, PlaitConfig, PlaitForCausalLM

EVERY = [
    *catalog.names("mixer", compiles=True),
    "attention-window",
    *(pytest.param(case, marks=pytest.mark.slow) for case in VARIANTS if case != "attention-window"),
]


def compiled(model: PlaitForCausalLM, **options: Any) -> Callable[..., Any]:
    torch.compiler.reset()
    return torch.compile(model, fullgraph=True, **options)


def hybrid() -> PlaitForCausalLM:
    torch.manual_seed(0)
    config = PlaitConfig(layer_types=["gated_deltanet", "attention"], hidden_size=32, intermediate_size=48)
    return PlaitForCausalLM(config)


def loss_and_gradients(model: PlaitForCausalLM, run: Callable[..., Any], **batch: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss = run(**batch, labels=batch["input_ids"]).loss
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **found}


def assert_same_step(model: PlaitForCausalLM, run: Callable[..., Any], **batch: Tensor) -> None:
    expected = loss_and_gradients(model, model, **batch)
    found = loss_and_gradients(model, run, **batch)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        close(found[name] / value.abs().max().clamp(min=1e-3), value / value.abs().max().clamp(min=1e-3), 1e-5)


@pytest.mark.parametrize("case", EVERY)
def test_training_step_is_one_graph(case: str) -> None:
    model = tiny_model(case, dtype=torch.float32).train()
    assert_same_step(model, compiled(model, backend="aot_eager"), input_ids=tokens(2, 33))


def test_forward_is_one_graph() -> None:
    model = hybrid().eval()
    ids = tokens(2, 33)
    with torch.no_grad():
        close(compiled(model, backend="aot_eager")(ids).logits, model(ids).logits, 1e-5)


def test_padded_training_step_is_one_graph() -> None:
    """Which slots are padding may differ from batch to batch: nothing is computed from the mask's entries."""
    model = hybrid().train()
    run = compiled(model, backend="aot_eager")
    ids = tokens(3, 9)
    masks = [[[1] * 9] * 3, [[0] * 4 + [1] * 5, [1] * 9, [1, 1, 0, 0, 1, 1, 1, 0, 1]]]
    for mask in masks:
        assert_same_step(model, run, input_ids=ids, attention_mask=torch.tensor(mask))


@pytest.mark.slow
def test_inductor() -> None:
    model = hybrid().train()
    assert_same_step(model, compiled(model), input_ids=tokens(2, 33))


@torch.no_grad()
def assert_decodes(model: PlaitForCausalLM, export: Callable[[DecodeStep, PlaitCache], Any]) -> None:
    """The exported step continues a prompt as eager decoding does, beyond the lengths it was exported at."""
    ids, prompt = tokens(2, 16), 8
    cache = model.model.new_cache()
    model(ids[:, :prompt], past_key_values=cache)
    states = DecodeStep.states(cache)
    run = export(DecodeStep(model), cache).module()
    for t in range(prompt, ids.shape[1]):
        logits, states = run(ids[:, t : t + 1], torch.full((2, 1), t), states)
        close(logits, model(ids[:, t : t + 1], past_key_values=cache).logits[:, 0], 1e-5)


@pytest.mark.parametrize("case", cases())
def test_exported_step(case: str) -> None:
    model = tiny_model(case, dtype=torch.float32)
    if case == "lizard":  # its window is longer than the prompt; lizard-window's is full
        with pytest.raises(CacheError, match=r"windows of this cache are not full, .* exporting: 119"):
            assert_decodes(model, DecodeStep.export)
    else:
        assert_decodes(model, DecodeStep.export)


def test_exported_step_of_a_hybrid() -> None:
    assert_decodes(hybrid().eval(), DecodeStep.export)


def test_exported_step_without_operators_of_its_own() -> None:
    def export(step: DecodeStep, cache: PlaitCache) -> torch.export.ExportedProgram:
        with ops.backend("torch"):
            program = step.export(cache)
        assert not [node for node in program.graph.nodes if "plait" in str(node.target)]
        return program

    assert_decodes(hybrid().eval(), export)


def test_step_needs_a_filled_cache_without_padding() -> None:
    model = hybrid().eval()
    cache = model.model.new_cache()
    with pytest.raises(CacheError, match="is empty"):
        DecodeStep.states(cache)
    model(tokens(2, 3), past_key_values=cache, attention_mask=torch.tensor([[0, 1, 1], [1, 1, 1]]))
    with pytest.raises(CacheError, match="padded rows"):
        DecodeStep.states(cache)
