"""The ``config.json`` of flash-linear-attention (fla), to :class:`~plait.models.PlaitConfig` and back.

A hybrid is the configuration of a linear model plus ``attn``: one attention setting with the layers that have it, or a
list of such settings. Fields as in fla-org/flash-linear-attention, ``fla/models/*/configuration_*.py`` and
``fla/models/hybrid.py``; what each of them does was read in ``fla/layers`` and ``fla/models/*/modeling_*.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from plait.errors import OptionError
from plait.models.checkpoints.fields import refuse_unknown, sentence
from plait.models.configuration import LayerSpec, PlaitConfig
from plait.models.plan import full_layers


@dataclass(frozen=True)
class Family:
    """What the files of one ``model_type`` say about their mixer.

    Args:
        mixer: its name in plait.
        architecture: its class in fla.
        fields: options that a file must give; fla and plait name them alike.
        later: options that a file may lack, with the value that it means by that.
        fixed: options of plait that fla has no field for, with the value that its layers have.
        ignored: fields that fla writes but does not hand to its layers.
    """

    mixer: str
    architecture: str
    fields: tuple[str, ...]
    later: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()


_CONVOLUTION = ("use_short_conv", "conv_size")
#: Options of attention that fla has no field for. Its norm of queries and keys keeps the epsilon of its norm layer.
_PLAIN_ATTENTION: dict[str, Any] = {"output_gate": False, "use_short_conv": False, "partial_rotary_factor": 1.0}
_PLAIN_ATTENTION |= {"qk_norm_per_head": True, "logit_scaling": None}
_QK_NORM_EPS = 1e-5

FAMILIES = {
    "retnet": Family(
        "retnet",
        "RetNetForCausalLM",
        ("num_heads", "expand_k", "expand_v", "use_output_gate"),
        later={"num_kv_heads": None},
        fixed={"rope_base": 10000.0, "use_short_conv": False},
        ignored=_CONVOLUTION,
    ),
    "hgrn": Family("hgrn", "HGRNForCausalLM", ("expand_ratio", "use_lower_bound", *_CONVOLUTION)),
    "hgrn2": Family(
        "hgrn2",
        "HGRN2ForCausalLM",
        ("use_lower_bound", *_CONVOLUTION),
        later={"expand_ratio": None, "num_heads": None},
        fixed={"norm_eps": 1e-5},  # its layer never hands norm_eps to the norm of the read-out
    ),
    "gla": Family(
        "gla",
        "GLAForCausalLM",
        ("num_heads", "expand_k", "expand_v", "use_output_gate", *_CONVOLUTION),
        later={"num_kv_heads": None, "clamp_min": None},
        fixed={"gate_low_rank_dim": 16, "gate_logit_normalizer": 16},
        ignored=("use_gk", "use_gv"),
    ),
    "delta_net": Family(
        "deltanet",
        "DeltaNetForCausalLM",
        ("num_heads", "expand_k", "expand_v", "use_beta", "use_gate", "qk_norm", "qk_activation", *_CONVOLUTION),
        later={"allow_neg_eigval": False},
        ignored=("use_output_norm",),
    ),
    "gated_deltanet": Family(
        "gated_deltanet",
        "GatedDeltaNetForCausalLM",
        ("num_heads", "head_dim", "expand_v", "use_gate", *_CONVOLUTION),
        later={"num_v_heads": None, "allow_neg_eigval": False, "output_gate_activation": "swish"},
        fixed={"norm_eps": None},
    ),
    "kda": Family(
        "kda",
        "KDAForCausalLM",
        ("num_heads", "head_dim", "expand_v", *_CONVOLUTION),
        later={"num_v_heads": None, "allow_neg_eigval": False, "lower_bound": None},
        fixed={"output_gate_bias": True},
        ignored=("safe_gate",),
    ),
    "transformer": Family("attention", "TransformerForCausalLM", ("num_heads",), later={"qk_norm": False}),
}

#: Fields of an attention setting: the option of plait, and the value that a file without the field means.
_ATTENTION = {
    "num_kv_heads": ("num_kv_heads", None),
    "qkv_bias": ("qkv_bias", False),
    "window_size": ("window", None),
    "rope_theta": ("rope_base", 10000.0),
}

_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "norm_eps")
#: Fields of every family that plait has too, with their value in a file that lacks them.
_COMMON = {
    "hidden_ratio": 4,
    "intermediate_size": None,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
    "use_cache": True,
    "max_position_embeddings": 2048,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_INTEGERS = ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "max_position_embeddings")
_NUMBERS = ("norm_eps", "hidden_ratio", "initializer_range")
_SWITCHES = ("tie_word_embeddings", "use_cache")
#: More layers than this, and larger sizes, are a damaged file.
_MOST_LAYERS, _LARGEST = 10_000, 2**31
#: Fields whose other values change the model in a way that plait does not have.
_ONLY: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("swish", "silu"),
    "elementwise_affine": (True,),
    "feature_map": (None,),
    "attnres_block_size": (None,),
    "norm_first": (False,),
    "rope_scaling": (None,),
    "attention_bias": (False,),
    "use_rope": (False,),
    "use_elu": (False,),
}
#: Fields that choose a kernel or a loss, or that transformers writes; nothing that is computed depends on them.
_HARMLESS = {"attn_mode", "fuse_norm", "fuse_swiglu", "fuse_cross_entropy", "fuse_linear_cross_entropy", "use_l2warp"}
_HARMLESS |= {"attn", "chunk_size", "attention_dropout"}
#: What fla calls ``sum``, before version 0.6 and since.
_SUMS = ("signed_sum", "abs_sum")


def from_fla_config(values: Mapping[str, Any], source: str) -> PlaitConfig:
    """The configuration that a ``config.json`` of fla describes.

    Args:
        values: its content.
        source: its path, for messages.

    Raises:
        OptionError: a field that is missing, has a value that plait cannot express, or is not known; names field, value
            and file.
    """
    try:
        return _parsed(values)
    except OptionError as error:
        raise OptionError(f"{source}: {sentence(error)}") from None


def to_fla_config(config: PlaitConfig) -> dict[str, Any]:
    """The ``config.json`` of fla for a model of plait.

    Raises:
        OptionError: fla has no field for this plan or option; names it.
    """
    if config.post_norm:
        raise OptionError(f"post_norm={config.post_norm!r}: fla's layout cannot say so, its blocks norm their inputs.")
    specs = {spec.name: spec for spec in config.layers()}
    attention = {name: spec for name, spec in specs.items() if spec.mixer == "attention"}
    linear = [spec for name, spec in specs.items() if name not in attention]
    if len(linear) > 1:
        names = " and ".join(repr(spec.name) for spec in linear)
        raise OptionError(f"layer_types has {names}, but an fla file holds one linear mixer, beside attention.")
    if not linear and len(attention) > 1:
        names = " and ".join(map(repr, attention))
        raise OptionError(f"layer_types has {names}, but fla's transformer has one attention setting for all layers.")
    mixer = linear[0] if linear else next(iter(attention.values()))
    model_type = next((name for name, family in FAMILIES.items() if family.mixer == mixer.mixer), None)
    if model_type is None:
        raise OptionError(f"layer_types has {mixer.name!r}, but fla's layout has no model type for {mixer.mixer!r}.")
    family = FAMILIES[model_type]
    values: dict[str, Any] = {"architectures": [family.architecture], "model_type": model_type}
    values |= {name: getattr(config, name) for name in (*_SIZES, *_COMMON)}
    if linear:
        values |= _mixer_fields(config, mixer, family)
        settings = [_attention_fields(config, spec, hybrid=True) for spec in attention.values()]
        values["attn"] = None if not settings else settings[0] if len(settings) == 1 else settings
    else:
        values |= _attention_fields(config, mixer, hybrid=False)
    return values


def _parsed(values: Mapping[str, Any]) -> PlaitConfig:
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise OptionError(f"model_type={model_type!r} is not one of {', '.join(FAMILIES)}.")
    family = FAMILIES[model_type]
    for name, allowed in _ONLY.items():
        if name in values and values[name] not in allowed:
            raise OptionError(f"{name}={values[name]!r} cannot be expressed, only {' or '.join(map(repr, allowed))}.")
    lacking = [name for name in (*_SIZES, *family.fields) if values.get(name) is None]
    if lacking:
        raise OptionError(f"there is no value of {lacking[0]!r}, which a {model_type} file must have.")
    _check_types(values)
    _refuse_unknown(family, values)
    layers = values["num_hidden_layers"]
    common = {name: values[name] for name in _SIZES} | {name: values.get(name, v) for name, v in _COMMON.items()}
    if common["hidden_ratio"] is None:
        common["hidden_ratio"] = _COMMON["hidden_ratio"]
    mixers = {family.mixer: _mixer_options(family, values)}
    plan = [family.mixer] * layers
    for name, indices, options in [] if family.mixer == "attention" else _attention_settings(values):
        mixers[name] = options
        for index in indices:
            plan[index] = name
    used = {name: options for name, options in mixers.items() if name in plan}
    config = PlaitConfig(layer_types=plan, mixers=used, **common)
    for spec in config.layers():
        spec.options.heads(config.dims)  # type: ignore[attr-defined]  # heads that do not fit are an error
    return config


def _check_types(values: Mapping[str, Any]) -> None:
    """Fields of every family are numbers and switches; None where the field may be left out."""
    for names, kinds, called in (
        (_INTEGERS, (int,), "a whole number above 0"),
        (_NUMBERS, (int, float), "a number above 0"),
        (_SWITCHES, (bool,), "true or false"),
    ):
        for name in names:
            value = values.get(name)
            right = isinstance(value, kinds) and isinstance(value, bool) == (bool in kinds)
            if value is not None and not (right and (bool in kinds or value > 0)):
                raise OptionError(f"{name}={value!r} is not {called}.")
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = values.get(name)
        ids = value if isinstance(value, list) and name == "eos_token_id" else [value]
        if any(i is not None and (not isinstance(i, int) or isinstance(i, bool) or i < 0) for i in ids):
            raise OptionError(f"{name}={value!r} is not the id of a token.")
    for setting in (values, *_settings(values)):
        for name, value in setting.items():
            most = _MOST_LAYERS if name == "num_hidden_layers" else _LARGEST
            if isinstance(value, (int, float)) and value > most:
                raise OptionError(f"{name}={value} is more than {most:,}.")


def _refuse_unknown(family: Family, values: Mapping[str, Any]) -> None:
    """Fields that nothing here reads or knows to be harmless are an error."""
    known = {*_SIZES, *_COMMON, *_ONLY, *_HARMLESS, *family.fields, *family.later, *family.ignored}
    if family.mixer == "attention":
        refuse_unknown(values, known | _ATTENTION.keys())
        return
    if values.get("share_conv_kernel") and values.get("use_short_conv"):
        raise OptionError("share_conv_kernel=True cannot be expressed together with use_short_conv=True.")
    refuse_unknown(values, known | {"share_conv_kernel"})
    for setting in _settings(values):
        refuse_unknown(setting, ("layers", "num_heads", *_ATTENTION), inside="attn.")


def _mixer_options(family: Family, values: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the model's own mixer."""
    if family.mixer == "attention":
        norm = {"qk_norm": True, "qk_norm_eps": _QK_NORM_EPS} if values.get("qk_norm") else {}
        return _attention_options(values) | norm
    options = {name: values[name] for name in family.fields}
    options |= {name: values.get(name, value) for name, value in family.later.items()}
    if family.mixer == "hgrn2":
        if options["expand_ratio"] is None and options["num_heads"] is None:
            raise OptionError("one of 'expand_ratio' and 'num_heads' must have a value.")
        ratio = options["expand_ratio"]
        if ratio is not None and not (isinstance(ratio, int) and ratio > 0):
            raise OptionError(f"expand_ratio={ratio!r} is not a whole number above 0.")
        if options["expand_ratio"] is not None:  # the layer goes by it, whatever num_heads says
            options["num_heads"] = values["hidden_size"] // options["expand_ratio"]
    if family.mixer == "gated_deltanet":
        activation = options["output_gate_activation"]
        options["output_gate_activation"] = "silu" if activation == "swish" else activation
    if family.mixer == "deltanet" and options["qk_norm"] == "sum":
        if _has_negative_keys(options["qk_activation"]):
            raise OptionError(
                f"qk_norm='sum' with qk_activation={options['qk_activation']!r} means x / sum(x) in fla before "
                "0.6 and x / sum(|x|) since: put qk_norm='signed_sum' or qk_norm='abs_sum' in its place, as the model "
                "was trained."
            )
        options["qk_norm"] = "abs_sum"
    return {**options, **family.fixed}


