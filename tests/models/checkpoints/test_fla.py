"""Checkpoints of flash-linear-attention: keys and fields as it writes them, every family there and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file

from models.checkpoints.layouts import BIASES, COMMON, FIELDS, FULL, FULL_FIELDS, LINEAR, MIXER_KEYS, OPTIONS
from numerics import assert_same_outputs
from plait.errors import OptionError
from plait.models import PlaitConfig, PlaitForCausalLM, count_parameters, full_layers
from plait.models.checkpoints import load_fla, save_fla
from plait.models.checkpoints.fla_config import from_fla_config, to_fla_config

Build = Callable[..., PlaitForCausalLM]
Tokens = Callable[..., torch.Tensor]


def model_of(build: Build, mixer: str, hybrid: bool = False, **options: Any) -> PlaitForCausalLM:
    mixers = {mixer: OPTIONS[mixer] | options}
    if hybrid:
        mixers["attention"] = FULL
    return build(mixer, "attention" if hybrid else mixer, mixer, mixers=mixers)


def expected_keys(mixer: str, hybrid: bool) -> dict[str, list[int]]:
    keys = {"model.embeddings.weight": [61, 16], "model.norm.weight": [16], "lm_head.weight": [61, 16]}
    if mixer in ("hgrn", "hgrn2"):
        keys["model.lower_bounds"] = [3, 16]
    for index in range(3):
        layer = f"model.layers.{index}"
        keys |= {f"{layer}.attn_norm.weight": [16], f"{layer}.mlp_norm.weight": [16]}
        keys |= {f"{layer}.mlp.gate_proj.weight": [24, 16], f"{layer}.mlp.up_proj.weight": [24, 16]}
        keys |= {f"{layer}.mlp.down_proj.weight": [16, 24]}
        own = MIXER_KEYS["attention"] | BIASES if hybrid and index == 1 else MIXER_KEYS[mixer]
        keys |= {f"{layer}.attn.{name}": shape for name, shape in own.items()}
    return keys


def fields_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def change(folder: Path, **fields: Any) -> None:
    (folder / "config.json").write_text(json.dumps(fields_of(folder) | fields))


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def rewrite(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")


@pytest.mark.parametrize("hybrid", [False, True])
@pytest.mark.parametrize("mixer", LINEAR)
def test_a_hybrid_there_and_back(build: Build, tokens: Tokens, tmp_path: Path, mixer: str, hybrid: bool) -> None:
    model = model_of(build, mixer, hybrid)
    save_fla(model, tmp_path)
    assert {name: list(tensor.shape) for name, tensor in weights_of(tmp_path).items()} == expected_keys(mixer, hybrid)
    attn = {"attn": {"layers": [1], **FULL_FIELDS} if hybrid else None}
    assert fields_of(tmp_path) == COMMON | FIELDS[mixer] | attn
    again = load_fla(tmp_path)
    assert again.config.layer_types == model.config.layer_types
    assert_same_outputs(again(tokens(2, 9)).logits, model(tokens(2, 9)).logits)
    assert not again.training
    assert all(parameter.requires_grad for parameter in again.parameters())


@pytest.mark.parametrize("options", [{}, {"qkv_bias": True, "window": 4, "rope_base": 100.0}])
def test_a_transformer_there_and_back(build: Build, tokens: Tokens, tmp_path: Path, options: dict) -> None:
    model = model_of(build, "attention", **options)
    save_fla(model, tmp_path)
    keys = expected_keys("attention", hybrid=False)
    if options:
        keys |= {f"model.layers.{index}.attn.{name}": shape for index in range(3) for name, shape in BIASES.items()}
    assert {name: list(tensor.shape) for name, tensor in weights_of(tmp_path).items()} == keys
    fields = {"qkv_bias": True, "window_size": 4, "rope_theta": 100.0} if options else {}
    assert fields_of(tmp_path) == COMMON | FIELDS["attention"] | fields
    assert_same_outputs(load_fla(tmp_path)(tokens(2, 9)).logits, model(tokens(2, 9)).logits)


@pytest.mark.parametrize(
    ("mixer", "options"),
    [
        ("retnet", {"num_kv_heads": 1, "use_output_gate": False}),
        ("hgrn", {"expand_ratio": 2, "use_lower_bound": False, "use_short_conv": True, "conv_size": 3}),
        ("hgrn2", {"num_heads": None, "expand_ratio": None, "use_short_conv": True}),
        ("gla", {"num_kv_heads": 1, "expand_k": 1.0, "clamp_min": -0.01, "use_short_conv": True}),
        ("gla", {"use_output_gate": False}),
        (
            "deltanet",
            {"use_gate": True, "use_beta": False, "qk_norm": "abs_sum", "qk_activation": "elu", "conv_size": 3},
        ),
        ("deltanet", {"num_heads": None, "use_short_conv": False, "expand_k": 0.5, "expand_v": 2.0}),
        ("gated_deltanet", {"num_v_heads": 4, "use_gate": False, "allow_neg_eigval": True, "use_short_conv": False}),
        ("gated_deltanet", {"num_heads": None, "head_dim": None}),
    ],
)
def test_every_option_survives(build: Build, tokens: Tokens, tmp_path: Path, mixer: str, options: dict) -> None:
    model = model_of(build, mixer, **options)
    save_fla(model, tmp_path)
    again = load_fla(tmp_path)
    resolved = {spec.options.heads(model.config.dims) for spec in model.config.layers()}
    assert {spec.options.heads(again.config.dims) for spec in again.config.layers()} == resolved
    assert_same_outputs(again(tokens(2, 9)).logits, model(tokens(2, 9)).logits)


def test_attention_of_two_kinds_is_a_list(build: Build, tokens: Tokens, tmp_path: Path) -> None:
    local = {"mixer": "attention", "num_heads": 2, "window": 3}
    mixers = {"gla": OPTIONS["gla"], "attention": FULL, "local": local}
    model = build("local", "gla", "attention", "local", mixers=mixers)
    save_fla(model, tmp_path)
    narrow = {"num_heads": 2, "num_kv_heads": 2, "qkv_bias": False, "window_size": 3, "rope_theta": 10000.0}
    assert fields_of(tmp_path)["attn"] == [{"layers": [0, 3], **narrow}, {"layers": [2], **FULL_FIELDS}]
    again = load_fla(tmp_path)
    assert again.config.layer_types == ["attention", "gla", "attention_2", "attention"]
    assert_same_outputs(again(tokens(2, 9)).logits, model(tokens(2, 9)).logits)


@pytest.mark.parametrize("mixer", ["hgrn2", "gated_deltanet"])
def test_attention_in_every_layer_or_in_none(build: Build, tokens: Tokens, tmp_path: Path, mixer: str) -> None:
    """A hybrid whose list names every layer is the transformer; one whose list is empty is the pure model."""
    model = model_of(build, "attention")
    save_fla(model, tmp_path)
    fields = COMMON | FIELDS[mixer] | {"attn": {"layers": [0, 1, 2], "num_heads": 4, "num_kv_heads": 2}}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    if mixer == "hgrn2":
        rewrite(tmp_path, weights_of(tmp_path) | {"model.lower_bounds": torch.ones(3, 16)})
    assert_same_outputs(load_fla(tmp_path)(tokens(1, 9)).logits, model(tokens(1, 9)).logits)
    pure = model_of(build, mixer)
    save_fla(pure, tmp_path / "pure")
    change(tmp_path / "pure", attn={"layers": [], "num_heads": 4})
    assert_same_outputs(load_fla(tmp_path / "pure")(tokens(1, 9)).logits, pure(tokens(1, 9)).logits)


@pytest.mark.parametrize("hybrid", [False, True])
def test_files_of_older_versions(build: Build, tokens: Tokens, tmp_path: Path, hybrid: bool) -> None:
    """Gate and up projection in one, dead ``attn.D``, saved rotary frequencies, fields that came later left out."""
    model = model_of(build, "gated_deltanet", hybrid)
    save_fla(model, tmp_path)
    weights = weights_of(tmp_path)
    for index in range(3):
        layer = f"model.layers.{index}"
        gate, up = weights[f"{layer}.mlp.gate_proj.weight"], weights.pop(f"{layer}.mlp.up_proj.weight")
        weights[f"{layer}.mlp.gate_proj.weight"] = torch.cat([gate, up])
        if hybrid and index == 1:
            weights[f"{layer}.attn.rotary.inv_freq"] = torch.ones(2)
        else:
            weights[f"{layer}.attn.D"] = torch.full((2,), 7.0)
    rewrite(tmp_path, weights)
    fields = fields_of(tmp_path)
    for later in ("num_v_heads", "allow_neg_eigval", "tie_word_embeddings", "pad_token_id"):
        del fields[later]
    (tmp_path / "config.json").write_text(json.dumps(fields | {"norm_first": False, "fuse_cross_entropy": True}))
    again = load_fla(tmp_path)
    assert_same_outputs(again(tokens(2, 9)).logits, model(tokens(2, 9)).logits)
    owners = {parameter.untyped_storage().data_ptr() for parameter in again.parameters()}
    assert len(owners) == len(list(again.parameters())), "the two halves of a projection share memory"
    save_fla(again, tmp_path / "new")
    assert_same_outputs(load_fla(tmp_path / "new")(tokens(2, 9)).logits, model(tokens(2, 9)).logits)


@pytest.mark.parametrize("mixer", ["gla", "retnet"])
def test_the_gated_norm_has_two_names(build: Build, tokens: Tokens, tmp_path: Path, mixer: str) -> None:
    model = model_of(build, mixer)
    save_fla(model, tmp_path)
    unfused = {name.replace("g_norm_swish_gate", "g_norm"): value for name, value in weights_of(tmp_path).items()}
    assert unfused.keys() != weights_of(tmp_path).keys()
    rewrite(tmp_path, unfused)
    change(tmp_path, fuse_norm=False)
    assert_same_outputs(load_fla(tmp_path)(tokens(2, 9)).logits, model(tokens(2, 9)).logits)


def test_the_width_of_the_feed_forward_is_derived(build: Build, tokens: Tokens, tmp_path: Path) -> None:
    """``intermediate_size: null`` means 256 * ceil(int(2/3 d r) / 256); a null ratio means 4."""
    model = build("hgrn", hidden_size=100, intermediate_size=None, hidden_ratio=6)
    save_fla(model, tmp_path)
    assert fields_of(tmp_path)["intermediate_size"] is None
    assert weights_of(tmp_path)["model.layers.0.mlp.up_proj.weight"].shape == (512, 100)
    assert_same_outputs(load_fla(tmp_path)(tokens(1, 5)).logits, model(tokens(1, 5)).logits)
    change(tmp_path, hidden_ratio=None)
    assert from_fla_config(fields_of(tmp_path), "file").mlp_size == 512
    change(tmp_path, hidden_ratio=2)
    with pytest.raises(OptionError, match=r"gate_proj.weight of shape \[512, 100\] where \[256, 100\]"):
        load_fla(tmp_path)


@pytest.mark.parametrize("mixer", ["hgrn", "hgrn2"])
def test_lower_bounds_have_a_row_for_every_layer(build: Build, tokens: Tokens, tmp_path: Path, mixer: str) -> None:
    """Attention's row bounds nothing, but takes its share of the softmax over the layers."""
    model = model_of(build, mixer, hybrid=True)
    save_fla(model, tmp_path)
    weights = weights_of(tmp_path)
    assert torch.equal(weights["model.lower_bounds"], next(model.model.shared[mixer].parameters()))
    before = load_fla(tmp_path)(tokens(1, 9)).logits
    for row in range(3):
        changed = weights["model.lower_bounds"].clone()
        changed[row] += 1
        rewrite(tmp_path, weights | {"model.lower_bounds": changed})
        assert not torch.allclose(load_fla(tmp_path)(tokens(1, 9)).logits, before)
    rewrite(tmp_path, weights | {"model.lower_bounds": weights["model.lower_bounds"][:2]})
    with pytest.raises(OptionError, match=r"lower_bounds of shape \[2, 16\] where \[3, 16\]"):
        load_fla(tmp_path)
    change(tmp_path, use_lower_bound=False)
    with pytest.raises(OptionError, match="lower_bounds, which this model does not have"):
        load_fla(tmp_path)


