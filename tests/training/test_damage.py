"""A checkpoint, a model or a result that is not what was saved is found, named, and not used."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from plait.errors import TrainingError
from plait.files.manifest import MANIFEST
from plait.files.writing import read_back, write_json
from plait.runs.checkpoint import checkpoints
from plait.runs.folder import kept_result
from plait.runs.metrics import FILE, losses, read_metrics
from plait.training import RunConfig
from plait.training.runner import train

Make = Callable[..., RunConfig]


def flip(path: Path, place: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    path.write_bytes(content)


def stopped(config: RunConfig, whole: Path, folder: Path) -> Path:
    """A copy of a finished run that looks as if it was killed after its last checkpoint."""
    shutil.copytree(whole, folder)
    (folder / "finished.json").unlink()
    shutil.rmtree(folder / "model")
    return folder


@pytest.fixture(scope="module")
def config() -> RunConfig:
    mqar = {"task": "mqar", "length": 16, "options": {"vocab_size": 32, "pairs": 2}}
    values = {
        "model": {"hidden_size": 32, "num_hidden_layers": 2, "ratio": "1:1", "intermediate_size": 32},
        "data": mqar,
        "training": {"steps": 6, "batch_size": 4, "warmup_steps": 2, "save_every": 2, "log_every": 1, "keep": 2},
        "evaluate": {"limit": 8},
    }
    return RunConfig.model_validate(values)


@pytest.fixture(scope="module")
def whole(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(config, folder, progress=False)
    return folder


KEPT = ("model.safetensors", "optimizer.pt", "rng_state.pth", "run_state.json", "scheduler.pt", "metrics.jsonl")


@pytest.mark.parametrize("name", [*KEPT, "trainer_state.json", "config.json", MANIFEST])
def test_a_flipped_bit_in_any_file_of_a_checkpoint_is_found(
    name: str, config: RunConfig, whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = stopped(config, whole, tmp_path / "run")
    flip(folder / "checkpoint-6" / name, random.Random(name).random())
    said: list[str] = []
    train(config, folder, progress=False, announce=said.append)
    assert f"{folder / 'checkpoint-6'} is damaged: " in caplog.text
    assert (name if name != MANIFEST else "") in caplog.text
    assert "Going on from checkpoint-4; the damaged one is now damaged-checkpoint-6" in caplog.text
    assert said[-1] == "going on from checkpoint-4"
    model = Path("model") / "model.safetensors"
    assert (folder / model).read_bytes() == (whole / model).read_bytes()
    assert losses(folder) == losses(whole)
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-4", "checkpoint-6"]
    assert (folder / "damaged-checkpoint-6").is_dir()


def test_missing_cut_and_foreign_files_are_named_and_without_a_whole_one_the_run_ends(
    config: RunConfig, whole: Path, tmp_path: Path
) -> None:
    folder = stopped(config, whole, tmp_path / "run")
    (folder / "checkpoint-4" / "optimizer.pt").unlink()
    weights = folder / "checkpoint-6" / "model.safetensors"
    shutil.copyfile(whole / "checkpoint-4" / "model.safetensors", weights)  # whole, but another checkpoint's
    with pytest.raises(TrainingError) as caught:
        train(config, folder, progress=False)
    message = str(caught.value)
    assert f"No checkpoint in {folder} is whole" in message
    assert "checkpoint-6: model.safetensors has changed since it was saved" in message
    assert "checkpoint-4: optimizer.pt is missing" in message
    assert "delete them to start again" in message
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-4", "checkpoint-6"]
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(TrainingError, match=r"model\.safetensors has 100 bytes instead of"):
        train(config, folder, progress=False)


def test_a_damaged_model_of_a_finished_run_is_saved_again(
    config: RunConfig, whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    flip(folder / "model" / "model.safetensors")
    train(config, folder, progress=False)
    assert "is damaged: model.safetensors has changed since it was saved" in caplog.text
    model = Path("model") / "model.safetensors"
    assert (folder / model).read_bytes() == (whole / model).read_bytes()
    flip(folder / model)
    for path in checkpoints(folder):
        shutil.rmtree(path)
    with pytest.raises(TrainingError, match="No checkpoint is left to save it again from"):
        train(config, folder, progress=False)


@pytest.mark.parametrize("name", ["run.json", "finished.json"])
def test_a_changed_record_is_refused(name: str, config: RunConfig, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    content = (folder / name).read_text()
    (folder / name).write_text(content.replace(": 4,", ": 5,") if name == "run.json" else content.replace("6", "9", 1))
    with pytest.raises(TrainingError, match=rf"{name} is damaged: its content is not what was saved"):
        train(config, folder, progress=False)


def test_a_damaged_result_is_not_kept(
    config: RunConfig, whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    result = {"config": config.model_dump(mode="json"), "evaluation": {"results": [{"score": 0.25}]}}
    write_json(folder / "result.json", result, sealed=True)
    assert kept_result(folder, config) == result
    (folder / "result.json").write_text((folder / "result.json").read_text().replace("0.25", "0.75"))
    assert kept_result(folder, config) is None
    assert "The run is measured again" in caplog.text


def test_a_damaged_line_of_the_metrics_is_named(tmp_path: Path) -> None:
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in (1, 2, 3)]
    (tmp_path / FILE).write_text("\n".join([*lines, '{"step": 4, "lo']))
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 3]
    for broken in ('{"step": 2, ', '{"stop": 2}', "2", '{"step": "2"}'):
        (tmp_path / FILE).write_text("\n".join([lines[0], broken, lines[2], ""]))
        with pytest.raises(TrainingError, match=r"metrics\.jsonl: line 2 is damaged"):
            read_metrics(tmp_path)


def test_every_single_flip_of_a_sealed_file_is_found_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    content = {"accuracy": 0.125, "steps": 60, "names": ["a", "ä"], "seconds": 1e-9, "nothing": None}
    write_json(path, content, sealed=True)
    assert read_back(path) == content
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in range(8):
            changed = bytearray(whole)
            changed[place] ^= 1 << bit
            path.write_bytes(changed)
            try:
                found = read_back(path)
            except TrainingError:
                continue
            assert {key: found[key] for key in content} == content, (place, bit)
