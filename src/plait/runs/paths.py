"""Files, folders and names that a run needs, checked before anything is loaded."""

from __future__ import annotations

import re
from pathlib import Path

from plait.errors import OptionError, nearest
from plait.files import quoted, regular_file
from plait.hub import check_name
from plait.runs.config import RunConfig

_CORPORA = ["python-stdlib", "text:PATH", "hf:NAME"]
_TOKENIZERS = ["bytes", "bpe:SIZE", "hf:NAME_OR_PATH"]


def check_paths(run: RunConfig) -> None:
    """Raise where a corpus, tokenizer or data folder of a run does not exist.

    Args:
        run: the run.

    Raises:
        OptionError: naming the key and the place.
    """
    data = run.data
    corpora = [("data", data.corpus), *((f"data.mixture[{i}]", part.corpus) for i, part in enumerate(data.mixture))]
    for where, corpus in corpora:
        if corpus is not None:
            check_corpus(corpus, f"{where}.corpus = {quoted(corpus)}")
    if data.task is None:
        _check_tokenizer(data.tokenizer)
    for index, part in enumerate(run.evaluate.measure):
        if part.data_dir is not None:
            check_folder(part.data_dir, f"evaluate.measure[{index}].data_dir = {quoted(part.data_dir)}")


def check_corpus(corpus: str, where: str) -> None:
    """Raise unless a corpus is one of the three kinds and its path exists.

    Args:
        corpus: as run files name it.
        where: it stands, for the message.
    """
    kind, _, rest = corpus.partition(":")
    if corpus == "python-stdlib":
        return
    if kind == "text" and rest:
        path = Path(rest).expanduser()
        if not path.is_dir():
            if not path.exists() and not path.is_symlink():
                raise OptionError(f"{where}: there is no file or folder {path}.")
            regular_file(path, OptionError)
    elif kind == "hf" and rest:
        name = rest.rpartition(":")[0] if ":" in rest and not Path(rest).exists() else rest
        if not Path(name).is_dir():
            check_name(name, "data set")
    elif kind in ("text", "hf"):
        raise OptionError(f"{where}: nothing follows the colon; write {kind}:NAME, for example.")
    else:
        raise OptionError(f"{where}: there is no such corpus.{nearest(corpus, _CORPORA)}")


def check_folder(name: str, where: str) -> None:
    """Raise unless a folder exists.

    Args:
        name: of the folder.
        where: it stands, for the message.
    """
    path = Path(name)
    if path.exists() and not path.is_dir():
        raise OptionError(f"{where} is a file; name a folder.")
    if not path.is_dir():
        raise OptionError(f"{where}: there is no such folder.")


def _check_tokenizer(spec: str) -> None:
    where = f"data.tokenizer = {quoted(spec)}"
    kind, _, rest = spec.partition(":")
    if kind == "hf" and rest:
        if not Path(rest).is_dir():
            check_name(rest, "tokenizer")
    elif spec != "bytes" and not re.fullmatch(r"bpe:[0-9]{1,9}", spec):
        raise OptionError(f"{where}: there is no such tokenizer.{nearest(spec, _TOKENIZERS)}")
