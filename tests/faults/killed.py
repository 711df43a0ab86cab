"""Kills a job at random moments and compares what it ends with: ``python killed.py KIND FOLDER KILLS SEED``.

The job runs once undisturbed, which gives its result and its time. Then it is started again and again in a forked
child (so that a call costs no start-up) that ends by SIGKILL after a random part of that time; where it ends before,
its result is compared and it begins anew. A last call runs to the end. With ``full-`` before the kind nothing is
killed: a child can write no file larger than a random size, as on a disk that is full, and has to end with an error.
One line of JSON says how often what happened.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import peft  # noqa: F401 - once, not in every child
import torch

from plait.cli.train import _result
from plait.conversion import convert
from plait.data.tasks import build_task
from plait.evaluation.batching import Batches
from plait.evaluation.session import measure
from plait.evaluation.subject import open_subject
from plait.evaluation.tasks import TaskMeasurement
from plait.runs.metrics import losses
from plait.study.file import parse_study
from plait.study.runner import run_trials
from plait.study.store import Store
from plait.training import RunConfig

MODEL = {"hidden_size": 32, "num_hidden_layers": 2, "ratio": "1:1", "intermediate_size": 32}
TRAINING = {"steps": 30, "batch_size": 4, "warmup_steps": 5, "save_every": 4, "log_every": 3}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def text(folder: Path) -> Path:
    path = folder / "text.txt"
    path.write_text("".join(f"{i} times {i % 7} is {i * (i % 7)}.\n" for i in range(2000)), encoding="utf-8")
    return path


def _scores(results: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """What was measured, without the time that it took."""
    return [(one["name"], one["scores"]) for one in results if one["kind"] != "decode"]


class Train:
    """A run with a trained tokenizer, its measurements and its result."""

    def __init__(self, folder: Path) -> None:
        data = {"corpus": f"text:{text(folder)}", "length": 16, "tokenizer": "bpe:300"}
        values = {"model": MODEL, "data": data, "training": TRAINING, "evaluate": {"limit": 8}}
        self.config = RunConfig.model_validate(values)

    def work(self, out: Path) -> None:
        _result(self.config, out, again=False, init_from=None)

    def result(self, out: Path) -> Any:
        measured = json.loads((out / "result.json").read_text())["evaluation"]
        return digest(out / "model" / "model.safetensors"), losses(out), _scores(measured["results"])


class Eval:
    """Several tasks measured of one model."""

    def __init__(self, folder: Path) -> None:
        data = {"task": "mqar", "length": 16, "options": {"vocab_size": 32, "pairs": 2}}
        config = RunConfig.model_validate({"model": MODEL, "data": data, "training": {**TRAINING, "steps": 1}})
        _result(config, folder / "run", again=False, init_from=None)
        self.subject = open_subject(str(folder / "run"))

    def work(self, out: Path) -> None:
        options = [{"vocab_size": 32, "pairs": pairs, "length": 16} for pairs in (1, 2, 3, 4)]
        wanted = [TaskMeasurement(f"mqar {one['pairs']}", build_task("mqar", one), 200) for one in options]
        list(measure(self.subject, wanted, out, Batches(8, self.subject.device), progress=False))

    def result(self, out: Path) -> Any:
        found = [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]
        return _scores(found)


STAGES = {"mixer": "gated_deltanet", "gate": "identity", "align_steps": 7, "distil_steps": 5, "tune_steps": 4}
SIZES = {"lora_rank": 2, "batch_size": 2, "save_every": 2, "log_every": 1}


class Convert:
    """All stages of a conversion, with a selection by importance and adapters."""

    def __init__(self, folder: Path) -> None:
        from conversion.small import save_data, save_teacher

        self.data, self.teacher = save_data(folder), save_teacher(folder / "teacher")

    def work(self, out: Path) -> None:
        options = {**STAGES, **SIZES}
        convert(self.teacher, "halo", out, ratio="2:1", select="importance", data=self.data, options=options, samples=4)

    def result(self, out: Path) -> Any:
        steps = [(out / "stages" / stage / "metrics.jsonl").read_text() for stage in ("align", "distil", "tune")]
        report = json.loads((out / "conversion.json").read_text())
        return digest(out / "model.safetensors"), steps, report["kept"], [one["after"] for one in report["stages"]]


class Study:
    """Two trials of text and two of recall on one worker."""

    def __init__(self, folder: Path) -> None:
        data = {"corpus": f"text:{text(folder)}", "length": 16}
        recall = {"task": "mqar", "options": {"length": 16, "pairs": 2, "vocab_size": 16}}
        self.values = {
            "name": "tiny",
            "base": {"model": {**MODEL, "mixers": {"attention": {"num_heads": 2}}}, "training": TRAINING},
            "tracks": {
                "lm": {"kind": "lm", "data": data, "evaluate": {"limit": 8}},
                "recall": {"kind": "recall", "data": recall, "evaluate": {"limit": 8}},
            },
            "grid": {"mixers": ["gla"], "ratios": ["pure"]},
            "contexts": [64],
        }
        self.values["base"]["model"].pop("ratio")

    def _store(self, out: Path) -> Store:
        store = Store(out)
        store.write_study(parse_study(self.values, "tiny.yaml"), "tiny.yaml", "plait study run tiny.yaml")
        return store

    def work(self, out: Path) -> None:
        store = self._store(out)
        if run_trials(store, store.trials(), workers=1).failed:
            raise RuntimeError("a worker was killed")

    def result(self, out: Path) -> Any:
        store = Store(out)
        found = {trial.label: store.result(trial) for trial in store.trials()}
        return {
            label: (one["train"]["losses"], _scores(one["evaluation"]["results"]))
            for label, one in found.items()
            if one is not None
        }


KINDS: dict[str, Callable[[Path], Any]] = {"train": Train, "eval": Eval, "convert": Convert, "study": Study}


def child(job: Any, out: Path, limit: int | None = None) -> NoReturn:
    os.setpgid(0, 0)
    if limit is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    log = os.open(out.parent / "errors.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 2)
    try:
        job.work(out)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def started(job: Any, out: Path, limit: int | None = None) -> int:
    pid = os.fork()
    return pid if pid else child(job, out, limit)


def below(pid: int) -> list[int]:
    """Processes that another one has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def gone(pids: list[int]) -> None:
    while any(Path(f"/proc/{pid}/stat").exists() for pid in pids):
        time.sleep(0.01)


