"""``plait train`` on a finished run, stopped at any moment, and ``plait runs``."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plait.cli.app import main
from plait.evaluation import run as evaluation
from plait.files.locks import sole_writer
from plait.training import runner
from plait.training.trainer import PlaitTrainer

Call = Callable[..., tuple[int, str, str]]

RUN = """
name: tiny
model: {hidden_size: 32, num_hidden_layers: 2, mixer: gla, ratio: "1:1", intermediate_size: 32}
data: {task: mqar, length: 16, options: {vocab_size: 32, pairs: 2}}
training: {steps: 4, batch_size: 4, warmup_steps: 1, log_every: 2}
evaluate: {limit: 8}
"""


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(list(arguments))
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return run


@pytest.fixture
def run_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.yaml"
    path.write_text(RUN, encoding="utf-8")
    return path


def test_a_finished_run_keeps_its_result(call: Call, run_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call("train", str(run_file))[0] == 0
    result = Path("runs/tiny/result.json")
    before, when = result.read_bytes(), result.stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "evaluate", None)
        status, out, err = call("train", str(run_file))
        assert status == 0
        assert "The run in runs/tiny has finished with 4 steps; this is its result." in err
        assert "mqar length=16" in out
        status, _, err = call("train", str(run_file), "--set", "training.learning_rate=1")
        assert (status, "belongs to another run" in err) == (1, True)
    assert (result.read_bytes(), result.stat().st_mtime_ns) == (before, when)

    status, out, _ = call("train", str(run_file), "--set", "evaluate.limit=16", "--json")
    assert json.loads(out)["evaluation"]["results"][0]["scores"][0]["n"] == 16
    again = result.stat().st_mtime_ns
    assert call("train", str(run_file), "--set", "evaluate.limit=16", "--again")[0] == 0
    assert result.stat().st_mtime_ns > again > when


def test_listing_and_comparing(call: Call, run_file: Path) -> None:
    assert call("train", str(run_file))[0] == 0
    changed = ["--set", "model.ratio=pure", "--set", "training.steps=2", "--out", "runs/pure"]
    assert call("train", str(run_file), *changed)[0] == 0
    status, out, _ = call("runs")
    assert status == 0
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert "gla 1:1, 2 layers of 32" in lines["tiny"]
    assert "4/4  finished" in lines["tiny"]
    assert "2/2  finished" in lines["pure"]
    listed = json.loads(call("runs", "runs", "--json")[1])
    assert [one["name"] for one in listed] == ["pure", "tiny"]
    stored = json.loads(Path("runs/tiny/result.json").read_text())
    assert listed[1]["loss"] == stored["train"]["losses"][-1][1]
    assert listed[1]["accuracy"] == stored["evaluation"]["results"][0]["scores"][0]["score"]

    _, out, _ = call("runs", "runs/tiny", "runs/pure")
    settings = [line.split() for line in out.partition("\n\n")[0].splitlines()[1:]]
    assert settings == [["model.ratio", "1:1", "pure"], ["training.steps", "4", "2"]]
    compared = json.loads(call("runs", "runs/tiny", "runs/pure", "--json")[1])
    assert compared["differences"] == {"model.ratio": ["1:1", "pure"], "training.steps": [4, 2]}
    assert "All settings are the same." in call("runs", "runs/tiny", "runs/tiny")[1]


def test_states_of_runs(call: Call, run_file: Path) -> None:
    assert call("train", str(run_file), "--set", "training.save_every=2")[0] == 0

    def state(*options: str) -> tuple[str, str]:
        (one,) = json.loads(call("runs", "runs", "--json", *options)[1])
        return one["state"], one["why"]

    folder = Path("runs/tiny")
    assert state() == ("finished", "")
    with sole_writer(folder, "training"):
        assert state() == ("running", "at step 4")
    weights = folder / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert state() == ("finished", "")
    assert state("--verify")[0] == "damaged"
    weights.write_bytes(content[:-1])
    assert state()[0] == "damaged"
    assert "model: model.safetensors has" in state()[1]
    (folder / "finished.json").unlink()
    assert state() == ("stopped", "")
    (folder / "checkpoint-4" / "optimizer.pt").unlink()
    assert state() == ("stopped", "damaged checkpoint-4: optimizer.pt is missing")
    (folder / "checkpoint-2" / "manifest.json").write_text("")
    assert state()[0] == "damaged"
    (folder / "run.json").write_text("{")
    assert state()[0] == "damaged"
    assert "run.json is not JSON" in state()[1]


FOREIGN = [
    ("result.json", "{}", "result.json is of another version or another program: its field 'evaluation' is missing."),
    ("result.json", "[1]", "result.json is of another version or another program: its content is wrong"),
    ("result.json", '{"evaluation": {"lm": null}}', "its field 'evaluation.results' is missing"),
    ("result.json", '{"evaluation": {"results": [{"kind": "text"}]}}', "'evaluation.results.0.trained' is missing"),
    ("result.json", '{"evaluation": {"results": [{"kind": "text", "trained": true, "scores": [{"score": "low"}]}]}}',
     "'evaluation.results.0.scores.0.score' is wrong"),
    ("result.json", '{"evalu', "result.json is not JSON"),
    ("finished.json", '{"steps": "4"}', "finished.json is of another version or another program: its field"),
    ("run.json", '{"config": {"model": {}}}', "run.json is of another version or another program: its field"),
    ("run.json", '{"config": {"model": {"hidden_size": 4}, "training": {"steps": null}}}', "'config.training.steps'"),
    ("metrics.jsonl", '{"step": 2, "loss": "small"}\n', "metrics.jsonl is of another version"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "said"), FOREIGN, ids=range(len(FOREIGN)))
def test_a_file_of_another_version_is_named_and_other_runs_are_listed(
    call: Call, tmp_path: Path, name: str, content: str, said: str
) -> None:
    files = {
        "run.json": {"config": {"model": {"mixer": "gla", "ratio": "1:1", "num_hidden_layers": 2, "hidden_size": 8},
                                "training": {"steps": 4}}},
        "result.json": {"evaluation": {"results": [
            {"kind": "task", "trained": True, "scores": [{"score": 0.5}]},
            {"kind": "text", "trained": True, "scores": [{"score": 2.0}]},
        ]}},
    }  # fmt: skip
    for run in ("whole", "strange"):
        for file, values in files.items():
            path = tmp_path / run / file
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(values))
    (tmp_path / "strange" / name).write_text(content)
    status, out, err = call("runs", str(tmp_path), "--json")
    assert (status, err) == (0, "")
    strange, whole = json.loads(out)
    assert (whole["state"], whole["bits_per_byte"], whole["accuracy"]) == ("stopped", 2.0, 0.5)
    assert strange["state"] == "damaged"
    assert said in strange["why"]
    for arguments in ([str(tmp_path)], [str(tmp_path / "whole"), str(tmp_path / "strange")]):
        status, out, err = call("runs", *arguments)
        assert status == 0
        assert said[:30] in " ".join((out + err).split())


def test_folders_without_runs(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, err = call("runs")
    assert (status, "There is no folder runs" in err) == (1, True)
    Path("runs").mkdir()
    assert call("runs")[:2] == (0, "runs holds no runs.\n")
    status, _, err = call("runs", "runs", ".")
    assert (status, "runs holds no run: it has no run.json" in err) == (1, True)


def _around(module: Any, name: str, number: int, after: bool) -> Callable[..., Any]:
    original = getattr(module, name)

    def signalled(*args: Any, **kwargs: Any) -> Any:
        if not after:
            os.kill(os.getpid(), number)
        value = original(*args, **kwargs)
        if after:
            os.kill(os.getpid(), number)
        return value

    return signalled


MOMENTS = [
    (runner, "build_data", False),
    (runner, "build_model", True),
    (runner, "_trainer", True),
    (PlaitTrainer, "run", True),
    (runner, "_save_model", False),
    (runner, "_save_model", True),
    (runner, "_trainable", True),
    (evaluation, "open_model", False),
    (evaluation, "evaluate", True),
]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("module", "name", "after"), MOMENTS)
def test_a_signal_at_any_moment_is_heard(
    module: Any, name: str, after: bool, number: int, call: Call, run_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, name, _around(module, name, number, after))
        status, out, err = call("train", str(run_file))
    assert status == 130, err
    assert out == ""
    assert "plait: Stopped" in err
    assert "Run the same command to continue" in err
    assert not Path("runs/tiny/result.json").exists()
    assert call("train", str(run_file))[0] == 0
    assert Path("runs/tiny/result.json").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
