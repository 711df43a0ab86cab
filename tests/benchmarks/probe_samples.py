"""What the tests of the long-context probes share: tokenizers, small files, and the folder of real data."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from plait.data.corpus import Corpus, Document
from plait.data.tokenizers import build_tokenizer, byte_tokenizer

SHARED = Path(os.environ.get("PLAIT_SHARED_DATA", Path(__file__).parents[4] / "shared" / "data"))

PARAGRAPH = (
    "Rivers carry sand to the sea. The sand settles where the water slows down. Over many years it turns into stone, "
    "and the stone keeps the marks of the waves. Geologists read them like a book. A café in the harbour sells tea. "
)


class Paragraphs(Corpus):
    """A corpus of one paragraph, to train a BPE tokenizer on."""

    spec = "paragraphs"

    def documents(self, split: str) -> Iterator[Document]:
        yield Document("paragraph", PARAGRAPH * 20)

    def fingerprint(self) -> str:
        return "paragraphs"


@cache
def tokenizer(name: str) -> PreTrainedTokenizerFast:
    """``bytes``, or ``bpe``: 300 entries, so that most words are several tokens."""
    return byte_tokenizer() if name == "bytes" else build_tokenizer("bpe:300", Paragraphs())


def count(name: str, text: str) -> int:
    """Tokens of a text, counted by the tokenizer itself."""
    return len(tokenizer(name)(text, add_special_tokens=False)["input_ids"])


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)
