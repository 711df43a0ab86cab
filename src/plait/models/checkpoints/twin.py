"""What plait and one class of transformers have in common, and how one is written as the other.

A :class:`Twin` says four things: its configuration as plait's and back, the weights of one layer as plait's and back.
Whatever one side cannot express is an error that names the layer, the option and its value.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor

from plait.errors import OptionError
from plait.models.checkpoints.fields import refuse_unknown
from plait.models.configuration import LayerSpec, PlaitConfig

Weights = dict[str, Tensor]

_OUTER = {"model.embeddings.weight": "model.embed_tokens.weight"}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.*)")
#: Fields of the same name and meaning in plait and transformers.
_COMMON = (
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
#: Fields that every class has: read by :meth:`Twin.read_config` or by the check of their values.
_READ: tuple[str, ...] = ("num_hidden_layers", "rms_norm_eps", "hidden_act", "num_attention_heads")
_READ += ("num_key_value_heads", "head_dim", "attention_bias", "rope_parameters", "layer_types")
#: Fields of theirs that change nothing: losses, dropout, sharding, and the older names of ``rope_parameters``.
_HARMLESS: tuple[str, ...] = (
    "attention_dropout",
    "pretraining_tp",
    "rope_theta",
    "rope_scaling",
    "partial_rotary_factor",
)
_HARMLESS += ("output_router_logits", "router_aux_loss_coef", "mtp_num_hidden_layers", "mtp_use_dedicated_embeddings")
#: Norms that a class with weights around zero multiplies with ``1 + weight``.
_CENTRED = ("norm.weight", "attn_norm.weight", "mlp_norm.weight", "attn.q_norm.weight", "attn.k_norm.weight")


class Twin(ABC):
    """A class of transformers that plait reads and writes."""

    #: ``model_type`` in its ``config.json``.
    model_type: ClassVar[str]
    #: Its name for people.
    title: ClassVar[str]
    #: What the names of its classes begin with.
    architecture: ClassVar[str]
    #: Mixers of plait that its layers can be.
    mixers: ClassVar[tuple[str, ...]]
    #: Whether its norms multiply with ``1 + weight``; the 1 is then added on import and taken off on export.
    zero_centred: ClassVar[bool] = False
    #: Further fields of its configuration that :meth:`read_config` reads, or that change nothing of a dense model.
    fields: ClassVar[tuple[str, ...]] = ()

    def check_fields(self, config: Any) -> None:
        """Every field of a configuration is read, or known to change nothing.

        Raises:
            OptionError: one is not; it may change what the model computes.
        """
        try:
            refuse_unknown(config.to_dict(), (*_COMMON, *_READ, *_HARMLESS, *self.fields))
        except OptionError as error:
            raise OptionError(f"{self.title}, {error}") from None

    @abstractmethod
    def read_config(self, config: Any) -> PlaitConfig:
        """The configuration in plait's words."""

    @abstractmethod
    def write_config(self, config: PlaitConfig, settings: Mapping[str, LayerSpec]) -> dict[str, Any]:
        """The fields of its configuration beside :func:`common_fields`.

        Args:
            config: plait's.
            settings: the layer type of each mixer.
        """

    @abstractmethod
    def read_layer(self, weights: Weights, spec: LayerSpec, config: PlaitConfig) -> Weights:
        """The weights of one layer under plait's names; names begin behind ``model.layers.N.``."""

    @abstractmethod
    def write_layer(self, weights: Weights, spec: LayerSpec, config: PlaitConfig) -> Weights:
        """The weights of one layer under its own names."""

    def classes(self) -> tuple[Any, Any]:
        """Its configuration and its model.

        Raises:
            OptionError: the installed transformers does not have them.
        """
        names = (f"{self.architecture}Config", f"{self.architecture}ForCausalLM")
        try:
            return getattr(transformers, names[0]), getattr(transformers, names[1])
        except AttributeError:
            raise OptionError(
                f"{self.title} needs the class {names[1]} of transformers, which version {transformers.__version__} "
                "does not have: pip install --upgrade transformers."
            ) from None

    def read_weights(self, weights: Mapping[str, Tensor], config: PlaitConfig) -> Weights:
        """All weights under plait's names."""
        outer, layers = _taken_apart(weights)
        backwards = {theirs: ours for ours, theirs in _OUTER.items()}
        read = {backwards.get(name, name): tensor for name, tensor in outer.items()}
        for index, spec in enumerate(config.layers()):
            layer = self.read_layer(layers[index], spec, config)
            read |= {f"model.layers.{index}.{name}": tensor for name, tensor in layer.items()}
        return self._recentred(read, 1.0)

    def write_weights(self, weights: Mapping[str, Tensor], config: PlaitConfig) -> Weights:
        """All weights under its own names."""
        outer, layers = _taken_apart(self._recentred(weights, -1.0))
        written = {_OUTER.get(name, name): tensor for name, tensor in outer.items()}
        for index, spec in enumerate(config.layers()):
            layer = self.write_layer(layers[index], spec, config)
            written |= {f"model.layers.{index}.{name}": tensor for name, tensor in layer.items()}
        return written

    def _recentred(self, weights: Mapping[str, Tensor], shift: float) -> Weights:
        """``shift`` added to the weights of every norm that is centred elsewhere."""
        if not self.zero_centred:
            return dict(weights)
        return {name: tensor + shift if _is_centred(name) else tensor for name, tensor in weights.items()}

    def settings(self, config: PlaitConfig) -> dict[str, LayerSpec]:
        """The layer type of each mixer, if the class can have these layers.

        Raises:
            OptionError: there are other mixers, or two settings of one.
        """
        found: dict[str, LayerSpec] = {}
        foreign: dict[str, list[int]] = {}
        for index, spec in enumerate(config.layers()):
            if spec.mixer not in self.mixers:
                foreign.setdefault(spec.mixer, []).append(index)
            first = found.setdefault(spec.mixer, spec)
            if first.options != spec.options:
                raise OptionError(
                    f"layer_types has {first.name!r} and {spec.name!r}, two settings of {spec.mixer}, but "
                    f"{self.title} has one for all its layers."
                )
        if foreign:
            are = " and ".join(f"{_ranges(indices)} {name}" for name, indices in foreign.items())
            raise OptionError(f"{are}, but {self.title} has only {' and '.join(self.mixers)}.")
        return found

    def require(self, spec: LayerSpec, **wanted: Any) -> None:
        """Each of these options has the value that the class always means.

        Raises:
            OptionError: names the layer type, the option, its value and the class.
        """
        for option, value in wanted.items():
            actual = getattr(spec.options, option)
            if actual != value:
                raise OptionError(
                    f"Layer type {spec.name!r}, option {option}={actual!r}: {self.title} has only layers with "
                    f"{option}={value!r}."
                )

    def require_pre_norm(self, config: PlaitConfig) -> None:
        """No block has its norms behind."""
        if config.post_norm:
            raise OptionError(f"post_norm={config.post_norm!r}: {self.title} norms the inputs of every layer.")

    def refuse(self, field: str, value: Any, reason: str) -> OptionError:
        """The error for a field of its configuration that plait cannot express."""
        return OptionError(f"{self.title}, {field}={value!r}: {reason}.")

    def require_field(self, config: Any, field: str, *allowed: Any) -> None:
        """A field of its configuration that changes what is computed has one of these values.

        Raises:
            OptionError: it has not.
        """
        value = getattr(config, field, allowed[0])
        if value not in allowed:
            raise self.refuse(field, value, f"plait has only {' or '.join(map(repr, allowed))}")

    def rope(self, config: Any) -> dict[str, Any]:
        """The rotary embedding as options of attention."""
        rope = config.rope_parameters or {}
        if rope.get("rope_type") not in (None, "default"):  # None: a file that says so has no positions
            raise self.refuse("rope_parameters.rope_type", rope["rope_type"], "plait has plain rotary positions only")
        if rope.get("rope_theta") is None:
            return {"rope_base": None}
        factor = float(rope.get("partial_rotary_factor", 1.0))
        return {"rope_base": float(rope["rope_theta"])} | ({} if factor == 1 else {"partial_rotary_factor": factor})