def _has_negative_keys(activation: str) -> bool:
    """Whether entries of queries and keys can be below 0, so that their sum is not the sum of their sizes."""
    return activation not in ("relu", "elu")


def _attention_options(values: Mapping[str, Any]) -> dict[str, Any]:
    options = {name: values.get(key, default) for key, (name, default) in _ATTENTION.items()}
    if options["rope_base"] is None:
        raise OptionError("rope_theta=None is not a number, but attention always has rotary positions here.")
    return {"num_heads": values["num_heads"], **options}


def _settings(values: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The attention settings of a hybrid."""
    given = values.get("attn") or []
    settings = [given] if isinstance(given, Mapping) else given
    if not isinstance(settings, list) or not all(isinstance(setting, Mapping) for setting in settings):
        raise OptionError(f"attn={given!r} is neither an attention setting nor a list of them.")
    return settings


def _attention_settings(values: Mapping[str, Any]) -> list[tuple[str, list[int], dict[str, Any]]]:
    """Name, layers and options of each attention setting of a hybrid."""
    found: list[tuple[str, list[int], dict[str, Any]]] = []
    for number, setting in enumerate(_settings(values), 1):
        if not isinstance(setting.get("layers"), list) or setting.get("num_heads") is None:
            raise OptionError(f"attn={dict(setting)!r} needs the fields 'layers', a list, and 'num_heads'.")
        options = _attention_options(setting)
        if number == 1:
            found.append(("attention", setting["layers"], options))
        else:
            found.append((f"attention_{number}", setting["layers"], {"mixer": "attention", **options}))
    try:
        full_layers([index for _, layers, _ in found for index in layers], values["num_hidden_layers"])
    except OptionError as error:
        raise OptionError(f"attn: {error}") from None
    return found


def _mixer_fields(config: PlaitConfig, spec: LayerSpec, family: Family) -> dict[str, Any]:
    """Fields of fla for the linear mixer."""
    options: Any = spec.options
    heads = options.heads(config.dims)
    _require_fixed(spec, family.fixed)
    if (spec.mixer == "hgrn2" or (spec.mixer == "hgrn" and options.use_lower_bound)) and (
        heads.key_width != config.hidden_size
    ):
        raise OptionError(
            f"Layer type {spec.name!r}, option expand_ratio={options.expand_ratio!r}: fla's {spec.mixer} needs gates "
            f"as wide as hidden_size {config.hidden_size}, not {heads.key_width}."
        )
    derived = {"num_heads": heads.keys, "head_dim": heads.K, "expand_ratio": heads.K}
    fields = {name: getattr(options, name) for name in (*family.fields, *family.later)}
    fields = {name: derived.get(name) if value is None else value for name, value in fields.items()}
    if spec.mixer == "gated_deltanet":
        activation = options.output_gate_activation
        fields["output_gate_activation"] = "swish" if activation == "silu" else activation
    if spec.mixer == "deltanet" and options.qk_norm in _SUMS:
        if _has_negative_keys(options.qk_activation):
            reason = f"versions of fla disagree about sums with qk_activation={options.qk_activation!r}"
            raise _no_field(spec, "qk_norm", reason)
        fields["qk_norm"] = "sum"
    return fields


def _attention_fields(config: PlaitConfig, spec: LayerSpec, hybrid: bool) -> dict[str, Any]:
    """Fields of fla for one attention setting; in a hybrid with the layers that have it."""
    options: Any = spec.options
    heads, kv_heads, size = options.heads(config.dims)
    _require_fixed(spec, _PLAIN_ATTENTION)
    if heads * size != config.hidden_size:
        raise _no_field(spec, "head_dim", "its heads are hidden_size / num_heads wide")
    if options.rope_base is None:
        raise _no_field(spec, "rope_base", "its attention always has rotary positions")
    fields = {"num_heads": heads} | {key: getattr(options, name) for key, (name, _) in _ATTENTION.items()}
    fields["num_kv_heads"] = kv_heads
    if options.qk_norm and hybrid:
        raise _no_field(spec, "qk_norm", "the attention layers of its hybrids have no norm of queries and keys")
    if options.qk_norm and (options.qk_norm_eps or config.norm_eps) != _QK_NORM_EPS:
        raise _no_field(spec, "qk_norm_eps", f"its norm of queries and keys has an epsilon of {_QK_NORM_EPS}")
    assert config.layer_types is not None
    layers = [index for index, name in enumerate(config.layer_types) if name == spec.name]
    return {"layers": layers, **fields} if hybrid else {**fields, "qk_norm": options.qk_norm}


def _require_fixed(spec: LayerSpec, fixed: Mapping[str, Any]) -> None:
    for name, value in fixed.items():
        if getattr(spec.options, name) != value:
            raise _no_field(spec, name, f"its layers always mean {value!r}")


def _no_field(spec: LayerSpec, option: str, reason: str) -> OptionError:
    value = getattr(spec.options, option)
    return OptionError(f"Layer type {spec.name!r}, option {option}={value!r}: fla's layout cannot say so, {reason}.")
