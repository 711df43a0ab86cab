"""Attention that becomes attention with a window: the same weights, another mask, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from conversion.small import teacher, tokens
from plait.conversion.sliding_window import SlidingWindow
from plait.conversion.student import build_student, converted_layers, hybrid_config, select_trained
from plait.errors import OptionError
from plait.mixers.attention import AttentionOptions
from plait.models import PlaitConfig, PlaitForCausalLM

SIZES = (4, 2, 8)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_window_as_long_as_the_text_is_the_teacher(kind: str) -> None:
    model, ids = teacher(kind), tokens(2, 15)
    student = build_student(model, SlidingWindow(window=15), [1], seed=0)
    assert student.config.layer_types == ["window", "attention", "window"]
    assert converted_layers(student) == [0, 2]
    torch.testing.assert_close(student(ids).logits, model(ids).logits)
    for name, value in model.state_dict().items():
        assert torch.equal(student.state_dict()[name], value), name


def test_a_query_sees_the_last_tokens_only() -> None:
    """The layer is the teacher's attention under a band of four tokens."""
    model = teacher()
    student = build_student(model, SlidingWindow(window=4), [1], seed=0)
    x = torch.randn(2, 11, 32, generator=torch.Generator().manual_seed(2))
    dense = model.model.layers[2].attn.effective_weights(x)
    found = student.model.layers[2].attn.effective_weights(x)
    distance = torch.arange(11)[:, None] - torch.arange(11)
    band = dense.masked_fill((distance < 0) | (distance >= 4), 0)
    torch.testing.assert_close(found, band / band.sum(-1, keepdim=True))


def test_only_layers_with_a_window_are_trained() -> None:
    student = build_student(teacher(), SlidingWindow(), [1], seed=0)
    for stage in ("align", "distil", "tune"):
        names = select_trained(student, SlidingWindow(), stage)
        assert {name.split(".attn.")[0] for name in names} == {"model.layers.0", "model.layers.2"}
        assert {name.split(".attn.")[1] for name in names} == {f"{one}_proj.weight" for one in "qkvo"}
    recipe = SlidingWindow(tune_steps=1, lora_rank=2)
    assert recipe.trains("tune", "model.layers.0.attn.q_proj.lora_A.weight", converted=True)
    assert not recipe.trains("tune", "model.layers.0.attn.q_proj.weight", converted=True)


def test_every_second_layer_stays_by_default() -> None:
    assert SlidingWindow.default_ratio == "1:1"


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(OptionError, match="window=0 must be at least 1"):
        SlidingWindow.parse("sliding_window", {"window": 0})
    config = PlaitConfig(vocab_size=16, hidden_size=32, layer_types=["attention"], mixers={"attention": {"window": 8}})
    with pytest.raises(OptionError, match="has a window already, of 8 tokens"):
        build_student(PlaitForCausalLM(config).eval(), SlidingWindow(), [], seed=0)


class Nameless(SlidingWindow):
    """A recipe that gives its layers the name of those that stay."""

    def twin(self, attention: AttentionOptions, sizes: tuple[int, int, int]) -> tuple[str, dict[str, Any]]:
        return "attention", super().twin(attention, sizes)[1]


def test_another_attention_needs_a_name_of_its_own() -> None:
    with pytest.raises(OptionError, match="Nameless names its mixer 'attention'"):
        hybrid_config(teacher(), Nameless(), [1])


def test_the_layer_has_its_options_and_no_others() -> None:
    name, options = SlidingWindow(window=5).twin(AttentionOptions(qk_norm=True, num_kv_heads=2), SIZES)
    assert (name, options["mixer"], options["window"]) == ("window", "attention", 5)
    assert options["qk_norm"]
    assert options["num_kv_heads"] == 2
