"""Models of softmax attention only, as transformers' Llama or Qwen3 and back; their logits are the same.

A Qwen3 decoder is a Llama decoder with an RMS norm on every query and key head. plait names the parameters otherwise,
and neither the order nor the halves of the rotary pairs differ, so the weights are only renamed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from plait.errors import OptionError
from plait.mixers.attention import AttentionOptions
from plait.models.configuration import PlaitConfig
from plait.models.decoder import PlaitForCausalLM

Model = TypeVar("Model", bound=PreTrainedModel)

#: plait's name of a part -> transformers' name of it.
_NAMES = {
    "model.embeddings.": "model.embed_tokens.",
    ".attn_norm.": ".input_layernorm.",
    ".mlp_norm.": ".post_attention_layernorm.",
    ".attn.": ".self_attn.",
}


def to_transformers(model: PlaitForCausalLM, kind: str) -> PreTrainedModel:
    """The same model as a class of transformers.

    Args:
        model: of attention layers that all have the same options.
        kind: ``llama`` or ``qwen3``.

    Raises:
        OptionError: the class cannot express an option; the message names it.
    """
    options = _only_options(model.config, kind)
    shared = _sizes(model.config, options)
    shared["attention_bias"] = options.qkv_bias
    classes: Any = (LlamaForCausalLM, LlamaConfig) if kind == "llama" else (Qwen3ForCausalLM, Qwen3Config)
    twin: PreTrainedModel = classes[0](classes[1](**shared))
    weights = {_renamed(name, _NAMES): tensor for name, tensor in model.state_dict().items()}
    if options.qkv_bias:  # theirs has a bias on the output projection as well
        for index in range(len(model.config.layer_types or [])):
            weights[f"model.layers.{index}.self_attn.o_proj.bias"] = weights["model.norm.weight"].new_zeros(
                model.config.hidden_size
            )
    return _filled(twin, weights)


def from_transformers(model: PreTrainedModel) -> PlaitForCausalLM:
    """A Llama or Qwen3 model as a plait model of attention layers.

    Raises:
        OptionError: another class, or an option that plait cannot express; the message names it.
    """
    config: Any = model.config
    kind = config.model_type
    if kind not in ("llama", "qwen3"):
        raise OptionError(f"plait reads llama and qwen3 models of transformers, not {kind!r}.")
    rope = config.rope_parameters or {}
    _require(rope.get("rope_type", "default") == "default", kind, "rope_parameters.rope_type", rope.get("rope_type"))
    _require(config.hidden_act == "silu", kind, "hidden_act", config.hidden_act)
    _require(not getattr(config, "mlp_bias", False), kind, "mlp_bias", True)
    _require(not getattr(config, "use_sliding_window", False), kind, "use_sliding_window", True)
    weights = dict(model.state_dict())
    biases = [name for name in weights if name.endswith("o_proj.bias")]
    _require(not any(weights[name].any() for name in biases), kind, "attention_bias", "a bias on o_proj")
    for name in biases:
        del weights[name]
    attention = {
        "num_heads": config.num_attention_heads,
        "num_kv_heads": config.num_key_value_heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        "rope_base": float(rope["rope_theta"]),
        "qkv_bias": config.attention_bias,
        "qk_norm": kind == "qwen3",
    }
    plait_config = PlaitConfig(
        layer_types=["attention"] * config.num_hidden_layers,
        mixers={"attention": attention},
        norm_eps=config.rms_norm_eps,
        **_common(config),
    )
    backwards = {theirs: ours for ours, theirs in _NAMES.items()}
    return _filled(PlaitForCausalLM(plait_config), {_renamed(name, backwards): t for name, t in weights.items()})


def _only_options(config: PlaitConfig, kind: str) -> AttentionOptions:
    """The options that all layers share, if the class can express them."""
    found = {spec.options for spec in config.layers()}
    names = sorted({spec.mixer for spec in config.layers()})
    _require(names == ["attention"], kind, "layer_types", "+".join(names))
    _require(len(found) == 1, kind, "mixers", "several settings of attention")
    options = found.pop()
    assert isinstance(options, AttentionOptions)
    _require(options.qk_norm == (kind == "qwen3"), kind, "mixers.attention.qk_norm", options.qk_norm)
    _require(options.qk_norm_eps in (None, config.norm_eps), kind, "mixers.attention.qk_norm_eps", options.qk_norm_eps)
    _require(options.rope_base is not None, kind, "mixers.attention.rope_base", None)
    _require(options.window is None, kind, "mixers.attention.window", options.window)
    _require(not options.output_gate, kind, "mixers.attention.output_gate", True)
    _require(not options.use_short_conv, kind, "mixers.attention.use_short_conv", True)
    return options


def _sizes(config: PlaitConfig, options: AttentionOptions) -> dict[str, Any]:
    H, N, D = options.heads(config.dims)
    return {
        "num_hidden_layers": len(config.layers()),
        "num_attention_heads": H,
        "num_key_value_heads": N,
        "head_dim": D,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": options.rope_base},
        **_common(config) | {"intermediate_size": config.mlp_size},
    }


def _common(config: Any) -> dict[str, Any]:
    """Fields of the same name and meaning in plait and transformers."""
    fields = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "tie_word_embeddings",
        "initializer_range",
        "max_position_embeddings",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
    )
    return {field: getattr(config, field) for field in fields}


def _renamed(name: str, names: Mapping[str, str]) -> str:
    return re.sub("|".join(map(re.escape, names)), lambda match: names[match[0]], name)


def _filled(twin: Model, weights: Mapping[str, Tensor]) -> Model:
    """``twin`` with copies of the weights, in their precision."""
    twin.to(next(iter(weights.values())).dtype)  # type: ignore[arg-type]
    twin.load_state_dict(weights)
    return twin.eval()


def _require(holds: bool, kind: str, option: str, value: Any) -> None:
    if not holds:
        raise OptionError(f"{kind} and plait's attention differ in {option}={value!r}: there is no twin of this model.")
