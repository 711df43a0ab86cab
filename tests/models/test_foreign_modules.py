"""Projections that are more than a matrix (adapters, quantised, on disk): a mixer acts through the module itself."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from plait import catalog
from plait.mixers.gated_deltanet import GatedDeltaNet
from plait.models import PlaitForCausalLM

MIXERS = catalog.names("mixer")


class Curved(nn.Module):
    """A projection plus something that no matrix can say."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        return y + 0.3 * torch.tanh(y) + 0.1


def wrap_each_linear(module: nn.Module, wrap: Callable[[nn.Linear], nn.Module]) -> int:
    count = 0
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear):
            setattr(module, name, wrap(child))
            count += 1
        else:
            count += wrap_each_linear(child, wrap)
    return count


def decoded(model: Any, ids: Tensor) -> Tensor:
    """Logits of a prompt of 5 tokens, then token by token."""
    out = model(input_ids=ids[:, :5], use_cache=True)
    logits = [out.logits]
    for t in range(5, ids.shape[1]):
        out = model(input_ids=ids[:, t : t + 1], past_key_values=out.get("cache", out.get("past_key_values")))
        logits.append(out.logits)
    return torch.cat(logits, dim=1)


@torch.no_grad()
def full_and_decoded(model: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    return model(input_ids=ids, use_cache=False).logits, decoded(model, ids)


@pytest.mark.parametrize("mixer", MIXERS)
def test_wrapped_projections_act_in_decoding(build, tokens, mixer: str) -> None:
    model, ids = build(mixer, mixer), tokens(2, 9)
    plain, _ = full_and_decoded(model, ids)
    assert wrap_each_linear(model.model.layers[1].attn, Curved) >= 3
    full, steps = full_and_decoded(model, ids)
    assert (full - plain).abs().max() > 1e-3
    torch.testing.assert_close(steps, full)


@pytest.mark.parametrize("mixer", MIXERS)
def test_hooks_on_projections_act_in_decoding(build, tokens, mixer: str) -> None:
    model, ids = build(mixer), tokens(1, 9)
    for module in model.model.layers[0].attn.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda module, inputs, y: 1.3 * y)
    full, steps = full_and_decoded(model, ids)
    torch.testing.assert_close(steps, full)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("mixer", MIXERS)
def test_dynamically_quantised_models_decode(build, tokens, mixer: str) -> None:
    model, ids = build(mixer, mixer, dtype=torch.float32, hidden_size=32), tokens(1, 9)
    plain, _ = full_and_decoded(model, ids)
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
    assert not any(type(module) is nn.Linear for module in quantised.modules())
    full, steps = full_and_decoded(quantised, ids)
    # inputs are rounded with the largest of those at hand, which differs between one token and many
    spread = plain.std()
    assert 0 < (full - plain).std() < 0.25 * spread
    assert (steps - full).std() < 0.25 * spread


@pytest.mark.parametrize("mixer", MIXERS)
def test_lora_on_every_projection(build, tokens, mixer: str) -> None:
    peft = pytest.importorskip("peft", reason="peft is an optional extra")
    model, ids = build(mixer, "attention"), tokens(2, 9)
    plain, _ = full_and_decoded(model, ids)
    config = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    adapted = peft.get_peft_model(model, config).eval()
    full, steps = full_and_decoded(adapted, ids)
    assert (full - plain).abs().max() > 1e-3
    torch.testing.assert_close(steps, full)
    merged, merged_steps = full_and_decoded(adapted.merge_and_unload(), ids)
    torch.testing.assert_close(merged, full)
    torch.testing.assert_close(merged_steps, full)


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("where", ["disk", "layers on disk", "auto"])
def test_weights_on_disk(build, tokens, tmp_path: Path, mixer: str, where: str) -> None:
    model, ids = build(mixer, mixer, "attention", dtype=torch.float32), tokens(2, 7)
    model.save_pretrained(tmp_path / "model")
    expected, _ = full_and_decoded(model, ids)
    options: dict[str, Any] = {"device_map": "auto", "max_memory": {"cpu": 9_000}}
    if where == "disk":
        options = {"device_map": {"": "disk"}}
    if where == "layers on disk":
        places = {f"model.{name}": "cpu" for name, _ in model.model.named_children() if name != "layers"}
        layers = {"model.layers.0": "disk", "model.layers.1": "cpu", "model.layers.2": "disk"}
        options = {"device_map": {**places, **layers, "lm_head": "cpu"}}
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model", offload_folder=tmp_path / "off", **options).eval()
    assert "disk" in again.hf_device_map.values()
    full, steps = full_and_decoded(again, ids)
    torch.testing.assert_close(full, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(steps, expected, atol=1e-5, rtol=1e-5)


def missing_one_at_a_time(model: PlaitForCausalLM, folder: Path) -> None:
    """Each tensor of a mixer left out of the file in turn: every other one is what the file holds."""
    model.save_pretrained(folder)
    file = folder / "model.safetensors"
    weights = load_file(file)
    for name in [name for name in weights if ".attn." in name]:
        save_file({key: value for key, value in weights.items() if key != name}, file, metadata={"format": "pt"})
        again = PlaitForCausalLM.from_pretrained(folder).state_dict()
        assert [key for key, value in again.items() if not torch.equal(value, weights[key])] == [name]


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_missing_parameter_changes_no_other(build, tmp_path: Path, mixer: str) -> None:
    missing_one_at_a_time(build(mixer, dtype=torch.float32), tmp_path)


def test_a_missing_parameter_changes_no_buffer(build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a codebook that learns without gradients."""
    create, initialise = GatedDeltaNet.__init__, GatedDeltaNet.init_parameters

    def with_buffer(self: GatedDeltaNet, *arguments: Any) -> None:
        create(self, *arguments)
        self.register_buffer("codebook", torch.zeros(4))

    def and_buffer(self: GatedDeltaNet, std: float) -> None:
        initialise(self, std)
        for buffer in self.buffers(recurse=False):  # none yet, while it is made
            buffer.zero_()

    monkeypatch.setattr(GatedDeltaNet, "__init__", with_buffer)
    monkeypatch.setattr(GatedDeltaNet, "init_parameters", and_buffer)
    model = build("gated_deltanet", dtype=torch.float32)
    model.model.layers[0].attn.codebook.fill_(7.0)
    missing_one_at_a_time(model, tmp_path)
