"""What users train with: gradient checkpointing, the Trainer of transformers, PEFT."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments
from transformers.modeling_layers import GradientCheckpointingLayer

from plait import catalog
from plait.errors import CacheError, OptionError
from plait.models import PlaitForCausalLM, count_pairs


def loss_and_gradients(model, ids: torch.Tensor, **options) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss = model(ids, labels=ids, **options).loss
    loss.backward()
    return {"loss": loss.detach(), **{name: parameter.grad.clone() for name, parameter in model.named_parameters()}}


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("mixer", catalog.names("mixer"))
def test_checkpointing_changes_no_gradient(build, tokens, mixer: str, reentrant: bool) -> None:
    model, ids = build(mixer, "hgrn", mixer, "hgrn2").train(), tokens(2, 7)
    expected = loss_and_gradients(model, ids)
    calls = []
    model.model.layers[2].attn.register_forward_hook(lambda *_: calls.append(1))
    assert all(isinstance(block, GradientCheckpointingLayer) for block in model.model.layers)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    found = loss_and_gradients(model, ids)
    assert len(calls) == 2  # forward, and again for the backward pass
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-12, atol=1e-12)
    model.gradient_checkpointing_disable()
    loss_and_gradients(model, ids)
    assert len(calls) == 3


def test_checkpointing_leaves_no_trace_of_the_second_run(build, tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids, seen = build("attention").train(), tokens(1, 4), []
    layer = model.model.layers[0].attn
    mix = layer.forward

    def counting(x, context):
        seen.append(context.update_running_state)
        context.add_loss("balance", x.new_tensor(1.0))
        return mix(x, context)

    monkeypatch.setattr(layer, "forward", counting)
    model.gradient_checkpointing_enable()
    loss_and_gradients(model, ids)
    assert seen == [True, False]
    model.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(OptionError, match="use_reentrant=True loses the gradients of losses"):
        loss_and_gradients(model, ids)


@pytest.mark.parametrize("way", ["once", "by the first layer"])
def test_checkpointing_and_what_layers_hand_to_each_other(build, tokens, monkeypatch, way: str) -> None:
    """A published tensor with a graph, made by the layer that finds none or by one that always makes it."""
    model, ids, seen = build("attention", "gated_deltanet", "attention").train(), tokens(2, 5), []

    def handing(layer):
        mix = layer.forward

        def forward(x, context):
            if not context.publishers("first") if way == "once" else layer.layer == 0:
                context.publish(layer.layer, "first", torch.tanh(layer.o_proj(x)) * x)
            seen.append(context.of(0, "first"))
            return mix(x, context) + context.of(0, "first")

        return forward

    for block in model.model.layers:
        monkeypatch.setattr(block.attn, "forward", handing(block.attn))
    expected = loss_and_gradients(model, ids)
    model.gradient_checkpointing_enable()
    seen.clear()
    loss = model(ids, labels=ids).loss
    model.zero_grad()
    loss.backward(retain_graph=True)
    once = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    assert all(torch.equal(once[name], expected[name]) for name in once)
    assert len(seen) == 6
    assert all(tensor is seen[0] for tensor in (*seen[1:3], *seen[3:5]))  # the layers after the first read its tensor
    loss.backward()
    assert all(torch.equal(p.grad, 2 * once[name]) for name, p in model.named_parameters())
    model.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(OptionError, match=r"the gradient of 'first', which layer 0 hands to later ones, at"):
        loss_and_gradients(model, ids)
    model.model.layers[0].gradient_checkpointing = False  # its tensor has a graph, which the next layer would cut off
    with pytest.raises(OptionError, match=r"the gradient of 'first', which layer 0 hands to later ones, at layer 1"):
        loss_and_gradients(model, ids)


@pytest.mark.parametrize("wrapped", [False, True], ids=["by the block", "by a wrapper around the block"])
def test_a_layer_that_computes_again_finds_what_it_found(build, tokens, monkeypatch, wrapped: bool) -> None:
    """Every layer reads what the layer before it published and publishes a value of its own under the same name."""
    model, ids = build("attention", "gated_deltanet", "attention").train(), tokens(2, 5)

    def handing(layer):
        mix = layer.forward

        def forward(x, context):
            found = [context.of(index, "value") for index in context.publishers("value")]
            context.publish(layer.layer, "value", torch.tanh(layer.o_proj(x)) * x)
            context.add_loss("square", x.square().mean(), 0.5)
            return mix(x, context) + sum(found)

        return forward

    for block in model.model.layers:
        monkeypatch.setattr(block.attn, "forward", handing(block.attn))
    expected = loss_and_gradients(model, ids)
    with count_pairs(model) as pairs:
        if wrapped:
            for index, block in enumerate(model.model.layers):
                model.model.layers[index] = Wrapped(block)
        else:
            model.gradient_checkpointing_enable()
        found = loss_and_gradients(model, ids)
    found = {name.replace(".block.", "."): gradient for name, gradient in found.items()}
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-12, atol=1e-12)
    assert pairs == {0: 2 * 2 * 15, 2: 2 * 2 * 15}  # rows, heads, pairs: each once


class Wrapped(torch.nn.Module):
    """A block that somebody else checkpoints."""

    def __init__(self, block) -> None:
        super().__init__()
        self.block = block
        self.layer_type = block.layer_type
        self.gradient_checkpointing = False

    def forward(self, *arguments):
        return checkpoint(self.block, *arguments, use_reentrant=False)


def test_an_unpublished_value_is_an_error(build, tokens, monkeypatch) -> None:
    model, ids = build("attention", "attention"), tokens(1, 3)
    monkeypatch.setattr(model.model.layers[0].attn, "forward", lambda x, context: x + context.of(1, "gate"))
    with pytest.raises(OptionError, match=r"Layer 1 has published no 'gate' in this pass, only \[\]"):
        model(ids)


def test_checkpointing_and_caches(build, tokens) -> None:
    model, ids = build("gated_deltanet").train(), tokens(1, 4)
    model.gradient_checkpointing_enable()
    assert model(ids).past_key_values is None
    with pytest.raises(CacheError, match="twice"):
        model(ids, use_cache=True)
    with torch.no_grad():
        assert model(ids, use_cache=True).past_key_values.get_seq_length() == 4


class Rows(Dataset):
    """Rows with unequal numbers of targets, so that averages of averages are wrong."""

    def __init__(self, tokens, key: str) -> None:
        self.ids, self.key = tokens(8, 6), key
        self.targets = self.ids.roll(-1, dims=1)
        for row in range(8):
            self.targets[row, : row % 5] = -100

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = {"input_ids": self.ids[index], "labels": self.ids[index].masked_fill(self.targets[index] == -100, -100)}
        return row if self.key == "labels" else row | {"shift_labels": self.targets[index]}


@pytest.mark.parametrize("key", ["labels", "shift_labels"])
def test_accumulation_in_the_trainer_is_exact(build, tokens, tmp_path: Path, key: str) -> None:
    """Two steps with four batches of 2 accumulated equal two steps with one batch of 8."""
    weights = []
    for batch, accumulate in ((8, 1), (2, 4)):
        model = build("gated_deltanet", "attention")
        arguments = TrainingArguments(
            output_dir=str(tmp_path / str(batch)),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulate,
            max_steps=2,
            learning_rate=0.01,
            optim="sgd",
            max_grad_norm=0,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            seed=3,
        )
        before = model.lm_head.weight.detach().clone()
        Trainer(model=model, args=arguments, train_dataset=Rows(tokens, key)).train()
        assert not torch.equal(model.lm_head.weight, before)
        weights.append(model.state_dict())
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=1e-9, rtol=0)


def test_training_goes_on_after_loading(build, tokens, tmp_path: Path) -> None:
    model, ids = build("attention", "hgrn2", dtype=torch.float32), tokens(2, 6)
    model.save_pretrained(tmp_path)
    again = PlaitForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())
    expected, found = loss_and_gradients(model.train(), ids), loss_and_gradients(again.train(), ids)
    for name, gradient in expected.items():  # weights at other addresses may give other last bits
        torch.testing.assert_close(found[name], gradient)


def test_lora(build, tokens, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is an optional extra")
    model, ids = build("gated_deltanet", "attention", dtype=torch.float32), tokens(2, 6)
    plain = model(ids).logits
    model.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "lm_head"], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, config)
    assert torch.equal(adapted(input_ids=ids).logits, plain)  # LoRA starts at zero
    optimiser = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):
        loss = adapted(input_ids=ids, labels=ids).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in trained} == {"q_proj", "v_proj", "lm_head"}
    after = adapted.eval()(input_ids=ids).logits
    assert not torch.allclose(after, plain, atol=1e-3)
    assert adapted.generate(input_ids=ids, max_new_tokens=2, do_sample=False).shape == (2, 8)
    adapted.save_pretrained(tmp_path / "adapter")
    base = PlaitForCausalLM.from_pretrained(tmp_path / "base")
    again = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(again(input_ids=ids).logits, after)


@pytest.mark.parametrize("reentrant", [False, True])
def test_lora_under_checkpointing(build, tokens, reentrant: bool) -> None:
    """Frozen embeddings give blocks inputs without gradients until PEFT's users ask for them."""
    peft = pytest.importorskip("peft", reason="peft is an optional extra")
    ids = tokens(2, 6)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "o_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(build("gated_deltanet", "hgrn2", "mla", "attention"), config).train()

    def gradients() -> dict[str, torch.Tensor]:
        adapted.zero_grad()
        adapted(input_ids=ids, labels=ids).loss.backward()
        return {name: p.grad.clone() for name, p in adapted.named_parameters() if p.requires_grad}

    expected = gradients()
    assert expected
    adapted.enable_input_require_grads()
    adapted.gradient_checkpointing_enable({"use_reentrant": reentrant})
    found = gradients()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-12, atol=1e-12)


def test_an_adapted_head_reaches_a_loss_made_in_pieces(build, tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    peft = pytest.importorskip("peft", reason="peft is an optional extra")
    from plait.models import loss as module

    config = peft.LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False)
    adapted = peft.get_peft_model(build("attention"), config)
    ids = tokens(2, 6)
    plain = adapted(input_ids=ids, labels=ids).loss
    monkeypatch.setattr(module, "PLAIN_BYTES", 0)
    torch.testing.assert_close(adapted(input_ids=ids, labels=ids).loss, plain)
