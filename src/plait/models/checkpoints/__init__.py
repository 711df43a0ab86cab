"""Checkpoints in the layout of other libraries, read and written."""

from plait.models.checkpoints.fla import load_fla, save_fla
from plait.models.checkpoints.llama import from_transformers, to_transformers

__all__ = ["from_transformers", "load_fla", "save_fla", "to_transformers"]
