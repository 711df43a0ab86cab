"""A study on a real Ray cluster: machines, processes and the driver are lost, and the results stay the same."""

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

from plait.errors import StudyError
from plait.runs.checkpoint import checkpoints
from plait.study.cluster import run_on_cluster
from plait.study.file import parse_study
from plait.study.runner import Outcome, run_trials
from plait.study.store import RESULT, Store
from plait.study.trials import Trial, trials
from study.evaluations import steady

ray = pytest.importorskip("ray")

STUDY: dict[str, Any] = {
    "name": "tiny",
    "base": {
        "model": {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "intermediate_size": 32,
            "mixers": {"attention": {"num_heads": 2}, "gla": {"num_heads": 2}},
        },
        "training": {"steps": 200, "batch_size": 4, "warmup_steps": 2, "save_every": 4, "log_every": 2},
    },
    "tracks": {
        "recall": {
            "kind": "recall",
            "data": {"task": "mqar", "options": {"length": 16, "pairs": 2, "vocab_size": 16}},
            "evaluate": {"limit": 16},
        },
    },
    "grid": {"mixers": ["gla"], "ratios": ["pure"]},
    "contexts": [64, 256],
}
ALONE = {**STUDY, "transformer": False}
MEMORY = 80 * 2**20

Prepared = tuple[Store, list[Trial]]


def prepare(folder: Path, values: dict[str, Any] = STUDY) -> Prepared:
    study = parse_study(values, "tiny.yaml")
    store = Store(folder)
    store.write_study(study, "tiny.yaml", "plait study run tiny.yaml")
    return store, trials(study)


def measured(store: Store, found: list[Trial]) -> dict[str, Any]:
    """What every trial learnt and measured, to the last bit."""
    results = {}
    for trial in found:
        result = store.result(trial)
        assert result is not None, f"{trial.label}: {store.error(trial)}"
        results[trial.label] = (steady(result["evaluation"]), result["train"]["losses"], result["train"]["tokens"])
    return results


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of the study in one process of this machine, without a break."""
    store, found = prepare(tmp_path_factory.mktemp("reference"))
    assert run_trials(store, found, workers=1).failed == []
    return measured(store, found)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that runs no trial, and two machines of one core."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "object_store_memory": MEMORY, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
    yield cluster
    cluster.shutdown()


def wait_for(condition: Callable[[], Any], seconds: float = 300.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)
    return found


def processes(*words: str) -> list[tuple[int, int, str]]:
    """Process id, parent and command line of what has all these words in it."""
    listed = subprocess.run(["ps", "-ww", "-eo", "pid,ppid,stat,args"], capture_output=True, text=True, check=True)
    rows = [line.split(None, 3) for line in listed.stdout.splitlines()[1:]]
    return [
        (int(pid), int(parent), args)
        for pid, parent, state, args in rows
        if not state.startswith("Z") and all(word in args for word in words)
    ]


def trainers(trial: Trial) -> list[tuple[int, int, str]]:
    """Processes that train a trial, and their supervisors."""
    return [row for row in processes("-m plait.study.worker", trial.hash) if "study.gang" not in row[2]]


HELD: list[int] = []


def held(trial: Trial, condition: Callable[[], Any]) -> tuple[int, int]:
    """A process that trains, stopped while a condition holds, so that the trial cannot end; and its supervisor."""
    while True:
        pid, supervisor, _ = wait_for(lambda: trainers(trial))[-1]
        wait_for(condition)
        HELD.append(pid)
        os.kill(pid, signal.SIGSTOP)
        if condition():
            return pid, supervisor
        os.kill(pid, signal.SIGCONT)


class Background(threading.Thread):
    """A run beside the test, which raises here what it raised there."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(daemon=True)
        self.arguments, self.options = arguments, options
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.outcome = run_on_cluster(*self.arguments, **self.options)
        except BaseException as error:
            self.error = error

    def end(self) -> Outcome:
        self.join(400)
        assert not self.is_alive(), "the run did not end"
        if self.error is not None:
            raise self.error
        return self.outcome


