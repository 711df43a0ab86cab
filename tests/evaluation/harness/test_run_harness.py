"""From a folder of files to a dictionary that is ready for JSON, quietly and without a network."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("lm_eval")

from evaluation.harness.samples import ROWS, llama, write_rows
from plait.data.tokenizers import byte_tokenizer
from plait.errors import OptionError
from plait.evaluation.harness import run_harness


def test_results(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    heard: list[tuple[str, int, int]] = []

    def progress(*step: Any) -> None:
        heard.append(step)
        print("heard", file=sys.stderr)

    result = run_harness(
        llama(),
        byte_tokenizer(),
        ["copa", "arc_easy", "copa"],
        data_dir=write_rows(tmp_path),
        limit=2,
        progress=progress,
    )
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert list(result["tasks"]) == ["copa", "arc_easy"]
    arc = result["tasks"]["arc_easy"]
    assert arc["n"] == 2
    assert set(arc["metrics"]) == {"acc", "acc_norm"}
    assert arc["metrics"]["acc"]["value"] == sum(arc["correct"]) / 2
    assert all(value in (0, 1) for value in arc["correct"])
    assert arc["version"] == 1.0
    assert result["settings"] == {"limit": 2, "max_length": 2048, "seed": 0, "shares_state": True}
    assert result["versions"]["lm_eval"]
    assert heard[-1] == ("loglikelihood", 12, 12)
    done = [step[1] for step in heard]
    assert done == sorted(done)
    out, err = capfd.readouterr()
    assert out == ""
    assert set(err.split()) == {"heard"}


def test_standard_error_of_accuracy(tmp_path: Path) -> None:
    """The sample standard deviation over the square root of n."""
    rows = [{**ROWS["copa"][1], "gold": gold} for gold in (0, 1, 1, 1)]  # whatever the model prefers: 1 or 3 of 4
    result = run_harness(llama(), byte_tokenizer(), ["copa"], data_dir=write_rows(tmp_path, {"copa": rows}))
    accuracy = result["tasks"]["copa"]["metrics"]["acc"]
    assert accuracy["value"] in (0.25, 0.75)
    assert accuracy["stderr"] == pytest.approx((0.75 * 0.25 / 3) ** 0.5)
    assert accuracy["value"] == float(np.mean(result["tasks"]["copa"]["correct"]))


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    model = llama().train()
    random.seed(7)
    np.random.seed(7)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    run_harness(model, byte_tokenizer(), ["copa"], data_dir=write_rows(tmp_path))
    assert model.training
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[:2]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{name}.jsonl" for name in ROWS)


def test_options_out_of_range(tmp_path: Path) -> None:
    folder = write_rows(tmp_path)
    for message, options in [
        ("limit = 0", {"limit": 0}),
        ("max_length = 0", {"max_length": 0}),
        ("batch size 0", {"batch_size": 0}),
    ]:
        with pytest.raises(OptionError, match=message):
            run_harness(llama(), byte_tokenizer(), ["copa"], data_dir=folder, **options)
    with pytest.raises(OptionError, match="No task"):
        run_harness(llama(), byte_tokenizer(), [], data_dir=folder)
    with pytest.raises(OptionError, match="no tokenizer"):
        run_harness(llama(), None, ["copa"], data_dir=folder)


def test_without_lm_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(OptionError, match=r"pip install "):
        run_harness(llama(), byte_tokenizer(), ["piqa"])


SILENT = """
import socket, sys
def refuse(*arguments, **options):
    raise SystemExit("the network was asked for")
socket.socket.connect = socket.getaddrinfo = refuse
sys.path.insert(0, sys.argv[2])
from evaluation.harness.samples import llama
from plait.data.tokenizers import byte_tokenizer
from plait.evaluation.harness import run_harness
print(run_harness(llama(), byte_tokenizer(), ["copa"], data_dir=sys.argv[1])["tasks"]["copa"]["n"])
"""


@pytest.mark.slow
def test_a_folder_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    command = [sys.executable, "-c", SILENT, str(write_rows(tmp_path)), str(Path(__file__).parents[2])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr
