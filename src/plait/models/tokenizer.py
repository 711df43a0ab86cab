"""Opening the tokenizer of a model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer
from transformers import PreTrainedTokenizerBase as Tokenizer

from plait.errors import DataError
from plait.files import check_json_object, check_pointer, foreign, regular_file
from plait.hub import check_name, trusted

#: Files that say that a folder holds a tokenizer.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
_JSON = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json")


def open_tokenizer(name: str | os.PathLike, trust_remote_code: bool | None = None) -> Tokenizer:
    """The tokenizer in a folder, or of a name on the hub.

    Args:
        name: folder or name.
        trust_remote_code: run Python code that the folder brings; None: only where the command line says so.

    Raises:
        DataError: there is none, or a file of it is damaged; the message names the file.
    """
    folder = Path(name)
    if not folder.is_dir():
        check_name(str(name), "tokenizer", DataError)
    for file in (folder / name for name in _JSON):
        if os.path.lexists(file):
            check_json_object(file, DataError)
    model = folder / "tokenizer.model"
    if os.path.lexists(model):
        with regular_file(model).open("rb") as start:
            check_pointer(start.read(64), model)
    what = f"The tokenizer in {folder}" if folder.is_dir() else f"The tokenizer {str(name)!r}"
    fix = "Copy its files again." if folder.is_dir() else ""
    with foreign(f"{what} cannot be loaded", fix):
        tokenizer: Any = AutoTokenizer.from_pretrained(name, trust_remote_code=trusted(trust_remote_code))
        if not isinstance(tokenizer, Tokenizer):
            raise TypeError(f"the files describe a {type(tokenizer).__name__}")
        tokenizer("plait", add_special_tokens=False)  # files that fit nothing show here
    return tokenizer