def ended(pid: int, seconds: float) -> int | None:
    """Exit status of a process that ends within this time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def main(kind: str, folder: Path, times: int, seed: int) -> None:
    torch.set_num_threads(1)
    full, name = kind.startswith("full-"), kind.removeprefix("full-")
    job, rng = KINDS[name](folder), random.Random(seed)
    began = time.monotonic()
    assert ended(started(job, folder / "whole"), 1e9) == 0, "the undisturbed job failed"
    duration = time.monotonic() - began
    wanted, broken = job.result(folder / "whole"), folder / "broken"
    largest = max(path.stat().st_size for path in (folder / "whole").rglob("*") if path.is_file())
    count = {"kind": kind, "disturbed": 0, "ended before": 0, "different": 0}
    while count["disturbed"] < times:
        pid = started(job, broken, int(rng.uniform(200, largest)) if full else None)
        status = ended(pid, 1e9 if full else rng.uniform(0, duration))
        if status is None:
            workers = below(pid)
            os.kill(rng.choice([pid, *workers]), signal.SIGKILL)
            ended(pid, 1e9)
            gone(workers)
            count["disturbed"] += 1
        elif status == 0:
            count["ended before"] += 1
            count["different"] += job.result(broken) != wanted
            shutil.rmtree(broken)
        else:
            count["disturbed"] += 1
            count["different"] += not full  # an error where nothing was wrong
    last = ended(started(job, broken), 1e9)
    count["different"] += last != 0 or job.result(broken) != wanted
    left = [str(path.relative_to(broken)) for path in broken.rglob(".*") if path.name != ".lock"]
    print(json.dumps({**count, "leftovers": left, "seconds": round(duration, 1)}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
