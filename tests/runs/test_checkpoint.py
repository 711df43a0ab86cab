"""A folder's name means that it is complete, whenever the process is killed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from plait.errors import TrainingError
from plait.files import writing
from plait.files.writing import clean, publish_folder, read_back, remove_folder, write_json
from plait.runs.checkpoint import checkpoints, rotate


class Killed(BaseException):
    """Stands for the end of the process."""


def folder_with(path: Path, text: str) -> Path:
    path.mkdir(parents=True)
    (path / "weights").write_text(text)
    return path


def test_checkpoints_are_sorted_by_step_and_strangers_are_left_out(tmp_path: Path) -> None:
    for name in ("checkpoint-9", "checkpoint-100", "checkpoint-20", "checkpoint-x", ".partial-checkpoint"):
        folder_with(tmp_path / name, "")
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-20", "checkpoint-100"]


def test_rotation_keeps_the_newest(tmp_path: Path) -> None:
    for step in (5, 10, 15, 100):
        folder_with(tmp_path / f"checkpoint-{step}", "")
    rotate(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-100", "checkpoint-15"]


def test_a_killed_deletion_leaves_no_half_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_with(tmp_path / "checkpoint-1", "")

    def killed(path: Path, **_: object) -> None:
        if path.exists():
            (path / "weights").unlink()  # something is gone already
            raise Killed

    monkeypatch.setattr(writing.shutil, "rmtree", killed)
    with pytest.raises(Killed):
        remove_folder(folder)
    monkeypatch.undo()
    assert checkpoints(tmp_path) == []
    clean(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_published_folder_replaces_the_old_one(tmp_path: Path) -> None:
    final = folder_with(tmp_path / "model", "old")
    publish_folder(folder_with(tmp_path / ".partial-model", "new"), final)
    assert (final / "weights").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_clean_removes_partial_files_and_folders_only(tmp_path: Path) -> None:
    folder_with(tmp_path / ".partial-checkpoint" / "checkpoint-3", "")
    (tmp_path / ".partial-run.json-77").write_text("{")
    (tmp_path / "run.json").write_text("{}")
    clean(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_json_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "finished.json"
    write_json(path, {"steps": 1})

    def killed(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(Killed):
        write_json(path, {"steps": 2})
    assert read_back(path) == {"steps": 1}


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text('{"config": ')
    with pytest.raises(TrainingError, match=r"run\.json is not JSON"):
        read_back(path)
    shutil.rmtree(tmp_path)
