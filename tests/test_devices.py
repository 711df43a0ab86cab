"""Models compute on what this machine has, also with a build of torch for a device that is not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import plait
from plait import devices
from plait.evaluation.subject import open_model
from plait.fixtures import fixture_folder


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a CUDA build of torch answers on a machine without a GPU."""

    def current_accelerator(check_available: bool = False) -> torch.device | None:
        return None if check_available else torch.device("cuda")

    monkeypatch.setattr(torch.accelerator, "current_accelerator", current_accelerator)


@pytest.mark.usefixtures("no_driver")
def test_a_cuda_build_without_a_driver_computes_on_the_cpu() -> None:
    assert devices.default_device() == torch.device("cpu")
    assert devices.unusable_accelerator() == "cuda"
    model, _ = open_model(fixture_folder("recall-small"))
    assert model.device == torch.device("cpu")


def test_an_accelerator_that_is_there_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("mps"))
    assert devices.default_device() == torch.device("mps")
    assert devices.unusable_accelerator() is None


def test_only_one_place_asks() -> None:
    root = Path(plait.__file__).parent
    asking = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if "torch.accelerator" in path.read_text("utf-8")
    }
    assert asking == {"devices.py"}