Start = Callable[..., Background]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts runs; after a test that failed it ends them, so that the next one finds the machines free."""
    runs: list[Background] = []

    def start(*arguments: Any, **options: Any) -> Background:
        runs.append(Background(*arguments, **options))
        return runs[-1]

    yield start
    left = {pid for pid, _, _ in processes("plait.study.worker")} & set(HELD)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    HELD.clear()
    for run in runs:
        run.join(400)


def lines(folder: Path, step: int) -> list[str]:
    """Lines of metrics up to a step; they hold the clock's speed, so only a trial that went on keeps them."""
    text = (folder / "metrics.jsonl").read_text().splitlines()
    return [line for line in text if json.loads(line)["step"] <= step]


def saved(folder: Path) -> int:
    """Step of the last checkpoint of a trial that still trains, 0 without one."""
    found = [] if (folder / "finished.json").exists() else checkpoints(folder)
    return int(found[-1].name.removeprefix("checkpoint-")) if found else 0


@pytest.mark.slow
def test_killed_processes_change_no_result(
    cluster: Any, reference: dict[str, Any], tmp_path: Path, start: Start
) -> None:
    store, found = prepare(tmp_path / "out")
    first, second = found
    run = start(store, found, cluster.address)

    stopped, _ = held(first, lambda: saved(store.path(first)))
    pid, supervisor = held(second, lambda: saved(store.path(second)))
    step = saved(store.path(first))
    before = lines(store.path(first), step)
    os.kill(stopped, signal.SIGKILL)
    os.kill(supervisor, signal.SIGKILL)
    os.kill(pid, signal.SIGCONT)  # without its supervisor it saves a checkpoint and ends
    wait_for(lambda: pid not in [row[0] for row in trainers(second)])

    assert run.end().failed == []
    assert measured(store, found) == reference
    assert lines(store.path(first), step) == before
    assert store.error(first) is None


@pytest.mark.slow
def test_a_lost_machine_changes_no_result(
    cluster: Any, reference: dict[str, Any], tmp_path: Path, start: Start
) -> None:
    store, found = prepare(tmp_path / "out")
    run = start(store, found, cluster.address)
    wait_for(lambda: all(saved(store.path(trial)) or store.result(trial) for trial in found))
    own = ray._private.worker.global_worker.node.raylet_socket_name  # which this process could not do without
    lost = next(node for node in cluster.worker_nodes if node.raylet_socket_name != own)
    cluster.remove_node(lost, allow_graceful=False)
    try:
        assert run.end().failed == []
    finally:
        cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
    assert measured(store, found) == reference


@pytest.mark.slow
def test_storage_carries_a_trial_to_another_folder(
    cluster: Any, reference: dict[str, Any], tmp_path: Path, start: Start
) -> None:
    store, found = prepare(tmp_path / "out")
    url = f"file://{tmp_path}/storage"
    published = [tmp_path / "storage/trials" / trial.hash / "latest.json" for trial in found]
    run = start(store, found, cluster.address, storage=url)

    pid, _ = held(found[0], published[0].exists)
    scratch = Path(trainers(found[0])[0][2].split()[-3])
    assert tmp_path not in scratch.parents
    (name,) = {file.split("/")[0] for file in json.loads(published[0].read_text())["files"] if "/" in file}
    step = int(name.removeprefix("checkpoint-"))
    before = lines(scratch / "trials" / found[0].hash, step)
    os.kill(pid, signal.SIGKILL)
    assert run.end().failed == []

    assert measured(store, found) == reference
    assert lines(store.path(found[0]), step) == before
    assert not scratch.exists()
    assert not list((tmp_path / "out").rglob("checkpoint-*"))
    for trial in found:
        names = {path.name for path in (tmp_path / "storage/trials" / trial.hash).iterdir()}
        assert {"result.json", "latest.json", "metrics.jsonl"} < names
        assert "lease.json" not in names
        assert len([name for name in names if name.startswith("snapshot-")]) == 1

    elsewhere, _ = prepare(tmp_path / "elsewhere")  # nothing runs again: no cluster is asked
    assert run_on_cluster(elsewhere, found, "127.0.0.1:1", storage=url).failed == []
    assert measured(elsewhere, found) == reference


