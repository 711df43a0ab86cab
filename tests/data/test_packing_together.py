"""Several processes and threads that pack the same text at once, and what killed ones leave."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from plait.data import build, packing
from plait.data.corpora import open_corpus
from plait.data.folders import only_writer, remove_leftovers, write_folder
from plait.data.packing import PackedTokens, pack
from plait.data.tokenizers import byte_tokenizer, cached_tokenizer
from plait.runs.config import DataSection


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    lines = [f"{number} squared is {number * number}.\n" for number in range(3000)]
    (tmp_path / "text.txt").write_text("".join(lines))
    return f"text:{tmp_path / 'text.txt'}"


def packed(spec: str, folder: Path, written: Path) -> None:
    """Pack slowly, and note that it was done here."""
    write = packing._write

    def noted(*arguments: Any) -> None:
        (written / str(os.getpid())).touch()
        time.sleep(0.3)
        write(*arguments)

    packing._write = noted
    corpus = open_corpus(spec)
    cached_tokenizer("bpe:300", corpus, folder)
    pack(corpus, byte_tokenizer(), folder, "train")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="started by fork, for the time that imports take")
def test_two_studies_on_one_cache_pack_once(corpus: str, tmp_path: Path) -> None:
    (tmp_path / "written").mkdir()
    context = multiprocessing.get_context("fork")
    arguments = (corpus, tmp_path / "cache", tmp_path / "written")
    processes = [context.Process(target=packed, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(list((tmp_path / "written").iterdir())) == 1
    assert [path.name.partition("-")[0] for path in sorted((tmp_path / "cache").iterdir())] == ["tokenizer", "train"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="started by fork, for the time that imports take")
def test_a_killed_packer_leaves_nothing_for_long(corpus: str, tmp_path: Path) -> None:
    (tmp_path / "written").mkdir()
    cache = tmp_path / "cache"
    process = multiprocessing.get_context("fork").Process(target=packed, args=(corpus, cache, tmp_path / "written"))
    process.start()
    while not list((tmp_path / "written").iterdir()):
        time.sleep(0.01)
    remove_leftovers(cache)  # somebody is still writing: nothing is removed
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert [path for path in cache.iterdir() if path.name.startswith(".train-") and path.is_dir()]
    remove_leftovers(cache)
    assert [path.name.partition("-")[0] for path in cache.iterdir()] == ["tokenizer"]


def test_eight_threads_pack_once(corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, calls = packing._write, []
    monkeypatch.setattr(packing, "_write", lambda *arguments: (calls.append(1), write(*arguments)))
    found: list[PackedTokens] = []

    def one() -> None:
        found.append(pack(open_corpus(corpus), byte_tokenizer(), tmp_path / "cache", "train"))

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert len(found) == 8
    assert all(np.array_equal(one.tokens, found[0].tokens) for one in found)


def test_a_damaged_tokenizer_is_trained_again(corpus: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = cached_tokenizer("bpe:300", open_corpus(corpus), tmp_path)
    (path,) = tmp_path.glob("tokenizer-*/tokenizer.json")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b" ")
    assert path.read_bytes() != whole
    again = cached_tokenizer("bpe:300", open_corpus(corpus), tmp_path)
    assert "is damaged: tokenizer.json has changed since it was saved" in caplog.text
    assert again.get_vocab() == first.get_vocab()
    assert path.read_bytes() == whole


def test_leftovers_of_one_target_go_when_it_is_written_again(tmp_path: Path) -> None:
    for name in (".target.77-0123abcd", ".other.77-0123abcd", ".target.backup"):
        (tmp_path / name).mkdir()
    with only_writer(tmp_path / "target"):
        write_folder(tmp_path / "target", lambda folder: (folder / "file").touch())
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.77-0123abcd", ".target.backup", "target"]
    remove_leftovers(tmp_path)
    remove_leftovers(tmp_path / "absent")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".target.backup", "target"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["task", "mixture"])
def test_spawned_loaders_see_the_same_rows(kind: str, corpus: str, tmp_path: Path) -> None:
    mqar = {"task": "mqar", "options": {"vocab_size": 32, "pairs": 2}}
    values: dict[str, Any] = mqar if kind == "task" else {"mixture": [mqar, {"corpus": corpus}]}
    bundle = build(DataSection(length=16, **values), tmp_path / "cache", 3)
    rows = bundle.train_dataset(128)
    alone = list(DataLoader(rows, batch_size=8, collate_fn=bundle.collate))
    loader = DataLoader(rows, batch_size=8, collate_fn=bundle.collate, num_workers=2, multiprocessing_context="spawn")
    for one, other in zip(alone, loader, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)
