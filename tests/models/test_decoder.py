"""Oracles 2, 4, 7, 8, 11 and 12 of 2507.06457's card, on tiny models in fp64."""

from __future__ import annotations

import copy

import pytest
import torch

from plait import catalog
from plait.errors import CacheError, OptionError
from plait.mixers.context import Context
from plait.models import PlaitCache, PlaitConfig, PlaitForCausalLM, layer_plan

LINEAR = [name for name in catalog.names("mixer") if name != "attention"]


def test_a_hybrid_with_every_layer_full_is_the_transformer(build, tokens) -> None:
    transformer = build("attention", "attention", "attention")
    hybrid = build(*layer_plan("gated_deltanet", [0, 1, 2], 3))
    hybrid.load_state_dict(transformer.state_dict())
    assert torch.equal(hybrid(tokens(2, 9)).logits, transformer(tokens(2, 9)).logits)


def test_a_hybrid_without_full_layers_is_the_pure_model(build, tokens) -> None:
    pure, hybrid = build("gated_deltanet", "gated_deltanet"), build(*layer_plan("gated_deltanet", [], 2))
    hybrid.load_state_dict(pure.state_dict())
    assert torch.equal(hybrid(tokens(2, 9)).logits, pure(tokens(2, 9)).logits)


@pytest.mark.parametrize("ratio", ["pure", "3:1", "6:1"])
@pytest.mark.parametrize("mixer", LINEAR)
def test_cached_equals_uncached(build, tokens, mixer: str, ratio: str) -> None:
    """A prefix of 37 tokens, split anywhere, then 20 steps, equal one pass."""
    layers = {"pure": 2, "3:1": 4, "6:1": 7}[ratio]
    model = build(*layer_plan(mixer, ratio, layers))
    ids = tokens(1, 57)
    with torch.no_grad():
        whole = model(ids).logits
        for pieces in ([37], [1, 36], [5, 32], [36, 1]):
            cache = PlaitCache(model.config)
            parts = [model(x, past_key_values=cache).logits for x in ids.split([*pieces, *[1] * 20], dim=1)]
            torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-9, rtol=0)


@pytest.mark.parametrize("mixer", catalog.names("mixer"))
def test_no_token_reaches_into_the_past(build, tokens, mixer: str) -> None:
    model, ids = build(mixer, "attention", mixer), tokens(1, 12)
    before = model(ids).logits
    for t in (0, 5, 11):
        changed = ids.clone()
        changed[0, t] = (changed[0, t] + 1) % 60
        after = model(changed).logits
        assert torch.equal(before[:, :t], after[:, :t])
        assert not torch.equal(before[:, t], after[:, t])


def test_windows_bound_what_is_seen(build, tokens) -> None:
    """With linear mixers silenced, a token depends on the n_full (w - 1) tokens before it and no older one."""
    window, full = 3, 2
    model = build(
        "gated_deltanet", "attention", "gated_deltanet", "attention", mixers={"attention": {"window": window}}
    )
    with torch.no_grad():
        for index in (0, 2):
            model.model.layers[index].attn.o_proj.weight.zero_()
    ids = tokens(1, 12)
    before = model(ids).logits[0, -1]
    for distance in range(1, 12):
        changed = ids.clone()
        changed[0, -1 - distance] = (changed[0, -1 - distance] + 1) % 60
        same = torch.equal(model(changed).logits[0, -1], before)
        assert same is (distance > full * (window - 1))


@pytest.mark.parametrize("mixer", ["hgrn", "hgrn2"])
def test_lower_bounds_keep_a_row_for_every_layer(build, tokens, mixer: str) -> None:
    model = build(mixer, "attention", mixer, mixer)
    (bounds,) = model.model.shared[mixer].parameters()
    assert bounds.shape[0] == 4
    model(tokens(2, 9), labels=tokens(2, 9)).loss.backward()
    assert (bounds.grad.abs().sum(1) > 0).all()  # the row of the attention layer through the softmax
    share = bounds.double().softmax(0)
    assert ((share.cumsum(0) - share[0]).diff(dim=0) >= 0).all()


def test_lower_bounds_of_several_widths_stand_side_by_side(build, tokens) -> None:
    """HGRN, HGRN2 and further settings of them each have bounds of their own."""
    mixers = {
        "wide": {"mixer": "hgrn", "expand_ratio": 2},
        "small": {"mixer": "hgrn2", "num_heads": 2, "expand_ratio": 4},
    }
    model, ids = build("hgrn", "wide", "hgrn2", "small", "hgrn", mixers=mixers), tokens(1, 9)
    bounds = {name: tuple(p.shape) for name, p in model.named_parameters() if name.endswith("lower_bounds")}
    assert bounds == {
        "model.shared.hgrn.hgrn_lower_bounds": (5, 16),
        "model.shared.wide.hgrn_lower_bounds": (5, 32),
        "model.shared.hgrn2.hgrn2_lower_bounds": (5, 16),
        "model.shared.small.hgrn2_lower_bounds": (5, 8),
    }
    model(ids, labels=ids).loss.backward()
    assert all(model.get_parameter(name).grad.any() for name in bounds)


