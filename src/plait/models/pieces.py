"""Checkpoints that several processes wrote, of torch.distributed.checkpoint, read without running code from them.

Their index is a pickle, and so is every entry that is not a tensor; torch's own reader trusts both.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from plait.errors import OptionError

#: What an index is made of, besides numbers, texts and lists.
_NAMES = {
    "pathlib": {"PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath"},  # Python 3.13
    "torch": {"Size"} | {str(x).removeprefix("torch.") for x in vars(torch).values() if isinstance(x, torch.dtype)},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
}


class _Index(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _NAMES.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no index of weights needs")
        return super().find_class(module, name)


class _Reader(FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        path = Path(str(self._get_metadata_path(kwargs.get("rank"))))
        try:
            metadata: Metadata = _Index(io.BytesIO(path.read_bytes())).load()
        except (pickle.UnpicklingError, EOFError, AttributeError, ValueError, TypeError, KeyError, IndexError) as error:
            raise OptionError(f"{path} is no index of a checkpoint: {error}.") from None
        stored = getattr(metadata, "storage_meta", None) or StorageMeta()
        stored.load_id = self.load_id
        metadata.storage_meta = stored
        return metadata


class _Planner(DefaultLoadPlanner):
    def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
        try:
            torch.load(value, weights_only=True)
        except pickle.UnpicklingError as error:
            entry = read_item.dest_index.fqn
            raise OptionError(f"The checkpoint's entry {entry!r} is more than numbers: {error}.") from None
        value.seek(0)
        super().load_bytes(read_item, value)


def read_pieces(content: dict[str, Any], folder: Path, *, alone: bool) -> None:
    """Fill ``content`` in place from the checkpoint in ``folder``.

    Args:
        content: tensors and numbers of the wanted names, in dictionaries.
        folder: of the checkpoint.
        alone: this process reads by itself; otherwise all processes call it together.

    Raises:
        OptionError: an index or an entry that holds more than tensors, numbers and texts.
    """
    reader = _Reader(folder)
    reader.read_metadata()  # outside of torch's reading, which would wrap the error
    try:
        dcp.load(content, storage_reader=reader, planner=_Planner(), no_dist=alone)
    except CheckpointException as error:
        ours = next((cause for cause, _ in error.failures.values() if isinstance(cause, OptionError)), None)
        if ours is None:
            raise
        raise ours from None
