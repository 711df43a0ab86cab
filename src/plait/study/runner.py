"""Runs the trials of a study in processes of this machine."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from plait.errors import OptionError, StudyError
from plait.study.progress import StudyProgress
from plait.study.store import Store
from plait.study.trials import Trial

#: Seconds that stopped workers get to save a checkpoint.
GRACE = 30.0
WORKER_LOG = "workers.log"


@dataclass(frozen=True)
class Outcome:
    """How a run ended, as hashes of trials."""

    done: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def check_models(trials: Sequence[Trial]) -> None:
    """Build the configuration of every architecture, so that a wrong option is seen before anything trains.

    Raises:
        OptionError: naming the trial and the option.
    """
    from plait.models.architecture import build_model_config

    seen = set()
    for trial in trials:
        model = trial.config.model.model_dump_json()
        if model in seen:
            continue
        seen.add(model)
        try:
            build_model_config(trial.config, vocab_size=256)
        except (OptionError, KeyError) as error:
            raise OptionError(f"Trial {trial.label!r}: {error}") from None


def default_workers(pending: int) -> int:
    """One per GPU, else one per core up to 8, and no more than there are trials."""
    import torch

    return max(1, min(torch.cuda.device_count() or min(_cores(), 8), pending))


def threads_per_worker(workers: int) -> int:
    """An equal share of the cores, or fewer where ``OMP_NUM_THREADS`` says so."""
    share = max(1, _cores() // workers)
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return min(share, int(wanted)) if wanted.isdecimal() and int(wanted) else share


def worker_environment(index: int, threads: int, gpus: int) -> dict[str, str]:
    """Environment of a worker: its share of the cores, and one GPU where there are several.

    Args:
        index: of the worker.
        threads: that it may use.
        gpus: GPUs that this process sees.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    environment["TOKENIZERS_PARALLELISM"] = "false"
    if gpus > 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        environment["CUDA_VISIBLE_DEVICES"] = visible[index % gpus]
    return environment


def run_trials(
    store: Store, trials: Sequence[Trial], workers: int | None = None, retry_failed: bool = False
) -> Outcome:
    """Run what is not done yet; a failed trial does not stop the others.

    Args:
        store: of the study, already written.
        trials: all trials of the study.
        workers: processes at a time; None chooses.
        retry_failed: run trials again that failed before.

    Raises:
        StudyError: workers cannot start, or a trial asks for several processes.
        KeyboardInterrupt: Ctrl-C, after the workers have saved their checkpoints and ended.
    """
    store.set_aside_damaged(trials)
    pending = pending_trials(store, trials, retry_failed)
    joint = next((trial for trial in pending if trial.resources.processes > 1), None)
    if joint is not None:
        raise StudyError(
            f"Trial {joint.label!r} asks for {joint.resources.processes} processes, which only Ray can "
            "start; add --cluster local to use this machine."
        )
    if pending:
        count = workers or default_workers(len(pending))
        with StudyProgress(store, trials) as progress:
            _Pool(store, pending, min(count, len(pending)), threads_per_worker(count), progress).run()
    return outcome(store, trials)


def pending_trials(store: Store, trials: Sequence[Trial], retry_failed: bool) -> list[Trial]:
    """What is left to do: neither done nor failed by itself, unless ``retry_failed`` asks for that again."""

    def is_wanted(trial: Trial) -> bool:
        error = store.error(trial)
        return error is None or error["killed"] or retry_failed

    return [trial for trial in trials if store.result(trial) is None and is_wanted(trial)]


def outcome(store: Store, trials: Sequence[Trial]) -> Outcome:
    """What is done and what is not, after a run."""
    done = [trial.hash for trial in trials if store.result(trial) is not None]
    return Outcome(done, [trial.hash for trial in trials if trial.hash not in done])


