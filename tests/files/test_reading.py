"""Files of strangers: whatever is wrong with one is a sentence that names it."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from plait.errors import DataError, OptionError
from plait.files import check_new_folder, content, foreign, quoted, read_json, read_json_object, read_text, reason


def folder(path: Path) -> None:
    path.mkdir()


def pipe(path: Path) -> None:
    os.mkfifo(path)


def broken_link(path: Path) -> None:
    path.symlink_to(path.parent / "gone")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (folder, "is a folder"),
        (pipe, "is a pipe"),
        (broken_link, "gone, which does not exist"),
        (lambda path: None, "There is no file"),
        (lambda path: path.write_bytes("a".encode("utf-16")), "iconv -f UTF-16"),
        (lambda path: path.write_bytes(b"caf\xe9"), "0xe9 at offset 3"),
        (lambda path: path.write_bytes(b"a\0b"), "zero byte at offset 1"),
        (lambda path: path.write_bytes(gzip.compress(b"text")), "compressed with gzip"),
        (lambda path: path.write_bytes(b"\x28\xb5\x2f\xfd0000"), "zstd -d"),
        (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\nsize 3"), "git lfs pull"),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path: Path, make, words: str) -> None:
    path = tmp_path / "file.txt"
    make(path)
    with pytest.raises(DataError, match=r"file.txt") as caught:
        read_text(path)
    assert words in str(caught.value)


def test_names_that_the_system_refuses(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="File name too long"):
        content(tmp_path / ("x" * 300))
    with pytest.raises(DataError, match="not a valid file name"):
        content(Path("a\0b"))
    (tmp_path / "a").write_text("")
    with pytest.raises(DataError, match="a part of its path is a file"):
        content(tmp_path / "a" / "b")


def test_packed_text_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"\xef\xbb\xbfone\r\n"))
    assert read_text(tmp_path / "a.txt.gz") == "one\r\n"
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(b"one" * 1000)[:-9])
    with pytest.raises(DataError, match=r"cut.txt.gz cannot be read"):
        read_text(tmp_path / "cut.txt.gz")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("{", "is not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("1" * 5000, "cannot be read as JSON"),
    ],
)
def test_damaged_json_is_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(OptionError, match=r"config.json") as caught:
        read_json(path, OptionError)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 600


def test_an_object_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("[1, 2]")
    with pytest.raises(DataError, match=r"not a JSON object but \[1, 2\]"):
        read_json_object(path)


def test_what_a_library_raises_becomes_a_sentence() -> None:
    for error in (KeyError("k"), RecursionError(), ValueError("first\nsecond"), AttributeError("no x" * 1000)):
        with (
            pytest.raises(DataError, match=r"^a.bin cannot be read: .*Copy it again.$") as caught,
            foreign("a.bin cannot be read", "Copy it again."),
        ):
            raise error
        assert len(str(caught.value)) < 500
        assert caught.value.__cause__ is error
    with pytest.raises(OptionError, match=r"^mine$"), foreign("a.bin"):
        raise OptionError("mine")
    with pytest.raises(KeyboardInterrupt), foreign("a.bin"):
        raise KeyboardInterrupt
    assert reason(OSError(28, "No space left on device")) == "No space left on device"


def test_quoting_never_builds_a_long_text() -> None:
    shared: list = ["x"] * 10
    for _ in range(12):
        shared = [shared] * 10  # a thousand billion values
    assert quoted(shared) == "a list of 10"
    cyclic: list = []
    cyclic.append(cyclic)
    assert quoted(cyclic * 300) == "a list of 300"
    assert len(quoted("x" * 10**6)) < 200
    assert quoted(10**6000) == "a whole number of 5979 digits"
    assert quoted({"a": [1, "b"]}) == "{'a': [1, 'b']}"


def test_a_folder_to_write_is_checked_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert check_new_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert not (tmp_path / "a").exists()
    for place in ("file", "file/below"):
        with pytest.raises(DataError, match="file is a file; name a folder"):
            check_new_folder(tmp_path / place)
    with pytest.raises(DataError, match="File name too long"):
        check_new_folder(tmp_path / ("x" * 300))
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match="which does not exist"):
        check_new_folder(tmp_path / "link")
