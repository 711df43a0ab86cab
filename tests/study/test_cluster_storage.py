"""What a storage holds at any moment, and who may write to it; no Ray is needed."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from plait.errors import OptionError, StudyError
from plait.files.writing import write_json
from plait.study.cluster_storage import Lease, Storage
from plait.study.file import parse_study
from plait.study.store import STUDY, Store

TRIAL = "0123456789abcdef"


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(f"file://{tmp_path}/storage")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A trial's folder with a checkpoint at step 4."""
    folder = tmp_path / "here" / TRIAL
    write(folder / "run.json", "{}")
    write(folder / "metrics.jsonl", '{"step": 4}\n')
    write(folder / "checkpoint-4/model.safetensors", "four")
    return folder


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_snapshot_comes_back_as_it_was(storage: Storage, folder: Path, tmp_path: Path) -> None:
    assert not storage.pull(TRIAL, tmp_path / "nothing")
    content = tree(folder)
    storage.push(TRIAL, folder)
    assert storage.pull(TRIAL, tmp_path / "there")
    assert tree(tmp_path / "there") == content
    assert tree(folder) == content
    assert [path.name for path in folder.parent.iterdir()] == [TRIAL]


def test_only_the_newest_checkpoint_is_kept(storage: Storage, folder: Path, tmp_path: Path) -> None:
    storage.push(TRIAL, folder)
    write(folder / "checkpoint-12/model.safetensors", "twelve")
    write(folder / "checkpoint-8/model.safetensors", "eight")
    storage.push(TRIAL, folder)
    storage.pull(TRIAL, tmp_path / "there")
    assert [path.name for path in (tmp_path / "there").glob("checkpoint-*")] == ["checkpoint-12"]
    assert len(list((tmp_path / "storage/trials" / TRIAL).glob("snapshot-*"))) == 1


def test_a_finished_model_replaces_the_checkpoints(storage: Storage, folder: Path, tmp_path: Path) -> None:
    write(folder / "model/model.safetensors", "weights")
    write(folder / "finished.json", "{}")
    storage.push(TRIAL, folder)
    storage.pull(TRIAL, tmp_path / "there")
    assert set(tree(tmp_path / "there")) == {"model/model.safetensors", "finished.json", "run.json", "metrics.jsonl"}


@pytest.mark.parametrize("uploads", [0, 1, 2])
def test_killed_while_uploading_the_last_whole_snapshot_stays(
    storage: Storage, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uploads: int
) -> None:
    storage.push(TRIAL, folder)
    content = tree(folder)
    write(folder / "checkpoint-8/model.safetensors", "eight")
    left = iter(range(uploads))
    put = storage._put

    def put_or_die(source: Path, file: str) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        put(source, file)

    monkeypatch.setattr(storage, "_put", put_or_die)
    with pytest.raises(KeyboardInterrupt):
        storage.push(TRIAL, folder)
    storage.pull(TRIAL, tmp_path / "there")
    assert tree(tmp_path / "there") == content


def test_a_checkpoint_deleted_meanwhile_is_no_snapshot(
    storage: Storage, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training process rotates its checkpoints while they are read."""
    write(folder / "checkpoint-8/model.safetensors", "eight")
    import plait.study.cluster_storage as module

    link = module.os.link

    def rotated(source: str, target: str) -> None:
        if "checkpoint-8" in str(source):
            write(folder / "checkpoint-12/model.safetensors", "twelve")
            Path(source).unlink()
        link(source, target)

    monkeypatch.setattr(module.os, "link", rotated)
    storage.push(TRIAL, folder)
    storage.pull(TRIAL, tmp_path / "there")
    assert tree(tmp_path / "there")["checkpoint-12/model.safetensors"] == "twelve"
    assert not (tmp_path / "there/checkpoint-8").exists()


def test_a_damaged_snapshot_is_named(storage: Storage, folder: Path, tmp_path: Path) -> None:
    storage.push(TRIAL, folder)
    (stored,) = (tmp_path / "storage").rglob("model.safetensors")
    stored.write_text("fou")
    with pytest.raises(StudyError, match=r"model.safetensors has 3 bytes and should have 4; delete"):
        storage.pull(TRIAL, tmp_path / "there")
    stored.unlink()
    with pytest.raises(StudyError, match=r"model.safetensors is missing"):
        storage.pull(TRIAL, tmp_path / "there")


def test_records_arrive_with_the_result_last(
    storage: Storage, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder / "error.json", '{"error": "no"}')
    storage.finish(TRIAL, folder)
    assert storage.error(TRIAL) == {"error": "no"}
    assert storage.result(TRIAL) is None
    (folder / "error.json").unlink()
    write(folder / "result.json", '{"seed": 3}')
    order: list[str] = []
    put = storage._put
    monkeypatch.setattr(storage, "_put", lambda source, file: (order.append(source.name), put(source, file)))
    storage.finish(TRIAL, folder)
    assert order[-1] == "result.json"
    assert storage.result(TRIAL) == {"seed": 3}
    assert storage.error(TRIAL) is None
    storage.fetch_records(TRIAL, tmp_path / "out")
    assert tree(tmp_path / "out") == {"result.json": '{"seed": 3}', "metrics.jsonl": '{"step": 4}\n'}


def test_a_lease_keeps_other_runs_out_until_its_holder_is_silent(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plait.study.cluster_storage.RENEWAL_SECONDS", 0.05)
    with Lease(storage, TRIAL, "first") as lease:
        assert lease.acquire(0.2)
        assert storage.leased(TRIAL)
        assert not Lease(storage, TRIAL, "second").acquire(1.0)
    assert not storage.leased(TRIAL)

    dead = Lease(storage, TRIAL, "first")
    dead._sign(0)  # and never again
    began = time.monotonic()
    with Lease(storage, TRIAL, "second") as lease:
        assert lease.acquire(0.4)
        assert time.monotonic() - began > 0.4
        with Lease(storage, TRIAL, "second") as same_run:  # Ray has said that the holder is dead
            assert same_run.acquire(0.4)
            time.sleep(0.3)
            assert lease.lost
            assert not same_run.lost


def test_a_place_that_cannot_serve_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="memory is not shared"):
        Storage("memory://study")
    with pytest.raises(OptionError, match="nosuch"):
        Storage("nosuch://study")
    assert Storage(str(tmp_path)).root == str(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"", b"[" * 100_000])
def test_a_damaged_file_is_named_with_the_fix(tmp_path: Path, content: bytes) -> None:
    storage = Storage(f"file://{tmp_path}")
    folder = tmp_path / "trials" / "abc"
    folder.mkdir(parents=True)
    (folder / "result.json").write_bytes(content)
    with pytest.raises(StudyError, match=r"trials/abc/result\.json .*Delete its folder, and the trial runs again\."):
        storage.result("abc")


def test_what_a_machine_writes_of_a_study_is_its_record(tmp_path: Path) -> None:
    """The record travels without its seal and is sealed again where it arrives."""
    driver, machine = Store(tmp_path / "driver"), Store(tmp_path / "machine")
    study = parse_study({"name": "s", "tracks": {"lm": {"kind": "lm"}}, "grid": {"mixers": ["gla"]}}, "s.yaml")
    driver.write_study(study, "s.yaml", "plait study run s.yaml")
    machine.folder.mkdir()
    write_json(machine.folder / STUDY, driver.record(), sealed=True)
    assert machine.record() == driver.record()
    assert machine.read_study()[0] == study
