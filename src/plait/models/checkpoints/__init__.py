"""Checkpoints in the layout of other libraries, read and written."""

from plait.models.checkpoints.fla import load_fla, save_fla

__all__ = ["load_fla", "save_fla"]