def how_a_process_ended(code: int) -> str:
    """In words, from its return code, which is negative after a signal."""
    if code < 0:
        hint = " (perhaps the machine ran out of memory)" if -code == signal.SIGKILL else ""
        return f"Its process was ended by {signal.Signals(-code).name}{hint}."
    return f"Its process ended with status {code}."


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Worker:
    """A worker process and the trial that it runs."""

    def __init__(self, index: int, folder: Path, threads: int, gpus: int, events: queue.Queue) -> None:
        self.index = index
        self.trial: Trial | None = None
        self.ready = False
        with open(folder / WORKER_LOG, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "plait.study.worker", str(folder), str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=worker_environment(index, threads, gpus),
                start_new_session=True,  # Ctrl-C reaches the runner alone, which then stops its workers in order
            )
        threading.Thread(target=self._listen, args=(events,), daemon=True).start()

    def _listen(self, events: queue.Queue) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            events.put((self, json.loads(line)))
        events.put((self, None))

    def start(self, trial: Trial) -> None:
        """Hand over a trial."""
        assert self.process.stdin is not None
        self.trial = trial
        try:
            self.process.stdin.write(f"{trial.hash}\n".encode())
            self.process.stdin.flush()
        except BrokenPipeError:  # it has just died; its listener reports that, and the trial with it
            return

    def how_it_ended(self) -> str:
        """In words, for a process that is gone."""
        return how_a_process_ended(self.process.wait())


class _Pool:
    """The workers of one run and what is left to do."""

    def __init__(
        self, store: Store, pending: Sequence[Trial], count: int, threads: int, progress: StudyProgress
    ) -> None:
        import torch

        self.store = store
        self.pending = deque(pending)
        self.elsewhere: list[Trial] = []
        self.threads = threads
        self.gpus = torch.cuda.device_count()
        self.progress = progress
        self.events: queue.Queue = queue.Queue()
        self.workers = [self._new_worker(index) for index in range(count)]

    def _new_worker(self, index: int) -> _Worker:
        return _Worker(index, self.store.folder, self.threads, self.gpus, self.events)

    def run(self) -> None:
        """Until every trial has ended, here or in another runner."""
        try:
            while self.pending or self.elsewhere or any(worker.trial for worker in self.workers):
                try:
                    worker, message = self.events.get(timeout=0.5)
                except queue.Empty:
                    self._look_elsewhere()
                else:
                    self._handle(worker, message)
                self._assign()
                self.progress.update([worker.trial for worker in self.workers if worker.trial])
        finally:
            self._stop()

    def _handle(self, worker: _Worker, message: dict | None) -> None:
        trial, worker.trial = worker.trial, None
        if message is None:
            self.workers.remove(worker)
            if trial is not None:
                self.store.fail(trial, worker.how_it_ended(), killed=True)
                self.progress.ended(trial)
            elif not worker.ready:
                log = self.store.folder / WORKER_LOG
                raise StudyError(f"A worker could not start: {last_line(log)} See {log}.")
            if self.pending or self.elsewhere:
                self.workers.append(self._new_worker(worker.index))
            return
        worker.ready = True
        if trial is None:
            return
        if message["state"] == "busy":
            self.elsewhere.append(trial)
        else:
            self.progress.ended(trial)

    def _assign(self) -> None:
        for worker in self.workers:
            if self.pending and worker.ready and worker.trial is None:
                worker.start(self.pending.popleft())

    def _look_elsewhere(self) -> None:
        """Trials that another runner had: take over those that it left."""
        for trial in list(self.elsewhere):
            state = self.store.state(trial)
            if state == "running":
                continue
            self.elsewhere.remove(trial)
            if state in ("done", "failed"):
                self.progress.ended(trial)
            else:
                self.pending.append(trial)

    def _stop(self) -> None:
        """End all workers; those that train save a checkpoint first."""
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.process.terminate()
        deadline = time.monotonic() + GRACE
        try:
            for worker in self.workers:
                worker.process.wait(max(0.0, deadline - time.monotonic()))
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            for worker in self.workers:
                worker.process.kill()


def last_line(log: Path) -> str:
    """The last line of a log."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it left no message."
