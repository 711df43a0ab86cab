"""Mixers that can put short causal convolutions in front of their queries, keys and values."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from plait.mixers.base import Mixer
from plait.mixers.context import Context
from plait.mixers.state import ConvTail, Segment
from plait.nn import ShortConvolution


class ConvolvedMixer(Mixer):
    """Creates, runs and remembers the convolutions ``NAME_conv1d`` that ``options.use_short_conv`` asks for."""

    options: Any  # its own type in each subclass

    def add_convolutions(self, activation: bool, **channels: int) -> None:
        """Create the short convolutions ``NAME_conv1d`` if the options ask for them."""
        if self.options.use_short_conv:
            for name, width in channels.items():
                self.add_module(f"{name}_conv1d", ShortConvolution(width, self.options.conv_size, activation))

    def convolve(self, name: str, x: Tensor, context: Context) -> Tensor:
        """``x`` ``(B, T, C)`` through the convolution ``NAME_conv1d``, continuing and keeping its tail."""
        segment = None if context.state is None else context.state[f"{name}_conv1d"]
        tail = None if segment is None else segment.value  # type: ignore[attr-defined]
        convolution = self.get_submodule(f"{name}_conv1d")
        if context.sequence is not None:
            past = self.options.conv_size - 1
            tail = context.sequence.before(x, past)
            tail = F.pad(tail, (0, 0, past - tail.shape[1], 0))
        y, tail = convolution(x, tail, context.padding, context.cu_seqlens)
        if segment is not None:
            # a view would keep all of a prompt's inputs
            segment.value = tail.clone() if x.shape[1] > 1 else tail  # type: ignore[attr-defined]
        return y

    def tails(self) -> dict[str, Segment]:
        """An empty tail for every convolution."""
        return {name: ConvTail() for name, child in self.named_children() if isinstance(child, ShortConvolution)}
