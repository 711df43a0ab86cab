"""Token mixers, one published method a file, and their contract."""

from plait.mixers.base import Cost, Dims, Mixer
from plait.mixers.context import Context
from plait.mixers.state import ConvTail, KeyValues, LayerState, Recurrent, Segment

__all__ = [
    "Context",
    "ConvTail",
    "Cost",
    "Dims",
    "KeyValues",
    "LayerState",
    "Mixer",
    "Recurrent",
    "Segment",
]