def test_hgrn2_goes_by_expand_ratio(build: Build, tokens: Tokens, tmp_path: Path) -> None:
    """fla's layer derives the heads from ``expand_ratio`` even if ``num_heads`` says otherwise."""
    model = model_of(build, "hgrn2")
    save_fla(model, tmp_path)
    change(tmp_path, num_heads=16)
    assert_same_outputs(load_fla(tmp_path)(tokens(1, 9)).logits, model(tokens(1, 9)).logits)
    change(tmp_path, num_heads=2, expand_ratio=None)
    assert_same_outputs(load_fla(tmp_path)(tokens(1, 9)).logits, model(tokens(1, 9)).logits)
    change(tmp_path, num_heads=None)
    with pytest.raises(OptionError, match="'expand_ratio' and 'num_heads'"):
        load_fla(tmp_path)


def test_norm_of_queries_and_keys(build: Build, tokens: Tokens, tmp_path: Path) -> None:
    """fla's has an epsilon of 1e-5 whatever ``norm_eps`` says, and only its transformer has it."""
    model = model_of(build, "attention", qk_norm=True, qk_norm_eps=1e-5)
    save_fla(model, tmp_path)
    assert fields_of(tmp_path)["qk_norm"] is True
    assert weights_of(tmp_path)["model.layers.1.attn.k_norm.weight"].shape == (4,)
    again = load_fla(tmp_path)
    layer = again.model.layers[0]
    assert (layer.attn.q_norm.eps, layer.attn.k_norm.eps, layer.attn_norm.eps) == (1e-5, 1e-5, 1e-6)
    assert_same_outputs(again(tokens(1, 9)).logits, model(tokens(1, 9)).logits)
    with pytest.raises(OptionError, match="option qk_norm_eps=None"):
        to_fla_config(model_of(build, "attention", qk_norm=True).config)


