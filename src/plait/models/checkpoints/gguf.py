"""Models as one file for llama.cpp, the tokenizer inside.

llama.cpp knows architectures, not layers: attention alone is its ``llama``, or its ``qwen3`` where queries and keys are
normed; Gated DeltaNet with gated attention is its ``qwen35``. What such a model must have is what the class of
transformers of the same name must have (:mod:`plait.models.checkpoints.llama`, ``qwen3_next``), and a little more.

Keys, names and the order of heads follow llama.cpp's ``conversion/`` and ``src/models/``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from plait.errors import OptionError
from plait.models.checkpoints.gguf_tokenizer import add_tokenizer
from plait.models.checkpoints.llama import Llama, Qwen3
from plait.models.checkpoints.qwen3_next import Qwen35
from plait.models.checkpoints.twin import Twin, Weights
from plait.models.configuration import PlaitConfig
from plait.models.decoder import PlaitForCausalLM

#: Endings of transformers' names, and llama.cpp's.
_OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    **{f"self_attn.{name}_proj": f"attn_{name}" for name in "qkv"},
    "self_attn.o_proj": "attn_output",
    **{f"self_attn.{name}_norm": f"attn_{name}_norm" for name in "qk"},
    **{f"mlp.{name}_proj": f"ffn_{name}" for name in ("gate", "up", "down")},
    "linear_attn.in_proj_qkv": "attn_qkv",
    "linear_attn.in_proj_z": "attn_gate",
    "linear_attn.in_proj_b": "ssm_beta",
    "linear_attn.in_proj_a": "ssm_alpha",
    "linear_attn.conv1d": "ssm_conv1d",
    "linear_attn.A_log": "ssm_a",
    "linear_attn.dt_bias": "ssm_dt.bias",
    "linear_attn.norm": "ssm_norm",
    "linear_attn.out_proj": "ssm_out",
}


class _Qwen35(Qwen35):
    """Qwen3.5 with norms as llama.cpp keeps them: around one, as plait does."""

    zero_centred: ClassVar[bool] = False


#: Architecture of llama.cpp, the class of transformers that it stands for, and llama.cpp's name of the second norm.
_ARCHITECTURES: dict[str, tuple[Twin, str]] = {
    "llama": (Llama(), "ffn_norm"),
    "qwen3": (Qwen3(), "ffn_norm"),
    "qwen35": (_Qwen35(), "post_attention_norm"),
}


def save_gguf(model: PlaitForCausalLM, file: Path, tokenizer: Any | None) -> None:
    """Write a model as one file that llama.cpp loads.

    Matrices keep the model's precision; norms, convolutions and other small tensors are fp32.

    Args:
        model: attention alone, or Gated DeltaNet and attention as Qwen3.5 has them.
        file: where to, ``*.gguf``; its folder is created.
        tokenizer: a byte-level BPE of transformers, or None to write none: the file then takes token ids only.

    Raises:
        OptionError: llama.cpp has no architecture for the plan or an option, no name for the tokenizer, or the package
            ``gguf`` is not installed.
    """
    gguf = _package()
    config = model.config
    kind = architecture(config)
    twin, _ = _ARCHITECTURES[kind]
    fields = twin.write_config(config, twin.settings(config))
    _check_layers(config, kind)
    file.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(file, kind)
    _add_sizes(writer, config, fields)
    if kind == "qwen35":
        _add_recurrence(writer, config, fields)
    add_tokenizer(gguf, writer, tokenizer, config.vocab_size)
    precision = _precision(gguf, model.dtype)
    writer.add_file_type(
        getattr(gguf.LlamaFileType, "ALL_F32" if precision.name == "F32" else f"MOSTLY_{precision.name}")
    )
    for name, tensor in gguf_weights(model).items():
        data, kept = tensor.detach().float().cpu().contiguous().numpy(), gguf.GGMLQuantizationType.F32
        if tensor.dim() == 2 and "ssm_conv1d" not in name:
            kept = precision
        writer.add_tensor(name, gguf.quants.quantize(data, kept), raw_dtype=kept)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def architecture(config: PlaitConfig) -> str:
    """llama.cpp's architecture for a model's layers.

    Raises:
        OptionError: it has none.
    """
    specs = config.layers()
    mixers = {spec.mixer for spec in specs}
    if mixers == {"attention"}:
        normed = {spec.options.qk_norm for spec in specs}  # type: ignore[attr-defined]
        return "qwen3" if True in normed else "llama"
    if mixers == {"gated_deltanet", "attention"}:
        return "qwen35"
    raise OptionError(
        f"layer_types has {' and '.join(sorted(mixers))}, but plait export --to gguf writes models of attention, or of "
        "gated_deltanet and attention: llama.cpp has no layers for the others."
    )


def gguf_weights(model: PlaitForCausalLM) -> dict[str, Tensor]:
    """All weights under llama.cpp's names and in its order of heads."""
    config = model.config
    kind = architecture(config)
    twin, second_norm = _ARCHITECTURES[kind]
    weights = dict(model.state_dict())
    for index, spec in enumerate(config.layers()):
        prefix = f"model.layers.{index}.attn."
        sizes = spec.options.heads(config.dims)  # type: ignore[attr-defined]
        if kind == "llama":
            _pair_neighbours(weights, prefix, *sizes)
        if spec.mixer == "gated_deltanet" and sizes.values != sizes.keys:
            _tile_value_heads(weights, prefix, sizes)
    written = {}
    for name, tensor in twin.write_weights(weights, config).items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if name.endswith("self_attn.o_proj.bias"):  # of zeros, which transformers wants beside those of q, k and v
            continue
        tensor = -tensor.float().exp() if name.endswith("A_log") else tensor
        tensor = tensor.squeeze(1) if name.endswith("conv1d.weight") else tensor
        written[_renamed(name, second_norm)] = tensor
    return written


