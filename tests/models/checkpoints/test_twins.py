"""Hybrids of transformers and plait's: the same logits in both directions, at once and step by step."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

import plait
from numerics import assert_same_outputs
from plait.errors import OptionError
from plait.mixers import Context
from plait.models import PlaitConfig, PlaitForCausalLM
from plait.models.checkpoints import from_transformers, load_transformers, to_transformers, twin, twins

IDS = torch.arange(40).view(2, 20) % 31
SIZES: dict[str, Any] = {"vocab_size": 31, "hidden_size": 32, "intermediate_size": 48, "initializer_range": 0.1}
TOKENS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 4,
    "linear_conv_kernel_dim": 3,
}
PLAN = ["linear_attention", "full_attention", "linear_attention"]
LATENT_OPTIONS = {
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "kv_lora_rank": 12,
    "q_lora_rank": 10,
}
LATENT = {"num_attention_heads": 4, "num_key_value_heads": 4, **LATENT_OPTIONS}

#: Name in ``plait export --to``: (class of transformers, fields of its own).
THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_next": ("Qwen3Next", {**HEADS, **LINEAR, "head_dim": 16, "layer_types": PLAN, "num_experts": 0}),
    "qwen3_5": ("Qwen3_5", {**HEADS, **LINEAR, "head_dim": 16, "layer_types": PLAN}),
    "olmo_hybrid": ("OlmoHybrid", {**HEADS, **LINEAR, "layer_types": PLAN, "attention_bias": True}),
    "kimi_linear": (
        "KimiLinear",
        {
            "linear_num_heads": 2,
            "linear_head_dim": 8,
            "linear_conv_kernel_dim": 3,
            "layer_types": PLAN,
            "mlp_layer_types": ["dense"] * 3,
            **LATENT,
        },
    ),
}
#: The same models in plait's words.
LINEAR_OPTIONS = {"num_heads": 2, "num_v_heads": 6, "head_dim": 8, "expand_v": 0.5, "conv_size": 3}
GATED = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "qk_norm": True, "output_gate": True}
OURS: dict[str, dict[str, Any]] = {
    "qwen3_next": {
        "layer_types": ["gated_deltanet", "attention", "gated_deltanet"],
        "mixers": {"gated_deltanet": LINEAR_OPTIONS, "attention": GATED | {"partial_rotary_factor": 0.25}},
    },
    "olmo_hybrid": {
        "layer_types": ["gated_deltanet", "attention", "gated_deltanet"],
        "mixers": {
            "gated_deltanet": LINEAR_OPTIONS | {"allow_neg_eigval": True, "norm_eps": 1e-5},
            "attention": {
                "num_heads": 4,
                "num_kv_heads": 2,
                "qk_norm": True,
                "qk_norm_per_head": False,
                "rope_base": None,
                "qkv_bias": True,
            },
        },
        "post_norm": ["attention"],
    },
    "kimi_linear": {
        "layer_types": ["kda", "mla", "kda"],
        "mixers": {
            "kda": {"num_heads": 2, "head_dim": 8, "conv_size": 3, "output_gate_bias": False},
            "mla": LATENT_OPTIONS | {"num_heads": 4, "rope_base": None, "norm_eps": 1e-6},
        },
        "norm_eps": 1e-5,
    },
}
OURS["qwen3_5"] = OURS["qwen3_next"]


def scrambled(model: Any) -> Any:
    """Norms, biases and decays away from their initial values, which would hide a swap."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith(("bias", "A_log")):
                parameter.add_(0.4 * torch.rand(parameter.shape, generator=generator) - 0.2)
            if name.endswith("o_proj.bias"):
                parameter.zero_()  # plait has none
    return model.eval()


def theirs(kind: str, **fields: Any) -> PreTrainedModel:
    name, own = THEIRS[kind]
    config_class = getattr(transformers, f"{name}TextConfig" if kind == "qwen3_5" else f"{name}Config")
    config = config_class(**SIZES, **TOKENS, num_hidden_layers=3, **(own | fields))
    torch.manual_seed(0)
    return scrambled(getattr(transformers, f"{name}ForCausalLM")(config))


def ours(kind: str, **changes: Any) -> PlaitForCausalLM:
    torch.manual_seed(0)
    return scrambled(PlaitForCausalLM(PlaitConfig(**(SIZES | OURS[kind] | changes))))


