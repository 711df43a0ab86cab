"""Processes that die, other numbers of processes, bf16: what takes several launches of torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import plait
from plait.files.writing import read_back
from plait.runs.checkpoint import checkpoints
from plait.training.runner import train
from training.distributed import config, equal, largest_difference, launch, numbers, seen

pytestmark = pytest.mark.slow


def test_a_killed_process_ends_the_others_and_the_run_goes_on(tmp_path: Path) -> None:
    run = config(accumulate=2, parallel="fsdp")
    whole, killed, four = tmp_path / "whole", tmp_path / "killed", tmp_path / "four"
    done = launch(2, (run, whole, {}), (run, four, {"stop": 8}))
    assert done.returncode == 0, done.stderr
    done = launch(2, (run, killed, {"kill": 13}))
    assert done.returncode == 1
    assert "Signal 9 (SIGKILL)" in done.stderr
    assert [path.name for path in checkpoints(killed)] == ["checkpoint-5", "checkpoint-10"]
    done = launch(2, (run, killed, {}))
    assert done.returncode == 0, done.stderr
    assert equal(whole, killed)  # bit for bit
    assert numbers(whole, "loss") == numbers(killed, "loss")
    assert not list(killed.glob(".partial*"))
    done = launch(4, (run, four, {}))
    assert done.returncode == 0, done.stderr
    assert numbers(four, "loss") == pytest.approx(numbers(whole, "loss"), rel=1e-5)
    assert largest_difference(whole, four) < 1e-4
    assert seen(four, 3)["shares"] == pytest.approx(0.25, abs=0.02)


def test_a_number_of_processes_that_does_not_fit_says_why(tmp_path: Path) -> None:
    run = config(accumulate=2, parallel="fsdp")
    (tmp_path / "run").mkdir()
    assert launch(2, (run, tmp_path / "run", {"stop": 2})).returncode == 0
    assert launch(3, (run, tmp_path / "run", {})).returncode == 0
    for process in range(3):
        assert "16 sequences, which 3 processes cannot share evenly" in seen(tmp_path / "run", process)["end"]


def test_bf16_recomputation_and_unclipped_gradients(tmp_path: Path) -> None:
    bf16 = config(accumulate=2, parallel="fsdp", precision="bf16", clip=0.0, steps=10, save_every=10)
    recomputed = config(accumulate=2, parallel="fsdp", gradient_checkpointing=True, clip=0.0, steps=10, save_every=10)
    exact = config(clip=0.0, steps=10, save_every=10)
    train(exact, tmp_path / "exact", progress=False)
    done = launch(2, (bf16, tmp_path / "bf16", {}), (recomputed, tmp_path / "recomputed", {}))
    assert done.returncode == 0, done.stderr
    expected = numbers(tmp_path / "exact", "loss")
    assert numbers(tmp_path / "recomputed", "loss") == pytest.approx(expected, rel=1e-5)
    rounded = numbers(tmp_path / "bf16", "loss")
    assert rounded == pytest.approx(expected, rel=1e-2)
    assert rounded != pytest.approx(expected, rel=1e-6)
    kept = load_file(tmp_path / "bf16" / "model" / "model.safetensors")
    assert {value.dtype for value in kept.values()} == {torch.float32}


def test_the_command_line_under_torchrun(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(config(accumulate=1, steps=4, parallel="fsdp").model_dump(mode="json")))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "plait"]
    done = subprocess.run(
        [*command, "train", str(file), "--out", str(tmp_path / "run"), "--json"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["train"]["tokens"] == 4 * 8 * 32  # one process measures and prints
    assert done.stderr.count("2 processes, each a part of the model") == 1
    assert plait.load(tmp_path / "run" / "model")[0].config.layer_types == ["gated_deltanet", "hgrn", "attention"]


def test_a_streamed_corpus_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for part in range(3):
        lines = [json.dumps({"text": f"{part}.{i}" * (1 + i % 2)}) for i in range(400)]  # 256 fill some 50 rows
        (folder / f"train-{part}.jsonl").write_text("\n".join(lines) + "\n")
    data = {"corpus": f"hf:{folder}", "streaming": True, "max_bytes": 2000, "length": 32}
    run = config(data=data, steps=12, accumulate=2, parallel="fsdp", validate_every=0)
    train(config(data=data, steps=12, validate_every=0), tmp_path / "one", progress=False)
    done = launch(2, (run, tmp_path / "two", {}), (run, tmp_path / "moved", {"stop": 7}))
    assert done.returncode == 0, done.stderr
    state = read_back(tmp_path / "moved" / "checkpoint-7" / "run_state.json")
    assert state["samples"] == 7 * 16
    assert 0 < state["stream"]["row"] <= 7 * 16
    train(run, tmp_path / "moved", progress=False)
    for name in ("two", "moved"):
        assert numbers(tmp_path / name, "loss") == pytest.approx(numbers(tmp_path / "one", "loss"), rel=1e-5)
    assert not list((tmp_path / "one" / "data").glob("train-*"))  # nothing was packed
