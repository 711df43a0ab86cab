"""Where a result comes from."""

from __future__ import annotations

import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from plait import provenance


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like a clone of plait, as the module sees it."""
    module = tmp_path / "src" / "plait" / "provenance.py"
    module.parent.mkdir(parents=True)
    module.write_text("", encoding="utf-8")
    monkeypatch.setattr(provenance, "__file__", str(module))
    return tmp_path


def test_a_result_names_versions_machine_and_commit() -> None:
    found = provenance.provenance("pydantic")
    assert found["versions"]["torch"] == version("torch")
    assert found["versions"]["pydantic"] == version("pydantic")
    assert found["machine"] == provenance.machine()
    assert found["commit"] == provenance.commit()


def test_the_machine_names_its_threads() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert ", 3 threads" in provenance.machine()
    finally:
        torch.set_num_threads(before)
    assert f", {before} threads" in provenance.machine()


def test_the_commit_of_a_clone_and_whether_it_was_changed(clone: Path) -> None:
    commit = provenance.commit.__wrapped__
    assert commit() is None  # installed: no repository of its own
    git(clone, "init")
    git(clone, "add", ".")
    git(clone, "commit", "-m", "one")
    git(clone, "tag", "v1")
    head = git(clone, "rev-parse", "HEAD")
    assert commit() == head
    (clone / "src" / "plait" / "provenance.py").write_text("changed", encoding="utf-8")
    assert commit() == f"{head}+changes"


def test_no_commit_of_the_repository_that_an_installation_lies_in(clone: Path) -> None:
    inside = clone / "src"
    git(inside, "init")  # further in: not the place of a clone of plait
    assert provenance.commit.__wrapped__() is None
    git(clone, "init")
    (clone / ".git" / "HEAD").unlink()  # a repository that git does not read
    assert provenance.commit.__wrapped__() is None