def test_shards(build: Build, tokens: Tokens, tmp_path: Path) -> None:
    model = model_of(build, "deltanet")
    save_fla(model, tmp_path)
    save_torch_state_dict(weights_of(tmp_path), tmp_path, max_shard_size=20_000)
    (tmp_path / "model.safetensors").unlink(missing_ok=True)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert_same_outputs(load_fla(tmp_path)(tokens(1, 9)).logits, model(tokens(1, 9)).logits)
    next(iter(tmp_path.glob("model-*.safetensors"))).unlink()
    with pytest.raises(OptionError, match=r"it has no model-0000\d-of"):
        load_fla(tmp_path)


def test_a_tied_head_is_not_written(build: Build, tokens: Tokens, tmp_path: Path) -> None:
    model = build("gla", "gla", mixers={"gla": OPTIONS["gla"]}, tie_word_embeddings=True)
    save_fla(model, tmp_path)
    assert "lm_head.weight" not in weights_of(tmp_path)
    again = load_fla(tmp_path)
    assert again.lm_head.weight is again.model.embeddings.weight
    assert_same_outputs(again(tokens(1, 9)).logits, model(tokens(1, 9)).logits)
    change(tmp_path, tie_word_embeddings=False)
    with pytest.raises(OptionError, match=r"do not fit its config.json: no lm_head.weight\."):
        load_fla(tmp_path)


