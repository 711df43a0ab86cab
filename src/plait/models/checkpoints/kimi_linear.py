"""Kimi Linear with dense feed-forwards: Kimi Delta Attention, and latent attention without positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from plait.errors import OptionError
from plait.models.checkpoints.twin import Twin, Weights, backwards, common_fields, join_rows, renamed, split_rows
from plait.models.configuration import LayerSpec, PlaitConfig

_NORMS = [("attn_norm.", "input_layernorm."), ("mlp_norm.", "post_attention_layernorm.")]
_LINEAR = [
    *_NORMS,
    ("attn.f_proj.0.", "self_attn.forget_gate.f_a_proj."),
    ("attn.f_proj.1.", "self_attn.forget_gate.f_b_proj."),
    ("attn.A_log", "self_attn.forget_gate.A_log"),
    ("attn.dt_bias", "self_attn.forget_gate.dt_bias"),
    ("attn.g_proj.0.", "self_attn.g_a_proj."),
    ("attn.g_proj.1.", "self_attn.g_b_proj."),
    ("attn.", "self_attn."),
]
_FULL = [
    *_NORMS,
    ("attn.q_a_norm.", "self_attn.q_a_layernorm."),
    ("attn.kv_a_norm.", "self_attn.kv_a_layernorm."),
    ("attn.kv_a_proj.", "self_attn.kv_a_proj_with_mqa."),
    ("attn.", "self_attn."),
]
_KINDS = {"linear_attention": "kda", "full_attention": "mla"}
#: The class has a head of its own, whatever the configuration says.
_UNTIED = {"tie_word_embeddings": False}
#: Epsilon of the norms of latent vectors, whatever the configuration says.
_LATENT_EPS = 1e-6


class KimiLinear(Twin):
    """Kimi Linear without its mixtures of experts, which plait does not have."""

    model_type: ClassVar[str] = "kimi_linear"
    title: ClassVar[str] = "Kimi Linear"
    architecture: ClassVar[str] = "KimiLinear"
    mixers: ClassVar[tuple[str, ...]] = ("kda", "mla")
    fields: ClassVar[tuple[str, ...]] = (
        *("linear_num_heads", "linear_head_dim", "linear_conv_kernel_dim", "model_max_length"),
        *("kv_lora_rank", "q_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "qk_head_dim", "v_head_dim"),
        *("mlp_layer_types", "num_experts", "num_shared_experts", "num_experts_per_token", "moe_intermediate_size"),
        *("routed_scaling_factor", "num_expert_group", "topk_group", "moe_renormalize"),
    )

    def read_config(self, config: Any) -> PlaitConfig:
        self.require_field(config, "hidden_act", "silu")
        self.require_field(config, "attention_bias", False)
        if config.num_key_value_heads != config.num_attention_heads:
            reason = f"latent attention has as many key as query heads, {config.num_attention_heads} here"
            raise self.refuse("num_key_value_heads", config.num_key_value_heads, reason)
        sparse = [kind for kind in config.mlp_layer_types if kind != "dense"]
        if sparse:
            reason = f"{len(sparse)} layers are mixtures of experts, and plait has dense feed-forwards only"
            raise self.refuse("mlp_layer_types", "sparse", reason)
        mixers = {
            "kda": {
                "num_heads": config.linear_num_heads,
                "head_dim": config.linear_head_dim,
                "conv_size": config.linear_conv_kernel_dim,
                "output_gate_bias": False,
            },
            "mla": {
                "num_heads": config.num_attention_heads,
                "qk_nope_head_dim": config.qk_nope_head_dim,
                "qk_rope_head_dim": config.qk_rope_head_dim,
                "v_head_dim": config.v_head_dim,
                "kv_lora_rank": config.kv_lora_rank,
                "q_lora_rank": config.q_lora_rank,
                "rope_base": None,
                "norm_eps": _LATENT_EPS,
            },
        }
        plan = [_KINDS[kind] for kind in config.layer_types]
        return PlaitConfig(
            layer_types=plan,
            mixers={name: options for name, options in mixers.items() if name in plan},
            norm_eps=config.rms_norm_eps,
            **common_fields(config) | _UNTIED,
        )

    def write_config(self, config: PlaitConfig, settings: Mapping[str, LayerSpec]) -> dict[str, Any]:
        self.require_pre_norm(config)
        if "mla" not in settings:
            raise OptionError(f"layer_types has no mla, and a {self.title} model without it cannot generate.")
        kinds = {mixer: kind for kind, mixer in _KINDS.items()}
        fields = {
            "layer_types": [kinds[spec.mixer] for spec in config.layers()],
            "mlp_layer_types": ["dense"] * len(config.layers()),
            **_UNTIED,
            **self._full_fields(config, settings["mla"]),
        }
        return fields | (self._linear_fields(config, settings["kda"]) if "kda" in settings else {})

    def _linear_fields(self, config: PlaitConfig, spec: LayerSpec) -> dict[str, Any]:
        options: Any = spec.options
        self.require(spec, use_short_conv=True, allow_neg_eigval=False, lower_bound=None, output_gate_bias=False)
        self.require(spec, expand_v=1.0)
        heads = options.heads(config.dims)
        if heads.values != heads.keys:
            self.require(spec, num_v_heads=None)
        return {
            "linear_num_heads": heads.keys,
            "linear_head_dim": heads.K,
            "linear_conv_kernel_dim": options.conv_size,
        }

    def _full_fields(self, config: PlaitConfig, spec: LayerSpec) -> dict[str, Any]:
        options: Any = spec.options
        self.require(spec, rope_base=None)
        if options.norm_eps is not None or config.norm_eps != _LATENT_EPS:
            self.require(spec, norm_eps=_LATENT_EPS)
        sizes = options.heads(config.dims)
        return {
            "num_attention_heads": sizes.heads,
            "num_key_value_heads": sizes.heads,
            "qk_nope_head_dim": sizes.plain,
            "qk_rope_head_dim": sizes.rotated,
            "v_head_dim": sizes.values,
            "kv_lora_rank": sizes.latent,
            "q_lora_rank": options.q_lora_rank,
        }

    def read_layer(self, weights: Weights, spec: LayerSpec, config: PlaitConfig) -> Weights:
        if spec.mixer == "mla":
            return renamed(weights, backwards(_FULL))
        options: Any = spec.options
        weights = renamed(weights, backwards(_LINEAR))
        weights["attn.A_log"] = weights["attn.A_log"].flatten()
        width = options.heads(config.dims).key_width
        split_rows(weights, "attn.conv1d.weight", {f"attn.{name}_conv1d.weight": width for name in "qkv"})
        return weights

    def write_layer(self, weights: Weights, spec: LayerSpec, config: PlaitConfig) -> Weights:
        if spec.mixer == "mla":
            return renamed(weights, _FULL)
        weights = dict(weights)
        weights["attn.A_log"] = weights["attn.A_log"].view(1, 1, -1, 1)
        join_rows(weights, "attn.conv1d.weight", [f"attn.{name}_conv1d.weight" for name in "qkv"])
        return renamed(weights, _LINEAR)
