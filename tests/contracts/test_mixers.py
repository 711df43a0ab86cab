"""Every mixer of the catalogue keeps the contract of ``plait.mixers.base.Mixer``."""

from __future__ import annotations

import pytest
import torch

from contracts.checks import CHECKS, cases, tiny_model, tokens
from plait.models import PlaitCache


@pytest.mark.parametrize("case", cases())
@pytest.mark.parametrize("check", CHECKS)
def test_contract(check: str, case: str) -> None:
    CHECKS[check](case)


@pytest.mark.parametrize("case", cases())
@pytest.mark.parametrize("length", [1, 2, 3, 17, 64, 65, 257])
def test_every_length(case: str, length: int) -> None:
    model = tiny_model(case, dtype=torch.float32)
    ids = tokens(1, length)
    with torch.no_grad():
        whole = model(ids).logits
        cache = PlaitCache(model.config)
        model(ids[:, :-1], past_key_values=cache, use_cache=True) if length > 1 else None
        last = model(ids[:, -1:], past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(last[:, 0], whole[:, -1], rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("case", cases())
def test_five_thousand_tokens(case: str) -> None:
    model = tiny_model(case, dtype=torch.float32)
    ids = tokens(1, 5000)
    with torch.no_grad():
        whole = model(ids).logits
        cache = PlaitCache(model.config)
        parts = [model(part, past_key_values=cache, use_cache=True).logits for part in ids.split(1777, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("case", cases())
def test_graph_capture(case: str) -> None:
    """``torch.compile`` captures forward and backward; results are the same."""
    torch.compiler.reset()
    model = tiny_model(case, dtype=torch.float32)
    ids = tokens(2, 33)
    expected = model(ids).logits
    compiled = torch.compile(model, backend="aot_eager")
    torch.testing.assert_close(compiled(ids).logits, expected, rtol=1e-4, atol=1e-4)
