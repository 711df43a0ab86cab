"""Models of softmax attention only: Llama and Qwen3.

A Qwen3 decoder is a Llama decoder with an RMS norm on every query and key head. plait names the parameters otherwise,
and neither the order nor the halves of the rotary pairs differ, so the weights are only renamed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from plait.models.checkpoints.twin import Twin, Weights, backwards, common_fields, renamed
from plait.models.configuration import LayerSpec, PlaitConfig

#: plait's name of a part of a layer, transformers' name of it.
_NAMES = [
    ("attn_norm.", "input_layernorm."),
    ("mlp_norm.", "post_attention_layernorm."),
    ("attn.", "self_attn."),
]


class Llama(Twin):
    """Attention with biases or without."""

    model_type: ClassVar[str] = "llama"
    title: ClassVar[str] = "Llama"
    architecture: ClassVar[str] = "Llama"
    mixers: ClassVar[tuple[str, ...]] = ("attention",)
    qk_norm: ClassVar[bool] = False
    fields: ClassVar[tuple[str, ...]] = ("mlp_bias", "use_sliding_window", "sliding_window", "max_window_layers")

    def read_config(self, config: Any) -> PlaitConfig:
        windows = sorted({kind for kind in getattr(config, "layer_types", None) or () if kind != "full_attention"})
        if windows:
            raise self.refuse("layer_types", windows[0], "plait reads full attention only here")
        self.require_field(config, "hidden_act", "silu")
        self.require_field(config, "mlp_bias", False)
        self.require_field(config, "use_sliding_window", False)
        attention = {
            "num_heads": config.num_attention_heads,
            "num_kv_heads": config.num_key_value_heads,
            "head_dim": getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            "qkv_bias": config.attention_bias,
            "qk_norm": self.qk_norm,
            **self.rope(config),
        }
        return PlaitConfig(
            layer_types=["attention"] * config.num_hidden_layers,
            mixers={"attention": attention},
            norm_eps=config.rms_norm_eps,
            **common_fields(config),
        )

    def write_config(self, config: PlaitConfig, settings: Mapping[str, LayerSpec]) -> dict[str, Any]:
        spec = settings["attention"]
        options: Any = spec.options
        self.require_pre_norm(config)
        self.require(spec, qk_norm=self.qk_norm, window=None, output_gate=False, use_short_conv=False)
        self.require(spec, partial_rotary_factor=1.0, qk_norm_per_head=True, logit_scaling=None)
        if options.qk_norm_eps is not None:
            self.require(spec, qk_norm_eps=config.norm_eps)
        if options.rope_base is None:
            raise self.refuse("mixers.attention.rope_base", None, "its attention always has rotary positions")
        H, N, D = options.heads(config.dims)
        return {
            "num_attention_heads": H,
            "num_key_value_heads": N,
            "head_dim": D,
            "rope_parameters": {"rope_type": "default", "rope_theta": options.rope_base},
            "attention_bias": options.qkv_bias,
        }

    def read_layer(self, weights: Weights, spec: LayerSpec, config: PlaitConfig) -> Weights:
        return renamed(without_output_bias(self, weights), backwards(_NAMES))

    def write_layer(self, weights: Weights, spec: LayerSpec, config: PlaitConfig) -> Weights:
        return renamed(with_output_bias(weights), _NAMES)


class Qwen3(Llama):
    """Llama with a norm on every query and key head."""

    model_type: ClassVar[str] = "qwen3"
    title: ClassVar[str] = "Qwen3"
    architecture: ClassVar[str] = "Qwen3"
    qk_norm: ClassVar[bool] = True


def without_output_bias(twin: Twin, weights: Weights) -> Weights:
    """The weights of a layer without the bias of ``o_proj``, which must be zero since plait has none."""
    weights = dict(weights)
    bias = weights.pop("self_attn.o_proj.bias", None)
    if bias is not None and bool(bias.any()):
        raise twin.refuse("attention_bias", "a bias on o_proj", "plait has biases on q, k and v only")
    return weights


def with_output_bias(weights: Weights) -> Weights:
    """Where q, k and v have biases, transformers' layers have one on the output projection as well."""
    if "attn.q_proj.bias" not in weights:
        return weights
    return weights | {"attn.o_proj.bias": weights["attn_norm.weight"].new_zeros(len(weights["attn.o_proj.weight"]))}
