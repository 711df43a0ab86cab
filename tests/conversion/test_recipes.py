"""What HALO and Lizard take from the teacher, teach and leave alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from conversion.small import teacher, tokens
from plait.conversion.halo import Halo
from plait.conversion.lizard import OWN, Lizard
from plait.conversion.loop import Batch
from plait.conversion.losses import Alignment, Distillation, divergence
from plait.conversion.recipe import Recipe
from plait.conversion.student import build_student, converted_layers, select_trained
from plait.errors import OptionError
from plait.mixers import Context
from plait.models import PlaitConfig, PlaitForCausalLM

PLAIN = Halo(mixer="lightning", gate="none", hype=False)


def batch(rows: int = 3, length: int = 20) -> Batch:
    ids = tokens(rows, length)
    real = torch.ones_like(ids, dtype=torch.bool)
    real[0, 12:] = False
    return Batch({"input_ids": ids}, ids.masked_fill(~real, -100), real)


def alignment(recipe: Recipe, student: PlaitForCausalLM, model: PlaitForCausalLM) -> Alignment:
    return Alignment(
        model,
        student,
        converted_layers(student),
        after_projection=recipe.align_after_projection,
        relative=recipe.align_relative,
    )


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_lightning_twin_has_the_teachers_queries_keys_and_values(kind: str) -> None:
    model = teacher(kind)
    student = build_student(model, PLAIN, [0], seed=0)
    attention, twin = model.model.layers[1].attn, student.model.layers[1].attn
    x = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(2))
    q, k, v = attention.queries_keys_values(x, Context.plain(x))
    r = twin.recurrence(x, Context.plain(x))
    assert torch.equal(r.q, q)
    assert torch.equal(r.k, k.repeat_interleave(2, dim=2))
    assert torch.equal(r.v, v.repeat_interleave(2, dim=2))
    assert torch.equal(twin.o_proj.weight, attention.o_proj.weight)


@pytest.mark.parametrize("recipe", [Halo(), Lizard()], ids=["lightning", "lizard"])
def test_the_epsilon_of_the_norm_of_queries_and_keys_is_carried(recipe: Recipe) -> None:
    attention = {"num_heads": 4, "num_kv_heads": 2, "qk_norm": True, "qk_norm_eps": 1e-3}
    config = PlaitConfig(vocab_size=9, hidden_size=32, layer_types=["attention"] * 2, mixers={"attention": attention})
    student = build_student(PlaitForCausalLM(config), recipe, [0], seed=0)
    assert [(layer.attn.q_norm.eps, layer.attn.k_norm.eps) for layer in student.model.layers] == [(1e-3, 1e-3)] * 2


def test_gated_deltanet_twin_starts_from_the_teachers_projections() -> None:
    model = teacher()
    twin = build_student(model, Halo(mixer="gated_deltanet"), [0], seed=0).model.layers[2].attn
    attention = model.model.layers[2].attn
    assert torch.equal(twin.q_proj.weight, attention.q_proj.weight)
    heads = attention.k_proj.weight.view(2, 8, 32)
    assert torch.equal(twin.k_proj.weight.view(4, 8, 32), heads[[0, 0, 1, 1]])
    x = torch.randn(1, 6, 32)
    tap = twin.q_conv1d(x)[0]
    torch.testing.assert_close(tap, torch.nn.functional.silu(x))


def test_everything_else_is_the_teachers() -> None:
    model = teacher()
    student = build_student(model, Halo(), [1], seed=0)
    mine = student.state_dict()
    for name, value in model.state_dict().items():
        if ".attn." not in name or name.startswith("model.layers.1.attn."):
            assert torch.equal(mine[name], value), name
    assert student.config.layer_types == ["lightning", "attention", "lightning"]


def test_hype_moves_rotary_embeddings() -> None:
    student = build_student(teacher(), Halo(), [1], seed=0)
    specs = student.config.layers()
    assert [spec.options.rope_base for spec in specs] == [10000.0, None, 10000.0]
    assert specs[1].options.output_gate
    assert specs[1].options.logit_scaling == 362
    assert build_student(teacher(), PLAIN, [1], seed=0).config.layers()[1].options.logit_scaling is None
    assert build_student(teacher(), Halo(logit_scaling=None), [1], seed=0).config.layers()[1].options == replace(
        specs[1].options, logit_scaling=None
    )
    assert [spec.options.rope_base for spec in build_student(teacher(), PLAIN, [1], seed=0).config.layers()] == [
        1e4
    ] * 3


def test_a_gate_that_starts_at_one_changes_nothing() -> None:
    model = teacher()
    same = build_student(model, Halo(gate="identity", hype=False), [0, 1, 2], seed=0)
    ids = tokens(2, 15)
    assert torch.equal(same(ids).logits, model(ids).logits)
    fresh = build_student(model, Halo(gate="fresh", hype=False), [0, 1, 2], seed=0)
    assert not torch.allclose(fresh(ids).logits, model(ids).logits, atol=1e-2)


@pytest.mark.parametrize("recipe", [PLAIN, Halo(mixer="gated_deltanet"), Lizard()], ids=["lightning", "gdn", "lizard"])
def test_alignment_leaves_the_teacher_as_it_is(recipe: Recipe) -> None:
    """Its logits stay bit-equal while it is watched, and only what the recipe names gets gradients."""
    model = teacher()
    ids = tokens(2, 15)
    before = model(ids).logits
    student = build_student(model, recipe, [0], seed=0)
    trained = select_trained(student, recipe, "align")
    loss, details = alignment(recipe, student, model)(batch())
    assert set(details) == {"layer_1", "layer_2"}
    loss.backward()
    assert torch.equal(model(ids).logits, before)
    found = {name for name, p in student.named_parameters() if p.grad is not None}
    assert found == set(trained)
    assert all(name.startswith(("model.layers.1.attn.", "model.layers.2.attn.")) for name in found)
    assert not any(p.grad is not None for p in model.parameters())


def test_lizard_aligns_its_own_parameters_only() -> None:
    student = build_student(teacher(), Lizard(), [], seed=0)
    names = {name.split(".attn.")[1] for name in select_trained(student, Lizard(), "align")}
    assert names == set(OWN)
    assert {name.split(".attn.")[1] for name in select_trained(student, Lizard(), "tune")} == set(OWN)


def test_error_of_a_layer_by_hand() -> None:
    """The mean of squares over real tokens only, before the output projection for Lizard and after it for HALO."""
    model, given = teacher(), batch()
    for recipe in (Halo(gate="none", align_relative=False), Lizard(align_relative=False)):
        student = build_student(model, recipe, [0, 1], seed=0)
        _, details = alignment(recipe, student, model)(given)
        hidden = model.model(given.inputs["input_ids"], output_hidden_states=True).hidden_states[2]
        x = model.model.layers[2].attn_norm(hidden)
        outputs = []
        for network in (model, student):
            mixer = network.model.layers[2].attn
            seen: list[torch.Tensor] = []
            mixer.o_proj.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
            y = mixer(x, Context.plain(x))
            outputs.append(y if isinstance(recipe, Halo) else seen[0])
        expected = (outputs[0] - outputs[1])[given.real].square().mean().item()
        assert details["layer_2"] == pytest.approx(expected, rel=1e-5)


def test_relative_error_does_not_depend_on_the_size_of_a_layer() -> None:
    """An output of zeros has the relative error 1."""
    model = teacher()
    student = build_student(model, PLAIN, [0], seed=0)
    with torch.no_grad():
        for index in (1, 2):
            student.model.layers[index].attn.o_proj.weight.zero_()
    loss, _ = alignment(Halo(align_relative=True), student, model)(batch())
    assert loss.item() == pytest.approx(1.0)


def test_divergence_by_hand() -> None:
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])
    expected = 0.5 * torch.tensor(0.5 / 0.25).log() + 0.5 * torch.tensor(0.5 / 0.75).log()
    rows = torch.stack([p, q]).log()
    assert divergence(rows[:1], rows[1:]).item() == pytest.approx(expected.item(), abs=1e-6)
    assert divergence(rows, rows).item() == 0


def test_the_teacher_is_at_no_distance_from_itself() -> None:
    model = teacher()
    same = build_student(model, PLAIN, [0, 1, 2], seed=0)
    assert Distillation(model, same)(batch())[0].item() == pytest.approx(0, abs=1e-6)
    other = build_student(model, PLAIN, [0], seed=0)
    assert Distillation(model, other)(batch())[0].item() > 1e-3


def test_only_tokens_with_a_target_are_distilled() -> None:
    model, ids = teacher(), tokens(1, 8)
    other = build_student(model, PLAIN, [0], seed=0)
    targets = torch.full_like(ids, -100)
    targets[0, 5] = 1
    found = Distillation(model, other)(Batch({"input_ids": ids}, targets, torch.ones_like(ids, dtype=torch.bool)))[0]
    expected = divergence(model(ids).logits[:, 5], other(ids).logits[:, 5])
    torch.testing.assert_close(found, expected)


def test_lizard_with_all_layers_kept_is_the_teacher() -> None:
    model, ids = teacher(), tokens(2, 15)
    assert torch.equal(build_student(model, Lizard(), [0, 1, 2], seed=0)(ids).logits, model(ids).logits)


def test_lizard_leaves_projections_bit_identical() -> None:
    """500 steps of its own parameters bring the error of a toy layer below a tenth; q, k, v and o stay."""
    model = teacher(layers=1)
    with torch.no_grad():
        for name in ("q_proj", "k_proj"):
            model.model.layers[0].attn.get_submodule(name).weight.mul_(0.3)  # attention that is not too sharp
    recipe = Lizard(align_relative=True, gate_bias=3.0, window=4, feature_dim=16)
    student = build_student(model, recipe, [], seed=0)
    loss = alignment(recipe, student, model)
    select_trained(student, recipe, "align")
    optimiser = torch.optim.Adam([p for p in student.parameters() if p.requires_grad], lr=1e-2)
    given = batch(rows=4, length=16)
    first = loss(given)[0].item()
    last = first
    for _ in range(500):
        optimiser.zero_grad()
        value = loss(given)[0]
        value.backward()
        optimiser.step()
        last = value.item()
        if last < first / 10:
            break
    assert last < first / 10
    for name, value in model.model.layers[0].attn.state_dict().items():
        assert torch.equal(student.model.layers[0].attn.state_dict()[name], value)


def test_grouped_teacher_and_repeated_teacher_give_the_same_lizard() -> None:
    model = teacher()
    lizard = build_student(model, Lizard(window=4), [], seed=0)
    sizes = {
        name: getattr(model.config, name) for name in ("vocab_size", "hidden_size", "intermediate_size", "norm_eps")
    }
    mixers = {"attention": {"num_heads": 4, "head_dim": 8}}
    wide = PlaitForCausalLM(PlaitConfig(layer_types=["attention"] * 3, mixers=mixers, **sizes)).eval()
    weights = model.state_dict()
    for name in [name for name in weights if name.endswith(("k_proj.weight", "v_proj.weight"))]:
        weights[name] = weights[name].view(2, 8, 32).repeat_interleave(2, dim=0).reshape(32, 32)
    wide.load_state_dict(weights)
    ids = tokens(2, 15)
    torch.testing.assert_close(build_student(wide, Lizard(window=4), [], seed=0)(ids).logits, lizard(ids).logits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"qkv_bias": True}, r"qkv_bias=True, which the recipe cannot carry over"),
        ({"window": 8}, r"window=8"),
    ],
)
@pytest.mark.parametrize("recipe", [Halo(), Lizard()], ids=["halo", "lizard"])
def test_attention_that_cannot_be_carried_over(recipe: Recipe, options: dict[str, Any], message: str) -> None:
    config = PlaitConfig(vocab_size=16, hidden_size=32, layer_types=["attention"], mixers={"attention": options})
    with pytest.raises(OptionError, match=message):
        build_student(PlaitForCausalLM(config).eval(), recipe, [], seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"align_stepss": 3}, r"no option 'align_stepss'. Did you mean 'align_steps'"),
        ({"align_steps": -1}, r"align_steps=-1 must be 0 or more"),
        ({"distil_rates": [1e-4, 1e-3]}, r"give the highest rate, then the last one"),
        ({"mixer": "mamba"}, r"mixer='mamba'"),
        ({"batch_size": 0}, r"batch_size=0 must be at least 1"),
        ({"preset": "papers"}, r"no preset 'papers'. Did you mean 'paper'"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Halo.parse("halo", options)


def test_published_budgets() -> None:
    halo, lizard = Halo.parse("halo", {"preset": "paper"}), Lizard.parse("lizard", {"preset": "paper"})
    assert halo.align_steps * halo.batch_size * 512 == pytest.approx(0.33e9, rel=0.01)
    assert lizard.align_steps * lizard.batch_size * 2048 == pytest.approx(20e6, rel=0.01)
    training = halo.training("align")
    assert (training.learning_rate, training.final_fraction) == (1e-3, pytest.approx(0.01))
    assert lizard.lora_rank == 8
    assert lizard.lora_alpha == 16
