"""Hybrids of Qwen: Gated DeltaNet and gated attention, with partial rotary positions and norms centred at zero.

Qwen3-Next stores the projections of one key head side by side; Qwen3.5 keeps each projection whole. In both, one
convolution runs over q, k and v, and the rows of attention's output gate follow those of each query head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from plait.models.checkpoints.twin import Twin, Weights, backwards, common_fields, join_rows, renamed, split_rows
from plait.models.configuration import LayerSpec, PlaitConfig

_NORMS = [("attn_norm.", "input_layernorm."), ("mlp_norm.", "post_attention_layernorm.")]
_ATTENTION = [*_NORMS, ("attn.", "self_attn.")]
_LINEAR = [
    *_NORMS,
    ("attn.o_norm.", "linear_attn.norm."),
    ("attn.o_proj.", "linear_attn.out_proj."),
    ("attn.", "linear_attn."),
]
_KINDS = {"linear_attention": "gated_deltanet", "full_attention": "attention"}


class Qwen3Next(Twin):
    """Qwen3-Next with dense feed-forwards."""

    model_type: ClassVar[str] = "qwen3_next"
    title: ClassVar[str] = "Qwen3-Next"
    architecture: ClassVar[str] = "Qwen3Next"
    mixers: ClassVar[tuple[str, ...]] = ("gated_deltanet", "attention")
    zero_centred: ClassVar[bool] = True
    fields: ClassVar[tuple[str, ...]] = (
        *(f"linear_{name}" for name in ("num_key_heads", "num_value_heads", "key_head_dim", "value_head_dim")),
        "linear_conv_kernel_dim",
        *("mlp_only_layers", "num_experts", "decoder_sparse_step", "num_experts_per_tok", "norm_topk_prob"),
        *("moe_intermediate_size", "shared_expert_intermediate_size", "full_attention_interval"),
        *("attn_output_gate", "mamba_ssm_dtype"),
    )

    def read_config(self, config: Any) -> PlaitConfig:
        self.require_dense(config)
        self.require_field(config, "hidden_act", "silu")
        self.require_field(config, "attention_bias", False)
        self.require_field(config, "attn_output_gate", True)
        mixers = {
            "gated_deltanet": {
                "num_heads": config.linear_num_key_heads,
                "num_v_heads": config.linear_num_value_heads,
                "head_dim": config.linear_key_head_dim,
                "expand_v": config.linear_value_head_dim / config.linear_key_head_dim,
                "conv_size": config.linear_conv_kernel_dim,
            },
            "attention": {
                "num_heads": config.num_attention_heads,
                "num_kv_heads": config.num_key_value_heads,
                "head_dim": config.head_dim,
                "qk_norm": True,
                "output_gate": True,
                **self.rope(config),
            },
        }
        plan = [_KINDS[kind] for kind in config.layer_types]
        return PlaitConfig(
            layer_types=plan,
            mixers={name: options for name, options in mixers.items() if name in plan},
            norm_eps=config.rms_norm_eps,
            **common_fields(config),
        )

    def require_dense(self, config: Any) -> None:
        """No layer is a mixture of experts."""
        sparse = [
            index
            for index in range(config.num_hidden_layers)
            if index not in config.mlp_only_layers
            and config.num_experts > 0
            and (index + 1) % config.decoder_sparse_step == 0
        ]
        if sparse:
            reason = f"{len(sparse)} layers are mixtures of experts, and plait has dense feed-forwards only"
            raise self.refuse("num_experts", config.num_experts, reason)

    def write_config(self, config: PlaitConfig, settings: Mapping[str, LayerSpec]) -> dict[str, Any]:
        self.require_pre_norm(config)
        kinds = {mixer: kind for kind, mixer in _KINDS.items()}
        fields: dict[str, Any] = {"layer_types": [kinds[spec.mixer] for spec in config.layers()], **self.dense(config)}
        if "gated_deltanet" in settings:
            fields |= self._linear_fields(config, settings["gated_deltanet"])
        if "attention" in settings:
            fields |= self._attention_fields(config, settings["attention"])
        return fields

    def dense(self, config: PlaitConfig) -> dict[str, Any]:
        """The fields that say that no layer is a mixture of experts."""
        return {"num_experts": 0, "mlp_only_layers": list(range(len(config.layers())))}

    def _linear_fields(self, config: PlaitConfig, spec: LayerSpec) -> dict[str, Any]:
        options: Any = spec.options
        self.require(spec, use_gate=True, output_gate_activation="silu", use_short_conv=True, allow_neg_eigval=False)
        if options.norm_eps is not None:
            self.require(spec, norm_eps=config.norm_eps)
        heads = options.heads(config.dims)
        return {
            "linear_num_key_heads": heads.keys,
            "linear_num_value_heads": heads.values,
            "linear_key_head_dim": heads.K,
            "linear_value_head_dim": heads.V,
            "linear_conv_kernel_dim": options.conv_size,
        }

    def _attention_fields(self, config: PlaitConfig, spec: LayerSpec) -> dict[str, Any]:
        options: Any = spec.options
        self.require(spec, output_gate=True, qk_norm=True, qk_norm_per_head=True)
        self.require(spec, window=None, qkv_bias=False, use_short_conv=False, logit_scaling=None)
        if options.qk_norm_eps is not None:
            self.require(spec, qk_norm_eps=config.norm_eps)
        if options.rope_base is None:
            raise self.refuse(f"mixers.{spec.name}.rope_base", None, "its attention always has rotary positions")
        H, N, D = options.heads(config.dims)
        return {
            "num_attention_heads": H,
            "num_key_value_heads": N,
            "head_dim": D,
            "rope_parameters": self.rope_fields(options, D),
        }

    def rope_fields(self, options: Any, head_dim: int) -> dict[str, Any]:
        """``rope_parameters`` of the configuration."""
        return {
            "rope_type": "default",
            "rope_theta": options.rope_base,
            "partial_rotary_factor": options.partial_rotary_factor,
        }

    def read_layer(self, weights: Weights, spec: LayerSpec, config: PlaitConfig) -> Weights:
        options: Any = spec.options
        if spec.mixer == "attention":
            H, _, D = options.heads(config.dims)
            weights = renamed(weights, backwards(_ATTENTION))
            split_rows(weights, "attn.q_proj.weight", {"attn.q_proj.weight": D, "attn.g_proj.weight": D}, H)
            return weights
        heads = options.heads(config.dims)
        weights = renamed(weights, backwards(_LINEAR))
        self.split_projections(weights, heads)
        width = {"q": heads.key_width, "k": heads.key_width, "v": heads.value_width}
        split_rows(weights, "attn.conv1d.weight", {f"attn.{name}_conv1d.weight": size for name, size in width.items()})
        return weights

    def write_layer(self, weights: Weights, spec: LayerSpec, config: PlaitConfig) -> Weights:
        options: Any = spec.options
        weights = dict(weights)
        if spec.mixer == "attention":
            H = options.heads(config.dims)[0]
            join_rows(weights, "attn.q_proj.weight", ["attn.q_proj.weight", "attn.g_proj.weight"], H)
            return renamed(weights, _ATTENTION)
        self.join_projections(weights, options.heads(config.dims))
        join_rows(weights, "attn.conv1d.weight", [f"attn.{name}_conv1d.weight" for name in "qkv"])
        return renamed(weights, _LINEAR)

    def split_projections(self, weights: Weights, heads: Any) -> None:
        """Take the fused projections apart; each key head has its q, k, values and gates, then strengths and decays."""
        group = heads.values // heads.keys
        sizes = {"q": heads.K, "k": heads.K, "v": group * heads.V, "g": group * heads.V}
        parts = {f"attn.{name}_proj.weight": size for name, size in sizes.items()}
        split_rows(weights, "attn.in_proj_qkvz.weight", parts, heads.keys)
        parts = {"attn.b_proj.weight": group, "attn.a_proj.weight": group}
        split_rows(weights, "attn.in_proj_ba.weight", parts, heads.keys)

    def join_projections(self, weights: Weights, heads: Any) -> None:
        """The way back of :meth:`split_projections`."""
        join_rows(weights, "attn.in_proj_qkvz.weight", [f"attn.{name}_proj.weight" for name in "qkvg"], heads.keys)
        join_rows(weights, "attn.in_proj_ba.weight", [f"attn.{name}_proj.weight" for name in "ba"], heads.keys)


class Qwen35(Qwen3Next):
    """The text model of a dense Qwen3.5: the same layers, each projection for itself.

    Its positions have three axes, for images; in a text all three are the index of the token.
    """

    model_type: ClassVar[str] = "qwen3_5_text"
    title: ClassVar[str] = "Qwen3.5"
    architecture: ClassVar[str] = "Qwen3_5"

    def read_config(self, config: Any) -> PlaitConfig:
        return super().read_config(config.get_text_config())

    def check_fields(self, config: Any) -> None:
        super().check_fields(config.get_text_config())

    def classes(self) -> tuple[Any, Any]:
        import transformers

        model = super().classes()[1]
        return transformers.Qwen3_5TextConfig, model

    def require_dense(self, config: Any) -> None:
        """This class has no experts."""

    def dense(self, config: PlaitConfig) -> dict[str, Any]:
        return {}

    def rope_fields(self, options: Any, head_dim: int) -> dict[str, Any]:
        pairs = options.rotated(head_dim) // 2
        sections = [(pairs + rest) // 3 for rest in (2, 1, 0)]
        return super().rope_fields(options, head_dim) | {"mrope_section": sections, "mrope_interleaved": True}

    def split_projections(self, weights: Weights, heads: Any) -> None:
        width = {"q": heads.key_width, "k": heads.key_width, "v": heads.value_width}
        parts = {f"attn.{name}_proj.weight": size for name, size in width.items()}
        split_rows(weights, "attn.in_proj_qkv.weight", parts)
        for name, ours in (("z", "g"), ("b", "b"), ("a", "a")):
            weights[f"attn.{ours}_proj.weight"] = weights.pop(f"attn.in_proj_{name}.weight")

    def join_projections(self, weights: Weights, heads: Any) -> None:
        join_rows(weights, "attn.in_proj_qkv.weight", [f"attn.{name}_proj.weight" for name in "qkv"])
        for name, ours in (("z", "g"), ("b", "b"), ("a", "a")):
            weights[f"attn.in_proj_{name}.weight"] = weights.pop(f"attn.{ours}_proj.weight")
