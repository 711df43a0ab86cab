"""A model of every mixer on CUDA: a training step, decoding with a cache, padding, packing, graphs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gpu.cases import DEVICE, error
from gpu.test_mixers import OPTIONS
from plait import catalog, ops
from plait.models import PlaitCache, PlaitConfig, PlaitForCausalLM

pytestmark = [pytest.mark.gpu, pytest.mark.xdist_group("models")]

VOCABULARY = 97
#: fla's kernels multiply fp32 in TF32 (2^-11), and a cached and a whole pass take different kernels.
FP32 = 1e-2
#: Seven layers in bf16, each with some thirty roundings of up to 2^-9.
BF16 = 6e-2


def model(*layer_types: str) -> PlaitForCausalLM:
    """On the CPU in fp32, with weights large enough for every path to matter."""
    config = PlaitConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=192,
        layer_types=list(layer_types or catalog.names("mixer")),
        mixers=OPTIONS,
        norm_eps=1e-2,  # read-outs near zero, divided by their size, would measure the norms and not the rounding
    )
    torch.manual_seed(0)
    made = PlaitForCausalLM(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=generator))
    return made


def tokens(batch: int, length: int) -> Tensor:
    return torch.randint(1, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(2))


def step(trained: PlaitForCausalLM, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and all gradients in one vector."""
    trained.zero_grad()
    loss = trained(input_ids=ids, labels=ids).loss
    loss.backward()
    gradients = [p.grad.flatten().double().cpu() for p in trained.parameters() if p.grad is not None]
    return loss.detach(), torch.cat(gradients)


def test_training_step() -> None:
    """Loss and gradients are those of fp64 on a CPU, and a step of AdamW makes the loss smaller."""
    ids = tokens(2, 130)
    with ops.backend("torch"):
        expected, exact = step(model().double().train(), ids)
    trained, ids = model().to(DEVICE).train(), ids.to(DEVICE)
    optimiser = torch.optim.AdamW(trained.parameters(), lr=1e-3)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        loss, gradients = step(trained, ids)
    assert error(loss, expected) <= 1e-2
    assert error(gradients, exact) <= BF16
    optimiser.step()
    with torch.autocast(DEVICE, dtype=torch.bfloat16), torch.no_grad():
        assert trained(input_ids=ids, labels=ids).loss < loss - 0.01


@torch.no_grad()
def test_cached_decoding_equals_a_whole_pass() -> None:
    made, ids = model().to(DEVICE).eval(), tokens(2, 80).to(DEVICE)
    whole = made(ids).logits
    cache = PlaitCache(made.config)
    parts = [made(part, past_key_values=cache, use_cache=True).logits for part in ids.split([65, *[1] * 15], dim=1)]
    assert error(torch.cat(parts, dim=1), whole) <= FP32


@torch.no_grad()
def test_generated_tokens_are_the_likeliest() -> None:
    """Of a left-padded batch; two words may be as good as equal, so the chosen one is near the best."""
    made, ids = model().to(DEVICE).eval(), tokens(2, 40).to(DEVICE)
    mask = torch.ones_like(ids)
    mask[1, :9] = 0
    found = made.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=0)
    assert found.shape == (2, 52)
    for row, padding in enumerate((0, 9)):
        logits = made(found[row : row + 1, padding:]).logits[0, -13:-1]
        chosen = logits.gather(1, found[row, -12:, None])[:, 0]
        assert (logits.max(-1).values - chosen <= FP32 * logits.abs().max()).all()


@torch.no_grad()
def test_packed_documents_equal_single_ones() -> None:
    made, ids, borders = model().to(DEVICE).eval(), tokens(1, 131).to(DEVICE), torch.tensor([0, 1, 70, 131])
    packed = made(ids, cu_seqlens=borders.to(DEVICE)).logits
    alone = [made(part).logits for part in ids.split(borders.diff().tolist(), dim=1)]
    assert error(packed, torch.cat(alone, dim=1)) <= FP32


@torch.no_grad()
@pytest.mark.parametrize(("backend", "options"), [("torch", {"fullgraph": True}), ("auto", {})], ids=["torch", "auto"])
def test_compiled_forward(backend: str, options: dict[str, Any]) -> None:
    """One graph on plait's own code; fla's kernels stand outside of the graphs."""
    made, ids = model("gated_deltanet", "attention").to(DEVICE).eval(), tokens(2, 65).to(DEVICE)
    torch.compiler.reset()
    with ops.backend(backend):
        expected = made(ids).logits
        found = torch.compile(made, **options)(ids).logits
    assert error(found, expected) <= FP32
