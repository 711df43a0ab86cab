"""The contract of a mixer: a layer that moves information along the sequence."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from plait.errors import OptionError, nearest
from plait.mixers.context import Context
from plait.mixers.state import LayerState
from plait.ops import choose
from plait.options import Options


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
        read_bytes: of it, what one more token reads; None: all.
    """

    flops_prefill: int
    flops_decode: int
    state_bytes: int
    read_bytes: int = None  # type: ignore[assignment]  # an integer once it is made

    def __post_init__(self) -> None:
        if self.read_bytes is None:
            object.__setattr__(self, "read_bytes", self.state_bytes)  # type: ignore[unreachable]

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.flops_prefill + other.flops_prefill,
            self.flops_decode + other.flops_decode,
            self.state_bytes + other.state_bytes,
            self.read_bytes + other.read_bytes,
        )


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

    Options: ClassVar[type[Options]] = Options
    #: Whether it is softmax attention, whose weights ``output_attentions`` asks for: ``context.attentions``.
    has_weights: ClassVar[bool] = False

    def __init__(self, dims: Dims, options: Any, layer: int) -> None:
        super().__init__()
        self.dims = dims
        self.options = options
        self.layer = layer

    @classmethod
    def shared_parameters(cls, dims: Dims, options: Any) -> dict[str, Tensor]:
        """Initial values of parameters that the model holds once for all layers of this mixer, by name.

        The model registers them and passes them to every layer as ``context.parameters[name]``.
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

    def after_step(self) -> None:
        """Update what is learnt without a gradient (averages, codebooks, momentum copies), once an optimiser's step.

        What it changes belongs in buffers, which are saved, loaded and resumed with the weights; what ``forward``
        gathers for it, it gathers where ``context.update_running_state`` says so, and in buffers as well.
        """

    def set(self, **values: Any) -> None:
        """Change options between steps: those that the options name in ``knobs``.

        Raises:
            OptionError: an option that is no knob, or a value of the wrong type or range.
        """
        kind = type(self.options)
        for name in values:
            if name not in kind.knobs:
                raise OptionError(
                    f"{kind.method!r}: option {name!r} cannot change after the layer is made."
                    + (nearest(name, kind.knobs) if kind.knobs else " No option of this mixer can.")
                )
        self.options = kind.parse(kind.method, {**asdict(self.options), **values})

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
            context: what the layer is told, :meth:`Context.plain` if None; a mixer that reads ``context.parameters``
                needs it.
        """
