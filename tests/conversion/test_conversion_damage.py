"""What a killed conversion left is checked before it goes on; its folder has one writer."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from conversion.small import save_data, save_teacher
from plait.conversion import convert
from plait.conversion.run import Conversion
from plait.errors import FolderInUse, TrainingError
from plait.files.locks import sole_writer
from plait.runs.checkpoint import checkpoints

SHORT = {"mixer": "gated_deltanet", "align_steps": 4, "distil_steps": 2, "batch_size": 2, "save_every": 2}
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    save_data(folder)
    return save_teacher(folder / "teacher").parent


@pytest.fixture(scope="module")
def whole(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "out"
    run(llama, folder)
    return folder


def run(llama: Path, out: Path) -> Conversion:
    return convert(
        llama / "teacher", "halo", out, ratio="2:1", select="every", data=llama / "data.yaml", samples=2, options=SHORT
    )


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-9] ^= 4
    path.write_bytes(content)


def test_a_damaged_result_is_named_and_written_again(llama: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    before = (out / WEIGHTS).read_bytes()
    assert run(llama, out).report == run(llama, whole).report
    flip(out / WEIGHTS)
    with pytest.raises(TrainingError, match=rf"is damaged, or was changed: {WEIGHTS} has changed since it was saved"):
        run(llama, out)
    (out / "conversion.json").unlink()
    run(llama, out)
    assert (out / WEIGHTS).read_bytes() == before


def test_a_damaged_stage_is_named(llama: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    (out / "conversion.json").unlink()
    flip(out / "stages" / "distil" / "model" / WEIGHTS)
    with pytest.raises(
        TrainingError, match=rf"distil.model is damaged: {WEIGHTS} has changed since it was saved.*Delete "
    ):
        run(llama, out)
    shutil.rmtree(out / "stages" / "distil")
    run(llama, out)
    assert (out / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()


@pytest.mark.parametrize("name", ["trained.safetensors", "optimizer.pt", "state.json", "metrics.jsonl"])
def test_a_damaged_checkpoint_of_a_stage_gives_way_to_the_one_before(
    name: str,
    llama: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from plait.conversion import stages

    def killed(*_: object) -> None:
        raise MemoryError

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(stages, "publish_folder", killed)
        shutil.copytree(whole, out)
        shutil.rmtree(out / "stages" / "align")
        shutil.rmtree(out / "stages" / "distil")
        (out / "conversion.json").unlink()
        with pytest.raises(MemoryError):
            run(llama, out)
    saved = checkpoints(out / "stages" / "align")
    assert [path.name for path in saved] == ["checkpoint-2", "checkpoint-4"]
    flip(saved[-1] / name)
    run(llama, out)
    assert f"{saved[-1]} is damaged: {name}" in caplog.text
    assert (out / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()


def test_a_second_conversion_is_told_who_converts(llama: Path, tmp_path: Path) -> None:
    seen: list[str] = []

    def second() -> None:
        try:
            run(llama, tmp_path / "out")
        except FolderInUse as error:
            seen.append(str(error))

    with sole_writer(tmp_path / "out", "conversion"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert "is in use by process" in seen[0]
    assert "(conversion, since" in seen[0]
