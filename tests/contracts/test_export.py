"""``torch.export`` of whole texts: one program for any number of rows and tokens, for every mixer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from contracts.checks import cases, close, tiny_model, tokens
from plait import ops
from plait.models import DecodeStep, PlaitForCausalLM

SIZES = [(1, 2), (3, 40), (5, 70)]

pytestmark = pytest.mark.skipif(
    ops.choose("cpu")[0] != "native", reason="chunks in plain torch are unrolled: any length needs compiled kernels"
)


class Logits(nn.Module):
    """Logits of a batch as a function of tensors."""

    def __init__(self, model: PlaitForCausalLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.model(ids, attention_mask=mask, use_cache=False).logits


def exported(model: PlaitForCausalLM, *inputs: Tensor) -> nn.Module:
    """The program for any batch and any length from 2 up."""
    shape = {0: Dim("rows", min=1, max=64), 1: Dim("tokens", min=2, max=4096)}
    with torch.no_grad():
        shapes = dict(zip(("ids", "mask"), [shape] * len(inputs), strict=False))
        return torch.export.export(Logits(model), inputs, dynamic_shapes=shapes).module()


@pytest.mark.slow
@pytest.mark.parametrize("case", cases())
@torch.no_grad()
def test_any_batch_and_length(case: str) -> None:
    model = tiny_model(case, dtype=torch.float32, scale=0.5)  # compiled kernels take no fp64
    program = exported(model, tokens(2, 9))
    for rows, length in SIZES:
        ids = tokens(rows, length)
        close(program(ids), model(ids, use_cache=False).logits, 1e-4)


@pytest.mark.parametrize("case", ["gated_deltanet", "attention-window"])
@torch.no_grad()
def test_any_padding(case: str) -> None:
    model = tiny_model(case, dtype=torch.float32, scale=0.5)  # compiled kernels take no fp64
    program = exported(model, tokens(2, 9), torch.ones(2, 9, dtype=torch.long))
    for rows, length in SIZES:
        ids, mask = tokens(rows, length), torch.ones(rows, length, dtype=torch.long)
        mask[0, : length // 2] = 0
        real = mask.bool()
        close(program(ids, mask)[real], model(ids, attention_mask=mask, use_cache=False).logits[real], 1e-4)


def test_counters_travel_with_the_states() -> None:
    """What a window has seen is known after a step as after a pass of the model."""
    model = tiny_model("attention-window")
    cache = model.model.new_cache()
    with torch.no_grad():
        model(tokens(1, 9), past_key_values=cache)
        _, states = DecodeStep(model)(torch.tensor([[3]]), torch.tensor([[9]]), DecodeStep.states(cache))
        model(torch.tensor([[3]]), past_key_values=cache)
    for after, expected in zip(states, DecodeStep.states(cache), strict=True):
        torch.testing.assert_close(after, expected)
    assert [int(x[0]) for x in states if x.dtype == torch.long] == [10, 10]
