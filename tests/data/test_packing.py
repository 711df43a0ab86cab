"""Packed tokens: right content, reuse, rebuilding, damage, interruption."""

from __future__ import annotations

import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tokenizers.normalizers import Lowercase

from plait.data.corpora import open_corpus
from plait.data.corpus import SPLITS, Corpus, Document
from plait.data.packing import PackedTokens, pack
from plait.data.tokenizers import build_tokenizer, byte_tokenizer, encode
from plait.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve small files, one of them empty."""
    texts = tmp_path / "texts"
    texts.mkdir()
    for i in range(12):
        (texts / f"{i}.txt").write_text(f"größe {i} " * (i + 1) if i != 5 else "", encoding="utf-8")
    return texts


@pytest.mark.parametrize("spec", ["bytes", "bpe:270"])
def test_holds_every_document_and_its_eos(folder: Path, tmp_path: Path, spec: str) -> None:
    corpus = open_corpus(f"text:{folder}")
    tokenizer = build_tokenizer(spec, corpus)
    empty = 0
    for split in SPLITS:
        packed = pack(corpus, tokenizer, tmp_path / "packed", split)
        texts = [text for _, text in corpus.documents(split) if text]
        expected = [[*ids.tolist(), tokenizer.eos_token_id] for ids in encode(tokenizer, texts)]
        starts = packed.document_starts.tolist()
        assert [packed.tokens[a:b].tolist() for a, b in zip(starts, [*starts[1:], None], strict=True)] == expected
        assert packed.manifest.documents == len(texts)
        assert packed.manifest.tokens == len(packed) == sum(map(len, expected))
        assert packed.manifest.bytes == sum(len(text.encode()) for text in texts)
        assert packed.bytes_per_token == packed.manifest.bytes / len(packed)
        empty += packed.manifest.empty_documents
    assert empty == 1


def test_is_reused_and_rebuilt_when_something_changes(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "packed"
    tokenizer = byte_tokenizer()
    first = pack(open_corpus(f"text:{folder}"), tokenizer, out, "train")
    written = (first.folder / "manifest.json").stat().st_mtime_ns
    again = pack(open_corpus(f"text:{folder}"), tokenizer, out, "train")
    assert again.folder == first.folder
    assert (again.folder / "manifest.json").stat().st_mtime_ns == written
    assert pack(open_corpus(f"text:{folder}"), tokenizer, out, "train", max_bytes=20).manifest.bytes <= 20
    bpe = build_tokenizer("bpe:270", open_corpus(f"text:{folder}"))
    assert len(pack(open_corpus(f"text:{folder}"), bpe, out, "train")) < len(first)
    bpe.backend_tokenizer.normalizer = Lowercase()  # as many ids, other tokens
    lower = pack(open_corpus(f"text:{folder}"), bpe, out, "train")
    assert lower.manifest.tokenizer not in (first.manifest.tokenizer, "")
    assert len({path.name for path in out.iterdir()}) == 4

    name, text = next(iter(open_corpus(f"text:{folder}").documents("train")))
    (folder / name).write_text("new " + text, encoding="utf-8")
    changed = pack(open_corpus(f"text:{folder}"), tokenizer, out, "train")
    assert len(changed) == len(first) + 4
    assert changed.tokens[:4].tobytes() == np.frombuffer(b"new ", np.uint8).astype(np.uint16).tobytes()


def test_content_does_not_depend_on_where_the_corpus_lies(folder: Path, tmp_path: Path) -> None:
    first = pack(open_corpus(f"text:{folder}"), byte_tokenizer(), tmp_path / "one", "train")
    folder.rename(tmp_path / "elsewhere")
    second = pack(open_corpus(f"text:{tmp_path / 'elsewhere'}"), byte_tokenizer(), tmp_path / "two", "train")
    assert first.manifest.sha256 == second.manifest.sha256


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 50])
def test_max_bytes_cuts_between_characters(tmp_path: Path, limit: int) -> None:
    (tmp_path / "one.txt").write_text("ßé€🙂" * 100, encoding="utf-8")
    corpus = open_corpus(f"text:{tmp_path / 'one.txt'}")
    first = next(iter(corpus.documents("train"))).text
    if limit < len(first[0].encode()):
        with pytest.raises(DataError, match="no text"):
            pack(corpus, byte_tokenizer(), tmp_path / "packed", "train", max_bytes=limit)
        return
    packed = pack(corpus, byte_tokenizer(), tmp_path / "packed", "train", max_bytes=limit)
    assert limit - 3 <= packed.manifest.bytes <= limit
    text = bytes(packed.tokens[packed.tokens < 256].astype(np.uint8)).decode("utf-8")  # does not raise
    assert first.startswith(text[: len(first)])


@pytest.mark.parametrize("file", ["tokens.bin", "documents.bin", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_is_found_and_mended(
    folder: Path, tmp_path: Path, file: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    corpus = open_corpus(f"text:{folder}")
    packed = pack(corpus, byte_tokenizer(), tmp_path / "packed", "train")
    tokens = packed.tokens.tolist()
    path = packed.folder / file
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.unlink()
    with pytest.raises(DataError, match=f"{file}.* pack again"):
        PackedTokens.open(packed.folder)
    with caplog.at_level(logging.WARNING, logger="plait"):
        assert pack(corpus, byte_tokenizer(), tmp_path / "packed", "train").tokens.tolist() == tokens
    assert file in caplog.text


def test_many_ids_take_four_bytes(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("some text\n" * 50)
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([f"<{i}>" for i in range(65_536 - 258)])
    corpus = open_corpus(f"text:{tmp_path / 'one.txt'}")
    assert pack(corpus, tokenizer, tmp_path / "packed", "train").tokens.dtype == np.uint16
    tokenizer.add_tokens(["<one more>"])
    assert pack(corpus, tokenizer, tmp_path / "packed", "train").tokens.dtype == np.uint32


def test_travels_to_another_process_as_a_path(folder: Path, tmp_path: Path) -> None:
    packed = pack(open_corpus(f"text:{folder}"), byte_tokenizer(), tmp_path / "packed", "train")
    content = pickle.dumps(packed)
    assert len(content) < 1000
    assert pickle.loads(content).tokens.tolist() == packed.tokens.tolist()


def test_a_split_without_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    corpus = open_corpus(f"text:{tmp_path}")
    lacking = next(split for split in SPLITS if not list(corpus.documents(split)))
    with pytest.raises(DataError, match=rf"{lacking} split of .* has no text"):
        pack(corpus, byte_tokenizer(), tmp_path / "packed", lacking)
    assert not list((tmp_path / "packed").glob(".*"))


class Slow(Corpus):
    """Gives one document and then waits, so that the process can be killed while it packs."""

    spec = "slow"

    def fingerprint(self) -> str:
        return "slow"

    def documents(self, split: str) -> Iterator[Document]:
        yield Document("0", "text " * 10)
        if os.environ.get("SLOW"):
            print("packing", flush=True)
            time.sleep(60)


def test_killed_while_packing_leaves_nothing_that_is_used(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "from test_packing import Slow; from plait.data.packing import pack\n"
        "from plait.data.tokenizers import byte_tokenizer\n"
        "pack(Slow(), byte_tokenizer(), Path(sys.argv[2]), 'train')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path)],
        env={**os.environ, "SLOW": "1"},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"packing\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not list(tmp_path.glob("train-*"))
    packed = pack(Slow(), byte_tokenizer(), tmp_path, "train")
    assert bytes(packed.tokens[:-1].astype(np.uint8)) == b"text " * 10
    assert json.loads((packed.folder / "manifest.json").read_text())["documents"] == 1