def test_mixed_precisions_become_the_widest(build: Build, tmp_path: Path) -> None:
    model = build("deltanet", mixers={"deltanet": OPTIONS["deltanet"]}, dtype=torch.bfloat16)
    save_fla(model, tmp_path)
    assert {parameter.dtype for parameter in load_fla(tmp_path).parameters()} == {torch.bfloat16}
    weights = weights_of(tmp_path)
    norm = torch.rand(8)
    rewrite(tmp_path, weights | {"model.layers.0.attn.o_norm.weight": norm})
    again = load_fla(tmp_path)
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}
    assert torch.equal(again.model.layers[0].attn.o_norm.weight, norm)


BASE = {"vocab_size": 32000, "norm_eps": 1e-6, "hidden_ratio": 4, "intermediate_size": None, "num_hidden_layers": 24}
DELTA = {"model_type": "delta_net", "expand_k": 1, "expand_v": 1, "use_beta": True, "use_gate": False}
DELTA |= {"use_short_conv": True, "conv_size": 4, "qk_norm": "l2", "qk_activation": "silu"}
GDN = {"model_type": "gated_deltanet", "head_dim": 256, "expand_v": 1, "use_gate": True}
GDN |= {"use_short_conv": True, "conv_size": 4}
GLA = {"model_type": "gla", "num_heads": 4, "expand_k": 0.5, "expand_v": 1, "use_output_gate": True}
GLA |= {"use_short_conv": False, "conv_size": 4, "feature_map": None, "clamp_min": None}
HGRN = {"model_type": "hgrn", "expand_ratio": 1, "use_lower_bound": True, "use_short_conv": False, "conv_size": 4}


