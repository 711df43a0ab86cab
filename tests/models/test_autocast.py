"""bf16 autocast on a CPU: the model is right within bf16's rounding, and what accumulates over time stays in fp32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from contracts.checks import cases, tiny_model, tokens
from plait.models import PlaitForCausalLM

#: Relative error of one rounding to bf16 is at most 2^-9 (8 bits of significand); this allows for some thirty.
TOLERANCE = 30 * 2**-9


def autocast() -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16)


#: Decays of about e^-2.5 a token leave read-outs near zero, which the norm behind them divides by: weights rounded to
#: bf16, in fp32 arithmetic, alone move this case's gradients by a tenth.
GRADIENT_TOLERANCE = {"kda-bounded": 0.5}


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected).norm() / expected.norm().clamp(min=1e-12))


def step(model: PlaitForCausalLM, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and all gradients in one vector."""
    model.zero_grad()
    output = model(ids, labels=ids)
    output.loss.backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    assert all(g.dtype == torch.float32 for g in gradients)
    return output.logits.detach(), torch.cat(gradients)


@pytest.mark.parametrize("case", cases())
def test_within_rounding_of_fp32(case: str) -> None:
    # larger weights would measure the norms, not the rounding: read-outs near zero are divided by their size
    model = tiny_model(case, dtype=torch.float32, scale=0.2).train()
    ids = tokens(2, 65)
    logits, gradients = step(model, ids)
    with autocast():
        low_logits, low_gradients = step(model, ids)
    assert low_logits.dtype == torch.bfloat16
    assert 0 < relative(low_logits, logits) < TOLERANCE
    assert 0 < relative(low_gradients, gradients) < GRADIENT_TOLERANCE.get(case, TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("case", cases())
def test_states_are_fp32(case: str) -> None:
    model = tiny_model(case, dtype=torch.float32).eval()
    cache = model.model.new_cache()
    with autocast():
        model(tokens(2, 9), past_key_values=cache)
        model(tokens(2, 1), past_key_values=cache)
    states = [layer.state.segments["recurrent"] for layer in cache.layers if "recurrent" in layer.state.segments]
    assert states or case.startswith(("attention", "mla"))
    assert all(state.value.dtype == torch.float32 for state in states)
