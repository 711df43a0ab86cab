"""Corpora, tokenizers, packing and synthetic tasks.

A row is ``{"input_ids": (T,), "targets": (T,)}``; targets are aligned with the inputs (the target of position t is
at t) and -100 is ignored.
"""

from plait.data.bundle import DataBundle, MixtureData, TaskData, TextData, build
from plait.data.packing import collate

__all__ = ["DataBundle", "MixtureData", "TaskData", "TextData", "build", "collate"]
