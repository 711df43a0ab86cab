"""The auto-encoder: the row from its last state alone, its loss, saving and loading."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from numerics import assert_same_outputs
from plait.data.tasks.base import accuracy
from plait.data.tasks.mad import Compression
from plait.errors import OptionError
from plait.models import PlaitConfig, PlaitForCausalLM, load
from plait.models.heads import AutoencoderForCompression, AutoencoderHead, position_code


def small(**options: object) -> AutoencoderForCompression:
    torch.manual_seed(0)
    config = PlaitConfig(vocab_size=16, hidden_size=32, layer_types=["gated_deltanet", "attention"], **options)  # type: ignore[arg-type]
    return AutoencoderForCompression(config)


def batch(rows: int, length: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    task = Compression(length=length)
    inputs, targets = task.generate(np.random.default_rng(0), rows)
    return torch.from_numpy(inputs).long(), torch.from_numpy(targets).long()


def test_position_code_by_hand() -> None:
    code = position_code(3, 4, torch.zeros(1, dtype=torch.float64))
    assert code.dtype == torch.float64
    expected = [[np.sin(t), np.sin(t / 1e4), np.cos(t), np.cos(t / 1e4)] for t in range(3)]
    torch.testing.assert_close(code, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)
    assert position_code(5, 7, torch.zeros(1)).shape == (5, 7)


def test_head_is_an_mlp_of_encoding_and_position() -> None:
    head = AutoencoderHead(32, 16, 1e-6)
    encoding = torch.randn(3, 32)
    logits = head(encoding, 5)
    assert logits.shape == (3, 5, 16)
    first, second, out = (layer for layer in head.mlp if isinstance(layer, torch.nn.Linear))
    x = encoding[1] + position_code(5, 32, encoding)[4]
    for layer in (first, second):
        x = F.gelu(layer(F.rms_norm(x, (32,), eps=1e-6)))
    torch.testing.assert_close(logits[1, 4], out(F.rms_norm(x, (32,), eps=1e-6)))
    assert (first.weight.shape, out.weight.shape) == ((32, 32), (16, 32))


def test_only_the_last_state_is_read() -> None:
    model = small().eval()
    ids, _ = batch(2)
    with torch.no_grad():
        hidden = model.model(ids).last_hidden_state
        torch.testing.assert_close(model(ids).logits, model.head(hidden[:, -1], 8))
        changed = ids.clone()
        changed[:, 0] = (changed[:, 0] + 1) % 15
        assert (model(changed).logits != model(ids).logits).any(dim=2).all()  # each token reaches every position


def test_loss_is_that_of_the_targets() -> None:
    model = small().double()
    ids, targets = batch(4)
    output = model(ids, shift_labels=targets, use_cache=False)
    expected = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), ids[:, :-1].flatten())
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(model(ids, shift_labels=targets, num_items_in_batch=7).loss, expected * 28 / 7)
    assert model(ids).loss is None
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_arguments_that_do_not_fit() -> None:
    ids, targets = batch(2)
    with pytest.raises(OptionError, match="shift_labels has shape"):
        small()(ids, shift_labels=targets[:, 1:])
    with pytest.raises(OptionError, match="no argument 'attention_mask'"):
        small()(ids, attention_mask=torch.ones_like(ids))


def test_saving_and_loading(tmp_path: Path) -> None:
    model = small(tie_word_embeddings=True).eval()
    model.save_pretrained(tmp_path)
    again, tokenizer = load(tmp_path)
    assert tokenizer is None
    assert type(again) is AutoencoderForCompression
    assert not again.training
    ids, _ = batch(2)
    assert_same_outputs(model(ids).logits, again(ids).logits)
    PlaitForCausalLM(model.config).save_pretrained(tmp_path / "lm")
    assert type(load(tmp_path / "lm")[0]) is PlaitForCausalLM
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["AutoencoderForCompression"]
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(OptionError, match=r"config\.json is not JSON"):
        load(tmp_path)


def test_it_learns_to_compress() -> None:
    """Three tokens of three kinds. Their most common kind alone, without their places, would score 17/27."""
    task = Compression(vocab_size=4, length=4)
    torch.manual_seed(0)
    config = PlaitConfig(vocab_size=4, hidden_size=64, layer_types=["gated_deltanet"], embedding_range=1.0)
    model = AutoencoderForCompression(config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    rng = np.random.default_rng(0)
    for _ in range(100):
        inputs, targets = (torch.from_numpy(part).long() for part in task.generate(rng, 64))
        optimiser.zero_grad()
        model(inputs, shift_labels=targets).loss.backward()
        optimiser.step()
    inputs, targets = (torch.from_numpy(part).long() for part in task.generate(rng, 500))
    assert accuracy(model(inputs).logits, targets) > 0.75