def near(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", THEIRS)
@pytest.mark.parametrize("tie", [False, True])
@torch.no_grad()
def test_a_model_of_transformers(kind: str, tie: bool) -> None:
    model = theirs(kind, tie_word_embeddings=tie)
    read = from_transformers(model)
    expected = model(IDS).logits
    assert expected.std() > 0.1
    near(read(IDS).logits, expected)
    assert (read.lm_head.weight is read.model.embeddings.weight) is (tie and kind != "kimi_linear")  # which never ties
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(read.generate(IDS[:, :7], **options), model.generate(IDS[:, :7], **options))


@pytest.mark.parametrize("kind", THEIRS)
@torch.no_grad()
def test_step_by_step(kind: str) -> None:
    model = theirs(kind)
    read = from_transformers(model)
    cache, their_cache = None, None
    for part in IDS.split([5, 1, 1, 13], dim=1):
        output = read(part, past_key_values=cache, use_cache=True)
        their_output = model(part, past_key_values=their_cache, use_cache=True)
        cache, their_cache = output.past_key_values, their_output.past_key_values
        near(output.logits, their_output.logits)


@pytest.mark.parametrize("kind", THEIRS)
@torch.no_grad()
def test_left_padding(kind: str) -> None:
    model = theirs(kind)
    mask = torch.ones_like(IDS)
    mask[0, :6] = 0
    logits = from_transformers(model)(IDS, attention_mask=mask).logits
    near(logits[mask.bool()], model(IDS, attention_mask=mask).logits[mask.bool()])


@pytest.mark.parametrize("kind", THEIRS)
@torch.no_grad()
def test_decoding_behind_padding(kind: str) -> None:
    model = theirs(kind)
    read = from_transformers(model)
    mask = torch.ones_like(IDS)
    mask[0, :4] = 0
    cache, their_cache, start = None, None, 0
    for part in IDS.split([9, 1, 1, 9], dim=1):
        seen, start = mask[:, : start + part.shape[1]], start + part.shape[1]
        output = read(part, attention_mask=seen, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        if part.shape[1] == 9 and start > 9:  # their recurrent layers take a prompt or a token, not a further piece
            near(output.logits[seen[:, -9:].bool()], model(IDS, attention_mask=mask).logits[:, 11:].flatten(0, 1))
            break
        their_output = model(part, attention_mask=seen, past_key_values=their_cache, use_cache=True)
        their_cache = their_output.past_key_values
        real = seen[:, -part.shape[1] :].bool()
        near(output.logits[real], their_output.logits[real])


@pytest.mark.parametrize("kind", THEIRS)
def test_fields_that_plait_does_not_know_are_refused(kind: str, tmp_path: Path) -> None:
    """Every field of the class is known, in silence; another one may change what the model computes."""
    config = theirs(kind).config
    twins.TWINS[kind].check_fields(config)
    config.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {"attention_sinks": 4, "top_k": 50}))
    with pytest.raises(OptionError, match=r"config.json: .*, attention_sinks=4: plait does not know this field"):
        load_transformers(tmp_path)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_fields_of_transformers_without_linear_layers(kind: str) -> None:
    config = {"llama": transformers.LlamaConfig, "qwen3": transformers.Qwen3Config}[kind](num_hidden_layers=2)
    twins.TWINS[kind].check_fields(config)
    config.attention_sinks = 4
    with pytest.raises(OptionError, match="attention_sinks=4"):
        twins.TWINS[kind].check_fields(config)
    if kind == "qwen3":
        config.layer_types = ["full_attention", "sliding_attention"]
        with pytest.raises(OptionError, match="layer_types='sliding_attention'"):
            twins.TWINS[kind].read_config(config)


@pytest.mark.parametrize(
    "value", [None, True, -1, 0, 2**70, "16", "x" * 5000, [], [1, "a"], {}], ids=lambda v: str(v)[:9]
)
def test_a_damaged_field_is_one_sentence(value: Any, tmp_path: Path) -> None:
    """Any field of a file with any kind of value: the model can be made, or one sentence names the file."""
    config = theirs("qwen3_next").config
    config.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    good = json.loads(path.read_text())
    for name in good:
        path.write_text(json.dumps(good | {name: value}))
        with pytest.raises(OptionError) as error:  # there are no weights, if all else is well
            load_transformers(tmp_path)
        message = str(error.value)
        assert str(tmp_path) in message or "kinds" in message, name
        assert "\n" not in message, name
        assert len(message) < 2000, name


