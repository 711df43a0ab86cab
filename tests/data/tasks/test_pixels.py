"""Pixel sequences: digits of scikit-learn, idx files, splits by image, broken files."""

from __future__ import annotations

import gzip
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from plait.data.tasks import build_task, pixels
from plait.data.tasks.base import TaskDataset, accuracy
from plait.data.tasks.pixels import Pixels
from plait.errors import DataError


def idx(*shape: int, data: bytes, kind: int = 8) -> bytes:
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, kind, len(shape), *shape) + data


def write(folder: Path, images: int = 20, labels: int = 20, suffix: str = "", dot: str = "-") -> Path:
    """Image i has the pixels i, i + 1 ... and the class i modulo 3."""
    content = {
        f"t10k-images{dot}idx3-ubyte": idx(images, 2, 3, data=bytes(i + p for i in range(images) for p in range(6))),
        f"t10k-labels{dot}idx1-ubyte": idx(labels, data=bytes(i % 3 for i in range(labels))),
    }
    for name, data in content.items():
        (folder / (name + suffix)).write_bytes(gzip.compress(data) if suffix else data)
    return folder / f"t10k-images{dot}idx3-ubyte{suffix}"


def test_digits() -> None:
    task = Pixels()
    assert (task.vocab_size, task.length, task.chance) == (17, 64, 0.1)
    data = load_digits()
    known = {image.astype(int).tobytes(): label for image, label in zip(data.data, data.target, strict=True)}
    inputs, targets = task.generate(np.random.default_rng(0), 300)
    assert inputs.dtype == targets.dtype == np.int32
    assert (targets[:, :-1] == -100).all()
    for row, label in zip(inputs, targets[:, -1], strict=True):
        assert known[row.astype(int).tobytes()] == label
    assert (data.images[0].astype(int).reshape(-1) == task.images.pixels[0]).all()  # row by row
    guess = np.random.default_rng(1).integers(0, 10, (3000, 64))
    targets = task.generate(np.random.default_rng(0), 3000)[1]
    assert accuracy(torch.from_numpy(guess), torch.from_numpy(targets)) == pytest.approx(task.chance, abs=0.02)


def test_splits_share_no_image_and_cover_all() -> None:
    task = Pixels()
    parts = [task.indices(split) for split in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [1439, 179, 179]
    assert sorted(np.concatenate(parts)) == list(range(1797))
    for part in parts:
        assert set(task.images.classes[part]) == set(range(10))
    assert task.indices("test")[:3].tolist() == [390, 419, 1781]  # fixed for ever


def rows(task: Pixels, split: str, samples: int = 2000, seed: int = 0) -> set[bytes]:
    dataset = TaskDataset(task, samples, seed, split)
    return {dataset[i]["input_ids"].numpy().tobytes() for i in range(samples)}


def test_a_data_set_shows_its_own_split() -> None:
    task = Pixels()
    found = {split: rows(task, split) for split in ("train", "validation", "test")}
    for split, images in found.items():
        own = {image.tobytes() for image in task.images.pixels[task.indices(split)].astype(np.int64)}
        assert images <= own
    assert found["test"] == rows(task, "test", seed=5)  # all of them, in another order
    assert len(found["test"]) == len(found["validation"]) == 179


def test_a_call_repeats_an_image_only_when_all_came() -> None:
    inputs, _ = Pixels().generate_split(np.random.default_rng(0), 400, "test")
    seen = [row.tobytes() for row in inputs]
    assert len(set(seen[:179])) == len(set(seen[179:358])) == 179
    assert seen[:179] != seen[179:358]


@pytest.mark.parametrize(("suffix", "dot"), [("", "-"), (".gz", "-"), ("", ".")])
def test_idx_files(tmp_path: Path, suffix: str, dot: str) -> None:
    task = Pixels(path=str(write(tmp_path, suffix=suffix, dot=dot)), length=8)
    assert (task.vocab_size, task.chance) == (25, 1 / 3)
    inputs, targets = task.generate(np.random.default_rng(0), 16)
    assert sorted(inputs[:, 2]) == sorted(task.indices("train"))
    assert (inputs[:, :2] == 0).all()  # filled in front
    assert (inputs[:, 2:] == inputs[:, 2:3] + np.arange(6)).all()
    assert (targets[:, -1] == inputs[:, 2] % 3).all()
    assert [len(task.indices(split)) for split in ("train", "validation", "test")] == [16, 2, 2]


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    def attempt(path: Path) -> Pixels:
        return Pixels(path=str(path))

    with pytest.raises(DataError, match=r"There is no file .*train-images-idx3-ubyte"):
        attempt(tmp_path / "train-images-idx3-ubyte")
    with pytest.raises(DataError, match="must be a file of images, such as train-images-idx3-ubyte"):
        attempt(tmp_path)
    path = write(tmp_path, labels=19)
    with pytest.raises(DataError, match="has 20 images, but t10k-labels-idx1-ubyte beside it has 19 labels"):
        attempt(path)
    cases = {
        "short": (idx(20, 2, 3, data=bytes(119)), r"has 119 bytes of data; \[20, 2, 3\] needs 120"),
        "floats": (idx(20, 2, 3, data=bytes(480), kind=13), "is not an idx file of bytes in 3 dimensions"),
        "flat": (idx(120, data=bytes(120)), "is not an idx file of bytes in 3 dimensions"),
        "header": (idx(20, 2, 3, data=b"")[:9], "is not an idx file"),
        "gzip": (gzip.compress(idx(20, 2, 3, data=bytes(120)))[:-12], "cannot be read"),
        "rubbish": (b"\x1f\x8bno gzip at all", "cannot be read"),
    }
    for name, (content, words) in cases.items():
        folder = tmp_path / name
        folder.mkdir()
        path = write(folder)
        path.write_bytes(content)
        with pytest.raises(DataError, match=words):
            attempt(path)
    (tmp_path / "few").mkdir()
    with pytest.raises(DataError, match="has 9 images; three splits need at least 10"):
        attempt(write(tmp_path / "few", images=9, labels=9))


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels._digits.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"pip install "):
        Pixels()


def test_sizes_that_do_not_fit() -> None:
    with pytest.raises(DataError, match="length=63 is too short for images of 64 pixels; use 0 or length >= 64"):
        Pixels(length=63)
    with pytest.raises(DataError, match="vocab_size >= 17"):
        Pixels(vocab_size=16)


def test_from_a_run_file() -> None:
    task = build_task("pixels", {"length": 100})
    assert type(task) is Pixels
    assert TaskDataset(task, 10, 0)[3]["input_ids"].shape == (100,)
