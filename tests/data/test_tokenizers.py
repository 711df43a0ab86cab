"""Tokenizers: exact round trips, saved files that stand alone, training on the training split only."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from plait.data.corpora import open_corpus
from plait.data.corpus import Corpus, Document
from plait.data.tokenizers import (
    EOS,
    PAD,
    build_tokenizer,
    byte_tokenizer,
    cached_tokenizer,
    encode,
    tokenizer_hash,
    vocabulary_size,
)
from plait.errors import DataError, OptionError


class Texts(Corpus):
    """A corpus in memory."""

    spec = "texts"

    def __init__(self, train: list[str], validation: list[str] | None = None) -> None:
        self.splits = {"train": train, "validation": validation or [], "test": []}

    def fingerprint(self) -> str:
        return str(hash(str(self.splits)))

    def documents(self, split: str) -> Iterator[Document]:
        yield from (Document(str(i), text) for i, text in enumerate(self.splits[split]))


WORDS = ["alpha", "beta", "gamma", "delta", "naïve", "größer", "日本語", "def f(x):\n    return x\n"]


def some_text(words: list[str], count: int = 400, seed: int = 0) -> str:
    return " ".join(random.Random(seed).choices(words, k=count))


TRICKY = [
    "",
    "plain",
    "  leading and  double   blanks \n\t\r\n",
    "don't . stop , now !",
    "naïve größer 日本語 🙂 \U0010ffff",
    f"a text that spells {EOS} and {PAD}",
    "".join(map(chr, range(1, 600))),
]


@pytest.mark.parametrize("spec", ["bytes", "bpe:300"])
def test_round_trip_is_exact(spec: str) -> None:
    tokenizer = build_tokenizer(spec, Texts([some_text(WORDS)]))
    for text, ids in zip(TRICKY, encode(tokenizer, TRICKY), strict=True):
        assert tokenizer.decode(ids.tolist()) == text
        assert tokenizer.eos_token_id not in ids  # letters, not the special token
        assert tokenizer.pad_token_id not in ids


def test_byte_ids_are_the_bytes() -> None:
    tokenizer = byte_tokenizer()
    text = some_text(WORDS) + "🙂"
    assert tokenizer(text)["input_ids"] == list(text.encode())  # the library's way
    assert encode(tokenizer, [text])[0].tolist() == list(text.encode())  # the short way
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, vocabulary_size(tokenizer)) == (256, 257, 258)


def test_every_byte_decodes() -> None:
    tokenizer = byte_tokenizer()
    assert tokenizer.decode([0xE2, 0x82, 0xAC]) == "€"
    assert tokenizer.decode([0xFF]) == "�"
    assert len(tokenizer.convert_ids_to_tokens(list(range(258)))) == len(set(tokenizer.get_vocab())) == 258


def test_saved_tokenizers_load_without_plait(tmp_path: Path) -> None:
    text = TRICKY[4]
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    expected = []
    for name in ("bytes", "bpe:300"):
        folder = tmp_path / name.partition(":")[0]
        tokenizer = build_tokenizer(name, Texts([some_text(WORDS)]))
        tokenizer.save_pretrained(folder)
        (folder / "config.json").write_text(json.dumps({"model_type": "plait"}))  # as beside a model
        assert tokenizer_hash(AutoTokenizer.from_pretrained(folder)) == tokenizer_hash(tokenizer)
        expected.append([*tokenizer(text)["input_ids"], tokenizer.eos_token_id, tokenizer.pad_token_id])
    code = (
        "import sys; sys.modules['plait'] = None\n"
        "from pathlib import Path; from transformers import AutoTokenizer\n"
        "text = Path('text.txt').read_text(encoding='utf-8')\n"
        "for folder in ('bytes', 'bpe'):\n"
        "    t = AutoTokenizer.from_pretrained(folder); ids = t(text)['input_ids']; assert t.decode(ids) == text\n"
        "    print(*ids, t.eos_token_id, t.pad_token_id)"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert [list(map(int, line.split())) for line in found.stdout.splitlines()] == expected


def test_bpe_has_the_size_asked_for_and_shortens_text() -> None:
    text = some_text(WORDS)
    tokenizer = build_tokenizer("bpe:300", Texts([text]))
    assert vocabulary_size(tokenizer) == 300
    assert len(encode(tokenizer, [text])[0]) < len(text.encode()) / 2


def test_bpe_learns_from_the_training_split_only() -> None:
    train = [some_text(WORDS)]
    alone = build_tokenizer("bpe:300", Texts(train))
    beside = build_tokenizer("bpe:300", Texts(train, validation=["zzzzqqqq " * 1000]))
    assert tokenizer_hash(alone) == tokenizer_hash(beside)
    assert tokenizer_hash(alone) != tokenizer_hash(build_tokenizer("bpe:300", Texts([*train, "zzzzqqqq " * 1000])))


def test_bpe_reads_no_more_than_max_bytes() -> None:
    text = some_text(WORDS)
    size = len(text.encode())
    limited = build_tokenizer("bpe:290", Texts([text, text, "zzzzqqqq " * 1000]), max_bytes=2 * size)
    assert tokenizer_hash(limited) == tokenizer_hash(build_tokenizer("bpe:290", Texts([text, text])))


def test_bpe_is_the_same_in_every_process(tmp_path: Path) -> None:
    code = (
        "from plait.data.tokenizers import build_tokenizer, tokenizer_hash\n"
        "from plait.data.corpora import open_corpus\n"
        "print(tokenizer_hash(build_tokenizer('bpe:320', open_corpus('text:words.txt'))))"
    )
    words = ["".join(random.Random(i).choices("abcdef", k=6)) for i in range(200)]  # many ties
    (tmp_path / "words.txt").write_text(some_text(words, 3000))
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    here = build_tokenizer("bpe:320", open_corpus(f"text:{tmp_path / 'words.txt'}"))
    assert found.stdout.strip() == tokenizer_hash(here)


def test_trained_tokenizer_is_kept_and_reused(tmp_path: Path) -> None:
    corpus = Texts([some_text(WORDS)])
    first = cached_tokenizer("bpe:300", corpus, tmp_path)
    corpus.documents = None  # type: ignore[method-assign]
    assert tokenizer_hash(cached_tokenizer("bpe:300", corpus, tmp_path)) == tokenizer_hash(first)
    with pytest.raises(TypeError):
        cached_tokenizer("bpe:301", corpus, tmp_path)


def test_pad_is_eos_where_there_is_none(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    assert build_tokenizer(f"hf:{tmp_path}", None).pad_token_id == 256


def test_tokenizer_without_eos_is_refused(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(DataError, match="no eos token"):
        build_tokenizer(f"hf:{tmp_path}", None)


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ("byte", OptionError, "Did you mean 'bytes'"),
        ("bpe:", OptionError, "no tokenizer 'bpe:'"),
        ("bpe:many", OptionError, "whole number of at least 259"),
        ("bpe:258", OptionError, "at least 259"),
        ("bpe:5000", DataError, "use a smaller SIZE"),
        ("hf:/nowhere/at/all", DataError, "There is no folder /nowhere/at/all"),
    ],
)
def test_errors_name_the_spec_and_the_mend(spec: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        build_tokenizer(spec, Texts([some_text(WORDS)]))
