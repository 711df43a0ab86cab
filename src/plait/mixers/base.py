"""The contract of a mixer: a layer that moves information along the sequence."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from plait.errors import OptionError, nearest
from plait.files import quoted
from plait.mixers.context import Context
from plait.mixers.state import LayerState
from plait.ops import choose
from plait.sections import LARGEST


@dataclass(frozen=True)
class Dims:
    """Sizes that every layer of a model shares.

    Args:
        hidden_size: width d of the residual stream.
        num_layers: depth of the model; some mixers scale with depth.
        norm_eps: epsilon of every RMS norm.
    """

    hidden_size: int
    num_layers: int = 1
    norm_eps: float = 1e-6


@dataclass(frozen=True)
class Cost:
    """What token mixing costs one layer for one sequence (projections not counted).

    FLOPs follow the accounting of "A Systematic Analysis of Hybrid Linear Attention" (2507.06457, appendix):
    one multiply or one add is 1 FLOP, causal softmax counts 2 T^2 d (a query in the middle sees T/2 keys).

    Args:
        flops_prefill: forward over all T tokens.
        flops_decode: one more token after T.
        state_bytes: memory held after T tokens.
    """

    flops_prefill: int
    flops_decode: int
    state_bytes: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.flops_prefill + other.flops_prefill,
            self.flops_decode + other.flops_decode,
            self.state_bytes + other.state_bytes,
        )


@dataclass(frozen=True)
class MixerOptions:
    """Base of a mixer's options; a subclass adds fields with defaults and checks them in ``__post_init__``."""

    #: Name of the mixer in the catalogue, for messages.
    mixer: ClassVar[str] = "mixer"

    @classmethod
    def parse(cls, name: str, values: Mapping[str, Any]) -> Self:
        """Validated options from a mapping.

        Args:
            name: the mixer's name, for messages.
            values: option names and values.

        Raises:
            OptionError: an unknown key (with the nearest one) or a value of the wrong type or range.
        """
        types = get_type_hints(cls)
        known = [field.name for field in dataclasses.fields(cls)]
        checked = {}
        for key, value in values.items():
            if key not in known:
                raise OptionError(f"Mixer {name!r} has no option {key!r}.{nearest(key, known)}")
            try:
                checked[key] = TypeAdapter(types[key]).validate_python(value, strict=True)
            except ValidationError as error:
                reason = error.errors()[0]["msg"]
                raise OptionError(f"Mixer {name!r}, option {key}={quoted(value)}: {reason}.") from None
            if isinstance(value, int | float) and not abs(value) <= LARGEST:
                raise OptionError(
                    f"Mixer {name!r}, option {key}={quoted(value)} must be a finite number of at most {LARGEST:,}."
                )
        return cls(**checked)

    def require(self, condition: bool, field: str, fix: str) -> None:
        """Raise :class:`~plait.errors.OptionError` with the option's name and value unless ``condition`` holds."""
        if not condition:
            raise OptionError(f"Mixer {self.mixer!r}, option {field}={getattr(self, field)!r}: {fix}.")

    def require_positive(self, *fields: str) -> None:
        """Each of these options is above zero, or None."""
        for field in fields:
            value = getattr(self, field)
            self.require(value is None or value > 0, field, "must be above 0")


class Mixer(nn.Module, ABC):
    """A token mixer: ``forward(x, context) -> y`` with ``x, y: (B, T, d)``.

    A subclass sets :attr:`Options`, builds its projections in ``__init__`` and writes ``forward``, ``cost``
    and ``effective_weights``. It must be causal, treat rows independently, ignore padding, restart at document
    borders, and give the same result for any split of a sequence; ``tests/contracts`` holds every mixer of the
    catalogue to that.

    Args:
        dims: sizes shared by the model.
        options: the mixer's own options.
        layer: index of this layer, from 0.
    """

    Options: ClassVar[type[MixerOptions]] = MixerOptions
    #: Whether it is softmax attention, whose weights ``output_attentions`` asks for: ``context.attentions``.
    has_weights: ClassVar[bool] = False

    def __init__(self, dims: Dims, options: MixerOptions, layer: int) -> None:
        super().__init__()
        self.dims = dims
        self.options = options
        self.layer = layer

    @classmethod
    def shared_parameters(cls, dims: Dims, options: Any) -> dict[str, Tensor]:
        """Initial values of parameters that the model holds once for all layers of this mixer, by name.

        The model registers them and passes them to every layer as ``context.shared[name]``.
        """
        return {}

    @abstractmethod
    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Mix ``x`` ``(B, T, d)`` along the sequence."""

    @abstractmethod
    def new_state(self) -> LayerState:
        """Empty memory for decoding with this layer."""

    def init_parameters(self, std: float) -> None:
        """Initialise parameters that are not in a Linear, Conv1d, Embedding or norm; those the model handles."""

    @classmethod
    def code_path(cls, device_type: str) -> tuple[str, str]:
        """What mixes the tokens on this kind of device (``tensor.device.type``), and why: for people to read.

        The default is the backend that the recurrences take; a mixer that runs on something else says so.
        """
        return choose(device_type)

    @classmethod
    @abstractmethod
    def cost(cls, dims: Dims, T: int, options: Any, *, cache_dtype: torch.dtype = torch.bfloat16) -> Cost:
        """Token-mixing cost of one layer for one sequence of ``T`` tokens; builds no tensor.

        Args:
            dims: sizes shared by the model.
            T: tokens in the context.
            options: the mixer's options.
            cache_dtype: dtype of cached keys, values and convolution inputs; recurrent states are fp32.
        """

    @abstractmethod
    def effective_weights(self, x: Tensor, context: Context | None = None) -> Tensor:
        """The matrix ``(B, H, T, T)`` this mixer applies to its values for input ``x``; for small T only.

        Args:
            x: ``(B, T, d)``.
            context: what the layer is told, :meth:`Context.plain` if None; a mixer that reads ``context.shared``
                needs it.
        """