def _package() -> Any:
    try:
        import gguf
    except ImportError:
        raise OptionError(
            'plait export --to gguf needs the package gguf: pip install gguf, or pip install -e ".[gguf]" in a clone.'
        ) from None
    return gguf


def _check_layers(config: PlaitConfig, kind: str) -> None:
    """What llama.cpp's architecture cannot say and transformers' class can."""
    for spec in config.layers():
        options: Any = spec.options
        if kind == "qwen3" and options.qkv_bias:
            raise OptionError(f"Layer type {spec.name!r}, option qkv_bias=True: llama.cpp's qwen3 has no biases.")
        if spec.mixer == "gated_deltanet":
            sizes = options.heads(config.dims)
            if sizes.K != sizes.V:
                raise OptionError(
                    f"Layer type {spec.name!r}, option expand_v={options.expand_v}: llama.cpp's qwen35 has value heads "
                    f"as wide as key heads, {sizes.K} channels and not {sizes.V}."
                )


def _add_sizes(writer: Any, config: PlaitConfig, fields: dict[str, Any]) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(len(config.layers()))
    writer.add_feed_forward_length(config.mlp_size)
    writer.add_head_count(fields["num_attention_heads"])
    writer.add_head_count_kv(fields["num_key_value_heads"])
    writer.add_key_length(fields["head_dim"])
    writer.add_value_length(fields["head_dim"])
    writer.add_layer_norm_rms_eps(config.norm_eps)
    rope = fields["rope_parameters"]
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(int(fields["head_dim"] * rope.get("partial_rotary_factor", 1.0)))
    if "mrope_section" in rope:
        writer.add_rope_dimension_sections([*rope["mrope_section"], 0])


def _add_recurrence(writer: Any, config: PlaitConfig, fields: dict[str, Any]) -> None:
    """Sizes of the recurrence, and which layers have it."""
    writer.add_ssm_conv_kernel(fields["linear_conv_kernel_dim"])
    writer.add_ssm_state_size(fields["linear_key_head_dim"])
    writer.add_ssm_group_count(fields["linear_num_key_heads"])
    writer.add_ssm_time_step_rank(fields["linear_num_value_heads"])
    writer.add_ssm_inner_size(fields["linear_value_head_dim"] * fields["linear_num_value_heads"])
    recurrent = [spec.mixer == "gated_deltanet" for spec in config.layers()]
    writer.add_array("qwen35.attention.recurrent_layers", recurrent)
    interval = recurrent.index(False) + 1
    if recurrent == [bool((index + 1) % interval) for index in range(len(recurrent))]:
        writer.add_full_attention_interval(interval)  # all that llama.cpp of before 2026 reads


def _precision(gguf: Any, dtype: torch.dtype) -> Any:
    names = {torch.float16: "F16", torch.bfloat16: "BF16"}
    return getattr(gguf.GGMLQuantizationType, names.get(dtype, "F32"))


def _renamed(name: str, second_norm: str) -> str:
    for theirs, ours in _OUTER.items():
        if name.startswith(f"{theirs}."):
            return ours + name.removeprefix(theirs)
    index, rest = name.removeprefix("model.layers.").split(".", 1)
    if rest == "post_attention_layernorm.weight":
        return f"blk.{index}.{second_norm}.weight"
    theirs = next(theirs for theirs in _LAYER if rest == theirs or rest.startswith(f"{theirs}."))
    return f"blk.{index}.{_LAYER[theirs]}{rest.removeprefix(theirs)}"


def _pair_neighbours(weights: Weights, prefix: str, heads: int, kv_heads: int, head_dim: int) -> None:
    """llama.cpp's ``llama`` turns channels 2i and 2i + 1 of a head together, plait i and i + D/2."""
    for name, count in (("q_proj", heads), ("k_proj", kv_heads)):
        for part in ("weight", "bias"):
            tensor = weights.get(f"{prefix}{name}.{part}")
            if tensor is not None:
                halves = tensor.unflatten(0, (count, 2, head_dim // 2))
                weights[f"{prefix}{name}.{part}"] = halves.transpose(1, 2).flatten(0, 2)


def _tile_value_heads(weights: Weights, prefix: str, sizes: Any) -> None:
    """Value heads of one key head stand side by side in plait, and one round of all key heads apart in llama.cpp."""
    groups, group = sizes.keys, sizes.values // sizes.keys
    for name, axis, width in (
        ("v_proj.weight", 0, sizes.V),
        ("g_proj.weight", 0, sizes.V),
        ("v_conv1d.weight", 0, sizes.V),
        ("b_proj.weight", 0, 1),
        ("a_proj.weight", 0, 1),
        ("A_log", 0, 1),
        ("dt_bias", 0, 1),
        ("o_proj.weight", 1, sizes.V),
    ):
        heads = weights[prefix + name].unflatten(axis, (groups, group, width))
        weights[prefix + name] = heads.transpose(axis, axis + 1).flatten(axis, axis + 2)
