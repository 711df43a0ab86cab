"""One process of a study: runs the trials that its runner names, one after the other.

Started as ``python -m plait.study.worker FOLDER THREADS``. Hashes of trials come in on stdin, one a line; a JSON line
goes out on stdout for each: its ``state`` is ``done``, ``failed`` or ``busy`` (another process runs it). When stdin
closes, the runner is gone: the process saves a checkpoint and ends.

With a hash as third argument it runs that trial and ends. Under torchrun all processes train it together; the first one
measures it and answers.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from filelock import Timeout

from plait.errors import PlaitError
from plait.study.store import LOG, Store
from plait.study.trials import Trial

#: Where the trials of a study keep packed tokens and tokenizers, below its folder.
DATA_FOLDER = "data"


def run_trial(store: Store, trial: Trial) -> None:
    """Train and measure a trial, from its last checkpoint; the result is written last."""
    from plait.evaluation import train_and_evaluate

    started = time.time()
    content = train_and_evaluate(trial.config, store.path(trial), data_folder=store.folder / DATA_FOLDER)
    store.finish(trial, {**content, "started": started, "ended": time.time()})


def attempt(store: Store, trial: Trial) -> dict[str, Any]:
    """Run a trial under its lock and say how it went; a failure is recorded in its folder."""
    try:
        with store.lock(trial):
            if store.result(trial) is None:
                store.begin(trial)
                with _output_to(store.path(trial) / LOG):
                    return _guarded(store, trial)
            return {"trial": trial.hash, "state": "done"}
    except Timeout:
        return {"trial": trial.hash, "state": "busy"}


def join(store: Store, trial: Trial) -> dict[str, Any]:
    """Train a trial as one of its further processes."""
    from plait.training.runner import train

    def run(store: Store, trial: Trial) -> None:
        train(trial.config, store.path(trial), progress=False, data_folder=store.folder / DATA_FOLDER)

    store.path(trial).mkdir(parents=True, exist_ok=True)
    with _output_to(store.path(trial) / LOG):
        return _guarded(store, trial, run)


def _guarded(store: Store, trial: Trial, run: Callable[[Store, Trial], None] = run_trial) -> dict[str, Any]:
    """Run a trial; any exception fails this trial alone."""
    try:
        run(store, trial)
    except Exception as error:
        traceback.print_exc()
        text = str(error).strip() or "no message"
        line = text if isinstance(error, PlaitError) else f"{type(error).__name__}: {text.splitlines()[0]}"
        store.fail(trial, line, traceback.format_exc())
        return {"trial": trial.hash, "state": "failed"}
    return {"trial": trial.hash, "state": "done"}


@contextlib.contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Send stdout and stderr of this process, native code included, to the end of a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with open(path, "ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, file in zip((1, 2), saved, strict=True):
            os.dup2(file, number)
            os.close(file)


def _read_requests(requests: queue.Queue[str]) -> None:
    """Pass on stdin line by line; at its end stop this process, which saves a checkpoint if it is training."""
    for line in sys.stdin:
        requests.put(line.strip())
    os.kill(os.getpid(), signal.SIGTERM)


def main(folder: Path, threads: int, only: str | None = None) -> int:
    """Serve the runner until it closes stdin, or run one trial; returns the exit status."""
    answers: TextIO = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # stdout carries answers only; whatever prints elsewhere goes to stderr
    faulthandler.enable()
    requests: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read_requests, args=(requests,), daemon=True).start()
    _prepare(threads)
    store = Store(folder)
    trials = {trial.hash: trial for trial in store.trials()}
    if only is not None:
        return _run_one(store, trials[only], answers)
    answer: dict[str, Any] = {"state": "ready"}
    while True:
        _say(answers, answer)
        answer = attempt(store, trials[requests.get()])
        gc.collect()


def _run_one(store: Store, trial: Trial, answers: TextIO) -> int:
    """Run a trial with the other processes of torchrun, if there are any; 0 where it is done."""
    first = int(os.environ.get("RANK", "0")) == 0
    answer = attempt(store, trial) if first else join(store, trial)
    if first:
        _say(answers, answer)
    return 0 if answer["state"] == "done" else 1


def _say(answers: TextIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def _prepare(threads: int) -> None:
    """Import what every trial needs, once, and share out the cores."""
    import torch

    import plait.evaluation.run  # noqa: F401  loads transformers, which takes seconds

    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]))
    except KeyboardInterrupt:
        sys.exit(130)