@pytest.mark.parametrize(
    ("fields", "at_1024", "at_2048"),
    [
        ([GDN | {"num_heads": 4}, GDN | {"num_heads": 8}], 399_531_200, 1_466_343_808),
        ([DELTA | {"num_heads": 8}, DELTA | {"num_heads": 16}], 374_362_112, 1_365_677_056),
        ([GLA, GLA], 374_475_776, 1_365_514_240),
        ([HGRN, HGRN], 373_916_672, 1_364_396_032),
        ([HGRN | {"model_type": "hgrn2", "expand_ratio": 128}] * 2, 373_916_672, 1_364_396_032),
        (
            [{"model_type": "transformer", "num_heads": 16}, {"model_type": "transformer", "num_heads": 32}],
            373_867_520,
            1_364_297_728,
        ),
    ],
)
def test_published_parameter_counts(fields: list[dict], at_1024: int, at_2048: int) -> None:
    """2507.06457 and the published files: counts at both scales, from the fields of a file."""
    counts = [
        count_parameters(from_fla_config(BASE | {"hidden_size": size} | own, "file"))
        for size, own in zip((1024, 2048), fields, strict=True)
    ]
    assert counts == [at_1024, at_2048]


@pytest.mark.parametrize(
    ("ratio", "expected"), [("12:1", 1_457_839_968), ("6:1", 1_449_336_128), ("3:1", 1_432_328_448)]
)
def test_parameter_counts_of_published_hybrids(ratio: str, expected: int) -> None:
    attn = {"layers": full_layers(ratio, 24, "period_r"), "num_heads": 32}
    config = from_fla_config(BASE | GDN | {"hidden_size": 2048, "num_heads": 8, "attn": attn}, "file")
    assert count_parameters(config) == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "mamba2"}, "model_type='mamba2' is not one of"),
        ({"hidden_act": "powlu"}, "hidden_act='powlu'"),
        ({"elementwise_affine": False}, "elementwise_affine=False"),
        ({"feature_map": "relu"}, "feature_map='relu'"),
        ({"attnres_block_size": 4}, "attnres_block_size=4"),
        ({"norm_first": True}, "norm_first=True"),
        ({"quantization_config": {"bits": 4}}, "quantization_config="),
        ({"num_heads": None}, "'num_heads'"),
        ({"num_heads": 3}, "option expand_k=0.5.*3 heads"),
        ({"clamp_min": 1.0}, "clamp_min=1.0"),
        ({"hidden_size": "16"}, "hidden_size='16'"),
        ({"norm_eps": 0}, "norm_eps=0"),
        ({"attn": 3}, "attn=3"),
        ({"attn": {"layers": [1]}}, "'num_heads'"),
        ({"attn": {"layers": [3], "num_heads": 4}}, "attn: Full layer 3 "),
        ({"attn": [{"layers": [1], "num_heads": 4}, {"layers": [1], "num_heads": 2}]}, "attn: .*listed twice"),
        ({"attn": {"layers": [1], "num_heads": 4, "rope_theta": None}}, "rope_theta=None"),
        ({"attn": {"layers": [1], "num_heads": 5}}, "num_heads=5"),
        ({"attn": {"layers": [1], "num_heads": 4, "window_size": 0}}, "window=0"),
    ],
)
def test_what_cannot_be_expressed_names_field_value_and_file(
    build: Build, tmp_path: Path, fields: dict, message: str
) -> None:
    save_fla(model_of(build, "gla"), tmp_path)
    change(tmp_path, **fields)
    with pytest.raises(OptionError, match=f"^{tmp_path}/config.json: .*{message}") as error:
        load_fla(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("field", ["vocab_size", "norm_eps", "expand_k", "use_output_gate", "use_short_conv"])
def test_fields_are_read_and_never_assumed(build: Build, tmp_path: Path, field: str) -> None:
    save_fla(model_of(build, "gla"), tmp_path)
    fields = fields_of(tmp_path)
    del fields[field]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(OptionError, match=f"no value of '{field}', which a gla file must have"):
        load_fla(tmp_path)


def test_weights_that_do_not_fit(build: Build, tmp_path: Path) -> None:
    save_fla(model_of(build, "gla"), tmp_path)
    weights = weights_of(tmp_path)
    rewrite(tmp_path, weights | {"model.layers.0.attn.D": torch.ones(2)})  # dead in Gated DeltaNet, unknown here
    with pytest.raises(OptionError, match=r"model.layers.0.attn.D, which this model does not have"):
        load_fla(tmp_path)
    change(tmp_path, use_short_conv=True)
    rewrite(tmp_path, weights)
    with pytest.raises(OptionError, match=r"no model.layers.0.attn.q_conv1d.weight;.*and 6 more differences"):
        load_fla(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(OptionError, match=r"model.safetensors is damaged"):
        load_fla(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OptionError, match=r"it has no model.safetensors"):
        load_fla(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(OptionError, match=r"config.json is not JSON"):
        load_fla(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(OptionError, match=r"it has no config.json"):
        load_fla(tmp_path)


def test_unknown_fields_are_refused_harmless_ones_pass_in_silence(
    build: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_fla(model_of(build, "gla", hybrid=True), tmp_path)
    change(tmp_path, use_gk=True, fuse_norm=True, attn_mode="chunk", transformers_version="4.48.0", _name_or_path="x")
    change(tmp_path, torchscript=False, top_k=50, is_decoder=False, id2label={"0": "LABEL_0"}, share_conv_kernel=True)
    load_fla(tmp_path)
    assert not caplog.messages
    good = fields_of(tmp_path)
    for fields, named in (
        ({"novelty": 1, "sinks": [2] * 99}, r"novelty=1, sinks=\[2, [2, ]*\.\.\.: .*do not know these fields"),
        ({"attn": {"layers": [1], **FULL_FIELDS, "sinks": 4}}, r"attn\.sinks=4: .*take it out of the file"),
        ({"share_conv_kernel": True, "use_short_conv": True}, "share_conv_kernel=True"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder=True"),
    ):
        change(tmp_path, **fields)
        with pytest.raises(OptionError, match=named.replace("do not know", "does not know")):
            load_fla(tmp_path)
        (tmp_path / "config.json").write_text(json.dumps(good))


@pytest.mark.parametrize(("theirs", "ours"), [("swish", "silu"), ("silu", "silu"), ("sigmoid", "sigmoid")])
def test_the_activation_of_the_output_gate(
    build: Build, tokens: Tokens, tmp_path: Path, theirs: str, ours: str
) -> None:
    model = model_of(build, "gated_deltanet", output_gate_activation=ours)
    save_fla(model, tmp_path)
    assert fields_of(tmp_path)["output_gate_activation"] == {"silu": "swish"}.get(ours, ours)
    change(tmp_path, output_gate_activation=theirs)
    assert_same_outputs(load_fla(tmp_path)(tokens(1, 9)).logits, model(tokens(1, 9)).logits)
    change(tmp_path, output_gate_activation="relu")
    with pytest.raises(OptionError, match="option output_gate_activation='relu'"):
        load_fla(tmp_path)


def test_hgrn2_reads_out_with_the_epsilon_of_running_code(build: Build, tokens: Tokens, tmp_path: Path) -> None:
    """fla's layer never hands ``norm_eps`` on, so its models have 1e-5 there whatever the file says."""
    model = model_of(build, "hgrn2")
    save_fla(model, tmp_path)
    layer = load_fla(tmp_path).model.layers[0]
    assert (layer.attn.g_norm.eps, layer.attn_norm.eps) == (1e-5, 1e-6)
    with pytest.raises(OptionError, match=r"option norm_eps=None: .*always mean 1e-05"):
        to_fla_config(model_of(build, "hgrn2", norm_eps=None).config)


def test_sums_of_queries_and_keys_differ_between_versions(build: Build, tokens: Tokens, tmp_path: Path) -> None:
    model = model_of(build, "deltanet", qk_norm="signed_sum", qk_activation="relu")
    save_fla(model, tmp_path)
    assert fields_of(tmp_path)["qk_norm"] == "sum"
    assert_same_outputs(load_fla(tmp_path)(tokens(1, 9)).logits, model(tokens(1, 9)).logits)
    for activation in ("silu", "identity"):
        change(tmp_path, qk_activation=activation)
        with pytest.raises(
            OptionError, match=rf"qk_norm='sum' with qk_activation='{activation}' means .*0\.6.*'abs_sum'"
        ):
            load_fla(tmp_path)
    for norm in ("signed_sum", "abs_sum"):
        change(tmp_path, qk_norm=norm)
        assert load_fla(tmp_path).config.mixers["deltanet"]["qk_norm"] == norm
        change(tmp_path, qk_norm="sum")
        with pytest.raises(OptionError, match=f"option qk_norm='{norm}': .*disagree"):
            to_fla_config(model_of(build, "deltanet", qk_norm=norm).config)


def refusal(folder: Path) -> str | None:
    try:
        load_fla(folder)
    except OptionError as error:
        return str(error)
    return None


def values_of_any_kind() -> list[Any]:
    return [None, True, -1, 0, 3, 2**70, 1e400, 0.5, "", "16", "x" * 5000, [], [1, "a"], {}, {"a": [None]}]


@pytest.mark.parametrize("mixer", ["hgrn2", "gated_deltanet", "attention"])
def test_a_damaged_field_is_one_sentence(build: Build, tmp_path: Path, mixer: str) -> None:
    """Every field of a file, with every kind of value: it loads, or one sentence names the file."""
    save_fla(model_of(build, mixer, hybrid=mixer != "attention"), tmp_path)
    good = fields_of(tmp_path)
    refused = 0
    for name in good:
        for value in values_of_any_kind():
            (tmp_path / "config.json").write_text(json.dumps(good | {name: value}))
            message = refusal(tmp_path)
            if message is not None:
                refused += 1
                about = str(tmp_path) in message and "\n" not in message and len(message) < 2000
                assert about, (name, value, message)
    assert refused > 100


@pytest.mark.parametrize(
    ("plan", "mixers", "message"),
    [
        (["gla", "hgrn"], {}, "'gla' and 'hgrn', but an fla file holds one linear mixer"),
        (["gla", "slow"], {"slow": {"mixer": "gla", "clamp_min": -0.1}}, "'gla' and 'slow', but"),
        (["attention", "local"], {"local": {"mixer": "attention", "window": 3}}, "one attention setting"),
        (["gla"], {"gla": {"gate_logit_normalizer": 8}}, r"option gate_logit_normalizer=8\.0: .*16"),
        (["gla"], {"gla": {"gate_low_rank_dim": 4}}, "option gate_low_rank_dim=4: .*16"),
        (["retnet"], {"retnet": {"num_heads": 2, "rope_base": None}}, "option rope_base=None"),
        (["retnet"], {"retnet": {"num_heads": 2, "use_short_conv": True}}, "option use_short_conv=True"),
        (["hgrn"], {"hgrn": {"expand_ratio": 2}}, "option expand_ratio=2: .*16, not 32"),
        (["hgrn2"], {"hgrn2": {"num_heads": 2, "expand_ratio": 4}}, "option expand_ratio=4: .*16, not 8"),
        (["gla", "attention"], {"attention": {"qk_norm": True}}, "option qk_norm=True"),
        (["gla", "attention"], {"attention": {"output_gate": True}}, "option output_gate=True"),
        (["gla", "attention"], {"attention": {"use_short_conv": True}}, "option use_short_conv=True"),
        (["gla", "attention"], {"attention": {"rope_base": None}}, "option rope_base=None"),
        (["attention"], {"attention": {"num_heads": 2, "head_dim": 4}}, "option head_dim=4"),
        (["kda"], {"kda": {"output_gate_bias": False}}, "option output_gate_bias=False"),
        (["gated_deltanet"], {"gated_deltanet": {"norm_eps": 1e-5}}, "option norm_eps=1e-05"),
        (["gla", "attention"], {"attention": {"partial_rotary_factor": 0.5}}, r"option partial_rotary_factor=0\.5"),
        (["gla", "mla"], {}, "'gla' and 'mla', but an fla file holds one linear mixer"),
        (["mla"], {}, "no model type for 'mla'"),
    ],
)
def test_what_fla_cannot_express_names_the_option(plan: list[str], mixers: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        to_fla_config(PlaitConfig(hidden_size=16, layer_types=plan, mixers=mixers))


def test_norms_behind_have_no_field() -> None:
    config = PlaitConfig(hidden_size=16, layer_types=["gla", "attention"], post_norm=["attention"])
    with pytest.raises(OptionError, match=r"post_norm=\['attention'\]: fla's layout cannot say so"):
        to_fla_config(config)
