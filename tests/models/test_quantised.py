"""Weights of 8 and 4 bits (torchao, bitsandbytes): the model computes with what they stand for, also step by step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from models.test_foreign_modules import full_and_decoded
from plait import catalog

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

MIXERS = catalog.names("mixer")


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def check(
    build: Callable[..., Any], ids: torch.Tensor, quantised: Any, plain: Any, dense: dict[str, torch.Tensor]
) -> None:
    """Logits equal those of the plain model with the weights that the quantised ones stand for."""
    reference, _ = full_and_decoded(plain, ids)
    for name, weight in dense.items():
        with torch.no_grad():
            plain.get_submodule(name).weight.copy_(weight)
    expected, _ = full_and_decoded(plain, ids)
    assert (expected - reference).std() > 1e-3 * reference.std()
    for found in full_and_decoded(quantised, ids):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(greedy(quantised, ids), greedy(plain, ids))


def greedy(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0)


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("kind", ["Int8WeightOnlyConfig", "Float8WeightOnlyConfig"])
def test_torchao(build, tokens, mixer: str, kind: str) -> None:
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed: pip install torchao")
    plain, quantised = (build(mixer, mixer, dtype=torch.float32, hidden_size=32) for _ in range(2))
    quantization.quantize_(quantised, getattr(quantization, kind)())
    layers = linear_layers(quantised)
    assert len(layers) > 8
    check(build, tokens(2, 9), quantised, plain, {name: x.weight.dequantize() for name, x in layers.items()})


def test_torchao_through_transformers(build, tokens, tmp_path: Path) -> None:
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed: pip install torchao")
    from transformers import TorchAoConfig

    plain, ids = build("mla", "hgrn", "attention", dtype=torch.float32, hidden_size=32), tokens(2, 9)
    plain.save_pretrained(tmp_path / "plain")
    settings = TorchAoConfig(quantization.Int8WeightOnlyConfig())
    quantised = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", quantization_config=settings).eval()
    before, steps = full_and_decoded(quantised, ids)
    torch.testing.assert_close(steps, before, atol=1e-4, rtol=1e-4)
    quantised.save_pretrained(tmp_path / "small")
    after, _ = full_and_decoded(AutoModelForCausalLM.from_pretrained(tmp_path / "small").eval(), ids)
    torch.testing.assert_close(after, before)
    assert 0 < (before - full_and_decoded(plain, ids)[0]).std() < 0.25 * before.std()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("mixer", MIXERS)
def test_bitsandbytes(build, tokens, tmp_path: Path, mixer: str, bits: int) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install bitsandbytes")
    from transformers import BitsAndBytesConfig

    sizes = {"dtype": torch.float32, "hidden_size": 64, "intermediate_size": 64}
    plain, ids = build(mixer, "attention", **sizes), tokens(2, 9)
    plain.save_pretrained(tmp_path)
    settings = BitsAndBytesConfig(
        load_in_4bit=bits == 4, load_in_8bit=bits == 8, bnb_4bit_compute_dtype=torch.float32,
        llm_int8_threshold=0.0,  # else what counts as an outlier depends on the other tokens
    )  # fmt: skip
    quantised = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=settings, device_map="cpu").eval()
    layers = {name: x for name, x in linear_layers(quantised).items() if type(x) is not nn.Linear}
    assert len(layers) > 8
    if bits == 4:
        for layer in layers.values():  # the way of every processor: that of AVX512-BF16 rounds, and wants wide layers
            layer.support_avx512bf16_for_cpu = False
        unpack = bitsandbytes.functional.dequantize_4bit
        dense = {name: unpack(x.weight.data, x.weight.quant_state) for name, x in layers.items()}
        check(build, ids, quantised, plain, dense)
    else:  # inputs are rounded too
        full, steps = full_and_decoded(quantised, ids)
        torch.testing.assert_close(steps, full, atol=1e-4, rtol=1e-4)
        before = full_and_decoded(plain, ids)[0]
        assert 0 < (full - before).std() < 0.25 * before.std()
