"""Folders appear complete or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from plait.data.folders import write_folder


def test_appears_by_one_rename(tmp_path: Path) -> None:
    written: list[int] = []

    def write(folder: Path) -> None:
        (folder / "file").write_text("text")
        written.append((folder / "file").stat().st_ino)
        assert not (tmp_path / "new" / "target").exists()

    write_folder(tmp_path / "new" / "target", write)
    assert (tmp_path / "new" / "target" / "file").stat().st_ino == written[0]  # the same file, not a copy
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["target"]


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "file").write_text("half")
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        write_folder(tmp_path / "target", write)
    assert list(tmp_path.iterdir()) == []


def test_the_first_of_two_processes_wins(tmp_path: Path) -> None:
    target = tmp_path / "target"

    def write(folder: Path) -> None:
        (folder / "file").write_text("second")
        target.mkdir()
        (target / "file").write_text("first")

    write_folder(target, write)
    assert (target / "file").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