def test_positions_are_relative_and_offsets_matter(build, tokens) -> None:
    model, ids = build("attention", "attention"), tokens(2, 9)
    plain = model(ids).logits
    positions = torch.arange(9)[None]
    torch.testing.assert_close(model(ids, position_ids=positions + 100).logits, plain, atol=1e-5, rtol=0)
    cache = PlaitCache(model.config)
    model(ids[:, :5], past_key_values=cache)
    wrong = model(ids[:, 5:], past_key_values=cache, position_ids=positions[:, 5:] + 1).logits
    assert (wrong - plain[:, 5:]).abs().max() > 1e-3


def test_block_is_what_the_card_says(build, tokens) -> None:
    """h = x + Mixer(RMS(x)), y = h + W_down(silu(W_gate RMS(h)) * W_up RMS(h)), written out."""
    model = build("attention")
    states = model(tokens(1, 5), output_hidden_states=True).hidden_states
    block, x = model.model.layers[0], states[0]

    def rms(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight

    h = x + block.attn(rms(x, block.attn_norm.weight), Context.plain(x))
    inner, mlp = rms(h, block.mlp_norm.weight), block.mlp
    gate = inner @ mlp.gate_proj.weight.T
    y = h + (gate * gate.sigmoid() * (inner @ mlp.up_proj.weight.T)) @ mlp.down_proj.weight.T
    torch.testing.assert_close(states[1], rms(y, model.model.norm.weight))


def test_hidden_states(build, tokens) -> None:
    model, ids = build("gated_deltanet", "attention"), tokens(2, 6)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]])
    output = model(ids, attention_mask=mask, output_hidden_states=True)
    assert len(output.hidden_states) == 3
    assert torch.equal(output.hidden_states[0], model.get_input_embeddings()(ids))
    assert torch.equal(model.lm_head(output.hidden_states[-1]), output.logits)
    # the middle one too stands where the user's tokens stand
    alone = model(ids[:1, :3], output_hidden_states=True).hidden_states[1]
    torch.testing.assert_close(output.hidden_states[1][0, :3], alone[0])


def test_logits_to_keep_and_embeddings(build, tokens) -> None:
    model, ids = build("gated_deltanet"), tokens(2, 6)
    logits = model(ids).logits
    torch.testing.assert_close(model(ids, logits_to_keep=2).logits, logits[:, -2:])
    torch.testing.assert_close(model(ids, logits_to_keep=torch.tensor([0, 3])).logits, logits[:, [0, 3]])
    assert torch.equal(model(inputs_embeds=model.get_input_embeddings()(ids)).logits, logits)


def test_tuple_output(build, tokens) -> None:
    model, ids = build("gated_deltanet"), tokens(1, 4)
    loss, logits = model(ids, labels=ids, return_dict=False)
    assert torch.equal(loss, model(ids, labels=ids).loss)
    assert logits.shape == (1, 4, 61)
    assert isinstance(model.model(ids, return_dict=False), tuple)


def test_cache_is_off_in_training_and_with_targets(build, tokens) -> None:
    model, ids = build("attention"), tokens(1, 4)
    assert model(ids).past_key_values.get_seq_length() == 4
    assert model(ids, use_cache=False).past_key_values is None
    assert model(ids, labels=ids).past_key_values is None
    assert model.train()(ids).past_key_values is None


