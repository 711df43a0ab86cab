"""The configuration of a hybrid model."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from plait import catalog
from plait.errors import OptionError, nearest
from plait.mixers.base import Dims, Mixer, MixerOptions
from plait.models.plan import layer_plan
from plait.nn import swiglu_width

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

#: A saved folder carries this module, so that loaders which know only ``trust_remote_code`` find the classes.
BRIDGE_MODULE = "plait_model"
_BRIDGE = "from plait.models import PlaitConfig, PlaitForCausalLM, PlaitModel  # needs: pip install plait\n"
_BRIDGE += '__all__ = ["PlaitConfig", "PlaitForCausalLM", "PlaitModel"]\n'


@dataclass(frozen=True)
class LayerSpec:
    """One layer of the plan: its entry in ``layer_types``, the mixer that stands for, and the parsed options."""

    name: str
    mixer: str
    type: type[Mixer]
    options: MixerOptions


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
        initializer_range: standard deviation of the initial weights.
        embedding_range: that of the embedding; None: ``initializer_range``, as published. Mixers without an output gate
            (DeltaNet, HGRN2) write rows of length one from the start, beside which an embedding of 0.02 is drowned.
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
    initializer_range: float = 0.02
    embedding_range: float | None = None
    use_cache: bool = True
    max_position_embeddings: int = 2048
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        known = [field.name for field in fields(self)]
        for key in kwargs:
            if key not in _FOREIGN_KEYS and not key.startswith("_"):
                raise OptionError(f"PlaitConfig has no option {key!r}.{nearest(key, known)}")
        if self.layer_types is None:
            self.num_hidden_layers = 4 if self.num_hidden_layers is None else self.num_hidden_layers
            alternate = self.num_hidden_layers >= 4  # shorter models have no room for a full layer at 3:1
            self.layer_types = layer_plan("gated_deltanet", "3:1" if alternate else "pure", self.num_hidden_layers)
        self.layer_types = list(self.layer_types)
        if self.num_hidden_layers is None:
            self.num_hidden_layers = len(self.layer_types)
        self.mixers = {} if self.mixers is None else self.mixers
        plan = self.layer_types
        super().__post_init__(**kwargs)
        self.layer_types = plan  # transformers renames "attention" to its own word
        self.validate()

    def validate(self) -> None:
        """Check every field.

        Raises:
            OptionError: names the field, the value and the mend.
        """
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings"):
            _positive(name, getattr(self, name), int)
        for name in ("hidden_ratio", "norm_eps", "initializer_range"):
            _positive(name, getattr(self, name), (int, float))
        if self.intermediate_size is not None:
            _positive("intermediate_size", self.intermediate_size, int)
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
                raise OptionError(f"mixers[{key!r}]={options!r} must map option names to values.")
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
                raise OptionError(f"layer_types[{index}]={value!r} is not a mixer.{nearest(str(value), names)}")
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

    @property
    def mlp_size(self) -> int:
        """Inner width of the feed-forward: ``intermediate_size``, or what ``hidden_ratio`` gives."""
        return self.intermediate_size or swiglu_width(self.hidden_size, self.hidden_ratio)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers; keys that other tools added to a saved file are named in a warning and dropped."""
        known = {field.name for field in fields(cls)} | _FOREIGN_KEYS
        foreign = sorted(key for key in config_dict if key not in known and not key.startswith("_"))
        if foreign:
            logger.warning("config.json has keys that plait does not know and ignores: %s.", ", ".join(foreign))
        return super().from_dict({key: value for key, value in config_dict.items() if key not in foreign}, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """As in transformers, plus a two-line module for loaders that know only ``trust_remote_code``."""
        classes = {"AutoConfig": "PlaitConfig", "AutoModel": "PlaitModel", "AutoModelForCausalLM": "PlaitForCausalLM"}
        self.auto_map = {auto: f"{BRIDGE_MODULE}.{name}" for auto, name in classes.items()}
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{BRIDGE_MODULE}.py").write_text(_BRIDGE, encoding="utf-8")
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoConfig") -> None:
        """Nothing: the bridge module already says where the class is, and transformers would copy this file."""


def _positive(name: str, value: Any, kind: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, kind) or not value > 0:
        word = "a positive integer" if kind is int else "a positive number"
        raise OptionError(f"{name}={value!r} is not {word}.")
