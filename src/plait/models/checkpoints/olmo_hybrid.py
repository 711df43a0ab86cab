"""OLMo-Hybrid: Gated DeltaNet with norms in front, and attention with norms behind and over all heads together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from plait.errors import OptionError
from plait.models.checkpoints.llama import with_output_bias, without_output_bias
from plait.models.checkpoints.twin import Twin, Weights, backwards, common_fields, join_rows, renamed, split_rows
from plait.models.configuration import LayerSpec, PlaitConfig

_ATTENTION = [
    ("attn_norm.", "post_attention_layernorm."),
    ("mlp_norm.", "post_feedforward_layernorm."),
    ("attn.", "self_attn."),
]
_LINEAR = [
    ("attn_norm.", "input_layernorm."),
    ("mlp_norm.", "post_attention_layernorm."),
    ("attn.", "linear_attn."),
]
_KINDS = {"linear_attention": "gated_deltanet", "full_attention": "attention"}
#: Epsilon of the norm behind the recurrence, whatever the configuration says.
_NORM_EPS = 1e-5


class OlmoHybrid(Twin):
    """OLMo-Hybrid."""

    model_type: ClassVar[str] = "olmo_hybrid"
    title: ClassVar[str] = "OLMo-Hybrid"
    architecture: ClassVar[str] = "OlmoHybrid"
    mixers: ClassVar[tuple[str, ...]] = ("gated_deltanet", "attention")
    fields: ClassVar[tuple[str, ...]] = (
        *(f"linear_{name}" for name in ("num_key_heads", "num_value_heads", "key_head_dim", "value_head_dim")),
        *("linear_conv_kernel_dim", "linear_allow_neg_eigval", "linear_use_gate"),
        *(f"linear_{name}" for name in ("a_log_min", "a_log_max", "dt_min", "dt_max", "dt_init_floor")),  # of the start
    )

    def read_config(self, config: Any) -> PlaitConfig:
        self.require_field(config, "hidden_act", "silu")
        self.require_field(config, "linear_use_gate", True)
        linear = {
            "num_heads": config.linear_num_key_heads,
            "num_v_heads": config.linear_num_value_heads,
            "head_dim": config.linear_key_head_dim,
            "expand_v": config.linear_value_head_dim / config.linear_key_head_dim,
            "conv_size": config.linear_conv_kernel_dim,
            "allow_neg_eigval": config.linear_allow_neg_eigval,
            "norm_eps": _NORM_EPS,
        }
        attention = {
            "num_heads": config.num_attention_heads,
            "num_kv_heads": config.num_key_value_heads,
            "head_dim": getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            "qkv_bias": config.attention_bias,
            "qk_norm": True,
            "qk_norm_per_head": False,
            **self.rope(config),
        }
        return PlaitConfig(
            layer_types=[_KINDS[kind] for kind in config.layer_types],
            mixers={"gated_deltanet": linear, "attention": attention},
            norm_eps=config.rms_norm_eps,
            post_norm=["attention"],
            **common_fields(config),
        )

    def write_config(self, config: PlaitConfig, settings: Mapping[str, LayerSpec]) -> dict[str, Any]:
        missing = [mixer for mixer in self.mixers if mixer not in settings]
        if missing:
            raise OptionError(f"layer_types has no {missing[0]}, but {self.title} has layers of both kinds.")
        behind = {spec.mixer for spec in config.layers() if spec.name in (config.post_norm or ())}
        before = {spec.mixer for spec in config.layers() if spec.name not in (config.post_norm or ())}
        if behind != {"attention"} or before != {"gated_deltanet"}:
            reason = "it norms the inputs of gated_deltanet and the outputs of attention"
            raise self.refuse("post_norm", config.post_norm, reason)
        kinds = {mixer: kind for kind, mixer in _KINDS.items()}
        return {
            "layer_types": [kinds[spec.mixer] for spec in config.layers()],
            **self._linear_fields(config, settings["gated_deltanet"]),
            **self._attention_fields(config, settings["attention"]),
        }

    def _linear_fields(self, config: PlaitConfig, spec: LayerSpec) -> dict[str, Any]:
        options: Any = spec.options
        self.require(spec, use_gate=True, output_gate_activation="silu", use_short_conv=True)
        if options.norm_eps is not None or config.norm_eps != _NORM_EPS:
            self.require(spec, norm_eps=_NORM_EPS)
        heads = options.heads(config.dims)
        return {
            "linear_num_key_heads": heads.keys,
            "linear_num_value_heads": heads.values,
            "linear_key_head_dim": heads.K,
            "linear_value_head_dim": heads.V,
            "linear_conv_kernel_dim": options.conv_size,
            "linear_allow_neg_eigval": options.allow_neg_eigval,
        }

    def _attention_fields(self, config: PlaitConfig, spec: LayerSpec) -> dict[str, Any]:
        options: Any = spec.options
        self.require(spec, qk_norm=True, qk_norm_per_head=False, output_gate=False, window=None)
        self.require(spec, use_short_conv=False, partial_rotary_factor=1.0, logit_scaling=None)
        if options.qk_norm_eps is not None:
            self.require(spec, qk_norm_eps=config.norm_eps)
        H, N, D = options.heads(config.dims)
        if config.hidden_size != H * D:
            raise self.refuse(f"mixers.{spec.name}.head_dim", D, "its heads are hidden_size / num_heads wide")
        return {
            "num_attention_heads": H,
            "num_key_value_heads": N,
            "attention_bias": options.qkv_bias,
            "rope_parameters": {"rope_type": "default", "rope_theta": options.rope_base},  # None: no positions
        }

    def read_layer(self, weights: Weights, spec: LayerSpec, config: PlaitConfig) -> Weights:
        if spec.mixer == "attention":
            return renamed(without_output_bias(self, weights), backwards(_ATTENTION))
        options: Any = spec.options
        heads = options.heads(config.dims)
        weights = renamed(weights, backwards(_LINEAR))
        width = {"q": heads.key_width, "k": heads.key_width, "v": heads.value_width}
        split_rows(weights, "attn.conv1d.weight", {f"attn.{name}_conv1d.weight": size for name, size in width.items()})
        return weights

    def write_layer(self, weights: Weights, spec: LayerSpec, config: PlaitConfig) -> Weights:
        if spec.mixer == "attention":
            return renamed(with_output_bias(weights), _ATTENTION)
        weights = dict(weights)
        join_rows(weights, "attn.conv1d.weight", [f"attn.{name}_conv1d.weight" for name in "qkv"])
        return renamed(weights, _LINEAR)
