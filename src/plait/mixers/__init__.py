"""Token mixers, one published method a file, and their contract."""

from plait.mixers.base import Cost, Dims, Mixer
from plait.mixers.context import Context
from plait.mixers.state import ConvTail, LayerState, Notes, Segment, States, Summaries, Tokens

__all__ = [
    "Context",
    "ConvTail",
    "Cost",
    "Dims",
    "LayerState",
    "Mixer",
    "Notes",
    "Segment",
    "States",
    "Summaries",
    "Tokens",
]
