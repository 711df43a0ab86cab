"""``plait study`` in this process, on studies that need no training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from plait.cli.study import app
from plait.errors import StudyError
from plait.study.file import load_study
from plait.study.runner import pending_trials
from plait.study.store import Store
from plait.study.trials import trials

STUDY = {
    "name": "small",
    "base": {
        "model": {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "intermediate_size": 32,
            "mixers": {"gla": {"num_heads": 2}},
        }
    },
    "tracks": {
        "lm": {"kind": "lm", "data": {"corpus": "python-stdlib"}, "training": {"steps": 10}},
        "recall": {"kind": "recall", "data": {"task": "mqar"}},
    },
    "grid": {"mixers": ["gla"], "ratios": ["pure", "1:1"]},
}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(STUDY), encoding="utf-8")
    return path


def invoke(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_dry_run_lists_and_writes_nothing(file: Path) -> None:
    rows = json.loads(invoke("run", file, "--dry-run", "--json"))["trials"]
    assert [(row["track"], row["key"]) for row in rows[:3]] == [
        ("lm", "transformer"),
        ("recall", "transformer"),
        ("lm", "gla pure"),
    ]
    assert len(rows) == 6
    assert "6 to run; runs/small" in invoke("run", file, "--dry-run")
    assert not Path("runs").exists()


def test_status_of_each_kind_of_trial(file: Path) -> None:
    study = load_study(file)
    found = trials(study)
    store = Store(Path("runs/small"))
    store.write_study(study, str(file), "plait study run small.yaml")
    for trial in found:
        store.begin(trial)
    done, failed, killed, stopped, running, _ = found
    store.finish(done, {"evaluation": {}})
    store.fail(failed, "OptionError: no such thing\nmore about it")
    store.fail(killed, "ended by SIGKILL", killed=True)
    (store.path(stopped) / "checkpoint-4").mkdir()
    (store.path(stopped) / "metrics.jsonl").write_text('{"step": 2}\n{"step": 4}\n{"ste', encoding="utf-8")
    with store.lock(running):
        rows = json.loads(invoke("status", file, "--json"))["trials"]
        assert [row["state"] for row in rows] == ["done", "failed", "stopped", "stopped", "running", "waiting"]
        assert [row["step"] for row in rows] == [10, 0, 0, 4, 0, 0]
        text = invoke("status", "runs/small")  # the folder serves as well as the file
    assert "OptionError: no such thing" in text
    assert "more about it" not in text
    assert "1 done, 1 failed, 2 stopped, 1 running, 1 waiting; runs/small" in text


def test_status_of_a_study_that_never_ran(file: Path) -> None:
    result = CliRunner().invoke(app, ["status", str(file)])
    assert "holds no study" in str(result.exception)


def test_plan_prints_and_sums(file: Path) -> None:
    content = json.loads(invoke("plan", file, "--json", "--peak", "1e12", "--mfu", "0.5", "--price", "2"))
    rows, total = content["configurations"], content["total"]
    assert len(rows) == 6
    assert total["flops"] == sum(row["flops"] for row in rows)
    assert total["device_hours"] == pytest.approx(total["flops"] / 0.5e12 / 3600)
    assert total["price"] == pytest.approx(2 * total["device_hours"])
    text = invoke("plan", file)
    assert "gla 1:1" in text
    assert "6 trials" in text


def test_report_of_a_damaged_result_names_the_file(file: Path) -> None:
    study = load_study(file)
    store = Store(Path("runs/small"))
    store.write_study(study, str(file), "plait study run small.yaml")
    trial = trials(study)[0]
    store.begin(trial)
    (store.path(trial) / "result.json").write_text("{", encoding="utf-8")
    result = CliRunner().invoke(app, ["report", str(file)])
    assert f"{trial.hash}/result.json is not JSON" in str(result.exception)


def test_a_damaged_result_is_set_aside_and_its_trial_is_to_run_again(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    study = load_study(file)
    store = Store(Path("runs/small"))
    store.write_study(study, str(file), "plait study run small.yaml")
    found = trials(study)
    for trial in found:
        store.begin(trial)
        store.finish(trial, {"evaluation": {"lm": {"loss": 1.25}}})
    assert pending_trials(store, found, retry_failed=False) == []
    path = store.path(found[0]) / "result.json"
    path.write_text(path.read_text().replace("1.25", "1.24"), encoding="utf-8")
    with pytest.raises(StudyError, match=r"result\.json is damaged: .*'plait study run' sets it aside"):
        store.result(found[0])
    store.set_aside_damaged(found)
    assert "It is now damaged-result.json" in caplog.text
    assert pending_trials(store, found, retry_failed=False) == [found[0]]
    assert (store.path(found[0]) / "damaged-result.json").exists()


def test_leftovers_of_a_killed_call_are_removed(file: Path) -> None:
    study = load_study(file)
    store = Store(Path("runs/small"))
    trial = trials(study)[0]
    store.path(trial).mkdir(parents=True)
    for path in (store.folder / ".partial-study.json-77", store.path(trial) / ".partial-result.json-77"):
        path.write_text("{")
    store.write_study(study, str(file), "plait study run small.yaml")
    store.begin(trial)
    assert not list(store.folder.rglob(".*"))
