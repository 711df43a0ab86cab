"""Corpora: splits without overlap, errors that name the file."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from itertools import chain, pairwise
from pathlib import Path

import pytest

from plait.data.corpora import TextFiles, open_corpus
from plait.data.corpus import SPLITS, split_of
from plait.errors import DataError, OptionError


def names(spec: str, split: str, field: str = "text") -> list[str]:
    return [name for name, _ in open_corpus(spec, field).documents(split)]


def read_all(spec: str) -> list[str]:
    return [text for split in SPLITS for _, text in open_corpus(spec).documents(split)]


def write_files(folder: Path, count: int) -> None:
    for i in range(count):
        path = folder / f"part{i % 3}" / f"file{i}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text number {i}\n" * 5)


def test_standard_library_is_split_by_file() -> None:
    corpus = open_corpus("python-stdlib")
    assert isinstance(corpus, TextFiles)
    split = {name: {path.as_posix() for path in corpus.split_files(name)} for name in SPLITS}
    assert not split["train"] & split["validation"]
    assert not split["train"] & split["test"]
    assert not split["validation"] & split["test"]
    files = len(corpus.files)
    assert sum(map(len, split.values())) == files > 300
    assert 0.85 < len(split["train"]) / files < 0.95
    assert 0.02 < len(split["validation"]) / files < 0.09
    assert 0.02 < len(split["test"]) / files < 0.09
    inside = [path.relative_to(corpus.root).parts for path in corpus.files]
    assert not any({"site-packages", "test", "tests", "encodings"} & set(parts) for parts in inside)
    assert ("argparse.py",) in inside
    first = next(iter(corpus.documents("validation")))
    assert (corpus.root / first.name).read_bytes().decode() == first.text


def test_a_file_keeps_its_split_when_others_come(tmp_path: Path) -> None:
    write_files(tmp_path, 200)
    before = {split: set(names(f"text:{tmp_path}", split)) for split in SPLITS}
    (tmp_path / "part0" / "new.txt").write_text("one more\n")
    after = {split: set(names(f"text:{tmp_path}", split)) for split in SPLITS}
    assert all(before[split] <= after[split] for split in SPLITS)
    assert sum(map(len, after.values())) == 201
    assert all(before.values())


@pytest.mark.parametrize("count", [3, 4, 7, 20])
def test_a_small_folder_has_every_split(tmp_path: Path, count: int) -> None:
    write_files(tmp_path, count)
    found = [names(f"text:{tmp_path}", split) for split in SPLITS]
    assert all(found)
    assert sorted(chain(*found)) == sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.txt"))


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"line {i} of the book\n" for i in range(500)),
        "words without a line end " * 400,
        "x" * 1000,
        "é" * 7 + "\n\n" + "ü" * 50,
        "".join(f"line {i} of a large file\n" for i in range(20_000)),
    ],
    ids=["lines", "words", "letters", "short", "large"],
)
def test_a_single_file_is_cut_without_loss_or_overlap(tmp_path: Path, text: str) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes(text.encode())
    documents = [document for split in SPLITS for document in open_corpus(f"text:{path}").documents(split)]
    borders = sorted(tuple(map(int, name[len("book.txt[") : -1].split(":"))) for name, _ in documents)
    assert borders[0][0] == 0
    assert borders[-1][1] == len(text)
    assert all(left[1] == right[0] for left, right in pairwise(borders))
    assert sum(len(document.text) for document in documents) == len(text)
    share = {split: sum(len(text) for _, text in open_corpus(f"text:{path}").documents(split)) for split in SPLITS}
    assert 0.85 < share["train"] / len(text) < 0.95
    assert share["validation"] > 0
    assert share["test"] > 0
    if "\n" in text[:-1] and len(text) > 1000:
        assert all(document.text.endswith("\n") for document in documents)


def test_shared_text_is_split_like_any_other() -> None:
    shared = Path(os.environ.get("PLAIT_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if not shared.is_dir():
        pytest.skip("no shared texts here; test_a_single_file_is_cut_without_loss_or_overlap does the same")
    path = shared / "tinyshakespeare.txt"
    assert sum(map(len, read_all(f"text:{path}"))) == len(path.read_text(encoding="utf-8"))
    essays = open_corpus(f"text:{shared / 'essays'}")
    assert len(set().union(*(names(essays.spec, split) for split in SPLITS))) == 49


def test_of_twenty_rows_one_is_test_and_one_validation() -> None:
    splits = [split_of("file.jsonl", i) for i in range(400)]
    for start in range(0, 400, 20):
        assert splits[start : start + 20].count("test") == 1
        assert splits[start : start + 20].count("validation") == 1
    places = {splits[start : start + 20].index("test") for start in range(0, 400, 20)}
    assert len(places) > 5


def test_jsonl_and_parquet_give_the_same_rows(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = [f"row {i}: höhe" for i in range(60)]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    rows = "\n".join(json.dumps({"body": text, "n": 1}, ensure_ascii=False) for text in texts)
    (tmp_path / "a" / "rows.jsonl").write_text(rows + "\n\n", encoding="utf-8")
    parquet.write_table(pyarrow.table({"body": texts, "n": [1] * 60}), tmp_path / "b" / "rows.parquet")
    for folder in "ab":
        found = {s: [t for _, t in open_corpus(f"text:{tmp_path / folder}", "body").documents(s)] for s in SPLITS}
        assert [len(found[split]) for split in SPLITS] == [54, 3, 3]
        assert sorted(chain(*found.values())) == sorted(texts)


def test_fingerprint_follows_the_files(tmp_path: Path) -> None:
    write_files(tmp_path, 4)
    before = open_corpus(f"text:{tmp_path}").fingerprint()
    assert open_corpus(f"text:{tmp_path}").fingerprint() == before
    path = tmp_path / "part0" / "file0.txt"
    os.utime(path, ns=(1, 1))
    assert open_corpus(f"text:{tmp_path}").fingerprint() != before


def test_line_ends_stay_and_a_byte_order_mark_goes(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert read_all(f"text:{tmp_path}") == ["one\r\ntwo\r\n"] * 3


def broken_utf8(folder: Path) -> Path:
    (folder / "bad.txt").write_bytes(b"fine text " * 10 + b"\xff rest")
    return folder / "bad.txt"


def utf16(folder: Path) -> Path:
    (folder / "wide.txt").write_bytes("text".encode("utf-16"))
    return folder / "wide.txt"


def binary(folder: Path) -> Path:
    (folder / "image.txt").write_bytes(b"ab\x00cd")
    return folder / "image.txt"


def empty_file(folder: Path) -> Path:
    (folder / "empty.txt").write_bytes(b"")
    return folder / "empty.txt"


def empty_files(folder: Path) -> Path:
    for i in range(3):
        (folder / f"{i}.txt").write_bytes(b"")
    return folder


def no_text(folder: Path) -> Path:
    (folder / "picture.png").write_bytes(b"png")
    return folder


def mixed(folder: Path) -> Path:
    (folder / "a.txt").write_text("text")
    (folder / "rows.jsonl").write_text('{"text": "text"}')
    return folder


def absent(folder: Path) -> Path:
    return folder / "nowhere"


def missing_field(folder: Path) -> Path:
    (folder / "rows.jsonl").write_text('{"texts": "a", "id": 1}\n' * 30)
    return folder / "rows.jsonl"


def number_field(folder: Path) -> Path:
    (folder / "rows.jsonl").write_text('{"text": "a"}\n' * 25 + '{"text": 7}\n' * 25)
    return folder / "rows.jsonl"


def broken_json(folder: Path) -> Path:
    (folder / "rows.jsonl").write_text('{"text": "a"}\n{"text": \n')
    return folder / "rows.jsonl"


def not_an_object(folder: Path) -> Path:
    (folder / "rows.jsonl").write_text('{"text": "a"}\n["a"]\n')
    return folder / "rows.jsonl"


def broken_line(folder: Path) -> Path:
    (folder / "rows.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xe9"}\n')
    return folder / "rows.jsonl"


def surrogate(folder: Path) -> Path:
    (folder / "rows.jsonl").write_text('{"text": "ab\\ud800"}\n' * 20)
    return folder / "rows.jsonl"


def broken_parquet(folder: Path) -> Path:
    (folder / "rows.parquet").write_bytes(b"PAR1 not really")
    return folder / "rows.parquet"


def parquet_without_field(folder: Path) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table({"body": ["a"]}), folder / "rows.parquet")
    return folder / "rows.parquet"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (broken_utf8, ["bad.txt", "0xff", "offset 100", "UTF-8"]),
        (utf16, ["wide.txt", "UTF-16", "iconv"]),
        (binary, ["image.txt", "binary", "offset 2"]),
        (empty_file, ["empty.txt", "is empty"]),
        (empty_files, ["only empty files"]),
        (no_text, [".png", ".jsonl, .md, .parquet, .py, .txt"]),
        (mixed, ["a.txt", "rows.jsonl", "mixes"]),
        (absent, ["nowhere", "no file or folder"]),
        (missing_field, ["rows.jsonl, line", "'text'", "found texts, id", "Did you mean 'texts'?"]),
        (number_field, ["rows.jsonl, line", "holds int", "(7)"]),
        (broken_json, ["rows.jsonl, line 2", "not JSON"]),
        (not_an_object, ["rows.jsonl, line 2", "list"]),
        (broken_line, ["rows.jsonl", "0xe9", "offset 24"]),
        (surrogate, ["rows.jsonl, line", "surrogate", "character 2"]),
        (broken_parquet, ["rows.parquet", "not a readable parquet"]),
        (parquet_without_field, ["rows.parquet", "found body"]),
    ],
)
def test_error_names_the_file_and_the_place(tmp_path: Path, make: Callable[[Path], Path], words: list[str]) -> None:
    path = make(tmp_path)
    with pytest.raises(DataError) as caught:
        read_all(f"text:{path}")
    for word in words:
        assert word in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("python-stdlb", ["python-stdlb", "Did you mean 'python-stdlib'?"]),
        ("text:", ["nothing after the colon"]),
        ("hf:", ["nothing after the colon"]),
        ("web:page", ["web:page", "Known"]),
    ],
)
def test_unknown_corpus(spec: str, words: list[str]) -> None:
    with pytest.raises(OptionError) as caught:
        open_corpus(spec)
    for word in words:
        assert word in str(caught.value)


def test_unknown_split() -> None:
    with pytest.raises(OptionError, match="Did you mean 'validation'"):
        list(open_corpus("python-stdlib").documents("validaton"))


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pyarrow: pip install "):
        list(open_corpus(f"text:{tmp_path}").documents("train"))
