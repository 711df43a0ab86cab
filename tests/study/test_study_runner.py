"""Real studies, tiny ones: run, killed, gone on with, failed, retried."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from plait.cli.study import app
from plait.evaluation.results import by_name
from plait.study.file import StudyFile, parse_study
from plait.study.runner import check_models, run_trials, worker_environment
from plait.study.store import ERROR, LOG, RESULT, Store
from plait.study.summarise import summarise
from plait.study.trials import Trial, trials
from study.evaluations import steady

STUDY: dict[str, Any] = {
    "name": "tiny",
    "base": {
        "model": {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "intermediate_size": 32,
            "mixers": {"attention": {"num_heads": 2}, "gla": {"num_heads": 2}, "retnet": {"num_heads": 2}},
        },
        "training": {"steps": 24, "batch_size": 4, "warmup_steps": 2, "save_every": 4, "log_every": 2},
    },
    "tracks": {
        "lm": {
            "kind": "lm",
            "data": {"corpus": "python-stdlib", "length": 32, "max_bytes": 60_000},
            "evaluate": {"limit": 12, "decode_contexts": [8]},
        },
        "recall": {
            "kind": "recall",
            "data": {"task": "mqar", "options": {"length": 16, "pairs": 2, "vocab_size": 16}},
            "evaluate": {"limit": 16},
        },
    },
    "grid": {"mixers": ["gla", "retnet"], "ratios": ["pure"]},
    "contexts": [64, 256],
}

Prepared = tuple[Store, list[Trial]]


def prepare(folder: Path, values: dict[str, Any] = STUDY) -> Prepared:
    study: StudyFile = parse_study(values, "tiny.yaml")
    store = Store(folder)
    store.write_study(study, "tiny.yaml", "plait study run tiny.yaml")
    return store, trials(study)


def measured(store: Store, found: list[Trial]) -> dict[str, Any]:
    """What every trial learnt and measured, without what depends on the clock."""
    results = {}
    for trial in found:
        result = store.result(trial)
        assert result is not None, f"{trial.label}: {store.error(trial)}"
        results[trial.label] = (steady(result["evaluation"]), result["train"]["losses"], result["train"]["tokens"])
    return results


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """The study, run by one worker without a break."""
    store, found = prepare(tmp_path_factory.mktemp("reference"))
    outcome = run_trials(store, found, workers=1)
    assert outcome.failed == []
    return store, found


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts Python in the folder of the tiny study's file."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(STUDY), encoding="utf-8")
    started = []

    def start(*arguments: str) -> subprocess.Popen:
        command = [sys.executable, *arguments]
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


COMMAND = ("-m", "plait.cli.app", "study", "run", "tiny.yaml", "--out", "out", "--workers", "1")
#: The same without checking the models first and without a report: it starts sooner.
RUNNER = (
    "from pathlib import Path; from plait.study.store import Store; from plait.study.runner import run_trials; "
    "store = Store(Path('out')); run_trials(store, store.trials(), workers=1)"
)


def wait_for(condition: Callable[[], Any], seconds: float = 400.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.005)
    return found


def training(store: Store, found: list[Trial]) -> Trial | None:
    """A trial that has just saved a checkpoint and is not done."""
    for trial in found:
        folder = store.path(trial)
        if (
            list(folder.glob("checkpoint-*"))
            and not (folder / RESULT).exists()
            and not (folder / "finished.json").exists()
        ):
            return trial
    return None


def worker_pids(parent: int) -> list[int]:
    """Workers of a runner."""
    lines = subprocess.run(
        ["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    rows = [line.split(None, 2) for line in lines[1:]]
    return [int(pid) for pid, ppid, args in rows if int(ppid) == parent and "plait.study.worker" in args]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_every_trial_has_its_files(reference: Prepared) -> None:
    store, found = reference
    assert len(found) == 6
    for trial in found:
        folder = store.path(trial)
        assert folder.name == trial.hash
        for name in ("config.json", "result.json", "metrics.jsonl", "log.txt"):
            assert (folder / name).is_file(), name
        result = store.result(trial)
        assert result is not None
        assert result["config"]["key"] == trial.key
        assert result["config"]["model"]["mixer"] == trial.config.model.mixer
        assert result["seed"] == trial.seed
        assert result["train"]["losses"][-1][0] == 24
        assert store.state(trial) == "done"


def test_finished_study_starts_no_process(reference: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    assert len(run_trials(*reference, workers=1).done) == 6


def test_summary_of_a_real_study(reference: Prepared) -> None:
    store, found = reference
    summary = summarise(store.folder)
    assert (summary.trials, summary.finished, summary.failed) == (6, 6, [])
    assert [one.key for one in summary.configurations] == ["transformer", "gla pure", "retnet pure"]
    transformer, gla, _ = summary.configurations
    first = store.result(found[0])
    assert first is not None
    assert (
        transformer.metrics["loss"].mean
        == by_name(first["evaluation"]["results"], "loss")["text python-stdlib length=32"]
    )
    assert transformer.metrics["loss"].over == "samples"
    assert transformer.parameters["lm"] == first["evaluation"]["parameters"]
    assert (gla.n_linear, gla.n_full, gla.full_layers) == (2, 0, [])
    assert transformer.cache_bytes == {64: 2 * 2 * 64 * 16 * 2, 256: 2 * 2 * 256 * 16 * 2}
    assert "decode@8" in gla.metrics
    assert len(summary.curves) == 6
    assert not summary.guards[0].learnt  # 24 steps teach nobody to recall
    assert summary.recommendation.key is None


def test_report_of_a_real_study(reference: Prepared) -> None:
    store, _ = reference
    result = CliRunner().invoke(app, ["report", str(store.folder)], catch_exceptions=False)
    assert "No recommendation: the transformer did not learn track 'recall'" in result.stdout
    assert f"Report: {store.folder / 'report.html'}" in result.stdout
    for name in ("report.html", "report.json", "report.csv"):
        assert (store.folder / name).stat().st_size > 0, name
    shown = CliRunner().invoke(app, ["report", str(store.folder), "--json"], catch_exceptions=False)
    assert json.loads(shown.stdout)["finished"] == 6


def kill_in_training(store: Store, found: list[Trial], worker: int) -> Trial:
    """SIGKILL a worker while it trains; it is held still first, so that the trial cannot end in between."""
    while True:
        trial = wait_for(lambda: training(store, found))
        os.kill(worker, signal.SIGSTOP)
        if training(store, [trial]):
            os.kill(worker, signal.SIGKILL)
            return trial
        os.kill(worker, signal.SIGCONT)


def test_killed_again_and_again_it_ends_with_the_same_results(
    reference: Prepared, start: Callable[..., subprocess.Popen], tmp_path: Path
) -> None:
    store, found = Store(tmp_path / "out"), reference[1]

    runner = start(*COMMAND)
    (worker,) = wait_for(lambda: worker_pids(runner.pid))
    trial = kill_in_training(store, found, worker)
    wait_for(lambda: (store.path(trial) / ERROR).exists())
    error = store.error(trial)
    assert error is not None
    assert error["killed"]
    assert "SIGKILL" in error["error"]
    assert store.state(trial) == "stopped"

    wait_for(lambda: training(store, [one for one in found if one != trial]))  # the others go on
    runner.send_signal(signal.SIGINT)
    _, errors = runner.communicate(timeout=200)
    assert runner.returncode == 130, errors
    assert f"To go on: plait {' '.join(COMMAND[2:])}" in errors
    assert not any(store.running(one) for one in found)

    runner = start("-c", RUNNER)
    (worker,) = wait_for(lambda: worker_pids(runner.pid))
    wait_for(lambda: training(store, found))
    runner.kill()
    runner.wait()
    wait_for(lambda: not alive(worker))  # nothing is left behind

    done = [one for one in found if store.result(one)]
    assert len(done) < len(found)
    stamps = [(store.path(one) / RESULT).stat().st_mtime_ns for one in done]
    assert run_trials(store, found, workers=1).failed == []
    assert measured(store, found) == measured(*reference)
    assert stamps == [(store.path(one) / RESULT).stat().st_mtime_ns for one in done]


def test_trial_of_another_runner_is_waited_for(reference: Prepared, tmp_path: Path) -> None:
    store, found = prepare(
        tmp_path / "out", {**STUDY, "grid": {"mixers": ["gla"], "ratios": ["pure"]}, "transformer": False}
    )
    taken, free = found
    ends = threading.Event()

    def other_runner() -> None:
        with store.lock(taken):
            ends.set()
            wait_for(lambda: store.result(free))
            assert store.state(taken) == "running"
            time.sleep(1)

    other = threading.Thread(target=other_runner)
    other.start()
    ends.wait()
    assert run_trials(store, found, workers=1).failed == []
    other.join()
    expected = measured(*reference)
    assert measured(store, found) == {trial.label: expected[trial.label] for trial in found}


@pytest.mark.slow
def test_two_runners_share_the_trials(
    reference: Prepared, start: Callable[..., subprocess.Popen], tmp_path: Path
) -> None:
    for runner in [start(*COMMAND) for _ in range(2)]:
        output, errors = runner.communicate(timeout=500)
        assert runner.returncode == 0, errors
        assert "No recommendation" in output
    store = Store(tmp_path / "out")
    assert measured(store, reference[1]) == measured(*reference)
    for trial in reference[1]:
        steps = [json.loads(line)["step"] for line in (store.path(trial) / "metrics.jsonl").read_text().splitlines()]
        assert steps == sorted(set(steps)), "a trial ran twice at once"


def test_a_failed_trial_stops_no_other_and_can_be_retried(tmp_path: Path) -> None:
    broken = tmp_path / "text.txt"
    values = {
        **STUDY,
        "tracks": {
            "lm": {**STUDY["tracks"]["lm"], "data": {"corpus": f"text:{broken}", "length": 32}},
            "recall": STUDY["tracks"]["recall"],
        },
        "grid": {"mixers": ["gla"], "ratios": ["pure"]},
        "transformer": False,
    }
    store, found = prepare(tmp_path / "out", values)
    outcome = run_trials(store, found, workers=1)
    lm, recall = found
    assert (outcome.done, outcome.failed) == ([recall.hash], [lm.hash])
    assert store.state(lm) == "failed"
    error = store.error(lm)
    assert error is not None
    assert "text.txt" in error["error"]
    assert not error["killed"]
    assert "Traceback" in (store.path(lm) / LOG).read_text()
    summary = summarise(store.folder)
    assert [(one.trial, one.track, one.error) for one in summary.failed] == [(lm.hash, "lm", error["error"])]
    assert summary.finished == 1

    assert run_trials(store, found, workers=1).failed == [lm.hash]  # not tried again
    text = "".join(f"line {number} of a text that repeats itself, more or less\n" for number in range(3000))
    broken.write_text(text, encoding="utf-8")
    assert run_trials(store, found, workers=1, retry_failed=True).failed == []
    assert store.state(lm) == "done"
    assert store.error(lm) is None


def test_wrong_option_is_found_before_anything_runs() -> None:
    values = {**STUDY, "base": {"model": {**STUDY["base"]["model"], "mixers": {"gla": {"num_head": 2}}}}}
    with pytest.raises(ValueError, match=r"lm \| gla pure \| seed 0.*num_head.*Did you mean 'num_heads'"):
        check_models(trials(parse_study(values, "tiny.yaml")))


def test_workers_share_cores_and_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert worker_environment(0, 3, 1)["CUDA_VISIBLE_DEVICES"] == "4,6"
    assert [worker_environment(index, 3, 2)["CUDA_VISIBLE_DEVICES"] for index in range(3)] == ["4", "6", "4"]
    assert worker_environment(0, 3, 0)["OMP_NUM_THREADS"] == "3"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert worker_environment(1, 1, 2)["CUDA_VISIBLE_DEVICES"] == "1"
