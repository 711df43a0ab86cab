"""Converts one model again and again while it is killed: ``python killed_conversion.py FOLDER KILL...``.

FOLDER holds the teacher and the data, and gets ``broken`` and ``whole``, the same without a kill. Each KILL is one call
in a child process that ends by SIGKILL: ``align:N``, ``distil:N`` or ``tune:N`` before the update of step N,
``publish:STAGE`` when the stage's model is written and not yet named, ``record:STAGE`` before its record is written. A
last call runs to the end. Children are forked after the imports, so that a call costs no start-up.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

import peft  # noqa: F401 - once, not in every child
import torch

from plait.conversion import convert, loop, stages

OPTIONS = {
    "mixer": "gated_deltanet",
    "gate": "identity",
    "align_steps": 7,
    "distil_steps": 5,
    "tune_steps": 4,
    "lora_rank": 2,
    "batch_size": 2,
    "save_every": 2,
    "log_every": 1,
}


def die(*_: Any, **__: Any) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def arm(kill: str) -> None:
    """Patch this process so that it dies where ``kill`` says."""
    kind, _, what = kill.partition(":")
    if kind in ("align", "distil", "tune"):
        sound = loop.set_rate

        def set_rate(optimiser: Any, step: int, training: Any, groups: Any) -> list[float]:
            steps = OPTIONS[f"{kind}_steps"]
            if training.steps == steps and step + 1 == int(what):
                die()
            return sound(optimiser, step, training, groups)

        loop.set_rate = set_rate
    elif kind == "publish":
        publish = stages.publish_folder
        stages.publish_folder = lambda partial, final: die() if final.parent.name == what else publish(partial, final)
    elif kind == "record":
        write = stages.write_json
        stages.write_json = lambda path, content, **options: (
            die() if path.name == stages.FINISHED and path.parent.name == what else write(path, content, **options)
        )
    else:
        raise ValueError(kill)


def main(folder: Path, kills: list[str]) -> None:
    torch.set_num_threads(1)
    for name, kill in [*(("broken", kill) for kill in [*kills, ""]), ("whole", "")]:
        child = os.fork()
        if child == 0:
            if kill:
                arm(kill)
            convert(
                folder / "teacher",
                "halo",
                folder / name,
                ratio="2:1",
                select="importance",
                data=folder / "data.yaml",
                options=OPTIONS,
                samples=4,
            )
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(kill or "end", status, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
