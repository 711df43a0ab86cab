"""Every change of a sealed folder's files is found and named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plait.files.manifest import MANIFEST, fault, seal


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint-1"
    (folder / "inner").mkdir(parents=True)
    (folder / "weights").write_bytes(bytes(range(200)))
    (folder / "inner" / "part").write_bytes(b"abc")
    seal(folder)
    assert fault(folder) is None
    return folder


@pytest.mark.parametrize("place", [0, 99, 199])
def test_a_flipped_bit_is_found(sealed: Path, place: int) -> None:
    content = bytearray((sealed / "weights").read_bytes())
    content[place] ^= 1
    (sealed / "weights").write_bytes(content)
    assert fault(sealed) == "weights has changed since it was saved (its SHA-256 differs)"
    assert fault(sealed, content=False) is None


def test_missing_and_cut_files_are_named(sealed: Path) -> None:
    (sealed / "weights").write_bytes(b"short")
    assert fault(sealed, content=False) == "weights has 5 bytes instead of 200"
    (sealed / "inner" / "part").unlink()
    assert fault(sealed, content=False) == "inner/part is missing"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"files": {"weights": 3}}', '{"files": {"weights": {}}}'])
def test_a_damaged_manifest_is_a_fault(sealed: Path, content: str) -> None:
    (sealed / MANIFEST).write_text(content)
    assert fault(sealed) == f"{MANIFEST} cannot be read"


def test_every_single_flip_of_a_manifest_is_harmless_or_a_fault(sealed: Path) -> None:
    whole = (sealed / MANIFEST).read_bytes()
    for place in range(len(whole)):
        content = bytearray(whole)
        content[place] ^= 1
        (sealed / MANIFEST).write_bytes(content)
        try:
            same = json.loads(bytes(content)) == json.loads(whole)
        except ValueError:
            same = False
        assert (fault(sealed) is None) == same, place


def test_other_files_are_not_looked_at(sealed: Path) -> None:
    (sealed / "evaluation").mkdir()
    (sealed / "evaluation" / "mqar.json").write_text("{}")
    assert fault(sealed) is None


def test_a_folder_without_manifest(tmp_path: Path) -> None:
    assert fault(tmp_path) == f"{MANIFEST} is missing"
