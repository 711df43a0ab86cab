"""A checkpoint in pieces gives its numbers and runs nothing."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from plait.errors import OptionError
from plait.models.pieces import read_pieces

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


class Planted:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return Path.write_text, (self.file, "ran")


def test_numbers_come_back(tmp_path: Path) -> None:
    dcp.save(
        {"a": torch.arange(5.0), "b": {"rate": 0.5, "half": torch.ones(2, dtype=torch.bfloat16)}},
        checkpoint_id=tmp_path,
        no_dist=True,
    )
    content = {"a": torch.zeros(5), "b": {"rate": 0.0, "half": torch.zeros(2, dtype=torch.bfloat16)}}
    read_pieces(content, tmp_path, alone=True)
    assert content["a"].tolist() == [0, 1, 2, 3, 4]
    assert content["b"]["rate"] == 0.5
    assert content["b"]["half"].tolist() == [1, 1]


def test_an_index_runs_nothing(tmp_path: Path) -> None:
    dcp.save({"a": torch.zeros(2)}, checkpoint_id=tmp_path, no_dist=True)
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Planted(tmp_path / "trace")))
    with pytest.raises(OptionError, match=r"\.metadata is no index of a checkpoint: it names"):
        read_pieces({"a": torch.zeros(2)}, tmp_path, alone=True)
    assert not (tmp_path / "trace").exists()


def test_an_entry_runs_nothing(tmp_path: Path) -> None:
    dcp.save({"a": Planted(tmp_path / "trace")}, checkpoint_id=tmp_path, no_dist=True)
    with pytest.raises(OptionError, match="more than numbers"):
        read_pieces({"a": 0}, tmp_path, alone=True)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("content", [b"", b"junk", pickle.dumps(3)[:-1]])
def test_a_damaged_index_is_named(tmp_path: Path, content: bytes) -> None:
    dcp.save({"a": torch.zeros(2)}, checkpoint_id=tmp_path, no_dist=True)
    (tmp_path / ".metadata").write_bytes(content)
    with pytest.raises(OptionError, match=r"\.metadata is no index"):
        read_pieces({"a": torch.zeros(2)}, tmp_path, alone=True)


def test_the_planted_entry_would_run(tmp_path: Path) -> None:
    """What the others guard against does happen to those who unpickle."""
    pickle.load(io.BytesIO(pickle.dumps(Planted(tmp_path / "trace"))))
    assert (tmp_path / "trace").read_text() == "ran"
