"""Trains one run again and again while it is killed: ``python killed_run.py FOLDER KILL...``.

Each KILL is one call of ``train`` in a child process that ends by SIGKILL: ``step:N`` in the middle of step N,
``saving:N`` while checkpoint N is being written, ``deleting`` while an old checkpoint is being deleted,
``outside:N`` from another process, some time after step N was logged. A last call runs to the end.
Children are forked after the imports, so that a call costs no start-up.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import torch

from plait.files import writing
from plait.runs import checkpoint
from plait.runs.metrics import FILE
from plait.training import RunConfig, runner, trainer

CONFIG = RunConfig.model_validate(
    {
        "model": {"hidden_size": 32, "num_hidden_layers": 2, "ratio": "1:1", "intermediate_size": 32},
        "data": {"task": "mqar", "length": 16, "options": {"vocab_size": 32, "pairs": 2}},
        "training": {"steps": 40, "batch_size": 4, "warmup_steps": 5, "save_every": 6, "log_every": 4, "keep": 2},
    }
)


def die(*_: Any, **__: Any) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def arm(kill: str) -> None:
    """Patch this process so that it dies where ``kill`` says."""
    kind, _, number = kill.partition(":")
    if kind == "step":
        original = trainer.PlaitTrainer.training_step

        def training_step(self: Any, *args: Any) -> Any:
            loss = original(self, *args)
            return die() if self.state.global_step + 1 == int(number) else loss

        trainer.PlaitTrainer.training_step = training_step  # type: ignore[method-assign]
    elif kind == "saving":
        publish = trainer.publish_folder

        def publish_folder(partial: Path, final: Path) -> None:
            if final.name == f"checkpoint-{number}":
                (partial / "optimizer.pt").write_bytes(b"half")
                die()
            publish(partial, final)

        trainer.publish_folder = publish_folder
    elif kind == "deleting":
        remove = shutil.rmtree

        def rmtree(path: Path, *args: Any, **kwargs: Any) -> None:
            if "-removed-" in path.name and path.exists():
                (path / "model.safetensors").unlink()
                die()
            remove(path, *args, **kwargs)

        writing.shutil.rmtree = rmtree  # type: ignore[assignment]
    elif kind != "outside":
        raise ValueError(kill)


def main(folder: Path, kills: list[str]) -> None:
    torch.set_num_threads(1)
    for kill in [*kills, ""]:
        child = os.fork()
        if child == 0:
            if kill:
                arm(kill)
            runner.train(CONFIG, folder, progress=False)
            os._exit(0)
        if kill.startswith("outside"):
            step = kill.partition(":")[2]
            while f'"step": {step},' not in (folder / FILE).read_text():
                time.sleep(0.001)
            time.sleep(float(os.environ["KILL_DELAY"]))
            os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        saved = " ".join(path.name for path in checkpoint.checkpoints(folder))
        print(kill or "end", status, saved, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