@pytest.mark.parametrize("kind", OURS)
@torch.no_grad()
def test_there_and_back(kind: str) -> None:
    model = ours(kind)
    twin = to_transformers(model, kind)
    assert twin.config.architectures is None or kind in twin.config.model_type
    near(twin(IDS).logits, model(IDS).logits)
    again = from_transformers(twin)
    assert again.config.layer_types == model.config.layer_types
    assert [spec.options.heads(again.config.dims) for spec in again.config.layers()] == [
        spec.options.heads(model.config.dims) for spec in model.config.layers()
    ]
    weights = again.state_dict()
    assert weights.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(weights[name], tensor), name


@torch.no_grad()
def test_tied_heads_are_written() -> None:
    for kind in OURS:
        model = ours(kind, tie_word_embeddings=True)
        near(to_transformers(model, kind)(IDS).logits, model(IDS).logits)


def test_norms_behind() -> None:
    """OLMo 2's block by hand: the residual stream itself goes in, what comes out is normed and added."""
    model = ours("olmo_hybrid")
    block = model.model.layers[1]
    x = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(1))
    h = x + block.attn_norm(block.attn(x, Context.plain(x)))
    near(block(x, Context.plain(x), {}), h + block.mlp_norm(block.mlp(h)))
    with pytest.raises(OptionError, match="post_norm names 'gla', which layer_types does not have"):
        ours("olmo_hybrid", post_norm=["gla"])


@pytest.mark.parametrize("kind", THEIRS)
@torch.no_grad()
def test_folders_in_shards_keep_their_precision(kind: str, tmp_path: Path) -> None:
    model = theirs(kind).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert len(list((tmp_path / "theirs").glob("model-*.safetensors"))) > 1
    read = load_transformers(tmp_path / "theirs")
    assert {parameter.dtype for parameter in read.parameters()} == {torch.bfloat16}
    read.save_pretrained(tmp_path / "ours")
    again, _ = plait.load(tmp_path / "ours")
    assert_same_outputs(again(IDS).logits, read(IDS).logits)
    error = (read(IDS).logits - model(IDS).logits).float().norm() / model(IDS).logits.float().norm()
    assert error < 0.05
    to_transformers(read, kind).save_pretrained(tmp_path / "exported")
    for name, tensor in load_transformers(tmp_path / "exported").state_dict().items():
        assert torch.equal(tensor, read.state_dict()[name]), name


@pytest.mark.parametrize("rope", [{"rope_type": None}, {"rope_type": "default", "rope_theta": None}], ids=str)
def test_olmo_files_without_positions(rope: dict[str, Any]) -> None:
    """Published files say so in one of two ways."""
    config = theirs("olmo_hybrid").config
    config.rope_parameters = rope
    assert twins.TWINS["olmo_hybrid"].read_config(config).mixers["attention"]["rope_base"] is None


