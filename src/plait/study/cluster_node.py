"""What a machine of the cluster does for a trial: start its processes, watch them, publish what they save.

The training itself runs in processes of its own, as in a local study; the Ray task only supervises them. When the task
dies, its processes notice that their stdin closes, save a checkpoint and end.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from plait.errors import StudyError
from plait.files.writing import write_json
from plait.provenance import versions
from plait.runs import metrics
from plait.study.cluster_storage import Lease, Storage, newest
from plait.study.gang import SIGNAL_STATUS
from plait.study.runner import GRACE, WORKER_LOG, how_a_process_ended, last_line, worker_environment
from plait.study.store import STUDY, Store
from plait.study.trials import Trial
from plait.study.worker import DATA_FOLDER

Message = dict[str, Any]

#: Seconds between two looks at a trial's processes, and between two messages to the driver.
LOOK, REPORT = 0.2, 5.0
#: Exit status of a process that was asked to end and has saved a checkpoint.
STOPPED = 130


@dataclass(frozen=True)
class Launch:
    """The processes of one trial on one machine.

    Args:
        processes: on this machine.
        gpus: ids of all their GPUs; None leaves what Ray has set.
        machines, rank: of the trial, and of this one among them.
        address, port: where the processes of several machines meet.
    """

    processes: int = 1
    gpus: tuple[str, ...] | None = None
    machines: int = 1
    rank: int = 0
    address: str = ""
    port: int = 0


@dataclass(frozen=True)
class Order:
    """What a machine has to know to run a trial.

    Args:
        trial: hash of the trial.
        run: names the run of ``plait study run``.
        study: record of the study, see :meth:`plait.study.store.Store.record`.
        folder: of the study, absolute; shared unless there is a storage.
        storage: URL, or None.
        cwd: where relative paths of the study start.
        threads: of each process.
        version: of plait at the driver.
    """

    trial: str
    run: str
    study: dict[str, Any]
    folder: str
    storage: str | None
    cwd: str
    threads: int
    version: str


def check_machine(order: Order) -> None:
    """See that this machine can work for the study.

    Raises:
        StudyError: another version of plait, or the folder is not visible from here.
    """
    here = socket.gethostname()
    version = versions()["plait"]
    if version != order.version:
        raise StudyError(
            f"Machine {here} has plait {version} and the driver {order.version}; install the same version on both."
        )
    if order.storage is not None:
        Storage(order.storage)
    elif not (Path(order.folder) / STUDY).is_file():
        raise StudyError(
            f"Machine {here} does not see {order.folder}; put --out on a shared file system or name a --storage."
        )


def place() -> Message:
    """Where this task runs: node, address, a free port, GPUs."""
    import ray

    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    gpus = tuple(str(gpu) for gpu in ray.get_gpu_ids())
    return {
        "node": ray.get_runtime_context().get_node_id(),
        "address": ray.util.get_node_ip_address(),
        "port": port,
        "gpus": gpus,
    }


def supervise(order: Order, launch: Launch) -> Iterator[Message]:
    """Run a trial, or this machine's part of it, and tell how it goes.

    Yields:
        Messages with a ``state``: ``started``; then ``running``, with the ``metrics`` so far where they are not in a
        shared folder; last ``done``, ``failed``, ``busy`` (another run has it), ``joined`` (the first machine of the
        trial answers for it) or ``killed``, with an ``error``.

    Raises:
        StudyError: this machine cannot work for the study, or a snapshot is damaged.
    """
    check_machine(order)
    with _workplace(order) as workplace:
        if workplace is None:
            yield {"state": "busy"}
            return
        if workplace.finished:
            yield {"state": "done"}
            return
        yield {"state": "started"}
        processes = _Processes(order, launch, workplace.store, workplace.trial)
        try:
            reported = time.monotonic()
            while processes.running():
                time.sleep(LOOK)
                workplace.publish()
                if workplace.lost:
                    processes.stop()
                    yield {"state": "busy"}
                    return
                if time.monotonic() - reported > REPORT:
                    reported = time.monotonic()
                    yield {"state": "running", **workplace.report()}
        except BaseException:  # cancelled by the driver, or the storage is gone
            processes.stop()
            workplace.publish()
            raise
        answer = processes.answer()
        workplace.finish(answer)
        yield {**answer, **workplace.report()}


class _Workplace:
    """The folder in which a trial runs; on a shared file system there is nothing to publish."""

    lost = False

    def __init__(self, store: Store, trial: Trial) -> None:
        self.store, self.trial = store, trial

    @property
    def finished(self) -> bool:
        return self.store.result(self.trial) is not None

    def publish(self) -> None:
        """Bring new checkpoints to where the next attempt finds them."""

    def report(self) -> Message:
        """What the driver cannot see by itself."""
        return {}

    def finish(self, answer: Message) -> None:
        """Bring the outcome to where the driver finds it."""


class _Scratch(_Workplace):
    """A folder of this machine whose checkpoints and results go to the storage."""

    def __init__(self, store: Store, trial: Trial, storage: Storage, lease: Lease) -> None:
        super().__init__(store, trial)
        self.storage, self.lease = storage, lease
        storage.pull(trial.hash, self.folder)
        self.published = newest(self.folder)

    @property
    def folder(self) -> Path:
        return self.store.path(self.trial)

    @property
    def finished(self) -> bool:
        return self.storage.result(self.trial.hash) is not None

    @property
    def lost(self) -> bool:  # type: ignore[override]
        return self.lease.lost

    def publish(self) -> None:
        latest = newest(self.folder)
        if latest is not None and latest != self.published and not self.lost:
            self.storage.push(self.trial.hash, self.folder)
            self.published = latest

    def report(self) -> Message:
        path = self.folder / metrics.FILE
        return {"metrics": path.read_text(encoding="utf-8")} if path.exists() else {}

    def finish(self, answer: Message) -> None:
        self.publish()
        self.storage.finish(self.trial.hash, self.folder)


@contextlib.contextmanager
def _workplace(order: Order) -> Iterator[_Workplace | None]:
    """The place where a trial runs; None where another run has the trial."""
    if order.storage is None:
        store = Store(Path(order.folder))
        yield _Workplace(store, _trial(store, order))
        return
    storage = Storage(order.storage)
    lease = Lease(storage, order.trial, order.run)
    if not lease.acquire():
        yield None
        return
    with lease, _scratch_folder(order) as folder:
        store = Store(folder)
        yield _Scratch(store, _trial(store, order), storage, lease)


def _trial(store: Store, order: Order) -> Trial:
    return next(trial for trial in store.trials() if trial.hash == order.trial)


@contextlib.contextmanager
def _scratch_folder(order: Order) -> Iterator[Path]:
    """A folder of one attempt; packed tokens are shared by all attempts of the study on this machine."""
    assert order.storage is not None
    user = sha256(f"{os.getuid()} {order.storage}".encode()).hexdigest()[:16]
    base = Path(tempfile.gettempdir()) / f"plait-study-{user}"
    base.mkdir(mode=0o700, exist_ok=True)
    _sweep(base)
    folder = Path(tempfile.mkdtemp(prefix="attempt-", dir=base))
    with FileLock(base / f"{folder.name}.lock"):
        write_json(folder / STUDY, order.study, sealed=True)
        (base / DATA_FOLDER).mkdir(exist_ok=True)
        (folder / DATA_FOLDER).symlink_to(base / DATA_FOLDER)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    (base / f"{folder.name}.lock").unlink(missing_ok=True)


def _sweep(base: Path) -> None:
    """Delete the folders of attempts that were killed; a lock that can be had has no owner."""
    for lock in base.glob("attempt-*.lock"):
        try:
            with FileLock(lock, timeout=0):
                shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                lock.unlink(missing_ok=True)
        except Timeout:
            continue


class _Processes:
    """The processes that train one trial on this machine."""

    def __init__(self, order: Order, launch: Launch, store: Store, trial: Trial) -> None:
        self.order, self.launch, self.store = order, launch, store
        self.trial = trial
        log = store.folder / WORKER_LOG
        with open(log, "ab") as errors:
            self.process = subprocess.Popen(
                self._command(),
                stdin=subprocess.PIPE,  # closes with this process, which tells them to end
                stdout=subprocess.PIPE,
                stderr=errors,
                env=self._environment(),
                cwd=order.cwd if Path(order.cwd).is_dir() else None,
                start_new_session=True,
            )

    def _command(self) -> list[str]:
        launch = self.launch
        worker = ["-m", "plait.study.worker", str(self.store.folder), str(self.order.threads), self.order.trial]
        if launch.processes * launch.machines == 1:
            return [sys.executable, *worker]
        command = [sys.executable, "-m", "plait.study.gang", "--nproc-per-node", str(launch.processes)]
        if launch.machines == 1:
            return [*command, "--standalone", *worker]
        meeting = ["--nnodes", str(launch.machines), "--node-rank", str(launch.rank)]
        meeting += ["--master-addr", launch.address, "--master-port", str(launch.port)]
        return [*command, *meeting, *worker]

    def _environment(self) -> Mapping[str, str]:
        environment = worker_environment(0, self.order.threads, 0)
        if self.launch.gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(self.launch.gpus)
        return environment

    def running(self) -> bool:
        """Whether they have not ended."""
        return self.process.poll() is None

    def stop(self) -> None:
        """End them; they save a checkpoint first."""
        if self.running():
            self.process.terminate()
            try:
                self.process.wait(GRACE)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()

    def answer(self) -> Message:
        """How the trial ended: what its first process says, unless one of them was killed."""
        assert self.process.stdout is not None
        status = self.process.wait()
        said = self.process.stdout.read().decode().splitlines()
        if status > SIGNAL_STATUS:
            status = SIGNAL_STATUS - status
        if said and status >= 0:
            return json.loads(said[-1])
        if self.launch.rank > 0 and status == 0:
            return {"state": "joined"}
        if status < 0 or status == STOPPED:
            return {"state": "killed", "error": how_a_process_ended(status)}
        if self.store.error(self.trial) is None:
            log = self.store.folder / WORKER_LOG
            self.store.fail(self.trial, f"{how_a_process_ended(status)} {last_line(log)}")
        return {"state": "failed"}