def test_phase_of_a_forward(build, tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids, seen = build("attention"), tokens(1, 4), []
    block = model.model.layers[0]
    mix = block.attn.forward
    monkeypatch.setattr(block.attn, "forward", lambda x, context: (seen.append(context.phase), mix(x, context))[1])
    cache = PlaitCache(model.config)
    model(ids[:, :1], past_key_values=cache)
    model(ids[:, 1:3], past_key_values=cache)
    model(ids[:, 3:], past_key_values=cache)
    model.train()(ids)
    assert seen == ["prefill", "prefill", "decode", "train"]


def test_auxiliary_losses_are_added(build, tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = build("attention", "attention"), tokens(1, 4)
    plain = model(ids, labels=ids).loss
    for block in model.model.layers:

        def with_loss(x, context, mix=block.attn.forward):
            context.add_loss("balance", torch.tensor(0.25), weight=0.5)
            context.add_loss("size", torch.tensor(3.0))
            return mix(x, context)

        monkeypatch.setattr(block.attn, "forward", with_loss)
    evaluated = model(ids, labels=ids)
    assert torch.equal(evaluated.loss, plain)
    assert (evaluated.losses, evaluated.aux_loss) == (None, None)
    trained = model.train()(ids, labels=ids)
    torch.testing.assert_close(trained.loss, plain + 6.25)
    assert {name: float(value) for name, value in trained.losses.items()} == {"balance": 0.5, "size": 6.0}
    assert float(trained.aux_loss) == 6.25
    accumulated = model(ids, labels=ids, num_items_in_batch=12)  # of which these are 3 targets
    torch.testing.assert_close(accumulated.loss, (plain + 6.25) / 4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, OptionError, "exactly one"),
        ({"input_ids": torch.ones(1, 3).long(), "inputs_embeds": torch.ones(1, 3, 16)}, OptionError, "exactly one"),
        ({"input_ids": torch.ones(1, 3).long(), "head_mask": 1}, OptionError, "head_mask"),
        ({"input_ids": torch.ones(1, 3).long(), "labels": torch.ones(1, 4).long()}, OptionError, r"\(1, 4\)"),
        ({"input_ids": torch.ones(1, 3).long(), "attention_mask": torch.ones(1, 2)}, OptionError, r"\(1, 3\)"),
        ({"input_ids": torch.ones(1, 3).long(), "attention_mask": torch.ones(1, 1, 3, 3)}, OptionError, r"\(1, 3\)"),
        ({"input_ids": torch.ones(1, 3).long(), "past_key_values": []}, CacheError, "PlaitCache"),
    ],
)
def test_wrong_arguments(build, arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build("attention")(**arguments)


def test_initialisation(build) -> None:
    config = PlaitConfig(layer_types=["gated_deltanet", "attention"], hidden_size=64, initializer_range=0.05)
    torch.manual_seed(3)
    model = PlaitForCausalLM(config)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        elif name.endswith(".weight"):
            assert 0.04 < parameter.std() < 0.06, name
    decay = model.model.layers[0].attn
    assert (decay.A_log.exp() <= 16).all()
    assert not torch.equal(decay.A_log, torch.zeros_like(decay.A_log))
    torch.manual_seed(3)
    again = PlaitForCausalLM(config)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    config.embedding_range = 0.5
    louder = PlaitForCausalLM(config)
    assert 0.4 < louder.model.embeddings.weight.std() < 0.6
    assert 0.04 < louder.lm_head.weight.std() < 0.06


def spreads(**options) -> dict[str, float]:
    torch.manual_seed(0)
    mixers = {"hgrn2": {"use_short_conv": True}}
    config = PlaitConfig(
        vocab_size=512, hidden_size=100, intermediate_size=400, layer_types=["hgrn2"] * 8, mixers=mixers, **options
    )
    return {name: float(p.detach().std()) for name, p in PlaitForCausalLM(config).named_parameters() if p.dim() > 1}


@pytest.mark.parametrize("tied", [False, True])
def test_fan_in_starts_each_matrix_at_the_spread_of_its_inputs(tied) -> None:
    measured = spreads(initialization="fan_in", tie_word_embeddings=tied)
    layer = "model.layers.3."
    assert measured["model.embeddings.weight"] == pytest.approx(0.1 if tied else 1.0, rel=0.05)
    assert measured[layer + "attn.f_proj.weight"] == pytest.approx(0.1, rel=0.05)
    assert measured[layer + "mlp.down_proj.weight"] == pytest.approx(0.05, rel=0.05)
    assert measured[layer + "attn.q_conv1d.weight"] == pytest.approx(0.02, rel=0.15)
    if not tied:
        assert measured["lm_head.weight"] == pytest.approx(0.02, rel=0.05)


def test_depth_scaled_shrinks_what_writes_into_the_residual_stream_alone() -> None:
    plain, scaled = spreads(), spreads(initialization="depth_scaled")
    for name in plain:
        shrunk = name.endswith(("o_proj.weight", "down_proj.weight"))
        expected = plain[name] / 4 if shrunk else plain[name]
        assert scaled[name] == pytest.approx(expected, rel=0.15), name


def test_an_unknown_initialization_is_named() -> None:
    with pytest.raises(OptionError, match=r"initialization='fan-in'.*fan_in"):
        PlaitConfig(initialization="fan-in")


def test_deepcopy_is_independent(build, tokens) -> None:
    model, ids = build("hgrn2", "attention"), tokens(1, 5)
    twin = copy.deepcopy(model)
    before = model(ids).logits
    with torch.no_grad():
        twin.lm_head.weight.zero_()
    assert torch.equal(model(ids).logits, before)
    assert not twin(ids).logits.any()


def test_bf16(build, tokens) -> None:
    model, ids = build("gated_deltanet", "attention"), tokens(2, 9)
    exact = model(ids).logits
    logits = copy.deepcopy(model).to(torch.bfloat16)(ids).logits
    assert logits.dtype == torch.bfloat16
    assert (logits.double() - exact).abs().max() < 0.05 * exact.abs().max()