def common_fields(config: Any) -> dict[str, Any]:
    """The fields that plait and transformers name alike."""
    fields = {field: getattr(config, field) for field in _COMMON}
    return fields | ({"intermediate_size": config.mlp_size} if isinstance(config, PlaitConfig) else {})


def renamed(weights: Weights, names: Sequence[tuple[str, str]]) -> Weights:
    """Every name with the beginning that a pair of ``names`` gives for its own; the first pair that fits counts."""
    found: Weights = {}
    for name, tensor in weights.items():
        old, new = next(pair for pair in (*names, ("", "")) if name.startswith(pair[0]))
        found[new + name.removeprefix(old)] = tensor
    return found


def backwards(names: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The pairs of :func:`renamed` for the way back."""
    return [(new, old) for old, new in names]


def split_rows(weights: Weights, fused: str, sizes: Mapping[str, int], heads: int = 1) -> None:
    """Replace the matrix ``fused`` by its parts.

    Args:
        weights: changed in place.
        fused: rows are ordered by head, and inside each head by part.
        sizes: name and rows per head of each part.
        heads: number of heads.
    """
    matrix = weights.pop(fused).unflatten(0, (heads, -1))
    for name, part in zip(sizes, matrix.split(list(sizes.values()), dim=1), strict=True):
        weights[name] = part.flatten(0, 1)


def join_rows(weights: Weights, fused: str, parts: Sequence[str], heads: int = 1) -> None:
    """Replace the matrices ``parts`` by one, as :func:`split_rows` takes it apart."""
    weights[fused] = torch.cat([weights.pop(name).unflatten(0, (heads, -1)) for name in parts], dim=1).flatten(0, 1)


def _taken_apart(weights: Mapping[str, Tensor]) -> tuple[Weights, dict[int, Weights]]:
    """Weights outside the layers, and those of each layer by their names in it."""
    outer: Weights = {}
    layers: dict[int, Weights] = {}
    for name, tensor in weights.items():
        match = _LAYER.fullmatch(name)
        if match is None:
            outer[name] = tensor
        else:
            layers.setdefault(int(match[1]), {})[match[2]] = tensor
    return outer, layers


def _is_centred(name: str) -> bool:
    match = _LAYER.fullmatch(name)
    return (name.removeprefix("model.") if match is None else match[2]) in _CENTRED


def _ranges(indices: list[int]) -> str:
    """``[0, 1, 2, 5]`` as ``layers 0-2, 5 are``."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and runs[-1][-1] + 1 == index:
            runs[-1].append(index)
        else:
            runs.append([index])
    text = ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
    return f"layers {text} are" if len(indices) > 1 else f"layer {text} is"
