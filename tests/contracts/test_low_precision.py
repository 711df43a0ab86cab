"""Every mixer of the catalogue with weights in fp16 and bf16: forward, cached generation, a training step."""

from __future__ import annotations

import pytest
import torch

from contracts.checks import cases, tiny_model, tokens


@pytest.mark.parametrize("case", cases())
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_weights(dtype: torch.dtype, case: str) -> None:
    exact = tiny_model(case, dtype=torch.float32, scale=0.5)
    model = tiny_model(case, dtype=dtype, scale=0.5)
    ids = tokens(2, 21)
    with torch.no_grad():
        logits, expected = model(ids).logits, exact(ids).logits
    assert logits.dtype == dtype
    assert (logits.float() - expected).norm() < 0.1 * expected.norm()

    text = model.generate(ids, max_new_tokens=4, do_sample=False)
    assert text.shape == (2, 25)

    model.train()
    weights = list(model.parameters())
    optimizer = torch.optim.SGD(weights, lr=1e-2)
    before = float(model(ids, labels=ids).loss.detach())
    for _ in range(3):
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        assert all(w.grad.dtype == dtype and w.grad.isfinite().all() for w in weights if w.grad is not None)
        optimizer.step()
    assert float(model(ids, labels=ids).loss.detach()) < before
