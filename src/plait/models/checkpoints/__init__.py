"""Checkpoints in the layout of other libraries, read and written."""

from plait.models.checkpoints.fla import load_fla, save_fla
from plait.models.checkpoints.gguf import save_gguf
from plait.models.checkpoints.twins import from_transformers, load_transformers, to_transformers

__all__ = ["from_transformers", "load_fla", "load_transformers", "save_fla", "save_gguf", "to_transformers"]
