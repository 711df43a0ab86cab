"""The configuration of a hybrid model."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from plait import catalog
from plait.errors import OptionError, nearest
from plait.files import quoted
from plait.mixers.base import Dims, Mixer
from plait.models.plan import layer_plan
from plait.nn import swiglu_width
from plait.options import Options
from plait.sections import DEEPEST, LARGEST, WIDEST

logger = logging.getLogger(__name__)

#: Keys that are not fields but that transformers and the libraries around it write into configurations.
_FOREIGN_KEYS = {
    "attn_implementation",
    "auto_map",
    "experts_implementation",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "per_layer_config",
    "quantization_config",
    "torch_dtype",
}

#: What ``config.json`` calls ``layer_types``: transformers checks its own key for words that it knows, also where it
#: reads the file without plait's class, as its Trainer does before it resumes.
PLAN_KEY = "layer_plan"

#: Sizes of softmax attention that tools look for under the names of transformers; they follow from ``mixers``.
ATTENTION_SIZES = ("num_attention_heads", "num_key_value_heads", "head_dim")

#: Values of ``initialization``.
INITIALIZATIONS = ("plain", "depth_scaled", "fan_in")

#: Largest values; no model has more, and building one would take all memory before anything could be said.
_LARGEST = {
    "vocab_size": 2**28,
    "hidden_size": WIDEST,
    "num_hidden_layers": DEEPEST,
    "max_position_embeddings": LARGEST,
}

#: A saved folder carries this module, so that loaders which know only ``trust_remote_code`` find the classes.
BRIDGE_MODULE = "plait_model"
_AUTO_CLASSES = {
    "AutoConfig": "PlaitConfig",
    "AutoModel": "PlaitModel",
    "AutoModelForCausalLM": "PlaitForCausalLM",
    "AutoModelForSequenceClassification": "PlaitForSequenceClassification",
    "AutoModelForTokenClassification": "PlaitForTokenClassification",
}
_NAMES = sorted(_AUTO_CLASSES.values())
_BRIDGE = f"from plait.models import {', '.join(_NAMES)}  # needs: pip install plait\n__all__ = {_NAMES}\n"


@dataclass(frozen=True)
class LayerSpec:
    """One layer of the plan: its entry in ``layer_types``, the mixer that stands for, and the parsed options."""

    name: str
    mixer: str
    type: type[Mixer]
    options: Options

    @property
    def full(self) -> bool:
        """Whether it is a full layer: each token sees every earlier one exactly."""
        return catalog.get(self.mixer).full and not self._windowed

    @property
    def state(self) -> str:
        """How its memory grows while decoding: ``constant``, ``bounded``, ``log`` or ``grows``."""
        state = catalog.get(self.mixer).state
        return "bounded" if state == "grows" and self._windowed else state

    @property
    def _windowed(self) -> bool:
        return getattr(self.options, "window", None) is not None


class PlaitConfig(PreTrainedConfig):
    """Sizes, the layer plan and the options of each mixer.

    Args:
        vocab_size: size of the vocabulary.
        hidden_size: width d of the residual stream.
        num_hidden_layers: depth; None takes it from ``layer_types``, or 4 without them.
        layer_types: a mixer per layer, by its name in the catalogue or by a key of ``mixers``; None stands for
            ``layer_plan("gated_deltanet", "3:1")``.
        mixers: options by mixer name. An entry with the key ``mixer`` is a second setting of that mixer under
            another name, for instance ``{"window": {"mixer": "attention", "window": 512}}``.
        intermediate_size: inner width of the SwiGLU; None derives it from ``hidden_ratio`` (see ``mlp_size``).
        hidden_ratio: inner width over hidden size, before the 2/3 of SwiGLU and rounding up to 256.
        norm_eps: epsilon of every RMS norm.
        post_norm: names in ``layer_types`` whose blocks norm the outputs of mixer and feed-forward, before they are
            added, in place of the inputs (OLMo 2, 2501.00656, section 3.2); None: no block does.
        tie_word_embeddings: share the embedding with the output head.
        initialization: how matrices start. ``plain``: N(0, initializer_range), as published; ``depth_scaled``: so,
            with the projections that write into the residual stream, ``o_proj`` and ``down_proj``, divided by
            sqrt(2 layers) (GPT-2, and flash-linear-attention while it trained the models of 2507.06457); ``fan_in``:
            N(0, 1 / inputs) and embeddings of spread 1, so that activations have the same size at any width (LeCun et
            al. 1998, section 4.6). Convolutions and the output head keep ``initializer_range`` always.
        initializer_range: standard deviation of the initial weights.
        embedding_range: that of the embedding; None: ``initializer_range``, as published, and with ``fan_in`` 1, or
            hidden_size ** -0.5 where the output head shares it. Mixers without an output gate
            (DeltaNet, HGRN2) write rows of length one from the start, beside which an embedding of 0.02 is drowned.
        classifier_dropout: dropout before the head that classifies tokens.
        use_cache: return a cache from forward passes outside training.
        max_position_embeddings: longest sequence seen in training; for tools that ask, nothing depends on it.
        bos_token_id, eos_token_id, pad_token_id: special tokens.

    Raises:
        OptionError: an unknown key, a layer type or an option that does not exist; the message names the nearest.

    Example:
        >>> PlaitConfig(layer_types=["gated_deltanet", "attention"], hidden_size=64).num_hidden_layers
        2
    """

    model_type = "plait"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values", "cache"]

    vocab_size: int = 256
    hidden_size: int = 128
    num_hidden_layers: int | None = None
    layer_types: list[str] | None = None
    mixers: dict[str, dict[str, Any]] | None = None
    intermediate_size: int | None = None
    hidden_ratio: int | float = 4
    norm_eps: float = 1e-6
    post_norm: list[str] | None = None
    tie_word_embeddings: bool = False
    initialization: str = "plain"
    initializer_range: float = 0.02
    embedding_range: float | None = None
    classifier_dropout: float = 0.1
    use_cache: bool = True
    max_position_embeddings: int = 2048
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        known = [field.name for field in fields(self)]
        sizes = {key: kwargs.pop(key) for key in ATTENTION_SIZES if key in kwargs}
        if PLAN_KEY in kwargs:
            self.layer_types = _same_plan(kwargs.pop(PLAN_KEY), self.layer_types)
        for key in kwargs:
            if key not in _FOREIGN_KEYS and not key.startswith("_"):
                raise OptionError(f"PlaitConfig has no option {key!r}.{nearest(key, known)}")
        if self.layer_types is None:
            self.num_hidden_layers = 4 if self.num_hidden_layers is None else self.num_hidden_layers
            alternate = self.num_hidden_layers >= 4  # shorter models have no room for a full layer at 3:1
            self.layer_types = layer_plan("gated_deltanet", "3:1" if alternate else "pure", self.num_hidden_layers)
        if not isinstance(self.layer_types, list | tuple):
            raise OptionError(f"layer_types={quoted(self.layer_types)} must be a list of names of mixers.")
        self.layer_types = list(self.layer_types)
        if self.num_hidden_layers is None:
            self.num_hidden_layers = len(self.layer_types)
        self.mixers = {} if self.mixers is None else self.mixers
        if not isinstance(self.mixers, dict):
            raise OptionError(f"mixers={quoted(self.mixers)} must map names of mixers to their options.")
        plan = self.layer_types
        super().__post_init__(**kwargs)
        self.layer_types = plan  # transformers renames "attention" to its own word
        self.validate()
        for key, value in sizes.items():
            found = getattr(self, key, None)
            if value != found:
                where = "the options of the first softmax attention in mixers" if found else "no layer of layer_types"
                raise OptionError(f"{key}={value!r} does not fit: it follows from {where} ({found}). Set it there.")

    def validate(self) -> None:
        """Check every field.

        Raises:
            OptionError: names the field, the value and the fix.
        """
        for name, most in _LARGEST.items():
            _positive(name, getattr(self, name), int, most)
        for name in ("hidden_ratio", "norm_eps", "initializer_range"):
            _positive(name, getattr(self, name), (int, float))
        if self.intermediate_size is not None:
            _positive("intermediate_size", self.intermediate_size, int, 2**24)
        if self.initialization not in INITIALIZATIONS:
            raise OptionError(
                f"initialization={quoted(self.initialization)} is not one of {', '.join(INITIALIZATIONS)}."
                f"{nearest(str(self.initialization), INITIALIZATIONS)}"
            )
        if self.embedding_range is not None:
            _positive("embedding_range", self.embedding_range, (int, float))
        self.validate_layer_type()
        self.validate_token_ids()

    def validate_layer_type(self) -> None:
        """Check ``layer_types`` and ``mixers`` against the catalogue.

        Raises:
            OptionError: names the index, the value and the nearest name.
        """
        assert self.layer_types is not None
        assert self.mixers is not None
        known = catalog.names("mixer")
        for key, options in self.mixers.items():
            if not isinstance(options, dict):
                raise OptionError(f"mixers[{key!r}]={quoted(options)} must map option names to values.")
            if "." in key:
                raise OptionError(f"mixers[{key!r}]: a name cannot have a dot, since parameters are named after it.")
            if "mixer" in options and options["mixer"] not in known:
                name = options["mixer"]
                raise OptionError(f"mixers[{key!r}]['mixer']={name!r} is not a mixer.{nearest(str(name), known)}")
            if key not in known and "mixer" not in options:
                raise OptionError(
                    f"mixers[{key!r}] is not a mixer.{nearest(key, known)} To give a second setting of a mixer "
                    "another name, add the key 'mixer' with the mixer's name."
                )
            self.layer_spec(key)
        names = [*known, *self.mixers]
        for index, value in enumerate(self.layer_types):
            if value not in names:
                raise OptionError(f"layer_types[{index}]={quoted(value)} is not a mixer.{nearest(str(value), names)}")
        if len(self.layer_types) != self.num_hidden_layers:
            raise OptionError(
                f"layer_types has {len(self.layer_types)} entries but num_hidden_layers={self.num_hidden_layers}: "
                "give one entry per layer."
            )
        if self.post_norm is not None and not isinstance(self.post_norm, (list, tuple)):
            raise OptionError(f"post_norm={self.post_norm!r} is not a list of names in layer_types.")
        for name in self.post_norm or []:
            if name not in self.layer_types:
                raise OptionError(f"post_norm names {name!r}, which layer_types does not have.")

    def layer_spec(self, name: str) -> LayerSpec:
        """What an entry of ``layer_types`` (or a key of ``mixers``) stands for."""
        values = dict((self.mixers or {}).get(name, {}))
        mixer = values.pop("mixer", name)
        kind = catalog.get(mixer).load()
        return LayerSpec(name, mixer, kind, kind.Options.parse(mixer, values))

    def layers(self) -> list[LayerSpec]:
        """The plan with its options, by depth."""
        assert self.layer_types is not None
        specs = {name: self.layer_spec(name) for name in dict.fromkeys(self.layer_types)}
        return [specs[name] for name in self.layer_types]

    @property
    def dims(self) -> Dims:
        """Sizes handed to every mixer."""
        assert self.num_hidden_layers is not None
        return Dims(self.hidden_size, self.num_hidden_layers, self.norm_eps)

    def _attention_size(self, index: int) -> int:
        """From the first layer of softmax attention; a plan without one has no such attribute."""
        for spec in self.layers():
            if spec.mixer == "attention":
                return spec.options.heads(self.dims)[index]  # type: ignore[attr-defined]
        raise AttributeError(f"No layer of this plan is softmax attention, so it has no {ATTENTION_SIZES[index]}.")

    @property
    def num_attention_heads(self) -> int:
        """Query heads of the first layer of softmax attention."""
        return self._attention_size(0)

    @property
    def num_key_value_heads(self) -> int:
        """Key and value heads of the first layer of softmax attention."""
        return self._attention_size(1)

    @property
    def head_dim(self) -> int:
        """Channels of a head of the first layer of softmax attention."""
        return self._attention_size(2)

    @property
    def mlp_size(self) -> int:
        """Inner width of the feed-forward: ``intermediate_size``, or what ``hidden_ratio`` gives."""
        return self.intermediate_size or swiglu_width(self.hidden_size, self.hidden_ratio)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers; keys that other tools added to a saved file are named in a warning and dropped."""
        known = {field.name for field in fields(cls)} | _FOREIGN_KEYS | {PLAN_KEY, *ATTENTION_SIZES}
        foreign = sorted(key for key in config_dict if key not in known and not key.startswith("_"))
        if foreign:
            logger.warning("config.json has keys that plait does not know and ignores: %s.", ", ".join(foreign))
        values = {key: value for key, value in config_dict.items() if key not in foreign}
        if PLAN_KEY in values:
            values["layer_types"] = _same_plan(values.pop(PLAN_KEY), values.get("layer_types"))
        return super().from_dict(values, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """As in transformers, with the sizes of softmax attention where the plan has some."""
        sizes = {name: getattr(self, name, None) for name in ATTENTION_SIZES}
        return super().to_dict() | {name: size for name, size in sizes.items() if size is not None}

    def to_json_string(self, use_diff: bool = True) -> str:
        """What ``config.json`` holds: as in transformers, with the plan under ``layer_plan``."""
        values = json.loads(super().to_json_string(use_diff=use_diff))
        values[PLAN_KEY] = values.pop("layer_types")
        for name in ATTENTION_SIZES:  # mixers says them already
            values.pop(name, None)
        return json.dumps(values, indent=2, sort_keys=True) + "\n"

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """As in transformers, plus a two-line module for loaders that know only ``trust_remote_code``."""
        self.auto_map = {auto: f"{BRIDGE_MODULE}.{name}" for auto, name in _AUTO_CLASSES.items()}
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{BRIDGE_MODULE}.py").write_text(_BRIDGE, encoding="utf-8")
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoConfig") -> None:
        """Nothing: the bridge module already says where the class is, and transformers would copy this file."""


def _same_plan(plan: list[str], layer_types: list[str] | None) -> list[str]:
    """The plan under either of its names."""
    if layer_types is not None and list(layer_types) != list(plan):
        raise OptionError(f"{PLAN_KEY} and layer_types are the same thing, and here they differ: give one of them.")
    return plan


def _positive(name: str, value: Any, kind: Any, most: float = 1e9) -> None:
    if isinstance(value, bool) or not isinstance(value, kind) or not value > 0:
        word = "a positive integer" if kind is int else "a positive number"
        raise OptionError(f"{name}={quoted(value)} is not {word}.")
    if not value <= most:
        raise OptionError(f"{name}={quoted(value)} is above {most:,}.")
