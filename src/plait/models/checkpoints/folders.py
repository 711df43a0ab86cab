"""Folders of checkpoints: found on disk or on the hub, filled with a tokenizer's files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from huggingface_hub import snapshot_download

from plait.errors import OptionError
from plait.files import check_new_folder, foreign, quoted, read_json_object
from plait.hub import check_name

#: Files of a tokenizer; a folder has those that its kind needs.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def find_folder(path_or_name: str | os.PathLike) -> Path:
    """The folder of a checkpoint, downloaded from the Hugging Face hub if it is not on this disk.

    Raises:
        OptionError: there is neither such a folder nor a model of that name on the hub.
    """
    folder = Path(path_or_name)
    if folder.is_dir():
        return folder
    check_name(str(path_or_name))
    wanted = ["config.json", "*.safetensors", "model.safetensors.index.json", *TOKENIZER_FILES]
    with foreign(f"There is no folder {folder}, and the model of that name cannot be downloaded", kind=OptionError):
        return Path(snapshot_download(str(path_or_name), allow_patterns=wanted))


def new_folder(path: str | os.PathLike) -> Path:
    """A folder to write to; it may exist if it is empty.

    Raises:
        OptionError: it holds files, which would be mixed with the new ones.
    """
    folder = check_new_folder(Path(path), OptionError)
    if folder.is_dir() and any(folder.iterdir()):
        raise OptionError(f"{folder} is not empty: name a new folder, or empty it first.")
    return folder


def new_file(path: str | os.PathLike) -> Path:
    """A ``.gguf`` file to write: the one that is named, or ``model.gguf`` in a new or empty folder.

    Raises:
        OptionError: it exists, or the folder holds files.
    """
    file = Path(path)
    if file.suffix != ".gguf":
        return new_folder(path) / "model.gguf"
    if file.exists():
        raise OptionError(f"{file} exists: name a new file, or delete it first.")
    return file


def model_type(folder: Path) -> str | None:
    """What ``config.json`` says the model is; None where there is none."""
    path = folder / "config.json"
    if not os.path.lexists(path):
        return None
    kind = read_json_object(path, OptionError).get("model_type")
    if kind is not None and not isinstance(kind, str):
        raise OptionError(f"{path}: model_type={quoted(kind)} is not a name.")
    return kind


def copy_tokenizer(source: Path, target: Path) -> list[str]:
    """Copy the tokenizer's files; returns their names."""
    names = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    for name in names:
        shutil.copyfile(source / name, target / name)
    return names
