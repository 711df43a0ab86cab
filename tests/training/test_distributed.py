"""Processes that share a step learn what one process learns, and a run may change their number on the way."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import plait
from plait.errors import OptionError, TrainingError
from plait.files.writing import read_back
from plait.models import load
from plait.runs.checkpoint import checkpoints
from plait.training.batches import DealtSampler, share
from plait.training.runner import Interrupted, train
from plait.training.trainer import PlaitTrainer
from training.distributed import config, largest_difference, launch, numbers, seen

STEPS = 20
ROWS = 16


@dataclass
class Runs:
    """Folders of the same run, trained in different ways."""

    one: Path
    ddp: Path
    fsdp: Path
    two_then_one: Path
    one_then_two: Path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """One process, two with a copy each, two with a part each, and one number after the other."""
    top = tmp_path_factory.mktemp("distributed")
    found = Runs(*(top / name for name in ("one", "ddp", "fsdp", "two_then_one", "one_then_two")))
    train(config(), found.one, progress=False)
    with pytest.MonkeyPatch.context() as patch:
        step, told = PlaitTrainer.training_step, []

        def training_step(self: PlaitTrainer, *args: Any) -> Tensor:
            if self.state.global_step == 7 and not told:
                told.append(os.kill(os.getpid(), signal.SIGTERM))
            return step(self, *args)

        patch.setattr(PlaitTrainer, "training_step", training_step)
        with pytest.raises(Interrupted):
            train(config(), found.one_then_two, progress=False)
    sharded = config(accumulate=2, parallel="fsdp")
    done = launch(
        2,
        (config(accumulate=2, parallel="ddp"), found.ddp, {}),
        (sharded, found.fsdp, {}),
        (sharded, found.two_then_one, {"stop": 8}),
        (config(parallel="fsdp"), found.one_then_two, {}),
    )
    assert done.returncode == 0, done.stderr
    train(sharded, found.two_then_one, progress=False)
    return found


@pytest.mark.parametrize("way", ["ddp", "fsdp", "two_then_one", "one_then_two"])
def test_every_way_of_sharing_learns_the_same(runs: Runs, way: str) -> None:
    folder = getattr(runs, way)
    for key in ("loss", "grad_norm", "validation_loss"):
        expected = numbers(runs.one, key)
        assert len(expected) == (2 if key == "validation_loss" else STEPS)
        assert numbers(folder, key) == pytest.approx(expected, rel=1e-5), key
    assert min(numbers(runs.one, "grad_norm")) > 0.1  # so every step is clipped
    assert largest_difference(runs.one, folder) < 1e-4
    assert read_back(folder / "finished.json")["tokens"] == STEPS * ROWS * 32
    model, _ = plait.load(folder / "model")
    assert model.num_parameters() == read_back(folder / "finished.json")["parameters"]


def test_a_process_reads_its_own_rows_and_holds_its_own_part(runs: Runs) -> None:
    for folder, sharded in ((runs.ddp, False), (runs.fsdp, True)):
        rows = [seen(folder, process)["rows"] for process in (0, 1)]
        assert [set(part) for part in rows] == [set(range(process, STEPS * ROWS, 2)) for process in (0, 1)]
        for step in range(STEPS):
            together = {row for part in rows for row in part[step * ROWS // 2 : (step + 1) * ROWS // 2]}
            assert together == set(range(step * ROWS, (step + 1) * ROWS))
        for process in (0, 1):
            assert seen(folder, process)["sharded"] is sharded
            assert seen(folder, process)["shares"] == pytest.approx(0.5 if sharded else 1, abs=0.02)
        assert seen(folder, 0)["validation"] == seen(folder, 1)["validation"]
    parts = sorted(path.name for path in (runs.fsdp / "checkpoint-20" / "sharded").iterdir())
    assert parts == [".metadata", "__0_0.distcp", "__1_0.distcp"]
    assert not (runs.fsdp / "checkpoint-20" / "model.safetensors").exists()


def test_a_sharded_checkpoint_opens_as_the_whole_model(runs: Runs) -> None:
    model, _ = load(runs.fsdp / "checkpoint-20")
    final, _ = load(runs.fsdp / "model")
    found, expected = model.state_dict(), final.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not model.training
    assert load(runs.fsdp / "checkpoint-20", dtype=torch.bfloat16)[0].dtype == torch.bfloat16


def test_processes_stop_together_though_one_was_told(runs: Runs) -> None:
    assert [seen(runs.two_then_one, process)["end"] for process in (0, 1)] == ["stopped at 8"] * 2
    assert [seen(runs.one_then_two, process)["end"] for process in (0, 1)] == ["finished"] * 2
    first = min(seen(runs.one_then_two, process)["rows"][0] for process in (0, 1))
    assert first == 8 * ROWS  # nothing replayed, nothing left out
    assert [path.name for path in checkpoints(runs.one_then_two)] == ["checkpoint-15", "checkpoint-20"]


@pytest.mark.parametrize(
    ("rows", "processes", "batch_size", "expected"),
    [(16, 1, 4, (4, 4)), (16, 2, 4, (4, 2)), (16, 8, 4, (2, 1)), (12, 1, 5, (4, 3)), (7, 1, 4, (1, 7))],
)
def test_the_rows_of_a_step_are_shared_evenly(
    rows: int, processes: int, batch_size: int, expected: tuple[int, int]
) -> None:
    assert share(rows, processes, batch_size) == expected


def test_rows_that_cannot_be_shared_are_an_error() -> None:
    with pytest.raises(TrainingError, match="16 sequences, which 3 processes cannot share"):
        share(16, 3, 4)


def test_rows_are_dealt_in_rounds() -> None:
    assert list(DealtSampler(12, 3, 2)) == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
    assert list(DealtSampler(6, 3, 1)) == list(range(6))


def test_a_launcher_that_shards_too_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(OptionError, match=r"training\.parallel: fsdp"):
        train(config(), tmp_path, progress=False)