def driver(folder: Path, address: str, *options: str) -> subprocess.Popen:
    """The command, as a user starts it."""
    (folder / "tiny.yaml").write_text(yaml.safe_dump(STUDY), encoding="utf-8")
    command = ["-m", "plait.cli.app", "study", "run", "tiny.yaml", "--out", "out", "--cluster", address, *options]
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_a_killed_driver_is_started_again(cluster: Any, reference: dict[str, Any], tmp_path: Path) -> None:
    store, found = prepare(tmp_path / "out")
    storage = f"file://{tmp_path}/storage"
    process = driver(tmp_path, cluster.address, "--storage", storage)
    wait_for(lambda: (tmp_path / "storage/trials" / found[0].hash / "latest.json").exists())
    process.kill()
    process.communicate()
    again = driver(tmp_path, cluster.address, "--storage", storage, "--json")
    output, errors = again.communicate(timeout=400)
    assert again.returncode == 0, errors
    assert json.loads(output)["finished"] == 2
    assert measured(store, found) == reference


@pytest.mark.slow
def test_control_c_saves_and_says_how_to_go_on(cluster: Any, reference: dict[str, Any], tmp_path: Path) -> None:
    store, found = prepare(tmp_path / "out")
    process = driver(tmp_path, cluster.address)
    wait_for(lambda: saved(store.path(found[0])))
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 130, errors
    assert output == ""
    assert "To go on: plait study run tiny.yaml --out out --cluster" in errors
    assert not any(trainers(trial) for trial in found)
    assert any(store.result(trial) is None for trial in found)
    assert run_on_cluster(store, found, cluster.address).failed == []
    assert measured(store, found) == reference


@pytest.mark.slow
def test_processes_of_one_trial_meet_on_one_machine_and_over_two(cluster: Any, tmp_path: Path, start: Start) -> None:
    values = {**ALONE, "resources": {"processes": 2, "retries": 1}}
    spread, found = prepare(tmp_path / "spread", values)
    run = start(spread, found, cluster.address)  # two machines of one core each
    pid, _ = held(found[0], lambda: saved(spread.path(found[0])))
    assert len(trainers(found[0])) == 2
    os.kill(pid, signal.SIGKILL)  # one rank; the trial goes on from its checkpoint
    assert run.end().failed == []

    packed, _ = prepare(tmp_path / "packed", values)
    node = cluster.add_node(num_cpus=2, object_store_memory=MEMORY)
    try:
        assert run_on_cluster(packed, found, cluster.address, storage=f"file://{tmp_path}/storage").failed == []
    finally:
        cluster.remove_node(node)
    assert measured(spread, found) == measured(packed, found)
    ((_, _, tokens),) = measured(packed, found).values()
    assert tokens == 60 * 2 * 4 * 16


@pytest.mark.slow
def test_a_failed_trial_is_recorded_and_not_started_again(cluster: Any, tmp_path: Path) -> None:
    track = {"kind": "lm", "data": {"corpus": f"text:{tmp_path}/absent.txt", "length": 32}}
    values = {**ALONE, "tracks": {"lm": track, **STUDY["tracks"]}}
    store, found = prepare(tmp_path / "out", values)
    outcome = run_on_cluster(store, found, cluster.address)
    assert (len(outcome.done), len(outcome.failed)) == (1, 1)
    error = store.error(found[0])
    assert error is not None
    assert not error["killed"]
    assert "absent.txt" in error["error"]
    assert (store.path(found[0]) / "log.txt").read_text().count("Traceback") == 1
    assert not (store.path(found[0]) / RESULT).exists()


@pytest.mark.slow
def test_what_no_machine_can_hold_is_an_error_at_once(cluster: Any, tmp_path: Path) -> None:
    for needs in ({"cpus": 2}, {"gpus": 1}, {"processes": 3}):
        store, found = prepare(tmp_path / "out", {**ALONE, "resources": needs})
        with pytest.raises(StudyError, match=r"asks for .*machines: 0 CPU \+ 0 GPU, 1 CPU \+ 0 GPU"):
            run_on_cluster(store, found, cluster.address)
    store, found = prepare(tmp_path / "out", {**ALONE, "resources": {"processes": 2}})
    with pytest.raises(StudyError, match="one machine"):
        run_on_cluster(store, found, cluster.address, storage=f"file://{tmp_path}/storage")