def test_files_that_lack_weights(tmp_path: Path) -> None:
    theirs("qwen3_next").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.self_attn.k_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(OptionError, match=r"config.json: no model.layers.1.self_attn.k_proj.weight\."):
        load_transformers(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OptionError, match=f"{tmp_path} holds no weights"):
        load_transformers(tmp_path)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("qwen3_next", {"num_experts": 4, "mlp_only_layers": [1]}, "num_experts=4: 2 layers are mixtures of experts"),
        ("qwen3_next", {"attention_bias": True}, "attention_bias=True: plait has only False"),
        ("qwen3_5", {"hidden_act": "gelu"}, "hidden_act='gelu': plait has only 'silu'"),
        ("olmo_hybrid", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "'linear'"),
        ("kimi_linear", {"mlp_layer_types": ["dense", "sparse", "sparse"]}, "2 layers are mixtures of experts"),
    ],
)
def test_what_plait_cannot_express(kind: str, fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Found in ``config.json``, before any weights are read."""
    name, own = THEIRS[kind]
    config_class = getattr(transformers, f"{name}TextConfig" if kind == "qwen3_5" else f"{name}Config")
    config_class(**SIZES, **TOKENS, num_hidden_layers=3, **(own | fields)).save_pretrained(tmp_path)
    with pytest.raises(OptionError, match=message) as error:
        load_transformers(tmp_path)
    assert str(error.value).startswith(f"{tmp_path}/config.json: ")


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("qwen3_next", {"layer_types": ["gla", "gla", "attention"]}, "layers 0-1 are gla, but Qwen3-Next has only"),
        ("qwen3_next", {"attention": {"qk_norm": False}}, "option qk_norm=False: Qwen3-Next has only .*qk_norm=True"),
        ("qwen3_next", {"attention": {"output_gate": False}}, "option output_gate=False"),
        ("qwen3_next", {"attention": {"window": 4}}, "option window=4"),
        ("qwen3_next", {"attention": {"rope_base": None}}, "rope_base=None"),
        ("qwen3_next", {"gated_deltanet": {"allow_neg_eigval": True}}, "option allow_neg_eigval=True"),
        ("qwen3_next", {"gated_deltanet": {"norm_eps": 1e-5}}, "option norm_eps=1e-05"),
        ("qwen3_next", {"post_norm": ["attention"]}, "post_norm="),
        ("qwen3_5", {"gated_deltanet": {"use_gate": False}}, "option use_gate=False: Qwen3.5"),
        ("olmo_hybrid", {"post_norm": None}, "post_norm=None: it norms the inputs of gated_deltanet"),
        ("olmo_hybrid", {"layer_types": ["attention"] * 3}, "has no gated_deltanet"),
        ("olmo_hybrid", {"attention": {"qk_norm_per_head": True}}, "option qk_norm_per_head=True"),
        ("olmo_hybrid", {"attention": {"head_dim": 4}}, "head_dim=4"),
        ("olmo_hybrid", {"gated_deltanet": {"norm_eps": None}}, "option norm_eps=None: .*norm_eps=1e-05"),
        ("kimi_linear", {"layer_types": ["kda"] * 3}, "has no mla"),
        ("kimi_linear", {"kda": {"output_gate_bias": True}}, "option output_gate_bias=True"),
        ("kimi_linear", {"kda": {"num_v_heads": 4}}, "option num_v_heads=4"),
        ("kimi_linear", {"mla": {"rope_base": 10000.0}}, "option rope_base=10000.0"),
        ("kimi_linear", {"mla": {"norm_eps": None}}, "option norm_eps=None: .*norm_eps=1e-06"),
    ],
    ids=str,
)
def test_what_a_class_cannot_express(kind: str, changes: dict[str, Any], message: str) -> None:
    mixers = {name: options | changes.get(name, {}) for name, options in OURS[kind]["mixers"].items()}
    fields = {name: value for name, value in changes.items() if name not in mixers}
    if kind == "olmo_hybrid" and "gated_deltanet" not in fields.get("layer_types", ["gated_deltanet"]):
        del mixers["gated_deltanet"]
    with pytest.raises(OptionError, match=message):
        to_transformers(ours(kind, mixers=mixers, **fields), kind)


def test_two_settings_of_one_mixer() -> None:
    mixers = OURS["qwen3_next"]["mixers"] | {"local": {"mixer": "attention", "window": 3}}
    model = ours("qwen3_next", mixers=mixers, layer_types=["gated_deltanet", "attention", "local"])
    with pytest.raises(OptionError, match="'attention' and 'local', two settings of attention"):
        to_transformers(model, "qwen3_next")


def test_an_older_transformers_lacks_classes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    theirs("kimi_linear").config.save_pretrained(tmp_path)
    model = ours("kimi_linear")
    monkeypatch.setattr(twins, "CONFIG_MAPPING", {})
    with pytest.raises(OptionError, match=r"is a Kimi Linear model, which transformers .* does not know: pip install"):
        load_transformers(tmp_path)
    monkeypatch.setattr(twin, "transformers", SimpleNamespace(__version__="5.17.0"))
    with pytest.raises(OptionError, match=r"KimiLinearForCausalLM of transformers, which version 5\.17\.0 does not"):
        to_transformers(model, "kimi_linear")


def test_classes_that_plait_does_not_read() -> None:
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=9, n_embd=4, n_layer=1, n_head=1))
    with pytest.raises(OptionError, match=r"qwen3_next.*, not 'gpt2'"):
        from_transformers(model)
